//! Shapes to rules, with every fault collected. Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{
    domain::{
        ids::{RoleName, RuleId, ToolName},
        journal::Verdict,
        policy::{
            CommandRule, DeclaredRule, FileOperation, OptionForm, OptionRule, PathGlob, PathRule,
            Place, Positionals, Role, Tests, ValueRule,
        },
        tool::{Declaration, EffectClass},
    },
    policy_files::{
        Sources,
        shapes::{
            CommandShape, FormShape, LimitsShape, OptionShape, PathShape, PathsFile, ToolsFile,
            ValueShape,
        },
    },
    yaml::{self, Placed},
};

/// Collects errors, so that all of them are told at once, and what came of the tests.
#[derive(Default)]
pub(super) struct Compiler {
    pub(super) errors: Vec<String>,
    pub(super) tests: Tests,
}

impl Compiler {
    pub(super) fn fault(&mut self, file: &str, key: &str, message: &str) {
        self.errors.push(yaml::in_one_line(&format!("{file}: {key}: {message}")));
    }

    pub(super) fn roles(
        &mut self,
        sources: &Sources,
        tools: &ToolsFile,
        known: &[ToolName],
    ) -> BTreeMap<RoleName, Role> {
        let file = &sources.tools.name;
        for (role, shape) in &tools.roles {
            for tool in shape.tools.iter().filter(|tool| !known.contains(tool)) {
                let message = format!(
                    "{tool} is not a tool; there are {}",
                    crate::domain::item::names(known)
                );
                self.fault(file, &format!("roles.{role}.tools"), &message);
            }
        }
        let own =
            tools.roles.iter().map(|(name, shape)| (name, shape.tools.iter().cloned().collect()));
        let mut own: BTreeMap<&RoleName, BTreeSet<ToolName>> = own.collect();
        for tool in &sources.declared {
            for name in &tool.roles {
                match own.get_mut(name) {
                    Some(role) => drop(role.insert(tool.spec.name.clone())),
                    None => {
                        let message = format!("the policy has no role {name}");
                        self.fault(&tool.source, &format!("{}.roles", tool.spec.name), &message);
                    }
                }
            }
        }
        let inherited = |role: &RoleName| Role { tools: self.inherited(file, tools, &own, role) };
        let names: Vec<RoleName> = tools.roles.keys().cloned().collect();
        names.iter().cloned().zip(names.iter().map(inherited)).collect()
    }

    /// The tools of a role, and of those that it inherits from.
    fn inherited(
        &mut self,
        file: &str,
        tools: &ToolsFile,
        own: &BTreeMap<&RoleName, BTreeSet<ToolName>>,
        role: &RoleName,
    ) -> BTreeSet<ToolName> {
        let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut next = Some(role);
        while let Some(name) = next {
            let key = format!("roles.{role}.inherits");
            if !seen.insert(name) {
                self.fault(file, &key, "comes back to where it began");
                break;
            }
            let Some(shape) = tools.roles.get(name) else {
                self.fault(file, &key, &format!("there is no role {name}"));
                break;
            };
            found.extend(own.get(name).into_iter().flatten().cloned());
            next = shape.inherits.as_ref();
        }
        found
    }

    pub(super) fn directories(&mut self, sources: &Sources, tools: &ToolsFile) -> Vec<String> {
        self.absolute(sources, "program_directories", &tools.program_directories)
    }

    pub(super) fn read_only_roots(&mut self, sources: &Sources, tools: &ToolsFile) -> Vec<String> {
        let roots = self.absolute(sources, "read_only_roots", &tools.read_only_roots);
        for root in &roots {
            let top = root.split('/').nth(1).unwrap_or_default();
            let message = if SYSTEM.contains(&top) || OWN_PATHS.contains(&root.as_str()) {
                format!("{root} is the sandbox's own to show; leave it out")
            } else if let Some(own) = sources.off_limits.iter().find(|own| overlap(root, own)) {
                format!("{root} holds or lies in {own}, which is agentd's own")
            } else {
                continue;
            };
            self.fault(&sources.tools.name, "read_only_roots", &message);
        }
        roots
    }

    /// A limit of nothing is either no limit or a tool that cannot be used.
    /// Paths from the root or from the home; those from a home that is not there are left out.
    fn absolute(&mut self, sources: &Sources, key: &str, paths: &[String]) -> Vec<String> {
        let paths: Vec<String> = paths.iter().filter_map(|path| expanded(sources, path)).collect();
        for path in &paths {
            let mut names = path.split('/').skip(1);
            if !path.starts_with('/') || names.any(|name| matches!(name, "" | "." | "..")) {
                let message = format!("{path:?} is not a path like /opt/tool or ~/tool");
                self.fault(&sources.tools.name, key, &message);
            }
        }
        paths
    }

    pub(super) fn protected(&mut self, file: &str, paths: &PathsFile) -> Vec<String> {
        for name in &paths.protected {
            if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '*', '\0']) {
                let message =
                    format!("{name:?} is not a name at the top of a workspace, such as .git");
                self.fault(file, "protected", &message);
            }
        }
        paths.protected.clone()
    }

    pub(super) fn paths(&mut self, file: &str, paths: &PathsFile) -> Vec<PathRule> {
        self.unique(file, "rules", paths.rules.iter().map(|rule| &rule.id));
        let rules: Vec<PathRule> =
            paths.rules.iter().filter_map(|shape| self.path(file, shape)).collect();
        self.path_tests(file, &rules, &paths.tests);
        rules
    }

    fn path(&mut self, file: &str, shape: &PathShape) -> Option<PathRule> {
        match PathGlob::try_from(shape.glob.clone()) {
            Ok(glob) => Some(PathRule {
                id: shape.id.value.clone(),
                place: Some(place(file, &shape.id)),
                glob,
                operations: shape.operations.iter().copied().map(FileOperation::from).collect(),
                decision: shape.decision,
                why: shape.why.clone(),
            }),
            Err(error) => {
                let (file, key) = (at(file, &shape.id), format!("rule {}: glob", shape.id.value));
                self.fault(&file, &key, &error.to_string());
                None
            }
        }
    }

    pub(super) fn commands(&mut self, sources: &Sources, tools: &ToolsFile) -> Vec<CommandRule> {
        let file = &sources.tools.name;
        self.unique(file, "commands", tools.commands.iter().map(|rule| &rule.id));
        let mut rules: Vec<CommandRule> =
            tools.commands.iter().filter_map(|shape| self.command(sources, shape, tools)).collect();
        let extra = sources.extra_commands.as_deref().unwrap_or_default();
        for line in extra.split(',').map(str::trim).filter(|line| !line.is_empty()) {
            match shlex::split(line).as_deref() {
                Some([program, ..]) if program.is_empty() || program.contains('/') => {
                    let message = "must begin with a program's name without '/'";
                    self.fault("ALLOW_COMMANDS", line, message);
                }
                Some(argv @ [_, ..]) => rules.push(extra_command(sources, argv.to_vec(), tools)),
                Some([]) | None => {
                    self.fault("ALLOW_COMMANDS", line, "is not a command: its quotes do not close");
                }
            }
        }
        rules
    }

    fn command(
        &mut self,
        sources: &Sources,
        shape: &CommandShape,
        tools: &ToolsFile,
    ) -> Option<CommandRule> {
        let file = &sources.tools.name;
        let place = place(file, &shape.id);
        let (file, key) = (&at(file, &shape.id), format!("command {}", shape.id.value));
        if shape.argv.first().is_none_or(|program| program.is_empty() || program.contains('/')) {
            self.fault(file, &key, "argv must begin with a program's name without '/'");
            return None;
        }
        for flag in shape.flags.iter().filter(|flag| !flag.starts_with('-')) {
            self.fault(file, &key, &format!("flags: {flag:?} does not begin with '-'"));
        }
        let options = self.options(file, &key, &shape.options);
        let rule = CommandRule {
            id: shape.id.value.clone(),
            place: Some(place),
            argv: shape.argv.clone(),
            flags: shape.flags.iter().cloned().collect(),
            options,
            positionals: shape.positionals.into(),
            inject: shape.inject.clone(),
            inject_after: shape.inject_after.clone(),
            environment: environment(sources, tools, &shape.environment),
            class: shape.effect,
            decision: shape.decision,
            limits: shape.limits.as_ref().map(LimitsShape::compile),
            isolation: shape.isolation,
            network: shape.network.clone(),
            why: shape.why.clone(),
        };
        if let Some(limits) = &shape.limits {
            self.limits(file, &key, limits);
        }
        self.examples(sources, shape, &rule);
        Some(rule)
    }

    fn options(
        &mut self,
        file: &str,
        key: &str,
        shapes: &BTreeMap<String, OptionShape>,
    ) -> BTreeMap<String, OptionRule> {
        let mut options = BTreeMap::new();
        for (name, shape) in shapes {
            if !name.starts_with('-') || name.contains('=') {
                let message = format!("options: {name:?} does not begin with '-', or contains '='");
                self.fault(file, key, &message);
            }
            let value = match (shape.value, shape.one_of.is_empty()) {
                (Some(ValueShape::Number), true) => ValueRule::Number,
                (Some(ValueShape::Name), true) => ValueRule::Name,
                (Some(ValueShape::WorkspacePath), true) => ValueRule::WorkspacePath,
                (Some(ValueShape::Any), true) => ValueRule::Any,
                (None, false) => ValueRule::OneOf(shape.one_of.iter().cloned().collect()),
                (Some(_), false) | (None, true) => {
                    let message = format!("options: {name} needs either value or one_of");
                    self.fault(file, key, &message);
                    continue;
                }
            };
            let form = match shape.form {
                FormShape::Joined => OptionForm::Joined,
                FormShape::JoinedOrSeparate => OptionForm::JoinedOrSeparate,
            };
            options.insert(name.clone(), OptionRule { value, form });
        }
        options
    }

    /// A person who allows what a rule asks about must not allow what another one of that name asks about.
    pub(super) fn distinct(&mut self, sources: &Sources, tools: &ToolsFile, paths: &PathsFile) {
        let commands: BTreeSet<&RuleId> =
            tools.commands.iter().map(|rule| &rule.id.value).collect();
        for rule in paths.rules.iter().filter(|rule| commands.contains(&rule.id.value)) {
            let file = at(&sources.paths.name, &rule.id);
            let message =
                format!("a command of {} has the id {} too", sources.tools.name, rule.id.value);
            self.fault(&file, "rules", &message);
        }
    }

    pub(super) fn unique<'a>(
        &mut self,
        file: &str,
        key: &str,
        ids: impl Iterator<Item = &'a Placed<RuleId>>,
    ) {
        let mut seen = BTreeSet::new();
        for placed in ids {
            let (file, id) = (&at(file, placed), &placed.value);
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

/// Tops of paths that the sandbox shows in its own way, or not at all.
const SYSTEM: [&str; 10] =
    ["", "bin", "dev", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "sys"];
const OWN_PATHS: [&str; 8] = [
    "/tmp",
    "/usr",
    "/etc",
    "/etc/group",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/passwd",
];

/// Whether one holds the other.
fn overlap(one: &str, other: &str) -> bool {
    let (one, other) = (Path::new(one), Path::new(other));
    one.starts_with(other) || other.starts_with(one)
}

pub(super) fn place<T>(file: &str, placed: &Placed<T>) -> Place {
    let (line, column) = placed.place;
    Place { file: file.into(), line, column }
}

/// A file with the place of what is meant in it.
pub(super) fn at<T>(file: &str, placed: &Placed<T>) -> String {
    place(file, placed).to_string()
}

/// A path or a value as it was meant: `~/` at its beginning is the home of the daemon's user. None: there is
/// no home.
fn expanded(sources: &Sources, text: &str) -> Option<String> {
    match (text.strip_prefix("~/"), &sources.home) {
        (None, _) => Some(text.to_owned()),
        (Some(below), Some(home)) => Some(format!("{}/{below}", home.trim_end_matches('/'))),
        (Some(_), None) => None,
    }
}

/// The environment of every program, and what is special to one. PATH is where programs are looked for,
/// unless it is said.
fn environment(
    sources: &Sources,
    tools: &ToolsFile,
    own: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let directories = tools.program_directories.iter();
    let path: Vec<String> = directories.filter_map(|one| expanded(sources, one)).collect();
    let path = ("PATH".to_owned(), path.join(":"));
    let said = tools.environment.iter().chain(own);
    let said = said.filter_map(|(name, value)| Some((name.clone(), expanded(sources, value)?)));
    [path].into_iter().chain(said).collect()
}

/// How the declared tools run: with the environment of every program, and their own.
pub(super) fn declared(sources: &Sources, tools: &ToolsFile) -> BTreeMap<ToolName, DeclaredRule> {
    let rule = |tool: &Declaration| DeclaredRule {
        class: tool.class,
        limits: tool.limits.over(tools.limits.compile()),
        isolation: tool.isolation,
        environment: environment(sources, tools, &tool.environment),
        network: tool.network.clone(),
    };
    sources.declared.iter().map(|tool| (tool.spec.name.clone(), rule(tool))).collect()
}

/// A command from `ALLOW_COMMANDS`: exactly these words, and nothing is known of its effect.
fn extra_command(sources: &Sources, argv: Vec<String>, tools: &ToolsFile) -> CommandRule {
    CommandRule {
        id: RuleId::new(format!("ALLOW_COMMANDS/{}", argv.join(" "))),
        place: None,
        argv,
        flags: BTreeSet::new(),
        options: BTreeMap::new(),
        positionals: Positionals::None,
        inject: Vec::new(),
        inject_after: Vec::new(),
        environment: environment(sources, tools, &BTreeMap::new()),
        class: EffectClass::NonIdempotent,
        decision: Verdict::Allow,
        limits: None,
        isolation: None,
        network: Vec::new(),
        why: "the operator allowed it for this process".into(),
    }
}
