//! The negative loop: what is forbidden is refused, nothing is touched, the model is told, and the run
//! finishes.

use std::{fs, os::unix::fs::symlink};

use agentd::{
    proto::v1::RunState,
    scripted::{Script, Turn},
    tasks,
};
use serde_json::{Value, json};

use crate::support::{Backend, Story, TestDaemon};

/// One run whose model tries one call. `prepare` sets the scene.
async fn attempt(
    tool: &str,
    arguments: Value,
    prepare: impl FnOnce(&TestDaemon),
) -> (TestDaemon, Story) {
    let turns = vec![Turn::call(tool, arguments), Turn::say("I was told no")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    prepare(&daemon);
    let story = daemon.carry_out("try it").await;
    assert_eq!(story.state(), RunState::Succeeded, "the run finishes all the same");
    story.assert_calls_are_tied();
    backend.assert_paired();
    assert!(daemon.audit().await.intact);
    (daemon, story)
}

async fn is_refused(
    tool: &str,
    arguments: Value,
    rule: &str,
    prepare: impl FnOnce(&TestDaemon),
) -> TestDaemon {
    let (daemon, story) = attempt(tool, arguments.clone(), prepare).await;
    assert_eq!(story.decisions(), [format!("deny {rule}")], "{arguments}");
    let (outcome, output) = &story.outputs()[0];
    assert_eq!(outcome, "refused", "{arguments}: {output}");
    assert_eq!(output["error"]["rule"], rule, "the model is told the rule");
    daemon
}

#[tokio::test]
async fn a_path_out_of_the_workspace_is_refused_and_nothing_of_it_is_shown() {
    for path in ["../../etc/passwd", "/etc/passwd", "a/../../../etc/passwd"] {
        let (daemon, story) =
            attempt("read_file", json!({"path": path}), |daemon| daemon.put("a/b", "")).await;
        assert_eq!(story.decisions(), ["deny builtin/path-escape"], "{path}");
        let everything: String = story.entries.iter().map(|entry| entry.payload.as_str()).collect();
        assert!(!everything.contains("root:x:"), "{path}");
        drop(daemon);
    }
}

#[tokio::test]
async fn a_file_outside_is_not_written_by_any_path() {
    let canary = |daemon: &TestDaemon| fs::read_to_string(daemon.home().join("canary")).unwrap();
    let arguments = json!({"path": "../canary", "content": "overwritten"});
    let daemon = is_refused("write_file", arguments, "builtin/path-escape", |daemon| {
        fs::write(daemon.home().join("canary"), "alive").unwrap();
    })
    .await;
    assert_eq!(canary(&daemon), "alive");

    let arguments = json!({"path": "way/out/canary", "content": "overwritten"});
    let daemon = is_refused("write_file", arguments, "builtin/path-escape", |daemon| {
        fs::write(daemon.home().join("canary"), "alive").unwrap();
        fs::create_dir(daemon.workspace().join("way")).unwrap();
        symlink("../..", daemon.workspace().join("way/out")).unwrap();
    })
    .await;
    assert_eq!(canary(&daemon), "alive");
}

#[tokio::test]
async fn a_link_out_of_the_workspace_is_not_followed_for_reading() {
    let absolute =
        |daemon: &TestDaemon| symlink("/etc/passwd", daemon.workspace().join("link")).unwrap();
    is_refused("read_file", json!({"path": "link"}), "builtin/path-escape", absolute).await;
    let magic =
        |daemon: &TestDaemon| symlink("/proc/self/root", daemon.workspace().join("root")).unwrap();
    is_refused("read_file", json!({"path": "root/etc/passwd"}), "builtin/path-escape", magic).await;
}

#[tokio::test]
async fn a_link_that_stays_inside_is_followed_and_judged_by_where_it_leads() {
    let inside = |daemon: &TestDaemon| {
        daemon.put("real.txt", "here");
        symlink("real.txt", daemon.workspace().join("link")).unwrap();
    };
    let (_daemon, story) = attempt("read_file", json!({"path": "link"}), inside).await;
    assert_eq!(story.decisions(), ["allow workspace"]);
    assert_eq!(story.outputs()[0].1["path"], "real.txt");

    let to_secret = |daemon: &TestDaemon| {
        daemon.put(".env", "TOKEN=1");
        symlink(".env", daemon.workspace().join("harmless")).unwrap();
    };
    is_refused("read_file", json!({"path": "harmless"}), "secrets.env", to_secret).await;
}

#[tokio::test]
async fn a_pipe_is_refused_without_waiting_for_somebody_to_write_to_it() {
    let pipe = |daemon: &TestDaemon| {
        let path = daemon.workspace().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600))
            .unwrap();
    };
    is_refused("read_file", json!({"path": "pipe"}), "builtin/not-regular", pipe).await;
}

#[tokio::test]
async fn git_s_own_files_are_not_written() {
    let repository = |daemon: &TestDaemon| daemon.put(".git/hooks/sample", "");
    let arguments = json!({"path": ".git/hooks/pre-commit", "content": "id"});
    let daemon = is_refused("write_file", arguments, "git.internals", repository).await;
    assert_eq!(daemon.read(".git/hooks/pre-commit"), None);
}

#[tokio::test]
async fn a_command_off_the_allowlist_is_refused_and_the_model_is_told_what_is_on_it() {
    for command in [
        json!("curl http://192.0.2.1/"),
        json!(["sh", "-c", "id"]),
        json!(["git", "-c", "alias.x=!id", "x"]),
        json!(["git", "status", "--output=x"]),
        json!(["env", "git", "status"]),
    ] {
        let (_daemon, story) = attempt("shell_exec", json!({ "command": command }), |_| ()).await;
        let (outcome, output) = &story.outputs()[0];
        let decided = story.decisions();
        // A program that is not installed is missing; all others are off the list.
        match decided[0].as_str() {
            "deny builtin/missing" => assert_eq!(outcome, "failed", "{command}"),
            rule => {
                assert_eq!(
                    (rule, outcome.as_str()),
                    ("deny builtin/no-rule", "refused"),
                    "{command}"
                );
                let message = output["error"]["message"].as_str().unwrap();
                assert!(message.contains("allow"), "{command}: {message}");
            }
        }
    }
}

#[tokio::test]
async fn a_program_in_the_workspace_does_not_pass_for_one_of_the_system() {
    let planted = |daemon: &TestDaemon| daemon.put("git", "#!/bin/sh\ntouch pwned\n");
    let daemon = is_refused(
        "shell_exec",
        json!({"command": ["./git", "status"]}),
        "builtin/program",
        planted,
    )
    .await;
    assert_eq!(daemon.read("pwned"), None);
}

#[tokio::test]
async fn grep_does_not_show_what_read_file_may_not() {
    let planted = |daemon: &TestDaemon| {
        daemon.put(".env", "API_TOKEN=hidden-canary");
        daemon.put("notes.txt", "API_TOKEN is in .env");
    };
    let shell = async |command: &str| {
        let (_daemon, story) = attempt("shell_exec", json!({ "command": command }), planted).await;
        (story.decisions().remove(0), story.outputs().remove(0).1)
    };
    let (_, output) = shell("grep -rn API_TOKEN").await;
    let stdout = output["stdout"].as_str().unwrap();
    assert!(stdout.contains("notes.txt"), "control: it searches: {stdout}");
    assert!(!stdout.contains("hidden-canary"), "{stdout}");
    for command in [
        "grep -n API_TOKEN .env notes.txt",
        "cat ./.env",
        "head -n 1 sub/../.env",
        "git show HEAD:.env",
        "git diff HEAD:notes.txt HEAD:./.env",
    ] {
        let (decision, output) = shell(command).await;
        assert!(decision.starts_with("deny "), "{command}: {decision}");
        assert!(!output.to_string().contains("hidden-canary"), "{command}: {output}");
    }
    let (decision, _) = shell("cat .env").await;
    assert_eq!(decision, "deny secrets.env");
}

#[tokio::test]
async fn agentd_s_own_files_are_in_no_workspace() {
    let backend = Backend::start(Script { turns: vec![Turn::say("unused")] }).await;
    let daemon = TestDaemon::start(&backend.url());
    fs::create_dir(daemon.state().join("inside")).unwrap();
    for workspace in [
        daemon.home().to_owned(),
        daemon.state(),
        daemon.state().join("inside"),
        daemon.home().join("policies"),
    ] {
        let mut request = daemon.request("read the token");
        request.workspace = workspace.display().to_string();
        let refused = daemon.create(request).await.unwrap_err();
        assert!(refused.message().contains("which is agentd's own"), "{workspace:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_path_from_the_root_is_not_taken_for_one_in_the_workspace() {
    let arguments = json!({"path": "/note.txt", "content": "astray"});
    let daemon = is_refused("write_file", arguments, "builtin/path-escape", |_| ()).await;
    assert_eq!(daemon.read("note.txt"), None);
}

/// Exchanges a directory and a link to a place outside, over and over, until told to stop.
fn flip(place: std::path::PathBuf, stop: std::sync::Arc<std::sync::atomic::AtomicBool>) -> u64 {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let mut flips = 0;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let (one, other) = (place.join("d"), place.join("e"));
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
        flips += 1;
    }
    flips
}

#[tokio::test]
async fn a_file_is_never_written_outside_however_fast_directories_become_links() {
    const WRITES: usize = 60;
    let writes = (0..WRITES).fold(Turn::say("writing"), |turn, number| {
        turn.and_call("write_file", json!({"path": format!("d/{number}"), "content": "x"}))
    });
    let backend = Backend::start(Script { turns: vec![writes, Turn::say("done")] }).await;
    let daemon = TestDaemon::start(&backend.url());
    let scene = |place: &std::path::Path, outside: &std::path::Path| {
        fs::create_dir_all(place.join("d")).unwrap();
        fs::create_dir_all(outside).unwrap();
        symlink(outside, place.join("e")).unwrap();
    };
    let escaped = |outside: &std::path::Path| fs::read_dir(outside).unwrap().count();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));

    // The control writes by name, as a program would that looks first and then writes.
    let (naive, outside) = (daemon.home().join("naive"), daemon.home().join("outside-naive"));
    scene(&naive, &outside);
    let (place, told) = (naive.clone(), stop.clone());
    let flipping = tasks::blocking(move || flip(place, told));
    let writing = tasks::blocking(move || {
        for number in (0..).take_while(|_| escaped(&outside) == 0) {
            if !naive.join("d").is_symlink() {
                let _ = fs::write(naive.join("d").join(number.to_string()), "x");
            }
        }
        escaped(&outside)
    });
    let (writing, flipping) = {
        let writing = async {
            let escaped = writing.await.unwrap();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            escaped
        };
        tokio::join!(writing, async { flipping.await.unwrap() })
    };
    assert!(writing > 0 && flipping > 0, "control: looking first does not help");

    stop.store(false, std::sync::atomic::Ordering::Relaxed);
    let outside = daemon.home().join("outside");
    scene(&daemon.workspace(), &outside);
    let (place, told) = (daemon.workspace(), stop.clone());
    let flipping = tasks::blocking(move || flip(place, told));
    let carried = async {
        let story = daemon.carry_out("write").await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        story
    };
    let (story, flips) = tokio::join!(carried, async { flipping.await.unwrap() });

    assert_eq!(escaped(&outside), 0, "after {flips} flips");
    assert_eq!(story.outputs().len(), WRITES, "each was tried, and answered");
    assert!(flips > 100, "control: {flips} flips");
    assert!(daemon.audit().await.intact);
}
