//! What is done next with a run, from its state alone. What an entry does to the state: [`super::fold`].

use std::{iter, sync::Arc};

use crate::domain::{
    approval::{Leave, RunGrant},
    budget::{Budget, Limit, Limits, Usage},
    ids::{CallKey, RoleName, Timestamp},
    item::RawJson,
    journal::{ApprovalDecided, BudgetWarning},
    run::{
        Conclusion, Ending, Failure, Nudged, OpenCall, Phase, Progress, RunState, Seat, Suspension,
        Wish, Work, calls,
    },
    tool::{EffectClass, OnUnknown, ToolCall},
};

/// What to do next with a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Ask the model, not before `at` where that is set.
    AskModel {
        turn: u32,
        attempt: u32,
        at: Option<Timestamp>,
    },
    /// Carry these calls out, in any order; their outputs go back in this order.
    Invoke(Vec<Invocation>),
    /// Tell the model that it said nothing.
    Nudge {
        turn: u32,
    },
    /// Let one of several agents begin.
    Begin(Seat),
    /// Whoever was asked by that call has come to an end: its caller hears of it.
    Return {
        call: CallKey,
        ending: Ending,
    },
    /// Tell the agent that speaks what the repository says of how to work on it.
    TellRepository,
    /// Look at what the executor did for what it must not do.
    CheckWork,
    /// Give the workspace back as it was before the run.
    Restore,
    /// Write down what one of several agents has come to.
    Conclude {
        turn: u32,
        conclusion: Conclusion,
    },
    /// Say that most of a limit is used up.
    Warn(BudgetWarning),
    Suspend(Suspension),
    Finish(Ending),
    /// Nothing, until something else happens.
    Rest,
}

/// One call to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    pub call: ToolCall,
    pub mode: InvocationMode,
    /// What an earlier attempt was resolved to.
    pub earlier: Option<RawJson>,
    /// What people allowed of it, and of the run's calls.
    pub leave: Leave,
    /// What a person said who did not allow it.
    pub denied: Option<Arc<ApprovalDecided>>,
}

/// How a call is to be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvocationMode {
    /// For the first time.
    First,
    /// Again, after attempt `attempt - 1` was lost. What can be looked at is looked at first.
    Again { attempt: u32 },
    /// The same, whatever the policy says of second attempts: somebody has said so.
    Retry { attempt: u32 },
    /// As attempt `attempt`, which a person was asked about and allowed.
    Approved { attempt: u32 },
    /// Not at all: the run is being cancelled and the call needs an output. Nothing was started.
    CloseUnstarted,
    /// Not at all, but its intent is on disk: it was killed, or lost.
    CloseStarted,
    /// Not at all: another agent was to see to it.
    CloseDelegated,
    /// Not at all: it was lost, and the model is to be told that nobody knows what it did.
    CloseUnknown,
    /// Not at all: a person did not allow it.
    CloseDenied,
    /// Not at all: the run is being cancelled while a person was asked. Its intent is on disk, and nothing was started.
    CloseAsked,
}

impl InvocationMode {
    /// Whether the call is to be done, as it is, once more or for the first time.
    pub fn begins(self) -> bool {
        matches!(self, Self::First | Self::Again { .. } | Self::Retry { .. })
    }

    /// Which attempt it is then.
    pub fn attempt(self) -> u32 {
        match self {
            Self::Again { attempt } | Self::Retry { attempt } | Self::Approved { attempt } => {
                attempt
            }
            _ => 1,
        }
    }
}

/// What to do next. Never asks for what is on disk as begun, unless its daemon is known to be dead.
pub fn decide(state: &RunState) -> Command {
    let command = match (&state.phase, state.wish) {
        (Phase::Ended(_) | Phase::Suspended { .. }, _) => Command::Rest,
        (Phase::Going(work), Wish::Cancel) => decide_cancelled(work),
        (Phase::Going(work), Wish::Pause) => paused(decide_going(state, work)),
        (Phase::Going(work), Wish::GoOn) => decide_going(state, work),
    };
    match (command, state.answers()) {
        // It ends for who was asked, and not for the run.
        (Command::Finish(ending), Some(call)) => Command::Return { call, ending },
        (command, _) => command,
    }
}

/// Nothing more is begun; what has come to its end ends.
fn paused(command: Command) -> Command {
    match command {
        Command::Finish(_) | Command::Return { .. } | Command::Suspend(_) | Command::Rest => {
            command
        }
        Command::AskModel { .. }
        | Command::Invoke(_)
        | Command::Nudge { .. }
        | Command::Begin(_)
        | Command::TellRepository
        | Command::CheckWork
        | Command::Restore
        | Command::Conclude { .. }
        | Command::Warn(_) => {
            let message = "somebody paused the run; `agentctl run resume` lets it go on".into();
            Command::Suspend(Suspension::Paused { message })
        }
    }
}

fn decide_cancelled(work: &Work) -> Command {
    let calls = match work {
        Work::Calling { calls } => calls,
        // What was vetoed is taken back all the same.
        Work::Restoring(_) => return Command::Restore,
        _ => return Command::Finish(Ending::Cancelled),
    };
    let closing = calls.iter().filter_map(|open| {
        let mode = match open.progress {
            Progress::Asked => InvocationMode::CloseUnstarted,
            Progress::Waiting { attempt: 1, .. }
            | Progress::Approved { attempt: 1, .. }
            | Progress::Denied { attempt: 1, .. } => InvocationMode::CloseAsked,
            Progress::Intended { .. }
            | Progress::Lost { .. }
            | Progress::ToRetry { .. }
            | Progress::Waiting { .. }
            | Progress::Approved { .. }
            | Progress::Denied { .. } => InvocationMode::CloseStarted,
            Progress::Delegated { .. } => InvocationMode::CloseDelegated,
            Progress::Done { .. } => return None,
        };
        Some(Invocation {
            call: open.call.clone(),
            mode,
            earlier: None,
            leave: Leave::default(),
            denied: None,
        })
    });
    Command::Invoke(closing.collect())
}

fn decide_going(state: &RunState, work: &Work) -> Command {
    let turn = state.turn();
    match work {
        Work::ToAsk { .. } if let Some(ending) = state.overstays() => Command::Finish(ending),
        Work::ToAsk { attempt } => match used_up(state, state.limits()) {
            Some(limit) => Command::Suspend(out_of(limit)),
            None => match nearly_used_up(state) {
                Some(warning) => Command::Warn(warning),
                None if state.is_to_be_told() => Command::TellRepository,
                None => Command::AskModel { turn, attempt: *attempt, at: None },
            },
        },
        Work::BackingOff { attempt, until } => {
            Command::AskModel { turn, attempt: *attempt, at: Some(*until) }
        }
        Work::Asking { .. } => Command::Rest,
        Work::AskLost { .. } => Command::Suspend(Suspension::RequestLost {
            message: "a request to the model was lost, and what the backend's own tools did for it nobody here can \
                      tell; look, then let it be made once more (agentctl run resume --repeat-request), or cancel \
                      the run"
                .into(),
        }),
        Work::Calling { calls } => decide_calls(state, calls),
        Work::Concluding { answer: Some(answer), .. } => state.concluded(answer),
        Work::HandingOver { to } => Command::Begin(*to),
        Work::Accepted => {
            let answer = state.stage.result.clone().unwrap_or_default();
            Command::Finish(Ending::Succeeded { answer })
        }
        Work::Concluding { answer: None, nudged: Nudged::NotYet } => Command::Nudge { turn },
        Work::Concluding { answer: None, nudged: Nudged::Already } => {
            Command::Finish(Ending::Failed(Failure {
                reason: "EMPTY_ANSWER".into(),
                message: "the model neither answered nor called a tool, twice; try another model"
                    .into(),
            }))
        }
        Work::Restoring(_) => Command::Restore,
        Work::Failing(failure) => Command::Finish(Ending::Failed(failure.clone())),
    }
}

fn decide_calls(state: &RunState, open: &[OpenCall]) -> Command {
    if let Some(limit) = too_many_calls(state, open, state.limits()) {
        return Command::Suspend(out_of(limit));
    }
    let due: Vec<Invocation> = open
        .iter()
        .filter_map(|call| {
            let mut invocation = due_invocation(call, &state.grants)?;
            invocation.leave.grants.clone_from(&state.grants);
            Some(invocation)
        })
        .collect();
    let waiting = || calls::outcome_unknown(open).or_else(|| calls::approval_awaited(open));
    let asks = |call: &OpenCall| matches!(call.progress, Progress::Delegated { .. });
    match waiting() {
        _ if !due.is_empty() => Command::Invoke(due),
        Some(why) => Command::Suspend(why),
        // What else was asked for is done by then, unless it is under way.
        None if open.iter().all(|call| asks(call) || call.said().is_some()) => {
            Command::Begin(Seat::Asked)
        }
        None => Command::Rest,
    }
}

pub(super) fn due_invocation(open: &OpenCall, grants: &[RunGrant]) -> Option<Invocation> {
    let mode = match open.progress {
        Progress::Asked => InvocationMode::First,
        Progress::Lost { class: EffectClass::NonIdempotent, .. } => match open.on_unknown {
            OnUnknown::Ask => return None,
            OnUnknown::TellModel => InvocationMode::CloseUnknown,
        },
        Progress::Lost { attempt, .. } => {
            InvocationMode::Again { attempt: attempt.saturating_add(1) }
        }
        Progress::ToRetry { attempt, .. } => {
            InvocationMode::Retry { attempt: attempt.saturating_add(1) }
        }
        Progress::Approved { attempt, .. } => InvocationMode::Approved { attempt },
        Progress::Denied { attempt: 1, .. } => InvocationMode::CloseDenied,
        Progress::Denied { .. } => InvocationMode::CloseUnknown,
        // Somebody has allowed, for the whole run, what is asked here too.
        Progress::Waiting { attempt, ref asked }
            if grants.iter().any(|grant| {
                (&grant.rule, &grant.tool, &grant.revision)
                    == (&asked.rule, &asked.tool, &asked.revision)
            }) =>
        {
            InvocationMode::Approved { attempt }
        }
        Progress::Intended { .. }
        | Progress::Waiting { .. }
        | Progress::Delegated { .. }
        | Progress::Done { .. } => return None,
    };
    let denied = match &open.progress {
        Progress::Denied { said, .. } => Some(said.clone()),
        _ => None,
    };
    let leave = Leave { approvals: open.approvals.clone(), grants: Vec::new() };
    Some(Invocation { call: open.call.clone(), mode, earlier: open.facts.clone(), leave, denied })
}

impl RunState {
    /// A fork goes on with what was said before it.
    fn is_to_be_told(&self) -> bool {
        !self.spec.told.is_empty() && self.spec.forked.is_none() && self.stage.is_untold()
    }

    /// The limit that a run at `work` would come up against at once under `limits`; none if there is none.
    pub fn would_exceed<'a>(&'a self, work: &Work, limits: Limits<'a>) -> Option<Limit<'a>> {
        match work {
            Work::ToAsk { .. } => used_up(self, limits),
            Work::Calling { calls } => too_many_calls(self, calls, limits),
            Work::Asking { .. }
            | Work::AskLost { .. }
            | Work::BackingOff { .. }
            | Work::Concluding { .. }
            | Work::HandingOver { .. }
            | Work::Accepted
            | Work::Restoring(_)
            | Work::Failing(_) => None,
        }
    }
}

/// Who has limits by now: the run, and the role of the agent that speaks; each with what it has used.
fn limited<'a>(
    state: &'a RunState,
    limits: Limits<'a>,
) -> impl Iterator<Item = (Usage, Budget, Option<&'a RoleName>)> {
    let role = &state.role;
    let usage = state.role_usage.get(role).copied().unwrap_or_default();
    let role = limits.roles.get(role).map(|budget| (usage, *budget, Some(role)));
    iter::once((state.usage, limits.run, None)).chain(role)
}

/// A limit that leaves no room for another turn.
fn used_up<'a>(state: &'a RunState, limits: Limits<'a>) -> Option<Limit<'a>> {
    let all = limited(state, limits).flat_map(|(usage, budget, role)| usage.against(&budget, role));
    all.into_iter().find(Limit::is_used_up)
}

/// A limit of which 80 percent are used, and that was not warned of.
fn nearly_used_up(state: &RunState) -> Option<BudgetWarning> {
    let all = limited(state, state.limits()).flat_map(|(usage, budget, role)| {
        let calls = usage.calls_against(0, &budget, role);
        usage.against(&budget, role).into_iter().chain([calls])
    });
    let near = all.filter(Limit::is_nearly_used_up);
    let mut named = near.map(|limit| (limit.name(), limit));
    let (name, limit) = named.find(|(name, _)| !state.warned.contains(name))?;
    Some(BudgetWarning { limit: name, used: limit.used, of: limit.of })
}

fn too_many_calls<'a>(
    state: &'a RunState,
    open: &[OpenCall],
    limits: Limits<'a>,
) -> Option<Limit<'a>> {
    let asked = open.iter().filter(|call| call.progress == Progress::Asked).count() as u64;
    limited(state, limits)
        .map(|(usage, budget, role)| usage.calls_against(asked, &budget, role))
        .find(|limit| limit.used > limit.of)
}

fn out_of(limit: Limit<'_>) -> Suspension {
    let Limit { what, of, .. } = limit;
    let whose = match limit.role {
        None => "the run's budget".to_owned(),
        Some(role) => format!("the budget of the role {role} in the run,"),
    };
    let larger = match limit.role {
        None => "agentctl run resume".to_owned(),
        Some(role) => format!("agentctl run resume --role-budget {role}=..."),
    };
    Suspension::BudgetExhausted {
        limit: limit.name(),
        message: format!(
            "{whose} of {of} {what} is used up; everything is kept. \
             Let it go on with a larger one ({larger}), or cancel it"
        ),
    }
}
