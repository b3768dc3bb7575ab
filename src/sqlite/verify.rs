//! Recomputes the journal's hashes and compares them with what is stored. Needs no key: sealed bodies
//! are hashed as they are sealed.

use std::{collections::HashMap, path::Path};

use rusqlite::{Connection, Row, types::ValueRef};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        chain::{ChainHash, Linked},
        head::KeptHead,
        ids::{Position, RunId, Sequence, Timestamp},
        journal::{RunAnchored, RunPruned},
        status::StateName,
    },
    ports::{AuditFault, AuditReport, EntryView, JournalError},
    signing::{Followed, HeadWalk, Scope},
    sqlite::{migrate, rows, rows::ReadError, texts},
};

/// Faults that are told; more are not looked for.
const MOST_FAULTS: usize = 100;

/// Verifies a database that no daemon needs to serve, also by the heads that were kept of it.
pub fn verify_file(path: &Path, kept: Vec<KeptHead>) -> Result<AuditReport, JournalError> {
    let unreadable = |what: String| JournalError::Unreadable { what };
    let connection = migrate::open_for_reading(path)
        .map_err(|error| unreadable(crate::telemetry::chain(&error)))?;
    verify(&connection, kept).map_err(|error| unreadable(error.to_string()))
}

/// Every entry of a database that no daemon needs to serve, in the order of position.
pub fn views_of_file(path: &Path) -> Result<Vec<EntryView>, JournalError> {
    let unreadable = |what: String| JournalError::Unreadable { what };
    let connection = migrate::open_for_reading(path)
        .map_err(|error| unreadable(crate::telemetry::chain(&error)))?;
    rows::all_views(&connection).map_err(|error| unreadable(error.to_string()))
}

/// Walks the whole journal in the order of position.
pub(super) fn verify(
    connection: &Connection,
    kept: Vec<KeptHead>,
) -> Result<AuditReport, ReadError> {
    // One transaction: the heads and the entries must be of the same moment.
    let moment = connection.unchecked_transaction()?;
    let ids = run_ids(&moment)?;
    let places = ids.iter().map(|(place, run)| (*run, *place)).collect();
    let asked = HashMap::new();
    let heads = HeadWalk::new(kept, Scope::Whole);
    let report = AuditReport::default();
    let (chains, pruned) = (HashMap::new(), HashMap::new());
    let mut walk = Walk { chains, ids, places, asked, heads, pruned, report };
    let mut statement = moment.prepare(&entries_and_what_is_left(&moment)?)?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        match (Pruned::read(row), Stored::read(&moment, row)) {
            (Some(pruned), _) => walk.step_past(&pruned),
            (None, Ok(entry)) => walk.step(&entry),
            (None, Err(error)) => walk.unreadable(row, &error),
        }
        if walk.report.faults.len() >= MOST_FAULTS {
            return Ok(walk.report);
        }
    }
    walk.check_texts(&moment)?;
    walk.check_heads(&moment)?;
    walk.check_questions(&moment)?;
    walk.check_pruned();
    walk.report.runs = walk.ids.len() as u64;
    walk.report.head = walk.chains.get(&0).map_or(ChainHash::START, |end| end.hash);
    Ok(walk.finish())
}

/// All entries in the order of position, and what is left of pruned ones between them, which have no kind.
fn entries_and_what_is_left(connection: &Connection) -> Result<String, ReadError> {
    let entries = |texts: &str| {
        format!(
            "SELECT position, run, sequence, time_us, kind, version, view, body, body_digest,
                    policy_revision, previous, hash, {texts} FROM entries"
        )
    };
    const LEFT: &str = "SELECT position, run, sequence, NULL, NULL, NULL, NULL, NULL, NULL,
                               NULL, NULL, hash, 0 FROM pruned_entries";
    Ok(match rows::has_table(connection, "pruned_entries")? {
        true => format!("{} UNION ALL {LEFT} ORDER BY position", entries("texts")),
        false => format!("{} ORDER BY position", entries("0")),
    })
}

/// A run whose id cannot be read is as good as missing.
fn run_ids(connection: &Connection) -> Result<HashMap<i64, RunId>, ReadError> {
    let mut statement = connection.prepare("SELECT place, id FROM runs")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, rows::run_id(row, 1).ok())))?;
    let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(rows.into_iter().filter_map(|(place, id)| Some((place, id?))).collect())
}

/// The end of a chain as far as it has been walked.
#[derive(Clone)]
struct End {
    sequence: Sequence,
    hash: ChainHash,
    /// What the chain's last entry says of the run, where it ends it.
    ending: Option<Ending>,
    /// What it held is removed.
    is_pruned: bool,
}

/// How a run ended, as everyone may see it: in its last entry, and in the table of runs.
#[derive(Clone, PartialEq, Eq, Deserialize)]
struct Ending {
    state: String,
    answer: Option<String>,
}

impl Ending {
    /// As far as it is compared: a very long answer is shortened in its view.
    fn compared(self) -> Self {
        let answer = self.answer.map(|answer| answer.chars().take(4096).collect());
        Self { answer, ..self }
    }
}

/// How the table of runs says that a run ended; none while it has not.
fn listed_ending(row: &Row<'_>) -> Option<Ending> {
    let state: String = row.get(3).ok()?;
    if !StateName::parse(&state)?.is_ended() {
        return None;
    }
    let status: String = row.get(4).ok()?;
    let status: serde_json::Value = serde_json::from_str(&status).ok()?;
    let answer = status.get("answer").and_then(serde_json::Value::as_str).map(str::to_owned);
    Some(Ending { state, answer }.compared())
}

/// Whether the table of runs says of a pruned run how it ended, and nothing of what it held.
fn is_as_said(said: &RunPruned, row: &Row<'_>) -> bool {
    listed_ending(row).is_some_and(|listed| listed.state == said.state && listed.answer.is_none())
}

impl End {
    const START: Self =
        Self { sequence: Sequence(0), hash: ChainHash::START, ending: None, is_pruned: false };
}

struct Walk {
    /// By `runs.place`; 0 is the daemon.
    chains: HashMap<i64, End>,
    ids: HashMap<i64, RunId>,
    places: HashMap<RunId, i64>,
    /// By run and call, the position of the question to people that nobody has answered so far.
    asked: HashMap<(i64, String), Position>,
    heads: HeadWalk,
    /// The ends of runs that were pruned, as the journal says.
    pruned: HashMap<RunId, RunPruned>,
    report: AuditReport,
}

impl Walk {
    fn step(&mut self, entry: &Stored) {
        let Stored { position, place, sequence, .. } = *entry;
        let run = self.ids.get(&place).copied();
        let end = self.chains.get(&place).cloned().unwrap_or(End::START);

        let mut faults: Vec<String> = self.gap_before(position).into_iter().collect();
        if place != 0 && run.is_none() {
            faults.push("its run is missing".into());
        }
        if sequence != end.sequence.next() {
            faults.push(format!("follows sequence {} of its chain", end.sequence));
        }
        if entry.previous != end.hash {
            faults.push("does not name the hash of the entry before it".into());
        }
        if entry.recomputed(run) != entry.hash {
            faults.push("was altered: its hash does not fit".into());
        }
        if !entry.body_fits() {
            faults.push("was altered: its sealed body does not fit".into());
        }
        if end.ending.is_some() {
            faults.push("follows the end of its run".into());
        }
        if entry.kind == "run_anchored" {
            faults.extend(self.check_anchor(&entry.view));
        }
        if entry.kind == "run_pruned"
            && let Ok(said) = serde_json::from_str::<RunPruned>(&entry.view)
        {
            self.pruned.insert(said.run_id, said);
        }
        faults.extend(self.heads.follow(&entry.followed()));
        self.note_question(entry);
        let is_end = entry.kind == "run_finished";
        let ending: Option<Ending> =
            is_end.then(|| serde_json::from_str(&entry.view).ok()).flatten();
        let ending = ending.map(Ending::compared);
        let is_pruned = end.is_pruned;
        self.chains.insert(place, End { sequence, hash: entry.hash, ending, is_pruned });
        let fault = |what| AuditFault { position, run, sequence, what };
        self.report.faults.extend(faults.into_iter().map(fault));
    }

    /// What is left of an entry is taken as it stands: the next signed head says whether it fits.
    fn step_past(&mut self, left: &Pruned) {
        let Pruned { position, place, sequence, hash } = *left;
        let run = self.ids.get(&place).copied();
        let end = self.chains.get(&place).cloned().unwrap_or(End::START);
        let mut faults: Vec<String> = self.gap_before(position).into_iter().collect();
        if sequence != end.sequence.next() {
            faults.push(format!("follows sequence {} of its chain", end.sequence));
        }
        let time = Timestamp(0);
        faults.extend(self.heads.follow(&Followed { position, time, kind: "", view: "", hash }));
        self.chains.insert(place, End { sequence, hash, ending: None, is_pruned: true });
        let fault = |what| AuditFault { position, run, sequence, what };
        self.report.faults.extend(faults.into_iter().map(fault));
    }

    /// What is left of entries must be of runs that the journal says were pruned, up to where it says.
    fn check_pruned(&mut self) {
        let is_said = |end: &End, run: Option<&RunId>| {
            let said = run.and_then(|run| self.pruned.get(run));
            // One that is under way has not come to the end of its chain, which is still there.
            said.is_some_and(|said| {
                said.entries == end.sequence && said.hash == end.hash.to_string()
            })
        };
        let removed = self.chains.iter().filter(|(_, end)| end.is_pruned);
        let unsaid = removed.filter(|(place, end)| !is_said(end, self.ids.get(place)));
        let faults: Vec<AuditFault> = unsaid
            .map(|(place, end)| AuditFault {
                position: Position(0),
                run: self.ids.get(place).copied(),
                sequence: end.sequence,
                what: "its entries are removed, and the journal does not say that it was pruned"
                    .into(),
            })
            .collect();
        self.report.faults.extend(faults);
    }

    /// An entry that holds what no daemon wrote. Its chain goes on after it, and will not fit.
    fn unreadable(&mut self, row: &Row<'_>, error: &ReadError) {
        let expected = Position(self.report.entries + 1);
        let found = row.get(0).map(Position).ok();
        let gap = found.and_then(|position| self.gap_before(position));
        let position = found.unwrap_or(expected);
        let run = row.get(1).ok().and_then(|place: i64| self.ids.get(&place).copied());
        let sequence = Sequence(row.get(2).unwrap_or(0));
        self.heads.skip();
        let what = format!("was altered: it cannot be read: {error}");
        let fault = |what| AuditFault { position, run, sequence, what };
        self.report.faults.extend(gap.into_iter().chain([what]).map(fault));
    }

    /// Counts an entry, and tells what is missing before it.
    fn gap_before(&mut self, position: Position) -> Option<String> {
        let expected = self.report.entries + 1;
        // Go on from here, or every later entry would be reported too.
        self.report.entries = position.0;
        if position.0 != expected {
            self.heads.skip();
        }
        (position.0 != expected).then(|| format!("entry {expected} of the journal is missing"))
    }

    /// The report, with what the heads say of the end.
    fn finish(self) -> AuditReport {
        let mut report = self.report;
        let position = Position(report.entries);
        let (signed, missing) = self.heads.finish(position);
        let fault = |what| AuditFault { position, run: None, sequence: Sequence(0), what };
        report.faults.extend(missing.into_iter().map(fault));
        AuditReport { signed, ..report }
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

    /// Remembers what people are asked, as the writer does.
    fn note_question(&mut self, entry: &Stored) {
        #[derive(Deserialize)]
        struct About {
            call: String,
        }
        let about =
            || serde_json::from_str(&entry.view).ok().map(|About { call }| (entry.place, call));
        match entry.kind.as_str() {
            "approval_requested" => {
                self.asked.extend(about().map(|call| (call, entry.position)));
            }
            "approval_decided" | "decision" | "tool_output" if !self.asked.is_empty() => {
                if let Some(call) = about() {
                    self.asked.remove(&call);
                }
            }
            "run_finished" => self.asked.retain(|(place, _), _| *place != entry.place),
            _ => {}
        }
    }

    /// The table of questions must hold those that nobody has answered, and no others.
    fn check_questions(&mut self, connection: &Connection) -> Result<(), ReadError> {
        if !rows::has_table(connection, "approvals")? {
            return Ok(());
        }
        let mut statement = connection.prepare("SELECT run, call, position FROM approvals")?;
        let rows = statement.query_map([], |row| {
            Ok(((row.get(0)?, row.get::<_, String>(1)?), Position(row.get(2)?)))
        })?;
        let listed = rows.collect::<rusqlite::Result<HashMap<(i64, String), Position>>>()?;
        let differing = listed
            .iter()
            .filter(|(call, position)| self.asked.get(*call) != Some(*position))
            .chain(self.asked.iter().filter(|(call, _)| !listed.contains_key(*call)));
        let faults: Vec<AuditFault> = differing
            .map(|((place, call), position)| AuditFault {
                position: *position,
                run: self.ids.get(place).copied(),
                sequence: Sequence(0),
                what: format!(
                    "the list of what people are asked does not say of call {call} what its run's chain says"
                ),
            })
            .collect();
        self.report.faults.extend(faults);
        Ok(())
    }

    /// The long texts that stand beside entries must be theirs, and their digests'.
    fn check_texts(&mut self, connection: &Connection) -> Result<(), ReadError> {
        if rows::has_table(connection, "texts")? {
            let faults = texts::faults(connection, MOST_FAULTS)?;
            let end = Position(self.report.entries);
            let fault = |(position, what): (Option<Position>, &str)| AuditFault {
                position: position.unwrap_or(end),
                run: None,
                sequence: Sequence(0),
                what: what.into(),
            };
            self.report.faults.extend(faults.into_iter().map(fault));
            self.report.faults.sort_by_key(|fault| fault.position);
        }
        Ok(())
    }

    /// The table of runs must say of each run what its chain says.
    fn check_heads(&mut self, connection: &Connection) -> Result<(), ReadError> {
        let pruned =
            if rows::has_table(connection, "pruned_entries")? { "pruned_us" } else { "NULL" };
        let runs = format!("SELECT place, head, head_hash, state, status, {pruned} FROM runs");
        let mut statement = connection.prepare(&runs)?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            let place: i64 = row.get(0)?;
            let head = row.get(1).map(Sequence).ok();
            let hash = row.get(2).map(ChainHash).ok();
            let end = self.chains.get(&place);
            let fits = end.is_some_and(|end| Some(end.sequence) == head && Some(end.hash) == hash);
            let listed = listed_ending(row);
            let said = self.ids.get(&place).and_then(|run| self.pruned.get(run));
            let is_pruned = row.get_ref(5).is_ok_and(|pruned| pruned != ValueRef::Null);
            let what = match end.map(|end| &end.ending) {
                _ if is_pruned != said.is_some() => {
                    "the list of runs does not say of it what the journal says: that it was pruned, or was not"
                }
                _ if said.is_some_and(|said| !is_as_said(said, row)) => {
                    "the run's list does not say how it ended, or holds what was pruned"
                }
                Some(_) if fits && said.is_some() => continue,
                _ if !fits => "the run's chain does not end where the run says it does",
                Some(ending) if *ending != listed => {
                    "the run's list does not say how its chain ends"
                }
                Some(_) | None => continue,
            };
            self.report.faults.push(AuditFault {
                position: Position(self.report.entries),
                run: self.ids.get(&place).copied(),
                sequence: head.unwrap_or_default(),
                what: what.into(),
            });
        }
        Ok(())
    }
}

/// One row of the journal as it stands.
struct Stored {
    position: Position,
    place: i64,
    sequence: Sequence,
    time: Timestamp,
    kind: String,
    version: u32,
    view: String,
    body: Option<Vec<u8>>,
    body_digest: Option<Vec<u8>>,
    policy_revision: Option<String>,
    previous: ChainHash,
    hash: ChainHash,
}

/// What is left of an entry whose run was pruned.
struct Pruned {
    position: Position,
    place: i64,
    sequence: Sequence,
    hash: ChainHash,
}

impl Pruned {
    /// None: it is a whole entry.
    fn read(row: &Row<'_>) -> Option<Self> {
        if row.get_ref(4).ok()? != ValueRef::Null {
            return None;
        }
        Some(Self {
            position: Position(row.get(0).ok()?),
            place: row.get(1).ok()?,
            sequence: Sequence(row.get(2).ok()?),
            hash: ChainHash(row.get(11).ok()?),
        })
    }
}

impl Stored {
    /// Errors: a value is not of the kind that its column holds, or a long text of the view is not there.
    fn read(connection: &Connection, row: &Row<'_>) -> Result<Self, ReadError> {
        let position = Position(row.get(0)?);
        Ok(Self {
            position,
            place: row.get(1)?,
            sequence: Sequence(row.get(2)?),
            time: Timestamp(row.get(3)?),
            kind: row.get(4)?,
            version: row.get(5)?,
            view: texts::whole(connection, position, row.get(6)?, row.get(12)?)?,
            body: row.get(7)?,
            body_digest: row.get(8)?,
            policy_revision: row.get(9)?,
            previous: ChainHash(row.get(10)?),
            hash: ChainHash(row.get(11)?),
        })
    }

    fn followed(&self) -> Followed<'_> {
        Followed {
            position: self.position,
            time: self.time,
            kind: &self.kind,
            view: &self.view,
            hash: self.hash,
        }
    }

    fn recomputed(&self, run: Option<RunId>) -> ChainHash {
        let linked = Linked {
            run,
            sequence: self.sequence,
            position: self.position,
            time: self.time,
            kind: &self.kind,
            version: self.version,
            view: &self.view,
            body_digest: self.body_digest.as_deref(),
            policy_revision: self.policy_revision.as_deref(),
        };
        linked.hash(self.previous)
    }

    fn body_fits(&self) -> bool {
        match (&self.body, &self.body_digest) {
            (Some(body), Some(digest)) => Sha256::digest(body).as_slice() == digest,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}
