//! The Responses API: one question, one answer, streamed or not. Acts on nothing before the terminal
//! event; checks the pairing of calls and outputs before every send.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::{Client, RequestBuilder, header};
use serde::ser::Error as _;
use serde_json::value::RawValue;
use tokio::sync::OnceCell;

use crate::{
    backend::{
        failure,
        sse::Parser,
        wire::{self, FunctionTool, InputItem, Request, RequestTool, Response, StreamEvent},
    },
    domain::item::{Item, Paired, RawJson, check_pairing, settle},
    ports::{Answer, Model, ModelError, ModelFault, Question, Said},
    secrets::{ExposeSecret as _, Secret},
};

/// Largest body of an answer, in bytes.
const BODY_BYTES: usize = 16 << 20;
/// Largest body of an error, in bytes; the rest is not read.
const ERROR_BYTES: usize = 64 << 10;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Where the model is.
pub struct Settings {
    /// With or without `/v1`.
    pub base_url: String,
    pub api_key: Option<Secret>,
    /// Tools that the backend runs itself, each a JSON object that may hold a credential. Those that a question
    /// has leave for are passed through; nothing here ever runs one.
    pub hosted_tools: Vec<Secret>,
    pub streaming: Streaming,
    /// How long to wait for the next bytes of an answer.
    pub idle_timeout: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

/// How answers are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streaming {
    On,
    Off,
}

/// A backend that speaks the Responses API.
#[derive(Debug)]
pub struct ResponsesBackend {
    client: Client,
    url: String,
    streaming: Streaming,
    hosted_tools: Vec<Secret>,
    first_model: OnceCell<String>,
}

impl ResponsesBackend {
    /// Errors: the key cannot stand in a header, or the system's certificates cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let mut headers = header::HeaderMap::new();
        if let Some(key) = &settings.api_key {
            let mut value =
                header::HeaderValue::try_from(format!("Bearer {}", key.expose_secret()))
                    .map_err(|_| "the API key holds characters that no header can".to_owned())?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let url = with_version(&settings.base_url);
        let client = Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT)
            .read_timeout(settings.idle_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("agentd/", env!("CARGO_PKG_VERSION")));
        let client = match is_on_this_machine(&url) {
            // No proxy leads there, and nothing on the way speaks TLS: reading the system's certificates
            // would be a third of the daemon's start.
            true => client.no_proxy().tls_certs_only([]),
            false => client,
        };
        let client = client
            .build()
            .map_err(|error| format!("no HTTP client: {}", crate::telemetry::chain(&error)))?;
        Ok(Self {
            client,
            url,
            streaming: settings.streaming,
            hosted_tools: settings.hosted_tools.clone(),
            first_model: OnceCell::new(),
        })
    }

    /// The base URL, with `/v1`.
    pub fn url(&self) -> &str {
        &self.url
    }

    async fn model<'a>(&'a self, wanted: Option<&'a str>) -> Result<&'a str, ModelError> {
        match wanted {
            Some(model) => Ok(model),
            None => {
                self.first_model.get_or_try_init(|| self.list_first()).await.map(String::as_str)
            }
        }
    }

    async fn list_first(&self) -> Result<String, ModelError> {
        let body = self.send(self.client.get(format!("{}/models", self.url))).await?;
        let body = whole(&self.url, body).await?;
        let models: wire::Models =
            serde_json::from_slice(&body).map_err(|error| self.protocol(&error.to_string()))?;
        models.data.into_iter().next().map(|model| model.id).ok_or_else(|| {
            let message =
                format!("the backend {} lists no model; load one, or set AGENTD_MODEL", self.url);
            failure::plain(ModelFault::Unavailable, message)
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<reqwest::Response, ModelError> {
        let answer = request.send().await.map_err(|error| failure::transport(&self.url, &error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = bounded(answer, ERROR_BYTES).await.unwrap_or_default();
        Err(failure::status(&self.url, status, &headers, &body))
    }

    fn protocol(&self, what: &str) -> ModelError {
        let message =
            format!("the backend {} does not answer as the Responses API does: {what}", self.url);
        failure::plain(ModelFault::Protocol, message)
    }

    async fn read_stream(
        &self,
        mut answer: reqwest::Response,
        said: &Said<'_>,
    ) -> Result<Response, ModelError> {
        let mut parser = Parser::default();
        let mut done: BTreeMap<u64, RawJson> = BTreeMap::new();
        let mut bytes = 0;
        while let Some(chunk) =
            answer.chunk().await.map_err(|error| failure::transport(&self.url, &error))?
        {
            bytes += chunk.len();
            if bytes > BODY_BYTES {
                return Err(self.protocol("the stream is longer than 16 MiB"));
            }
            let events = parser.push(&chunk).map_err(|error| self.protocol(&error.to_string()))?;
            for event in events.iter().filter(|event| *event != "[DONE]") {
                let event: StreamEvent = serde_json::from_str(event)
                    .map_err(|error| self.protocol(&format!("an event is not JSON: {error}")))?;
                if let Some(response) = self.take_event(event, &mut done, said)? {
                    return Ok(response);
                }
            }
        }
        let message =
            format!("the backend {} ended its stream in the middle of an answer", self.url);
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
            "" if event.error.is_some() => Err(failure::in_body(&self.url, event.error.as_ref())),
            "error" => {
                let words = event.message.map(serde_json::Value::from);
                Err(failure::in_body(&self.url, event.error.or(words).as_ref()))
            }
            _ => Ok(None),
        }
    }

    /// Turns a whole response into an answer that can be acted on.
    fn settle(&self, response: Response) -> Result<Answer, ModelError> {
        let status = response.status.as_deref().unwrap_or("completed");
        let incomplete = match status {
            "completed" => None,
            "incomplete" => Some(
                response
                    .incomplete_details
                    .and_then(|details| details.reason)
                    .unwrap_or_else(|| "no reason given".into()),
            ),
            "failed" | "cancelled" => {
                return Err(failure::in_body(&self.url, response.error.as_ref()));
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
            tokens: response.usage.unwrap_or_default().tokens(),
        })
    }
}

#[async_trait]
impl Model for ResponsesBackend {
    async fn respond(&self, question: Question<'_>, said: &Said<'_>) -> Result<Answer, ModelError> {
        let model = self.model(question.model).await?;
        let body = encode(model, &question, self.streaming, &self.hosted_tools)?;
        let request = self
            .client
            .post(format!("{}/responses", self.url))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body);
        let answer = self.send(request).await?;
        // What counts is what comes, not what was asked for: some servers do not stream.
        let kind = failure::header(answer.headers(), "content-type").unwrap_or_default();
        let response = match kind.starts_with("text/event-stream") {
            true => self.read_stream(answer, said).await?,
            false => {
                let body = whole(&self.url, answer).await?;
                let response: Response = serde_json::from_slice(&body)
                    .map_err(|error| self.protocol(&format!("the body is no response: {error}")))?;
                if response.output.is_none() && response.error.is_some() {
                    return Err(failure::in_body(&self.url, response.error.as_ref()));
                }
                response
            }
        };
        self.settle(response)
    }
}

/// The request's body. Errors: the conversation breaks the pairing rule, and no server would take it.
fn encode(
    model: &str,
    question: &Question<'_>,
    streaming: Streaming,
    hosted: &[Secret],
) -> Result<Vec<u8>, ModelError> {
    let broken = |what: String| failure::plain(ModelFault::BrokenConversation, what);
    check_pairing(question.items.iter().map(paired))
        .map_err(|fault| broken(format!("the conversation was not sent: {fault}")))?;
    let tools = question.tools.iter().map(|tool| {
        Ok(RequestTool::Function(FunctionTool {
            name: &tool.name,
            description: &tool.description,
            parameters: serde_json::from_str(&tool.parameters)?,
            strict: false,
        }))
    });
    let hosted = question.hosted_tools.iter().map(|leave| {
        let tool = hosted.get(leave.index());
        let tool =
            tool.ok_or_else(|| serde_json::Error::custom("it has leave for no such tool"))?;
        Ok(RequestTool::Hosted(serde_json::from_str(tool.expose_secret())?))
    });
    let encoded = tools.chain(hosted).collect::<Result<_, serde_json::Error>>().and_then(|tools| {
        serde_json::to_vec(&Request {
            model,
            instructions: question.instructions,
            input: question.items.iter().map(input_item).collect(),
            tools,
            stream: streaming == Streaming::On,
            store: false,
            parallel_tool_calls: true,
        })
    });
    encoded.map_err(|error| broken(format!("the conversation cannot be encoded: {error}")))
}

fn input_item(item: &Item) -> InputItem<'_> {
    match item {
        Item::User { text } => InputItem::Message(wire::Message { role: "user", content: text }),
        Item::Model { raw, .. } => InputItem::Raw(raw.as_value()),
        Item::ToolOutput { call_id, output } => {
            InputItem::Output(wire::CallOutput { call_id, output })
        }
    }
}

fn paired(item: &Item) -> Paired {
    match item {
        Item::Model { call: Some(id), .. } => Paired::Call(id.clone()),
        Item::ToolOutput { call_id, .. } => Paired::Output(call_id.clone()),
        Item::User { .. } | Item::Model { call: None, .. } => Paired::Other,
    }
}

async fn whole(url: &str, answer: reqwest::Response) -> Result<Bytes, ModelError> {
    bounded(answer, BODY_BYTES).await.map_err(|error| failure::transport(url, &error)).and_then(
        |body| match body.len() > BODY_BYTES {
            true => Err(failure::plain(
                ModelFault::Protocol,
                format!("the backend {url} sent more than 16 MiB"),
            )),
            false => Ok(body),
        },
    )
}

/// The body; one byte more than `most` at the most, the rest is not read.
async fn bounded(mut answer: reqwest::Response, most: usize) -> Result<Bytes, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        let room = most + 1 - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() > most {
            break;
        }
    }
    Ok(body.into())
}

fn with_version(base_url: &str) -> String {
    let base = base_url.trim_end_matches('/');
    match base.ends_with("/v1") {
        true => base.to_owned(),
        false => format!("{base}/v1"),
    }
}

/// Whether the server is reached by plain HTTP on a loopback address.
fn is_on_this_machine(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    url.scheme() == "http" && (loopback || host == "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::CallId;

    #[test]
    fn an_error_in_a_stream_is_told_also_where_it_has_no_type_of_event() {
        let settings = Settings {
            base_url: "http://127.0.0.1:1".into(),
            api_key: None,
            hosted_tools: Vec::new(),
            streaming: Streaming::On,
            idle_timeout: Duration::from_secs(1),
        };
        // As `bin/agentd.rs` does; another test may have done it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let backend = ResponsesBackend::new(&settings).unwrap();
        let take = |event: &str| {
            let event = serde_json::from_str(event).unwrap();
            backend.take_event(event, &mut BTreeMap::new(), &|_| {})
        };
        let full = r#"{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}"#;
        let error = take(full).unwrap_err();
        assert!(error.message.contains("Context size has been exceeded."), "{error}");
        let error = take(r#"{"type":"error","message":"no more"}"#).unwrap_err();
        assert!(error.message.contains("no more"), "{error}");
        assert!(take(r#"{"type":"response.queued"}"#).unwrap().is_none());
    }

    #[test]
    fn only_plain_http_to_a_loopback_address_stays_on_this_machine() {
        for url in ["http://127.0.0.1:1/v1", "http://LOCALHOST/v1", "http://[::1]:8080/v1"] {
            assert!(is_on_this_machine(url), "{url}");
        }
        for url in [
            "https://127.0.0.1/v1",
            "http://127.0.0.1.example.com/v1",
            "http://localhost.example.com/v1",
            "http://10.0.0.1/v1",
            "http://127.0.0.1@example.com/v1",
            "nonsense",
        ] {
            assert!(!is_on_this_machine(url), "{url}");
        }
    }

    #[test]
    fn the_base_url_may_come_with_or_without_its_version() {
        for base in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(with_version(base), "http://h:1/v1");
        }
    }

    #[test]
    fn a_conversation_with_an_open_call_is_never_encoded() {
        let raw = serde_json::value::to_raw_value(&serde_json::json!({})).unwrap().into();
        let items = [Item::Model { raw, call: Some(CallId::new("c1")) }];
        let question = Question {
            model: None,
            instructions: "",
            items: &items,
            tools: &[],
            hosted_tools: &[],
        };
        let error = encode("m", &question, Streaming::On, &[]).unwrap_err();
        assert_eq!(error.fault, ModelFault::BrokenConversation);
        assert_eq!(error.message, "the conversation was not sent: call c1 has no output");
    }
}
