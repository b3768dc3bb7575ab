//! A message of the daemon's, and what the descriptors that came with it are for. Shapes are in `order`; nothing is
//! done here.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use crate::sandbox::{
    order::{Descriptor, Message},
    wire,
};

/// What descriptors are for.
#[derive(Default)]
pub(super) struct Held {
    pub(super) start: Option<OwnedFd>,
    pub(super) executable: Option<OwnedFd>,
    pub(super) input: Option<OwnedFd>,
    /// Only held.
    _alive: Option<OwnedFd>,
    pub(super) cgroup_procs: Vec<File>,
    pub(super) cgroup_kill: Option<File>,
    pub(super) cgroup_cpu: Option<File>,
}

impl Held {
    fn take(&mut self, kind: Descriptor, descriptor: OwnedFd) {
        match kind {
            Descriptor::Start => self.start = Some(descriptor),
            Descriptor::Executable => self.executable = Some(descriptor),
            Descriptor::Input => self.input = Some(descriptor),
            Descriptor::Alive => self._alive = Some(descriptor),
            Descriptor::CgroupProcs => self.cgroup_procs.push(File::from(descriptor)),
            Descriptor::CgroupKill => self.cgroup_kill = Some(File::from(descriptor)),
            Descriptor::CgroupCpu => self.cgroup_cpu = Some(File::from(descriptor)),
            // These come alone, and are only held where they are heard.
            Descriptor::Mounts
            | Descriptor::Control
            | Descriptor::Stdout
            | Descriptor::Stderr
            | Descriptor::Process => {}
        }
    }
}

/// Waits for a message.
pub(super) fn receive<M: Message>(socket: &UnixStream) -> io::Result<(M, Held)> {
    let (message, descriptors): (M, _) = wire::receive(socket)?;
    let mut held = Held::default();
    for (kind, descriptor) in message.descriptors().iter().zip(descriptors) {
        held.take(*kind, descriptor);
    }
    Ok((message, held))
}
