//! `read_file`: the text of one file of the workspace, or some of its lines.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        effect::{Effect, EffectResult, Lines},
        tool::{ToolOutcome, ToolSpec},
    },
    tools::{BadCall, Tool, arguments, done, other, spec, text},
};

#[derive(Debug)]
pub(super) struct ReadFile;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Path of the file, relative to the workspace.
    path: String,
    /// First line to read, 1 being the first of the file. Without lines, a long file is shown with its
    /// head and its tail.
    #[schemars(range(min = 1))]
    start_line: Option<u64>,
    /// Last line to read, included.
    #[schemars(range(min = 1))]
    end_line: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
struct Answer {
    path: String,
    /// Size of the whole file.
    bytes: u64,
    content: String,
    /// Number of the first line in `content`.
    start_line: u64,
    /// Number of the last line in `content`; 0 when there is none.
    end_line: u64,
    /// Lines of the whole file.
    total_lines: u64,
    /// Whether something of what was asked for is left out; read it by its lines.
    truncated: bool,
}

impl Tool for ReadFile {
    fn spec(&self) -> ToolSpec {
        spec::<Arguments, Answer>(
            "read_file",
            "Reads a text file of the workspace, or the lines from start_line to end_line. Long files \
             are shown with their head and their tail; read the rest by its lines.",
        )
    }

    fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let Arguments { path, start_line, end_line } = arguments(raw)?;
        let lines = match (start_line, end_line) {
            (None, None) => Lines::All,
            (first, last) => {
                Lines::Range { first: first.unwrap_or(1).max(1), last: last.unwrap_or(u64::MAX) }
            }
        };
        match lines {
            Lines::Range { first, last } if last < first => Err(BadCall::arguments(format!(
                "/end_line: {last} is before start_line {first}; give a line at or after it"
            ))),
            Lines::Range { .. } | Lines::All => Ok(Effect::ReadFile { path, lines }),
        }
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        let (path, content, bytes, lines) = match result {
            EffectResult::Read { path, content, file_bytes, lines } => {
                (path, content, file_bytes, lines)
            }
            result => return other("read_file", result),
        };
        let Some(lines) = lines else {
            let message =
                format!("{path} is not text: it has {bytes} bytes that are not all UTF-8");
            return ToolOutcome::failed("NOT_TEXT", &message);
        };
        if lines.first > lines.total && bytes > 0 {
            let message =
                format!("{path} has {} lines; there is no line {}", lines.total, lines.first);
            return ToolOutcome::failed("NO_SUCH_LINE", &message);
        }
        done(&Answer {
            path: path.to_string(),
            bytes,
            content: text(&content),
            start_line: lines.first,
            end_line: lines.last,
            total_lines: lines.total,
            truncated: content.dropped > 0,
        })
    }
}
