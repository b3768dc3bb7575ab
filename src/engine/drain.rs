//! Whether new runs are taken. A daemon that is drained carries on what goes, begins nothing that waits, and takes no
//! submissions; until somebody says otherwise, or the next daemon starts.

use tokio::sync::watch;

use crate::{
    domain::{ids::Caller, journal::DrainRequested},
    engine::{Engine, EngineError},
};

/// Whether a daemon takes new runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Intake {
    #[default]
    Open,
    /// It is being drained.
    Closed,
}

/// What is left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    pub intake: Intake,
    /// Runs that somebody works on.
    pub running: usize,
    /// Runs that wait, for the next daemon or for the end of the draining.
    pub queued: usize,
}

impl Engine {
    /// Takes no more runs, or takes them again; saying it twice changes nothing.
    pub async fn set_intake(&self, by: Caller, wanted: Intake) -> Result<Drained, EngineError> {
        let engine = self.clone();
        self.finish(async move {
            let is_new = engine.inner.intake.send_if_modified(|intake| {
                let is_new = *intake != wanted;
                *intake = wanted;
                is_new
            });
            if is_new {
                engine.note(DrainRequested { by, draining: wanted == Intake::Closed }).await?;
                engine.pump();
            }
            Ok(engine.drained())
        })
        .await
    }

    /// What is left to do.
    pub fn drained(&self) -> Drained {
        let schedule = self.schedule();
        let (running, queued) = (schedule.running.len(), schedule.queue.len());
        Drained { intake: *self.inner.intake.borrow(), running, queued }
    }

    /// Tells whenever it changes whether runs are taken.
    pub fn watch_intake(&self) -> watch::Receiver<Intake> {
        self.inner.intake.subscribe()
    }

    /// Errors: the daemon stops.
    pub(super) fn check_goes_on(&self) -> Result<(), EngineError> {
        match self.stopping().is_cancelled() {
            true => Err(self.farewell()),
            false => Ok(()),
        }
    }

    /// Errors: the daemon stops, or is being drained. A repetition of what was accepted is not asked.
    pub(super) fn check_intake(&self) -> Result<(), EngineError> {
        match *self.inner.intake.borrow() {
            Intake::Open if !self.stopping().is_cancelled() => Ok(()),
            Intake::Open | Intake::Closed => Err(self.farewell()),
        }
    }

    /// Errors: with so many bytes more the disk has so little room that what goes on already needs it.
    pub(super) fn check_disk(&self, more: u64) -> Result<(), EngineError> {
        self.check_free(self.inner.limits.free_disk_bytes.saturating_add(more))
    }

    /// Whether so many bytes are free, the watermark aside.
    pub(super) fn check_free(&self, wanted: u64) -> Result<(), EngineError> {
        match self.inner.world.disk.free_bytes() {
            Ok(free) if free < wanted => Err(EngineError::DiskLow { free, wanted }),
            Ok(_) => Ok(()),
            // That it cannot be told is no reason to refuse: a write will fail if there is no room.
            Err(error) => {
                tracing::warn!(%error, "the free room on the disk cannot be told");
                Ok(())
            }
        }
    }
}
