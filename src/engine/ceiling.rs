//! Room for the programs of one run: what they may use together, above what each may. Memory and processes are kept
//! by letting a call wait until its limits fit beside those of the calls under way; CPU time, of which there is so
//! much for the whole run, by lending each call what is left. Starts nothing: see [`super::invoker`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        policy::{Limits, Permit, Policy, RunLimits},
        tool::ToolOutcome,
    },
    ports::Resolved,
};

/// What the calls under way have taken.
#[derive(Debug, Default)]
pub(super) struct Ceiling {
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    memory_bytes: u64,
    processes: u64,
    /// Lent to calls under way.
    cpu_seconds: u64,
    /// Used up by calls that have ended, in this run.
    cpu_ms: u64,
}

/// Room for one call, until it is dropped.
#[derive(Debug)]
pub(super) struct Room<'a> {
    ceiling: &'a Ceiling,
    memory_bytes: u64,
    processes: u64,
    /// At most the call's own limit.
    pub(super) cpu_seconds: u64,
    used_cpu_ms: u64,
}

/// The programs of the run have used up their CPU time, and none is under way that could give some back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UsedUp;

impl Ceiling {
    /// For a run whose programs have used this much CPU time so far.
    pub(super) fn new(cpu_ms: u64) -> Self {
        Self { taken: Mutex::new(Taken { cpu_ms, ..Taken::default() }), freed: Notify::new() }
    }

    /// Waits for room. A call whose limits alone are above the ceiling has all of it.
    pub(super) async fn enter(&self, limits: Limits, most: RunLimits) -> Result<Room<'_>, UsedUp> {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Before looking, or what is freed in between would not be heard of.
            freed.as_mut().enable();
            if let Some(entered) = self.try_enter(limits, most) {
                return entered;
            }
            freed.await;
        }
    }

    /// None: others have to end first.
    fn try_enter(&self, limits: Limits, most: RunLimits) -> Option<Result<Room<'_>, UsedUp>> {
        let or_no_bound = |most: Option<u64>| most.unwrap_or(u64::MAX);
        let mut taken = self.taken();
        let (memory, processes) = (or_no_bound(most.memory_bytes), or_no_bound(most.processes));
        let wanted = (limits.memory_bytes.min(memory), limits.processes.min(processes));
        let is_room = wanted.0 <= memory.saturating_sub(taken.memory_bytes)
            && wanted.1 <= processes.saturating_sub(taken.processes);
        let gone = taken.cpu_seconds.saturating_add(taken.cpu_ms.div_ceil(1000));
        let left = or_no_bound(most.cpu_seconds).saturating_sub(gone);
        match (is_room, left) {
            (false, _) => None,
            (true, 0) if taken.cpu_seconds == 0 => Some(Err(UsedUp)),
            (true, 0) => None,
            (true, left) => {
                let cpu_seconds = left.min(limits.cpu_seconds);
                taken.memory_bytes += wanted.0;
                taken.processes += wanted.1;
                taken.cpu_seconds += cpu_seconds;
                let (memory_bytes, processes) = wanted;
                Some(Ok(Room {
                    ceiling: self,
                    memory_bytes,
                    processes,
                    cpu_seconds,
                    used_cpu_ms: 0,
                }))
            }
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room<'_> {
    /// What the call has used of its CPU time; the rest is given back.
    pub(super) fn used(&mut self, cpu_ms: u64) {
        self.used_cpu_ms = cpu_ms;
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut taken = self.ceiling.taken();
        taken.memory_bytes -= self.memory_bytes;
        taken.processes -= self.processes;
        taken.cpu_seconds -= self.cpu_seconds;
        taken.cpu_ms = taken.cpu_ms.saturating_add(self.used_cpu_ms);
        drop(taken);
        self.ceiling.freed.notify_waiters();
    }
}

/// Waits until the run's ceiling lets a program run, with what is left of its CPU time. What is no program needs no
/// room. Errors: it does not run.
pub(super) async fn enter<'a>(
    ceiling: &'a Ceiling,
    permit: Permit<Resolved>,
    policy: &Policy,
    stop: &CancellationToken,
) -> Result<(Permit<Resolved>, Option<Room<'a>>), ToolOutcome> {
    let Some(limits) = permit.program_limits() else { return Ok((permit, None)) };
    let entered = tokio::select! {
        entered = ceiling.enter(limits, policy.run_limits) => entered,
        () = stop.cancelled() => {
            let message = "the run was cancelled before the call was started";
            return Err(ToolOutcome::cancelled(message));
        }
    };
    match entered {
        Ok(room) => Ok((permit.within(room.cpu_seconds), Some(room))),
        Err(UsedUp) => Err(ToolOutcome::failed(
            "RUN_CPU_TIME",
            "the programs of this run have used up the CPU time that they may have together (run_limits in \
             tools.yaml); nothing was started, so finish without another program",
        )),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn limits(memory_bytes: u64, processes: u64, cpu_seconds: u64) -> Limits {
        Limits {
            wall_ms: 1000,
            cpu_seconds,
            cpu_percent: None,
            memory_bytes,
            processes,
            open_files: 64,
            file_bytes: 1,
            tmp_bytes: 1,
            stdout_bytes: 1,
            stderr_bytes: 1,
        }
    }

    const MOST: RunLimits =
        RunLimits { memory_bytes: Some(100), processes: Some(10), cpu_seconds: Some(60) };

    #[tokio::test]
    async fn a_call_waits_until_its_limits_fit_beside_those_of_the_others() {
        let ceiling = Ceiling::new(0);
        let first = ceiling.enter(limits(60, 2, 5), MOST).await.unwrap();
        let beside = ceiling.enter(limits(40, 8, 5), MOST).await.unwrap();
        let mut third = std::pin::pin!(ceiling.enter(limits(50, 1, 5), MOST));
        assert!(third.as_mut().now_or_never().is_none());
        drop(beside);
        assert!(third.as_mut().now_or_never().is_none(), "60 and 50 are above 100");
        drop(first);
        assert!(third.await.is_ok());
    }

    #[tokio::test]
    async fn what_is_left_of_the_run_s_cpu_time_is_lent_and_the_rest_of_it_given_back() {
        let ceiling = Ceiling::new(20_000);
        let mut first = ceiling.enter(limits(1, 1, 30), MOST).await.unwrap();
        let second = ceiling.enter(limits(1, 1, 30), MOST).await.unwrap();
        assert_eq!((first.cpu_seconds, second.cpu_seconds), (30, 10));
        let mut third = std::pin::pin!(ceiling.enter(limits(1, 1, 30), MOST));
        assert!(third.as_mut().now_or_never().is_none(), "the others may give some back");
        first.used(1);
        drop(first);
        assert_eq!(third.await.unwrap().cpu_seconds, 29);
        drop(second);
    }

    #[tokio::test]
    async fn when_all_of_it_is_used_up_nothing_waits_for_more() {
        let ceiling = Ceiling::new(60_000);
        assert_eq!(ceiling.enter(limits(1, 1, 30), MOST).await.unwrap_err(), UsedUp);
        let free = ceiling.enter(limits(1, 1, 30), RunLimits::default()).await.unwrap();
        assert_eq!(free.cpu_seconds, 30, "no ceiling, no end");
    }
}
