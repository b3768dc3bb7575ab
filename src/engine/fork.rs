//! Runs that go on where another one was: which places of a run those are, and how one begins there. What is copied is
//! the conversation; files are as they are.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize;

use crate::{
    agents,
    domain::{
        access::Access,
        budget::{self, Budget, RoleBudgets, Usage, roles_over},
        ids::{RunId, Sequence, Timestamp},
        item::Item,
        journal::{Forked, RunCreated},
        run::{RunState, Seat},
    },
    engine::{
        Engine, EngineError, Submitted, WhenBusy, colleagues,
        run_log::{Folding, RunLog},
        submission::{Wanted, check_common, check_labels, digest},
    },
    ports::{Admission, JournalError},
};

/// Starts a run where another one was.
#[derive(Debug, Clone)]
pub struct Fork {
    pub run: RunId,
    /// A checkpoint of it; 0: the last one, or, where nothing is said, the last one at which the model can be asked.
    pub at: Sequence,
    /// What to say to the model there; empty: nothing.
    pub input: String,
    /// Empty: that of the run.
    pub agent: String,
    /// Empty: that of the run.
    pub model: String,
    /// Empty: that of the run.
    pub workspace: String,
    /// Zeros stand for the run's own limits. Counted anew.
    pub budget: Budget,
    pub role_budgets: RoleBudgets,
    pub labels: BTreeMap<String, String>,
    pub request_id: Option<String>,
    pub when_busy: WhenBusy,
}

/// A place of a run at which its conversation is whole: each call has its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Of the entry that made it whole.
    pub sequence: Sequence,
    pub time: Timestamp,
    /// Answers of the model so far.
    pub turn: u32,
    /// Items of the conversation so far.
    pub items: usize,
    pub usage: Usage,
    pub by: LastWord,
}

/// Who said the last thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastWord {
    /// A person, or agentd for a tool: the model can be asked as it is.
    Ours,
    /// The model: it is to be told something first.
    Models,
}

/// What is digested of a fork: as it was sent, since what it stands for may change meanwhile.
#[derive(Serialize)]
struct Sent<'a> {
    fork_of: RunId,
    at: Sequence,
    input: &'a str,
    agent: &'a str,
    model: &'a str,
    workspace: &'a str,
    budget: Budget,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    role_budgets: &'a RoleBudgets,
    labels: &'a BTreeMap<String, String>,
}

impl Fork {
    fn sent(&self) -> Sent<'_> {
        Sent {
            fork_of: self.run,
            at: self.at,
            input: &self.input,
            agent: &self.agent,
            model: &self.model,
            workspace: &self.workspace,
            budget: self.budget,
            role_budgets: &self.role_budgets,
            labels: &self.labels,
        }
    }
}

fn check(wanted: &Fork) -> Result<(), EngineError> {
    if wanted.input.len() > budget::TASK_BYTES {
        let message = format!("is {} bytes long, 1 MiB is accepted", wanted.input.len());
        return Err(EngineError::InvalidField { field: "input", message });
    }
    check_labels(&wanted.labels)?;
    check_common(&wanted.model, wanted.request_id.as_deref())
}

/// What the executor has heard and said: it is the executor who goes on elsewhere.
fn heard(state: &RunState) -> Option<Cow<'_, [Item]>> {
    Some(state.stage.heard_by(Seat::Executor, state.items.get()?))
}

fn last_word(state: &RunState) -> LastWord {
    match heard(state).as_deref().and_then(<[Item]>::last) {
        Some(Item::Model { .. }) => LastWord::Models,
        Some(Item::User { .. } | Item::ToolOutput { .. }) | None => LastWord::Ours,
    }
}

fn checkpoint(state: &RunState) -> Checkpoint {
    Checkpoint {
        sequence: state.head,
        time: state.updated,
        turn: state.usage.turns,
        items: state.items.len(),
        usage: state.usage,
        by: last_word(state),
    }
}

impl Engine {
    /// Checkpoints of a run after a place, oldest first, at most `limit`.
    pub async fn checkpoints(
        &self,
        run: RunId,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Checkpoint>, EngineError> {
        let _place = self.inner.walks.acquire().await;
        let (mut found, mut items) = (Vec::new(), 0);
        RunLog::walk(&*self.inner.world.journal, run, |state| {
            if state.items.len() > items && state.is_whole() {
                items = state.items.len();
                if state.head > after {
                    found.push(checkpoint(state));
                }
            }
            if found.len() < limit { Folding::GoOn } else { Folding::Enough }
        })
        .await?;
        Ok(found)
    }

    /// Starts a run at a checkpoint of another. Once this returns, it is on disk, and will be carried out.
    ///
    /// The same `request_id` and body from the same caller give the same run.
    pub async fn fork(&self, access: Access, wanted: Fork) -> Result<Submitted, EngineError> {
        self.check_goes_on()?;
        check(&wanted)?;
        let engine = self.clone();
        self.finish(async move { engine.fork_checked(access, wanted).await }).await
    }

    async fn fork_checked(&self, access: Access, wanted: Fork) -> Result<Submitted, EngineError> {
        let admission = Admission {
            caller: access.caller.clone(),
            request_id: wanted.request_id.clone(),
            digest: digest(&wanted.sent())?,
        };
        if let Some(run) = self.inner.world.journal.submitted(admission.clone()).await? {
            return Ok(Submitted::Existed(self.run(run).await?));
        }
        // Where nothing is said, the model must have something to answer.
        let fits =
            |state: &RunState| !wanted.input.is_empty() || last_word(state) == LastWord::Ours;
        let parent = self.conversation_at(wanted.run, wanted.at, fits).await?;
        let unread = || JournalError::Unreadable { what: "a conversation was not read".into() };
        let mut items = heard(&parent).ok_or_else(unread)?.into_owned();
        if items.is_empty() {
            items.push(Item::User { text: parent.spec.task.clone() });
        }
        let task = match wanted.input.as_str() {
            "" if last_word(&parent) == LastWord::Models => {
                let message = "is empty, and the conversation ends there with the model's own words: say \
                               something, or fork from an earlier checkpoint";
                return Err(EngineError::InvalidField { field: "input", message: message.into() });
            }
            "" => parent.spec.task.clone(),
            input => {
                items.push(Item::User { text: input.into() });
                input.into()
            }
        };
        let or_parents = |wanted: String, own: &str| match wanted.is_empty() {
            true => own.to_owned(),
            false => wanted,
        };
        let handing = parent.stage.handing().map(|handing| &handing.to);
        let last = handing.or(parent.stage.agent_in(Seat::Executor).map(|agent| &**agent));
        let speaker = match (parent.spec.team, last) {
            (None, Some(agent)) => &*agent.name,
            (None, None) | (Some(_), _) => &parent.spec.agent,
        };
        let agent = or_parents(wanted.agent, speaker);
        let model = Some(wanted.model)
            .filter(|model| !model.is_empty())
            .or_else(|| parent.spec.model.clone());
        if !colleagues::think_alike(&self.inner.world, &parent, (&agent, model.as_deref())) {
            items = items.iter().filter_map(Item::for_others).collect();
        }
        // Reviewers are told of the whole task.
        let task = match (agents::is_team(&agent), wanted.input.as_str()) {
            (true, input) if !input.is_empty() => {
                format!("{}\n\nThen: {input}", parent.spec.task).into()
            }
            _ => task,
        };
        let spec = RunCreated {
            task,
            workspace: or_parents(wanted.workspace, &parent.spec.workspace),
            role: None,
            output: None,
            told: Vec::new(),
            team: None,
            agent,
            model,
            budget: wanted.budget.over(parent.budget),
            role_budgets: roles_over(wanted.role_budgets, &parent.role_budgets),
            labels: wanted.labels,
            submitter: access.caller.clone(),
            request_id: wanted.request_id,
            forked: Some(Forked { run: wanted.run, sequence: parent.head, items }),
        };
        self.enter((access, admission), Wanted { spec, when_busy: wanted.when_busy }).await
    }

    /// A run as it was at a checkpoint: by its sequence, or at the last one that `fits`.
    async fn conversation_at(
        &self,
        run: RunId,
        at: Sequence,
        fits: impl Fn(&RunState) -> bool,
    ) -> Result<RunState, EngineError> {
        let _place = self.inner.walks.acquire().await;
        let journal = &*self.inner.world.journal;
        let (mut last, mut items) = (None, 0);
        RunLog::walk(journal, run, |state| {
            if state.items.len() > items && state.is_whole() {
                items = state.items.len();
                if state.head == at || (at == Sequence(0) && fits(state)) {
                    last = Some(state.head);
                }
            }
            let is_past = at != Sequence(0) && state.head >= at;
            if is_past { Folding::Enough } else { Folding::GoOn }
        })
        .await?;
        let none = || EngineError::InvalidField {
            field: "at_sequence",
            message: format!(
                "{at} is no checkpoint of run {run}; agentctl run checkpoints lists them"
            ),
        };
        let last = last.ok_or_else(none)?;
        // Once more, so that the conversation is copied once.
        let state = RunLog::walk(journal, run, |state| match state.head >= last {
            true => Folding::Enough,
            false => Folding::GoOn,
        });
        state.await?.ok_or_else(none)
    }
}
