//! What the journal remembers of the agents of a run: who began to speak and with which words, the plan, the verdicts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{
    guardrail::Violation,
    ids::{CallKey, RoleName, TreeId},
    plan::{Plan, Step, Verdict},
    run::Seat,
};

/// How the agents of a run work together, where there is more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// How often the work may be sent back.
    pub max_review_rounds: u32,
    /// What becomes of the workspace where the work is vetoed.
    #[serde(default)]
    pub on_veto: OnVeto,
}

/// What becomes of the workspace of a run whose work is vetoed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnVeto {
    /// It stays as the run left it.
    #[default]
    Keep,
    /// Its files become what they were before the run changed anything.
    Restore,
}

/// The files of the workspace became what they were before the run changed anything, since its work was vetoed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceRestored {
    /// The copy that was given back; none: that was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<TreeId>,
    /// Why they are not, or not all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Default for Team {
    fn default() -> Self {
        Self { max_review_rounds: 3, on_veto: OnVeto::Keep }
    }
}

/// An agent that works for another one, or goes on for it: as it was in the configuration when it was called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Colleague {
    pub name: Arc<str>,
    /// In the policy.
    pub role: RoleName,
    /// JSON Schema of what it answers; none: words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Arc<str>>,
    /// How many turns it may take to answer what it is asked.
    pub max_turns: u32,
}

/// What a call wants of another agent. It touches nothing outside of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Errand {
    /// It goes on with the conversation.
    HandOff(Colleague),
    /// It answers what it is asked, and has heard nothing else.
    Ask(Colleague),
    /// The steps that are left of the plan are replaced.
    RevisePlan,
}

/// An agent of the run speaks from now on, and is told this first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentBegan {
    pub seat: Seat,
    /// Who it is, where that is not the run's own agent in that seat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Colleague>,
    /// By which it was asked, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallKey>,
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

/// The executor put other steps in the place of those that were left, the one under way included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRevised {
    /// The call that asked for it.
    pub call: CallKey,
    /// Of the first step that is replaced, from 1.
    pub from_step: usize,
    /// Those that take their place.
    pub steps: Vec<Step>,
    pub why: String,
}

/// The executor has said its last word about a step of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFinished {
    /// Of the answer that it is in.
    pub turn: u32,
    /// From 1.
    pub step: usize,
    /// What the executor says came of it; cut where it is long, the whole is in the answer.
    pub result: Arc<str>,
}

/// Something that the work of a run must not do was found in it, without asking a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardrailViolation {
    /// Of the review, from 1.
    pub round: u32,
    #[serde(flatten)]
    pub violation: Violation,
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
