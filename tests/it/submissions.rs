//! Submitting: one request id is one run, whatever happens to caller or daemon; what cannot be carried
//! out is refused with the field that is wrong; runs share workspaces and room in order.

use std::{collections::HashSet, fs, os::unix::fs::symlink, time::Duration};

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Script, Seen, Turn},
};
use futures_util::future::{join_all, select, try_join_all};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{Backend, Settings, TestDaemon, refusal, silence, wait_until};

const UNKNOWN: &str = "0199b3c4-5d6e-7f80-8a9b-0c1d2e3f4a5b";

async fn talkative() -> Backend {
    Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await
}

async fn silent() -> Backend {
    Backend::start(|_: &Seen| Reply::Hang).await
}

/// A submission with a request id.
fn named(daemon: &TestDaemon, task: &str, request_id: &str) -> v1::CreateRunRequest {
    v1::CreateRunRequest { request_id: request_id.into(), ..daemon.request(task) }
}

/// Submits. Gives the run's id, and whether it existed.
async fn submitted(daemon: &TestDaemon, request: v1::CreateRunRequest) -> (String, bool) {
    let answer = daemon.create(request).await.unwrap();
    (answer.run.unwrap().id, answer.existed)
}

// One request id, one run.

#[tokio::test]
async fn the_same_request_id_and_body_give_the_same_run_also_when_it_has_ended() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());

    let (first, existed) = submitted(&daemon, named(&daemon, "once", "a")).await;
    assert!(!existed);
    assert_eq!(submitted(&daemon, named(&daemon, "once", "a")).await, (first.clone(), true));
    daemon.wait(&first).await;
    assert_eq!(submitted(&daemon, named(&daemon, "once", "a")).await, (first, true));
    assert_eq!(daemon.runs().await.len(), 1);
    assert_eq!(backend.tasks(), ["once"]);
}

#[tokio::test]
async fn without_a_request_id_each_submission_is_a_run_of_its_own() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());

    let (first, second) = (daemon.submit("twice").await, daemon.submit("twice").await);

    assert_ne!(first.id, second.id);
    assert_eq!(daemon.runs().await.len(), 2);
}

#[tokio::test]
async fn fifty_submissions_at_once_with_one_request_id_make_one_run() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());

    let submissions = (0..50).map(|_| submitted(&daemon, named(&daemon, "crowd", "one")));
    let answers = join_all(submissions).await;

    let ids: HashSet<&String> = answers.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(answers.iter().filter(|(_, existed)| !existed).count(), 1);
    let listed: Vec<String> = daemon.runs().await.into_iter().map(|run| run.id).collect();
    assert_eq!(listed, [answers[0].0.clone()]);
    daemon.wait(&listed[0]).await;
    assert_eq!(backend.tasks(), ["crowd"]);
}

#[tokio::test]
async fn the_same_request_id_with_another_body_is_refused_and_changes_nothing() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("sub/file", "");
    let first = named(&daemon, "as it was", "a");
    let (id, _) = submitted(&daemon, first.clone()).await;

    let sub = daemon.workspace().join("sub").display().to_string();
    let labels = [("k".to_owned(), "v".to_owned())].into();
    let budget = Some(v1::Budget { max_turns: 7, ..Default::default() });
    for other in [
        v1::CreateRunRequest { task: "something else".into(), ..first.clone() },
        v1::CreateRunRequest { workspace: sub, ..first.clone() },
        v1::CreateRunRequest { model: "another".into(), ..first.clone() },
        v1::CreateRunRequest { agent: String::new(), ..first.clone() },
        v1::CreateRunRequest { labels, ..first.clone() },
        v1::CreateRunRequest { budget, ..first.clone() },
    ] {
        let status = daemon.create(other).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::AlreadyExists, "REQUEST_ID_REUSED".into()));
        assert!(status.message().contains(&id), "it names the run: {}", status.message());
    }

    assert_eq!(daemon.runs().await.len(), 1);
    assert_eq!(submitted(&daemon, first).await, (id, true));
}

#[tokio::test]
async fn a_request_id_outlives_the_daemon() {
    let backend = talkative().await;
    let mut daemon = TestDaemon::start(&backend.url());
    let (id, _) = submitted(&daemon, named(&daemon, "remember me", "a")).await;

    daemon.restart();

    assert_eq!(submitted(&daemon, named(&daemon, "remember me", "a")).await, (id, true));
    let status = daemon.create(named(&daemon, "who are you", "a")).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::AlreadyExists, "REQUEST_ID_REUSED".into()));
}

#[tokio::test]
async fn a_request_id_holds_also_when_the_workspace_is_gone_meanwhile() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let (id, _) = submitted(&daemon, named(&daemon, "work", "a")).await;
    daemon.wait(&id).await;

    fs::remove_dir_all(daemon.workspace()).unwrap();

    assert_eq!(submitted(&daemon, named(&daemon, "work", "a")).await, (id, true));
}

#[tokio::test]
async fn one_user_is_one_caller_through_the_socket_and_with_the_token() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let (id, _) = submitted(&daemon, named(&daemon, "same me", "a")).await;

    let tcp = daemon.tcp_client(Some(daemon.token_file())).await;
    let request = named(&daemon, "same me", "a");
    let again = tcp.runs().create_run(request).await.unwrap().into_inner();

    let run = again.run.unwrap();
    assert_eq!((&run.id, again.existed), (&id, true));
    assert_eq!(run.submitter, format!("uid:{}", rustix::process::geteuid().as_raw()));
}

#[tokio::test]
async fn a_run_whose_submitter_vanishes_before_the_answer_is_carried_out() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let client = daemon.client().await;
    let mut runs = client.runs();
    let mut submission = Box::pin(runs.create_run(named(&daemon, "I must go", "a")));

    // Started, and never looked at again: the connection's own task sends it.
    assert!(futures_util::poll!(&mut submission).is_pending());
    let id = loop {
        if let Some(run) = daemon.runs().await.pop() {
            break run.id;
        }
    };
    drop(submission);
    drop((runs, client));

    assert_eq!(daemon.wait(&id).await.state(), RunState::Succeeded);
    assert_eq!(submitted(&daemon, named(&daemon, "I must go", "a")).await, (id, true));
}

#[tokio::test]
async fn wherever_a_submitter_vanishes_there_is_one_run_or_none_and_never_half_a_run() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let request = |n: usize| named(&daemon, &format!("vanish {n}"), &format!("v{n}"));

    for n in 0..30 {
        let client = daemon.client().await;
        let mut runs = client.runs();
        let patience = async {
            for _ in 0..n {
                tokio::task::yield_now().await;
            }
        };
        let submission = runs.create_run(request(n));
        drop(select(Box::pin(patience), Box::pin(submission)).await);
    }

    for n in 0..30 {
        submitted(&daemon, request(n)).await;
    }
    let runs = daemon.runs().await;
    let tasks: HashSet<&String> = runs.iter().map(|run| &run.task).collect();
    assert_eq!((runs.len(), tasks.len()), (30, 30));
    for run in &runs {
        assert_eq!(daemon.wait(&run.id).await.state(), RunState::Succeeded, "{}", run.task);
    }
    assert!(daemon.audit().await.intact);
}

// What is refused.

/// The field that a refusal blames, and nothing but it.
fn blamed(status: &Status) -> String {
    assert_eq!(refusal(status), (Code::InvalidArgument, "INVALID_ARGUMENT".into()), "{status:?}");
    let mut fields = status.get_details_bad_request().expect("a BadRequest").field_violations;
    assert_eq!(fields.len(), 1, "{fields:?}");
    let field = fields.remove(0);
    assert!(!field.description.is_empty());
    field.field
}

#[tokio::test]
async fn a_submission_with_a_bad_field_is_refused_and_the_field_is_named() {
    let backend = silent().await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("file", "");
    fs::create_dir(daemon.home().join("workspace-not")).unwrap();
    symlink("/usr", daemon.workspace().join("way-out")).unwrap();
    let good = daemon.request("fine");
    let task = |task: String| v1::CreateRunRequest { task, ..good.clone() };
    let workspace = |path: &str| v1::CreateRunRequest { workspace: path.into(), ..good.clone() };
    let inside = |name: &str| workspace(&daemon.workspace().join(name).display().to_string());
    let labels = |labels: Vec<(String, String)>| v1::CreateRunRequest {
        labels: labels.into_iter().collect(),
        ..good.clone()
    };
    let many = (0..33).map(|n| (format!("k{n}"), String::new())).collect();

    for (field, request) in [
        ("task", task(String::new())),
        ("task", task(" \n\t".into())),
        ("task", task("x".repeat((1 << 20) + 1))),
        ("workspace", workspace("")),
        ("workspace", workspace("workspace")),
        ("workspace", workspace("./workspace")),
        ("workspace", inside("missing")),
        ("workspace", inside("file")),
        ("workspace", inside("file/below")),
        ("workspace", inside("../..")),
        ("workspace", inside("way-out")),
        ("workspace", workspace("/")),
        ("workspace", workspace("/etc")),
        ("workspace", workspace("/proc/self/cwd")),
        ("workspace", workspace("/tmp/nul\0here")),
        ("agent", v1::CreateRunRequest { agent: "planner".into(), ..good.clone() }),
        ("request_id", v1::CreateRunRequest { request_id: "r".repeat(129), ..good.clone() }),
        ("labels", labels(many)),
        ("labels", labels(vec![("k".repeat(65), String::new())])),
        ("labels", labels(vec![("k".into(), "v".repeat(257))])),
        ("labels", labels((0..32).map(|n| (format!("{n:064}"), "v".repeat(65))).collect())),
        ("model", v1::CreateRunRequest { model: "m".repeat(257), ..good.clone() }),
    ] {
        let shown = format!("{:.200?}", request);
        let status = daemon.create(request).await.expect_err(&shown);
        assert_eq!(blamed(&status), field, "{shown}");
    }

    assert_eq!(daemon.runs().await, [], "nothing of them is kept");
}

#[tokio::test]
async fn what_is_just_within_the_bounds_is_accepted() {
    let backend = silent().await;
    let daemon = TestDaemon::start(&backend.url());
    let request = v1::CreateRunRequest {
        task: "x".repeat(1 << 20),
        agent: "executor".into(),
        request_id: "r".repeat(128),
        model: "m".repeat(256),
        labels: (0..32).map(|n| (format!("{n:064}"), "v".repeat(64))).collect(),
        ..daemon.request("")
    };

    let (id, _) = submitted(&daemon, request.clone()).await;

    assert_eq!(daemon.get(&id).await.labels, request.labels);
    backend.wait_for_requests(1).await;
    assert!(backend.tasks() == [request.task], "the model hears all of it");
}

#[tokio::test]
async fn a_task_of_a_hundred_mebibytes_is_refused_and_the_daemon_lives() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());

    let status = daemon.create(daemon.request(&"x".repeat(100 << 20))).await.unwrap_err();

    assert_ne!(status.code(), Code::Ok);
    assert!(!status.message().is_empty(), "{status:?}");
    assert_eq!(daemon.carry_out("still there?").await.state(), RunState::Succeeded);
}

#[tokio::test]
async fn what_is_asked_of_runs_is_checked_and_the_field_is_named() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("exists").await;
    let client = daemon.client().await;
    let id = "not-an-id".to_owned();

    let get = v1::GetRunRequest { id: id.clone() };
    assert_eq!(blamed(&client.runs().get_run(get).await.unwrap_err()), "id");
    let wait = v1::WaitRunRequest { id: id.clone(), timeout: None };
    assert_eq!(blamed(&client.runs().wait_run(wait).await.unwrap_err()), "id");
    let stream = v1::StreamRunEventsRequest { id: id.clone(), after_sequence: 0, follow: true };
    assert_eq!(blamed(&client.runs().stream_run_events(stream).await.unwrap_err()), "id");
    let cancel = v1::CancelRunRequest { id, why: String::new() };
    assert_eq!(blamed(&client.runs().cancel_run(cancel).await.unwrap_err()), "id");

    let list = |request| async { client.runs().list_runs(request).await.unwrap_err() };
    let token = v1::ListRunsRequest { page_token: "next please".into(), ..Default::default() };
    assert_eq!(blamed(&list(token).await), "page_token");
    let size = v1::ListRunsRequest { page_size: -1, ..Default::default() };
    assert_eq!(blamed(&list(size).await), "page_size");
    for state in [0, 77, -1] {
        let states = v1::ListRunsRequest { states: vec![state], ..Default::default() };
        assert_eq!(blamed(&list(states).await), "states");
    }

    let timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let wait = v1::WaitRunRequest { id: run.id.clone(), timeout };
    assert_eq!(blamed(&client.runs().wait_run(wait).await.unwrap_err()), "timeout");
    let cancel = v1::CancelRunRequest { id: daemon.submit("go").await.id, why: "w".repeat(1001) };
    assert_eq!(blamed(&client.runs().cancel_run(cancel).await.unwrap_err()), "why");
}

#[tokio::test]
async fn a_run_that_does_not_exist_is_not_found_by_any_method() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let client = daemon.client().await;
    let not_found = (Code::NotFound, "RUN_NOT_FOUND".to_owned());
    let id = UNKNOWN.to_owned();

    let get = v1::GetRunRequest { id: id.clone() };
    assert_eq!(refusal(&client.runs().get_run(get).await.unwrap_err()), not_found);
    let wait = v1::WaitRunRequest { id: id.clone(), timeout: None };
    assert_eq!(refusal(&client.runs().wait_run(wait).await.unwrap_err()), not_found);
    for follow in [true, false] {
        let stream = v1::StreamRunEventsRequest { id: id.clone(), after_sequence: 0, follow };
        let status = client.runs().stream_run_events(stream).await.unwrap_err();
        assert_eq!(refusal(&status), not_found);
    }
    let cancel = v1::CancelRunRequest { id, why: String::new() };
    assert_eq!(refusal(&client.runs().cancel_run(cancel).await.unwrap_err()), not_found);
}

// Lists and waiting.

/// Pages of a list, each as the tasks of its runs.
async fn pages(daemon: &TestDaemon, page_size: i32, states: Vec<i32>) -> Vec<Vec<String>> {
    let (mut pages, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListRunsRequest {
            page_size,
            page_token,
            states: states.clone(),
            ..Default::default()
        };
        let page = daemon.client().await.runs().list_runs(request).await.unwrap().into_inner();
        pages.push(page.runs.into_iter().map(|run| run.task).collect());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return pages;
        }
    }
}

#[tokio::test]
async fn runs_are_listed_newest_first_a_page_at_a_time_and_by_state() {
    let backend = Backend::start(|seen: &Seen| match seen.task.ends_with('0') {
        true => silence(),
        false => Reply::Answer(Turn::say("done")),
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());
    for n in 1..=23 {
        daemon.submit(&format!("task {n:02}")).await;
    }
    for run in daemon.runs().await {
        daemon.wait(&run.id).await;
    }

    let newest_first: Vec<String> = (1..=23).rev().map(|n| format!("task {n:02}")).collect();
    let expected: Vec<Vec<String>> = newest_first.chunks(10).map(<[_]>::to_vec).collect();
    assert_eq!(pages(&daemon, 10, vec![]).await, expected);
    assert_eq!(pages(&daemon, 23, vec![]).await, std::slice::from_ref(&newest_first));
    assert_eq!(pages(&daemon, 0, vec![]).await, [newest_first], "fifty, if nobody says");
    let state = |state: RunState| i32::from(state);
    assert_eq!(pages(&daemon, 1, vec![state(RunState::Failed)]).await, [["task 20"], ["task 10"]]);
    let both = vec![state(RunState::Failed), state(RunState::Succeeded)];
    assert_eq!(pages(&daemon, 10, both).await, expected);
    let none = vec![state(RunState::Paused)];
    assert_eq!(pages(&daemon, 10, none).await, [Vec::<String>::new()]);
}

#[tokio::test]
async fn a_run_that_is_submitted_meanwhile_moves_no_later_page() {
    let backend = silent().await;
    let daemon = TestDaemon::start(&backend.url());
    for task in ["a", "b", "c", "d"] {
        daemon.submit(task).await;
    }
    let list = async |page_token: String| {
        let request = v1::ListRunsRequest { page_size: 2, page_token, ..Default::default() };
        let page = daemon.client().await.runs().list_runs(request).await.unwrap().into_inner();
        let tasks: Vec<String> = page.runs.into_iter().map(|run| run.task).collect();
        (tasks, page.next_page_token)
    };

    let (first, token) = list(String::new()).await;
    daemon.submit("e").await;
    let (second, end) = list(token).await;

    assert_eq!((first, second), (vec!["d".into(), "c".into()], vec!["b".into(), "a".into()]));
    assert_eq!(end, "");
}

#[tokio::test]
async fn waiting_for_a_run_whose_model_hangs_ends_with_the_time_and_says_so() {
    let backend = silent().await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("take your time").await;
    daemon.wait_for_entry(&run.id, "model_request").await;

    for millis in [0, 50] {
        let timeout = Some(Duration::from_millis(millis).try_into().unwrap());
        let request = v1::WaitRunRequest { id: run.id.clone(), timeout };
        let answer = daemon.client().await.runs().wait_run(request).await.unwrap().into_inner();
        let run = daemon.get(&run.id).await;
        assert_eq!(run.state(), RunState::Executing);
        assert_eq!(answer, v1::WaitRunResponse { run: Some(run), timed_out: true });
    }
}

// Workspaces and room.

/// First task: a program that ends once there is a file `go`. Every other task: an answer.
async fn gate_first() -> Backend {
    Backend::start(|seen: &Seen| match (seen.task.as_str(), seen.turn) {
        ("first", 1) => Reply::Answer(Turn::call("shell_exec", json!({"command": "sh pure.sh"}))),
        _ => Reply::Answer(Turn::say("done")),
    })
    .await
}

#[tokio::test]
async fn two_runs_in_one_workspace_go_one_after_the_other() {
    let backend = gate_first().await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("pure.sh", "echo up >up; until [ -e go ]; do sleep 0.02; done");
    let first = daemon.submit("first").await;
    // The same directory by another name is the same workspace.
    symlink("workspace", daemon.home().join("alias")).unwrap();
    let alias = daemon.home().join("alias").display().to_string();
    let second = v1::CreateRunRequest { workspace: alias, ..daemon.request("second") };
    let second = daemon.create(second).await.unwrap().run.unwrap();

    daemon.wait_for_file("up").await;
    assert_eq!(daemon.get(&second.id).await.state(), RunState::Queued);
    daemon.put("go", "");

    let (first, second) = (daemon.story(&first.id).await, daemon.story(&second.id).await);
    assert_eq!((first.state(), second.state()), (RunState::Succeeded, RunState::Succeeded));
    let end = first.entries.last().unwrap();
    let start = second.entries.iter().find(|entry| entry.kind == "model_request").unwrap();
    assert!(start.position > end.position, "{} > {}", start.position, end.position);
}

#[tokio::test]
async fn a_workspace_within_another_is_not_free_while_the_other_is_used() {
    for (first, second) in [("", "sub"), ("sub", "")] {
        let backend = gate_first().await;
        let daemon = TestDaemon::start(&backend.url());
        daemon.put("sub/pure.sh", "echo up >up; until [ -e go ]; do sleep 0.02; done");
        daemon.put("pure.sh", "echo up >up; until [ -e go ]; do sleep 0.02; done");
        let submit = async |task: &str, directory: &str| {
            let workspace = daemon.workspace().join(directory).display().to_string();
            let request = v1::CreateRunRequest { workspace, ..daemon.request(task) };
            daemon.create(request).await.unwrap().run.unwrap().id
        };
        let (outer, inner) = (submit("first", first).await, submit("second", second).await);
        daemon.wait_for_file(format!("{first}/up").trim_start_matches('/')).await;
        assert_eq!(daemon.get(&inner).await.state(), RunState::Queued, "{first:?} {second:?}");
        daemon.put(format!("{first}/go").trim_start_matches('/'), "");
        for id in [outer, inner] {
            assert_eq!(daemon.wait(&id).await.state(), RunState::Succeeded);
        }
    }
}

#[tokio::test]
async fn two_runs_in_different_workspaces_go_at_the_same_time() {
    let turns =
        vec![Turn::call("shell_exec", json!({"command": "sh pure.sh"})), Turn::say("we met")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    for name in ["east", "west"] {
        let script = "echo here >here; until [ -e met ]; do sleep 0.02; done";
        daemon.put(&format!("{name}/pure.sh"), script);
    }
    let workspace = |name: &str| daemon.workspace().join(name).display().to_string();
    let run = async |name: &str| {
        let request = v1::CreateRunRequest { workspace: workspace(name), ..daemon.request("meet") };
        daemon.create(request).await.map(|answer| answer.run.unwrap().id)
    };

    let ids = try_join_all([run("east"), run("west")]).await.unwrap();

    // Both are told to go on once both are there: one after the other they would wait for ever.
    let is_here = |name: &str| daemon.read(&format!("{name}/here")).is_some();
    wait_until("both are here", || is_here("east") && is_here("west")).await;
    for name in ["east/met", "west/met"] {
        daemon.put(name, "");
    }
    for id in ids {
        assert_eq!(daemon.wait(&id).await.answer, "we met");
    }
}

#[tokio::test]
async fn beyond_its_room_the_daemon_refuses_runs_and_says_when_to_try_again() {
    let backend = silent().await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: "limits: {running_runs: 1, queued_runs: 1}\n".into(),
        ..Settings::default()
    });
    let running = daemon.submit("running").await;
    let (waiting, _) = submitted(&daemon, named(&daemon, "waiting", "w")).await;

    let status = daemon.create(daemon.request("too many")).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "QUEUE_FULL".into()));
    let retry = status.get_details_retry_info().expect("when to try again");
    assert_eq!(retry.retry_delay, Some(Duration::from_secs(1)));
    // What was accepted before stays accepted: the caller may not have heard.
    assert_eq!(submitted(&daemon, named(&daemon, "waiting", "w")).await, (waiting.clone(), true));

    daemon.cancel(&running.id).await;
    backend.wait_for_requests(2).await;
    daemon.submit("now there is room").await;
    assert_eq!(backend.tasks(), ["running", "waiting"]);
}
