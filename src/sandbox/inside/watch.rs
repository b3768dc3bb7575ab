//! Watches the work from outside: its time, and, where no cgroup does it, what all its processes use together.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags},
};

use crate::sandbox::{
    order::{End, Terms},
    wire,
};

/// How often it is looked at what the work uses.
const LOOK: Duration = Duration::from_millis(100);
/// Processes that are looked at in one go; who has more has too many.
const MOST_PROCESSES: u64 = 10_000;

/// Watches one child.
pub(super) struct Watch<'a> {
    /// The daemon closes its end when it wants all to stop, or dies.
    control: &'a UnixStream,
    process: OwnedFd,
    /// Counts the CPU time of all its processes, where a cgroup does.
    cpu: Option<File>,
    /// From when the order comes; with the work's mount namespace.
    begun: Option<(Begun, Option<OwnedFd>)>,
}

/// When the order came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun(Instant);

impl Begun {
    pub(super) fn now() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the launcher has no ports; it only measures"
        )]
        Self(Instant::now())
    }

    /// Milliseconds since.
    pub(super) fn ms(self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What was waited for.
enum Seen {
    It,
    Stop,
    Nothing,
}

impl<'a> Watch<'a> {
    /// `cpu` is a cgroup's `cpu.stat`.
    pub(super) fn new(control: &'a UnixStream, child: Pid, cpu: Option<File>) -> io::Result<Self> {
        let process = rustix::process::pidfd_open(child, PidfdFlags::empty())?;
        Ok(Self { control, process, cpu, begun: None })
    }

    /// Whether the child has told that there is work.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// When the order came, if one did, and the work's mount namespace.
    pub(super) fn end(self) -> (Option<Begun>, Option<OwnedFd>) {
        self.begun.map_or((None, None), |(begun, mounts)| (Some(begun), mounts))
    }

    /// Waits until the work ends, something is used up, or the daemon wants it to stop or is gone. `terms` are
    /// told by the child when it has an order; that may be never.
    pub(super) fn until_the_end(&mut self, terms: &UnixStream) -> io::Result<Option<End>> {
        loop {
            match self.wait(terms, None)? {
                Seen::It => break,
                Seen::Stop => return Ok(Some(End::Stopped)),
                Seen::Nothing => {}
            }
        }
        let (terms, mounts) = match wire::receive::<Terms>(terms) {
            Ok((terms, descriptors)) => (terms, descriptors.into_iter().next()),
            // It ended before: its words say why.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let begun = Begun::now();
        self.begun = Some((begun, mounts));
        loop {
            let left = match self.left(begun, &terms) {
                Ok(left) => left,
                Err(end) => return Ok(Some(end)),
            };
            match self.wait(&self.process, Some(left))? {
                Seen::It => return Ok(None),
                Seen::Stop => return Ok(Some(End::Stopped)),
                Seen::Nothing => {}
            }
        }
    }

    fn wait(&self, awaited: impl AsFd, most: Option<Duration>) -> io::Result<Seen> {
        let timeout = most.map(|most| Timespec {
            tv_sec: i64::try_from(most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(most.subsec_nanos()),
        });
        let mut events = [
            PollFd::new(&awaited, PollFlags::IN),
            // What there is to be read is not for us.
            PollFd::new(self.control, PollFlags::RDHUP),
        ];
        match rustix::event::poll(&mut events, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Seen::Nothing),
            Err(error) => return Err(error.into()),
        }
        Ok(match events.map(|event| !event.revents().is_empty()) {
            [true, _] => Seen::It,
            [false, true] => Seen::Stop,
            [false, false] => Seen::Nothing,
        })
    }

    /// How long to wait before the next look; or what is used up.
    fn left(&self, begun: Begun, terms: &Terms) -> Result<Duration, End> {
        let left = Duration::from_millis(terms.wall_ms).saturating_sub(begun.0.elapsed());
        if left.is_zero() {
            return Err(End::TimedOut);
        }
        let (counted, watched) = (self.cpu.as_ref().and_then(cpu_ms), terms.watched);
        let is_watched = watched.memory_bytes.is_some() || watched.processes.is_some();
        let used = (counted.is_none() || is_watched).then(Used::below_us);
        let cpu_ms = counted.or(used.map(|used| used.cpu_ms)).unwrap_or(0);
        let over = |used: Option<u64>, most: Option<u64>| {
            used.zip(most).is_some_and(|(used, most)| used > most)
        };
        if cpu_ms >= terms.cpu_ms {
            Err(End::CpuTime)
        } else if over(used.map(|used| used.processes), watched.processes) {
            Err(End::Processes)
        } else if over(used.map(|used| used.memory_bytes), watched.memory_bytes) {
            Err(End::Memory)
        } else {
            Ok(left.min(LOOK))
        }
    }
}

/// What all processes below us use at one moment, as the kernel tells it of each.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    /// Threads count, as they do for a cgroup.
    processes: u64,
    /// Of their own and shared, without what they have of files. What several share counts for each.
    memory_bytes: u64,
    /// With that of children that have ended and were waited for.
    cpu_ms: u64,
}

impl Used {
    fn below_us() -> Self {
        let mut used = Self::default();
        let mut pending = children(std::process::id());
        while let Some(process) = pending.pop() {
            used.processes += threads(process);
            if used.processes > MOST_PROCESSES {
                break;
            }
            used.memory_bytes += memory(process).unwrap_or(0);
            used.cpu_ms += cpu_time(process).unwrap_or(0);
            pending.extend(children(process));
        }
        used
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
