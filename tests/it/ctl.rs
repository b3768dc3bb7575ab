//! What scripts rely on of `agentctl`: exit codes, one JSON object on stdout and nothing else there,
//! plain lines in a pipe, and a reader that goes away.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Output, Stdio},
};

use agentd::{
    proto::v1::RunState,
    scripted::{Reply, Script, Seen, Turn},
    tasks,
};
use serde_json::{Value, json};

use crate::support::{Backend, TestDaemon, agentctl, exited, silence, wait_until};

/// Answers by the first word of the task.
async fn backend() -> Backend {
    Backend::start(|seen: &Seen| match seen.task.split(' ').next() {
        Some("fail") => silence(),
        Some("hang") => Reply::Hang,
        Some("unauthenticated") => {
            Reply::Http { status: 401, headers: vec![], body: String::new() }
        }
        Some("rejected") => Reply::Http { status: 400, headers: vec![], body: String::new() },
        Some("read") => match seen.turn {
            1..=3 => Reply::Answer(Turn {
                say: "I look.".into(),
                ..Turn::call("read_file", json!({"path": "notes"}))
            }),
            _ => Reply::Answer(Turn::say("I have read it.")),
        },
        _ => Reply::Answer(Turn::say("done")),
    })
    .await
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Submits a task by one agent alone.
fn submission<'a>(task: &'a str, workspace: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "submit", task, "--agent", "executor", "--workspace", workspace], more].concat()
}

/// The one JSON object on stdout, and the exit code.
async fn object(daemon: &TestDaemon, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = daemon.agentctl(&[arguments, &["-o", "json"]].concat()).await;
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {output:?}");
    let object: Value = serde_json::from_str(&text).unwrap();
    assert!(object.is_object(), "{arguments:?}: {object}");
    (output.status.code(), object)
}

// Exit codes.

#[tokio::test]
async fn the_exit_code_says_how_the_run_ended() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("notes", "n");

    for (task, code, state) in [
        ("succeed", 0, "SUCCEEDED"),
        ("fail", 1, "FAILED"),
        ("unauthenticated", 3, "FAILED"),
        ("rejected", 1, "FAILED"),
        ("read too much", 6, "OUT_OF_BUDGET"),
    ] {
        let workspace = daemon.workspace().display().to_string();
        let submit = submission(task, &workspace, &["--budget-calls", "2"]);
        let id = {
            let (exit, run) = object(&daemon, &[&submit[..], &["--wait"]].concat()).await;
            assert_eq!((exit, run["state"].as_str()), (Some(code), Some(state)), "{task}: {run}");
            run["id"].as_str().unwrap().to_owned()
        };
        let (exit, run) = object(&daemon, &["run", "wait", &id]).await;
        assert_eq!((exit, run["state"].as_str()), (Some(code), Some(state)), "wait: {run}");
        let (exit, run) = object(&daemon, &["run", "follow", &id]).await;
        assert_eq!((exit, run["state"].as_str()), (Some(code), Some(state)), "follow: {run}");
        let (exit, run) = object(&daemon, &["run", "get", &id]).await;
        assert_eq!((exit, run["state"].as_str()), (Some(0), Some(state)), "get only looks: {run}");
        let (exit, run) = object(&daemon, &[&submit[..], &["--follow"]].concat()).await;
        assert_eq!((exit, run["state"].as_str()), (Some(code), Some(state)), "{task}: {run}");
    }
}

#[tokio::test]
async fn a_cancelled_run_ended_without_success() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("hang").await;

    let (exit, cancelled) = object(&daemon, &["run", "cancel", &run.id, "--why", "enough"]).await;
    assert_eq!((exit, cancelled["id"].as_str()), (Some(0), Some(run.id.as_str())));
    let (exit, waited) = object(&daemon, &["run", "wait", &run.id]).await;
    assert_eq!((exit, waited["state"].as_str()), (Some(1), Some("CANCELLED")));
}

#[tokio::test]
async fn bad_usage_and_what_does_not_exist_is_two() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    let unknown = "0199b3c4-5d6e-7f80-8a9b-0c1d2e3f4a5b";

    for arguments in [
        &["run", "get", unknown][..],
        &["run", "wait", unknown],
        &["run", "follow", unknown],
        &["run", "events", unknown],
        &["run", "cancel", unknown],
        &["run", "get", "not-an-id"],
        &["run", "get"],
        &["run", "frobnicate"],
        &["run", "submit"],
        &["run", "submit", "", "--workspace", "."],
        &["run", "submit", "task", "--workspace", "/nowhere/at/all"],
        &["run", "submit", "task", "--agent", "nobody"],
        &["run", "submit", "task", "--label", "no-equals-sign"],
        &["run", "submit", "-f", "missing-file"],
        &["run", "submit", "task", "-f", "both"],
        &["run", "list", "--state", "SLEEPING"],
        &["run", "get", unknown, "-o", "xml"],
        &["--timeout", "soon", "run", "list"],
        &["nonsense"],
        &[],
    ] {
        let output = daemon.agentctl(arguments).await;
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert_ne!(stderr(&output), "", "{arguments:?}: it says what is wrong");
    }
    assert_eq!(daemon.runs().await, []);
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_three() {
    let home = tempfile::tempdir().unwrap();
    let nowhere = format!("unix:{}/agentd.sock", home.path().display());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);

    for address in [nowhere, closed] {
        for arguments in
            [&["run", "list"][..], &["health"], &["audit", "verify"], &["run", "submit", "task"]]
        {
            let mut command = agentctl(home.path());
            command.args(["--addr", &address]).args(arguments);
            let output = tasks::blocking(move || command.output()).await.unwrap().unwrap();
            assert_eq!(output.status.code(), Some(3), "{arguments:?}: {output:?}");
            assert!(stderr(&output).contains(&address), "{output:?}");
            assert!(stderr(&output).contains("agentd serve"), "it says what to do: {output:?}");
        }
    }
}

#[tokio::test]
async fn a_daemon_that_dies_meanwhile_is_three() {
    let backend = backend().await;
    let mut daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("hang").await;
    for arguments in [
        &["run", "wait", &run.id][..],
        &["run", "follow", &run.id],
        &["run", "events", &run.id, "--follow"],
    ] {
        wait_until("no connection", || connections(&daemon) == 0).await;
        let mut command = daemon.agentctl_command();
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        wait_until("a connection", || connections(&daemon) == 1).await;

        daemon.kill();
        let output = tasks::blocking(move || child.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {output:?}");
        daemon.restart();
    }
}

/// Connections to the daemon's socket: those the kernel calls connected, state 3.
fn connections(daemon: &TestDaemon) -> usize {
    let path = daemon.state().join("agentd.sock");
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let ours = sockets.lines().filter(|line| line.ends_with(path.to_str().unwrap()));
    ours.filter(|line| line.split_whitespace().nth(5) == Some("03")).count()
}

#[tokio::test]
async fn a_connection_that_breaks_at_any_point_is_three_and_says_so() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("agentd.sock");
    // HTTP/2: the client says 24 bytes and its settings, then asks; the server's first frame is its settings.
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let garbage: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n<html>";
    for (heard, said) in [(0, &[][..]), (24, &[]), (24, settings), (100, settings), (100, garbage)]
    {
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut command = agentctl(home.path());
        command.args(["--addr", &format!("unix:{}", socket.display()), "run", "list"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();

        let (mut connection, _) = listener.accept().unwrap();
        connection.read_exact(&mut vec![0; heard]).unwrap();
        connection.write_all(said).unwrap();
        // A dead daemon: it cannot be connected to again either.
        drop(listener);
        drop(connection);
        fs::remove_file(&socket).unwrap();

        let output = tasks::blocking(move || child.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(3), "after {heard} bytes: {output:?}");
        assert!(stderr(&output).contains("agentd"), "after {heard} bytes: {output:?}");
    }
}

#[tokio::test]
async fn a_wrong_token_or_none_is_four() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    let wrong = daemon.home().join("wrong-token");
    fs::write(&wrong, "0".repeat(64)).unwrap();
    let right = daemon.token_file();
    let run = |arguments: Vec<String>| {
        let mut command = agentctl(daemon.home());
        command.args(["--addr", &daemon.tcp]).args(arguments);
        async { tasks::blocking(move || command.output()).await.unwrap().unwrap() }
    };
    let with = |token: &std::path::Path| vec!["--token-file".into(), token.display().to_string()];
    let list = |mut arguments: Vec<String>| {
        arguments.extend(["run".into(), "list".into()]);
        arguments
    };

    for arguments in [list(vec![]), list(with(&wrong)), list(with(&daemon.home().join("missing")))]
    {
        let output = run(arguments.clone()).await;
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains("token"), "{output:?}");
    }
    assert_eq!(run(list(with(&right))).await.status.code(), Some(0), "control");
    assert_eq!(run(vec!["health".into()]).await.status.code(), Some(0), "health wants no token");
}

#[tokio::test]
async fn whoever_waits_longer_than_they_want_to_is_told_by_five() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("hang").await;

    let output = daemon.agentctl(&["--timeout", "1", "run", "wait", &run.id]).await;

    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(stdout(&output), "");
    let at_once = [
        &["--timeout", "0", "run", "wait", &run.id][..],
        &["--timeout", "0", "run", "follow", &run.id],
    ];
    for arguments in at_once {
        let output = daemon.agentctl(arguments).await;
        assert_eq!(output.status.code(), Some(5), "{arguments:?}: {output:?}");
    }
    assert_eq!(daemon.get(&run.id).await.state(), RunState::Executing, "the run goes on");
}

// JSON.

#[tokio::test]
async fn every_answer_about_a_run_is_one_json_object_with_the_same_fields() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("notes", "n");
    let workspace = daemon.workspace().display().to_string();
    let submit = submission("read it", &workspace, &["--label", "who=me"]);

    let (_, queued) = object(&daemon, &submit).await;
    let id = queued["id"].as_str().unwrap().to_owned();
    let (_, waited) = object(&daemon, &["run", "wait", &id]).await;
    let (_, got) = object(&daemon, &["run", "get", &id]).await;
    let (_, followed) = object(&daemon, &["run", "follow", &id]).await;
    let (_, cancelled) = object(&daemon, &["run", "cancel", &id]).await;

    let fields =
        |object: &Value| -> Vec<String> { object.as_object().unwrap().keys().cloned().collect() };
    for field in ["id", "state", "answer", "usage", "error"] {
        assert!(fields(&queued).iter().any(|name| name == field), "{field} is not in {queued}");
    }
    assert_eq!(fields(&queued), fields(&waited));
    assert_eq!((queued["answer"].clone(), queued["error"].clone()), (Value::Null, Value::Null));
    assert_eq!([&got, &followed, &cancelled], [&waited; 3]);
    let run = daemon.get(&id).await;
    let usage = run.usage.unwrap();
    assert_eq!(
        waited,
        json!({
            "id": id, "state": "SUCCEEDED", "answer": "I have read it.", "error": null,
            "usage": {
                "turns": 4, "tool_calls": 3,
                "input_tokens": usage.input_tokens, "cached_input_tokens": 0,
                "output_tokens": usage.output_tokens, "reasoning_tokens": 0,
                "turns_of_unknown_cost": 0,
                "cpu_ms": usage.cpu_ms,
                "wall_ms": usage.wall_ms,
                "cost_micros": usage.cost_micros,
            },
            "agent": "executor", "model": null, "workspace": workspace, "task": "read it",
            "head_sequence": run.head_sequence, "submitter": run.submitter,
            "labels": {"who": "me"}, "forked_from": null, "prune_time": null, "degraded": false,
            "create_time": waited["create_time"], "update_time": waited["update_time"],
        })
    );
    let time = waited["create_time"].as_str().unwrap();
    assert_eq!((time.len(), &time[19..20], &time[26..]), (27, ".", "Z"), "{time}");
}

#[tokio::test]
async fn an_error_of_a_run_is_an_object_too() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.carry_out("fail").await.run;

    let (_, got) = object(&daemon, &["run", "get", &run.id]).await;

    let error = run.error.unwrap();
    assert_eq!(got["error"], json!({"reason": error.reason, "message": error.message}));
    assert_eq!(got["error"]["reason"], "EMPTY_ANSWER");
}

#[tokio::test]
async fn a_failure_of_the_client_prints_nothing_on_stdout() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    let output = daemon.agentctl(&["run", "get", "not-an-id", "-o", "json"]).await;
    assert_eq!((output.status.code(), stdout(&output)), (Some(2), String::new()));
    assert_eq!(stderr(&output).lines().count(), 1, "{output:?}");
    assert!(stderr(&output).starts_with("agentctl: "), "{output:?}");
}

#[tokio::test]
async fn the_journal_is_printed_one_entry_a_line_with_the_contract_s_names() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("notes", "n");
    let story = daemon.carry_out("read it").await;

    let output = daemon.agentctl(&["run", "events", &story.run.id, "-o", "json"]).await;

    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let lines: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut previous = "0".repeat(64);
    assert_eq!(lines.len(), story.entries.len());
    for (line, entry) in lines.iter().zip(&story.entries) {
        let revision = Some(&entry.policy_revision).filter(|revision| !revision.is_empty());
        let digest = (!entry.body_digest.is_empty()).then(|| hex(&entry.body_digest));
        assert_eq!(
            *line,
            json!({
                "run_id": story.run.id, "sequence": entry.sequence, "position": entry.position,
                "time": line["time"], "kind": entry.kind, "version": 1,
                "payload": serde_json::from_str::<Value>(&entry.payload).unwrap(),
                "policy_revision": revision, "body_digest": digest,
                "previous_hash": previous, "hash": hex(&entry.hash),
            })
        );
        previous = hex(&entry.hash);
    }
    let after =
        daemon.agentctl(&["run", "events", &story.run.id, "-o", "json", "--after", "3"]).await;
    let all = stdout(&output);
    let expected: Vec<&str> = all.lines().skip(3).collect();
    assert_eq!(stdout(&after).lines().collect::<Vec<_>>(), expected);
    let followed =
        daemon.agentctl(&["run", "events", &story.run.id, "-o", "json", "--follow"]).await;
    assert_eq!(stdout(&followed), all);
}

#[tokio::test]
async fn a_list_is_one_object_newest_first() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    for task in ["one", "fail two", "three"] {
        daemon.carry_out(task).await;
    }
    let tasks = |list: &Value| -> Vec<String> {
        let runs = list["runs"].as_array().unwrap().iter();
        runs.map(|run| run["task"].as_str().unwrap().to_owned()).collect()
    };

    let (_, all) = object(&daemon, &["run", "list"]).await;
    let (_, two) = object(&daemon, &["run", "list", "--limit", "2"]).await;
    let (_, failed) = object(&daemon, &["run", "list", "--state", "failed"]).await;
    let (_, ended) =
        object(&daemon, &["run", "list", "--state", "FAILED", "--state", "SUCCEEDED"]).await;
    let (_, waiting) = object(&daemon, &["run", "list", "--state", "AWAITING_APPROVAL"]).await;

    assert_eq!(tasks(&all), ["three", "fail two", "one"]);
    assert_eq!(tasks(&two), ["three", "fail two"]);
    assert_eq!(tasks(&failed), ["fail two"]);
    assert_eq!(tasks(&ended), tasks(&all));
    assert_eq!(tasks(&waiting), Vec::<String>::new());
    let table = stdout(&daemon.agentctl(&["run", "list"]).await);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.starts_with("ID "), "{table}");
}

// People and pipes.

#[tokio::test]
async fn followed_in_a_pipe_progress_is_plain_lines_on_stderr_and_the_answer_stands_on_stdout() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("notes", "n");
    let workspace = daemon.workspace().display().to_string();

    let output = daemon.agentctl(&submission("read it", &workspace, &["--follow"])).await;

    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), "I have read it.\n");
    let progress = stderr(&output);
    assert!(!progress.contains(['\u{1b}', '\r']), "{progress:?}");
    assert_eq!(progress.matches("→ read_file notes").count(), 3, "{progress}");
    assert_eq!(progress.matches("I look.").count(), 3, "{progress}");
    assert!(progress.lines().last().unwrap().ends_with("● SUCCEEDED"), "{progress}");
}

#[tokio::test]
async fn a_run_that_stood_still_once_is_followed_to_its_end() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    let workspace = daemon.workspace().display().to_string();
    let submit = submission("read", &workspace, &["--budget-calls", "1"]);
    let (exit, run) = object(&daemon, &[&submit[..], &["--wait"]].concat()).await;
    assert_eq!(exit, Some(6));
    let id = run["id"].as_str().unwrap();
    daemon.cancel(id).await;
    daemon.wait(id).await;

    let output = daemon.agentctl(&["run", "follow", id]).await;

    assert_eq!(output.status.code(), Some(1));
    let progress = stderr(&output);
    assert!(progress.contains("‖ suspended BUDGET_EXHAUSTED"), "{progress}");
    assert!(progress.lines().last().unwrap().ends_with("● CANCELLED"), "{progress}");
}

#[tokio::test]
async fn words_that_would_steer_a_terminal_are_shown_without_their_power() {
    let turns = vec![Turn::say("\u{1b}]0;owned\u{7}\u{1b}[2Jhello\u{9b}31m")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    let id = daemon.carry_out("be\u{1b}[31mware\u{9b}2J").await.run.id;

    let followed = daemon.agentctl(&["run", "follow", &id]).await;
    let mut shown = vec![stderr(&followed)];
    for arguments in [&["run", "get", &id][..], &["run", "events", &id], &["run", "list"]] {
        shown.push(stdout(&daemon.agentctl(arguments).await));
    }

    for text in shown {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.contains("ware"), "control: {text:?}");
    }
    // Who reads the answer from a pipe gets it as it is.
    assert_eq!(stdout(&followed), "\u{1b}]0;owned\u{7}\u{1b}[2Jhello\u{9b}31m\n");
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_failure() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    // More than any pipe holds, so that the writer must notice.
    daemon.put("notes", &"0123456789abcde\n".repeat(2500));
    let story = daemon.carry_out("read it").await;

    for format in ["json", "table"] {
        let mut command = daemon.agentctl_command();
        command.args(["run", "events", &story.run.id, "-o", format]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let code = tasks::blocking(move || exited(child)).await.unwrap();
        let mut words = String::new();
        stderr.read_to_string(&mut words).unwrap();
        assert_eq!((code, words.as_str()), (Some(0), ""), "{format}");
        assert!(line.contains("run_created"), "{line}");
    }
}

#[tokio::test]
async fn the_table_of_a_run_says_what_people_want_to_know() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("notes", "n");
    let run = daemon.carry_out("read it").await.run;

    let shown = stdout(&daemon.agentctl(&["run", "get", &run.id]).await);

    let value = |name: &str| {
        let line = shown.lines().find(|line| line.starts_with(name)).expect(name);
        line[name.len()..].trim().to_owned()
    };
    assert_eq!(value("id"), run.id);
    assert_eq!(value("state"), "SUCCEEDED");
    assert_eq!(value("task"), "read it");
    assert_eq!(value("answer"), "I have read it.");
    assert!(value("used").starts_with("4 turns, 3 calls"), "{shown}");
}

// What else there is.

#[tokio::test]
async fn a_task_can_come_from_a_file_or_from_standard_input() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    let workspace = daemon.workspace().display().to_string();
    let file = daemon.home().join("task.txt");
    fs::write(&file, "from a file").unwrap();

    let mut from_file = daemon.agentctl_command();
    let by_one = ["run", "submit", "--wait", "--agent", "executor", "--workspace", &workspace];
    from_file.args(by_one).arg("-f").arg(&file);
    let mut from_stdin = daemon.agentctl_command();
    from_stdin.args(by_one).args(["-f", "-"]);
    fs::write(&file, "from a file").unwrap();
    let input = daemon.home().join("input.txt");
    fs::write(&input, "from standard input").unwrap();
    from_stdin.stdin(fs::File::open(&input).unwrap());
    for mut command in [from_file, from_stdin] {
        let output = tasks::blocking(move || command.output()).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }

    assert_eq!(backend.tasks(), ["from a file", "from standard input"]);
}

#[tokio::test]
async fn a_submission_that_is_repeated_names_the_same_run() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    let workspace = daemon.workspace().display().to_string();
    let submit = submission("once", &workspace, &["--request-id", "r1", "--wait"]);

    let (first, second) = (object(&daemon, &submit).await, object(&daemon, &submit).await);
    assert_eq!(first, second);
    let mut other = submit.clone();
    other[2] = "twice";
    let output = daemon.agentctl(&other).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(stderr(&output).contains("REQUEST_ID_REUSED"), "{output:?}");
}

#[tokio::test]
async fn a_healthy_daemon_with_an_intact_journal_is_zero() {
    let backend = backend().await;
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.carry_out("something").await;

    let whole = daemon.agentctl(&["health"]).await;
    assert!(whole.status.success() && stdout(&whole).starts_with("green\n"), "{whole:?}");
    assert_eq!(object(&daemon, &["health"]).await.1["status"], "green");
    for arguments in [&["health", "--live"][..], &["health", "--ready"]] {
        let output = daemon.agentctl(arguments).await;
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "SERVING\n"));
        let (exit, health) = object(&daemon, arguments).await;
        assert_eq!((exit, health), (Some(0), json!({"status": "SERVING"})));
    }
    let (exit, with_daemon) = object(&daemon, &["audit", "verify"]).await;
    assert_eq!(
        (exit, &with_daemon["intact"], &with_daemon["runs"]),
        (Some(0), &json!(true), &json!(1))
    );
    let plain = daemon.agentctl(&["audit", "verify"]).await;
    assert!(stdout(&plain).starts_with("journal intact: "), "{plain:?}");

    // Without a daemon, on the file alone: the same, and two entries more: for the end, and the head that signs it.
    daemon.terminate();
    daemon.exit_code().await;
    let database = daemon.database().display().to_string();
    let (exit, alone) = object(&daemon, &["audit", "verify", "--file", &database]).await;
    assert_eq!((exit, &alone["intact"]), (Some(0), &json!(true)));
    let entries = |report: &Value| report["entries"].as_u64().unwrap();
    assert_eq!(entries(&alone), entries(&with_daemon) + 2);
}

#[tokio::test]
async fn the_daemon_tells_what_it_is() {
    let backend = backend().await;
    let daemon = TestDaemon::start(&backend.url());
    let (exit, info) = object(&daemon, &["info"]).await;
    assert_eq!(exit, Some(0));
    assert_eq!(info["backend_url"], backend.url());
    assert_eq!(
        info["tools"],
        json!([
            "read_file",
            "write_file",
            "edit_file",
            "list_dir",
            "search_files",
            "repo_summarize",
            "shell_exec"
        ])
    );
    assert_eq!(info["state_dir"], daemon.state().canonicalize().unwrap().display().to_string());
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    let version = stdout(&daemon.agentctl(&["version"]).await);
    assert_eq!(version, format!("agentctl {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn the_doctor_names_the_next_command_for_each_finding() {
    let backend = backend().await;
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.first_look().await;
    let (exit, said) = object(&daemon, &["doctor"]).await;
    assert_eq!(exit, Some(0), "{said}");
    let findings = said["findings"].as_array().unwrap();
    let what = |start: &str| {
        let found = findings.iter().find(|f| f["what"].as_str().unwrap().starts_with(start));
        found.unwrap_or_else(|| panic!("no {start} in {findings:?}")).clone()
    };
    assert_eq!(what("backend default: ")["level"], "ok");
    assert_eq!(what("daemon: version")["level"], "ok");
    assert_eq!(what("daemon: takes runs")["level"], "ok");

    daemon.stop();
    let (exit, said) = object(&daemon, &["doctor"]).await;
    assert_eq!(exit, Some(3));
    let last = said["findings"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (&last["level"], &last["remedy"]),
        (&json!("fail"), &json!("agentd check && agentd serve"))
    );

    let daemon = TestDaemon::start("http://127.0.0.1:9");
    daemon.first_look().await;
    let (exit, said) = object(&daemon, &["doctor"]).await;
    assert_eq!(exit, Some(1));
    let failed =
        said["findings"].as_array().unwrap().iter().find(|f| f["level"] == "fail").unwrap();
    assert!(
        failed["what"].as_str().unwrap().starts_with("backend default: http://127.0.0.1:9"),
        "{failed}"
    );
    assert!(failed["remedy"].as_str().unwrap().contains("OPENAI_BASE_URL"), "{failed}");
}

#[tokio::test]
async fn the_help_shows_what_to_type_and_every_command_of_its_examples_exists() {
    let daemon = TestDaemon::start("http://127.0.0.1:9");
    for (words, shown) in [
        (
            &["--help"][..],
            &["agentctl demo", "agentctl run submit --follow", "agentctl doctor"][..],
        ),
        (&["run", "submit", "--help"], &["--wait -o json --request-id"]),
    ] {
        let help = stdout(&daemon.agentctl(words).await);
        for example in shown {
            assert!(help.contains(example), "{example}: {help}");
        }
        let examples = help.lines().filter_map(|line| line.trim().strip_prefix("agentctl "));
        for example in examples {
            // What it does stands behind two blanks.
            let typed = example.split("  ").next().unwrap();
            let is_verb = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
            let verbs: Vec<&str> = typed.split(' ').take_while(is_verb).chain(["--help"]).collect();
            let output = daemon.agentctl(&verbs).await;
            assert!(output.status.success(), "{example}: {output:?}");
        }
    }
}

#[tokio::test]
async fn completions_and_manual_pages_are_made_for_every_command_without_a_daemon() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = agentctl(home.path()).args(["completion", shell]).output().unwrap();
        assert!(script.status.success());
        assert!(stdout(&script).contains("submit"), "{shell}");
    }
    let bad = agentctl(home.path()).args(["completion", "cmd"]).output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
    let pages = home.path().join("man");
    let made = agentctl(home.path()).args(["man", "--directory"]).arg(&pages).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    for page in ["agentctl.1", "agentctl-run-submit.1", "agentctl-config-view.1"] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.starts_with(".ie") || text.contains(".TH agentctl"), "{page}: {text}");
    }
}
