//! What a killed daemon leaves is taken over by the next one: nothing is lost, nothing is done twice
//! that must not be, nothing it started is left alive.

use std::sync::atomic::{AtomicUsize, Ordering};

use agentd::{
    proto::v1::{self, RunState, stream_run_events_response::Event},
    scripted::{Reply, Script, Seen, Turn},
};
use serde_json::json;

use crate::support::{
    Backend, Story, TestDaemon,
    processes::{command_line, descendants, launchers},
    silence,
};

/// Writes a line, starts a child in a session of its own, and then waits for a file `go`.
const BLOCKS: &str = "\
echo ran >>ran
setsid sh -c 'echo up >up; until [ -e go ]; do sleep 0.02; done' >/dev/null 2>&1 &
until [ -e go ]; do sleep 0.02; done
echo through
";

/// A daemon whose model has one program run, which waits for a file `go`.
async fn blocking_on(script: &str) -> (Backend, TestDaemon) {
    let turns =
        vec![Turn::call("shell_exec", json!({"command": ["sh", script]})), Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put(script, BLOCKS);
    (backend, daemon)
}

fn lines(daemon: &TestDaemon, name: &str) -> usize {
    daemon.read(name).unwrap_or_default().lines().count()
}

fn attempts(story: &Story, kind: &str) -> Vec<u64> {
    story.payloads(kind).iter().map(|payload| payload["attempt"].as_u64().unwrap()).collect()
}

/// Every turn was answered once, and every call has its one intent and its one output.
fn assert_exactly_once(story: &Story) {
    story.assert_calls_are_tied();
    let turns: Vec<u64> = story
        .payloads("model_response")
        .iter()
        .map(|payload| payload["turn"].as_u64().unwrap())
        .collect();
    assert_eq!(turns, (1..=turns.len() as u64).collect::<Vec<_>>(), "one answer a turn");
    let mut calls: Vec<String> =
        story.payloads("tool_call").iter().map(|payload| payload["call"].to_string()).collect();
    let all = calls.len();
    calls.dedup();
    assert_eq!(calls.len(), all, "one intent a call");
    let sequences: Vec<u64> = story.entries.iter().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>(), "gapless");
}

#[tokio::test]
async fn a_model_that_was_being_asked_is_asked_again_and_the_lost_request_is_counted() {
    let asked = AtomicUsize::new(0);
    let backend = Backend::start(move |_: &Seen| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Hang,
        _ => Reply::Answer(Turn::say("here I am")),
    })
    .await;
    let mut daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("are you there?").await;
    backend.wait_for_requests(1).await;

    daemon.restart();

    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), story.run.answer.as_str()), (RunState::Succeeded, "here I am"));
    assert_eq!(
        story.kinds(),
        [
            "run_created",
            "model_request",
            "run_recovered",
            "model_request",
            "model_response",
            "run_finished"
        ]
    );
    assert_eq!(attempts(&story, "model_request"), [1, 2]);
    assert_eq!(attempts(&story, "model_response"), [2]);
    let usage = story.run.usage.unwrap();
    assert_eq!((usage.turns, usage.turns_of_unknown_cost), (1, 1));
    let requests = backend.server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0], requests[1], "the same question, word for word");
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_pure_program_that_was_running_is_run_again() {
    let (backend, mut daemon) = blocking_on("pure.sh").await;
    let run = daemon.submit("look around").await;
    daemon.wait_for_file("up").await;

    daemon.kill();
    daemon.put("go", "");
    daemon.restart();

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    assert_exactly_once(&story);
    assert_eq!(attempts(&story, "tool_resumed"), [2]);
    assert_eq!(
        story.kinds()[3..],
        [
            "tool_call",
            "decision",
            "run_recovered",
            "tool_resumed",
            "decision",
            "tool_output",
            "model_request",
            "model_response",
            "run_finished"
        ]
    );
    let (outcome, output) = &story.outputs()[0];
    assert_eq!((outcome.as_str(), &output["stdout"]), ("done", &json!("through\n")));
    assert_eq!(lines(&daemon, "ran"), 2, "once a daemon");
    backend.assert_paired();
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_program_that_must_not_run_twice_is_not_run_again_and_somebody_is_asked_for() {
    let (backend, mut daemon) = blocking_on("script.sh").await;
    let run = daemon.submit("pay the bill").await;
    daemon.wait_for_file("up").await;

    daemon.restart();

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::NeedsAttention);
    let error = story.run.error.as_ref().unwrap();
    assert_eq!(error.reason, "OUTCOME_UNKNOWN");
    assert!(error.message.contains("call 1.0"), "it names the call: {}", error.message);
    assert_eq!(story.payloads("tool_output"), Vec::<serde_json::Value>::new());
    assert_eq!(story.kinds()[4..], ["tool_call", "decision", "run_recovered", "run_suspended"]);
    let waited = daemon.agentctl(&["run", "wait", &run.id]).await;
    assert_eq!(waited.status.code(), Some(6), "{waited:?}");

    // Nor by the next daemon, nor by the one after it; and it writes nothing about it either.
    daemon.restart();
    daemon.restart();
    let again = daemon.story(&run.id).await;
    assert_eq!((again.run, again.entries), (story.run, story.entries));
    assert_eq!(lines(&daemon, "ran"), 1);

    daemon.cancel(&run.id).await;
    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Cancelled);
    assert_exactly_once(&story);
    let (outcome, output) = &story.outputs()[0];
    assert_eq!(outcome, "cancelled");
    assert!(output["error"]["message"].as_str().unwrap().contains("not known"), "{output}");
    assert_eq!(lines(&daemon, "ran"), 1, "never run again");
    assert_eq!(backend.server.requests().len(), 1, "the model was not asked again");
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn of_calls_that_went_side_by_side_each_is_taken_up_by_what_it_is() {
    let turns = vec![
        Turn::call("shell_exec", json!({"command": "sh script.sh"}))
            .and_call("shell_exec", json!({"command": "sh pure.sh"}))
            .and_call("write_file", json!({"path": "out.txt", "content": "written"})),
        Turn::say("never said"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.put("script.sh", BLOCKS);
    daemon.put("pure.sh", "echo pure >>pure; until [ -e go ]; do sleep 0.02; done");
    let run = daemon.submit("all at once").await;
    daemon.wait_for_file("up").await;
    daemon.wait_for_file("pure").await;
    // The write ends by itself: its output is on disk before the daemon dies.
    daemon.wait_for_entry(&run.id, "tool_output").await;

    daemon.kill();
    daemon.put("go", "");
    daemon.restart();

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::NeedsAttention);
    let calls = |kind: &str| -> Vec<String> {
        let payloads = story.payloads(kind);
        payloads.iter().map(|payload| payload["call"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(calls("tool_call"), ["1.0", "1.1", "1.2"]);
    assert_eq!(calls("tool_resumed"), ["1.1"]);
    assert_eq!(calls("tool_output"), ["1.2", "1.1"]);
    assert_eq!((lines(&daemon, "ran"), lines(&daemon, "pure")), (1, 2));
    assert_eq!(daemon.read("out.txt").as_deref(), Some("written"));

    daemon.cancel(&run.id).await;
    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Cancelled);
    assert_exactly_once(&story);
}

#[tokio::test]
async fn nothing_that_a_killed_daemon_started_is_alive_when_the_next_one_is_ready() {
    let (_backend, mut daemon) = blocking_on("script.sh").await;
    daemon.submit("leave children behind").await;
    daemon.wait_for_file("up").await;
    assert!(daemon.programs().len() >= 2, "control: {:?}", daemon.programs());

    daemon.restart();

    assert_eq!(daemon.programs(), Vec::<String>::new());
    // Nobody is left who would act on it.
    daemon.put("go", "");
    assert_eq!(lines(&daemon, "ran"), 1);
}

#[tokio::test]
async fn a_run_that_waited_behind_another_is_carried_out_by_the_next_daemon() {
    let asked = AtomicUsize::new(0);
    let backend = Backend::start(move |_: &Seen| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Hang,
        _ => Reply::Answer(Turn::say("done")),
    })
    .await;
    let mut daemon = TestDaemon::start(&backend.url());
    let first = daemon.submit("first").await;
    let second = daemon.submit("second").await;
    backend.wait_for_requests(1).await;
    assert_eq!(daemon.get(&second.id).await.state(), RunState::Queued);

    daemon.restart();

    let (first, second) = (daemon.story(&first.id).await, daemon.story(&second.id).await);
    assert_eq!((first.state(), second.state()), (RunState::Succeeded, RunState::Succeeded));
    assert_eq!(
        second.kinds(),
        ["run_created", "model_request", "model_response", "run_finished"],
        "nothing of it was lost, since nothing of it was begun"
    );
    assert_eq!(backend.tasks(), ["first", "first", "second"], "in the order of submission");
    let end = first.entries.last().unwrap().position;
    assert!(second.entries[1].position > end, "and still one after the other");
}

#[tokio::test]
async fn a_wish_to_stop_that_was_written_is_heard_by_the_next_daemon() {
    let (_backend, mut daemon) = blocking_on("script.sh").await;
    let run = daemon.submit("stop me").await;
    daemon.wait_for_file("up").await;
    // What the launcher needs to kill is stopped with it: the wish is on disk, its effect is not.
    let stopped = freeze_launcher(&daemon);
    daemon.cancel(&run.id).await;
    daemon.kill();
    drop(stopped);

    daemon.restart();

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Cancelled);
    assert_exactly_once(&story);
    assert_eq!(story.payloads("cancel_requested").len(), 1);
    assert_eq!(story.outputs()[0].0, "cancelled");
    assert_eq!(lines(&daemon, "ran"), 1);
}

/// A process that is stopped, and goes on when this is dropped.
struct Frozen(rustix::process::Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

/// Stops the launcher that is at work.
fn freeze_launcher(daemon: &TestDaemon) -> Frozen {
    let works = |launcher: &i32| {
        let below = descendants(*launcher);
        below.into_iter().any(|process| command_line(process).contains("script.sh"))
    };
    let launcher = launchers(daemon.pid()).into_iter().find(works).expect("a launcher");
    let launcher = rustix::process::Pid::from_raw(launcher).unwrap();
    rustix::process::kill_process(launcher, rustix::process::Signal::STOP).unwrap();
    Frozen(launcher)
}

#[tokio::test]
async fn a_run_that_ended_stays_as_it_ended() {
    let backend = Backend::start(|seen: &Seen| match seen.task.as_str() {
        "fail" => silence(),
        "hang" => Reply::Hang,
        _ => Reply::Answer(Turn::say("done")),
    })
    .await;
    let mut daemon = TestDaemon::start(&backend.url());
    let succeeded = daemon.carry_out("succeed").await;
    let failed = daemon.carry_out("fail").await;
    let hanging = daemon.submit("hang").await;
    daemon.cancel(&hanging.id).await;
    let cancelled = daemon.story(&hanging.id).await;
    let asked = backend.server.requests().len();
    let states = [&succeeded, &failed, &cancelled].map(Story::state);
    assert_eq!(states, [RunState::Succeeded, RunState::Failed, RunState::Cancelled]);

    daemon.restart();

    for before in [succeeded, failed, cancelled] {
        let after = daemon.story(&before.run.id).await;
        assert_eq!((after.run, after.entries), (before.run, before.entries));
    }
    assert_eq!(backend.server.requests().len(), asked);
    assert_eq!(daemon.carry_out("and it goes on").await.state(), RunState::Succeeded);
}

/// Waits until the run's journal has an entry of this sequence, or has ended.
async fn wait_for_sequence(daemon: &TestDaemon, id: &str, sequence: u64) {
    let request = v1::StreamRunEventsRequest { id: id.into(), after_sequence: 0, follow: true };
    let mut stream =
        daemon.client().await.runs().stream_run_events(request).await.unwrap().into_inner();
    while let Some(message) = stream.message().await.unwrap() {
        if matches!(message.event, Some(Event::Entry(entry)) if entry.sequence >= sequence) {
            return;
        }
    }
}

#[tokio::test]
async fn killed_after_any_entry_every_file_is_written_and_every_record_is_there_once() {
    let write = |n: usize| {
        Turn::call("write_file", json!({"path": format!("f{n}"), "content": format!("{n}\n")}))
    };
    let mut turns: Vec<Turn> = (1..=5).map(write).collect();
    // The last call changes what the first has written: told by its content which came last.
    turns[4] = Turn::call("write_file", json!({"path": "f1", "content": "changed\n"}));
    turns.push(Turn::say("six turns"));
    let backend = Backend::start(Script { turns }).await;
    let mut daemon = TestDaemon::start(&backend.url());

    let mut taken_over = 0;
    for round in 0..10 {
        for n in 1..=4 {
            let _ = std::fs::remove_file(daemon.workspace().join(format!("f{n}")));
        }
        let run = daemon.submit(&format!("round {round}")).await;
        wait_for_sequence(&daemon, &run.id, 2 + 3 * round).await;
        daemon.restart();

        let story = daemon.story(&run.id).await;
        taken_over += story.payloads("run_recovered").len();
        assert_eq!(story.state(), RunState::Succeeded, "round {round}: {:?}", story.kinds());
        assert_exactly_once(&story);
        assert_eq!((story.payloads("model_response").len(), story.outputs().len()), (6, 5));
        assert!(story.outputs().iter().all(|(outcome, _)| outcome == "done"), "round {round}");
        let files = ["f1", "f2", "f3", "f4"].map(|name| daemon.read(name).unwrap());
        assert_eq!(files, ["changed\n", "2\n", "3\n", "4\n"], "round {round}");
    }

    assert!(taken_over > 0, "control: some were killed midway");
    let mut names: Vec<_> = std::fs::read_dir(daemon.workspace())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["f1", "f2", "f3", "f4"], "no draft is left behind");
    backend.assert_paired();
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn killed_again_while_it_takes_over_the_next_daemon_still_gets_it_right() {
    let (backend, mut daemon) = blocking_on("pure.sh").await;
    let run = daemon.submit("look around").await;
    daemon.wait_for_file("up").await;

    for resumed in 1..=3 {
        std::fs::remove_file(daemon.workspace().join("up")).unwrap();
        daemon.restart();
        daemon.wait_for_file("up").await;
        assert_eq!(lines(&daemon, "ran"), 1 + resumed);
    }
    daemon.kill();
    daemon.put("go", "");
    daemon.restart();

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    assert_exactly_once(&story);
    assert_eq!(attempts(&story, "tool_resumed"), [2, 3, 4, 5]);
    assert_eq!(story.payloads("run_recovered").len(), 4);
    assert_eq!(story.run.usage.unwrap().tool_calls, 1);
    backend.assert_paired();
}
