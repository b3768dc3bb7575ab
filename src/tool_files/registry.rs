//! The registry: every tool with the version of its schemas, where it comes from and when it was first
//! seen. A file that people and other programs may read; agentd itself needs it for the numbers alone.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        hex::hex,
        ids::Timestamp,
        tool::{RegisteredTool, ToolSpec},
    },
    private_file,
};

/// Versions that are kept of each tool, the newest.
const VERSIONS: usize = 100;
/// Largest registry that is read, in bytes.
const REGISTRY_BYTES: u64 = 16 << 20;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct RegistryFile {
    tools: Vec<ToolRow>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ToolRow {
    name: String,
    version: u32,
    schema_sha256: String,
    /// `builtin`, or the file that declares it.
    source: String,
    /// Of this version; RFC 3339, UTC.
    first_seen: String,
    /// Whether this daemon has it now.
    present: bool,
    /// Oldest first, this one included.
    versions: Vec<VersionRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct VersionRow {
    version: u32,
    schema_sha256: String,
    first_seen: String,
}

/// Brings the registry file up to date with these tools and their sources, and gives them with their
/// versions. A changed schema is a new version; a tool that is gone stays in the file.
///
/// Errors: the file cannot be written. One that cannot be read is set aside as `registry.json.broken`.
pub fn register<'a>(
    path: &Path,
    tools: impl IntoIterator<Item = (&'a ToolSpec, String)>,
    now: Timestamp,
) -> io::Result<Vec<RegisteredTool>> {
    let before = read(path)?;
    let mut rows: Vec<ToolRow> = Vec::new();
    let mut gone =
        before.as_ref().map(|file| file.tools.iter().collect::<Vec<_>>()).unwrap_or_default();
    for (spec, source) in tools {
        let place = gone.iter().position(|row| row.name == spec.name.as_str());
        rows.push(row(place.map(|place| gone.remove(place)), spec, source, now));
    }
    let registered = rows.iter().map(registered).collect();
    rows.extend(gone.into_iter().map(|row| ToolRow {
        name: row.name.clone(),
        schema_sha256: row.schema_sha256.clone(),
        source: row.source.clone(),
        first_seen: row.first_seen.clone(),
        versions: row.versions.clone(),
        version: row.version,
        present: false,
    }));
    let after = RegistryFile { tools: rows };
    if before.as_ref() != Some(&after) {
        write(path, &after)?;
    }
    Ok(registered)
}

fn row(before: Option<&ToolRow>, spec: &ToolSpec, source: String, now: Timestamp) -> ToolRow {
    let schema_sha256 = schema_sha256(spec);
    let mut versions = before.map(|row| row.versions.clone()).unwrap_or_default();
    let known = versions.last().filter(|last| last.schema_sha256 == schema_sha256).cloned();
    let current = known.unwrap_or_else(|| {
        let version = versions.last().map_or(1, |last| last.version.saturating_add(1));
        let fresh = VersionRow { version, schema_sha256, first_seen: rfc3339(now) };
        versions.push(fresh.clone());
        fresh
    });
    versions.drain(..versions.len().saturating_sub(VERSIONS));
    ToolRow {
        name: spec.name.to_string(),
        version: current.version,
        schema_sha256: current.schema_sha256,
        source,
        first_seen: current.first_seen,
        present: true,
        versions,
    }
}

fn registered(row: &ToolRow) -> RegisteredTool {
    RegisteredTool {
        name: row.name.clone(),
        version: row.version,
        schema_sha256: row.schema_sha256.clone(),
        source: row.source.clone(),
        first_seen: row
            .first_seen
            .parse()
            .map_or(Timestamp::default(), |at: jiff::Timestamp| Timestamp(at.as_microsecond())),
    }
}

/// RFC 3339 in UTC with microseconds.
fn rfc3339(at: Timestamp) -> String {
    jiff::Timestamp::from_microsecond(at.0).map(|at| format!("{at:.6}")).unwrap_or_default()
}

/// SHA-256 of all that a model is told of a tool, and of its result's schema.
fn schema_sha256(spec: &ToolSpec) -> String {
    let mut hasher = Sha256::new();
    let result = spec.result.as_deref().unwrap_or_default();
    for text in [spec.name.as_str(), &spec.description, &spec.parameters, result] {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hex(&hasher.finalize())
}

/// None: there is none, or it was broken and is set aside.
fn read(path: &Path) -> io::Result<Option<RegistryFile>> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let parsed = match length <= REGISTRY_BYTES {
        true => serde_json::from_slice(&fs::read(path)?).ok(),
        false => None,
    };
    if parsed.is_none() {
        tracing::warn!(path = %path.display(), "the registry of tools is broken; it is set aside and begun anew");
        fs::rename(path, path.with_extension("json.broken"))?;
    }
    Ok(parsed)
}

/// Whole or not at all. Not synced: what a power cut takes is made anew.
fn write(path: &Path, file: &RegistryFile) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    private_file::replace(path, &serde_json::to_vec_pretty(file)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::ToolName;

    fn spec(parameters: &str) -> ToolSpec {
        ToolSpec {
            name: ToolName::new("lint"),
            description: "Lints".into(),
            parameters: parameters.into(),
            result: None,
        }
    }

    fn seen(path: &Path, tools: &[ToolSpec], day: i64) -> Vec<(u32, i64)> {
        let tools = tools.iter().map(|spec| (spec, "builtin".to_owned()));
        let registered = register(path, tools, Timestamp(day * 86_400_000_000)).unwrap();
        registered.into_iter().map(|tool| (tool.version, tool.first_seen.0)).collect()
    }

    #[test]
    fn a_changed_schema_is_a_new_version_and_the_same_one_is_not() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("tools/registry.json");
        let day = |n: i64| (n - 1) * 86_400_000_000;
        assert_eq!(seen(&path, &[spec("a")], 0), [(1, day(1))]);
        assert_eq!(seen(&path, &[spec("a")], 1), [(1, day(1))]);
        assert_eq!(seen(&path, &[spec("b")], 2), [(2, day(3))]);
        assert_eq!(seen(&path, &[], 3), []);
        assert_eq!(seen(&path, &[spec("b")], 4), [(2, day(3))], "it was gone for a while");
        let file: RegistryFile = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(file.tools[0].versions.len(), 2);
    }

    #[test]
    fn a_broken_registry_is_set_aside_and_not_lost() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("registry.json");
        fs::write(&path, "{\"tools\": [").unwrap();
        assert_eq!(seen(&path, &[spec("a")], 0).len(), 1);
        assert_eq!(
            fs::read_to_string(home.path().join("registry.json.broken")).unwrap(),
            "{\"tools\": ["
        );
    }
}
