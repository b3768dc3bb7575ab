//! One run's journal in the hands of its one owner: what is written is folded, in order.

use std::sync::Arc;

use crate::{
    domain::{
        ids::{Epoch, PolicyRevision, RunId, Sequence, Timestamp},
        journal::{Entry, NewEntry, Record},
        run::{RunState, fold_into},
    },
    fail_point,
    ports::{Append, Clock, Journal, JournalError, RunStatus},
};

/// Entries that are read at once when a run is opened.
const PAGE: usize = 512;

/// The owner's hold on a run.
pub(super) struct RunLog {
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    epoch: Epoch,
    state: RunState,
    /// Folded, but not yet on disk: nothing may be done on the strength of them.
    staged: Vec<NewEntry>,
}

/// Whether whoever walks a run has seen enough.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Folding {
    GoOn,
    Enough,
}

/// Something whose intent is on disk. Only [`RunLog::record`] makes one.
pub(super) struct Recorded<T>(T);

impl<T> Recorded<T> {
    pub(super) fn get(&self) -> &T {
        &self.0
    }

    pub(super) fn into_inner(self) -> T {
        self.0
    }
}

/// A record, and the policy that applied where one did.
pub(super) struct Noted {
    pub(super) record: Record,
    pub(super) policy: Option<PolicyRevision>,
}

impl<R: Into<Record>> From<R> for Noted {
    fn from(record: R) -> Self {
        Self { record: record.into(), policy: None }
    }
}

impl RunLog {
    /// Takes a run whose state is known.
    pub(super) fn new(
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
        epoch: Epoch,
        state: RunState,
    ) -> Self {
        Self { journal, clock, epoch, state, staged: Vec::new() }
    }

    /// The state of a run, folded from its first entry on; none if there is no such run.
    pub(super) async fn read(
        journal: &dyn Journal,
        run: RunId,
    ) -> Result<Option<RunState>, JournalError> {
        Self::walk(journal, run, |_| Folding::GoOn).await
    }

    /// Folds a run from its first entry on and shows each state, until enough was seen. Gives the last one; none if
    /// there is no such run.
    pub(super) async fn walk(
        journal: &dyn Journal,
        run: RunId,
        mut look: impl FnMut(&RunState) -> Folding,
    ) -> Result<Option<RunState>, JournalError> {
        let mut page = journal.entries(run, Sequence(0), PAGE).await?;
        if page.is_empty() {
            return Ok(None);
        }
        let first = page.remove(0);
        let mut state = RunState::from_entries(run, [first]).ok_or_else(|| {
            JournalError::Unreadable { what: format!("run {run} does not begin with its creation") }
        })?;
        if look(&state) == Folding::Enough {
            return Ok(Some(state));
        }
        loop {
            for entry in &page {
                fold_into(&mut state, entry);
                if look(&state) == Folding::Enough {
                    return Ok(Some(state));
                }
            }
            page = journal.entries(run, state.head, PAGE).await?;
            if page.is_empty() {
                return Ok(Some(state));
            }
        }
    }

    pub(super) fn state(&self) -> &RunState {
        &self.state
    }

    /// What time it is.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Folds a record that will be on disk with the next [`Self::append`].
    ///
    /// Saves a commit where nothing happens in between. On its own it allows nothing.
    pub(super) fn stage(&mut self, noted: impl Into<Noted>) {
        let Noted { record, policy } = noted.into();
        // The clock may be set back; a run's entries still go forward in time.
        let time = self.clock.now().max(self.state.updated);
        let sequence = self.state.head.next();
        let entry = Entry { sequence, time, record };
        fold_into(&mut self.state, &entry);
        self.staged.push(NewEntry { time, record: entry.record, policy_revision: policy });
    }

    /// Writes intents, and gives what waits for them once they are on disk.
    ///
    /// Errors: see [`Self::append`]; what waits is dropped, and nothing of it was done.
    pub(super) async fn record<T>(
        &mut self,
        intended: Vec<(Vec<Noted>, T)>,
    ) -> Result<Vec<Recorded<T>>, JournalError> {
        let (intents, waiting): (Vec<_>, Vec<T>) = intended.into_iter().unzip();
        fail_point::reach("intent.before");
        self.append(intents.into_iter().flatten()).await?;
        fail_point::reach("intent.after");
        Ok(waiting.into_iter().map(Recorded).collect())
    }

    /// Writes records, and what was staged before them; returns once they are on disk.
    ///
    /// Errors: nothing was written, and this hold on the run is worth nothing any more.
    pub(super) async fn append(
        &mut self,
        records: impl IntoIterator<Item = Noted>,
    ) -> Result<(), JournalError> {
        records.into_iter().for_each(|noted| self.stage(noted));
        if self.staged.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.staged);
        let after = Sequence(self.state.head.0 - entries.len() as u64);
        let status = status_of(&self.state);
        let append = Append { run: self.state.id, epoch: self.epoch, after, entries, status };
        self.journal.append(append).await
    }
}

/// How a run stands, for lists.
pub(super) fn status_of(state: &RunState) -> RunStatus {
    RunStatus {
        state: state.name(),
        usage: state.usage,
        answer: state.answer().map(str::to_owned),
        error: state.error(),
    }
}
