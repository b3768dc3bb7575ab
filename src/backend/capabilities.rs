//! What a server can do, told by looking at it: by the bodies of its answers and never by the status alone, since some
//! answer 200 to routes that they do not have. What costs nothing is asked first; real requests are made only where the
//! look says so. Decides nothing about runs.

use std::time::Duration;

use reqwest::RequestBuilder;
use serde_json::{Value, json, value::RawValue};
use tokio::join;

use crate::{
    backend::{
        HttpBackend, failure,
        http::{Http, Readiness, Seen},
        profiles::Hints,
        wire::{Models, is_answer},
    },
    domain::{
        backend::{Api, Capabilities},
        item::Item,
    },
    ports::{
        Answer, Depth, Look, Model as _, ModelError, ModelFault, ModelSettings, Probe, Question,
        Shape,
    },
};

/// How much longer a real request may take than one that costs nothing.
const GENERATING: u32 = 10;
/// Tokens of an answer to a real request.
const FEW: u32 = 16;

/// What an answer tells about a route.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Present,
    Absent,
    /// The server does not know us: nothing else can be told.
    Unauthenticated,
    /// Nothing, and why.
    Nothing(String),
}

impl Told {
    fn found(&self) -> Option<bool> {
        match self {
            Self::Present => Some(true),
            Self::Absent => Some(false),
            Self::Unauthenticated | Self::Nothing(_) => None,
        }
    }

    fn remark(&self, route: &str) -> Option<String> {
        match self {
            Self::Present | Self::Absent => None,
            Self::Unauthenticated => Some(format!("{route}: the credentials were refused")),
            Self::Nothing(why) => Some(format!("{route}: {why}")),
        }
    }
}

/// Looks at a server.
pub(super) async fn probe(backend: &HttpBackend, look: Look<'_>) -> Probe {
    let http = &backend.http;
    let models = glance(http, http.get("/models"), look.patience).await;
    let seen = match models {
        // It is there, and has no such list.
        Ok(seen) if seen.status < 500 || seen.status == 501 => seen,
        Ok(seen) => return broken(backend, refusal(http, &seen)),
        Err(error) => return broken(backend, error),
    };
    let listed = listed(&seen);
    let mut found = match look.depth {
        Depth::Presence => nothing_new(backend),
        _ => routes(http, &seen, &listed, look.patience).await,
    };
    let windows = listed.windows();
    found.models = listed.data.into_iter().map(|model| model.id).take(Probe::MODELS).collect();
    backend.recognise(&found, &windows);
    if matches!(seen.status, 401 | 403) {
        found.ready = Err(refusal(http, &seen));
    }
    if let Some(streaming) = backend.streamed() {
        found.capabilities.streaming = Some(streaming);
    }
    let wants_request = look.depth >= Depth::Request
        || look.depth == Depth::Glance && backend.readiness == Readiness::Request;
    if wants_request && found.ready.is_ok() {
        real(backend, look, &mut found).await;
    }
    found
}

/// What is told without generating anything.
async fn routes(http: &Http, models: &Seen, listed: &Models, patience: Duration) -> Probe {
    let agents = http.get("/agents").header("OpenAI-Beta", "agents=v1");
    let post = |path: &str, body: Value| http.post(path, body.to_string().into_bytes());
    let (responses, compact, chat, agents, version) = join!(
        // Of the wrong type, so that no server generates anything for it.
        glance(http, post("/responses", json!({"input": 0})), patience),
        glance(http, post("/responses/compact", json!({"input": 0})), patience),
        glance(http, post("/chat/completions", json!({"messages": 0})), patience),
        glance(http, agents, patience),
        glance(http, http.get_beside("/api/version"), patience),
    );
    let version = version.ok().and_then(|seen| seen.json());
    let elsewhere = agents.as_ref().ok().and_then(Seen::json);
    let hints = Hints {
        headers: &models.headers,
        owner: listed.data.first().and_then(|model| model.owned_by.as_deref()),
        version: version.as_ref(),
        elsewhere: elsewhere.as_ref(),
    };
    let profile = hints.profile();
    let told = |answer: Result<Seen, ModelError>, object| match answer {
        Ok(seen) => classify(&seen, object),
        Err(error) => Told::Nothing(error.message),
    };
    let agents = match agents {
        Ok(seen) => classify_list(&seen),
        Err(error) => Told::Nothing(error.message),
    };
    let (responses, chat) = (told(responses, "response"), told(chat, "chat.completion"));
    let compact = told(compact, "response.compaction");
    let named =
        [("/v1/responses", &responses), ("/v1/chat/completions", &chat), ("/v1/agents", &agents)];
    Probe {
        ready: Ok(()),
        profile,
        capabilities: Capabilities {
            agents: agents.found(),
            responses: responses.found(),
            chat: chat.found(),
            // Where there is no such API, a catch-all may say yes.
            compaction: compact.found().filter(|_| responses == Told::Present),
            ..Capabilities::default()
        },
        models: Vec::new(),
        remarks: named.iter().filter_map(|(route, told)| told.remark(route)).collect(),
    }
}

/// Makes real requests: one that tells whether the model answers at all, and if everything is to be known, one for each
/// thing that is not known otherwise.
async fn real(backend: &HttpBackend, look: Look<'_>, found: &mut Probe) {
    let api = found.capabilities.api();
    let patience = look.patience * GENERATING;
    let answer = ask(backend, look.model, (api, "Say ok."), None, patience).await;
    if let Err(error) = answer {
        found.remarks.push(format!("the smallest request: {}", error.message));
        found.ready = Err(error);
        return;
    }
    found.capabilities.streaming = backend.streamed();
    if look.depth < Depth::Everything || api == Api::Chat {
        return;
    }
    let shaped = shaped(backend, look.model, patience).await;
    found.capabilities.structured_output = kept(shaped, "structured output", &mut found.remarks);
    let stateful = stateful(backend, look.model, patience).await;
    found.capabilities.stateful = kept(stateful, "previous_response_id", &mut found.remarks);
}

fn kept(found: Result<bool, String>, what: &str, remarks: &mut Vec<String>) -> Option<bool> {
    found.map_err(|why| remarks.push(format!("{what}: {why}"))).ok()
}

/// Whether an answer keeps to a schema that no answer keeps to by chance.
async fn shaped(
    backend: &HttpBackend,
    model: Option<&str>,
    patience: Duration,
) -> Result<bool, String> {
    const SCHEMA: &str = r#"{"type":"object","properties":{"agentd_probe":{"type":"boolean"}},"required":["agentd_probe"],"additionalProperties":false}"#;
    let schema: &RawValue = serde_json::from_str(SCHEMA).map_err(|error| error.to_string())?;
    let shape = Shape { name: "probe", schema };
    match ask(backend, model, (Api::Responses, "Say ok."), Some(shape), patience).await {
        Ok(answer) => {
            let said: Option<Value> = answer.text.and_then(|text| serde_json::from_str(&text).ok());
            Ok(said.is_some_and(|said| said.get("agentd_probe").is_some_and(Value::is_boolean)))
        }
        Err(error) if error.fault == ModelFault::Rejected => Ok(false),
        Err(error) => Err(error.message),
    }
}

/// Whether it knows a response by its id: one that ignores ids takes an invented one too.
async fn stateful(
    backend: &HttpBackend,
    model: Option<&str>,
    patience: Duration,
) -> Result<bool, String> {
    let http = &backend.http;
    let model = backend.model(model).await.map_err(|error| error.message)?;
    let send = async |body: Value| {
        let request = http.post("/responses", body.to_string().into_bytes());
        glance(http, request, patience).await.map_err(|error| error.message)
    };
    let tiny = |previous: Value, store: bool| {
        json!({"model": &*model, "input": "Say ok.", "max_output_tokens": FEW, "store": store,
               "previous_response_id": previous})
    };
    let invented = send(tiny("resp_agentd_invented".into(), false)).await?;
    if invented.is_response() {
        return Ok(false);
    }
    let first = send(tiny(Value::Null, true)).await?;
    let Some(id) =
        first.json().and_then(|body| body.get("id").cloned()).filter(|_| first.is_response())
    else {
        return Err("no response that could be gone on from".into());
    };
    Ok(send(tiny(id, false)).await?.is_response())
}

async fn ask(
    backend: &HttpBackend,
    model: Option<&str>,
    (api, words): (Api, &str),
    shape: Option<Shape<'_>>,
    patience: Duration,
) -> Result<Answer, ModelError> {
    let settings =
        ModelSettings { max_output_tokens: Some(FEW), temperature: None, reasoning_effort: None };
    let items = [Item::User { text: words.into() }];
    let question = Question {
        api,
        model,
        instructions: "Answer in one word.",
        items: &items,
        tools: &[],
        hosted_tools: &[],
        shape,
        settings: &settings,
    };
    let asking = async {
        match shape {
            // As it stands: what is to be found out is whether the schema is taken.
            Some(_) => backend.ask(&question, &|_| {}).await,
            None => backend.respond(question, &|_| {}).await,
        }
    };
    tokio::time::timeout(patience, asking)
        .await
        .unwrap_or_else(|_| Err(late(&backend.http, patience)))
}

async fn glance(
    http: &Http,
    request: RequestBuilder,
    patience: Duration,
) -> Result<Seen, ModelError> {
    let looking = tokio::time::timeout(patience, http.look(request)).await;
    looking.unwrap_or_else(|_| Err(late(http, patience)))
}

fn late(http: &Http, patience: Duration) -> ModelError {
    let message = format!("the backend {} did not answer within {patience:?}", http.url());
    failure::plain(ModelFault::Timeout, message)
}

fn refusal(http: &Http, seen: &Seen) -> ModelError {
    let status = reqwest::StatusCode::from_u16(seen.status).unwrap_or_default();
    http.refusal(status, &seen.headers, &seen.body)
}

/// Nothing is known but that it does not work.
fn broken(backend: &HttpBackend, error: ModelError) -> Probe {
    Probe { ready: Err(error), ..nothing_new(backend) }
}

fn nothing_new(backend: &HttpBackend) -> Probe {
    Probe {
        ready: Ok(()),
        profile: backend.profile().name,
        capabilities: Capabilities::default(),
        models: Vec::new(),
        remarks: Vec::new(),
    }
}

fn listed(seen: &Seen) -> Models {
    seen.json().and_then(|body| serde_json::from_value(body).ok()).unwrap_or_default()
}

/// What an answer to a malformed request tells of the route; `object` is what its good answers are.
fn classify(seen: &Seen, object: &str) -> Told {
    if matches!(seen.status, 401 | 403) {
        return Told::Unauthenticated;
    }
    let Some(body) = seen.json() else {
        return match seen.status {
            500.. => Told::Nothing(format!("it answered {} without JSON", seen.status)),
            _ => Told::Absent,
        };
    };
    if body.get("object").and_then(Value::as_str) == Some(object) {
        return Told::Present;
    }
    let said = said(&body);
    match seen.status {
        _ if said.as_deref().is_some_and(failure::names_no_route) => Told::Absent,
        404 | 405 | 501 if !said.as_deref().is_some_and(|said| said.contains("model")) => {
            Told::Absent
        }
        400.. => Told::Present,
        _ => Told::Nothing(format!("it answered {} with something else", seen.status)),
    }
}

/// The same of a route that lists something, and is asked properly.
fn classify_list(seen: &Seen) -> Told {
    let is_list = seen.json().is_some_and(|body| body.get("data").is_some_and(Value::is_array));
    match seen.status {
        401 | 403 => Told::Unauthenticated,
        500.. => Told::Nothing(format!("it answered {}", seen.status)),
        200 if is_list => Told::Present,
        _ => Told::Absent,
    }
}

/// The words of an error, in whichever envelope.
fn said(body: &Value) -> Option<String> {
    let error = body.get("error").or_else(|| body.get("detail"))?;
    let text = error.as_str().or_else(|| error.get("message").and_then(Value::as_str));
    Some(text.map_or_else(|| error.to_string(), str::to_owned))
}

impl Seen {
    fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Whether it is an answer of a model, as the Responses API has them.
    fn is_response(&self) -> bool {
        self.status < 300 && is_answer(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: u16, body: &str) -> Seen {
        Seen { status, headers: Default::default(), body: body.to_owned().into() }
    }

    fn told(status: u16, body: &str) -> Option<bool> {
        classify(&seen(status, body), "response").found()
    }

    #[test]
    fn each_server_s_answer_to_a_malformed_request_is_understood() {
        for (status, body, found) in [
            // OpenAI, llama.cpp, Ollama, vLLM.
            (
                400,
                r#"{"error":{"message":"Invalid type for 'input'","code":"invalid_type"}}"#,
                Some(true),
            ),
            (
                400,
                r#"{"error":{"code":400,"message":"'input' must be a string or array of objects"}}"#,
                Some(true),
            ),
            (422, r#"{"detail":[{"loc":["body","model"],"msg":"Field required"}]}"#, Some(true)),
            // aimock and llmock.
            (500, r#"{"error":{"message":"req.input is not iterable"}}"#, Some(true)),
            (200, r#"{"object":"response","output":[]}"#, Some(true)),
            // A model that is not there is not a route that is not there.
            (404, r#"{"error":{"message":"The model '' does not exist"}}"#, Some(true)),
            (404, r#"{"error":"model 'x' not found, try pulling it first"}"#, Some(true)),
            (429, r#"{"error":{"message":"slow down"}}"#, Some(true)),
            // LM Studio without the route, FastAPI, plain servers.
            (
                200,
                r#"{"error":"Unexpected endpoint or method. (POST /v1/responses)"}"#,
                Some(false),
            ),
            (404, r#"{"detail":"Not Found"}"#, Some(false)),
            (
                404,
                r#"{"error":{"message":"File Not Found","type":"not_found_error","code":404}}"#,
                Some(false),
            ),
            (404, "404 page not found", Some(false)),
            (405, "{}", Some(false)),
            (200, "<html>", Some(false)),
            // Nothing can be told.
            (502, "<html>", None),
            (401, r#"{"error":{"message":"no key"}}"#, None),
            (403, "", None),
            (200, r#"{"hello":1}"#, None),
        ] {
            assert_eq!(told(status, body), found, "{status} {body}");
        }
    }

    #[test]
    fn agents_are_there_only_where_a_list_of_them_is() {
        let found = |status, body| classify_list(&seen(status, body)).found();
        assert_eq!(found(200, r#"{"object":"list","data":[]}"#), Some(true));
        assert_eq!(
            found(200, r#"{"error":"Unexpected endpoint or method. (GET /v1/agents)"}"#),
            Some(false)
        );
        assert_eq!(found(404, "{}"), Some(false));
        assert_eq!(found(401, "{}"), None);
        assert_eq!(found(500, "{}"), None);
    }

    #[test]
    fn credentials_that_are_refused_say_nothing_about_the_routes() {
        assert_eq!(classify(&seen(401, "{}"), "response"), Told::Unauthenticated);
        let known = Capabilities { chat: Some(true), ..Capabilities::default() };
        assert_eq!(known.api(), Api::Responses);
    }
}
