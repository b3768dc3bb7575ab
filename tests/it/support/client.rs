//! The other end of a test's daemon: calls over gRPC, `agentctl` as a process, and what is left of a
//! daemon's programs.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use agentd::{
    client::{Address, Client},
    proto::v1,
    scripted::{Brain, Manner},
    tasks,
};
use rustix::process::{Signal, kill_process};
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{Backend, PATIENCE, TestDaemon, processes::cpu_ticks, wait_until};

impl TestDaemon {
    /// A client over TCP, with the token of this file.
    pub(crate) async fn tcp_client(&self, token_file: Option<PathBuf>) -> Client {
        Client::connect(&Address { uri: self.tcp.clone(), token_file }).await.unwrap()
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.state().join("token")
    }

    /// The run as it stands.
    pub(crate) async fn get(&self, id: &str) -> v1::Run {
        let request = v1::GetRunRequest { id: id.into() };
        self.client().await.runs().get_run(request).await.unwrap().into_inner().run.unwrap()
    }

    /// All runs, at most 500, newest first.
    pub(crate) async fn runs(&self) -> Vec<v1::Run> {
        let request = v1::ListRunsRequest { page_size: 500, ..Default::default() };
        self.client().await.runs().list_runs(request).await.unwrap().into_inner().runs
    }

    /// Asks a run to stop.
    pub(crate) async fn cancel(&self, id: &str) -> v1::Run {
        let request = v1::CancelRunRequest { id: id.into(), why: "the test wants it".into() };
        self.client().await.runs().cancel_run(request).await.unwrap().into_inner().run.unwrap()
    }

    /// Waits until a file of the workspace is there and not empty. Gives it.
    pub(crate) async fn wait_for_file(&self, name: &str) -> String {
        let content = || self.read(name).filter(|content| !content.is_empty());
        wait_until(name, || content().is_some()).await;
        content().unwrap()
    }

    /// Tells the daemon to stop. See [`Self::exit_code`].
    pub(crate) fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
    }

    /// The exit code of a daemon that was told to stop, while the test's own tasks go on.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let child = self.child.take().unwrap();
        tasks::blocking(move || exited(child)).await.unwrap()
    }

    /// Runs `agentctl` against this daemon's socket.
    pub(crate) async fn agentctl(&self, arguments: &[&str]) -> Output {
        let mut command = self.agentctl_command();
        command.args(arguments);
        tasks::blocking(move || command.output()).await.unwrap().unwrap()
    }

    /// `agentctl` with the address of this daemon's socket, in an environment of its own.
    pub(crate) fn agentctl_command(&self) -> Command {
        let mut command = agentctl(self.home());
        command.args(["--addr", &self.socket()]);
        command
    }

    /// What `agentd check` says with the flags of this daemon.
    pub(crate) fn check(&self) -> (Option<i32>, String) {
        let serve = self.command();
        let mut command = Command::new(serve.get_program());
        command.arg("check").args(serve.get_args().skip(1)).env_clear();
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    /// Waits until the daemon has nothing to do: its processor time stands still for a tenth of a second.
    pub(crate) async fn is_at_rest(&self) {
        const LOOKS: usize = 20;
        let mut looks = VecDeque::new();
        wait_until("the daemon is at rest", || {
            looks.push_back(cpu_ticks(self.pid()));
            if looks.len() > LOOKS {
                looks.pop_front();
            }
            looks.len() == LOOKS && looks.front() == looks.back()
        })
        .await;
    }

    /// Processes of the workspace: those that have it, or what is below it, as working directory.
    pub(crate) fn programs(&self) -> Vec<String> {
        let workspace = self.workspace().canonicalize().unwrap_or_else(|_| self.workspace());
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let here = |process: &PathBuf| {
            fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&workspace))
        };
        let command = |process: PathBuf| {
            fs::read_to_string(process.join("cmdline")).unwrap_or_default().replace('\0', " ")
        };
        processes.filter(here).map(command).collect()
    }

    /// Waits for the programs of a killed daemon to die, and removes their cgroups, as the next daemon
    /// on this directory would.
    pub(super) fn sweep(&self) {
        for _ in 0..1000 {
            if self.programs().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        remove_groups(Path::new("/sys/fs/cgroup"), &self.groups());
    }

    /// How the names of its cgroups begin.
    pub(crate) fn groups(&self) -> String {
        let state = self.state().canonicalize().unwrap_or_else(|_| self.state());
        let instance = Sha256::digest(state.as_os_str().as_encoded_bytes());
        let instance: String = instance[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("agentd-{instance}-")
    }
}

/// Removes the groups below `parent` whose names begin like this.
fn remove_groups(parent: &Path, prefix: &str) {
    for group in fs::read_dir(parent).into_iter().flatten().flatten() {
        match group.file_name().to_string_lossy().starts_with(prefix) {
            true => remove_group(&group.path()),
            false if group.file_type().is_ok_and(|kind| kind.is_dir()) => {
                remove_groups(&group.path(), prefix);
            }
            false => {}
        }
    }
}

/// Launchers that waited for a call die with their daemon, and take a moment for it.
fn remove_group(group: &Path) {
    for _ in 0..1000 {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {}
            Ok(()) | Err(_) => return,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Backend {
    /// A backend that speaks slowly: a pause between any two events of an answer.
    pub(crate) async fn start_slow(brain: impl Brain, pace: Duration) -> Self {
        Self::start_as(brain, Manner { pace, ..super::manner() }).await
    }

    /// Waits until so many requests have come.
    pub(crate) async fn wait_for_requests(&self, count: usize) {
        wait_until("requests to the model", || self.server.requests().len() >= count).await;
    }

    /// The first words of each request, oldest first.
    pub(crate) fn tasks(&self) -> Vec<String> {
        let task = |request: &serde_json::Value| {
            request["input"][0]["content"].as_str().unwrap_or_default().to_owned()
        };
        self.server.requests().iter().map(task).collect()
    }
}

/// `agentctl` in an environment of its own, at home in `home`.
pub(crate) fn agentctl(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentctl"));
    command.env_clear().env("HOME", home).current_dir(home).stdin(Stdio::null());
    command
}

/// Code and reason of a refusal. Fails if it carries no reason of ours.
pub(crate) fn refusal(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no reason: {status:?}"));
    assert_eq!(info.domain, "agentd", "{status:?}");
    (status.code(), info.reason)
}

/// Waits for a process that should end. Kills it, and fails, if it does not.
pub(crate) fn exited(mut child: Child) -> Option<i32> {
    let step = Duration::from_millis(5);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(step);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("the process did not end")
}
