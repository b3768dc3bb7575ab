//! The tools a model may call. Pure: a tool turns arguments into a wanted [`Effect`] and the effect's
//! result into words; it never touches anything. To add one: `docs/howto/add-a-tool.md`.

mod declared;
mod edit_file;
mod list_dir;
mod read_file;
mod repo_summarize;
mod search_files;
mod shell_exec;
mod toolbox;
mod write_file;

pub use toolbox::{Entry, Source, Toolbox};

use std::sync::Arc;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Serialize, de::DeserializeOwned};

use crate::domain::{
    effect::{Captured, Effect, EffectResult},
    ids::{RuleId, ToolName},
    tool::{ToolOutcome, ToolSpec},
    tree::TreeAnswer,
};

/// One tool.
pub trait Tool: Send + Sync {
    /// What the model is told. The same bytes from run to run.
    fn spec(&self) -> ToolSpec;

    /// What a call wants, whose arguments fit the spec. Errors are for the model, which may try again.
    fn effect(&self, arguments: &str) -> Result<Effect, BadCall>;

    /// What the model hears of the effect's result.
    fn outcome(&self, result: EffectResult) -> ToolOutcome;
}

/// Every built-in tool: the one list.
static BUILTIN: [&dyn Tool; 7] = [
    &read_file::ReadFile,
    &write_file::WriteFile,
    &edit_file::EditFile,
    &list_dir::ListDir,
    &search_files::SearchFiles,
    &repo_summarize::RepoSummarize,
    &shell_exec::ShellExec,
];

impl Tool for &'static dyn Tool {
    fn spec(&self) -> ToolSpec {
        (**self).spec()
    }

    fn effect(&self, arguments: &str) -> Result<Effect, BadCall> {
        (**self).effect(arguments)
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        (**self).outcome(result)
    }
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

    fn arguments(message: String) -> Self {
        Self::new("builtin/arguments", message)
    }

    fn not_json(error: &serde_json::Error, text: &str) -> Self {
        let preview: String = text.chars().take(200).collect();
        Self::arguments(format!("the arguments are not JSON: {error}. They were: {preview}"))
    }
}

/// Longest arguments that are read, in bytes.
const ARGUMENTS_BYTES: usize = 1 << 20;

/// The text of a call's arguments; nothing at all counts as `{}`.
fn checked_text(text: &str) -> Result<&str, BadCall> {
    if text.len() > ARGUMENTS_BYTES {
        let message = format!("the arguments are {} bytes long, 1 MiB is accepted", text.len());
        return Err(BadCall::arguments(message));
    }
    let text = if text.trim().is_empty() { "{}" } else { text };
    // A list would do for the parser, by the order of its items.
    match text.trim_start().starts_with('{') {
        true => Ok(text),
        false => Err(BadCall::arguments("the arguments must be a JSON object".into())),
    }
}

/// Reads a tool's arguments, which must be a JSON object.
fn arguments<T: DeserializeOwned>(text: &str) -> Result<T, BadCall> {
    let text = checked_text(text)?;
    serde_json::from_str(text).map_err(|error| BadCall::not_json(&error, text))
}

/// A tool's spec: its schemas are those of its types.
fn spec<A: JsonSchema, R: JsonSchema>(name: &str, description: &str) -> ToolSpec {
    ToolSpec {
        name: ToolName::new(name),
        description: description.into(),
        parameters: schema::<A>(),
        result: Some(schema::<R>()),
    }
}

/// JSON Schema of a type.
fn schema<T: JsonSchema>() -> Arc<str> {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.meta_schema = None;
        settings.inline_subschemas = true;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.remove("title");
    schema.as_value().to_string().into()
}

/// The outcome of a tool that did what it was asked.
fn done(answer: &impl Serialize) -> ToolOutcome {
    match serde_json::to_value(answer) {
        Ok(answer) => ToolOutcome::done(&answer),
        Err(error) => ToolOutcome::failed("RESULT_DOES_NOT_FIT", &error.to_string()),
    }
}

/// The outcome of a result that is not what the tool asked for.
fn other(tool: &str, result: EffectResult) -> ToolOutcome {
    match result {
        EffectResult::Failed { reason, message } => ToolOutcome::failed(reason, &message),
        EffectResult::Looked(TreeAnswer::Fault { reason, message }) => {
            ToolOutcome::failed(&reason, &message)
        }
        EffectResult::Read { .. }
        | EffectResult::Written { .. }
        | EffectResult::Edited { .. }
        | EffectResult::Looked(_)
        | EffectResult::Ran(_) => {
            ToolOutcome::failed("WRONG_RESULT", &format!("{tool} got the result of another tool"))
        }
    }
}

/// The workspace itself.
fn here() -> String {
    ".".into()
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
    use crate::domain::tool::{Declaration, EffectClass, normalised};

    #[test]
    fn every_tool_has_a_name_a_description_and_an_object_schema() {
        for spec in Toolbox::built_in().specs() {
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

    fn declaration(name: &str, parameters: serde_json::Value) -> Declaration {
        Declaration {
            spec: ToolSpec {
                name: normalised(name).unwrap(),
                description: "a tool of the operator's own".into(),
                parameters: parameters.to_string().into(),
                result: None,
            },
            program: "true".into(),
            words: Vec::new(),
            class: EffectClass::Pure,
            limits: Default::default(),
            isolation: None,
            environment: Default::default(),
            network: Vec::new(),
            roles: Vec::new(),
            source: format!("{name}.yaml"),
            digest: String::new(),
        }
    }

    #[test]
    fn a_tool_is_found_by_the_name_in_its_spec() {
        let toolbox = Toolbox::built_in();
        for spec in toolbox.specs() {
            assert_eq!(toolbox.find(&spec.name).unwrap().spec(), spec);
        }
        assert!(toolbox.find(&ToolName::new("rm_rf")).is_none());
    }

    #[test]
    fn arguments_that_do_not_fit_are_told_by_their_place() {
        let toolbox = Toolbox::built_in();
        let entry = toolbox.find(&ToolName::new("read_file")).unwrap();
        let message = |arguments: &str| entry.effect(arguments).unwrap_err().message;
        assert_eq!(
            message(r#"{"path": 3, "start_line": 0}"#),
            "the arguments do not fit the tool's schema: /path: the value is not of type \"string\"; \
             /start_line: the value is less than the minimum of 1"
        );
        assert!(message(r#"{"path": "a", "colour": 1}"#).contains("colour"));
        assert!(message("[1]").contains("must be a JSON object"));
        assert!(message(r#"{"path": "#).contains("not JSON"));
    }

    #[test]
    fn two_tools_of_one_name_and_schemas_that_cannot_be_compiled_are_refused_together() {
        let object = || serde_json::json!({"type": "object"});
        let errors = Toolbox::new(vec![
            declaration("lint.run", object()),
            declaration("lint/run", object()),
            declaration("shell.exec", object()),
            declaration(
                "broken",
                serde_json::json!({"type": "object", "properties": {"a": {"type": 7}}}),
            ),
            declaration("text", serde_json::json!({"type": "string"})),
        ])
        .unwrap_err();
        assert_eq!(errors.len(), 4, "{errors:#?}");
        assert!(errors[0].starts_with("lint/run.yaml: lint_run: there is another tool"));
        assert!(errors[1].starts_with("shell.exec.yaml: shell_exec: there is another tool"));
        assert!(errors[2].starts_with("broken.yaml: broken: parameters: is not a JSON Schema"));
        assert!(errors[3].starts_with("text.yaml: text: parameters: must have"));
    }

    #[test]
    fn names_are_made_fit_for_backends() {
        assert_eq!(normalised("package.module.func").unwrap().as_str(), "package_module_func");
        assert_eq!(normalised("a-b c/d").unwrap().as_str(), "a-b_c_d");
        assert!(normalised("...").is_err());
        assert!(normalised(&"x".repeat(65)).is_err());
    }

    #[test]
    fn a_long_text_keeps_its_head_and_its_tail() {
        let long = Captured { head: b"head".to_vec(), tail: b"tail".to_vec(), dropped: 10 };
        assert_eq!(text(&long), "head\n[... 10 bytes left out ...]\ntail");
    }
}
