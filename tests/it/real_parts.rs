//! Whole runs against programs that nobody here wrote: two model servers and a gRPC client. What our
//! own scripted backend lets pass because we wrote both ends, these do not.
//!
//! They run where `AGENTD_REAL_PARTS` names the directory that `scripts/real-parts.sh` prints; elsewhere
//! each says NOT CHECKED on stderr. Each server is a process of its own, on a port of its own choice.
//! - llmock writes every request down as it came, and judges its client. It also passes one that asked
//!   nothing, and does not count the faults of its tool calls: so verdicts are compared as a whole.
//! - aimock answers what its fixtures say, sparsely, and under `strict` refuses any other request. It
//!   keeps no reasoning of a request: see [`Upstream`].
//! - `python/follow.py` is a client without generated code. By hand, with the parts' `python/bin/python`:
//!   `follow.py --address HOST:PORT --token-file FILE --workspace DIR --task WORDS --drop-after 4`; it
//!   drops its connection after so many entries, as often as told, and prints one line of JSON.
//!
//! Never in here: a server or client of ours (`loops.rs` has those), an address that is not loopback.

pub(crate) mod servers;

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Command, Stdio},
};

use agentd::{
    proto::v1::{RunState, Usage},
    scripted::{Script, Turn},
    tasks,
};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Map, Value, json};

use self::servers::{Server, Upstream, parts};
use crate::support::{Backend, Settings, Story, TestDaemon};

const STREAMED: &str = "";
const WHOLE: &str = "backend: {stream: false}\n";

#[tokio::test]
async fn llmock_s_own_choice_of_tool_and_arguments_is_carried_out_when_streaming() {
    own_choice(STREAMED).await;
}

#[tokio::test]
async fn llmock_s_own_choice_of_tool_and_arguments_is_carried_out_without_streaming() {
    own_choice(WHOLE).await;
}

/// llmock takes the tool that fits the words best, and makes arguments up from its schema.
async fn own_choice(configuration: &str) {
    let Some(parts) = parts("a tool call of llmock's own choice") else { return };
    let server = parts.llmock();
    let daemon = daemon(&server, configuration).await;

    let story =
        daemon.carry_out("Write a text file with new content, replacing it as a whole").await;

    assert_eq!(story.state(), RunState::Succeeded, "{story:?}");
    assert_eq!(story.payloads("tool_call").len(), 1);
    assert_eq!(story.outputs()[0].1["created"], true);
    assert_eq!(daemon.read("mock-path").as_deref(), Some("mock-content"));
    assert_ne!(story.run.answer, "");
    story.assert_calls_are_tied();
    assert_eq!(
        server.conversations().await,
        ["message", "message function_call function_call_output"]
    );
    assert_eq!(judged(&server.verdict().await), clean(0));
}

#[tokio::test]
async fn llmock_s_script_reads_a_file_and_writes_another_when_streaming() {
    read_and_write(STREAMED).await;
}

#[tokio::test]
async fn llmock_s_script_reads_a_file_and_writes_another_without_streaming() {
    read_and_write(WHOLE).await;
}

async fn read_and_write(configuration: &str) {
    let Some(parts) = parts("a script of llmock, read_file then write_file") else { return };
    let server = parts.llmock();
    let daemon = daemon(&server, configuration).await;
    server
        .script([
            reply("read_file", json!({"path": "notes.txt"})),
            reply("write_file", json!({"path": "out.txt", "content": "hello\n"})),
            json!({"type": "reply", "text": "All done."}),
        ])
        .await;
    daemon.put("notes.txt", "remember the milk\n");

    let story = daemon.carry_out("copy my notes").await;

    assert_copied(&daemon, &story);
    assert_eq!(
        server.conversations().await,
        [
            "message",
            "message function_call function_call_output",
            "message function_call function_call_output function_call function_call_output",
        ]
    );
    assert_eq!(judged(&server.verdict().await), clean(0));
}

/// notes.txt was read, out.txt was written, and the answer came.
fn assert_copied(daemon: &TestDaemon, story: &Story) {
    assert_eq!(story.state(), RunState::Succeeded, "{story:?}");
    assert_eq!(story.run.answer, "All done.");
    assert_eq!(story.outputs()[0].1["content"], "remember the milk\n");
    assert_eq!(daemon.read("out.txt").as_deref(), Some("hello\n"));
    assert_eq!(story.payloads("model_request").len(), 3);
    assert_eq!(story.payloads("tool_call").len(), 2);
    story.assert_calls_are_tied();
}

#[tokio::test]
async fn a_rate_limit_is_waited_out_as_long_as_llmock_asks() {
    // Longer than agentd's own first two delays: who does not read Retry-After fails the verdict.
    let fault = json!({"type": "fail", "status": 429, "retry_after": 1.25, "times": 2});
    let Some(told) = faulty_turn("429 with Retry-After", [fault], STREAMED).await else { return };

    assert_eq!(told.errors, ["RATE_LIMITED 1", "RATE_LIMITED 2"]);
    assert_eq!(judged(&told.verdict), clean(2));
}

#[tokio::test]
async fn a_stream_that_llmock_ends_too_early_is_asked_again() {
    let faults = cuts("truncate");
    let Some(told) = faulty_turn("a truncated stream", faults, STREAMED).await else { return };

    assert_eq!(told.errors, ["BACKEND_UNAVAILABLE 1", "BACKEND_UNAVAILABLE 2"]);
    assert_eq!(judged(&told.verdict), clean(2));
}

#[tokio::test]
async fn a_stream_whose_connection_llmock_drops_is_asked_again() {
    let faults = cuts("disconnect");
    let Some(told) = faulty_turn("a dropped connection", faults, STREAMED).await else { return };

    assert_eq!(told.errors, ["BACKEND_UNAVAILABLE 1", "BACKEND_UNAVAILABLE 2"]);
    assert_eq!(judged(&told.verdict), clean(2));
}

#[tokio::test]
async fn a_stream_with_half_an_event_is_asked_again() {
    let faults = cuts("malformed");
    let Some(told) = faulty_turn("half an event of JSON", faults, STREAMED).await else { return };

    assert_eq!(told.errors, ["BACKEND_PROTOCOL 1", "BACKEND_PROTOCOL 2"]);
    // llmock sends the rest of its stream and takes it for read, so that it may see three calls where
    // there is one that was asked three times, and warn: that is not our fault, an error would be.
    let count = |key: &str| told.verdict[key].clone();
    assert_eq!(
        (count("passed"), count("errors"), count("faults_injected")),
        (true.into(), 0.into(), 2.into())
    );
}

#[tokio::test]
async fn malformed_arguments_of_llmock_are_told_to_the_model_and_the_run_goes_on() {
    for configuration in [STREAMED, WHOLE] {
        let fault = json!({"type": "tool_fault", "kind": "malformed_arguments"});
        let what = "malformed arguments";
        let Some(told) = faulty_turn(what, [fault], configuration).await else { return };

        assert_eq!(told.decisions[0], "deny builtin/arguments");
        assert_eq!(judged(&told.verdict), clean(0));
    }
}

#[tokio::test]
async fn an_unknown_tool_of_llmock_is_told_to_the_model_and_the_run_goes_on() {
    for configuration in [STREAMED, WHOLE] {
        let fault = json!({"type": "tool_fault", "kind": "unknown_tool"});
        let what = "an unknown tool";
        let Some(told) = faulty_turn(what, [fault], configuration).await else { return };

        assert_eq!(told.decisions[0], "deny builtin/unknown-tool");
        assert_eq!(judged(&told.verdict), clean(0));
    }
}

/// Two faults for two requests: early in the stream, and on its very last event, when all of the call
/// has been sent already.
fn cuts(kind: &str) -> [Value; 2] {
    [3, LAST_EVENT]
        .map(|after| json!({"type": "stream_fault", "kind": kind, "after_chunks": after}))
}

/// Place of the terminal event in llmock's stream of [`write`]: created, in progress, item added, three
/// pieces of arguments, arguments done and item done come before it.
const LAST_EVENT: u32 = 8;

fn write(content: &str) -> Value {
    reply("write_file", json!({"path": "x", "content": content}))
}

#[tokio::test]
async fn a_stream_that_llmock_lets_stall_is_given_up_and_asked_again() {
    let fault =
        json!({"type": "stream_fault", "kind": "stall", "after_chunks": 3, "stall_seconds": 30});
    let configuration = "backend: {stream: true, idle_timeout_seconds: 1}\n";
    let Some(told) = faulty_turn("a stalled stream", [fault], configuration).await else { return };

    assert_eq!(told.errors, ["TIMEOUT 1"]);
    assert_eq!(judged(&told.verdict), clean(1));
}

#[tokio::test]
async fn a_quota_of_llmock_is_kept_to_by_waiting() {
    let Some(parts) = parts("a quota of llmock") else { return };
    // One more each second and a half.
    let server = parts.llmock_with(&["--rpm", "40"]);
    let daemon = daemon(&server, STREAMED).await;
    let read = || reply("read_file", json!({"path": "notes.txt"}));
    let done = json!({"type": "reply", "text": "All done."});
    server.script((0..42).map(|_| read()).chain([done])).await;
    daemon.put("notes.txt", "remember the milk\n");

    let story = daemon.carry_out("read it often").await;

    assert_eq!(story.state(), RunState::Succeeded, "{story:?}");
    let errors = story.payloads("backend_error");
    assert!(
        !errors.is_empty() && errors.iter().all(|error| error["reason"] == "RATE_LIMITED"),
        "{errors:?}"
    );
    let verdict = server.verdict().await;
    assert_eq!((&verdict["passed"], &verdict["errors"]), (&json!(true), &json!(0)), "{verdict}");
}

#[tokio::test]
async fn nothing_that_fakellm_asks_for_is_ever_done_when_streaming() {
    chat_only(STREAMED).await;
}

#[tokio::test]
async fn nothing_that_fakellm_asks_for_is_ever_done_without_streaming() {
    chat_only(WHOLE).await;
}

/// fakellm has no Responses API, and asks for a tool that nobody offered it.
async fn chat_only(configuration: &str) {
    let Some(parts) = parts("fakellm, which only chats") else { return };
    let evil = json!({"id": "call_1", "name": "write_file", "arguments": {"path": "evil.txt", "content": "x"}});
    // With calls it says nothing; what agentd says of that, it answers in words.
    let server = parts.fakellm(json!([
        {"name": "speaks", "when": {"messages_contain": "no tools here"}, "respond": {"content": "I would write it."}},
        {"name": "asks", "when": {"messages_contain": "write"}, "respond": {"tool_calls": [evil]}},
    ]));
    let daemon = TestDaemon::start_with(Settings {
        base_url: server.url.clone(),
        configuration: configuration.into(),
        // It lists none.
        environment: vec![("AGENTD_MODEL".into(), "fake".into())],
        ..Settings::default()
    });
    let found = daemon.first_look().await;
    assert_eq!(
        (&found["responses"], &found["colour"]),
        (&json!(false), &json!("degraded")),
        "{found}"
    );

    let story = daemon.carry_out("write a file").await;

    assert_eq!(story.state(), RunState::Succeeded, "{story:?}");
    assert_eq!(story.run.answer, "I would write it.");
    assert!(story.run.degraded);
    let left = std::fs::read_dir(daemon.workspace()).unwrap().count();
    assert_eq!(left, 0, "nothing is in the workspace");
    assert_eq!(story.payloads("tool_call"), Vec::<Value>::new());
}

/// What agentd and llmock say of a run whose first turn was broken.
struct Told {
    /// Reason and attempt of each failed request.
    errors: Vec<String>,
    decisions: Vec<String>,
    verdict: Value,
}

/// A run whose model wants `bad` written wherever a fault is about, and `good` then. In the end all faults
/// are used up, and only `good` was ever written.
async fn faulty_turn<const FAULTS: usize>(
    what: &str,
    faults: [Value; FAULTS],
    configuration: &str,
) -> Option<Told> {
    let server = parts(what)?.llmock();
    // A request that is failed outright takes no reply; each of the others takes the next.
    let broken = faults.iter().filter(|fault| fault["type"] != "fail").count();
    let replies = (0..broken).map(|_| write("bad")).chain([write("good")]);
    let done = json!({"type": "reply", "text": "All done."});
    let daemon = daemon(&server, configuration).await;
    server.script(faults.iter().cloned().chain(replies).chain([done])).await;

    let story = daemon.carry_out("be patient").await;

    assert_eq!(story.state(), RunState::Succeeded, "{story:?}\n{}", daemon.log());
    assert_eq!(story.run.answer, "All done.");
    assert_eq!(daemon.read("x").as_deref(), Some("good"));
    let done = story.outputs().iter().filter(|(outcome, _)| outcome == "done").count();
    assert_eq!(done, 1, "{:?}", story.outputs());
    story.assert_calls_are_tied();
    assert_eq!(server.get("/_llmock/scenario").await, json!({"pending": []}));
    let errors = story.payloads("backend_error").into_iter();
    Some(Told {
        errors: errors
            .map(|error| format!("{} {}", text(&error["reason"]), error["attempt"]))
            .collect(),
        decisions: story.decisions(),
        verdict: server.verdict().await,
    })
}

#[tokio::test]
async fn aimock_s_fixtures_are_replayed_to_the_end_when_streaming() {
    replay(STREAMED).await;
}

#[tokio::test]
async fn aimock_s_fixtures_are_replayed_to_the_end_without_streaming() {
    replay(WHOLE).await;
}

async fn replay(configuration: &str) {
    let Some(parts) = parts("a replay of aimock's fixtures") else { return };
    let server = parts.aimock(
        &Upstream::None,
        json!([
            when(
                json!({"userMessage": "copy my notes", "hasToolResult": false}),
                json!({"toolCalls": [call("call_read", "read_file", json!({"path": "notes.txt"}))]}),
            ),
            when(
                json!({"toolCallId": "call_read", "toolResultContains": "remember the milk"}),
                json!({"toolCalls": [call(
                    "call_write",
                    "write_file",
                    json!({"path": "out.txt", "content": "hello\n"}),
                )]}),
            ),
            when(json!({"toolCallId": "call_write"}), json!({"content": "All done."})),
        ]),
    );
    let daemon = daemon(&server, configuration).await;
    daemon.put("notes.txt", "remember the milk\n");

    let story = daemon.carry_out("copy my notes").await;

    assert_copied(&daemon, &story);
    assert_eq!(server.answered().await, ["200 fixture", "200 fixture", "200 fixture"]);
}

#[tokio::test]
async fn parallel_calls_of_aimock_are_answered_in_its_order() {
    let Some(parts) = parts("parallel calls of aimock") else { return };
    let both = json!([
        call("call_slow", "shell_exec", json!({"command": "sh pure.sh"})),
        call("call_fast", "read_file", json!({"path": "a"})),
    ]);
    let server = parts.aimock(
        &Upstream::None,
        json!([
            when(
                json!({"userMessage": "both", "hasToolResult": false}),
                json!({"content": "Two at once.", "toolCalls": both}),
            ),
            // The last output of the request: had they been sent as they ended, it would be the other.
            when(
                json!({"toolCallId": "call_fast", "toolResultContains": "A"}),
                json!({"content": "Both."})
            ),
        ]),
    );
    for configuration in [STREAMED, WHOLE] {
        let daemon = daemon(&server, configuration).await;
        daemon.put("a", "A");
        let mut gate = Gate::new(&daemon, "gate");
        daemon.put("pure.sh", "read _ <gate; echo slow");

        let run = daemon.submit("both").await;
        daemon.wait_for_entry(&run.id, "tool_output").await;
        gate.open();
        let story = daemon.story(&run.id).await;

        assert_eq!(story.state(), RunState::Succeeded, "{story:?}");
        assert_eq!(story.run.answer, "Both.");
        let ended = story.payloads("tool_output");
        let ended: Vec<&str> = ended.iter().map(|output| text(&output["call_id"])).collect();
        assert_eq!(ended, ["call_fast", "call_slow"], "as they ended");
        story.assert_calls_are_tied();
    }
    assert_eq!(server.answered().await, ["200 fixture"; 2]);
}

#[tokio::test]
async fn sparse_bodies_of_aimock_are_enough() {
    let Some(parts) = parts("sparse bodies of aimock") else { return };
    let read = json!({"name": "read_file", "arguments": {"path": "a"}});
    let server = parts.aimock(
        &Upstream::None,
        json!([
            // No words, no call id and no usage: aimock makes an empty message, an id and zeros.
            when(
                json!({"userMessage": "sparse", "hasToolResult": false}),
                json!({"content": "", "toolCalls": [read]}),
            ),
            // And a usage without the details.
            when(
                json!({"hasToolResult": true}),
                json!({"content": "Enough.", "usage": {"input_tokens": 11, "output_tokens": 7}}),
            ),
        ]),
    );
    for configuration in [STREAMED, WHOLE] {
        let daemon = daemon(&server, configuration).await;
        daemon.put("a", "A");

        let story = daemon.carry_out("sparse").await;

        assert_eq!(story.state(), RunState::Succeeded, "{story:?}");
        assert_eq!(story.run.answer, "Enough.");
        let found = story.run.usage.unwrap();
        let usage = Usage {
            turns: 2,
            tool_calls: 1,
            input_tokens: 11,
            output_tokens: 7,
            // However long it took.
            wall_ms: found.wall_ms,
            ..Usage::default()
        };
        assert_eq!(found, usage);
        story.assert_calls_are_tied();
    }
    assert_eq!(server.answered().await, ["200 fixture"; 2]);
}

#[tokio::test]
async fn a_reasoning_item_of_aimock_goes_back_as_it_came() {
    let Some(parts) = parts("the replay of aimock's reasoning") else { return };
    let upstream = parts.llmock();
    let server = parts.aimock(
        &Upstream::Llmock { url: upstream.url.clone() },
        json!([when(
            json!({"userMessage": "think", "hasToolResult": false}),
            json!({
                "reasoning": "The notes may say it.",
                "toolCalls": [call("call_read", "read_file", json!({"path": "a"}))],
            }),
        )]),
    );
    for configuration in [STREAMED, WHOLE] {
        upstream.post("/_llmock/reset", "").await;
        let daemon = daemon(&server, configuration).await;
        upstream.forget().await;
        daemon.put("a", "A");
        let mut request = daemon.request("think");
        // aimock lists models first that do not reason.
        request.model = "gpt-5".into();

        let run = daemon.create(request).await.unwrap().run.unwrap();
        let story = daemon.story(&run.id).await;

        assert_eq!(story.state(), RunState::Succeeded, "{story:?}");
        assert_eq!(
            upstream.conversations().await,
            ["message reasoning function_call function_call_output"]
        );
        let sent = &upstream.requests().await[0]["input"][1];
        let secret = text(&sent["encrypted_content"]);
        assert!(secret.starts_with(AIMOCK_SECRET), "{secret}");
        // No status, for it had none, and nothing else is missing or more.
        let whole = json!({
            "type": "reasoning",
            "id": text(&sent["id"]),
            "summary": [{"type": "summary_text", "text": "The notes may say it."}],
            "encrypted_content": secret,
        });
        assert_eq!(*sent, whole);
        story.assert_calls_are_tied();
    }
    assert_eq!(server.answered().await, ["200 fixture", "200 proxy"]);
}

/// How aimock's encrypted content begins: "aimock-encrypted-reasoning:" in base 64.
const AIMOCK_SECRET: &str = "YWltb2NrLWVuY3J5cHRlZC1yZWFzb25pbmc6";

#[tokio::test]
async fn a_client_without_stubs_sees_every_entry_once_however_often_its_connection_drops() {
    let Some(parts) = parts("a Python client by reflection") else { return };
    let turns = vec![
        Turn::call("shell_exec", json!({"command": "sh script.sh"})),
        Turn::call("read_file", json!({"path": "notes.txt"})),
        Turn::call("shell_exec", json!({"command": "sh pure.sh"})),
        Turn::call("write_file", json!({"path": "out.txt", "content": "hello\n"})),
        Turn::say("All done."),
    ];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("notes.txt", "remember the milk\n");
    // Both drops come while a call stands at its gate; what follows is written meanwhile.
    daemon.put("script.sh", "read _ <first");
    daemon.put("pure.sh", "read _ <second");
    let gates = ["first", "second"].map(|name| Gate::new(&daemon, name));
    let mut follow = parts.python();
    follow.args([
        "--address",
        daemon.tcp.strip_prefix("http://").unwrap(),
        "--task",
        "copy my notes",
    ]);
    follow.arg("--token-file").arg(daemon.state().join("token"));
    follow.arg("--workspace").arg(daemon.workspace());
    follow.args(["--drop-after", "4", "--drop-after", "10", "--drop-after", "3"]);

    let told = tasks::blocking(|| run_follow(follow, gates)).await.unwrap();

    let journal = daemon.journal(text(&told["run"])).await;
    let head = journal.len() as u64;
    let sequences: Vec<u64> = journal.iter().map(|entry| entry.sequence).collect();
    assert_eq!(sequences, (1..=head).collect::<Vec<u64>>());
    let hex = |hash: &[u8]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let whole: Vec<Value> =
        journal.iter().map(|entry| json!([entry.sequence, entry.kind, hex(&entry.hash)])).collect();
    assert_eq!(told["entries"], json!(whole));
    assert_eq!(told["entries_by_connection"], json!([4, 10, 3, head - 17]));
    assert_eq!(told["state"], "RUN_STATE_SUCCEEDED");
    assert_eq!(told["created_once"], true);
    assert_eq!(told["health"], json!({"": "SERVING", "agentd.v1.RunService": "SERVING"}));
    for service in ["AdminService", "AuditService", "RunService"] {
        let services = told["services"].as_array().unwrap();
        assert!(services.contains(&json!(format!("agentd.v1.{service}"))), "{services:?}");
    }
    backend.assert_paired();
}

/// Runs the client, and opens a gate each time that it says it has dropped its connection. Gives what it
/// printed.
fn run_follow(mut follow: Command, mut gates: [Gate; 2]) -> Value {
    let mut child = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut closed = gates.iter_mut();
    let mut errors = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap) {
        match line.starts_with("dropped after ") {
            true => closed.next().into_iter().for_each(Gate::open),
            false => errors += &format!("{line}\n"),
        }
    }
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(child.wait().unwrap().success(), "follow.py failed:\n{errors}");
    serde_json::from_str(&printed).unwrap()
}

/// Holds up whoever reads a line of a FIFO in the workspace, until it is opened.
struct Gate(File);

impl Gate {
    fn new(daemon: &TestDaemon, name: &str) -> Self {
        let path = daemon.workspace().join(name);
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        // Open for reading too, so that neither end ever waits for the other to come.
        Self(File::options().read(true).write(true).open(path).unwrap())
    }

    fn open(&mut self) {
        self.0.write_all(b"\n").unwrap();
    }
}

/// A daemon that has looked at the server, which has forgotten it.
async fn daemon(server: &Server, configuration: &str) -> TestDaemon {
    let daemon = TestDaemon::start_with(Settings {
        base_url: server.url.clone(),
        configuration: configuration.into(),
        ..Settings::default()
    });
    daemon.first_look().await;
    server.forget().await;
    daemon
}

/// llmock's verdict. How many requests there were is left out: the daemon looks at its backend whenever it likes.
fn judged(verdict: &Value) -> Value {
    let kept = ["passed", "faults_injected", "errors", "warnings", "findings"];
    kept.map(|key| (key.to_owned(), verdict[key].clone())).into_iter().collect::<Map<_, _>>().into()
}

/// The same without any finding.
fn clean(faults: u32) -> Value {
    json!({"passed": true, "faults_injected": faults, "errors": 0, "warnings": 0, "findings": []})
}

/// llmock: an answer that asks for one call.
fn reply(tool: &str, arguments: Value) -> Value {
    json!({"type": "reply", "tool_calls": [{"name": tool, "arguments": arguments}]})
}

/// aimock: a fixture.
fn when(matches: Value, response: Value) -> Value {
    json!({"match": matches, "response": response})
}

/// aimock: one call of an answer.
fn call(id: &str, tool: &str, arguments: Value) -> Value {
    json!({"id": id, "name": tool, "arguments": arguments})
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}
