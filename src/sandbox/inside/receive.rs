//! The daemon's order, and the descriptors that come with it. Shapes are in `order`; nothing is done here.

use std::{
    fs::File,
    io::{self, Read as _},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::sandbox::order::{self, Descriptor, MOST_DESCRIPTORS, Order};

/// What the daemon's descriptors are for.
#[derive(Default)]
pub(super) struct Held {
    pub(super) workspace: Option<OwnedFd>,
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
            Descriptor::Workspace => self.workspace = Some(descriptor),
            Descriptor::Executable => self.executable = Some(descriptor),
            Descriptor::Input => self.input = Some(descriptor),
            Descriptor::Alive => self._alive = Some(descriptor),
            Descriptor::CgroupProcs => self.cgroup_procs.push(File::from(descriptor)),
            Descriptor::CgroupKill => self.cgroup_kill = Some(File::from(descriptor)),
            Descriptor::CgroupCpu => self.cgroup_cpu = Some(File::from(descriptor)),
        }
    }
}

/// Reads the order and the descriptors that come with its first byte.
pub(super) fn receive(control: &UnixStream) -> io::Result<(Order, Held)> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        control,
        &mut [io::IoSliceMut::new(&mut length)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let first = length.get(..received.bytes).unwrap_or_default();
    let order = order::read(first.chain(control))?;
    if order.descriptors.len() != descriptors.len() {
        return Err(super::missing());
    }
    let mut held = Held::default();
    for (kind, descriptor) in order.descriptors.iter().zip(descriptors) {
        held.take(*kind, descriptor);
    }
    Ok((order, held))
}
