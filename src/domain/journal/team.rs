//! What the journal remembers of the agents of a run: who began to speak and with which words, the plan, the verdicts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{
    guardrail::Violation,
    ids::RoleName,
    plan::{Plan, Verdict},
    run::Seat,
};

/// How the agents of a run work together, where there is more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// How often the work may be sent back.
    pub max_review_rounds: u32,
}

impl Default for Team {
    fn default() -> Self {
        Self { max_review_rounds: 3 }
    }
}

/// An agent of the run speaks from now on, and is told this first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentBegan {
    pub seat: Seat,
    /// Of the agent, in the policy.
    pub role: RoleName,
    /// How often the work was sent back before.
    pub round: u32,
    pub text: Arc<str>,
}

/// Files of the workspace that say how to work on it were offered to an agent, as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryTold {
    pub seat: Seat,
    /// Those that the configuration names.
    pub files: Vec<ToldFile>,
    /// What the agent is given; empty: none of them was there.
    pub text: Arc<str>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldFile {
    pub path: String,
    /// Length of the whole file; a long one is offered with its head and its tail.
    pub bytes: u64,
    /// Why it is not offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// What the executor did was looked at for what it must not do, before a reviewer looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardrailsChecked {
    /// Of the review, from 1.
    pub round: u32,
    pub violations: Vec<Violation>,
    /// Why nothing could be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchecked: Option<String>,
}

/// The planner's plan, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanMade {
    /// Of the answer that it is in.
    pub turn: u32,
    pub plan: Plan,
}

/// What an agent said does not have the shape that was asked for; it is asked once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRefused {
    /// Of the answer.
    pub turn: u32,
    pub why: String,
    /// What the agent is told.
    pub text: Arc<str>,
}

/// The reviewer's verdict, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reviewed {
    /// Of the answer that it is in.
    pub turn: u32,
    /// From 1.
    pub round: u32,
    #[serde(flatten)]
    pub verdict: Verdict,
}
