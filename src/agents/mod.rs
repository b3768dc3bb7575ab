//! Who speaks to the model, and what it is told. Pure.

pub mod executor;
pub mod planner;
pub mod reviewer;

use crate::domain::{ids::RoleName, journal::Team};

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

/// The run's agent that is a planner, an executor and a reviewer.
pub const TEAM: &str = "default";

/// How the agents of a run work together that names this one; none: it works alone.
pub fn team(name: &str) -> Option<Team> {
    (name == TEAM).then(Team::default)
}

/// Those that a run may name.
pub const NAMEABLE: [&str; 2] = [TEAM, executor::NAME];

/// The roles that agents have.
pub fn roles() -> Vec<RoleName> {
    vec![executor::role(), planner::role(), reviewer::role()]
}

/// What an agent is told whose words have not the shape that was asked for.
pub fn correction(why: &str) -> String {
    format!(
        "That cannot be used: {why}. Answer once more, with the JSON object that was asked for and nothing else."
    )
}

/// Every agent, by name.
pub fn all() -> Vec<Agent> {
    let built_in = |name, description, role, instructions| Agent {
        name,
        description,
        role,
        model: None,
        instructions,
        origin: Origin::BuiltIn,
    };
    vec![
        built_in(
            TEAM,
            "a planner, an executor and a reviewer, one after the other",
            executor::role(),
            "",
        ),
        built_in(executor::NAME, executor::DESCRIPTION, executor::role(), executor::INSTRUCTIONS),
        built_in(planner::NAME, planner::DESCRIPTION, planner::role(), planner::INSTRUCTIONS),
        built_in(reviewer::NAME, reviewer::DESCRIPTION, reviewer::role(), reviewer::INSTRUCTIONS),
    ]
}
