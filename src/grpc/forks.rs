//! Checkpoints, and runs that begin at one: a part of `RunService`.

use tonic::Status;

use crate::{
    domain::{
        access::Access,
        ids::{RunId, Sequence},
    },
    engine::{Checkpoint, Engine, Fork, LastWord, Submitted},
    grpc::{
        convert,
        page::{self, List},
    },
    proto::v1,
};

/// Checkpoints of a page, if the caller does not say.
const PAGE: usize = 100;

/// A page of a run's checkpoints.
pub(super) async fn checkpoints(
    engine: &Engine,
    run: RunId,
    (page_size, page_token): (i32, &str),
) -> Result<v1::ListCheckpointsResponse, Status> {
    let size = page::size(page_size, PAGE)?;
    let list = List::new("ListCheckpoints", [run.to_string()]);
    let after = list.number(page_token)?.map_or(Sequence(0), Sequence);
    let mut found = engine.checkpoints(run, after, size + 1).await.map_err(convert::status)?;
    let is_last = found.len() <= size;
    found.truncate(size);
    let last = found.last().filter(|_| !is_last);
    let next_page_token =
        last.map(|last| list.token(&last.sequence.0.to_string())).unwrap_or_default();
    let checkpoints = found.into_iter().map(checkpoint).collect();
    Ok(v1::ListCheckpointsResponse { checkpoints, next_page_token })
}

fn checkpoint(found: Checkpoint) -> v1::Checkpoint {
    v1::Checkpoint {
        sequence: found.sequence.0,
        create_time: Some(convert::timestamp(found.time)),
        turn: found.turn,
        item_count: u32::try_from(found.items).unwrap_or(u32::MAX),
        usage: Some(convert::usage(found.usage)),
        wants_input: found.by == LastWord::Models,
    }
}

/// Begins a run at a checkpoint of another.
pub(super) async fn fork(
    engine: &Engine,
    access: Access,
    run: RunId,
    request: v1::ForkRunRequest,
) -> Result<v1::ForkRunResponse, Status> {
    let fork = Fork {
        run,
        at: Sequence(request.at_sequence),
        when_busy: convert::when_busy(request.when_workspace_busy()),
        input: request.input,
        agent: request.agent,
        model: request.model,
        workspace: request.workspace,
        budget: convert::budget(request.budget),
        role_budgets: convert::role_budgets(request.role_budgets),
        labels: request.labels.into_iter().collect(),
        request_id: Some(request.request_id).filter(|id| !id.is_empty()),
    };
    let (run, existed) = match engine.fork(access, fork).await.map_err(convert::status)? {
        Submitted::New(run) => (run, false),
        Submitted::Existed(run) => (run, true),
    };
    Ok(v1::ForkRunResponse { run: Some(convert::run(run)), existed })
}
