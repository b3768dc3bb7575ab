//! Recomputes the journal's hashes and compares them with what is stored. Needs no key: sealed bodies
//! are hashed as they are sealed.

use std::{collections::HashMap, path::Path};

use rusqlite::{Connection, Row};
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        ids::{Position, RunId, Sequence, Timestamp},
        journal::{ChainHash, Linked, RunAnchored},
    },
    ports::{AuditFault, AuditReport, EntryView, JournalError},
    sqlite::{migrate, rows, rows::ReadError},
};

/// Faults that are told; more are not looked for.
const MOST_FAULTS: usize = 100;

/// Verifies a database that no daemon needs to serve.
pub fn verify_file(path: &Path) -> Result<AuditReport, JournalError> {
    let unreadable = |what: String| JournalError::Unreadable { what };
    let connection = migrate::open_for_reading(path)
        .map_err(|error| unreadable(crate::telemetry::chain(&error)))?;
    verify(&connection).map_err(|error| unreadable(error.to_string()))
}

/// Every entry of a database that no daemon needs to serve, in the order of position.
pub fn views_of_file(path: &Path) -> Result<Vec<EntryView>, JournalError> {
    let unreadable = |what: String| JournalError::Unreadable { what };
    let connection = migrate::open_for_reading(path)
        .map_err(|error| unreadable(crate::telemetry::chain(&error)))?;
    rows::all_views(&connection).map_err(|error| unreadable(error.to_string()))
}

/// Walks the whole journal in the order of position.
pub(super) fn verify(connection: &Connection) -> Result<AuditReport, ReadError> {
    // One transaction: the heads and the entries must be of the same moment.
    let moment = connection.unchecked_transaction()?;
    let ids = run_ids(&moment)?;
    let places = ids.iter().map(|(place, run)| (*run, *place)).collect();
    let mut walk = Walk { chains: HashMap::new(), ids, places, report: empty() };
    let mut statement = moment.prepare(
        "SELECT position, run, sequence, time_us, kind, version, view, body, body_digest,
                policy_revision, previous, hash
         FROM entries ORDER BY position",
    )?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        walk.step(row)?;
        if walk.report.faults.len() >= MOST_FAULTS {
            return Ok(walk.report);
        }
    }
    walk.check_heads(&moment)?;
    walk.report.runs = walk.ids.len() as u64;
    walk.report.head = walk.chains.get(&0).map_or(ChainHash::START, |end| end.hash);
    Ok(walk.report)
}

fn empty() -> AuditReport {
    AuditReport { entries: 0, runs: 0, head: ChainHash::START, faults: Vec::new() }
}

fn run_ids(connection: &Connection) -> Result<HashMap<i64, RunId>, ReadError> {
    let mut statement = connection.prepare("SELECT place, id FROM runs")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, rows::run_id(row, 1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The end of a chain as far as it has been walked.
#[derive(Clone, Copy)]
struct End {
    sequence: Sequence,
    hash: ChainHash,
}

struct Walk {
    /// By `runs.place`; 0 is the daemon.
    chains: HashMap<i64, End>,
    ids: HashMap<i64, RunId>,
    places: HashMap<RunId, i64>,
    report: AuditReport,
}

impl Walk {
    fn step(&mut self, row: &Row<'_>) -> Result<(), ReadError> {
        let position = Position(row.get(0)?);
        let place: i64 = row.get(1)?;
        let sequence = Sequence(row.get(2)?);
        let run = self.ids.get(&place).copied();
        let end = self
            .chains
            .get(&place)
            .copied()
            .unwrap_or(End { sequence: Sequence(0), hash: ChainHash::START });
        self.report.entries += 1;

        let mut faults: Vec<String> = Vec::new();
        if position.0 != self.report.entries {
            faults.push(format!("entry {} of the journal is missing", self.report.entries));
            // Go on from here, or every later entry would be reported too.
            self.report.entries = position.0;
        }
        if place != 0 && run.is_none() {
            faults.push("its run is missing".into());
        }
        if sequence != end.sequence.next() {
            faults.push(format!("follows sequence {} of its chain", end.sequence));
        }
        let previous = ChainHash(row.get(10)?);
        if previous != end.hash {
            faults.push("does not name the hash of the entry before it".into());
        }
        let kind: String = row.get(4)?;
        let view: String = row.get(6)?;
        let stored = ChainHash(row.get(11)?);
        if hash_of(row, run, &kind, &view, previous)? != stored {
            faults.push("was altered: its hash does not fit".into());
        }
        if !body_fits(row)? {
            faults.push("was altered: its sealed body does not fit".into());
        }
        if kind == "run_anchored" {
            faults.extend(self.check_anchor(&view));
        }
        self.chains.insert(place, End { sequence, hash: stored });
        self.report.faults.extend(faults.into_iter().map(|what| AuditFault {
            position,
            run,
            sequence,
            what,
        }));
        Ok(())
    }

    /// What an anchor says of a run must be what was walked.
    fn check_anchor(&self, view: &str) -> Option<String> {
        let Ok(anchor) = serde_json::from_str::<RunAnchored>(view) else {
            return Some("is an anchor that cannot be read".into());
        };
        let end = self.places.get(&anchor.run_id).and_then(|place| self.chains.get(place));
        match end {
            Some(end) if end.sequence == anchor.sequence && end.hash.to_string() == anchor.hash => {
                None
            }
            Some(_) => Some(format!("run {} does not end as it was anchored", anchor.run_id)),
            None => Some(format!("run {} was anchored and is missing", anchor.run_id)),
        }
    }

    /// The heads in the table of runs must be the ends of the chains.
    fn check_heads(&mut self, connection: &Connection) -> Result<(), ReadError> {
        let mut statement = connection.prepare("SELECT place, head, head_hash FROM runs")?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            let place: i64 = row.get(0)?;
            let head = Sequence(row.get(1)?);
            let hash = ChainHash(row.get(2)?);
            let fits =
                self.chains.get(&place).is_some_and(|end| end.sequence == head && end.hash == hash);
            if !fits {
                self.report.faults.push(AuditFault {
                    position: Position(self.report.entries),
                    run: self.ids.get(&place).copied(),
                    sequence: head,
                    what: "the run's chain does not end where the run says it does".into(),
                });
            }
        }
        Ok(())
    }
}

fn hash_of(
    row: &Row<'_>,
    run: Option<RunId>,
    kind: &str,
    view: &str,
    previous: ChainHash,
) -> Result<ChainHash, ReadError> {
    let digest: Option<Vec<u8>> = row.get(8)?;
    let revision: Option<String> = row.get(9)?;
    let linked = Linked {
        run,
        sequence: Sequence(row.get(2)?),
        position: Position(row.get(0)?),
        time: Timestamp(row.get(3)?),
        kind,
        version: row.get(5)?,
        view,
        body_digest: digest.as_deref(),
        policy_revision: revision.as_deref(),
    };
    Ok(linked.hash(previous))
}

fn body_fits(row: &Row<'_>) -> Result<bool, ReadError> {
    let body: Option<Vec<u8>> = row.get(7)?;
    let digest: Option<Vec<u8>> = row.get(8)?;
    Ok(match (body, digest) {
        (Some(body), Some(digest)) => Sha256::digest(body).as_slice() == digest,
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    })
}
