//! Copies what stands in the write-ahead log into the database file, beside the writer: a log that is full is emptied by
//! whoever commits next, and that must not have 16 MiB to copy while everybody waits. What was committed is safe in the log
//! meanwhile; what is not copied here, the writer copies.

use std::{path::Path, sync::mpsc, thread, time::Duration};

use rusqlite::Connection;

use crate::sqlite::{OpenError, migrate};

/// Entries after which there is something to copy: about 2 MiB of the log where each is committed alone.
const ENTRIES: u64 = 256;
/// Longest that the log is left alone after it was copied: what is written often is copied once.
const PACE: Duration = Duration::from_millis(100);

/// The writer's hold on the thread that copies; it ends with it.
#[derive(Debug)]
pub(super) struct Backfill {
    wake: mpsc::SyncSender<()>,
    entries: u64,
}

impl Backfill {
    pub(super) fn start(path: &Path) -> Result<Self, OpenError> {
        let connection = migrate::open_for_backfill(path)?;
        let (wake, woken) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("journal-backfill".into())
            .spawn(move || {
                while woken.recv().is_ok() {
                    copy(&connection);
                    thread::sleep(PACE);
                }
            })
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { wake, entries: 0 })
    }

    /// So many entries were committed.
    pub(super) fn note(&mut self, entries: u64) {
        self.entries += entries;
        if self.entries >= ENTRIES {
            self.entries = 0;
            // It is awake already: it looks again.
            let _ = self.wake.try_send(());
        }
    }
}

/// Copies what nobody reads from the log any more. It waits for nobody, and nobody for it.
fn copy(connection: &Connection) {
    let copied = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    if let Err(error) = copied {
        tracing::warn!(%error, "the journal's log could not be copied; its writer does it");
    }
}
