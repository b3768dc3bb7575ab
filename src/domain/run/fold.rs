//! What an entry does to a run's state. What is done next: [`super::decide`].

use crate::domain::{
    approval::RunGrant,
    backend::Api,
    budget::Usage,
    item::Item,
    journal::{
        BackendError, ContextCompacted, Entry, InputReceived, LostRequest, Moment, Record,
        RunResumed, WorkspaceSnapshot,
    },
    run::{
        Ending, Inputs, OVERFLOW, OpenCall, Phase, RunState, Seat, Strikes, Suspension, Wish, Work,
        calls, decide::due_invocation,
    },
};

/// The state after one more entry.
///
/// Total: an entry that does not fit changes nothing but the head. Nothing changes an ended run.
pub fn fold(mut state: RunState, entry: &Entry) -> RunState {
    fold_into(&mut state, entry);
    state
}

/// [`fold`] in place, for an owner whose history must not be copied.
pub fn fold_into(state: &mut RunState, entry: &Entry) {
    let before = state.usage;
    state.count_time(entry);
    fold_entry(state, entry);
    state.charge_role(&before);
}

fn fold_entry(state: &mut RunState, entry: &Entry) {
    state.head = entry.sequence;
    state.updated = entry.time;
    if let Phase::Ended(_) = state.phase {
        return;
    }
    state.note(&entry.record);
    let before = std::mem::replace(&mut state.phase, Phase::Ended(Ending::Cancelled));
    let after = match (before, &entry.record) {
        (Phase::Ended(ending), _) => Phase::Ended(ending),
        (_, Record::RunFinished(finished)) => Phase::Ended(finished.ending.clone()),
        (Phase::Going(work), Record::RunSuspended(suspended)) => {
            Phase::Suspended { why: suspended.why.clone(), work }
        }
        (Phase::Suspended { why, work }, record) => suspended(why, work, record, state),
        (Phase::Going(work), record) => Phase::Going(work.after(record, state)),
    };
    state.phase = after.with_inputs(state);
}

impl RunState {
    /// What was used since is the work of the agent that speaks.
    fn charge_role(&mut self, before: &Usage) {
        if self.usage != *before {
            let (role, after) = (self.role.clone(), self.usage);
            self.role_usage.entry(role).or_default().add_between(before, &after);
        }
    }

    /// Time at work, up to this entry: that in which a request or a call was under way, and a daemon there.
    fn count_time(&mut self, entry: &Entry) {
        if self.is_under_way() && !matches!(entry.record, Record::RunRecovered(_)) {
            let passed = entry.time.0.saturating_sub(self.updated.0);
            let passed = u64::try_from(passed).unwrap_or(0);
            self.usage.wall_us = self.usage.wall_us.saturating_add(passed);
        }
    }

    /// What an entry says that does not depend on what the run is at.
    fn note(&mut self, record: &Record) {
        match record {
            Record::CancelRequested(_) => self.wish = Wish::Cancel,
            Record::PauseRequested(_) if self.wish == Wish::GoOn => self.wish = Wish::Pause,
            Record::RunResumed(resumed) => {
                self.strikes = Strikes::default();
                if self.wish == Wish::Pause {
                    self.wish = Wish::GoOn;
                }
                if resumed.changes_limits() {
                    self.budget = resumed.budget.unwrap_or(self.budget);
                    self.role_budgets.extend(resumed.role_budgets.clone());
                    self.warned.clear();
                }
            }
            Record::RunRecovered(_) if self.is_under_way() => self.snapshots.lost_sight(),
            Record::PlanRevised(revised) => self.stage.revise_plan(revised),
            Record::BudgetWarning(warning) => self.warned.push(warning.limit.clone()),
            Record::InputReceived(input) => self.inputs.take(input),
            Record::ModelNudged(nudge) => self.nudged = Some(nudge.turn),
            Record::ContextTrimmed(trimmed) => {
                self.context.trimmed(self.stage.seat(), trimmed.before);
            }
            Record::BackendAwaited(awaited) => {
                self.strikes.failed = 0;
                self.strikes.until = self.strikes.until.or(Some(awaited.until));
            }
            Record::BackendError(error) => self.strikes.count(error),
            Record::ModelResponse(_) => self.strikes = Strikes::default(),
            Record::RunDegraded(degraded) => {
                self.apis.insert(degraded.backend.clone(), Api::Chat);
            }
            Record::WorkspaceSnapshot(WorkspaceSnapshot { moment, taken }) => {
                if *moment == Moment::Copy {
                    self.snapshots.left = None;
                }
                let place = match moment {
                    Moment::Before => &mut self.snapshots.before,
                    Moment::After => &mut self.snapshots.after,
                    Moment::Copy => &mut self.snapshots.copy,
                    Moment::Left => &mut self.snapshots.left,
                };
                *place = Some(taken.clone());
            }
            _ => {}
        }
    }
}

impl Strikes {
    fn count(&mut self, error: &BackendError) {
        match error.reason.as_str() {
            // It is met with something else.
            OVERFLOW => {}
            "RATE_LIMITED" => self.limited = self.limited.saturating_add(1),
            _ => self.failed = self.failed.saturating_add(1),
        }
    }
}

impl Inputs {
    fn take(&mut self, input: &InputReceived) {
        self.count += 1;
        self.bytes += input.text.len();
        self.waiting.push(input.text.clone());
        if let Some(id) = &input.request_id {
            self.known.insert(id.clone(), input.text.clone());
        }
    }
}

/// What an entry makes of a run that stands still.
fn suspended(why: Suspension, work: Work, record: &Record, state: &mut RunState) -> Phase {
    match (&why, record) {
        // The wish to stop lifts a suspension: what is open is closed, then the run ends.
        (_, Record::CancelRequested(_)) => Phase::Going(work),
        (
            Suspension::OutcomeUnknown { .. } | Suspension::AwaitingApproval { .. },
            Record::CallResolved(_) | Record::ApprovalDecided(_) | Record::ToolOutput(_),
        ) => work.after(record, state).unless_waiting(&state.grants),
        // What was asked before stays answered; the run stands still all the same.
        (
            Suspension::Paused { .. } | Suspension::BudgetExhausted { .. },
            Record::ApprovalDecided(_),
        ) => Phase::Suspended { why, work: work.after(record, state) },
        (Suspension::Paused { .. } | Suspension::BudgetExhausted { .. }, Record::RunResumed(_)) => {
            Phase::Going(work)
        }
        (
            Suspension::RequestLost { .. },
            Record::RunResumed(RunResumed { lost_request: LostRequest::Repeat, .. }),
        ) => Phase::Going(work.after(record, state)),
        _ => Phase::Suspended { why, work },
    }
}

impl Phase {
    /// What people said joins the conversation where nothing is open in it; a run that was about to end goes on.
    fn with_inputs(self, state: &mut RunState) -> Self {
        if state.inputs.waiting.is_empty() {
            return self;
        }
        // It is the executor who is spoken to: what is said while another agent speaks waits for it.
        let is_heard = state.stage.seat() == Seat::Executor;
        let joined = |work: Work, state: &mut RunState| match work {
            Work::Accepted => Work::HandingOver { to: Seat::Executor },
            work if !is_heard => work,
            Work::ToAsk { .. } | Work::BackingOff { .. } => {
                state.hear_inputs();
                work
            }
            Work::Concluding { .. } => {
                state.hear_inputs();
                Work::ToAsk { attempt: 1 }
            }
            Work::Asking { .. }
            | Work::AskLost { .. }
            | Work::Calling { .. }
            | Work::HandingOver { .. }
            | Work::Restoring(_)
            | Work::Failing(_) => work,
        };
        match self {
            Self::Going(work) => Self::Going(joined(work, state)),
            Self::Suspended { why, work } => Self::Suspended { why, work: joined(work, state) },
            Self::Ended(ending) => Self::Ended(ending),
        }
    }
}

impl RunState {
    /// Another agent is to be asked: where the last request of who was asked before has failed, there was one of this turn
    /// already.
    pub(super) fn to_ask(&self) -> Work {
        let (turn, attempt) = self.requested;
        let is_under_way = turn > self.usage.turns;
        Work::ToAsk { attempt: if is_under_way { attempt.saturating_add(1) } else { 1 } }
    }

    /// The beginning of what the executor has heard was replaced. It cost something, and is no turn.
    pub(super) fn compacted(&mut self, done: &ContextCompacted) {
        self.usage.add_tokens(&done.tokens);
        let cost = done.cost_micros.unwrap_or(0);
        self.usage.cost_micros = self.usage.cost_micros.saturating_add(cost);
        self.context.compacted(done);
    }

    fn hear_inputs(&mut self) {
        // Whoever is spoken to may do more than say the same once more.
        self.stage.go_on();
        let heard = std::mem::take(&mut self.inputs.waiting);
        self.inputs.heard.extend(heard.iter().cloned());
        let items = heard.into_iter().map(|text| Item::User { text });
        self.items.extend(items);
    }
}

impl Work {
    /// Goes on, or stands still for as long as the outcome of a call is not known, or nothing can be done before a
    /// person has allowed it.
    fn unless_waiting(self, grants: &[RunGrant]) -> Phase {
        let waiting = match &self {
            Self::Calling { calls } => calls::outcome_unknown(calls).or_else(|| {
                let is_due = calls.iter().any(|open| due_invocation(open, grants).is_some());
                if is_due { None } else { calls::approval_awaited(calls) }
            }),
            _ => None,
        };
        match waiting {
            Some(why) => Phase::Suspended { why, work: self },
            None => Phase::Going(self),
        }
    }

    fn after(self, record: &Record, state: &mut RunState) -> Self {
        if let Some(returned) = Self::returned(record, state) {
            return returned;
        }
        match self {
            Self::ToAsk { .. }
            | Self::Asking { .. }
            | Self::AskLost { .. }
            | Self::BackingOff { .. } => self.of_a_request(record, state),
            Self::Concluding { .. } | Self::HandingOver { .. } | Self::Restoring(_) => {
                self.of_an_agent(record, state)
            }
            Self::Calling { calls } => match record {
                Record::AgentBegan(began) => Self::asked(calls, began, state),
                record => {
                    let mut calls = calls;
                    calls.iter_mut().for_each(|open| open.fold(record, state));
                    settled(calls, state)
                }
            },
            unchanged @ (Self::Accepted | Self::Failing(_)) => unchanged,
        }
    }
}

/// Once every call is done, their outputs join the conversation in the model's order.
pub(super) fn settled(calls: Vec<OpenCall>, state: &mut RunState) -> Work {
    let outputs: Option<Vec<Item>> = calls.iter().map(OpenCall::said).collect();
    let Some(outputs) = outputs else { return Work::Calling { calls } };
    state.items.extend(outputs);
    match state.stage.handing {
        Some(_) => Work::HandingOver { to: state.stage.seat() },
        None => state.to_ask(),
    }
}
