//! Which runs are to be pruned, and which were.

use tonic::Status;

use crate::{
    domain::status::StateName,
    engine::{PruneMode, Pruned},
    grpc::convert,
    ports::{EndedRun, Prunable},
    proto::v1,
};

/// Runs that are pruned by one call, if it does not say.
const DEFAULT: usize = 100;
const MOST: usize = 1000;

/// What a request wants.
pub(super) fn wanted(request: &v1::PruneRunsRequest) -> Result<(Prunable, PruneMode), Status> {
    let ended_before = request.ended_before.ok_or_else(|| {
        convert::invalid("ended_before", "is missing: say up to when ended runs are pruned".into())
    })?;
    let known = request.states.iter().map(|number| convert::listed_state(*number));
    let known: Vec<Option<StateName>> = known.collect::<Result<_, _>>()?;
    // Also one that no run of this version is in: without it, nothing would be left of the list, and that means any.
    let states: Vec<StateName> =
        known.iter().flatten().copied().filter(|it| it.is_ended()).collect();
    if states.len() < known.len() {
        let message =
            "holds a state in which no run has ended; those are succeeded, failed and cancelled";
        return Err(convert::invalid("states", message.into()));
    }
    let limit = match usize::try_from(request.limit) {
        Ok(0) => DEFAULT,
        Ok(limit) => limit.min(MOST),
        Err(_) => {
            return Err(convert::invalid("limit", format!("{} is negative", request.limit)));
        }
    };
    let mode = if request.dry_run { PruneMode::DryRun } else { PruneMode::ForGood };
    Ok((Prunable { states, ended_before: convert::from_timestamp(ended_before), limit }, mode))
}

/// What became of it.
pub(super) fn answer(pruned: Pruned) -> v1::PruneRunsResponse {
    let run = |run: EndedRun| v1::PrunedRun {
        run_id: run.run.to_string(),
        state: convert::state(run.state).into(),
        end_time: Some(convert::timestamp(run.ended)),
        entries: run.entries.0,
    };
    let Pruned { runs, has_more } = pruned;
    v1::PruneRunsResponse { runs: runs.into_iter().map(run).collect(), has_more }
}
