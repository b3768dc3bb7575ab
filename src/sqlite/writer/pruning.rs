//! Removes what an ended run held, in steps, so that nobody waits long for the writer. What stays of each entry, and that it
//! was removed, the journal says: chains and signed heads can be followed past it.

use rusqlite::{OptionalExtension as _, params};
use serde_json::{Map, Value};

use crate::{
    domain::{
        chain::ChainHash,
        ids::{Sequence, Timestamp},
        journal::{NewEntry, RunPruned},
        ranges::Ranges,
        status::StateName,
    },
    ports::{JournalError, PruneOrder, Pruning},
    sqlite::writer::batch::{Batch, JobError},
};

/// Entries that one step removes.
const STEP: u64 = 512;
/// Bytes of entries with which a step ends: all that is freed goes through the log.
const STEP_BYTES: u64 = 2 << 20;
/// Longest list of positions that is written down, in bytes.
const POSITIONS: usize = 1 << 20;

/// A run as far as pruning is about it.
struct Ended {
    place: i64,
    head: Sequence,
    hash: ChainHash,
    updated: Timestamp,
    state: StateName,
}

impl Batch<'_> {
    /// One step. The first says in the journal what is removed, and signs what lies before it.
    pub(super) fn prune(&mut self, order: &PruneOrder) -> Result<Pruning, JobError> {
        let row = self
            .transaction
            .prepare_cached(
                "SELECT place, head, head_hash, updated_us, state, pruned_us, is_pruning
                 FROM runs WHERE id = ?1",
            )?
            .query_row([order.run.to_string()], |row| {
                let state =
                    StateName::parse(row.get_ref(4)?.as_str()?).unwrap_or(StateName::Queued);
                let run = Ended {
                    state,
                    place: row.get(0)?,
                    head: Sequence(row.get(1)?),
                    hash: ChainHash(row.get(2)?),
                    updated: Timestamp(row.get(3)?),
                };
                Ok((
                    run,
                    state.is_ended(),
                    row.get::<_, Option<i64>>(5)?.is_some(),
                    row.get::<_, bool>(6)?,
                ))
            })
            .optional()?;
        let refused = |what: &str| {
            let (run, what) = (order.run, what.to_owned());
            JobError::Refused(JournalError::NotPrunable { run, what })
        };
        let (run, begins) = match row {
            None => return Err(refused("there is no such run")),
            Some((_, false, _, _)) => return Err(refused("it has not ended")),
            Some((_, _, true, false)) => return Ok(Pruning::Done),
            Some((run, _, true, true)) => (run, None),
            Some(_) if self.signing.is_none() => {
                return Err(refused("nobody signs what is removed"));
            }
            Some((run, _, false, _)) => {
                let emptied = self.emptied_row(run.place)?;
                (run, Some(emptied.ok_or_else(|| refused("how it is listed cannot be read"))?))
            }
        };
        // What is freed is written over.
        self.transaction.pragma_update(None, "secure_delete", true)?;
        if let Some(emptied) = begins {
            self.begin_pruning(&run, order, &emptied)?;
        }
        let step = self.remove_step(&run)?;
        self.transaction.pragma_update(None, "secure_delete", "FAST")?;
        Ok(step)
    }

    fn begin_pruning(
        &mut self,
        run: &Ended,
        order: &PruneOrder,
        (spec, status): &(String, String),
    ) -> Result<(), JobError> {
        // What is removed was signed for: whoever keeps the head can tell that it was there.
        self.sign(order.time)?;
        let positions = self
            .transaction
            .prepare_cached("SELECT position FROM entries WHERE run = ?1 ORDER BY sequence")?
            .query_map([run.place], |row| row.get(0))?
            .collect::<rusqlite::Result<Ranges>>()?
            .to_string();
        let record = RunPruned {
            run_id: order.run,
            by: order.by.clone(),
            ended: run.updated,
            entries: run.head,
            hash: run.hash.to_string(),
            state: run.state.as_str().to_owned(),
            positions: if positions.len() > POSITIONS { String::new() } else { positions },
        };
        let record = record.into();
        self.daemon(&NewEntry { time: order.time, record, policy_revision: None })?;
        for derived in ["checkpoints", "checkpoint_items", "approvals"] {
            let delete = format!("DELETE FROM {derived} WHERE run = ?1");
            self.transaction.prepare_cached(&delete)?.execute([run.place])?;
        }
        self.transaction
            .prepare_cached(
                "UPDATE runs SET spec = ?2, status = ?3, pruned_us = ?4, is_pruning = 1
                 WHERE place = ?1",
            )?
            .execute(params![run.place, spec, status, order.time.0])?;
        Ok(())
    }

    /// How the run is listed, without what was asked of it and what it said; none where that cannot be read. It stays in
    /// lists, and its request id is known.
    fn emptied_row(&self, place: i64) -> Result<Option<(String, String)>, JobError> {
        let (spec, status): (String, String) = self
            .transaction
            .prepare_cached("SELECT spec, status FROM runs WHERE place = ?1")?
            .query_row([place], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let emptied = |text: &str| serde_json::from_str::<Map<String, Value>>(text).ok();
        let (Some(mut spec), Some(mut status)) = (emptied(&spec), emptied(&status)) else {
            return Ok(None);
        };
        spec.insert("task".into(), "".into());
        for said in ["answer", "error"] {
            status.remove(said);
        }
        Ok(Some((Value::from(spec).to_string(), Value::from(status).to_string())))
    }

    /// Where a step ends: after so many entries, or with the one that reaches so many bytes. None: no entry is left.
    fn end_of_step(&self, place: i64) -> rusqlite::Result<Option<u64>> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT sequence, length(view) + coalesce(length(body), 0) + CASE texts WHEN 0 THEN 0 ELSE (
                 SELECT coalesce(sum(octet_length(texts.text)), 0)
                 FROM entry_texts JOIN texts ON texts.id = entry_texts.text
                 WHERE entry_texts.position = entries.position) END
             FROM entries WHERE run = ?1 ORDER BY sequence LIMIT ?2",
        )?;
        let mut found = statement.query(params![place, STEP])?;
        let (mut end, mut bytes) = (None, 0_u64);
        while bytes < STEP_BYTES
            && let Some(row) = found.next()?
        {
            end = Some(row.get::<_, u64>(0)?.saturating_add(1));
            bytes = bytes.saturating_add(row.get(1)?);
        }
        Ok(end)
    }

    /// Removes the oldest entries that are left.
    fn remove_step(&mut self, run: &Ended) -> Result<Pruning, JobError> {
        let end = self.end_of_step(run.place)?.unwrap_or(u64::MAX >> 1);
        let with_texts = self.with_texts(run.place, end)?;
        for statement in [
            "INSERT INTO pruned_entries (position, run, sequence, hash)
             SELECT position, run, sequence, hash FROM entries WHERE run = ?1 AND sequence < ?2",
            "DELETE FROM entries WHERE run = ?1 AND sequence < ?2",
        ] {
            self.transaction.prepare_cached(statement)?.execute(params![run.place, end])?;
        }
        self.remove_texts(&with_texts)?;
        if end <= run.head.0 {
            return Ok(Pruning::UnderWay);
        }
        self.transaction
            .prepare_cached("UPDATE runs SET is_pruning = 0 WHERE place = ?1")?
            .execute([run.place])?;
        Ok(Pruning::Done)
    }
}
