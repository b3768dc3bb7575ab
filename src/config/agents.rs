//! What the configuration file says of agents: what those of each role may use of a run, and what becomes of work that does
//! what it must not.

use std::time::Duration;

use serde_json::Value;

use crate::{
    agents::{self, Agent},
    config::{
        backends::NamedBackend,
        named_agents::{self, Named},
        names,
        reader::{Count, Origin, Reader, Spare, either},
    },
    domain::{
        budget::{Budget, RoleBudgets},
        guardrail::{Consequence, Guardrails},
        ids::RoleName,
        journal::{OnVeto, Team},
    },
    engine::AgentSettings,
    yaml::{Content, Node},
};

const KEY: &str = "role_budgets";
const KEYS: [&str; 5] = ["turns", "tool_calls", "tokens", "seconds", "cost_dollars"];

/// What is wrong with it is told through the reader.
pub(super) fn agents(reader: &mut Reader<'_>, backends: &[NamedBackend]) -> Option<AgentSettings> {
    let Named { minds, agents: configured, errands } = named_agents::named(reader, backends);
    let backend_wait = reader.take(names::BACKEND_WAIT, None, || Some(Count(900)));
    let role_budgets = budgets(reader, &configured);
    let mut consequence =
        |setting| reader.take(setting, None, || Some(Consequence::default())).unwrap_or_default();
    let guardrails = Guardrails {
        forbidden_paths: consequence(names::FORBIDDEN_PATHS),
        secrets: consequence(names::ADDED_SECRETS),
        deleted_tests: consequence(names::DELETED_TESTS),
    };
    let rounds = reader.take(names::REVIEW_ROUNDS, None, || Some(Spare(3)));
    let rounds = rounds.map_or(0, |rounds| u32::from(rounds.0));
    let repository_instructions = repository(reader);
    let backend_wait = Duration::from_secs(backend_wait?.0);
    let on_veto = reader.take(names::ON_VETO, None, || Some(OnVeto::default())).unwrap_or_default();
    let team = Team { max_review_rounds: rounds, on_veto };
    Some(AgentSettings {
        minds,
        configured,
        errands,
        repository_instructions,
        backend_wait,
        role_budgets,
        guardrails,
        team,
    })
}

/// Names of files at the top of a workspace that agents are told of.
fn repository(reader: &mut Reader<'_>) -> Vec<String> {
    const KEY: &str = "repository_instructions";
    const MOST: usize = 8;
    let Some((path, node)) = reader.node(KEY) else { return Vec::new() };
    let names = serde_json::from_value::<Vec<String>>(node.to_value()).unwrap_or_default();
    let is_name =
        |name: &String| !name.is_empty() && !name.contains('/') && !name.starts_with("..");
    let is_null = matches!(node.content, Content::Scalar(Value::Null));
    if !is_null && (names.is_empty() || names.len() > MOST || !names.iter().all(is_name)) {
        let message =
            format!("is not a list of 1 to {MOST} names of files at the top of a workspace");
        reader.fault_at(node.at, KEY, &message);
    }
    reader.show(KEY, names.join(", "), &Origin::File { path, at: node.at });
    names
}

either!(Consequence, "veto" => Veto, "report" => Report);
either!(OnVeto, "keep" => Keep, "restore" => Restore);

fn budgets(reader: &mut Reader<'_>, configured: &[Agent]) -> RoleBudgets {
    let Some((path, node)) = reader.node(KEY) else { return RoleBudgets::new() };
    let roles = match &node.content {
        Content::Map(roles) => roles.as_slice(),
        Content::Scalar(Value::Null) => &[],
        Content::Scalar(_) | Content::List(_) => {
            reader.fault_at(node.at, KEY, "is not a map of roles");
            &[]
        }
    };
    let own = configured.iter().map(|agent| agent.role.clone());
    let known: Vec<RoleName> = agents::roles().into_iter().chain(own).collect();
    let mut budgets = RoleBudgets::new();
    for (key, node) in roles {
        let role = RoleName::new(&*key.name);
        if !known.contains(&role) {
            let known: Vec<&str> = known.iter().map(RoleName::as_str).collect();
            let message =
                format!("{}: there is no such role; there are {}", key.name, known.join(", "));
            reader.fault_at(key.at, KEY, &message);
        }
        budgets.insert(role, budget(reader, node, &key.name));
    }
    let names = budgets.keys().map(RoleName::as_str).collect::<Vec<_>>().join(", ");
    reader.show(KEY, names, &Origin::File { path, at: node.at });
    budgets
}

fn budget(reader: &mut Reader<'_>, node: &Node, role: &str) -> Budget {
    let none = Budget {
        max_turns: 0,
        max_tool_calls: 0,
        max_tokens: 0,
        max_wall_seconds: 0,
        max_cost_micros: 0,
    };
    let Content::Map(keys) = &node.content else {
        let message = format!("{role} is not a map; it wants some of {}", KEYS.join(", "));
        reader.fault_at(node.at, KEY, &message);
        return none;
    };
    for (key, _) in keys.iter().filter(|(key, _)| !KEYS.contains(&key.name.as_str())) {
        let message =
            format!("{role}.{}: there is no such key; there are {}", key.name, KEYS.join(", "));
        reader.fault_at(key.at, KEY, &message);
    }
    let mut whole = |name: &str, most: u64| {
        let Some((_, node)) = keys.iter().find(|(key, _)| key.name == name) else { return 0 };
        let number = match &node.content {
            Content::Scalar(value) => value.as_u64(),
            Content::List(_) | Content::Map(_) => None,
        };
        let number = number.filter(|number| (1..=most).contains(number));
        if number.is_none() {
            let message = format!("{role}.{name}: a whole number from 1 to {most} is wanted");
            reader.fault_at(node.at, KEY, &message);
        }
        number.unwrap_or(0)
    };
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    const MOST: u64 = i64::MAX as u64;
    Budget {
        max_turns: small(whole("turns", u64::from(u32::MAX))),
        max_tool_calls: small(whole("tool_calls", u64::from(u32::MAX))),
        max_tokens: whole("tokens", MOST),
        max_wall_seconds: whole("seconds", MOST),
        max_cost_micros: whole("cost_dollars", MOST / 1_000_000) * 1_000_000,
    }
}
