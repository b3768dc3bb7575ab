//! `agentd check`: is everything in place for a daemon? Each finding names the next thing to do. Starts no
//! daemon, and touches nothing that a running one holds.

use std::{
    fmt,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

use crate::{
    callers,
    config::Config,
    daemon,
    domain::{
        effect::{Effect, EffectResult, Exit, Facts},
        ids::{RoleName, RuleId, ToolName},
        journal::Verdict,
        policy::{CommandRule, Commands, Decision, Gate, HostedOutlook, Policy, Positionals, Role},
        tool::EffectClass,
    },
    ports::{Attempt, Company, Sandbox as _, Scene},
    sandbox::{LocalSandbox, Places, Walls},
    telemetry,
    tools::Toolbox,
};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Fine,
    /// It works, but less well than it could.
    Warning,
    /// A daemon would not start, or could not do its work.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    pub what: String,
    /// The next thing to do; empty where nothing has to be done.
    pub remedy: String,
}

impl Finding {
    fn fine(what: impl Into<String>) -> Self {
        Self { level: Level::Fine, what: what.into(), remedy: String::new() }
    }

    fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warning, what: what.into(), remedy: remedy.into() }
    }

    fn failure(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Failure, what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Fine => "ok  ",
            Level::Warning => "warn",
            Level::Failure => "FAIL",
        };
        write!(f, "{level}  {}", self.what.replace('\n', "\n      "))?;
        match self.remedy.as_str() {
            "" => Ok(()),
            remedy => write!(f, "\n      -> {remedy}"),
        }
    }
}

/// Looks at everything that a daemon with this configuration would need. `scratch` is an empty directory
/// for the sandbox to be tried in.
pub async fn check(config: &Config, launcher: PathBuf, scratch: &Path) -> Vec<Finding> {
    let mut findings = vec![configuration(config), state_directory(&config.state_directory)];
    findings.push(workspace_root(&config.workspace_root));
    let running = is_running(&config.state_directory);
    findings.push(address(("--listen", config.listen), running));
    if running == Running::No {
        findings.push(address(("--http-listen", config.http_listen), running));
    }
    findings.extend(policy(config));
    findings.push(callers(config));
    findings.extend(sandbox(config, launcher, scratch).await);
    findings
}

fn configuration(config: &Config) -> Finding {
    let defaults = config.shown.iter().filter(|value| value.source == "default").count();
    let from = match &config.file {
        Some(file) => file.display().to_string(),
        None => "built-in defaults, no file".into(),
    };
    Finding::fine(format!(
        "configuration: {from}; {} settings, {defaults} of them by default",
        config.shown.len()
    ))
}

/// Whether a daemon answers on the socket of this state directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Running {
    Yes,
    No,
}

fn is_running(state: &Path) -> Running {
    match UnixStream::connect(state.join(daemon::SOCKET)) {
        Ok(_) => Running::Yes,
        Err(_) => Running::No,
    }
}

fn state_directory(state: &Path) -> Finding {
    use rustix::fs::{Access, access};
    let shown = state.display();
    // Where it does not exist yet, what is to hold it must be writable.
    let existing = state.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let writable =
        existing.is_dir() && access(existing, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    match (writable, existing == state) {
        (true, true) => Finding::fine(format!("state directory: {shown}")),
        (true, false) => Finding::fine(format!("state directory: {shown}, to be made")),
        (false, _) => Finding::failure(
            format!("state directory: {} cannot be written", existing.display()),
            "choose another: agentd serve --state-dir DIR",
        ),
    }
}

fn workspace_root(root: &Path) -> Finding {
    match root.canonicalize() {
        Ok(found) if found.is_dir() => {
            Finding::fine(format!("workspace root: {}", found.display()))
        }
        Ok(_) => Finding::failure(
            format!("workspace root: {} is not a directory", root.display()),
            "choose another: agentd serve --workspace-root DIR",
        ),
        Err(error) => Finding::failure(
            format!("workspace root: {}: {error}", root.display()),
            format!("mkdir -p {}", root.display()),
        ),
    }
}

fn address((flag, wanted): (&str, SocketAddr), running: Running) -> Finding {
    match (TcpListener::bind(wanted), running) {
        (Ok(_), Running::No) => Finding::fine(format!("address: {wanted} is free")),
        (_, Running::Yes) => Finding::fine("a daemon is running on this state directory"),
        (Err(error), Running::No) => Finding::failure(
            format!("address: {wanted} cannot be listened on: {error}"),
            format!("choose another: agentd serve {flag} 127.0.0.1:PORT"),
        ),
    }
}

fn policy(config: &Config) -> Vec<Finding> {
    let declared = match daemon::declared_tools(config) {
        Ok(declared) => declared,
        Err(error) => {
            return vec![Finding::failure(error.to_string(), "mend the files, check again")];
        }
    };
    let toolbox = match Toolbox::new(declared.clone()) {
        Ok(toolbox) => toolbox,
        Err(errors) => {
            let what = format!("tools:\n{}", errors.join("\n"));
            return vec![Finding::failure(what, "mend the declarations, check again")];
        }
    };
    let (count, own) = (toolbox.specs().len(), declared.len());
    let tools = Finding::fine(format!("tools: {count}, {own} of them declared"));
    match daemon::policy_sources(config, &toolbox, declared).load() {
        Ok(policy) => {
            let revision = Finding::fine(format!("policy: revision {}", policy.revision));
            let agents = daemon::check_agents(config, &toolbox, &policy).err().map(|error| {
                Finding::failure(error.to_string(), "mend the configuration, check again")
            });
            let hosted = policy.hosted_outlook().map(hosted);
            [tools, revision].into_iter().chain(agents).chain(hosted).collect()
        }
        Err(error) => vec![
            tools,
            Finding::failure(error.to_string(), "mend the files, or leave out --policy-dir"),
        ],
    }
}

fn hosted(outlook: HostedOutlook<'_>) -> Finding {
    let what = format!("hosted tool {outlook}");
    match outlook.is_declared() {
        true => Finding::fine(what),
        false => Finding::warning(
            what,
            "the backend is not told of it: allow it under hosted_tools in tools.yaml, or take it out of the \
             configuration",
        ),
    }
}

fn callers(config: &Config) -> Finding {
    match callers::load(&config.callers, Vec::new()) {
        Ok(known) => Finding::fine(format!("callers: {} besides the owner", known.len())),
        Err(errors) => Finding::failure(errors.join("\n"), "mend the files, check again"),
    }
}

/// Runs a real program, in a place of its own.
async fn sandbox(config: &Config, launcher: PathBuf, scratch: &Path) -> Vec<Finding> {
    let places = Places { workspace_root: scratch.to_owned(), off_limits: Vec::new() };
    let opened = Walls::probe(launcher, scratch).and_then(|walls| {
        let refusals = walls.refusals().to_vec();
        Ok((LocalSandbox::open(walls, scratch, places, 0)?, refusals))
    });
    let (sandbox, refusals) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let what = format!("sandbox: {}", telemetry::chain(&error));
            return vec![Finding::failure(what, "install agentd-sandbox, or set AGENTD_SANDBOX")];
        }
    };
    let Ok(policy) = probe_policy(config) else { return Vec::new() };
    let probed = probe(&sandbox, policy, scratch).await;
    let mut findings = vec![match probed {
        Ok(()) => Finding::fine("sandbox: a program was started, confined and seen to its end"),
        Err(what) => Finding::failure(
            format!("sandbox: {what}"),
            "see what `agentd-sandbox` needs in docs/security.md",
        ),
    }];
    // Who is root already is not told to be.
    let (spaces, groups) = match rustix::process::geteuid().is_root() {
        true => ("allow agentd user namespaces", "give agentd a writable cgroup"),
        false => (
            "allow agentd user namespaces, or run it as root",
            "give agentd a writable cgroup, or run it as root",
        ),
    };
    findings.extend(refusals.into_iter().map(|refusal| {
        let remedy = format!("{spaces}; in a container, see docs/security.md");
        Finding::warning(format!("isolation {refusal}"), remedy)
    }));
    let mechanisms = sandbox.mechanisms();
    findings.extend(mechanisms.iter().map(|(limit, by)| kept(config, limit, by, groups)));
    findings
}

/// How well a limit is kept by this mechanism; `groups` says how one gets cgroups.
fn kept(config: &Config, limit: &str, mechanism: &str, groups: &str) -> Finding {
    let what = format!("limit {limit}: {mechanism}");
    match mechanism {
        "polled" => Finding::warning(what, format!("is looked at ten times a second; {groups}")),
        "rlimit" if limit == "memory" || limit == "cpu" => Finding::warning(
            what,
            "counts each process alone; give agentd a writable cgroup, or a /proc that hides nobody",
        ),
        "none" if limit == "network" && config.allow_net == Gate::Open => Finding::warning(
            what,
            "programs reach nothing without a network of their own, whatever network.yaml allows",
        ),
        // Who sets no share misses none, and to reach nothing is no weakness.
        "none" if limit == "cpu_share" || limit == "network" => Finding::fine(what),
        "none" => Finding::warning(what, groups),
        _ => Finding::fine(what),
    }
}

const PROBE: &str = "true";

/// The policy of the configuration, with a rule that allows the probe and nothing else.
fn probe_policy(config: &Config) -> Result<Policy, ()> {
    let toolbox = Toolbox::built_in();
    let policy = daemon::policy_sources(config, &toolbox, Vec::new()).load().map_err(drop)?;
    let shell = ToolName::new("shell_exec");
    Ok(Policy {
        roles: [(RoleName::new("check"), Role { tools: [shell].into() })].into(),
        commands: Commands::from(vec![CommandRule {
            id: RuleId::new("check"),
            place: None,
            argv: vec![PROBE.into()],
            flags: Default::default(),
            options: Default::default(),
            positionals: Positionals::None,
            inject: Vec::new(),
            inject_after: Vec::new(),
            environment: Default::default(),
            class: EffectClass::Pure,
            decision: Verdict::Allow,
            limits: None,
            isolation: None,
            network: Vec::new(),
            why: "the sandbox is tried".into(),
        }]),
        ..policy
    })
}

async fn probe(sandbox: &LocalSandbox, policy: Policy, scratch: &Path) -> Result<(), String> {
    let scene = Scene {
        workspace: scratch.to_owned(),
        program_directories: policy.program_directories.clone(),
        label: "check".into(),
        earlier: None,
    };
    let effect = Effect::Spawn { argv: vec![PROBE.into()] };
    let resolved =
        sandbox.resolve(&scene, effect).await.map_err(|error| telemetry::chain(&error))?;
    let executable = match &resolved.facts {
        Facts::Spawn { executable, .. } => executable.clone(),
        other => format!("{other:?}"),
    };
    let shell = ToolName::new("shell_exec");
    let permit = match policy.decide(&RoleName::new("check"), &shell, resolved) {
        Decision::Allow(permit) => permit,
        Decision::Ask(ruling) | Decision::Deny(ruling) => return Err(ruling.why),
    };
    let stop = CancellationToken::new();
    let company = Company { stop: &stop, heard: &|_, _| {}, door: None };
    match sandbox.run(permit, Attempt::First, company).await {
        Ok(EffectResult::Ran(ran)) if ran.exit == Exit::Code(0) => Ok(()),
        Ok(EffectResult::Failed { message, .. }) => Err(format!("no program starts: {message}")),
        Ok(other) => Err(format!("{executable} did not run: {other:?}")),
        Err(error) => Err(telemetry::chain(&error)),
    }
}
