//! Tools that the operator declares: YAML to [`Declaration`]; and the registry of every tool that this
//! daemon ever had. Runs nothing: see `tools::Toolbox` and `sandbox`.
//!
//! Invariant: the declarations are taken all or none.

mod registry;

pub use registry::register;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        effect::Isolation,
        hex::hex,
        ids::{RoleName, RuleId},
        policy::LimitsOver,
        tool::{Declaration, EffectClass, ToolSpec, Word, normalised},
    },
    yaml,
};

/// Most declarations of a directory.
const MOST_FILES: usize = 256;

/// One declaration as people write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclarationShape {
    /// A file says it; within the configuration it goes without saying.
    #[serde(rename = "schema")]
    schema: Option<SchemaName>,
    name: String,
    description: String,
    command: Vec<String>,
    #[serde(default = "no_parameters")]
    parameters: Value,
    result: Option<Value>,
    #[serde(default = "unknown_effect")]
    effect: EffectClass,
    #[serde(default)]
    limits: LimitsShape,
    isolation: Option<Isolation>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    network: Vec<RuleId>,
    #[serde(default)]
    roles: Vec<RoleName>,
}

#[derive(Debug, Deserialize)]
enum SchemaName {
    #[serde(rename = "agentd/tool/v1")]
    V1,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsShape {
    wall_seconds: Option<u64>,
    cpu_seconds: Option<u64>,
    cpu_percent: Option<u64>,
    memory_mib: Option<u64>,
    processes: Option<u64>,
    open_files: Option<u64>,
    file_mib: Option<u64>,
    tmp_mib: Option<u64>,
    stdout_mib: Option<u64>,
    stderr_mib: Option<u64>,
}

fn no_parameters() -> Value {
    serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false})
}

fn unknown_effect() -> EffectClass {
    EffectClass::NonIdempotent
}

/// The declarations in a directory, by the names of their files: `*.yaml` and `*.yml`, one tool each.
///
/// Errors: all of them at once, each with its file and, where YAML is at fault, its line and column.
pub fn from_directory(directory: &Path) -> Result<Vec<Declaration>, Vec<String>> {
    let names = file_names(directory).map_err(|error| vec![error])?;
    let (mut declarations, mut errors) = (Vec::new(), Vec::new());
    for path in names {
        match yaml::read(&path) {
            Ok(text) => match declaration(&path.display().to_string(), directory, &text) {
                Ok(declaration) => declarations.push(declaration),
                Err(faults) => errors.extend(faults),
            },
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.is_empty() { Ok(declarations) } else { Err(errors) }
}

fn file_names(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| {
        format!("{}: the directory of tools cannot be read: {error}", directory.display())
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        if is_yaml {
            names.push(path);
        }
    }
    names.sort();
    match names.len() {
        count if count > MOST_FILES => Err(format!(
            "{}: there are {count} declarations, {MOST_FILES} are accepted",
            directory.display()
        )),
        _ => Ok(names),
    }
}

fn declaration(file: &str, directory: &Path, text: &str) -> Result<Declaration, Vec<String>> {
    let shape: DeclarationShape =
        yaml::parse(file, text).map_err(|error| vec![error.to_string()])?;
    if shape.schema.is_none() {
        return Err(vec![format!("{file}: schema: is missing; write schema: agentd/tool/v1")]);
    }
    settled(file, directory, shape, text)
}

/// A declaration that stands in the configuration file at `place`, which is told in errors; `directory` is
/// that file's.
///
/// Errors: all that is wrong with it.
pub fn from_configuration(
    place: &str,
    directory: &Path,
    declaration: Value,
) -> Result<Declaration, Vec<String>> {
    // Its keys are sorted: the text changes only where the declaration does.
    let text = declaration.to_string();
    let shape = serde_json::from_value(declaration)
        .map_err(|error| vec![format!("{place}: the declaration of a tool: {error}")])?;
    settled(place, directory, shape, &text)
}

/// `text` is all that was declared.
fn settled(
    file: &str,
    directory: &Path,
    shape: DeclarationShape,
    text: &str,
) -> Result<Declaration, Vec<String>> {
    let mut errors = Vec::new();
    let mut fault = |key: &str, message: String| errors.push(format!("{file}: {key}: {message}"));
    let name = normalised(&shape.name).unwrap_or_else(|message| {
        fault("name", message);
        crate::domain::ids::ToolName::new("")
    });
    if shape.description.trim().is_empty() {
        fault("description", "is empty; say what the tool does and when to use it".into());
    }
    for variable in shape.environment.keys().filter(|name| name.is_empty() || name.contains('=')) {
        fault("environment", format!("{variable:?} is not the name of a variable"));
    }
    let limits = &shape.limits;
    for (name, limit) in [
        ("wall_seconds", limits.wall_seconds),
        ("cpu_seconds", limits.cpu_seconds),
        ("cpu_percent", limits.cpu_percent),
        ("memory_mib", limits.memory_mib),
        ("processes", limits.processes),
        ("open_files", limits.open_files),
        ("file_mib", limits.file_mib),
        ("tmp_mib", limits.tmp_mib),
        ("stdout_mib", limits.stdout_mib),
        ("stderr_mib", limits.stderr_mib),
    ] {
        if limit == Some(0) {
            fault("limits", format!("{name} is 0; give at least 1"));
        }
    }
    let mut command = shape.command.iter();
    let program = command.next().map_or(String::new(), |word| program(directory, word));
    if program.is_empty() || (program.contains('/') && !program.starts_with('/')) {
        let message = "must begin with a program: a bare name, an absolute path, or ./ and a path \
                       beside this file";
        fault("command", message.into());
    }
    let words = command.map(|word| word_of(word)).collect::<Vec<_>>();
    for word in &words {
        if let Word::Argument(argument) = word
            && shape.parameters["properties"].get(argument).is_none()
        {
            fault("command", format!("{{{argument}}} is not one of the parameters' properties"));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Declaration {
        spec: ToolSpec {
            name,
            description: shape.description.trim().into(),
            parameters: shape.parameters.to_string().into(),
            result: shape.result.map(|schema| schema.to_string().into()),
        },
        program,
        words,
        class: shape.effect,
        limits: shape.limits.into(),
        environment: shape.environment,
        isolation: shape.isolation,
        network: shape.network,
        roles: shape.roles,
        source: file.to_owned(),
        digest: hex(&Sha256::digest(text.as_bytes())),
    })
}

/// `./x` lies beside the declaration; anything else is taken as it is.
fn program(directory: &Path, word: &str) -> String {
    match word.strip_prefix("./") {
        Some(beside) => directory.join(beside).display().to_string(),
        None => word.to_owned(),
    }
}

/// `{name}` as a whole word is an argument of the call.
fn word_of(word: &str) -> Word {
    match word.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(name) if !name.is_empty() && !name.contains(['{', '}']) => Word::Argument(name.into()),
        Some(_) | None => Word::Literal(word.to_owned()),
    }
}

impl From<LimitsShape> for LimitsOver {
    fn from(shape: LimitsShape) -> Self {
        let mib = |count: Option<u64>| count.map(|count| count.saturating_mul(1 << 20));
        Self {
            wall_ms: shape.wall_seconds.map(|seconds| seconds.saturating_mul(1000)),
            cpu_seconds: shape.cpu_seconds,
            cpu_percent: shape.cpu_percent,
            memory_bytes: mib(shape.memory_mib),
            processes: shape.processes,
            open_files: shape.open_files,
            file_bytes: mib(shape.file_mib),
            tmp_bytes: mib(shape.tmp_mib),
            stdout_bytes: mib(shape.stdout_mib),
            stderr_bytes: mib(shape.stderr_mib),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINT: &str = "schema: agentd/tool/v1\nname: lint.run\ndescription: Lints a file\n\
        command: [./lint.sh, --path, '{path}', literal]\neffect: pure\nroles: [executor]\n\
        limits: {wall_seconds: 5}\n\
        parameters: {type: object, properties: {path: {type: string}}, required: [path]}\n";

    fn declared(text: &str) -> Result<Declaration, Vec<String>> {
        declaration("lint.yaml", Path::new("/tools"), text)
    }

    #[test]
    fn a_declaration_names_its_program_its_words_and_its_limits() {
        let tool = declared(LINT).unwrap();
        assert_eq!(tool.spec.name.as_str(), "lint_run");
        assert_eq!(tool.program, "/tools/lint.sh");
        let literal = |word: &str| Word::Literal(word.into());
        let words = [literal("--path"), Word::Argument("path".into()), literal("literal")];
        assert_eq!(tool.words, words);
        assert_eq!(tool.limits, LimitsOver { wall_ms: Some(5000), ..LimitsOver::default() });
        assert_eq!(tool.class, EffectClass::Pure);
    }

    #[test]
    fn all_faults_of_a_declaration_are_told_at_once() {
        let text = LINT
            .replace("lint.run", "'...'")
            .replace("'{path}'", "'{file}'")
            .replace("./lint.sh", "bin/lint")
            .replace("Lints a file", "' '");
        let errors = declared(&text).unwrap_err();
        assert_eq!(errors.len(), 4, "{errors:#?}");
        assert!(errors.iter().all(|error| error.starts_with("lint.yaml: ")), "{errors:#?}");
        let errors = declared(&LINT.replace("effect: pure", "efect: pure")).unwrap_err();
        assert!(errors[0].starts_with("lint.yaml:5:1: "), "{errors:?}");
    }

    #[test]
    fn in_the_configuration_a_declaration_says_the_same_and_its_place_is_told() {
        let shape: Value = yaml::parse("lint.yaml", LINT).unwrap();
        let tool = from_configuration("agentd.yaml:3", Path::new("/tools"), shape.clone()).unwrap();
        let file = declared(LINT).unwrap();
        assert_eq!(
            tool,
            Declaration { source: tool.source.clone(), digest: tool.digest.clone(), ..file }
        );
        assert_eq!(tool.source, "agentd.yaml:3");
        let mut odd = shape;
        odd["efect"] = "pure".into();
        let errors = from_configuration("agentd.yaml:3", Path::new("/tools"), odd).unwrap_err();
        assert!(
            errors[0].starts_with("agentd.yaml:3: ") && errors[0].contains("`efect`"),
            "{errors:?}"
        );
        let errors = declared(&LINT.replace("schema: agentd/tool/v1\n", "")).unwrap_err();
        assert!(errors[0].contains("write schema: agentd/tool/v1"), "{errors:?}");
    }

    #[test]
    fn what_says_nothing_of_its_effect_counts_as_non_idempotent() {
        let tool = declared(&LINT.replace("effect: pure\n", "")).unwrap();
        assert_eq!(tool.class, EffectClass::NonIdempotent);
    }
}
