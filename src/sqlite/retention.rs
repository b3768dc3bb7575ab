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

/// Those first that ended first.
pub(super) fn prunable(
    connection: &Connection,
    wanted: &Prunable,
) -> Result<Vec<EndedRun>, ReadError> {
    let ended = [StateName::Succeeded, StateName::Failed, StateName::Cancelled];
    let is_wanted = |state| wanted.states.is_empty() || wanted.states.contains(&state);
    let states = ended.map(|state| is_wanted(state).then_some(state.as_str()));
    let mut statement = connection.prepare_cached(
        "SELECT id, state, updated_us, head FROM runs INDEXED BY runs_ended
         WHERE state IN ('SUCCEEDED', 'FAILED', 'CANCELLED') AND pruned_us IS NULL
           AND updated_us < ?1 AND state IN (?2, ?3, ?4)
         ORDER BY updated_us LIMIT ?5",
    )?;
    let limit = i64::try_from(wanted.limit).unwrap_or(i64::MAX);
    let parameters = params![wanted.ended_before.0, states[0], states[1], states[2], limit];
    let found = statement.query_map(parameters, |row| {
        let state = StateName::parse(row.get_ref(1)?.as_str()?).unwrap_or(StateName::Failed);
        Ok(EndedRun {
            run: run_id(row, 0)?,
            state,
            ended: Timestamp(row.get(2)?),
            entries: Sequence(row.get(3)?),
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
