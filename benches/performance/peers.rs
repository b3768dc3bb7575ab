//! The same work on other runtimes, each in a process of its own, against the same model server: the programs
//! of `benches/peers`. What they need is installed by `scripts/real-parts.sh peers-python peers-node`, and
//! found by AGENTD_REAL_PARTS; without it nothing is compared, and the table says so.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;

use crate::{
    backend::{self, Manner},
    rest::waiting_kib,
    steps::measure,
};

const RUNS: usize = 64;
const STEPS: usize = 20;
const MANY_STEPS: usize = 80;
const WAITING: usize = 200;

/// A program that does the work with another runtime.
struct Peer {
    interpreter: PathBuf,
    program: &'static str,
    parts: PathBuf,
}

/// What one does, as it tells it.
#[derive(Debug, Deserialize)]
struct Work {
    peer: String,
    version: String,
    keeps: String,
    steps: f64,
    wall_seconds: f64,
    cpu_seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Waiting {
    runs: f64,
    resident_kib_before: f64,
    resident_kib_after: f64,
}

/// One row of the table.
struct Row {
    name: String,
    keeps: String,
    steps_a_second: f64,
    cpu_seconds_a_thousand: f64,
    ms_alone: f64,
    ms_alone_with_many: f64,
    waiting_kib: f64,
}

pub(crate) async fn compare() {
    println!("## Other runtimes\n");
    let Some(parts) = std::env::var_os("AGENTD_REAL_PARTS").map(PathBuf::from) else {
        println!("NOT MEASURED: AGENTD_REAL_PARTS is not set; see scripts/real-parts.sh\n");
        return;
    };
    println!(
        "{RUNS} runs of {STEPS} steps side by side; one run alone of {STEPS} and of {MANY_STEPS}; {WAITING} runs \
         that wait on the model.\n"
    );
    println!(
        "| runtime | what it keeps | steps/s | CPU s per 1,000 steps | ms a step alone | the same, {MANY_STEPS} \
         steps | growth | KiB a waiting run |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    print(&agentd().await);
    let python = parts.join("peers-python/bin/python");
    for (interpreter, program) in [
        (PathBuf::from("node"), "openai_agents.mjs"),
        (python.clone(), "openai_agents.py"),
        (python, "langgraph_sqlite.py"),
    ] {
        let peer = Peer { interpreter, program, parts: parts.join("peers-node") };
        match peer.row().await {
            Ok(row) => print(&row),
            Err(why) => println!("| {program} | NOT MEASURED: {why} | | | | | | |"),
        }
    }
    println!();
}

fn print(row: &Row) {
    println!(
        "| {} | {} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} |",
        row.name,
        row.keeps,
        row.steps_a_second,
        row.cpu_seconds_a_thousand,
        row.ms_alone,
        row.ms_alone_with_many,
        row.ms_alone_with_many / row.ms_alone,
        row.waiting_kib,
    );
}

async fn agentd() -> Row {
    let many = measure(RUNS, Manner::Steps(STEPS)).await;
    Row {
        name: format!("agentd {}", env!("CARGO_PKG_VERSION")),
        keeps: "everything, synced before it is acted on".into(),
        steps_a_second: many.steps_a_second,
        cpu_seconds_a_thousand: many.cpu_seconds_a_thousand,
        ms_alone: measure(1, Manner::Steps(STEPS)).await.ms_a_step,
        ms_alone_with_many: measure(1, Manner::Steps(MANY_STEPS)).await.ms_a_step,
        waiting_kib: waiting_kib(WAITING).await.0,
    }
}

impl Peer {
    async fn row(&self) -> Result<Row, String> {
        let many: Work = self.carry_out(RUNS, Manner::Steps(STEPS)).await?;
        let alone: Work = self.carry_out(1, Manner::Steps(STEPS)).await?;
        let long: Work = self.carry_out(1, Manner::Steps(MANY_STEPS)).await?;
        let waiting: Waiting = self.carry_out(WAITING, Manner::Hang).await?;
        let ms = |work: &Work| work.wall_seconds * 1000.0 / work.steps;
        Ok(Row {
            name: format!("{} {}", many.peer, many.version),
            ms_alone: ms(&alone),
            ms_alone_with_many: ms(&long),
            steps_a_second: many.steps / many.wall_seconds,
            cpu_seconds_a_thousand: many.cpu_seconds * 1000.0 / many.steps,
            keeps: many.keeps,
            waiting_kib: (waiting.resident_kib_after - waiting.resident_kib_before) / waiting.runs,
        })
    }

    /// Has the program do the work, and gives its one line.
    async fn carry_out<T>(&self, runs: usize, manner: Manner) -> Result<T, String>
    where
        T: for<'de> Deserialize<'de> + Send + 'static,
    {
        let base_url = backend::start(manner).await;
        let mode = if manner.steps() == 0 { "waiting" } else { "steps" };
        let home = crate::daemon::directory();
        let mut command = Command::new(&self.interpreter);
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
        command
            .arg(programs.join(self.program))
            .args(["--base-url", &base_url, "--mode", mode])
            .args(["--runs", &runs.to_string(), "--steps", &manner.steps().to_string()])
            .arg("--directory")
            .arg(home.path())
            .env("AGENTD_PEERS_NODE", &self.parts)
            .stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
        let output = output.map_err(|error| format!("{}: {error}", self.interpreter.display()))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().replace(['\n', '|'], " ");
        if !output.status.success() {
            return Err(said);
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {said}"))
    }
}
