//! Turns policy files into a [`Policy`]. Never decides anything: see `domain::policy`.
//! Invariant: the files compile together or not at all.

mod shapes;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use globset::GlobBuilder;
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        effect::WorkspacePath,
        ids::{PolicyRevision, RoleName, RuleId, ToolName},
        journal::Verdict,
        policy::{CommandRule, FileOperation, Limits, PathRule, Policy, Positionals, Role},
        tool::EffectClass,
    },
    policy_files::shapes::{CommandShape, LimitsShape, PathShape, PathsFile, ToolsFile},
    yaml,
};

/// The policy files that are built in: the repository's `policies/`.
pub const DEFAULT_TOOLS: &str = include_str!("../../policies/tools.yaml");
/// See [`DEFAULT_TOOLS`].
pub const DEFAULT_PATHS: &str = include_str!("../../policies/paths.yaml");

/// File names in a policy directory.
pub const TOOLS: &str = "tools.yaml";
/// See [`TOOLS`].
pub const PATHS: &str = "paths.yaml";

/// The texts of the policy files, with the names to show in errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    pub tools: Source,
    pub paths: Source,
    /// Command rules of this process, from `ALLOW_COMMANDS`, comma-separated.
    pub extra_commands: Option<String>,
}

/// One policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub text: String,
}

/// Everything that is wrong with the policy files; at least one line, each with file and place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the policy is not valid, and none of it applies:\n{}", .0.join("\n"))]
pub struct PolicyErrors(pub Vec<String>);

impl Sources {
    /// The built-in files.
    pub fn built_in() -> Self {
        let source = |name: &str, text: &str| Source { name: name.into(), text: text.into() };
        Self {
            tools: source("built-in tools.yaml", DEFAULT_TOOLS),
            paths: source("built-in paths.yaml", DEFAULT_PATHS),
            extra_commands: None,
        }
    }

    /// The files of a directory. Errors: one is missing, too long or not text.
    pub fn from_directory(directory: &Path) -> Result<Self, PolicyErrors> {
        let read = |name| {
            let path = directory.join(name);
            yaml::read(&path).map(|text| Source { name: path.display().to_string(), text })
        };
        match (read(TOOLS), read(PATHS)) {
            (Ok(tools), Ok(paths)) => Ok(Self { tools, paths, extra_commands: None }),
            (tools, paths) => Err(PolicyErrors(
                [tools.err(), paths.err()].into_iter().flatten().map(|e| e.to_string()).collect(),
            )),
        }
    }

    /// Content hash of everything that decides.
    fn revision(&self) -> PolicyRevision {
        let mut hasher = Sha256::new();
        hasher.update(b"agentd/policy/1");
        let extra = self.extra_commands.as_deref().unwrap_or_default();
        for text in [&self.tools.text, &self.paths.text, extra] {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        PolicyRevision::new(format!("sha256:{hex}"))
    }
}

/// Compiles the files to one policy. `known_tools` are the tools that roles may name.
///
/// Errors: all of them at once, those of YAML with line and column; nothing applies then.
pub fn compile(sources: &Sources, known_tools: &[ToolName]) -> Result<Policy, PolicyErrors> {
    let tools: Result<ToolsFile, _> = yaml::parse(&sources.tools.name, &sources.tools.text);
    let paths: Result<PathsFile, _> = yaml::parse(&sources.paths.name, &sources.paths.text);
    let (tools, paths) = match (tools, paths) {
        (Ok(tools), Ok(paths)) => (tools, paths),
        (tools, paths) => {
            let errors = [tools.err(), paths.err()].into_iter().flatten();
            return Err(PolicyErrors(errors.map(|error| error.to_string()).collect()));
        }
    };
    let mut compiler = Compiler { errors: Vec::new() };
    let policy = Policy {
        revision: sources.revision(),
        limits: tools.limits.compile(),
        roles: compiler.roles(&sources.tools.name, &tools, known_tools),
        paths: compiler.paths(&sources.paths.name, &paths),
        commands: compiler.commands(sources, &tools),
        program_directories: compiler.directories(&sources.tools.name, &tools),
    };
    match compiler.errors.is_empty() {
        true => Ok(policy),
        false => Err(PolicyErrors(compiler.errors)),
    }
}

/// Collects errors, so that all of them are told at once.
struct Compiler {
    errors: Vec<String>,
}

impl Compiler {
    fn fault(&mut self, file: &str, key: &str, message: &str) {
        self.errors.push(format!("{file}: {key}: {message}"));
    }

    fn roles(
        &mut self,
        file: &str,
        tools: &ToolsFile,
        known: &[ToolName],
    ) -> BTreeMap<RoleName, Role> {
        for (role, shape) in &tools.roles {
            for tool in shape.tools.iter().filter(|tool| !known.contains(tool)) {
                let message = format!(
                    "{tool} is not a tool; there are {}",
                    crate::domain::item::names(known)
                );
                self.fault(file, &format!("roles.{role}.tools"), &message);
            }
        }
        let role =
            |shape: &shapes::RoleShape| Role { tools: shape.tools.iter().cloned().collect() };
        tools.roles.iter().map(|(name, shape)| (name.clone(), role(shape))).collect()
    }

    fn directories(&mut self, file: &str, tools: &ToolsFile) -> Vec<String> {
        for directory in tools.program_directories.iter().filter(|dir| !dir.starts_with('/')) {
            self.fault(file, "program_directories", &format!("{directory:?} is not absolute"));
        }
        tools.program_directories.clone()
    }

    fn paths(&mut self, file: &str, paths: &PathsFile) -> Vec<PathRule> {
        self.unique(file, "rules", paths.rules.iter().map(|rule| &rule.id));
        let rules: Vec<PathRule> =
            paths.rules.iter().filter_map(|shape| self.path(file, shape)).collect();
        for (n, test) in paths.tests.iter().enumerate() {
            let path = WorkspacePath::from_resolved(test.path.clone());
            let (found, rule) =
                match crate::domain::policy::judge_path(&rules, test.operation.into(), &path) {
                    Ok(rule) => (Verdict::Allow, rule.id.clone()),
                    Err(ruling) => (Verdict::Deny, ruling.rule),
                };
            if found != test.expect || rule != test.rule {
                let message = format!(
                    "{} expects {:?} by {}, the rules say {found:?} by {rule}",
                    test.path, test.expect, test.rule
                );
                self.fault(file, &format!("tests[{n}]"), &message);
            }
        }
        rules
    }

    fn path(&mut self, file: &str, shape: &PathShape) -> Option<PathRule> {
        let glob = GlobBuilder::new(&shape.glob).literal_separator(true).build();
        match glob {
            Ok(glob) => Some(PathRule {
                id: shape.id.clone(),
                glob: glob.compile_matcher(),
                operations: shape.operations.iter().copied().map(FileOperation::from).collect(),
                decision: shape.decision,
                why: shape.why.clone(),
            }),
            Err(error) => {
                self.fault(file, &format!("rule {}: glob", shape.id), &error.to_string());
                None
            }
        }
    }

    fn commands(&mut self, sources: &Sources, tools: &ToolsFile) -> Vec<CommandRule> {
        let file = &sources.tools.name;
        self.unique(file, "commands", tools.commands.iter().map(|rule| &rule.id));
        let mut rules: Vec<CommandRule> =
            tools.commands.iter().filter_map(|shape| self.command(file, shape, tools)).collect();
        let extra = sources.extra_commands.as_deref().unwrap_or_default();
        for line in extra.split(',').map(str::trim).filter(|line| !line.is_empty()) {
            match shlex::split(line).as_deref() {
                Some([program, ..]) if program.contains('/') => {
                    let message = "must begin with a program's name without '/'";
                    self.fault("ALLOW_COMMANDS", line, message);
                }
                Some(argv @ [_, ..]) => rules.push(extra_command(argv.to_vec(), tools)),
                Some([]) | None => {
                    self.fault("ALLOW_COMMANDS", line, "is not a command: its quotes do not close");
                }
            }
        }
        rules
    }

    fn command(
        &mut self,
        file: &str,
        shape: &CommandShape,
        tools: &ToolsFile,
    ) -> Option<CommandRule> {
        let key = format!("command {}", shape.id);
        if shape.argv.first().is_none_or(|program| program.is_empty() || program.contains('/')) {
            self.fault(file, &key, "argv must begin with a program's name without '/'");
            return None;
        }
        for flag in shape.flags.iter().filter(|flag| !flag.starts_with('-')) {
            self.fault(file, &key, &format!("flags: {flag:?} does not begin with '-'"));
        }
        let environment = tools.environment.iter().chain(&shape.environment);
        let rule = CommandRule {
            id: shape.id.clone(),
            argv: shape.argv.clone(),
            flags: shape.flags.iter().cloned().collect(),
            positionals: shape.positionals.into(),
            inject: shape.inject.clone(),
            inject_after: shape.inject_after.clone(),
            environment: environment.map(|(name, value)| (name.clone(), value.clone())).collect(),
            class: shape.effect,
            decision: shape.decision,
            limits: shape.limits.as_ref().map(LimitsShape::compile),
            why: shape.why.clone(),
        };
        self.examples(file, &key, shape, &rule);
        Some(rule)
    }

    /// A rule must speak of what it says it matches, and not of what it says it does not.
    fn examples(&mut self, file: &str, key: &str, shape: &CommandShape, rule: &CommandRule) {
        let expected = shape.matches.iter().map(|line| (line, true));
        let unexpected = shape.not_matches.iter().map(|line| (line, false));
        for (line, should_match) in expected.chain(unexpected) {
            let matches = shlex::split(line).is_some_and(|argv| rule.check(&argv).is_ok());
            if matches != should_match {
                let verb = if should_match { "does not match" } else { "matches" };
                self.fault(file, key, &format!("{verb} its example {line:?}"));
            }
        }
    }

    fn unique<'a>(&mut self, file: &str, key: &str, ids: impl Iterator<Item = &'a RuleId>) {
        let mut seen = BTreeSet::new();
        for id in ids {
            if id.as_str().starts_with("builtin/") {
                self.fault(
                    file,
                    key,
                    &format!("{id}: ids beginning with builtin/ are agentd's own"),
                );
            }
            if !seen.insert(id) {
                self.fault(file, key, &format!("the id {id} is used twice"));
            }
        }
    }
}

/// A command from `ALLOW_COMMANDS`: exactly these words, and nothing is known of its effect.
fn extra_command(argv: Vec<String>, tools: &ToolsFile) -> CommandRule {
    CommandRule {
        id: RuleId::new(format!("ALLOW_COMMANDS/{}", argv.join(" "))),
        argv,
        flags: BTreeSet::new(),
        positionals: Positionals::None,
        inject: Vec::new(),
        inject_after: Vec::new(),
        environment: tools.environment.clone(),
        class: EffectClass::NonIdempotent,
        decision: Verdict::Allow,
        limits: None,
        why: "the operator allowed it for this process".into(),
    }
}

impl LimitsShape {
    fn compile(&self) -> Limits {
        const MIB: u64 = 1 << 20;
        Limits {
            wall_ms: self.wall_seconds.saturating_mul(1000),
            cpu_seconds: self.cpu_seconds,
            memory_bytes: self.memory_mib.saturating_mul(MIB),
            processes: self.processes,
            open_files: self.open_files,
            file_bytes: self.file_mib.saturating_mul(MIB),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Vec<ToolName> {
        ["read_file", "write_file", "shell_exec"].map(ToolName::new).to_vec()
    }

    fn errors(change: impl FnOnce(&mut Sources)) -> Vec<String> {
        let mut sources = Sources::built_in();
        change(&mut sources);
        compile(&sources, &tools()).expect_err("should be refused").0
    }

    #[test]
    fn the_built_in_policy_compiles_and_passes_its_own_tests() {
        let policy = compile(&Sources::built_in(), &tools()).unwrap();
        assert!(policy.commands.len() >= 6 && policy.paths.len() >= 4);
    }

    #[test]
    fn any_change_of_what_decides_changes_the_revision() {
        let plain = Sources::built_in();
        let mut commented = plain.clone();
        commented.paths.text.push_str("\n# changed\n");
        let mut extended = plain.clone();
        extended.extra_commands = Some("make test".into());
        let revisions = [plain, commented, extended].map(|sources| sources.revision());
        assert_eq!(BTreeSet::from(revisions).len(), 3);
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_line_and_column() {
        let errors =
            errors(|s| s.paths.text = s.paths.text.replace("glob: \"**\"", "globb: \"**\""));
        assert_eq!(errors.len(), 1);
        assert!(errors[0].starts_with("built-in paths.yaml:8:5: "), "{errors:?}");
    }

    #[test]
    fn all_errors_of_both_files_are_told_at_once() {
        let errors = errors(|s| {
            s.tools.text = s.tools.text.replace("[read_file, write_file, shell_exec]", "[rm_rf]");
            s.tools.text = s.tools.text.replace("id: wc", "id: ls");
            s.paths.text =
                s.paths.text.replace("expect: deny, rule: secrets.env", "expect: allow, rule: x");
        });
        assert_eq!(errors.len(), 4, "{errors:#?}");
    }

    #[test]
    fn a_rule_that_matches_what_it_says_it_does_not_is_refused() {
        let errors = errors(|s| {
            s.tools.text = s.tools.text.replace("flags: [-s,", "flags: [--output=x, -s,")
        });
        assert_eq!(
            errors,
            [
                "built-in tools.yaml: command git.status: matches its example \"git status --output=x\""
            ]
        );
    }

    #[test]
    fn extra_commands_allow_exactly_their_words_and_count_as_non_idempotent() {
        let mut sources = Sources::built_in();
        sources.extra_commands = Some("make test, cargo check".into());
        let policy = compile(&sources, &tools()).unwrap();
        let words = |line: &str| shlex::split(line).unwrap();
        let make =
            policy.commands.iter().find(|rule| rule.check(&words("make test")).is_ok()).unwrap();
        assert_eq!(make.class, EffectClass::NonIdempotent);
        assert!(make.check(&words("make test all")).is_err());
    }
}
