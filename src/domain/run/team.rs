//! The agents of a run: what follows when one has said its last word, and what the entries about them make of the run. A run
//! of one agent alone has little of this. Who speaks: [`super::stage`].

use std::sync::Arc;

use crate::domain::{
    guardrail::{Consequence, Violation},
    item::Item,
    journal::{
        AgentBegan, GuardrailsChecked, OnVeto, OutputRefused, PlanMade, Record, RepositoryTold,
        Reviewed, StepFinished, Taken, WorkspaceRestored,
    },
    output,
    plan::{Plan, Verdict},
    run::{Command, Ending, Failure, Nudged, RunState, Seat, Snapshots, Work, stage::Part},
};

/// What one of several agents has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conclusion {
    Plan(Plan),
    Verdict(Verdict),
    /// What came of the step under way, from 1.
    Step {
        step: usize,
        result: Arc<str>,
    },
    /// Nothing that can be used.
    Unreadable {
        why: String,
    },
}

impl RunState {
    /// What follows the last word of the agent that speaks.
    pub(super) fn concluded(&self, answer: &Arc<str>) -> Command {
        let finished = |answer| Command::Finish(Ending::Succeeded { answer });
        let turn = self.usage.turns;
        let concluded = |conclusion| Command::Conclude { turn, conclusion };
        let in_shape = || match self.schema() {
            None => Ok(answer.clone()),
            Some(schema) => output::read(schema, answer),
        };
        let next = match (self.spec.team, self.stage.seat()) {
            (_, Seat::Asked) | (None, _) => in_shape().map(finished),
            (Some(_), Seat::Executor) => in_shape().map(|result| match self.stage.step() {
                Some(step) => concluded(Conclusion::Step { step, result }),
                None => Command::CheckWork,
            }),
            (Some(_), Seat::Planner) => Plan::read(answer).map(Conclusion::Plan).map(concluded),
            (Some(_), Seat::Reviewer) => {
                Verdict::read(answer).map(Conclusion::Verdict).map(concluded)
            }
        };
        match next {
            Ok(command) => command,
            Err(why) if self.stage.is_corrected => Command::Finish(Ending::Failed(Failure {
                reason: "OUTPUT_INVALID".into(),
                message: format!(
                    "what the model said, twice, has not the shape that was asked for ({why}); its words are in the \
                     journal. Try another model, or the executor alone (--agent executor)"
                ),
            })),
            Err(why) => concluded(Conclusion::Unreadable { why }),
        }
    }
}

impl RunState {
    /// What was learnt of the model that was asked is not so of another.
    pub(super) fn begins(&mut self, part: Part) {
        let before = self.stage.part();
        if (before.seat, &before.agent) != (part.seat, &part.agent) {
            self.context.is_anothers();
        }
        let handed_over = part.seat == Seat::Executor
            && !self.stage.places(Seat::Executor, self.items.len()).is_empty()
            && self.stage.agent_in(Seat::Executor) != part.agent.as_ref();
        if handed_over {
            self.context.is_handed_over();
        }
        self.stage.parts.push(part);
        self.stage.is_corrected = false;
    }

    /// JSON Schema of what the agent that speaks is to answer; none: words.
    pub fn schema(&self) -> Option<&str> {
        match self.stage.agent() {
            Some(agent) => agent.output.as_deref(),
            None => self.spec.output.as_deref(),
        }
    }
}

impl Work {
    pub(super) fn of_an_agent(self, record: &Record, state: &mut RunState) -> Self {
        match (self, record) {
            (
                Self::Concluding { answer: None, nudged: Nudged::NotYet },
                Record::ModelNudged(nudge),
            ) => {
                state.items.extend([Item::User { text: nudge.text.clone() }]);
                Self::ToAsk { attempt: 1 }
            }
            (Self::HandingOver { .. }, Record::AgentBegan(began)) => Self::begun(began, state),
            (Self::Concluding { answer, .. }, Record::GuardrailsChecked(checked)) => {
                Self::checked(checked, answer, state)
            }
            (Self::Concluding { .. }, Record::PlanMade(made)) => Self::planned(made, state),
            (Self::Concluding { answer, .. }, Record::StepFinished(done)) => {
                Self::stepped(done, answer, state)
            }
            (Self::Restoring(failure), Record::WorkspaceRestored(restored)) => {
                Self::restored(failure, restored, &state.snapshots)
            }
            (Self::Concluding { .. }, Record::OutputRefused(refused)) => {
                Self::corrected(refused, state)
            }
            (Self::Concluding { .. }, Record::Reviewed(reviewed)) => {
                Self::reviewed(reviewed, state)
            }
            (unchanged, _) => unchanged,
        }
    }

    pub(super) fn told(self, told: &RepositoryTold, state: &mut RunState) -> Self {
        state.stage.told.push(told.seat);
        if !told.text.is_empty() {
            state.items.extend([Item::User { text: told.text.clone() }]);
        }
        self
    }

    pub(super) fn begun(began: &AgentBegan, state: &mut RunState) -> Self {
        let (from, after) = (state.items.len(), state.usage.turns);
        if state.spec.team.is_none() {
            state.stage.all_is_one_agents();
        }
        let AgentBegan { seat, call, .. } = *began;
        let agent = began.agent.clone().map(Arc::new);
        state.begins(Part { seat, call, agent, from, after });
        state.stage.handing = None;
        state.role = began.role.clone();
        state.items.extend([Item::User { text: began.text.clone() }]);
        state.to_ask()
    }

    pub(super) fn planned(made: &PlanMade, state: &mut RunState) -> Self {
        state.stage.plan = Some(Arc::new(made.plan.clone()));
        Self::HandingOver { to: Seat::Executor }
    }

    pub(super) fn stepped(
        done: &StepFinished,
        answer: Option<Arc<str>>,
        state: &mut RunState,
    ) -> Self {
        state.stage.results.push(done.result.clone());
        state.stage.go_on();
        match state.stage.step() {
            Some(_) => Self::HandingOver { to: Seat::Executor },
            None => Self::Concluding { answer, nudged: Nudged::NotYet },
        }
    }

    pub(super) fn corrected(refused: &OutputRefused, state: &mut RunState) -> Self {
        state.stage.is_corrected = true;
        state.items.extend([Item::User { text: refused.text.clone() }]);
        Self::ToAsk { attempt: 1 }
    }

    pub(super) fn checked(
        checked: &GuardrailsChecked,
        answer: Option<Arc<str>>,
        state: &mut RunState,
    ) -> Self {
        state.stage.result = answer;
        state.stage.checked = Some(Arc::new(checked.clone()));
        let vetoes = |found: &&Violation| found.consequence == Consequence::Veto;
        let vetoing: Vec<String> =
            checked.violations.iter().filter(vetoes).map(Violation::to_string).collect();
        match vetoing.is_empty() {
            true => Self::HandingOver { to: Seat::Reviewer },
            false => Self::vetoed(
                format!(
                    "the work does what it must not, whatever a reviewer would say: {} (`guardrails` in the \
                     configuration says what is looked for)",
                    vetoing.join("; ")
                ),
                state,
            ),
        }
    }

    pub(super) fn reviewed(reviewed: &Reviewed, state: &mut RunState) -> Self {
        let failing =
            |reason: &str, message| Self::Failing(Failure { reason: reason.into(), message });
        match &reviewed.verdict {
            Verdict::Accept { .. } => {
                state.stage.findings.clear();
                Self::Accepted
            }
            Verdict::Revise { findings } => {
                state.stage.findings.clone_from(findings);
                state.stage.rounds += 1;
                let most = state.spec.team.map_or(0, |team| team.max_review_rounds);
                match state.stage.rounds > most {
                    false => Self::HandingOver { to: Seat::Executor },
                    true => failing(
                        "REVIEW_FAILED",
                        format!(
                            "the reviewer sent the work back more often than {most} times; the last findings: {}. What was \
                             done is in the workspace",
                            findings.join("; ")
                        ),
                    ),
                }
            }
            Verdict::Veto { reason, rule } => {
                let rule = rule.as_ref().map(|rule| format!(" (rule {rule})")).unwrap_or_default();
                Self::vetoed(format!("the reviewer vetoed the work{rule}: {reason}"), state)
            }
        }
    }

    /// Nothing more is done, but for the workspace where that is wanted and something was changed.
    fn vetoed(why: String, state: &RunState) -> Self {
        let failure = |what: &str| Failure {
            reason: "VETOED".into(),
            message: format!("{}. {what}", why.trim_end_matches('.')),
        };
        let wanted = state.spec.team.map(|team| team.on_veto).unwrap_or_default();
        match (wanted, &state.snapshots.copy) {
            (OnVeto::Restore, Some(_)) => Self::Restoring(failure("")),
            (OnVeto::Restore, None) | (OnVeto::Keep, _) => {
                Self::Failing(failure("The workspace is as the run left it"))
            }
        }
    }

    pub(super) fn restored(
        mut failure: Failure,
        restored: &WorkspaceRestored,
        snapshots: &Snapshots,
    ) -> Self {
        let is_told = matches!(snapshots.after, Some(Taken::Tree(_)));
        let told = if is_told { "its diff" } else { "the journal" };
        failure.message.push_str(&match &restored.why {
            None => format!(
                "The files of the workspace are again what they were before the run; what it did is in {told}"
            ),
            Some(why) if restored.tree.is_none() => {
                format!("The workspace was to be restored, and is as the run left it: {why}")
            }
            Some(why) => format!(
                "The workspace was to be restored, and may be so in part only: {why}. What the run did is in {told}"
            ),
        });
        Self::Failing(failure)
    }
}
