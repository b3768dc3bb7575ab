//! Watches the work from outside: its time, and, where no cgroup does it, what all its processes use together.

use std::{
    fs::{self, File},
    io,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags},
};

use crate::sandbox::order::{End, Order, Watched};

/// What the work may use in all.
pub(super) struct Budget {
    started: Instant,
    wall: Duration,
    cpu_ms: u64,
    /// Counts the CPU time of all its processes, where a cgroup does.
    cpu: Option<File>,
    watched: Watched,
}

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Processes that are looked at in one go; who has more has too many.
const MOST_PROCESSES: u64 = 10_000;

impl Budget {
    /// `cpu` is a cgroup's `cpu.stat`.
    pub(super) fn new(order: &Order, started: Instant, cpu: Option<File>) -> Self {
        let wall = Duration::from_millis(order.wall_ms);
        Self { started, wall, cpu_ms: order.cpu_ms, cpu, watched: order.watched }
    }

    /// How long to wait before the next look; or what is used up.
    fn left(&self) -> Result<Duration, End> {
        let left = self.wall.saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return Err(End::TimedOut);
        }
        let counted = self.cpu.as_ref().and_then(cpu_ms);
        let is_watched = self.watched.memory_bytes.is_some() || self.watched.processes.is_some();
        let seen = (counted.is_none() || is_watched).then(Seen::below_us);
        let used = counted.or(seen.map(|seen| seen.cpu_ms)).unwrap_or(0);
        let over = |used: Option<u64>, most: Option<u64>| {
            used.zip(most).is_some_and(|(used, most)| used > most)
        };
        if used >= self.cpu_ms {
            Err(End::CpuTime)
        } else if over(seen.map(|seen| seen.processes), self.watched.processes) {
            Err(End::Processes)
        } else if over(seen.map(|seen| seen.memory_bytes), self.watched.memory_bytes) {
            Err(End::Memory)
        } else {
            Ok(left.min(LOOK))
        }
    }
}

/// What all processes below us use at one moment, as the kernel tells it of each.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Threads count, as they do for a cgroup.
    processes: u64,
    /// Of their own and shared, without what they have of files. What several share counts for each.
    memory_bytes: u64,
    /// With that of children that have ended and were waited for.
    cpu_ms: u64,
}

impl Seen {
    fn below_us() -> Self {
        let mut seen = Self::default();
        let mut pending = children(std::process::id());
        while let Some(process) = pending.pop() {
            seen.processes += threads(process);
            if seen.processes > MOST_PROCESSES {
                break;
            }
            seen.memory_bytes += memory(process).unwrap_or(0);
            seen.cpu_ms += cpu_time(process).unwrap_or(0);
            pending.extend(children(process));
        }
        seen
    }
}

/// Children of all threads of a process. One that ends meanwhile has none.
fn children(process: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| numbers(&list).collect::<Vec<_>>())
        .filter_map(|pid| pid.try_into().ok())
        .collect()
}

fn threads(process: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{process}/task"));
    threads.map_or(1, |threads| threads.count() as u64).max(1)
}

fn memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kib = |line: &str| {
        let value = line.strip_prefix("RssAnon:").or(line.strip_prefix("RssShmem:"))?;
        numbers(value).next()
    };
    Some(status.lines().filter_map(kib).sum::<u64>().saturating_mul(1024))
}

fn cpu_time(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name may hold anything; what follows its last parenthesis are numbers but for the state.
    let rest = stat.rsplit_once(')')?.1;
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(4).filter_map(|one| one.parse::<u64>().ok()).sum();
    Some(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1))
}

fn numbers(text: &str) -> impl Iterator<Item = u64> + '_ {
    text.split_whitespace().filter_map(|word| word.parse().ok())
}

fn cpu_ms(stat: &File) -> Option<u64> {
    let mut text = [0; 256];
    let length = rustix::io::pread(stat, &mut text, 0).ok()?;
    let text = std::str::from_utf8(text.get(..length)?).ok()?;
    let micros: u64 =
        text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.parse().ok()?;
    Some(micros / 1000)
}

/// Waits until the work ends, something is used up, or the daemon wants it to stop or is gone.
pub(super) fn watch(control: &UnixStream, child: Pid, budget: &Budget) -> io::Result<Option<End>> {
    let process = rustix::process::pidfd_open(child, PidfdFlags::empty())?;
    loop {
        let left = match budget.left() {
            Ok(left) => left,
            Err(end) => return Ok(Some(end)),
        };
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
