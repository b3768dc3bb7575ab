//! Process 1 of the work's own world: builds that world, takes the order, furnishes the world for it, has the work
//! done, sees everybody in it dead, and tells the daemon how it ended. When this process is killed before, the
//! kernel kills all that is left in its namespace, and the launcher tells.

use std::{
    fs::File,
    io::{self, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, Signal, WaitOptions},
    thread::UnshareFlags,
};

use crate::sandbox::{
    inside::{self, Fork, payload, reap, receive, root, walls, watch::Begun},
    order::{End, Frame, LISTENING, Order, PROXY_PORT, Terms, WayOut},
    wire,
};

/// What process 1 works with.
pub(super) struct Init<'a> {
    pub(super) frame: &'a Frame,
    /// Entered by us and so by all that we start. The launcher stays outside: it outlives the group.
    pub(super) cgroup_procs: &'a [File],
    /// Where we tell the launcher within which limits the work is done.
    pub(super) terms: &'a UnixStream,
    /// From here the order comes, and here the daemon hears of the way out and of the end.
    pub(super) control: &'a UnixStream,
    /// Its other end is the launcher's alone: closed, it says that the launcher is dead.
    pub(super) life: &'a File,
}

/// Runs as process 1, whose current directory is where the daemon starts. Errors: nothing was begun.
pub(super) fn run(init: &Init<'_>) -> io::Result<i32> {
    rustix::process::setsid()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if is_closed(init.life)? {
        return Err(io::Error::other("the launcher died"));
    }
    enter_cgroups(init.cgroup_procs)?;
    inside::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP)?;
    let (below, work) = start_work(init)?;
    inside::let_go_of_output()?;
    loopback_up().map_err(|error| inside::at("the loopback device", error))?;
    // Its own or none: no wall hangs on a name, and some containers do not let one be set.
    let _ = rustix::system::sethostname(b"sandbox");
    let root = root::Root::build()?;
    let mounts = File::open("/proc/self/ns/mnt")?;

    let (order, held) = receive::receive::<Order>(init.control)?;
    let begun = Begun::now();
    if order.way_out == WayOut::Proxy {
        open_way_out(init.control)?;
    }
    let old = root.enter(&order.view, init.frame.access)?;
    let descriptors = [&held.executable, &held.input];
    let descriptors: Vec<_> = descriptors.into_iter().flatten().map(|file| file.as_fd()).collect();
    // It finds its way in the new root while we get rid of the old one, and waits for the word.
    let told = wire::send(&below, &order, &descriptors)
        .and_then(|()| old.let_go())
        .and_then(|()| (&below).write_all(&[payload::BEGIN]));
    drop(held);
    if let Err(error) = told {
        // It has not begun: without the word it never will, and it may have had its reasons for being gone.
        let _ = below.shutdown(Shutdown::Write);
        return Err(match inside::said(&below) {
            Some(End::NotStarted(message)) => io::Error::other(message),
            Some(_) | None => error,
        });
    }
    // The work has begun: from here on a failure is one to tell its end, and no error of ours.
    let end = see_to_its_end(init, &order.terms, mounts.into(), &below, work);
    let end = end.unwrap_or_else(|error| End::Lost(error.to_string()));
    let _ = inside::tell(init.control, &inside::report(end, Some(begun)));
    Ok(0)
}

/// Already before there is an order: it has walls of its own to put up, and there may be a second processor. What it
/// says at the socket is why it did not begin.
fn start_work(init: &Init<'_>) -> io::Result<(UnixStream, Pid)> {
    let (below, above) = UnixStream::pair()?;
    match inside::fork()? {
        Fork::Child => {
            drop(below);
            let done = alone_with(&above).and_then(|()| wait_for_work(init.frame, &above));
            inside::exit_with(&above, done)
        }
        Fork::Parent(work) => Ok((below, work)),
    }
}

/// Lets go of all that is ours: whoever gets hold of the work must find nothing in it.
fn alone_with(above: &UnixStream) -> io::Result<()> {
    // Until it has its input; so far it is the daemon's.
    rustix::stdio::dup2_stdin(above)?;
    inside::close_all_but([above.as_fd()])
}

/// The work's own process, from its first moment on.
fn wait_for_work(frame: &Frame, init: &UnixStream) -> io::Result<i32> {
    let place = payload::stand_by(frame, None)?;
    let (order, held) = receive::receive::<Order>(init)?;
    place.carry_out(&order, held, Some(init))
}

/// Waits, with nothing that could be reached and nothing held open that the daemon waits for, until nobody but us is
/// left.
fn see_to_its_end(
    init: &Init<'_>,
    terms: &Terms,
    mounts: OwnedFd,
    below: &UnixStream,
    work: Pid,
) -> io::Result<End> {
    wire::send(init.terms, terms, &[mounts.as_fd()])?;
    drop(mounts);
    walls::keep_only_the_power_to_kill()?;
    inside::close_all_but([init.control.as_fd(), below.as_fd()])?;
    let end = reap_until(work)?;
    reap::kill_the_world()?;
    Ok(inside::said(below).unwrap_or(end))
}

/// Enters the call's groups.
pub(super) fn enter_cgroups(groups: &[File]) -> io::Result<()> {
    for mut group in groups {
        group.write_all(b"0")?;
    }
    Ok(())
}

fn is_closed(life: &File) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut events = [PollFd::new(life, PollFlags::IN)];
    rustix::event::poll(&mut events, Some(&now))?;
    Ok(!events[0].revents().is_empty())
}

/// Servers and clients within one program find each other at 127.0.0.1.
fn loopback_up() -> io::Result<()> {
    let kind = rustix::net::SocketType::DGRAM;
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(rustix::net::AddressFamily::INET, kind, flags, None)?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_UP | libc::IFF_RUNNING) as i16,
        },
    };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    #[expect(unsafe_code, reason = "this ioctl has no safe form")]
    // SAFETY: the request is a whole ifreq, as SIOCSIFFLAGS wants it.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the daemon a socket of this network, on which it hears whoever wants to reach something. No process in
/// here has a part in that.
fn open_way_out(control: &UnixStream) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PROXY_PORT))?;
    wire::send_one(control, LISTENING, &listener)
}

/// Takes in orphans until the work itself has ended.
fn reap_until(work: Pid) -> io::Result<End> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == work => return Ok(reap::end_of(status)),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
