//! `repo_summarize`: what a directory of the workspace is about, at a glance.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    domain::{
        effect::{Effect, EffectResult},
        tool::{ToolOutcome, ToolSpec},
        tree::{Summary, SummaryQuery, TreeAnswer, TreeQuery},
    },
    tools::{BadCall, Tool, arguments, done, here, other, spec},
};

#[derive(Debug)]
pub(super) struct RepoSummarize;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Path of the directory, relative to the workspace.
    #[serde(default = "here")]
    path: String,
    /// Largest summary, in bytes; lists are cut short to fit.
    #[serde(default = "eight_kib")]
    #[schemars(range(min = 1024, max = 32768))]
    max_bytes: usize,
}

fn eight_kib() -> usize {
    8192
}

impl Tool for RepoSummarize {
    fn spec(&self) -> ToolSpec {
        spec::<Arguments, Summary>(
            "repo_summarize",
            "Summarizes a directory of the workspace: languages, layout, sizes, entry points and the \
             latest commits. A good first look at a repository.",
        )
    }

    fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let Arguments { path, max_bytes } = arguments(raw)?;
        let bytes = max_bytes.clamp(1024, 32768);
        Ok(Effect::Look { path, query: TreeQuery::Summarize(SummaryQuery { bytes }) })
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        match result {
            EffectResult::Looked(TreeAnswer::Summary(summary)) => done(&summary),
            result => other("repo_summarize", result),
        }
    }
}
