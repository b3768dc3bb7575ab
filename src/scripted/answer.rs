//! Replies on the wire: one JSON body, or the events of a stream.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde_json::{Value, json};

use crate::scripted::{
    Kind,
    request::Seen,
    script::{Reply, Turn},
};

/// Characters of one text delta.
const DELTA_CHARS: usize = 12;

/// The HTTP answer to a request.
pub(super) async fn respond(seen: &Seen, reply: Reply, (pace, kind): (Duration, Kind)) -> Response {
    let whole = |turn, status, incomplete| {
        let mut body = body(seen, turn, status, incomplete);
        kind.dress(&mut body);
        match seen.streaming {
            true => streamed(events_of(&body), pace, End::Orderly),
            false => axum::Json(body).into_response(),
        }
    };
    match reply {
        Reply::Answer(turn) => whole(&turn, "completed", &Value::Null),
        Reply::Incomplete { turn, reason } => {
            whole(&turn, "incomplete", &json!({"reason": reason}))
        }
        Reply::Cut { turn, events } => {
            let mut body = body(seen, &turn, "completed", &Value::Null);
            kind.dress(&mut body);
            let mut events_of = events_of(&body);
            events_of.truncate(events);
            streamed(events_of, pace, End::Dropped)
        }
        Reply::Http { status, headers, body } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = (status, body).into_response();
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) =
                    (HeaderName::try_from(name), HeaderValue::try_from(value))
                {
                    response.headers_mut().insert(name, value);
                }
            }
            response
        }
        Reply::Hang => std::future::pending().await,
    }
}

/// The response object.
fn body(seen: &Seen, turn: &Turn, status: &str, incomplete: &Value) -> Value {
    let number = seen.turn;
    let mut output = Vec::new();
    if !turn.think.is_empty() {
        // As several servers have it: without a summary or a content that could be sent back to all of them.
        output.push(json!({"type": "reasoning", "id": format!("rs_{number}"), "summary": null,
                           "encrypted_content": turn.think}));
    }
    if !turn.say.is_empty() {
        output.push(json!({
            "type": "message", "id": format!("msg_{number}"), "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": turn.say, "annotations": []}],
        }));
    }
    for (index, call) in turn.calls.iter().enumerate() {
        let id = call.call_id.clone().unwrap_or_else(|| format!("call_{number}_{index}"));
        output.push(json!({
            "type": "function_call", "id": format!("fc_{number}_{index}"), "call_id": id,
            "name": call.tool, "arguments": call.arguments.text(), "status": "completed",
        }));
    }
    let written: usize =
        turn.say.len() + turn.calls.iter().map(|c| c.arguments.text().len()).sum::<usize>();
    let read: usize = seen.task.len() + seen.outputs.iter().map(String::len).sum::<usize>();
    let made_up = read as u64 / 4 + 1;
    let (input_tokens, output_tokens) =
        (turn.input_tokens.unwrap_or(made_up), written as u64 / 4 + 1);
    json!({
        "id": format!("resp_{number}"), "object": "response", "status": status,
        "model": seen.model, "output": output, "incomplete_details": incomplete, "error": null,
        "usage": {
            "input_tokens": input_tokens, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output_tokens, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input_tokens + output_tokens,
        },
    })
}

/// The events of a stream that comes to `body`, each as it stands on the wire.
fn events_of(body: &Value) -> Vec<String> {
    let mut events = Events { written: Vec::new() };
    let begun =
        json!({"id": body["id"], "object": "response", "status": "in_progress", "output": []});
    events.push(json!({"type": "response.created", "response": begun}));
    events.push(json!({"type": "response.in_progress", "response": begun}));
    for (index, item) in body["output"].as_array().into_iter().flatten().enumerate() {
        let mut added = item.clone();
        added["status"] = "in_progress".into();
        match item["type"].as_str() {
            Some("message") => {
                added["content"] = json!([]);
                events.push(json!({"type": "response.output_item.added", "output_index": index, "item": added}));
                let text = item["content"][0]["text"].as_str().unwrap_or_default();
                for delta in chunks(text) {
                    events
                        .push(json!({"type": "response.output_text.delta", "output_index": index,
                                       "content_index": 0, "item_id": item["id"], "delta": delta}));
                }
                events.push(json!({"type": "response.output_text.done", "output_index": index,
                                   "content_index": 0, "item_id": item["id"], "text": text}));
            }
            Some("reasoning") => {
                events.push(json!({"type": "response.output_item.added", "output_index": index, "item": added}));
            }
            _ => {
                added["arguments"] = "".into();
                events.push(json!({"type": "response.output_item.added", "output_index": index, "item": added}));
                events.push(
                    json!({"type": "response.function_call_arguments.delta", "output_index": index,
                                   "item_id": item["id"], "delta": item["arguments"]}),
                );
                events.push(
                    json!({"type": "response.function_call_arguments.done", "output_index": index,
                                   "item_id": item["id"], "arguments": item["arguments"]}),
                );
            }
        }
        events.push(
            json!({"type": "response.output_item.done", "output_index": index, "item": item}),
        );
    }
    let kind = format!("response.{}", body["status"].as_str().unwrap_or("completed"));
    events.push(json!({"type": kind, "response": body}));
    events.written
}

struct Events {
    written: Vec<String>,
}

impl Events {
    fn push(&mut self, mut event: Value) {
        event["sequence_number"] = self.written.len().into();
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        self.written.push(format!("event: {kind}\ndata: {event}\n\n"));
    }
}

fn chunks(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(DELTA_CHARS).map(|chunk| chunk.iter().collect()).collect()
}

/// How a stream ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Orderly,
    /// The connection is gone before the body is over.
    Dropped,
}

fn streamed(events: Vec<String>, pace: Duration, end: End) -> Response {
    let body = match (pace.is_zero(), end) {
        (true, End::Orderly) => Body::from(events.concat()),
        _ => Body::from_stream(stream::unfold(
            (events.into_iter(), end),
            move |(mut events, end)| async move {
                if !pace.is_zero() {
                    tokio::time::sleep(pace).await;
                }
                match (events.next(), end) {
                    (Some(event), end) => Some((Ok(event), (events, end))),
                    (None, End::Dropped) => {
                        Some((Err(std::io::Error::other("cut off")), (events, End::Orderly)))
                    }
                    (None, End::Orderly) => None,
                }
            },
        )),
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}
