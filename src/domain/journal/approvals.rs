//! What the journal remembers of calls that a person has to allow: what was asked, who was told, and what was said.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{
    approval::RunGrant,
    ids::{CallId, CallKey, Caller, PolicyRevision, Position, RuleId, RunId, Timestamp, ToolName},
    item::RawJson,
    tool::EffectClass,
};

/// A person is asked whether a call may be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRequested {
    pub call: CallKey,
    pub call_id: CallId,
    pub tool: ToolName,
    pub arguments: Arc<str>,
    /// What the arguments stand for.
    pub facts: RawJson,
    pub effect_class: EffectClass,
    /// 1, or more where an earlier attempt was begun and its outcome is not known.
    #[serde(default = "first_attempt")]
    pub attempt: u32,
    /// The rule that wants a person to be asked, and why.
    pub rule: RuleId,
    pub why: String,
    /// Of the policy whose rule that is.
    pub revision: PolicyRevision,
    /// What an approval is bound to: see `domain::approval::digest`.
    pub digest: String,
    /// When the call is refused if nobody has said anything.
    pub expires: Timestamp,
}

/// Of entries that do not say.
fn first_attempt() -> u32 {
    1
}

/// Somebody said whether a call may be carried out, or nobody did in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalDecided {
    pub call: CallKey,
    pub call_id: CallId,
    /// `agentd` where nobody did in time.
    pub by: Caller,
    pub decision: ApprovalDecision,
    /// What it was said of.
    pub digest: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What is allowed beyond this call; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<RunGrant>,
}

/// What was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalDecision {
    Approved,
    Denied,
    /// Nobody said anything in time.
    Expired,
}

impl ApprovalDecision {
    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Expired => "expired",
        }
    }
}

/// The webhook was told of a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookDelivered {
    pub run_id: RunId,
    pub call: CallKey,
    /// Place in the journal of the entry that asks.
    pub position: Position,
    /// Posts by the daemon that was heard.
    pub attempts: u32,
    pub http_status: u16,
}

/// The webhook refused a question for good: it is not told again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookRefused {
    pub run_id: RunId,
    pub call: CallKey,
    /// Place in the journal of the entry that asks.
    pub position: Position,
    /// Posts by the daemon that was refused.
    pub attempts: u32,
    pub http_status: u16,
    pub reason: String,
}
