//! `write_file`: one file of the workspace, replaced as a whole or not at all.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::{
    domain::{
        effect::{Before, Effect, EffectResult},
        ids::ToolName,
        tool::{ToolOutcome, ToolSpec},
    },
    tools::{BadCall, Tool, arguments, schema},
};

#[derive(Debug)]
pub(super) struct WriteFile;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Path of the file, relative to the workspace. Its directory must exist.
    path: String,
    /// The whole new content of the file.
    content: String,
}

impl Tool for WriteFile {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: ToolName::new("write_file"),
            description: "Writes a text file of the workspace, replacing it as a whole. Creates the \
                          file if it does not exist.",
            parameters: schema::<Arguments>(),
        }
    }

    fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let Arguments { path, content } = arguments(raw)?;
        Ok(Effect::WriteFile { path, content: content.into() })
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        match result {
            EffectResult::Written { path, bytes, before } => ToolOutcome::done(&json!({
                "path": path,
                "bytes": bytes,
                "created": before == Before::Absent,
            })),
            EffectResult::Failed { message } => ToolOutcome::failed(&message),
            EffectResult::Read { .. } | EffectResult::Ran(_) => {
                ToolOutcome::failed("write_file got the result of another tool")
            }
        }
    }
}
