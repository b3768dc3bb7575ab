//! Who speaks to the model, and what it is told. Pure.

pub mod executor;
pub mod planner;
pub mod reviewer;
pub mod summary;

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
    /// What it is told before the task; of several, each of them.
    pub instructions: String,
    pub origin: Origin,
}

/// Where an agent comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
}

/// The run's agent that is a planner, an executor and a reviewer.
pub const TEAM: &str = "default";

/// Whether a run that names this agent has several; else it works alone.
pub fn is_team(name: &str) -> bool {
    name == TEAM
}

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

/// The agents that a run may name.
pub const NAMES: [&str; 2] = [TEAM, executor::NAME];

/// Those agents, in the order of [`NAMES`].
pub fn all() -> Vec<Agent> {
    let built_in = |name, description, instructions: String| Agent {
        name,
        description,
        role: executor::role(),
        model: None,
        instructions,
        origin: Origin::BuiltIn,
    };
    let parts = [
        (planner::NAME, planner::INSTRUCTIONS),
        (executor::NAME, executor::INSTRUCTIONS),
        (reviewer::NAME, reviewer::INSTRUCTIONS),
    ];
    let together = parts.map(|(name, instructions)| format!("# {name}\n\n{instructions}\n"));
    vec![
        built_in(
            TEAM,
            "a planner, an executor and a reviewer, who accepts the work, sends it back or vetoes it",
            together.join("\n"),
        ),
        built_in(executor::NAME, executor::DESCRIPTION, executor::INSTRUCTIONS.to_owned()),
    ]
}
