//! Serde shapes of the Responses API: lenient in all that agentd only carries along, strict in what it
//! acts on. Source: docs/adr/0006-model-requests.md.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Value, value::RawValue};

use crate::{
    backend::profiles::{Hosted, Takes},
    domain::{
        budget::TokenCount,
        ids::{CallId, ToolName},
        item::RawJson,
        journal::{AnsweredItem, AskedCall},
    },
    ports::Shape,
};

/// Body of `POST /v1/responses`.
#[derive(Serialize)]
pub(super) struct Request<'a> {
    pub(super) model: &'a str,
    pub(super) instructions: &'a str,
    pub(super) input: Vec<InputItem<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tools: Vec<RequestTool<'a>>,
    pub(super) stream: bool,
    /// Always false: the journal holds the conversation, and no backend has to.
    pub(super) store: bool,
    pub(super) parallel_tool_calls: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) include: &'static [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<TextFormat<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_output_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning: Option<Reasoning<'a>>,
}

/// What the words of the answer are to be like.
#[derive(Serialize)]
pub(super) struct TextFormat<'a> {
    format: JsonSchema<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "json_schema")]
struct JsonSchema<'a> {
    name: &'a str,
    schema: &'a RawValue,
    strict: bool,
}

impl<'a> TextFormat<'a> {
    pub(super) fn of(shape: Shape<'a>) -> Self {
        Self { format: JsonSchema { name: shape.name, schema: shape.schema, strict: true } }
    }
}

/// How much a model is to think.
#[derive(Serialize)]
pub(super) struct Reasoning<'a> {
    effort: &'a str,
}

impl<'a> Reasoning<'a> {
    pub(super) fn of(effort: &'a str) -> Self {
        Self { effort }
    }
}

/// One item of the conversation as it is sent.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum InputItem<'a> {
    Raw(&'a RawValue),
    Message(Message<'a>),
    Output(CallOutput<'a>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "message")]
pub(super) struct Message<'a> {
    pub(super) role: &'static str,
    pub(super) content: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "function_call_output")]
pub(super) struct CallOutput<'a> {
    pub(super) call_id: &'a CallId,
    pub(super) output: &'a str,
}

/// One tool that the model is told of.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum RequestTool<'a> {
    Function(FunctionTool<'a>),
    /// Run by the backend itself; the operator's JSON as it stands.
    Hosted(&'a RawValue),
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "function")]
pub(super) struct FunctionTool<'a> {
    pub(super) name: &'a ToolName,
    pub(super) description: &'a str,
    pub(super) parameters: &'a RawValue,
    pub(super) strict: bool,
}

/// What an item or a tool is.
#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

/// Whether a server takes an item of this type.
///
/// One that is no JSON object, or has no type, is taken: it came from a server that knows what it is.
pub(super) fn takes_item(takes: Takes, item: &RawValue) -> bool {
    match takes {
        Takes::Everything => true,
        Takes::Only(known) => serde_json::from_str(item.get())
            .map_or(true, |Kind { kind }| known.contains(&kind.as_str())),
    }
}

/// Whether a server is told of this hosted tool.
pub(super) fn takes_hosted(takes: Hosted, tool: &RawValue) -> bool {
    match takes {
        Hosted::All => true,
        Hosted::None => false,
        Hosted::OnlyMcp => {
            serde_json::from_str(tool.get()).is_ok_and(|Kind { kind }| kind == "mcp")
        }
    }
}

/// A response, whole, as far as agentd reads it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Response {
    #[serde(deserialize_with = "lenient")]
    pub(super) id: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) model: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) status: Option<String>,
    pub(super) output: Option<Vec<RawJson>>,
    #[serde(deserialize_with = "lenient")]
    pub(super) incomplete_details: Option<IncompleteDetails>,
    pub(super) error: Option<Value>,
    #[serde(deserialize_with = "lenient")]
    pub(super) usage: Option<Usage>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct IncompleteDetails {
    #[serde(default)]
    pub(super) reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Usage {
    #[serde(deserialize_with = "count")]
    input_tokens: u64,
    #[serde(deserialize_with = "lenient")]
    input_tokens_details: Option<InputDetails>,
    #[serde(deserialize_with = "count")]
    output_tokens: u64,
    #[serde(deserialize_with = "lenient")]
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InputDetails {
    #[serde(deserialize_with = "count")]
    cached_tokens: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OutputDetails {
    #[serde(deserialize_with = "count")]
    reasoning_tokens: u64,
}

impl Usage {
    pub(super) fn tokens(&self) -> TokenCount {
        TokenCount {
            input: self.input_tokens,
            cached_input: self.input_tokens_details.as_ref().map_or(0, |d| d.cached_tokens),
            output: self.output_tokens,
            reasoning: self.output_tokens_details.as_ref().map_or(0, |d| d.reasoning_tokens),
        }
    }
}

/// One event of a stream, as far as agentd reads it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamEvent {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) delta: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) output_index: Option<u64>,
    pub(super) item: Option<RawJson>,
    pub(super) response: Option<Box<RawValue>>,
    pub(super) error: Option<Value>,
    #[serde(deserialize_with = "lenient")]
    pub(super) message: Option<String>,
}

/// An item of an answer, as far as agentd reads it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OutputItem {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "lenient")]
    status: Option<String>,
    call_id: Option<CallId>,
    name: Option<ToolName>,
    arguments: Option<Value>,
    #[serde(deserialize_with = "lenient")]
    content: Option<Vec<Value>>,
}

/// What an item of an answer comes to.
pub(super) struct ReadItem {
    pub(super) item: AnsweredItem,
    /// A function call that the backend did not finish: never to be acted on.
    pub(super) is_unfinished_call: bool,
    /// Words for people, where it is a message.
    pub(super) text: Option<String>,
}

/// Reads one item of an answer. Items of unknown type are carried along.
///
/// Errors: a function call without id, name or arguments must not vanish: the answer is then unusable.
pub(super) fn read_item(raw: RawJson) -> Result<ReadItem, String> {
    let item: OutputItem = serde_json::from_str(raw.get())
        .map_err(|error| format!("an item of the answer cannot be read: {error}"))?;
    let call = match item.kind.as_str() {
        "function_call" if is_done(item.status.as_deref()) => Some(asked(&item)?),
        _ => None,
    };
    let text = (item.kind == "message").then(|| words(item.content.as_deref().unwrap_or_default()));
    let is_unfinished_call = item.kind == "function_call" && call.is_none();
    Ok(ReadItem { item: AnsweredItem { raw, call }, is_unfinished_call, text })
}

/// Servers that leave the status out send only whole items.
fn is_done(status: Option<&str>) -> bool {
    matches!(status, None | Some("completed" | ""))
}

fn asked(item: &OutputItem) -> Result<AskedCall, String> {
    let missing = |what| format!("a function call of the answer has no {what}");
    let arguments = match item.arguments.as_ref().ok_or_else(|| missing("arguments"))? {
        Value::String(text) => text.as_str().into(),
        // Some servers send the object itself instead of its text.
        other => other.to_string().into(),
    };
    Ok(AskedCall {
        call_id: item
            .call_id
            .clone()
            .filter(|id| !id.as_str().is_empty())
            .ok_or_else(|| missing("call_id"))?,
        tool: item
            .name
            .clone()
            .filter(|name| !name.as_str().is_empty())
            .ok_or_else(|| missing("name"))?,
        arguments,
    })
}

pub(super) fn words(content: &[Value]) -> String {
    let part = |part: &Value| match part.get("type").and_then(Value::as_str) {
        Some("output_text" | "text") => part.get("text").and_then(Value::as_str).map(str::to_owned),
        Some("refusal") => part.get("refusal").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    content.iter().filter_map(part).collect()
}

/// `GET /v1/models`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Models {
    pub(super) data: Vec<ModelName>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ModelName {
    pub(super) id: String,
    #[serde(default, deserialize_with = "lenient")]
    pub(super) owned_by: Option<String>,
    /// vLLM's.
    #[serde(default, deserialize_with = "lenient")]
    max_model_len: Option<u64>,
    /// Of several others.
    #[serde(default, deserialize_with = "lenient")]
    context_length: Option<u64>,
    /// LM Studio's.
    #[serde(default, deserialize_with = "lenient")]
    max_context_length: Option<u64>,
}

impl Models {
    /// How many tokens each takes, by its name, where that is told.
    pub(super) fn windows(&self) -> BTreeMap<String, u64> {
        let window = |model: &ModelName| {
            model.max_model_len.or(model.context_length).or(model.max_context_length)
        };
        let told = self.data.iter().filter_map(|model| Some((model.id.clone(), window(model)?)));
        told.collect()
    }
}

/// What `POST /v1/responses/compact` answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CompactedBody {
    pub(super) output: Option<Vec<RawJson>>,
    #[serde(deserialize_with = "lenient")]
    pub(super) usage: Option<Usage>,
}

/// Body of that.
#[derive(Serialize)]
pub(super) struct CompactRequest<'a> {
    pub(super) model: &'a str,
    pub(super) instructions: &'a str,
    pub(super) input: Vec<InputItem<'a>>,
}

/// Whether a body is a response with an output.
pub(super) fn is_answer(body: &[u8]) -> bool {
    serde_json::from_slice::<Response>(body).is_ok_and(|response| {
        response.output.is_some() && response.error.is_none_or(|error| error.is_null())
    })
}

/// What is absent, null or of another shape counts as not said.
pub(super) fn lenient<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: for<'a> Deserialize<'a>,
{
    let value = Value::deserialize(deserializer).map_err(D::Error::custom)?;
    Ok(serde_json::from_value(value).ok())
}

/// A count may come as an integer, a float or a string.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Number(number) => {
            number.as_u64().or_else(|| number.as_f64().map(|float| float as u64)).unwrap_or(0)
        }
        Value::String(text) => text.parse().unwrap_or(0),
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(value: Value) -> Result<ReadItem, String> {
        read_item(serde_json::value::to_raw_value(&value).unwrap().into())
    }

    #[test]
    fn a_call_is_read_only_when_its_item_is_done() {
        let call = |status| {
            json!({"type": "function_call", "call_id": "c1", "name": "read_file", "arguments": "{}",
                   "status": status})
        };
        assert!(item(call("completed")).unwrap().item.call.is_some());
        assert!(item(call("incomplete")).unwrap().item.call.is_none());
        assert!(item(call("in_progress")).unwrap().item.call.is_none());
    }

    #[test]
    fn a_call_that_cannot_be_acted_on_is_an_error_and_never_vanishes() {
        for broken in [
            json!({"type": "function_call", "name": "read_file", "arguments": "{}"}),
            json!({"type": "function_call", "call_id": "c1", "arguments": "{}"}),
            json!({"type": "function_call", "call_id": "c1", "name": "read_file"}),
            json!({"type": "function_call", "call_id": "", "name": "read_file", "arguments": "{}"}),
        ] {
            assert!(item(broken.clone()).is_err(), "{broken}");
        }
    }

    #[test]
    fn unknown_items_and_sparse_messages_are_carried_along() {
        assert_eq!(item(json!({"type": "teleport", "x": 1})).unwrap().text, None);
        let is_answer =
            json!({"type": "message", "content": [{"type": "output_text", "text": "hi"}]});
        assert_eq!(item(is_answer).unwrap().text.as_deref(), Some("hi"));
        assert_eq!(
            item(json!({"type": "message", "content": null})).unwrap().text.as_deref(),
            Some("")
        );
    }

    #[test]
    fn usage_is_read_whatever_numbers_look_like() {
        let response: Response = serde_json::from_value(json!({
            "usage": {"input_tokens": 5.0, "output_tokens": "7", "input_tokens_details": {"cached_tokens": 2}},
            "status": 3,
        }))
        .unwrap();
        let expected = TokenCount { input: 5, cached_input: 2, output: 7, reasoning: 0 };
        assert_eq!(response.usage.unwrap().tokens(), expected);
        assert_eq!(response.status, None);
    }
}
