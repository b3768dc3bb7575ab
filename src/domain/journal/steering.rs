//! What the journal remembers of people who steer a run: what they want of it, and what they say to it.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::domain::{
    budget::{Budget, RoleBudgets},
    ids::Caller,
};

/// Somebody wants the run to stop for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequested {
    pub by: Caller,
    pub why: String,
}

/// Somebody wants the run to stand still once what is under way is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseRequested {
    pub by: Caller,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// Somebody wants the run to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunResumed {
    pub by: Caller,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The limits from now on; none: as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// The limits of roles that have other ones from now on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub role_budgets: RoleBudgets,
    #[serde(default, skip_serializing_if = "LostRequest::is_left")]
    pub lost_request: LostRequest,
}

impl RunResumed {
    pub fn changes_limits(&self) -> bool {
        self.budget.is_some() || !self.role_budgets.is_empty()
    }
}

/// What is to become of a request whose answer was lost, where the backend's own tools may have done something for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LostRequest {
    #[default]
    Leave,
    /// It is made once more, whatever that does.
    Repeat,
}

impl LostRequest {
    /// By reference, as serde asks.
    fn is_left(&self) -> bool {
        *self == Self::Leave
    }
}

/// Somebody said something to the model, which reads it in its next turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputReceived {
    pub by: Caller,
    pub text: Arc<str>,
    /// Makes a repetition known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}
