//! One run's journal in the hands of its one owner: what is written is folded, in order.

use std::{sync::Arc, time::Duration};

use crate::{
    domain::{
        budget::PerDay,
        ids::{Epoch, PolicyRevision, RunId, Sequence, Timestamp},
        item::Item,
        journal::{CheckpointSaved, Entry, NewEntry, Record},
        run::{RunState, StoredFault, encode_items, fold_into},
    },
    engine::{
        World,
        ledger::{Ledger, Standing, used_by},
    },
    fail_point,
    ports::{Append, Checkpoint, Clock, Journal, JournalError, NewCheckpoint, Piece, RunStatus},
};

/// How long a journal that is busy is left alone.
pub(super) const BUSY: Duration = Duration::from_millis(20);
/// Entries that are read at once when a run is opened.
const PAGE: usize = 512;

/// The owner's hold on a run.
pub(super) struct RunLog {
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    epoch: Epoch,
    state: RunState,
    saved: Saved,
    /// Entries after which the state is kept again.
    checkpoint_entries: u64,
    ledger: Arc<Ledger>,
    /// Folded, but not yet on disk: nothing may be done on the strength of them.
    staged: Vec<NewEntry>,
}

/// A state out of the journal.
pub(super) struct Opened {
    pub(super) state: RunState,
    saved: Saved,
}

impl Opened {
    /// The state of a run of which nothing is kept.
    pub(super) fn fresh(state: RunState) -> Self {
        Self { state, saved: Saved::default() }
    }
}

/// What is kept of a run's state.
#[derive(Debug, Clone, Copy, Default)]
struct Saved {
    /// As it was after this entry; 0: nothing is kept that can be gone on from.
    at: Sequence,
    /// Items of its conversation.
    items: usize,
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
    /// Takes a run whose state is known, to be kept again after so many entries.
    pub(super) fn new(
        world: &World,
        opened: Opened,
        checkpoint_entries: u64,
        ledger: Arc<Ledger>,
    ) -> Self {
        let Opened { state, saved } = opened;
        let (journal, clock) = (world.journal.clone(), world.clock.clone());
        let (epoch, staged) = (world.epoch, Vec::new());
        Self { journal, clock, epoch, state, saved, checkpoint_entries, ledger, staged }
    }

    /// How the run's submitter stands on this day.
    pub(super) fn standing(&self) -> Standing {
        let RunState { spec, warned, .. } = &self.state;
        self.ledger.standing(&spec.submitter, self.clock.now(), warned)
    }

    /// The state of a run: that of its last checkpoint, gone on from there; none if there is no such run.
    pub(super) async fn read(
        journal: &dyn Journal,
        run: RunId,
    ) -> Result<Option<Opened>, JournalError> {
        let kept = journal.checkpoint(run).await.and_then(|kept| kept.map(restored).transpose());
        match kept {
            Ok(Some(mut state)) => {
                let saved = Saved { at: state.head, items: state.items.len() };
                Self::go_on(journal, &mut state, |_| Folding::GoOn).await?;
                Ok(Some(Opened { state, saved }))
            }
            Err(busy @ JournalError::Busy) => Err(busy),
            // It is derived: the journal says the same.
            Err(error) => {
                tracing::warn!(%run, %error, "the run's checkpoint is not used");
                Ok(Self::walk(journal, run, |_| Folding::GoOn).await?.map(Opened::fresh))
            }
            Ok(None) => Ok(Self::walk(journal, run, |_| Folding::GoOn).await?.map(Opened::fresh)),
        }
    }

    /// Folds a run from its first entry on and shows each state, until enough was seen. Gives the last one; none if
    /// there is no such run.
    pub(super) async fn walk(
        journal: &dyn Journal,
        run: RunId,
        mut look: impl FnMut(&RunState) -> Folding,
    ) -> Result<Option<RunState>, JournalError> {
        let Some(first) = journal.entries(run, Sequence(0), 1).await?.pop() else {
            return Ok(None);
        };
        let mut state = RunState::from_entries(run, [first]).ok_or_else(|| {
            JournalError::Unreadable { what: format!("run {run} does not begin with its creation") }
        })?;
        if look(&state) == Folding::GoOn {
            Self::go_on(journal, &mut state, look).await?;
        }
        Ok(Some(state))
    }

    /// Folds what follows a state, and shows each state, until enough was seen.
    async fn go_on(
        journal: &dyn Journal,
        state: &mut RunState,
        mut look: impl FnMut(&RunState) -> Folding,
    ) -> Result<(), JournalError> {
        loop {
            let page = journal.entries(state.id, state.head, PAGE).await?;
            if page.is_empty() {
                return Ok(());
            }
            for entry in &page {
                fold_into(state, entry);
                if look(state) == Folding::Enough {
                    return Ok(());
                }
            }
        }
    }

    /// The conversation so far; none where that of a checkpoint cannot be read. The state has been folded anew then, and is
    /// to be looked at again.
    ///
    /// Errors: nor can the journal.
    pub(super) async fn conversation(&mut self) -> Result<Option<Arc<Vec<Item>>>, JournalError> {
        match self.state.items.read() {
            Ok(items) => return Ok(Some(items.clone())),
            Err(error) => {
                tracing::warn!(run = %self.state.id, %error, "the run's checkpoint is not used");
            }
        }
        // It is derived: the journal says the same, once all is in it.
        self.append([]).await?;
        let run = self.state.id;
        let folded = loop {
            match Self::walk(&*self.journal, run, |_| Folding::GoOn).await {
                Err(JournalError::Busy) => self.clock.sleep(BUSY).await,
                folded => break folded?,
            }
        };
        let unknown = || JournalError::Unreadable { what: format!("there is no run {run}") };
        self.state = folded.ok_or_else(unknown)?;
        self.saved = Saved::default();
        Ok(None)
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
        let checkpoint = self.checkpoint();
        let entries = std::mem::take(&mut self.staged);
        let after = Sequence(self.state.head.0 - entries.len() as u64);
        let (run, epoch, status) = (self.state.id, self.epoch, status_of(&self.state));
        let used = entries.iter().filter_map(|entry| Some((entry.time, used_by(&entry.record)?)));
        let used: Vec<(Timestamp, PerDay)> = used.collect();
        self.journal.append(Append { run, epoch, after, entries, status, checkpoint }).await?;
        for (time, used) in used {
            self.ledger.add(&self.state.spec.submitter, (time, self.clock.now()), used);
        }
        Ok(())
    }

    /// The state with all that is staged, where it is time to keep it. Nothing follows the end of a run, and nobody goes on
    /// from there.
    fn checkpoint(&mut self) -> Option<NewCheckpoint> {
        let since = self.state.head.0 - self.saved.at.0;
        if since < self.checkpoint_entries || self.state.name().is_ended() {
            return None;
        }
        let (items, first) = (self.state.items.len(), self.saved.items);
        let new = encode_items(self.state.items.since(first)?);
        self.stage(CheckpointSaved { items, new_items: items - first });
        let encoded = new.and_then(|items| Ok((self.state.encode()?, Piece { first, items })));
        match encoded {
            Ok((state, piece)) => {
                self.saved = Saved { at: self.state.head, items };
                Some(NewCheckpoint { state, piece })
            }
            // What came out of JSON goes into it again; and the journal says the same.
            Err(error) => {
                tracing::error!(run = %self.state.id, %error, "no checkpoint of the run");
                None
            }
        }
    }
}

/// The state that a checkpoint is of.
fn restored(kept: Checkpoint) -> Result<RunState, JournalError> {
    let pieces = kept.pieces.into_iter().map(|piece| piece.items);
    RunState::decode(&kept.state, pieces)
        .map_err(|fault: StoredFault| JournalError::Unreadable { what: fault.to_string() })
}

/// How a run stands, for lists.
pub(super) fn status_of(state: &RunState) -> RunStatus {
    RunStatus {
        state: state.name(),
        usage: state.usage,
        answer: state.answer().map(str::to_owned),
        error: state.error(),
        is_degraded: state.is_degraded(),
    }
}
