//! What kind of server the scripted one behaves like: which routes it has, what it refuses, in which envelope it errs, and
//! what is odd about its answers. What is said is not decided here.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// As the specification says, and like none in particular.
    #[default]
    Plain,
    OpenAi,
    LmStudio,
    LlamaCpp,
    Ollama,
    Vllm,
    /// It has no Responses API.
    ChatOnly,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Plain,
        Self::OpenAi,
        Self::LmStudio,
        Self::LlamaCpp,
        Self::Ollama,
        Self::Vllm,
        Self::ChatOnly,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::OpenAi => "openai",
            Self::LmStudio => "lmstudio",
            Self::LlamaCpp => "llamacpp",
            Self::Ollama => "ollama",
            Self::Vllm => "vllm",
            Self::ChatOnly => "chat-only",
        }
    }

    /// The kind of that name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Whether it has that route.
    pub(super) fn has(self, path: &str) -> bool {
        match path {
            "/v1/models" => true,
            "/v1/responses" => self != Self::ChatOnly,
            "/v1/chat/completions" => true,
            "/v1/agents" | "/v1/responses/compact" => self == Self::OpenAi,
            "/api/version" => self == Self::Ollama,
            _ => false,
        }
    }

    pub(super) fn models(self) -> Value {
        let owner = match self {
            Self::Plain | Self::ChatOnly => "agentd",
            Self::OpenAi => "system",
            Self::LmStudio => "organization_owner",
            Self::LlamaCpp => "llamacpp",
            Self::Ollama => "library",
            Self::Vllm => "vllm",
        };
        json!({"object": "list", "data": [{"id": "scripted", "object": "model", "owned_by": owner}]})
    }

    /// The answer with the headers by which the server is known.
    pub(super) fn signed(self, mut answer: Response) -> Response {
        let header = match self {
            Self::OpenAi => ("openai-version", "2020-10-01"),
            Self::LmStudio => ("x-powered-by", "Express"),
            Self::LlamaCpp => ("server", "llama.cpp"),
            Self::Plain | Self::Ollama | Self::Vllm | Self::ChatOnly => return answer,
        };
        let (name, value) = header;
        answer.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        answer
    }

    /// What it answers where it has no such route.
    pub(super) fn no_route(self, method: &str, path: &str) -> Response {
        let (status, body) = match self {
            Self::LmStudio => {
                (200, json!({"error": format!("Unexpected endpoint or method. ({method} {path})")}))
            }
            Self::LlamaCpp => (
                404,
                json!({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}),
            ),
            Self::Ollama => return (StatusCode::NOT_FOUND, "404 page not found").into_response(),
            Self::Vllm | Self::ChatOnly => (404, json!({"detail": "Not Found"})),
            Self::Plain | Self::OpenAi => (
                404,
                json!({"error": {"message": format!("Invalid URL ({method} {path})"), "type": "invalid_request_error",
                                 "param": null, "code": null}}),
            ),
        };
        answered(status, body)
    }

    /// An error in its envelope.
    pub(super) fn error(self, status: u16, message: &str) -> Response {
        let body = match self {
            Self::LmStudio => json!({"error": message}),
            Self::LlamaCpp | Self::Vllm => {
                json!({"error": {"code": status, "message": message, "type": "invalid_request_error"}})
            }
            Self::Plain | Self::OpenAi | Self::Ollama | Self::ChatOnly => json!({
                "error": {"message": message, "type": "invalid_request_error", "param": "input", "code": null}
            }),
        };
        answered(status, body)
    }

    /// Why it does not take a request that others would take.
    pub(super) fn refuses(self, request: &Value) -> Option<(u16, String)> {
        let kind_of = |value: &Value| value["type"].as_str().unwrap_or_default().to_owned();
        let items = request["input"].as_array().map_or(&[][..], Vec::as_slice);
        let mut foreign = request["tools"].as_array().into_iter().flatten().map(kind_of);
        let previous = !request["previous_response_id"].is_null();
        match self {
            Self::LlamaCpp if previous => {
                Some((400, "llama.cpp does not support 'previous_response_id'.".into()))
            }
            Self::LlamaCpp if foreign.any(|kind| kind != "function") => {
                Some((400, "'type' of tool must be 'function'".into()))
            }
            Self::LlamaCpp => items.iter().find_map(|item| {
                let is_whole = item["summary"].is_array() && item["content"].is_array();
                let is_odd = kind_of(item) == "reasoning" && !is_whole;
                is_odd.then(|| (400, "item['content'] is not an array".into()))
            }),
            Self::Ollama => items.iter().map(kind_of).find_map(|kind| {
                let known = ["message", "function_call", "function_call_output", "reasoning"];
                let is_known = known.contains(&kind.as_str()) || kind.is_empty();
                (!is_known).then(|| (400, format!("unknown input item type: {kind}")))
            }),
            Self::LmStudio => foreign
                .find(|kind| !matches!(kind.as_str(), "function" | "mcp"))
                .map(|kind| (400, format!("Invalid tool type: {kind}"))),
            Self::Vllm if previous => Some((404, "Response with that id not found.".into())),
            Self::OpenAi if previous => Some((400, "Previous response not found.".into())),
            Self::Plain | Self::OpenAi | Self::Vllm | Self::ChatOnly => None,
        }
    }

    /// Makes an answer of the Responses API look like one of this server's.
    pub(super) fn dress(self, body: &mut Value) {
        match self {
            Self::LmStudio => {
                for item in each(&mut body["output"]) {
                    each(&mut item["content"]).for_each(|part| remove(part, "annotations"));
                }
                remove(&mut body["usage"], "input_tokens_details");
                remove(&mut body["usage"], "output_tokens_details");
            }
            Self::LlamaCpp => {
                body["timings"] = json!({"predicted_n": 7, "predicted_per_second": 12.5})
            }
            Self::Ollama => {
                // Drawn from too few.
                body["id"] = "resp_000001".into();
                body["status"] = "completed".into();
                body["incomplete_details"] = Value::Null;
                for (place, item) in each(&mut body["output"]).enumerate() {
                    item["id"] = "fc_000001".into();
                    // Those that a script names itself stay: it has a reason.
                    let id = item["call_id"].as_str().unwrap_or_default();
                    if id.starts_with("call_") {
                        item["call_id"] = format!("call_{place}").into();
                    }
                }
            }
            Self::Vllm => {
                body["created_at"] = 1_763_000_000.25.into();
                body["service_tier"] = "on_demand".into();
            }
            Self::Plain | Self::OpenAi | Self::ChatOnly => {}
        }
    }
}

fn answered(status: u16, body: Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(body)).into_response()
}

fn each(list: &mut Value) -> impl Iterator<Item = &mut Value> {
    list.as_array_mut().into_iter().flatten()
}

fn remove(value: &mut Value, name: &str) {
    if let Some(map) = value.as_object_mut() {
        map.remove(name);
    }
}
