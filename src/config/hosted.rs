//! Tools that the backend runs itself. Exactly three types are known; what they say is passed through as it
//! stands, except that a credential is named and not written. Whether one is declared at all is policy's to say.

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{
    config::{
        credential,
        reader::{Origin, Reader},
    },
    domain::{
        hex::hex,
        policy::{HostedKind, HostedTool, McpPlace},
    },
    secrets::{self, ExposeSecret as _, Secret},
    yaml::{Content, Node},
};

const KEY: &str = "hosted_tools";
/// Most hosted tools.
const MOST: usize = 32;

/// The hosted tools, and the secrets within them.
#[derive(Debug, Default)]
pub(super) struct Hosted {
    /// As policy sees them, in the order of the file.
    pub(super) tools: Vec<HostedTool>,
    /// As the backend gets them, in the same order.
    pub(super) json: Vec<Secret>,
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
        if let Some(read) = self::tool(reader, &key, tool, &mut hosted.secrets) {
            let origin = Origin::File { path: path.clone(), at: tool.at };
            reader.show(&key, read.name, &origin);
            hosted.json.push(Secret::from(read.json.to_string()));
            let (kind, digest) = (read.kind, read.digest);
            hosted.tools.push(HostedTool { index: place, kind, digest });
        }
    }
    hosted
}

/// One tool, whole.
struct Read {
    /// The type, as it is written.
    name: String,
    kind: HostedKind,
    digest: String,
    /// With its credentials.
    json: Value,
}

fn tool(reader: &mut Reader<'_>, key: &str, node: &Node, found: &mut Vec<Secret>) -> Option<Read> {
    let Value::Object(mut tool) = node.to_value() else {
        reader.fault_at(node.at, key, "is not a map with a `type`");
        return None;
    };
    let name = tool.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = match kind(&name, &tool) {
        Ok(kind) => kind,
        Err(fault) => {
            reader.fault_at(node.at, key, &fault);
            return None;
        }
    };
    let digest = digest(&tool);
    let mut complete = true;
    if let Some(value) = tool.get_mut("authorization") {
        complete &= fill(reader, node, &format!("{key}.authorization"), value, found);
    }
    let headers = tool.get_mut("headers").and_then(Value::as_object_mut);
    for (name, value) in headers.into_iter().flatten() {
        complete &= fill(reader, node, &format!("{key}.headers.{name}"), value, found);
    }
    if kind == HostedKind::CodeInterpreter && !tool.contains_key("container") {
        tool.insert("container".into(), serde_json::json!({"type": "auto"}));
    }
    complete.then_some(Read { name, kind, digest, json: Value::Object(tool) })
}

/// Of the tool as it is written: credentials are only named in it.
fn digest(tool: &Map<String, Value>) -> String {
    hex(&Sha256::digest(Value::Object(tool.clone()).to_string()))
}

/// What a tool of this type is to policy. Errors: what is wrong with it.
fn kind(name: &str, tool: &Map<String, Value>) -> Result<HostedKind, String> {
    match name {
        "code_interpreter" => Ok(HostedKind::CodeInterpreter),
        "file_search" if tool.contains_key("vector_store_ids") => Ok(HostedKind::FileSearch),
        "file_search" => Err("a file_search names its vector_store_ids".into()),
        "mcp" => mcp(tool),
        "function" => Err(
            "a function is not run by the backend; declare it under `tools`, or as a file in the tools directory"
                .into(),
        ),
        "" => Err("has no type; it is code_interpreter, file_search or mcp".into()),
        other => Err(format!(
            "{other} is not passed through: the types are code_interpreter, file_search and mcp. Leave it \
             out, or declare a tool of your own under `tools`"
        )),
    }
}

/// Exactly one place, so that what policy looked at is what the backend dials.
fn mcp(tool: &Map<String, Value>) -> Result<HostedKind, String> {
    let Some(label) = tool.get("server_label") else {
        return Err("an mcp tool has a server_label".into());
    };
    let named: Vec<_> = ["server_url", "connector_id", "tunnel_id"]
        .into_iter()
        .filter_map(|key| Some((key, tool.get(key)?)))
        .collect();
    let (key, value) = match named.as_slice() {
        [one] => *one,
        [] => return Err("an mcp tool has a server_url, a connector_id or a tunnel_id".into()),
        _ => {
            return Err("an mcp tool has one of server_url, connector_id and tunnel_id; make it \
                        two tools"
                .into());
        }
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let at = match key {
        // What is wrong is told without the URL: a credential may stand in it.
        "server_url" => McpPlace::server(&text(value)).map_err(|error| {
            format!("server_url: is not a URL such as https://mcp.example.com/mcp: {error}")
        }),
        "connector_id" => {
            McpPlace::connector(&text(value)).map_err(|error| format!("connector_id: {error}"))
        }
        _ => McpPlace::tunnel(&text(value)).map_err(|error| format!("tunnel_id: {error}")),
    }?;
    HostedKind::mcp(&text(label), at).map_err(|error| format!("server_label: {error}"))
}

/// Puts the secret in the place of its source. Tells whether it could.
fn fill(
    reader: &mut Reader<'_>,
    node: &Node,
    key: &str,
    value: &mut Value,
    found: &mut Vec<Secret>,
) -> bool {
    let source = match credential::named(value) {
        Some(source) => source,
        None => {
            reader.fault_at(node.at, key, credential::NOT_NAMED);
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
