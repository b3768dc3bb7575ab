//! The use cases, and the loop that carries a run out. Knows the world only through `ports`.
//!
//! Invariant: what a driver does to the world, it has written down before, and that is on disk.

mod approvals;
mod backups;
mod ceiling;
mod deep;
mod diff;
mod door;
mod drain;
mod driver;
mod drivers;
mod fork;
mod hosted;
mod inbox;
mod invoker;
mod leases;
mod ledger;
mod live;
mod notices;
mod policies;
mod recovery;
mod resolution;
mod retention;
mod revisions;
mod run_log;
mod runs;
mod schedule;
mod steering;
mod submission;
mod team;
mod tool_calls;

pub use approvals::{ApprovalChoice, Scope};
pub use drain::{Drained, Intake};
pub use fork::{Checkpoint, Fork, LastWord};
pub use live::{LiveEvent, OutputDelta, TextDelta};
pub use policies::{Policies, Reload, Standing};
pub use resolution::CallResolution;
pub use retention::{Keep, PruneMode, Pruned};
pub use revisions::{PolicyRead, ReadBecause, SIGHUP};
pub use runs::{Engine, EngineError, Limits};
pub use steering::{Input, Resume};
pub use submission::{Submission, Submitted, WhenBusy, check_labels};
pub use tool_calls::{ToolCallPage, ToolCallView};

use std::sync::Arc;

use crate::{
    domain::{
        budget::{Prices, RoleBudgets},
        guardrail::Guardrails,
        ids::Epoch,
        journal::Team,
        redact::Redactor,
    },
    ports::{Backups, Chance, Clock, Disk, Journal, Model, Retention, Sandbox, Webhook},
    tools::Toolbox,
};

/// What the operator says of agents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentSettings {
    /// For submissions that do not say.
    pub role_budgets: RoleBudgets,
    pub guardrails: Guardrails,
    /// Of runs that have several agents.
    pub team: Team,
}

/// The world as the engine sees it, and what holds for all runs.
#[derive(Clone)]
pub struct World {
    pub model: Arc<dyn Model>,
    /// For runs that name none; none: the backend's first.
    pub default_model: Option<String>,
    pub prices: Arc<Prices>,
    pub agents: AgentSettings,
    pub sandbox: Arc<dyn Sandbox>,
    pub journal: Arc<dyn Journal>,
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

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}
