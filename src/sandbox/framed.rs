//! A launcher that has its frame: it builds a world that any work of its kind can be done in, and waits for an
//! order. Started, given its order, and dismissed here; which ones wait: `pool`; what is ordered: `launcher`.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::Path,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use tokio::net::{UnixStream, unix::pipe};

use crate::{
    ports::SandboxError,
    sandbox::{
        cgroup::Group,
        order::{Access, Descriptor, Frame, Order, Owner, Tier},
        programs::LaunchProof,
        spawner, wire,
    },
};

/// How long a launcher may take to read its order.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to go when it is told to; then it is killed, as nothing of a call can have begun.
const LEAVE: Duration = Duration::from_millis(200);

/// What a frame says of the work: what is done in one world cannot be done in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    owner: Option<Owner>,
    access: Access,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Framed {
    child: Child,
    control: StdUnixStream,
    group: Group,
}

/// Why an order was not given.
#[derive(Debug)]
pub(super) enum NotGiven {
    /// The launcher did not get all of it: nothing has begun.
    Unread(io::Error),
    /// The launcher got it, and nobody hears of what it does.
    Lost(io::Error),
}

/// A launcher at work.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) group: Group,
    pub(super) control: UnixStream,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

impl Kind {
    /// Errors: the workspace is gone.
    pub(super) fn of(proof: &LaunchProof) -> io::Result<Self> {
        let workspace = rustix::fs::fstat(&proof.workspace)?;
        let as_owner = proof.as_owner && rustix::process::geteuid().is_root();
        let owner = Owner { user: workspace.st_uid, group: workspace.st_gid };
        let owner = (as_owner && owner.user != 0).then_some(owner);
        Ok(Self { owner, access: proof.access })
    }
}

impl Framed {
    /// Starts one, on the thread that starts them all. `start` is the workspace, or a directory above it. `alive`
    /// is held by it as long as a process of it lives.
    pub(super) fn start(
        program: &Path,
        (tier, kind): (Tier, Kind),
        start: BorrowedFd<'_>,
        alive: &File,
        group: Group,
    ) -> Result<Self, SandboxError> {
        let (child, control) = match spawner::spawn(program, Stdio::piped) {
            Ok(started) => started,
            Err(error) => {
                group.remove();
                return Err(error);
            }
        };
        let framed = Self { child, control, group };
        match framed.frame(tier, kind, start, alive) {
            Ok(()) => Ok(framed),
            Err(source) => {
                framed.dismiss();
                Err(SandboxError::Io { what: "handing a frame to the launcher", source })
            }
        }
    }

    fn frame(
        &self,
        tier: Tier,
        Kind { owner, access }: Kind,
        start: BorrowedFd<'_>,
        alive: &File,
    ) -> io::Result<()> {
        self.control.set_write_timeout(Some(PATIENCE))?;
        let groups = self.group.open()?;
        let mut descriptors: Vec<(Descriptor, BorrowedFd<'_>)> =
            vec![(Descriptor::Start, start), (Descriptor::Alive, alive.as_fd())];
        descriptors.extend(groups.iter().map(|(kind, file)| (*kind, file.as_fd())));
        let (descriptors, sent): (Vec<_>, Vec<_>) = descriptors.into_iter().unzip();
        let daemon = rustix::process::getpid().as_raw_nonzero().get();
        wire::send(&self.control, &Frame { tier, access, owner, daemon, descriptors }, &sent)
    }

    /// Its groups, whose limits must be set before it has its order.
    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    /// Gives it its order, within a runtime. Blocking. Errors: nothing of it is left.
    pub(super) fn give(
        mut self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Started, NotGiven> {
        match self.hand_over(order, descriptors) {
            Ok((control, stdout, stderr)) => {
                let Self { child, group, .. } = self;
                Ok(Started { child, group, control, stdout, stderr })
            }
            Err(error) => {
                self.dismiss();
                Err(error)
            }
        }
    }

    fn hand_over(
        &mut self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(UnixStream, pipe::Receiver, pipe::Receiver), NotGiven> {
        // First all that can fail: once the order is sent, nobody knows what has been done.
        let ends = self.ends().map_err(NotGiven::Unread)?;
        self.control.set_nonblocking(false).map_err(NotGiven::Unread)?;
        wire::send(&self.control, order, descriptors).map_err(NotGiven::Unread)?;
        self.control.set_nonblocking(true).map_err(NotGiven::Lost)?;
        Ok(ends)
    }

    fn ends(&mut self) -> io::Result<(UnixStream, pipe::Receiver, pipe::Receiver)> {
        let gone = || io::Error::other("a pipe of the launcher is missing");
        let stdout = OwnedFd::from(self.child.stdout.take().ok_or_else(gone)?);
        let stderr = OwnedFd::from(self.child.stderr.take().ok_or_else(gone)?);
        let control = self.control.try_clone()?;
        control.set_nonblocking(true)?;
        Ok((
            UnixStream::from_std(control)?,
            pipe::Receiver::from_owned_fd(stdout)?,
            pipe::Receiver::from_owned_fd(stderr)?,
        ))
    }

    /// Lets it go. Blocking; nothing of it is left.
    pub(super) fn dismiss(self) {
        let Self { mut child, control, group } = self;
        // To it this means that all must end.
        let _ = control.shutdown(std::net::Shutdown::Both);
        let step = Duration::from_millis(2);
        for _ in 0..LEAVE.as_millis() / step.as_millis() {
            match child.try_wait() {
                Ok(None) => thread::sleep(step),
                Ok(Some(_)) | Err(_) => break,
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        group.remove();
    }
}
