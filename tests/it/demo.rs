//! The demo is judged, not just run: where something is wrong, it fails and says what.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use agentd::scripted::Play;
use tempfile::TempDir;

use crate::support::Backend;

/// A directory for the demo's own directory, with a short path.
fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("d").tempdir_in("/tmp").unwrap()
}

fn demo(scratch: &TempDir, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agentctl"))
        .arg("demo")
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", scratch.path())
        .env("TMPDIR", scratch.path())
        .output()
        .unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The one demo directory in `scratch`.
fn directory(scratch: &TempDir) -> PathBuf {
    let found = fs::read_dir(scratch.path()).unwrap().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = found
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("agentd-demo-"))
        .collect();
    assert_eq!(found.len(), 1);
    found.remove(0)
}

fn assert_fails_because(output: &Output, finding: &str) {
    let words = words(output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains(&format!("✗ {finding}")), "{words}");
    assert!(words.contains("The demo FAILED."), "{words}");
}

#[test]
fn the_demo_succeeds_says_that_the_words_are_scripted_and_tells_where_everything_lies() {
    let scratch = scratch();
    let output = demo(&scratch, &[]);
    let words = words(&output);
    assert_eq!(output.status.code(), Some(0), "{words}");
    assert!(words.contains("the model's words are SCRIPTED"), "{words}");
    assert!(words.contains("✗ refused by rule secrets.env"), "{words}");
    assert!(words.contains("● SUCCEEDED"), "{words}");
    for shown in [
        "the planner begins",
        "1. find out what the tests say",
        "verdict: revise",
        "verdict: accept",
    ] {
        assert!(words.contains(shown), "{shown}: {words}");
    }
    assert_eq!(words.matches("\n  ✓ ").count(), 10, "{words}");
    assert!(words.contains(directory(&scratch).to_str().unwrap()), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_backend_configured_the_demo_uses_that_one() {
    let scratch = scratch();
    let script = include_str!("../../src/ctl/demo/files/script.yaml");
    let backend = Backend::start(Play::parse("script.yaml", script).unwrap()).await;
    fs::create_dir_all(scratch.path().join(".config/agentd")).unwrap();
    let configuration = format!("backend: {{base_url: '{}', model: my-own}}\n", backend.url());
    fs::write(scratch.path().join(".config/agentd/agentd.yaml"), configuration).unwrap();

    let output = tokio::task::block_in_place(|| demo(&scratch, &[]));

    let words = words(&output);
    assert_eq!(output.status.code(), Some(0), "{words}");
    assert!(words.contains("The model is the one that you have configured."), "{words}");
    assert!(!words.contains("SCRIPTED"), "{words}");
    let asked = backend.server.requests();
    assert_eq!(asked.len(), 13, "2 by the planner, 9 by the executor, 2 by the reviewer");
    assert!(asked.iter().all(|request| request["model"] == "my-own"));
}

#[test]
fn without_the_deny_rule_the_demo_fails() {
    let scratch = scratch();
    let policies = scratch.path().join("policies");
    fs::create_dir(&policies).unwrap();
    fs::write(policies.join("tools.yaml"), agentd::policy_files::DEFAULT_TOOLS).unwrap();
    fs::write(policies.join("paths.yaml"), without_rule("secrets.env")).unwrap();

    let output = demo(&scratch, &["--policies", policies.to_str().unwrap()]);

    assert_fails_because(&output, "no read was refused by rule secrets.env");
    assert_fails_because(&output, "the secret in .env stands in entry");
}

/// The built-in path rules without one rule and without the tests that name it.
fn without_rule(id: &str) -> String {
    let blocks = agentd::policy_files::DEFAULT_PATHS.split("\n\n");
    let kept = blocks.filter(|block| !block.contains(&format!("- id: {id}\n")));
    let text = kept.collect::<Vec<_>>().join("\n\n");
    let lines = text.lines().filter(|line| !line.contains(&format!("rule: {id}}}")));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn with_a_fix_that_does_not_fix_the_demo_fails() {
    let scratch = scratch();
    let script = include_str!("../../src/ctl/demo/files/script.yaml");
    let broken = script.replace("i < count; i++", "i < count - 2; i++");
    assert_ne!(script, broken);
    let path = scratch.path().join("script.yaml");
    fs::write(&path, broken).unwrap();

    let output = demo(&scratch, &["--script", path.to_str().unwrap()]);

    assert_fails_because(&output, "the tests pass when the judge runs them");
    assert_fails_because(&output, "the last test run of the run ended with exit code 1");
}

#[test]
fn with_the_audit_altered_by_one_byte_the_demo_fails() {
    let scratch = scratch();
    assert_eq!(demo(&scratch, &[]).status.code(), Some(0));
    let directory = directory(&scratch);
    alter_one_byte(&directory.join("state/agentd.db"), b"The loop stops one value early");

    let output = demo(&scratch, &["--judge", directory.to_str().unwrap()]);

    assert_fails_because(&output, "the journal was altered at position");
    let database = directory.join("state/agentd.db");
    let verified = Command::new(env!("CARGO_BIN_EXE_agentctl"))
        .args(["audit", "verify", "--file", database.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(verified.status.code(), Some(1));
    assert!(words(&verified).contains("journal ALTERED"), "{}", words(&verified));
}

fn alter_one_byte(path: &Path, near: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let place =
        bytes.windows(near.len()).position(|window| window == near).expect("not in the file");
    bytes[place] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn through_the_death_of_its_daemon_the_run_goes_on_and_nothing_is_lost_or_doubled() {
    for _ in 0..3 {
        let scratch = scratch();
        let output = demo(&scratch, &["--crash"]);
        let words = words(&output);
        assert_eq!(output.status.code(), Some(0), "{words}");
        assert!(words.contains("daemon killed with SIGKILL"), "{words}");
        assert!(words.contains("each recorded exactly once"), "{words}");
    }
}
