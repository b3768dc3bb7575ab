//! What the journal remembers of one call of a tool, from its intent to its output, and how each of it was decided.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{
    effect::{Facts, Isolation},
    host::Host,
    ids::{CallId, CallKey, Caller, RuleId, ToolName},
    item::RawJson,
    journal::Errand,
    tool::{EffectClass, OnUnknown, OutcomeKind},
};

/// The intent: the model asked for a call, and this is what it would do. Written once a call, refused
/// ones included, before anything is touched.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ToolCalled {
    pub call: CallKey,
    pub call_id: CallId,
    pub tool: ToolName,
    pub arguments: Arc<str>,
    pub effect_class: EffectClass,
    #[serde(default, skip_serializing_if = "OnUnknown::is_ask")]
    pub on_unknown: OnUnknown,
    /// What it wants of another agent; none: it wants something of the world, or was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errand: Option<Box<Errand>>,
    /// What the call was resolved to; none when it was refused before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<RawJson>,
}

impl ToolCalled {
    /// The facts as they are stored.
    pub fn facts_json(facts: &Facts) -> Option<RawJson> {
        serde_json::value::to_raw_value(facts).ok().map(Into::into)
    }
}

/// Somebody said what became of a call whose outcome a crash swallowed. Unless it is to be run again, its output is
/// written together with this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallResolved {
    pub call: CallKey,
    pub call_id: CallId,
    pub by: Caller,
    pub resolution: Resolution,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What became of a call, as somebody found who looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// It took no effect, and is not run again.
    DidNotRun,
    /// It took effect.
    DidRun,
    /// Whatever became of it, it is run once more.
    Retry,
}

impl Resolution {
    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DidNotRun => "did_not_run",
            Self::DidRun => "did_run",
            Self::Retry => "retry",
        }
    }
}

/// A call whose outcome a crash swallowed is about to be looked at or run again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResumed {
    pub call: CallKey,
    pub call_id: CallId,
    /// 2 is the first attempt after the one that was lost.
    pub attempt: u32,
}

/// Policy, or a rule built into agentd, decided about a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    pub call: CallKey,
    pub call_id: CallId,
    pub decision: Verdict,
    pub rule: RuleId,
    pub why: String,
    /// What the call stands for by now, where that differs from what a person was asked about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<RawJson>,
}

/// Policy, or a rule built into agentd, decided about something that a call's program wants to reach while it
/// runs. Written before anything is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    pub call: CallKey,
    pub call_id: CallId,
    pub host: Host,
    pub port: u16,
    /// Of a request of plain HTTP; `CONNECT` for a tunnel.
    pub method: String,
    pub decision: Verdict,
    pub rule: RuleId,
    pub why: String,
    /// What the host stands for, where that is why it is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Allow,
    /// Only with a person's leave.
    RequireApproval,
    Deny,
}

impl Verdict {
    /// Whether it asks for what a person has allowed: `given` are the rules whose question is answered.
    pub fn is_given(self, rule: &RuleId, given: &[RuleId]) -> bool {
        self == Self::RequireApproval && given.contains(rule)
    }

    /// As files and answers write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::RequireApproval => "require_approval",
            Self::Deny => "deny",
        }
    }
}

/// A call ended; written exactly once a call, after its effect is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolOutput {
    pub call: CallKey,
    pub call_id: CallId,
    pub outcome: OutcomeKind,
    /// What the model hears, a JSON object as text.
    pub output: Arc<str>,
    pub duration_ms: u64,
    /// What a program used; none where none ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
}

/// What a program used, with all that it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    pub cpu_ms: u64,
    pub peak_memory_kib: u64,
    /// How well it was kept apart.
    pub isolation: Isolation,
    /// None where it may reach nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkUsed>,
}

/// What a program reached, in all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUsed {
    pub opened: u64,
    pub refused: u64,
    /// Bytes.
    pub sent: u64,
    pub received: u64,
    /// The first addresses that were dialled, each with what for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dialled: Vec<String>,
}
