//! Who speaks to the model, and what it is told. Pure.

pub mod executor;

use crate::domain::ids::RoleName;

/// An agent that a run may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub name: &'static str,
    /// For people.
    pub description: &'static str,
    /// Its role in the policy.
    pub role: RoleName,
    /// None: the daemon's default.
    pub model: Option<String>,
    /// What it is told before the task.
    pub instructions: &'static str,
    pub origin: Origin,
}

/// Where an agent comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
}

/// The roles that agents have.
pub fn roles() -> Vec<RoleName> {
    all().into_iter().map(|agent| agent.role).collect()
}

/// Every agent, by name.
pub fn all() -> Vec<Agent> {
    vec![Agent {
        name: executor::NAME,
        description: executor::DESCRIPTION,
        role: executor::role(),
        model: None,
        instructions: executor::INSTRUCTIONS,
        origin: Origin::BuiltIn,
    }]
}
