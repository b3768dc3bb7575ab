//! The agents of a run: who speaks, what each of them has heard, and what follows when one has said its last word. A run
//! of one agent alone has none of this.

use std::{borrow::Cow, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::domain::{
    guardrail::{Consequence, Violation},
    item::Item,
    journal::{AgentBegan, GuardrailsChecked, OutputRefused, PlanMade, RepositoryTold, Reviewed},
    output,
    plan::{Plan, Verdict},
    run::{Command, Ending, Failure, RunState, Work},
};

/// What an agent does in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seat {
    Planner,
    Executor,
    Reviewer,
}

/// What one agent heard and said without another in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    seat: Seat,
    /// Place of its first item in the conversation.
    from: usize,
    /// The turns before it.
    after: u32,
}

/// How far the agents have come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stage {
    /// Who spoke when: each part of the conversation is one agent's, and begins at this item. None: all of it is one
    /// agent's.
    parts: Vec<Part>,
    pub plan: Option<Arc<Plan>>,
    /// What the executor said last.
    pub result: Option<Arc<str>>,
    /// What was found in it that it must not do.
    pub checked: Option<Arc<GuardrailsChecked>>,
    /// What the reviewer wants mended.
    pub findings: Vec<String>,
    /// How often the work was sent back.
    pub rounds: u32,
    /// Whether the agent that speaks was told that its words had not the shape that was asked for.
    is_corrected: bool,
    /// Who was told what the repository says.
    told: Vec<Seat>,
}

/// What one of several agents has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conclusion {
    Plan(Plan),
    Verdict(Verdict),
    /// Nothing that can be used.
    Unreadable {
        why: String,
    },
}

impl Stage {
    /// Of a run that goes on with what an executor has heard.
    pub(super) fn of_executor() -> Self {
        Self { parts: vec![Part { seat: Seat::Executor, from: 0, after: 0 }], ..Self::default() }
    }

    pub fn seat(&self) -> Seat {
        self.parts.last().map_or(Seat::Executor, |part| part.seat)
    }

    /// Whether who speaks was told that its words had not the shape that was asked for.
    pub fn is_corrected(&self) -> bool {
        self.is_corrected
    }

    /// Place of what the executor was given at the very beginning.
    pub fn first_of_executor(&self) -> usize {
        let part = self.parts.iter().find(|part| part.seat == Seat::Executor);
        part.map_or(0, |part| part.from)
    }

    /// Whether who speaks is still to be told what the repository says.
    pub(super) fn is_untold(&self) -> bool {
        self.seat() != Seat::Reviewer && !self.told.contains(&self.seat())
    }

    /// Who speaks has something else to do than to say the same in another shape.
    pub(super) fn go_on(&mut self) {
        self.is_corrected = false;
    }

    /// Who spoke in a turn.
    pub fn speaker(&self, turn: u32) -> Seat {
        let part = self.parts.iter().rev().find(|part| part.after < turn);
        part.map_or(Seat::Executor, |part| part.seat)
    }

    /// Places of what an agent has heard and said, in a conversation of so many items.
    pub(super) fn places(&self, seat: Seat, length: usize) -> Vec<Range<usize>> {
        if self.parts.is_empty() {
            return std::iter::once(0..length).collect();
        }
        let ends = self.parts.iter().skip(1).map(|part| part.from).chain([length]);
        let parts = self.parts.iter().zip(ends).filter(|(part, _)| part.seat == seat);
        let mut places: Vec<Range<usize>> = parts.map(|(part, end)| part.from..end).collect();
        if seat == Seat::Reviewer {
            places.drain(..places.len().saturating_sub(1));
        }
        places
    }

    /// What an agent has heard and said, out of the whole conversation. A reviewer has not heard earlier ones.
    pub fn heard_by<'a>(&self, seat: Seat, items: &'a [Item]) -> Cow<'a, [Item]> {
        if self.parts.is_empty() {
            return Cow::Borrowed(items);
        }
        let places = self.places(seat, items.len()).into_iter();
        let parts: Vec<&[Item]> = places.filter_map(|place| items.get(place)).collect();
        match parts.as_slice() {
            [only] => Cow::Borrowed(only),
            parts => Cow::Owned(parts.concat()),
        }
    }
}

impl RunState {
    /// What follows the last word of the agent that speaks.
    pub(super) fn concluded(&self, answer: &Arc<str>) -> Command {
        let finished = |answer| Command::Finish(Ending::Succeeded { answer });
        let turn = self.usage.turns;
        let concluded = |conclusion| Command::Conclude { turn, conclusion };
        let next = match (self.spec.team, self.stage.seat(), &self.spec.output) {
            (None, _, None) => return finished(answer.clone()),
            (None, _, Some(schema)) => output::read(schema, answer).map(finished),
            (Some(_), Seat::Executor, _) => return Command::CheckWork,
            (Some(_), Seat::Planner, _) => Plan::read(answer).map(Conclusion::Plan).map(concluded),
            (Some(_), Seat::Reviewer, _) => {
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

impl Work {
    pub(super) fn told(self, told: &RepositoryTold, state: &mut RunState) -> Self {
        state.stage.told.push(told.seat);
        if !told.text.is_empty() {
            state.items.extend([Item::User { text: told.text.clone() }]);
        }
        self
    }

    pub(super) fn begun(began: &AgentBegan, state: &mut RunState) -> Self {
        let (from, after) = (state.items.len(), state.usage.turns);
        state.stage.parts.push(Part { seat: began.seat, from, after });
        state.stage.is_corrected = false;
        state.role = began.role.clone();
        state.items.extend([Item::User { text: began.text.clone() }]);
        Self::ToAsk { attempt: 1 }
    }

    pub(super) fn planned(made: &PlanMade, state: &mut RunState) -> Self {
        state.stage.plan = Some(Arc::new(made.plan.clone()));
        Self::HandingOver { to: Seat::Executor }
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
            false => Self::Failing(Failure {
                reason: "VETOED".into(),
                message: format!(
                    "the work does what it must not, whatever a reviewer would say: {}. The workspace is as the run left \
                     it; `guardrails` in the configuration says what is looked for",
                    vetoing.join("; ")
                ),
            }),
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
                let message = format!(
                    "the reviewer vetoed the work{rule}: {reason}. The workspace is as the run left it"
                );
                failing("VETOED", message)
            }
        }
    }
}
