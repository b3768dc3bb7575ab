//! Durable steps: how many a second, what one costs, and whether a long history makes it dearer. A step is
//! one request to the model, one answer, one tool call, and all of it journalled. What a tool call writes is
//! a small file: written, synced, renamed, its directory synced. What one reads is a small file, too.

use std::time::Instant;

use agentd::{client::Client, proto::v1};
use futures_util::future::join_all;

use crate::{
    backend::{self, Manner},
    daemon::{Daemon, carry_out},
    disk::Disk,
    figures::median,
};

/// What so many runs of so many steps cost.
pub(crate) struct Cost {
    pub(crate) steps_a_second: f64,
    /// Of each run: wall time.
    pub(crate) ms_a_step: f64,
    /// Of the daemon, user and system.
    pub(crate) cpu_seconds_a_thousand: f64,
    /// Of the store, and what was written in them.
    commits: u64,
    entries: u64,
    before: Disk,
    after: Disk,
}

/// Carries out runs side by side on a new daemon.
pub(crate) async fn measure(runs: usize, manner: Manner) -> Cost {
    let steps = manner.steps();
    let daemon = Daemon::start(&backend::start(manner).await);
    let client = daemon.client().await;
    let workspaces: Vec<String> = (0..runs).map(|n| daemon.workspace(n)).collect();
    let before = Disk::measure(daemon.home());
    let (written, cpu) = (written(&client).await, daemon.cpu_seconds());
    let started = Instant::now();
    join_all(workspaces.into_iter().map(|place| carry_out(client.clone(), place, steps))).await;
    let wall = started.elapsed().as_secs_f64();
    let cpu = daemon.cpu_seconds() - cpu;
    let (entries, commits) = self::written(&client).await;
    let all = (runs * steps) as f64;
    Cost {
        steps_a_second: all / wall,
        ms_a_step: wall * 1000.0 / steps as f64,
        cpu_seconds_a_thousand: cpu * 1000.0 / all,
        entries: entries - written.0,
        commits: commits - written.1,
        before,
        after: Disk::measure(daemon.home()),
    }
}

/// Entries of the journal, and commits so far.
async fn written(client: &Client) -> (u64, u64) {
    let info = client.admin().get_server_info(v1::GetServerInfoRequest {}).await.unwrap();
    (info.get_ref().entries, info.get_ref().commits)
}

pub(crate) async fn throughput() {
    println!("## Durable steps\n");
    println!(
        "| runs | steps each | tool | steps/s | ms per step and run | daemon CPU s per 1,000 steps | entries a commit | fsync p50 before / after |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let writes = [1, 64, 256, 1000].map(|runs| (runs, Manner::Steps(20)));
    let reads = [64, 1000].map(|runs| (runs, Manner::Reads(20)));
    for (runs, manner) in writes.into_iter().chain(reads) {
        let cost = measure(runs, manner).await;
        println!(
            "| {runs} | 20 | {} | {:.0} | {:.2} | {:.2} | {:.1} | {:.2} / {:.2} ms |",
            manner.tool(),
            cost.steps_a_second,
            cost.ms_a_step,
            cost.cpu_seconds_a_thousand,
            cost.entries as f64 / cost.commits as f64,
            cost.before.fsync,
            cost.after.fsync,
        );
    }
    println!();
}

pub(crate) async fn alone() {
    const TIMES: usize = 9;
    const STEPS: usize = 20;
    println!("## One run alone\n");
    println!("A run of {STEPS} steps, {TIMES} times, each on a new daemon; medians.\n");
    let mut costs = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        costs.push(measure(1, Manner::Steps(STEPS)).await);
    }
    let of = |what: &dyn Fn(&Cost) -> f64| median(&mut costs.iter().map(what).collect::<Vec<_>>());
    // The run's creation and its end are commits too, but no steps.
    let commits = of(&|cost| (cost.commits as f64 - 2.0) / STEPS as f64);
    let commit = of(&|cost| (cost.before.commit + cost.after.commit) / 2.0);
    let fsync = of(&|cost| (cost.before.fsync + cost.after.fsync) / 2.0);
    let step = of(&|cost| cost.ms_a_step);
    println!("| what | median |");
    println!("|---|---|");
    println!("| a step | {step:.2} ms |");
    println!("| commits a step, by the store's own log | {commits:.1} |");
    println!("| a commit of one row alone | {commit:.2} ms (fsync p50 {fsync:.2} ms) |");
    println!("| a step beyond its commits | {:.2} ms |", step - commits * commit);
    println!("| of that, the file and its directory synced | {:.2} ms |\n", 2.0 * fsync);
}

pub(crate) async fn history() {
    println!("## A long history\n");
    println!(
        "| runs | steps each | ms per step and run | against 20 | daemon CPU s per 1,000 steps | against 20 | fsync p50 before / after |"
    );
    println!("|---|---|---|---|---|---|---|");
    for runs in [1, 64] {
        let mut short: Option<(f64, f64)> = None;
        let lengths: &[usize] = if runs == 1 { &[20, 80, 200, 1000] } else { &[20, 80, 200] };
        for &steps in lengths {
            let cost = measure(runs, Manner::Steps(steps)).await;
            let (ms, cpu) = *short.get_or_insert((cost.ms_a_step, cost.cpu_seconds_a_thousand));
            println!(
                "| {runs} | {steps} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} / {:.2} ms |",
                cost.ms_a_step,
                cost.ms_a_step / ms,
                cost.cpu_seconds_a_thousand,
                cost.cpu_seconds_a_thousand / cpu,
                cost.before.fsync,
                cost.after.fsync,
            );
        }
    }
    println!();
}
