//! Agents that work for another one: who was asked by a call and speaks until it has an answer, and who goes on with a
//! conversation that was handed over. What is asked of them: `agents::colleagues`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{
    ids::{CallKey, RoleName, Timestamp},
    journal::{AgentBegan, Colleague, Errand, Record, ToolCalled},
    run::{
        Ending, Failure, OpenCall, Phase, Progress, RunState, Strikes, Work, fold::settled,
        stage::Part,
    },
    tool::ToolCall,
};

/// An agent was asked something by a call of another, which waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asking {
    /// The call.
    call: CallKey,
    /// All calls of that turn: the others are done, or wait for their turn.
    calls: Vec<OpenCall>,
    /// The part of the conversation that the asking agent was in, and its role.
    caller: Part,
    role: RoleName,
    /// Turns when it began; turns that are not its own, so far; and how many it may take.
    began: u32,
    after: u32,
    max_turns: u32,
    since: Timestamp,
    /// Who is to go on with the caller's conversation afterwards.
    handing: Option<Box<HandOff>>,
}

/// A conversation is on its way to another agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOff {
    /// By which it was handed over.
    pub call: CallKey,
    pub to: Colleague,
    /// Of the call, as the model wrote them.
    pub arguments: Arc<str>,
}

/// An agent that was asked, and its asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    pub call: &'a ToolCall,
    pub of: &'a Colleague,
    /// When it began; none: it has not.
    pub since: Option<Timestamp>,
}

impl RunState {
    /// Those that calls have asked and that have not answered, the one that speaks first.
    pub fn asked(&self) -> Vec<Asked<'_>> {
        let mut asked = Vec::new();
        for asking in self.stage.asked.iter().rev() {
            let open = |open: &&OpenCall| open.call.key == asking.call;
            let (it, others): (Vec<_>, Vec<_>) = asking.calls.iter().partition(open);
            asked.extend(it.into_iter().filter_map(|open| open.asked(Some(asking.since))));
            asked.extend(others.into_iter().filter_map(|open| open.asked(None)));
        }
        asked
    }

    /// Calls whose intent is on disk and whose output is not, those of the agent that speaks first, each with when it began
    /// where another agent sees to it.
    pub fn unanswered(&self) -> Vec<(&ToolCall, Option<Timestamp>)> {
        let own = match &self.phase {
            Phase::Going(Work::Calling { calls })
            | Phase::Suspended { work: Work::Calling { calls }, .. } => calls.as_slice(),
            Phase::Going(_) | Phase::Suspended { .. } | Phase::Ended(_) => &[],
        };
        let is_open =
            |open: &&OpenCall| !matches!(open.progress, Progress::Asked | Progress::Done { .. });
        let own = own.iter().filter(is_open).map(|open| (&open.call, None));
        own.chain(self.asked().into_iter().map(|asked| (asked.call, asked.since))).collect()
    }

    /// The next one that a call of the turn under way asks.
    pub fn to_be_asked(&self) -> Option<Asked<'_>> {
        let (Phase::Going(Work::Calling { calls })
        | Phase::Suspended { work: Work::Calling { calls }, .. }) = &self.phase
        else {
            return None;
        };
        calls.iter().find_map(|open| open.asked(None))
    }

    /// The call that the agent which speaks was asked by; none where it was not asked.
    pub(super) fn answers(&self) -> Option<CallKey> {
        self.stage.asked.last().map(|asking| asking.call)
    }

    /// Whoever was asked is to come to an end.
    pub(super) fn overstays(&self) -> Option<Ending> {
        let asking = self.stage.asked.last()?;
        let turns = self.usage.turns.saturating_sub(asking.after);
        (turns >= asking.max_turns).then(|| {
            Ending::Failed(Failure {
                reason: "TURNS_EXHAUSTED".into(),
                message: format!(
                    "it came to no answer in {turns} turns (max_turns in the configuration)"
                ),
            })
        })
    }
}

impl OpenCall {
    fn asked(&self, since: Option<Timestamp>) -> Option<Asked<'_>> {
        match &self.progress {
            Progress::Delegated { to } => Some(Asked { call: &self.call, of: to, since }),
            _ => None,
        }
    }

    /// The intent of a call that another agent is to see to, or that hands the conversation over.
    pub(super) fn intended(&self, called: &ToolCalled, state: &mut RunState) -> Progress {
        match called.errand.as_deref() {
            Some(Errand::Ask(to)) => Progress::Delegated { to: Arc::new(to.clone()) },
            Some(Errand::HandOff(to)) => {
                let ToolCall { key: call, arguments, .. } = self.call.clone();
                let handing = || Box::new(HandOff { call, to: to.clone(), arguments });
                state.stage.handing.get_or_insert_with(handing);
                Progress::Intended { attempt: 1, class: called.effect_class }
            }
            Some(Errand::RevisePlan) | None => {
                Progress::Intended { attempt: 1, class: called.effect_class }
            }
        }
    }
}

impl Work {
    /// Somebody was asked, and begins.
    pub(super) fn asked(calls: Vec<OpenCall>, began: &AgentBegan, state: &mut RunState) -> Self {
        let asked = began.call.zip(began.agent.as_ref());
        let is_open = |call: CallKey| {
            calls.iter().any(|open| open.call.key == call && open.asked(None).is_some())
        };
        let Some((call, agent)) = asked.filter(|(call, _)| is_open(*call)) else {
            return Self::Calling { calls };
        };
        let asking = Asking {
            call,
            calls,
            caller: state.stage.part(),
            role: state.role.clone(),
            began: state.usage.turns,
            after: state.usage.turns,
            max_turns: agent.max_turns,
            since: state.updated,
            handing: state.stage.handing.take(),
        };
        state.stage.all_is_one_agents();
        state.stage.asked.push(asking);
        Self::begun(began, state)
    }

    /// Whoever was asked has answered, or will not: its caller goes on.
    pub(super) fn returned(record: &Record, state: &mut RunState) -> Option<Self> {
        let Record::ToolOutput(output) = record else { return None };
        let asking = state.stage.asked.pop_if(|asking| asking.call == output.call)?;
        let (from, after) = (state.items.len(), state.usage.turns);
        state.strikes = Strikes::default();
        state.begins(Part { from, after, ..asking.caller });
        // Whoever asks is not charged for the turns of others.
        if let Some(caller) = state.stage.asked.last_mut() {
            caller.after += after.saturating_sub(asking.began);
        }
        state.stage.handing = asking.handing;
        state.role = asking.role;
        let mut calls = asking.calls;
        calls.iter_mut().for_each(|open| open.fold(record, state));
        Some(settled(calls, state))
    }
}
