//! Turns policy files into a [`Policy`]. Never decides anything: see `domain::policy`.
//! Invariant: the files compile together or not at all.

mod compiler;
mod hosted;
mod limits;
mod network;
mod shapes;
mod testing;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        hex::hex,
        ids::{PolicyRevision, ToolName},
        policy::{Compiled, Gate, HostedTool, IsolationRule, Policy},
        tool::Declaration,
    },
    policy_files::{
        compiler::{Compiler, declared},
        network::NetworkFile,
        shapes::{PathsFile, ToolsFile},
    },
    ports::PolicyFiles,
    tasks, yaml,
};

/// The policy files that are built in: the repository's `policies/`.
pub const DEFAULT_TOOLS: &str = include_str!("../../policies/tools.yaml");
/// See [`DEFAULT_TOOLS`].
pub const DEFAULT_PATHS: &str = include_str!("../../policies/paths.yaml");
/// See [`DEFAULT_TOOLS`].
pub const DEFAULT_NETWORK: &str = include_str!("../../policies/network.yaml");

/// File names in a policy directory.
pub const TOOLS: &str = "tools.yaml";
/// See [`TOOLS`].
pub const PATHS: &str = "paths.yaml";
/// See [`TOOLS`]. A directory without it lets programs reach nothing.
pub const NETWORK: &str = "network.yaml";

/// The texts of the policy files, with the names to show in errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    pub tools: Source,
    pub paths: Source,
    /// None: nothing may be reached.
    pub network: Option<Source>,
    /// Command rules of this process, from `ALLOW_COMMANDS`, comma-separated.
    pub extra_commands: Option<String>,
    /// `ALLOW_NET`.
    pub allow_net: Gate,
    /// Tools that the operator declared elsewhere; they decide too.
    pub declared: Vec<Declaration>,
    /// Tools that the operator wants the backend to run, in the order of the configuration.
    pub hosted: Vec<HostedTool>,
    /// Home of the daemon's user, for paths that begin with `~/`.
    pub home: Option<String>,
    /// What no program may see, agentd's own: absolute paths.
    pub off_limits: Vec<String>,
}

/// Where the policy comes from, to be read again and again.
#[derive(Debug, Clone)]
pub struct Files {
    /// None: the built-in files.
    pub directory: Option<PathBuf>,
    /// See [`Sources::extra_commands`].
    pub extra_commands: Option<String>,
    /// See [`Sources::allow_net`].
    pub allow_net: Gate,
    /// See [`Sources::declared`].
    pub declared: Vec<Declaration>,
    /// See [`Sources::hosted`].
    pub hosted: Vec<HostedTool>,
    /// See [`Sources::home`].
    pub home: Option<String>,
    /// See [`Sources::off_limits`].
    pub off_limits: Vec<String>,
    /// The tools that roles may name.
    pub known_tools: Vec<ToolName>,
}

impl Files {
    /// Reads and compiles them. Blocking. Errors: everything that is wrong with them.
    pub fn load(&self) -> Result<Policy, PolicyErrors> {
        self.compiled_from(Sources::from_directory).policy.map_err(PolicyErrors)
    }

    fn compiled_from(&self, read: impl Fn(&Path) -> Result<Sources, PolicyErrors>) -> Compiled {
        let read = self.directory.as_deref().map(read);
        let mut sources = match read.unwrap_or_else(|| Ok(Sources::built_in())) {
            Ok(sources) => sources,
            Err(PolicyErrors(faults)) => return Compiled::refused(faults),
        };
        sources.extra_commands = self.extra_commands.clone();
        sources.allow_net = self.allow_net;
        sources.declared = self.declared.clone();
        sources.hosted = self.hosted.clone();
        sources.home = self.home.clone();
        sources.off_limits = self.off_limits.clone();
        compile_and_test(&sources, &self.known_tools)
    }
}

/// How long files must have stood still.
const SETTLED: std::time::Duration = std::time::Duration::from_millis(50);

/// The files of a directory as they stood together for a moment: whoever replaces one right after the other
/// is waited for, since half of the old rules and half of the new were nobody's policy.
fn settled(directory: &Path) -> Result<Sources, PolicyErrors> {
    const READS: usize = 10;
    let mut before = Sources::from_directory(directory)?;
    for _ in 1..READS {
        std::thread::sleep(SETTLED);
        let now = Sources::from_directory(directory)?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    Err(PolicyErrors(vec![format!(
        "{}: the files change while they are read; load them when they have settled",
        directory.display()
    )]))
}

#[async_trait]
impl PolicyFiles for Files {
    async fn compile(&self) -> Compiled {
        let files = self.clone();
        let compiled = tasks::blocking(move || files.compiled_from(settled)).await;
        compiled.unwrap_or_else(|error| Compiled::refused(vec![error.to_string()]))
    }
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
            network: Some(source("built-in network.yaml", DEFAULT_NETWORK)),
            extra_commands: None,
            allow_net: Gate::Shut,
            declared: Vec::new(),
            hosted: Vec::new(),
            home: None,
            off_limits: Vec::new(),
        }
    }

    /// The files of a directory. Errors: one is missing, too long or not text.
    pub fn from_directory(directory: &Path) -> Result<Self, PolicyErrors> {
        // All of them by one descriptor: whoever puts another directory in its place meanwhile would have us read
        // some of the old files and some of the new, and reading twice does not always show it.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(directory, flags, Mode::empty()).map_err(|error| {
            let error = std::io::Error::from(error);
            PolicyErrors(vec![format!("{}: cannot be opened: {error}", directory.display())])
        })?;
        let read = |name| {
            let path = directory.join(name);
            let text = yaml::read_in(&open, name, &path)?;
            Ok(Source { name: path.display().to_string(), text })
        };
        // A link that leads nowhere is not taken for a file that was left out.
        let network = match rustix::fs::statat(&open, NETWORK, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            Ok(_) | Err(_) => read(NETWORK).map(Some),
        };
        match (read(TOOLS), read(PATHS), network) {
            (Ok(tools), Ok(paths), Ok(network)) => {
                let (extra_commands, declared, home) = (None, Vec::new(), None);
                let (allow_net, off_limits) = (Gate::Shut, Vec::new());
                Ok(Self {
                    tools,
                    paths,
                    network,
                    extra_commands,
                    allow_net,
                    declared,
                    hosted: Vec::new(),
                    home,
                    off_limits,
                })
            }
            (tools, paths, network) => {
                let errors: [Option<yaml::YamlError>; 3] =
                    [tools.err(), paths.err(), network.err()];
                Err(PolicyErrors(errors.into_iter().flatten().map(|e| e.to_string()).collect()))
            }
        }
    }

    /// Content hash of everything that decides.
    fn revision(&self) -> PolicyRevision {
        let mut hasher = Sha256::new();
        hasher.update(b"agentd/policy/5");
        let extra = self.extra_commands.as_deref().unwrap_or_default();
        let home = self.home.as_deref().unwrap_or_default();
        let network = self.network.as_ref().map_or("", |network| network.text.as_str());
        let gate = match self.allow_net {
            Gate::Open => "open",
            Gate::Shut => "shut",
        };
        let texts = [self.tools.text.as_str(), &self.paths.text, network, gate, extra, home];
        let declared =
            self.declared.iter().flat_map(|tool| [tool.spec.name.as_str(), &tool.digest]);
        let hosted = self.hosted.iter().map(|tool| tool.digest.as_str());
        for text in texts.into_iter().chain(declared).chain(["hosted"]).chain(hosted) {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        PolicyRevision::new(format!("sha256:{}", hex(&hasher.finalize())))
    }
}

/// Compiles the files to one policy. `known_tools` are the tools that roles may name.
///
/// Errors: all of them at once, those of YAML with line and column; nothing applies then.
pub fn compile(sources: &Sources, known_tools: &[ToolName]) -> Result<Policy, PolicyErrors> {
    compile_and_test(sources, known_tools).policy.map_err(PolicyErrors)
}

/// The same, with what came of every test in the files; of files that are not YAML of their shape, of none.
pub fn compile_and_test(sources: &Sources, known_tools: &[ToolName]) -> Compiled {
    let tools: Result<ToolsFile, _> = yaml::parse(&sources.tools.name, &sources.tools.text);
    let paths: Result<PathsFile, _> = yaml::parse(&sources.paths.name, &sources.paths.text);
    let network: Result<Option<NetworkFile>, _> =
        sources.network.as_ref().map(|source| yaml::parse(&source.name, &source.text)).transpose();
    let (tools, paths, network) = match (tools, paths, network) {
        (Ok(tools), Ok(paths), Ok(network)) => (tools, paths, network),
        (tools, paths, network) => {
            let errors = [tools.err(), paths.err(), network.err()].into_iter().flatten();
            return Compiled::refused(errors.map(|error| error.to_string()).collect());
        }
    };
    let mut compiler = Compiler::default();
    compiler.limits(&sources.tools.name, "limits", &tools.limits);
    compiler.distinct(sources, &tools, &paths);
    let policy = Policy {
        revision: sources.revision(),
        limits: tools.limits.compile(),
        run_limits: compiler.run_limits(sources, &tools),
        roles: compiler.roles(sources, &tools, known_tools),
        paths: compiler.paths(&sources.paths.name, &paths),
        network: compiler.network(sources, network.as_ref(), &tools),
        commands: compiler.commands(sources, &tools).into(),
        declared: declared(sources, &tools),
        hosted: compiler.hosted(sources, &tools),
        program_directories: compiler.directories(sources, &tools),
        isolation: IsolationRule {
            minimum: tools.isolation.minimum,
            enforcement: tools.isolation.enforcement,
        },
        on_unknown: tools.on_unknown,
        approvals: compiler.approvals(&sources.tools.name, tools.approvals),
        read_only_roots: compiler.read_only_roots(sources, &tools),
        protected: compiler.protected(&sources.paths.name, &paths),
    };
    let Compiler { errors, tests } = compiler;
    Compiled { policy: if errors.is_empty() { Ok(policy) } else { Err(errors) }, tests }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::domain::tool::EffectClass;

    fn tools() -> Vec<ToolName> {
        [
            "read_file",
            "write_file",
            "edit_file",
            "list_dir",
            "search_files",
            "repo_summarize",
            "shell_exec",
        ]
        .map(ToolName::new)
        .to_vec()
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
    fn a_fault_is_one_line_whatever_the_files_say() {
        let errors = errors(|s| {
            s.tools.text = s.tools.text.replace("id: wc", "id: \"ls\\n\\e[2J\"");
            s.tools.text = s.tools.text.replace("[read_file, write_file, ", "[\"rm\\nrf\", ");
            s.paths.text = s.paths.text.replace("protected: [", "protected: [\"/\\n\", ");
            s.paths.text = s.paths.text.replace("path: .env,", "path: \"\\e.env\",");
        });
        assert_eq!(errors.len(), 3, "{errors:#?}");
        assert!(!errors.iter().any(|fault| fault.contains(char::is_control)), "{errors:#?}");
    }

    #[test]
    fn all_errors_of_both_files_are_told_at_once() {
        let errors = errors(|s| {
            s.tools.text = s.tools.text.replace("[read_file, write_file, edit_file, list_dir, search_files, repo_summarize, shell_exec]", "[rm_rf]");
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
        let at =
            DEFAULT_TOOLS.lines().position(|line| line.contains("id: git.status")).unwrap() + 1;
        let expected = format!(
            "built-in tools.yaml:{at}:9: command git.status: matches its example \
             \"git status --output=x\""
        );
        assert_eq!(errors, [expected]);
    }

    #[test]
    fn a_role_has_the_tools_of_the_one_that_it_inherits_from() {
        let with = |roles: &str| {
            let mut sources = Sources::built_in();
            sources.tools.text =
                sources.tools.text.replace("roles:\n", &format!("roles:\n{roles}"));
            compile(&sources, &tools())
        };
        let policy = with(
            "  reader: {tools: [read_file]}\n  writer: {inherits: reader, tools: [write_file]}\n",
        );
        let policy = policy.unwrap();
        let of = |role| policy.roles[&crate::domain::ids::RoleName::new(role)].tools.len();
        assert_eq!((of("reader"), of("writer")), (1, 2));
        let circle = with("  a: {inherits: b}\n  b: {inherits: a}\n  c: {inherits: nobody}\n");
        let PolicyErrors(faults) = circle.unwrap_err();
        assert_eq!(faults.len(), 3, "{faults:#?}");
        assert!(faults[0].contains("roles.a.inherits: comes back"), "{faults:#?}");
        assert!(faults[2].contains("roles.c.inherits: there is no role nobody"), "{faults:#?}");
    }

    #[test]
    fn extra_commands_allow_exactly_their_words_and_count_as_non_idempotent() {
        let mut sources = Sources::built_in();
        sources.extra_commands = Some("just test, cargo vendor".into());
        let policy = compile(&sources, &tools()).unwrap();
        let words = |line: &str| shlex::split(line).unwrap();
        let just =
            policy.commands.iter().find(|rule| rule.check(&words("just test")).is_ok()).unwrap();
        assert_eq!(just.class, EffectClass::NonIdempotent);
        assert!(just.check(&words("just test all")).is_err());
    }

    #[test]
    fn files_of_a_directory_that_is_replaced_meanwhile_are_of_one_and_the_same() {
        let home = tempfile::tempdir().unwrap();
        let (one, other) = (home.path().join("one"), home.path().join("other"));
        for (directory, text) in [(&one, "one"), (&other, "other")] {
            std::fs::create_dir(directory).unwrap();
            for name in [TOOLS, PATHS, NETWORK] {
                std::fs::write(directory.join(name), text).unwrap();
            }
        }
        let swap = || {
            let (cwd, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
            rustix::fs::renameat_with(cwd, &one, cwd, &other, flags).unwrap();
        };
        let done = std::sync::atomic::AtomicBool::new(false);
        let swaps = std::sync::atomic::AtomicUsize::new(0);
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        let seen = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(relaxed) {
                    swap();
                    swaps.fetch_add(1, relaxed);
                }
            });
            let mut seen = Vec::new();
            while seen.len() < 5000 || swaps.load(relaxed) < 5000 {
                seen.push(Sources::from_directory(&one));
            }
            done.store(true, relaxed);
            seen
        });

        let texts = |read: Result<Sources, _>| {
            let Sources { tools, paths, network, .. } = read.unwrap();
            [tools.text, paths.text, network.unwrap().text]
        };
        let seen: Vec<_> = seen.into_iter().map(texts).collect();
        let of_one = seen.iter().filter(|texts| texts.iter().all(|text| text == "one")).count();
        let of_other = seen.iter().filter(|texts| texts.iter().all(|text| text == "other")).count();
        assert_eq!(of_one + of_other, seen.len(), "no mixture");
        assert!(of_one > 0 && of_other > 0, "control: both were read");
    }

    #[test]
    fn an_extra_command_begins_with_the_name_of_a_program() {
        let errors = errors(|s| s.extra_commands = Some("'' test, /bin/sh, \"a".into()));
        let expected = [
            "ALLOW_COMMANDS: '' test: must begin with a program's name without '/'",
            "ALLOW_COMMANDS: /bin/sh: must begin with a program's name without '/'",
            "ALLOW_COMMANDS: \"a: is not a command: its quotes do not close",
        ];
        assert_eq!(errors, expected);
    }
}
