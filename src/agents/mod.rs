//! Who speaks to the model, and what it is told. Pure.

pub mod colleagues;
pub mod executor;
pub mod planner;
pub mod repository;
pub mod reviewer;
pub mod summary;
pub mod variables;

use std::sync::Arc;

use crate::domain::ids::{RoleName, ToolName};

/// An agent that a run may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub name: String,
    /// For people.
    pub description: String,
    /// Its role in the policy.
    pub role: RoleName,
    /// What it is told before the task, with [`variables`]; of several, each of them.
    pub instructions: String,
    /// Of the tools that its role has; none: all of them.
    pub tools: Option<Vec<ToolName>>,
    /// JSON Schema of what it answers; none: words.
    pub output: Option<Arc<str>>,
    /// How many turns it may take to answer another agent.
    pub max_turns: u32,
    pub origin: Origin,
}

/// Where an agent comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
    Configured,
}

/// Turns that an agent may take to answer another one, where nothing else is said.
pub const MAX_TURNS: u32 = 30;

/// The run's agent that is a planner, an executor and a reviewer.
pub const TEAM: &str = "default";

/// Whether a run that names this agent has several; else it works alone.
pub fn is_team(name: &str) -> bool {
    name == TEAM
}

/// The roles that built-in agents have.
pub fn roles() -> Vec<RoleName> {
    vec![executor::role(), planner::role(), reviewer::role()]
}

/// What an agent is told whose words have not the shape that was asked for.
pub fn correction(why: &str) -> String {
    format!(
        "That cannot be used: {why}. Answer once more, with the JSON object that was asked for and nothing else."
    )
}

/// The built-in agents that a run may name.
pub fn built_in() -> Vec<Agent> {
    let agent = |name: &str, description: &str, instructions: String| Agent {
        name: name.to_owned(),
        description: description.to_owned(),
        role: executor::role(),
        instructions,
        tools: None,
        output: None,
        max_turns: MAX_TURNS,
        origin: Origin::BuiltIn,
    };
    let parts = [
        (planner::NAME, planner::INSTRUCTIONS),
        (executor::NAME, executor::INSTRUCTIONS),
        (reviewer::NAME, reviewer::INSTRUCTIONS),
    ];
    let together = parts.map(|(name, instructions)| format!("# {name}\n\n{instructions}\n"));
    vec![
        agent(
            TEAM,
            "a planner, an executor and a reviewer, who accepts the work, sends it back or vetoes it",
            together.join("\n"),
        ),
        agent(executor::NAME, executor::DESCRIPTION, executor::INSTRUCTIONS.to_owned()),
    ]
}
