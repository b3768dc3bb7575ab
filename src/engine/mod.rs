//! The use cases, and the loop that carries a run out. Knows the world only through `ports`.
//!
//! Invariant: what a driver does to the world, it has written down before, and that is on disk.

mod approvals;
mod asking;
mod backends;
mod backups;
mod ceiling;
mod colleagues;
mod context;
mod deep;
mod diff;
mod door;
mod drain;
mod driver;
mod drivers;
mod fork;
mod health;
mod hosted;
mod inbox;
mod invoker;
mod leases;
mod ledger;
mod live;
mod notices;
mod policies;
mod recovery;
mod repository;
mod resolution;
mod retention;
mod review;
mod revisions;
mod run_log;
mod runs;
mod schedule;
mod steering;
mod submission;
mod team;
mod tool_calls;

pub use approvals::{ApprovalChoice, Scope};
pub use backends::{Backend, BackendHealth, Backends, Fallback, Probed};
pub use drain::{Drained, Intake};
pub use fork::{Checkpoint, Fork, LastWord};
pub use health::{Health, Store};
pub use live::{LiveEvent, OutputDelta, TextDelta};
pub use policies::{Policies, Reload, Standing};
pub use resolution::CallResolution;
pub use retention::{Keep, PruneMode, Pruned};
pub use revisions::{PolicyRead, ReadBecause, SIGHUP};
pub use runs::{Engine, EngineError, Limits};
pub use steering::{Input, Resume};
pub use submission::{Submission, Submitted, WhenBusy, check_labels};
pub use tool_calls::{ToolCallPage, ToolCallView};

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    agents::{self, Agent, colleagues::ErrandTool},
    domain::{
        backend::BackendName,
        budget::{Prices, RoleBudgets},
        guardrail::Guardrails,
        ids::{Epoch, RoleName, ToolName},
        journal::Team,
        redact::Redactor,
    },
    ports::{
        Backups, Chance, Clock, Disk, Journal, ModelSettings, Pulse, Retention, Sandbox, Webhook,
    },
    tools::Toolbox,
};

/// With what an agent thinks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mind {
    /// None: the default one.
    pub backend: Option<BackendName>,
    /// None: the run's, or else the backend's.
    pub model: Option<String>,
    /// Tokens that the model takes; none: as the backend tells, if it does.
    pub context_tokens: Option<u64>,
    pub settings: ModelSettings,
}

/// What the operator says of agents.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AgentSettings {
    /// How agents think, by their names; what is not said of one is as the backend and the run have it.
    pub minds: BTreeMap<String, Mind>,
    /// Besides the built-in ones.
    pub configured: Vec<Agent>,
    /// Tools of agents, by their names, with which they call others.
    pub errands: BTreeMap<String, Arc<[ErrandTool]>>,
    /// How long a run waits for a backend that does not work.
    pub backend_wait: Duration,
    /// For submissions that do not say.
    pub role_budgets: RoleBudgets,
    pub guardrails: Guardrails,
    /// Of runs that have several agents.
    pub team: Team,
    /// Files at the top of a workspace that are offered to agents as data, if they are there.
    pub repository_instructions: Vec<String>,
}

impl AgentSettings {
    /// Names of the tools with which agents call others, or change a plan.
    pub fn errand_names(&self) -> BTreeSet<ToolName> {
        let errands = self.errands.values().flat_map(|errands| errands.iter());
        let named = errands.map(|errand| errand.spec.name.clone());
        named.chain([colleagues::revise_plan_name()]).collect()
    }
}

/// The world as the engine sees it, and what holds for all runs.
#[derive(Clone)]
pub struct World {
    pub backends: Backends,
    pub prices: Arc<Prices>,
    pub agents: AgentSettings,
    pub sandbox: Arc<dyn Sandbox>,
    pub journal: Arc<dyn Journal>,
    pub pulse: Arc<dyn Pulse>,
    pub backups: Arc<dyn Backups>,
    pub retention: Arc<dyn Retention>,
    pub disk: Arc<dyn Disk>,
    /// Is told of questions to people; none: nobody is.
    pub webhook: Option<Arc<dyn Webhook>>,
    pub clock: Arc<dyn Clock>,
    pub chance: Arc<dyn Chance>,
    /// Read once a call, so that a call sees one revision from beginning to end.
    pub policies: Arc<Policies>,
    pub tools: Arc<Toolbox>,
    /// For what leaves the engine without passing the journal.
    pub redactor: Arc<Redactor>,
    /// This lifetime of the daemon.
    pub epoch: Epoch,
}

impl World {
    /// Every agent that a run may name.
    pub fn agents(&self) -> Vec<Agent> {
        agents::built_in().into_iter().chain(self.agents.configured.iter().cloned()).collect()
    }

    /// The roles that agents have.
    pub fn roles(&self) -> Vec<RoleName> {
        let mut roles = agents::roles();
        for agent in &self.agents.configured {
            if !roles.contains(&agent.role) {
                roles.push(agent.role.clone());
            }
        }
        roles
    }

    /// The backend of that agent, and what else is said of it.
    pub fn mind(&self, agent: &str) -> (&Arc<Backend>, &Mind) {
        const PLAIN: &Mind = &Mind {
            backend: None,
            model: None,
            context_tokens: None,
            settings: ModelSettings {
                max_output_tokens: None,
                temperature: None,
                reasoning_effort: None,
            },
        };
        let mind = self.agents.minds.get(agent).unwrap_or(PLAIN);
        (self.backends.named(mind.backend.as_ref()), mind)
    }

    /// Whom that agent asks, and for which model: what one of them thought, another cannot read.
    pub fn thinks<'a>(
        &'a self,
        agent: &str,
        of_run: Option<&'a str>,
    ) -> (&'a BackendName, Option<&'a str>) {
        (&self.mind(agent).0.name, self.model_of(agent, of_run))
    }

    /// The model that an agent asks for; none: the backend's first.
    ///
    /// What the run names is a model of the default backend, and meant for all who ask that one.
    pub fn model_of<'a>(&'a self, agent: &str, of_run: Option<&'a str>) -> Option<&'a str> {
        let (backend, mind) = self.mind(agent);
        let of_run = of_run.filter(|_| backend.name == self.backends.default().name);
        of_run.or(mind.model.as_deref()).or(backend.default_model.as_deref())
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}
