//! The compatibility matrix: what `agentctl doctor --backend` finds of each server, and how a run goes on it. Checked
//! for the stand-ins; with AGENTD_MATRIX=FILE, and the parts, it is written there for all of them (`just matrix`).

use std::{fmt::Write as _, fs};

use agentd::scripted::{Kind, Manner, Reply, Seen, Turn};
use serde_json::{Value, json};

use crate::{
    real_parts::servers::{Parts, parts},
    support::{Backend, Settings, TestDaemon, manner},
};

const CAPABILITIES: [&str; 7] =
    ["agents", "responses", "chat", "streaming", "stateful", "structured_output", "compaction"];

/// One line of the matrix.
struct Row {
    server: &'static str,
    /// What was run in its place, or that it was the server itself.
    ran: &'static str,
    probe: Value,
    /// How a run went.
    run: String,
}

impl Row {
    fn told(&self) -> String {
        let can = &self.probe["backend"]["capabilities"];
        let cell = |name: &str| match can[name].as_bool() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        let cells = CAPABILITIES.map(cell).join(" | ");
        let profile = self.probe["backend"]["profile"].as_str().unwrap();
        format!("| {} | {} | {profile} | {cells} | {} |", self.server, self.ran, self.run)
    }
}

async fn row(server: &'static str, ran: &'static str, url: &str, model: Option<&str>) -> Row {
    let model = model.map(|model| ("AGENTD_MODEL".into(), model.to_owned()));
    let daemon = TestDaemon::start_with(Settings {
        base_url: url.into(),
        environment: model.into_iter().collect(),
        ..Settings::default()
    });
    daemon.first_look().await;
    let told = daemon.agentctl(&["doctor", "--backend", "-o", "json"]).await;
    let probe: Value = serde_json::from_slice(&told.stdout).unwrap_or_else(|_| panic!("{told:?}"));
    daemon.put("a.txt", "a");
    let story = daemon.carry_out("join them").await;
    let run = match (story.outputs().len(), story.run.degraded) {
        (0, true) => "read-only".to_owned(),
        (0, false) => "an answer, no tools asked for".to_owned(),
        (calls, _) => format!("an answer after {calls} tool calls"),
    };
    assert_eq!(
        story.state(),
        agentd::proto::v1::RunState::Succeeded,
        "{server}: {:?}",
        story.run.error
    );
    Row { server, ran, probe, run }
}

/// Says what it is asked for, in whichever shape, and reads a file twice at once where it is given tools.
fn brain(seen: &Seen) -> Reply {
    Reply::Answer(match (seen.task.as_str(), seen.turn) {
        ("Say ok.", _) if seen.has_shape => Turn::say(r#"{"agentd_probe": true}"#),
        ("Say ok.", _) => Turn::say("ok"),
        (_, 1) => Turn { say: "Both.".into(), ..both() },
        _ => Turn::say("Joined."),
    })
}

fn both() -> Turn {
    let read = json!({"path": "a.txt"});
    Turn::call("read_file", read.clone())
        .and_call("list_dir", json!({"path": "."}))
        .thinking("both")
}

async fn stand_ins() -> Vec<Row> {
    const RAN: &str = "a stand-in: the scripted server of our tests";
    let mut rows = Vec::new();
    for (server, kind) in [
        ("OpenAI", Kind::OpenAi),
        ("LM Studio", Kind::LmStudio),
        ("llama.cpp", Kind::LlamaCpp),
        ("Ollama", Kind::Ollama),
        ("vLLM", Kind::Vllm),
        ("a server that only chats", Kind::ChatOnly),
    ] {
        let backend = Backend::start_as(brain, Manner { kind, ..manner() }).await;
        rows.push(row(server, RAN, &backend.url(), None).await);
    }
    rows
}

async fn fakes(parts: &Parts) -> Vec<Row> {
    let llmock = parts.llmock();
    let aimock = parts.aimock(
        &crate::real_parts::servers::Upstream::None,
        json!([
            {"match": {"userMessage": "Say ok."}, "response": {"content": "ok"}},
            {"match": {"userMessage": "join them"}, "response": {"content": "Joined."}},
        ]),
    );
    let fakellm = parts.fakellm(json!([
        {"name": "all", "when": {}, "respond": {"content": "Joined."}},
    ]));
    vec![
        row("llmock 0.2.2", "itself, a fake that others wrote", &llmock.url, None).await,
        row("aimock 1.43.0", "itself, a fake that others wrote", &aimock.url, None).await,
        row("fakellm 0.3.5", "itself, a fake that others wrote", &fakellm.url, Some("fake")).await,
    ]
}

#[tokio::test]
async fn the_matrix_says_of_each_stand_in_what_it_is_made_to_have() {
    let rows = stand_ins().await;
    let told: Vec<String> = rows.iter().map(Row::told).collect();
    for (row, found) in told.iter().zip([
        "openai | yes | yes | yes | yes | no | yes | yes | an answer after 2 tool calls",
        "lmstudio | no | yes | yes | yes | no | yes | no | an answer after 2 tool calls",
        "llamacpp | no | yes | yes | yes | no | yes | no | an answer after 2 tool calls",
        "ollama | no | yes | yes | yes | no | yes | no | an answer after 2 tool calls",
        "vllm | no | yes | yes | yes | no | yes | no | an answer after 2 tool calls",
        "generic | no | no | yes | yes | unknown | unknown | unknown | read-only",
    ]) {
        assert!(row.contains(found), "{row}\nis not\n{found}");
    }
    let report = fs::read_to_string("docs/reports/compatibility.md").unwrap_or_default();
    let Ok(path) = std::env::var("AGENTD_MATRIX") else {
        for row in told {
            assert!(
                report.contains(&row),
                "just matrix makes docs/reports/compatibility.md anew; it lacks\n{row}"
            );
        }
        return;
    };
    let parts = parts("the whole matrix").expect("the matrix wants AGENTD_REAL_PARTS");
    let mut rows = rows;
    rows.splice(0..0, [real_llama(&parts).await]);
    rows.extend(fakes(&parts).await);
    fs::write(path, written(&rows)).unwrap();
}

async fn real_llama(parts: &Parts) -> Row {
    let (_server, url) = parts.llama();
    row("llama.cpp", "itself, with a real model of 270 million parameters", &url, None).await
}

fn written(rows: &[Row]) -> String {
    let mut text = String::from(
        "# Which server can do what\n\n\
         Made by `just matrix`: a daemon was started for each server, `agentctl doctor --backend` looked at it, and a run was\n\
         carried out on it. What is *a stand-in* is our own server, which behaves as that one is known to\n\
         ([docs/backends.md](../backends.md) says from where); it shows that agentd copes, not that the server is so. Of the\n\
         servers named here only llama.cpp can be run where this was made; OpenAI, LM Studio, Ollama and vLLM were not.\n\n",
    );
    let _ = writeln!(
        text,
        "| server | what was run | profile | {} | a run |",
        CAPABILITIES.join(" | ").replace('_', " ")
    );
    let _ = writeln!(text, "|{}", "---|".repeat(CAPABILITIES.len() + 4));
    for row in rows {
        let _ = writeln!(text, "{}", row.told());
    }
    text.push_str(
        "\n*Unknown* is what no look could tell: without the Responses API nothing is asked about what belongs to it. \
         *Stateful* and\n*compaction* are looked for and not relied on. The stand-ins forget every response, as servers do \
         that keep none.\n",
    );
    text
}
