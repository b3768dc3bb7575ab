//! `search_files`: lines of the workspace's files that match a pattern.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    domain::{
        effect::{Effect, EffectResult},
        tool::{ToolOutcome, ToolSpec},
        tree::{
            Case, Ignored, MOST_MATCHES, Matches, SearchQuery, Syntax, TOO_MANY_FILES, TreeAnswer,
            TreeQuery,
        },
    },
    tools::{BadCall, Tool, arguments, done, here, other, spec},
};

#[derive(Debug)]
pub(super) struct SearchFiles;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// What to look for: a regular expression, as ripgrep has them, or with `literal` the text itself.
    #[schemars(length(min = 1, max = 4096))]
    pattern: String,
    /// The directory to search, relative to the workspace.
    #[serde(default = "here")]
    path: String,
    /// Only files whose path matches one of these globs: `*.rs`, `src/**/*.py`.
    #[serde(default)]
    #[schemars(length(max = 32))]
    globs: Vec<String>,
    /// Take the pattern as it is.
    #[serde(default)]
    literal: bool,
    #[serde(default)]
    ignore_case: bool,
    /// Lines to show before and after each match.
    #[serde(default)]
    #[schemars(range(max = 10))]
    context_lines: usize,
    /// Most matches to show.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 1000))]
    max_matches: usize,
    /// Search what .gitignore names too.
    #[serde(default)]
    include_ignored: bool,
}

fn hundred() -> usize {
    100
}

/// Longest pattern, in bytes.
const PATTERN_BYTES: usize = 4096;

impl Tool for SearchFiles {
    fn spec(&self) -> ToolSpec {
        spec::<Arguments, Matches>(
            "search_files",
            "Searches the text files of the workspace for lines that match a pattern. Leaves out what \
             .gitignore names, files that are not text, and files that policy keeps from you.",
        )
    }

    fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let arguments: Arguments = arguments(raw)?;
        if arguments.pattern.is_empty() || arguments.pattern.len() > PATTERN_BYTES {
            let message = "/pattern: has 1 to 4096 bytes";
            return Err(BadCall::arguments(message.into()));
        }
        let query = TreeQuery::Search(SearchQuery {
            pattern: arguments.pattern,
            syntax: if arguments.literal { Syntax::Literal } else { Syntax::Regex },
            case: if arguments.ignore_case { Case::Insensitive } else { Case::Sensitive },
            globs: arguments.globs,
            context_lines: arguments.context_lines.min(10),
            most: arguments.max_matches.clamp(1, MOST_MATCHES),
            ignored: match arguments.include_ignored {
                true => Ignored::Include,
                false => Ignored::LeaveOut,
            },
        });
        Ok(Effect::Look { path: arguments.path, query })
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        match result {
            // The search did not come to its end: what it has not seen may matter.
            EffectResult::Looked(TreeAnswer::Matches(Matches {
                incomplete: Some(why),
                matches,
                ..
            })) if why.reason == TOO_MANY_FILES => ToolOutcome::failed_with(
                &why.reason,
                &why.message,
                serde_json::Map::from_iter([(
                    "matches".to_owned(),
                    serde_json::to_value(matches).unwrap_or_default(),
                )]),
            ),
            EffectResult::Looked(TreeAnswer::Matches(matches)) => done(&matches),
            result => other("search_files", result),
        }
    }
}
