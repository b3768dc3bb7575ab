//! How far the journal has come: the ends of the chains that the writer itself continues, and the digest of all, which is
//! signed from time to time.

use rusqlite::{Connection, OptionalExtension as _};

use crate::{
    domain::{
        chain::ChainHash,
        head::{HeadSigned, JournalDigest},
        ids::{Position, Sequence, Timestamp},
        journal::NewEntry,
    },
    signing::{self, Signer},
    sqlite::writer::batch::{Batch, JobError},
};

/// Who signs heads, and after how many entries at the latest.
#[derive(Debug)]
pub struct Signing {
    pub signer: Signer,
    pub entries: u64,
}

/// The ends of the journal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) position: Position,
    pub(super) daemon: Sequence,
    pub(super) daemon_hash: ChainHash,
    /// Questions to people that may be open; never fewer than there are.
    pub(super) questions: u64,
    /// Of all entries up to `position`.
    pub(super) digest: JournalDigest,
    /// Of the last head; 0 where there is none.
    signed: Position,
}

impl Heads {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let position: u64 =
            connection
                .query_row("SELECT coalesce(max(position), 0) FROM entries", [], |r| r.get(0))?;
        let daemon = connection
            .query_row(
                "SELECT sequence, hash FROM entries WHERE run = 0 ORDER BY sequence DESC LIMIT 1",
                [],
                |row| Ok((row.get::<_, u64>(0)?, row.get::<_, [u8; 32]>(1)?)),
            )
            .optional()?;
        let (sequence, hash) = daemon.unwrap_or((0, ChainHash::START.0));
        let (digest, signed) = digest(connection)?;
        Ok(Self {
            position: Position(position),
            daemon: Sequence(sequence),
            daemon_hash: ChainHash(hash),
            questions: connection
                .query_row("SELECT count(*) FROM approvals", [], |row| row.get(0))?,
            digest,
            signed,
        })
    }
}

/// The digest of all entries, from the last head on, and that head's position. Where there is none, or the last one was
/// altered, of all of them: that reads the whole journal, and only once, since a head is signed soon.
fn digest(connection: &Connection) -> rusqlite::Result<(JournalDigest, Position)> {
    let last: Option<(u64, i64, String)> = connection
        .query_row(
            "SELECT position, time_us, view FROM entries WHERE run = 0 AND kind = 'head_signed'
             ORDER BY sequence DESC LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    let head = last.and_then(|(position, time, view)| {
        let head: HeadSigned = serde_json::from_str(&view).ok()?;
        let digest = signing::verified(&head, Timestamp(time))?;
        Some((Position(position), head.entries, digest))
    });
    let (signed, after, mut digest) =
        head.unwrap_or((Position(0), Position(0), JournalDigest::START));
    let mut statement = connection.prepare(
        "SELECT position, hash FROM entries WHERE position > ?1
             UNION ALL SELECT position, hash FROM pruned_entries WHERE position > ?1
             ORDER BY position",
    )?;
    for hash in statement.query_map([after.0], |row| row.get(1))? {
        digest = digest.and(ChainHash(hash?));
    }
    Ok((digest, signed))
}

impl Batch<'_> {
    /// Signs for all that was written by now, if the last head was so many entries ago.
    pub(super) fn sign_if_due(&mut self, time: Timestamp) -> Result<(), JobError> {
        let due = self
            .signing
            .as_ref()
            .is_some_and(|signing| self.heads.position.0 - self.heads.signed.0 >= signing.entries);
        if due { self.sign(time) } else { Ok(()) }
    }

    /// Signs for all that was written by now, if that is more than the last head.
    pub(super) fn sign(&mut self, time: Timestamp) -> Result<(), JobError> {
        let Some(signing) = self.signing else { return Ok(()) };
        if self.heads.position == self.heads.signed {
            return Ok(());
        }
        let head = signing.signer.sign(self.heads.position, time, self.heads.digest);
        self.daemon(&NewEntry { time, record: head.into(), policy_revision: None })?;
        self.heads.signed = self.heads.position;
        Ok(())
    }
}
