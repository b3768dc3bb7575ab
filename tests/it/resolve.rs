//! What a person says of a call that was under way when the daemon died, and what becomes of its run then.

use agentd::{
    proto::v1::{self, CallResolution, RunState},
    scripted::{Script, Turn},
};
use serde_json::{Value, json};

use crate::support::{Backend, Story, TestDaemon, refusal, wait_until};

/// Adds a line to a file each time it runs, and waits for another file.
const BLOCKS: &str = "\
echo ran >>ran
until [ -e go ]; do sleep 0.02; done
echo through
";

/// A run that stands still, since its daemon died while a program ran that must not run twice.
async fn standing_still() -> (Backend, TestDaemon, v1::Run) {
    standing_still_under("ask").await
}

/// The same where the policy says `on_unknown`.
async fn standing_still_under(on_unknown: &str) -> (Backend, TestDaemon, v1::Run) {
    let turns =
        vec![Turn::call("shell_exec", json!({"command": "sh script.sh"})), Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let mut daemon = TestDaemon::start(&backend.url());
    let rules = daemon.home().join("policies/tools.yaml");
    let text = std::fs::read_to_string(&rules).unwrap();
    let text = text.replace("on_unknown: ask", &format!("on_unknown: {on_unknown}"));
    std::fs::write(rules, text).unwrap();
    assert!(daemon.agentctl(&["policy", "reload"]).await.status.success());
    daemon.put("script.sh", BLOCKS);
    let run = daemon.submit("publish it").await;
    daemon.wait_for_file("ran").await;
    daemon.kill();
    daemon.put("go", "");
    daemon.restart();
    (backend, daemon, run)
}

fn request(run: &v1::Run, resolution: CallResolution) -> v1::ResolveToolCallRequest {
    v1::ResolveToolCallRequest {
        run_id: run.id.clone(),
        turn: 1,
        resolution: resolution.into(),
        ..v1::ResolveToolCallRequest::default()
    }
}

async fn resolve(
    daemon: &TestDaemon,
    request: v1::ResolveToolCallRequest,
) -> Result<v1::Run, tonic::Status> {
    let answer = daemon.client().await.runs().resolve_tool_call(request).await?;
    Ok(answer.into_inner().run.unwrap())
}

/// As agentctl lists it.
async fn state_of_the_call(daemon: &TestDaemon, run: &v1::Run) -> String {
    let listed = daemon.agentctl(&["run", "tools", &run.id, "-o", "json"]).await;
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    listed["tool_calls"][0]["state"].as_str().unwrap().to_owned()
}

fn times_run(daemon: &TestDaemon) -> usize {
    daemon.read("ran").unwrap_or_default().lines().count()
}

fn resolutions(story: &Story) -> Vec<String> {
    let payloads = story.payloads("call_resolved");
    payloads.iter().map(|payload| payload["resolution"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_call_that_did_run_is_not_run_again_and_the_model_reads_what_it_gave() {
    let (backend, daemon, run) = standing_still().await;
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::NeedsAttention);
    assert_eq!(state_of_the_call(&daemon, &run).await, "UNRESOLVED");

    let resolve = ["run", "resolve", &run.id, "1.0", "did-run", "--result", "v1.2 is out"];
    let said = daemon.agentctl(&[&resolve[..], &["--why", "I looked"]].concat()).await;

    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    assert_eq!(
        story.kinds()[6..],
        [
            "run_recovered",
            "run_suspended",
            "call_resolved",
            "tool_output",
            "model_request",
            "model_response",
            "run_finished"
        ]
    );
    let resolved = &story.payloads("call_resolved")[0];
    assert_eq!((&resolved["call"], &resolved["why"]), (&json!("1.0"), &json!("I looked")));
    assert!(resolved["by"].as_str().unwrap().starts_with("uid:"), "{resolved}");
    let (outcome, output) = &story.outputs()[0];
    assert_eq!((outcome.as_str(), &output["result"]), ("done", &json!("v1.2 is out")));
    assert!(backend.server.requests()[1].to_string().contains("v1.2 is out"), "the model reads it");
    assert_eq!(times_run(&daemon), 1);
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_call_that_did_not_run_is_not_run_again_and_the_model_is_told() {
    let (_backend, daemon, run) = standing_still().await;
    daemon.wait(&run.id).await;
    resolve(&daemon, request(&run, CallResolution::DidNotRun)).await.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), times_run(&daemon)), (RunState::Succeeded, 1));
    let (outcome, output) = &story.outputs()[0];
    assert_eq!((outcome.as_str(), &output["error"]["reason"]), ("failed", &json!("DID_NOT_RUN")));
}

#[tokio::test]
async fn a_call_that_is_to_be_run_again_is_run_once_more_also_by_the_next_daemon() {
    let (_backend, mut daemon, run) = standing_still().await;
    daemon.wait(&run.id).await;
    resolve(&daemon, request(&run, CallResolution::Retry)).await.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), times_run(&daemon)), (RunState::Succeeded, 2));
    assert_eq!(story.outputs()[0].1["stdout"], "through\n");
    assert_eq!(story.payloads("tool_resumed")[0]["attempt"], 2);

    daemon.restart();
    assert_eq!(times_run(&daemon), 2);
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_call_that_is_lost_again_when_it_was_run_again_needs_somebody_again() {
    let (_backend, mut daemon, run) = standing_still().await;
    daemon.wait(&run.id).await;
    std::fs::remove_file(daemon.workspace().join("go")).unwrap();
    resolve(&daemon, request(&run, CallResolution::Retry)).await.unwrap();
    daemon.wait_for_entry(&run.id, "tool_resumed").await;
    wait_until("it runs again", || times_run(&daemon) == 2).await;
    daemon.restart();
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::NeedsAttention);
    resolve(&daemon, request(&run, CallResolution::DidRun)).await.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), times_run(&daemon)), (RunState::Succeeded, 2));
    assert_eq!(resolutions(&story), ["retry", "did_run"]);
}

#[tokio::test]
async fn the_same_again_changes_nothing_and_anything_else_is_refused() {
    let (_backend, daemon, run) = standing_still().await;
    daemon.wait(&run.id).await;
    let daemon = &daemon;
    let refused = async |wanted| {
        let (code, reason) = refusal(&resolve(daemon, wanted).await.unwrap_err());
        assert_eq!(code, tonic::Code::FailedPrecondition);
        reason
    };
    let elsewhere = v1::ResolveToolCallRequest { turn: 2, ..request(&run, CallResolution::Retry) };
    assert_eq!(refused(elsewhere).await, "CALL_NOT_UNRESOLVED");
    resolve(daemon, request(&run, CallResolution::DidNotRun)).await.unwrap();
    resolve(daemon, request(&run, CallResolution::DidNotRun)).await.unwrap();
    assert_eq!(refused(request(&run, CallResolution::Retry)).await, "CALL_ALREADY_RESOLVED");
    let ended = daemon.story(&run.id).await;
    resolve(daemon, request(&run, CallResolution::DidNotRun)).await.unwrap();
    let after = daemon.story(&run.id).await;
    assert_eq!((ended.run, ended.entries), (after.run.clone(), after.entries.clone()));
    assert_eq!(resolutions(&after), ["did_not_run"]);
}

#[tokio::test]
async fn a_run_that_goes_on_waits_for_its_workspace_as_any_other() {
    let (_backend, daemon, run) = standing_still().await;
    daemon.wait(&run.id).await;
    std::fs::remove_file(daemon.workspace().join("go")).unwrap();
    let other = daemon.submit("publish it, too").await;
    daemon.wait_for_entry(&other.id, "tool_call").await;
    resolve(&daemon, request(&run, CallResolution::Retry)).await.unwrap();
    let waits = daemon.journal(&run.id).await;
    assert_eq!(waits.last().unwrap().kind, "call_resolved", "the other has the workspace");
    daemon.put("go", "");
    let (other, run) = (daemon.story(&other.id).await, daemon.story(&run.id).await);
    assert_eq!((other.state(), run.state()), (RunState::Succeeded, RunState::Succeeded));
    let resumed = run.entries.iter().find(|entry| entry.kind == "tool_resumed").unwrap();
    assert!(resumed.position > other.entries.last().unwrap().position, "one after the other");
}

#[tokio::test]
async fn where_the_policy_says_so_the_model_is_told_that_nobody_knows() {
    let (_backend, daemon, run) = standing_still_under("tell_model").await;
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), times_run(&daemon)), (RunState::Succeeded, 1));
    let (outcome, output) = &story.outputs()[0];
    assert_eq!(
        (outcome.as_str(), &output["error"]["reason"]),
        ("failed", &json!("OUTCOME_UNKNOWN"))
    );
}
