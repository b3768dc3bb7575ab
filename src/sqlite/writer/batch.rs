//! One transaction of the writer: each job is checked before the first row of it is written. What is removed, derived or
//! signed in it: the files beside this one. Who asks, who is answered, and when it is synced: `writer.rs`.

use rusqlite::{OptionalExtension as _, Transaction, params};
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        chain::{ChainHash, Linked},
        ids::{Epoch, Position, RunId, Sequence, Timestamp},
        journal::{NewEntry, Record, RunAnchored, RunCreated},
        redact::Redactor,
        status::StateName,
    },
    ports::{Admission, Append, Created, JournalError, Progress},
    sqlite::{
        rows,
        seal::{Broken, Place, Seal},
        writer::{
            gone,
            heads::{Heads, Signing},
        },
    },
};

/// Why a batch was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("{0}")]
    Store(#[from] rusqlite::Error),
    #[error("a record cannot be encoded: {0}")]
    Encode(#[from] serde_json::Error),
    #[error("a record cannot be sealed: {0}")]
    Seal(#[from] Broken),
}

/// What became of one job of a batch: refused without a trace, or the store failed.
pub(super) enum JobError {
    Refused(JournalError),
    Write(WriteError),
}

impl<E: Into<WriteError>> From<E> for JobError {
    fn from(error: E) -> Self {
        Self::Write(error.into())
    }
}

/// One transaction under way.
pub(super) struct Batch<'a> {
    pub(super) transaction: Transaction<'a>,
    pub(super) epoch: Epoch,
    pub(super) seal: &'a Seal,
    pub(super) redactor: &'a Redactor,
    pub(super) signing: Option<&'a Signing>,
    pub(super) heads: Heads,
    /// Of the last entry.
    pub(super) time: Timestamp,
    pub(super) announced: &'a mut Vec<(RunId, Progress)>,
}

/// The end of one chain, and whose it is.
pub(super) struct Chain {
    /// `runs.place`; 0 is the daemon.
    pub(super) place: i64,
    pub(super) run: Option<RunId>,
    pub(super) head: Sequence,
    pub(super) hash: ChainHash,
}

impl Batch<'_> {
    pub(super) fn unless<T>(
        &mut self,
        broken: &Option<WriteError>,
        job: impl FnOnce(&mut Self) -> Result<T, JobError>,
    ) -> Result<T, JobError> {
        match broken {
            None => job(self),
            Some(_) => Err(JobError::Refused(gone())),
        }
    }

    pub(super) fn create(
        &mut self,
        admission: &Admission,
        append: &Append,
    ) -> Result<Created, JobError> {
        if let Some(run) =
            rows::submitted(&self.transaction, admission)?.map_err(JobError::Refused)?
        {
            return Ok(Created::Existed(run));
        }
        let known = self
            .transaction
            .prepare_cached("SELECT head FROM runs WHERE id = ?1")?
            .query_row([append.run.to_string()], |row| row.get(0).map(Sequence))
            .optional()?;
        let follows = append.epoch == self.epoch && append.after == Sequence(0) && known.is_none();
        let (Some(Record::RunCreated(spec)), true) = (append.records().next(), follows) else {
            return Err(JobError::Refused(conflict(append, known.unwrap_or_default())));
        };
        let place = self.insert_run(admission, append, spec)?;
        let chain =
            Chain { place, run: Some(append.run), head: Sequence(0), hash: ChainHash::START };
        self.extend(chain, append)?;
        Ok(Created::New)
    }

    pub(super) fn append(&mut self, append: &Append) -> Result<(), JobError> {
        let row = self
            .transaction
            .prepare_cached("SELECT place, head, head_hash, state FROM runs WHERE id = ?1")?
            .query_row([append.run.to_string()], |row| {
                let is_ended =
                    StateName::parse(row.get_ref(3)?.as_str()?).is_some_and(StateName::is_ended);
                Ok((row.get(0)?, row.get::<_, u64>(1)?, row.get::<_, [u8; 32]>(2)?, is_ended))
            })
            .optional()?;
        let (place, head, hash, is_ended) = row.unwrap_or((0, 0, ChainHash::START.0, false));
        let follows = Sequence(head) == append.after && append.epoch == self.epoch;
        // Nothing follows the end of a run.
        if place == 0 || !follows || is_ended {
            return Err(JobError::Refused(conflict(append, Sequence(head))));
        }
        if append.entries.is_empty() {
            return Ok(());
        }
        let chain =
            Chain { place, run: Some(append.run), head: append.after, hash: ChainHash(hash) };
        self.extend(chain, append)
    }

    pub(super) fn daemon(&mut self, entry: &NewEntry) -> Result<Sequence, JobError> {
        let mut chain =
            Chain { place: 0, run: None, head: self.heads.daemon, hash: self.heads.daemon_hash };
        self.insert_entry(&mut chain, entry)?;
        if let Record::StoreRestored(_) = entry.record {
            self.transaction.execute("UPDATE owner SET restored_us = NULL", [])?;
        }
        self.heads.daemon = chain.head;
        self.heads.daemon_hash = chain.hash;
        Ok(chain.head)
    }

    fn insert_run(
        &self,
        admission: &Admission,
        append: &Append,
        spec: &RunCreated,
    ) -> Result<i64, WriteError> {
        // Redacted before it is shortened: half a secret would no longer be known as one.
        let task = self.redactor.redact(&spec.task);
        let listed = RunCreated { task: rows::listed_task(&task), ..spec.without_items() };
        let spec = self.redactor.redact_json(&serde_json::to_string(&listed)?).into_owned();
        let time = append.entries.first().map_or(0, |entry| entry.time.0);
        self.transaction
            .prepare_cached(
                "INSERT INTO runs (id, caller, request_id, digest, spec, created_us, state, status,
                                   head, head_hash, updated_us)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, '', '{}', 0, x'', ?6)",
            )?
            .execute(params![
                append.run.to_string(),
                admission.caller.as_str(),
                admission.request_id,
                admission.digest,
                spec,
                time,
            ])?;
        Ok(self.transaction.last_insert_rowid())
    }

    /// Writes a run's entries and how it stands after them; holds the end of an ended run fast in the
    /// daemon's chain.
    fn extend(&mut self, mut chain: Chain, append: &Append) -> Result<(), JobError> {
        for entry in &append.entries {
            self.insert_entry(&mut chain, entry)?;
        }
        let status = rows::encode_status(&append.status)?;
        let updated = append.entries.last().map_or(0, |entry| entry.time.0);
        self.transaction
            .prepare_cached(
                "UPDATE runs SET state = ?2, status = ?3, head = ?4, head_hash = ?5, updated_us = ?6
                 WHERE place = ?1",
            )?
            .execute(params![
                chain.place,
                append.status.state.as_str(),
                self.redactor.redact_json(&status),
                chain.head.0,
                chain.hash.0,
                updated,
            ])?;
        if let Some(checkpoint) = &append.checkpoint {
            self.keep(&chain, append.run, checkpoint)?;
        }
        if append.status.state.is_ended()
            && let Some(last) = append.entries.last()
        {
            let anchor = RunAnchored {
                run_id: append.run,
                sequence: chain.head,
                hash: chain.hash.to_string(),
            };
            let record = anchor.into();
            self.daemon(&NewEntry { time: last.time, record, policy_revision: None })?;
        }
        let state = Some(append.status.state);
        self.announced.push((append.run, Progress { head: chain.head, state }));
        Ok(())
    }

    pub(super) fn insert_entry(
        &mut self,
        chain: &mut Chain,
        entry: &NewEntry,
    ) -> Result<(), WriteError> {
        let stored = entry.record.stored(self.redactor)?;
        let sequence = chain.head.next();
        let position = Position(self.heads.position.0 + 1);
        let body = match &stored.body {
            Some(body) => Some(self.seal.seal(chain.run, Place::Entry(sequence), body)?),
            None => None,
        };
        let digest: Option<[u8; 32]> = body.as_ref().map(|body| Sha256::digest(body).into());
        let revision = entry.policy_revision.as_ref().map(|revision| revision.as_str());
        let linked = Linked {
            run: chain.run,
            sequence,
            position,
            time: entry.time,
            kind: entry.record.kind(),
            version: entry.record.version(),
            view: &stored.view,
            body_digest: digest.as_ref().map(|digest| digest.as_slice()),
            policy_revision: revision,
        };
        let hash = linked.hash(chain.hash);
        let (view, texts) = self.set_apart(position, &stored.view)?;
        self.transaction
            .prepare_cached(
                "INSERT INTO entries (position, run, sequence, time_us, kind, version, view, body,
                                      body_digest, policy_revision, previous, hash, texts)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?
            .execute(params![
                position.0,
                chain.place,
                sequence.0,
                entry.time.0,
                linked.kind,
                linked.version,
                view,
                body,
                digest,
                revision,
                chain.hash.0,
                hash.0,
                texts,
            ])?;
        self.note_question(chain.place, position, &entry.record)?;
        chain.head = sequence;
        chain.hash = hash;
        self.heads.position = position;
        self.heads.digest = self.heads.digest.and(hash);
        self.time = entry.time;
        Ok(())
    }
}

fn conflict(append: &Append, found: Sequence) -> JournalError {
    JournalError::Conflict { run: append.run, expected: append.after, found }
}
