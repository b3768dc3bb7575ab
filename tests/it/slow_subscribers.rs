//! Five thousand subscribers that do not read: the daemon keeps little for each of them, its runs go on, and whoever
//! reads is told everything.

use std::{collections::VecDeque, time::Duration};

use agentd::{
    client::Client,
    proto::v1::{
        self, RunState, audit_service_client::AuditServiceClient,
        run_service_client::RunServiceClient, stream_run_events_response::Event,
    },
    scripted::{Reply, Seen, Turn},
};
use futures_util::future::join_all;
use serde_json::json;
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::support::{
    Backend, PATIENCE, Settings, Story, TestDaemon, processes::anonymous_kib, refusal,
};

/// Unless AGENTD_SLOW_SUBSCRIBERS says otherwise.
const SUBSCRIBERS: usize = 5000;
/// A connection has 256 places.
const A_CONNECTION: usize = 250;
/// Places for those who read.
const SPARE: usize = 8;
/// Of each round.
const RUNS: usize = 4;
/// Calls of a turn, each of which reads a file of so many bytes.
const READS: usize = 12;
const FILE_BYTES: usize = 16 * 2000;
/// What a stream that nobody reads may cost, and what all the rest may.
const STREAM_KIB: u64 = 64;
const BASE_KIB: u64 = 96 << 10;

fn subscribers() -> usize {
    let wanted = std::env::var("AGENTD_SLOW_SUBSCRIBERS").ok();
    let number = |wanted: String| wanted.parse().expect("AGENTD_SLOW_SUBSCRIBERS is a number");
    wanted.map_or(SUBSCRIBERS, number)
}

/// Waits until it is told to go on, then reads a lot at once, and again.
fn reply(seen: &Seen) -> Reply {
    let reading = |turn: Turn| turn.and_call("read_file", json!({"path": "big"}));
    Reply::Answer(match (seen.task.as_str(), seen.turn) {
        ("wait", _) => return Reply::Hang,
        ("read a lot", 1) => Turn::call("shell_exec", json!({"command": "sh pure.sh"})),
        ("read a lot", 2 | 3) => (0..READS).fold(Turn::default(), |turn, _| reading(turn)),
        _ => Turn::say("done"),
    })
}

fn start(backend: &Backend) -> TestDaemon {
    let places = subscribers() + SPARE;
    let configuration = format!("limits: {{event_streams: {places}}}\n");
    TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration,
        ..Default::default()
    })
}

/// A run in a workspace of its own, that waits until it is told to go on.
async fn held(daemon: &TestDaemon, workspace: &str) -> v1::Run {
    daemon.put(&format!("{workspace}/big"), &"0123456789abcde\n".repeat(FILE_BYTES / 16));
    daemon.put(&format!("{workspace}/pure.sh"), "until [ -e go ]; do sleep 0.02; done\n");
    let workspace = daemon.workspace().join(workspace).display().to_string();
    let request = v1::CreateRunRequest { workspace, ..daemon.request("read a lot") };
    let run = daemon.create(request).await.unwrap().run.unwrap();
    daemon.wait_for_entry(&run.id, "tool_call").await;
    run
}

fn follow(run: &str) -> v1::StreamRunEventsRequest {
    v1::StreamRunEventsRequest { id: run.into(), after_sequence: 0, follow: true }
}

/// What a subscriber holds that reads no further.
enum Slow {
    Events { _stream: Streaming<v1::StreamRunEventsResponse> },
    Audit { _stream: Streaming<v1::StreamAuditEntriesResponse> },
}

/// A connection through which a first message of everybody fits, and little more.
async fn narrow(daemon: &TestDaemon) -> Channel {
    const WINDOW: u32 = 8 << 10;
    Endpoint::from_shared(daemon.socket())
        .unwrap()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * A_CONNECTION as u32)
        .connect()
        .await
        .unwrap()
}

/// The stream, once there is a place for it; of the last round some may be taken yet.
async fn opened<T, F>(open: impl Fn() -> F) -> Streaming<T>
where
    F: Future<Output = Result<Response<Streaming<T>>, Status>>,
{
    let opened = async {
        loop {
            match open().await {
                Ok(stream) => return stream.into_inner(),
                Err(status) => assert_eq!(refusal(&status).1, "TOO_MANY_STREAMS"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, opened).await.expect("there is no place for a stream")
}

/// The subscriber of this number: each tenth follows the audit, the others a run; each second reads one message.
async fn subscriber(channel: Channel, number: usize, runs: &[v1::Run]) -> Slow {
    let reads = number.is_multiple_of(2);
    if number % 10 < 2 {
        let request = v1::StreamAuditEntriesRequest { follow: true, ..Default::default() };
        let client = AuditServiceClient::new(channel);
        let mut stream =
            opened(async || client.clone().stream_audit_entries(request.clone()).await).await;
        if reads {
            assert!(stream.message().await.unwrap().is_some());
        }
        return Slow::Audit { _stream: stream };
    }
    let request = follow(&runs[number % RUNS].id);
    let client = RunServiceClient::new(channel);
    let mut stream = opened(async || client.clone().stream_run_events(request.clone()).await).await;
    if reads {
        assert!(stream.message().await.unwrap().is_some());
    }
    Slow::Events { _stream: stream }
}

/// All of them, each of whom has been answered.
async fn crowd(daemon: &TestDaemon, runs: &[v1::Run]) -> Vec<Slow> {
    let mut all = Vec::new();
    for first in (0..subscribers()).step_by(A_CONNECTION) {
        let channel = narrow(daemon).await;
        let last = subscribers().min(first + A_CONNECTION);
        let opening = (first..last).map(|number| subscriber(channel.clone(), number, runs));
        all.extend(join_all(opening).await);
    }
    assert_eq!(all.len(), subscribers());
    all
}

/// The control: the daemon itself counts every one of them. It has so many places besides, and no more.
async fn assert_are_counted(daemon: &TestDaemon, run: &v1::Run) {
    let client = daemon.client().await;
    let mut spare = VecDeque::new();
    for _ in 0..SPARE {
        let stream = client.runs().stream_run_events(follow(&run.id)).await;
        spare.push_back(stream.unwrap());
    }
    let status = client.runs().stream_run_events(follow(&run.id)).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "TOO_MANY_STREAMS".into()));
    let places = (subscribers() + SPARE).to_string();
    assert!(status.message().starts_with(&places), "{}", status.message());
    assert!(status.message().contains("limits.event_streams"), "{}", status.message());
}

/// Follows a run to its end. Gives what it was told, and the most memory that the daemon had meanwhile, in KiB.
async fn quick(daemon: &TestDaemon, client: &Client, run: &str) -> (Vec<v1::JournalEntry>, u64) {
    let stream = opened(async || client.runs().stream_run_events(follow(run)).await);
    let (mut stream, mut told, mut most) = (stream.await, Vec::new(), 0);
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(Event::Entry(entry)) = message.event {
            told.push(entry);
            most = anonymous_kib(daemon.pid()).max(most);
        }
    }
    (told, most)
}

/// The same runs with the same crowd. Gives the memory that the daemon had when nothing was to be told yet, and the most
/// that it had later, in KiB.
async fn round(daemon: &TestDaemon, number: usize) -> (u64, u64) {
    let names: Vec<String> = (0..RUNS).map(|n| format!("{number}-{n}")).collect();
    let runs = join_all(names.iter().map(|name| held(daemon, name))).await;
    let slow = crowd(daemon, &runs).await;
    assert_are_counted(daemon, &runs[0]).await;
    daemon.is_at_rest().await;
    let opened = anonymous_kib(daemon.pid());

    names.iter().for_each(|name| daemon.put(&format!("{name}/go"), ""));
    let client = daemon.tcp_client(Some(daemon.token_file())).await;
    let reading = join_all(runs.iter().map(|run| quick(daemon, &client, &run.id)));
    let (told, other) = tokio::join!(reading, daemon.submit("be quick"));
    let other = daemon.wait(&other.id).await;
    assert_eq!(other.state(), RunState::Succeeded, "whoever else asks is answered");
    daemon.is_at_rest().await;

    let mut most = anonymous_kib(daemon.pid());
    for (run, (told, at_most)) in runs.iter().zip(told) {
        let story = daemon.story(&run.id).await;
        assert_eq!(story.state(), RunState::Succeeded);
        assert_more_was_to_be_told(&story);
        assert_eq!(told, story.entries, "whoever reads is told everything");
        most = most.max(at_most);
    }
    drop(slow);
    (opened, most)
}

/// The control: what a stream was to be told is more than may be kept for it.
fn assert_more_was_to_be_told(story: &Story) {
    let bytes: usize = story.entries.iter().map(|entry| entry.payload.len()).sum();
    assert!(bytes as u64 > 8 * (STREAM_KIB << 10), "{bytes} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "it is what the report tells of")]
async fn five_thousand_subscribers_that_do_not_read_cost_little_and_hold_nobody_up() {
    let backend = Backend::start(reply).await;
    let daemon = start(&backend);
    assert_eq!(daemon.carry_out("be quick").await.state(), RunState::Succeeded);
    let before = anonymous_kib(daemon.pid());
    let allowed = BASE_KIB + STREAM_KIB * subscribers() as u64;
    let mut costs = Vec::new();
    for number in 0..2 {
        let (opened, most) = round(&daemon, number).await;
        costs.push((opened.saturating_sub(before), most.saturating_sub(before)));
    }
    println!(
        "{} slow subscribers: {costs:?} KiB, opened and at most, in each round",
        subscribers()
    );
    assert!(costs.iter().all(|(_, most)| *most <= allowed), "{costs:?} KiB of {allowed}");
    assert!(daemon.audit().await.intact);
}

/// One that reads: the kinds it is told until the stream ends, after it has caught up once.
async fn last_words(
    mut stream: Streaming<v1::StreamRunEventsResponse>,
) -> Result<Vec<String>, Status> {
    let mut kinds = Vec::new();
    while let Some(message) = stream.message().await? {
        if let Some(Event::Entry(entry)) = message.event {
            kinds.push(entry.kind);
        }
    }
    Ok(kinds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_subscribers_who_wait_for_the_same_entry_are_all_told_of_it() {
    let backend = Backend::start(reply).await;
    let daemon = start(&backend);
    let run = daemon.submit("wait").await;
    daemon.wait_for_entry(&run.id, "model_request").await;
    let mut streams = Vec::new();
    for _ in 0..subscribers().div_ceil(A_CONNECTION) {
        let client = daemon.client().await;
        let caught_up = (0..A_CONNECTION).map(async |_| {
            let mut stream =
                opened(async || client.runs().stream_run_events(follow(&run.id)).await).await;
            while !matches!(
                stream.message().await.unwrap().unwrap().event,
                Some(Event::CaughtUp(_))
            ) {}
            stream
        });
        streams.extend(join_all(caught_up).await);
    }

    daemon.cancel(&run.id).await;

    for told in join_all(streams.into_iter().map(last_words)).await {
        let told = told.unwrap();
        assert_eq!(told.last().map(String::as_str), Some("run_finished"), "{told:?}");
    }
}
