//! Copies of the store for those who ask, and what becomes of the runs of a store that was restored from one.

use tokio::sync::OwnedSemaphorePermit;

use crate::{
    domain::{
        ids::{Caller, Timestamp},
        journal::{BackupMade, NewEntry, Record, StoreRestored},
    },
    engine::{Engine, EngineError},
    ports::{JournalError, StoreCopy},
};

/// Who makes the runs of a restored store stand still.
const RESTORE: &str = "restore";

impl Engine {
    /// A copy of the whole store of one moment, checked; that it was given away is on disk. There is one copy at a time,
    /// for as long as its place is held, since each is as large as the store.
    pub async fn backup(
        &self,
        by: Caller,
    ) -> Result<(StoreCopy, OwnedSemaphorePermit), EngineError> {
        let engine = self.clone();
        let place = self.inner.copies.clone().try_acquire_owned();
        let place = place.map_err(|_| EngineError::BackupBusy)?;
        self.check_disk(self.inner.world.backups.size().unwrap_or(0))?;
        self.finish(async move {
            let copy = engine.inner.world.backups.copy().await?;
            let record = BackupMade { by, bytes: copy.bytes, entries: copy.report.entries };
            engine.note(record).await?;
            Ok((copy, place))
        })
        .await
    }

    /// Makes every run that has not ended stand still: what it did since the backup was made, nobody here knows.
    pub(super) async fn settle_restored(&self, at: Timestamp) -> Result<(), EngineError> {
        let why = "the store was restored from a backup, and what the run did after that was made is not known here; look \
                   at its workspace, then let it go on, or cancel it";
        let mut runs = 0;
        for run in self.inner.world.journal.unended().await? {
            runs += 1;
            // Also one that stands still: an answer that it waits for must not let it go on by itself.
            match self.pause(Caller::new(RESTORE), run, why.into()).await {
                Ok(_) => {}
                // It is being cancelled, and begins nothing either.
                Err(EngineError::InvalidState { .. }) => {}
                Err(EngineError::Journal(error @ JournalError::Unreadable { .. })) => {
                    tracing::error!(%run, %error, "the run of a restored store cannot go on at all");
                }
                Err(error) => return Err(error),
            }
        }
        self.note(StoreRestored { at, runs }).await
    }

    pub(super) async fn note(&self, record: impl Into<Record>) -> Result<(), EngineError> {
        let time = self.inner.world.clock.now();
        let entry = NewEntry { time, record: record.into(), policy_revision: None };
        self.inner.world.journal.append_daemon(entry).await?;
        Ok(())
    }
}
