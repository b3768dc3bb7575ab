//! One of several agents begins, or has come to something: what it is given, what of its words is written down. Who
//! follows whom is decided in `domain::run`, what they are told in `agents`.

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::{
    agents::{
        self, executor, planner, reviewer,
        variables::{self, Facts},
    },
    domain::{
        backend::Api,
        ids::{RoleName, ToolName},
        journal::{AgentBegan, OutputRefused, PlanMade, Reviewed, RunCreated, StepFinished},
        plan,
        run::{Conclusion, Failure, RunState, Seat},
        tool::ToolSpec,
    },
    engine::{
        World, colleagues,
        driver::Driver,
        review::{gather, read_repository},
    },
    ports::{JournalError, Shape},
};

/// What an agent is, for a request to the model.
pub(super) struct Voice<'w> {
    pub(super) instructions: Cow<'w, str>,
    /// Mostly those that there are: each run that waits on the model holds them.
    pub(super) tools: Cow<'w, [ToolSpec]>,
    /// What its last words are to be like.
    shape: Option<(&'static str, Box<RawValue>)>,
}

impl Voice<'_> {
    pub(super) fn shape(&self) -> Option<Shape<'_>> {
        self.shape.as_ref().map(|(name, schema)| Shape { name, schema })
    }
}

/// What the agent that speaks is to the model.
///
/// Who is asked to say the same once more, in the right shape, is to do nothing else: it has no tools for that.
/// `spec` is the run's own, held apart from it.
///
/// Errors: the configuration has no such agent any more.
pub(super) fn voice<'w>(
    world: &'w World,
    spec: &'w RunCreated,
    state: &RunState,
    api: Api,
) -> Result<Voice<'w>, Failure> {
    let is_built_in = match (state.stage.agent(), state.spec.team) {
        (Some(agent), _) => &*agent.name == executor::NAME,
        (None, Some(_)) => true,
        (None, None) => state.spec.agent == executor::NAME,
    };
    if !is_built_in {
        return configured(world, spec, state, api);
    }
    let seat = state.stage.seat();
    let (instructions, shape) = match seat {
        Seat::Executor | Seat::Asked => (executor::INSTRUCTIONS, None),
        Seat::Planner => (planner::INSTRUCTIONS, shape("plan", planner::SCHEMA)),
        Seat::Reviewer => (reviewer::INSTRUCTIONS, shape("verdict", reviewer::SCHEMA)),
    };
    let tools = match (api, seat) {
        (Api::Chat, _) => Cow::Borrowed(&[][..]),
        (Api::Responses, Seat::Executor | Seat::Asked) => with_errands(world, state),
        (Api::Responses, _) if state.stage.is_corrected() => Cow::Borrowed(&[][..]),
        (Api::Responses, _) => Cow::Owned(of_role(world, &state.role)),
    };
    Ok(Voice { instructions: instructions.into(), tools, shape })
}

/// An agent of the configuration, which works alone.
fn configured<'w>(
    world: &'w World,
    spec: &'w RunCreated,
    state: &RunState,
    api: Api,
) -> Result<Voice<'w>, Failure> {
    let name = state.speaker();
    let agent = world.agents.configured.iter().find(|agent| agent.name == name);
    let agent = agent.ok_or_else(|| Failure {
        reason: "AGENT_UNKNOWN".into(),
        message: format!(
            "the configuration has no agent {name} any more; put it back, then go on with a fork of this run"
        ),
    })?;
    let (run, submitter) = (state.id.to_string(), spec.submitter.to_string());
    let facts = Facts {
        run: &run,
        agent: name,
        workspace: &spec.workspace,
        submitter: &submitter,
        labels: &spec.labels,
    };
    let mut tools = match api == Api::Chat || state.stage.is_corrected() {
        true => Vec::new(),
        false => of_role(world, &state.role),
    };
    if let Some(own) = &agent.tools {
        tools.retain(|tool| own.contains(&tool.name));
    }
    if api == Api::Responses && !state.stage.is_corrected() {
        tools.extend(colleagues::errands(world, state).into_iter().map(|tool| tool.spec));
    }
    Ok(Voice {
        instructions: variables::filled(&agent.instructions, &facts).into(),
        tools: tools.into(),
        shape: state.schema().and_then(|schema| shape("answer", schema)),
    })
}

/// All tools, and those with which the executor calls others.
fn with_errands<'w>(world: &'w World, state: &RunState) -> Cow<'w, [ToolSpec]> {
    let errands = colleagues::errands(world, state);
    match errands.is_empty() {
        true => Cow::Borrowed(world.tools.specs()),
        false => {
            let errands = errands.into_iter().map(|tool| tool.spec);
            Cow::Owned(world.tools.specs().iter().cloned().chain(errands).collect())
        }
    }
}

fn shape(name: &'static str, schema: &str) -> Option<(&'static str, Box<RawValue>)> {
    Some((name, serde_json::from_str(schema).ok()?))
}

/// What the agent that speaks was given of its role's tools; none: all of them.
pub(super) fn own_tools(world: &World, state: &RunState) -> Option<Vec<ToolName>> {
    let speaker = state.speaker();
    let agent = world.agents.configured.iter().find(|agent| agent.name == speaker)?;
    agent.tools.clone()
}

/// Tools that the policy has for a role: a planner that is shown more plans with more.
fn of_role(world: &World, role: &RoleName) -> Vec<ToolSpec> {
    let policy = world.policies.current();
    let has = policy.roles.get(role);
    if has.is_none() {
        tracing::warn!(%role, "the policy has no such role, and its agent has no tools");
    }
    let is_its = |spec: &&ToolSpec| has.is_some_and(|role| role.tools.contains(&spec.name));
    world.tools.specs().iter().filter(is_its).cloned().collect()
}

impl Driver {
    /// Lets one of several agents begin, with all that it is to know.
    pub(super) async fn begin(&mut self, seat: Seat) -> Result<(), JournalError> {
        let state = self.log.state();
        if let Some(began) = colleagues::called(state, seat) {
            tracing::info!(run = %state.id, ?seat, agent = began.agent.as_ref().map(|agent| &*agent.name), "an agent begins");
            self.log.stage(began);
            return Ok(());
        }
        let RunState { spec, stage, .. } = state;
        let text = match seat {
            Seat::Planner => planner::brief(&spec.task),
            // Nobody asks it any more.
            Seat::Asked => return Ok(()),
            Seat::Executor => {
                // Who has done it once is told only what is new.
                let plan = stage.plan.as_deref().filter(|_| stage.result.is_none());
                executor::brief(&spec.task, plan.zip(stage.step()), &stage.findings)
            }
            Seat::Reviewer => {
                let evidence = self.meanwhile(async |world, work| gather(world, work).await);
                let Some(evidence) = evidence.await? else { return Ok(()) };
                reviewer::brief(&evidence)
            }
        };
        let state = self.log.state();
        tracing::info!(run = %state.id, ?seat, round = state.stage.rounds, "an agent begins");
        // Who has done it mends it, and goes on with it.
        let agent = state.stage.agent_in(seat).map(|agent| (**agent).clone());
        let role = agent.as_ref().map_or_else(|| role(seat), |agent| agent.role.clone());
        let (round, text) = (state.stage.rounds, text.into());
        self.log.stage(AgentBegan { seat, agent, call: None, role, round, text });
        Ok(())
    }

    /// Offers what the repository says of how to work on it to the agent that speaks.
    pub(super) async fn tell_repository(&mut self) -> Result<(), JournalError> {
        let told = self.meanwhile(async |world, work| read_repository(world, work).await);
        if let Some(told) = told.await? {
            tracing::info!(run = %self.log.state().id, files = ?told.files, "the repository's own instructions");
            self.log.stage(told);
        }
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
            Conclusion::Step { step, result } => {
                let result = plan::result(&result).into();
                self.log.stage(StepFinished { turn, step, result });
            }
            Conclusion::Unreadable { why } => {
                let text = agents::correction(&why).into();
                self.log.stage(OutputRefused { turn, why, text });
            }
        }
    }
}

fn role(seat: Seat) -> RoleName {
    match seat {
        Seat::Planner => planner::role(),
        Seat::Executor | Seat::Asked => executor::role(),
        Seat::Reviewer => reviewer::role(),
    }
}
