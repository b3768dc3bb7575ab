//! The Responses API: what is asked in it, and what comes of an answer, streamed or not. Acts on nothing before the
//! terminal event; checks the pairing of calls and outputs before every send.

use std::{collections::BTreeMap, time::Duration};

use serde::ser::Error as _;
use serde_json::value::RawValue;

use crate::{
    backend::{
        failure,
        http::{BODY_BYTES, Http, Streaming},
        profiles::Profile,
        sse::{self, Parser},
        wire::{self, FunctionTool, InputItem, Request, RequestTool, Response, StreamEvent},
    },
    domain::item::{Item, RawJson, check_pairing, settle},
    ports::{Answer, ModelError, ModelFault, Question, Said},
    secrets::{ExposeSecret as _, Secret},
};

/// As people know it.
const API: &str = "Responses API";

/// How one answer is read.
pub(super) struct Reading<'a> {
    pub(super) http: &'a Http,
    pub(super) profile: &'a Profile,
    /// How long to wait for the next event.
    pub(super) idle: Duration,
    /// How many tokens the answer may have, where that was said.
    pub(super) most_tokens: Option<u32>,
}

impl Reading<'_> {
    /// The answer, once it is over.
    pub(super) async fn read(
        &self,
        answer: reqwest::Response,
        said: &Said<'_>,
    ) -> Result<Answer, ModelError> {
        let response = match is_stream(&answer) {
            true => self.read_stream(answer, said).await?,
            false => {
                let body = self.http.whole(answer).await?;
                let response: Response = serde_json::from_slice(&body)
                    .map_err(|error| self.protocol(&format!("the body is no response: {error}")))?;
                if response.output.is_none() && response.error.is_some() {
                    return Err(self.http.failed(response.error.as_ref()));
                }
                response
            }
        };
        self.settle(response)
    }

    fn protocol(&self, what: &str) -> ModelError {
        self.http.protocol(API, what)
    }

    async fn read_stream(
        &self,
        mut answer: reqwest::Response,
        said: &Said<'_>,
    ) -> Result<Response, ModelError> {
        let mut parser = Parser::default();
        let mut done: BTreeMap<u64, RawJson> = BTreeMap::new();
        let mut bytes = 0;
        while let Some(events) =
            sse::next(self.http, &mut answer, &mut parser, (&mut bytes, BODY_BYTES), self.idle, API)
                .await?
        {
            for event in events.iter().filter(|event| *event != "[DONE]") {
                let event: StreamEvent = serde_json::from_str(event)
                    .map_err(|error| self.protocol(&format!("an event is not JSON: {error}")))?;
                if let Some(response) = self.take_event(event, &mut done, said)? {
                    return Ok(response);
                }
            }
        }
        let url = self.http.url();
        let message = format!("the backend {url} ended its stream in the middle of an answer");
        Err(failure::plain(ModelFault::Unavailable, message))
    }

    /// Takes one event; gives the response when the event is the terminal one.
    fn take_event(
        &self,
        event: StreamEvent,
        done: &mut BTreeMap<u64, RawJson>,
        said: &Said<'_>,
    ) -> Result<Option<Response>, ModelError> {
        match event.kind.as_str() {
            "response.output_text.delta" => {
                if let Some(delta) = &event.delta {
                    said(delta);
                }
                Ok(None)
            }
            "response.output_item.done" => {
                if let Some(item) = event.item {
                    let place = event.output_index.unwrap_or(done.len() as u64);
                    done.insert(place, item);
                }
                Ok(None)
            }
            "response.completed" | "response.incomplete" | "response.failed" => {
                let response = event.response.as_deref().map_or("{}", RawValue::get);
                let mut response: Response = serde_json::from_str(response)
                    .map_err(|error| self.protocol(&format!("the terminal event: {error}")))?;
                // Some servers leave the output out of the terminal event; the items came before it.
                if response.output.as_ref().is_none_or(|output| output.len() < done.len()) {
                    response.output = Some(std::mem::take(done).into_values().collect());
                }
                if event.kind == "response.failed" {
                    response.status = Some("failed".into());
                }
                if event.kind == "response.incomplete" {
                    response.status = Some("incomplete".into());
                }
                Ok(Some(response))
            }
            // llama.cpp's ends a failed stream with an error that has no type of event.
            "" if event.error.is_some() => Err(self.http.failed(event.error.as_ref())),
            "error" => {
                let words = event.message.map(serde_json::Value::from);
                Err(self.http.failed(event.error.or(words).as_ref()))
            }
            _ => Ok(None),
        }
    }

    /// Turns a whole response into an answer that can be acted on.
    fn settle(&self, response: Response) -> Result<Answer, ModelError> {
        let status = response.status.as_deref().unwrap_or("completed");
        let tokens = response.usage.unwrap_or_default().tokens();
        let is_full = self.most_tokens.is_some_and(|most| tokens.output >= u64::from(most));
        let incomplete = match status {
            "completed" if self.profile.calls_cut_answers_whole && is_full => {
                Some("max_output_tokens".to_owned())
            }
            "completed" => None,
            "incomplete" => Some(
                response
                    .incomplete_details
                    .and_then(|details| details.reason)
                    .unwrap_or_else(|| "no reason given".into()),
            ),
            "failed" | "cancelled" => {
                return Err(self.http.failed(response.error.as_ref()));
            }
            other => {
                return Err(self.protocol(&format!("the response is {other:?}, not completed")));
            }
        };
        let output = response.output.ok_or_else(|| self.protocol("the response has no output"))?;
        let mut items = Vec::with_capacity(output.len());
        let mut text = String::new();
        for raw in output {
            let read = wire::read_item(raw).map_err(|what| self.protocol(&what))?;
            if read.is_unfinished_call && incomplete.is_none() {
                return Err(self.protocol("a whole answer holds a function call that is not done"));
            }
            text.push_str(read.text.as_deref().unwrap_or_default());
            items.push(read.item);
        }
        Ok(Answer {
            response_id: response.id,
            model: response.model,
            text: (!text.trim().is_empty()).then_some(text),
            incomplete,
            items: settle(items).map_err(|fault| self.protocol(&fault.to_string()))?,
            tokens,
        })
    }
}

/// Whether the answer comes as a stream. What counts is what comes, not what was asked for: some servers do not stream.
pub(super) fn is_stream(answer: &reqwest::Response) -> bool {
    let kind = failure::header(answer.headers(), "content-type").unwrap_or_default();
    kind.starts_with("text/event-stream")
}

/// The request's body. Errors: the conversation breaks the pairing rule, and no server would take it.
pub(super) fn encode(
    model: &str,
    question: &Question<'_>,
    profile: &Profile,
    streaming: Streaming,
    hosted: &[Secret],
) -> Result<Vec<u8>, ModelError> {
    let broken = |what: String| failure::plain(ModelFault::BrokenConversation, what);
    check_pairing(question.items.iter().map(Item::paired))
        .map_err(|fault| broken(format!("the conversation was not sent: {fault}")))?;
    let encoded = tools(question, hosted).and_then(|tools| {
        serde_json::to_vec(&Request {
            model,
            instructions: question.instructions,
            input: question.items.iter().filter_map(|item| input_item(item, profile)).collect(),
            tools,
            stream: streaming == Streaming::On,
            store: false,
            parallel_tool_calls: true,
            include: if profile.asks_for_reasoning {
                &["reasoning.encrypted_content"]
            } else {
                &[]
            },
            text: question.shape.map(wire::TextFormat::of),
            max_output_tokens: question.settings.max_output_tokens,
            temperature: question.settings.temperature,
            reasoning: question.settings.reasoning_effort.as_deref().map(wire::Reasoning::of),
        })
    });
    encoded.map_err(|error| broken(format!("the conversation cannot be encoded: {error}")))
}

/// The body of a request to make the conversation shorter.
pub(super) fn encode_compaction(
    model: &str,
    question: &Question<'_>,
    profile: &Profile,
) -> Result<Vec<u8>, ModelError> {
    let input = question.items.iter().filter_map(|item| input_item(item, profile)).collect();
    let request = wire::CompactRequest { model, instructions: question.instructions, input };
    serde_json::to_vec(&request).map_err(|error| {
        let what = format!("the conversation cannot be encoded: {error}");
        failure::plain(ModelFault::BrokenConversation, what)
    })
}

fn tools<'a>(
    question: &Question<'a>,
    hosted: &'a [Secret],
) -> Result<Vec<RequestTool<'a>>, serde_json::Error> {
    let functions = question.tools.iter().map(|tool| {
        Ok(RequestTool::Function(FunctionTool {
            name: &tool.name,
            description: &tool.description,
            parameters: serde_json::from_str(&tool.parameters)?,
            strict: false,
        }))
    });
    let mut all = functions.collect::<Result<Vec<_>, serde_json::Error>>()?;
    for leave in question.hosted_tools {
        let tool = hosted.get(leave.index());
        let tool =
            tool.ok_or_else(|| serde_json::Error::custom("it has leave for no such tool"))?;
        let raw: &RawValue = serde_json::from_str(tool.expose_secret())?;
        all.push(RequestTool::Hosted(raw));
    }
    Ok(all)
}

/// The item as this server takes it; none where it does not.
fn input_item<'a>(item: &'a Item, profile: &Profile) -> Option<InputItem<'a>> {
    match item {
        Item::User { text } => {
            Some(InputItem::Message(wire::Message { role: "user", content: text }))
        }
        Item::Model { raw, .. } => {
            let raw = raw.as_value();
            wire::takes_item(profile.takes, raw).then_some(InputItem::Raw(raw))
        }
        Item::ToolOutput { call_id, output } => {
            Some(InputItem::Output(wire::CallOutput { call_id, output }))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;
    use crate::{
        backend::{http::Settings, profiles::profile},
        domain::{
            backend::{Api, ProfileName},
            ids::CallId,
        },
        ports::ModelSettings,
    };

    fn http() -> Http {
        let settings = Settings {
            base_url: "http://127.0.0.1:1".into(),
            api_key: None,
            hosted_tools: Vec::new(),
            streaming: Streaming::On,
            idle_timeout: Duration::from_secs(1),
            profile: None,
            readiness: Default::default(),
        };
        // As `bin/agentd.rs` does; another test may have done it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Http::new(&settings, Default::default()).unwrap()
    }

    fn question(items: &[Item]) -> Question<'_> {
        const PLAIN: &ModelSettings =
            &ModelSettings { max_output_tokens: None, temperature: None, reasoning_effort: None };
        Question {
            api: Api::Responses,
            model: None,
            instructions: "",
            items,
            tools: &[],
            hosted_tools: &[],
            shape: None,
            settings: PLAIN,
        }
    }

    fn said(value: &Value) -> Item {
        Item::Model { raw: to_raw_value(value).unwrap().into(), call: None }
    }

    fn sent(items: &[Item], name: ProfileName) -> Vec<Value> {
        let body = encode("m", &question(items), profile(name), Streaming::On, &[]).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        body["input"].as_array().unwrap().clone()
    }

    #[test]
    fn an_error_in_a_stream_is_told_also_where_it_has_no_type_of_event() {
        let http = http();
        let profile = profile(ProfileName::Generic);
        let reading =
            Reading { http: &http, profile, idle: Duration::from_secs(1), most_tokens: None };
        let take = |event: &str| {
            let event = serde_json::from_str(event).unwrap();
            reading.take_event(event, &mut BTreeMap::new(), &|_| {})
        };
        let full = r#"{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}"#;
        let error = take(full).unwrap_err();
        assert!(error.message.contains("Context size has been exceeded."), "{error}");
        assert_eq!(error.fault, ModelFault::ContextOverflow);
        let error = take(r#"{"type":"error","message":"no more"}"#).unwrap_err();
        assert!(error.message.contains("no more"), "{error}");
        assert!(take(r#"{"type":"response.queued"}"#).unwrap().is_none());
    }

    #[test]
    fn a_conversation_with_an_open_call_is_never_encoded() {
        let raw = to_raw_value(&json!({})).unwrap().into();
        let items = [Item::Model { raw, call: Some(CallId::new("c1")) }];
        let generic = profile(ProfileName::Generic);
        let error = encode("m", &question(&items), generic, Streaming::On, &[]).unwrap_err();
        assert_eq!(error.fault, ModelFault::BrokenConversation);
        assert_eq!(error.message, "the conversation was not sent: call c1 has no output");
    }

    #[test]
    fn items_go_back_as_they_came_but_for_those_that_a_server_refuses() {
        let items = [
            said(&json!({"type": "reasoning", "id": "rs_1", "summary": null})),
            said(&json!({"type": "mcp_list_tools", "tools": []})),
            said(&json!({"type": "message", "role": "assistant", "id": "m", "content": []})),
        ];
        let kinds = |name| -> Vec<String> {
            let sent = sent(&items, name);
            sent.iter().map(|item| item["type"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(kinds(ProfileName::Generic), ["reasoning", "mcp_list_tools", "message"]);
        assert_eq!(kinds(ProfileName::LlamaCpp), ["message"]);
        assert_eq!(kinds(ProfileName::Ollama), ["reasoning", "message"]);
        assert_eq!(sent(&items, ProfileName::Vllm)[2]["id"], "m");
    }

    #[test]
    fn an_answer_that_is_as_long_as_it_may_be_counts_as_cut_off_where_the_server_would_not_say_so()
    {
        let http = http();
        let settled = |name| {
            let (profile, idle) = (profile(name), Duration::from_secs(1));
            let reading = Reading { http: &http, profile, idle, most_tokens: Some(7) };
            let response =
                json!({"status": "completed", "output": [], "usage": {"output_tokens": 7}});
            reading.settle(serde_json::from_value(response).unwrap()).unwrap().incomplete
        };
        assert_eq!(settled(ProfileName::Ollama).as_deref(), Some("max_output_tokens"));
        assert_eq!(settled(ProfileName::OpenAi), None);
    }
}
