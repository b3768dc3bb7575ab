//! The chat API, read-only: for servers that have no other. No tool is declared, no tool call that comes back is looked
//! at, and the model is told that it has none. The conversation is told in words.

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::to_raw_value};

use crate::{
    backend::{
        failure,
        http::{BODY_BYTES, Http, Streaming},
        responses::is_stream,
        sse::{self, Parser},
        wire,
    },
    domain::{budget::TokenCount, item::Item, journal::AnsweredItem},
    ports::{Answer, ModelError, ModelFault, Question, Said},
};

/// As people know it.
const API: &str = "chat API";

/// What stands before the instructions: they may speak of tools.
pub(super) const BANNER: &str = "\
READ-ONLY MODE. This backend can only chat: you have no tools in this conversation, whatever is said below. You cannot \
read files, change them or run programs, and nothing that you write is carried out. Answer in words, from what stands \
here; say what you could not look at, and never say that you did something.";

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Cow<'a, str>,
}

/// The request's body.
pub(super) fn encode(
    model: &str,
    question: &Question<'_>,
    streaming: Streaming,
) -> Result<Vec<u8>, ModelError> {
    let stream = streaming == Streaming::On;
    let request = Request {
        model,
        messages: messages(question),
        stream,
        stream_options: stream.then_some(StreamOptions { include_usage: true }),
        max_tokens: question.settings.max_output_tokens,
        temperature: question.settings.temperature,
    };
    serde_json::to_vec(&request).map_err(|error| {
        let what = format!("the conversation cannot be encoded: {error}");
        failure::plain(ModelFault::BrokenConversation, what)
    })
}

/// The conversation, told in turns: many templates want user and assistant to alternate.
fn messages<'a>(question: &Question<'a>) -> Vec<Message<'a>> {
    let system = format!("{BANNER}\n\n{}", question.instructions);
    let mut messages = vec![Message { role: "system", content: system.into() }];
    for item in question.items {
        let Some((role, content)) = told(item) else { continue };
        match messages.last_mut() {
            Some(last) if last.role == role => {
                let both = last.content.to_mut();
                both.push_str("\n\n");
                both.push_str(&content);
            }
            _ => messages.push(Message { role, content }),
        }
    }
    messages
}

/// Who said an item, and what it is in words; none where it has none.
fn told(item: &Item) -> Option<(&'static str, Cow<'_, str>)> {
    match item {
        Item::User { text } => Some(("user", Cow::Borrowed(&**text))),
        Item::ToolOutput { output, .. } => {
            Some(("user", format!("(what the tool gave)\n{output}").into()))
        }
        Item::Model { raw, .. } => {
            let item: Value = serde_json::from_str(raw.get()).ok()?;
            let text = match item.get("type").and_then(Value::as_str)? {
                "message" => wire::words(item.get("content")?.as_array()?),
                "function_call" => {
                    let part = |name| item.get(name).and_then(Value::as_str).unwrap_or_default();
                    format!("(asked for the tool {} with {})", part("name"), part("arguments"))
                }
                _ => return None,
            };
            (!text.is_empty()).then_some(("assistant", text.into()))
        }
    }
}

/// A whole answer, or one piece of it, as far as it is looked at: not at any tool call.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Completion {
    #[serde(deserialize_with = "wire::lenient")]
    id: Option<String>,
    #[serde(deserialize_with = "wire::lenient")]
    model: Option<String>,
    choices: Option<Vec<Choice>>,
    #[serde(deserialize_with = "wire::lenient")]
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Choice {
    #[serde(deserialize_with = "wire::lenient")]
    message: Option<Spoken>,
    #[serde(deserialize_with = "wire::lenient")]
    delta: Option<Spoken>,
    #[serde(deserialize_with = "wire::lenient")]
    finish_reason: Option<String>,
}

/// What is said, in a whole answer or in a piece.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spoken {
    content: Option<Value>,
    refusal: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Usage {
    #[serde(deserialize_with = "wire::count")]
    prompt_tokens: u64,
    #[serde(deserialize_with = "wire::lenient")]
    prompt_tokens_details: Option<Cached>,
    #[serde(deserialize_with = "wire::count")]
    completion_tokens: u64,
    #[serde(deserialize_with = "wire::lenient")]
    completion_tokens_details: Option<Reasoned>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cached {
    #[serde(deserialize_with = "wire::count")]
    cached_tokens: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reasoned {
    #[serde(deserialize_with = "wire::count")]
    reasoning_tokens: u64,
}

/// What has come of an answer so far.
#[derive(Debug, Default)]
struct Gathered {
    id: Option<String>,
    model: Option<String>,
    text: String,
    finish: Option<String>,
    tokens: TokenCount,
}

/// The answer, once it is over. It never holds a call.
pub(super) async fn read(
    http: &Http,
    mut answer: reqwest::Response,
    idle: Duration,
    said: &Said<'_>,
) -> Result<Answer, ModelError> {
    let mut gathered = Gathered::default();
    if !is_stream(&answer) {
        let body = http.whole(answer).await?;
        gathered.take(http, &body, said)?;
        return gathered.settle(http);
    }
    let (mut parser, mut bytes) = (Parser::default(), 0);
    while let Some(events) =
        sse::next(http, &mut answer, &mut parser, (&mut bytes, BODY_BYTES), idle, API).await?
    {
        for event in events {
            if event == "[DONE]" {
                return gathered.settle(http);
            }
            gathered.take(http, event.as_bytes(), said)?;
        }
    }
    // Some end without the last word, but not without saying why they ended.
    match gathered.finish.is_some() {
        true => gathered.settle(http),
        false => {
            let url = http.url();
            let message = format!("the backend {url} ended its stream in the middle of an answer");
            Err(failure::plain(ModelFault::Unavailable, message))
        }
    }
}

impl Gathered {
    /// Takes a whole answer, or the next piece of one.
    fn take(&mut self, http: &Http, json: &[u8], said: &Said<'_>) -> Result<(), ModelError> {
        let piece: Completion = serde_json::from_slice(json)
            .map_err(|error| http.protocol(API, &format!("what it sent is no answer: {error}")))?;
        let Some(choices) = piece.choices else {
            return match &piece.error {
                Some(error) => Err(http.failed(Some(error))),
                None => Err(http.protocol(API, "there is no choice in its answer")),
            };
        };
        self.id = piece.id.or(self.id.take());
        self.model = piece.model.or(self.model.take());
        if let Some(usage) = piece.usage {
            self.tokens = usage.tokens();
        }
        if let Some(choice) = choices.into_iter().next() {
            self.finish = choice.finish_reason.or(self.finish.take());
            if let Some(text) = choice.delta.as_ref().or(choice.message.as_ref()).map(Spoken::words)
            {
                if choice.delta.is_some() && !text.is_empty() {
                    said(&text);
                }
                self.text.push_str(&text);
            }
        }
        Ok(())
    }

    fn settle(self, http: &Http) -> Result<Answer, ModelError> {
        let incomplete = match self.finish.as_deref() {
            Some("length") => Some("max_output_tokens".to_owned()),
            Some("content_filter") => Some("content_filter".to_owned()),
            _ => None,
        };
        let has_words = !self.text.trim().is_empty();
        let mut items = Vec::new();
        if has_words {
            // As the Responses API would have it, so that a fork can go on with either.
            let message = json!({"type": "message", "role": "assistant", "status": "completed",
                                 "content": [{"type": "output_text", "text": self.text, "annotations": []}]});
            let raw = to_raw_value(&message)
                .map_err(|error| http.protocol(API, &error.to_string()))?
                .into();
            items.push(AnsweredItem { raw, call: None });
        }
        Ok(Answer {
            response_id: self.id,
            model: self.model,
            text: has_words.then_some(self.text),
            incomplete,
            items,
            tokens: self.tokens,
        })
    }
}

impl Spoken {
    fn words(&self) -> String {
        let content = match &self.content {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => wire::words(parts),
            _ => String::new(),
        };
        match &self.refusal {
            Some(Value::String(refusal)) if content.is_empty() => refusal.clone(),
            _ => content,
        }
    }
}

impl Usage {
    fn tokens(&self) -> TokenCount {
        TokenCount {
            input: self.prompt_tokens,
            cached_input: self.prompt_tokens_details.as_ref().map_or(0, |d| d.cached_tokens),
            output: self.completion_tokens,
            reasoning: self.completion_tokens_details.as_ref().map_or(0, |d| d.reasoning_tokens),
        }
    }
}
