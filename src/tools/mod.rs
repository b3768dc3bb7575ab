//! The tools a model may call. Pure: a tool turns arguments into a wanted [`Effect`] and the effect's
//! result into words; it never touches anything. To add one: `docs/howto/add-a-tool.md`.

mod read_file;
mod shell_exec;
mod write_file;

use std::sync::LazyLock;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::de::DeserializeOwned;

use crate::domain::{
    effect::{Captured, Effect, EffectResult},
    ids::{RuleId, ToolName},
    tool::{ToolOutcome, ToolSpec},
};

/// One tool.
pub trait Tool: Sync {
    /// What the model is told. The same bytes from run to run.
    fn spec(&self) -> ToolSpec;

    /// What a call wants. Errors are for the model, which may try again.
    fn effect(&self, arguments: &str) -> Result<Effect, BadCall>;

    /// What the model hears of the effect's result.
    fn outcome(&self, result: EffectResult) -> ToolOutcome;
}

/// Every built-in tool: the one list.
pub static BUILTIN: [&dyn Tool; 3] =
    [&read_file::ReadFile, &write_file::WriteFile, &shell_exec::ShellExec];

/// The specs of [`BUILTIN`], in its order.
pub static SPECS: LazyLock<Vec<ToolSpec>> =
    LazyLock::new(|| BUILTIN.iter().map(|tool| tool.spec()).collect());

/// The tool of that name.
pub fn find(name: &ToolName) -> Option<&'static dyn Tool> {
    let place = SPECS.iter().position(|spec| spec.name == *name)?;
    BUILTIN.get(place).copied()
}

/// A call that no policy needs to be asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadCall {
    pub rule: RuleId,
    /// For the model: what is wrong with it and what would be right.
    pub message: String,
}

impl BadCall {
    fn new(rule: &'static str, message: String) -> Self {
        Self { rule: RuleId::new(rule), message }
    }
}

/// Longest arguments that are read, in bytes.
const ARGUMENTS_BYTES: usize = 1 << 20;

/// Reads a tool's arguments. They must be a JSON object; nothing at all counts as `{}`.
fn arguments<T: DeserializeOwned>(text: &str) -> Result<T, BadCall> {
    let bad = |message| BadCall::new("builtin/arguments", message);
    if text.len() > ARGUMENTS_BYTES {
        return Err(bad(format!("the arguments are {} bytes long, 1 MiB is accepted", text.len())));
    }
    let text = if text.trim().is_empty() { "{}" } else { text };
    // A list would do for the parser, by the order of its items.
    if !text.trim_start().starts_with('{') {
        return Err(bad("the arguments must be a JSON object".into()));
    }
    serde_json::from_str(text).map_err(|error| {
        let preview: String = text.chars().take(200).collect();
        bad(format!("the arguments do not fit the tool's schema: {error}. They were: {preview}"))
    })
}

/// JSON Schema of a tool's arguments.
fn schema<T: JsonSchema>() -> std::sync::Arc<str> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.meta_schema = None;
        settings.inline_subschemas = true;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.remove("title");
    schema.as_value().to_string().into()
}

/// Text of a captured stream, with a mark where bytes were dropped.
fn text(captured: &Captured) -> String {
    let mut text = String::from_utf8_lossy(&captured.head).into_owned();
    if captured.dropped > 0 {
        text.push_str(&format!("\n[... {} bytes left out ...]\n", captured.dropped));
    }
    text.push_str(&String::from_utf8_lossy(&captured.tail));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_has_a_name_a_description_and_an_object_schema() {
        for spec in SPECS.iter() {
            let name = spec.name.as_str();
            assert!(
                name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            );
            assert!(spec.description.len() > 20, "{name}");
            let schema: serde_json::Value = serde_json::from_str(&spec.parameters).unwrap();
            assert_eq!(schema["type"], "object", "{name}");
            assert_eq!(schema["additionalProperties"], false, "{name}");
        }
    }

    #[test]
    fn a_tool_is_found_by_the_name_in_its_spec() {
        for spec in SPECS.iter() {
            assert_eq!(find(&spec.name).unwrap().spec(), *spec);
        }
        assert!(find(&ToolName::new("rm_rf")).is_none());
    }

    #[test]
    fn a_long_text_keeps_its_head_and_its_tail() {
        let long = Captured { head: b"head".to_vec(), tail: b"tail".to_vec(), dropped: 10 };
        assert_eq!(text(&long), "head\n[... 10 bytes left out ...]\ntail");
    }
}
