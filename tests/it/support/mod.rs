//! What the tests stand on: the real daemon as a process on a directory of its own, and the scripted
//! backend over real HTTP. Fakes the model's words, never our own logic.

mod client;
pub(crate) mod internet;
pub(crate) mod processes;
pub(crate) mod relay;

pub(crate) use client::{agentctl, exited, refusal};

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use self::internet::Internet;
use crate::shim::Shim;
use agentd::{
    client::{Address, Client},
    proto::v1::{self, RunState, stream_run_events_response::Event},
    scripted::{Brain, Kind, Manner, Memory, Reply, ScriptedBackend, Turn},
    tasks::Tasks,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longest that any test waits for anything; reaching it is a failure, not a measurement.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Rules that the tests add to the built-in ones.
const TEST_COMMANDS: &str = r#"
  - {id: test.sh, argv: [sh, script.sh], effect: non-idempotent, why: "the test's own script"}
  - {id: test.pure, argv: [sh, pure.sh], effect: pure, why: "the test's own script"}
  - id: test.short
    argv: [sh, short.sh]
    limits: {wall_seconds: 1, cpu_seconds: 60, memory_mib: 64, processes: 64, open_files: 64, file_mib: 1}
    why: "the test's own script, with little room"
  - id: test.small
    argv: [sh, small.sh]
    limits: {wall_seconds: 50, cpu_seconds: 50, memory_mib: 64, processes: 64, open_files: 64, file_mib: 1}
    why: "the test's own script, with little memory"
  - id: test.busy
    argv: [sh, busy.sh]
    limits: {wall_seconds: 50, cpu_seconds: 1, memory_mib: 64, processes: 64, open_files: 64, file_mib: 1}
    why: "the test's own script, with little CPU time"
  - id: test.share
    argv: [sh, share.sh]
    limits: {wall_seconds: 3, cpu_seconds: 50, cpu_percent: 5, memory_mib: 64, processes: 64, open_files: 64, file_mib: 1}
    why: "the test's own script, with a small share of a CPU"
  - id: test.whole
    argv: [sh, whole.sh]
    limits: {wall_seconds: 3, cpu_seconds: 50, memory_mib: 64, processes: 64, open_files: 64, file_mib: 1}
    why: "the same with all there is"
"#;

/// How well programs must be kept apart by default.
const LEAST: &str = "isolation: {minimum: root, enforcement: strict}";

/// The same line with less or more. `scripts/container.sh` runs tests where there is less: they are told by
/// AGENTD_IT_ISOLATION to make do with it, and never do so by themselves.
fn least(tier: Option<String>) -> String {
    tier.map_or(LEAST.into(), |tier| LEAST.replace("root", &tier))
}

/// A daemon on a state directory and a workspace of its own.
pub(crate) struct TestDaemon {
    child: Option<Child>,
    home: TempDir,
    settings: Settings,
    /// Workspace root, where it is not the home.
    root: Option<PathBuf>,
    /// Address of gRPC over TCP.
    pub(crate) tcp: String,
    /// Of health over HTTP.
    pub(crate) http: String,
}

/// How a test's daemon is started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    pub(crate) base_url: String,
    /// YAML, besides what the flags say.
    pub(crate) configuration: String,
    /// Declarations of tools and what lies beside them: file names and contents.
    pub(crate) tools: Vec<(String, String)>,
    /// Instead of the built-in `paths.yaml`.
    pub(crate) paths: Option<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// Rules for `tools.yaml`, besides the tests' own.
    pub(crate) commands: String,
    /// Rules of `tools.yaml` about hosted tools.
    pub(crate) hosted: String,
    /// A `network.yaml`.
    pub(crate) network: Option<String>,
}

impl TestDaemon {
    /// A daemon whose model is at `base_url`.
    pub(crate) fn start(base_url: &str) -> Self {
        Self::start_with(Settings { base_url: base_url.into(), ..Settings::default() })
    }

    pub(crate) fn start_with(settings: Settings) -> Self {
        let mut daemon = Self::prepared(settings);
        daemon.boot();
        daemon
    }

    /// A daemon between which and its disk a shim stands.
    pub(crate) fn start_on(settings: Settings, shim: &Shim) -> Self {
        let mut daemon = Self::prepared(settings);
        let variables = shim.variables(&daemon.state());
        daemon.settings.environment.extend(variables);
        daemon.boot();
        daemon
    }

    /// A daemon that takes over a store which somebody kept.
    pub(crate) fn start_from(settings: Settings, kept: &Path) -> Self {
        let mut daemon = Self::prepared(settings);
        fs::create_dir(daemon.state()).unwrap();
        for name in ["agentd.db", "seal.key"] {
            let copy = daemon.state().join(name);
            fs::copy(kept.join(name), &copy).unwrap();
            fs::set_permissions(copy, fs::Permissions::from_mode(0o600)).unwrap();
        }
        daemon.boot();
        daemon
    }

    /// A daemon whose runs may work anywhere below `root`.
    pub(crate) fn start_in(settings: Settings, root: &Path) -> Self {
        let mut daemon = Self::prepared(settings);
        daemon.root = Some(root.to_owned());
        daemon.boot();
        daemon
    }

    /// The last words of a daemon that does not start, which `agentd check` would have said.
    pub(crate) fn refused(settings: Settings) -> String {
        let daemon = Self::prepared(settings);
        let serve = daemon.command();
        let mut check = Command::new(serve.get_program());
        check.arg("check").args(serve.get_args().skip(1)).env_clear();
        let checked = check.output().unwrap();
        assert_eq!(checked.status.code(), Some(78), "{checked:?}");
        let output = daemon.command().stdout(Stdio::piped()).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        daemon.log()
    }

    /// All that a daemon needs, not started.
    fn prepared(settings: Settings) -> Self {
        let home = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
        fs::create_dir(home.path().join("workspace")).unwrap();
        fs::create_dir(home.path().join("policies")).unwrap();
        let more = &settings.commands;
        let tools = format!("{}{TEST_COMMANDS}{more}", agentd::policy_files::DEFAULT_TOOLS);
        let tools = tools.replace(LEAST, &least(std::env::var("AGENTD_IT_ISOLATION").ok()));
        let tools = with_hosted(&tools, &settings.hosted);
        fs::write(home.path().join("policies/tools.yaml"), tools).unwrap();
        let paths = settings.paths.as_deref().unwrap_or(agentd::policy_files::DEFAULT_PATHS);
        fs::write(home.path().join("policies/paths.yaml"), paths).unwrap();
        if let Some(network) = &settings.network {
            fs::write(home.path().join("policies/network.yaml"), network).unwrap();
        }
        fs::write(home.path().join("agentd.yaml"), &settings.configuration).unwrap();
        let tools = home.path().join("tools");
        fs::create_dir(&tools).unwrap();
        for (name, content) in &settings.tools {
            put_tool(&tools, name, content);
        }
        Self { child: None, home, settings, root: None, tcp: String::new(), http: String::new() }
    }

    /// A daemon in the test's own internet.
    pub(crate) fn start_within(settings: Settings, internet: &Internet) -> Self {
        let mut daemon = Self::prepared(settings);
        let command = daemon.command();
        daemon = internet.inside(move || {
            let mut daemon = daemon;
            assert!(daemon.boot_as(command), "not ready\n{}", daemon.log());
            daemon
        });
        daemon
    }

    /// Starts the program, and waits for the line that says it is ready.
    fn boot(&mut self) {
        let mut child = self.command().stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.child = Some(child);
        assert!(line.starts_with("agentd is ready"), "not ready: {line:?}\n{}", self.log());
        self.learn_addresses(&line);
    }

    /// Starts the daemon by another command. Tells whether it came up.
    pub(crate) fn boot_as(&mut self, mut command: Command) -> bool {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.child = Some(child);
        let ready = line.starts_with("agentd is ready");
        if ready {
            self.learn_addresses(&line);
        }
        ready
    }

    /// Out of the line that says that it is ready.
    fn learn_addresses(&mut self, line: &str) {
        let address =
            |place: usize| format!("http://{}", line.trim().split(' ').nth(place).unwrap());
        (self.tcp, self.http) = (address(4), address(8));
    }

    /// Starts the daemon with these variables, by which it may die before it is ready. Tells whether it came up.
    pub(crate) fn boot_dying(&mut self, variables: &[(&str, String)]) -> bool {
        if let Some(mut child) = self.child.take() {
            // Gone, or going.
            let _ = child.kill();
            child.wait().unwrap();
        }
        let mut command = self.command();
        command.envs(variables.iter().map(|(name, value)| (name, value))).stdout(Stdio::piped());
        self.boot_as(command)
    }

    /// Whether the daemon has ended by itself.
    pub(crate) fn has_died(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// The command that starts this daemon.
    pub(crate) fn command(&self) -> Command {
        let home = self.home.path();
        let log = File::options().create(true).append(true).open(home.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentd"));
        command
            .arg("serve")
            .arg("--config")
            .arg(home.join("agentd.yaml"))
            .arg("--state-dir")
            .arg(self.state())
            .arg("--workspace-root")
            .arg(self.root.as_deref().unwrap_or(home))
            .arg("--policy-dir")
            .arg(home.join("policies"))
            .arg("--tools-dir")
            .arg(home.join("tools"))
            .args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
            .args(["--base-url", &self.settings.base_url])
            .env_clear()
            .env("HOME", home)
            .envs(self.settings.environment.clone())
            .stdin(Stdio::null())
            .stderr(log);
        command
    }

    /// Has the policy want at least this tier from now on.
    pub(crate) async fn want(&self, tier: &str) {
        let path = self.home().join("policies/tools.yaml");
        let rules = fs::read_to_string(&path).unwrap();
        let line = rules.lines().find(|line| line.starts_with("isolation: ")).unwrap();
        fs::write(&path, rules.replace(line, &least(Some(tier.into())))).unwrap();
        let reloaded = self.agentctl(&["policy", "reload"]).await;
        assert!(reloaded.status.success(), "{reloaded:?}");
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.state().join("agentd.db")
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.home.path().join("workspace")
    }

    /// Writes a file of the workspace.
    pub(crate) fn put(&self, name: &str, content: &str) {
        let path = self.workspace().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Writes a file of the directory of tools.
    pub(crate) fn put_tool(&self, name: &str, content: &str) {
        put_tool(&self.home().join("tools"), name, content);
    }

    /// What the daemon's first look at its backend found, once it has looked.
    pub(crate) async fn first_look(&self) -> Value {
        let found = || self.entries_of_the_daemon("capability_probe").into_iter().next();
        wait_until("the first look", || found().is_some()).await;
        found().unwrap()
    }

    /// Payloads of the entries of that kind, oldest first, as they lie in the database.
    pub(crate) fn entries_of_the_daemon(&self, kind: &str) -> Vec<Value> {
        let database = rusqlite::Connection::open(self.database()).unwrap();
        let sql = "SELECT view FROM entries WHERE kind = ?1 ORDER BY position";
        let mut statement = database.prepare(sql).unwrap();
        let rows = statement.query_map([kind], |row| row.get::<_, String>(0)).unwrap();
        rows.map(|row| serde_json::from_str(&row.unwrap()).unwrap()).collect()
    }

    /// Reads a file of the workspace.
    pub(crate) fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.workspace().join(name)).ok()
    }

    /// What the daemon logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.as_ref().unwrap().id()).unwrap()).unwrap()
    }

    pub(crate) fn socket(&self) -> String {
        format!("unix:{}", self.state().join("agentd.sock").display())
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&Address { uri: self.socket(), token_file: None }).await.unwrap()
    }

    /// Kills the daemon with SIGKILL, as a power cut would.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts it again on the same state directory.
    pub(crate) fn restart(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        self.boot();
    }

    /// Stops the daemon with SIGTERM. Gives its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.child.take().unwrap().wait().unwrap().code()
    }

    /// Submits a run in the workspace.
    pub(crate) async fn submit(&self, task: &str) -> v1::Run {
        self.create(self.request(task)).await.unwrap().run.unwrap()
    }

    /// A request for a run in the workspace, of one agent alone: what tests are about, unless they are about several.
    pub(crate) fn request(&self, task: &str) -> v1::CreateRunRequest {
        v1::CreateRunRequest {
            task: task.into(),
            agent: "executor".into(),
            workspace: self.workspace().display().to_string(),
            ..Default::default()
        }
    }

    pub(crate) async fn create(
        &self,
        request: v1::CreateRunRequest,
    ) -> Result<v1::CreateRunResponse, tonic::Status> {
        Ok(self.client().await.runs().create_run(request).await?.into_inner())
    }

    /// The run once it has ended or stands still.
    pub(crate) async fn wait(&self, id: &str) -> v1::Run {
        let timeout = Some(PATIENCE.try_into().unwrap());
        let request = v1::WaitRunRequest { id: id.into(), timeout };
        let answer = self.client().await.runs().wait_run(request).await.unwrap().into_inner();
        assert!(!answer.timed_out, "the run did not end: {answer:?}\n{}", self.log());
        answer.run.unwrap()
    }

    /// The run's journal as it is now.
    pub(crate) async fn journal(&self, id: &str) -> Vec<v1::JournalEntry> {
        let request =
            v1::StreamRunEventsRequest { id: id.into(), after_sequence: 0, follow: false };
        let mut stream =
            self.client().await.runs().stream_run_events(request).await.unwrap().into_inner();
        let mut entries = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            if let Some(Event::Entry(entry)) = message.event {
                entries.push(entry);
            }
        }
        entries
    }

    /// Waits until the run's journal has an entry of this kind that fits.
    pub(crate) async fn wait_for_entry(&self, id: &str, kind: &str) -> v1::JournalEntry {
        let request = v1::StreamRunEventsRequest { id: id.into(), after_sequence: 0, follow: true };
        let mut stream =
            self.client().await.runs().stream_run_events(request).await.unwrap().into_inner();
        let found = async {
            while let Some(message) = stream.message().await.unwrap() {
                match message.event {
                    Some(Event::Entry(entry)) if entry.kind == kind => return entry,
                    _ => {}
                }
            }
            panic!("the run ended without a {kind} entry")
        };
        tokio::time::timeout(PATIENCE, found).await.expect("no such entry in time")
    }

    /// Submits a run, waits for its end, and gives its story.
    pub(crate) async fn carry_out(&self, task: &str) -> Story {
        let run = self.submit(task).await;
        self.story(&run.id).await
    }

    /// The story of a run that ends or stands still.
    pub(crate) async fn story(&self, id: &str) -> Story {
        let run = self.wait(id).await;
        Story { run, entries: self.journal(id).await }
    }

    pub(crate) async fn audit(&self) -> v1::VerifyAuditResponse {
        let request = v1::VerifyAuditRequest { deep: true, ..Default::default() };
        self.client().await.audit().verify_audit(request).await.unwrap().into_inner()
    }
}

/// The built-in `tools.yaml`, or one made of it, with these rules about hosted tools.
pub(crate) fn with_hosted(tools: &str, rules: &str) -> String {
    const NONE: &str = "\nhosted_tools: []\n";
    assert!(tools.contains(NONE), "there are others already");
    match rules {
        "" => tools.to_owned(),
        rules => tools.replace(NONE, &format!("\nhosted_tools:\n{rules}")),
    }
}

/// Whatever is no declaration is a script.
fn put_tool(directory: &Path, name: &str, content: &str) {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    if !name.ends_with(".yaml") {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            self.sweep();
        }
    }
}

/// A run that has ended, with its journal.
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) run: v1::Run,
    pub(crate) entries: Vec<v1::JournalEntry>,
}

impl Story {
    pub(crate) fn state(&self) -> RunState {
        self.run.state()
    }

    pub(crate) fn kinds(&self) -> Vec<&str> {
        self.entries.iter().map(|entry| entry.kind.as_str()).collect()
    }

    /// Payloads of one kind, in order.
    pub(crate) fn payloads(&self, kind: &str) -> Vec<Value> {
        let found = self.entries.iter().filter(|entry| entry.kind == kind);
        found.map(|entry| serde_json::from_str(&entry.payload).unwrap()).collect()
    }

    /// What the model heard of each call, in the order the outputs were written: outcome and output.
    pub(crate) fn outputs(&self) -> Vec<(String, Value)> {
        let heard = |payload: Value| {
            let output = serde_json::from_str(payload["output"].as_str().unwrap()).unwrap();
            (payload["outcome"].as_str().unwrap().to_owned(), output)
        };
        self.payloads("tool_output").into_iter().map(heard).collect()
    }

    /// Rules of the decisions, in order, each with its decision.
    pub(crate) fn decisions(&self) -> Vec<String> {
        let said = |payload: Value| {
            let text = |key: &str| payload[key].as_str().unwrap().to_owned();
            format!("{} {}", text("decision"), text("rule"))
        };
        self.payloads("decision").into_iter().map(said).collect()
    }

    /// Each call left one intent, at least one decision and one output, tied by call and call id.
    pub(crate) fn assert_calls_are_tied(&self) {
        let keys = |kind: &str| -> Vec<(String, String)> {
            let key = |payload: Value| {
                let text = |key: &str| payload[key].as_str().unwrap().to_owned();
                (text("call"), text("call_id"))
            };
            let mut keys: Vec<_> = self.payloads(kind).into_iter().map(key).collect();
            keys.sort();
            keys
        };
        let mut decided = keys("decision");
        decided.dedup();
        assert_eq!(keys("tool_call"), keys("tool_output"), "intents and outputs");
        assert_eq!(keys("tool_call"), decided, "intents and decisions");
    }
}

/// How the scripted backend behaves: like a server of the kind that AGENTD_IT_SERVER names, or of none in particular.
pub(crate) fn manner() -> Manner {
    let kind = match std::env::var("AGENTD_IT_SERVER") {
        Ok(name) => Kind::parse(&name).unwrap_or_else(|| panic!("there is no server {name}")),
        Err(_) => Kind::Plain,
    };
    Manner { memory: Memory::Requests, kind, ..Manner::default() }
}

/// An answer that says nothing, by which a run fails whichever kind of server gives it: not all say that they cut one off.
pub(crate) fn silence() -> Reply {
    Reply::Answer(Turn::default())
}

/// A scripted backend that remembers its requests, and the tasks that keep it alive.
pub(crate) struct Backend {
    pub(crate) server: ScriptedBackend,
    _tasks: Tasks,
}

impl Backend {
    pub(crate) async fn start(brain: impl Brain) -> Self {
        Self::start_as(brain, manner()).await
    }

    /// A backend that behaves so.
    pub(crate) async fn start_as(brain: impl Brain, manner: Manner) -> Self {
        let tasks = Tasks::default();
        let server = ScriptedBackend::start(&tasks, brain, manner).await.unwrap();
        Self { server, _tasks: tasks }
    }

    /// A backend on the loopback of the test's own internet, where its daemon is.
    pub(crate) fn start_within(internet: &Internet, brain: impl Brain) -> Self {
        let tasks = Tasks::default();
        let listener = internet.inside(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let manner = manner();
        let server = ScriptedBackend::serve(&tasks, listener, brain, manner).unwrap();
        Self { server, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// Fails if a request ever broke the pairing of calls and outputs.
    pub(crate) fn assert_paired(&self) {
        assert_eq!(self.server.faults(), Vec::<String>::new());
    }
}

/// Waits until `holds`, looking again and again.
pub(crate) async fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("it never came to this: {what}"));
}

/// The same numbers in every run of a test.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// By the seed that AGENTD_SEED names, or the test's own; shown, so that a failure can be had again.
    #[expect(clippy::print_stdout, reason = "it is what a failure is told with")]
    pub(crate) fn of_seed(own: u64) -> Self {
        let wanted = std::env::var("AGENTD_SEED").ok();
        let seed = wanted.map_or(own, |wanted| wanted.parse().expect("AGENTD_SEED is a number"));
        println!("seed {seed}");
        Self(seed)
    }

    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// Says that something could not be checked on this machine, and why: never silently.
pub(crate) fn not_checked(what: &str) {
    // Written directly: what a test that passes prints is not shown.
    let line = format!("NOT CHECKED: {what}\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}
