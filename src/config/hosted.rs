//! Tools that the backend runs itself. Exactly three types are known; what they say is passed through as it
//! stands, except that a credential is named and not written.

use serde_json::{Map, Value};

use crate::{
    config::reader::{Origin, Reader},
    secrets::{self, ExposeSecret as _, Secret, Source},
    yaml::{Content, Node},
};

const KEY: &str = "hosted_tools";
/// Most hosted tools.
const MOST: usize = 32;

/// The hosted tools, and the secrets within them.
#[derive(Debug, Default)]
pub(super) struct Hosted {
    pub(super) tools: Vec<Secret>,
    pub(super) secrets: Vec<Secret>,
}

pub(super) fn take(reader: &mut Reader<'_>) -> Hosted {
    let mut hosted = Hosted::default();
    let Some((path, node)) = reader.node(KEY) else { return hosted };
    let Content::List(tools) = &node.content else {
        reader.fault_at(node.at, KEY, "is not a list of tools");
        return hosted;
    };
    if tools.len() > MOST {
        reader.fault_at(node.at, KEY, &format!("has {} tools, {MOST} are accepted", tools.len()));
    }
    for (place, tool) in tools.iter().enumerate() {
        let key = format!("{KEY}[{place}]");
        if let Some((kind, json)) = self::tool(reader, &key, tool, &mut hosted.secrets) {
            let origin = Origin::File { path: path.clone(), at: tool.at };
            reader.show(&key, kind, &origin);
            hosted.tools.push(Secret::from(json.to_string()));
        }
    }
    hosted
}

fn tool(
    reader: &mut Reader<'_>,
    key: &str,
    node: &Node,
    found: &mut Vec<Secret>,
) -> Option<(String, Value)> {
    let Value::Object(mut tool) = node.to_value() else {
        reader.fault_at(node.at, key, "is not a map with a `type`");
        return None;
    };
    let kind = tool.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(fault) = fault(&kind, &tool) {
        reader.fault_at(node.at, key, &fault);
        return None;
    }
    let mut complete = true;
    if let Some(value) = tool.get_mut("authorization") {
        complete &= fill(reader, node, &format!("{key}.authorization"), value, found);
    }
    let headers = tool.get_mut("headers").and_then(Value::as_object_mut);
    for (name, value) in headers.into_iter().flatten() {
        complete &= fill(reader, node, &format!("{key}.headers.{name}"), value, found);
    }
    if kind == "code_interpreter" && !tool.contains_key("container") {
        tool.insert("container".into(), serde_json::json!({"type": "auto"}));
    }
    complete.then_some((kind, Value::Object(tool)))
}

/// What is wrong with a tool of this type, if anything is.
fn fault(kind: &str, tool: &Map<String, Value>) -> Option<String> {
    let has = |name: &str| tool.contains_key(name);
    match kind {
        "code_interpreter" => None,
        "file_search" if has("vector_store_ids") => None,
        "file_search" => Some("a file_search names its vector_store_ids".into()),
        "mcp" if !has("server_label") => Some("an mcp tool has a server_label".into()),
        "mcp" if ["server_url", "connector_id", "tunnel_id"].into_iter().any(has) => None,
        "mcp" => Some("an mcp tool has a server_url, a connector_id or a tunnel_id".into()),
        "function" => Some(
            "a function is not run by the backend; declare it under `tools`, or as a file in the tools directory"
                .into(),
        ),
        "" => Some("has no type; it is code_interpreter, file_search or mcp".into()),
        other => Some(format!(
            "{other} is not passed through: the types are code_interpreter, file_search and mcp. Leave it \
             out, or declare a tool of your own under `tools`"
        )),
    }
}

/// Puts the secret in the place of its source. Tells whether it could.
fn fill(
    reader: &mut Reader<'_>,
    node: &Node,
    key: &str,
    value: &mut Value,
    found: &mut Vec<Secret>,
) -> bool {
    let source = match source(value) {
        Some(source) => source,
        None => {
            let message = "must name where the secret is: {env: NAME}, {file: /path} or {command: [program, \
                           argument]}; it never stands here itself";
            reader.fault_at(node.at, key, message);
            return false;
        }
    };
    match secrets::read(&source, |name| reader.variable(name)) {
        Ok(secret) => {
            *value = secret.expose_secret().into();
            found.push(secret);
            true
        }
        Err(message) => {
            reader.fault_at(node.at, key, &message);
            false
        }
    }
}

fn source(value: &Value) -> Option<Source> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    let (kind, named) = map.iter().next()?;
    match (kind.as_str(), named) {
        ("env", Value::String(name)) => Some(Source::Environment(name.clone())),
        ("file", Value::String(path)) if path.starts_with('/') => Some(Source::File(path.into())),
        ("command", Value::Array(_)) => {
            serde_json::from_value(named.clone()).ok().map(Source::Command)
        }
        _ => None,
    }
}
