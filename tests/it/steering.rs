//! People who steer a run: what is paused begins nothing, what is resumed goes on where it stood, what is said to the
//! model is read once, and all of it survives the daemon.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Kind, Manner, Reply, Script, Seen, Turn},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{Backend, Settings, TestDaemon, manner, refusal};

/// Runs until a file is there, and leaves a line each time it runs.
const WAITS: &str = "\
echo ran >>ran
until [ -e go ]; do sleep 0.02; done
";

fn script() -> Script {
    let turns =
        vec![Turn::call("shell_exec", json!({"command": "sh script.sh"})), Turn::say("done")];
    Script { turns }
}

async fn working() -> (Backend, TestDaemon, v1::Run) {
    let backend = Backend::start(script()).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("script.sh", WAITS);
    let run = daemon.submit("work").await;
    daemon.wait_for_file("ran").await;
    (backend, daemon, run)
}

async fn pause(daemon: &TestDaemon, run: &v1::Run) -> v1::Run {
    let request = v1::PauseRunRequest { id: run.id.clone(), why: "lunch".into() };
    daemon.client().await.runs().pause_run(request).await.unwrap().into_inner().run.unwrap()
}

fn resumption(run: &v1::Run) -> v1::ResumeRunRequest {
    v1::ResumeRunRequest { id: run.id.clone(), ..Default::default() }
}

async fn resume(
    daemon: &TestDaemon,
    request: v1::ResumeRunRequest,
) -> Result<v1::Run, tonic::Status> {
    Ok(daemon.client().await.runs().resume_run(request).await?.into_inner().run.unwrap())
}

async fn say(
    daemon: &TestDaemon,
    run: &v1::Run,
    text: &str,
    request_id: &str,
) -> Result<v1::Run, tonic::Status> {
    let (text, request_id) = (text.into(), request_id.into());
    let request = v1::SendRunInputRequest { id: run.id.clone(), text, request_id };
    Ok(daemon.client().await.runs().send_run_input(request).await?.into_inner().run.unwrap())
}

#[tokio::test]
async fn a_paused_run_ends_what_is_under_way_begins_nothing_and_goes_on_where_it_stood() {
    let (backend, daemon, run) = working().await;

    assert_eq!(pause(&daemon, &run).await.state(), RunState::Executing, "the call is under way");
    let head = pause(&daemon, &run).await.head_sequence;
    assert_eq!(pause(&daemon, &run).await.head_sequence, head, "the same again changes nothing");
    daemon.put("go", "");

    let paused = daemon.wait(&run.id).await;
    assert_eq!(paused.state(), RunState::Paused);
    assert_eq!(paused.error.unwrap().reason, "PAUSED");
    assert_eq!(backend.server.requests().len(), 1, "the model is not asked");

    resume(&daemon, resumption(&run)).await.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    let kinds = ["pause_requested", "tool_output", "run_suspended", "run_resumed", "model_request"];
    let from = story.kinds().iter().position(|kind| *kind == "pause_requested").unwrap();
    let found: Vec<&str> =
        story.kinds()[from..].iter().copied().filter(|kind| kinds.contains(kind)).collect();
    assert_eq!(found, kinds);
    assert_eq!(story.payloads("pause_requested")[0]["why"], "lunch");
    assert_eq!(daemon.read("ran").unwrap(), "ran\n");
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_wish_to_pause_and_the_pause_survive_the_daemon() {
    let (backend, mut daemon, run) = working().await;
    let waiting = daemon.submit("wait for the workspace").await;
    pause(&daemon, &run).await;
    pause(&daemon, &waiting).await;
    assert_eq!(daemon.wait(&waiting.id).await.state(), RunState::Paused, "it had begun nothing");
    daemon.put("go", "");
    daemon.wait(&run.id).await;
    daemon.kill();
    daemon.restart();

    assert_eq!(daemon.get(&run.id).await.state(), RunState::Paused);
    assert_eq!(daemon.get(&waiting.id).await.state(), RunState::Paused);
    assert_eq!(backend.server.requests().len(), 1);
    for paused in [&run, &waiting] {
        resume(&daemon, resumption(paused)).await.unwrap();
        assert_eq!(daemon.wait(&paused.id).await.state(), RunState::Succeeded);
    }
}

#[tokio::test]
async fn a_wish_to_pause_is_taken_back_before_it_comes_to_that() {
    let (_backend, daemon, run) = working().await;
    pause(&daemon, &run).await;
    resume(&daemon, resumption(&run)).await.unwrap();
    let head = daemon.get(&run.id).await.head_sequence;
    let again = resume(&daemon, resumption(&run)).await.unwrap();
    assert_eq!(again.head_sequence, head, "a run that goes on returns unchanged");
    daemon.put("go", "");
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Succeeded);
    let ended = pause_refused(&daemon, &run).await;
    assert_eq!(refusal(&ended), (Code::FailedPrecondition, "INVALID_STATE".into()));
    let ended = resume(&daemon, resumption(&run)).await.unwrap_err();
    assert_eq!(refusal(&ended), (Code::FailedPrecondition, "INVALID_STATE".into()));
}

async fn pause_refused(daemon: &TestDaemon, run: &v1::Run) -> tonic::Status {
    let request = v1::PauseRunRequest { id: run.id.clone(), ..Default::default() };
    daemon.client().await.runs().pause_run(request).await.unwrap_err()
}

/// A backend that answers once a file is there.
async fn answers_once_told(go: PathBuf) -> Backend {
    Backend::start(move |seen: &Seen| {
        tokio::task::block_in_place(|| {
            while !go.exists() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        Reply::Answer(Turn::say(if seen.turn == 1 { "first" } else { "second" }))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_said_while_the_model_answers_is_on_disk_at_once_and_keeps_the_run_from_ending() {
    let home = tempfile::tempdir().unwrap();
    let go = home.path().join("go");
    let backend = answers_once_told(go.clone()).await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("think").await;
    backend.wait_for_requests(1).await;

    say(&daemon, &run, "and the tests too", "").await.unwrap();
    pause(&daemon, &run).await;
    std::fs::write(go, "").unwrap();

    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Paused, "the answer was not lost");
    assert_eq!(backend.server.requests().len(), 1);
    resume(&daemon, resumption(&run)).await.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), story.run.answer.as_str()), (RunState::Succeeded, "second"));
    let request = &backend.server.requests()[1];
    let input = request["input"].as_array().unwrap();
    let last = &input[input.len() - 1];
    assert_eq!(
        (&last["role"], last.to_string().contains("and the tests too")),
        (&json!("user"), true)
    );
    assert!(input[input.len() - 2].to_string().contains("first"), "after what the model had said");
}

#[tokio::test]
async fn what_is_said_is_read_after_the_output_of_the_call_and_once_however_often_it_is_sent() {
    let (backend, mut daemon, run) = working().await;
    for _ in 0..3 {
        say(&daemon, &run, "hurry", "i-1").await.unwrap();
    }
    let other = say(&daemon, &run, "slowly", "i-1").await.unwrap_err();
    assert_eq!(refusal(&other), (Code::AlreadyExists, "REQUEST_ID_REUSED".into()));
    let empty = say(&daemon, &run, " ", "").await.unwrap_err();
    assert_eq!(refusal(&empty), (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
    daemon.kill();
    daemon.restart();
    daemon.put("go", "");
    daemon.wait(&run.id).await;
    say(&daemon, &run, "hurry", "i-1").await.unwrap();
    let resolve = ["run", "resolve", &run.id, "1.0", "did-not-run"];
    assert_eq!(daemon.agentctl(&resolve).await.status.code(), Some(0));

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    assert_eq!(story.payloads("input_received").len(), 1);
    backend.assert_paired();
    let input = backend.server.requests()[1]["input"].as_array().unwrap().clone();
    let kinds: Vec<&str> = input
        .iter()
        .map(|item| item["type"].as_str().filter(|kind| *kind != "message").unwrap_or("message"))
        .collect();
    assert_eq!(kinds, ["message", "function_call", "function_call_output", "message"]);
    let late = say(&daemon, &run, "one more thing", "").await.unwrap_err();
    assert_eq!(refusal(&late), (Code::FailedPrecondition, "INVALID_STATE".into()));
}

#[tokio::test]
async fn a_run_out_of_budget_goes_on_with_a_larger_one_and_not_without() {
    let backend = Backend::start(|seen: &Seen| match seen.turn {
        5 => Reply::Answer(Turn::say("done")),
        _ => Reply::Answer(Turn::call("read_file", json!({"path": "a"}))),
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("a", "");
    let budget = Some(v1::Budget { max_turns: 2, ..Default::default() });
    let request = v1::CreateRunRequest { budget, ..daemon.request("read") };
    let run = daemon.create(request).await.unwrap().run.unwrap();
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::OutOfBudget);

    let same = resume(&daemon, resumption(&run)).await.unwrap_err();
    assert_eq!(refusal(&same), (Code::FailedPrecondition, "INVALID_STATE".into()));
    assert!(same.message().contains("2 turns"), "{same}");
    let head = daemon.get(&run.id).await.head_sequence;
    let said = daemon.agentctl(&["run", "resume", &run.id, "--budget-turns", "4"]).await;
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::OutOfBudget, "four are not enough");
    assert!(daemon.get(&run.id).await.head_sequence > head);
    let budget = Some(v1::Budget { max_turns: 5, ..Default::default() });
    resume(&daemon, v1::ResumeRunRequest { budget, ..resumption(&run) }).await.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), story.run.usage.unwrap().turns), (RunState::Succeeded, 5));
    let warned = json!({"limit": "turns", "used": 4, "of": 5});
    assert_eq!(story.payloads("budget_warning"), [warned], "before the last turn of five");
}

#[tokio::test]
async fn a_run_that_waits_for_its_backend_asks_it_at_once_when_it_is_resumed() {
    let asked = AtomicUsize::new(0);
    let backend = Backend::start(move |_: &Seen| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::Http {
            status: 503,
            headers: vec![("retry-after".into(), "3600".into())],
            body: "{}".into(),
        },
        _ => Reply::Answer(Turn::say("done")),
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("later").await;
    daemon.wait_for_entry(&run.id, "backend_error").await;
    assert_eq!(daemon.get(&run.id).await.state(), RunState::WaitingForBackend);

    resume(&daemon, resumption(&run)).await.unwrap();

    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Succeeded);
}

/// A run whose daemon died while the backend, which has this hosted tool, thought about its first answer.
async fn lost_while_asking(tool: &str, rule: &str) -> (Backend, TestDaemon, v1::Run) {
    let asked = AtomicUsize::new(0);
    let brain = move |_: &Seen| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::Hang,
        _ => Reply::Answer(Turn::say("done")),
    };
    // One that takes every hosted tool.
    let backend = Backend::start_as(brain, Manner { kind: Kind::OpenAi, ..manner() }).await;
    let settings = Settings {
        base_url: backend.url(),
        configuration: format!("hosted_tools:\n  - {tool}\n"),
        hosted: format!("  - {{id: it, {rule}, decision: allow, why: needed}}\n"),
        ..Settings::default()
    };
    let mut daemon = TestDaemon::start_with(settings);
    let run = daemon.submit("send the mail").await;
    backend.wait_for_requests(1).await;
    daemon.kill();
    daemon.restart();
    (backend, daemon, run)
}

#[tokio::test]
async fn a_lost_request_for_which_the_backend_may_have_done_something_is_repeated_by_leave_alone() {
    let tool = "{type: mcp, server_label: mail, server_url: 'https://mail.example.com/'}";
    let rule = "type: mcp, servers: ['https://mail.example.com']";
    let (backend, daemon, run) = lost_while_asking(tool, rule).await;

    let lost = daemon.wait(&run.id).await;
    assert_eq!(lost.state(), RunState::NeedsAttention);
    assert_eq!(lost.error.unwrap().reason, "REQUEST_LOST");
    assert_eq!(backend.server.requests().len(), 1);
    let refused = resume(&daemon, resumption(&run)).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::FailedPrecondition, "INVALID_STATE".into()));
    assert!(refused.message().contains("--repeat-request"), "{refused}");
    assert_eq!(backend.server.requests().len(), 1);

    let said = daemon.agentctl(&["run", "resume", &run.id, "--repeat-request"]).await;
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    assert_eq!(story.run.usage.unwrap().turns_of_unknown_cost, 1);
    assert_eq!(story.payloads("run_resumed")[0]["lost_request"], "repeat");
}

#[tokio::test]
async fn a_lost_request_for_which_the_backend_can_only_have_searched_is_repeated_by_itself() {
    let tool = "{type: file_search, vector_store_ids: [vs_1]}";
    let (backend, daemon, run) = lost_while_asking(tool, "type: file_search").await;
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Succeeded);
    assert_eq!(backend.server.requests().len(), 2);
}

#[tokio::test]
async fn runs_are_steered_by_filter_once_somebody_has_seen_which_those_are() {
    let (_backend, daemon, working) = working().await;
    let mut waiting = Vec::new();
    for n in 0..3 {
        let labels = [("batch".to_owned(), (n % 2).to_string())].into();
        let request = v1::CreateRunRequest { labels, ..daemon.request("wait") };
        waiting.push(daemon.create(request).await.unwrap().run.unwrap());
    }
    let ids = |output: &std::process::Output| -> Vec<String> {
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        let runs = printed["runs"].as_array().unwrap();
        let mut ids: Vec<String> =
            runs.iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    let filter = ["run", "cancel", "--state", "queued", "--label", "batch=0", "-o", "json"];

    let shown = daemon.agentctl(&filter).await;
    assert_eq!(ids(&shown), [waiting[0].id.clone(), waiting[2].id.clone()]);
    let said = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(said.contains("2 runs to cancel; nothing was done: --yes does it"), "{said}");
    assert_eq!(daemon.get(&waiting[0].id).await.state(), RunState::Queued, "nothing was done");

    let done = daemon.agentctl(&[&filter[..], &["--yes"]].concat()).await;
    assert_eq!((done.status.code(), ids(&done)), (Some(0), ids(&shown)));
    for cancelled in [&waiting[0], &waiting[2]] {
        assert_eq!(daemon.wait(&cancelled.id).await.state(), RunState::Cancelled);
    }
    assert_eq!(daemon.get(&waiting[1].id).await.state(), RunState::Queued);
    assert_eq!(daemon.get(&working.id).await.state(), RunState::Executing);

    let both = ["run", "pause", &waiting[0].id, &waiting[1].id];
    let partly = daemon.agentctl(&both).await;
    let said = String::from_utf8_lossy(&partly.stderr).into_owned();
    assert_eq!(partly.status.code(), Some(1), "{said}");
    assert!(said.contains(&waiting[0].id) && said.contains("1 runs refused to pause"), "{said}");
    assert_eq!(daemon.wait(&waiting[1].id).await.state(), RunState::Paused);
    let nothing = daemon.agentctl(&["run", "cancel"]).await;
    assert_eq!(nothing.status.code(), Some(2));
}
