//! Which agents of the configuration may call which others, and how.

use super::*;
use crate::{agents::colleagues, config::reader::Count};

/// Most agents that one may call in either way.
const MOST: usize = 20;

/// The tools of each agent that calls others. What is wrong is told through the reader.
pub(super) fn errands(
    reader: &mut Reader<'_>,
    entries: &[Entry],
    configured: &[Agent],
) -> BTreeMap<String, Arc<[ErrandTool]>> {
    let executor = executor(entries, reader);
    let all: Vec<&Agent> = configured.iter().chain([&executor]).collect();
    let mut calls = BTreeMap::new();
    let mut errands = BTreeMap::new();
    for entry in entries {
        let hand_offs = called(reader, entry, HAND_OFFS, &all);
        let asked = called(reader, entry, ASKS, &all);
        let names = |agents: &[&Agent]| agents.iter().map(|agent| agent.name.clone()).collect();
        let called = Calls { asks: names(&asked), hand_offs: names(&hand_offs) };
        calls.insert(entry.name.clone(), called);
        let tools = colleagues::tools(&hand_offs, &asked);
        if !tools.is_empty() {
            errands.insert(entry.name.clone(), tools.into());
        }
    }
    for entry in entries {
        if asks_itself(&entry.name, &calls) {
            let message = "an agent would ask itself in the end, by those whom it asks or to whom these hand over";
            entry.fault(reader, ASKS, message);
        }
    }
    errands
}

/// Turns that an agent may take to answer another one.
pub(super) fn max_turns(reader: &mut Reader<'_>, entry: &Entry) -> u32 {
    let turns: Option<Count> = entry.take(reader, MAX_TURNS);
    turns.and_then(|turns| u32::try_from(turns.0).ok()).unwrap_or(agents::MAX_TURNS)
}

/// The built-in one, as others call it.
fn executor(entries: &[Entry], reader: &mut Reader<'_>) -> Agent {
    let own = entries.iter().find(|entry| entry.name == executor::NAME);
    Agent {
        name: executor::NAME.into(),
        description: executor::DESCRIPTION.into(),
        role: executor::role(),
        instructions: executor::INSTRUCTIONS.into(),
        tools: None,
        output: None,
        max_turns: own.map_or(agents::MAX_TURNS, |entry| max_turns(reader, entry)),
        origin: Origin::BuiltIn,
    }
}

fn called<'a>(
    reader: &mut Reader<'_>,
    entry: &Entry,
    key: &str,
    all: &[&'a Agent],
) -> Vec<&'a Agent> {
    let Some(node) = entry.node(key) else { return Vec::new() };
    let Ok(names) = serde_json::from_value::<Vec<String>>(node.to_value()) else {
        entry.fault(reader, key, "is not a list of names of agents");
        return Vec::new();
    };
    let mut found: Vec<&Agent> = Vec::new();
    for name in &names {
        match all.iter().find(|agent| agent.name == *name) {
            _ if *name == entry.name => {
                entry.fault(reader, key, "an agent does not call itself; leave it out");
            }
            None => {
                let known: Vec<&str> = all.iter().map(|agent| agent.name.as_str()).collect();
                let message = format!("there is no agent {name}; there are {}", known.join(", "));
                entry.fault(reader, key, &message);
            }
            Some(_) if name.len() > colleagues::NAME_MOST => {
                let most = colleagues::NAME_MOST;
                let message = format!(
                    "{name} is a name of {} bytes; of one that others call, {most} are accepted",
                    name.len()
                );
                entry.fault(reader, key, &message);
            }
            Some(agent) if found.iter().any(|known| known.name == agent.name) => {}
            Some(agent) => found.push(agent),
        }
    }
    if found.len() > MOST {
        entry.fault(reader, key, &format!("names {} agents, {MOST} are accepted", found.len()));
    }
    found
}

/// Names of those whom an agent calls.
#[derive(Default)]
struct Calls {
    asks: Vec<String>,
    hand_offs: Vec<String>,
}

/// Whether asking leads back to the agent of that name: who is asked may ask others, or have them answer.
fn asks_itself(name: &str, calls: &BTreeMap<String, Calls>) -> bool {
    let own = calls.get(name).map_or(&[][..], |calls| &calls.asks);
    let (mut seen, mut next) = (Vec::new(), own.iter().collect::<Vec<_>>());
    while let Some(who) = next.pop() {
        if who == name {
            return true;
        }
        if !seen.contains(&who) {
            seen.push(who);
            let calls = calls.get(who);
            next.extend(
                calls.into_iter().flat_map(|calls| calls.asks.iter().chain(&calls.hand_offs)),
            );
        }
    }
    false
}
