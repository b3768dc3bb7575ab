//! The launcher: confines one program, or one look at a tree of files, and sees all of it dead. Single-threaded, no
//! async runtime. The daemon starts it; it is not for people. Protocol: `agentd::sandbox::order`.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsString},
    fs::{self, File},
    io::{self, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
    time::{Duration, Instant},
};

use agentd::sandbox::{
    order::{Descriptor, End, ORDER_BYTES, Order, Report, Work},
    walk,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags},
    process::{Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions},
};

/// Exit status of a child that could not become the program; its words are in the error pipe.
const NOT_STARTED: i32 = 127;

fn main() -> ExitCode {
    // Standard input is the socket to the daemon, by the launcher's contract.
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else {
        return ExitCode::FAILURE;
    };
    match launch(&control) {
        Ok(report) => match serde_json::to_writer(&control, &report) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            let end = End::NotStarted(format!("the program cannot be confined: {error}"));
            let report = Report { end, cpu_ms: 0, peak_memory_kib: 0, wall_ms: 0 };
            let _ = serde_json::to_writer(&control, &report);
            ExitCode::FAILURE
        }
    }
}

fn launch(control: &UnixStream) -> io::Result<Report> {
    let (order, descriptors) = receive(control)?;
    let mut held = Held::default();
    for (kind, descriptor) in order.descriptors.iter().zip(descriptors) {
        held.take(*kind, descriptor);
    }
    rustix::thread::set_no_new_privs(true)?;
    // Orphans of the program come to us, not to the init process, so that we can kill them.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    #[expect(clippy::disallowed_methods, reason = "the launcher has no ports; it only measures")]
    let started = Instant::now();
    let (child, complaint) = start(&order, &mut held)?;
    let wall = Duration::from_millis(order.wall_ms);
    let early = let_go_of_output().and_then(|()| watch(control, child, started, wall));
    // However that went: nothing may be left when we report.
    kill_all(child, held.cgroup_kill.as_ref());
    let reaped = reap_all(child);
    let end = match (early, complaint_of(complaint), reaped) {
        (_, Some(message), _) => End::NotStarted(message),
        (Err(error), None, _) | (_, None, Err(error)) => End::Lost(error.to_string()),
        (Ok(Some(end)), None, Ok(_)) => end,
        (Ok(None), None, Ok(status)) => status,
    };
    let (cpu_ms, peak_memory_kib) = used();
    let wall_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Report { end, cpu_ms, peak_memory_kib, wall_ms })
}

/// The daemon reads until the last writer is gone; we must not be one.
fn let_go_of_output() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::stdio::dup2_stderr(&null)?)
}

/// What the daemon's descriptors are for.
#[derive(Default)]
struct Held {
    workspace: Option<OwnedFd>,
    executable: Option<OwnedFd>,
    input: Option<OwnedFd>,
    /// Only held.
    _alive: Option<OwnedFd>,
    cgroup_procs: Vec<File>,
    cgroup_kill: Option<File>,
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
        }
    }
}

/// Reads the order and the descriptors that come with its first byte.
fn receive(mut control: &UnixStream) -> io::Result<(Order, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
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
    let rest = length.get_mut(received.bytes..).unwrap_or_default();
    control.read_exact(rest)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > ORDER_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the order is too long"));
    }
    let mut order = vec![0; length];
    control.read_exact(&mut order)?;
    let order: Order = serde_json::from_slice(&order)?;
    match order.descriptors.len() == descriptors.len() {
        true => Ok((order, descriptors)),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors are missing")),
    }
}

/// Everything the child needs, made before the fork.
struct Prepared<'a> {
    job: Job<'a>,
    input: OwnedFd,
    limits: Vec<(Resource, u64)>,
    parent: Pid,
    /// Entered by the child, not by us: we must outlive the killing of the group.
    cgroup_procs: Vec<File>,
}

/// What the child does once it is confined.
enum Job<'a> {
    Become { executable: RawFd, argv: Vec<CString>, environment: Vec<CString> },
    Look { look: &'a walk::Look, git: Option<BorrowedFd<'a>> },
}

/// Starts the program. Gives its process and the pipe in which it complains if it cannot start.
fn start(order: &Order, held: &mut Held) -> io::Result<(Pid, File)> {
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "descriptors are missing");
    let cgroup_procs = std::mem::take(&mut held.cgroup_procs);
    let input = match held.input.take() {
        Some(input) => input,
        None => File::open("/dev/null")?.into(),
    };
    let workspace = held.workspace.as_ref().ok_or_else(missing)?;
    let job = match &order.work {
        Work::Program { argv, environment } => {
            let executable = held.executable.as_ref().ok_or_else(missing)?;
            keep_open_for_scripts(executable)?;
            Job::Become {
                executable: executable.as_raw_fd(),
                argv: argv.iter().map(|word| c_string(word)).collect::<io::Result<_>>()?,
                environment: self::environment(environment)?,
            }
        }
        Work::Look(look) => {
            Job::Look { look, git: held.executable.as_ref().map(|git| git.as_fd()) }
        }
    };
    let prepared = Prepared {
        job,
        input,
        limits: limits(order),
        parent: rustix::process::getpid(),
        cgroup_procs,
    };
    let (complaint, complain) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    #[expect(unsafe_code, reason = "fork has no safe form")]
    // SAFETY: this process has one thread, so the child may run any code; it execs or exits.
    let forked = unsafe { libc::fork() };
    match forked {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = match carry_out(&prepared, workspace.as_fd()) {
                Ok(status) => status,
                Err(error) => {
                    let _ = File::from(complain).write_all(error.to_string().as_bytes());
                    NOT_STARTED
                }
            };
            #[expect(unsafe_code, reason = "the child must not run the parent's exit handlers")]
            // SAFETY: _exit ends the process at once and touches nothing.
            unsafe {
                libc::_exit(status)
            }
        }
        child => {
            drop(complain);
            let child = Pid::from_raw(child).ok_or_else(|| io::Error::other("fork gave no pid"))?;
            Ok((child, File::from(complaint)))
        }
    }
}

/// In the child: gives up what the work must not have, and does it. Gives an exit status, unless it
/// became the program. Errors: nothing was begun.
fn carry_out(prepared: &Prepared<'_>, workspace: BorrowedFd<'_>) -> io::Result<i32> {
    confine(prepared, workspace)?;
    match &prepared.job {
        Job::Become { executable, argv, environment } => {
            close_on_exec(Some(*executable))?;
            Err(become_program(*executable, argv, environment))
        }
        Job::Look { look, git } => {
            close_on_exec(None)?;
            let looked = std::panic::catch_unwind(|| walk::answer(look, *git, io::stdout().lock()));
            Ok(if matches!(looked, Ok(Ok(()))) { 0 } else { 1 })
        }
    }
}

fn confine(prepared: &Prepared<'_>, workspace: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(prepared.parent) {
        return Err(io::Error::other("the launcher died"));
    }
    for group in &prepared.cgroup_procs {
        (&*group).write_all(b"0")?;
    }
    rustix::process::fchdir(workspace)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::stdio::dup2_stdin(&prepared.input)?;
    restore_sigpipe()?;
    for (resource, most) in &prepared.limits {
        let limit = Rlimit { current: Some(*most), maximum: Some(*most) };
        rustix::process::setrlimit(*resource, limit)?;
    }
    Ok(())
}

/// Returns only to fail.
fn become_program(executable: RawFd, argv: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, environment) = (pointers(argv), pointers(environment));
    #[expect(unsafe_code, reason = "execveat has no safe form")]
    // SAFETY: both lists are NUL-terminated arrays of NUL-terminated strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            executable,
            c"".as_ptr(),
            argv.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Our runtime ignores SIGPIPE, and what is ignored stays so in the program: `yes | head` would complain.
fn restore_sigpipe() -> io::Result<()> {
    #[expect(unsafe_code, reason = "signal has no safe form")]
    // SAFETY: the default action involves no code of ours.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks every descriptor from 3 on, but for `keep`, to be closed when a program starts.
fn close_on_exec(keep: Option<RawFd>) -> io::Result<()> {
    let range = |first: u32, last: u32| -> io::Result<()> {
        if first > last {
            return Ok(());
        }
        #[expect(unsafe_code, reason = "close_range has no safe form")]
        // SAFETY: CLOEXEC only marks descriptors; none that is in use is closed.
        let done =
            unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    match keep.and_then(|keep| u32::try_from(keep).ok()) {
        Some(keep) => range(3, keep - 1).and_then(|()| range(keep + 1, u32::MAX)),
        None => range(3, u32::MAX),
    }
}

/// A script's interpreter opens the script by its descriptor, which must then outlive the exec; a
/// binary needs none, and gets none.
fn keep_open_for_scripts(executable: &OwnedFd) -> io::Result<()> {
    let mut start = [0; 2];
    let mut file = File::open(format!("/proc/self/fd/{}", executable.as_raw_fd()))?;
    let is_script = file.read_exact(&mut start).is_ok() && start == *b"#!";
    let flags = match is_script {
        true => rustix::io::FdFlags::empty(),
        false => rustix::io::FdFlags::CLOEXEC,
    };
    Ok(rustix::io::fcntl_setfd(executable, flags)?)
}

fn limits(order: &Order) -> Vec<(Resource, u64)> {
    let rlimits = &order.rlimits;
    let mut limits = vec![
        (Resource::Cpu, rlimits.cpu_seconds),
        (Resource::Nofile, rlimits.open_files),
        (Resource::Fsize, rlimits.file_bytes),
        (Resource::Core, 0),
    ];
    limits.extend(rlimits.data_bytes.map(|bytes| (Resource::Data, bytes)));
    limits
}

fn environment(variables: &BTreeMap<String, String>) -> io::Result<Vec<CString>> {
    variables.iter().map(|(name, value)| c_string(&format!("{name}={value}"))).collect()
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in a word"))
}

/// Waits until the program ends, its time is up, or the daemon wants it to stop or is gone.
fn watch(
    control: &UnixStream,
    child: Pid,
    started: Instant,
    wall: Duration,
) -> io::Result<Option<End>> {
    let process = rustix::process::pidfd_open(child, PidfdFlags::empty())?;
    loop {
        let left = wall.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Ok(Some(End::TimedOut));
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut events = [
            PollFd::new(&process, PollFlags::IN),
            PollFd::new(control, PollFlags::IN | PollFlags::RDHUP),
        ];
        match rustix::event::poll(&mut events, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !events[0].revents().is_empty() {
            return Ok(None);
        }
        // The daemon says nothing after its order: anything here is the end of it.
        if !events[1].revents().is_empty() {
            return Ok(Some(End::Stopped));
        }
    }
}

/// Kills the program's process group, and its whole cgroup where there is one.
fn kill_all(child: Pid, cgroup: Option<&File>) {
    let _ = rustix::process::kill_process_group(child, Signal::KILL);
    if let Some(mut cgroup) = cgroup {
        let _ = cgroup.write_all(b"1");
    }
}

/// Kills and reaps until no descendant is left; gives how the program itself ended.
fn reap_all(child: Pid) -> io::Result<End> {
    let mut end = End::Signal(Signal::KILL.as_raw());
    loop {
        for pid in children()? {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => {
                end = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => End::Code(code),
                    (None, Some(signal)) => End::Signal(signal),
                    (None, None) => end,
                };
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(end),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Processes whose parent we are, adopted orphans among them.
fn children() -> io::Result<Vec<Pid>> {
    let own = rustix::process::getpid().as_raw_nonzero();
    match fs::read_to_string(format!("/proc/self/task/{own}/children")) {
        Ok(list) => Ok(pids(list.split_whitespace().map(OsString::from))),
        Err(_) => Ok(pids(fs::read_dir("/proc")?.flatten().map(|entry| entry.file_name()))
            .into_iter()
            .filter(|pid| parent_of(*pid) == Some(own.get()))
            .collect()),
    }
}

fn pids(names: impl Iterator<Item = OsString>) -> Vec<Pid> {
    names.filter_map(|name| name.to_str()?.parse().ok()).filter_map(Pid::from_raw).collect()
}

fn parent_of(pid: Pid) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// What the child said when it could not become the program.
fn complaint_of(mut pipe: File) -> Option<String> {
    let mut text = String::new();
    pipe.read_to_string(&mut text).ok()?;
    (!text.is_empty()).then(|| format!("the program cannot be started: {text}"))
}

/// CPU time in milliseconds and the largest resident set in KiB of all that was reaped.
fn used() -> (u64, u64) {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    #[expect(unsafe_code, reason = "getrusage has no safe form")]
    // SAFETY: the pointer is valid for the struct, which all zeros initialise too.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let millis = |time: libc::timeval| time.tv_sec * 1000 + time.tv_usec / 1000;
    let cpu = millis(usage.ru_utime) + millis(usage.ru_stime);
    (u64::try_from(cpu).unwrap_or(0), u64::try_from(usage.ru_maxrss).unwrap_or(0))
}
