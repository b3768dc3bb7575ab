//! Whole loops against the scripted backend: the model asks, tools run, outputs go back, an answer
//! comes. Pairing is checked by the backend on every request.

use std::sync::atomic::{AtomicUsize, Ordering};

use agentd::{
    proto::v1::RunState,
    scripted::{Arguments, Call, Kind, Manner, Reply, Script, Seen, Turn},
};
use serde_json::json;

use crate::support::{Backend, Settings, TestDaemon, manner};

fn read_and_write() -> Script {
    Script {
        turns: vec![
            Turn::call("read_file", json!({"path": "notes.txt"})),
            Turn::call("write_file", json!({"path": "out.txt", "content": "hello\n"})),
            Turn::say("All done."),
        ],
    }
}

async fn read_write_answer(configuration: &str) {
    let backend = Backend::start(read_and_write()).await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: configuration.into(),
        ..Settings::default()
    });
    daemon.put("notes.txt", "remember the milk\n");

    let story = daemon.carry_out("copy my notes").await;

    assert_eq!(story.state(), RunState::Succeeded);
    assert_eq!(story.run.answer, "All done.");
    assert_eq!(daemon.read("out.txt").as_deref(), Some("hello\n"));
    assert_eq!(
        story.kinds(),
        [
            "run_created",
            "model_request",
            "model_response",
            "tool_call",
            "decision",
            "tool_output",
            "model_request",
            "model_response",
            "workspace_snapshot",
            "tool_call",
            "decision",
            "tool_output",
            "model_request",
            "model_response",
            "run_finished",
        ]
    );
    let sequences: Vec<u64> = story.entries.iter().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, (1..=15).collect::<Vec<u64>>());
    assert_eq!(story.outputs()[0].1["content"], "remember the milk\n");
    let usage = story.run.usage.unwrap();
    assert_eq!((usage.turns, usage.tool_calls, usage.turns_of_unknown_cost), (3, 2, 0));
    assert!(usage.input_tokens > 0 && usage.output_tokens > 0);
    story.assert_calls_are_tied();
    backend.assert_paired();
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_file_is_read_another_is_written_and_an_answer_comes_when_streaming() {
    read_write_answer("").await;
}

#[tokio::test]
async fn a_file_is_read_another_is_written_and_an_answer_comes_without_streaming() {
    read_write_answer("backend: {stream: false}\n").await;
}

#[tokio::test]
async fn requests_carry_the_whole_conversation_and_ask_the_backend_to_store_nothing() {
    let backend = Backend::start(read_and_write()).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("notes.txt", "x");
    daemon.carry_out("copy my notes").await;

    let requests = backend.server.requests();
    assert_eq!(requests.len(), 3);
    let types = |request: &serde_json::Value| -> Vec<String> {
        let items = request["input"].as_array().unwrap().iter();
        items.map(|item| item["type"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(types(&requests[0]), ["message"]);
    assert_eq!(
        types(&requests[2]),
        [
            "message",
            "function_call",
            "function_call_output",
            "function_call",
            "function_call_output"
        ]
    );
    for request in &requests {
        assert_eq!(request["store"], false);
        assert_eq!(request["model"], "scripted", "the backend's first listed model");
        assert_eq!(request["tools"], requests[0]["tools"], "the same bytes in every turn");
        assert_eq!(request.get("previous_response_id"), None);
    }
}

#[tokio::test]
async fn calls_of_one_answer_run_at_once_and_their_outputs_go_back_in_the_model_s_order() {
    let turns = vec![
        Turn::call("shell_exec", json!({"command": "sh pure.sh"}))
            .and_call("read_file", json!({"path": "b"}))
            .and_call("read_file", json!({"path": "a"})),
        Turn::say("done"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    // The first call ends last: it waits until the others could have ended.
    daemon.put("pure.sh", "sleep 0.2; echo slow");
    daemon.put("a", "A");
    daemon.put("b", "B");

    let story = daemon.carry_out("three at once").await;

    assert_eq!(story.state(), RunState::Succeeded);
    let written: Vec<String> = story
        .payloads("tool_output")
        .iter()
        .map(|payload| payload["call"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(written.last().map(String::as_str), Some("1.0"), "as they ended");
    let second = &backend.server.requests()[1];
    let ids: Vec<&str> = second["input"].as_array().unwrap()[4..]
        .iter()
        .map(|item| item["call_id"].as_str().unwrap())
        .collect();
    let places: Vec<&str> = ids.iter().map(|id| id.rsplit('_').next().unwrap()).collect();
    assert_eq!(places, ["0", "1", "2"], "as the model asked");
}

#[tokio::test]
async fn an_unknown_tool_and_malformed_arguments_are_told_to_the_model_and_the_run_goes_on() {
    let malformed = |text: &str| Call {
        tool: "read_file".into(),
        arguments: Arguments::Text(text.into()),
        call_id: None,
    };
    let turns = vec![
        Turn::call("launch_rocket", json!({})),
        Turn { calls: vec![malformed("{\"path\": \"no"), malformed("[]")], ..Turn::default() },
        Turn::say("I give up"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());

    let story = daemon.carry_out("try").await;

    assert_eq!(story.state(), RunState::Succeeded);
    assert_eq!(
        story.decisions(),
        ["deny builtin/unknown-tool", "deny builtin/arguments", "deny builtin/arguments"]
    );
    let heard = &story.outputs()[0].1["error"]["message"];
    assert_eq!(
        heard,
        "there is no tool launch_rocket; there are read_file, write_file, edit_file, list_dir, \
         search_files, repo_summarize, shell_exec"
    );
    story.assert_calls_are_tied();
    backend.assert_paired();
}

#[tokio::test]
async fn a_call_repeated_word_for_word_in_one_answer_runs_once() {
    let call = |path: &str| Call {
        tool: "write_file".into(),
        arguments: Arguments::Json(json!({"path": path, "content": "once"})),
        call_id: Some("same".into()),
    };
    let turns =
        vec![Turn { calls: vec![call("x"), call("x")], ..Turn::default() }, Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());

    let story = daemon.carry_out("twice the same").await;

    assert_eq!(story.state(), RunState::Succeeded);
    assert_eq!(story.payloads("tool_call").len(), 1);
    backend.assert_paired();
}

#[tokio::test]
async fn one_call_id_for_two_different_calls_fails_the_run_and_touches_nothing() {
    let call = |path: &str| Call {
        tool: "write_file".into(),
        arguments: Arguments::Json(json!({"path": path, "content": "never"})),
        call_id: Some("same".into()),
    };
    let turn = Turn { calls: vec![call("x"), call("y")], ..Turn::default() };
    let backend = Backend::start(move |_: &Seen| Reply::Answer(turn.clone())).await;
    let daemon = TestDaemon::start(&backend.url());

    let story = daemon.carry_out("ambiguous").await;

    assert_eq!(story.state(), RunState::Failed);
    assert_eq!(story.run.error.as_ref().unwrap().reason, "BACKEND_PROTOCOL");
    assert_eq!((daemon.read("x"), daemon.read("y")), (None, None));
    assert_eq!(story.payloads("tool_call").len(), 0);
}

#[tokio::test]
async fn a_call_id_that_comes_again_in_a_later_turn_is_another_call() {
    let call = |content: &str| Call {
        tool: "write_file".into(),
        arguments: Arguments::Json(json!({"path": "x", "content": content})),
        call_id: Some("same".into()),
    };
    let turns = vec![
        Turn { calls: vec![call("1")], ..Turn::default() },
        Turn { calls: vec![call("2")], ..Turn::default() },
        Turn::say("done"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());

    let story = daemon.carry_out("ids repeat").await;

    assert_eq!(story.state(), RunState::Succeeded);
    assert_eq!(daemon.read("x").as_deref(), Some("2"));
    assert_eq!(story.payloads("tool_call").len(), 2);
}

#[tokio::test]
async fn a_stream_cut_before_its_terminal_event_is_asked_again_and_nothing_of_it_is_done() {
    let asked = AtomicUsize::new(0);
    let backend = Backend::start(move |seen: &Seen| {
        let write =
            |content: &str| Turn::call("write_file", json!({"path": "x", "content": content}));
        match (asked.fetch_add(1, Ordering::SeqCst), seen.turn) {
            // Everything but the terminal event: the call's item is done already.
            (0, 1) => Reply::Cut { turn: write("cut"), events: 6 },
            (_, 1) => Reply::Answer(write("whole")),
            _ => Reply::Answer(Turn::say("done")),
        }
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());

    let story = daemon.carry_out("be patient").await;

    assert_eq!(story.state(), RunState::Succeeded);
    assert_eq!(daemon.read("x").as_deref(), Some("whole"));
    let error = &story.payloads("backend_error")[0];
    assert_eq!((&error["reason"], &error["attempt"]), (&json!("BACKEND_UNAVAILABLE"), &json!(1)));
    assert_eq!(story.payloads("tool_call").len(), 1);
    assert_eq!(story.run.usage.unwrap().turns_of_unknown_cost, 1);
}

#[tokio::test]
async fn an_answer_that_says_it_is_incomplete_is_never_acted_on() {
    let cut = |_: &Seen| Reply::Incomplete {
        turn: Turn::call("write_file", json!({"path": "x", "content": "half"})),
        reason: "max_output_tokens".into(),
    };
    // Ollama's would not say so: see `servers.rs`.
    let backend = Backend::start_as(cut, Manner { kind: Kind::Plain, ..manner() }).await;
    let daemon = TestDaemon::start(&backend.url());

    let story = daemon.carry_out("too long").await;

    assert_eq!(story.state(), RunState::Failed);
    assert_eq!(story.run.error.as_ref().unwrap().reason, "INCOMPLETE_RESPONSE");
    assert_eq!(daemon.read("x"), None);
}

#[tokio::test]
async fn a_model_that_says_nothing_is_told_so_once_and_then_the_run_fails() {
    let backend = Backend::start(|_: &Seen| Reply::Answer(Turn::default())).await;
    let daemon = TestDaemon::start(&backend.url());

    let story = daemon.carry_out("speak").await;

    assert_eq!(story.state(), RunState::Failed);
    assert_eq!(story.run.error.as_ref().unwrap().reason, "EMPTY_ANSWER");
    assert_eq!(
        (story.payloads("model_request").len(), story.payloads("model_nudged").len()),
        (2, 1)
    );
}

#[tokio::test]
async fn wrong_credentials_fail_the_run_at_once_and_say_what_to_do() {
    let backend = Backend::start(|_: &Seen| Reply::Http {
        status: 401,
        headers: vec![("x-request-id".into(), "req_7".into())],
        body: r#"{"error":{"message":"bad key","code":"invalid_api_key"}}"#.into(),
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());

    let story = daemon.carry_out("let me in").await;

    assert_eq!(story.state(), RunState::Failed);
    let error = story.run.error.as_ref().unwrap();
    assert_eq!(error.reason, "BACKEND_UNAUTHENTICATED");
    assert!(error.message.contains("bad key") && error.message.contains("OPENAI_API_KEY"));
    assert_eq!(story.payloads("model_request").len(), 1);
    assert_eq!(story.payloads("backend_error")[0]["backend_request_id"], "req_7");
}

#[tokio::test]
async fn a_budget_that_is_used_up_suspends_the_run_and_keeps_everything() {
    let backend = Backend::start(|seen: &Seen| {
        Reply::Answer(Turn::call(
            "write_file",
            json!({"path": format!("f{}", seen.turn), "content": ""}),
        ))
    })
    .await;
    let daemon = TestDaemon::start(&backend.url());
    let mut request = daemon.request("never stop");
    request.budget = Some(agentd::proto::v1::Budget { max_tool_calls: 3, ..Default::default() });
    let run = daemon.create(request).await.unwrap().run.unwrap();

    let story = daemon.story(&run.id).await;

    assert_eq!(story.state(), RunState::OutOfBudget);
    assert_eq!(story.run.error.as_ref().unwrap().reason, "BUDGET_EXHAUSTED");
    assert_eq!(story.payloads("tool_output").len(), 3);
    assert_eq!(daemon.read("f4"), None);
}

#[tokio::test]
async fn git_shows_a_real_change() {
    let turns = vec![Turn::call("shell_exec", json!({"command": "git diff"})), Turn::say("seen")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("a.txt", "before\n");
    for arguments in
        ["init -q", "add .", "-c user.name=t -c user.email=t@localhost commit -qm first"]
    {
        let git = std::process::Command::new("git")
            .args(arguments.split(' '))
            .current_dir(daemon.workspace())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .status()
            .unwrap();
        assert!(git.success());
    }
    daemon.put("a.txt", "after\n");

    let story = daemon.carry_out("what changed").await;

    let output = &story.outputs()[0].1;
    assert_eq!(output["exit_code"], 0, "{output}");
    assert!(output["stdout"].as_str().unwrap().ends_with("-before\n+after\n"), "{output}");
}
