//! Domain to proto and back, and every error to its `Status`: the only place where codes are chosen.

use std::time::Duration;

use prost_types::Timestamp;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    domain::{
        budget::{Budget, Usage},
        ids::{self, RunId},
        status::StateName,
    },
    engine::{EngineError, LiveEvent},
    ports::{EntryView, JournalError, OutputStream, RunSummary},
    proto::v1::{self, stream_run_events_response::Event},
};

const DOMAIN: &str = "agentd";
/// When to try again what was refused for want of room.
const RETRY: Duration = Duration::from_secs(1);

/// Why a caller is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    OtherUser,
    WrongToken,
    NoToken,
}

pub(super) fn denied(why: Denied) -> Status {
    let (code, reason, message) = match why {
        Denied::OtherUser => (
            Code::PermissionDenied,
            "OTHER_USER",
            "this socket serves only the user who runs agentd, and root",
        ),
        Denied::WrongToken => (
            Code::Unauthenticated,
            "WRONG_TOKEN",
            "the bearer token is not this daemon's; it lies in the file `token` of its state directory",
        ),
        Denied::NoToken => (
            Code::Unauthenticated,
            "NO_TOKEN",
            "send the header `authorization: Bearer TOKEN`; the token lies in the file `token` of the \
             daemon's state directory",
        ),
    };
    with_reason(code, reason, message.into(), ErrorDetails::new())
}

pub(super) fn invalid(field: &str, message: String) -> Status {
    let mut details = ErrorDetails::new();
    details.add_bad_request_violation(field, message.clone());
    with_reason(Code::InvalidArgument, "INVALID_ARGUMENT", format!("{field}: {message}"), details)
}

pub(super) fn unknown_tool(name: &str) -> Status {
    let name: String = name.chars().take(80).collect();
    let message = format!("there is no tool {name:?}; ListTools tells which there are");
    with_reason(Code::NotFound, "TOOL_NOT_FOUND", message, ErrorDetails::new())
}

fn with_reason(code: Code, reason: &str, message: String, mut details: ErrorDetails) -> Status {
    details.set_error_info(reason, DOMAIN, [] as [(String, String); 0]);
    Status::with_error_details(code, message, details)
}

fn with_retry() -> ErrorDetails {
    let mut details = ErrorDetails::new();
    details.set_retry_info(Some(RETRY));
    details
}

pub(super) fn status(error: EngineError) -> Status {
    let message = error.to_string();
    let plain = ErrorDetails::new;
    match error {
        EngineError::InvalidField { field, message } => invalid(field, message),
        EngineError::UnknownRun(_) => {
            with_reason(Code::NotFound, "RUN_NOT_FOUND", message, plain())
        }
        EngineError::QueueFull { .. } => {
            with_reason(Code::ResourceExhausted, "QUEUE_FULL", message, with_retry())
        }
        EngineError::NoDiff { .. } => {
            with_reason(Code::FailedPrecondition, "NO_DIFF", message, plain())
        }
        EngineError::Draining => with_reason(Code::Unavailable, "DRAINING", message, with_retry()),
        EngineError::Journal(error) => journal(&error),
    }
}

fn journal(error: &JournalError) -> Status {
    let message = error.to_string();
    let plain = ErrorDetails::new;
    match error {
        JournalError::RequestIdReused { .. } => {
            with_reason(Code::AlreadyExists, "REQUEST_ID_REUSED", message, plain())
        }
        JournalError::Conflict { .. } => with_reason(Code::Aborted, "CONFLICT", message, plain()),
        JournalError::Busy => {
            with_reason(Code::ResourceExhausted, "STORE_BUSY", message, with_retry())
        }
        JournalError::Failed { .. } => {
            with_reason(Code::Unavailable, "STORE_FAILED", message, with_retry())
        }
        JournalError::Unreadable { .. } => {
            with_reason(Code::DataLoss, "STORE_UNREADABLE", message, plain())
        }
    }
}

/// The stream ends because the daemon stops; it can be taken up again where it ended.
pub(super) fn draining() -> Status {
    status(EngineError::Draining)
}

pub(super) fn run_id(text: &str) -> Result<RunId, Status> {
    text.parse().map_err(|error: ids::NotARunId| invalid("id", error.to_string()))
}

pub(super) fn timestamp(at: ids::Timestamp) -> Timestamp {
    let nanos = at.0.rem_euclid(1_000_000) * 1000;
    Timestamp { seconds: at.0.div_euclid(1_000_000), nanos: i32::try_from(nanos).unwrap_or(0) }
}

pub(super) fn state(state: StateName) -> v1::RunState {
    match state {
        StateName::Queued => v1::RunState::Queued,
        StateName::Executing => v1::RunState::Executing,
        StateName::WaitingForBackend => v1::RunState::WaitingForBackend,
        StateName::NeedsAttention => v1::RunState::NeedsAttention,
        StateName::OutOfBudget => v1::RunState::OutOfBudget,
        StateName::Succeeded => v1::RunState::Succeeded,
        StateName::Failed => v1::RunState::Failed,
        StateName::Cancelled => v1::RunState::Cancelled,
    }
}

/// The state to list by; states that no run of this version can be in match nothing.
pub(super) fn listed_state(number: i32) -> Result<Option<StateName>, Status> {
    let wanted = v1::RunState::try_from(number)
        .ok()
        .filter(|state| *state != v1::RunState::Unspecified)
        .ok_or_else(|| invalid("states", format!("{number} is not a state")))?;
    Ok(StateName::ALL.into_iter().find(|known| state(*known) == wanted))
}

/// Characters of an answer that lists show, so that a page stays within what clients accept.
const LISTED_CHARS: usize = 2000;

/// A run for a list.
pub(super) fn listed_run(summary: RunSummary) -> v1::Run {
    let mut run = run(summary);
    if let Some((end, _)) = run.answer.char_indices().nth(LISTED_CHARS) {
        run.answer.truncate(end);
        run.answer.push('…');
    }
    run
}

pub(super) fn run(summary: RunSummary) -> v1::Run {
    let status = summary.status;
    v1::Run {
        id: summary.id.to_string(),
        state: state(status.state).into(),
        agent: summary.agent,
        workspace: summary.workspace,
        task: summary.task,
        model: summary.model.unwrap_or_default(),
        answer: status.answer.unwrap_or_default(),
        usage: Some(usage(status.usage)),
        error: status
            .error
            .map(|failure| v1::RunError { reason: failure.reason, message: failure.message }),
        head_sequence: summary.head.0,
        create_time: Some(timestamp(summary.created)),
        update_time: Some(timestamp(summary.updated)),
        submitter: summary.submitter.to_string(),
        labels: summary.labels.into_iter().collect(),
    }
}

fn usage(usage: Usage) -> v1::Usage {
    v1::Usage {
        turns: usage.turns,
        tool_calls: usage.tool_calls,
        input_tokens: usage.input_tokens,
        cached_input_tokens: usage.cached_input_tokens,
        output_tokens: usage.output_tokens,
        reasoning_tokens: usage.reasoning_tokens,
        turns_of_unknown_cost: usage.turns_of_unknown_cost,
    }
}

/// As it was sent: zeros stand for the defaults.
pub(super) fn budget(wanted: Option<v1::Budget>) -> Budget {
    let wanted = wanted.unwrap_or_default();
    Budget {
        max_turns: wanted.max_turns,
        max_tool_calls: wanted.max_tool_calls,
        max_tokens: wanted.max_tokens,
    }
}

pub(super) fn live(event: LiveEvent) -> Event {
    match event {
        LiveEvent::Text(delta) => {
            Event::TextDelta(v1::TextDelta { turn: delta.turn, text: delta.text })
        }
        LiveEvent::Output(delta) => {
            let stream = match delta.stream {
                OutputStream::Stdout => v1::OutputStream::Stdout,
                OutputStream::Stderr => v1::OutputStream::Stderr,
            };
            Event::ToolOutputDelta(v1::ToolOutputDelta {
                turn: delta.call.turn,
                index: delta.call.index,
                call_id: delta.call_id.to_string(),
                stream: stream.into(),
                text: delta.text,
            })
        }
    }
}

pub(super) fn entry(view: EntryView) -> v1::JournalEntry {
    v1::JournalEntry {
        run_id: view.run.map(|run| run.to_string()).unwrap_or_default(),
        sequence: view.sequence.0,
        position: view.position.0,
        time: Some(timestamp(view.time)),
        kind: view.kind,
        version: view.version,
        payload: view.payload,
        policy_revision: view.policy_revision.unwrap_or_default(),
        previous_hash: view.previous.0.to_vec(),
        hash: view.hash.0.to_vec(),
    }
}
