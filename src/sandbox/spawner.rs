//! The one thread that starts launchers, and what is said to a launcher when it starts. Permanent, since
//! the kernel takes the death of the thread that started a child for the death of its parent.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::sync::oneshot;

use crate::{
    ports::SandboxError,
    sandbox::order::{
        Access, Descriptor, End, MOST_DESCRIPTORS, ORDER_BYTES, Order, Report, Rlimits, RunAs,
        Tier, View, Watched, WayOut, Work,
    },
};

/// Starts that may wait; who finds no room waits for it on a thread of its own.
const QUEUE: usize = 64;
/// How long a trial may take.
const TRIAL: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce(&Path) + Send>;

/// Runs what starts launchers.
#[derive(Debug)]
pub(super) struct Spawner {
    jobs: mpsc::SyncSender<Job>,
}

impl Spawner {
    /// Starts the thread, for the launcher at this path.
    pub(super) fn start(program: PathBuf) -> Result<Self, SandboxError> {
        if !program.is_file() {
            return Err(SandboxError::Launcher {
                launcher: program.display().to_string(),
                source: io::ErrorKind::NotFound.into(),
            });
        }
        let (jobs, queue) = mpsc::sync_channel::<Job>(QUEUE);
        thread::Builder::new()
            .name("sandbox-spawner".into())
            .spawn(move || queue.iter().for_each(|job| job(&program)))
            .map_err(|source| SandboxError::Io { what: "starting a thread", source })?;
        Ok(Self { jobs })
    }

    /// Runs `job` on the thread, with the launcher's path. Gives what it gave.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Result<T, SandboxError> {
        let (reply, answer) = oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        let job: Job = Box::new(move |program| {
            let _guard = runtime.enter();
            drop(reply.send(job(program)));
        });
        self.queue(job).await?;
        answer.await.map_err(|_| ended())
    }

    async fn queue(&self, job: Job) -> Result<(), SandboxError> {
        match self.jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(mpsc::TrySendError::Disconnected(_)) => Err(ended()),
            Err(mpsc::TrySendError::Full(job)) => {
                let jobs = self.jobs.clone();
                let sent = crate::tasks::blocking(move || jobs.send(job)).await;
                sent.map_err(|_| ended())?.map_err(|_| ended())
            }
        }
    }

    /// The strongest tier in which work can be done here, found by doing some, and why no stronger one.
    /// Blocking. Errors: there is none.
    pub(super) fn strongest(&self, workspace: &Path) -> Result<(Tier, Vec<String>), SandboxError> {
        let mut refusals = Vec::new();
        for tier in [Tier::Full, Tier::Root, Tier::Landlock] {
            let (reply, answer) = mpsc::channel();
            let place = workspace.to_owned();
            let job: Job =
                Box::new(move |program| drop(reply.send(attempt(program, tier, &place))));
            self.jobs.send(job).map_err(|_| ended())?;
            match answer.recv().map_err(|_| ended())? {
                Ok(()) => return Ok((tier, refusals)),
                Err(error) => refusals.push(format!("{}: {error}", tier.as_str())),
            }
        }
        Err(SandboxError::NoTier { refusals: refusals.join("; ") })
    }
}

fn ended() -> SandboxError {
    SandboxError::Lost { message: "the thread that starts launchers has ended".into() }
}

/// Puts up the walls of a tier around nothing.
fn attempt(program: &Path, tier: Tier, workspace: &Path) -> io::Result<()> {
    let place = File::open(workspace)?;
    let order = Order {
        work: Work::Nothing,
        wall_ms: 5000,
        cpu_ms: 5000,
        watched: Watched::default(),
        rlimits: Rlimits { cpu_seconds: 5, open_files: 64, file_bytes: 0, data_bytes: None },
        tier,
        view: View {
            workspace: workspace.display().to_string(),
            access: Access::ReadOnly,
            protected: Vec::new(),
            read_only: Vec::new(),
            writable: Vec::new(),
            tmp_bytes: 1 << 20,
        },
        run_as: RunAs::WorkspaceOwner,
        way_out: WayOut::None,
        daemon: rustix::process::getpid().as_raw_nonzero().get(),
        descriptors: vec![Descriptor::Workspace],
    };
    let (mut child, control) = spawn(program, Stdio::null).map_err(io::Error::other)?;
    let said = send(&control, &order, &[place.as_fd()]).and_then(|()| {
        control.set_read_timeout(Some(TRIAL))?;
        let mut text = Vec::new();
        (&control).take(64 << 10).read_to_end(&mut text)?;
        Ok(serde_json::from_slice::<Report>(&text)?)
    });
    if said.is_err() {
        let _ = child.kill();
    }
    child.wait()?;
    match said?.end {
        End::Code(0) => Ok(()),
        End::NotStarted(message) | End::Lost(message) => Err(io::Error::other(message)),
        other => Err(io::Error::other(format!("a trial ended with {other:?}"))),
    }
}

/// Starts a launcher, which waits for its order at the other end of the socket.
pub(super) fn spawn(
    program: &Path,
    output: impl Fn() -> Stdio,
) -> Result<(Child, UnixStream), SandboxError> {
    let (control, other_end) = UnixStream::pair()
        .map_err(|source| SandboxError::Io { what: "making a socket", source })?;
    let child = Command::new(program)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(other_end)))
        .stdout(output())
        .stderr(output())
        .spawn()
        .map_err(|source| SandboxError::Launcher {
            launcher: program.display().to_string(),
            source,
        })?;
    Ok((child, control))
}

/// The next byte of a socket, and a descriptor where one came with it; no byte: the other end is closed.
pub(super) fn receive_one(socket: impl AsFd) -> io::Result<(Option<u8>, Option<OwnedFd>)> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut byte)];
    let received = recvmsg(&socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(((received.bytes == 1).then_some(byte[0]), descriptor))
}

/// A file in memory that the program reads its input from.
pub(super) fn input_file(input: &str) -> io::Result<File> {
    let file = rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(file);
    io::Write::write_all(&mut &file, input.as_bytes())?;
    io::Seek::rewind(&mut &file)?;
    Ok(file)
}

/// Says the order, with its descriptors beside the first byte.
pub(super) fn send(
    control: &UnixStream,
    order: &Order,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let order = serde_json::to_vec(order)?;
    if order.len() > ORDER_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is too long"));
    }
    let length = u32::try_from(order.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = sendmsg(control, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent != length.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    io::Write::write_all(&mut &*control, &order)
}
