//! Agents that call others: which tools they have for that, how such a call is decided, and what goes back and forth. What
//! that does to a run is the fold's: see `domain::run`.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    agents::{
        self,
        colleagues::{self, ErrandTool, Said},
        executor,
    },
    domain::{
        ids::{CallKey, RuleId, Timestamp, ToolName},
        journal::{AgentBegan, Errand, PlanRevised, ToolOutput},
        plan,
        run::{Asked, Ending, Failure, Invocation, RunState, Seat},
        tool::{ToolCall, ToolOutcome},
    },
    engine::{World, driver::Driver},
};

/// What the agent that speaks may want of others.
pub(super) fn errands(world: &World, state: &RunState) -> Vec<ErrandTool> {
    let own = world.agents.errands.get(state.speaker()).into_iter().flat_map(|own| own.iter());
    // Whoever has done a step may find that the plan is wrong.
    let plans = state.spec.team.is_some() && state.stage.seat() == Seat::Executor;
    own.cloned().chain(plans.then(colleagues::revise_plan)).collect()
}

/// Name of the tool that changes a plan.
pub(super) fn revise_plan_name() -> ToolName {
    ToolName::new(colleagues::REVISE_PLAN)
}

/// These agents, and all whom they may call, directly or by others.
pub(super) fn reachable(world: &World, mut agents: Vec<String>) -> Vec<String> {
    let mut at = 0;
    while let Some(agent) = agents.get(at) {
        let errands = world.agents.errands.get(agent).map_or(&[][..], |errands| errands);
        let (hand_offs, asks) = colleagues::named_in(errands);
        for name in hand_offs.iter().chain(&asks) {
            if !agents.iter().any(|known| **known == **name) {
                agents.push(name.to_string());
            }
        }
        at += 1;
    }
    agents
}

/// What the agent that speaks may want of others with the calls of one turn.
#[derive(Debug, Default)]
pub(super) struct Errands {
    tools: BTreeMap<ToolName, Errand>,
    /// Of the calls, the one that may hand the conversation over.
    hand_off: Option<CallKey>,
    /// The one that may revise the plan.
    revision: Option<CallKey>,
    /// Number of the step under way.
    step: Option<usize>,
    /// How often the plan was revised.
    revisions: usize,
}

/// What a call wants of others, decided.
pub(super) enum Decided {
    Refused {
        rule: RuleId,
        message: String,
    },
    /// It is over at once.
    Done {
        errand: Errand,
        why: String,
        revised: Option<PlanRevised>,
        outcome: ToolOutcome,
    },
    /// Another agent sees to it.
    Delegated {
        errand: Errand,
        why: String,
    },
}

/// What is open to the agent that speaks, in a turn with these calls.
pub(super) fn open(world: &World, state: &RunState, calls: &[Invocation]) -> Arc<Errands> {
    let tools: BTreeMap<ToolName, Errand> =
        errands(world, state).into_iter().map(|tool| (tool.spec.name, tool.errand)).collect();
    let first = |is_meant: fn(&Errand) -> bool| {
        let mut calls = calls.iter().map(|invocation| &invocation.call);
        let found = calls.find(|call| {
            let errand = tools.get(&call.tool).filter(|errand| is_meant(errand));
            errand.is_some_and(|errand| colleagues::read(errand, &call.arguments).is_ok())
        });
        found.map(|call| call.key)
    };
    let known = state.stage.handing().map(|handing| handing.call);
    let hand_off = known.or_else(|| first(|errand| matches!(errand, Errand::HandOff(_))));
    let revision = first(|errand| *errand == Errand::RevisePlan);
    let (step, revisions) = (state.stage.step(), state.stage.revisions.len());
    Arc::new(Errands { tools, hand_off, revision, step, revisions })
}

/// Those of whom the agent that speaks has heard and cannot read the thoughts: they ask another backend or model.
pub(super) fn strangers(world: &World, state: &RunState) -> Vec<Option<String>> {
    let voices = state.stage.voices(state.stage.seat());
    if voices.len() < 2 {
        return Vec::new();
    }
    let model = state.spec.model.as_deref();
    let own = world.thinks(state.speaker(), model);
    let first = state.spec.team.map_or(&*state.spec.agent, |_| executor::NAME);
    let is_strange = |voice: &Option<&str>| world.thinks(voice.unwrap_or(first), model) != own;
    voices.into_iter().filter(is_strange).map(|voice| voice.map(str::to_owned)).collect()
}

/// Whether all who spoke as a run's executor think as that agent with that model.
pub(super) fn think_alike(
    world: &World,
    run: &RunState,
    (agent, model): (&str, Option<&str>),
) -> bool {
    let executor = |name| if agents::is_team(name) { executor::NAME } else { name };
    let own = world.thinks(executor(agent), model);
    let first = executor(&run.spec.agent);
    let voices = run.stage.voices(Seat::Executor).into_iter();
    let mut thought = voices.map(|voice| voice.unwrap_or(first));
    thought.all(|voice| world.thinks(voice, run.spec.model.as_deref()) == own)
}

impl Errands {
    /// What becomes of a call; none: it is no errand.
    pub(super) fn decide(&self, call: &ToolCall) -> Option<Decided> {
        let errand = self.tools.get(&call.tool)?;
        let refused = |rule, message: String| Decided::Refused { rule: RuleId::new(rule), message };
        let said = match colleagues::read(errand, &call.arguments) {
            Ok(said) => said,
            Err(message) => return Some(refused("builtin/arguments", message)),
        };
        let errand = errand.clone();
        let done = |errand, why: &str, revised, output: serde_json::Value| Decided::Done {
            errand,
            why: why.to_owned(),
            revised,
            outcome: ToolOutcome::done(&output),
        };
        Some(match (errand, said) {
            (Errand::HandOff(_), _) if self.hand_off != Some(call.key) => refused(
                "builtin/one-hand-off",
                "the conversation was handed over by another call of this turn".into(),
            ),
            (Errand::HandOff(to), _) => {
                let told = serde_json::json!({ "handed_over_to": &*to.name });
                let why = format!("the configuration lets this agent hand over to {}", to.name);
                done(Errand::HandOff(to), &why, None, told)
            }
            (Errand::Ask(of), _) => Decided::Delegated {
                why: format!("the configuration lets this agent ask {}", of.name),
                errand: Errand::Ask(of),
            },
            (Errand::RevisePlan, Said::Revised { steps, why }) => match self.step {
                None => refused("builtin/plan-done", "every step of the plan is done".into()),
                Some(_) if self.revision != Some(call.key) => refused(
                    "builtin/one-revision",
                    "the plan was revised by another call of this turn".into(),
                ),
                Some(_) if self.revisions >= plan::REVISIONS => refused(
                    "builtin/plan-revisions",
                    format!(
                        "the plan was revised {} times; carry it out, and say what is wrong with it",
                        plan::REVISIONS
                    ),
                ),
                Some(from_step) if from_step - 1 + steps.len() > plan::MOST => refused(
                    "builtin/arguments",
                    format!(
                        "a plan has at most {} steps, and {} are done",
                        plan::MOST,
                        from_step - 1
                    ),
                ),
                Some(from_step) => {
                    let told = serde_json::json!({ "step_under_way": from_step, "steps": from_step - 1 + steps.len() });
                    let revised = PlanRevised { call: call.key, from_step, steps, why };
                    done(Errand::RevisePlan, "an executor may revise the plan", Some(revised), told)
                }
            },
            (Errand::RevisePlan, Said::Message(_)) => {
                refused("builtin/arguments", "these are no steps".into())
            }
        })
    }
}

/// How an agent begins that another one called; none: none was called.
pub(super) fn called(state: &RunState, seat: Seat) -> Option<AgentBegan> {
    let round = state.stage.rounds;
    if let Some(Asked { call, of, .. }) = state.to_be_asked() {
        return Some(AgentBegan {
            seat,
            agent: Some(of.clone()),
            call: Some(call.key),
            role: of.role.clone(),
            round,
            text: message(&Errand::Ask(of.clone()), &call.arguments).into(),
        });
    }
    if let Some(handing) = state.stage.handing() {
        let message = message(&Errand::HandOff(handing.to.clone()), &handing.arguments);
        return Some(AgentBegan {
            seat,
            agent: Some(handing.to.clone()),
            call: state.stage.call(),
            role: handing.to.role.clone(),
            round,
            text: colleagues::handed_over(state.speaker(), &message).into(),
        });
    }
    None
}

/// They were read once, when the call was decided.
fn message(errand: &Errand, arguments: &str) -> String {
    match colleagues::read(errand, arguments) {
        Ok(Said::Message(message)) => message,
        Ok(Said::Revised { .. }) | Err(_) => String::new(),
    }
}

impl Driver {
    /// Tells the agent that asked what came of it.
    pub(super) fn return_to_caller(&mut self, call: CallKey, ending: Ending) {
        let state = self.log.state();
        let asked = state.asked();
        let Some(asked) = asked.first().filter(|asked| asked.call.key == call) else { return };
        let name = &asked.of.name;
        let outcome = match ending {
            Ending::Succeeded { answer } => ToolOutcome::done(&colleagues::answered(name, &answer)),
            Ending::Failed(Failure { reason, message }) => {
                let message = format!("the agent {name} could not answer: {message}");
                ToolOutcome::failed(&reason, &message)
            }
            Ending::Cancelled => {
                ToolOutcome::cancelled("the run was cancelled before the agent had answered")
            }
        };
        tracing::info!(run = %state.id, agent = %name, outcome = ?outcome.kind, "an agent that was asked is done");
        let output = self.output((asked.call, asked.since), outcome);
        self.log.stage(output);
    }

    /// The run ends, and whoever was asked will not answer any more, nor any person.
    pub(super) fn close_open(&mut self, failure: &Failure) {
        let message = format!("the run ended before that was done: {}", failure.message);
        let state = self.log.state();
        let outputs: Vec<ToolOutput> = state
            .unanswered()
            .into_iter()
            .map(|(call, since)| {
                self.output((call, since), ToolOutcome::failed(&failure.reason, &message))
            })
            .collect();
        outputs.into_iter().for_each(|output| self.log.stage(output));
    }

    fn output(
        &self,
        (call, since): (&ToolCall, Option<Timestamp>),
        outcome: ToolOutcome,
    ) -> ToolOutput {
        let now = self.world.clock.now().0;
        let since = since.map_or(now, |since| since.0);
        ToolOutput {
            call: call.key,
            call_id: call.call_id.clone(),
            outcome: outcome.kind,
            output: outcome.output,
            duration_ms: u64::try_from(now.saturating_sub(since) / 1000).unwrap_or(0),
            used: None,
        }
    }
}
