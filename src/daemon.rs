//! The composition root: the only file that names ports and adapters alike. Starts everything in the
//! order that durability wants, waits, and stops it in reverse.

mod agents;
mod serving;
mod upkeep;

pub(crate) use agents::check_agents;

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;

use self::{
    serving::{Servers, serve},
    upkeep::{LastLife, LastStop, set_ready, webhook},
};
use crate::{
    backend::HttpBackend,
    callers,
    config::Config,
    domain::{
        access::{Access, Credential},
        backend::BackendName,
        hex::hex,
        ids::{Sequence, Timestamp},
        journal::{DaemonStarted, DaemonStopped, NewEntry, Record},
        policy::Policy,
        redact::Redactor,
        tool::{Declaration, RegisteredTool},
    },
    engine::{Backend, Backends, Engine, Policies, World},
    grpc::{self, Info},
    mirror::Mirror,
    policy_files,
    ports::{Clock, Journal, JournalError},
    private_file,
    sandbox::{LocalSandbox, Places, Walls},
    secrets::ExposeSecret as _,
    sqlite,
    system::{SystemChance, SystemClock, SystemDisk},
    tasks::{self, Tasks},
    tool_files,
    tools::Toolbox,
};

/// How long open connections may take after that.
const CONNECTIONS: Duration = Duration::from_secs(2);
/// File names in the state directory.
pub(crate) const SOCKET: &str = "agentd.sock";
const TOKEN: &str = "token";
const CONFIG: &str = "config.json";
const REGISTRY: &str = "tools/registry.json";

/// Why the daemon did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(
        "the state directory {path} cannot be used; create it, or choose another with --state-dir"
    )]
    State { path: PathBuf, source: io::Error },
    #[error(
        "the key that the journal's head is signed with, {path} (audit.signing_key), cannot be used"
    )]
    SigningKey { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Policy(#[from] policy_files::PolicyErrors),
    #[error("the declared tools are not valid, and none of them is taken:\n{}", .0.join("\n"))]
    Tools(Vec<String>),
    #[error("the agents of the configuration cannot be used:\n{}", .0.join("\n"))]
    Agents(Vec<String>),
    #[error("the callers of the configuration cannot be used:\n{}", .0.join("\n"))]
    Callers(Vec<String>),
    #[error(transparent)]
    Store(#[from] sqlite::OpenError),
    #[error(transparent)]
    Sandbox(#[from] crate::ports::SandboxError),
    #[error("backend: {0}")]
    Backend(String),
    #[error("approvals.webhook: {0}")]
    Webhook(String),
    #[error(
        "the address {address} cannot be listened on; is another agentd running? Choose another with --listen"
    )]
    Listen { address: String, source: io::Error },
    #[error(
        "the address {address} cannot be listened on; is another agentd running? Choose another with --http-listen"
    )]
    ListenHttp { address: String, source: io::Error },
    #[error("signals cannot be heard")]
    Signals(io::Error),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
    #[error("a part of the daemon ended early")]
    Task(#[from] tokio::task::JoinError),
    #[error("the daemon stopped itself: {0}")]
    Fatal(String),
}

/// Runs the daemon until SIGTERM or SIGINT. `drivers` start runs on a runtime of their own; `ready` is told
/// the addresses once all is served.
pub async fn run(
    mut config: Config,
    launcher: PathBuf,
    drivers: Tasks,
    ready: impl FnOnce(&str),
) -> Result<(), DaemonError> {
    raise_descriptor_limit();
    let Signals { stop: mut ends, reload } = signals()?;
    let state = |source| DaemonError::State { path: config.state_directory.clone(), source };
    // Resolved once: what is named after the directory must not depend on how it was spelt.
    let resolved = create_private(&config.state_directory)
        .and_then(|()| config.state_directory.canonicalize())
        .map_err(state)?;
    config.state_directory = resolved;
    let parts = assemble(&config, launcher, drivers).await?;
    let servers = serve(&config, &parts).await?;
    upkeep::start(&config, &parts, &servers, reload);
    ready(&format!(
        "agentd is ready: grpc {} and unix:{}, http {}",
        servers.address,
        config.state_directory.join(SOCKET).display(),
        servers.http
    ));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut fatal = parts.engine.fatal();
    let why = tokio::select! {
        signal = ends.recv() => Ok(signal.unwrap_or("the end of the signals")),
        message = failed(&mut fatal) => Err(message),
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    match why {
        Ok(signal) => {
            tracing::info!(signal, "stopping");
            upkeep::exit_after(config.grace + 4 * CONNECTIONS);
            // A second signal means: at once. What is under way is left to the next daemon.
            tokio::select! {
                stopped = stop(&config, parts, servers, signal) => stopped,
                _ = ends.recv() => Ok(()),
            }
        }
        Err(message) => {
            upkeep::exit_after(4 * CONNECTIONS);
            give_up(&parts, servers).await;
            Err(DaemonError::Fatal(message))
        }
    }
}

/// The journal takes nothing more, and so nothing more can be done; but whoever has asked is told why,
/// and every stream ends with a reason instead of a broken connection.
async fn give_up(parts: &Parts, servers: Servers) {
    tokio::join!(parts.engine.stop(CONNECTIONS), servers.tasks.stop(CONNECTIONS));
}

/// Why the journal failed, once it has.
async fn failed(fatal: &mut watch::Receiver<Option<JournalError>>) -> String {
    let error = fatal.wait_for(Option::is_some).await;
    error.ok().and_then(|error| error.as_ref().map(JournalError::to_string)).unwrap_or_default()
}

/// What the daemon is made of.
struct Parts {
    engine: Engine,
    journal: Arc<sqlite::SqliteJournal>,
    mirror: Arc<Mirror>,
    clock: Arc<SystemClock>,
    info: Info,
    /// Who may call over TCP.
    known: Arc<[Credential]>,
    last: LastLife,
    /// Whether what an unclean stop left has been looked at.
    examined: Arc<AtomicBool>,
}

/// Every run that waits on the model is a socket: take as many descriptors as this process may have.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

async fn assemble(
    config: &Config,
    launcher: PathBuf,
    drivers: Tasks,
) -> Result<Parts, DaemonError> {
    let state = &config.state_directory;
    let chance = Arc::new(SystemChance::default());
    let clock = Arc::new(SystemClock::default());
    let (store, token, walls, rules) = {
        let (directory, owner, chance) = (state.clone(), state.clone(), chance.clone());
        let (program, root) = (launcher.clone(), config.workspace_root.clone());
        // The store's lock says that this state directory is ours.
        tokio::join!(
            tasks::blocking(move || sqlite::take(&directory)),
            tasks::blocking(move || token(&owner, &chance)),
            tasks::blocking(move || Walls::probe(program, &root)),
            async { Rules::load(config) },
        )
    };
    let Rules { tools, files, policy, programs } = rules?;
    let token = token?.map_err(|source| DaemonError::State { path: state.join(TOKEN), source })?;
    let access = Access::owner(grpc::named(rustix::process::geteuid().as_raw()));
    let owner = Credential { access, token };
    let known = callers::load(&config.callers, vec![owner]).map_err(DaemonError::Callers)?;
    let tokens = known.iter().map(|caller| caller.token.to_string());
    let secrets = config.secrets.iter().map(|secret| secret.expose_secret().to_owned());
    let redactor = Redactor::new(secrets.chain(tokens));
    let store = store??;
    let restored = store.restored();
    let journal = upkeep::open(store, config, redactor.clone())?;
    write_config(config)
        .map_err(|source| DaemonError::State { path: state.join(CONFIG), source })?;
    // Then the sandbox: what the last daemon left running is dead before anything is decided.
    let places = places(config, &launcher, programs);
    let sandbox = Arc::new(open_sandbox(config, walls??, places)?);
    let redactor = Arc::new(redactor);
    let backends = backends(config, &redactor)?;
    let webhook = webhook(config)?;
    let started = clock.now();
    let registered = register(state, &tools, started)?;
    let info = info(config, &backends, registered, started);
    let last = LastLife::of(&journal, started).await?;
    let entry = first_words(&journal, &clock, &policy).await?;
    let world = World {
        backends,
        prices: Arc::new(config.prices.clone()),
        agents: config.agents.clone(),
        sandbox,
        journal: journal.clone(),
        pulse: journal.clone(),
        backups: journal.clone(),
        retention: journal.clone(),
        disk: Arc::new(SystemDisk { directory: state.clone() }),
        webhook,
        clock: clock.clone(),
        chance,
        policies: Arc::new(Policies::new(Arc::new(files), policy, started, entry)),
        tools,
        redactor,
        epoch: journal.epoch(),
    };
    let from = journal.head();
    let ports: (Arc<dyn Journal>, Arc<dyn Clock>) = (journal.clone(), clock.clone());
    let mirror = Arc::new(Mirror::new(state, ports, (started, from)));
    let engine = Engine::new(world, config.limits, drivers);
    let resumed = engine.resume(restored).await?;
    if resumed > 0 {
        tracing::info!(runs = resumed, "runs go on");
    }
    Ok(Parts {
        engine,
        journal,
        mirror,
        clock,
        info,
        known: known.into(),
        last,
        examined: Arc::default(),
    })
}

fn register(
    state: &Path,
    tools: &Toolbox,
    started: Timestamp,
) -> Result<Vec<RegisteredTool>, DaemonError> {
    let registry = state.join(REGISTRY);
    let entries = tools.entries().iter();
    let known = entries.map(|entry| (entry.spec(), entry.source().to_string()));
    tool_files::register(&registry, known, started)
        .map_err(|source| DaemonError::State { path: registry, source })
}

async fn first_words(
    journal: &sqlite::SqliteJournal,
    clock: &SystemClock,
    policy: &Policy,
) -> Result<Sequence, DaemonError> {
    let record = DaemonStarted {
        version: env!("CARGO_PKG_VERSION").into(),
        epoch: journal.epoch(),
        sqlite: sqlite::version().into(),
        policy_revision: policy.revision.clone(),
    };
    note(journal, clock, record.into(), Some(policy.revision.clone())).await
}

fn open_sandbox(
    config: &Config,
    walls: Walls,
    places: Places,
) -> Result<LocalSandbox, DaemonError> {
    for refusal in walls.refusals() {
        tracing::warn!(%refusal, "programs are kept apart less well than they could be");
    }
    let state = &config.state_directory;
    Ok(LocalSandbox::open(walls, state, places, config.ready_launchers)?)
}

/// What is told of this daemon to whoever asks.
fn info(
    config: &Config,
    backends: &Backends,
    registered: Vec<RegisteredTool>,
    started: Timestamp,
) -> Info {
    Info {
        tools: registered.into(),
        config: config.shown.clone().into(),
        config_file: config.file.as_ref().map(|path| path.display().to_string()),
        started,
        backend_url: backends.default().model.url().to_owned(),
        model: config.model.clone(),
        workspace_root: config.workspace_root.display().to_string(),
        state_directory: config.state_directory.display().to_string(),
        sqlite_version: sqlite::version().to_owned(),
    }
}

/// The model servers, the default one first.
fn backends(config: &Config, redactor: &Arc<Redactor>) -> Result<Backends, DaemonError> {
    let fallback = config.watching.fallback;
    let backend = |name: BackendName, settings, model: &Option<String>| {
        let server = HttpBackend::new(settings, redactor.clone())
            .map_err(|error| DaemonError::Backend(format!("{name}: {error}")))?;
        let (server, redactor) = (Arc::new(server), redactor.clone());
        Ok(Arc::new(Backend::new(name, server, model.clone(), fallback, redactor)))
    };
    let default = backend(BackendName::default(), &config.backend, &config.model)?;
    let others = config.other_backends.iter();
    let others = others.map(|other| backend(other.name.clone(), &other.settings, &other.model));
    Ok(Backends::new(default, others.collect::<Result<Vec<_>, DaemonError>>()?))
}

/// What models may call, and what decides about it.
struct Rules {
    tools: Arc<Toolbox>,
    files: policy_files::Files,
    policy: Arc<Policy>,
    /// Programs of declared tools.
    programs: Vec<PathBuf>,
}

impl Rules {
    fn load(config: &Config) -> Result<Self, DaemonError> {
        let declared = declared_tools(config)?;
        let programs = declared.iter().map(|tool| tool.program.clone().into()).collect();
        let tools = Arc::new(Toolbox::new(declared.clone()).map_err(DaemonError::Tools)?);
        let files = policy_sources(config, &tools, declared);
        let policy = Arc::new(files.load()?);
        check_agents(config, &tools, &policy)?;
        for refused in policy.hosted_outlook().filter(|outlook| !outlook.is_declared()) {
            tracing::warn!(tool = %refused.tool, decided = %refused, "a hosted tool is not declared to the backend");
        }
        Ok(Self { tools, files, policy, programs })
    }
}

/// The settings in force, for people and other programs; nothing reads it back.
fn write_config(config: &Config) -> io::Result<()> {
    let values: Vec<_> = config
        .shown
        .iter()
        .map(|value| json!({"key": value.key, "value": value.value, "source": value.source}))
        .collect();
    let file = config.file.as_ref().map(|path| path.display().to_string());
    let text = serde_json::to_vec_pretty(&json!({"file": file, "values": values}))?;
    private_file::replace(&config.state_directory.join(CONFIG), &text)
}

/// Tools of the configuration, then those of the directory. Errors: all faults of both at once.
pub(crate) fn declared_tools(config: &Config) -> Result<Vec<Declaration>, DaemonError> {
    let (mut declared, mut errors) = (Vec::new(), Vec::new());
    for tool in &config.tools {
        let declaration = tool.declaration.clone();
        match tool_files::from_configuration(&tool.place, &tool.directory, declaration) {
            Ok(tool) => declared.push(tool),
            Err(faults) => errors.extend(faults),
        }
    }
    match config.tools_directory.as_deref().map(tool_files::from_directory).transpose() {
        Ok(files) => declared.extend(files.unwrap_or_default()),
        Err(faults) => errors.extend(faults),
    }
    if errors.is_empty() { Ok(declared) } else { Err(DaemonError::Tools(errors)) }
}

/// A tool must reach none of what decides, remembers or confines.
fn places(config: &Config, launcher: &Path, programs: Vec<PathBuf>) -> Places {
    let own = own_paths(config).chain([launcher.to_owned()]);
    // Bare names are found in the policy's directories.
    let own = own.chain(programs.into_iter().filter(|program| program.is_absolute()));
    Places { workspace_root: config.workspace_root.clone(), off_limits: own.collect() }
}

/// What decides, remembers or lets callers in.
fn own_paths(config: &Config) -> impl Iterator<Item = PathBuf> {
    let own = [
        Some(&config.state_directory),
        config.policy_directory.as_ref(),
        config.tools_directory.as_ref(),
        config.file.as_ref(),
    ];
    let tokens = config.callers.iter().map(|caller| caller.token_file.clone());
    own.into_iter().flatten().cloned().chain(tokens)
}

pub(crate) fn policy_sources(
    config: &Config,
    tools: &Toolbox,
    declared: Vec<Declaration>,
) -> policy_files::Files {
    policy_files::Files {
        directory: config.policy_directory.clone(),
        extra_commands: config.allow_commands.clone(),
        allow_net: config.allow_net,
        declared,
        hosted: config.hosted_tools.clone(),
        home: config.home.clone(),
        off_limits: own_paths(config).map(|path| path.display().to_string()).collect(),
        known_tools: tools.specs().iter().map(|spec| spec.name.clone()).collect(),
    }
}

async fn note(
    journal: &dyn Journal,
    clock: &SystemClock,
    record: Record,
    policy_revision: Option<crate::domain::ids::PolicyRevision>,
) -> Result<Sequence, DaemonError> {
    Ok(journal.append_daemon(NewEntry { time: clock.now(), record, policy_revision }).await?)
}

async fn stop(
    config: &Config,
    parts: Parts,
    servers: Servers,
    signal: &str,
) -> Result<(), DaemonError> {
    set_ready(&servers.health, ServingStatus::NotServing).await;
    if !parts.engine.stop(config.grace).await {
        tracing::warn!("some steps had not finished; they are left to the next daemon");
    }
    if !servers.tasks.stop(CONNECTIONS).await {
        tracing::warn!("what serves callers did not stop by itself, and is broken off");
    }
    let is_unexamined =
        parts.last.stop == LastStop::Unclean && !parts.examined.load(Ordering::Relaxed);
    let record = DaemonStopped { why: signal.into(), is_unexamined };
    note(&*parts.journal, &parts.clock, record.into(), None).await?;
    // A store that is closed in order is signed to its end.
    parts.journal.sign(parts.clock.now()).await?;
    let late = parts.clock.sleep(CONNECTIONS);
    let nothing_stops_it = CancellationToken::new();
    tokio::select! {
        caught_up = parts.mirror.catch_up(&nothing_stops_it) => if let Err(error) = caught_up {
            let error = crate::telemetry::chain(&error);
            tracing::warn!(error, "the next daemon makes up for the mirror");
        },
        () = late => tracing::warn!("the next daemon makes up for the mirror, which is slow"),
    }
    parts.journal.close().await?;
    let _ = fs::remove_file(config.state_directory.join(SOCKET));
    Ok(())
}

/// What the process is told from outside, as it comes.
struct Signals {
    /// SIGTERM and SIGINT, by name.
    stop: mpsc::Receiver<&'static str>,
    /// SIGHUP: a burst is one, and one that comes during a reload makes another.
    reload: mpsc::Receiver<()>,
}

fn signals() -> Result<Signals, DaemonError> {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator,
    };
    let mut signals =
        iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(DaemonError::Signals)?;
    let (tell_stop, stop) = mpsc::channel(2);
    let (tell_reload, reload) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                // What finds no room says nothing new.
                let _ = match signal {
                    SIGHUP => tell_reload.try_send(()).is_ok(),
                    SIGTERM => tell_stop.try_send("SIGTERM").is_ok(),
                    _ => tell_stop.try_send("SIGINT").is_ok(),
                };
            }
        })
        .map_err(DaemonError::Signals)?;
    Ok(Signals { stop, reload })
}

/// Makes the directory, for its owner alone, and those above it that are missing. Their names are on disk when this
/// returns: what is synced in a directory is lost with the directory's own name.
fn create_private(directory: &Path) -> io::Result<()> {
    // The store is made after this: where it is, all of this was done.
    if directory.join(sqlite::DATABASE).exists() {
        return Ok(());
    }
    let is_missing = |above: &&Path| !above.as_os_str().is_empty() && !above.is_dir();
    let missing = directory.ancestors().take_while(is_missing).count();
    if missing > 0 {
        fs::create_dir_all(directory)?;
        fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    }
    // At least its own: whoever made it may have died before that.
    for above in directory.ancestors().skip(1).take(missing.max(1)) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        match fs::File::open(above).and_then(|above| above.sync_all()) {
            // What somebody else made, and we may only pass through, is theirs to keep.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && missing == 0 => {}
            synced => synced?,
        }
    }
    Ok(())
}

/// The owner's bearer token; made at the first start.
fn token(state: &Path, chance: &SystemChance) -> io::Result<Arc<str>> {
    let fresh = || {
        let token: String = hex(&chance.bytes::<32>());
        Ok(format!("{token}\n").into_bytes())
    };
    let token = private_file::read_or_create(&state.join(TOKEN), fresh)?;
    match std::str::from_utf8(&token).map(str::trim) {
        Ok(token) if token.len() >= 32 => Ok(token.into()),
        _ => Err(io::Error::other("the token is too short; delete the file to make a new one")),
    }
}

/// The launcher: `AGENTD_SANDBOX`, else beside the running program.
pub fn launcher(named: Option<PathBuf>) -> PathBuf {
    named.unwrap_or_else(|| {
        let beside =
            std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
        beside.unwrap_or_default().join("agentd-sandbox")
    })
}
