//! Credentials: which source of one is meant, and what the backend's tells.

use serde_json::Value;

use crate::{
    config::reader::{Origin, Reader},
    secrets::{self, Secret, Source},
    yaml::{Content, Node},
};

const KEY: &str = "backend.api_key";
const KEY_FILE: &str = "backend.api_key_file";
const KEY_COMMAND: &str = "backend.api_key_command";
const VARIABLE: &str = "OPENAI_API_KEY";
const VARIABLE_FILE: &str = "OPENAI_API_KEY_FILE";
/// What is wrong with a credential that [`named`] does not know.
pub(super) const NOT_NAMED: &str = "must name where the secret is: {env: NAME}, {file: /path} or {command: [program, \
                                    argument]}; it never stands here itself";

/// The key, from the environment, else from the file that is named there, else from what the
/// configuration names: a file or a command.
pub(super) fn api_key(reader: &mut Reader<'_>) -> Option<Secret> {
    let in_file = in_file(reader);
    let variable = |name| reader.variable(name);
    let (source, origin) = if variable(VARIABLE).is_some() {
        (Source::Environment(VARIABLE.into()), Origin::Environment(VARIABLE))
    } else if let Some(path) = variable(VARIABLE_FILE) {
        (Source::File(path.into()), Origin::Environment(VARIABLE_FILE))
    } else {
        in_file?
    };
    match secrets::read(&source, |name| reader.variable(name)) {
        Ok(secret) => {
            reader.show(KEY, "[secret]".into(), &origin);
            Some(secret)
        }
        Err(message) => {
            reader.fault(format!("{KEY} ({origin}): {message}"));
            None
        }
    }
}

fn in_file(reader: &mut Reader<'_>) -> Option<(Source, Origin)> {
    if let Some((_, node)) = reader.node(KEY) {
        let message = "a key must not stand in the configuration; put it into a file of mode 0600 and name \
                       that as backend.api_key_file, or set OPENAI_API_KEY";
        reader.fault_at(node.at, KEY, message);
    }
    let file = reader.node(KEY_FILE);
    let command = reader.node(KEY_COMMAND);
    if let (Some((_, first)), Some(_)) = (&file, &command) {
        let message = "is given together with api_key_command; keep one of them";
        reader.fault_at(first.at, KEY_FILE, message);
        return None;
    }
    let origin = |path, node: &Node| Origin::File { path, at: node.at };
    match (file, command) {
        (Some((path, node)), _) => match &node.content {
            Content::Scalar(Value::String(named)) if named.starts_with('/') => {
                Some((Source::File(named.into()), origin(path, &node)))
            }
            Content::Scalar(_) | Content::List(_) | Content::Map(_) => {
                reader.fault_at(node.at, KEY_FILE, "is not an absolute path; begin it with /");
                None
            }
        },
        (None, Some((path, node))) => {
            match serde_json::from_value::<Vec<String>>(node.to_value()) {
                Ok(argv) if !argv.is_empty() => Some((Source::Command(argv), origin(path, &node))),
                Ok(_) | Err(_) => {
                    let message = "is not a list of words: a program and its arguments";
                    reader.fault_at(node.at, KEY_COMMAND, message);
                    None
                }
            }
        }
        (None, None) => None,
    }
}

/// The source that a map in the configuration names; none if it names none, or holds anything else.
pub(super) fn named(value: &Value) -> Option<Source> {
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
