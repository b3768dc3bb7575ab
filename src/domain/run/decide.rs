//! What is done next with a run, from its state alone. What an entry does to the state: [`super::fold`].

use std::sync::Arc;

use crate::domain::{
    approval::{Leave, RunGrant},
    budget::Budget,
    ids::Timestamp,
    item::RawJson,
    journal::{ApprovalDecided, BudgetWarning},
    run::{
        Ending, Failure, Nudged, OpenCall, Phase, Progress, RunState, Suspension, Wish, Work, calls,
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
    /// Not at all: it was lost, and the model is to be told that nobody knows what it did.
    CloseUnknown,
    /// Not at all: a person did not allow it.
    CloseDenied,
    /// Not at all: the run is being cancelled while a person was asked. Its intent is on disk, and nothing was started.
    CloseAsked,
}

/// What to do next. Never asks for what is on disk as begun, unless its daemon is known to be dead.
pub fn decide(state: &RunState) -> Command {
    match (&state.phase, state.wish) {
        (Phase::Ended(_) | Phase::Suspended { .. }, _) => Command::Rest,
        (Phase::Going(work), Wish::Cancel) => decide_cancelled(work),
        (Phase::Going(work), Wish::Pause) => paused(decide_going(state, work)),
        (Phase::Going(work), Wish::GoOn) => decide_going(state, work),
    }
}

/// Nothing more is begun; what has come to its end ends.
fn paused(command: Command) -> Command {
    match command {
        Command::Finish(_) | Command::Suspend(_) | Command::Rest => command,
        Command::AskModel { .. }
        | Command::Invoke(_)
        | Command::Nudge { .. }
        | Command::Warn(_) => {
            let message = "somebody paused the run; `agentctl run resume` lets it go on".into();
            Command::Suspend(Suspension::Paused { message })
        }
    }
}

fn decide_cancelled(work: &Work) -> Command {
    let Work::Calling { calls } = work else { return Command::Finish(Ending::Cancelled) };
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
        Work::ToAsk { attempt } => match used_up(state, &state.budget) {
            Some(limit) => Command::Suspend(out_of(limit)),
            None => match nearly_used_up(state) {
                Some(warning) => Command::Warn(warning),
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
        Work::Concluding { answer: Some(answer), .. } => {
            Command::Finish(Ending::Succeeded { answer: answer.clone() })
        }
        Work::Concluding { answer: None, nudged: Nudged::NotYet } => Command::Nudge { turn },
        Work::Concluding { answer: None, nudged: Nudged::Already } => {
            Command::Finish(Ending::Failed(Failure {
                reason: "EMPTY_ANSWER".into(),
                message: "the model neither answered nor called a tool, twice; try another model"
                    .into(),
            }))
        }
        Work::Failing(failure) => Command::Finish(Ending::Failed(failure.clone())),
    }
}

fn decide_calls(state: &RunState, open: &[OpenCall]) -> Command {
    if let Some(limit) = too_many_calls(state, open, &state.budget) {
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
    match due.is_empty() {
        false => Command::Invoke(due),
        true => waiting().map_or(Command::Rest, Command::Suspend),
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
        Progress::Intended { .. } | Progress::Waiting { .. } | Progress::Done { .. } => {
            return None;
        }
    };
    let denied = match &open.progress {
        Progress::Denied { said, .. } => Some(said.clone()),
        _ => None,
    };
    let leave = Leave { approvals: open.approvals.clone(), grants: Vec::new() };
    Some(Invocation { call: open.call.clone(), mode, earlier: open.facts.clone(), leave, denied })
}

impl RunState {
    /// The limit, with its number, that a run at `work` would come up against at once under `budget`; none if there
    /// is none.
    pub fn would_exceed(&self, work: &Work, budget: &Budget) -> Option<String> {
        let exceeded = match work {
            Work::ToAsk { .. } => used_up(self, budget),
            Work::Calling { calls } => too_many_calls(self, calls, budget),
            Work::Asking { .. }
            | Work::AskLost { .. }
            | Work::BackingOff { .. }
            | Work::Concluding { .. }
            | Work::Failing(_) => None,
        };
        exceeded.map(|(what, limit)| format!("{limit} {what}"))
    }
}

/// How much of each limit that is checked before a turn is used; a limit of zero is none.
fn used(state: &RunState, budget: &Budget) -> [(&'static str, u64, u64); 4] {
    let usage = &state.usage;
    let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
    let or_any = |limit: u64| if limit == 0 { u64::MAX } else { limit };
    [
        ("turns", u64::from(usage.turns), u64::from(budget.max_turns)),
        ("tokens", tokens, budget.max_tokens),
        ("seconds of work", usage.wall_us / 1_000_000, or_any(budget.max_wall_seconds)),
        ("millionths of a dollar", usage.cost_micros, or_any(budget.max_cost_micros)),
    ]
}

/// A limit that leaves no room for another turn.
fn used_up(state: &RunState, budget: &Budget) -> Option<(&'static str, u64)> {
    let spent = used(state, budget).into_iter().find(|(_, used, of)| used >= of);
    spent.map(|(what, _, limit)| (what, limit))
}

/// A limit of which 80 percent are used, and that was not warned of.
fn nearly_used_up(state: &RunState) -> Option<BudgetWarning> {
    let (usage, budget) = (&state.usage, &state.budget);
    let calls = ("tool calls", u64::from(usage.tool_calls), u64::from(budget.max_tool_calls));
    let is_near = |used: u64, of: u64| u128::from(used) * 5 >= u128::from(of) * 4 && used > 0;
    used(state, budget)
        .into_iter()
        .chain([calls])
        .find(|(limit, used, of)| is_near(*used, *of) && !state.warned.iter().any(|it| it == limit))
        .map(|(limit, used, of)| BudgetWarning { limit: limit.to_owned(), used, of })
}

fn too_many_calls(
    state: &RunState,
    open: &[OpenCall],
    budget: &Budget,
) -> Option<(&'static str, u64)> {
    let asked = open.iter().filter(|call| call.progress == Progress::Asked).count();
    let limit = budget.max_tool_calls;
    (state.usage.tool_calls as usize + asked > limit as usize)
        .then_some(("tool calls", u64::from(limit)))
}

fn out_of((what, limit): (&'static str, u64)) -> Suspension {
    Suspension::BudgetExhausted {
        limit: what.to_owned(),
        message: format!(
            "the run's budget of {limit} {what} is used up; everything is kept. \
             Let it go on with a larger one (agentctl run resume), or cancel it"
        ),
    }
}
