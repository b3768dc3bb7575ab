//! What lies on disk, read again: a long run opened from its checkpoint, many runs after a crash, and what long texts take.

use std::{
    fs,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use agentd::{client::Client, proto::v1};

use crate::{
    backend::{self, Manner},
    daemon::{Daemon, carry_out, submit},
    figures::{median, milliseconds},
};

/// Milliseconds that it takes to be told that an ended run cannot be paused, which is known once it is open.
async fn opened(client: &Client, id: &str) -> f64 {
    const TIMES: usize = 101;
    let mut times = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let request = v1::PauseRunRequest { id: id.to_owned(), ..Default::default() };
        let started = Instant::now();
        let refused = client.runs().pause_run(request).await;
        times.push(milliseconds(started.elapsed()));
        assert!(refused.is_err());
    }
    median(&mut times)
}

pub(crate) async fn opening() {
    println!("## Opening a run\n");
    println!("An ended run is asked to pause, and refuses once it is open; medians of 101.\n");
    println!("| steps | entries | opened in | against the first |");
    println!("|---|---|---|---|");
    let mut first = None;
    for steps in [20, 200, 2000] {
        let daemon = Daemon::start(&backend::start(Manner::Steps(steps)).await);
        let client = daemon.client().await;
        carry_out(client.clone(), daemon.workspace(0), steps).await;
        let request = v1::ListRunsRequest { page_size: 1, ..Default::default() };
        let run = client.runs().list_runs(request).await.unwrap().into_inner().runs.remove(0);
        let ms = opened(&client, &run.id).await;
        let ratio = ms / *first.get_or_insert(ms);
        println!("| {steps} | {} | {ms:.2} ms | {ratio:.1} |", run.head_sequence);
    }
    println!();
}

/// Microseconds since 1970 of each run that was taken over.
async fn taken_over(client: &Client) -> Vec<i64> {
    let (mut times, mut page_token) = (Vec::new(), String::new());
    loop {
        let filter = v1::AuditFilter { kinds: vec!["run_recovered".into()], ..Default::default() };
        let request =
            v1::ListAuditEntriesRequest { filter: Some(filter), page_token, ..Default::default() };
        let page = client.audit().list_audit_entries(request).await.unwrap().into_inner();
        times.extend(page.entries.iter().filter_map(|entry| {
            entry.time.map(|time| time.seconds * 1_000_000 + i64::from(time.nanos) / 1000)
        }));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return times;
        }
    }
}

pub(crate) async fn recovery() {
    const RUNS: usize = 1000;
    let mut daemon = Daemon::start(&backend::start(Manner::Hang).await);
    let client = daemon.client().await;
    for n in 0..RUNS {
        submit(&client, daemon.workspace(n)).await;
    }
    let asked = async {
        loop {
            let states = vec![v1::RunState::Queued.into()];
            let request = v1::ListRunsRequest { page_size: 1, states, ..Default::default() };
            if client.runs().list_runs(request).await.unwrap().into_inner().runs.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    asked.await;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let started = Instant::now();
    daemon.kill_and_restart();
    let ready = milliseconds(started.elapsed());
    let client = daemon.client().await;
    let times = loop {
        let times = taken_over(&client).await;
        if times.len() == RUNS {
            break times;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let after = |time: i64| (time - since_epoch.as_micros() as i64) as f64 / 1000.0;
    let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    println!("## Recovery\n");
    println!("{RUNS} runs that wait on the model; SIGKILL, and the next daemon at once.\n");
    println!("| after the start | |");
    println!("|---|---|");
    println!("| it serves callers | {ready:.0} ms |");
    println!("| the first run is taken over | {:.0} ms |", after(*first));
    println!("| the last run is taken over | {:.0} ms |\n", after(*last));
}

/// Bytes of the store, once its log is empty.
fn store_bytes(daemon: Daemon) -> u64 {
    let home = daemon.stopped();
    let path = home.path().join("state/agentd.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    fs::metadata(path).unwrap().len()
}

/// Milliseconds of a search that finds nothing, through all entries.
async fn searched(client: &Client) -> f64 {
    const TIMES: usize = 21;
    let mut times = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let filter = v1::AuditFilter { tool: "no_such_tool".into(), ..Default::default() };
        let request = v1::ListAuditEntriesRequest { filter: Some(filter), ..Default::default() };
        let started = Instant::now();
        let found = client.audit().list_audit_entries(request).await.unwrap();
        times.push(milliseconds(started.elapsed()));
        assert!(found.get_ref().entries.is_empty());
    }
    median(&mut times)
}

pub(crate) async fn texts() {
    const RUNS: usize = 16;
    const STEPS: usize = 20;
    println!("## Long texts\n");
    println!("{RUNS} runs of {STEPS} steps, each of which reads the same file.\n");
    println!("| file | steps/s | bytes of the store a step | search through all entries |");
    println!("|---|---|---|---|");
    for kib in [1, 7, 9, 16, 64, 256] {
        let daemon = Daemon::start(&backend::start(Manner::Reads(STEPS)).await);
        let client = daemon.client().await;
        let line = "a line of sixty-four bytes that is read again and again and so on\n";
        let workspaces: Vec<String> = (0..RUNS).map(|n| daemon.workspace(n)).collect();
        for workspace in &workspaces {
            fs::write(format!("{workspace}/in.txt"), line.repeat(kib * 16)).unwrap();
        }
        let runs = workspaces.into_iter().map(|place| carry_out(client.clone(), place, STEPS));
        let started = Instant::now();
        futures_util::future::join_all(runs).await;
        let all = (RUNS * STEPS) as f64;
        let rate = all / started.elapsed().as_secs_f64();
        let search = searched(&client).await;
        let bytes = store_bytes(daemon) as f64 / all;
        println!("| {kib} KiB | {rate:.0} | {bytes:.0} | {search:.2} ms |");
    }
    println!();
}
