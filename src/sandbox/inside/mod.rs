//! What runs in `agentd-sandbox`: puts up the walls that a frame asks for, takes one order, starts the work behind
//! them, watches it, sees all of it dead, and reports. Single-threaded, no async runtime; nothing here runs in the
//! daemon.
//!
//! Three processes, where the machine lets us have namespaces: this launcher, which stays outside and keeps
//! the time; process 1 (`init`), whose death is everybody's; and the work (`payload`). Without them the work
//! is the launcher's own child, and the launcher adopts and kills what it leaves. Who is nearest to the work takes
//! the order; everything that needs none is done before.

mod init;
mod maps;
mod payload;
mod reap;
mod receive;
mod root;
mod seccomp;
mod serve;
mod walls;
mod watch;

pub(in crate::sandbox) use root::machine;
pub use serve::main;

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    process::{DumpableBehavior, Pid, Signal},
    thread::UnshareFlags,
};

use crate::sandbox::{
    inside::{
        init::Init,
        maps::Mapper,
        receive::Held,
        watch::{Begun, Watch},
    },
    order::{End, Frame, Order, Owner, Report, Tier},
    wire,
};

/// Exit status of a child that could not do its work; its words are in the pipe.
const NOT_STARTED: i32 = 127;
/// Longest words that are read of how it ended, in bytes.
const WORDS: u64 = 64 << 10;

/// Carries out the order that comes, after a frame, over this socket to the daemon. `parent` is the fork server. Gives
/// an exit status.
fn launcher(control: &UnixStream, parent: Pid) -> i32 {
    let (report, _mounts) = launch(control, parent).unwrap_or_else(|error| {
        let end = End::NotStarted(format!("the work cannot be confined: {error}"));
        (self::report(end, None), None)
    });
    // Whoever saw the end first has told of it, and this goes nowhere.
    let _ = tell(control, &report);
    // An order that nobody has read would be an error to the daemon.
    let heard = control.shutdown(Shutdown::Read);
    match heard.and_then(|()| io::copy(&mut &*control, &mut io::sink())) {
        Ok(_) => 0,
        Err(_) => 1,
    }
}

/// Gives the work's mount namespace too, whose end takes longer than anybody should wait for.
fn launch(control: &UnixStream, parent: Pid) -> io::Result<(Report, Option<OwnedFd>)> {
    let (frame, mut held) = receive::receive::<Frame>(control)?;
    rustix::thread::set_no_new_privs(true)?;
    // Orphans of the work come to us, not to the machine's init, so that we can kill them.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let Started { child, words, terms, _life } = start(&frame, &mut held, control, parent)?;
    let mut watch = match Watch::new(control, child, held.cgroup_cpu.take()) {
        Ok(watch) => watch,
        // It may take the order all the same.
        Err(error) => {
            reap::kill_all(child, held.cgroup_kill.as_ref());
            let lost = reap::reap_all(child).err().unwrap_or(error);
            return Ok((report(End::Lost(lost.to_string()), None), None));
        }
    };
    let early = let_go_of_output().and_then(|()| watch.until_the_end(&terms));
    // However that went: nothing may be left when we report.
    let reaped = match (frame.tier, &early) {
        // Its world has ended with it, and nobody comes out of there.
        (Tier::Full | Tier::Root, Ok(None)) => reap::reap(child),
        _ => {
            reap::kill_all(child, held.cgroup_kill.as_ref());
            reap::reap_all(child)
        }
    };
    let said = said(words);
    let end = match (early, said, reaped) {
        (_, Some(End::NotStarted(message)), _) => {
            End::NotStarted(format!("the program cannot be started: {message}"))
        }
        (Ok(Some(end)), _, Ok(_)) => end,
        (Ok(None), Some(end), Ok(_)) => end,
        // Nobody has told of the work, which may have begun.
        (Ok(None), None, Ok(_)) if !watch.has_begun() => {
            End::Lost("process 1 of its world was killed".into())
        }
        (Ok(None), None, Ok(status)) => status,
        (Err(error), _, _) | (_, _, Err(error)) => End::Lost(error.to_string()),
    };
    let (begun, mounts) = watch.end();
    Ok((report(end, begun), mounts))
}

/// What was started, and the ends of its pipes that are ours.
struct Started {
    /// Process 1 of the work's world, or the work itself where there is no such world.
    child: Pid,
    words: File,
    /// Where it says within which limits it works, when it knows.
    terms: UnixStream,
    /// Held for as long as we live: closed, it tells process 1 that we are dead.
    _life: File,
}

fn start(frame: &Frame, held: &mut Held, control: &UnixStream, parent: Pid) -> io::Result<Started> {
    let cgroup_procs = std::mem::take(&mut held.cgroup_procs);
    // The kernel carries the current directory into every namespace that we make.
    rustix::process::fchdir(held.start.take().ok_or_else(missing)?)?;
    if rustix::process::geteuid().is_root() {
        leave_groups();
    }
    separate(frame)?;
    // Nobody of the same user may look into us, or be us, from now on.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Without a world that ends with us we must outlive the daemon, whose end we see at the socket, to kill the work.
    if frame.tier != Tier::Landlock {
        // Not before: a change of user undoes it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    if rustix::process::getppid() != Some(parent) {
        return Err(io::Error::other("the fork server died"));
    }
    let launcher = rustix::process::getpid();
    let (words, speak) = pipe()?;
    let (listen, life) = pipe()?;
    let (terms, tell) = UnixStream::pair()?;
    match fork()? {
        Fork::Child => {
            drop((words, life, terms));
            let done = match frame.tier {
                Tier::Full | Tier::Root => init::run(&Init {
                    frame,
                    cgroup_procs: &cgroup_procs,
                    terms: &tell,
                    control,
                    life: &listen,
                }),
                Tier::Landlock => {
                    directly(frame, &cgroup_procs, launcher, control, (&tell, &speak))
                }
            };
            exit_with(&speak, done)
        }
        Fork::Parent(child) => Ok(Started { child, words, terms, _life: life }),
    }
}

/// The work as the launcher's own child, in the machine's namespaces.
fn directly(
    frame: &Frame,
    cgroup_procs: &[File],
    launcher: Pid,
    control: &UnixStream,
    (tell, words): (&UnixStream, &File),
) -> io::Result<i32> {
    init::enter_cgroups(cgroup_procs)?;
    let place = payload::stand_by(frame, Some(launcher))?;
    let (order, held) = receive::receive::<Order>(control)?;
    wire::send(tell, &order.terms, &[File::open("/proc/self/ns/mnt")?.as_fd()])?;
    // What looks at a hostile tree holds nothing of ours.
    let executable = held.executable.as_ref().map_or(words.as_fd(), |program| program.as_fd());
    let input = held.input.as_ref().map_or(words.as_fd(), |input| input.as_fd());
    close_all_but([words.as_fd(), executable, input])?;
    place.carry_out(&order, held, None)
}

/// Leaves the namespaces that can be left before the fork. What is left of process and network is seen by
/// our children only.
fn separate(frame: &Frame) -> io::Result<()> {
    let own =
        UnshareFlags::NEWPID | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    match frame.tier {
        Tier::Full => {
            let own = UnshareFlags::NEWUSER | own;
            match frame.owner {
                Some(owner) => {
                    let mapper = Mapper::start(owner)?;
                    unshare(own)?;
                    mapper.map()?;
                    // Not before: whoever made a namespace is who may write its maps, with no right but to change
                    // users.
                    become_user(owner)
                }
                None => {
                    let outside = maps::ourselves();
                    unshare(own)?;
                    maps::write_own(outside)
                }
            }
        }
        Tier::Root => unshare(own),
        Tier::Landlock => Ok(()),
    }
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    #[expect(unsafe_code, reason = "unshare may take away what other code relies on")]
    // SAFETY: this process has one thread, and its descriptors stay shared with nobody.
    unsafe {
        rustix::thread::unshare_unsafe(flags).map_err(|error| at("unshare", error))
    }
}

/// Groups of the daemon are none of the work's. A root that may not leave them, as in a container without
/// privileges, was given none that count outside of it.
fn leave_groups() {
    let _ = rustix::thread::set_thread_groups(&[]);
}

/// For good: nothing of the user before is kept.
fn become_user(owner: Owner) -> io::Result<()> {
    use rustix::fs::{Gid, Uid};
    let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
    leave_groups();
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    // Whatever the machine says of who changes his user: this user may not look into us.
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

fn pipe() -> io::Result<(File, File)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((read.into(), write.into()))
}

/// In which of the two one is.
enum Fork {
    Child,
    Parent(Pid),
}

fn fork() -> io::Result<Fork> {
    #[expect(unsafe_code, reason = "fork has no safe form")]
    // SAFETY: this process has one thread, so the child may run any code; it execs or exits.
    let forked = unsafe { libc::fork() };
    match forked {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => {
            let child = Pid::from_raw(child).ok_or_else(|| io::Error::other("fork gave no pid"))?;
            Ok(Fork::Parent(child))
        }
    }
}

/// Ends a child; says what kept it from its work.
fn exit_with(mut words: impl io::Write, done: io::Result<i32>) -> ! {
    let status = done.unwrap_or_else(|error| {
        let end = serde_json::to_vec(&End::NotStarted(error.to_string())).unwrap_or_default();
        let _ = words.write_all(&end);
        NOT_STARTED
    });
    exit(status)
}

fn exit(status: i32) -> ! {
    #[expect(unsafe_code, reason = "the child must not run the parent's exit handlers")]
    // SAFETY: _exit ends the process at once and touches nothing.
    unsafe {
        libc::_exit(status)
    }
}

/// Closes descriptors, or with a flag marks them.
fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "close_range has no safe form")]
    // SAFETY: whoever calls this gives up what it closes; what is only marked stays open.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes all descriptors but standard input and output and these.
fn close_all_but<const COUNT: usize>(kept: [BorrowedFd<'_>; COUNT]) -> io::Result<()> {
    let mut kept = kept.map(|kept| kept.as_raw_fd().unsigned_abs());
    kept.sort_unstable();
    let mut first = 3;
    for kept in kept {
        if kept > first {
            close_range(first, kept - 1, 0)?;
        }
        first = first.max(kept + 1);
    }
    close_range(first, u32::MAX, 0)
}

/// The daemon reads until the last writer is gone; we must not be one.
fn let_go_of_output() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}

/// An error with what it is about: a path, or a call that the kernel may refuse.
fn at(what: &str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn missing() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "descriptors are missing")
}

/// The first that was said of how it ended: whoever could not begin says so before anybody tells its end.
fn said(words: impl io::Read) -> Option<End> {
    let mut text = Vec::new();
    // A socket whose other end has left something unread gives an error after the words.
    let _ = words.take(WORDS).read_to_end(&mut text);
    serde_json::Deserializer::from_slice(&text).into_iter().next()?.ok()
}

/// What there is to tell of the end. `begun` is when the order came; none: none came.
fn report(end: End, begun: Option<Begun>) -> Report {
    let (cpu_ms, peak_memory_kib) = reap::used();
    Report { end, cpu_ms, peak_memory_kib, wall_ms: begun.map_or(0, Begun::ms) }
}

/// Tells the daemon, unless it was told before.
fn tell(control: &UnixStream, report: &Report) -> io::Result<()> {
    (&*control).write_all(&serde_json::to_vec(report)?)?;
    control.shutdown(Shutdown::Write)
}
