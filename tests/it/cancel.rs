//! Stopping a run: the wish is on disk when the answer comes, nothing is left running, every call has
//! its output, and what has ended stays as it ended.

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Script, Seen, Turn},
};
use futures_util::future::join_all;
use serde_json::json;

use crate::support::{Backend, Story, TestDaemon, silence};

async fn silent() -> Backend {
    Backend::start(|_: &Seen| Reply::Hang).await
}

/// Who asked, and why, of each wish to stop.
fn wishes(story: &Story) -> Vec<serde_json::Value> {
    story.payloads("cancel_requested")
}

#[tokio::test]
async fn a_run_whose_model_hangs_is_cancelled_and_says_by_whom_and_why() {
    let backend = silent().await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("hang").await;
    backend.wait_for_requests(1).await;

    daemon.cancel(&run.id).await;

    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), story.run.answer.as_str()), (RunState::Cancelled, ""));
    assert_eq!(story.run.error, None);
    assert_eq!(story.kinds(), ["run_created", "model_request", "cancel_requested", "run_finished"]);
    let by = format!("uid:{}", rustix::process::geteuid().as_raw());
    assert_eq!(wishes(&story), [json!({"by": by, "why": "the test wants it"})]);
    assert_eq!(backend.server.requests().len(), 1, "it is not asked again");
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_program_is_killed_with_all_that_it_started_and_its_call_has_an_output() {
    let turns = vec![
        Turn::call("shell_exec", json!({"command": "sh script.sh"}))
            .and_call("read_file", json!({"path": "here"})),
        Turn::say("never said"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("here", "quick");
    // A child, a child in a session of its own, and one whose parent is gone; none hears SIGTERM.
    daemon.put(
        "script.sh",
        "trap '' TERM HUP INT\n\
         wait_for_ever() { while :; do sleep 0.5; done; }\n\
         wait_for_ever &\n\
         setsid sh -c 'while :; do sleep 0.5; done' >/dev/null 2>&1 &\n\
         ( setsid sh -c 'echo up >up; while :; do sleep 0.5; done' >/dev/null 2>&1 & )\n\
         wait_for_ever\n",
    );
    let run = daemon.submit("start a family").await;
    daemon.wait_for_file("up").await;
    assert!(daemon.programs().len() >= 4, "control: {:?}", daemon.programs());

    daemon.cancel(&run.id).await;

    let story = daemon.story(&run.id).await;
    assert_eq!(daemon.programs(), Vec::<String>::new());
    assert_eq!(story.state(), RunState::Cancelled);
    story.assert_calls_are_tied();
    let mut outcomes: Vec<String> =
        story.outputs().into_iter().map(|(outcome, _)| outcome).collect();
    outcomes.sort();
    assert_eq!(outcomes, ["cancelled", "done"], "what was done before stays done");
    assert_eq!(story.kinds().last(), Some(&"run_finished"));
    assert_eq!(backend.server.requests().len(), 1, "the model is not asked again");
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn calls_that_had_not_been_started_get_an_output_too() {
    // Eight calls go at once; the others have an intent and wait.
    let turn = (0..12).fold(Turn::default(), |turn, _| {
        turn.and_call("shell_exec", json!({"command": "sh script.sh"}))
    });
    let backend = Backend::start(Script { turns: vec![turn] }).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("script.sh", "echo up >>up; while :; do sleep 0.5; done");
    let run = daemon.submit("a dozen").await;
    let started = || daemon.read("up").unwrap_or_default().lines().count();
    crate::support::wait_until("eight programs", || started() == 8).await;

    daemon.cancel(&run.id).await;

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Cancelled);
    assert_eq!(story.payloads("tool_call").len(), 12);
    story.assert_calls_are_tied();
    let others: Vec<_> =
        story.outputs().into_iter().filter(|(outcome, _)| outcome != "cancelled").collect();
    assert_eq!(others, []);
    assert_eq!(daemon.programs(), Vec::<String>::new());
}

#[tokio::test]
async fn a_run_that_was_told_to_stop_asks_for_nothing_more_whatever_the_model_had_in_mind() {
    let backend = Backend::start(|_: &Seen| {
        Reply::Answer(Turn::call("shell_exec", json!({"command": "sh pure.sh"})))
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("pure.sh", "echo again");
    let run = daemon.submit("for ever").await;
    daemon.wait_for_entry(&run.id, "tool_output").await;

    daemon.cancel(&run.id).await;

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Cancelled);
    story.assert_calls_are_tied();
    let wish = story.kinds().iter().position(|kind| *kind == "cancel_requested").unwrap();
    assert!(!story.kinds()[wish..].contains(&"model_request"), "{:?}", story.kinds());
    backend.assert_paired();
}

#[tokio::test]
async fn cancelling_twice_or_ten_times_at_once_is_fine() {
    let backend = silent().await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("hang").await;
    backend.wait_for_requests(1).await;

    join_all((0..10).map(|_| daemon.cancel(&run.id))).await;
    let first = daemon.story(&run.id).await;
    let again = daemon.cancel(&run.id).await;

    assert_eq!(first.state(), RunState::Cancelled);
    assert!(!wishes(&first).is_empty());
    assert_eq!(first.kinds().iter().filter(|kind| **kind == "run_finished").count(), 1);
    assert_eq!(again, first.run);
    assert_eq!(daemon.journal(&run.id).await, first.entries);
}

#[tokio::test]
async fn a_run_that_has_ended_is_returned_as_it_ended() {
    let backend = Backend::start(|seen: &Seen| match seen.task.as_str() {
        "fail" => silence(),
        _ => Reply::Answer(Turn::say("done")),
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());

    for (task, state) in [("succeed", RunState::Succeeded), ("fail", RunState::Failed)] {
        let before = daemon.carry_out(task).await;
        assert_eq!(before.state(), state, "control");
        assert_eq!(daemon.cancel(&before.run.id).await, before.run);
        let after = daemon.story(&before.run.id).await;
        assert_eq!((after.run, after.entries), (before.run, before.entries));
    }
}

#[tokio::test]
async fn a_run_that_waits_for_its_turn_is_cancelled_without_ever_having_gone() {
    let backend = silent().await;
    let daemon = TestDaemon::start(&backend.url());
    let first = daemon.submit("first").await;
    let second = daemon.submit("second").await;
    let third = daemon.submit("third").await;
    backend.wait_for_requests(1).await;

    daemon.cancel(&second.id).await;

    let story = daemon.story(&second.id).await;
    assert_eq!(story.state(), RunState::Cancelled);
    assert_eq!(story.kinds(), ["run_created", "cancel_requested", "run_finished"]);
    assert_eq!(daemon.get(&first.id).await.state(), RunState::Executing, "it is left alone");
    assert_eq!(daemon.get(&third.id).await.state(), RunState::Queued, "the workspace is not free");
    daemon.cancel(&first.id).await;
    backend.wait_for_requests(2).await;
    assert_eq!(backend.tasks(), ["first", "third"]);
}

#[tokio::test]
async fn a_run_that_waits_for_its_backend_is_cancelled_at_once() {
    let backend = Backend::start(|_: &Seen| Reply::Http {
        status: 503,
        headers: vec![("retry-after".into(), "3600".into())],
        body: "{}".into(),
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("later").await;
    daemon.wait_for_entry(&run.id, "backend_error").await;
    assert_eq!(daemon.get(&run.id).await.state(), RunState::WaitingForBackend);

    daemon.cancel(&run.id).await;

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Cancelled);
    assert_eq!(backend.server.requests().len(), 1);
}

#[tokio::test]
async fn a_run_that_stands_still_for_want_of_budget_is_cancelled() {
    let backend = Backend::start(|_: &Seen| {
        Reply::Answer(
            Turn::call("read_file", json!({"path": "a"}))
                .and_call("read_file", json!({"path": "b"})),
        )
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());
    let budget = Some(v1::Budget { max_tool_calls: 3, ..Default::default() });
    let request = v1::CreateRunRequest { budget, ..daemon.request("read all") };
    let run = daemon.create(request).await.unwrap().run.unwrap();
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::OutOfBudget);

    daemon.cancel(&run.id).await;

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Cancelled);
    assert_eq!(story.payloads("tool_call").len(), 4, "also those that were never started");
    story.assert_calls_are_tied();
    assert_eq!(story.decisions()[2..], ["deny builtin/cancelled", "deny builtin/cancelled"]);
}

#[tokio::test]
async fn a_workspace_is_free_again_after_a_cancellation() {
    let backend = Backend::start(|seen: &Seen| match seen.task.as_str() {
        "hang" => Reply::Hang,
        _ => Reply::Answer(Turn::say("my turn")),
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());
    let hanging = daemon.submit("hang").await;
    backend.wait_for_requests(1).await;
    let waiting = daemon.submit("wait").await;

    daemon.cancel(&hanging.id).await;

    assert_eq!(daemon.wait(&waiting.id).await.answer, "my turn");
}

#[tokio::test]
async fn a_wish_that_was_accepted_is_kept_also_when_the_run_comes_to_stand_still_just_then() {
    let backend = Backend::start(|_: &Seen| {
        Reply::Answer(
            Turn::call("read_file", json!({"path": "a"}))
                .and_call("read_file", json!({"path": "b"})),
        )
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());
    let client = daemon.client().await;
    let budget = Some(v1::Budget { max_tool_calls: 1, ..Default::default() });

    for n in 0..50 {
        let request = v1::CreateRunRequest { budget, ..daemon.request("read both") };
        let run = client.runs().create_run(request).await.unwrap().into_inner().run.unwrap();
        // The wish comes a little later each time: before, while and after the budget is found empty.
        for _ in 0..n {
            tokio::task::yield_now().await;
        }
        let request = v1::CancelRunRequest { id: run.id.clone(), why: String::new() };
        client.runs().cancel_run(request).await.unwrap();
        assert_eq!(daemon.wait(&run.id).await.state(), RunState::Cancelled, "round {n}");
    }
}

#[tokio::test]
async fn a_run_can_be_cancelled_as_soon_as_anybody_can_see_it() {
    let backend = silent().await;
    let daemon = TestDaemon::start(&backend.url());
    let (submitter, canceller) = (daemon.client().await, daemon.client().await);
    let submitting = async {
        for n in 0..50 {
            let request = daemon.request(&format!("short-lived {n}"));
            submitter.runs().create_run(request).await.unwrap();
        }
    };
    // Looks for runs all the time, and may find one before its submitter has its answer.
    let cancelling = async {
        let mut cancelled = 0;
        while cancelled < 50 {
            let request = v1::ListRunsRequest {
                states: vec![RunState::Queued.into(), RunState::Executing.into()],
                ..Default::default()
            };
            let found = canceller.runs().list_runs(request).await.unwrap().into_inner().runs;
            for run in found {
                let request = v1::CancelRunRequest { id: run.id.clone(), why: String::new() };
                canceller.runs().cancel_run(request).await.unwrap();
                assert_eq!(daemon.wait(&run.id).await.state(), RunState::Cancelled);
                cancelled += 1;
            }
        }
    };

    futures_util::join!(submitting, cancelling);

    assert!(daemon.audit().await.intact);
}
