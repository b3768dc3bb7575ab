//! Where the work of a run is vetoed, the operator says what becomes of the workspace: kept, or given back as it was.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, Ordering},
};

use agentd::{
    proto::v1::RunState,
    scripted::{Brain, Reply, Seen, Turn},
};
use serde_json::json;

use crate::{
    agents::{ACCEPT, PLAN, VETO, Who, prepare, submit, who},
    support::{Backend, Settings, TestDaemon, wait_until},
};

const SCRIPT: &str = "printf 'changed\\n' >a.txt; rm test_a.py; mkdir -p deep/er; echo x >deep/er/new.txt; chmod 755 crlf.txt; \
                      printf 'a\\n' >crlf.txt; echo hidden.txt >.gitignore; echo x >hidden.txt";

/// Does harm, and is found out by the reviewer.
fn harmful(seen: &Seen) -> Reply {
    Reply::Answer(match (who(&seen.task), seen.turn) {
        (Who::Planner, _) => Turn::say(PLAN),
        (Who::Executor, 1) => Turn::call("shell_exec", json!({"command": "sh harm.sh"})),
        (Who::Executor, _) => Turn::say("Done."),
        (Who::Reviewer, _) => Turn::say(VETO),
    })
}

/// The same with a reviewer that takes everything.
fn blind(seen: &Seen) -> Reply {
    match who(&seen.task) {
        Who::Reviewer => Reply::Answer(Turn::say(ACCEPT)),
        Who::Planner | Who::Executor => harmful(seen),
    }
}

async fn lab(brain: impl Brain, configuration: &str) -> (Backend, TestDaemon) {
    let backend = Backend::start(brain).await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: configuration.into(),
        commands: "  - {id: test.harm, argv: [sh, harm.sh], why: it is a test}\n".into(),
        ..Settings::default()
    });
    daemon.put("crlf.txt", "a\r\nb\r\n");
    daemon.put(".gitattributes", "*.txt text eol=crlf\n");
    daemon.put("harm.sh", SCRIPT);
    prepare(&daemon);
    daemon.put("uncommitted.txt", "mine\n");
    (backend, daemon)
}

/// Makes a repository with a commit below the workspace.
fn repository(daemon: &TestDaemon, name: &str) {
    let within = daemon.workspace().join(name);
    fs::create_dir(&within).unwrap();
    for arguments in [&["init", "-q"][..], &["commit", "-qm", "first", "--allow-empty"]] {
        let mut git = std::process::Command::new("git");
        git.arg("-C").arg(&within).args(["-c", "user.name=t", "-c", "user.email=t@t"]);
        assert!(git.args(arguments).output().unwrap().status.success());
    }
}

#[tokio::test]
async fn a_vetoed_run_gives_every_file_back_and_its_diff_still_says_what_it_did() {
    for brain in [harmful as fn(&Seen) -> Reply, blind] {
        let (_backend, daemon) = lab(brain, "review: {on_veto: restore}\n").await;
        let id = submit(&daemon).await;
        let story = daemon.story(&id).await;
        let error = story.run.error.clone().unwrap();
        assert_eq!(
            (story.state(), error.reason.as_str()),
            (RunState::Failed, "VETOED"),
            "{error:?}"
        );
        assert!(error.message.contains("again what they were before the run"), "{error:?}");
        let read = |name: &str| daemon.read(name);
        assert_eq!(read("a.txt").as_deref(), Some("a\n"));
        assert_eq!(read("test_a.py").as_deref(), Some("def test_a():\n    pass\n"));
        assert_eq!(read("crlf.txt").as_deref(), Some("a\r\nb\r\n"), "byte for byte");
        assert_eq!(read("uncommitted.txt").as_deref(), Some("mine\n"));
        assert_eq!(read(".env").as_deref(), Some("TOKEN=canary\n"));
        for gone in ["deep/er/new.txt", ".gitignore", "hidden.txt"] {
            assert_eq!(read(gone), None, "{gone}");
        }
        let mode = fs::metadata(daemon.workspace().join("crlf.txt")).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0);
        let diff = daemon.agentctl(&["run", "diff", &id]).await;
        let diff = String::from_utf8_lossy(&diff.stdout).into_owned();
        assert!(diff.contains("+changed") && diff.contains("deep/er/new.txt"), "{diff}");
        assert_eq!(story.payloads("workspace_restored").len(), 1);
        assert!(daemon.audit().await.intact);
    }
}

#[tokio::test]
async fn a_workspace_is_kept_as_the_run_left_it_unless_the_configuration_says_otherwise() {
    let (_backend, daemon) = lab(harmful, "").await;
    let story = daemon.story(&submit(&daemon).await).await;
    let error = story.run.error.clone().unwrap();
    assert!(error.message.contains("as the run left it"), "{error:?}");
    assert_eq!(daemon.read("a.txt").as_deref(), Some("changed\n"));
    assert!(story.payloads("workspace_restored").is_empty());
}

#[tokio::test]
async fn a_daemon_that_dies_while_it_gives_a_workspace_back_gives_it_back_all_the_same() {
    // Passed once by the call.
    for point in ["effect.before:1", "effect.after:1"] {
        let (_backend, mut daemon) = lab(harmful, "review: {on_veto: restore}\n").await;
        daemon.kill();
        assert!(daemon.boot_dying(&[("AGENTD_FAIL_POINT", point.to_owned())]));
        let id = submit(&daemon).await;
        wait_until(&format!("it dies at {point}"), || daemon.has_died()).await;
        assert!(daemon.boot_dying(&[]));
        let story = daemon.story(&id).await;
        assert_eq!(story.run.error.clone().unwrap().reason, "VETOED");
        assert_eq!(daemon.read("a.txt").as_deref(), Some("a\n"), "{point}");
        assert_eq!(daemon.read("hidden.txt"), None, "{point}");
        assert!(story.payloads("workspace_restored").len() == 1);
    }
}

#[tokio::test]
async fn what_git_ignores_stays_though_the_run_had_it_ignored_no_longer() {
    let (_backend, daemon) = lab(harmful, "review: {on_veto: restore}\n").await;
    daemon.put(".gitignore", ".env\nkept/\n");
    daemon.put("kept/mine.txt", "mine\n");
    daemon.put("harm.sh", "rm .gitignore; echo x >kept/new.txt; echo changed >a.txt");
    let story = daemon.story(&submit(&daemon).await).await;
    assert_eq!(story.run.error.clone().unwrap().reason, "VETOED");
    assert_eq!(daemon.read("a.txt").as_deref(), Some("a\n"));
    assert_eq!(daemon.read(".gitignore").as_deref(), Some(".env\nkept/\n"));
    assert_eq!(daemon.read(".env").as_deref(), Some("TOKEN=canary\n"));
    assert_eq!(daemon.read("kept/mine.txt").as_deref(), Some("mine\n"));
    assert_eq!(story.payloads("workspace_restored")[0].get("why"), None);
}

#[tokio::test]
async fn a_file_that_says_that_it_is_ignored_itself_hides_nothing_and_gives_nothing_away() {
    let (_backend, daemon) = lab(harmful, "review: {on_veto: restore}\n").await;
    daemon.put("cache/.gitignore", "*\n");
    daemon.put("cache/mine.txt", "mine\n");
    daemon.put(
        "harm.sh",
        "mkdir src; printf '.gitignore\\nconftest.py\\n' >src/.gitignore; echo x >src/conftest.py; rm cache/.gitignore; \
         echo changed >a.txt",
    );
    let story = daemon.story(&submit(&daemon).await).await;
    assert_eq!(story.run.error.clone().unwrap().reason, "VETOED");
    assert_eq!(story.payloads("workspace_restored")[0].get("why"), None);
    for gone in ["src/.gitignore", "src/conftest.py"] {
        assert_eq!(daemon.read(gone), None, "{gone}");
    }
    assert_eq!(daemon.read("cache/mine.txt").as_deref(), Some("mine\n"));
    assert_eq!(daemon.read("cache/.gitignore").as_deref(), Some("*\n"));
}

#[tokio::test]
async fn what_lies_below_a_repository_of_a_person_s_stays_whatever_became_of_that() {
    let (_backend, daemon) = lab(harmful, "review: {on_veto: restore}\n").await;
    repository(&daemon, "within");
    daemon.put("within/mine.txt", "mine\n");
    daemon.put(
        "harm.sh",
        "mv within/.git .hidden; rm -r .hidden; mkdir new; git init -q new; echo changed >a.txt",
    );
    let story = daemon.story(&submit(&daemon).await).await;
    let error = story.run.error.clone().unwrap();
    assert_eq!(error.reason, "VETOED");
    assert_eq!(daemon.read("within/mine.txt").as_deref(), Some("mine\n"));
    assert_eq!(daemon.read("a.txt").as_deref(), Some("a\n"), "nothing stood in its way: {error:?}");
}

#[tokio::test]
async fn what_could_not_be_given_back_is_not_said_to_be() {
    let (_backend, daemon) = lab(harmful, "review: {on_veto: restore}\n").await;
    daemon.put(
        "harm.sh",
        "echo changed >a.txt; mkdir sub; cp -r a.txt sub/; printf 'x\\n' >'a\nb'; ln -s / root",
    );
    let story = daemon.story(&submit(&daemon).await).await;
    assert_eq!(daemon.read("a.txt").as_deref(), Some("a\n"));
    assert!(fs::symlink_metadata(daemon.workspace().join("root")).is_err());
    assert_eq!(story.payloads("workspace_restored")[0].get("why"), None);

    // A repository within is somebody's own: git lets it be.
    let (_backend, daemon) = lab(harmful, "review: {on_veto: restore}\n").await;
    repository(&daemon, "within");
    daemon.put("harm.sh", "echo changed >a.txt; mv within without");
    let story = daemon.story(&submit(&daemon).await).await;
    let error = story.run.error.clone().unwrap();
    assert_eq!(error.reason, "VETOED");
    assert_eq!(daemon.read("a.txt").as_deref(), Some("a\n"), "{error:?}");
    assert!(error.message.contains("in part only"), "{error:?}");
}

#[tokio::test]
async fn a_workspace_that_others_changed_while_the_run_stood_still_is_not_given_back() {
    for (changed, expected) in [(true, "changed\n"), (false, "a\n")] {
        let thinks = |seen: &Seen| match (who(&seen.task), seen.turn) {
            (Who::Executor, 2) => Reply::Answer(Turn::call("read_file", json!({"path": "a.txt"}))),
            _ => harmful(seen),
        };
        let (_backend, daemon) = lab(thinks, "review: {on_veto: restore}\n").await;
        let few = agentd::proto::v1::Budget { max_turns: 2, ..Default::default() };
        let request = agentd::proto::v1::CreateRunRequest {
            budget: Some(few),
            ..crate::agents::request(&daemon)
        };
        let id = daemon.create(request).await.unwrap().run.unwrap().id;
        assert_eq!(daemon.wait(&id).await.state(), RunState::OutOfBudget);
        if changed {
            daemon.put("by-somebody-else.txt", "precious\n");
        }
        // It stands still again before it changes anything.
        for turns in ["3", "20"] {
            let resumed = daemon.agentctl(&["run", "resume", &id, "--budget-turns", turns]).await;
            assert!(resumed.status.success(), "{resumed:?}");
            daemon.wait(&id).await;
        }
        let story = daemon.story(&id).await;
        let error = story.run.error.clone().unwrap();
        assert_eq!(error.reason, "VETOED");
        assert_eq!(error.message.contains("somebody else changed it"), changed, "{error:?}");
        assert_eq!(daemon.read("a.txt").as_deref(), Some(expected));
        assert_eq!(daemon.read("by-somebody-else.txt").is_some(), changed);
    }
}

#[tokio::test]
async fn a_workspace_that_was_out_of_sight_of_a_daemon_that_died_is_not_given_back() {
    let held = AtomicBool::new(true);
    let brain = move |seen: &Seen| match (who(&seen.task), seen.turn) {
        (Who::Executor, 2) if held.swap(false, Ordering::Relaxed) => Reply::Hang,
        _ => harmful(seen),
    };
    let (backend, mut daemon) = lab(brain, "review: {on_veto: restore}\n").await;
    let id = submit(&daemon).await;
    backend.wait_for_requests(3).await;
    daemon.kill();
    daemon.put("by-somebody-else.txt", "precious\n");
    daemon.restart();
    let story = daemon.story(&id).await;
    let error = story.run.error.clone().unwrap();
    assert!(error.message.contains("a daemon died while the run was at work"), "{error:?}");
    assert_eq!(daemon.read("by-somebody-else.txt").as_deref(), Some("precious\n"));
    assert_eq!(daemon.read("a.txt").as_deref(), Some("changed\n"));
}

#[tokio::test]
async fn where_there_is_no_copy_of_a_workspace_the_end_of_the_run_says_so() {
    let (_backend, daemon) = lab(harmful, "review: {on_veto: restore}\n").await;
    fs::remove_dir_all(daemon.workspace().join(".git")).unwrap();
    let story = daemon.story(&submit(&daemon).await).await;
    let error = story.run.error.clone().unwrap();
    assert_eq!(error.reason, "VETOED");
    assert!(error.message.contains("was to be restored, and is as the run left it"), "{error:?}");
    assert_eq!(daemon.read("a.txt").as_deref(), Some("changed\n"));
}
