//! What a tool is and what a call of one can come to, in data. The tools themselves: `crate::tools`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::ids::{CallId, CallKey, RuleId, ToolName};

/// What the model is told of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolSpec {
    pub name: ToolName,
    /// For the model: what it does, and when to use it.
    pub description: &'static str,
    /// JSON Schema of the arguments, as text: the same bytes from run to run.
    pub parameters: Arc<str>,
}

/// One use of a tool, as the model asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    pub key: CallKey,
    pub call_id: CallId,
    pub tool: ToolName,
    /// As the model wrote them: not yet known to be JSON.
    pub arguments: Arc<str>,
}

/// What may be done about a call whose outcome nobody recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EffectClass {
    /// Changes nothing: run it again.
    Pure,
    /// Doing it twice is the same as doing it once: run it again.
    Idempotent,
    /// The world shows whether it was done: look, then record or run it again.
    Reconcilable,
    /// Never run it again unless a person has said so.
    NonIdempotent,
}

/// How a call ended, as the model hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeKind {
    /// The tool ran; its own result may still speak of failure (an exit status, say).
    Done,
    /// The tool could not do it: no such file, for example.
    Failed,
    /// Policy or a built-in rule said no; nothing was touched.
    Refused,
    /// The run was cancelled before or while it ran.
    Cancelled,
}

/// What the model hears of a call. What the operator hears is an error, never this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolOutcome {
    pub kind: OutcomeKind,
    /// JSON object, at most `budget::OUTPUT_TEXT_BYTES` or so: the tool's result, or an `error`.
    pub output: Arc<str>,
}

impl ToolOutcome {
    /// The tool ran and this is its result.
    pub fn done(result: &serde_json::Value) -> Self {
        Self { kind: OutcomeKind::Done, output: result.to_string().into() }
    }

    /// The tool could not do it; `message` says why and what would help.
    pub fn failed(message: &str) -> Self {
        Self { kind: OutcomeKind::Failed, output: error_json("failed", None, message) }
    }

    /// A rule said no; `message` says what would be allowed.
    pub fn refused(rule: &RuleId, message: &str) -> Self {
        Self { kind: OutcomeKind::Refused, output: error_json("refused", Some(rule), message) }
    }

    /// The run was cancelled; `message` says how far the call had come.
    pub fn cancelled(message: &str) -> Self {
        Self { kind: OutcomeKind::Cancelled, output: error_json("cancelled", None, message) }
    }
}

fn error_json(kind: &str, rule: Option<&RuleId>, message: &str) -> Arc<str> {
    let mut error = serde_json::Map::new();
    error.insert("kind".into(), kind.into());
    if let Some(rule) = rule {
        error.insert("rule".into(), rule.as_str().into());
    }
    error.insert("message".into(), message.into());
    serde_json::json!({ "error": error }).to_string().into()
}
