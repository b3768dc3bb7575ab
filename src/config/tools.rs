//! Tools that are declared in the configuration file itself. What a declaration says is not read here: see
//! `tool_files`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{
    config::reader::{Origin, Reader},
    yaml::Content,
};

const KEY: &str = "tools";
/// Most declarations of a file.
const MOST: usize = 256;

/// A declaration as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct DeclaredTool {
    /// `FILE:LINE`.
    pub place: String,
    /// Where the file lies: a command that begins with `./` is there.
    pub directory: PathBuf,
    pub declaration: Value,
}

/// In the order of the file.
pub(super) fn take(reader: &mut Reader<'_>) -> Vec<DeclaredTool> {
    let Some((path, node)) = reader.node(KEY) else { return Vec::new() };
    let Content::List(tools) = &node.content else {
        reader.fault_at(node.at, KEY, "is not a list of declarations");
        return Vec::new();
    };
    if tools.len() > MOST {
        let fault = format!("has {} declarations, {MOST} are accepted", tools.len());
        reader.fault_at(node.at, KEY, &fault);
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut declared = Vec::with_capacity(tools.len());
    for (place, tool) in tools.iter().enumerate() {
        let declaration = tool.to_value();
        let name = declaration.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let origin = Origin::File { path: path.clone(), at: tool.at };
        reader.show(&format!("{KEY}[{place}]"), name, &origin);
        declared.push(DeclaredTool {
            place: format!("{}:{}", path.display(), tool.at.0),
            directory: directory.to_owned(),
            declaration,
        });
    }
    declared
}
