//! Runs that begin where another one was: with its conversation and nothing else of it, once, and the other stays as
//! it is.

use std::fs;

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Script, Seen, Turn},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{Backend, Settings, TestDaemon, refusal};

const SECRET: &str = "planted-91ab3c-secret";

fn reading() -> Turn {
    Turn::call("read_file", json!({"path": "a"}))
}

/// A run that has read a file and given an answer.
async fn ended() -> (Backend, TestDaemon, v1::Run) {
    let turns = vec![reading(), Turn::say("it says hello"), Turn::say("and goodbye")];
    let backend = Backend::start(Script { turns }).await;
    let environment = vec![("OPENAI_API_KEY".into(), SECRET.into())];
    let settings = Settings { base_url: backend.url(), environment, ..Settings::default() };
    let daemon = TestDaemon::start_with(settings);
    daemon.put("a", "hello");
    let run = daemon.carry_out(&format!("what does a say? the key is {SECRET}")).await.run;
    assert_eq!(run.state(), RunState::Succeeded);
    (backend, daemon, run)
}

async fn fork(daemon: &TestDaemon, wish: v1::ForkRunRequest) -> Result<v1::Run, tonic::Status> {
    Ok(daemon.client().await.runs().fork_run(wish).await?.into_inner().run.unwrap())
}

fn of(run: &v1::Run) -> v1::ForkRunRequest {
    v1::ForkRunRequest { id: run.id.clone(), ..Default::default() }
}

async fn checkpoints(daemon: &TestDaemon, run: &v1::Run) -> Vec<v1::Checkpoint> {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            v1::ListCheckpointsRequest { run_id: run.id.clone(), page_size: 2, page_token };
        let page = daemon.client().await.runs().list_checkpoints(request).await.unwrap();
        let page = page.into_inner();
        assert!(page.checkpoints.len() <= 2);
        found.extend(page.checkpoints);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

fn said(request: &Value) -> Vec<&str> {
    let items = request["input"].as_array().unwrap().iter();
    items.map(|item| item["type"].as_str().unwrap_or("message")).collect()
}

#[tokio::test]
async fn a_follow_up_on_an_ended_run_reads_all_that_was_said_and_what_is_said_now() {
    let (backend, daemon, run) = ended().await;
    let before = daemon.journal(&run.id).await;

    let follow = v1::ForkRunRequest { input: "and what else?".into(), ..of(&run) };
    let fork = fork(&daemon, follow).await.unwrap();

    assert_ne!(fork.id, run.id);
    let story = daemon.story(&fork.id).await;
    assert_eq!((story.state(), story.run.answer.as_str()), (RunState::Succeeded, "and goodbye"));
    assert_eq!(story.run.usage.unwrap().turns, 1, "counted anew");
    let from = story.run.forked_from.clone().unwrap();
    assert_eq!((&from.run_id, from.sequence), (&run.id, before.len() as u64 - 1));
    let request = backend.server.requests().pop().unwrap();
    assert_eq!(
        said(&request),
        ["message", "function_call", "function_call_output", "message", "message"]
    );
    assert!(request.to_string().contains("and what else?") && request.to_string().contains(SECRET));
    backend.assert_paired();
    assert_eq!(daemon.journal(&run.id).await, before, "the other run stays as it is");
    let created = &story.payloads("run_created")[0];
    assert_eq!(created["forked"], json!({"run": run.id, "sequence": from.sequence}));
    assert!(!story.entries.iter().any(|entry| entry.payload.contains(SECRET)));
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_run_begins_at_any_checkpoint_and_nowhere_else() {
    let (backend, daemon, run) = ended().await;
    let found = checkpoints(&daemon, &run).await;
    let shown: Vec<_> =
        found.iter().map(|one| (one.turn, one.item_count, one.wants_input)).collect();
    assert_eq!(shown, [(0, 1, false), (1, 3, false), (2, 4, true)]);
    let listed = daemon.agentctl(&["run", "checkpoints", &run.id]).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count(), 4, "{listed}");

    let at_sequence = found[1].sequence;
    let budget = Some(v1::Budget { max_turns: 7, ..Default::default() });
    let other = v1::ForkRunRequest { at_sequence, model: "other".into(), budget, ..of(&run) };
    let other = fork(&daemon, other).await.unwrap();
    assert_eq!(daemon.wait(&other.id).await.state(), RunState::Succeeded);
    let request = backend.server.requests().pop().unwrap();
    assert_eq!((request["model"].as_str(), said(&request).len()), (Some("other"), 3));
    let created = &daemon.story(&other.id).await.payloads("run_created")[0];
    assert_eq!(created["budget"]["max_turns"], 7);
    assert_eq!(created["budget"]["max_tool_calls"], 500, "the run's own");

    let mute = fork(&daemon, of(&run)).await.unwrap();
    assert_eq!(
        mute.forked_from.unwrap().sequence,
        found[1].sequence,
        "where the model can be asked"
    );
    let at_sequence = found[2].sequence;
    let mute = v1::ForkRunRequest { at_sequence, ..of(&run) };
    let mute = fork(&daemon, mute).await.unwrap_err();
    assert_eq!(refusal(&mute), (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
    assert!(mute.message().starts_with("input: "), "{mute}");
    for at_sequence in [found[0].sequence + 1, 999] {
        let nowhere = v1::ForkRunRequest { at_sequence, ..of(&run) };
        let nowhere = fork(&daemon, nowhere).await.unwrap_err();
        assert!(nowhere.message().starts_with("at_sequence: "), "{nowhere}");
    }
}

#[tokio::test]
async fn a_fork_that_is_asked_for_again_is_the_same_run_whatever_happens_meanwhile() {
    let (backend, mut daemon, run) = ended().await;
    let wish =
        v1::ForkRunRequest { input: "and what else?".into(), request_id: "f-1".into(), ..of(&run) };
    let first = fork(&daemon, wish.clone()).await.unwrap();
    daemon.kill();
    daemon.restart();
    assert_eq!(daemon.wait(&first.id).await.state(), RunState::Succeeded);
    let again = fork(&daemon, wish.clone()).await.unwrap();
    assert_eq!(again.id, first.id);
    let other = v1::ForkRunRequest { input: "something else".into(), ..wish };
    let other = fork(&daemon, other).await.unwrap_err();
    assert_eq!(refusal(&other), (Code::AlreadyExists, "REQUEST_ID_REUSED".into()));
    backend.assert_paired();
}

#[tokio::test]
async fn a_run_that_stands_still_in_a_call_is_gone_on_with_from_before_it() {
    let call = Turn::call("shell_exec", json!({"command": "sh script.sh"}));
    let turns = vec![call, Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.put("script.sh", "echo ran >>ran\nuntil [ -e go ]; do sleep 0.02; done\n");
    let run = daemon.submit("publish").await;
    daemon.wait_for_file("ran").await;
    daemon.restart();
    daemon.put("go", "");
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::NeedsAttention);

    let fork = fork(&daemon, of(&run)).await.unwrap();

    assert_eq!(daemon.wait(&fork.id).await.state(), RunState::Succeeded);
    assert_eq!(fork.forked_from.unwrap().sequence, 1, "before the model had asked for it");
    assert_eq!(daemon.get(&run.id).await.state(), RunState::NeedsAttention);
    assert_eq!(daemon.read("ran").unwrap().lines().count(), 2, "files are as they are");
}

#[tokio::test]
async fn failed_runs_are_begun_again_where_they_failed_and_each_once() {
    let go = tempfile::tempdir().unwrap();
    let path = go.path().join("go");
    let backend = Backend::start(move |seen: &Seen| match (seen.turn, path.exists()) {
        (1, _) => Reply::Answer(reading()),
        (_, false) => Reply::Http { status: 400, headers: vec![], body: "{}".into() },
        (_, true) => Reply::Answer(Turn::say("done")),
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("a", "hello");
    for _ in 0..2 {
        assert_eq!(daemon.carry_out("read").await.state(), RunState::Failed);
    }
    fs::write(go.path().join("go"), "").unwrap();
    let asked = backend.server.requests().len();

    let filter = ["run", "retry", "--state", "failed", "-o", "json"];
    let shown = daemon.agentctl(&filter).await;
    assert!(String::from_utf8_lossy(&shown.stderr).contains("2 runs to retry; nothing was done"));
    for _ in 0..2 {
        let done = daemon.agentctl(&[&filter[..], &["--yes"]].concat()).await;
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let runs: Value = serde_json::from_slice(&done.stdout).unwrap();
        for run in runs["runs"].as_array().unwrap() {
            let run = daemon.wait(run["id"].as_str().unwrap()).await;
            assert_eq!((run.state(), run.usage.unwrap().turns), (RunState::Succeeded, 1));
        }
    }
    assert_eq!(backend.server.requests().len() - asked, 2, "not from the start, and once each");
}

#[tokio::test]
async fn all_that_is_known_of_a_run_is_exported_as_files() {
    let (_backend, daemon, run) = ended().await;
    let to = daemon.home().join("exported");
    let export = ["run", "export", &run.id, "--to", to.to_str().unwrap()];
    let done = daemon.agentctl(&export).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let read = |name: &str| fs::read_to_string(to.join(name)).unwrap();
    let exported: Value = serde_json::from_str(&read("run.json")).unwrap();
    assert_eq!(exported["id"], run.id.as_str());
    let entries = daemon.journal(&run.id).await;
    let lines: Vec<Value> =
        read("journal.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), entries.len());
    assert_eq!(lines[0]["kind"], "run_created");
    assert_eq!(read("answer.md"), "it says hello\n");
    let calls: Value = serde_json::from_str(&read("tool-calls.json")).unwrap();
    assert_eq!(calls["tool_calls"][0]["tool"], "read_file");
    assert!(!to.join("changes.patch").exists(), "no git repository, no patch");
    assert!(String::from_utf8_lossy(&done.stderr).contains("no changes.patch"));
    let again = daemon.agentctl(&export).await;
    assert_eq!(again.status.code(), Some(2), "nothing is overwritten: {again:?}");
}
