//! What an entry makes of a run whose model is to be asked, or is asked: requests, answers, failures.

use crate::domain::{
    ids::{CallKey, Timestamp},
    item::Item,
    journal::{BackendError, LostRequest, ModelRequest, ModelResponse, Record, RunResumed, Sent},
    run::{Failure, Nudged, OpenCall, Progress, Replay, RunState, Work},
    tool::{OnUnknown, ToolCall},
};

impl Work {
    pub(super) fn of_a_request(self, record: &Record, state: &mut RunState) -> Self {
        match (self, record) {
            (Self::ToAsk { .. } | Self::BackingOff { .. }, Record::ModelRequest(request)) => {
                state.context.requested(request);
                state.requested = (request.turn, request.attempt);
                Self::Asking { attempt: request.attempt, replay: replay(request) }
            }
            (Self::Asking { attempt, .. }, Record::ModelResponse(response))
                if response.attempt == attempt =>
            {
                answered(response, state)
            }
            (Self::Asking { attempt, replay }, Record::BackendError(error))
                if error.attempt == attempt =>
            {
                state.context.failed(error);
                after_error(error, replay, state)
            }
            (Self::Asking { attempt, .. }, Record::ContextCompacted(done))
                if done.attempt == attempt =>
            {
                state.compacted(done);
                Self::ToAsk { attempt: attempt.saturating_add(1) }
            }
            (
                Self::Asking { attempt, replay },
                Record::RunRecovered(_) | Record::CancelRequested(_),
            ) => {
                state.usage.turns_of_unknown_cost += 1;
                match replay {
                    Replay::Safe => Self::ToAsk { attempt: attempt.saturating_add(1) },
                    Replay::Unsafe => Self::AskLost { attempt },
                }
            }
            (
                Self::AskLost { attempt },
                Record::RunResumed(RunResumed { lost_request: LostRequest::Repeat, .. }),
            ) => Self::ToAsk { attempt: attempt.saturating_add(1) },
            // Nothing more is known of when; it is tried as soon as it is of use.
            (Self::ToAsk { .. } | Self::BackingOff { .. }, Record::BackendAwaited(awaited)) => {
                Self::BackingOff { attempt: awaited.attempt, until: Timestamp(0) }
            }
            // Somebody wants it to be tried at once.
            (Self::BackingOff { attempt, .. }, Record::RunResumed(_)) => Self::ToAsk { attempt },
            (work @ Self::ToAsk { .. }, Record::RepositoryTold(told)) => work.told(told, state),
            (unchanged, _) => unchanged,
        }
    }
}

fn replay(request: &ModelRequest) -> Replay {
    match request.hosted_tools.iter().all(|tool| tool.may_be_repeated()) {
        true => Replay::Safe,
        false => Replay::Unsafe,
    }
}

fn answered(response: &ModelResponse, state: &mut RunState) -> Work {
    let nudged = match state.nudged == Some(state.usage.turns) && state.usage.turns > 0 {
        true => Nudged::Already,
        false => Nudged::NotYet,
    };
    state.usage.turns += 1;
    state.apis.entry(response.backend.clone()).or_insert(response.api);
    state.context.answered(response);
    state.usage.add_tokens(&response.tokens);
    let cost = response.cost_micros.unwrap_or(0);
    state.usage.cost_micros = state.usage.cost_micros.saturating_add(cost);
    state.items.extend(response.items.iter().map(|item| Item::Model {
        raw: item.raw.clone(),
        call: item.call.as_ref().map(|call| call.call_id.clone()),
    }));
    if let Some(reason) = &response.incomplete {
        return Work::Failing(Failure {
            reason: "INCOMPLETE_RESPONSE".into(),
            message: format!(
                "the model's answer was cut off ({reason}); nothing it asked for was done. \
                 Raise the model's output limit, or give a smaller task"
            ),
        });
    }
    let calls: Vec<OpenCall> = (0..)
        .zip(response.items.iter().filter_map(|item| item.call.as_ref()))
        .map(|(index, asked)| OpenCall {
            call: ToolCall {
                key: CallKey { turn: response.turn, index },
                call_id: asked.call_id.clone(),
                tool: asked.tool.clone(),
                arguments: asked.arguments.clone(),
            },
            progress: Progress::Asked,
            facts: None,
            on_unknown: OnUnknown::Ask,
            approvals: Vec::new(),
        })
        .collect();
    match calls.is_empty() {
        true => Work::Concluding { answer: response.text.clone(), nudged },
        false => Work::Calling { calls },
    }
}

fn after_error(error: &BackendError, replay: Replay, state: &mut RunState) -> Work {
    // Where the backend itself refused, or was not reached, nothing was generated.
    let unknown = error.http_status.is_none() && error.sent == Sent::Maybe;
    state.usage.turns_of_unknown_cost += u32::from(unknown);
    let refused = error.http_status.is_some_and(|status| (400..500).contains(&status));
    let may_have_run = error.sent == Sent::Maybe && !refused;
    match error.retry_at {
        Some(_) if replay == Replay::Unsafe && may_have_run => {
            Work::AskLost { attempt: error.attempt }
        }
        Some(until) => Work::BackingOff { attempt: error.attempt.saturating_add(1), until },
        // Whoever hears that it failed might have it done once more.
        None if replay == Replay::Unsafe && may_have_run && state.answers().is_some() => {
            Work::AskLost { attempt: error.attempt }
        }
        None => {
            Work::Failing(Failure { reason: error.reason.clone(), message: error.message.clone() })
        }
    }
}
