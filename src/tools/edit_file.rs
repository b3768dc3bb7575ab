//! `edit_file`: an exact replacement in one file of the workspace.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        effect::{Edit, Effect, EffectResult, Places},
        tool::{ToolOutcome, ToolSpec},
    },
    tools::{BadCall, Tool, arguments, done, other, spec},
};

#[derive(Debug)]
pub(super) struct EditFile;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Path of the file, relative to the workspace.
    path: String,
    /// The text to replace, exactly as it stands in the file, white space and line ends included. It
    /// must stand there once: take in lines around it until it does.
    #[schemars(length(min = 1))]
    old_text: String,
    /// What is to stand there instead.
    new_text: String,
    /// Replace every place where old_text stands, instead of the only one.
    #[serde(default)]
    replace_all: bool,
}

#[derive(Serialize, JsonSchema)]
struct Answer {
    path: String,
    /// Size of the file now.
    bytes: u64,
    /// Places that were replaced.
    replacements: u64,
}

impl Tool for EditFile {
    fn spec(&self) -> ToolSpec {
        spec::<Arguments, Answer>(
            "edit_file",
            "Replaces an exact piece of text in a file of the workspace. Fails, and changes nothing, \
             when old_text does not stand in the file or stands there more than once.",
        )
    }

    fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let Arguments { path, old_text, new_text, replace_all } = arguments(raw)?;
        if old_text.is_empty() {
            let message = "/old_text: is empty; give the text to replace, or use write_file";
            return Err(BadCall::arguments(message.into()));
        }
        if old_text == new_text {
            let message = "/new_text: is the same as old_text; there is nothing to change";
            return Err(BadCall::arguments(message.into()));
        }
        let places = if replace_all { Places::All } else { Places::One };
        let edit = Edit { old: old_text.into(), new: new_text.into(), places };
        Ok(Effect::EditFile { path, edit })
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        match result {
            EffectResult::Edited { path, bytes, replacements, before: _ } => {
                done(&Answer { path: path.to_string(), bytes, replacements })
            }
            result => other("edit_file", result),
        }
    }
}
