//! `agentctl run tools`: what a run's model asked of tools, and what came of it.

use serde_json::{Value, json};

use crate::{
    client::Client,
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Format},
        timeline::printable,
    },
    proto::v1,
};

/// Characters of the arguments that a table shows.
const SHOWN: usize = 60;

pub(super) async fn run(global: &Global, run_id: String) -> Result<Exit, Failure> {
    let calls = all(&connect::connect(global).await?, &run_id).await?;
    match global.output {
        Format::Json => output::json_line(&document(&calls))?,
        Format::Table => {
            let head = ["CALL", "TOOL", "STATE", "RULE", "MS", "ARGUMENTS"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(calls.iter().map(row));
            output::table(&rows)?;
        }
    }
    Ok(Exit::Done)
}

/// All calls of a run, as JSON.
pub(super) async fn as_json_document(client: &Client, run_id: &str) -> Result<Value, Failure> {
    Ok(document(&all(client, run_id).await?))
}

fn document(calls: &[v1::ToolCall]) -> Value {
    let calls: Vec<_> = calls.iter().map(as_json).collect();
    json!({ "tool_calls": calls })
}

async fn all(client: &Client, run_id: &str) -> Result<Vec<v1::ToolCall>, Failure> {
    let (mut calls, mut page_token) = (Vec::new(), String::new());
    loop {
        let run_id = run_id.to_owned();
        let request = v1::ListToolCallsRequest { run_id, page_size: 0, page_token };
        let page = client.runs().list_tool_calls(request).await?.into_inner();
        calls.extend(page.tool_calls);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(calls);
        }
    }
}

fn row(call: &v1::ToolCall) -> Vec<String> {
    let rule = call.decision.as_ref().map_or("-", |decision| decision.rule.as_str());
    vec![
        format!("{}.{}", call.turn, call.index),
        printable(&call.tool),
        state(call).to_owned(),
        rule.to_owned(),
        milliseconds(call).map_or("-".into(), |ms| ms.to_string()),
        printable(&call.arguments.chars().take(SHOWN).collect::<String>()),
    ]
}

fn state(call: &v1::ToolCall) -> &'static str {
    call.state().as_str_name().trim_start_matches("TOOL_CALL_STATE_")
}

fn milliseconds(call: &v1::ToolCall) -> Option<i64> {
    call.duration.map(|took| took.seconds * 1000 + i64::from(took.nanos) / 1_000_000)
}

fn as_json(call: &v1::ToolCall) -> Value {
    let decision = call.decision.as_ref().map(|decision| {
        let verdict = decision.verdict().as_str_name().trim_start_matches("VERDICT_");
        json!({"verdict": verdict, "rule": decision.rule, "why": decision.why})
    });
    json!({
        "run_id": call.run_id,
        "call_id": call.call_id,
        "turn": call.turn,
        "index": call.index,
        "tool": call.tool,
        "arguments": call.arguments,
        "state": state(call),
        "effect_class": call.effect_class,
        "decision": decision,
        "outcome": (!call.outcome.is_empty()).then_some(&call.outcome),
        "output": call.end_time.map(|_| &call.output),
        "output_truncated": call.output_truncated,
        "duration_ms": milliseconds(call),
        "attempt_count": call.attempt_count,
        "sequence": call.sequence,
        "create_time": call.create_time.map(output::time),
        "end_time": call.end_time.map(output::time),
    })
}
