//! Conversations that are too long for the model: they are shortened before they are sent where it is known how much it
//! takes, and once when it says that it was too much; calls and outputs stay paired, and the task stays known.

use std::sync::Mutex;

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Kind, Manner, Reply, Seen, Turn},
};
use serde_json::{Value, json};

use crate::support::{Backend, Settings, Story, TestDaemon, manner, wait_until};

const TASK: &str = "Read everything, then say OMEGA.";
const SUMMARY: &str = "Some files were read; nothing was in them.";
/// Bytes of each file that is read.
const FILE: usize = 8_000;

/// Reads as many files as it is to, then answers; sums up what it is given to sum up. It counts for itself: what is sent
/// to it says less and less of what it asked for.
struct Reader {
    files: usize,
    read: Mutex<usize>,
}

impl Reader {
    fn of(files: usize) -> Self {
        Self { files, read: Mutex::new(0) }
    }

    fn turn(&self, seen: &Seen) -> Turn {
        let mut read = self.read.lock().unwrap();
        if is_record(&seen.task) {
            return Turn::say(SUMMARY);
        }
        match *read < self.files {
            true => {
                *read += 1;
                Turn::call("read_file", json!({"path": format!("{}.txt", *read)}))
            }
            false => Turn::say("OMEGA"),
        }
    }
}

/// Whether that is what a summary is asked for with.
fn is_record(task: &str) -> bool {
    task.trim_start().starts_with("# told")
}

fn error(status: u16, body: &str) -> Reply {
    Reply::Http { status, headers: Vec::new(), body: body.to_owned() }
}

async fn carried_out(backend: &Backend, configuration: &str, files: usize) -> (TestDaemon, Story) {
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: configuration.into(),
        ..Settings::default()
    });
    for number in 1..=files {
        daemon.put(&format!("{number}.txt"), &"all work and no play\n".repeat(FILE / 21));
    }
    let story = daemon.carry_out(TASK).await;
    (daemon, story)
}

/// The run ended well, with its task known in every request and its calls and outputs paired.
fn assert_well(story: &Story, backend: &Backend, files: usize) {
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert_eq!(story.run.answer, "OMEGA");
    assert_eq!(story.outputs().len(), files, "each file was read once");
    story.assert_calls_are_tied();
    backend.assert_paired();
    for request in backend.server.requests() {
        assert!(request["input"].to_string().contains("then say OMEGA"), "{request}");
    }
}

/// Tokens of the longest request that was sent, by the daemon's own estimate.
fn longest(story: &Story) -> u64 {
    let sent = story.payloads("model_request");
    sent.iter().map(|request| request["estimated_tokens"].as_u64().unwrap()).max().unwrap()
}

#[tokio::test]
async fn older_outputs_are_left_out_first_where_it_is_known_how_much_the_model_takes() {
    let reader = Reader::of(12);
    let backend = Backend::start(move |seen: &Seen| Reply::Answer(reader.turn(seen))).await;
    let configuration = "agents: {executor: {context_tokens: 24000}}\n";
    let (daemon, story) = carried_out(&backend, configuration, 12).await;
    assert_well(&story, &backend, 12);
    let trimmed = story.payloads("context_trimmed");
    assert!(!trimmed.is_empty() && story.payloads("context_compacted").is_empty(), "{trimmed:?}");
    assert!(longest(&story) <= 24_000 - 2048);
    let last = backend.server.requests().pop().unwrap();
    let outputs: Vec<&Value> = last["input"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|i| i["type"] == "function_call_output")
        .collect();
    assert_eq!(outputs.len(), 12);
    assert!(
        outputs[0]["output"].as_str().unwrap().contains("were left out to save room"),
        "{}",
        outputs[0]
    );
    assert!(outputs[11]["output"].as_str().unwrap().contains("all work and no play"));
    // The journal has all of it.
    assert!(story.outputs()[0].1["content"].as_str().unwrap().len() > FILE / 2);
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn when_that_is_not_enough_a_summary_takes_the_place_of_what_was_said() {
    let reader = Reader::of(12);
    // OpenAI's compacts by itself, and is asked for no summary: see below.
    let kind = match manner().kind {
        Kind::OpenAi => Kind::Plain,
        kind => kind,
    };
    let brain = move |seen: &Seen| Reply::Answer(reader.turn(seen));
    let backend = Backend::start_as(brain, Manner { kind, ..manner() }).await;
    // Four outputs are never left out, and take more than this.
    let configuration = "agents: {executor: {context_tokens: 10000}}\n";
    let (_daemon, story) = carried_out(&backend, configuration, 12).await;
    assert_well(&story, &backend, 12);
    let compacted = story.payloads("context_compacted");
    assert!(!compacted.is_empty());
    assert_eq!(compacted[0]["by"], "summary");
    assert!(compacted[0]["text"].as_str().unwrap().contains(SUMMARY));
    let after =
        backend.server.requests().into_iter().filter(|r| r.to_string().contains(SUMMARY)).count();
    assert!(after > 0, "the summary was sent");
    let turns = story.run.usage.unwrap().turns;
    assert_eq!(turns, 13, "a summary is no turn");
}

/// A server that takes requests of at most so many bytes, and says otherwise that they are too long.
async fn overflows(says: fn() -> Reply, kind: Kind) -> (Backend, Story) {
    let reader = Reader::of(8);
    let brain = move |seen: &Seen| {
        let bytes: usize = seen.task.len() + seen.outputs.iter().map(String::len).sum::<usize>();
        match bytes > 5 * FILE {
            true => says(),
            false => Reply::Answer(reader.turn(seen)),
        }
    };
    let backend = Backend::start_as(brain, Manner { kind, ..manner() }).await;
    let (_daemon, story) = carried_out(&backend, "", 8).await;
    (backend, story)
}

#[tokio::test]
async fn an_overflow_that_is_told_by_its_code_is_met_with_one_compaction() {
    let says = || error(400, r#"{"error":{"code":"context_length_exceeded","message":"too big"}}"#);
    let (backend, story) = overflows(says, Kind::Plain).await;
    assert_well(&story, &backend, 8);
    let errors = story.payloads("backend_error");
    assert!(errors.iter().all(|error| error["reason"] == "CONTEXT_OVERFLOW"), "{errors:?}");
    assert_eq!(errors.len(), 1, "what was too much once is not sent again");
    assert!(!story.payloads("context_compacted").is_empty());
}

#[tokio::test]
async fn an_overflow_that_is_told_in_words_is_met_with_one_compaction() {
    let says = || {
        error(
            400,
            r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error"}}"#,
        )
    };
    let (backend, story) = overflows(says, Kind::LlamaCpp).await;
    assert_well(&story, &backend, 8);
    assert_eq!(story.payloads("backend_error").len(), 1);
}

#[tokio::test]
async fn a_backend_that_compacts_by_itself_is_asked_to_and_given_its_own_back() {
    let says = || error(400, r#"{"error":{"code":"context_length_exceeded","message":"too big"}}"#);
    let (backend, story) = overflows(says, Kind::OpenAi).await;
    assert_well(&story, &backend, 8);
    let compacted = story.payloads("context_compacted");
    assert_eq!(compacted[0]["by"], "backend", "{compacted:?}");
    let last = backend.server.requests().pop().unwrap();
    let kinds: Vec<&str> =
        last["input"].as_array().unwrap().iter().filter_map(|item| item["type"].as_str()).collect();
    assert_eq!(kinds[..2], ["message", "compaction"], "{kinds:?}");
}

#[tokio::test]
async fn what_ollama_drops_without_a_word_is_noticed_by_what_it_says_it_read() {
    const TAKES: u64 = 6000;
    let reader = Reader::of(8);
    let brain = move |seen: &Seen| {
        let bytes: usize = seen.task.len() + seen.outputs.iter().map(String::len).sum::<usize>();
        let all = bytes as u64 / 4;
        let turn = match all > TAKES + 500 {
            // It has forgotten what it was to do.
            true => Turn::call("write_file", json!({"path": "what.txt", "content": "?"})),
            false => reader.turn(seen),
        };
        Reply::Answer(Turn { input_tokens: Some(all.clamp(500, TAKES)), ..turn })
    };
    let backend = Backend::start_as(brain, Manner { kind: Kind::Ollama, ..manner() }).await;
    let (daemon, story) = carried_out(&backend, "", 8).await;
    assert_well(&story, &backend, 8);
    assert_eq!(
        daemon.read("what.txt"),
        None,
        "nothing that it asked for without its task was done"
    );
    let errors = story.payloads("backend_error");
    assert!(errors[0]["message"].as_str().unwrap().contains("dropped the beginning"), "{errors:?}");
    assert!(!story.payloads("context_compacted").is_empty());
}

#[tokio::test]
async fn a_reviewer_for_whom_it_is_too_much_is_asked_again_with_less() {
    const PLAN: &str =
        r#"{"steps": [{"intent": "say OMEGA", "tools": [], "check": "it is said"}]}"#;
    let reads = Mutex::new(0);
    let brain = move |seen: &Seen| {
        let bytes: usize = seen.outputs.iter().map(String::len).sum();
        let mut reads = reads.lock().unwrap();
        match () {
            () if bytes > 6 * FILE => {
                error(400, r#"{"error":{"code":"context_length_exceeded","message":"too big"}}"#)
            }
            () if seen.task.starts_with("Plan this task.") => Reply::Answer(Turn::say(PLAN)),
            () if seen.task.starts_with("Review this work") && *reads < 8 => {
                *reads += 1;
                Reply::Answer(Turn::call("read_file", json!({"path": format!("{}.txt", *reads)})))
            }
            () if seen.task.starts_with("Review this work") => Reply::Answer(Turn::say(
                r#"{"verdict": "accept", "findings": [], "reason": "it is said"}"#,
            )),
            () => Reply::Answer(Turn::say("OMEGA")),
        }
    };
    let backend = Backend::start(brain).await;
    let daemon = TestDaemon::start(&backend.url());
    for number in 1..=8 {
        daemon.put(&format!("{number}.txt"), &"all work and no play\n".repeat(FILE / 21));
    }
    let request = v1::CreateRunRequest { agent: "default".into(), ..daemon.request(TASK) };
    let run = daemon.create(request).await.unwrap().run.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert!(!story.payloads("context_trimmed").is_empty());
    assert!(story.payloads("context_compacted").is_empty());
    backend.assert_paired();
}

#[tokio::test]
async fn what_does_not_fit_after_that_either_ends_the_run_in_words() {
    let says = |_: &Seen| {
        error(400, r#"{"error":{"code":"context_length_exceeded","message":"too big"}}"#)
    };
    let backend = Backend::start(says).await;
    let (_daemon, story) = carried_out(&backend, "", 1).await;
    assert_eq!(story.state(), RunState::Failed);
    let error = story.run.error.as_ref().unwrap();
    assert_eq!(error.reason, "CONTEXT_OVERFLOW");
    assert!(error.message.contains("a model with a larger context"), "{}", error.message);
    assert!(story.payloads("model_request").len() <= 3);
}

#[tokio::test]
async fn a_daemon_that_dies_while_it_compacts_or_after_it_goes_on_with_the_same_conversation() {
    for place in ["ask.before", "ask.after"] {
        for nth in [5, 6, 7] {
            let reader = Reader::of(6);
            let backend = Backend::start(move |seen: &Seen| Reply::Answer(reader.turn(seen))).await;
            let mut daemon = TestDaemon::start_with(Settings {
                base_url: backend.url(),
                configuration: "agents: {executor: {context_tokens: 10000}}\n".into(),
                ..Settings::default()
            });
            assert!(daemon.boot_dying(&[("AGENTD_FAIL_POINT", format!("{place}:{nth}"))]));
            for number in 1..=6 {
                daemon.put(&format!("{number}.txt"), &"all work and no play\n".repeat(FILE / 21));
            }
            let run = daemon.submit(TASK).await;
            wait_until("its death", || daemon.has_died()).await;
            daemon.restart();
            let story = daemon.story(&run.id).await;
            assert_eq!(story.state(), RunState::Succeeded, "{place} {nth}: {:?}", story.run.error);
            assert!(!story.payloads("context_compacted").is_empty(), "{place} {nth}");
            backend.assert_paired();
            story.assert_calls_are_tied();
        }
    }
}
