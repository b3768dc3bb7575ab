//! What the engine needs of the world, as traits. Adapters implement them, `daemon.rs` joins them,
//! tests fake them. No logic here.

mod journal;

pub use journal::{
    Admission, Append, Approvals, AuditFault, AuditFilter, AuditPage, AuditReport, Backups,
    Checkpoint, Created, EndedRun, EntryView, Journal, JournalError, NewCheckpoint, PageLimit,
    PendingApproval, Piece, Progress, Prunable, PruneOrder, Pruning, Pulse, Retention, RunFilter,
    RunPlace, RunStatus, RunSummary, StoreCopy,
};

use std::{any::Any, collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, time::Duration};

use async_trait::async_trait;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domain::{
    backend::{Api, Capabilities, ProfileName},
    budget::TokenCount,
    effect::{Effect, EffectResult, Facts, Factual, Unresolved},
    ids::{PolicyRevision, RuleId, RunId, Timestamp, TreeId},
    item::{Item, RawJson},
    journal::{AnsweredItem, Sent, Verdict},
    policy::{Destination, Grant, HostedLeave, Limits, Passage, Permit, Ruling},
    tool::ToolSpec,
};

/// The disk that the store is on.
pub trait Disk: Send + Sync {
    /// Room that is left on it for us, in bytes.
    fn free_bytes(&self) -> std::io::Result<u64>;
}

/// A model behind a backend.
#[async_trait]
pub trait Model: Send + Sync {
    /// Asks once, and gives the whole answer after its terminal event.
    ///
    /// `said` hears the words as they come; they are not the answer. Dropping the future closes the
    /// connection. No retry happens in here, but for a schema that the backend turns out not to take: then it is asked
    /// once more without.
    async fn respond(&self, question: Question<'_>, said: &Said<'_>) -> Result<Answer, ModelError>;

    /// Makes something shorter of a conversation, in the backend's own form, which it can be gone on from; none where it
    /// is not known to be able to.
    async fn compact(&self, question: Question<'_>) -> Option<Result<Compacted, ModelError>>;

    /// Whether the backend drops the beginning of what is too long for the model, and does not say so.
    fn cuts_silently(&self) -> bool;

    /// Tokens that the model takes, where the backend tells.
    fn context_tokens(&self, model: Option<&str>) -> Option<u64>;

    /// Looks at how the backend is and what it can do.
    async fn probe(&self, look: Look<'_>) -> Probe;

    /// Why it is not told of the hosted tool at that place of the configuration; none if it is.
    fn leaves_out(&self, hosted_tool: usize) -> Option<String>;

    /// Where it is, without credentials.
    fn url(&self) -> &str;
}

/// A conversation in a shorter form.
#[derive(Debug, Clone)]
pub struct Compacted {
    /// Instead of all that was sent.
    pub items: Vec<RawJson>,
    pub tokens: TokenCount,
}

/// How closely a backend is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Only whether it answers at all.
    Presence,
    /// Also what it can do. Nothing is generated, unless the configuration says that only a real request tells whether it
    /// works.
    Glance,
    /// With the smallest real request: a few tokens.
    Request,
    /// With one for each thing that nothing else tells.
    Everything,
}

/// One look at a backend.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    pub depth: Depth,
    /// Longest wait for each answer that costs nothing; real requests have ten times as long.
    pub patience: Duration,
    /// For real requests; none: the first that the backend lists.
    pub model: Option<&'a str>,
}

/// What a look found.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Whether it works, as far as was looked.
    pub ready: Result<(), ModelError>,
    pub profile: ProfileName,
    /// What could not be told is none.
    pub capabilities: Capabilities,
    /// Models that it lists, at most [`Probe::MODELS`].
    pub models: Vec<String>,
    /// What could not be told and why, in words.
    pub remarks: Vec<String>,
}

impl Probe {
    pub const MODELS: usize = 100;
}

/// Hears the model's words as they come.
pub type Said<'a> = dyn Fn(&str) + Send + Sync + 'a;

/// One request to the model.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The chat one has no tools, whatever `tools` says.
    pub api: Api,
    /// None: the backend's first listed model.
    pub model: Option<&'a str>,
    pub instructions: &'a str,
    /// The whole conversation, oldest first.
    pub items: &'a [Item],
    pub tools: &'a [ToolSpec],
    /// Tools that the backend runs itself: these and no others are declared to it.
    pub hosted_tools: &'a [HostedLeave],
    /// What the words of the answer are to be like, where the backend can see to it; it is to be checked all the same.
    pub shape: Option<Shape<'a>>,
    pub settings: &'a ModelSettings,
}

/// A JSON schema for the words of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// Letters, digits, `_` and `-`.
    pub name: &'a str,
    pub schema: &'a RawValue,
}

/// How a model is to answer; what is none is left to the backend.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelSettings {
    pub max_output_tokens: Option<u32>,
    pub temperature: Option<f64>,
    /// `low`, `medium`, `high`, and what else the model knows.
    pub reasoning_effort: Option<String>,
}

/// One answer of the model.
#[derive(Debug, Clone)]
pub struct Answer {
    pub response_id: Option<String>,
    pub model: Option<String>,
    /// All messages joined; none when it said nothing.
    pub text: Option<String>,
    /// Why the answer is not whole, where it is not.
    pub incomplete: Option<String>,
    /// In the model's order.
    pub items: Vec<AnsweredItem>,
    pub tokens: TokenCount,
}

/// Why a request to the model failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    pub fault: ModelFault,
    /// What happened, to which backend, and what to do.
    pub message: String,
    pub sent: Sent,
    pub http_status: Option<u16>,
    pub backend_request_id: Option<String>,
    /// How long the backend asked to be left alone.
    pub retry_after_ms: Option<u64>,
    /// Whether the backend itself says that another attempt can help.
    pub should_retry: Option<bool>,
}

impl ModelError {
    /// Whether another attempt can help: as the backend says, or else by what kind of failure it is.
    pub fn is_passing(&self) -> bool {
        self.should_retry.unwrap_or_else(|| self.fault.is_passing())
    }
}

/// Kinds of failure of a request, one for each way to react.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFault {
    /// Not reached, dropped, overloaded, or 5xx: try again.
    Unavailable,
    /// Asked to wait: try again later.
    RateLimited,
    /// No answer in time: try again.
    Timeout,
    /// The answer is not what the protocol says: try again.
    Protocol,
    /// Credentials are missing or wrong: no use trying again.
    Unauthenticated,
    /// No quota is left: no use trying again.
    QuotaExhausted,
    /// The request itself is refused: no use trying again.
    Rejected,
    /// The conversation is longer than the model takes: no use trying again with as much.
    ContextOverflow,
    /// agentd was about to send a conversation that breaks the pairing rule: never sent.
    BrokenConversation,
}

impl ModelFault {
    /// Stable, upper case, for programs.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unavailable => "BACKEND_UNAVAILABLE",
            Self::RateLimited => "RATE_LIMITED",
            Self::Timeout => "TIMEOUT",
            Self::Protocol => "BACKEND_PROTOCOL",
            Self::Unauthenticated => "BACKEND_UNAUTHENTICATED",
            Self::QuotaExhausted => "QUOTA_EXHAUSTED",
            Self::Rejected => "BACKEND_REJECTED",
            Self::ContextOverflow => "CONTEXT_OVERFLOW",
            Self::BrokenConversation => "BROKEN_CONVERSATION",
        }
    }

    /// Whether another attempt can help.
    pub fn is_passing(self) -> bool {
        match self {
            Self::Unavailable | Self::RateLimited | Self::Timeout | Self::Protocol => true,
            Self::Unauthenticated
            | Self::QuotaExhausted
            | Self::Rejected
            | Self::ContextOverflow
            | Self::BrokenConversation => false,
        }
    }
}

/// Where effects happen.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// Finds the directory that a run wants to work in. Errors say what is wrong with it, for the caller.
    async fn admit(&self, workspace: &str) -> Result<PathBuf, String>;

    /// Finds out what an effect would touch, and holds it open; touches nothing.
    async fn resolve(&self, scene: &Scene, effect: Effect) -> Result<Resolved, ResolveError>;

    /// Carries out what is permitted, on the very things that were resolved.
    ///
    /// When it returns, the effect is on disk and no process of it is left.
    async fn run(
        &self,
        permit: Permit<Resolved>,
        attempt: Attempt,
        company: Company<'_>,
    ) -> Result<EffectResult, SandboxError>;

    /// Remembers the files of a workspace as they are, for a diff. Changes nothing in it.
    async fn snapshot(
        &self,
        scene: &Scene,
        limits: Limits,
        keeping: Keeping,
    ) -> Result<TreeId, SnapshotError>;

    /// Makes the files of a workspace what they were when that snapshot of their bytes was taken; those that snapshots do not
    /// have stay as they are. Done twice, it is the same as done once.
    async fn restore(
        &self,
        scene: &Scene,
        limits: Limits,
        tree: &TreeId,
    ) -> Result<(), SnapshotError>;

    /// What changed between two snapshots, as a patch of at most so many bytes.
    async fn diff(
        &self,
        scene: &Scene,
        limits: Limits,
        trees: (&TreeId, &TreeId),
        patch: (PatchForm, usize),
    ) -> Result<Vec<u8>, SnapshotError>;

    /// What enforces each limit here: `memory` to `cgroup_v1`, for example.
    fn mechanisms(&self) -> BTreeMap<String, String>;
}

/// What a patch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchForm {
    /// For `git apply`: binary files are encoded.
    Applicable,
    /// To be looked at: every file is text, whatever it holds and whatever its repository says of it.
    Text,
}

/// Who is with a program while it runs.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "it holds closures")]
pub struct Company<'a> {
    /// Ends it early; what had been done until then stays done.
    pub stop: &'a CancellationToken,
    /// Hears what it writes, as it comes; that is not the result.
    pub heard: &'a Heard<'a>,
    /// Is asked what it may reach; none: it reaches nothing.
    pub door: Option<&'a dyn Door>,
}

/// Says what a program may reach while it runs.
#[async_trait]
pub trait Door: Send + Sync {
    /// What the policy says that its call was decided under, and the one in force now; the stricter holds.
    fn ask(&self, grant: &Grant, wanted: Destination) -> Answered;

    /// Writes down what was decided. Only once it is on disk, which it is when this returns, may anything be
    /// looked up or dialled; it will be on disk too if nobody waits for it. Errors: nothing may.
    async fn note(&self, reached: Reached<'_>) -> Result<(), NotNoted>;

    /// Changes whenever another policy comes into force: who was let through must ask again.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// What the policy said about something that a program wants to reach.
#[derive(Debug, Clone)]
pub struct Answered {
    pub ruling: Result<Passage, Ruling>,
    /// Of the policy that said it; where both let it through, of the one in force.
    pub revision: PolicyRevision,
}

/// What was decided about something that a program wanted to reach.
#[derive(Debug, Clone)]
pub struct Reached<'a> {
    pub wanted: &'a Destination,
    pub decision: Verdict,
    pub rule: &'a RuleId,
    pub why: &'a str,
    /// Of the policy that decided.
    pub revision: &'a PolicyRevision,
    /// What its host stands for, where that is why.
    pub addresses: &'a [IpAddr],
}

/// A decision could not be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the decision cannot be written down")]
pub struct NotNoted;

/// Hears what a program writes as it comes: bytes, which may be cut within a character.
pub type Heard<'a> = dyn Fn(OutputStream, &[u8]) + Send + Sync + 'a;

/// Which of its streams a program wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// Where a call takes place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scene {
    /// Absolute, resolved.
    pub workspace: PathBuf,
    /// Where programs are looked for, in order; absolute.
    pub program_directories: Vec<String>,
    /// Names the call in the names of cgroups: letters, digits and `-`.
    pub label: String,
    /// What an earlier attempt at the same call was resolved to.
    pub earlier: Option<Facts>,
}

/// What a snapshot keeps of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// What git would take in: `.gitattributes` may say that line endings are converted. What changed can be told of it as
    /// a patch that git applies.
    AsGitWould,
    /// Its bytes, so that it can be given back.
    Bytes,
}

/// Why there is no snapshot, or no diff.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the workspace is not the top of a git repository")]
    NotARepository,
    #[error("there is no git, or no sh, in the policy's program directories")]
    NoGit,
    #[error("the diff is longer than {most} bytes; look at the workspace itself")]
    TooLarge { most: usize },
    #[error("{message}")]
    Failed { message: String },
    #[error("the directory of snapshots cannot be written")]
    Store { source: std::io::Error },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Whether an effect may have been carried out before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    First,
    Again,
}

/// Facts, with the open things that prove them.
pub struct Resolved {
    pub facts: Facts,
    /// Descriptors of the adapter that resolved it, and its private notes.
    pub proof: Box<dyn Any + Send + Sync>,
}

impl Factual for Resolved {
    fn facts(&self) -> &Facts {
        &self.facts
    }
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolved").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// Why an effect was not resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// For the model.
    #[error("the effect stands for nothing that may be touched")]
    Unresolved(Unresolved),
    /// For the operator.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Why the sandbox itself failed. The model is not told; the run fails.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("workspace {workspace} cannot be opened; it must be an existing directory")]
    Workspace { workspace: String, source: std::io::Error },
    #[error("the launcher {launcher} cannot be started; install agentd-sandbox beside agentd")]
    Launcher { launcher: String, source: std::io::Error },
    #[error(
        "no launcher could be started for a program; look at what limits processes and descriptors here"
    )]
    NoLauncher { source: std::io::Error },
    #[error("the launcher ended without a report: {message}")]
    Lost { message: String },
    #[error(
        "no program can be kept apart from this machine ({refusals}); allow agentd user namespaces, or use a kernel with Landlock"
    )]
    NoTier { refusals: String },
    #[error("{what} failed")]
    Io { what: &'static str, source: std::io::Error },
    #[error("an effect was handed over without the proof that this sandbox gave it")]
    ForeignProof,
}

impl SandboxError {
    /// Whether it is sure that nothing of the effect was begun.
    pub fn has_touched_nothing(&self) -> bool {
        matches!(self, Self::Launcher { .. } | Self::NoLauncher { .. } | Self::ForeignProof)
    }
}

/// The files that say what may be done.
#[async_trait]
pub trait PolicyFiles: Send + Sync {
    /// What they say now, all of them together, and what came of the tests in them.
    async fn compile(&self) -> crate::domain::policy::Compiled;
}

/// Whoever is to be told of questions to people.
#[async_trait]
pub trait Webhook: Send + Sync {
    /// Posts once, signed, and gives what was answered, within a bounded time.
    ///
    /// Dropping the future closes the connection. No retry happens in here, and no redirect is followed. Errors: nothing
    /// was answered, and whether it arrived is not known.
    async fn post(&self, notice: &Notice) -> Result<Receipt, NotAnswered>;
}

/// One message to a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// By which the receiver knows a repetition; without a full stop.
    pub id: String,
    /// Of this attempt.
    pub time: Timestamp,
    /// JSON, redacted.
    pub body: String,
}

/// What a receiver answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    pub http_status: u16,
    /// How long it asked to be left alone.
    pub retry_after_ms: Option<u64>,
}

/// A receiver answered nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotAnswered {
    /// Without the address, in which a credential may stand.
    pub message: String,
}

/// Time.
#[async_trait]
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
    /// Milliseconds of a clock that never goes back.
    fn steady_ms(&self) -> u64;
    async fn sleep(&self, duration: Duration);
}

/// Ids and chance.
pub trait Chance: Send + Sync {
    /// A new id, sorting after earlier ones.
    fn run_id(&self, now: Timestamp) -> RunId;
    /// In `[0, 1)`.
    fn fraction(&self) -> f64;
}
