//! The chat API of the scripted server: the same words, and the calls that nobody asked it for.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::scripted::{request::Seen, script::Turn};

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    model: String,
    #[serde(default)]
    stream: bool,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
}

/// What a request says. Errors: not a request.
pub(super) fn read(body: &[u8]) -> Result<Seen, String> {
    let request: Request =
        serde_json::from_slice(body).map_err(|error| format!("the body is no request: {error}"))?;
    let of =
        |role: &'static str| request.messages.iter().filter(move |message| message.role == role);
    let task = of("user").next().and_then(|message| message.content.as_str());
    Ok(Seen {
        turn: of("assistant").count() + 1,
        task: task.unwrap_or_default().to_owned(),
        model: request.model.clone(),
        streaming: request.stream,
        has_shape: false,
        outputs: Vec::new(),
    })
}

/// An answer, whole or in pieces.
pub(super) fn respond(seen: &Seen, turn: &Turn, finish: &str, pace: Duration) -> Response {
    let calls = turn.calls.iter().enumerate().map(|(place, call)| {
        let id = call.call_id.clone().unwrap_or_else(|| format!("call_{}_{place}", seen.turn));
        json!({"index": place, "id": id, "type": "function",
               "function": {"name": call.tool, "arguments": call.arguments.text()}})
    });
    let calls: Vec<Value> = calls.collect();
    let finish = if calls.is_empty() { finish } else { "tool_calls" };
    let usage = json!({"prompt_tokens": seen.task.len() / 4 + 1, "completion_tokens": turn.say.len() / 4 + 1});
    let head = json!({"id": format!("chatcmpl_{}", seen.turn), "model": seen.model});
    let piece = |object: &str, mut rest: Value| {
        rest["object"] = object.into();
        rest["id"] = head["id"].clone();
        rest["model"] = head["model"].clone();
        rest
    };
    if !seen.streaming {
        let message = json!({"role": "assistant", "content": turn.say, "tool_calls": calls});
        let choice = json!([{"index": 0, "message": message, "finish_reason": finish}]);
        let whole = piece("chat.completion", json!({"choices": choice, "usage": usage}));
        return axum::Json(whole).into_response();
    }
    let chunk = |delta: Value, finish: Value| {
        let choice = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
        piece("chat.completion.chunk", json!({"choices": choice}))
    };
    let mut events = vec![chunk(json!({"role": "assistant", "content": ""}), Value::Null)];
    let words: Vec<char> = turn.say.chars().collect();
    for some in words.chunks(12) {
        let text: String = some.iter().collect();
        events.push(chunk(json!({"content": text}), Value::Null));
    }
    if !calls.is_empty() {
        events.push(chunk(json!({"tool_calls": calls}), Value::Null));
    }
    events.push(chunk(json!({}), finish.into()));
    events.push(piece("chat.completion.chunk", json!({"choices": [], "usage": usage})));
    let mut lines: Vec<String> = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    lines.push("data: [DONE]\n\n".into());
    let body = Body::from_stream(stream::unfold(lines.into_iter(), move |mut lines| async move {
        let line = lines.next()?;
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
        Some((Ok::<_, std::io::Error>(line), lines))
    }));
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
