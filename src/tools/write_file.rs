//! `write_file`: one file of the workspace, replaced as a whole or not at all.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        effect::{Before, Effect, EffectResult},
        tool::{ToolOutcome, ToolSpec},
    },
    tools::{BadCall, Tool, arguments, done, other, spec},
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

#[derive(Serialize, JsonSchema)]
struct Answer {
    path: String,
    /// Size of the file now.
    bytes: u64,
    /// Whether there was no such file before.
    created: bool,
}

impl Tool for WriteFile {
    fn spec(&self) -> ToolSpec {
        spec::<Arguments, Answer>(
            "write_file",
            "Writes a text file of the workspace, replacing it as a whole. Creates the file if it does \
             not exist. To change a part of a file, use edit_file.",
        )
    }

    fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let Arguments { path, content } = arguments(raw)?;
        Ok(Effect::WriteFile { path, content: content.into() })
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        match result {
            EffectResult::Written { path, bytes, before } => {
                done(&Answer { path: path.to_string(), bytes, created: before == Before::Absent })
            }
            result => other("write_file", result),
        }
    }
}
