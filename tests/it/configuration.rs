//! Settings and secrets: where each value comes from, what is said of wrong ones, and that a secret
//! appears nowhere.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use agentd::{
    proto::v1,
    scripted::{Kind, Manner, Script, Turn},
};
use serde_json::Value;

use crate::support::{Backend, Settings, TestDaemon, manner};

const SECRET: &str = "planted-5f3c9a-secret";

/// What a daemon says that does not start, and its exit status.
fn refused(configuration: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut daemon = TestDaemon::start("http://127.0.0.1:9");
    daemon.stop();
    fs::write(daemon.home().join("agentd.yaml"), configuration).unwrap();
    let log = daemon.log().len();
    let status = daemon.command().envs(environment.iter().copied()).status().unwrap();
    (status.code(), daemon.log()[log..].to_owned())
}

fn settings(daemon: &TestDaemon) -> Value {
    let text = fs::read_to_string(daemon.state().join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Value and source of a setting in `config.json`.
fn setting(daemon: &TestDaemon, key: &str) -> (String, String) {
    let all = settings(daemon);
    let found = all["values"].as_array().unwrap().iter().find(|value| value["key"] == key);
    let found = found.unwrap_or_else(|| panic!("no {key} in {all}"));
    let text = |name: &str| found[name].as_str().unwrap().to_owned();
    (text("value"), text("source"))
}

#[test]
fn every_fault_of_a_file_is_told_at_once_with_its_place_and_the_nearest_key() {
    let file = "state_dir: relative\nworkspce_root: /w\nbackend:\n  modle: x\n  stream: maybe\n  api_key: \
                sk-literal-key-0123456789\nlimits: {queued_runs: 0, running_runs: many, ready_launchers: 99}\ncolour: red\n";
    let (status, said) = refused(file, &[("AGENTD_LOG_FORMAT", "xml")]);
    assert_eq!(status, Some(78), "{said}");
    for fault in [
        "agentd.yaml:1:12: state_dir: relative is not an absolute path; begin it with /",
        "agentd.yaml:2:1: workspce_root: there is no such setting; did you mean workspace_root?",
        "agentd.yaml:4:3: backend.modle: there is no such setting; did you mean backend.model?",
        "agentd.yaml:5:11: backend.stream: is a text; true or false is wanted",
        "agentd.yaml:6:12: backend.api_key: a key must not stand in the configuration",
        "agentd.yaml:7:23: limits.queued_runs: 0 would let nothing happen",
        "agentd.yaml:7:40: limits.running_runs: is a text; a whole number is wanted",
        "agentd.yaml:7:63: limits.ready_launchers: a whole number from 0 to 16 is wanted",
        "agentd.yaml:8:1: colour: there is no such setting",
        "AGENTD_LOG_FORMAT: \"xml\" is neither text nor json",
    ] {
        assert!(said.contains(fault), "{fault}\nis not in\n{said}");
    }
    assert!(!said.contains("sk-literal"), "a key is not repeated: {said}");
}

#[test]
fn a_corrupt_a_duplicate_keyed_and_a_misshapen_file_are_refused_with_their_place() {
    for (file, fault) in [
        ("log: [info\n", "agentd.yaml:"),
        ("log: info\nlog: debug\n", "agentd.yaml:2:1: duplicate"),
        ("- log\n", "agentd.yaml:1:1: the file is not a map of settings"),
        ("backend: lmstudio\n", "agentd.yaml:1:10: backend: is not a section of settings"),
        ("log: info\n---\nlog: debug\n", "agentd.yaml:"),
        ("log: \u{0}\n", "agentd.yaml"),
    ] {
        let (status, said) = refused(file, &[]);
        assert_eq!(status, Some(78), "{file:?}: {said}");
        assert!(said.contains(fault), "{file:?}: {said}");
    }
    let mut daemon = TestDaemon::start("http://127.0.0.1:9");
    daemon.stop();
    fs::write(daemon.home().join("agentd.yaml"), [0xff, 0xfe, b'a']).unwrap();
    assert_eq!(daemon.command().status().unwrap().code(), Some(78), "not UTF-8");
}

#[tokio::test]
async fn each_value_has_its_source_and_a_flag_beats_the_environment_beats_the_file() {
    let daemon = TestDaemon::start_with(Settings {
        base_url: "http://127.0.0.1:9".into(),
        configuration: "backend: {model: from-file, idle_timeout_seconds: 7}\nlog: debug\n".into(),
        environment: vec![("AGENTD_MODEL".into(), "from-environment".into())],
        ..Settings::default()
    });
    let pair = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    assert_eq!(setting(&daemon, "listen"), pair("127.0.0.1:0", "flag --listen"));
    assert_eq!(
        setting(&daemon, "backend.model"),
        pair("from-environment", "environment AGENTD_MODEL")
    );
    let file = daemon.home().join("agentd.yaml");
    let idle = setting(&daemon, "backend.idle_timeout_seconds");
    assert_eq!(idle, pair("7", &format!("file {}:1", file.display())));
    assert_eq!(setting(&daemon, "limits.queued_runs"), pair("10000", "default"));
    assert_eq!(setting(&daemon, "limits.ready_launchers"), pair("2", "default"));
    let mode = fs::metadata(daemon.state().join("config.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let shown = daemon.agentctl(&["-o", "json", "config", "view"]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown, settings(&daemon), "the RPC says what the file says");
    let table = daemon.agentctl(&["config", "view"]).await;
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.lines().any(|line| {
        line.split_whitespace().collect::<Vec<_>>()
            == ["backend.model", "from-environment", "environment", "AGENTD_MODEL"]
    }));
}

/// A daemon that knows the secret by `configuration` or `environment`. Gives everything that it and its
/// client ever said, after a run whose task and whose tools repeat the secret.
async fn everything_said(configuration: &str, environment: &[(&str, String)]) -> (String, Backend) {
    let call = serde_json::json!({"path": "notes", "content": format!("the key is {SECRET}")});
    let turns = vec![
        Turn::call("write_file", call),
        Turn::call("read_file", serde_json::json!({"path": "notes"})),
        Turn::call("shell_exec", serde_json::json!({"command": ["sh", "script.sh"]})),
        Turn::say(&format!("I saw {SECRET} and I say so")),
    ];
    let backend = Backend::start(Script { turns }).await;
    let mut environment: Vec<(String, String)> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    environment.push(("AGENTD_LOG".into(), "trace".into()));
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: configuration.into(),
        environment,
        ..Settings::default()
    });
    daemon.put("script.sh", "cat notes; cat notes >&2; exit 3\n");
    let story = daemon.carry_out(&format!("look for {SECRET}")).await;
    assert_eq!(story.state(), v1::RunState::Succeeded);
    let mut said = format!("{story:?}{}", daemon.log());
    for words in [
        vec!["config", "view"],
        vec!["info"],
        vec!["run", "get", &story.run.id],
        vec!["run", "list"],
        vec!["run", "events", &story.run.id],
        vec!["run", "follow", &story.run.id],
        vec!["-o", "json", "run", "events", &story.run.id],
        vec!["-o", "json", "run", "get", &story.run.id],
        vec!["audit", "verify"],
        vec!["tools", "list"],
        vec!["run", "get", "no-such-run"],
    ] {
        let output = daemon.agentctl(&words).await;
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        said.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    said.push_str(&processes());
    for file in files_below(&daemon.state()) {
        // What was sealed must not be readable either.
        said.push_str(&String::from_utf8_lossy(&fs::read(file).unwrap_or_default()));
    }
    (said, backend)
}

fn files_below(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files_below(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// The arguments of every process, as `ps` shows them.
fn processes() -> String {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ") + "\n").collect()
}

#[tokio::test]
async fn a_secret_from_the_environment_a_file_or_a_command_reaches_the_backend_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let key = home.path().join("key");
    fs::write(&key, format!("{SECRET}\n")).unwrap();
    let by_file = format!("backend: {{api_key_file: {}}}\n", key.display());
    let by_command = format!("backend: {{api_key_command: [cat, {}]}}\n", key.display());
    let path = key.display().to_string();
    for (configuration, environment) in [
        ("", vec![("OPENAI_API_KEY", SECRET.to_owned())]),
        ("", vec![("OPENAI_API_KEY_FILE", path)]),
        (by_file.as_str(), vec![]),
        (by_command.as_str(), vec![("PATH", "/usr/bin:/bin".to_owned())]),
    ] {
        let (said, backend) = everything_said(configuration, &environment).await;
        let sent = backend.server.credentials();
        assert_eq!(sent.first().map(String::as_str), Some(format!("Bearer {SECRET}").as_str()));
        assert!(said.contains("[secret]") && said.contains("[redacted]"), "control: it was met");
        if let Some(at) = said.find(SECRET) {
            let near = &said[said.floor_char_boundary(at.saturating_sub(300))..at];
            panic!("the secret was said ({configuration:?}), after: {near}");
        }
    }
}

#[test]
fn a_source_of_a_secret_that_fails_is_named_and_nothing_of_it_is_repeated() {
    for (configuration, fault) in [
        ("backend: {api_key_file: /no/such/key}\n", "/no/such/key cannot be opened"),
        ("backend: {api_key_file: key}\n", "is not an absolute path"),
        ("backend: {api_key_command: cat key}\n", "is not a list of words"),
        (
            "backend: {api_key_command: [sh, -c, 'echo hunter2-hunter2; exit 4']}\n",
            "the command sh ended with exit status: 4",
        ),
        ("backend: {api_key_command: [/no/such/program]}\n", "cannot be started"),
        (
            "backend: {api_key_command: [a], api_key_file: /b}\n",
            "is given together with api_key_command",
        ),
    ] {
        let (status, said) = refused(configuration, &[("PATH", "/usr/bin:/bin")]);
        assert_eq!(status, Some(78), "{configuration}: {said}");
        assert!(said.contains(fault), "{configuration}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn nothing_is_read_from_the_directory_that_agentd_is_started_in() {
    let mut daemon = TestDaemon::start("http://127.0.0.1:9");
    daemon.stop();
    let trap = daemon.home().join("trap");
    fs::create_dir_all(trap.join("policies")).unwrap();
    for name in ["agentd.yaml", "policies/tools.yaml", ".env", "agentd/agentd.yaml"] {
        fs::create_dir_all(trap.join(name).parent().unwrap()).unwrap();
        fs::write(trap.join(name), "not: valid: at all\n").unwrap();
    }
    let checked = daemon.command().arg("--help").current_dir(&trap).output().unwrap();
    assert!(checked.status.success(), "control");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_agentd"));
    command
        .arg("check")
        .args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
        .env_clear()
        .env("HOME", daemon.home())
        .current_dir(&trap);
    let checked = command.output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success(), "{said}");
    assert!(said.contains("built-in defaults"), "{said}");
}

#[test]
fn a_check_tries_the_sandbox_and_finds_nothing_wrong_with_a_daemon_that_runs() {
    let daemon = TestDaemon::start("http://127.0.0.1:9");
    let (status, said) = daemon.check();
    assert_eq!(status, Some(0), "{said}");
    for fine in [
        "ok    a daemon is running on this state directory",
        "ok    tools: 7, 0 of them declared",
        "ok    policy: revision sha256:",
        "ok    sandbox: a program was started, confined and seen to its end",
    ] {
        assert!(said.contains(fine), "{fine}\nis not in\n{said}");
    }
}

#[test]
fn a_check_tells_every_failure_with_what_to_do_and_exits_78() {
    let mut daemon = TestDaemon::start("http://127.0.0.1:9");
    daemon.stop();
    daemon.put_tool("broken.yaml", "schema: agentd/tool/v1\nname: x\n");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_agentd"));
    command
        .arg("check")
        .arg("--state-dir")
        .arg(daemon.home().join("agentd.yaml/state"))
        .args(["--workspace-root", "/no/such/directory"])
        .args(["--listen", &taken.local_addr().unwrap().to_string()])
        .arg("--tools-dir")
        .arg(daemon.home().join("tools"))
        .env_clear()
        .env("AGENTD_SANDBOX", "/no/such/launcher");
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    for failure in [
        "agentd.yaml cannot be written\n      -> choose another: agentd serve --state-dir",
        "FAIL  workspace root: /no/such/directory",
        "-> mkdir -p /no/such/directory",
        "cannot be listened on",
        "broken.yaml",
        "-> install agentd-sandbox, or set AGENTD_SANDBOX",
    ] {
        assert!(said.contains(failure), "{failure}\nis not in\n{said}");
    }
}

#[tokio::test]
async fn hosted_tools_are_passed_through_as_they_stand_and_their_credentials_are_never_shown() {
    let call = serde_json::json!({"path": "a", "content": SECRET});
    let turns = vec![
        Turn::call("code_interpreter", serde_json::json!({})),
        Turn::call("write_file", call),
        Turn::say("done"),
    ];
    let backend =
        Backend::start_as(Script { turns }, Manner { kind: Kind::OpenAi, ..manner() }).await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: "hosted_tools:\n  - {type: code_interpreter}\n  - {type: file_search, \
                        vector_store_ids: [vs_1], max_num_results: 3}\n  - type: mcp\n    server_label: \
                        docs\n    server_url: http://127.0.0.1:9/mcp\n    authorization: {env: MCP_TOKEN}\n    \
                        headers: {X-Key: {env: MCP_TOKEN}}\n"
            .into(),
        hosted: "  - {id: code, type: code_interpreter, decision: allow, why: w}\n  - {id: search, type: \
                 file_search, decision: allow, why: w}\n  - {id: docs, type: mcp, servers: \
                 ['http://127.0.0.1:9'], decision: allow, why: w}\n"
            .into(),
        environment: vec![
            ("MCP_TOKEN".into(), SECRET.into()),
            ("AGENTD_LOG".into(), "trace".into()),
        ],
        ..Settings::default()
    });
    let story = daemon.carry_out("go").await;
    let sent = &backend.server.requests()[0]["tools"];
    assert_eq!(
        sent.as_array().unwrap()[7..],
        [
            serde_json::json!({"type": "code_interpreter", "container": {"type": "auto"}}),
            serde_json::json!({"type": "file_search", "vector_store_ids": ["vs_1"],
                               "max_num_results": 3}),
            serde_json::json!({"type": "mcp", "server_label": "docs",
                               "server_url": "http://127.0.0.1:9/mcp", "authorization": SECRET,
                               "headers": {"X-Key": SECRET}}),
        ]
    );
    assert_eq!(story.decisions()[0], "deny builtin/unknown-tool", "never dispatched here");
    let everything = format!("{story:?}{}{}", daemon.log(), settings(&daemon));
    assert!(!everything.contains(SECRET), "the credential was said");
    assert!(everything.contains("[redacted]"), "control: the model repeated it");
}

#[test]
fn any_other_type_of_hosted_tool_stops_the_boot_with_a_remedy() {
    let file = "hosted_tools:\n  - {type: web_search}\n  - {type: function, name: f}\n  - {type: \
                file_search}\n  - {type: mcp, server_label: a}\n  - {type: mcp, server_label: a, server_url: \
                http://h, authorization: literal-token-0123}\n  - web\n  - {type: mcp, server_label: a, server_url: \
                'https://literal-token-0123@h/'}\n  - {type: mcp, server_label: a, server_url: 'https://h', \
                connector_id: c}\n  - {type: mcp, server_label: [a], connector_id: c}\n  - {type: mcp, \
                server_label: a, tunnel_id: 'a b'}\n";
    let (status, said) = refused(file, &[]);
    assert_eq!(status, Some(78), "{said}");
    for fault in [
        "agentd.yaml:2:5: hosted_tools[0]: web_search is not passed through: the types are \
         code_interpreter, file_search and mcp",
        "agentd.yaml:3:5: hosted_tools[1]: a function is not run by the backend; declare it",
        "hosted_tools[2]: a file_search names its vector_store_ids",
        "hosted_tools[3]: an mcp tool has a server_url, a connector_id or a tunnel_id",
        "hosted_tools[4].authorization: must name where the secret is",
        "hosted_tools[5]: is not a map",
        "hosted_tools[6]: server_url: is not a URL such as https://mcp.example.com/mcp",
        "hosted_tools[7]: an mcp tool has one of server_url, connector_id and tunnel_id",
        "hosted_tools[8]: server_label: has 1 to 128 letters",
        "hosted_tools[9]: tunnel_id: has 1 to 128 letters",
    ] {
        assert!(said.contains(fault), "{fault}\nis not in\n{said}");
    }
    assert!(!said.contains("literal-token"), "{said}");
}
