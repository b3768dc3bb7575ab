//! How messages, and descriptors beside them, go over a local socket: between the daemon and a launcher, and between
//! a launcher's own processes. What the messages are: `order`.

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::sandbox::order::{self, MOST_DESCRIPTORS, Message, ORDER_BYTES};

/// Says a message, with its descriptors beside the first byte.
pub(super) fn send(
    socket: &UnixStream,
    message: &impl Message,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > ORDER_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is too long"));
    }
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
    send_with(socket, &length, descriptors)?;
    (&*socket).write_all(&text)
}

/// Hears a message. Errors: the other end is closed, or says something else.
pub(super) fn receive<M: Message>(socket: &UnixStream) -> io::Result<(M, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut length)];
    let received =
        retry_on_intr(|| recvmsg(socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
    let descriptors: Vec<OwnedFd> = descriptors(&mut ancillary).collect();
    let first = length.get(..received.bytes).unwrap_or_default();
    let message: M = order::read(first.chain(socket))?;
    match message.descriptors().len() == descriptors.len() {
        true => Ok((message, descriptors)),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors are missing")),
    }
}

/// Says one byte, and gives a descriptor with it.
pub(super) fn send_one(socket: &UnixStream, byte: u8, descriptor: impl AsFd) -> io::Result<()> {
    send_with(socket, &[byte], &[descriptor.as_fd()])
}

/// The next byte of a socket, and a descriptor where one came with it; no byte: the other end is closed.
pub(super) fn receive_one(socket: impl AsFd) -> io::Result<(Option<u8>, Option<OwnedFd>)> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut byte)];
    let received =
        retry_on_intr(|| recvmsg(&socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC))?;
    let descriptor = descriptors(&mut ancillary).next();
    Ok(((received.bytes == 1).then_some(byte[0]), descriptor))
}

fn send_with(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let parts = &[IoSlice::new(bytes)];
    let sent = retry_on_intr(|| sendmsg(socket, parts, &mut ancillary, SendFlags::NOSIGNAL))?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn descriptors(ancillary: &mut RecvAncillaryBuffer<'_>) -> impl Iterator<Item = OwnedFd> {
    ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    })
}
