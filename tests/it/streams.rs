//! Following a run: from any sequence without gap or repeat, words as they are spoken, and no follower
//! holds a run up.

use std::time::Duration;

use agentd::{
    client::Client,
    proto::v1::{
        self, RunState, run_service_client::RunServiceClient, stream_run_events_response::Event,
    },
    scripted::{Reply, Script, Seen, Turn},
};
use serde_json::{Value, json};
use tonic::{Streaming, transport::Endpoint};

use crate::support::{Backend, PATIENCE, TestDaemon};

type Events = Streaming<v1::StreamRunEventsResponse>;

async fn open(client: &Client, id: &str, after_sequence: u64, follow: bool) -> Events {
    let request = v1::StreamRunEventsRequest { id: id.into(), after_sequence, follow };
    client.runs().stream_run_events(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Events) -> Option<Event> {
    let message = tokio::time::timeout(PATIENCE, stream.message());
    message.await.expect("nothing came").unwrap().map(|message| message.event.unwrap())
}

/// Everything up to the stream's own end.
async fn rest(stream: &mut Events) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = next(stream).await {
        events.push(event);
    }
    events
}

fn entries(events: Vec<Event>) -> Vec<v1::JournalEntry> {
    let entry = |event| match event {
        Event::Entry(entry) => Some(entry),
        Event::TextDelta(_)
        | Event::ToolOutputDelta(_)
        | Event::CaughtUp(_)
        | Event::Heartbeat(_) => None,
    };
    events.into_iter().filter_map(entry).collect()
}

/// Reads a file five times and answers.
fn five_reads() -> Script {
    let mut turns = vec![Turn::call("read_file", json!({"path": "notes"})); 5];
    turns.push(Turn::say("read"));
    Script { turns }
}

#[tokio::test]
async fn a_stream_taken_up_again_after_any_sequence_has_no_gap_and_repeats_nothing() {
    let backend = Backend::start(five_reads()).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("notes", "n");
    let run = daemon.submit("read").await;

    // Each time another connection, which breaks off after a few entries; the run goes on meanwhile.
    let mut seen = Vec::new();
    for few in [1, 2, 3, 1, 5, 2] {
        let last = seen.last().map_or(0, |entry: &v1::JournalEntry| entry.sequence);
        let mut stream = open(&daemon.client().await, &run.id, last, true).await;
        let mut taken = 0;
        while taken < few {
            if let Some(Event::Entry(entry)) = next(&mut stream).await {
                seen.push(entry);
                taken += 1;
            }
        }
    }
    let last = seen.last().unwrap().sequence;
    let mut stream = open(&daemon.client().await, &run.id, last, true).await;
    seen.extend(entries(rest(&mut stream).await));

    let story = daemon.story(&run.id).await;
    assert_eq!(seen, story.entries);
    let sequences: Vec<u64> = seen.iter().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, (1..=29).collect::<Vec<_>>());
}

#[tokio::test]
async fn from_every_sequence_of_an_ended_run_comes_exactly_what_follows_it() {
    let backend = Backend::start(five_reads()).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("notes", "n");
    let story = daemon.carry_out("read").await;
    let client = daemon.client().await;

    for follow in [true, false] {
        for after in 0..=story.entries.len() as u64 + 2 {
            let events = rest(&mut open(&client, &story.run.id, after, follow).await).await;
            let stored = story.entries.iter().skip(usize::try_from(after).unwrap());
            let mut expected: Vec<Event> = stored.cloned().map(Event::Entry).collect();
            let head_sequence = after.max(story.run.head_sequence);
            expected.push(Event::CaughtUp(v1::CaughtUp { head_sequence }));
            assert_eq!(events, expected, "after {after}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_waits_for_more_than_the_run_will_ever_have_ends_with_the_run() {
    let backend = Backend::start(|_: &Seen| Reply::Hang).await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("hang").await;
    daemon.wait_for_entry(&run.id, "model_request").await;
    let client = daemon.client().await;
    let mut events = open(&client, &run.id, 1000, true).await;
    let caught_up = events.message().await.unwrap().unwrap().event;
    assert_eq!(caught_up, Some(Event::CaughtUp(v1::CaughtUp { head_sequence: 1000 })));
    let request = v1::CancelRunRequest { id: run.id, ..Default::default() };
    client.runs().cancel_run(request).await.unwrap();
    assert_eq!(rest(&mut events).await, []);
}

#[tokio::test]
async fn without_following_a_stream_ends_after_what_is_there_and_says_that_it_has_caught_up() {
    let backend = Backend::start(|_: &Seen| Reply::Hang).await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("hang").await;
    daemon.wait_for_entry(&run.id, "model_request").await;

    let mut events = rest(&mut open(&daemon.client().await, &run.id, 0, false).await).await;

    let caught_up = events.pop().unwrap();
    assert_eq!(caught_up, Event::CaughtUp(v1::CaughtUp { head_sequence: 2 }));
    let kinds: Vec<String> = entries(events).into_iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, ["run_created", "model_request"]);
}

#[tokio::test]
async fn words_come_while_the_model_speaks_and_are_not_kept() {
    let words = "Many words make a long answer, and it takes its time to be spoken.";
    let turns = vec![
        Turn::call("shell_exec", json!({"command": "sh pure.sh"})),
        Turn { say: "I think aloud. ".repeat(4), ..Turn::call("read_file", json!({"path": "x"})) },
        Turn::say(words),
    ];
    let backend = Backend::start_slow(Script { turns }, Duration::from_millis(5)).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("x", "");
    daemon.put("pure.sh", "until [ -e go ]; do sleep 0.02; done");
    let run = daemon.submit("speak").await;
    let mut stream = open(&daemon.client().await, &run.id, 0, true).await;
    // Only now, so that whatever is said in the later turns is said to us.
    let mut events = Vec::new();
    while !matches!(events.last(), Some(Event::CaughtUp(_))) {
        events.extend(next(&mut stream).await);
    }
    daemon.put("go", "");
    events.extend(rest(&mut stream).await);

    let place = |turn: u32| {
        let is_answer = |event: &Event| match event {
            Event::Entry(entry) if entry.kind == "model_response" => {
                serde_json::from_str::<Value>(&entry.payload).unwrap()["turn"] == turn
            }
            _ => false,
        };
        events.iter().position(is_answer).unwrap()
    };
    for (turn, said) in [(2, "I think aloud. ".repeat(4)), (3, words.to_owned())] {
        let heard: String = events[..place(turn)]
            .iter()
            .filter_map(|event| match event {
                Event::TextDelta(delta) if delta.turn == turn => Some(delta.text.as_str()),
                _ => None,
            })
            .collect();
        assert!(!heard.is_empty(), "turn {turn} was heard before its answer was there");
        assert!(said.starts_with(&heard), "{heard:?} is not how {said:?} begins");
    }
    let story = daemon.story(&run.id).await;
    assert_eq!(entries(events), story.entries);
    let replayed = rest(&mut open(&daemon.client().await, &run.id, 0, true).await).await;
    assert!(!replayed.iter().any(|event| matches!(event, Event::TextDelta(_))));
    assert!(story.kinds().iter().all(|kind| !kind.contains("delta")), "{:?}", story.kinds());
}

#[tokio::test]
async fn many_followers_see_the_same() {
    let backend = Backend::start(five_reads()).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("notes", "n");
    let run = daemon.submit("read").await;
    let client = daemon.client().await;

    let followers = (0..20).map(|_| async {
        let mut stream = open(&client, &run.id, 0, true).await;
        entries(rest(&mut stream).await)
    });
    let seen = futures_util::future::join_all(followers).await;

    let story = daemon.story(&run.id).await;
    assert!(seen.iter().all(|seen| *seen == story.entries));
}

#[tokio::test]
async fn a_follower_that_never_reads_holds_nothing_up_and_finds_everything_later() {
    let mut turns = vec![Turn::call("read_file", json!({"path": "big"})); 12];
    turns.push(Turn::say("done"));
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("big", &"0123456789abcde\n".repeat(2000));
    let run = daemon.submit("a lot to tell").await;
    // Far less than what is to be told fits into this connection.
    let channel = Endpoint::from_shared(daemon.socket())
        .unwrap()
        .initial_stream_window_size(16 * 1024)
        .initial_connection_window_size(64 * 1024)
        .connect()
        .await
        .unwrap();
    let request =
        v1::StreamRunEventsRequest { id: run.id.clone(), after_sequence: 0, follow: true };
    let mut stream =
        RunServiceClient::new(channel).stream_run_events(request).await.unwrap().into_inner();

    let story = daemon.story(&run.id).await;

    assert_eq!(story.state(), RunState::Succeeded);
    let told: usize = story.entries.iter().map(|entry| entry.payload.len()).sum();
    assert!(told > 300_000, "control: {told} bytes were to be told");
    assert_eq!(entries(rest(&mut stream).await), story.entries);
}

#[tokio::test]
async fn a_follower_that_never_reads_does_not_keep_the_daemon_from_stopping() {
    let backend = Backend::start(|seen: &Seen| match seen.turn {
        1..=12 => Reply::Answer(Turn::call("read_file", json!({"path": "big"}))),
        _ => Reply::Hang,
    })
    .await;
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.put("big", &"0123456789abcde\n".repeat(2000));
    let run = daemon.submit("a lot to tell").await;
    let channel = Endpoint::from_shared(daemon.socket())
        .unwrap()
        .initial_stream_window_size(16 * 1024)
        .initial_connection_window_size(64 * 1024)
        .connect()
        .await
        .unwrap();
    let request = v1::StreamRunEventsRequest { id: run.id, after_sequence: 0, follow: true };
    let _stream = RunServiceClient::new(channel).stream_run_events(request).await.unwrap();
    backend.wait_for_requests(13).await;

    daemon.terminate();

    assert_eq!(daemon.exit_code().await, Some(0), "{}", daemon.log());
    assert!(!daemon.log().contains("some steps had not finished"), "{}", daemon.log());
}
