//! What the suite writes: records in few words, so that a failing case is short enough to be read.

use std::collections::BTreeMap;

use agentd::{
    domain::{
        backend::{Api, BackendName},
        budget::{Budget, TokenCount, Usage},
        ids::{
            CallId, CallKey, Caller, Epoch, PolicyRevision, RuleId, RunId, Sequence, Timestamp,
            ToolName,
        },
        item::RawJson,
        journal::{
            AnsweredItem, ApprovalDecided, ApprovalDecision, ApprovalRequested, DaemonStarted,
            DaemonStopped, InputReceived, ModelRequest, ModelResponse, NewEntry, PolicyReload,
            Purpose, Record, Reloaded, RunCreated, RunFinished, ToolOutput,
        },
        redact::Redactor,
        run::{Ending, Failure},
        status::StateName,
        tool::{EffectClass, OutcomeKind},
    },
    ports::{Admission, Append, NewCheckpoint, Piece, RunStatus},
};
use serde_json::{json, value::to_raw_value};
use uuid::Uuid;

/// What no view may show.
pub(super) const SECRET: &str = "hunter2-hunter2";

pub(super) fn redactor() -> Redactor {
    Redactor::new([SECRET.to_owned()])
}

pub(super) fn run_id(n: u8) -> RunId {
    RunId::new(Uuid::from_u128(n.into()))
}

pub(super) fn caller(n: u8) -> Caller {
    Caller::new(format!("uid:{n}"))
}

/// Labels by number. Characters that a store may trip over, an empty text, a secret.
pub(super) const LABELS: [(&str, &str); 9] = [
    ("team", "red"),
    ("team", "blue"),
    ("a.b[0]", "dots"),
    ("quo\"te\\d", "it's 100 %\n\u{7f}_"),
    ("quo\"te\\d", ""),
    ("", "täglich \u{1f680}"),
    ("nul", "a\0b"),
    ("nul", "a\0c"),
    ("key", SECRET),
];

pub(super) fn labels(numbers: &[usize]) -> BTreeMap<String, String> {
    numbers.iter().map(|n| LABELS[*n]).map(|(key, value)| (key.into(), value.into())).collect()
}

/// Somebody wants a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Submission {
    pub(super) by: u8,
    pub(super) request: Option<u8>,
    /// Another number, another body. Odd ones hold a secret.
    pub(super) body: u8,
    pub(super) labels: Vec<usize>,
}

impl Submission {
    pub(super) fn admission(&self) -> Admission {
        let request_id = self.request.map(request_id);
        Admission { caller: caller(self.by), request_id, digest: [self.body; 32] }
    }

    pub(super) fn spec(&self) -> RunCreated {
        let secret = if self.body % 2 == 1 { SECRET } else { "no secret" };
        RunCreated {
            task: format!("task {} with {secret}", self.body).into(),
            workspace: format!("/srv/{secret}"),
            agent: "executor".into(),
            model: self.request.map(|n| format!("model-{n}")),
            budget: Budget::default(),
            role_budgets: BTreeMap::new(),
            labels: labels(&self.labels),
            submitter: caller(self.by),
            request_id: self.request.map(request_id),
            role: None,
            output: None,
            told: Vec::new(),
            team: None,
            forked: None,
        }
    }

    /// What makes this run.
    pub(super) fn creation(&self, epoch: Epoch, run: RunId) -> Append {
        let mut append = appended(epoch, run, Sequence(0), StateName::Queued, &[]);
        append.entries.push(entry(1, self.spec().into()));
        append
    }
}

pub(super) fn request_id(n: u8) -> String {
    format!("request-{n}")
}

/// One thing to be written, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing in it is hidden.
    Request,
    Secret,
    /// Only a part of it is for everyone, although it holds no secret.
    Answer,
    Asked {
        call: u32,
        expires: i64,
    },
    Decided {
        call: u32,
    },
    Output {
        call: u32,
    },
    /// Always the last.
    Ended(How),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Succeeded,
    Failed,
    Cancelled,
}

impl How {
    fn ending(self) -> Ending {
        match self {
            Self::Succeeded => Ending::Succeeded { answer: format!("it is {SECRET}").into() },
            Self::Failed => Ending::Failed(failure()),
            Self::Cancelled => Ending::Cancelled,
        }
    }

    pub(super) fn state(self) -> StateName {
        match self {
            Self::Succeeded => StateName::Succeeded,
            Self::Failed => StateName::Failed,
            Self::Cancelled => StateName::Cancelled,
        }
    }
}

fn failure() -> Failure {
    Failure { reason: "SANDBOX_FAILED".into(), message: format!("{SECRET} was lost") }
}

impl Said {
    pub(super) fn record(self) -> Record {
        match self {
            Self::Request => ModelRequest {
                turn: 1,
                attempt: 1,
                items: 1,
                estimated_tokens: 7,
                purpose: Purpose::Answer,
                hosted_tools: Vec::new(),
                backend: BackendName::default(),
                api: Api::Responses,
            }
            .into(),
            Self::Secret => {
                let text = format!("take {SECRET}").into();
                InputReceived { by: caller(0), text, request_id: None }.into()
            }
            Self::Answer => answer().into(),
            Self::Asked { call, expires } => asked(key(call), Timestamp(expires)).into(),
            Self::Decided { call } => decided(key(call)).into(),
            Self::Output { call } => output(key(call)).into(),
            Self::Ended(how) => RunFinished { ending: how.ending() }.into(),
        }
    }
}

fn key(call: u32) -> CallKey {
    CallKey { turn: 1, index: call }
}

fn call_id(call: CallKey) -> CallId {
    CallId::new(format!("call_{}", call.index))
}

fn raw(value: &serde_json::Value) -> RawJson {
    to_raw_value(value).unwrap().into()
}

fn answer() -> ModelResponse {
    let reasoning = json!({ "type": "reasoning", "encrypted_content": "c2VhbGVk" });
    ModelResponse {
        turn: 1,
        attempt: 1,
        response_id: Some("resp_1".into()),
        model: None,
        text: Some("I shall look".into()),
        incomplete: None,
        items: vec![AnsweredItem { raw: raw(&reasoning), call: None }],
        tokens: TokenCount { input: 7, output: 3, ..TokenCount::default() },
        duration_ms: 1,
        cost_micros: None,
        backend: BackendName::default(),
        api: Api::Responses,
    }
}

fn asked(call: CallKey, expires: Timestamp) -> ApprovalRequested {
    ApprovalRequested {
        call,
        call_id: call_id(call),
        tool: ToolName::new("some_tool"),
        arguments: format!("{{\"text\":\"{SECRET}\"}}").into(),
        facts: raw(&json!({ "path": "notes.txt" })),
        effect_class: EffectClass::NonIdempotent,
        attempt: 1,
        rule: RuleId::new("ask"),
        why: "a person is to look at it".into(),
        revision: PolicyRevision::new("sha256:00"),
        digest: "00".repeat(32),
        expires,
    }
}

fn decided(call: CallKey) -> ApprovalDecided {
    ApprovalDecided {
        call,
        call_id: call_id(call),
        by: caller(0),
        decision: ApprovalDecision::Denied,
        digest: "00".repeat(32),
        why: String::new(),
        grant: None,
    }
}

fn output(call: CallKey) -> ToolOutput {
    ToolOutput {
        call,
        call_id: call_id(call),
        outcome: OutcomeKind::Done,
        output: call.to_string().into(),
        duration_ms: 1,
        used: None,
    }
}

/// What the daemon says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    Started,
    Reloaded,
    /// With a secret in it.
    Stopped,
}

impl Noted {
    pub(super) fn entry(self, time: u64) -> NewEntry {
        let revision = PolicyRevision::new("sha256:00");
        let record = match self {
            Self::Started => DaemonStarted {
                version: "0.1.0".into(),
                epoch: Epoch(1),
                sqlite: "none".into(),
                policy_revision: revision,
            }
            .into(),
            Self::Reloaded => {
                let outcome = Reloaded::Refused { faults: vec!["tools.yaml:3:1: no".into()] };
                PolicyReload { by: caller(0), before: revision, outcome }.into()
            }
            Self::Stopped => {
                DaemonStopped { why: format!("{SECRET} was stolen"), is_unexamined: false }.into()
            }
        };
        entry(time, record)
    }
}

/// An entry at a time that tells it from others. Under a policy, unless the policy has nothing to do with it.
fn entry(time: u64, record: Record) -> NewEntry {
    let policy_revision = match &record {
        Record::RunCreated(_) | Record::RunFinished(_) => None,
        _ => Some(PolicyRevision::new("sha256:00")),
    };
    NewEntry { time: Timestamp(1000 * time as i64), record, policy_revision }
}

/// What follows an entry of a run. The run is in this state then, unless it ends.
pub(super) fn appended(
    epoch: Epoch,
    run: RunId,
    after: Sequence,
    state: StateName,
    said: &[Said],
) -> Append {
    let sequences = after.0 + 1..;
    let entries = sequences.zip(said).map(|(sequence, said)| entry(sequence, said.record()));
    let usage = Usage { turns: after.0 as u32, input_tokens: u64::MAX, ..Usage::default() };
    let error = (state == StateName::Paused).then(failure);
    let is_degraded = after.0.is_multiple_of(2);
    let mut status = RunStatus { state, usage, answer: None, error, is_degraded };
    if let Some(Said::Ended(how)) = said.last() {
        status.state = how.state();
        (status.answer, status.error) = match how.ending() {
            Ending::Succeeded { answer } => (Some(answer.to_string()), None),
            Ending::Failed(failure) => (None, Some(failure)),
            Ending::Cancelled => (None, None),
        };
    }
    let checkpoint = (after.0 % 2 == 1).then(|| checkpoint(after, said.len()));
    Append { run, epoch, after, entries: entries.collect(), status, checkpoint }
}

/// What nobody but the engine reads, with a piece that goes on, or takes the place of earlier ones.
fn checkpoint(after: Sequence, said: usize) -> NewCheckpoint {
    let first = if said.is_multiple_of(2) { after.0 as usize } else { after.0 as usize / 2 };
    let items = format!("items from {first} on");
    NewCheckpoint { state: format!("after {after} and {said}"), piece: Piece { first, items } }
}
