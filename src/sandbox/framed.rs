//! A launcher that has its frame: it builds a world that any work of its kind can be done in, and waits for an
//! order. Started, given its order, and dismissed here; which ones wait: `pool`; what is ordered: `launcher`.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use tokio::net::{UnixStream, unix::pipe};

use crate::{
    ports::SandboxError,
    sandbox::{
        cgroup::Group,
        fork_server::{ForkServer, Forked, Process},
        order::{Access, Descriptor, Frame, Order, Owner, Tier},
        programs::LaunchProof,
        wire,
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
    forked: Forked,
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
    pub(super) process: Process,
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
        server: &mut ForkServer,
        (tier, kind): (Tier, Kind),
        start: BorrowedFd<'_>,
        alive: &File,
        group: Group,
    ) -> Result<Self, SandboxError> {
        let forked = match server.fork() {
            Ok(forked) => forked,
            Err(error) => {
                group.remove();
                return Err(error);
            }
        };
        let framed = Self { forked, group };
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
        let control = &self.forked.control;
        control.set_write_timeout(Some(PATIENCE))?;
        let groups = self.group.open()?;
        let mut descriptors: Vec<(Descriptor, BorrowedFd<'_>)> =
            vec![(Descriptor::Start, start), (Descriptor::Alive, alive.as_fd())];
        descriptors.extend(groups.iter().map(|(kind, file)| (*kind, file.as_fd())));
        let (descriptors, sent): (Vec<_>, Vec<_>) = descriptors.into_iter().unzip();
        wire::send(control, &Frame { tier, access, owner, descriptors }, &sent)
    }

    /// Its groups, whose limits must be set before it has its order.
    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    /// Gives it its order, within a runtime. Blocking. Errors: nothing of it is left.
    pub(super) fn give(
        self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Started, NotGiven> {
        match self.hand_over(order, descriptors) {
            Ok((control, stdout, stderr)) => {
                let Self { forked: Forked { process, .. }, group } = self;
                Ok(Started { process, group, control, stdout, stderr })
            }
            Err(error) => {
                self.dismiss();
                Err(error)
            }
        }
    }

    fn hand_over(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(UnixStream, pipe::Receiver, pipe::Receiver), NotGiven> {
        // First all that can fail: once the order is sent, nobody knows what has been done.
        let ends = self.ends().map_err(NotGiven::Unread)?;
        let control = &self.forked.control;
        control.set_nonblocking(false).map_err(NotGiven::Unread)?;
        wire::send(control, order, descriptors).map_err(NotGiven::Unread)?;
        control.set_nonblocking(true).map_err(NotGiven::Lost)?;
        Ok(ends)
    }

    fn ends(&self) -> io::Result<(UnixStream, pipe::Receiver, pipe::Receiver)> {
        let Forked { control, stdout, stderr, .. } = &self.forked;
        let control = control.try_clone()?;
        control.set_nonblocking(true)?;
        Ok((
            UnixStream::from_std(control)?,
            pipe::Receiver::from_owned_fd(stdout.try_clone()?)?,
            pipe::Receiver::from_owned_fd(stderr.try_clone()?)?,
        ))
    }

    /// Lets it go. Blocking; nothing of it is left.
    pub(super) fn dismiss(self) {
        let Self { forked: Forked { process, control, .. }, group } = self;
        // To it this means that all must end.
        let _ = control.shutdown(std::net::Shutdown::Both);
        if !matches!(process.wait(Some(LEAVE)), Ok(true)) {
            process.kill();
            let _ = process.wait(None);
        }
        group.remove();
    }
}
