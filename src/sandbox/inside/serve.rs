//! The fork server: takes the place of a program that would have to be loaded and linked for each launcher. It only
//! forks: it takes no frame, holds nothing but its socket to the daemon, and dies with the daemon.

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
};

use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal};

use crate::sandbox::{
    inside::{self, Fork},
    order::{Launch, Launched},
    wire,
};

/// Gives launchers to the daemon, which asks for them over standard input, a socket.
pub fn main() -> ExitCode {
    let daemon = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    match daemon.and_then(|daemon| serve(&daemon)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Until the daemon closes its end.
fn serve(daemon: &UnixStream) -> io::Result<()> {
    // Something may have been left open by whoever started the daemon.
    inside::close_all_but([daemon.as_fd()])?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Launchers, and what they hold, are made from us.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Nobody waits for them here: the daemon sees the end of each by its descriptor.
    when_children_end(libc::SIG_IGN)?;
    let server = rustix::process::getpid();
    loop {
        let ends = match wire::receive::<Launch>(daemon) {
            Ok((_, ends)) => ends,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let ends = <[OwnedFd; 3]>::try_from(ends).map_err(|_| inside::missing())?;
        match inside::fork() {
            Ok(Fork::Child) => {
                let done = stand_alone(ends).map(|control| inside::launcher(&control, server));
                inside::exit(done.unwrap_or(inside::NOT_STARTED))
            }
            Ok(Fork::Parent(launcher)) => answer(daemon, open(launcher))?,
            Err(error) => answer(daemon, Err(error))?,
        }
    }
}

/// A launcher's own standard streams, its socket to the daemon, and nothing of ours.
fn stand_alone([control, stdout, stderr]: [OwnedFd; 3]) -> io::Result<UnixStream> {
    rustix::stdio::dup2_stdin(&control)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    inside::close_all_but([control.as_fd()])?;
    when_children_end(libc::SIG_DFL)?;
    Ok(control.into())
}

/// It waits for its frame meanwhile, which is not sent before we have answered; whoever is too late for that finds
/// its socket closed.
fn open(launcher: Pid) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(launcher, PidfdFlags::empty())?)
}

fn answer(daemon: &UnixStream, launcher: io::Result<OwnedFd>) -> io::Result<()> {
    match launcher {
        Ok(process) => wire::send(daemon, &Launched { failure: None }, &[process.as_fd()]),
        Err(error) => wire::send(daemon, &Launched { failure: Some(error.to_string()) }, &[]),
    }
}

fn when_children_end(disposition: libc::sighandler_t) -> io::Result<()> {
    #[expect(unsafe_code, reason = "signal has no safe form")]
    // SAFETY: neither of the two dispositions involves code of ours.
    let before = unsafe { libc::signal(libc::SIGCHLD, disposition) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}
