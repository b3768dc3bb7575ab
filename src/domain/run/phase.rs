//! Where a run stands, and what it is at: the states that it can be in, each with all that it is about.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{
    ids::{CallKey, Timestamp},
    run::{OpenCall, Seat},
};

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Going(Work),
    Suspended { why: Suspension, work: Work },
    Ended(Ending),
}

/// What a run that has not ended is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// The model is to be asked; `attempt` 1 is the first request of the turn.
    ToAsk { attempt: u32 },
    /// The request is on disk; its answer is not.
    Asking { attempt: u32, replay: Replay },
    /// A request that nobody will see the answer of, and that must not be made again unless somebody says so.
    AskLost { attempt: u32 },
    /// The backend failed; it is asked again at `until`.
    BackingOff { attempt: u32, until: Timestamp },
    /// The model asked for tools; in its order, at least one.
    Calling { calls: Vec<OpenCall> },
    /// The model said its last word; none when it said nothing.
    Concluding { answer: Option<Arc<str>>, nudged: Nudged },
    /// One of several agents has said its last word, and another is to begin.
    HandingOver { to: Seat },
    /// The reviewer took the work.
    Accepted,
    /// The work was vetoed, and the workspace is to become what it was; then the run fails.
    Restoring(Failure),
    /// Nothing more can be done.
    Failing(Failure),
}

/// Whether a request may be made again without anybody's leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replay {
    Safe,
    /// The backend runs tools for it that may do something.
    Unsafe,
}

/// Whether the model has been told already that it said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nudged {
    NotYet,
    Already,
}

/// Why a run stands still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Suspension {
    /// A limit was reached: `limit` names it, `message` says what to do.
    BudgetExhausted { limit: String, message: String },
    /// Nobody knows whether these calls took effect.
    OutcomeUnknown { calls: Vec<CallKey>, message: String },
    /// Nobody knows what the backend's own tools did in the last request.
    RequestLost { message: String },
    /// A person has to allow these calls.
    AwaitingApproval { calls: Vec<CallKey>, message: String },
    /// Somebody wants it to.
    Paused { message: String },
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Ending {
    Succeeded { answer: Arc<str> },
    Failed(Failure),
    Cancelled,
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable, upper case, for programs.
    pub reason: String,
    /// For people: what happened, and what to do.
    pub message: String,
}
