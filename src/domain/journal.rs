//! What the journal remembers: kinds of entries with versioned shapes. Where they are kept: `ports::Journal`. How
//! they are chained: [`crate::domain::chain`]. What they mean: [`crate::domain::run::fold`].
//!
//! Invariant: a shape that has been released never changes. A new shape gets a new version, and
//! [`Record::decode`] reads both.

mod approvals;
mod calls;
mod daemon;
mod model;
mod steering;
mod team;

pub use approvals::{
    ApprovalDecided, ApprovalDecision, ApprovalRequested, WebhookDelivered, WebhookRefused,
};
pub use calls::{
    CallResolved, Connection, Decided, NetworkUsed, Resolution, ToolCalled, ToolOutput,
    ToolResumed, Used, Verdict,
};
pub use daemon::{
    BackupMade, DaemonStarted, DaemonStopped, DrainRequested, RunAnchored, RunPruned, StoreRestored,
};
pub use model::{
    AnsweredItem, AskedCall, BackendAwaited, BackendError, CapabilityProbe, Compaction,
    ContextCompacted, ContextTrimmed, HostedDecided, ModelNudged, ModelRequest, ModelResponse,
    Purpose, RunDegraded, Sent,
};
pub use steering::{CancelRequested, InputReceived, LostRequest, PauseRequested, RunResumed};
pub use team::{
    AgentBegan, Colleague, Errand, GuardrailViolation, GuardrailsChecked, OnVeto, OutputRefused,
    PlanMade, PlanRevised, RepositoryTold, Reviewed, StepFinished, Team, ToldFile,
    WorkspaceRestored,
};

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::{
    budget::{Budget, RoleBudgets},
    head::HeadSigned,
    ids::{Caller, Epoch, PolicyRevision, RoleName, RunId, Sequence, Timestamp, TreeId},
    item::Item,
    redact::Redactor,
    run::{Ending, Suspension},
};

/// One thing that happened to a run, as the engine reads it back.
#[derive(Debug, Clone)]
pub struct Entry {
    pub sequence: Sequence,
    pub time: Timestamp,
    pub record: Record,
}

/// An entry before it has a place.
#[derive(Debug, Clone)]
pub struct NewEntry {
    pub time: Timestamp,
    pub record: Record,
    /// The policy that applied, where one did.
    pub policy_revision: Option<PolicyRevision>,
}

/// Declares [`Record`]: each kind with its name, its version and its shape.
macro_rules! records {
    ($($(#[$doc:meta])* $name:literal $version:literal => $variant:ident),+ $(,)?) => {
        /// What happened, by kind.
        #[derive(Debug, Clone)]
        pub enum Record {
            $($(#[$doc])* $variant($variant),)+
        }

        impl Record {
            /// Every kind's name, in the order of a run's life.
            pub const KINDS: &'static [&'static str] = &[$($name),+];

            /// The kind's name, as stored and shown.
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)+ }
            }

            /// Version of the kind's shape that this build writes.
            pub fn version(&self) -> u32 {
                match self { $(Self::$variant(_) => $version,)+ }
            }

            /// The whole record as a JSON object.
            pub fn encode(&self) -> Result<String, serde_json::Error> {
                match self { $(Self::$variant(shape) => serde_json::to_string(shape),)+ }
            }

            /// Reads back what [`Self::encode`] wrote.
            ///
            /// Errors: a kind or version that this build does not know, or JSON of another shape.
            pub fn decode(kind: &str, version: u32, json: &str) -> Result<Self, DecodeError> {
                match (kind, version) {
                    $(($name, $version) => serde_json::from_str(json)
                        .map(Self::$variant)
                        .map_err(|source| DecodeError::Shape { kind: $name, source }),)+
                    // As builds before the first release wrote it.
                    ("reviewed", 1) => Self::decode("review_verdict", 1, json),
                    _ => Err(DecodeError::Unknown { kind: kind.to_owned(), version }),
                }
            }
        }

        $(impl From<$variant> for Record {
            fn from(shape: $variant) -> Self {
                Self::$variant(shape)
            }
        })+
    };
}

records! {
    "run_created" 1 => RunCreated,
    "model_request" 1 => ModelRequest,
    "model_response" 1 => ModelResponse,
    "backend_error" 1 => BackendError,
    "backend_awaited" 1 => BackendAwaited,
    "run_degraded" 1 => RunDegraded,
    "context_trimmed" 1 => ContextTrimmed,
    "context_compacted" 1 => ContextCompacted,
    "model_nudged" 1 => ModelNudged,
    "agent_began" 1 => AgentBegan,
    "repository_told" 1 => RepositoryTold,
    "plan_made" 1 => PlanMade,
    "plan_revised" 1 => PlanRevised,
    "step_finished" 1 => StepFinished,
    "output_refused" 1 => OutputRefused,
    "guardrail_violation" 1 => GuardrailViolation,
    "guardrails_checked" 1 => GuardrailsChecked,
    "review_verdict" 1 => Reviewed,
    "tool_call" 1 => ToolCalled,
    "approval_requested" 1 => ApprovalRequested,
    "approval_decided" 1 => ApprovalDecided,
    "call_resolved" 1 => CallResolved,
    "tool_resumed" 1 => ToolResumed,
    "decision" 1 => Decided,
    "connection" 1 => Connection,
    "tool_output" 1 => ToolOutput,
    "workspace_snapshot" 1 => WorkspaceSnapshot,
    "workspace_restored" 1 => WorkspaceRestored,
    "budget_warning" 1 => BudgetWarning,
    "checkpoint_saved" 1 => CheckpointSaved,
    "input_received" 1 => InputReceived,
    "pause_requested" 1 => PauseRequested,
    "cancel_requested" 1 => CancelRequested,
    "run_recovered" 1 => RunRecovered,
    "run_suspended" 1 => RunSuspended,
    "run_resumed" 1 => RunResumed,
    "run_finished" 1 => RunFinished,
    "daemon_started" 1 => DaemonStarted,
    "capability_probe" 1 => CapabilityProbe,
    "policy_reload" 1 => PolicyReload,
    "run_anchored" 1 => RunAnchored,
    "drain_requested" 1 => DrainRequested,
    "backup_made" 1 => BackupMade,
    "store_restored" 1 => StoreRestored,
    "head_signed" 1 => HeadSigned,
    "run_pruned" 1 => RunPruned,
    "webhook_delivered" 1 => WebhookDelivered,
    "webhook_refused" 1 => WebhookRefused,
    "daemon_stopped" 1 => DaemonStopped,
}

/// Why a stored record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("journal entry of unknown kind {kind:?} version {version}: written by a newer agentd")]
    Unknown { kind: String, version: u32 },
    #[error("journal entry of kind {kind} does not have its shape")]
    Shape { kind: &'static str, source: serde_json::Error },
}

/// A run was submitted. Always the first entry of its chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCreated {
    pub task: Arc<str>,
    /// Absolute path, resolved.
    pub workspace: String,
    pub agent: String,
    /// None: the daemon's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub budget: Budget,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub role_budgets: RoleBudgets,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    pub submitter: Caller,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Its agent's role in the policy; none: the agent's name is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<RoleName>,
    /// JSON Schema of its answer; none: words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Arc<str>>,
    /// Files of its workspace that its agents are told of, if they are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub told: Vec<String>,
    /// How its agents work together; none: one does all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<Team>,
    /// Where it begins, if not anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked: Option<Forked>,
}

/// A run begins where another one was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forked {
    pub run: RunId,
    /// The checkpoint.
    pub sequence: Sequence,
    /// The whole conversation that it begins with; in views and lists none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Item>,
}

impl RunCreated {
    /// For everyone: what another run's conversation held is sealed there, and here.
    pub fn without_items(&self) -> Self {
        let bare = |forked: &Forked| Forked { items: Vec::new(), ..forked.clone() };
        Self { forked: self.forked.as_ref().map(bare), ..self.clone() }
    }
}

/// The policy files were read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReload {
    pub by: Caller,
    /// The revision that was in force before.
    pub before: PolicyRevision,
    #[serde(flatten)]
    pub outcome: Reloaded,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Reloaded {
    /// This revision is in force from this entry on.
    Applied { revision: PolicyRevision },
    /// All that is wrong with the files; what was in force before stays.
    Refused { faults: Vec<String> },
}

/// The files of the workspace, before the first call that may change them or after the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceSnapshot {
    pub moment: Moment,
    #[serde(flatten)]
    pub taken: Taken,
}

/// When a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    Before,
    After,
    /// Before too, byte for byte: what can be given back. The others are as git would take the files in.
    Copy,
    /// The same when the run stood still, and others could have the workspace.
    Left,
}

/// What came of taking a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    Tree(TreeId),
    /// There is none, and so no diff; the text says why.
    Failed(String),
}

/// Most of one of the run's limits is used up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetWarning {
    /// `turns`, `tool calls` or `tokens`.
    pub limit: String,
    pub used: u64,
    pub of: u64,
}

/// How the run stands with this entry was stored, so that it can be opened from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSaved {
    /// Items of the conversation, and how many of them are new in the store.
    pub items: usize,
    pub new_items: usize,
}

/// A new daemon took the run over; whatever was under way without an outcome is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecovered {
    pub epoch: Epoch,
}

/// The run stands still until somebody acts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSuspended {
    #[serde(flatten)]
    pub why: Suspension,
}

/// The run ended. Always the last entry of its chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFinished {
    #[serde(flatten)]
    pub ending: Ending,
}

/// Longest view that is stored as it is, in bytes: clients accept messages of 4 MiB. In a longer one,
/// long texts are shortened; the whole is sealed.
const VIEW_BYTES: usize = 2 << 20;
/// What is left of a long text then, in characters.
const SHORTENED_CHARS: usize = 8 << 10;

fn shortened(view: &str) -> Result<String, serde_json::Error> {
    fn shorten(value: &mut Value) {
        match value {
            Value::String(text) if text.len() > SHORTENED_CHARS => {
                let kept: String = text.chars().take(SHORTENED_CHARS).collect();
                *text = format!("{kept}[... {} bytes left out ...]", text.len() - kept.len());
            }
            Value::Array(values) => values.iter_mut().for_each(shorten),
            Value::Object(values) => values.values_mut().for_each(shorten),
            Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut value = serde_json::from_str(view)?;
    shorten(&mut value);
    serde_json::to_string(&value)
}

/// A record as it is stored: what everyone may see, and, where that is less, the whole of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// JSON object, redacted.
    pub view: String,
    /// The whole record as JSON, to be sealed; none when the view is the whole record.
    pub body: Option<String>,
}

impl Record {
    /// Splits a record into what everyone may see and what only the engine reads.
    pub fn stored(&self, redactor: &Redactor) -> Result<Stored, serde_json::Error> {
        let whole = self.encode()?;
        // The backend's raw items are for replay only: they hold encrypted reasoning and the like.
        let shown = match self {
            Self::ModelResponse(response) => Some(response.without_raw_items()?),
            Self::RunCreated(created) if created.forked.is_some() => {
                Some(serde_json::to_string(&created.without_items())?)
            }
            Self::ContextCompacted(done) => Some(serde_json::to_string(&done.without_items())?),
            _ => None,
        };
        let view = redactor.redact_json(shown.as_deref().unwrap_or(&whole)).into_owned();
        let view = if view.len() > VIEW_BYTES { shortened(&view)? } else { view };
        Ok(match view == whole {
            true => Stored { view, body: None },
            false => Stored { view, body: Some(whole) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_without_secrets_is_stored_once_and_one_with_secrets_keeps_a_sealed_body() {
        let redactor = Redactor::new(["hunter2-hunter2".to_owned()]);
        let plain = Record::from(DaemonStopped { why: "asked to".into(), is_unexamined: false });
        assert_eq!(
            plain.stored(&redactor).unwrap(),
            Stored { view: r#"{"why":"asked to"}"#.into(), body: None }
        );
        let secret =
            Record::from(DaemonStopped { why: "hunter2-hunter2".into(), is_unexamined: false });
        let stored = secret.stored(&redactor).unwrap();
        assert_eq!(stored.view, r#"{"why":"[redacted]"}"#);
        assert_eq!(stored.body.as_deref(), Some(r#"{"why":"hunter2-hunter2"}"#));
    }

    #[test]
    fn a_view_stays_within_what_clients_accept_and_the_whole_is_sealed() {
        let why = "x".repeat(VIEW_BYTES);
        let stored = Record::from(DaemonStopped { why, is_unexamined: false })
            .stored(&Redactor::default())
            .unwrap();
        assert!(stored.view.len() < SHORTENED_CHARS + 100);
        assert!(
            stored.view.ends_with("[... 2088960 bytes left out ...]\"}"),
            "{}",
            stored.view.len()
        );
        assert_eq!(stored.body.unwrap().len(), VIEW_BYTES + r#"{"why":""}"#.len());
    }

    #[test]
    fn an_unknown_kind_or_version_is_refused_by_name() {
        let error = Record::decode("run_created", 99, "{}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "journal entry of unknown kind \"run_created\" version 99: written by a newer agentd"
        );
    }
}
