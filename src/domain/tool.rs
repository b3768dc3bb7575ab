//! What a tool is and what a call of one can come to, in data. The tools themselves: `crate::tools`.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::domain::{
    effect::Isolation,
    ids::{CallId, CallKey, RoleName, RuleId, Timestamp, ToolName},
    policy::LimitsOver,
};

/// What the model is told of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolSpec {
    pub name: ToolName,
    /// For the model: what it does, and when to use it.
    pub description: Arc<str>,
    /// JSON Schema of the arguments, as text: the same bytes from run to run.
    pub parameters: Arc<str>,
    /// JSON Schema of the result, as text; none: any JSON object.
    pub result: Option<Arc<str>>,
}

/// A tool that the operator declared: a command with a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    pub spec: ToolSpec,
    /// Bare name of a program in a program directory, or an absolute path.
    pub program: String,
    /// The words after the program's name.
    pub words: Vec<Word>,
    pub class: EffectClass,
    pub limits: LimitsOver,
    /// How well it must be kept apart, at least; none: as well as any other program.
    pub isolation: Option<Isolation>,
    /// Besides the environment that the policy gives every program.
    pub environment: BTreeMap<String, String>,
    /// Rules of `network.yaml` that say what it may reach.
    pub network: Vec<RuleId>,
    /// Roles that may use it, besides those whose `tools` name it.
    pub roles: Vec<RoleName>,
    /// File that it was read from.
    pub source: String,
    /// SHA-256 of the declaration as it was written, 64 hexadecimal digits.
    pub digest: String,
}

/// What the registry knows of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredTool {
    pub name: String,
    /// Counts from 1; a changed schema or description is a new version.
    pub version: u32,
    /// SHA-256 of what a model is told of it, 64 hexadecimal digits.
    pub schema_sha256: String,
    /// `builtin`, or the file that declares it.
    pub source: String,
    /// When this version was first seen by a daemon of this state directory.
    pub first_seen: Timestamp,
}

/// One word of a declared command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    Literal(String),
    /// The call's argument of that name; left out where the call has none.
    Argument(String),
}

/// Longest name of a tool that backends accept, in bytes.
pub const NAME_BYTES: usize = 64;

/// The name that backends accept for a tool that people call `name`: what is not a letter, a digit,
/// `_` or `-` becomes `_`, so that `package.module.func` is `package_module_func`.
///
/// Errors: nothing is left, or more than [`NAME_BYTES`].
pub fn normalised(name: &str) -> Result<ToolName, String> {
    let keep = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
    let normal: String = name.trim().chars().map(keep).collect();
    if normal.bytes().all(|byte| byte == b'_') {
        return Err(format!("{name:?} is not a name; use letters, digits, '_', '-' and '.'"));
    }
    match normal.len() {
        length if length > NAME_BYTES => Err(format!(
            "{name:?} has {length} characters, {NAME_BYTES} are accepted; give a shorter name"
        )),
        _ => Ok(ToolName::new(normal)),
    }
}

/// One use of a tool, as the model asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

impl EffectClass {
    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Idempotent => "idempotent",
            Self::Reconcilable => "reconcilable",
            Self::NonIdempotent => "non-idempotent",
        }
    }
}

/// What becomes of a call that must not be run again and whose outcome a crash swallowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// The run stands still until somebody has said what became of it.
    #[default]
    Ask,
    /// The model is told that nobody knows, and the run goes on.
    TellModel,
}

impl OnUnknown {
    /// By reference, as serde asks.
    pub fn is_ask(&self) -> bool {
        *self == Self::Ask
    }
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

impl OutcomeKind {
    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
        }
    }
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

    /// The tool could not do it; `reason` is stable, `message` says why and what would help.
    pub fn failed(reason: &str, message: &str) -> Self {
        Self::failed_with(reason, message, serde_json::Map::new())
    }

    /// The same, with what was found before it failed.
    pub fn failed_with(
        reason: &str,
        message: &str,
        mut found: serde_json::Map<String, serde_json::Value>,
    ) -> Self {
        let error = error("failed", reason, None, message);
        found.insert("error".into(), error);
        let output = serde_json::Value::Object(found).to_string().into();
        Self { kind: OutcomeKind::Failed, output }
    }

    /// A rule said no; `message` says what would be allowed.
    pub fn refused(rule: &RuleId, message: &str) -> Self {
        Self {
            kind: OutcomeKind::Refused,
            output: error_json("refused", POLICY_DENIED, Some(rule), message),
        }
    }

    /// The run was cancelled; `message` says how far the call had come.
    pub fn cancelled(message: &str) -> Self {
        Self {
            kind: OutcomeKind::Cancelled,
            output: error_json("cancelled", CANCELLED, None, message),
        }
    }
}

const POLICY_DENIED: &str = "POLICY_DENIED";
const CANCELLED: &str = "CANCELLED";

fn error_json(kind: &str, reason: &str, rule: Option<&RuleId>, message: &str) -> Arc<str> {
    serde_json::json!({ "error": error(kind, reason, rule, message) }).to_string().into()
}

fn error(kind: &str, reason: &str, rule: Option<&RuleId>, message: &str) -> serde_json::Value {
    let mut error = serde_json::Map::new();
    error.insert("kind".into(), kind.into());
    error.insert("reason".into(), reason.into());
    if let Some(rule) = rule {
        error.insert("rule".into(), rule.as_str().into());
    }
    error.insert("message".into(), message.into());
    error.into()
}
