//! What lies on disk, read again: a long run opened from its checkpoint, and many runs after a crash.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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
