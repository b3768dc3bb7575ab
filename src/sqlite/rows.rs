//! Rows to values and back. Only reads; what is written is written in `writer`.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _, Row, Rows, params, types::Type};
use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        budget::Usage,
        chain::ChainHash,
        ids::{Caller, Position, RunId, Sequence, Timestamp},
        journal::{DecodeError, Entry, Forked, Record},
        run::Failure,
        status::StateName,
    },
    ports::{
        Admission, Approvals, AuditFilter, AuditPage, Checkpoint, EntryView, JournalError,
        PageLimit, PendingApproval, Piece, RunFilter, RunPlace, RunStatus, RunSummary,
    },
    sqlite::{
        seal::{Broken, Place, Seal},
        texts,
    },
};

/// Why something stored cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Store(#[from] rusqlite::Error),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Seal(#[from] Broken),
    #[error(
        "a long text of entry {} is missing or stands elsewhere; stop the daemon, and restore a backup (agentctl restore)",
        position.0
    )]
    Text { position: Position },
    #[error("what run {run} held was pruned")]
    Pruned { run: RunId, head: Sequence },
    #[error(
        "its pages are damaged ({0}); stop the daemon, and restore a backup (agentctl restore)"
    )]
    Pages(String),
}

/// The stored shape of what changes about a run.
#[derive(Serialize, Deserialize)]
struct StatusRow {
    usage: Usage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    degraded: bool,
}

/// What of a stored submission lists show.
#[derive(Deserialize)]
struct SpecRow {
    task: String,
    workspace: String,
    agent: String,
    model: Option<String>,
    submitter: Caller,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    forked: Option<Forked>,
}

/// Characters of a task that lists show; the whole is in the journal.
const LISTED_CHARS: usize = 2000;

/// As much of a task as lists show.
pub(super) fn listed_task(task: &str) -> std::sync::Arc<str> {
    match task.char_indices().nth(LISTED_CHARS) {
        Some((end, _)) => format!("{}…", &task[..end]).into(),
        None => task.into(),
    }
}

/// JSON of a status, not yet redacted.
pub(super) fn encode_status(status: &RunStatus) -> serde_json::Result<String> {
    serde_json::to_string(&StatusRow {
        usage: status.usage,
        answer: status.answer.clone(),
        error: status.error.clone(),
        degraded: status.is_degraded,
    })
}

/// A run's id out of a text column.
pub(super) fn run_id(row: &Row<'_>, column: usize) -> rusqlite::Result<RunId> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}

fn json<T: for<'de> Deserialize<'de>>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}

fn bound(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// What a page of whole entries, or of questions to people, may hold before it ends, in bytes.
const PAGE_BYTES: usize = 8 << 20;

/// Whole entries of a run after a sequence, oldest first; fewer than `limit` where they are large.
pub(super) fn entries(
    connection: &Connection,
    seal: &Seal,
    run: RunId,
    after: Sequence,
    limit: usize,
) -> Result<Vec<Entry>, ReadError> {
    let mut statement = connection.prepare_cached(
        "SELECT sequence, time_us, kind, version, view, body, position, texts FROM entries
         WHERE run = (SELECT place FROM runs WHERE id = ?1 AND pruned_us IS NULL) AND sequence > ?2
         ORDER BY sequence LIMIT ?3",
    )?;
    let mut found = statement.query(params![run.to_string(), after.0, bound(limit)])?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while bytes < PAGE_BYTES
        && let Some(row) = found.next()?
    {
        let sequence = Sequence(row.get(0)?);
        let kind: String = row.get(2)?;
        let body: Option<Vec<u8>> = row.get(5)?;
        let whole = match body {
            Some(sealed) => seal.open_body(Some(run), Place::Entry(sequence), &sealed)?,
            None => texts::whole(connection, Position(row.get(6)?), row.get(4)?, row.get(7)?)?,
        };
        bytes += whole.len();
        entries.push(Entry {
            sequence,
            time: Timestamp(row.get(1)?),
            record: Record::decode(&kind, row.get(3)?, &whole)?,
        });
    }
    if entries.is_empty() {
        check_unpruned(connection, run, after)?;
    }
    Ok(entries)
}

/// Whether entries that follow were there, and are no more.
fn check_unpruned(connection: &Connection, run: RunId, after: Sequence) -> Result<(), ReadError> {
    let mut statement = connection.prepare_cached(
        "SELECT head FROM runs WHERE id = ?1 AND head > ?2 AND pruned_us IS NOT NULL",
    )?;
    let found = statement.query_row(params![run.to_string(), after.0], |row| row.get(0));
    match found.optional()? {
        Some(head) => Err(ReadError::Pruned { run, head: Sequence(head) }),
        None => Ok(()),
    }
}

/// How a run stood at the last checkpoint of it.
pub(super) fn checkpoint(
    connection: &Connection,
    seal: &Seal,
    run: RunId,
) -> Result<Option<Checkpoint>, ReadError> {
    // The state and the pieces must be of the same moment.
    let moment = connection.unchecked_transaction()?;
    let state = moment
        .prepare_cached(
            "SELECT place, sequence, checkpoints.state
             FROM checkpoints JOIN runs ON runs.place = checkpoints.run WHERE runs.id = ?1",
        )?
        .query_row([run.to_string()], |row| {
            Ok((row.get::<_, i64>(0)?, Sequence(row.get(1)?), row.get::<_, Vec<u8>>(2)?))
        })
        .optional()?;
    let Some((place, sequence, state)) = state else { return Ok(None) };
    let state = seal.open_body(Some(run), Place::State(sequence), &state)?;
    let mut statement = moment.prepare_cached(
        "SELECT first, items FROM checkpoint_items WHERE run = ?1 ORDER BY first",
    )?;
    let mut found = statement.query([place])?;
    let mut pieces = Vec::new();
    while let Some(row) = found.next()? {
        let first = row.get(0)?;
        let items: Vec<u8> = row.get(1)?;
        let items = seal.open_body(Some(run), Place::Piece(first), &items)?;
        pieces.push(Piece { first, items });
    }
    Ok(Some(Checkpoint { sequence, state, pieces }))
}

const VIEW: &str = "SELECT sequence, position, time_us, kind, version, view, policy_revision, previous, hash, body_digest";

fn view(
    connection: &Connection,
    row: &Row<'_>,
    run: Option<RunId>,
) -> Result<EntryView, ReadError> {
    let position = Position(row.get(1)?);
    Ok(EntryView {
        run,
        sequence: Sequence(row.get(0)?),
        position,
        time: Timestamp(row.get(2)?),
        kind: row.get(3)?,
        version: row.get(4)?,
        payload: texts::whole(connection, position, row.get(5)?, row.get(10)?)?,
        policy_revision: row.get(6)?,
        previous: ChainHash(row.get(7)?),
        hash: ChainHash(row.get(8)?),
        body_digest: row.get(9)?,
    })
}

/// Entries of a run after a sequence as everyone may see them, oldest first.
pub(super) fn views(
    connection: &Connection,
    run: RunId,
    after: Sequence,
    limit: PageLimit,
) -> Result<Vec<EntryView>, ReadError> {
    let mut statement = connection.prepare_cached(&format!(
        "{VIEW}, texts FROM entries
         WHERE run = (SELECT place FROM runs WHERE id = ?1 AND pruned_us IS NULL) AND sequence > ?2
         ORDER BY sequence LIMIT ?3"
    ))?;
    let mut found = statement.query(params![run.to_string(), after.0, bound(limit.entries)])?;
    let views = page_of(&mut found, limit.bytes, |row| view(connection, row, Some(run)))?;
    if views.is_empty() {
        check_unpruned(connection, run, after)?;
    }
    Ok(views)
}

/// What was found, up to the entry with which so many bytes are reached.
fn page_of(
    found: &mut Rows<'_>,
    most_bytes: usize,
    view: impl Fn(&Row<'_>) -> Result<EntryView, ReadError>,
) -> Result<Vec<EntryView>, ReadError> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    while bytes < most_bytes
        && let Some(row) = found.next()?
    {
        let view = view(row)?;
        bytes += view.payload.len();
        page.push(view);
    }
    Ok(page)
}

/// The daemon's own entries of these kinds, newest first.
pub(super) fn daemon_views(
    connection: &Connection,
    kinds: &[&str],
    before: Option<Sequence>,
    limit: usize,
) -> Result<Vec<EntryView>, ReadError> {
    let mut statement = connection.prepare_cached(&format!(
        "{VIEW}, texts FROM entries
         WHERE run = 0 AND sequence < ?1 AND kind IN (SELECT value FROM json_each(?2))
         ORDER BY sequence DESC LIMIT ?3"
    ))?;
    let before = before.and_then(|before| i64::try_from(before.0).ok()).unwrap_or(i64::MAX);
    let kinds = serde_json::Value::from(kinds).to_string();
    let mut found = statement.query(params![before, kinds, bound(limit)])?;
    page_of(&mut found, usize::MAX, |row| view(connection, row, None))
}

/// A copy of before the second migration has none of its tables.
pub(super) fn has_table(connection: &Connection, name: &str) -> Result<bool, ReadError> {
    let mut statement = connection.prepare("SELECT 1 FROM sqlite_schema WHERE name = ?1")?;
    Ok(statement.exists([name])?)
}

/// Every entry as everyone may see it, in the order of position.
pub(super) fn all_views(connection: &Connection) -> Result<Vec<EntryView>, ReadError> {
    let texts = if has_table(connection, "texts")? { "texts" } else { "0" };
    let mut statement = connection.prepare(&format!(
        "{VIEW}, {texts}, runs.id FROM entries LEFT JOIN runs ON entries.run = runs.place ORDER BY position"
    ))?;
    let mut found = statement.query([])?;
    page_of(&mut found, usize::MAX, |row| of_any_run(connection, row))
}

fn of_any_run(connection: &Connection, row: &Row<'_>) -> Result<EntryView, ReadError> {
    let run = match row.get_ref(11)? {
        rusqlite::types::ValueRef::Null => None,
        _ => Some(run_id(row, 11)?),
    };
    view(connection, row, run)
}

/// Entries that are looked at for one page: a filter that fits few must not read the whole journal at once.
const LOOKED_AT: u64 = 20_000;

/// Entries of all chains that are wanted, in the order of position.
pub(super) fn audit(
    connection: &Connection,
    wanted: &AuditFilter,
    after: Position,
    limit: PageLimit,
) -> Result<AuditPage, ReadError> {
    let limit = PageLimit { bytes: limit.bytes.min(PAGE_BYTES), ..limit };
    if let Some(run) = wanted.run {
        check_unpruned(connection, run, Sequence(0))?;
    }
    let last: u64 =
        connection.query_row("SELECT coalesce(max(position), 0) FROM entries", [], |r| r.get(0))?;
    let until = after.0.saturating_add(LOOKED_AT).min(last);
    let mut statement = connection.prepare_cached(&format!(
        "{VIEW}, texts, runs.id FROM entries LEFT JOIN runs ON entries.run = runs.place
         WHERE position > ?1 AND position <= ?2
         AND (?3 IS NULL OR runs.id = ?3)
         AND (?4 = '[]' OR kind IN (SELECT value FROM json_each(?4)))
         AND (coalesce(?5, ?6, ?7, ?8) IS NULL OR CASE WHEN json_valid(view) THEN
              (?5 IS NULL OR json_extract(view, '$.tool') = ?5)
              AND (?6 IS NULL OR json_extract(view, '$.decision') = ?6)
              AND (?7 IS NULL OR json_extract(view, '$.rule') = ?7)
              AND (?8 IS NULL OR ?8 IN (json_extract(view, '$.by'), json_extract(view, '$.submitter'))) END)
         AND (?9 IS NULL OR time_us >= ?9) AND (?10 IS NULL OR time_us < ?10)
         ORDER BY position LIMIT ?11"
    ))?;
    let kinds = serde_json::Value::from(wanted.kinds.clone()).to_string();
    let mut found = statement.query(params![
        after.0,
        until,
        wanted.run.map(|run| run.to_string()),
        kinds,
        wanted.tool,
        wanted.decision,
        wanted.rule,
        wanted.caller,
        wanted.since.map(|time| time.0),
        wanted.until.map(|time| time.0),
        bound(limit.entries)
    ])?;
    let entries = page_of(&mut found, limit.bytes, |row| of_any_run(connection, row))?;
    let looked = match entries.last() {
        Some(view) if limit.is_reached_by(&entries) => view.position.0,
        _ => until.max(after.0),
    };
    let next = (looked < last).then_some(Position(looked));
    Ok(AuditPage { entries, looked: Position(looked), next })
}

const SUMMARY: &str =
    "SELECT place, id, spec, state, status, head, created_us, updated_us, pruned_us FROM runs";

fn summary(row: &Row<'_>) -> rusqlite::Result<(RunPlace, RunSummary)> {
    let spec: SpecRow = json(row, 2)?;
    let status: StatusRow = json(row, 4)?;
    let state = row.get_ref(3)?.as_str()?;
    let state = StateName::parse(state).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(3, Type::Text, format!("state {state:?}").into())
    })?;
    let summary = RunSummary {
        id: run_id(row, 1)?,
        task: spec.task,
        workspace: spec.workspace,
        agent: spec.agent,
        model: spec.model,
        submitter: spec.submitter,
        labels: spec.labels,
        forked: spec.forked.map(|forked| (forked.run, forked.sequence)),
        status: RunStatus {
            state,
            usage: status.usage,
            answer: status.answer,
            error: status.error,
            is_degraded: status.degraded,
        },
        head: Sequence(row.get(5)?),
        created: Timestamp(row.get(6)?),
        updated: Timestamp(row.get(7)?),
        pruned: row.get::<_, Option<i64>>(8)?.map(Timestamp),
    };
    Ok((RunPlace(row.get(0)?), summary))
}

/// One run as it stands.
pub(super) fn run(connection: &Connection, run: RunId) -> Result<Option<RunSummary>, ReadError> {
    let mut statement = connection.prepare_cached(&format!("{SUMMARY} WHERE id = ?1"))?;
    let found = statement.query_row([run.to_string()], summary).optional()?;
    Ok(found.map(|(_, summary)| summary))
}

/// The run that this submission made before; refused where its request id made another.
pub(super) fn submitted(
    connection: &Connection,
    admission: &Admission,
) -> rusqlite::Result<Result<Option<RunId>, JournalError>> {
    let Some(request_id) = &admission.request_id else { return Ok(Ok(None)) };
    let found = connection
        .prepare_cached("SELECT id, digest FROM runs WHERE caller = ?1 AND request_id = ?2")?
        .query_row(params![admission.caller.as_str(), request_id], |row| {
            Ok((run_id(row, 0)?, row.get::<_, [u8; 32]>(1)?))
        })
        .optional()?;
    Ok(match found {
        None => Ok(None),
        Some((run, digest)) if digest == admission.digest => Ok(Some(run)),
        Some((run, _)) => {
            Err(JournalError::RequestIdReused { request_id: request_id.clone(), run })
        }
    })
}

/// The runs that are wanted, newest first.
pub(super) fn runs(
    connection: &Connection,
    wanted: &RunFilter,
    before: Option<RunPlace>,
    limit: usize,
) -> Result<Vec<(RunPlace, RunSummary)>, ReadError> {
    let names: Vec<&str> = wanted.states.iter().map(|state| state.as_str()).collect();
    let names = serde_json::Value::from(names).to_string();
    let mut statement = connection.prepare_cached(&format!(
        "{SUMMARY} WHERE place < ?1 AND (?2 = '[]' OR state IN (SELECT value FROM json_each(?2)))
         AND (?3 IS NULL OR caller = ?3)
         AND (?5 = '{{}}' OR NOT EXISTS (
             SELECT key, value FROM json_each(?5)
             EXCEPT SELECT key, value FROM json_each(spec, '$.labels')))
         ORDER BY place DESC LIMIT ?4"
    ))?;
    let before = before.map_or(i64::MAX, |place| place.0);
    let submitter = wanted.submitter.as_ref().map(Caller::as_str);
    let labels = serde_json::json!(wanted.labels).to_string();
    let parameters = params![before, names, submitter, bound(limit), labels];
    let found = statement.query_map(parameters, summary)?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// Runs that have not ended, oldest first.
pub(super) fn unended(connection: &Connection) -> Result<Vec<RunId>, ReadError> {
    let mut statement = connection.prepare_cached(
        "SELECT id FROM runs WHERE state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED') ORDER BY place",
    )?;
    let found = statement.query_map([], |row| run_id(row, 0))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// What people are asked about, in the order of asking; fewer than `limit` where they are large.
pub(super) fn pending_approvals(
    connection: &Connection,
    wanted: &Approvals,
    after: Position,
    limit: usize,
) -> Result<Vec<PendingApproval>, ReadError> {
    let mut statement = connection.prepare_cached(
        "SELECT runs.id, approvals.position, entries.time_us, runs.spec, entries.kind, entries.version, entries.view,
                entries.body IS NOT NULL, entries.texts
         FROM approvals JOIN runs ON runs.place = approvals.run
         JOIN entries ON entries.position = approvals.position
         WHERE approvals.position > ?1 AND (?2 IS NULL OR runs.id = ?2) AND (?3 IS NULL OR runs.caller = ?3)
         AND (?4 IS NULL OR approvals.expires_us <= ?4)
         ORDER BY approvals.position LIMIT ?5",
    )?;
    let run = wanted.run.map(|run| run.to_string());
    let submitter = wanted.submitter.as_ref().map(Caller::as_str);
    let expired_by = wanted.expired_by.map(|time| time.0);
    let mut found = statement.query(params![after.0, run, submitter, expired_by, bound(limit)])?;
    let (mut pending, mut bytes) = (Vec::new(), 0);
    while bytes < PAGE_BYTES
        && let Some(row) = found.next()?
    {
        let (kind, position): (String, Position) = (row.get(4)?, Position(row.get(1)?));
        let view = texts::whole(connection, position, row.get(6)?, row.get(8)?)?;
        bytes += view.len();
        let Record::ApprovalRequested(asked) = Record::decode(&kind, row.get(5)?, &view)? else {
            continue;
        };
        let spec: SpecRow = json(row, 3)?;
        pending.push(PendingApproval {
            run: run_id(row, 0)?,
            position,
            time: Timestamp(row.get(2)?),
            submitter: spec.submitter,
            task: spec.task,
            workspace: spec.workspace,
            is_redacted: row.get(7)?,
            asked,
        });
    }
    Ok(pending)
}
