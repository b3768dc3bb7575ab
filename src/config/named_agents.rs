//! The agents of the configuration: how the built-in ones think, and those that are the operator's own.

#[path = "agent_calls.rs"]
mod calls;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use crate::{
    agents::{self, Agent, Origin, colleagues::ErrandTool, executor, variables},
    config::{
        backends::{self, MIND_KEYS, NamedBackend},
        entry::{self, Entry},
        reader::Reader,
    },
    domain::{
        ids::{RoleName, ToolName},
        output,
    },
    engine::Mind,
};

const KEY: &str = "agents";
/// Of those that are not built in.
const OWN_KEYS: [&str; 5] = ["description", "instructions", "role", "tools", "output"];
/// Of those that may call others, and be called.
const CALLING_KEYS: [&str; 3] = [HAND_OFFS, ASKS, MAX_TURNS];
const HAND_OFFS: &str = "hand_offs";
const ASKS: &str = "agents_as_tools";
const MAX_TURNS: &str = "max_turns";
/// Most agents, longest name and longest instructions, in bytes.
const MOST: usize = 100;
const NAME_BYTES: usize = 64;
const INSTRUCTIONS_BYTES: usize = 64 << 10;

/// What the configuration says of agents.
#[derive(Default)]
pub(super) struct Named {
    /// By the names of agents.
    pub(super) minds: BTreeMap<String, Mind>,
    pub(super) agents: Vec<Agent>,
    /// Tools with which agents call others, by their names.
    pub(super) errands: BTreeMap<String, Arc<[ErrandTool]>>,
}

/// What is wrong with it is told through the reader.
pub(super) fn named(reader: &mut Reader<'_>, backends: &[NamedBackend]) -> Named {
    let known: Vec<&str> =
        MIND_KEYS.iter().chain(&OWN_KEYS).chain(&CALLING_KEYS).copied().collect();
    let mut named = Named::default();
    let entries = entry::entries(reader, KEY, &known);
    if entries.len() > MOST {
        let message = format!("there are {} agents, {MOST} are accepted", entries.len());
        entries[MOST].fault(reader, "instructions", &message);
    }
    for entry in &entries {
        let is_built_in = agents::roles().iter().any(|role| role.as_str() == entry.name);
        match is_built_in {
            true => {
                // A planner and a reviewer have a work of their own.
                let others = CALLING_KEYS.iter().filter(|_| entry.name != executor::NAME);
                let not_its = OWN_KEYS.iter().chain(others);
                not_its.filter(|key| entry.node(key).is_some()).for_each(|key| {
                    let message = "cannot be given to a built-in agent; give yours another name";
                    entry.fault(reader, key, message);
                });
            }
            false => named.agents.extend(agent(reader, entry)),
        }
        let mind = backends::mind(reader, entry, backends);
        named.minds.insert(entry.name.clone(), mind);
    }
    named.errands = calls::errands(reader, &entries, &named.agents);
    named
}

fn agent(reader: &mut Reader<'_>, entry: &Entry) -> Option<Agent> {
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let name = &entry.name;
    if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(is_plain) {
        let message = format!("{name:?} is not a name; use 1 to {NAME_BYTES} of a-z, 0-9 and '-'");
        entry.fault(reader, "instructions", &message);
    }
    if agents::is_team(name) {
        entry.fault(
            reader,
            "instructions",
            "`default` is the built-in team; give yours another name",
        );
    }
    let instructions: Option<String> = entry.take(reader, "instructions");
    match &instructions {
        None => entry.fault(reader, "instructions", "is missing; say what the agent is to do"),
        Some(text) if text.len() > INSTRUCTIONS_BYTES => {
            let message = format!("has {} bytes, 64 KiB are accepted", text.len());
            entry.fault(reader, "instructions", &message);
        }
        Some(text) => {
            if let Err(message) = variables::check(text) {
                entry.fault(reader, "instructions", &message);
            }
        }
    }
    let role: Option<String> = entry.take(reader, "role");
    let description: Option<String> = entry.take(reader, "description");
    Some(Agent {
        name: name.clone(),
        description: description.unwrap_or_else(|| "an agent of the configuration".into()),
        role: role.map_or_else(executor::role, |role| RoleName::new(role.as_str())),
        instructions: instructions?,
        tools: tools(reader, entry),
        output: schema(reader, entry),
        max_turns: calls::max_turns(reader, entry),
        origin: Origin::Configured,
    })
}

fn tools(reader: &mut Reader<'_>, entry: &Entry) -> Option<Vec<ToolName>> {
    let names = entry.node("tools")?.to_value();
    match serde_json::from_value::<Vec<String>>(names) {
        Ok(names) => Some(names.iter().map(|name| ToolName::new(name.as_str())).collect()),
        Err(_) => {
            entry.fault(reader, "tools", "is not a list of names of tools");
            None
        }
    }
}

fn schema(reader: &mut Reader<'_>, entry: &Entry) -> Option<Arc<str>> {
    let schema = entry.node("output")?.to_value();
    let faults = match &schema {
        Value::Object(_) => output::check_schema(&schema).err(),
        _ => Some("is not a JSON Schema: a map".to_owned()),
    };
    match faults {
        Some(message) => {
            entry.fault(reader, "output", &message);
            None
        }
        None => Some(schema.to_string().into()),
    }
}
