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
    engine::{Limits, inbox::Message, leases::Leases},
};

/// Which runs go and which wait. Runs that are suspended or ended are in neither.
#[derive(Default)]
pub(super) struct Schedule {
    /// Submissions that are being written: others may see them on disk before their submitter does.
    pub(super) arriving: HashMap<RunId, Waiting>,
    pub(super) queue: Queue,
    pub(super) running: Going,
    leases: Leases,
}

/// Runs that go.
#[derive(Default)]
pub(super) struct Going {
    runs: HashMap<RunId, Running>,
    /// How many of each submitter.
    of: HashMap<Caller, usize>,
}

/// Runs that wait: each submitter has a line of its own, in the order of submission, so that who submits much waits
/// behind itself.
#[derive(Default)]
pub(super) struct Queue {
    lines: HashMap<Caller, Line>,
    length: usize,
}

/// The runs of one submitter that wait.
#[derive(Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    /// So many at its head wait for workspaces that were taken when they were last looked at, and none was given back
    /// since: whoever comes behind a thousand of them must not have all of them looked at again.
    blocked: usize,
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

    fn unblock(&mut self) {
        self.lines.values_mut().for_each(|line| line.blocked = 0);
    }

    /// Queues a run behind all of its submitter's that were submitted before it.
    pub(super) fn push(&mut self, waiting: Waiting) {
        let line = self.lines.entry(waiting.claim.submitter.clone()).or_default();
        // Mostly the newest. Those that were taken out come back to their place.
        let place = line.waiting.partition_point(|other| other.run < waiting.run);
        line.waiting.insert(place, waiting);
        line.blocked = line.blocked.min(place);
        self.length += 1;
    }

    fn remove(&mut self, submitter: &Caller, place: usize) -> Option<Waiting> {
        let line = self.lines.get_mut(submitter)?;
        let waiting = line.waiting.remove(place)?;
        self.length -= 1;
        line.blocked -= usize::from(place < line.blocked);
        if line.waiting.is_empty() {
            self.lines.remove(submitter);
        }
        Some(waiting)
    }

    fn take(&mut self, run: RunId) -> Option<Waiting> {
        let found = self
            .lines
            .iter()
            .find_map(|(submitter, line)| Some((submitter.clone(), line.place_of(run)?)));
        found.and_then(|(submitter, place)| self.remove(&submitter, place))
    }

    pub(super) fn has(&self, run: RunId) -> bool {
        self.lines.values().any(|line| line.place_of(run).is_some())
    }

    fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.lines.values().flat_map(|line| &line.waiting)
    }
}

impl Line {
    fn place_of(&self, run: RunId) -> Option<usize> {
        self.waiting.binary_search_by_key(&run, |waiting| waiting.run).ok()
    }

    /// Place of the first run whose workspace is free.
    fn first_free(&mut self, leases: &Leases) -> Option<usize> {
        let mut unknown = self.waiting.iter().skip(self.blocked);
        let found = unknown.position(|waiting| leases.is_free(&waiting.claim.workspace));
        let place = found.map(|found| self.blocked + found);
        self.blocked = place.unwrap_or(self.waiting.len());
        place
    }
}

impl Going {
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn has(&self, run: RunId) -> bool {
        self.runs.contains_key(&run)
    }

    pub(super) fn get(&self, run: RunId) -> Option<&Running> {
        self.runs.get(&run)
    }

    pub(super) fn insert(&mut self, run: RunId, running: Running) {
        *self.of.entry(running.claim.submitter.clone()).or_default() += 1;
        self.runs.insert(run, running);
    }

    fn remove(&mut self, run: RunId) -> Option<Running> {
        let running = self.runs.remove(&run)?;
        let submitter = &running.claim.submitter;
        match self.of.get_mut(submitter) {
            Some(more) if *more > 1 => *more -= 1,
            _ => drop(self.of.remove(submitter)),
        }
        Some(running)
    }
}

impl Schedule {
    /// Takes out the run that is to go next, if one may, and gives it its workspace: of the submitters who have fewest
    /// runs going, the one that was submitted first.
    pub(super) fn next(&mut self, limits: &Limits) -> Option<Waiting> {
        if self.running.len() >= limits.running_runs || self.queue.len() == 0 {
            return None;
        }
        let going = |submitter: &Caller| self.running.of.get(submitter).copied().unwrap_or(0);
        let mut lines: Vec<(usize, &Caller, &mut Line)> = self
            .queue
            .lines
            .iter_mut()
            .map(|(submitter, line)| (going(submitter), submitter, line))
            .filter(|(going, ..)| *going < limits.running_runs_per_submitter)
            .collect();
        lines.sort_by_key(|(going, _, line)| {
            (*going, line.waiting.front().map(|waiting| waiting.run))
        });
        let found = lines.into_iter().find_map(|(_, submitter, line)| {
            Some((submitter.clone(), line.first_free(&self.leases)?))
        });
        let (submitter, place) = found?;
        let next = self.queue.remove(&submitter, place)?;
        self.leases.insert(next.claim.workspace.clone(), next.run);
        Some(next)
    }

    /// Whether this run has its workspace for itself.
    pub(super) fn has_workspace(&self, run: RunId, claim: &Claim) -> bool {
        self.leases.has(&claim.workspace, run)
    }

    /// Takes a run out that goes, and gives back what it had.
    pub(super) fn release(&mut self, run: RunId) {
        if let Some(running) = self.running.remove(run)
            && self.leases.give_back(&running.claim.workspace, run)
        {
            self.queue.unblock();
        }
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
        self.leases.is_free(workspace) && !waiting.any(meets)
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
        schedule.release(waiting("ann", 3, "").run);
        assert_eq!(started(&mut schedule).len(), 0);
        schedule.release(waiting("ann", 1, "").run);
        assert_eq!(started(&mut schedule), ["ann"]);
    }

    #[test]
    fn a_run_that_comes_back_before_those_that_wait_for_a_workspace_goes() {
        let mut schedule = queued([waiting("ann", 1, "/a"), waiting("ann", 3, "/a")]);
        assert_eq!(started(&mut schedule).len(), 1);
        schedule.queue.push(waiting("ann", 4, "/a"));
        assert_eq!(started(&mut schedule).len(), 0);
        schedule.queue.push(waiting("ann", 2, "/b"));
        assert_eq!(started(&mut schedule).len(), 1);
        // One of those that wait goes away: the rest are not forgotten.
        schedule.take(waiting("ann", 3, "").run).unwrap();
        schedule.queue.push(waiting("ann", 5, "/c"));
        assert_eq!(started(&mut schedule).len(), 1);
        schedule.release(waiting("ann", 1, "").run);
        assert_eq!(started(&mut schedule).len(), 1);
        assert_eq!(schedule.queue.len(), 0);
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
