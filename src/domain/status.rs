//! A run as its callers know it: one state's name, an answer, an error. Derived from [`RunState`], and
//! never the other way round.

use crate::domain::run::{Ending, Failure, Phase, RunState, Seat, Suspension, Work};

/// A run's state as callers know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateName {
    Queued,
    Planning,
    Executing,
    Reviewing,
    WaitingForBackend,
    AwaitingApproval,
    Paused,
    NeedsAttention,
    OutOfBudget,
    Succeeded,
    Failed,
    Cancelled,
}

impl StateName {
    pub const ALL: [Self; 12] = [
        Self::Queued,
        Self::Planning,
        Self::Executing,
        Self::Reviewing,
        Self::WaitingForBackend,
        Self::AwaitingApproval,
        Self::Paused,
        Self::NeedsAttention,
        Self::OutOfBudget,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// As stored and shown: upper case with underscores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Planning => "PLANNING",
            Self::Executing => "EXECUTING",
            Self::Reviewing => "REVIEWING",
            Self::WaitingForBackend => "WAITING_FOR_BACKEND",
            Self::AwaitingApproval => "AWAITING_APPROVAL",
            Self::Paused => "PAUSED",
            Self::NeedsAttention => "NEEDS_ATTENTION",
            Self::OutOfBudget => "OUT_OF_BUDGET",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    fn of(seat: Seat) -> Self {
        match seat {
            Seat::Planner => Self::Planning,
            Seat::Executor | Seat::Asked => Self::Executing,
            Seat::Reviewer => Self::Reviewing,
        }
    }

    /// The state of that name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether nothing follows.
    pub fn is_ended(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
            Self::Queued
            | Self::Planning
            | Self::Executing
            | Self::Reviewing
            | Self::WaitingForBackend
            | Self::AwaitingApproval
            | Self::Paused
            | Self::NeedsAttention
            | Self::OutOfBudget => false,
        }
    }

    /// Whether it waits for somebody to act.
    pub fn is_suspended(self) -> bool {
        matches!(
            self,
            Self::AwaitingApproval | Self::Paused | Self::NeedsAttention | Self::OutOfBudget
        )
    }
}

impl RunState {
    /// The state as callers know it.
    pub fn name(&self) -> StateName {
        match &self.phase {
            Phase::Ended(Ending::Succeeded { .. }) => StateName::Succeeded,
            Phase::Ended(Ending::Failed(_)) => StateName::Failed,
            Phase::Ended(Ending::Cancelled) => StateName::Cancelled,
            Phase::Suspended { why: Suspension::BudgetExhausted { .. }, .. } => {
                StateName::OutOfBudget
            }
            Phase::Suspended {
                why: Suspension::OutcomeUnknown { .. } | Suspension::RequestLost { .. },
                ..
            } => StateName::NeedsAttention,
            Phase::Suspended { why: Suspension::AwaitingApproval { .. }, .. } => {
                StateName::AwaitingApproval
            }
            Phase::Suspended { why: Suspension::Paused { .. }, .. } => StateName::Paused,
            Phase::Going(Work::BackingOff { .. }) => StateName::WaitingForBackend,
            Phase::Going(Work::ToAsk { attempt: 1 } | Work::HandingOver { to: Seat::Planner })
                if self.usage.turns == 0 =>
            {
                StateName::Queued
            }
            Phase::Going(Work::HandingOver { to }) => StateName::of(*to),
            Phase::Going(_) => StateName::of(self.stage.seat()),
        }
    }

    /// The final answer, once there is one.
    pub fn answer(&self) -> Option<&str> {
        match &self.phase {
            Phase::Ended(Ending::Succeeded { answer }) => Some(answer),
            Phase::Ended(_) | Phase::Going(_) | Phase::Suspended { .. } => None,
        }
    }

    /// Why the run failed or stands still.
    pub fn error(&self) -> Option<Failure> {
        match &self.phase {
            Phase::Ended(Ending::Failed(failure)) => Some(failure.clone()),
            Phase::Suspended { why, .. } => Some(why.as_failure()),
            Phase::Ended(_) | Phase::Going(_) => None,
        }
    }
}

impl Suspension {
    fn as_failure(&self) -> Failure {
        let (reason, message) = match self {
            Self::BudgetExhausted { message, .. } => ("BUDGET_EXHAUSTED", message),
            Self::OutcomeUnknown { message, .. } => ("OUTCOME_UNKNOWN", message),
            Self::RequestLost { message } => ("REQUEST_LOST", message),
            Self::AwaitingApproval { message, .. } => ("APPROVAL_REQUIRED", message),
            Self::Paused { message } => ("PAUSED", message),
        };
        Failure { reason: reason.into(), message: message.clone() }
    }
}
