//! What somebody says of a call whose outcome a crash swallowed, and what of it is written down. Decides nothing of
//! what follows: see `domain::run`.

use serde_json::json;

use crate::{
    domain::{
        budget,
        ids::{CallKey, Caller, RunId, Sequence},
        journal::{CallResolved, Record, Resolution, ToolOutput},
        run::RunState,
        status::StateName,
        tool::ToolOutcome,
    },
    engine::{
        Engine, EngineError,
        inbox::{Heard, WHY_BYTES, Wanted, check_length},
        run_log::Noted,
    },
    ports::{JournalError, PageLimit, RunSummary},
};

/// Entries that are read at once: each view has up to 2 MiB.
const PAGE: PageLimit = PageLimit::entries(16);

/// What became of a call.
#[derive(Debug, Clone)]
pub struct CallResolution {
    pub call: CallKey,
    pub by: Caller,
    pub resolution: Resolution,
    /// What the model reads of a call that did run.
    pub result: String,
    pub why: String,
}

/// What is written at once: with what the model hears, unless the call is run again. None: the run does not stand
/// still for that call.
pub(super) fn records(state: &RunState, with: CallResolution) -> Option<Vec<Noted>> {
    let CallResolution { call, by, resolution, result, why } = with;
    let call_id = state.unresolved(call)?.call_id.clone();
    let resolved = CallResolved { call, call_id: call_id.clone(), by, resolution, why };
    let output = outcome(resolution, &result).map(|outcome| ToolOutput {
        call,
        call_id,
        outcome: outcome.kind,
        output: outcome.output,
        duration_ms: 0,
        used: None,
    });
    let records = [Some(resolved.into()), output.map(Into::into)];
    Some(records.into_iter().flatten().collect())
}

fn outcome(resolution: Resolution, result: &str) -> Option<ToolOutcome> {
    match resolution {
        Resolution::Retry => None,
        Resolution::DidNotRun => Some(ToolOutcome::failed(
            "DID_NOT_RUN",
            "agentd died before the call took effect, as a person found who looked; it was not run again",
        )),
        Resolution::DidRun => Some(ToolOutcome::done(&json!({
            "note": "agentd died while the call ran; a person who looked found that it took effect",
            "result": result,
        }))),
    }
}

impl Engine {
    /// Says what became of a call that its run stands still for. Once this returns, that is on disk, and the run goes
    /// on when every such call is resolved.
    ///
    /// The same again gives the run as it is.
    pub async fn resolve(
        &self,
        run: RunId,
        with: CallResolution,
    ) -> Result<RunSummary, EngineError> {
        check(&with)?;
        let summary = self.run(run).await?;
        let engine = self.clone();
        self.finish(async move {
            let (call, resolution) = (with.call, with.resolution);
            let wanted = Wanted::Resolve(with);
            let is_written = summary.status.state == StateName::NeedsAttention
                && engine.ask_of(run, wanted).await? == Heard::Done;
            if !is_written {
                engine.was_resolved(run, call, resolution).await?;
            }
            engine.run(run).await
        })
        .await
    }

    /// Errors: it was not, or in another way.
    async fn was_resolved(
        &self,
        run: RunId,
        call: CallKey,
        wanted: Resolution,
    ) -> Result<(), EngineError> {
        let resolution = |record| match record {
            Record::CallResolved(said) if said.call == call => Some(said.resolution),
            _ => None,
        };
        match self.last_said(run, "call_resolved", resolution).await? {
            Some(found) if found == wanted => Ok(()),
            Some(found) => Err(EngineError::AlreadyResolved { run, call, found }),
            None => Err(EngineError::NotUnresolved { run, call }),
        }
    }

    /// What entries of a kind said last of something, as everyone may see them; none if none did.
    pub(super) async fn last_said<T>(
        &self,
        run: RunId,
        kind: &str,
        of_it: impl Fn(Record) -> Option<T>,
    ) -> Result<Option<T>, EngineError> {
        let (mut read, mut last) = (Sequence(0), None);
        loop {
            let views = self.entries(run, read, PAGE).await?;
            let is_last = !PAGE.is_reached_by(&views);
            for view in views {
                read = view.sequence;
                if view.kind == kind {
                    let record = Record::decode(&view.kind, view.version, &view.payload)
                        .map_err(|error| JournalError::Unreadable { what: error.to_string() })?;
                    last = of_it(record).or(last);
                }
            }
            if is_last {
                return Ok(last);
            }
        }
    }
}

fn check(with: &CallResolution) -> Result<(), EngineError> {
    check_length("why", &with.why, WHY_BYTES)?;
    check_length("result", &with.result, budget::OUTPUT_TEXT_BYTES)?;
    if with.resolution != Resolution::DidRun && !with.result.is_empty() {
        let message = "is for a call that did run; leave it out".into();
        return Err(EngineError::InvalidField { field: "result", message });
    }
    Ok(())
}
