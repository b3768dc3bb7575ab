//! Domain to proto and back, and every error to its `Status`: the only place where codes are chosen.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::http::HeaderMap;
use prost_types::Timestamp;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    agents::{
        Agent, Origin,
        colleagues::{self, ErrandTool},
    },
    domain::{
        access::Role,
        budget::{Budget, RoleBudgets, Usage},
        ids::{self, RoleName, RunId},
        journal::{Decided, Resolution, Verdict},
        status::StateName,
        tool::{EffectClass, OutcomeKind},
    },
    engine::{Backend, EngineError, LiveEvent, Mind, ToolCallView, WhenBusy},
    ports::{EntryView, JournalError, OutputStream, RunSummary},
    proto::v1::{self, stream_run_events_response::Event},
};

const DOMAIN: &str = "agentd";
/// When to try again what was refused for want of room.
const RETRY: Duration = Duration::from_secs(1);

/// Faults that are told in an error, and characters of each.
const FAULTS: usize = 10;
const FAULT_CHARS: usize = 200;

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
            "the bearer token is none of this daemon's; its owner's lies in the file `token` of its state \
             directory",
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

/// The caller is known, and its role may not call this.
pub(super) fn role_denied(role: Role, path: &str, may: &[Role]) -> Status {
    let may: Vec<String> = may.iter().map(Role::to_string).collect();
    let method = path.trim_start_matches('/');
    let message = format!("role {role} may not call {method}; may: {}", may.join(", "));
    with_reason(Code::PermissionDenied, "ROLE_DENIED", message, ErrorDetails::new())
}

/// No service of this daemon has the method. The code is the one by which clients know an older server.
pub(super) fn unknown_method(path: &str) -> Status {
    let method: String = path.trim_start_matches('/').chars().take(200).collect();
    let message = format!("this agentd {} has no method {method:?}", env!("CARGO_PKG_VERSION"));
    with_reason(Code::Unimplemented, "UNKNOWN_METHOD", message, ErrorDetails::new())
}

/// Our own descriptions cannot be served.
pub(super) fn no_reflection(error: &tonic_reflection::server::Error) -> Status {
    let message = format!("reflection is out of order ({error}); use the proto files");
    with_reason(Code::Internal, "REFLECTION_FAILED", message, ErrorDetails::new())
}

/// The time that the caller gave is over; what it asked to be changed is still carried out.
pub(super) fn deadline() -> Status {
    let message = "the call's deadline is over; a run that was submitted goes on".into();
    with_reason(Code::DeadlineExceeded, "TIMEOUT", message, ErrorDetails::new())
}

/// What the gRPC library refused by itself, in our words; none where it refused nothing of that kind.
pub(super) fn of_transport(headers: &HeaderMap) -> Option<Status> {
    let status = Status::from_header_map(headers)?;
    let words = status.message();
    match status.code() {
        Code::OutOfRange if words.contains("message length too large") => {
            let message = format!("the request is too large: {words}");
            let code = Code::ResourceExhausted;
            Some(with_reason(code, "REQUEST_TOO_LARGE", message, ErrorDetails::new()))
        }
        Code::Internal if words.contains("decode Protobuf message") => {
            let message = format!("the request is not what its method takes: {words}");
            let code = Code::InvalidArgument;
            Some(with_reason(code, "MALFORMED_REQUEST", message, ErrorDetails::new()))
        }
        _ => None,
    }
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

/// With what a program needs to go on.
fn with_metadata<const N: usize>(
    code: Code,
    reason: &str,
    message: String,
    metadata: [(&str, String); N],
) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, metadata.map(|(key, value)| (key.to_owned(), value)));
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
        EngineError::OutOfReach { .. } => {
            with_reason(Code::PermissionDenied, "POLICY_DENIED", message, plain())
        }
        EngineError::TooManyStreams { .. } => {
            with_reason(Code::ResourceExhausted, "TOO_MANY_STREAMS", message, with_retry())
        }
        EngineError::BackupBusy => {
            with_reason(Code::ResourceExhausted, "BACKUP_BUSY", message, with_retry())
        }
        EngineError::DiskLow { .. } => {
            with_reason(Code::ResourceExhausted, "DISK_LOW", message, with_retry())
        }
        EngineError::QueueFull { .. } => {
            with_reason(Code::ResourceExhausted, "QUEUE_FULL", message, with_retry())
        }
        EngineError::WorkspaceBusy { .. } => {
            with_reason(Code::FailedPrecondition, "WORKSPACE_BUSY", message, with_retry())
        }
        EngineError::NotUnresolved { .. } => {
            with_reason(Code::FailedPrecondition, "CALL_NOT_UNRESOLVED", message, plain())
        }
        EngineError::AlreadyResolved { .. } => {
            with_reason(Code::FailedPrecondition, "CALL_ALREADY_RESOLVED", message, plain())
        }
        EngineError::NotWaiting { .. } => {
            with_reason(Code::FailedPrecondition, "CALL_NOT_WAITING", message, plain())
        }
        EngineError::AlreadyDecided { .. } => {
            with_reason(Code::FailedPrecondition, "CALL_ALREADY_DECIDED", message, plain())
        }
        EngineError::AskedOtherwise { .. } => {
            with_reason(Code::Aborted, "APPROVAL_CHANGED", message, plain())
        }
        EngineError::AskedTooLong { .. } => {
            with_reason(Code::FailedPrecondition, "APPROVAL_EXPIRED", message, plain())
        }
        EngineError::OwnRun { .. } => {
            with_reason(Code::PermissionDenied, "OWN_RUN", message, plain())
        }
        EngineError::InvalidState { .. } => {
            with_reason(Code::FailedPrecondition, "INVALID_STATE", message, plain())
        }
        EngineError::InputIdReused { .. } => {
            with_reason(Code::AlreadyExists, "REQUEST_ID_REUSED", message, plain())
        }
        EngineError::NoDiff { .. } => {
            with_reason(Code::FailedPrecondition, "NO_DIFF", message, plain())
        }
        EngineError::PolicyInvalid { faults } => {
            // All of it travels in headers, which clients bound; ValidatePolicy tells the rest.
            let mut details = plain();
            for fault in faults.iter().take(FAULTS) {
                details.add_bad_request_violation("policy", short_fault(fault));
            }
            let first = faults.first().map(|fault| short_fault(fault)).unwrap_or_default();
            let message = format!(
                "the policy files have {} faults and the policy in force stays; the first: {first}; \
                 `agentctl policy validate` tells all",
                faults.len()
            );
            with_reason(Code::FailedPrecondition, "POLICY_INVALID", message, details)
        }
        EngineError::PolicyMoved { .. } => {
            with_reason(Code::Aborted, "POLICY_CHANGED", message, plain())
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
        JournalError::Pruned { head, .. } => {
            let oldest = [("oldest_sequence", (head.0 + 1).to_string())];
            with_metadata(Code::OutOfRange, "RUN_PRUNED", message, oldest)
        }
        JournalError::NotPrunable { .. } => {
            with_reason(Code::FailedPrecondition, "NOT_PRUNABLE", message, plain())
        }
        JournalError::Failed { .. } => {
            with_reason(Code::Unavailable, "STORE_FAILED", message, with_retry())
        }
        JournalError::Unreadable { .. } => {
            with_reason(Code::DataLoss, "STORE_UNREADABLE", message, plain())
        }
    }
}

/// As much of a fault of the policy files as is told where ValidatePolicy tells all.
pub(super) fn short_fault(fault: &str) -> String {
    fault.chars().take(FAULT_CHARS).collect()
}

pub(super) fn run_id(text: &str) -> Result<RunId, Status> {
    text.parse().map_err(|error: ids::NotARunId| invalid("id", error.to_string()))
}

pub(super) fn resolution(wanted: v1::CallResolution) -> Result<Resolution, Status> {
    match wanted {
        v1::CallResolution::DidNotRun => Ok(Resolution::DidNotRun),
        v1::CallResolution::DidRun => Ok(Resolution::DidRun),
        v1::CallResolution::Retry => Ok(Resolution::Retry),
        v1::CallResolution::Unspecified => {
            Err(invalid("resolution", "is missing, or one that this agentd does not know".into()))
        }
    }
}

pub(super) fn timestamp(at: ids::Timestamp) -> Timestamp {
    let nanos = at.0.rem_euclid(1_000_000) * 1000;
    Timestamp { seconds: at.0.div_euclid(1_000_000), nanos: i32::try_from(nanos).unwrap_or(0) }
}

pub(super) fn from_timestamp(at: Timestamp) -> ids::Timestamp {
    let micros = at.seconds.saturating_mul(1_000_000).saturating_add(i64::from(at.nanos) / 1000);
    ids::Timestamp(micros)
}

pub(super) fn state(state: StateName) -> v1::RunState {
    match state {
        StateName::Queued => v1::RunState::Queued,
        StateName::Planning => v1::RunState::Planning,
        StateName::Executing => v1::RunState::Executing,
        StateName::Reviewing => v1::RunState::Reviewing,
        StateName::WaitingForBackend => v1::RunState::WaitingForBackend,
        StateName::AwaitingApproval => v1::RunState::AwaitingApproval,
        StateName::Paused => v1::RunState::Paused,
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
        prune_time: summary.pruned.map(timestamp),
        degraded: status.is_degraded,
        submitter: summary.submitter.to_string(),
        labels: summary.labels.into_iter().collect(),
        forked_from: summary.forked.map(|(run, sequence)| v1::ForkedFrom {
            run_id: run.to_string(),
            sequence: sequence.0,
        }),
    }
}

/// Characters of a tool's output that lists show.
const OUTPUT_CHARS: usize = 2000;

/// A call of a run that stands in `state`.
pub(super) fn tool_call(run: RunId, state: StateName, view: ToolCallView) -> v1::ToolCall {
    let standing = tool_call_state(state, &view);
    let ToolCallView { sequence, asked, called, decided, attempt, ended, .. } = view;
    let is_allowed = decided.as_ref().is_some_and(|decided| decided.decision == Verdict::Allow);
    let mut call = v1::ToolCall {
        run_id: run.to_string(),
        call_id: called.call_id.to_string(),
        turn: called.call.turn,
        index: called.call.index,
        tool: called.tool.to_string(),
        arguments: called.arguments.to_string(),
        state: standing.into(),
        effect_class: called.effect_class.as_str().into(),
        decision: decided.map(decision),
        attempt_count: if is_allowed { attempt } else { 0 },
        sequence: sequence.0,
        create_time: Some(timestamp(asked)),
        ..v1::ToolCall::default()
    };
    if let Some((time, output)) = ended {
        call.outcome = output.outcome.as_str().into();
        call.output = output.output.chars().take(OUTPUT_CHARS).collect();
        call.output_truncated = call.output.len() < output.output.len();
        call.duration =
            prost_types::Duration::try_from(Duration::from_millis(output.duration_ms)).ok();
        call.end_time = Some(timestamp(time));
    }
    call
}

fn tool_call_state(run: StateName, call: &ToolCallView) -> v1::ToolCallState {
    use v1::ToolCallState as State;
    match (&call.ended, &call.decided) {
        (Some((_, output)), _) => match output.outcome {
            OutcomeKind::Done => State::Done,
            OutcomeKind::Failed => State::Failed,
            OutcomeKind::Refused => State::Refused,
            OutcomeKind::Cancelled => State::Cancelled,
        },
        (None, Some(decided)) if decided.decision == Verdict::Allow => {
            let lost = call.called.effect_class == EffectClass::NonIdempotent && !call.is_to_retry;
            match run == StateName::NeedsAttention && lost {
                true => State::Unresolved,
                false => State::Running,
            }
        }
        (None, Some(_)) if call.is_asked_about => State::AwaitingApproval,
        (None, Some(_) | None) => State::Pending,
    }
}

fn decision(decided: Decided) -> v1::ToolCallDecision {
    let verdict = match decided.decision {
        Verdict::Allow => v1::Verdict::Allow,
        Verdict::Deny => v1::Verdict::Deny,
        Verdict::RequireApproval => v1::Verdict::RequireApproval,
    };
    v1::ToolCallDecision {
        verdict: verdict.into(),
        rule: decided.rule.to_string(),
        why: decided.why,
    }
}

pub(super) fn agent(
    agent: &Agent,
    tools: Vec<String>,
    (backend, mind): (&Arc<Backend>, &Mind),
    errands: &[ErrandTool],
) -> v1::Agent {
    let (hand_offs, asks) = colleagues::named_in(errands);
    let names = |names: Vec<Arc<str>>| names.iter().map(ToString::to_string).collect();
    v1::Agent {
        name: agent.name.clone(),
        description: agent.description.clone(),
        role: agent.role.to_string(),
        model: mind.model.clone().unwrap_or_default(),
        backend: backend.name.to_string(),
        output_schema: agent.output.as_deref().unwrap_or_default().to_owned(),
        tools,
        instructions: agent.instructions.clone(),
        built_in: agent.origin == Origin::BuiltIn,
        hand_offs: names(hand_offs),
        agents_as_tools: names(asks),
    }
}

pub(super) fn usage(usage: Usage) -> v1::Usage {
    v1::Usage {
        turns: usage.turns,
        tool_calls: usage.tool_calls,
        input_tokens: usage.input_tokens,
        cached_input_tokens: usage.cached_input_tokens,
        output_tokens: usage.output_tokens,
        reasoning_tokens: usage.reasoning_tokens,
        turns_of_unknown_cost: usage.turns_of_unknown_cost,
        cpu_ms: usage.cpu_ms,
        wall_ms: usage.wall_us / 1000,
        cost_micros: usage.cost_micros,
    }
}

pub(super) fn when_busy(wanted: v1::BusyWorkspace) -> WhenBusy {
    match wanted {
        v1::BusyWorkspace::Unspecified | v1::BusyWorkspace::Wait => WhenBusy::Wait,
        v1::BusyWorkspace::Refuse => WhenBusy::Refuse,
    }
}

/// As it was sent: zeros stand for the defaults.
pub(super) fn budget(wanted: Option<v1::Budget>) -> Budget {
    let wanted = wanted.unwrap_or_default();
    Budget {
        max_turns: wanted.max_turns,
        max_tool_calls: wanted.max_tool_calls,
        max_tokens: wanted.max_tokens,
        max_wall_seconds: wanted.max_wall_seconds,
        max_cost_micros: wanted.max_cost_micros,
    }
}

/// As they were sent: zeros stand for no limit, or for the one that there is.
pub(super) fn role_budgets(wanted: HashMap<String, v1::Budget>) -> RoleBudgets {
    wanted.into_iter().map(|(role, of)| (RoleName::new(role), budget(Some(of)))).collect()
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
        body_digest: view.body_digest.map(|digest| digest.to_vec()).unwrap_or_default(),
    }
}
