//! The spine's figures, as a table: durable steps a second, memory, cold start. Run it with
//! `cargo bench --locked --bench spine`. It measures the real daemon as a process; the model is the
//! scripted backend in this process, with no latency, and shares the machine with it.
//!
//! The state directories lie below `AGENTD_BENCH_DIR`, else below the target directory: on the disk that
//! is to be measured, not on a memory file system.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark measures time, prints, and ends where it cannot go on"
)]

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agentd::{
    client::{Address, Client},
    proto::v1,
    scripted::{Manner, Reply, ScriptedBackend, Seen, Turn},
    tasks::Tasks,
};
use futures_util::future::join_all;
use serde_json::json;

/// Steps of each run; a step is one model request, one answer, one small file written and recorded.
const STEPS: usize = 20;
const RUNS: [usize; 3] = [1, 64, 256];
const WAITING: usize = 1000;
const STARTS: usize = 11;

fn main() {
    // Cargo passes flags of its own to every benchmark.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    println!("## Durable steps\n");
    println!(
        "| runs | steps | steps/s | ms per step and run | daemon CPU s per 1,000 steps | fsync p50 before / after |"
    );
    println!("|---|---|---|---|---|---|");
    for runs in RUNS {
        let line = steps(runs).await;
        println!("{line}");
    }
    println!("\n## Memory\n");
    memory().await;
    println!("\n## Cold start\n");
    cold_start();
}

async fn steps(runs: usize) -> String {
    let tasks = Tasks::default();
    let backend = ScriptedBackend::start(&tasks, writer, Manner::default()).await.unwrap();
    let daemon = Daemon::start(&backend.url());
    let before = fsync_p50(daemon.home());
    let client = daemon.client().await;
    let workspaces: Vec<PathBuf> = (0..runs).map(|n| daemon.workspace(n)).collect();
    let cpu_before = daemon.cpu_seconds();
    let started = Instant::now();
    let one = |workspace: PathBuf| carry_out(client.clone(), workspace);
    join_all(workspaces.into_iter().map(one)).await;
    let wall = started.elapsed().as_secs_f64();
    let cpu = daemon.cpu_seconds() - cpu_before;
    let after = fsync_p50(daemon.home());
    tasks.stop(Duration::from_secs(1)).await;
    let steps = (runs * STEPS) as f64;
    format!(
        "| {runs} | {steps} | {:.0} | {:.2} | {:.2} | {before:.2} / {after:.2} ms |",
        steps / wall,
        wall * 1000.0 / STEPS as f64,
        cpu * 1000.0 / steps,
    )
}

fn writer(seen: &Seen) -> Reply {
    Reply::Answer(match seen.turn {
        turn if turn <= STEPS => Turn::call(
            "write_file",
            json!({"path": "out.txt", "content": format!("step {turn}\n")}),
        ),
        _ => Turn::say("done"),
    })
}

async fn carry_out(client: Client, workspace: PathBuf) {
    let request = v1::CreateRunRequest {
        task: "write".into(),
        workspace: workspace.display().to_string(),
        ..Default::default()
    };
    let run = client.runs().create_run(request).await.unwrap().into_inner().run.unwrap();
    let timeout = Some(Duration::from_secs(600).try_into().unwrap());
    let request = v1::WaitRunRequest { id: run.id, timeout };
    let run = client.runs().wait_run(request).await.unwrap().into_inner().run.unwrap();
    assert_eq!(run.state(), v1::RunState::Succeeded, "{run:?}");
    assert_eq!(run.usage.unwrap().tool_calls as usize, STEPS);
}

async fn memory() {
    let tasks = Tasks::default();
    let backend =
        ScriptedBackend::start(&tasks, |_: &Seen| Reply::Hang, Manner::default()).await.unwrap();
    let daemon = Daemon::start(&backend.url());
    let client = daemon.client().await;
    let idle = daemon.resident_kib();
    for n in 0..WAITING {
        let request = v1::CreateRunRequest {
            task: "wait".into(),
            workspace: daemon.workspace(n).display().to_string(),
            ..Default::default()
        };
        client.runs().create_run(request).await.unwrap();
    }
    loop {
        let request = v1::ListRunsRequest {
            page_size: 1,
            states: vec![v1::RunState::Queued.into()],
            ..Default::default()
        };
        if client.runs().list_runs(request).await.unwrap().into_inner().runs.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let waiting = daemon.resident_kib();
    println!("| what | resident |");
    println!("|---|---|");
    println!("| idle daemon | {:.1} MiB |", idle as f64 / 1024.0);
    println!("| with {WAITING} runs waiting on the model | {:.1} MiB |", waiting as f64 / 1024.0);
    println!("| each waiting run | {:.1} KiB |", (waiting - idle) as f64 / WAITING as f64);
    drop(daemon);
    tasks.stop(Duration::from_secs(1)).await;
}

fn cold_start() {
    let mut ready: Vec<f64> = Vec::new();
    let mut version: Vec<f64> = Vec::new();
    for _ in 0..STARTS {
        let started = Instant::now();
        let daemon = Daemon::start("http://127.0.0.1:9/v1");
        ready.push(started.elapsed().as_secs_f64() * 1000.0);
        drop(daemon);
        let started = Instant::now();
        let status = Command::new(env!("CARGO_BIN_EXE_agentctl"))
            .arg("version")
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        version.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    let (ready, version) = (median(&mut ready), median(&mut version));
    println!("| what | median of {STARTS} |");
    println!("|---|---|");
    println!("| agentd: empty store to ready | {ready:.1} ms |");
    println!("| agentctl version | {version:.1} ms |");
    println!("| ratio | {:.1} |", ready / version);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Median of 100 syncs of 4 KiB appended to a file, in milliseconds.
fn fsync_p50(directory: &Path) -> f64 {
    let path = directory.join("fsync-probe");
    let mut file = File::create(&path).unwrap();
    let mut times: Vec<f64> = (0..100)
        .map(|_| {
            file.write_all(&[7; 4096]).unwrap();
            let started = Instant::now();
            file.sync_data().unwrap();
            started.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    fs::remove_file(path).unwrap();
    median(&mut times)
}

/// A daemon on a directory of its own; killed and removed when dropped.
struct Daemon {
    child: Child,
    home: tempfile::TempDir,
}

impl Daemon {
    fn start(base_url: &str) -> Self {
        let base = std::env::var_os("AGENTD_BENCH_DIR").map(PathBuf::from);
        let base = base.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned());
        fs::create_dir_all(&base).unwrap();
        let home = tempfile::Builder::new().prefix("b").tempdir_in(base).unwrap();
        fs::write(home.path().join("agentd.yaml"), "limits: {running_runs: 2000}\n").unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_agentd"))
            .arg("serve")
            .arg("--config")
            .arg(home.path().join("agentd.yaml"))
            .arg("--state-dir")
            .arg(home.path().join("state"))
            .arg("--workspace-root")
            .arg(home.path())
            .args(["--listen", "127.0.0.1:0", "--log", "warn", "--base-url", base_url])
            .env_clear()
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("agentd is ready"), "{line:?}");
        Self { child, home }
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    async fn client(&self) -> Client {
        let uri = format!("unix:{}", self.home.path().join("state/agentd.sock").display());
        Client::connect(&Address { uri, token_file: None }).await.unwrap()
    }

    fn workspace(&self, n: usize) -> PathBuf {
        let path = self.home.path().join(format!("w{n}"));
        fs::create_dir(&path).unwrap();
        path
    }

    /// User and system time so far.
    fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks as f64 / 100.0
    }

    fn resident_kib(&self) -> u64 {
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
