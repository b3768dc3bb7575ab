//! `read_file`: the text of one file of the workspace.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::{
    domain::{
        effect::{Captured, Effect, EffectResult},
        ids::ToolName,
        tool::{ToolOutcome, ToolSpec},
    },
    tools::{BadCall, Tool, arguments, schema, text},
};

#[derive(Debug)]
pub(super) struct ReadFile;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// Path of the file, relative to the workspace.
    path: String,
}

impl Tool for ReadFile {
    fn spec(&self) -> ToolSpec {
        ToolSpec {
            name: ToolName::new("read_file"),
            description: "Reads a text file of the workspace. Long files are shown with their head \
                          and their tail.",
            parameters: schema::<Arguments>(),
        }
    }

    fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let Arguments { path } = arguments(raw)?;
        Ok(Effect::ReadFile { path })
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        match result {
            EffectResult::Read { path, content, file_bytes } => {
                if !is_text(&content) {
                    return ToolOutcome::failed(&format!(
                        "{path} is not text: {file_bytes} bytes that are not UTF-8"
                    ));
                }
                ToolOutcome::done(&json!({
                    "path": path,
                    "bytes": file_bytes,
                    "content": text(&content),
                    "truncated": content.dropped > 0,
                }))
            }
            EffectResult::Failed { message } => ToolOutcome::failed(&message),
            EffectResult::Written { .. } | EffectResult::Ran(_) => {
                ToolOutcome::failed("read_file got the result of another tool")
            }
        }
    }
}

/// Whether the bytes are UTF-8 without NUL; where bytes were left out, a character may be cut there.
fn is_text(content: &Captured) -> bool {
    let cut = content.dropped > 0;
    let tail_start =
        content.tail.iter().take(3).take_while(|byte| cut && *byte & 0xC0 == 0x80).count();
    let head = match std::str::from_utf8(&content.head) {
        Ok(_) => true,
        Err(error) => cut && error.error_len().is_none(),
    };
    let tail = std::str::from_utf8(&content.tail[tail_start..]).is_ok();
    head && tail && !content.head.contains(&0) && !content.tail.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(head: &[u8], tail: &[u8], dropped: u64) -> Captured {
        Captured { head: head.to_vec(), tail: tail.to_vec(), dropped }
    }

    #[test]
    fn text_is_utf8_without_nul_and_may_be_cut_only_where_bytes_were_left_out() {
        let umlaut = "ü".as_bytes();
        assert!(is_text(&captured("grün".as_bytes(), b"", 0)));
        assert!(!is_text(&captured(b"a\0b", b"", 0)));
        assert!(!is_text(&captured(&umlaut[..1], b"", 0)));
        assert!(is_text(&captured(&umlaut[..1], &umlaut[1..], 7)));
        assert!(!is_text(&captured(b"\xff\xfe", b"", 7)));
    }
}
