//! Settings from flags, environment and one YAML file, in that order, checked before anything starts.
//! Nothing is read from the current directory or a workspace unless a flag names it.

mod agents;
mod audit;
mod backends;
mod callers;
mod credential;
mod entry;
mod hosted;
mod named_agents;
mod prices;
mod reader;
mod tools;
mod webhook;

pub use audit::HeadSettings;
pub use backends::{NamedBackend, Watching};
pub use reader::ShownValue;
pub use tools::DeclaredTool;

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use reader::{Count, Reader, Room, SettingValue, Spare};

use crate::{
    backend,
    callers::CallerSettings,
    domain::{
        budget::{PerDay, Prices},
        policy::{Gate, HostedTool},
    },
    engine::{AgentSettings, Keep, Limits},
    secrets::Secret,
    telemetry::LogFormat,
    webhook::WebhookSettings,
    yaml,
};

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7080);
const DEFAULT_HTTP_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7081);

/// Flags of `agentd serve`. Their variables are read here, so that each value's source is known.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Configuration file [env: AGENTD_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where agentd keeps its journal, socket and token [env: AGENTD_STATE_DIR]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Runs may only use workspaces below it [env: AGENTD_WORKSPACE_ROOT]
    #[arg(long, value_name = "DIR")]
    pub workspace_root: Option<PathBuf>,
    /// Loopback address for gRPC; the Unix socket in the state directory is always there [env:
    /// AGENTD_LISTEN]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Loopback address for health over HTTP [env: AGENTD_HTTP_LISTEN]
    #[arg(long, value_name = "ADDRESS")]
    pub http_listen: Option<SocketAddr>,
    /// Directory with tools.yaml, paths.yaml and network.yaml [env: POLICY_DIR]
    #[arg(long, value_name = "DIR")]
    pub policy_dir: Option<PathBuf>,
    /// Directory with declarations of tools, one YAML file each [env: AGENTD_TOOLS_DIR] [default:
    /// /tools, if it exists]
    #[arg(long, value_name = "DIR")]
    pub tools_dir: Option<PathBuf>,
    /// Commands that shell_exec may run besides the policy's, comma-separated, word for word [env:
    /// ALLOW_COMMANDS]
    #[arg(long, value_name = "COMMANDS")]
    pub allow_commands: Option<String>,
    /// Whether programs may reach what network.yaml allows; without it they reach nothing [env: ALLOW_NET]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub allow_net: Option<bool>,
    /// Base URL of the model server, with or without /v1 [env: OPENAI_BASE_URL]
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// Model, if a run names none; default: the first that the server lists [env: AGENTD_MODEL]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Tracing filter: info, debug, agentd=trace ... [env: AGENTD_LOG]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// How log lines look [env: AGENTD_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// The settings in force.
#[derive(Debug)]
pub struct Config {
    pub state_directory: PathBuf,
    pub workspace_root: PathBuf,
    pub listen: SocketAddr,
    pub http_listen: SocketAddr,
    /// None: the built-in policy.
    pub policy_directory: Option<PathBuf>,
    /// Declarations of tools; none: there are only the built-in ones.
    pub tools_directory: Option<PathBuf>,
    /// Tools that the file itself declares, besides those of the directory.
    pub tools: Vec<DeclaredTool>,
    pub allow_commands: Option<String>,
    /// Above network.yaml: shut, programs reach nothing.
    pub allow_net: Gate,
    /// Home of the daemon's user, for policies that name paths in it; none: the environment names none.
    pub home: Option<String>,
    pub backend: backend::Settings,
    /// Besides that one.
    pub other_backends: Vec<NamedBackend>,
    pub watching: Watching,
    /// The backend's hosted tools as policy sees them, in the same order.
    pub hosted_tools: Vec<HostedTool>,
    pub model: Option<String>,
    pub limits: Limits,
    pub prices: Prices,
    pub agents: AgentSettings,
    /// Launchers of each kind that wait for a call.
    pub ready_launchers: u8,
    /// How long steps under way may take when the daemon stops.
    pub grace: Duration,
    /// How the journal's head is signed.
    pub heads: HeadSettings,
    /// How long ended runs hold what they held.
    pub keep: Keep,
    /// Who may call besides the owner.
    pub callers: Vec<CallerSettings>,
    /// Who is told of questions to people; none: nobody is.
    pub webhook: Option<WebhookSettings>,
    pub log: String,
    pub log_format: LogFormat,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Every secret in the settings: what must never be seen.
    pub secrets: Vec<Secret>,
    /// Every value as it may be shown, with its source.
    pub shown: Vec<ShownValue>,
}

/// What of the process's surroundings settings come from, so that tests can give their own.
pub trait Surroundings {
    fn variable(&self, name: &str) -> Option<String>;
    fn is_writable(&self, directory: &Path) -> bool;
    fn exists(&self, path: &Path) -> bool;
    fn current_directory(&self) -> PathBuf;
}

/// The process's own.
#[derive(Debug, Clone, Copy)]
pub struct Process;

impl Surroundings for Process {
    fn variable(&self, name: &str) -> Option<String> {
        env::var(name).ok().filter(|value| !value.is_empty())
    }

    fn is_writable(&self, directory: &Path) -> bool {
        directory.is_dir() && rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok()
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn current_directory(&self) -> PathBuf {
        env::current_dir().unwrap_or_else(|_| PathBuf::from("/"))
    }
}

/// Every setting, with the names it goes by.
mod names {
    use super::reader::Setting;

    const fn setting(
        key: &'static str,
        variable: Option<&'static str>,
        flag: Option<&'static str>,
    ) -> Setting {
        Setting { key, variable, flag }
    }

    pub(super) const STATE_DIR: Setting =
        setting("state_dir", Some("AGENTD_STATE_DIR"), Some("--state-dir"));
    pub(super) const WORKSPACE_ROOT: Setting =
        setting("workspace_root", Some("AGENTD_WORKSPACE_ROOT"), Some("--workspace-root"));
    pub(super) const LISTEN: Setting = setting("listen", Some("AGENTD_LISTEN"), Some("--listen"));
    pub(super) const HTTP_LISTEN: Setting =
        setting("http_listen", Some("AGENTD_HTTP_LISTEN"), Some("--http-listen"));
    pub(super) const POLICY_DIR: Setting =
        setting("policy_dir", Some("POLICY_DIR"), Some("--policy-dir"));
    pub(super) const TOOLS_DIR: Setting =
        setting("tools_dir", Some("AGENTD_TOOLS_DIR"), Some("--tools-dir"));
    pub(super) const ALLOW_COMMANDS: Setting =
        setting("allow_commands", Some("ALLOW_COMMANDS"), Some("--allow-commands"));
    pub(super) const ALLOW_NET: Setting =
        setting("allow_net", Some("ALLOW_NET"), Some("--allow-net"));
    pub(super) const BASE_URL: Setting =
        setting("backend.base_url", Some("OPENAI_BASE_URL"), Some("--base-url"));
    pub(super) const MODEL: Setting =
        setting("backend.model", Some("AGENTD_MODEL"), Some("--model"));
    pub(super) const PROFILE: Setting = setting("backend.profile", None, None);
    pub(super) const READINESS: Setting = setting("backend.readiness", None, None);
    pub(super) const HEALTH_INTERVAL: Setting =
        setting("health_interval_seconds", Some("HEALTH_INTERVAL_S"), None);
    pub(super) const FORCE_CHAT: Setting =
        setting("force_chat_fallback", Some("FORCE_CHAT_FALLBACK"), None);
    pub(super) const BACKEND_WAIT: Setting = setting("limits.backend_wait_seconds", None, None);
    pub(super) const STREAM: Setting = setting("backend.stream", None, None);
    pub(super) const IDLE_TIMEOUT: Setting = setting("backend.idle_timeout_seconds", None, None);
    pub(super) const RUNNING_RUNS: Setting = setting("limits.running_runs", None, None);
    pub(super) const RUNNING_RUNS_PER_SUBMITTER: Setting =
        setting("limits.running_runs_per_submitter", None, None);
    pub(super) const QUEUED_RUNS: Setting = setting("limits.queued_runs", None, None);
    pub(super) const CHECKPOINT_ENTRIES: Setting = setting("limits.checkpoint_entries", None, None);
    pub(super) const FREE_DISK_MIB: Setting = setting("limits.free_disk_mib", None, None);
    pub(super) const EVENT_STREAMS: Setting = setting("limits.event_streams", None, None);
    pub(super) const GRACE: Setting = setting("limits.grace_seconds", None, None);
    pub(super) const READY_LAUNCHERS: Setting = setting("limits.ready_launchers", None, None);
    pub(super) const HEAD_ENTRIES: Setting = setting("audit.head_entries", None, None);
    pub(super) const HEAD_MINUTES: Setting = setting("audit.head_minutes", None, None);
    pub(super) const SIGNING_KEY: Setting = setting("audit.signing_key", None, None);
    pub(super) const KEEP_SUCCEEDED: Setting = setting("retention.succeeded_days", None, None);
    pub(super) const KEEP_FAILED: Setting = setting("retention.failed_days", None, None);
    pub(super) const KEEP_CANCELLED: Setting = setting("retention.cancelled_days", None, None);
    pub(super) const DAILY_TURNS: Setting = setting("daily.turns", None, None);
    pub(super) const DAILY_TOOL_CALLS: Setting = setting("daily.tool_calls", None, None);
    pub(super) const DAILY_TOKENS: Setting = setting("daily.tokens", None, None);
    pub(super) const DAILY_COST: Setting = setting("daily.cost_dollars", None, None);
    pub(super) const REVIEW_ROUNDS: Setting = setting("review.max_rounds", None, None);
    pub(super) const ON_VETO: Setting = setting("review.on_veto", None, None);
    pub(super) const FORBIDDEN_PATHS: Setting = setting("guardrails.forbidden_paths", None, None);
    pub(super) const ADDED_SECRETS: Setting = setting("guardrails.secrets", None, None);
    pub(super) const DELETED_TESTS: Setting = setting("guardrails.deleted_tests", None, None);
    pub(super) const LOG: Setting = setting("log", Some("AGENTD_LOG"), Some("--log"));
    pub(super) const LOG_FORMAT: Setting =
        setting("log_format", Some("AGENTD_LOG_FORMAT"), Some("--log-format"));
}

impl Config {
    /// Errors: all of them at once, one line each, with the file and place or the setting, and what to do.
    ///
    /// Blocking where a command tells a secret, for at most 10 s.
    pub fn load(flags: Flags, around: &dyn Surroundings) -> Result<Self, Vec<String>> {
        let named = around.variable("AGENTD_CONFIG").map(PathBuf::from);
        let path = flags.config.clone().or(named).or_else(|| default_file(around));
        let file = match &path {
            None => None,
            Some(path) => Some(read_file(path).map_err(|error| vec![error.to_string()])?),
        };
        let mut reader = Reader::new(around, file);
        let config = Self::read(&mut reader, flags, around, path);
        let shown = reader.finish()?;
        // Without an error, nothing that has to be there is missing.
        config.map(|config| Self { shown, ..config }).ok_or_else(Vec::new)
    }

    fn read(
        reader: &mut Reader<'_>,
        flags: Flags,
        around: &dyn Surroundings,
        file: Option<PathBuf>,
    ) -> Option<Self> {
        let state_directory = state_directory(reader, flags.state_dir, around);
        let workspace_root = reader.take(names::WORKSPACE_ROOT, flags.workspace_root, || {
            Some(default_workspace_root(around))
        });
        let listen = address(reader, names::LISTEN, flags.listen, DEFAULT_LISTEN);
        let http_listen =
            address(reader, names::HTTP_LISTEN, flags.http_listen, DEFAULT_HTTP_LISTEN);
        let policies = || default_policies(around, file.as_deref());
        let policy_directory = reader.take(names::POLICY_DIR, flags.policy_dir, policies);
        let tools_directory =
            reader.take(names::TOOLS_DIR, flags.tools_dir, || default_tools(around));
        let tools = tools::take(reader);
        let allow_commands = reader.take(names::ALLOW_COMMANDS, flags.allow_commands, || None);
        let allow_net = reader.take(names::ALLOW_NET, flags.allow_net, || Some(false));
        let mut secrets = Vec::new();
        let backend = backends::default(reader, flags.base_url, &mut secrets);
        let other_backends = backends::others(reader, &mut secrets);
        let watching = backends::watching(reader);
        let hosted = hosted::take(reader);
        secrets.extend(hosted.secrets);
        let model = reader.take(names::MODEL, flags.model, || None);
        let limits = limits(reader);
        let ready = reader.take(names::READY_LAUNCHERS, None, || Some(Spare(2)));
        let grace = reader.take(names::GRACE, None, || Some(Count(10)));
        let heads = audit::heads(reader);
        let keep = audit::keep(reader);
        let callers = callers::callers(reader);
        let webhook = webhook::webhook(reader, &mut secrets);
        let prices = prices::prices(reader);
        let agents = agents::agents(reader, &other_backends);
        let log = reader.take(names::LOG, flags.log, || Some("info".to_owned()));
        let log_format =
            reader.take(names::LOG_FORMAT, flags.log_format, || Some(LogFormat::default()));
        Some(Self {
            state_directory: state_directory?,
            workspace_root: workspace_root?,
            listen: listen?,
            http_listen: http_listen?,
            policy_directory,
            tools_directory,
            tools,
            allow_commands,
            allow_net: if allow_net? { Gate::Open } else { Gate::Shut },
            home: around.variable("HOME").filter(|home| home.starts_with('/')),
            backend: backend::Settings { hosted_tools: hosted.json, ..backend? },
            other_backends,
            watching: watching?,
            hosted_tools: hosted.tools,
            model,
            limits: limits?,
            prices,
            agents: agents?,
            ready_launchers: ready?.0,
            grace: Duration::from_secs(grace?.0),
            heads: heads?,
            keep,
            callers,
            webhook,
            log: log?,
            log_format: log_format?,
            file,
            secrets,
            shown: Vec::new(),
        })
    }
}

fn state_directory(
    reader: &mut Reader<'_>,
    flag: Option<PathBuf>,
    around: &dyn Surroundings,
) -> Option<PathBuf> {
    let directory = reader.take(names::STATE_DIR, flag, || default_state(around));
    if directory.is_none() {
        reader.fault(
            "state_dir: there is neither /state nor a home directory; set --state-dir".into(),
        );
    }
    directory
}

/// An address to listen on.
fn address(
    reader: &mut Reader<'_>,
    setting: reader::Setting,
    flag: Option<SocketAddr>,
    default: SocketAddr,
) -> Option<SocketAddr> {
    let address = reader.take(setting, flag, || Some(default));
    if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
        let key = setting.key;
        reader.fault(format!(
            "{key}: {address} is not a loopback address, and without TLS agentd serves no other; \
             use 127.0.0.1 and a tunnel"
        ));
    }
    address
}

/// What the runs of one submitter may use on one day; by default anything.
fn daily(reader: &mut Reader<'_>) -> PerDay {
    let mut limit = |setting| reader.take(setting, None, || None).map_or(0, |count: Count| count.0);
    PerDay {
        turns: limit(names::DAILY_TURNS),
        tool_calls: limit(names::DAILY_TOOL_CALLS),
        tokens: limit(names::DAILY_TOKENS),
        cost_micros: limit(names::DAILY_COST).saturating_mul(1_000_000),
    }
}

fn limits(reader: &mut Reader<'_>) -> Option<Limits> {
    let running = reader.take(names::RUNNING_RUNS, None, || Some(Count(1024)));
    let of_one = reader.take(names::RUNNING_RUNS_PER_SUBMITTER, None, || running);
    let queued = reader.take(names::QUEUED_RUNS, None, || Some(Count(10_000)));
    let checkpoints = reader.take(names::CHECKPOINT_ENTRIES, None, || Some(Count(256)));
    let free_disk = reader.take(names::FREE_DISK_MIB, None, || Some(Room(256)));
    let streams = reader.take(names::EVENT_STREAMS, None, || Some(Count(1024)));
    let count = |count: Count| usize::try_from(count.0).unwrap_or(usize::MAX);
    Some(Limits {
        running_runs: count(running?),
        running_runs_per_submitter: count(of_one?),
        queued_runs: count(queued?),
        checkpoint_entries: checkpoints?.0,
        daily: daily(reader),
        free_disk_bytes: free_disk?.0.saturating_mul(1 << 20),
        event_streams: count(streams?),
    })
}

impl SettingValue for LogFormat {
    fn from_text(text: &str) -> Result<Self, String> {
        <Self as clap::ValueEnum>::from_str(text, false)
            .map_err(|_| format!("{text:?} is neither text nor json"))
    }

    fn from_scalar(value: &serde_json::Value) -> Result<Self, String> {
        <Self as SettingValue>::from_text(&String::from_scalar(value)?)
    }

    fn shown(&self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Json => "json".into(),
        }
    }
}

fn read_file(path: &Path) -> Result<reader::File, yaml::YamlError> {
    let text = yaml::read(path)?;
    let root = match text.trim().is_empty() {
        true => yaml::Node { at: (1, 1), content: yaml::Content::Scalar(serde_json::Value::Null) },
        false => yaml::parse_tree(&path.display().to_string(), &text)?,
    };
    Ok(reader::File { path: path.to_owned(), root })
}

fn default_file(around: &dyn Surroundings) -> Option<PathBuf> {
    let user = xdg(around, "XDG_CONFIG_HOME", ".config").map(|dir| dir.join("agentd/agentd.yaml"));
    let system = PathBuf::from("/etc/agentd/agentd.yaml");
    user.into_iter().chain([system]).find(|path| around.exists(path))
}

/// The backend that the user's configuration file names, as it stands there; none if it names none.
///
/// For a daemon that is to use the same backend and nothing else of that file.
pub fn named_backend(
    around: &dyn Surroundings,
) -> Result<Option<serde_json::Value>, yaml::YamlError> {
    let named = around.variable("AGENTD_CONFIG").map(PathBuf::from);
    let Some(path) = named.or_else(|| default_file(around)) else { return Ok(None) };
    let backend = read_file(&path)?.root.to_value().get("backend").cloned();
    Ok(backend.filter(|backend| backend.get("base_url").is_some()))
}

fn default_policies(around: &dyn Surroundings, file: Option<&Path>) -> Option<PathBuf> {
    let beside = file.and_then(Path::parent).map(|directory| directory.join("policies"));
    let system = PathBuf::from("/etc/agentd/policies");
    beside.into_iter().chain([system]).find(|path| around.exists(path))
}

fn default_tools(around: &dyn Surroundings) -> Option<PathBuf> {
    Some(PathBuf::from("/tools")).filter(|directory| around.exists(directory))
}

/// Where state is kept when nothing says so: `/state` in a container, else the user's own.
pub fn default_state(around: &dyn Surroundings) -> Option<PathBuf> {
    let container = PathBuf::from("/state");
    match around.is_writable(&container) {
        true => Some(container),
        false => xdg(around, "XDG_STATE_HOME", ".local/state").map(|dir| dir.join("agentd")),
    }
}

fn default_workspace_root(around: &dyn Surroundings) -> PathBuf {
    let container = PathBuf::from("/workspace");
    match around.exists(&container) {
        true => container,
        false => around.current_directory(),
    }
}

fn xdg(around: &dyn Surroundings, variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |path: String| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    around
        .variable(variable)
        .and_then(absolute)
        .or_else(|| around.variable("HOME").and_then(absolute).map(|home| home.join(below_home)))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs};

    use super::*;

    struct Fake {
        variables: HashMap<&'static str, String>,
    }

    impl Surroundings for Fake {
        fn variable(&self, name: &str) -> Option<String> {
            self.variables.get(name).cloned()
        }
        fn is_writable(&self, _: &Path) -> bool {
            false
        }
        fn exists(&self, path: &Path) -> bool {
            path.exists() && !path.starts_with("/etc") && path != Path::new("/workspace")
        }
        fn current_directory(&self) -> PathBuf {
            "/here".into()
        }
    }

    fn around(variables: &[(&'static str, &str)]) -> Fake {
        Fake { variables: variables.iter().map(|(name, value)| (*name, (*value).into())).collect() }
    }

    #[test]
    fn without_any_setting_the_defaults_of_the_contract_hold() {
        let config = Config::load(Flags::default(), &around(&[("HOME", "/home/a")])).unwrap();
        assert_eq!(config.state_directory, Path::new("/home/a/.local/state/agentd"));
        assert_eq!(config.workspace_root, Path::new("/here"));
        assert_eq!(config.listen.to_string(), "127.0.0.1:7080");
        assert_eq!(config.backend.base_url, "http://127.0.0.1:1234/v1");
        assert_eq!(config.policy_directory, None);
    }

    #[test]
    fn the_file_is_found_in_the_user_s_configuration_and_a_flag_beats_it() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("agentd");
        fs::create_dir_all(directory.join("policies")).unwrap();
        fs::write(directory.join("agentd.yaml"), "state_dir: /from/file\nbackend: {model: m}\n")
            .unwrap();
        let around = around(&[("XDG_CONFIG_HOME", home.path().to_str().unwrap())]);
        let config = Config::load(Flags::default(), &around).unwrap();
        assert_eq!(config.state_directory, Path::new("/from/file"));
        assert_eq!(config.model.as_deref(), Some("m"));
        assert_eq!(config.policy_directory, Some(directory.join("policies")));
        let flags = Flags { state_dir: Some("/from/flag".into()), ..Flags::default() };
        assert_eq!(Config::load(flags, &around).unwrap().state_directory, Path::new("/from/flag"));
    }

    #[test]
    fn all_errors_are_told_at_once() {
        let flags = Flags {
            listen: Some("0.0.0.0:7080".parse().unwrap()),
            base_url: Some("ftp://x".into()),
            ..Flags::default()
        };
        assert_eq!(Config::load(flags, &around(&[])).unwrap_err().len(), 3);
    }

    #[test]
    fn credentials_in_the_address_and_limits_of_nothing_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x.yaml");
        fs::write(
            &path,
            "backend: {base_url: 'http://me:secret@h/v1'}\nlimits: {queued_runs: 0}\n",
        )
        .unwrap();
        let flags = Flags { config: Some(path), ..Flags::default() };
        let errors = Config::load(flags, &around(&[("HOME", "/h")])).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(!errors.concat().contains("secret"), "{errors:?}");
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_place() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x.yaml");
        fs::write(&path, "log: info\nlisten_on: 1\n").unwrap();
        let flags = Flags { config: Some(path.clone()), ..Flags::default() };
        let errors = Config::load(flags, &around(&[("HOME", "/h")])).unwrap_err();
        assert!(errors[0].starts_with(&format!("{}:2:1: ", path.display())), "{errors:?}");
    }
}
