//! One of several agents begins, or has come to something: what it is given, what of its words is written down. Who
//! follows whom is decided in `domain::run`, what they are told in `agents`.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    agents::{
        self, executor, planner,
        reviewer::{self, CallMade, Evidence},
    },
    domain::{
        guardrail::Violation,
        ids::{RoleName, RunId, Sequence},
        journal::{
            AgentBegan, GuardrailsChecked, OutputRefused, PlanMade, Reviewed, Taken, Verdict,
        },
        run::{Conclusion, RunState, Seat},
        tool::ToolSpec,
    },
    engine::{EngineError, World, diff, driver::Driver, tool_calls},
    ports::JournalError,
    tasks,
};

/// Calls that are looked at for a review; there are earlier ones in the journal.
const CALLS: usize = 500;
const PAGE: usize = 100;

/// What an agent is, for a request to the model.
pub(super) struct Voice {
    pub(super) instructions: &'static str,
    pub(super) tools: Arc<[ToolSpec]>,
}

impl Driver {
    /// Lets one of several agents begin, with all that it is to know.
    pub(super) async fn begin(&mut self, seat: Seat) -> Result<(), JournalError> {
        // What it is told of is on disk before.
        self.log.append([]).await?;
        let text = match seat {
            Seat::Planner => planner::brief(&self.log.state().spec.task),
            Seat::Executor => {
                let RunState { spec, stage, .. } = self.log.state();
                executor::brief(&spec.task, stage.plan.as_deref(), &stage.findings)
            }
            Seat::Reviewer => {
                let evidence = gather(&self.world, self.log.state()).await?;
                reviewer::brief(&evidence)
            }
        };
        let state = self.log.state();
        tracing::info!(run = %state.id, ?seat, round = state.stage.rounds, "an agent begins");
        let began =
            AgentBegan { seat, role: role(seat), round: state.stage.rounds, text: text.into() };
        self.log.stage(began);
        Ok(())
    }

    /// Looks at what the executor did for what it must not do: no model is asked.
    pub(super) async fn check_work(&mut self) -> Result<(), JournalError> {
        // What it did is on disk before.
        self.log.append([]).await?;
        let state = self.log.state();
        let round = state.stage.rounds + 1;
        let (violations, unchecked) = inspect(&self.world, state).await?;
        tracing::info!(run = %state.id, round, ?violations, ?unchecked, "the work was looked at");
        self.log.stage(GuardrailsChecked { round, violations, unchecked });
        Ok(())
    }

    /// Writes down what an agent has come to.
    pub(super) fn conclude(&mut self, turn: u32, conclusion: Conclusion) {
        let state = self.log.state();
        tracing::info!(run = %state.id, seat = ?state.stage.seat(), turn, "an agent has come to its end");
        match conclusion {
            Conclusion::Plan(plan) => self.log.stage(PlanMade { turn, plan }),
            Conclusion::Verdict(verdict) => {
                let round = state.stage.rounds + 1;
                self.log.stage(Reviewed { turn, round, verdict });
            }
            Conclusion::Unreadable { why } => {
                let text = agents::correction(&why).into();
                self.log.stage(OutputRefused { turn, why, text });
            }
        }
    }

    /// What the agent that speaks is to the model.
    pub(super) fn voice(&self) -> Voice {
        let state = self.log.state();
        let all = self.world.tools.specs();
        match state.spec.team.map(|_| state.stage.seat()) {
            None | Some(Seat::Executor) => {
                Voice { instructions: executor::INSTRUCTIONS, tools: all.into() }
            }
            Some(Seat::Planner) => {
                Voice { instructions: planner::INSTRUCTIONS, tools: self.of_role(all) }
            }
            Some(Seat::Reviewer) => {
                Voice { instructions: reviewer::INSTRUCTIONS, tools: self.of_role(all) }
            }
        }
    }

    /// Tools that the policy has for the role of the agent that speaks: a planner that is shown more plans with more.
    fn of_role(&self, all: &[ToolSpec]) -> Arc<[ToolSpec]> {
        let policy = self.world.policies.current();
        let role = policy.roles.get(&self.log.state().role);
        let is_its = |spec: &&ToolSpec| role.is_some_and(|role| role.tools.contains(&spec.name));
        all.iter().filter(is_its).cloned().collect()
    }
}

fn role(seat: Seat) -> RoleName {
    match seat {
        Seat::Planner => planner::role(),
        Seat::Executor => executor::role(),
        Seat::Reviewer => reviewer::role(),
    }
}

/// What was found in what a run changed that it must not do, or why nothing can be looked at.
async fn inspect(
    world: &World,
    state: &RunState,
) -> Result<(Vec<Violation>, Option<String>), JournalError> {
    match &state.snapshots.before {
        // Nothing was done that may change something.
        None => return Ok((Vec::new(), None)),
        Some(Taken::Failed(why)) => return Ok((Vec::new(), Some(why.clone()))),
        Some(Taken::Tree(_)) => {}
    }
    let guardrails = world.agents.guardrails;
    let patch = match diff::diff(world, state.id).await {
        Ok(patch) => patch,
        Err(EngineError::Journal(error)) => return Err(error),
        Err(error) => return Ok((vec![guardrails.unreadable(&error.to_string())], None)),
    };
    let (policy, redactor) = (world.policies.current(), world.redactor.clone());
    let checked = tasks::blocking(move || {
        guardrails.check(&String::from_utf8_lossy(&patch), &policy.paths, &redactor)
    });
    let checked = checked.await;
    Ok((checked.unwrap_or_else(|error| vec![guardrails.unreadable(&error.to_string())]), None))
}

/// What a reviewer is to know of the work: as everyone may see it.
async fn gather(world: &World, state: &RunState) -> Result<Evidence, JournalError> {
    let diff = match diff::diff(world, state.id).await {
        Ok(diff) => Ok(String::from_utf8_lossy(&diff).into_owned()),
        Err(EngineError::Journal(error)) => return Err(error),
        Err(error) => Err(error.to_string()),
    };
    let shown = |text: &str| world.redactor.redact(text).into_owned();
    Ok(Evidence {
        task: shown(&state.spec.task),
        plan: state.stage.plan.as_deref().cloned(),
        diff: diff.map(|diff| shown(&diff)),
        calls: calls(world, state.id).await?,
        checked: state.stage.checked.as_deref().cloned(),
        answer: shown(state.stage.result.as_deref().unwrap_or_default()),
        round: state.stage.rounds + 1,
    })
}

/// The latest calls of a run, oldest first.
async fn calls(world: &World, run: RunId) -> Result<Vec<CallMade>, JournalError> {
    let (mut latest, mut after) = (VecDeque::new(), Some(Sequence(0)));
    while let Some(place) = after {
        let page = match tool_calls::tool_calls(&world.journal, run, place, PAGE).await {
            Ok(page) => page,
            Err(EngineError::Journal(error)) => return Err(error),
            Err(error) => return Err(JournalError::Unreadable { what: error.to_string() }),
        };
        for call in page.calls {
            let refused = call.decided.filter(|decided| decided.decision == Verdict::Deny);
            latest.push_back(CallMade {
                tool: call.called.tool.to_string(),
                arguments: call.called.arguments.to_string(),
                refused: refused.map(|decided| (decided.rule.to_string(), decided.why)),
                output: call.ended.map(|(_, output)| {
                    (output.outcome.as_str().to_owned(), output.output.to_string())
                }),
            });
            if latest.len() > CALLS {
                latest.pop_front();
            }
        }
        after = page.next;
    }
    Ok(latest.into())
}
