//! Model servers as they are: each kind of them is known by what it looks like, is asked in the way that it takes, and is
//! not believed where it is known to be wrong. One that only chats is never given a tool, and nothing that it asks for is
//! ever done.

use std::time::Duration;

use agentd::{
    proto::v1::RunState,
    scripted::{Kind, Manner, Memory, Reply, Script, Seen, Turn},
};
use serde_json::{Value, json};

use crate::support::{Backend, Settings, Story, TestDaemon, wait_until};

const WITH_TOOLS: [Kind; 6] =
    [Kind::Plain, Kind::OpenAi, Kind::LmStudio, Kind::LlamaCpp, Kind::Ollama, Kind::Vllm];

async fn server(kind: Kind, brain: impl agentd::scripted::Brain) -> Backend {
    Backend::start_as(brain, Manner { kind, memory: Memory::Requests, ..Manner::default() }).await
}

fn daemon(backend: &Backend, configuration: &str) -> TestDaemon {
    TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: configuration.into(),
        ..Settings::default()
    })
}

#[tokio::test]
async fn each_server_is_known_by_what_it_looks_like_and_found_to_have_what_it_has() {
    for kind in Kind::ALL {
        let backend = server(kind, Script { turns: Vec::new() }).await;
        let daemon = daemon(&backend, "");
        let found = daemon.first_look().await;
        let profile = match kind {
            Kind::Plain | Kind::ChatOnly => "generic",
            other => other.as_str(),
        };
        assert_eq!(found["profile"], profile, "{kind:?}");
        assert_eq!(found["chat"], true, "{kind:?}");
        assert_eq!(found["responses"], kind != Kind::ChatOnly, "{kind:?}");
        assert_eq!(found["agents"], kind == Kind::OpenAi, "{kind:?}");
        let colour = if kind == Kind::ChatOnly { "degraded" } else { "green" };
        assert_eq!(found["colour"], colour, "{kind:?}");
        // Nothing was generated for it.
        assert_eq!(backend.server.requests(), Vec::<Value>::new(), "{kind:?}");
    }
}

#[tokio::test]
async fn the_log_says_what_was_found() {
    let backend = server(Kind::OpenAi, Script { turns: Vec::new() }).await;
    let daemon = daemon(&backend, "");
    daemon.first_look().await;
    let said = || {
        daemon.log().lines().any(|line| {
            line.contains("capability_probe")
                && line.contains("agents=true")
                && line.contains("responses=true")
        })
    };
    wait_until("the line in the log", said).await;
}

/// Thinks, reads two files at once, writes a third, and answers.
fn parallel() -> Script {
    Script {
        turns: vec![
            Turn::call("read_file", json!({"path": "a.txt"}))
                .and_call("read_file", json!({"path": "b.txt"}))
                .thinking("both at once"),
            Turn::call("write_file", json!({"path": "c.txt", "content": "ab\n"}))
                .thinking("now write"),
            Turn::say("Joined."),
        ],
    }
}

async fn joined(kind: Kind, configuration: &str) {
    let backend = server(kind, parallel()).await;
    let daemon = daemon(&backend, configuration);
    daemon.put("a.txt", "a");
    daemon.put("b.txt", "b");
    let story = daemon.carry_out("join them").await;
    assert_eq!(story.state(), RunState::Succeeded, "{kind:?} {:?}", story.run.error);
    assert_eq!(story.run.answer, "Joined.", "{kind:?}");
    assert!(!story.run.degraded, "{kind:?}");
    assert_eq!(daemon.read("c.txt").as_deref(), Some("ab\n"), "{kind:?}");
    assert_eq!(story.payloads("backend_error"), Vec::<Value>::new(), "{kind:?}");
    story.assert_calls_are_tied();
    backend.assert_paired();
    let last = backend.server.requests().pop().unwrap();
    let kinds = |item: &Value| item["type"].as_str().unwrap().to_owned();
    let thoughts = last["input"].as_array().unwrap().iter().map(kinds);
    let thoughts = thoughts.filter(|kind| kind == "reasoning").count();
    assert_eq!(thoughts, if kind == Kind::LlamaCpp { 0 } else { 2 }, "{kind:?}");
    let includes = kind == Kind::OpenAi;
    assert_eq!(last["include"].is_array(), includes, "{kind:?}");
}

#[tokio::test]
async fn thoughts_and_parallel_calls_go_well_with_every_server_when_streaming() {
    for kind in WITH_TOOLS {
        joined(kind, "").await;
    }
}

#[tokio::test]
async fn thoughts_and_parallel_calls_go_well_with_every_server_without_streaming() {
    for kind in WITH_TOOLS {
        joined(kind, "backend: {stream: false}\n").await;
    }
}

#[tokio::test]
async fn an_answer_that_ollama_calls_whole_is_known_to_be_cut_off_by_its_length() {
    let cut = |_: &Seen| Reply::Incomplete {
        turn: Turn::call("write_file", json!({"path": "c.txt", "content": "cut"})),
        reason: "max_output_tokens".into(),
    };
    let backend = server(Kind::Ollama, cut).await;
    // What the scripted server says is longer than that.
    let daemon = daemon(&backend, "agents: {executor: {max_output_tokens: 5}}\n");
    let story = daemon.carry_out("write").await;
    assert_eq!(story.state(), RunState::Failed);
    assert_eq!(story.run.error.as_ref().unwrap().reason, "INCOMPLETE_RESPONSE");
    assert_eq!(daemon.read("c.txt"), None);
    assert_eq!(backend.server.requests()[0]["max_output_tokens"], 5);
}

#[tokio::test]
async fn the_configuration_s_profile_wins_over_what_the_server_looks_like() {
    let backend = server(Kind::Plain, parallel()).await;
    let daemon = daemon(&backend, "backend: {profile: llamacpp}\n");
    daemon.put("a.txt", "a");
    daemon.put("b.txt", "b");
    assert_eq!(daemon.first_look().await["profile"], "llamacpp");
    assert_eq!(daemon.carry_out("join them").await.state(), RunState::Succeeded);
    let last = backend.server.requests().pop().unwrap();
    let items = last["input"].as_array().unwrap();
    assert!(items.iter().all(|item| item["type"] != "reasoning"), "{items:?}");
}

/// Asks to write a file, in every turn but the last.
fn asks_all_the_same(seen: &Seen) -> Reply {
    let write = Turn::call("write_file", json!({"path": "evil.txt", "content": "x"}));
    Reply::Answer(match seen.turn {
        1 => Turn { say: "I will write it.".into(), ..write },
        _ => Turn::say("Done."),
    })
}

fn assert_read_only(story: &Story, backend: &Backend, daemon: &TestDaemon) {
    assert!(story.run.degraded);
    let left: Vec<String> = std::fs::read_dir(daemon.workspace())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(left, ["notes.txt"], "nothing else is in the workspace");
    assert_eq!(daemon.read("notes.txt").as_deref(), Some("remember the milk\n"));
    for kind in ["tool_call", "decision", "tool_output"] {
        assert_eq!(story.payloads(kind), Vec::<Value>::new());
    }
    for request in backend.server.requests() {
        assert!(request.get("tools").is_none() && request.get("messages").is_some(), "{request}");
        let system = request["messages"][0]["content"].as_str().unwrap();
        assert!(system.starts_with("READ-ONLY MODE."), "{system}");
    }
    let degraded = story.payloads("run_degraded");
    assert_eq!((degraded.len(), &degraded[0]["turn"]), (1, &json!(1)), "{degraded:?}");
    let warned = |line: &str| line.contains("WARN") && line.contains("read-only, without tools");
    assert!(daemon.log().lines().any(warned), "{}", daemon.log());
}

async fn chatted(configuration: &str) {
    let backend = server(Kind::ChatOnly, asks_all_the_same).await;
    let daemon = daemon(&backend, configuration);
    daemon.put("notes.txt", "remember the milk\n");
    let story = daemon.carry_out("write evil.txt").await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert_eq!(story.run.answer, "I will write it.");
    let usage = story.run.usage.unwrap();
    assert!(usage.input_tokens > 0 && usage.output_tokens > 0, "{usage:?}");
    assert_read_only(&story, &backend, &daemon);
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_server_that_only_chats_gets_no_tools_and_no_call_of_it_is_done_when_streaming() {
    chatted("").await;
}

#[tokio::test]
async fn a_server_that_only_chats_gets_no_tools_and_no_call_of_it_is_done_without_streaming() {
    chatted("backend: {stream: false}\n").await;
}

#[tokio::test]
async fn calls_without_a_word_are_no_answer_and_are_not_done_either() {
    let calls = |_: &Seen| {
        Reply::Answer(Turn::call("write_file", json!({"path": "evil.txt", "content": "x"})))
    };
    let backend = server(Kind::ChatOnly, calls).await;
    let daemon = daemon(&backend, "");
    daemon.put("notes.txt", "remember the milk\n");
    let story = daemon.carry_out("write evil.txt").await;
    assert_eq!(story.run.error.as_ref().unwrap().reason, "EMPTY_ANSWER");
    let nudge = &story.payloads("model_nudged")[0]["text"];
    assert!(nudge.as_str().unwrap().contains("no tools here"), "{nudge}");
    assert_read_only(&story, &backend, &daemon);
}

#[tokio::test]
async fn the_fallback_can_be_forced_on_a_server_that_has_everything() {
    let backend = server(Kind::OpenAi, asks_all_the_same).await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        environment: vec![("FORCE_CHAT_FALLBACK".into(), "true".into())],
        ..Settings::default()
    });
    daemon.put("notes.txt", "remember the milk\n");
    let found = daemon.first_look().await;
    assert_eq!((&found["colour"], &found["responses"]), (&json!("degraded"), &json!(true)));
    let story = daemon.carry_out("write evil.txt").await;
    assert_eq!(story.state(), RunState::Succeeded);
    assert!(
        story.payloads("run_degraded")[0]["why"].as_str().unwrap().contains("FORCE_CHAT_FALLBACK")
    );
    assert_read_only(&story, &backend, &daemon);
}

#[tokio::test]
async fn a_run_that_began_without_tools_gets_none_when_the_server_learns_better() {
    // Nothing is said at first, and slowly, so that there is another turn after the server has changed.
    let brain = |seen: &Seen| match seen.task.contains("no tools here") {
        false => Reply::Answer(Turn::default()),
        true => Reply::Answer(
            Turn::say("Done.").and_call("write_file", json!({"path": "evil.txt", "content": "x"})),
        ),
    };
    let backend = Backend::start_as(
        brain,
        Manner {
            kind: Kind::ChatOnly,
            pace: Duration::from_secs(1),
            memory: Memory::Requests,
            ..Manner::default()
        },
    )
    .await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        environment: vec![("HEALTH_INTERVAL_S".into(), "1".into())],
        ..Settings::default()
    });
    daemon.put("notes.txt", "remember the milk\n");
    assert_eq!(daemon.first_look().await["responses"], false);
    let run = daemon.submit("hold on").await;
    daemon.wait_for_entry(&run.id, "model_request").await;
    backend.server.become_a(Kind::OpenAi);
    let learned =
        || daemon.entries_of_the_daemon("capability_probe").last().unwrap()["responses"] == true;
    wait_until("a look that finds the API", learned).await;
    assert_eq!(backend.server.requests().len(), 1, "it is in its first turn");
    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert_eq!(story.payloads("model_request").len(), 2);
    assert_read_only(&story, &backend, &daemon);
    // Control: another run has them.
    let other =
        daemon.create(daemon.request("and again, with no tools here")).await.unwrap().run.unwrap();
    let other = daemon.wait_for_entry(&other.id, "tool_call").await;
    assert!(other.payload.contains("write_file"));
}

#[tokio::test]
async fn credentials_that_are_refused_never_lead_to_the_chat_api() {
    let refuses = |_: &Seen| Reply::Http {
        status: 401,
        headers: Vec::new(),
        body: r#"{"error":{"message":"Incorrect API key","code":"invalid_api_key"}}"#.into(),
    };
    for kind in [Kind::OpenAi, Kind::ChatOnly] {
        let backend = server(kind, refuses).await;
        let daemon = daemon(&backend, "");
        let story = daemon.carry_out("hello").await;
        let error = story.run.error.clone().unwrap();
        assert_eq!(error.reason, "BACKEND_UNAUTHENTICATED", "{error:?}");
        let chats =
            backend.server.requests().iter().filter(|r| r.get("messages").is_some()).count();
        assert_eq!(chats, usize::from(kind == Kind::ChatOnly), "{kind:?}");
        assert_eq!(story.run.degraded, kind == Kind::ChatOnly);
    }
}

#[tokio::test]
async fn the_command_line_says_that_a_run_has_no_tools() {
    let backend = server(Kind::ChatOnly, Script { turns: vec![Turn::say("Hello.")] }).await;
    let daemon = daemon(&backend, "");
    let workspace = daemon.workspace();
    let workspace = workspace.to_str().unwrap();
    let done = daemon
        .agentctl(&[
            "run",
            "submit",
            "hello",
            "--workspace",
            workspace,
            "--agent",
            "executor",
            "--follow",
        ])
        .await;
    let said = [done.stdout.as_slice(), done.stderr.as_slice()].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("READ-ONLY, WITHOUT TOOLS"), "{said}");
}

#[tokio::test]
async fn a_hosted_tool_that_the_server_does_not_take_is_not_declared_and_the_journal_says_why() {
    let backend = server(Kind::LlamaCpp, Script { turns: vec![Turn::say("Hello.")] }).await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: "hosted_tools: [{type: code_interpreter}]\n".into(),
        hosted: "  - {id: test.code, type: code_interpreter, decision: allow, why: it may}\n"
            .into(),
        ..Settings::default()
    });
    let story = daemon.carry_out("hello").await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    let decided = &story.payloads("model_request")[0]["hosted_tools"][0];
    assert_eq!(
        (&decided["decision"], &decided["rule"]),
        (&json!("deny"), &json!("builtin/backend-profile"))
    );
    let tools = backend.server.requests()[0]["tools"].as_array().unwrap().clone();
    assert!(tools.iter().all(|tool| tool["type"] == "function"), "{tools:?}");
}
