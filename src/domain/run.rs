//! A run's state. [`fold`] is the only place where it changes, [`decide`] says what to do next. Both
//! are pure and total: a crash can fall between any two entries, and what is left still folds.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{
    budget::Usage,
    ids::{CallKey, RunId, Sequence, Timestamp},
    item::{Item, RawJson},
    journal::{
        BackendError, CallResolved, Entry, ModelResponse, Moment, Record, Resolution, RunCreated,
        Sent, Taken, ToolOutput,
    },
    tool::{EffectClass, OnUnknown, ToolCall},
};

/// Everything that is known of a run: the fold of its journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunState {
    pub id: RunId,
    /// Sequence of the last entry folded in.
    pub head: Sequence,
    pub spec: Arc<RunCreated>,
    /// The conversation so far, oldest first, as the model must see it.
    pub items: Vec<Item>,
    pub usage: Usage,
    pub snapshots: Snapshots,
    pub wish: Wish,
    pub phase: Phase,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// The files of the workspace before and after the run; none where no snapshot was tried.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshots {
    pub before: Option<Taken>,
    pub after: Option<Taken>,
}

/// What the caller wants of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    GoOn,
    Cancel,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Going(Work),
    Suspended { why: Suspension, work: Work },
    Ended(Ending),
}

/// What a run that has not ended is at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// The model is to be asked; `attempt` 1 is the first request of the turn.
    ToAsk { attempt: u32 },
    /// The request is on disk; its answer is not.
    Asking { attempt: u32 },
    /// The backend failed; it is asked again at `until`.
    BackingOff { attempt: u32, until: Timestamp },
    /// The model asked for tools; in its order, at least one.
    Calling { calls: Vec<OpenCall> },
    /// The model said its last word; none when it said nothing.
    Concluding { answer: Option<Arc<str>>, nudged: Nudged },
    /// Nothing more can be done.
    Failing(Failure),
}

/// Whether the model has been told already that it said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nudged {
    NotYet,
    Already,
}

/// One call of the turn under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenCall {
    pub call: ToolCall,
    pub progress: Progress,
    /// What the call was resolved to when its intent was written.
    pub facts: Option<RawJson>,
    /// As the policy said then.
    pub on_unknown: OnUnknown,
}

/// How far a call has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The model asked; nothing was done.
    Asked,
    /// Its intent is on disk.
    Intended {
        attempt: u32,
        class: EffectClass,
    },
    /// Its intent is on disk, and the daemon that started it is dead.
    Lost {
        attempt: u32,
        class: EffectClass,
    },
    /// The same, and somebody has said that it be run again: once.
    ToRetry {
        attempt: u32,
        class: EffectClass,
    },
    Done {
        output: Arc<str>,
    },
}

/// Why a run stands still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Suspension {
    /// A limit was reached: `limit` names it, `message` says what to do.
    BudgetExhausted { limit: String, message: String },
    /// Nobody knows whether these calls took effect.
    OutcomeUnknown { calls: Vec<CallKey>, message: String },
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
    /// Not at all: the run is being cancelled and the call needs an output. Nothing was started.
    CloseUnstarted,
    /// Not at all, but its intent is on disk: it was killed, or lost.
    CloseStarted,
    /// Not at all: it was lost, and the model is to be told that nobody knows what it did.
    CloseUnknown,
}

impl RunState {
    /// The state after the first entry of a run's chain, whose record it is.
    pub fn created(id: RunId, sequence: Sequence, time: Timestamp, spec: RunCreated) -> Self {
        let task = Item::User { text: spec.task.clone() };
        Self {
            id,
            head: sequence,
            spec: Arc::new(spec),
            items: vec![task],
            usage: Usage::default(),
            snapshots: Snapshots::default(),
            wish: Wish::GoOn,
            phase: Phase::Going(Work::ToAsk { attempt: 1 }),
            created: time,
            updated: time,
        }
    }

    /// The state after all of `entries`, which start with the run's first; none if they do not.
    pub fn from_entries(id: RunId, entries: impl IntoIterator<Item = Entry>) -> Option<Self> {
        let mut entries = entries.into_iter();
        let first = entries.next()?;
        let Record::RunCreated(spec) = first.record else { return None };
        let state = Self::created(id, first.sequence, first.time, spec);
        Some(entries.fold(state, |state, entry| fold(state, &entry)))
    }

    /// Whether something was begun whose end is not on disk.
    pub fn is_under_way(&self) -> bool {
        match &self.phase {
            Phase::Going(Work::Asking { .. }) => true,
            Phase::Going(Work::Calling { calls }) => {
                calls.iter().any(|open| matches!(open.progress, Progress::Intended { .. }))
            }
            Phase::Going(_) | Phase::Suspended { .. } | Phase::Ended(_) => false,
        }
    }

    /// The call that the run stands still for, if it does.
    pub fn unresolved(&self, key: CallKey) -> Option<&ToolCall> {
        let Phase::Suspended {
            why: Suspension::OutcomeUnknown { .. },
            work: Work::Calling { calls },
        } = &self.phase
        else {
            return None;
        };
        let is_meant = |open: &&OpenCall| unknown_outcome(open) == Some(key);
        calls.iter().find(is_meant).map(|open| &open.call)
    }

    /// Number of the turn under way or next, from 1.
    pub fn turn(&self) -> u32 {
        match &self.phase {
            Phase::Going(work) | Phase::Suspended { work, .. } => match work {
                Work::ToAsk { .. } | Work::Asking { .. } | Work::BackingOff { .. } => {
                    self.usage.turns + 1
                }
                Work::Calling { .. } | Work::Concluding { .. } | Work::Failing(_) => {
                    self.usage.turns
                }
            },
            Phase::Ended(_) => self.usage.turns,
        }
    }
}

/// The state after one more entry.
///
/// Total: an entry that does not fit changes nothing but the head. Nothing changes an ended run.
pub fn fold(mut state: RunState, entry: &Entry) -> RunState {
    fold_into(&mut state, entry);
    state
}

/// [`fold`] in place, for an owner whose history must not be copied.
pub fn fold_into(state: &mut RunState, entry: &Entry) {
    state.head = entry.sequence;
    state.updated = entry.time;
    let RunState { phase, items, usage, wish, snapshots, .. } = state;
    if let (Record::CancelRequested(_), Phase::Going(_) | Phase::Suspended { .. }) =
        (&entry.record, &*phase)
    {
        *wish = Wish::Cancel;
    }
    if let (Record::WorkspaceSnapshot(snapshot), Phase::Going(_) | Phase::Suspended { .. }) =
        (&entry.record, &*phase)
    {
        let place = match snapshot.moment {
            Moment::Before => &mut snapshots.before,
            Moment::After => &mut snapshots.after,
        };
        *place = Some(snapshot.taken.clone());
    }
    let before = std::mem::replace(phase, Phase::Ended(Ending::Cancelled));
    *phase = match (before, &entry.record) {
        (Phase::Ended(ending), _) => Phase::Ended(ending),
        (_, Record::RunFinished(finished)) => Phase::Ended(finished.ending.clone()),
        (Phase::Going(work), Record::RunSuspended(suspended)) => {
            Phase::Suspended { why: suspended.why.clone(), work }
        }
        // The wish to stop lifts a suspension: what is open is closed, then the run ends.
        (Phase::Suspended { work, .. }, Record::CancelRequested(_)) => Phase::Going(work),
        (
            Phase::Suspended { why: Suspension::OutcomeUnknown { .. }, work },
            record @ (Record::CallResolved(_) | Record::ToolOutput(_)),
        ) => work.after(record, items, usage).unless_unknown(),
        (Phase::Suspended { why, work }, _) => Phase::Suspended { why, work },
        (Phase::Going(work), record) => Phase::Going(work.after(record, items, usage)),
    };
}

impl Work {
    /// Goes on, or stands still for as long as the outcome of a call is not known.
    fn unless_unknown(self) -> Phase {
        let unknown = match &self {
            Self::Calling { calls } => outcome_unknown(calls),
            _ => None,
        };
        match unknown {
            Some(why) => Phase::Suspended { why, work: self },
            None => Phase::Going(self),
        }
    }

    fn after(self, record: &Record, items: &mut Vec<Item>, usage: &mut Usage) -> Self {
        match (self, record) {
            (Self::ToAsk { .. } | Self::BackingOff { .. }, Record::ModelRequest(request)) => {
                Self::Asking { attempt: request.attempt }
            }
            (Self::Asking { attempt }, Record::ModelResponse(response))
                if response.attempt == attempt =>
            {
                answered(response, items, usage)
            }
            (Self::Asking { attempt }, Record::BackendError(error)) if error.attempt == attempt => {
                // Where the backend itself refused, or was not reached, nothing was generated.
                let unknown = error.http_status.is_none() && error.sent == Sent::Maybe;
                usage.turns_of_unknown_cost += u32::from(unknown);
                after_error(error)
            }
            (Self::Asking { attempt }, Record::RunRecovered(_) | Record::CancelRequested(_)) => {
                usage.turns_of_unknown_cost += 1;
                Self::ToAsk { attempt: attempt.saturating_add(1) }
            }
            (
                Self::Concluding { answer: None, nudged: Nudged::NotYet },
                Record::ModelNudged(nudge),
            ) => {
                items.push(Item::User { text: nudge.text.clone() });
                Self::ToAsk { attempt: 1 }
            }
            (Self::Calling { mut calls }, record) => {
                calls.iter_mut().for_each(|open| open.fold(record, usage));
                settled(calls, items)
            }
            (unchanged, _) => unchanged,
        }
    }
}

fn answered(response: &ModelResponse, items: &mut Vec<Item>, usage: &mut Usage) -> Work {
    // The model was told once that it said nothing when the last word is ours and not the task.
    let nudged = match items.last() {
        Some(Item::User { .. }) if items.len() > 1 => Nudged::Already,
        _ => Nudged::NotYet,
    };
    usage.turns += 1;
    usage.add_tokens(&response.tokens);
    items.extend(response.items.iter().map(|item| Item::Model {
        raw: item.raw.clone(),
        call: item.call.as_ref().map(|call| call.call_id.clone()),
    }));
    if let Some(reason) = &response.incomplete {
        return Work::Failing(Failure {
            reason: "INCOMPLETE_RESPONSE".into(),
            message: format!(
                "the model's answer was cut off ({reason}); nothing it asked for was done. \
                 Raise the model's output limit, or give a smaller task"
            ),
        });
    }
    let calls: Vec<OpenCall> = (0..)
        .zip(response.items.iter().filter_map(|item| item.call.as_ref()))
        .map(|(index, asked)| OpenCall {
            call: ToolCall {
                key: CallKey { turn: response.turn, index },
                call_id: asked.call_id.clone(),
                tool: asked.tool.clone(),
                arguments: asked.arguments.clone(),
            },
            progress: Progress::Asked,
            facts: None,
            on_unknown: OnUnknown::Ask,
        })
        .collect();
    match calls.is_empty() {
        true => Work::Concluding { answer: response.text.clone(), nudged },
        false => Work::Calling { calls },
    }
}

fn after_error(error: &BackendError) -> Work {
    match error.retry_at {
        Some(until) => Work::BackingOff { attempt: error.attempt.saturating_add(1), until },
        None => {
            Work::Failing(Failure { reason: error.reason.clone(), message: error.message.clone() })
        }
    }
}

impl OpenCall {
    fn fold(&mut self, record: &Record, usage: &mut Usage) {
        let key = self.call.key;
        let next = match (&self.progress, record) {
            (Progress::Asked, Record::ToolCalled(called)) if called.call == key => {
                usage.tool_calls += 1;
                self.facts = called.facts.clone();
                self.on_unknown = called.on_unknown;
                Progress::Intended { attempt: 1, class: called.effect_class }
            }
            (
                Progress::Lost { attempt, class },
                Record::CallResolved(CallResolved { call, resolution: Resolution::Retry, .. }),
            ) if *call == key => Progress::ToRetry { attempt: *attempt, class: *class },
            (
                Progress::Lost { class, .. } | Progress::ToRetry { class, .. },
                Record::ToolResumed(resumed),
            ) if resumed.call == key => {
                Progress::Intended { attempt: resumed.attempt, class: *class }
            }
            (Progress::Intended { attempt, class }, Record::RunRecovered(_)) => {
                Progress::Lost { attempt: *attempt, class: *class }
            }
            (
                Progress::Intended { .. } | Progress::Lost { .. } | Progress::ToRetry { .. },
                Record::ToolOutput(ToolOutput { call, output, used, .. }),
            ) if *call == key => {
                let cpu_ms = used.as_ref().map_or(0, |used| used.cpu_ms);
                usage.cpu_ms = usage.cpu_ms.saturating_add(cpu_ms);
                Progress::Done { output: output.clone() }
            }
            _ => return,
        };
        self.progress = next;
    }
}

/// Once every call is done, their outputs join the conversation in the model's order.
fn settled(calls: Vec<OpenCall>, items: &mut Vec<Item>) -> Work {
    let outputs: Option<Vec<Item>> = calls
        .iter()
        .map(|open| match &open.progress {
            Progress::Done { output } => Some(Item::ToolOutput {
                call_id: open.call.call_id.clone(),
                output: output.clone(),
            }),
            Progress::Asked
            | Progress::Intended { .. }
            | Progress::Lost { .. }
            | Progress::ToRetry { .. } => None,
        })
        .collect();
    match outputs {
        Some(outputs) => {
            items.extend(outputs);
            Work::ToAsk { attempt: 1 }
        }
        None => Work::Calling { calls },
    }
}

/// What to do next. Never asks for what is on disk as begun, unless its daemon is known to be dead.
pub fn decide(state: &RunState) -> Command {
    match (&state.phase, state.wish) {
        (Phase::Ended(_) | Phase::Suspended { .. }, _) => Command::Rest,
        (Phase::Going(work), Wish::Cancel) => decide_cancelled(work),
        (Phase::Going(work), Wish::GoOn) => decide_going(state, work),
    }
}

fn decide_cancelled(work: &Work) -> Command {
    let Work::Calling { calls } = work else { return Command::Finish(Ending::Cancelled) };
    let closing = calls.iter().filter_map(|open| {
        let mode = match open.progress {
            Progress::Asked => InvocationMode::CloseUnstarted,
            Progress::Intended { .. } | Progress::Lost { .. } | Progress::ToRetry { .. } => {
                InvocationMode::CloseStarted
            }
            Progress::Done { .. } => return None,
        };
        Some(Invocation { call: open.call.clone(), mode, earlier: None })
    });
    Command::Invoke(closing.collect())
}

fn decide_going(state: &RunState, work: &Work) -> Command {
    let turn = state.turn();
    match work {
        Work::ToAsk { attempt } => match exhausted(state) {
            Some(why) => Command::Suspend(why),
            None => Command::AskModel { turn, attempt: *attempt, at: None },
        },
        Work::BackingOff { attempt, until } => {
            Command::AskModel { turn, attempt: *attempt, at: Some(*until) }
        }
        Work::Asking { .. } => Command::Rest,
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

fn decide_calls(state: &RunState, calls: &[OpenCall]) -> Command {
    let asked = calls.iter().filter(|open| open.progress == Progress::Asked).count();
    let limit = state.spec.budget.max_tool_calls;
    if state.usage.tool_calls as usize + asked > limit as usize {
        return Command::Suspend(out_of("tool calls", u64::from(limit)));
    }
    let due: Vec<Invocation> = calls.iter().filter_map(due_invocation).collect();
    match (due.is_empty(), outcome_unknown(calls)) {
        (false, _) => Command::Invoke(due),
        (true, None) => Command::Rest,
        (true, Some(why)) => Command::Suspend(why),
    }
}

/// What only a person can know; none if there is nothing.
fn outcome_unknown(calls: &[OpenCall]) -> Option<Suspension> {
    let unknown: Vec<CallKey> = calls.iter().filter_map(unknown_outcome).collect();
    let named: Vec<String> = unknown.iter().map(|key| format!("call {key}")).collect();
    (!unknown.is_empty()).then(|| Suspension::OutcomeUnknown {
        message: format!(
            "the daemon died while {} ran, and nobody can tell whether it took effect; look at the workspace, \
             then say what became of it (agentctl run resolve), or cancel the run",
            named.join(", ")
        ),
        calls: unknown,
    })
}

fn due_invocation(open: &OpenCall) -> Option<Invocation> {
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
        Progress::Intended { .. } | Progress::Done { .. } => return None,
    };
    Some(Invocation { call: open.call.clone(), mode, earlier: open.facts.clone() })
}

fn unknown_outcome(open: &OpenCall) -> Option<CallKey> {
    let is_unknown =
        matches!(open.progress, Progress::Lost { class: EffectClass::NonIdempotent, .. });
    (is_unknown && open.on_unknown == OnUnknown::Ask).then_some(open.call.key)
}

fn exhausted(state: &RunState) -> Option<Suspension> {
    let budget = &state.spec.budget;
    let tokens = state.usage.input_tokens.saturating_add(state.usage.output_tokens);
    if state.usage.turns >= budget.max_turns {
        return Some(out_of("turns", u64::from(budget.max_turns)));
    }
    if tokens >= budget.max_tokens {
        return Some(out_of("tokens", budget.max_tokens));
    }
    None
}

fn out_of(what: &str, limit: u64) -> Suspension {
    Suspension::BudgetExhausted {
        limit: what.to_owned(),
        message: format!(
            "the run's budget of {limit} {what} is used up; everything is kept. \
             Cancel it, or submit it again with a larger budget"
        ),
    }
}

#[cfg(test)]
#[path = "run_tests/mod.rs"]
mod tests;
