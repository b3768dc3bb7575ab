//! The fork server: the one `agentd-sandbox` that is started as a program, from which launchers are forked. Loading
//! and linking a program takes as long as building a world. Started here, and again when it has died; what a launcher
//! is told is in `framed`.

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    pipe::PipeFlags,
    process::Signal,
};

use crate::{
    ports::SandboxError,
    sandbox::{
        order::{Launch, Launched},
        wire,
    },
};

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most that were silent for so long, and are left to the launchers that they are the parent of.
const MOST_SILENT: usize = 4;

/// See the module. Belongs to the one thread that started it: it ends with that thread, and its launchers with it or,
/// where they must see to their work first, by their sockets.
#[derive(Debug)]
pub(super) struct ForkServer {
    program: PathBuf,
    running: Option<Running>,
    silent: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    socket: UnixStream,
}

/// A launcher, which waits for its frame at the other end of `control`.
#[derive(Debug)]
pub(super) struct Forked {
    pub(super) process: Process,
    pub(super) control: UnixStream,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// A process that is not our child.
#[derive(Debug)]
pub(super) struct Process(OwnedFd);

/// A launcher's socket and pipes, both ends.
struct Ends {
    ours: (UnixStream, OwnedFd, OwnedFd),
    theirs: [OwnedFd; 3],
}

impl ForkServer {
    /// Of the launcher at this path; started when one is wanted, at the latest.
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, running: None, silent: Vec::new() }
    }

    pub(super) fn prepare(&mut self) -> Result<(), SandboxError> {
        if self.running.is_none() {
            self.running = Some(self.start()?);
        }
        Ok(())
    }

    /// Gives a launcher. Blocking. Errors: nothing has begun.
    pub(super) fn fork(&mut self) -> Result<Forked, SandboxError> {
        let failed = |source| SandboxError::NoLauncher { source };
        // New ones for whoever is asked next: nobody but one launcher may ever hear what is said there.
        let ends = Ends::make().map_err(failed)?;
        let (running, is_new) = match self.running.take() {
            Some(running) => (running, false),
            None => (self.start()?, true),
        };
        // It belongs to us again only when it has answered: an answer that came too late would be taken for the next.
        match running.ask(ends) {
            Ok(answer) => {
                self.running = Some(running);
                // Whoever cannot fork now is no worse a parent to those that are at work.
                answer.map_err(|why| failed(io::Error::other(why)))
            }
            Err(source) => {
                self.put_aside(running, &source);
                if is_new { Err(failed(source)) } else { self.fork() }
            }
        }
    }

    /// Ends it, and all launchers that it is the parent of, until one is wanted again. Blocking.
    pub(super) fn stop(&mut self) {
        self.running = None;
        self.silent.clear();
    }

    fn start(&self) -> Result<Running, SandboxError> {
        let launcher = || self.program.display().to_string();
        Running::start(&self.program)
            .map_err(|source| SandboxError::Launcher { launcher: launcher(), source })
    }

    /// One that is dead goes; one that is only silent would take the work of others along.
    fn put_aside(&mut self, running: Running, why: &io::Error) {
        self.silent.retain_mut(|running| matches!(running.child.try_wait(), Ok(None)));
        if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            tracing::warn!("what forks launchers does not answer; another one is started");
            if self.silent.len() == MOST_SILENT {
                self.silent.remove(0);
            }
            self.silent.push(running);
        }
    }
}

impl Running {
    fn start(program: &Path) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let child = Command::new(program)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, socket })
    }

    /// For a launcher; or why there is none. Errors: it can be asked no more; a launcher that it forked all the
    /// same finds its socket closed.
    fn ask(&self, ends: Ends) -> io::Result<Result<Forked, String>> {
        let Ends { ours: (control, stdout, stderr), theirs } = ends;
        wire::send(&self.socket, &Launch {}, &theirs.each_ref().map(|end| end.as_fd()))?;
        drop(theirs);
        let (Launched { failure }, process) = wire::receive(&self.socket)?;
        let why = || failure.unwrap_or_else(|| "there is none".into());
        let process = process.into_iter().next().map(Process).ok_or_else(why);
        Ok(process.map(|process| Forked { process, control, stdout, stderr }))
    }
}

impl Ends {
    fn make() -> io::Result<Self> {
        let (control, theirs) = UnixStream::pair()?;
        let (stdout, out) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, err) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self { ours: (control, stdout, stderr), theirs: [theirs.into(), out, err] })
    }
}

impl Drop for Running {
    /// Blocking. Nothing of it is left.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Once it has ended there is nothing to do.
    pub(super) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Blocking; so long at most, where that is said. Whether it has ended.
    pub(super) fn wait(&self, most: Option<Duration>) -> io::Result<bool> {
        let most = most.map(|most| Timespec {
            tv_sec: i64::try_from(most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: most.subsec_nanos().into(),
        });
        loop {
            let mut ended = [PollFd::new(&self.0, PollFlags::IN)];
            match rustix::event::poll(&mut ended, most.as_ref()) {
                Ok(events) => return Ok(events > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
