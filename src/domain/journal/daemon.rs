//! What happens to the daemon and to the store as a whole. Entries of the daemon's own chain.

use serde::{Deserialize, Serialize};

use crate::domain::ids::{Caller, Epoch, PolicyRevision, RunId, Sequence, Timestamp};

/// The daemon took the store over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStarted {
    pub version: String,
    pub epoch: Epoch,
    pub sqlite: String,
    pub policy_revision: PolicyRevision,
}

/// The head of a run's chain at this moment, held fast in the daemon's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAnchored {
    pub run_id: RunId,
    pub sequence: Sequence,
    /// 64 hexadecimal digits.
    pub hash: String,
}

/// Somebody wants no more runs to be taken, or wants them to be taken again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRequested {
    pub by: Caller,
    pub draining: bool,
}

/// Somebody was given a copy of the whole store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupMade {
    pub by: Caller,
    pub bytes: u64,
    /// Entries that are in it.
    pub entries: u64,
}

/// The store was restored from a backup, and every run in it that had not ended stands still by now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreRestored {
    /// When it was put in place.
    pub at: Timestamp,
    /// Runs that were made to stand still.
    pub runs: usize,
}

/// The daemon gave the store back in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStopped {
    pub why: String,
    /// The stop before was not in order, and this daemon has not come to examining what that left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_unexamined: bool,
}

/// What an ended run held is removed, from this entry on: its entries but for their hashes, its task and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPruned {
    pub run_id: RunId,
    pub by: Caller,
    /// When the run ended.
    pub ended: Timestamp,
    /// The state that it ended in.
    pub state: String,
    /// Entries that are removed: the run's whole chain.
    pub entries: Sequence,
    /// Of the last of them; 64 hexadecimal digits.
    pub hash: String,
    /// Where in the journal they lay: `3-9,12`. Empty where that would be longer than 1 MiB.
    pub positions: String,
}
