//! Which ended runs still hold what they held. What is removed, and how: `writer::pruning`.

use rusqlite::{Connection, params};

use crate::{
    domain::{
        ids::{RunId, Sequence, Timestamp},
        status::StateName,
    },
    ports::{EndedRun, Prunable},
    sqlite::rows::{ReadError, run_id},
};

const ENDED: [StateName; 3] = [StateName::Succeeded, StateName::Failed, StateName::Cancelled];

/// Those first that ended first.
pub(super) fn prunable(
    connection: &Connection,
    wanted: &Prunable,
) -> Result<Vec<EndedRun>, ReadError> {
    let is_wanted = |state: &StateName| wanted.states.is_empty() || wanted.states.contains(state);
    let mut found = Vec::new();
    // One after the other: so each is a walk along its own part of the index.
    for state in ENDED.into_iter().filter(is_wanted) {
        found.extend(ended_in(connection, state, wanted)?);
    }
    found.sort_by_key(|run| run.ended);
    found.truncate(wanted.limit);
    Ok(found)
}

fn ended_in(
    connection: &Connection,
    state: StateName,
    wanted: &Prunable,
) -> Result<Vec<EndedRun>, ReadError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, updated_us, head FROM runs INDEXED BY runs_ended
         WHERE state = ?1 AND state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
           AND pruned_us IS NULL AND updated_us < ?2
         ORDER BY updated_us LIMIT ?3",
    )?;
    let limit = i64::try_from(wanted.limit).unwrap_or(i64::MAX);
    let parameters = params![state.as_str(), wanted.ended_before.0, limit];
    let found = statement.query_map(parameters, |row| {
        Ok(EndedRun {
            run: run_id(row, 0)?,
            state,
            ended: Timestamp(row.get(1)?),
            entries: Sequence(row.get(2)?),
        })
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

/// Of daemons that died meanwhile.
pub(super) fn half_pruned(connection: &Connection) -> Result<Vec<RunId>, ReadError> {
    let mut statement =
        connection.prepare_cached("SELECT id FROM runs WHERE is_pruning = 1 ORDER BY place")?;
    let found = statement.query_map([], |row| run_id(row, 0))?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}
