//! Settings from flags, environment and one YAML file, in that order, checked before anything starts.
//! Nothing is read from the current directory or a workspace unless a flag names it.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::{
    backend::{self, Streaming},
    engine::Limits,
    telemetry::LogFormat,
    yaml,
};

/// LM Studio's.
const DEFAULT_BASE_URL: &str = "http://127.0.0.1:1234/v1";
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7080);

/// Flags of `agentd serve`; each may come from the environment instead.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Configuration file
    #[arg(long, env = "AGENTD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where agentd keeps its journal, socket and token
    #[arg(long, env = "AGENTD_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Runs may only use workspaces below it
    #[arg(long, env = "AGENTD_WORKSPACE_ROOT", value_name = "DIR")]
    pub workspace_root: Option<PathBuf>,
    /// Loopback address for gRPC; the Unix socket in the state directory is always there
    #[arg(long, env = "AGENTD_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Directory with tools.yaml and paths.yaml
    #[arg(long, env = "POLICY_DIR", value_name = "DIR")]
    pub policy_dir: Option<PathBuf>,
    /// Directory with declarations of tools, one YAML file each [default: /tools, if it exists]
    #[arg(long, env = "AGENTD_TOOLS_DIR", value_name = "DIR")]
    pub tools_dir: Option<PathBuf>,
    /// Commands that shell_exec may run besides the policy's, comma-separated, word for word
    #[arg(long, env = "ALLOW_COMMANDS", value_name = "COMMANDS")]
    pub allow_commands: Option<String>,
    /// Base URL of the model server, with or without /v1
    #[arg(long, env = "OPENAI_BASE_URL", value_name = "URL")]
    pub base_url: Option<String>,
    /// Model, if a run names none; default: the first that the server lists
    #[arg(long, env = "AGENTD_MODEL", value_name = "NAME")]
    pub model: Option<String>,
    /// Tracing filter: info, debug, agentd=trace ...
    #[arg(long, env = "AGENTD_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    #[arg(long, env = "AGENTD_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// The settings in force.
#[derive(Debug)]
pub struct Config {
    pub state_directory: PathBuf,
    pub workspace_root: PathBuf,
    pub listen: SocketAddr,
    /// None: the built-in policy.
    pub policy_directory: Option<PathBuf>,
    /// Declarations of tools; none: there are only the built-in ones.
    pub tools_directory: Option<PathBuf>,
    pub allow_commands: Option<String>,
    pub backend: backend::Settings,
    pub model: Option<String>,
    pub limits: Limits,
    pub log: String,
    pub log_format: LogFormat,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
}

/// What the file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileShape {
    state_dir: Option<PathBuf>,
    workspace_root: Option<PathBuf>,
    listen: Option<SocketAddr>,
    policy_dir: Option<PathBuf>,
    tools_dir: Option<PathBuf>,
    allow_commands: Option<String>,
    backend: BackendShape,
    limits: LimitsShape,
    log: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BackendShape {
    base_url: Option<String>,
    model: Option<String>,
    /// A file that holds the key; the key itself never stands in the configuration.
    api_key_file: Option<PathBuf>,
    stream: Option<bool>,
    idle_timeout_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsShape {
    running_runs: Option<usize>,
    queued_runs: Option<usize>,
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

impl Config {
    /// Errors: one line each, with the file and place or the setting, and what to do.
    pub fn load(flags: Flags, around: &dyn Surroundings) -> Result<Self, Vec<String>> {
        let file = flags.config.clone().or_else(|| default_file(around));
        let shape: FileShape = match &file {
            None => FileShape::default(),
            Some(path) => read_file(path).map_err(|error| vec![error.to_string()])?,
        };
        let mut errors = Vec::new();
        check_numbers(&shape, &mut errors);
        let api_key =
            api_key(around, shape.backend.api_key_file.as_deref()).unwrap_or_else(|error| {
                errors.push(error);
                None
            });
        let listen = flags.listen.or(shape.listen).unwrap_or(DEFAULT_LISTEN);
        if !listen.ip().is_loopback() {
            errors.push(format!(
                "listen: {listen} is not a loopback address, and without TLS agentd serves no other; \
                 use 127.0.0.1 and a tunnel"
            ));
        }
        let state_directory = flags.state_dir.or(shape.state_dir).or_else(|| default_state(around));
        if state_directory.is_none() {
            errors.push(
                "state_dir: there is neither /state nor a home directory; set --state-dir".into(),
            );
        }
        let base_url = flags.base_url.or(shape.backend.base_url).unwrap_or(DEFAULT_BASE_URL.into());
        check_base_url(&base_url, &mut errors);
        let state_directory = match (errors.is_empty(), state_directory) {
            (true, Some(directory)) => directory,
            _ => return Err(errors),
        };
        let streaming = match shape.backend.stream {
            Some(false) => Streaming::Off,
            Some(true) | None => Streaming::On,
        };
        let idle = shape.backend.idle_timeout_seconds.unwrap_or(300);
        Ok(Self {
            state_directory,
            workspace_root: flags
                .workspace_root
                .or(shape.workspace_root)
                .unwrap_or_else(|| default_workspace_root(around)),
            listen,
            policy_directory: flags
                .policy_dir
                .or(shape.policy_dir)
                .or_else(|| default_policies(around, file.as_deref())),
            tools_directory: flags.tools_dir.or(shape.tools_dir).or_else(|| default_tools(around)),
            allow_commands: flags.allow_commands.or(shape.allow_commands),
            backend: backend::Settings {
                base_url,
                api_key,
                streaming,
                idle_timeout: Duration::from_secs(idle),
            },
            model: flags.model.or(shape.backend.model),
            limits: Limits {
                running_runs: shape.limits.running_runs.unwrap_or(1024),
                queued_runs: shape.limits.queued_runs.unwrap_or(10_000),
            },
            log: flags.log.or(shape.log).unwrap_or_else(|| "info".into()),
            log_format: flags.log_format.unwrap_or_default(),
            file,
        })
    }
}

fn check_base_url(url: &str, errors: &mut Vec<String>) {
    match url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) {
        None => {
            errors.push(format!("OPENAI_BASE_URL: {url:?} does not begin with http:// or https://"))
        }
        // Addresses are shown; what proves who we are must not stand in one.
        Some(rest) if rest.split('/').next().is_some_and(|host| host.contains('@')) => {
            errors.push("OPENAI_BASE_URL: holds credentials; give them as OPENAI_API_KEY".into());
        }
        Some(_) => {}
    }
}

fn check_numbers(shape: &FileShape, errors: &mut Vec<String>) {
    for (key, value) in [
        ("limits.running_runs", shape.limits.running_runs.map(|runs| runs as u64)),
        ("limits.queued_runs", shape.limits.queued_runs.map(|runs| runs as u64)),
        ("backend.idle_timeout_seconds", shape.backend.idle_timeout_seconds),
    ] {
        if value == Some(0) {
            errors.push(format!("{key}: 0 would let nothing happen; give at least 1"));
        }
    }
}

fn read_file(path: &Path) -> Result<FileShape, yaml::YamlError> {
    let text = yaml::read(path)?;
    match text.trim().is_empty() {
        true => Ok(FileShape::default()),
        false => yaml::parse(&path.display().to_string(), &text),
    }
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
    // Read as the daemon reads it first: what it would refuse must not slip through.
    if read_file(&path)?.backend.base_url.is_none() {
        return Ok(None);
    }
    let file: serde_json::Value = yaml::parse(&path.display().to_string(), &yaml::read(&path)?)?;
    Ok(file.get("backend").cloned())
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

/// The credential: from the environment, else from the file that is named there or in the file.
fn api_key(around: &dyn Surroundings, file: Option<&Path>) -> Result<Option<String>, String> {
    if let Some(key) = around.variable("OPENAI_API_KEY") {
        return Ok(Some(key.trim().to_owned()));
    }
    let named = around.variable("OPENAI_API_KEY_FILE").map(PathBuf::from);
    let Some(path) = named.or_else(|| file.map(Path::to_owned)) else { return Ok(None) };
    let key = yaml::read(&path).map_err(|error| format!("OPENAI_API_KEY_FILE: {error}"))?;
    match key.trim() {
        "" => Err(format!("OPENAI_API_KEY_FILE: {} is empty", path.display())),
        key => Ok(Some(key.to_owned())),
    }
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
