//! Whether everything that is derived of runs is what their journals say: each is folded anew from its first entry. That
//! the journals themselves are what was written is the store's to say.

use crate::{
    domain::{
        head::KeptHead,
        ids::{Position, Sequence},
        run::{RunState, encode_items},
    },
    engine::{
        Engine, EngineError,
        run_log::{Folding, RunLog, status_of},
    },
    ports::{AuditFault, AuditReport, Checkpoint, JournalError, RunFilter, RunSummary},
};

/// Runs that are listed at once.
const PAGE: usize = 200;
/// Faults that are told; more are not looked for.
const MOST_FAULTS: usize = 100;

/// What a run's journal does not say of it: at which entry, and what.
type Fault = (Sequence, String);

impl Engine {
    /// Recomputes every hash of the journal, and compares it with the heads that were kept of it.
    pub async fn verify(&self, kept: Vec<KeptHead>) -> Result<AuditReport, EngineError> {
        Ok(self.inner.world.journal.verify(kept).await?)
    }

    /// The same; then folds every run from its first entry on, and compares what comes of it with what is kept: its last
    /// checkpoint, byte for byte, and how it stands in lists. Takes as long as reading the whole journal, with all bodies.
    pub async fn verify_deep(&self, kept: Vec<KeptHead>) -> Result<AuditReport, EngineError> {
        let mut report = self.verify(kept).await?;
        let _place = self.inner.walks.acquire().await;
        let mut before = None;
        loop {
            let page = self.runs(RunFilter::default(), before, PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(report) };
            before = Some(*last);
            // Of a pruned run there is nothing to fold.
            for (_, run) in page.iter().filter(|(_, run)| run.pruned.is_none()) {
                if report.faults.len() >= MOST_FAULTS {
                    return Ok(report);
                }
                if self.stopping().is_cancelled() {
                    return Err(self.farewell());
                }
                let faults = match self.refold(run, &mut report.checkpoints).await {
                    // Since it was listed.
                    Err(EngineError::Journal(JournalError::Pruned { .. })) => continue,
                    found => found?,
                };
                report.faults.extend(faults.into_iter().map(|(sequence, what)| AuditFault {
                    position: Position(0),
                    run: Some(run.id),
                    sequence,
                    what,
                }));
            }
        }
    }

    async fn refold(
        &self,
        listed: &RunSummary,
        checkpoints: &mut u64,
    ) -> Result<Vec<Fault>, EngineError> {
        let journal = &*self.inner.world.journal;
        let (run, mut faults) = (listed.id, Vec::new());
        let kept = match journal.checkpoint(run).await {
            Err(JournalError::Unreadable { what }) => {
                faults.push((Sequence(0), format!("its checkpoint cannot be read: {what}")));
                None
            }
            kept => kept?,
        };
        *checkpoints += u64::from(kept.is_some());
        // A run that goes on meanwhile is compared as it was when it was listed.
        let folded = RunLog::walk(journal, run, |state| {
            if let Some(kept) = kept.as_ref().filter(|kept| kept.sequence == state.head) {
                faults.extend(differs(state, kept).map(|what| (kept.sequence, what)));
            }
            let is_listed = state.head >= listed.head;
            let is_past = kept.as_ref().is_none_or(|kept| state.head >= kept.sequence);
            if state.head == listed.head {
                faults.extend(is_listed_otherwise(state, listed).map(|what| (listed.head, what)));
            }
            if is_listed && is_past { Folding::Enough } else { Folding::GoOn }
        });
        match folded.await {
            Ok(Some(state)) => faults.extend(stops_short(&state, kept.as_ref())),
            Ok(None) => faults.push((Sequence(0), "it has no entries".into())),
            Err(JournalError::Unreadable { what }) => {
                faults.push((Sequence(0), format!("it cannot be folded: {what}")));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(faults)
    }
}

/// How a checkpoint is not what the run's journal comes to; nothing where it is, or where another agentd wrote it, which
/// nobody goes on from.
fn differs(state: &RunState, kept: &Checkpoint) -> Option<String> {
    let pieces = kept.pieces.iter().map(|piece| piece.items.clone());
    let decoded = RunState::decode(&kept.state, pieces);
    match decoded.and_then(|mut stored| stored.items.read().map(drop)) {
        Err(fault) if fault.is_other_build() => return None,
        Err(fault) => return Some(format!("its checkpoint cannot be read: {fault}")),
        Ok(()) => {}
    }
    let ends = kept.pieces.iter().skip(1).map(|piece| piece.first).chain([state.items.len()]);
    let is_same_piece = |(piece, end): (&crate::ports::Piece, usize)| {
        let items = state.items.get().and_then(|items| items.get(piece.first..end));
        items.and_then(|items| encode_items(items).ok()).as_ref() == Some(&piece.items)
    };
    let is_same = state.encode().ok().as_ref() == Some(&kept.state)
        && kept.pieces.iter().zip(ends).all(is_same_piece);
    (!is_same).then(|| "its checkpoint is not what its journal comes to".into())
}

fn is_listed_otherwise(state: &RunState, listed: &RunSummary) -> Option<String> {
    let mut status = status_of(state);
    // As an earlier agentd listed it, which did not count that yet.
    if listed.status.usage.wall_us == 0 {
        status.usage.wall_us = 0;
    }
    let is_same = status.state == listed.status.state && status.usage == listed.status.usage;
    (!is_same).then(|| {
        format!(
            "the list says that it is {} and has used {:?}, and its journal {} and {:?}",
            listed.status.state.as_str(),
            listed.status.usage,
            status.state.as_str(),
            status.usage
        )
    })
}

fn stops_short(state: &RunState, kept: Option<&Checkpoint>) -> Option<Fault> {
    let kept = kept.filter(|kept| kept.sequence > state.head)?;
    Some((kept.sequence, format!("its checkpoint is of an entry after its last, {}", state.head)))
}
