//! What many callers cost: submissions at a steady rate, and those who only listen.

use std::time::{Duration, Instant};

use agentd::{
    client::Client,
    proto::v1::{self, stream_run_events_response::Event},
};
use tokio::task::JoinSet;
use tonic::Streaming;

use crate::{
    backend::{self, Manner},
    daemon::{Daemon, submit},
    disk::Disk,
    figures::{median, milliseconds, quantile},
};

/// Calls a second.
const RATE: u32 = 500;
const CALLS: usize = 5000;
/// Event streams, each of a run of its own that waits on the model.
const STREAMS: usize = 1000;
/// Streams of one connection.
const OF_ONE: usize = 100;

/// Calls before those that are measured.
const WARM_UP: usize = 250;

/// Milliseconds of each of so many calls, which begin at a steady rate, whether or not those before have ended.
async fn paced<F: Future<Output = ()> + Send + 'static>(call: impl Fn() -> F) -> Vec<f64> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut calls = JoinSet::new();
    for n in 0..WARM_UP + CALLS {
        ticks.tick().await;
        let call = call();
        calls.spawn(async move {
            let started = Instant::now();
            call.await;
            (n >= WARM_UP).then(|| milliseconds(started.elapsed()))
        });
    }
    calls.join_all().await.into_iter().flatten().collect()
}

/// All runs want one workspace: the first waits on the model, and the others behind it.
pub(crate) async fn submitting() {
    let daemon = Daemon::start(&backend::start(Manner::Hang).await);
    let disk = Disk::measure(daemon.home());
    let (client, workspace) = (daemon.client().await, daemon.workspace(0));
    let mut empty = paced(|| {
        let client = client.clone();
        async move {
            let request = v1::GetServerInfoRequest {};
            client.admin().get_server_info(request).await.unwrap();
        }
    })
    .await;
    let mut creates = paced(|| {
        let (client, workspace) = (client.clone(), workspace.clone());
        async move { drop(submit(&client, workspace).await) }
    })
    .await;
    println!("## CreateRun at {RATE} a second\n");
    println!("| call | p50 | p99 |");
    println!("|---|---|---|");
    let (empty_99, create_99) = (quantile(&mut empty, 0.99), quantile(&mut creates, 0.99));
    println!("| GetServerInfo | {:.2} ms | {empty_99:.2} ms |", median(&mut empty));
    println!("| CreateRun | {:.2} ms | {create_99:.2} ms |", median(&mut creates));
    let more = create_99 - empty_99;
    println!(
        "| more, in commits of {:.2} ms, their p50 | | {:.1} |",
        disk.commit,
        more / disk.commit
    );
    let slow = disk.commit_p99;
    println!("| more, in commits of {slow:.2} ms, their p99 | | {:.1} |\n", more / slow);
}

pub(crate) async fn streams() {
    let daemon = Daemon::start(&backend::start(Manner::Hang).await);
    let client = daemon.client().await;
    let mut runs = Vec::with_capacity(STREAMS);
    for n in 0..STREAMS {
        runs.push(submit(&client, daemon.workspace(n)).await.id);
    }
    let before = daemon.resident_kib();
    let mut open = Vec::with_capacity(STREAMS);
    for some in runs.chunks(OF_ONE) {
        let client = daemon.client().await;
        for id in some {
            open.push(caught_up(&client, id.clone()).await);
        }
    }
    let each = (daemon.resident_kib() - before) as f64 / STREAMS as f64;
    println!("## Event streams\n");
    println!("| what | resident |");
    println!("|---|---|");
    println!("| each of {} streams that wait for what comes | {each:.1} KiB |\n", open.len());
}

/// A stream of which everything is read that there is by now.
async fn caught_up(client: &Client, id: String) -> Streaming<v1::StreamRunEventsResponse> {
    let request = v1::StreamRunEventsRequest { id, after_sequence: 0, follow: true };
    let mut stream = client.runs().stream_run_events(request).await.unwrap().into_inner();
    while let Some(message) = stream.message().await.unwrap() {
        if matches!(message.event, Some(Event::CaughtUp(_))) {
            return stream;
        }
    }
    unreachable!("a stream of a run that goes on does not end")
}
