//! `list_dir`: what lies in a directory of the workspace, and below it.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    domain::{
        effect::{Effect, EffectResult},
        tool::{ToolOutcome, ToolSpec},
        tree::{Ignored, ListQuery, Listing, TreeAnswer, TreeQuery},
    },
    tools::{BadCall, Tool, arguments, done, here, other, spec},
};

#[derive(Debug)]
pub(super) struct ListDir;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Path of the directory, relative to the workspace.
    #[serde(default = "here")]
    path: String,
    /// How many levels to show; 1 shows the directory itself.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10))]
    depth: usize,
    /// Show what .gitignore names too.
    #[serde(default)]
    include_ignored: bool,
}

fn one() -> usize {
    1
}

impl Tool for ListDir {
    fn spec(&self) -> ToolSpec {
        spec::<Arguments, Listing>(
            "list_dir",
            "Lists files and directories of the workspace, by path, at most 1000. Leaves out what \
             .gitignore names, and .git itself. Links are shown and not followed.",
        )
    }

    fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let Arguments { path, depth, include_ignored } = arguments(raw)?;
        let ignored = if include_ignored { Ignored::Include } else { Ignored::LeaveOut };
        let query = TreeQuery::List(ListQuery { depth: depth.clamp(1, 10), ignored });
        Ok(Effect::Look { path, query })
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        match result {
            EffectResult::Looked(TreeAnswer::Listing(listing)) => done(&listing),
            result => other("list_dir", result),
        }
    }
}
