//! What each tool does for a model, through the whole daemon: arguments, results and helpful failures.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Script, Turn},
};
use serde_json::{Value, json};

use crate::support::{Backend, Settings, Story, TestDaemon};

/// A run that makes these calls, one a turn, and succeeds. Gives what the model heard of each.
async fn carry_out(
    calls: &[(&str, Value)],
    prepare: impl FnOnce(&TestDaemon),
) -> (TestDaemon, Story, Vec<Value>) {
    let turns = calls.iter().map(|(tool, arguments)| Turn::call(tool, arguments.clone()));
    let turns = turns.chain([Turn::say("done")]).collect();
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    prepare(&daemon);
    let story = daemon.carry_out("use the tools").await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    story.assert_calls_are_tied();
    backend.assert_paired();
    let heard = story.outputs().into_iter().map(|(_, output)| output).collect();
    (daemon, story, heard)
}

fn reason(output: &Value) -> &str {
    output["error"]["reason"].as_str().unwrap_or_else(|| panic!("no failure: {output}"))
}

fn message(output: &Value) -> &str {
    output["error"]["message"].as_str().unwrap_or_default()
}

fn paths(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect()
}

fn git(daemon: &TestDaemon, words: &[&str]) {
    let done = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.test"])
        .args(words)
        .current_dir(daemon.workspace())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn edit_file_replaces_the_one_place_or_every_place() {
    let one = json!({"path": "a.txt", "old_text": "two", "new_text": "2"});
    let all = json!({"path": "a.txt", "old_text": "one", "new_text": "1", "replace_all": true});
    let (daemon, story, heard) = carry_out(&[("edit_file", one), ("edit_file", all)], |daemon| {
        daemon.put("a.txt", "one\ntwo\none\n");
    })
    .await;
    assert_eq!(daemon.read("a.txt").unwrap(), "1\n2\n1\n");
    assert_eq!(heard[0], json!({"path": "a.txt", "bytes": 10, "replacements": 1}));
    assert_eq!(heard[1], json!({"path": "a.txt", "bytes": 6, "replacements": 2}));
    assert_eq!(story.payloads("tool_call")[0]["effect_class"], "reconcilable");
}

#[tokio::test]
async fn an_edit_that_does_not_fit_changes_nothing_and_says_what_would_fit() {
    let edit =
        |old: &str| ("edit_file", json!({"path": "a.py", "old_text": old, "new_text": "changed"}));
    let before = "def f():\n    return 1\n\ndef g():\n    return 1\n";
    let calls = [
        edit("    return 1\n"),
        edit("\treturn 1\n"),
        edit("def f():\n    return 2\n"),
        edit("class X:"),
        ("edit_file", json!({"path": "no.py", "old_text": "a", "new_text": "b"})),
        ("edit_file", json!({"path": "bin", "old_text": "a", "new_text": "b"})),
    ];
    let (daemon, _, heard) = carry_out(&calls, |daemon| {
        daemon.put("a.py", before);
        fs::write(daemon.workspace().join("bin"), [0xff, 0xfe, 0]).unwrap();
    })
    .await;
    assert_eq!(daemon.read("a.py").unwrap(), before);
    let reasons: Vec<&str> = heard.iter().map(reason).collect();
    assert_eq!(
        reasons,
        ["SEVERAL_MATCHES", "NO_MATCH", "NO_MATCH", "NO_MATCH", "NOT_FOUND", "NOT_TEXT"]
    );
    assert!(message(&heard[0]).contains("2 times, at lines 2, 5"), "{}", heard[0]);
    assert!(message(&heard[1]).contains("line 2 differs from its first line only in white space"));
    assert!(message(&heard[2]).contains("its first line does, at line 1"), "{}", heard[2]);
    assert!(message(&heard[3]).contains("copy the text exactly"), "{}", heard[3]);
}

#[tokio::test]
async fn an_edit_of_a_file_off_limits_says_nothing_of_what_stands_in_it() {
    let edit = |old: &str| ("edit_file", json!({"path": ".env", "old_text": old, "new_text": "x"}));
    let (_, story, heard) = carry_out(&[edit("SECRET=a"), edit("SECRET=b")], |daemon| {
        daemon.put(".env", "SECRET=a");
    })
    .await;
    assert_eq!(heard[0], heard[1], "a right guess sounds like a wrong one");
    assert_eq!(story.decisions(), ["deny secrets.env", "deny secrets.env"]);
    for call in story.payloads("tool_call") {
        assert_eq!(call["facts"], json!({"effect": "edit_file", "path": ".env"}));
    }
}

#[tokio::test]
async fn read_file_gives_a_range_of_lines_and_refuses_what_is_not_text_or_too_large() {
    let read = |arguments: Value| ("read_file", arguments);
    let calls = [
        read(json!({"path": "a", "start_line": 2, "end_line": 3})),
        read(json!({"path": "a", "start_line": 9})),
        read(json!({"path": "a", "start_line": 3, "end_line": 2})),
        read(json!({"path": "binary"})),
        read(json!({"path": "huge"})),
        read(json!({"path": "."})),
        read(json!({"path": "empty"})),
        read(json!({"path": "latin-1"})),
    ];
    let (_, _, heard) = carry_out(&calls, |daemon| {
        daemon.put("a", "1\n2\n3\n4\n");
        daemon.put("empty", "");
        fs::write(daemon.workspace().join("binary"), b"a\0b").unwrap();
        fs::write(daemon.workspace().join("latin-1"), b"caf\xe9\n").unwrap();
        let huge = fs::File::create(daemon.workspace().join("huge")).unwrap();
        huge.set_len(2 << 30).unwrap();
    })
    .await;
    assert_eq!(
        heard[0],
        json!({"path": "a", "bytes": 8, "content": "2\n3\n", "start_line": 2, "end_line": 3,
               "total_lines": 4, "truncated": false})
    );
    assert_eq!(
        (reason(&heard[1]), message(&heard[1])),
        ("NO_SUCH_LINE", "a has 4 lines; there is no line 9")
    );
    assert_eq!(heard[2]["error"]["rule"], "builtin/arguments");
    assert_eq!(reason(&heard[3]), "NOT_TEXT");
    assert_eq!(reason(&heard[4]), "FILE_TOO_LARGE");
    assert!(message(&heard[4]).contains("2147483648 bytes"), "{}", heard[4]);
    assert_eq!(reason(&heard[5]), "NOT_A_FILE");
    assert_eq!(heard[6]["content"], "");
    assert_eq!(reason(&heard[7]), "NOT_TEXT", "text that is not UTF-8: {}", heard[7]);
}

#[tokio::test]
async fn list_dir_shows_a_tree_without_what_git_ignores_and_follows_no_link() {
    let list = |arguments: Value| ("list_dir", arguments);
    let calls = [
        list(json!({})),
        list(json!({"path": "src", "depth": 3})),
        list(json!({"depth": 2, "include_ignored": true})),
        list(json!({"path": "../"})),
        list(json!({"path": "src/lib.rs"})),
    ];
    let (_, story, heard) = carry_out(&calls, |daemon| {
        daemon.put(".gitignore", "target/\n*.tmp\n");
        daemon.put(".git/HEAD", "ref");
        daemon.put("target/out", "x");
        daemon.put("src/lib.rs", "12345");
        daemon.put("src/deep/er/a.tmp", "");
        daemon.put("src/deep/er/b.rs", "");
        symlink("/etc", daemon.workspace().join("etc")).unwrap();
    })
    .await;
    assert_eq!(heard[0]["path"], ".");
    assert_eq!(paths(&heard[0]["entries"]), [".gitignore", "etc", "src"]);
    assert_eq!(heard[0]["entries"][1]["kind"], "link");
    assert_eq!(
        paths(&heard[1]["entries"]),
        ["src/deep", "src/deep/er", "src/deep/er/b.rs", "src/lib.rs"]
    );
    assert_eq!(heard[1]["entries"][3], json!({"path": "src/lib.rs", "kind": "file", "bytes": 5}));
    let all = paths(&heard[2]["entries"]);
    assert!(all.contains(&"target/out") && !all.iter().any(|path| path.starts_with("etc/")));
    assert_eq!(story.decisions()[3], "deny builtin/path-escape");
    assert_eq!(reason(&heard[4]), "NOT_A_DIRECTORY");
}

#[tokio::test]
async fn search_files_finds_lines_and_keeps_out_of_what_is_ignored_secret_binary_or_linked() {
    let search = |arguments: Value| ("search_files", arguments);
    let calls = [
        search(json!({"pattern": "needle"})),
        search(
            json!({"pattern": "NEED.E", "ignore_case": true, "globs": ["*.py"], "context_lines": 1}),
        ),
        search(json!({"pattern": "a.b(", "literal": true})),
        search(json!({"pattern": "a.b("})),
        search(json!({"pattern": "line", "path": "many", "max_matches": 3})),
        search(json!({"pattern": "x", "globs": ["[a"]})),
    ];
    let (_, _, heard) = carry_out(&calls, |daemon| {
        daemon.put(".gitignore", "ignored/\n");
        daemon.put("ignored/a.rs", "needle");
        daemon.put("a.rs", "hay\nneedle one\n");
        daemon.put("b/c.py", "before\nneedle two\nafter\n");
        daemon.put(".env", "needle=secret");
        daemon.put("certs/x.pem", "needle");
        daemon.put("d.txt", "a.b(c)\naxb(c)\n");
        daemon.put("many/lines", &"line\n".repeat(50));
        fs::write(daemon.workspace().join("binary"), b"needle\0").unwrap();
        fs::write(daemon.home().join("outside"), "needle").unwrap();
        symlink(daemon.home().join("outside"), daemon.workspace().join("link")).unwrap();
    })
    .await;
    assert_eq!(paths(&heard[0]["matches"]), ["a.rs", "b/c.py"]);
    assert_eq!(heard[0]["matches"][0], json!({"path": "a.rs", "line": 2, "text": "needle one"}));
    assert_eq!(heard[0]["files_skipped"], 3, "the secrets and the binary: {}", heard[0]);
    assert_eq!(
        heard[1]["matches"],
        json!([{"path": "b/c.py", "line": 2, "text": "needle two", "before": ["before"],
                "after": ["after"]}])
    );
    assert_eq!(heard[2]["matches"][0]["line"], 1);
    assert_eq!(heard[2]["matches"].as_array().unwrap().len(), 1);
    assert_eq!(reason(&heard[3]), "BAD_PATTERN");
    assert_eq!(heard[4]["matches"].as_array().unwrap().len(), 3);
    assert_eq!(heard[4]["incomplete"]["reason"], "TOO_MANY_RESULTS");
    assert_eq!(reason(&heard[5]), "BAD_GLOB");
}

/// Makes a million files: links to a few, since a link is quicker made than a file.
fn a_million_files(directory: &Path) {
    // ext4 lets a file have 65,000 names.
    const NAMES: usize = 60_000;
    let source = |n: usize| directory.join(format!("{:07}", n / NAMES * NAMES));
    for n in 0..1_000_000 {
        match n % NAMES {
            0 => fs::write(source(n), "hay").unwrap(),
            _ => fs::hard_link(source(n), directory.join(format!("{n:07}"))).unwrap(),
        }
    }
}

#[tokio::test]
async fn search_files_gives_up_on_a_directory_of_a_million_files_and_says_so() {
    let calls =
        [("search_files", json!({"pattern": "needle"})), ("list_dir", json!({"path": "small"}))];
    let turns = calls.into_iter().map(|(tool, arguments)| Turn::call(tool, arguments));
    let turns = turns.chain([Turn::say("done")]).collect();
    let backend = Backend::start(Script { turns }).await;
    // In memory where that is to be had: the disk takes half a minute for so many names.
    let base = Some(PathBuf::from("/dev/shm")).filter(|shm| shm.is_dir());
    let base = base.unwrap_or_else(std::env::temp_dir);
    let place = tempfile::Builder::new().prefix("agentd-it-").tempdir_in(&base).unwrap();
    for (name, content) in [("0/found", "needle"), ("small/file", "")] {
        fs::create_dir(place.path().join(name).parent().unwrap()).unwrap();
        fs::write(place.path().join(name), content).unwrap();
    }
    fs::create_dir(place.path().join("many")).unwrap();
    a_million_files(&place.path().join("many"));
    let settings = Settings { base_url: backend.url(), ..Settings::default() };
    let daemon = TestDaemon::start_in(settings, &base);
    let workspace = place.path().display().to_string();
    let request = v1::CreateRunRequest { workspace, ..daemon.request("find it") };
    let run = daemon.create(request).await.unwrap().run.unwrap();

    let story = daemon.story(&run.id).await;

    assert_eq!(story.state(), RunState::Succeeded, "the run goes on: {:?}", story.run.error);
    let [search, list] = story.outputs().try_into().unwrap();
    assert_eq!(
        (search.0.as_str(), reason(&search.1)),
        ("failed", "TOO_MANY_FILES"),
        "{}",
        search.1
    );
    assert_eq!(paths(&search.1["matches"]), ["0/found"], "what was found is not lost");
    assert_eq!(paths(&list.1["entries"]), ["small/file"]);
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn repo_summarize_tells_languages_layout_entry_points_and_commits_within_its_budget() {
    let calls = [
        ("repo_summarize", json!({})),
        ("repo_summarize", json!({"path": "src", "max_bytes": 1024})),
    ];
    let (_, _, heard) = carry_out(&calls, |daemon| {
        daemon.put("Cargo.toml", "[package]");
        daemon.put("src/main.rs", "fn main() {}");
        for n in 0..60 {
            daemon.put(&format!("src/module_{n}/mod.rs"), "//! a module");
        }
        git(daemon, &["init", "-q"]);
        git(daemon, &["add", "."]);
        git(daemon, &["commit", "-qm", "first light"]);
    })
    .await;
    assert_eq!(heard[0]["files"], 62);
    assert_eq!(heard[0]["languages"][0]["name"], "Rust");
    assert_eq!(heard[0]["layout"][0]["path"], "src");
    assert_eq!(heard[0]["entry_points"][0], json!({"path": "Cargo.toml", "what": "Cargo package"}));
    assert_eq!(heard[0]["commits"][0]["subject"], "first light");
    assert!(heard[1].to_string().len() <= 1024, "{}", heard[1].to_string().len());
    assert_eq!(heard[1]["incomplete"]["reason"], "TOO_LONG");
}

#[tokio::test]
async fn a_repository_cannot_have_its_own_programs_run_by_a_summary() {
    let (daemon, _, heard) = carry_out(&[("repo_summarize", json!({}))], |daemon| {
        daemon.put("a", "");
        git(daemon, &["init", "-q"]);
        git(daemon, &["add", "."]);
        git(daemon, &["commit", "-qm", "bait"]);
        let canary = daemon.home().join("canary");
        let script = format!("#!/bin/sh\ntouch {}\n", canary.display());
        daemon.put("evil.sh", &script);
        let evil = daemon.workspace().join("evil.sh");
        let status = Command::new("chmod").arg("+x").arg(&evil).status().unwrap();
        assert!(status.success());
        for key in ["core.fsmonitor", "gpg.program", "core.pager", "diff.external"] {
            git(daemon, &["config", key, evil.to_str().unwrap()]);
        }
        git(daemon, &["config", "log.showSignature", "true"]);
        let control = Command::new(&evil).status().unwrap();
        assert!(control.success() && canary.exists(), "control: the bait works");
        fs::remove_file(&canary).unwrap();
    })
    .await;
    assert_eq!(heard[0]["commits"][0]["subject"], "bait");
    assert!(!daemon.home().join("canary").exists(), "the repository's program ran");
}
