//! The callers of the configuration file: a list of maps, each key with its place. What they may do:
//! `domain::access`; their tokens: `crate::callers`.

use serde_json::Value;

use crate::{
    callers::{self, CallerSettings},
    config::reader::{Origin, Reader, SettingValue},
    domain::access::Role,
    yaml::{Content, Node},
};

const KEY: &str = "callers";
const KEYS: [&str; 5] = ["name", "role", "token_file", "workspaces", "agents"];

/// The callers; what is wrong with them is told through the reader.
pub(super) fn callers(reader: &mut Reader<'_>) -> Vec<CallerSettings> {
    let Some((path, node)) = reader.node(KEY) else { return Vec::new() };
    let entries = match &node.content {
        Content::List(entries) => entries.as_slice(),
        Content::Scalar(Value::Null) => &[],
        Content::Scalar(_) | Content::Map(_) => {
            reader.fault_at(node.at, KEY, "is not a list of callers");
            &[]
        }
    };
    let callers: Vec<_> = entries.iter().filter_map(|entry| caller(reader, entry)).collect();
    let mut errors = Vec::new();
    callers::check(&callers, &mut errors);
    errors.into_iter().for_each(|error| reader.fault(error));
    let names = callers.iter().map(|caller| format!("{} ({})", caller.name, caller.role));
    let names = names.collect::<Vec<_>>().join(", ");
    reader.show(KEY, names, &Origin::File { path, at: node.at });
    callers
}

fn caller(reader: &mut Reader<'_>, entry: &Node) -> Option<CallerSettings> {
    let Content::Map(keys) = &entry.content else {
        reader.fault_at(entry.at, KEY, "an entry is not a map; it wants name, role and token_file");
        return None;
    };
    for (key, _) in keys.iter().filter(|(key, _)| !KEYS.contains(&key.name.as_str())) {
        let known = KEYS.join(", ");
        let message = format!("{}: there is no such key; there are {known}", key.name);
        reader.fault_at(key.at, KEY, &message);
    }
    let name = one(reader, entry, "name");
    let role = one(reader, entry, "role");
    let token_file = one(reader, entry, "token_file");
    let workspaces = several(reader, entry, "workspaces");
    let agents = several(reader, entry, "agents");
    Some(CallerSettings { name: name?, role: role?, token_file: token_file?, workspaces, agents })
}

fn below<'n>(entry: &'n Node, name: &str) -> Option<&'n Node> {
    let Content::Map(keys) = &entry.content else { return None };
    keys.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
}

fn one<T: SettingValue>(reader: &mut Reader<'_>, entry: &Node, name: &str) -> Option<T> {
    match below(entry, name) {
        Some(node) => scalar(reader, node, name),
        None => {
            reader.fault_at(entry.at, KEY, &format!("{name} is missing"));
            None
        }
    }
}

/// None where the key is not there: that means all, and an empty list means none.
fn several<T: SettingValue>(reader: &mut Reader<'_>, entry: &Node, name: &str) -> Option<Vec<T>> {
    let node = below(entry, name)?;
    match &node.content {
        Content::List(nodes) => {
            Some(nodes.iter().filter_map(|node| scalar(reader, node, name)).collect())
        }
        Content::Scalar(_) | Content::Map(_) => {
            reader.fault_at(node.at, KEY, &format!("{name} is not a list"));
            None
        }
    }
}

fn scalar<T: SettingValue>(reader: &mut Reader<'_>, node: &Node, name: &str) -> Option<T> {
    let value = match &node.content {
        Content::Scalar(value) => T::from_scalar(value),
        Content::List(_) | Content::Map(_) => Err("is not one value".to_owned()),
    };
    value.map_err(|message| reader.fault_at(node.at, KEY, &format!("{name} {message}"))).ok()
}

impl SettingValue for Role {
    fn from_text(text: &str) -> Result<Self, String> {
        let known = Role::ALL.map(|role| role.to_string());
        Role::ALL
            .into_iter()
            .find(|role| role.to_string() == text)
            .ok_or_else(|| format!("{text:?} is not a role; there are {}", known.join(", ")))
    }

    fn from_scalar(value: &Value) -> Result<Self, String> {
        Self::from_text(value.as_str().unwrap_or_default())
    }

    fn shown(&self) -> String {
        self.to_string()
    }
}
