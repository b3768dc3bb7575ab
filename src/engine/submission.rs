//! What a caller submits, and what is wrong with it. Touches nothing.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{
    agents,
    domain::{
        budget::{self, Budget, RoleBudgets},
        ids::RoleName,
        journal::RunCreated,
    },
    engine::{Engine, EngineError, World, colleagues},
    ports::{JournalError, RunSummary},
};

/// Most labels of a run, and the longest key and value, in bytes.
const LABELS: (usize, usize, usize) = (32, 64, 256);
/// Longest labels of a run, all together, in bytes: a page of runs must stay within what clients accept.
const LABELS_BYTES: usize = 4096;
/// Longest name of a model, in bytes.
const MODEL_BYTES: usize = 256;
/// Longest request id, in bytes.
pub(super) const REQUEST_ID_BYTES: usize = 128;

/// What a caller submits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Submission {
    pub task: String,
    pub workspace: String,
    /// Empty: the team.
    pub agent: String,
    /// Empty: the daemon's default.
    pub model: String,
    pub request_id: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// Zeros stand for the defaults.
    pub budget: Budget,
    /// By role; what is not said is as the configuration says.
    pub role_budgets: RoleBudgets,
    pub when_busy: WhenBusy,
}

/// What to do while another run has the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenBusy {
    #[default]
    Wait,
    Refuse,
}

/// A run to be begun, checked.
pub(super) struct Wanted {
    pub(super) spec: RunCreated,
    pub(super) when_busy: WhenBusy,
}

/// What came of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submitted {
    New(RunSummary),
    Existed(RunSummary),
}

/// Says what is wrong with a submission as it was sent, one field at a time.
pub(super) fn check(wanted: &Submission) -> Result<(), EngineError> {
    let invalid = |field, message: String| Err(EngineError::InvalidField { field, message });
    if wanted.task.trim().is_empty() {
        return invalid("task", "is empty; say what is to be done".into());
    }
    if wanted.task.len() > budget::TASK_BYTES {
        return invalid("task", format!("is {} bytes long, 1 MiB is accepted", wanted.task.len()));
    }
    check_common(&wanted.model, wanted.request_id.as_deref())?;
    check_labels(&wanted.labels)
}

/// Says what is wrong with what every submission has.
pub(super) fn check_common(model: &str, request_id: Option<&str>) -> Result<(), EngineError> {
    let invalid = |field, message: String| Err(EngineError::InvalidField { field, message });
    if let Some(id) = request_id
        && (id.is_empty() || id.len() > REQUEST_ID_BYTES)
    {
        return invalid("request_id", format!("has {} bytes, 1 to 128 are accepted", id.len()));
    }
    match model.len() > MODEL_BYTES {
        true => invalid("model", format!("has {} bytes, 256 are accepted", model.len())),
        false => Ok(()),
    }
}

/// Says what is wrong with labels, of a submission or to list by.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), EngineError> {
    let invalid = |message| Err(EngineError::InvalidField { field: "labels", message });
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > LABELS_BYTES {
        return invalid(format!("have {bytes} bytes in all, 4 KiB are accepted"));
    }
    let (most, key_bytes, value_bytes) = LABELS;
    if labels.len() > most {
        return invalid(format!("there are {}, {most} are accepted", labels.len()));
    }
    let long =
        |(key, value): &(&String, &String)| key.len() > key_bytes || value.len() > value_bytes;
    if let Some((key, _)) = labels.iter().find(long) {
        let key: String = key.chars().take(key_bytes).collect();
        return invalid(format!("{key:?} or its value is too long"));
    }
    Ok(())
}

impl Engine {
    /// There is an agent of that name.
    pub(super) fn check_agent(&self, agent: &str) -> Result<(), EngineError> {
        let agents = self.inner.world.agents();
        if agents.iter().any(|one| one.name == agent) {
            return Ok(());
        }
        let agent: String = agent.chars().take(80).collect();
        let known = agents.iter().map(|agent| agent.name.as_str()).collect::<Vec<_>>().join(", ");
        let message = format!("no run can name an agent {agent:?}; it can name: {known}");
        Err(EngineError::InvalidField { field: "agent", message })
    }

    /// A limit that nothing counts towards would be no limit.
    pub(super) fn check_limits(
        &self,
        budget: &Budget,
        role_budgets: &RoleBudgets,
        (agent, model): (&str, Option<&str>),
    ) -> Result<(), EngineError> {
        let field = "role_budgets";
        let roles = self.inner.world.roles();
        if let Some(unknown) = role_budgets.keys().find(|role| !roles.contains(role)) {
            let unknown: String = unknown.as_str().chars().take(80).collect();
            let known = roles.iter().map(RoleName::as_str).collect::<Vec<_>>().join(", ");
            let message = format!("there is no role {unknown:?}; there are: {known}");
            return Err(EngineError::InvalidField { field, message });
        }
        let costs = role_budgets.values().map(|budget| budget.max_cost_micros);
        let of_roles = costs.max().unwrap_or(0);
        // Each may ask for a model of its own.
        let speakers = match agents::is_team(agent) {
            true => agents::roles().iter().map(ToString::to_string).collect(),
            false => vec![agent.to_owned()],
        };
        for speaker in colleagues::reachable(&self.inner.world, speakers) {
            let model = self.inner.world.model_of(&speaker, model);
            self.check_price("budget", budget.max_cost_micros, model)?;
            self.check_price(field, of_roles, model)?;
        }
        Ok(())
    }

    fn check_price(
        &self,
        field: &'static str,
        limit: u64,
        model: Option<&str>,
    ) -> Result<(), EngineError> {
        let World { prices, .. } = &self.inner.world;
        if limit == 0 || model.is_some_and(|name| prices.contains_key(name)) {
            return Ok(());
        }
        let named = model.unwrap_or("the backend's own choice");
        let message = format!(
            "limits the cost, and there is no price for the model ({named}); name a model that `prices` in the \
             configuration has"
        );
        Err(EngineError::InvalidField { field, message })
    }
}

/// SHA-256 of what was submitted, as it was sent, by which a repetition is known.
pub(super) fn digest(sent: &impl Serialize) -> Result<[u8; 32], EngineError> {
    let body = serde_json::to_vec(sent)
        .map_err(|error| JournalError::Unreadable { what: error.to_string() })?;
    Ok(Sha256::digest(body).into())
}
