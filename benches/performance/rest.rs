//! Memory, cold start, and how long a reader waits while others write.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use agentd::{client::Client, proto::v1};
use futures_util::future::join_all;

use crate::{
    backend::{self, Manner},
    daemon::{Daemon, submit},
    disk::Disk,
    figures::{median, milliseconds, quantile},
};

const WAITING: usize = 1000;

/// KiB of each of so many runs that wait on a model, and of the daemon before them.
pub(crate) async fn waiting_kib(runs: usize) -> (f64, u64) {
    let daemon = Daemon::start(&backend::start(Manner::Hang).await);
    let client = daemon.client().await;
    let idle = daemon.resident_kib();
    for n in 0..runs {
        submit(&client, daemon.workspace(n)).await;
    }
    while any_queued(&client).await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ((daemon.resident_kib() - idle) as f64 / runs as f64, idle)
}

async fn any_queued(client: &Client) -> bool {
    let states = vec![v1::RunState::Queued.into()];
    let request = v1::ListRunsRequest { page_size: 1, states, ..Default::default() };
    !client.runs().list_runs(request).await.unwrap().into_inner().runs.is_empty()
}

pub(crate) async fn memory() {
    let (each, idle) = waiting_kib(WAITING).await;
    println!("## Memory\n");
    println!("| what | resident |");
    println!("|---|---|");
    println!("| idle daemon | {:.1} MiB |", idle as f64 / 1024.0);
    println!("| each of {WAITING} runs that wait on the model | {each:.1} KiB |\n");
}

pub(crate) fn cold_start() {
    const TIMES: usize = 21;
    let mut ready: Vec<f64> = Vec::new();
    let mut version: Vec<f64> = Vec::new();
    let mut fsync: Vec<f64> = Vec::new();
    for _ in 0..TIMES {
        let started = Instant::now();
        let daemon = Daemon::start("http://127.0.0.1:9/v1");
        ready.push(milliseconds(started.elapsed()));
        fsync.push(Disk::measure(daemon.home()).fsync);
        drop(daemon);
        let started = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentctl"));
        let status = command.arg("version").stdout(Stdio::null()).status().unwrap();
        assert!(status.success());
        version.push(milliseconds(started.elapsed()));
    }
    let (ready, version, fsync) = (median(&mut ready), median(&mut version), median(&mut fsync));
    println!("## Cold start\n");
    println!("| what | median of {TIMES} |");
    println!("|---|---|");
    println!("| agentd: empty store to ready | {ready:.1} ms (fsync p50 {fsync:.2} ms) |");
    println!("| agentctl version | {version:.1} ms |");
    println!("| ratio | {:.1} |\n", ready / version);
}

/// Milliseconds of so many GetRun calls, one after the other, a millisecond apart. By a thread of its own,
/// which waits behind nothing else of this process.
async fn reads(daemon: &Daemon, id: &str) -> Vec<f64> {
    const READS: usize = 2000;
    let (address, id) = (daemon.address(), id.to_owned());
    let read = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::connect(&address).await.unwrap();
            let mut times = Vec::with_capacity(READS);
            for _ in 0..READS {
                let started = Instant::now();
                client.runs().get_run(v1::GetRunRequest { id: id.clone() }).await.unwrap();
                times.push(milliseconds(started.elapsed()));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            times
        })
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

pub(crate) async fn reading() {
    const WRITERS: usize = 64;
    let daemon = Daemon::start(&backend::start(Manner::Steps(20)).await);
    let (client, writer) = (daemon.client().await, daemon.client().await);
    let read = submit(&client, daemon.workspace(0)).await.id;
    let mut idle = reads(&daemon, &read).await;
    let stop = Arc::new(AtomicBool::new(false));
    let places: Vec<String> = (1..=WRITERS).map(|n| daemon.workspace(n)).collect();
    // Each writer begins a new run when its last has ended.
    let writing = places.into_iter().map(|place| {
        let (writer, stop) = (writer.clone(), stop.clone());
        async move {
            let mut runs = 0;
            while !stop.load(Ordering::Relaxed) {
                crate::daemon::carry_out(writer.clone(), place.clone(), 20).await;
                runs += 1;
            }
            runs
        }
    });
    let writing = tokio::spawn(join_all(writing));
    let started = Instant::now();
    let mut busy = reads(&daemon, &read).await;
    stop.store(true, Ordering::Relaxed);
    let runs: usize = writing.await.unwrap().into_iter().sum();
    let rate = (runs * 20) as f64 / started.elapsed().as_secs_f64();
    println!("## GetRun while {WRITERS} runs write\n");
    println!("| daemon | p50 | p99 |");
    println!("|---|---|---|");
    let (mut row, mut last) = (String::new(), 0.0);
    for (name, times) in [("idle".to_owned(), &mut idle), (format!("{rate:.0} steps/s"), &mut busy)]
    {
        let p99 = quantile(times, 0.99);
        println!("| {name} | {:.2} ms | {p99:.2} ms |", median(times));
        row = format!("| ratio | | {:.1} |\n", p99 / last);
        last = p99;
    }
    println!("{row}");
}
