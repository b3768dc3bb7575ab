//! Sees processes dead: kills, and waits until nobody is left. Tells how one ended; decides nothing.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    mem::MaybeUninit,
};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::sandbox::order::End;

/// Kills process 1, and with it its world; or the work's process group and, where there is one, its cgroup.
pub(super) fn kill_all(child: Pid, cgroup: Option<&File>) {
    let _ = rustix::process::kill_process(child, Signal::KILL);
    let _ = rustix::process::kill_process_group(child, Signal::KILL);
    if let Some(mut cgroup) = cgroup {
        let _ = cgroup.write_all(b"1");
    }
}

/// Kills and reaps until no descendant is left; gives how the child itself ended.
pub(super) fn reap_all(child: Pid) -> io::Result<End> {
    let mut end = End::Signal(Signal::KILL.as_raw());
    loop {
        for pid in children()? {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => end = end_of(status),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(end),
            Err(error) => return Err(error.into()),
        }
    }
}

/// As process 1: kills and reaps all others of its namespace.
pub(super) fn kill_the_world() -> io::Result<()> {
    loop {
        match kill_all_others() {
            // Who was adopted meanwhile is killed the next time round.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn kill_all_others() -> rustix::io::Result<()> {
    #[expect(unsafe_code, reason = "there is no safe form of a kill of all")]
    // SAFETY: it takes numbers only, and reaches who is in our namespace.
    match unsafe { libc::kill(-1, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(rustix::io::Errno::from_io_error(&io::Error::last_os_error())
            .unwrap_or(rustix::io::Errno::SRCH)),
    }
}

/// CPU time in milliseconds and the largest resident set in KiB of all that was reaped.
pub(super) fn used() -> (u64, u64) {
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

/// Waits for a child that ends; gives how.
pub(super) fn reap(child: Pid) -> io::Result<End> {
    loop {
        match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(end_of(status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn end_of(status: WaitStatus) -> End {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => End::Code(code),
        (None, signal) => End::Signal(signal.unwrap_or(Signal::KILL.as_raw())),
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
