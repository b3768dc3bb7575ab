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
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module. Belongs to the one thread that started it: with that thread it ends, and all launchers with it.
#[derive(Debug)]
pub(super) struct ForkServer {
    program: PathBuf,
    running: Option<Running>,
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

/// What a launcher has of the ends of its socket and pipes.
struct Theirs {
    control: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl ForkServer {
    /// Of the launcher at this path; started when one is wanted.
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, running: None }
    }

    /// Gives a launcher. Blocking.
    pub(super) fn fork(&mut self) -> Result<Forked, SandboxError> {
        let failed = |source| SandboxError::Io { what: "starting a launcher", source };
        let (control, theirs) = UnixStream::pair().map_err(failed)?;
        let (stdout, out) = pipe().map_err(failed)?;
        let (stderr, err) = pipe().map_err(failed)?;
        let theirs = Theirs { control: theirs.into(), stdout: out, stderr: err };
        let answer = match self.running.as_ref().map(|running| running.ask(&theirs)) {
            Some(Ok(answer)) => answer,
            // It was killed, or stopped, and does not count any more. Nothing was begun.
            Some(Err(_)) | None => self.start()?.ask(&theirs).map_err(failed)?,
        };
        // Whoever cannot fork now is no worse a parent to those that are at work.
        let process = answer.map_err(|why| failed(io::Error::other(why)))?;
        Ok(Forked { process, control, stdout, stderr })
    }

    fn start(&mut self) -> Result<&Running, SandboxError> {
        self.running = None;
        match Running::start(&self.program) {
            Ok(running) => Ok(self.running.insert(running)),
            Err(source) => {
                let launcher = self.program.display().to_string();
                Err(SandboxError::Launcher { launcher, source })
            }
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

    /// For a launcher; else it says why it has none. Errors: it can be asked no more.
    fn ask(&self, theirs: &Theirs) -> io::Result<Result<Process, String>> {
        let Theirs { control, stdout, stderr } = theirs;
        let ends = [control.as_fd(), stdout.as_fd(), stderr.as_fd()];
        wire::send(&self.socket, &Launch {}, &ends)?;
        let (Launched { failure }, process) = wire::receive(&self.socket)?;
        let why = || failure.unwrap_or_else(|| "there is none".into());
        Ok(process.into_iter().next().map(Process).ok_or_else(why))
    }
}

impl Drop for Running {
    /// Blocking. Nothing of it is left.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
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
