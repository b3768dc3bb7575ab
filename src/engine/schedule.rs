//! Which runs go and which wait, as data. Starts nothing: see [`super::drivers`].

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
};

use tokio::sync::mpsc;

use crate::{
    domain::{
        ids::{Caller, RunId},
        run::RunState,
    },
    engine::{Limits, inbox::Message},
};

/// Which runs go and which wait. Runs that are suspended or ended are in neither.
#[derive(Default)]
pub(super) struct Schedule {
    /// Submissions that are being written: others may see them on disk before their submitter does.
    pub(super) arriving: HashMap<RunId, Waiting>,
    pub(super) queue: Queue,
    pub(super) running: HashMap<RunId, Running>,
    /// Who has a workspace.
    pub(super) leases: HashMap<String, RunId>,
}

/// Runs that wait: each submitter has a line of its own, in the order of submission, so that who submits much waits
/// behind itself.
#[derive(Default)]
pub(super) struct Queue {
    lines: HashMap<Caller, VecDeque<Waiting>>,
    length: usize,
}

/// What a run needs of others: a place of its submitter's, and its workspace for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) submitter: Caller,
    pub(super) workspace: String,
}

pub(super) struct Waiting {
    pub(super) run: RunId,
    pub(super) claim: Claim,
    pub(super) origin: Origin,
}

/// Where a run's state comes from when its driver starts.
pub(super) enum Origin {
    /// Submitted to this daemon just now.
    Fresh(Box<RunState>),
    /// To be read from the journal.
    Stored,
}

pub(super) struct Running {
    pub(super) claim: Claim,
    pub(super) inbox: mpsc::Sender<Message>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Queues a run behind all of its submitter's that were submitted before it.
    pub(super) fn push(&mut self, waiting: Waiting) {
        let line = self.lines.entry(waiting.claim.submitter.clone()).or_default();
        // Mostly the newest. Those that were taken out come back to their place.
        let place = line.partition_point(|other| other.run < waiting.run);
        line.insert(place, waiting);
        self.length += 1;
    }

    fn remove(&mut self, submitter: &Caller, place: usize) -> Option<Waiting> {
        let line = self.lines.get_mut(submitter)?;
        let waiting = line.remove(place)?;
        self.length -= 1;
        if line.is_empty() {
            self.lines.remove(submitter);
        }
        Some(waiting)
    }

    fn take(&mut self, run: RunId) -> Option<Waiting> {
        let found = self.lines.iter().find_map(|(submitter, line)| {
            let place = line.binary_search_by_key(&run, |waiting| waiting.run).ok()?;
            Some((submitter.clone(), place))
        });
        found.and_then(|(submitter, place)| self.remove(&submitter, place))
    }

    pub(super) fn has(&self, run: RunId) -> bool {
        let is_in = |line: &VecDeque<Waiting>| {
            line.binary_search_by_key(&run, |waiting| waiting.run).is_ok()
        };
        self.lines.values().any(is_in)
    }

    fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.lines.values().flatten()
    }
}

impl Schedule {
    /// Takes out the run that is to go next, if one may: of the submitters who have fewest runs going, the one that was
    /// submitted first.
    pub(super) fn next(&mut self, limits: &Limits) -> Option<Waiting> {
        if self.running.len() >= limits.running_runs || self.queue.len() == 0 {
            return None;
        }
        let mut going: HashMap<&Caller, usize> = HashMap::new();
        for running in self.running.values() {
            *going.entry(&running.claim.submitter).or_default() += 1;
        }
        let mut lines: Vec<(usize, &Caller, &VecDeque<Waiting>)> = self
            .queue
            .lines
            .iter()
            .map(|(submitter, line)| (going.get(submitter).copied().unwrap_or(0), submitter, line))
            .filter(|(going, ..)| *going < limits.running_runs_per_submitter)
            .collect();
        lines.sort_by_key(|(going, _, line)| (*going, line.front().map(|waiting| waiting.run)));
        let found = lines.into_iter().find_map(|(_, submitter, line)| {
            let is_free = |waiting: &Waiting| self.is_free(&waiting.claim.workspace);
            Some((submitter.clone(), line.iter().position(is_free)?))
        });
        let (submitter, place) = found?;
        self.queue.remove(&submitter, place)
    }

    /// Whether no run has this workspace, one that holds it, or one within it.
    pub(super) fn is_free(&self, workspace: &str) -> bool {
        let wanted = Path::new(workspace);
        let meets = |leased: &String| {
            let leased = Path::new(leased);
            leased.starts_with(wanted) || wanted.starts_with(leased)
        };
        !self.leases.keys().any(meets)
    }

    /// Whether no run has, waits for or is about to ask for this workspace, one that holds it, or one
    /// within it.
    pub(super) fn is_untouched(&self, workspace: &str) -> bool {
        let wanted = Path::new(workspace);
        let mut waiting = self.arriving.values().chain(self.queue.iter());
        let meets = |waiting: &Waiting| {
            let other = Path::new(&waiting.claim.workspace);
            other.starts_with(wanted) || wanted.starts_with(other)
        };
        self.is_free(workspace) && !waiting.any(meets)
    }

    /// Takes a run out that does not go yet.
    pub(super) fn take(&mut self, run: RunId) -> Option<Waiting> {
        self.arriving.remove(&run).or_else(|| self.queue.take(run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::budget::PerDay;

    const LIMITS: Limits = Limits {
        running_runs: 4,
        running_runs_per_submitter: 3,
        queued_runs: 100,
        checkpoint_entries: 256,
        daily: PerDay { turns: 0, tool_calls: 0, tokens: 0, cost_micros: 0 },
        event_streams: 1024,
        free_disk_bytes: 0,
    };

    fn waiting(submitter: &str, run: u128, workspace: &str) -> Waiting {
        let claim = Claim { submitter: Caller::new(submitter), workspace: workspace.into() };
        Waiting { run: RunId::new(uuid::Uuid::from_u128(run)), claim, origin: Origin::Stored }
    }

    /// Lets runs go for as long as one may; gives whose they are, in order.
    fn started(schedule: &mut Schedule) -> Vec<String> {
        let mut started = Vec::new();
        while let Some(Waiting { run, claim, .. }) = schedule.next(&LIMITS) {
            started.push(claim.submitter.as_str().to_owned());
            schedule.leases.insert(claim.workspace.clone(), run);
            schedule.running.insert(run, Running { claim, inbox: mpsc::channel(1).0 });
        }
        started
    }

    fn queued(waiting: impl IntoIterator<Item = Waiting>) -> Schedule {
        let mut schedule = Schedule::default();
        waiting.into_iter().for_each(|waiting| schedule.queue.push(waiting));
        schedule
    }

    #[test]
    fn who_submits_much_does_not_keep_others_waiting() {
        let many = (1..=50).map(|run| waiting("ann", run, &format!("/a/{run}")));
        let few = [waiting("bob", 60, "/b"), waiting("eve", 61, "/e")];
        let mut schedule = queued(many.chain(few));
        assert_eq!(started(&mut schedule), ["ann", "bob", "eve", "ann"]);
        assert_eq!(schedule.queue.len(), 48);
    }

    #[test]
    fn nobody_has_more_runs_going_than_one_may_have() {
        let mut schedule = queued((1..=9).map(|run| waiting("ann", run, &format!("/a/{run}"))));
        assert_eq!(started(&mut schedule).len(), 3);
    }

    #[test]
    fn a_run_whose_workspace_is_taken_lets_the_next_go_and_goes_once_it_is_free() {
        let mut schedule =
            queued([waiting("ann", 1, "/a"), waiting("ann", 2, "/a/b"), waiting("ann", 3, "/c")]);
        assert_eq!(started(&mut schedule).len(), 2);
        let left: Vec<RunId> = schedule.queue.iter().map(|waiting| waiting.run).collect();
        assert_eq!(left, [waiting("ann", 2, "").run]);
        schedule.leases.clear();
        schedule.running.clear();
        assert_eq!(started(&mut schedule).len(), 1);
    }

    #[test]
    fn a_run_that_comes_back_has_its_old_place() {
        let mut schedule = queued([waiting("ann", 1, "/a"), waiting("ann", 3, "/c")]);
        let first = schedule.take(waiting("ann", 1, "").run).unwrap();
        schedule.queue.push(waiting("ann", 2, "/b"));
        schedule.queue.push(first);
        let order: Vec<RunId> = schedule.queue.iter().map(|waiting| waiting.run).collect();
        assert!(order.is_sorted(), "{order:?}");
        assert!(schedule.take(waiting("ann", 9, "").run).is_none());
        assert_eq!(schedule.queue.len(), 3);
    }
}
