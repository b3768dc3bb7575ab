//! Whether the agents of the configuration fit the policy and the tools: each knows nothing of the others.

use crate::{
    config::Config,
    daemon::DaemonError,
    domain::{ids::RoleName, item, policy::Policy},
    tools::Toolbox,
};

/// What the configuration's agents want of the policy and the tools is there.
pub(crate) fn check_agents(
    config: &Config,
    tools: &Toolbox,
    policy: &Policy,
) -> Result<(), DaemonError> {
    let mut errors = Vec::new();
    for agent in &config.agents.configured {
        if !policy.roles.contains_key(&agent.role) {
            let known: Vec<&str> = policy.roles.keys().map(RoleName::as_str).collect();
            let known = known.join(", ");
            errors.push(format!(
                "agents.{}.role: the policy has no role {}; it has: {known}",
                agent.name, agent.role
            ));
        }
        for tool in agent.tools.iter().flatten() {
            if !tools.specs().iter().any(|spec| spec.name == *tool) {
                let known = item::names(tools.specs().iter().map(|spec| &spec.name));
                errors.push(format!(
                    "agents.{}.tools: there is no tool {tool}; there are: {known}",
                    agent.name
                ));
            }
        }
    }
    for name in &config.agents.errand_names() {
        if tools.find(name).is_some() {
            errors.push(format!(
                "tools: {name} is the name of a tool with which agents call others; give yours another name"
            ));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(DaemonError::Agents(errors)) }
}
