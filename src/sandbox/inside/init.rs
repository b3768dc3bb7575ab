//! Process 1 of the work's own world: builds that world, takes the order, furnishes the world for it, has the work
//! done, and says how it ended. When this process ends, the kernel kills all that is left in its namespace, so it
//! waits for nothing else.

use std::{
    fs::File,
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::net::UnixStream,
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, Signal, WaitOptions},
    thread::UnshareFlags,
};

use crate::sandbox::{
    inside::{self, Fork, payload, reap, receive, root, walls},
    order::{End, Frame, LISTENING, Order, PROXY_PORT, WayOut},
    wire,
};

/// What process 1 works with.
pub(super) struct Init<'a> {
    pub(super) frame: &'a Frame,
    /// Entered by us and so by all that we start. The launcher stays outside: it outlives the group.
    pub(super) cgroup_procs: &'a [File],
    /// Where we say how it ended.
    pub(super) words: &'a File,
    /// Where we tell the launcher within which limits the work is done.
    pub(super) terms: &'a UnixStream,
    /// From here the order comes, and the daemon's end of it gets the socket of the way out.
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
    #[expect(unsafe_code, reason = "unshare may take away what other code relies on")]
    // SAFETY: this process has one thread, and no code that relies on shared mounts.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP)?;
    }
    let (order, hand_on) = UnixStream::pair()?;
    // Already now: it has walls of its own to put up, and there is a second processor.
    let work = match inside::fork()? {
        Fork::Child => {
            drop(hand_on);
            inside::exit_with(init.words, wait_for_work(init.frame, &order))
        }
        Fork::Parent(work) => work,
    };
    drop(order);
    inside::let_go_of_output()?;
    loopback_up()?;
    rustix::system::sethostname(b"sandbox")?;
    let root = root::Root::build()?;
    let mounts = File::open("/proc/self/ns/mnt")?;

    let (order, held) = receive::receive::<Order>(init.control)?;
    wire::send(init.terms, &order.terms, &[mounts.as_fd()])?;
    if order.way_out == WayOut::Proxy {
        open_way_out(init.control)?;
    }
    root.enter(&order.view, init.frame.access)?;
    let descriptors = [&held.executable, &held.input];
    let descriptors: Vec<_> = descriptors.into_iter().flatten().map(|file| file.as_fd()).collect();
    wire::send(&hand_on, &order, &descriptors)?;
    // The work has begun: from here on a failure is one to tell its end.
    let end = see_to_its_end(init, work).unwrap_or_else(|error| End::Lost(error.to_string()));
    serde_json::to_writer(init.words, &end)?;
    Ok(0)
}

/// The work's own process, from its first moment on.
fn wait_for_work(frame: &Frame, order: &UnixStream) -> io::Result<i32> {
    let place = payload::stand_by(frame, None)?;
    let (order, held) = receive::receive::<Order>(order)?;
    place.carry_out(&order, held)
}

/// Waits, with nothing that could be reached and nothing held open that the daemon waits for.
fn see_to_its_end(init: &Init<'_>, work: Pid) -> io::Result<End> {
    walls::drop_capabilities()?;
    close_all_but(init.words)?;
    reap_until(work)
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

fn close_all_but(kept: &File) -> io::Result<()> {
    let kept = u32::try_from(kept.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    if kept > 3 {
        inside::close_range(3, kept - 1, 0)?;
    }
    inside::close_range(kept + 1, u32::MAX, 0)
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
