//! The policy while the daemon lives: what is reloaded holds for the next call, whole or not at all, and the
//! record says which revision decided.

use std::fs;

use agentd::{
    proto::v1,
    scripted::{Script, Turn},
};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{Backend, TestDaemon, refusal, wait_until};

/// A daemon whose model has the same script run twice.
pub(crate) async fn daemon() -> (Backend, TestDaemon) {
    let call = || Turn::call("shell_exec", json!({"command": ["sh", "pure.sh"]}));
    let turns = vec![call(), call(), Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    (backend, daemon)
}

/// Adds a rule that denies the script.
fn tighten(daemon: &TestDaemon) {
    append(daemon, "  - {id: test.never, argv: [sh], decision: deny, why: \"no shell today\"}\n");
}

pub(crate) fn append(daemon: &TestDaemon, text: &str) {
    let path = daemon.home().join("policies/tools.yaml");
    let before = fs::read_to_string(&path).unwrap();
    // As editors do: nobody reads half a file.
    let beside = daemon.home().join("policies/tools.yaml.new");
    fs::write(&beside, before + text).unwrap();
    fs::rename(beside, path).unwrap();
}

pub(crate) async fn in_force(daemon: &TestDaemon) -> v1::Policy {
    let answer = daemon.client().await.policy().get_policy(v1::GetPolicyRequest {}).await.unwrap();
    answer.into_inner().policy.unwrap()
}

pub(crate) async fn reload(
    daemon: &TestDaemon,
    expected: &str,
) -> Result<v1::ReloadPolicyResponse, tonic::Status> {
    let request = v1::ReloadPolicyRequest { expected_revision: expected.into() };
    Ok(daemon.client().await.policy().reload_policy(request).await?.into_inner())
}

pub(crate) fn hang_up(daemon: &TestDaemon) {
    kill_process(daemon.pid(), Signal::HUP).unwrap();
}

/// What the journal says of reloads, oldest first.
fn noted(daemon: &TestDaemon) -> Vec<Value> {
    daemon.entries_of_the_daemon("policy_reload")
}

/// Carries out a run whose policy is tightened by `how` between its first call and its second.
async fn tightened(how: impl AsyncFnOnce(&TestDaemon)) {
    let (_backend, daemon) = daemon().await;
    let before = in_force(&daemon).await.revision;
    daemon.put("pure.sh", "echo here > here; until [ -e go ]; do sleep 0.02; done");
    let run = daemon.submit("twice").await;
    wait_until("the first call runs", || daemon.read("here").is_some()).await;

    tighten(&daemon);
    how(&daemon).await;
    let after = in_force(&daemon).await.revision;
    assert_ne!(before, after);
    daemon.put("go", "");

    let story = daemon.story(&run.id).await;
    assert_eq!(story.decisions(), ["allow test.pure", "deny test.never"]);
    let outputs = story.outputs();
    assert_eq!((outputs[0].0.as_str(), outputs[1].0.as_str()), ("done", "refused"));
    let decisions = story.entries.iter().filter(|entry| entry.kind == "decision");
    let revisions: Vec<_> = decisions.map(|entry| entry.policy_revision.clone()).collect();
    assert_eq!(revisions, [before.clone(), after.clone()]);
    let noted = noted(&daemon);
    assert_eq!(noted.len(), 1);
    assert_eq!((&noted[0]["before"], &noted[0]["revision"]), (&json!(before), &json!(after)));
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_policy_reloaded_by_rpc_decides_the_next_call_of_a_running_run() {
    tightened(async |daemon| {
        reload(daemon, "").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_policy_reloaded_by_sighup_decides_the_next_call_of_a_running_run() {
    tightened(async |daemon| {
        hang_up(daemon);
        wait_until("it is noted", || !noted(daemon).is_empty()).await;
        // What is in force follows what is noted.
        while in_force(daemon).await.rules.iter().all(|rule| rule.id != "test.never") {}
    })
    .await;
}

#[tokio::test]
async fn files_that_are_not_valid_change_nothing_and_are_told_wherever_one_looks() {
    let (_backend, daemon) = daemon().await;
    let before = in_force(&daemon).await.revision;
    append(&daemon, "  - {id: test.sh, argv: [sh, other.sh], why: twice}\nsurplus: 1\n");

    let refused = reload(&daemon, "").await.unwrap_err();

    assert_eq!(refusal(&refused), (Code::FailedPrecondition, "POLICY_INVALID".into()));
    let faults = refused.get_details_bad_request().unwrap().field_violations;
    assert!(faults[0].description.contains("tools.yaml:"), "{faults:?}");
    let standing = in_force(&daemon).await;
    assert_eq!(standing.revision, before);
    assert_eq!(standing.faults.len(), faults.len());
    let entries = noted(&daemon);
    assert_eq!(
        (&entries[0]["outcome"], &entries[0]["before"]),
        (&json!("refused"), &json!(before))
    );
    let doctor = daemon.agentctl(&["doctor"]).await;
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("the files are not in force"), "{said}");
    // SIGHUP says the same, and the daemon lives on.
    hang_up(&daemon);
    wait_until("it is noted again", || noted(&daemon).len() == 2).await;

    let path = daemon.home().join("policies/tools.yaml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("surplus: 1\n", "")
            .replace("id: test.sh, argv: [sh, other.sh]", "id: test.other, argv: [sh, other.sh]"),
    )
    .unwrap();
    let done = reload(&daemon, "").await.unwrap();
    assert_eq!(done.previous_revision, before);
    assert_eq!(in_force(&daemon).await.faults, Vec::<String>::new());
}

#[tokio::test]
async fn a_reload_that_expects_other_files_is_refused_and_one_that_brings_nothing_new_is_fine() {
    let (_backend, daemon) = daemon().await;
    let before = in_force(&daemon).await.revision;
    let same = reload(&daemon, &before).await.unwrap();
    assert_eq!((same.revision.as_str(), same.previous_revision), (before.as_str(), before.clone()));
    assert_eq!(noted(&daemon), Vec::<Value>::new());

    let request = v1::ValidatePolicyRequest {};
    tighten(&daemon);
    let report =
        daemon.client().await.policy().validate_policy(request).await.unwrap().into_inner();
    assert_eq!((report.faults, report.current_revision), (vec![], before.clone()));
    append(&daemon, "# somebody else was here\n");

    let refused = reload(&daemon, &report.revision).await.unwrap_err();

    assert_eq!(refusal(&refused), (Code::Aborted, "POLICY_CHANGED".into()));
    assert_eq!(in_force(&daemon).await.revision, before);
}

#[tokio::test]
async fn a_thousand_signals_end_with_what_the_files_said_last() {
    let (_backend, daemon) = daemon().await;
    for number in 0..1000 {
        if number % 250 == 0 {
            append(&daemon, &format!("# change {number}\n"));
        }
        hang_up(&daemon);
    }
    let request = v1::ValidatePolicyRequest {};
    let mut client = daemon.client().await.policy();
    loop {
        let report = client.validate_policy(request).await.unwrap().into_inner();
        if report.revision == report.current_revision {
            break;
        }
    }
    let entries = noted(&daemon);
    assert!((1..=4).contains(&entries.len()), "each change at most once: {}", entries.len());
    let chained = entries.windows(2).all(|pair| pair[0]["revision"] == pair[1]["before"]);
    assert!(chained, "{entries:?}");
    assert!(daemon.audit().await.intact, "and the daemon lives");
}

#[tokio::test]
async fn agentctl_shows_checks_and_reloads_the_policy() {
    let (_backend, daemon) = daemon().await;
    let run = async |arguments: &[&str]| {
        let output = daemon.agentctl(arguments).await;
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), said[0].clone(), said[1].clone())
    };
    let (code, shown, _) = run(&["policy", "show"]).await;
    assert_eq!(code, 0);
    for expected in ["revision", "role executor", "git.status", "secrets.env", "command sh pure.sh"]
    {
        assert!(shown.contains(expected), "{expected} is not in:\n{shown}");
    }
    let (_, json, _) = run(&["policy", "show", "-o", "json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["rules"][0]["decision"], "allow");

    tighten(&daemon);
    let (code, said, _) = run(&["policy", "validate"]).await;
    assert!(code == 0 && said.contains("agentctl policy reload"), "{said}");
    let (code, said, _) = run(&["policy", "reload"]).await;
    assert!(code == 0 && said.contains("before:"), "{said}");
    let (code, said, _) = run(&["policy", "validate"]).await;
    assert!(code == 0 && said.contains("and in force"), "{said}");

    let directory = daemon.home().join("policies").display().to_string();
    let (code, said, _) = run(&["policy", "validate", &directory, "--addr", "unix:/nowhere"]).await;
    assert!(code == 0 && said.starts_with("valid: sha256:"), "without a daemon: {said}");
    append(&daemon, "surplus: 1\n");
    for arguments in [&["policy", "validate"][..], &["policy", "validate", &directory]] {
        let (code, out, said) = run(arguments).await;
        assert_eq!((code, out.as_str()), (2, ""), "{said}");
        assert!(said.contains("tools.yaml:") && said.contains("surplus"), "{said}");
    }
    let (code, _, said) = run(&["policy", "reload"]).await;
    assert!(code != 0 && said.contains("POLICY_INVALID"), "{said}");

    // However many there are: an error travels in headers, and those are bounded.
    let path = daemon.home().join("policies/tools.yaml");
    let mended = fs::read_to_string(&path).unwrap().replace("surplus: 1\n", "");
    fs::write(&path, mended).unwrap();
    let twice =
        |n: usize| format!("  - {{id: twice, argv: [a-program-{n}], match: [other], why: no}}\n");
    append(&daemon, &(0..300).map(twice).collect::<String>());
    let (code, _, said) = run(&["policy", "reload"]).await;
    assert!(code == 1 && said.contains("POLICY_INVALID") && said.contains(" faults"), "{said}");
    assert!(in_force(&daemon).await.faults.len() >= 300);
}

#[tokio::test]
async fn a_policy_that_would_show_what_is_agentd_s_own_or_limits_to_nothing_is_refused() {
    let (_backend, daemon) = daemon().await;
    let path = daemon.home().join("policies/tools.yaml");
    let rules = fs::read_to_string(&path).unwrap();
    let state = daemon.state().canonicalize().unwrap().display().to_string();
    let home = daemon.home().canonicalize().unwrap().display().to_string();
    for (root, word) in [
        (state.as_str(), "agentd's own"),
        (home.as_str(), "agentd's own"),
        ("/etc", "sandbox's own"),
        ("/bin", "sandbox's own"),
        ("/proc/self", "sandbox's own"),
        ("relative", "not a path like"),
        ("/opt/../etc", "not a path like"),
    ] {
        let roots = format!("read_only_roots: [{root:?}, ");
        fs::write(&path, rules.replace("read_only_roots: [", &roots)).unwrap();
        let refused = reload(&daemon, "").await.unwrap_err();
        assert_eq!(refusal(&refused).1, "POLICY_INVALID", "{root}");
        assert!(refused.message().contains(word), "{root}: {refused:?}");
    }
    fs::write(&path, rules.replace("  tmp_mib: 256", "  tmp_mib: 0")).unwrap();
    let refused = reload(&daemon, "").await.unwrap_err();
    assert!(refused.message().contains("tmp_mib is 0"), "{refused:?}");
    fs::write(&path, &rules).unwrap();
    reload(&daemon, "").await.unwrap();
}

#[tokio::test]
async fn a_decision_is_explained_with_every_rule_that_was_asked_and_its_place() {
    let (_backend, daemon) = daemon().await;
    let run = async |arguments: &[&str]| {
        let arguments = [&["policy", "explain", "-o", "json"], arguments].concat();
        let output = daemon.agentctl(&arguments).await;
        let json = String::from_utf8(output.stdout).unwrap();
        let error = || panic!("{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code(), serde_json::from_str::<Value>(&json).unwrap_or_else(|_| error()))
    };
    let place_of = |file: &str, id: &str| {
        let path = daemon.home().join("policies").join(file);
        let text = fs::read_to_string(&path).unwrap();
        let line = text.lines().position(|line| line.contains(&format!("id: {id}"))).unwrap() + 1;
        format!("{}:{line}:9", path.display())
    };

    let (code, allowed) = run(&["git status -s"]).await;
    assert_eq!(code, Some(0));
    assert_eq!((&allowed["decision"], &allowed["rule"]), (&json!("allow"), &json!("git.status")));
    assert_eq!(allowed["argv"], json!(["git", "-c", "core.fsmonitor=false", "status", "-s"]));
    assert_eq!(allowed["normalised"], "[git] [status] [-s]");
    assert_eq!(allowed["limits"]["wall_ms"], 120_000);
    let diff =
        allowed["candidates"].as_array().unwrap().iter().find(|one| one["rule"] == "git.diff");
    assert_eq!(diff.unwrap()["mismatch"], "it speaks of `git diff`");
    assert_eq!(diff.unwrap()["place"], place_of("tools.yaml", "git.diff"));

    let (code, denied) = run(&["--", "git", "log", "-p"]).await;
    assert_eq!(code, Some(4));
    assert_eq!(
        (&denied["rule"], &denied["nearest_rule"]),
        (&json!("builtin/no-rule"), &json!("git.log"))
    );
    let log = denied["candidates"].as_array().unwrap().iter().find(|one| one["rule"] == "git.log");
    assert_eq!(log.unwrap()["mismatch"], "-p is not among its flags and options");
    assert_eq!(denied["limits"], json!({}));

    let write = r#"{"path": "./sub//.git/config", "content": ""}"#;
    let (code, denied) = run(&["--tool", "write_file", "--arguments", write]).await;
    assert_eq!((code, &denied["rule"]), (Some(4), &json!("git.internals")));
    assert_eq!(denied["normalised"], "write sub/.git/config");
    let rule =
        denied["candidates"].as_array().unwrap().iter().find(|one| one["rule"] == "git.internals");
    assert_eq!(rule.unwrap()["place"], place_of("paths.yaml", "git.internals"));
    assert_eq!(rule.unwrap()["mismatch"], Value::Null);

    let (code, bare) = run(&["/usr/bin/git status"]).await;
    assert_eq!((code, &bare["rule"]), (Some(0), &json!("git.status")), "a program by its path");
    for path in ["/etc/passwd", "../../x"] {
        let arguments = json!({ "path": path }).to_string();
        let (code, out) = run(&["--tool", "read_file", "--arguments", &arguments]).await;
        assert_eq!((code, &out["rule"]), (Some(4), &json!("builtin/path-escape")), "{path}");
    }
    let (code, refused) = run(&["git status; id"]).await;
    assert_eq!((code, &refused["decision"]), (Some(4), &json!("deny")));
    let (code, refused) = run(&["--role", "nobody", "git status"]).await;
    assert_eq!((code, &refused["rule"]), (Some(4), &json!("builtin/unknown-role")));
    let table = daemon.agentctl(&["policy", "explain", "git log -p"]).await;
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("nearest rule") && table.contains("no: -p is not among"), "{table}");
    // What is explained is what is decided: the same question asked by a run.
    let script = Script {
        turns: vec![Turn::call("shell_exec", json!({"command": "git log -p"})), Turn::say("done")],
    };
    let backend = Backend::start(script).await;
    let other = TestDaemon::start(&backend.url());
    let story = other.carry_out("ask").await;
    assert_eq!(story.decisions(), ["deny builtin/no-rule"]);
    assert_eq!(story.payloads("decision")[0]["why"], {
        let (_, again) = run(&["--", "git", "log", "-p"]).await;
        again["why"].clone()
    });
}

#[tokio::test]
async fn what_wants_a_person_s_leave_is_explained_as_that() {
    let (_backend, daemon) = daemon().await;
    append(&daemon, "  - {id: test.ask, argv: [sh], decision: require_approval, why: scripts}\n");
    daemon.put("pure.sh", "touch ran");
    reload(&daemon, "").await.unwrap();

    let explained = daemon.agentctl(&["policy", "explain", "sh pure.sh"]).await;
    assert_eq!(explained.status.code(), Some(6), "{explained:?}");
    assert!(String::from_utf8_lossy(&explained.stdout).contains("require_approval by test.ask"));
}
