//! Ended runs are pruned, because somebody asks for it or because the configuration says how long they are kept. What stays
//! of them, and in which steps the rest goes: the store.

use std::time::Duration;

use crate::{
    domain::{
        ids::{Caller, RunId, Timestamp},
        status::StateName,
    },
    engine::{Engine, EngineError},
    ports::{EndedRun, Prunable, PruneOrder, Pruning},
};

/// Who prunes runs that have been kept for as long as the configuration says.
const RETENTION: &str = "retention";
/// Room on the disk that a step wants, in bytes.
const STEP_ROOM: u64 = 32 << 20;
/// Runs that are looked for at once.
const PAGE: usize = 100;

/// How long ended runs hold what they held, by how they ended; those that are not named, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keep(pub Vec<(StateName, Duration)>);

/// Whether anything is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneMode {
    /// Only what would be.
    DryRun,
    ForGood,
}

/// What was pruned, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    pub runs: Vec<EndedRun>,
    /// Whether there are more.
    pub has_more: bool,
}

impl Engine {
    /// Prunes the runs that ended first, at most as many as wanted. Goes on to their end when the caller is gone.
    pub async fn prune(
        &self,
        by: Caller,
        wanted: Prunable,
        mode: PruneMode,
    ) -> Result<Pruned, EngineError> {
        let engine = self.clone();
        self.finish(async move {
            let limit = wanted.limit;
            let wanted = Prunable { limit: limit.saturating_add(1), ..wanted };
            let mut runs = engine.inner.world.retention.prunable(wanted).await?;
            let has_more = runs.len() > limit;
            runs.truncate(limit);
            if mode == PruneMode::ForGood {
                for ended in &runs {
                    engine.prune_run(&by, ended.run).await?;
                }
            }
            Ok(Pruned { runs, has_more })
        })
        .await
    }

    async fn prune_run(&self, by: &Caller, run: RunId) -> Result<(), EngineError> {
        let world = &self.inner.world;
        loop {
            if self.stopping().is_cancelled() {
                return Err(self.farewell());
            }
            // A step goes through the log; and a store that cannot be written ends the daemon.
            self.check_free(STEP_ROOM)?;
            let order = PruneOrder { run, by: by.clone(), time: world.clock.now() };
            if world.retention.prune(order).await? == Pruning::Done {
                return Ok(());
            }
        }
    }

    /// Finishes what a daemon that died had begun, and prunes what has been kept for long enough.
    pub async fn prune_expired(&self, keep: &Keep, now: Timestamp) -> Result<(), EngineError> {
        let by = Caller::new(RETENTION);
        for run in self.inner.world.retention.half_pruned().await? {
            self.prune_run(&by, run).await?;
        }
        for (state, kept) in &keep.0 {
            let kept = i64::try_from(kept.as_micros()).unwrap_or(i64::MAX);
            let ended_before = Timestamp(now.0.saturating_sub(kept));
            let wanted = Prunable { states: vec![*state], ended_before, limit: PAGE };
            while self.prune(by.clone(), wanted.clone(), PruneMode::ForGood).await?.has_more {}
        }
        Ok(())
    }
}
