//! Real work on real repositories, with every tool in use: a Rust crate and a Python package, their tests
//! run inside the sandbox, and a diff that gives the same tree elsewhere. The model's words are scripted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use agentd::{
    proto::v1::RunState,
    scripted::{Script, Turn},
};
use serde_json::{Value, json};

use crate::support::{Backend, Settings, Story, TestDaemon, refusal};

fn git(directory: &Path, words: &[&str]) -> String {
    let done = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.test"])
        .args(words)
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(done.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// The tree that a directory's files make.
fn tree(directory: &Path) -> String {
    git(directory, &["add", "-A"]);
    git(directory, &["write-tree"])
}

/// A daemon whose workspace is a committed repository of these files, and a clone of it.
fn repository(daemon: &TestDaemon, files: &[(&str, &str)]) -> PathBuf {
    for (name, content) in files {
        daemon.put(name, content);
    }
    git(&daemon.workspace(), &["init", "-q"]);
    git(&daemon.workspace(), &["add", "-A"]);
    git(&daemon.workspace(), &["commit", "-qm", "as it was"]);
    let clone = daemon.home().join("clone");
    git(daemon.home(), &["clone", "-q", "workspace", "clone"]);
    clone
}

/// The rules that come with agentd, with the homes of this machine's toolchain instead of those in the home
/// of the daemon's user, which in a test is empty.
fn rules_for_this_machine(rules: &str) -> String {
    let cargo = which("cargo");
    let home = cargo.ancestors().nth(2).unwrap();
    let rustup = std::env::var("RUSTUP_HOME").unwrap_or_else(|_| {
        let beside = home.parent().unwrap();
        let candidates = [beside.join(".rustup"), beside.join("rustup")];
        let found = candidates.into_iter().find(|path| path.exists());
        found.unwrap_or_default().display().to_string()
    });
    rules.replace("~/.cargo", home.to_str().unwrap()).replace("~/.rustup", &rustup)
}

fn which(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not in PATH"))
}

async fn carry_out(
    files: &[(&str, &str)],
    calls: &[(&str, Value)],
) -> (TestDaemon, Story, PathBuf, String) {
    let turns = calls.iter().map(|(tool, arguments)| Turn::call(tool, arguments.clone()));
    let turns = turns.chain([Turn::say("the tests pass")]).collect();
    let backend = Backend::start(Script { turns }).await;
    let mut daemon =
        TestDaemon::start_with(Settings { base_url: backend.url(), ..Settings::default() });
    let policy = daemon.home().join("policies/tools.yaml");
    let rules = rules_for_this_machine(&fs::read_to_string(&policy).unwrap());
    fs::write(&policy, rules).unwrap();
    daemon.restart();
    let clone = repository(&daemon, files);
    let story = daemon.carry_out("mend it").await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    story.assert_calls_are_tied();
    backend.assert_paired();
    assert!(daemon.audit().await.intact);
    let patch = daemon.agentctl(&["run", "diff", &story.run.id]).await;
    assert!(patch.status.success(), "{}", String::from_utf8_lossy(&patch.stderr));
    (daemon, story, clone, String::from_utf8(patch.stdout).unwrap())
}

/// Applied to a clone of what was there before, the patch gives what is there now.
fn applies(daemon: &TestDaemon, clone: &Path, patch: &str) {
    let file = daemon.home().join("the.patch");
    fs::write(&file, patch).unwrap();
    git(clone, &["apply", "--whitespace=nowarn", file.to_str().unwrap()]);
    assert_eq!(tree(clone), tree(&daemon.workspace()));
}

#[tokio::test]
async fn a_rust_crate_is_mended_with_every_tool_and_the_diff_gives_the_same_tree() {
    let files = [
        ("Cargo.toml", "[package]\nname = \"sums\"\nversion = \"0.1.0\"\nedition = \"2021\"\n"),
        (".gitignore", "target/\n"),
        ("src/lib.rs", "pub fn sum(numbers: &[i64]) -> i64 {\n    numbers.iter().product()\n}\n"),
        ("tests/sums.rs", "#[test]\nfn sums() {\n    assert_eq!(sums::sum(&[2, 3, 4]), 9);\n}\n"),
    ];
    let edit = json!({"path": "src/lib.rs", "old_text": ".product()", "new_text": ".sum()"});
    let readme = "# sums\n\nAdds numbers.\n";
    let calls = [
        ("repo_summarize", json!({})),
        ("list_dir", json!({"depth": 2})),
        ("search_files", json!({"pattern": "fn sum"})),
        ("read_file", json!({"path": "src/lib.rs", "start_line": 1, "end_line": 3})),
        ("shell_exec", json!({"command": "cargo test"})),
        ("edit_file", edit),
        ("write_file", json!({"path": "README.md", "content": readme})),
        ("shell_exec", json!({"command": "cargo test"})),
        ("shell_exec", json!({"command": ["git", "status", "--short"]})),
    ];
    let (daemon, story, clone, patch) = carry_out(&files, &calls).await;
    let outputs = story.outputs();
    assert_eq!(outputs[0].1["entry_points"][0]["what"], "Cargo package", "{}", outputs[0].1);
    assert_eq!(outputs[2].1["matches"][0]["path"], "src/lib.rs");
    assert_ne!(outputs[4].1["exit_code"], 0, "control: the test fails before");
    assert!(outputs[4].1["stdout"].as_str().unwrap().contains("left: 24"), "{}", outputs[4].1);
    assert_eq!(outputs[7].1["exit_code"], 0, "{}", outputs[7].1);
    assert!(
        patch.contains("-    numbers.iter().product()") && patch.contains("+# sums"),
        "{patch}"
    );
    assert!(!patch.contains("target/"), "what git ignores is not in the diff");
    applies(&daemon, &clone, &patch);
}

#[tokio::test]
async fn a_python_package_is_mended_with_every_tool_and_the_diff_gives_the_same_tree() {
    let files = [
        ("pyproject.toml", "[project]\nname = \"greet\"\nversion = \"0.1.0\"\n"),
        ("greet/__init__.py", "def greet(name):\r\n    return 'Hello ' + nam\r\n"),
        (
            "tests/test_greet.py",
            "import unittest\nfrom greet import greet\n\nclass Greets(unittest.TestCase):\n    \
             def test_greets(self):\n        self.assertEqual(greet('Ada'), 'Hello Ada')\n",
        ),
        ("tests/__init__.py", ""),
        (".gitattributes", "*.py text=auto\n"),
    ];
    let edit =
        json!({"path": "greet/__init__.py", "old_text": "+ nam\r\n", "new_text": "+ name\r\n"});
    let calls = [
        ("repo_summarize", json!({"max_bytes": 2048})),
        ("list_dir", json!({"path": "greet"})),
        ("search_files", json!({"pattern": "nam$", "globs": ["*.py"]})),
        ("shell_exec", json!({"command": "python3 -m unittest"})),
        ("read_file", json!({"path": "greet/__init__.py"})),
        ("edit_file", edit),
        ("write_file", json!({"path": "greet/data.txt", "content": "a\n"})),
        ("shell_exec", json!({"command": "python3 -m unittest"})),
    ];
    let (daemon, story, clone, patch) = carry_out(&files, &calls).await;
    let outputs = story.outputs();
    assert_eq!(outputs[0].1["languages"][0]["name"], "Python");
    assert_ne!(outputs[3].1["exit_code"], 0, "control: the test fails before");
    assert_eq!(outputs[7].1["exit_code"], 0, "{}", outputs[7].1);
    applies(&daemon, &clone, &patch);
}

#[tokio::test]
async fn a_run_s_diff_is_its_own_and_not_what_was_there_before_or_came_after() {
    let turns = vec![
        Turn::call("write_file", json!({"path": "by-the-run", "content": "x\n"})),
        Turn::say("done"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    repository(&daemon, &[("a", "1\n")]);
    daemon.put("before", "uncommitted\n");
    let story = daemon.carry_out("write").await;
    daemon.put("after", "by a person\n");
    let patch = daemon.agentctl(&["run", "diff", &story.run.id]).await.stdout;
    let patch = String::from_utf8(patch).unwrap();
    let named: Vec<&str> = patch.lines().filter(|line| line.starts_with("diff --git")).collect();
    assert_eq!(named, ["diff --git a/by-the-run b/by-the-run"], "{patch}");
    let moments: Vec<Value> = story.payloads("workspace_snapshot");
    assert_eq!(moments[0]["moment"], "before");
    assert_eq!(moments[1]["moment"], "after");
    assert_eq!(
        story.kinds()[3],
        "workspace_snapshot",
        "with the first intent: {:?}",
        story.kinds()
    );
}

#[tokio::test]
async fn a_run_that_changed_nothing_has_an_empty_diff_and_one_without_git_says_why_it_has_none() {
    let read = || vec![Turn::call("read_file", json!({"path": "a"})), Turn::say("done")];
    let write = || {
        let arguments = json!({"path": "b", "content": "x"});
        vec![Turn::call("write_file", arguments), Turn::say("done")]
    };
    let backend = Backend::start(Script { turns: read() }).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("a", "");
    let story = daemon.carry_out("read").await;
    let diff = daemon.agentctl(&["run", "diff", &story.run.id]).await;
    assert_eq!((diff.status.code(), diff.stdout), (Some(0), Vec::new()));

    let backend = Backend::start(Script { turns: write() }).await;
    let daemon = TestDaemon::start(&backend.url());
    let story = daemon.carry_out("write").await;
    let request = agentd::proto::v1::GetRunDiffRequest { id: story.run.id };
    let error = daemon.client().await.runs().get_run_diff(request).await.unwrap_err();
    assert_eq!(refusal(&error), (tonic::Code::FailedPrecondition, "NO_DIFF".to_owned()));
    assert!(error.message().contains("not the top of a git repository"), "{error:?}");
}

#[tokio::test]
async fn a_repository_cannot_have_its_own_programs_run_by_a_diff() {
    let turns = vec![
        Turn::call("write_file", json!({"path": "a.txt", "content": "x\n"})),
        Turn::say("done"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    repository(&daemon, &[(".gitattributes", "* filter=evil diff=evil\n"), ("a.txt", "1\n")]);
    let canary = daemon.home().join("canary");
    let evil = format!("touch {}; cat", canary.display());
    for key in ["filter.evil.clean", "filter.evil.smudge", "diff.evil.textconv", "core.fsmonitor"] {
        git(&daemon.workspace(), &["config", key, &evil]);
    }
    git(&daemon.workspace(), &["add", "--renormalize", "."]);
    assert!(canary.exists(), "control: the bait works");
    fs::remove_file(&canary).unwrap();

    let story = daemon.carry_out("write").await;
    let diff = daemon.agentctl(&["run", "diff", &story.run.id]).await;
    assert!(String::from_utf8(diff.stdout).unwrap().contains("+x"));
    assert!(!canary.exists(), "the repository's program ran");
}

#[tokio::test]
async fn a_repository_within_cannot_have_its_own_programs_run_by_a_diff() {
    let write = |name: &str| Turn::call("write_file", json!({"path": name, "content": "changed"}));
    let turns = vec![write("one.txt"), Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let daemon =
        TestDaemon::start_with(Settings { base_url: backend.url(), ..Settings::default() });
    repository(&daemon, &[("README.md", "bait")]);
    daemon.put("within/a", "");
    let within = daemon.workspace().join("within");
    git(&within, &["init", "-q"]);
    git(&within, &["add", "."]);
    git(&within, &["commit", "-qm", "bait"]);
    // Where git itself can write while it takes a snapshot, and where it cannot.
    let pwned = daemon.state().join("snapshots/pwned");
    let control = daemon.home().join("control");
    let script = format!("#!/bin/sh\ntouch '{}' '{}'\n", pwned.display(), control.display());
    daemon.put("evil.sh", &script);
    let evil = daemon.workspace().join("evil.sh");
    git(&within, &["config", "core.fsmonitor", evil.to_str().unwrap()]);
    assert!(Command::new("chmod").arg("+x").arg(&evil).status().unwrap().success());
    git(&within, &["status", "--short"]);
    assert!(control.exists(), "control: git runs the bait");

    // The first run's snapshots know the repository as a link; those of the second meet it again.
    for _ in 0..2 {
        let story = daemon.carry_out("change it").await;
        let patch = daemon.agentctl(&["run", "diff", &story.run.id]).await;
        assert!(patch.status.success(), "{}", String::from_utf8_lossy(&patch.stderr));
    }
    assert!(daemon.state().join("snapshots/HEAD").exists(), "control: there were snapshots");
    assert!(!pwned.exists(), "the repository's program ran");
}
