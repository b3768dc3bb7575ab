//! Calls that a rule wants a person to allow: nothing is done before, exactly what was shown is done then, once, and
//! what was said survives the daemon.

use std::fs;

use agentd::{
    proto::v1::{self, ApprovalScope, RunState},
    scripted::{Reply, Script, Seen, Turn},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    policy::{append, reload},
    support::{Backend, Settings, TestDaemon, refusal, wait_until},
};

const ASKS: &str =
    "  - {id: test.asks, argv: [sh, asks.sh], decision: require_approval, why: it publishes}\n";

fn asking() -> Turn {
    Turn::call("shell_exec", json!({"command": "sh asks.sh"}))
}

async fn daemon_with(turns: Vec<Turn>) -> (Backend, TestDaemon) {
    let backend = Backend::start(Script { turns }).await;
    let settings =
        Settings { base_url: backend.url(), commands: ASKS.into(), ..Settings::default() };
    let daemon = TestDaemon::start_with(settings);
    daemon.put("asks.sh", "echo ran >>ran\n");
    (backend, daemon)
}

/// A run that waits for a person, and what it asks.
async fn waiting() -> (Backend, TestDaemon, v1::Run, v1::PendingApproval) {
    let (backend, daemon) = daemon_with(vec![asking(), Turn::say("done")]).await;
    let run = daemon.submit("publish it").await;
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::AwaitingApproval);
    let asked = pending(&daemon).await.remove(0);
    assert!(daemon.audit().await.intact, "also while something is asked");
    (backend, daemon, run, asked)
}

async fn pending(daemon: &TestDaemon) -> Vec<v1::PendingApproval> {
    let request = v1::ListPendingApprovalsRequest::default();
    let page = daemon.client().await.runs().list_pending_approvals(request).await.unwrap();
    page.into_inner().approvals
}

fn approval(asked: &v1::PendingApproval) -> v1::ApproveToolCallRequest {
    v1::ApproveToolCallRequest {
        run_id: asked.run_id.clone(),
        turn: asked.turn,
        index: asked.index,
        digest: asked.digest.clone(),
        ..Default::default()
    }
}

async fn approve(
    daemon: &TestDaemon,
    request: v1::ApproveToolCallRequest,
) -> Result<v1::Run, tonic::Status> {
    Ok(daemon.client().await.runs().approve_tool_call(request).await?.into_inner().run.unwrap())
}

async fn deny(daemon: &TestDaemon, asked: &v1::PendingApproval) -> Result<v1::Run, tonic::Status> {
    let request = v1::DenyToolCallRequest {
        run_id: asked.run_id.clone(),
        turn: asked.turn,
        index: asked.index,
        digest: asked.digest.clone(),
        why: "not on a Friday".into(),
    };
    Ok(daemon.client().await.runs().deny_tool_call(request).await?.into_inner().run.unwrap())
}

fn times_run(daemon: &TestDaemon) -> usize {
    daemon.read("ran").unwrap_or_default().lines().count()
}

async fn state_of_the_call(daemon: &TestDaemon, run: &v1::Run) -> String {
    let listed = daemon.agentctl(&["run", "tools", &run.id, "-o", "json"]).await;
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    listed["tool_calls"][0]["state"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_call_waits_for_a_person_who_sees_what_it_would_do_and_then_runs_once() {
    let (backend, daemon, run, asked) = waiting().await;
    assert_eq!(daemon.get(&run.id).await.error.unwrap().reason, "APPROVAL_REQUIRED");
    assert_eq!(times_run(&daemon), 0, "nothing is done before");
    assert_eq!(state_of_the_call(&daemon, &run).await, "AWAITING_APPROVAL");
    assert_eq!(
        (&*asked.rule, &*asked.why, &*asked.tool, &*asked.task),
        ("test.asks", "it publishes", "shell_exec", "publish it")
    );
    let facts: Value = serde_json::from_str(&asked.facts).unwrap();
    assert_eq!(facts["argv"], json!(["sh", "asks.sh"]));
    assert!(facts["executable"].as_str().unwrap().starts_with('/'), "{facts}");
    let shown = daemon.agentctl(&["approvals"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(&run.id) && shown.contains(r#""sh" "asks.sh""#), "{shown}");
    assert!(shown.contains(&asked.digest[..12]), "{shown}");

    let approve = ["run", "approve", &run.id, "1.0"];
    for (flags, exit) in
        [(vec![], 2), (vec!["--digest", "0123"], 2), (vec!["--digest", "000000000000"], 1)]
    {
        let unseen = daemon.agentctl(&[&approve[..], &flags].concat()).await;
        assert_eq!(unseen.status.code(), Some(exit), "{flags:?} {unseen:?}");
    }
    assert_eq!(times_run(&daemon), 0, "what nobody looked at is not allowed");
    let flags = ["--digest", &asked.digest[..12], "--why", "looks fine"];
    let said = daemon.agentctl(&[&approve[..], &flags].concat()).await;

    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), times_run(&daemon)), (RunState::Succeeded, 1));
    assert_eq!(
        story.kinds()[3..],
        [
            "tool_call",
            "decision",
            "approval_requested",
            "run_suspended",
            "approval_decided",
            "workspace_snapshot",
            "decision",
            "tool_output",
            "model_request",
            "model_response",
            "run_finished"
        ]
    );
    assert_eq!(story.decisions(), ["require_approval test.asks", "allow test.asks"]);
    let said = &story.payloads("approval_decided")[0];
    assert_eq!((&said["decision"], &said["why"]), (&json!("approved"), &json!("looks fine")));
    assert!(said["by"].as_str().unwrap().starts_with("uid:"), "{said}");
    story.assert_calls_are_tied();
    backend.assert_paired();
    assert_eq!(pending(&daemon).await, []);
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_call_that_a_person_denies_is_not_done_and_the_model_reads_why() {
    let (backend, daemon, run, _) = waiting().await;
    let said = daemon.agentctl(&["run", "deny", &run.id, "1.0", "--why", "not on a Friday"]).await;
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), times_run(&daemon)), (RunState::Succeeded, 0));
    let (outcome, output) = story.outputs().remove(0);
    assert_eq!(
        (&*outcome, &output["error"]["rule"]),
        ("refused", &json!("builtin/approval-denied"))
    );
    assert!(backend.server.requests()[1].to_string().contains("not on a Friday"));
    story.assert_calls_are_tied();
}

#[tokio::test]
async fn the_first_decision_holds_the_same_again_is_fine_and_the_opposite_is_refused() {
    let (_backend, daemon, run, asked) = waiting().await;
    let nothing = v1::ApproveToolCallRequest { digest: String::new(), ..approval(&asked) };
    let nothing = approve(&daemon, nothing).await.unwrap_err();
    assert_eq!(refusal(&nothing), (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
    let other = v1::ApproveToolCallRequest { digest: "00".repeat(32), ..approval(&asked) };
    let other = approve(&daemon, other).await.unwrap_err();
    assert_eq!(refusal(&other), (Code::Aborted, "APPROVAL_CHANGED".into()));
    let elsewhere = v1::ApproveToolCallRequest { index: 7, ..approval(&asked) };
    let elsewhere = approve(&daemon, elsewhere).await.unwrap_err();
    assert_eq!(refusal(&elsewhere), (Code::FailedPrecondition, "CALL_NOT_WAITING".into()));
    assert_eq!(daemon.get(&run.id).await.state(), RunState::AwaitingApproval);

    approve(&daemon, approval(&asked)).await.unwrap();
    for _ in 0..2 {
        approve(&daemon, approval(&asked)).await.unwrap();
        let opposite = deny(&daemon, &asked).await.unwrap_err();
        assert_eq!(refusal(&opposite), (Code::FailedPrecondition, "CALL_ALREADY_DECIDED".into()));
        daemon.wait(&run.id).await;
    }
    let story = daemon.story(&run.id).await;
    assert_eq!((story.payloads("approval_decided").len(), times_run(&daemon)), (1, 1));
}

#[tokio::test]
async fn of_many_who_decide_at_once_one_does_and_the_call_runs_at_most_once() {
    let (_backend, daemon, run, asked) = waiting().await;
    let both = (0..8).map(async |n| match n % 2 {
        0 => approve(&daemon, approval(&asked)).await.map(|_| "approved"),
        _ => deny(&daemon, &asked).await.map(|_| "denied"),
    });
    let said = futures_util::future::join_all(both).await;
    let story = daemon.story(&run.id).await;
    let decided = story.payloads("approval_decided");
    assert_eq!(decided.len(), 1);
    let held = decided[0]["decision"].as_str().unwrap();
    for said in said {
        match said {
            Ok(said) => assert_eq!(said, held),
            Err(status) => assert_eq!(refusal(&status).1, "CALL_ALREADY_DECIDED"),
        }
    }
    assert_eq!(times_run(&daemon), usize::from(held == "approved"));
}

#[tokio::test]
async fn a_question_and_an_answer_survive_the_daemon() {
    let (_backend, mut daemon, run, asked) = waiting().await;
    daemon.kill();
    daemon.restart();
    assert_eq!(pending(&daemon).await, std::slice::from_ref(&asked));
    assert_eq!(daemon.get(&run.id).await.state(), RunState::AwaitingApproval);
    approve(&daemon, approval(&asked)).await.unwrap();
    // At whatever moment it dies now: the leave is used once, or the outcome is a person's to say.
    daemon.kill();
    daemon.restart();
    let state = daemon.wait(&run.id).await.state();
    let story = daemon.story(&run.id).await;
    assert_eq!(story.payloads("approval_decided").len(), 1);
    match state {
        RunState::NeedsAttention => assert!(times_run(&daemon) <= 1),
        state => assert_eq!((state, times_run(&daemon)), (RunState::Succeeded, 1)),
    }
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn nobody_s_leave_is_used_twice() {
    let (_backend, daemon) = daemon_with(vec![asking(), asking(), Turn::say("done")]).await;
    let run = daemon.submit("publish it twice").await;
    for times in 0..2 {
        assert_eq!(daemon.wait(&run.id).await.state(), RunState::AwaitingApproval);
        assert_eq!(times_run(&daemon), times);
        let asked = pending(&daemon).await.remove(0);
        assert_eq!(asked.turn as usize, times + 1, "each call is asked about by itself");
        approve(&daemon, approval(&asked)).await.unwrap();
    }
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Succeeded);
    assert_eq!(times_run(&daemon), 2);
}

#[tokio::test]
async fn leave_for_the_run_holds_for_that_rule_until_the_policy_changes() {
    let turns = vec![asking(), asking(), asking(), Turn::say("done")];
    let (_backend, daemon) = daemon_with(turns).await;
    // The third call comes once the policy has been reloaded: the second waits for that.
    daemon.put(
        "asks.sh",
        "echo ran >>ran\n[ $(wc -l <ran) != 2 ] || until [ -e go ]; do sleep 0.02; done\n",
    );
    let run = daemon.submit("publish it often").await;
    daemon.wait(&run.id).await;
    let asked = pending(&daemon).await.remove(0);
    let always =
        v1::ApproveToolCallRequest { scope: ApprovalScope::Run.into(), ..approval(&asked) };
    approve(&daemon, always).await.unwrap();
    wait_until("the second call runs", || times_run(&daemon) == 2).await;
    append(&daemon, "  - {id: test.more, argv: [true], positionals: none, why: harmless}\n");
    reload(&daemon, "").await.unwrap();
    daemon.put("go", "");

    assert_eq!(daemon.wait(&run.id).await.state(), RunState::AwaitingApproval, "asked anew");
    let story = daemon.story(&run.id).await;
    let grant = &story.payloads("approval_decided")[0]["grant"];
    assert_eq!((&grant["rule"], &grant["tool"]), (&json!("test.asks"), &json!("shell_exec")));
    assert_eq!(story.payloads("approval_requested").len(), 2, "the first call and the third");
    assert_eq!(times_run(&daemon), 2);
    let other = daemon.submit("another run").await;
    daemon.cancel(&run.id).await;
    assert_eq!(
        daemon.wait(&other.id).await.state(),
        RunState::AwaitingApproval,
        "of that run alone"
    );
}

#[tokio::test]
async fn a_policy_that_denies_by_now_is_obeyed_in_spite_of_the_leave() {
    let (_backend, daemon, run, asked) = waiting().await;
    append(&daemon, "  - {id: test.never, argv: [sh], decision: deny, why: \"no shell today\"}\n");
    reload(&daemon, "").await.unwrap();
    approve(&daemon, approval(&asked)).await.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!(story.decisions(), ["require_approval test.asks", "deny test.never"]);
    assert_eq!((story.outputs()[0].0.as_str(), times_run(&daemon)), ("refused", 0));
}

#[tokio::test]
async fn what_has_changed_since_it_was_shown_is_asked_about_anew() {
    let edit = json!({"path": "guarded.txt", "old_text": "one", "new_text": "two"});
    let turns = vec![Turn::call("edit_file", edit), Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let rule = "rules:\n  - {id: test.guarded, glob: guarded.txt, operations: [write], decision: require_approval, why: it is guarded}\n";
    let paths = agentd::policy_files::DEFAULT_PATHS.replacen("rules:\n", rule, 1);
    let settings = Settings { base_url: backend.url(), paths: Some(paths), ..Settings::default() };
    let daemon = TestDaemon::start_with(settings);
    daemon.put("guarded.txt", "one\n");
    let run = daemon.submit("edit it").await;
    daemon.wait(&run.id).await;
    let first = pending(&daemon).await.remove(0);
    daemon.put("guarded.txt", "zero\none\n");
    approve(&daemon, approval(&first)).await.unwrap();

    assert_eq!(daemon.wait(&run.id).await.state(), RunState::AwaitingApproval);
    let second = pending(&daemon).await.remove(0);
    assert_ne!(second.digest, first.digest);
    assert_eq!(daemon.read("guarded.txt").unwrap(), "zero\none\n", "nothing was done");
    let late = approve(&daemon, approval(&first)).await.unwrap_err();
    assert_eq!(refusal(&late), (Code::Aborted, "APPROVAL_CHANGED".into()));
    approve(&daemon, approval(&second)).await.unwrap();
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Succeeded);
    assert_eq!(daemon.read("guarded.txt").unwrap(), "zero\ntwo\n");
}

#[tokio::test]
async fn whoever_submitted_a_run_may_be_kept_from_allowing_its_calls() {
    let (_backend, daemon, run, asked) = waiting().await;
    let rules = daemon.home().join("policies/tools.yaml");
    let text = fs::read_to_string(&rules).unwrap();
    fs::write(&rules, text.replace("by_submitter: accept", "by_submitter: refuse")).unwrap();
    reload(&daemon, "").await.unwrap();
    let own = approve(&daemon, approval(&asked)).await.unwrap_err();
    assert_eq!(refusal(&own), (Code::PermissionDenied, "OWN_RUN".into()));
    let own = ["run", "approve", &run.id, "1.0", "--digest", &asked.digest];
    let own = daemon.agentctl(&own).await;
    assert_eq!(own.status.code(), Some(4), "{own:?}");
    assert_eq!(times_run(&daemon), 0);
    deny(&daemon, &asked).await.expect("it may refuse them");
}

#[tokio::test]
async fn a_question_that_nobody_answers_in_time_is_a_refusal_and_the_run_goes_on() {
    let (backend, daemon) = daemon_with(vec![asking(), Turn::say("done")]).await;
    let rules = daemon.home().join("policies/tools.yaml");
    let text = fs::read_to_string(&rules).unwrap();
    fs::write(&rules, text.replace("expire_seconds: 86400", "expire_seconds: 1")).unwrap();
    reload(&daemon, "").await.unwrap();
    let run = daemon.submit("publish it").await;
    daemon.wait_for_entry(&run.id, "run_finished").await;
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), times_run(&daemon)), (RunState::Succeeded, 0));
    assert_eq!(story.payloads("approval_decided")[0]["decision"], "expired");
    assert!(backend.server.requests()[1].to_string().contains("nobody did in time"));
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_it_asks_ends_and_nothing_was_done() {
    let (_backend, daemon, run, asked) = waiting().await;
    daemon.cancel(&run.id).await;
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), times_run(&daemon)), (RunState::Cancelled, 0));
    assert_eq!(story.outputs()[0].0, "cancelled");
    story.assert_calls_are_tied();
    assert_eq!(pending(&daemon).await, []);
    let late = approve(&daemon, approval(&asked)).await.unwrap_err();
    assert_eq!(refusal(&late), (Code::FailedPrecondition, "CALL_NOT_WAITING".into()));
}

#[tokio::test]
async fn a_call_is_allowed_while_another_of_its_turn_runs_and_a_pause_holds_it_back() {
    let both = Turn::call("shell_exec", json!({"command": "sh script.sh"}))
        .and_call("shell_exec", json!({"command": "sh asks.sh"}));
    let (_backend, daemon) = daemon_with(vec![both, Turn::say("done")]).await;
    daemon.put("script.sh", "echo up >up\nuntil [ -e go ]; do sleep 0.02; done\n");
    let run = daemon.submit("both").await;
    daemon.wait_for_file("up").await;
    let asked = pending(&daemon).await.remove(0);
    assert_eq!(daemon.get(&run.id).await.state(), RunState::Executing);
    approve(&daemon, approval(&asked)).await.unwrap();
    let pause = v1::PauseRunRequest { id: run.id.clone(), ..Default::default() };
    daemon.client().await.runs().pause_run(pause).await.unwrap();
    daemon.put("go", "");
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Paused);
    assert_eq!(times_run(&daemon), 0);
    let resume = v1::ResumeRunRequest { id: run.id.clone(), ..Default::default() };
    daemon.client().await.runs().resume_run(resume).await.unwrap();
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Succeeded);
    assert_eq!(times_run(&daemon), 1);
}

#[tokio::test]
async fn what_is_said_to_a_paused_run_is_heard_and_nothing_runs_until_it_goes_on() {
    let both = asking().and_call("shell_exec", json!({"command": "sh asks.sh again"}));
    let (_backend, daemon) = daemon_with(vec![both, Turn::say("done")]).await;
    let run = daemon.submit("both").await;
    daemon.wait(&run.id).await;
    let asked = pending(&daemon).await;
    assert_eq!(asked.len(), 2);
    let pause = v1::PauseRunRequest { id: run.id.clone(), ..Default::default() };
    daemon.client().await.runs().pause_run(pause).await.unwrap();
    approve(&daemon, approval(&asked[0])).await.unwrap();
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Paused);
    deny(&daemon, &asked[1]).await.unwrap();
    assert_eq!((pending(&daemon).await.len(), times_run(&daemon)), (0, 0));
    let opposite = approve(&daemon, approval(&asked[1])).await.unwrap_err();
    assert_eq!(refusal(&opposite).1, "CALL_ALREADY_DECIDED");
    let resume = v1::ResumeRunRequest { id: run.id.clone(), ..Default::default() };
    daemon.client().await.runs().resume_run(resume).await.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), times_run(&daemon)), (RunState::Succeeded, 1));
    let outcomes: Vec<String> = story.outputs().into_iter().map(|(outcome, _)| outcome).collect();
    assert!(outcomes.contains(&"done".to_owned()) && outcomes.contains(&"refused".to_owned()));
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn leave_for_the_run_covers_what_its_rule_asks_in_the_same_turn_too() {
    let both = asking().and_call("shell_exec", json!({"command": "sh asks.sh again"}));
    let (_backend, daemon) = daemon_with(vec![both, Turn::say("done")]).await;
    let run = daemon.submit("both").await;
    daemon.wait(&run.id).await;
    let asked = pending(&daemon).await.remove(0);
    let scope = ApprovalScope::Run.into();
    approve(&daemon, v1::ApproveToolCallRequest { scope, ..approval(&asked) }).await.unwrap();
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Succeeded);
    assert_eq!((pending(&daemon).await.len(), times_run(&daemon)), (0, 2));
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_path_that_a_rule_forbids_is_not_to_be_had_by_leave_for_a_command() {
    for word in [
        "--file=.env",
        "-f.env",
        "-d@.env",
        "a,.env",
        "x/../.env",
        "/somewhere/workspace/.env",
        "HEAD:.env",
    ] {
        let reads = Turn::call("shell_exec", json!({"command": format!("sh asks.sh {word}")}));
        let (_backend, daemon) = daemon_with(vec![reads, Turn::say("done")]).await;
        let run = daemon.submit("read it").await;
        daemon.wait(&run.id).await;
        let asked = pending(&daemon).await.remove(0);
        approve(&daemon, approval(&asked)).await.unwrap();
        let story = daemon.story(&run.id).await;
        assert_eq!(story.decisions(), ["require_approval test.asks", "deny secrets.env"], "{word}");
        assert_eq!(times_run(&daemon), 0, "{word}");
    }
}

#[tokio::test]
async fn more_words_than_a_person_reads_are_not_asked_about() {
    let long = format!("sh asks.sh {}", "a/".repeat(8 << 10));
    let asks = Turn::call("shell_exec", json!({"command": long}));
    let (_backend, daemon) = daemon_with(vec![asks, Turn::say("done")]).await;
    let story = daemon.carry_out("hide it").await;
    assert_eq!(story.decisions(), ["deny test.asks"]);
    assert!(story.outputs()[0].1.to_string().contains("more than a person is asked about"));
}

#[tokio::test]
async fn what_waits_is_listed_in_pages_over_all_runs() {
    let backend = Backend::start(|seen: &Seen| match seen.turn {
        1 => Reply::Answer(asking()),
        _ => Reply::Answer(Turn::say("done")),
    })
    .await;
    let settings =
        Settings { base_url: backend.url(), commands: ASKS.into(), ..Settings::default() };
    let daemon = TestDaemon::start_with(settings);
    let mut runs = Vec::new();
    for n in 0..3 {
        let run = daemon.submit(&format!("task {n}")).await;
        daemon.wait(&run.id).await;
        runs.push(run.id);
    }
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            v1::ListPendingApprovalsRequest { page_size: 2, page_token, run_id: String::new() };
        let page = daemon.client().await.runs().list_pending_approvals(request).await.unwrap();
        let page = page.into_inner();
        assert!(page.approvals.len() <= 2);
        found.extend(page.approvals.into_iter().map(|asked| asked.run_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, runs, "oldest first");
    let run_id = runs[1].clone();
    let request = v1::ListPendingApprovalsRequest { run_id, ..Default::default() };
    let page = daemon.client().await.runs().list_pending_approvals(request).await.unwrap();
    assert_eq!(page.into_inner().approvals.len(), 1);
}
