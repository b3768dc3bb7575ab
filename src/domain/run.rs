//! A run's state. [`fold`] is the only place where it changes, [`decide`] says what to do next. Both
//! are pure and total: a crash can fall between any two entries, and what is left still folds.

mod asked;
mod calls;
mod context;
mod conversation;
mod decide;
mod fold;
mod phase;
mod request;
mod stage;
mod stored;
mod team;

pub use asked::{Asked, HandOff};
pub use calls::{OpenCall, Progress};
pub use context::{Context, Hearer, OVERFLOW, Overflow, by_rule_of_thumb, bytes};
pub use conversation::Conversation;
pub use decide::{Command, Invocation, InvocationMode, decide};
pub use fold::{fold, fold_into};
pub use phase::{Ending, Failure, Nudged, Phase, Replay, Suspension, Work};
pub use stage::{Revision, Seat, Stage};
pub use stored::{StoredFault, encode_items};
pub use team::Conclusion;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::domain::{
    approval::RunGrant,
    backend::{Api, BackendName},
    budget::{Budget, Limits, RoleBudgets, Usage},
    ids::{CallKey, RoleName, RunId, Sequence, Timestamp},
    item::{Item, check_pairing},
    journal::{Entry, Record, RunCreated, Taken},
    tool::ToolCall,
};

/// Everything that is known of a run: the fold of its journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    pub id: RunId,
    /// Sequence of the last entry folded in.
    pub head: Sequence,
    /// What was submitted; a conversation that it began with is in `items` alone.
    pub spec: Arc<RunCreated>,
    /// The limits that hold: those submitted, or those that somebody has set since.
    pub budget: Budget,
    pub role_budgets: RoleBudgets,
    /// Of the agent that speaks to the model.
    pub role: RoleName,
    #[serde(skip)]
    pub items: Conversation,
    /// What of the conversation is sent.
    pub context: Context,
    /// How far its agents have come, where there are several.
    pub stage: Stage,
    pub inputs: Inputs,
    /// How the turn under way has failed so far.
    pub strikes: Strikes,
    /// The last request that was begun: its turn, and which attempt of it.
    pub requested: (u32, u32),
    /// How it asks each backend that has answered it: that is so to the end.
    pub apis: BTreeMap<BackendName, Api>,
    /// The last turn that said nothing, and was told so.
    pub nudged: Option<u32>,
    pub usage: Usage,
    /// What of it the agents of each role have used.
    pub role_usage: BTreeMap<RoleName, Usage>,
    /// Limits of the budgets that were warned of since it was set.
    pub warned: Vec<String>,
    /// What people allowed for the rest of the run.
    pub grants: Vec<RunGrant>,
    pub snapshots: Snapshots,
    pub wish: Wish,
    pub phase: Phase,
    pub created: Timestamp,
    pub updated: Timestamp,
}

/// The files of the workspace before and after the run; none where no snapshot was tried.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshots {
    pub before: Option<Taken>,
    pub after: Option<Taken>,
    /// Of before, byte for byte; none where nobody may want it back.
    pub copy: Option<Taken>,
    /// Since the run stood still, others may have worked there: none, if it has not, or that was looked at.
    pub left: Option<Taken>,
}

impl Snapshots {
    /// The daemon died while the run was at work: what others did until the next one came, nobody can tell.
    fn lost_sight(&mut self) {
        if matches!((&self.copy, &self.left), (Some(Taken::Tree(_)), None)) {
            let why = "a daemon died while the run was at work, and others may have changed it meanwhile; undo what the run \
                       did by hand (`agentctl run diff`, `git apply -R`)";
            self.left = Some(Taken::Failed(why.into()));
        }
    }
}

/// What people said to a run after its task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Inputs {
    /// Not yet in the conversation, oldest first: it is not interrupted between a call and its output.
    pub waiting: Vec<Arc<str>>,
    /// That are in the conversation, oldest first.
    pub heard: Vec<Arc<str>>,
    /// By the id that it was sent with.
    pub known: BTreeMap<String, Arc<str>>,
    /// How many there were in all, and how long, in bytes.
    pub count: usize,
    pub bytes: usize,
}

/// How often a turn has failed, by what came of it, and how long it has waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Strikes {
    /// Requests that failed since the backend was awaited last.
    pub failed: u32,
    /// Requests of which the backend said that they were too many.
    pub limited: u32,
    /// When the run gives up on a backend that does not work; none: it has not waited in this turn.
    pub until: Option<Timestamp>,
}

/// What people want of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    GoOn,
    /// It stands still before anything else is begun.
    Pause,
    Cancel,
}

impl RunState {
    /// The state after the first entry of a run's chain, whose record it is.
    pub fn created(id: RunId, sequence: Sequence, time: Timestamp, mut spec: RunCreated) -> Self {
        let (items, stage, work) = match (&mut spec.forked, spec.team) {
            (Some(forked), team) => {
                let stage = team.map_or_else(Stage::default, |_| Stage::of_executor());
                (std::mem::take(&mut forked.items), stage, Work::ToAsk { attempt: 1 })
            }
            (None, None) => {
                let items = vec![Item::User { text: spec.task.clone() }];
                (items, Stage::default(), Work::ToAsk { attempt: 1 })
            }
            (None, Some(_)) => {
                (Vec::new(), Stage::default(), Work::HandingOver { to: Seat::Planner })
            }
        };
        Self {
            id,
            head: sequence,
            budget: spec.budget,
            role_budgets: spec.role_budgets.clone(),
            role: role(&spec),
            spec: Arc::new(spec),
            items: items.into(),
            context: Context::default(),
            stage,
            inputs: Inputs::default(),
            strikes: Strikes::default(),
            requested: (0, 0),
            apis: BTreeMap::new(),
            nudged: None,
            usage: Usage::default(),
            role_usage: BTreeMap::new(),
            warned: Vec::new(),
            grants: Vec::new(),
            snapshots: Snapshots::default(),
            wish: Wish::GoOn,
            phase: Phase::Going(work),
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

    /// Whether some of it is asked without tools, for want of an API that has them.
    pub fn is_degraded(&self) -> bool {
        self.apis.values().any(|api| *api == Api::Chat)
    }

    /// Name of the agent that speaks: of several, they are named after their roles.
    pub fn speaker(&self) -> &str {
        match (self.stage.agent(), self.spec.team) {
            (Some(agent), _) => &agent.name,
            (None, Some(_)) => self.role.as_str(),
            (None, None) => &self.spec.agent,
        }
    }

    /// What limits the run.
    pub fn limits(&self) -> Limits<'_> {
        Limits { run: self.budget, roles: &self.role_budgets }
    }

    /// The call of that key, if it is one of the turn under way.
    pub fn open_call(&self, key: CallKey) -> Option<&OpenCall> {
        match &self.phase {
            Phase::Going(Work::Calling { calls })
            | Phase::Suspended { work: Work::Calling { calls }, .. } => {
                calls.iter().find(|open| open.call.key == key)
            }
            Phase::Going(_) | Phase::Suspended { .. } | Phase::Ended(_) => None,
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
        let is_meant = |open: &&OpenCall| open.unknown_outcome() == Some(key);
        calls.iter().find(is_meant).map(|open| &open.call)
    }

    /// Whether the conversation can be gone on with elsewhere: no call in what the executor has heard is without its
    /// output.
    pub fn is_whole(&self) -> bool {
        let is_paired = |items: &[Item]| {
            let heard = self.stage.heard_by(Seat::Executor, items);
            check_pairing(heard.iter().map(Item::paired)).is_ok()
        };
        match &self.phase {
            _ if !self.stage.asked.is_empty() => false,
            Phase::Going(Work::Calling { .. })
            | Phase::Suspended { work: Work::Calling { .. }, .. } => false,
            Phase::Ended(_)
            | Phase::Going(Work::Failing(_))
            | Phase::Suspended { work: Work::Failing(_), .. } => {
                self.items.get().is_some_and(is_paired)
            }
            Phase::Going(_) | Phase::Suspended { .. } => true,
        }
    }

    /// Number of the turn under way or next, from 1.
    pub fn turn(&self) -> u32 {
        match &self.phase {
            Phase::Going(work) | Phase::Suspended { work, .. } => match work {
                Work::ToAsk { .. }
                | Work::Asking { .. }
                | Work::AskLost { .. }
                | Work::BackingOff { .. } => self.usage.turns + 1,
                Work::Calling { .. }
                | Work::Concluding { .. }
                | Work::HandingOver { .. }
                | Work::Accepted
                | Work::Restoring(_)
                | Work::Failing(_) => self.usage.turns,
            },
            Phase::Ended(_) => self.usage.turns,
        }
    }
}

/// The role of the agent that a run begins with.
fn role(spec: &RunCreated) -> RoleName {
    match (&spec.role, spec.team) {
        (Some(role), _) => role.clone(),
        // Of several, the one that begins has another.
        (None, Some(_)) => RoleName::new("executor"),
        (None, None) => RoleName::new(&*spec.agent),
    }
}

#[cfg(test)]
#[path = "run_tests/mod.rs"]
mod tests;
