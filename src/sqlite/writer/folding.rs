//! Copies the log into the database file, which SQLite calls a checkpoint: by the writer, between two batches, when
//! everybody has their answer. SQLite by itself copies within a commit whatever has gathered, while all wait, and forgets
//! when that failed: a sync that is tried again succeeds, whatever became of the pages, and the log is then overwritten.

use rusqlite::{Connection, ErrorCode};

/// Pages of the log that are worth copying when nobody waits for the writer: a millisecond or so.
const FEW: i64 = 256;
/// Pages that are copied whoever waits, 16 MiB, or the log would grow under load.
const MANY: i64 = 4096;

/// How far the log was when it was copied last.
#[derive(Debug, Default)]
pub(super) struct Folding {
    tried: i64,
    /// Readers kept some of it from being copied: the next gap between them is not to be missed.
    is_partial: bool,
}

impl Folding {
    /// Copies what has gathered, if that is enough. What a reader still needs is left for the next time.
    ///
    /// Errors: what was copied may not be on disk; the log must stay as it is.
    pub(super) fn fold(
        &mut self,
        connection: &Connection,
        is_awaited: bool,
    ) -> rusqlite::Result<()> {
        let (log, copied) = state(connection, "NOOP")?;
        // A log that was copied whole is begun again from its start.
        self.tried = if log < self.tried { 0 } else { self.tried };
        let gathered = log - copied.max(self.tried);
        if gathered < if is_awaited && !self.is_partial { MANY } else { FEW } {
            return Ok(());
        }
        self.tried = log;
        match state(connection, "PASSIVE") {
            // Nothing is lost by it: everything is in the log, and who finds no room there is told.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                tracing::warn!(%error, "the journal's log cannot be folded into the database, and grows");
                Ok(())
            }
            done => {
                let (log, copied) = done?;
                self.is_partial = copied < log;
                Ok(())
            }
        }
    }
}

/// Pages in the log, and how many of them are in the database; both -1 without a log.
fn state(connection: &Connection, mode: &str) -> rusqlite::Result<(i64, i64)> {
    connection
        .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?
        .query_row([], |row| Ok((row.get(1)?, row.get(2)?)))
}
