//! Tools that the operator declares: a command with a schema, in a sandbox like any other; and the
//! registry of all tools.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use agentd::{
    proto::v1,
    scripted::{Script, Turn},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{Backend, Settings, Story, TestDaemon, refusal};

const COUNT: &str = r#"
schema: agentd/tool/v1
name: text.count
description: Counts the lines of a file that hold a word.
command: [./count.sh, "{path}", "{word}"]
parameters:
  type: object
  properties:
    path: {type: string}
    word: {type: string, minLength: 1}
    note: {type: string}
  required: [path, word]
  additionalProperties: false
result:
  type: object
  properties: {lines: {type: integer}, note: {type: string}}
  required: [lines]
effect: pure
roles: [executor]
environment: {GREETING: hello}
limits: {wall_seconds: 5}
"#;

/// Answers with the count; the note comes from standard input.
const COUNT_SH: &str = "#!/bin/sh\n\
    note=$(sed -n 's/.*\"note\":\"\\([^\"]*\\)\".*/\\1/p')\n\
    printf '{\"lines\": %s, \"note\": \"%s\"}' \"$(grep -c -- \"$2\" \"$1\")\" \"$GREETING $note\"\n";

fn files(files: &[(&str, &str)]) -> Vec<(String, String)> {
    files.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
}

async fn carry_out(tools: &[(&str, &str)], calls: &[(&str, Value)]) -> (TestDaemon, Story) {
    let turns = calls.iter().map(|(tool, arguments)| Turn::call(tool, arguments.clone()));
    let turns = turns.chain([Turn::say("done")]).collect();
    let backend = Backend::start(Script { turns }).await;
    let settings = Settings { base_url: backend.url(), tools: files(tools), ..Settings::default() };
    let daemon = TestDaemon::start_with(settings);
    daemon.put("a.txt", "one\ntwo\none two\n");
    let story = daemon.carry_out("use the declared tools").await;
    story.assert_calls_are_tied();
    backend.assert_paired();
    (daemon, story)
}

/// What a daemon says that does not start, and its exit status.
fn refused_boot(tools: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut daemon = TestDaemon::start("http://127.0.0.1:9");
    daemon.stop();
    for (name, content) in tools {
        daemon.put_tool(name, content);
    }
    let log = daemon.log().len();
    let status = daemon.command().status().unwrap();
    (status.code(), daemon.log()[log..].to_owned())
}

#[tokio::test]
async fn a_declared_tool_runs_its_command_with_words_and_input_from_its_arguments() {
    let (_, story) = carry_out(
        &[("count.yaml", COUNT), ("count.sh", COUNT_SH)],
        &[("text_count", json!({"path": "a.txt", "word": "one", "note": "from stdin"}))],
    )
    .await;
    let answer = json!({"lines": 2, "note": "hello from stdin"});
    assert_eq!(story.outputs(), [("done".to_owned(), answer)]);
    assert_eq!(story.decisions(), ["allow tools.declared/text_count"]);
    let call = &story.payloads("tool_call")[0];
    assert_eq!(call["effect_class"], "pure");
    assert_eq!(call["facts"]["argv"][1], "a.txt");
}

#[tokio::test]
async fn a_tool_can_be_declared_in_the_configuration_and_no_workspace_holds_its_command() {
    let lines = COUNT.trim().lines().filter(|line| !line.starts_with("schema:"));
    let configuration = format!("tools:\n  - {}\n", lines.collect::<Vec<_>>().join("\n    "));
    let call = Turn::call("text_count", json!({"path": "a.txt", "word": "one"}));
    let backend = Backend::start(Script { turns: vec![call, Turn::say("done")] }).await;
    let settings = Settings { base_url: backend.url(), configuration, ..Settings::default() };
    let daemon = TestDaemon::start_with(settings);
    let script = daemon.home().join("count.sh");
    fs::write(&script, COUNT_SH).unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    daemon.put("a.txt", "one\ntwo\none two\n");

    let story = daemon.carry_out("count").await;

    let expected = ("done".to_owned(), json!({"lines": 2, "note": "hello "}));
    assert_eq!(story.outputs(), [expected]);
    let request = v1::GetToolRequest { name: "text_count".into() };
    let tool = daemon.client().await.tools().get_tool(request).await.unwrap().into_inner().tool;
    let source = tool.unwrap().source;
    assert!(source.ends_with("agentd.yaml:2"), "{source}");
    let workspace = daemon.home().display().to_string();
    let request = v1::CreateRunRequest { workspace, ..daemon.request("change it") };
    let refused = refusal(&daemon.create(request).await.unwrap_err());
    assert_eq!(refused, (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
}

#[test]
fn faults_of_tools_in_the_configuration_and_in_the_directory_are_told_at_once() {
    let configuration = "tools:\n  - {name: a, description: d, command: [x], efect: pure}\n";
    let said = TestDaemon::refused(Settings {
        base_url: "http://127.0.0.1:9".into(),
        configuration: configuration.into(),
        tools: files(&[("b.yaml", "schema: agentd/tool/v1\nname: b\n")]),
        ..Settings::default()
    });
    assert!(said.contains("agentd.yaml:2: ") && said.contains("`efect`"), "{said}");
    assert!(said.contains("b.yaml:"), "{said}");
}

#[tokio::test]
async fn arguments_that_do_not_fit_never_reach_the_command() {
    let (_, story) = carry_out(
        &[("count.yaml", COUNT), ("count.sh", COUNT_SH)],
        &[
            ("text_count", json!({"path": "a.txt"})),
            ("text_count", json!({"path": "a.txt", "word": ""})),
            ("text_count", json!({"path": "a.txt", "word": "--help"})),
        ],
    )
    .await;
    assert_eq!(story.decisions(), vec!["deny builtin/arguments"; 3]);
    let messages: Vec<String> = story
        .outputs()
        .into_iter()
        .map(|(_, output)| output["error"]["message"].as_str().unwrap().to_owned())
        .collect();
    assert!(messages[0].contains("\"word\" is a required property"), "{messages:?}");
    assert!(messages[1].contains("/word: "), "{messages:?}");
    assert!(messages[2].starts_with("/word: begins with '-'"), "{messages:?}");
}

#[tokio::test]
async fn a_command_that_fails_or_answers_otherwise_than_declared_is_told_with_its_words() {
    let tool = |name: &str| COUNT.replace("text.count", name).replace("count.sh", name);
    let (wrong, broken, failing) = (tool("wrong"), tool("broken"), tool("failing"));
    let arguments = json!({"path": "a.txt", "word": "x"});
    let (_, story) = carry_out(
        &[
            ("wrong.yaml", &wrong),
            ("wrong", "#!/bin/sh\necho '{\"lines\": \"many\"}'\n"),
            ("broken.yaml", &broken),
            ("broken", "#!/bin/sh\necho no json\n"),
            ("failing.yaml", &failing),
            ("failing", "#!/bin/sh\necho why >&2\nexit 3\n"),
        ],
        &[("wrong", arguments.clone()), ("broken", arguments.clone()), ("failing", arguments)],
    )
    .await;
    let outputs = story.outputs();
    let reasons: Vec<&str> =
        outputs.iter().map(|(_, output)| output["error"]["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["RESULT_DOES_NOT_FIT", "RESULT_NOT_JSON", "EXIT_STATUS"]);
    assert!(outputs[0].1["error"]["message"].as_str().unwrap().contains("/lines: "));
    assert_eq!(outputs[2].1["stderr"], "why\n");
}

#[tokio::test]
async fn a_declared_tool_that_no_role_has_is_refused() {
    let without = COUNT.replace("roles: [executor]\n", "");
    let (_, story) = carry_out(
        &[("count.yaml", &without), ("count.sh", COUNT_SH)],
        &[("text_count", json!({"path": "a.txt", "word": "one"}))],
    )
    .await;
    assert_eq!(story.decisions(), ["deny roles.executor"]);
}

#[test]
fn a_declaration_that_cannot_hold_stops_the_boot_and_every_fault_is_told() {
    let uncompilable = COUNT.replace("word: {type: string, minLength: 1}", "word: {type: wordy}");
    let twice = COUNT.replace("text.count", "read.file");
    let (status, said) = refused_boot(&[("a.yaml", &uncompilable), ("b.yaml", &twice)]);
    assert_eq!(status, Some(78), "{said}");
    assert!(said.contains("a.yaml: text_count: parameters: is not a JSON Schema"), "{said}");
    assert!(said.contains("b.yaml: read_file: there is another tool of this name"), "{said}");
    let (status, said) = refused_boot(&[("a.yaml", &COUNT.replace("executor", "nobody"))]);
    assert_eq!(status, Some(78), "{said}");
    assert!(said.contains("text_count.roles: the policy has no role nobody"), "{said}");
}

#[tokio::test]
async fn models_are_told_the_same_bytes_by_every_start_of_the_same_build() {
    let backend = Backend::start(Script { turns: vec![Turn::say("one")] }).await;
    let settings = Settings {
        base_url: backend.url(),
        tools: files(&[("count.yaml", COUNT), ("count.sh", COUNT_SH)]),
        ..Settings::default()
    };
    let mut daemon = TestDaemon::start_with(settings);
    daemon.carry_out("first").await;
    daemon.restart();
    daemon.carry_out("second").await;
    let requests = backend.server.requests();
    let tools = |n: usize| serde_json::to_string(&requests[n]["tools"]).unwrap();
    assert_eq!(tools(0), tools(1));
    assert!(tools(0).contains("text_count"));
}

#[tokio::test]
async fn the_registry_gives_a_changed_schema_a_new_version_and_keeps_the_old_one() {
    let settings = Settings {
        base_url: "http://127.0.0.1:9".into(),
        tools: files(&[("count.yaml", COUNT), ("count.sh", COUNT_SH)]),
        ..Settings::default()
    };
    let mut daemon = TestDaemon::start_with(settings);
    let registry = |daemon: &TestDaemon| -> Value {
        let text = fs::read_to_string(daemon.state().join("tools/registry.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let row = |daemon: &TestDaemon| {
        let all = registry(daemon)["tools"].as_array().unwrap().clone();
        assert_eq!(all.len(), 8);
        all.into_iter().find(|row| row["name"] == "text_count").unwrap()
    };
    let first = row(&daemon);
    assert_eq!(first["version"], 1);
    assert!(first["source"].as_str().unwrap().ends_with("count.yaml"));
    daemon.restart();
    assert_eq!(row(&daemon), first, "nothing changed");
    daemon.put_tool("count.yaml", &COUNT.replace("minLength: 1", "minLength: 2"));
    daemon.restart();
    let second = row(&daemon);
    assert_eq!(second["version"], 2);
    assert_ne!(second["schema_sha256"], first["schema_sha256"]);
    assert_eq!(second["versions"][0], first["versions"][0]);

    let shown = daemon.agentctl(&["-o", "json", "tools", "get", "text_count"]);
    let shown: Value = serde_json::from_slice(&shown.await.stdout).unwrap();
    assert_eq!(shown["version"], 2);
    assert_eq!(shown["roles"], json!(["executor"]));
    assert_eq!(shown["schema_sha256"], second["schema_sha256"]);
    let listed = daemon.agentctl(&["tools", "list"]).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.lines().any(|line| line.starts_with("text_count") && line.contains("executor")));
    let unknown = daemon.agentctl(&["tools", "get", "rm_rf"]).await;
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("TOOL_NOT_FOUND"));
}
