//! The daemon that is measured: the real program, as a process on a directory of its own. Never looks at
//! a clock: see the modules that do.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use agentd::{
    client::{Address, Client},
    proto::v1,
};

/// Longest that a run is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// An empty directory below `AGENTD_BENCH_DIR`, else below the target directory: on the disk that is to be
/// measured, not on a memory file system.
pub(crate) fn directory() -> tempfile::TempDir {
    let base = std::env::var_os("AGENTD_BENCH_DIR").map(PathBuf::from);
    let base = base.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned());
    fs::create_dir_all(&base).unwrap();
    tempfile::Builder::new().prefix("b").tempdir_in(base).unwrap()
}

/// Killed and removed when dropped.
pub(crate) struct Daemon {
    child: Child,
    home: tempfile::TempDir,
    base_url: String,
}

fn boot(home: &Path, base_url: &str) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_agentd"))
        .arg("serve")
        .arg("--config")
        .arg(home.join("agentd.yaml"))
        .arg("--state-dir")
        .arg(home.join("state"))
        .arg("--workspace-root")
        .arg(home)
        .args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--log", "warn"])
        .args(["--base-url", base_url, "--model", "m"])
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("agentd is ready"), "{line:?}");
    child
}

impl Daemon {
    /// A daemon on an empty store, ready.
    pub(crate) fn start(base_url: &str) -> Self {
        let home = directory();
        let configuration = "limits: {running_runs: 2000}\n";
        fs::write(home.path().join("agentd.yaml"), configuration).unwrap();
        let child = boot(home.path(), base_url);
        Self { child, home, base_url: base_url.to_owned() }
    }

    /// The next daemon on the same store, ready.
    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = boot(self.home.path(), &self.base_url);
    }

    /// Killed, and what it leaves.
    pub(crate) fn stopped(mut self) -> tempfile::TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.home, directory())
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn address(&self) -> Address {
        let uri = format!("unix:{}", self.home.path().join("state/agentd.sock").display());
        Address { uri, token_file: None }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.address()).await.unwrap()
    }

    /// A new workspace of this number.
    pub(crate) fn workspace(&self, n: usize) -> String {
        let path = self.home.path().join(format!("w{n}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("in.txt"), "a line to read\n").unwrap();
        path.into_os_string().into_string().unwrap()
    }

    /// User and system time so far.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks as f64 / 100.0
    }

    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Submits a run, with a budget that no benchmark uses up.
pub(crate) async fn submit(client: &Client, workspace: String) -> v1::Run {
    let budget = v1::Budget {
        max_turns: 1_000_000,
        max_tool_calls: 1_000_000,
        max_tokens: u64::MAX >> 1,
        ..Default::default()
    };
    let request = v1::CreateRunRequest {
        task: "write".into(),
        agent: "executor".into(),
        workspace,
        budget: Some(budget),
        ..Default::default()
    };
    client.runs().create_run(request).await.unwrap().into_inner().run.unwrap()
}

/// Submits a run and waits until it has taken all of its steps.
pub(crate) async fn carry_out(client: Client, workspace: String, steps: usize) {
    let id = submit(&client, workspace).await.id;
    let timeout = Some(PATIENCE.try_into().unwrap());
    let request = v1::WaitRunRequest { id, timeout };
    let run = client.runs().wait_run(request).await.unwrap().into_inner().run.unwrap();
    assert_eq!(run.state(), v1::RunState::Succeeded, "{run:?}");
    assert_eq!(run.usage.unwrap().tool_calls as usize, steps);
}
