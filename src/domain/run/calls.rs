//! One call of the turn under way: how far it has come, and what an entry does to it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{
    approval::Approval,
    ids::CallKey,
    item::{Item, RawJson},
    journal::{
        ApprovalDecided, ApprovalDecision, ApprovalRequested, CallResolved, Colleague, Record,
        Resolution, ToolOutput,
    },
    run::{RunState, Suspension},
    tool::{EffectClass, OnUnknown, ToolCall},
};

/// One call of the turn under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenCall {
    pub call: ToolCall,
    pub progress: Progress,
    /// What the call was resolved to when its intent was written.
    pub facts: Option<RawJson>,
    /// As the policy said then.
    pub on_unknown: OnUnknown,
    /// What people have allowed of it.
    pub approvals: Vec<Approval>,
}

/// How far a call has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// A person is asked whether it may be done, as attempt `attempt`.
    Waiting {
        attempt: u32,
        asked: Arc<ApprovalRequested>,
    },
    /// A person allowed it; it is not begun.
    Approved {
        attempt: u32,
        class: EffectClass,
    },
    /// A person said no, or nobody said anything in time.
    Denied {
        attempt: u32,
        said: Arc<ApprovalDecided>,
    },
    /// Its intent is on disk, and another agent sees to it.
    Delegated {
        to: Arc<Colleague>,
    },
    Done {
        output: Arc<str>,
    },
}

impl OpenCall {
    /// What the model hears of it; none while it is open.
    pub(super) fn said(&self) -> Option<Item> {
        match &self.progress {
            Progress::Done { output } => Some(Item::ToolOutput {
                call_id: self.call.call_id.clone(),
                output: output.clone(),
            }),
            Progress::Asked
            | Progress::Intended { .. }
            | Progress::Lost { .. }
            | Progress::ToRetry { .. }
            | Progress::Waiting { .. }
            | Progress::Approved { .. }
            | Progress::Delegated { .. }
            | Progress::Denied { .. } => None,
        }
    }

    /// What a person is asked about it; none if nobody is asked.
    pub fn waits_for(&self) -> Option<&Arc<ApprovalRequested>> {
        match &self.progress {
            Progress::Waiting { asked, .. } => Some(asked),
            _ => None,
        }
    }

    /// The call's key, if only a person can know what became of it.
    pub(super) fn unknown_outcome(&self) -> Option<CallKey> {
        let is_unknown =
            matches!(self.progress, Progress::Lost { class: EffectClass::NonIdempotent, .. });
        (is_unknown && self.on_unknown == OnUnknown::Ask).then_some(self.call.key)
    }

    pub(super) fn fold(&mut self, record: &Record, state: &mut RunState) {
        let key = self.call.key;
        if let Some(next) = self.asked_about(record, state) {
            self.progress = next;
            return;
        }
        let next = match (&self.progress, record) {
            (Progress::Asked, Record::ToolCalled(called)) if called.call == key => {
                state.usage.tool_calls += 1;
                self.facts = called.facts.clone();
                self.on_unknown = called.on_unknown;
                self.intended(called, state)
            }
            (
                Progress::Lost { attempt, class },
                Record::CallResolved(CallResolved { call, resolution: Resolution::Retry, .. }),
            ) if *call == key => {
                // Whoever allowed it once has not allowed it twice.
                self.approvals.clear();
                Progress::ToRetry { attempt: *attempt, class: *class }
            }
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
                Progress::Intended { .. }
                | Progress::Lost { .. }
                | Progress::ToRetry { .. }
                | Progress::Waiting { .. }
                | Progress::Approved { .. }
                | Progress::Delegated { .. }
                | Progress::Denied { .. },
                Record::ToolOutput(ToolOutput { call, output, used, .. }),
            ) if *call == key => {
                let cpu_ms = used.as_ref().map_or(0, |used| used.cpu_ms);
                state.usage.cpu_ms = state.usage.cpu_ms.saturating_add(cpu_ms);
                Progress::Done { output: output.clone() }
            }
            _ => return,
        };
        self.progress = next;
    }
}

impl OpenCall {
    /// How far the call has come by what people are asked and say; none where the entry is about something else.
    fn asked_about(&mut self, record: &Record, state: &mut RunState) -> Option<Progress> {
        let key = self.call.key;
        Some(match (&self.progress, record) {
            (Progress::Intended { attempt, .. }, Record::ApprovalRequested(asked))
                if asked.call == key =>
            {
                // What it will have been begun with, should its outcome be lost.
                if *attempt == 1 {
                    self.facts = Some(asked.facts.clone());
                }
                Progress::Waiting { attempt: *attempt, asked: Arc::new(asked.clone()) }
            }
            (Progress::Waiting { attempt, asked }, Record::ApprovalDecided(said))
                if said.call == key && said.digest == asked.digest =>
            {
                match said.decision {
                    ApprovalDecision::Approved => {
                        let (rule, digest) = (asked.rule.clone(), asked.digest.clone());
                        self.approvals.push(Approval { rule, digest });
                        state.grants.extend(said.grant.clone());
                        Progress::Approved { attempt: *attempt, class: asked.effect_class }
                    }
                    ApprovalDecision::Denied | ApprovalDecision::Expired => {
                        Progress::Denied { attempt: *attempt, said: Arc::new(said.clone()) }
                    }
                }
            }
            // Decided once more, with that leave: what follows is the effect.
            (Progress::Approved { attempt, class }, Record::Decided(decided))
                if decided.call == key =>
            {
                self.facts = decided.facts.clone().or_else(|| self.facts.take());
                Progress::Intended { attempt: *attempt, class: *class }
            }
            // The same by leave for the whole run, which covers what is asked here.
            (Progress::Waiting { attempt, asked }, Record::Decided(decided))
                if decided.call == key =>
            {
                let next = Progress::Intended { attempt: *attempt, class: asked.effect_class };
                self.facts = decided.facts.clone().or_else(|| self.facts.take());
                next
            }
            _ => return None,
        })
    }
}

/// What only a person can know; none if there is nothing.
pub(super) fn outcome_unknown(calls: &[OpenCall]) -> Option<Suspension> {
    let unknown: Vec<CallKey> = calls.iter().filter_map(OpenCall::unknown_outcome).collect();
    (!unknown.is_empty()).then(|| Suspension::OutcomeUnknown {
        message: format!(
            "the daemon died while {} ran, and nobody can tell whether it took effect; look at the workspace, \
             then say what became of it (agentctl run resolve), or cancel the run",
            named(&unknown)
        ),
        calls: unknown,
    })
}

/// What people are asked; none if there is nothing.
pub(super) fn approval_awaited(calls: &[OpenCall]) -> Option<Suspension> {
    let waiting: Vec<CallKey> =
        calls.iter().filter(|open| open.waits_for().is_some()).map(|open| open.call.key).collect();
    (!waiting.is_empty()).then(|| Suspension::AwaitingApproval {
        message: format!(
            "a person has to allow {} (agentctl approvals says what that is; agentctl run approve, or run deny)",
            named(&waiting)
        ),
        calls: waiting,
    })
}

fn named(calls: &[CallKey]) -> String {
    calls.iter().map(|key| format!("call {key}")).collect::<Vec<_>>().join(", ")
}
