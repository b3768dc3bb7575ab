//! Where everything is remembered: what the engine asks of a store, and what it is told.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::domain::{
    budget::Usage,
    chain::ChainHash,
    head::{KeptHead, SignedHeads},
    ids::{Caller, Epoch, Position, RunId, Sequence, Timestamp},
    journal::{ApprovalRequested, Entry, NewEntry, Record},
    run::Failure,
    status::StateName,
};

/// Where everything is remembered.
///
/// Every append names the owner's epoch and the sequence it follows, so that a store shared by many
/// nodes can refuse a writer whose time is over.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Writes a run's first entries, unless the same submission made a run before.
    ///
    /// Returns once it is on disk. Concurrent submissions with one request id make one run.
    async fn create(&self, admission: Admission, append: Append) -> Result<Created, JournalError>;

    /// The run that this very submission made before; none if it made none. Writes nothing.
    ///
    /// Errors: its request id was used for another submission.
    async fn submitted(&self, admission: Admission) -> Result<Option<RunId>, JournalError>;

    /// Writes entries, all or none; returns once they are on disk.
    async fn append(&self, append: Append) -> Result<(), JournalError>;

    /// Writes an entry of the daemon itself; returns its place in the daemon's chain once it is on disk.
    async fn append_daemon(&self, entry: NewEntry) -> Result<Sequence, JournalError>;

    /// A run's entries after a sequence, whole, oldest first, at most `limit` and fewer where they are large; none:
    /// there are no more. For the engine alone.
    async fn entries(
        &self,
        run: RunId,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Entry>, JournalError>;

    /// The same as everyone may see them, a page of them; there may be more where the page has reached its limit.
    async fn views(
        &self,
        run: RunId,
        after: Sequence,
        limit: PageLimit,
    ) -> Result<Vec<EntryView>, JournalError>;

    /// The daemon's own entries of these kinds as everyone may see them, newest first, at most `limit`, older than
    /// `before` where that is given.
    async fn daemon_views(
        &self,
        kinds: &'static [&'static str],
        before: Option<Sequence>,
        limit: usize,
    ) -> Result<Vec<EntryView>, JournalError>;

    /// Entries of all chains as everyone may see them, in the order of position, after a place: a page of them, and
    /// fewer where they are large or far between.
    async fn audit(
        &self,
        wanted: AuditFilter,
        after: Position,
        limit: PageLimit,
    ) -> Result<AuditPage, JournalError>;

    /// Tells of new entries of any chain, as a hint: the last position on disk.
    fn watch_head(&self) -> watch::Receiver<Position>;

    /// How often something was put on disk since the journal was opened: what is written at once shares a commit.
    fn commits(&self) -> u64;

    /// One run as it stands; none if there is no such run.
    async fn run(&self, run: RunId) -> Result<Option<RunSummary>, JournalError>;

    /// Runs, newest first, at most `limit`, older than `before` where that is given.
    async fn runs(
        &self,
        wanted: RunFilter,
        before: Option<RunPlace>,
        limit: usize,
    ) -> Result<Vec<(RunPlace, RunSummary)>, JournalError>;

    /// What people are asked about, over all runs, in the order of asking, after a place, at most `limit` and fewer where
    /// they are large; none: there are no more.
    async fn pending_approvals(
        &self,
        wanted: Approvals,
        after: Position,
        limit: usize,
    ) -> Result<Vec<PendingApproval>, JournalError>;

    /// How a run stood at the last of its entries that a checkpoint was written with; none if there is none.
    async fn checkpoint(&self, run: RunId) -> Result<Option<Checkpoint>, JournalError>;

    /// Runs that have not ended, oldest first.
    async fn unended(&self) -> Result<Vec<RunId>, JournalError>;

    /// Recomputes every hash, and compares the journal with the heads that were kept of it.
    async fn verify(&self, kept: Vec<KeptHead>) -> Result<AuditReport, JournalError>;

    /// Tells of new entries of a run, as a hint: how far it has come on disk.
    fn watch(&self, run: RunId) -> watch::Receiver<Progress>;
}

/// Removes what ended runs held, while the store is used.
#[async_trait]
pub trait Retention: Send + Sync {
    /// Ended runs that still hold what they held, those first that ended first.
    async fn prunable(&self, wanted: Prunable) -> Result<Vec<EndedRun>, JournalError>;

    /// Removes a part of what an ended run held: its entries but for their hashes, its task and its answer. The first
    /// time, a `run_pruned` entry says so.
    ///
    /// Errors: the run is unknown, has not ended, or nobody signs the journal.
    async fn prune(&self, order: PruneOrder) -> Result<Pruning, JournalError>;

    /// Runs whose pruning was begun, and not finished.
    async fn half_pruned(&self) -> Result<Vec<RunId>, JournalError>;
}

/// Which ended runs are to be pruned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prunable {
    /// Runs that ended in one of these; empty: in any.
    pub states: Vec<StateName>,
    pub ended_before: Timestamp,
    pub limit: usize,
}

/// A run that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedRun {
    pub run: RunId,
    pub state: StateName,
    pub ended: Timestamp,
    pub entries: Sequence,
}

/// Who wants a run pruned, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneOrder {
    pub run: RunId,
    pub by: Caller,
    pub time: Timestamp,
}

/// How far the pruning of a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruning {
    UnderWay,
    Done,
}

/// Whether the store is alive.
#[async_trait]
pub trait Pulse: Send + Sync {
    /// Comes back when whoever writes has taken notice; nothing is written.
    ///
    /// Errors: nothing will be written any more.
    async fn beat(&self) -> Result<(), JournalError>;
}

/// Copies everything that is remembered, while it is used.
#[async_trait]
pub trait Backups: Send + Sync {
    /// Room that a copy takes at most, in bytes.
    fn size(&self) -> std::io::Result<u64>;

    /// A copy of one moment, checked by opening it.
    async fn copy(&self) -> Result<StoreCopy, JournalError>;
}

/// A copy of the store in a file without a name: it is gone once it is closed.
#[derive(Debug)]
pub struct StoreCopy {
    pub file: std::fs::File,
    pub bytes: u64,
    /// What a verification found in the copy.
    pub report: AuditReport,
}

/// How far a run has come on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub head: Sequence,
    /// None: nothing has been written since somebody watches.
    pub state: Option<StateName>,
}

/// Who submits, and how a repetition is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    pub caller: Caller,
    pub request_id: Option<String>,
    /// SHA-256 of the submission's body.
    pub digest: [u8; 32],
}

/// What came of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    New,
    /// The same submission made this run before.
    Existed(RunId),
}

/// Entries to be written for one run.
#[derive(Debug, Clone)]
pub struct Append {
    pub run: RunId,
    pub epoch: Epoch,
    /// Sequence of the entry that these follow; 0 for a new run.
    pub after: Sequence,
    pub entries: Vec<NewEntry>,
    /// How the run stands after them.
    pub status: RunStatus,
    /// The same whole, where it is time to keep it; written and replaced together with the entries.
    pub checkpoint: Option<NewCheckpoint>,
}

/// How a run stands after an append. What the texts mean is the engine's to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCheckpoint {
    /// The state without its conversation.
    pub state: String,
    /// Of the conversation what is new; it takes the place of all pieces that begin there or later.
    pub piece: Piece,
}

/// A part of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Place of its first item in the conversation, from 0.
    pub first: usize,
    pub items: String,
}

/// How a run stood at one of its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Of the last entry that is in it.
    pub sequence: Sequence,
    pub state: String,
    /// In order.
    pub pieces: Vec<Piece>,
}

/// What changes about a run while it goes on; derived from its state, kept for lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStatus {
    pub state: StateName,
    pub usage: Usage,
    pub answer: Option<String>,
    pub error: Option<Failure>,
    /// Whether some of it is asked without tools, for want of a backend that has the API for them.
    pub is_degraded: bool,
}

/// A run for lists and answers, redacted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSummary {
    pub id: RunId,
    pub task: String,
    pub workspace: String,
    pub agent: String,
    pub model: Option<String>,
    pub submitter: Caller,
    pub labels: BTreeMap<String, String>,
    /// The run and the checkpoint that it began at, if it did not begin anew.
    pub forked: Option<(RunId, Sequence)>,
    pub status: RunStatus,
    pub head: Sequence,
    pub created: Timestamp,
    pub updated: Timestamp,
    /// When what it held was removed; none: it is there.
    pub pruned: Option<Timestamp>,
}

/// Which runs a list is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunFilter {
    /// Runs in one of these; empty: any.
    pub states: Vec<StateName>,
    /// Runs that this caller submitted; none: everybody's.
    pub submitter: Option<Caller>,
    /// Runs that have all of these.
    pub labels: BTreeMap<String, String>,
}

/// Which questions to people a list is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Approvals {
    /// Of this run; none: of all.
    pub run: Option<RunId>,
    /// Of runs that this caller submitted; none: of everybody's.
    pub submitter: Option<Caller>,
    /// That have expired by then; none: whether or not.
    pub expired_by: Option<Timestamp>,
}

/// A question to people that nobody has answered, redacted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingApproval {
    pub run: RunId,
    /// Place in the journal of the entry that asks.
    pub position: Position,
    pub time: Timestamp,
    pub submitter: Caller,
    pub task: String,
    pub workspace: String,
    /// Whether something of the call is hidden from people.
    pub is_redacted: bool,
    pub asked: ApprovalRequested,
}

/// Place of a run in the order of submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunPlace(pub i64);

/// An entry as everyone may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryView {
    /// None: the daemon's own chain.
    pub run: Option<RunId>,
    pub sequence: Sequence,
    pub position: Position,
    pub time: Timestamp,
    pub kind: String,
    pub version: u32,
    /// JSON object, redacted: the bytes that were hashed.
    pub payload: String,
    pub policy_revision: Option<String>,
    /// SHA-256 of the sealed body, where there is one.
    pub body_digest: Option<[u8; 32]>,
    pub previous: ChainHash,
    pub hash: ChainHash,
}

/// Which entries of the journal a list is about; an empty filter is about all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditFilter {
    pub run: Option<RunId>,
    pub kinds: Vec<String>,
    /// Of calls of this tool; the entries that name it.
    pub tool: Option<String>,
    /// allow, deny, require_approval; approved, denied, expired.
    pub decision: Option<String>,
    pub rule: Option<String>,
    /// Who submitted, asked, said or reloaded.
    pub caller: Option<String>,
    /// Not before, and before.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// Where a page of entries ends: with the one that reaches either of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    pub entries: usize,
    /// Of their payloads together.
    pub bytes: usize,
}

impl PageLimit {
    /// So many entries, however large they are.
    pub const fn entries(entries: usize) -> Self {
        Self { entries, bytes: usize::MAX }
    }

    /// Whether the page ends here.
    pub fn is_reached_by(self, page: &[EntryView]) -> bool {
        let bytes: usize = page.iter().map(|view| view.payload.len()).sum();
        page.len() >= self.entries || bytes >= self.bytes
    }
}

/// Entries that were found, and how far was looked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditPage {
    pub entries: Vec<EntryView>,
    /// Up to where was looked.
    pub looked: Position,
    /// Where the next page begins; none: there is nothing more by now.
    pub next: Option<Position>,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditReport {
    pub entries: u64,
    pub runs: u64,
    /// Checkpoints that were compared with what the journal comes to.
    pub checkpoints: u64,
    /// Head of the daemon's own chain.
    pub head: ChainHash,
    pub signed: SignedHeads,
    /// In the order of position, and then what is derived; at most 100.
    pub faults: Vec<AuditFault>,
}

/// One place where the journal is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditFault {
    /// 0: it is no entry that is wrong, but what is derived of them.
    pub position: Position,
    pub run: Option<RunId>,
    pub sequence: Sequence,
    pub what: String,
}

/// Why the journal did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// The id was used for another submission.
    #[error("request id {request_id:?} was used for another submission, run {run}")]
    RequestIdReused { request_id: String, run: RunId },
    /// Another owner, or another writer of this one, was faster: nothing was written.
    #[error("run {run} is at sequence {found}, not {expected}: another writer was here")]
    Conflict { run: RunId, expected: Sequence, found: Sequence },
    /// More is waiting to be written than is kept: nothing was written.
    #[error("the journal's queue is full; try again")]
    Busy,
    /// What the run held was removed; its head is the last entry that it had.
    #[error(
        "what run {run} held was pruned; agentctl audit list --kind run_pruned says when, and by whom"
    )]
    Pruned { run: RunId, head: Sequence },
    /// Nothing was removed.
    #[error("run {run} cannot be pruned: {what}")]
    NotPrunable { run: RunId, what: String },
    /// The store failed, and nothing more is acknowledged.
    #[error("the journal cannot be written, and the daemon stops: {message}")]
    Failed { message: String },
    /// Something stored cannot be read.
    #[error("the journal cannot be read: {what}")]
    Unreadable { what: String },
}

impl Append {
    /// The records alone, in order.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.entries.iter().map(|entry| &entry.record)
    }
}
