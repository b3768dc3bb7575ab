//! Removes what an ended run held, in steps, so that nobody waits long for the writer. What stays of each entry, and that it
//! was removed, the journal says: chains and signed heads can be followed past it.

use rusqlite::{OptionalExtension as _, params};
use serde_json::Value;

use crate::{
    domain::{
        chain::ChainHash,
        ids::{Sequence, Timestamp},
        journal::{NewEntry, RunPruned},
        ranges::Ranges,
        status::StateName,
    },
    ports::{JournalError, PruneOrder, Pruning},
    sqlite::writer::{Batch, JobError},
};

/// Entries that one step removes.
const STEP: u64 = 512;
/// Longest list of positions that is written down, in bytes.
const POSITIONS: usize = 64 << 10;

/// A run as far as pruning is about it.
struct Ended {
    place: i64,
    head: Sequence,
    hash: ChainHash,
    updated: Timestamp,
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
                let run = Ended {
                    place: row.get(0)?,
                    head: Sequence(row.get(1)?),
                    hash: ChainHash(row.get(2)?),
                    updated: Timestamp(row.get(3)?),
                };
                let is_ended =
                    StateName::parse(row.get_ref(4)?.as_str()?).is_some_and(StateName::is_ended);
                Ok((run, is_ended, row.get::<_, Option<i64>>(5)?.is_some(), row.get::<_, bool>(6)?))
            })
            .optional()?;
        let refused = |what: &str| {
            let (run, what) = (order.run, what.to_owned());
            JobError::Refused(JournalError::NotPrunable { run, what })
        };
        match row {
            None => Err(refused("there is no such run")),
            Some((_, false, _, _)) => Err(refused("it has not ended")),
            Some((_, _, true, false)) => Ok(Pruning::Done),
            Some((run, _, true, true)) => self.remove_step(&run),
            Some(_) if self.signing.is_none() => Err(refused("nobody signs what is removed")),
            Some((run, _, false, _)) => {
                self.begin_pruning(&run, order)?;
                self.remove_step(&run)
            }
        }
    }

    fn begin_pruning(&mut self, run: &Ended, order: &PruneOrder) -> Result<(), JobError> {
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
            positions: if positions.len() > POSITIONS { String::new() } else { positions },
        };
        let record = record.into();
        self.daemon(&NewEntry { time: order.time, record, policy_revision: None })?;
        for derived in ["checkpoints", "checkpoint_items", "approvals"] {
            let delete = format!("DELETE FROM {derived} WHERE run = ?1");
            self.transaction.prepare_cached(&delete)?.execute([run.place])?;
        }
        self.empty_row(run.place, order.time)
    }

    /// The run stays in lists, and its request id is known; what was asked of it and what it said is not.
    fn empty_row(&self, place: i64, time: Timestamp) -> Result<(), JobError> {
        let (spec, status): (String, String) = self
            .transaction
            .prepare_cached("SELECT spec, status FROM runs WHERE place = ?1")?
            .query_row([place], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let mut spec: Value = serde_json::from_str(&spec)?;
        let mut status: Value = serde_json::from_str(&status)?;
        spec["task"] = "".into();
        for said in ["answer", "error"] {
            status.as_object_mut().map(|status| status.remove(said));
        }
        self.transaction
            .prepare_cached(
                "UPDATE runs SET spec = ?2, status = ?3, pruned_us = ?4, is_pruning = 1
                 WHERE place = ?1",
            )?
            .execute(params![place, spec.to_string(), status.to_string(), time.0])?;
        Ok(())
    }

    /// Removes the oldest entries that are left; what they held is written over.
    fn remove_step(&mut self, run: &Ended) -> Result<Pruning, JobError> {
        let first: Option<u64> = self
            .transaction
            .prepare_cached("SELECT min(sequence) FROM entries WHERE run = ?1")?
            .query_row([run.place], |row| row.get(0))?;
        let end = first.map_or(0, |first| first.saturating_add(STEP));
        self.transaction.pragma_update(None, "secure_delete", true)?;
        for statement in [
            "INSERT INTO pruned_entries (position, run, sequence, hash)
             SELECT position, run, sequence, hash FROM entries WHERE run = ?1 AND sequence < ?2",
            "DELETE FROM entries WHERE run = ?1 AND sequence < ?2",
        ] {
            self.transaction.prepare_cached(statement)?.execute(params![run.place, end])?;
        }
        self.transaction.pragma_update(None, "secure_delete", false)?;
        if first.is_some() && end <= run.head.0 {
            return Ok(Pruning::UnderWay);
        }
        self.transaction
            .prepare_cached("UPDATE runs SET is_pruning = 0 WHERE place = ?1")?
            .execute([run.place])?;
        Ok(Pruning::Done)
    }
}
