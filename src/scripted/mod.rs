//! A model server whose words are scripted: real HTTP, the real wire format, no model. The demo uses it
//! where no backend is configured and says so; tests and benchmarks use it too. It checks on every
//! request that each call has its output. Knows nothing of the daemon.

mod answer;
mod chat;
mod kind;
mod request;
mod script;

pub use kind::Kind;
pub use request::Seen;
pub use script::{Arguments, Call, Conversation, Play, Reply, Script, Turn};

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{scripted::request::Unread, tasks::Tasks};

/// Requests that are remembered; older ones are forgotten.
const REMEMBERED: usize = 10_000;
/// Largest request, in bytes.
const REQUEST_BYTES: usize = 64 << 20;

/// Decides what is answered to a request.
pub trait Brain: Send + Sync + 'static {
    /// `seen` says which turn of which conversation it is.
    fn reply(&self, seen: &Seen) -> Reply;
}

impl<F: Fn(&Seen) -> Reply + Send + Sync + 'static> Brain for F {
    fn reply(&self, seen: &Seen) -> Reply {
        self(seen)
    }
}

/// A running server. It stops when its owner does.
#[derive(Debug, Clone)]
pub struct ScriptedBackend {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// How the server behaves besides its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Manner {
    /// Pause before an answer.
    pub latency: Duration,
    /// Pause between two events of a stream.
    pub pace: Duration,
    pub memory: Memory,
    pub kind: Kind,
}

/// Whether requests are remembered, for tests to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Memory {
    #[default]
    None,
    Requests,
}

#[derive(Debug, Default)]
struct Shared {
    kind: Mutex<Kind>,
    requests: Mutex<VecDeque<Value>>,
    /// Of the same requests.
    credentials: Mutex<VecDeque<String>>,
    faults: Mutex<Vec<String>>,
}

#[derive(Clone)]
struct Server {
    brain: Arc<dyn Brain>,
    manner: Manner,
    shared: Arc<Shared>,
}

impl ScriptedBackend {
    /// Starts to serve on a free port of 127.0.0.1.
    pub async fn start(tasks: &Tasks, brain: impl Brain, manner: Manner) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        Self::serve(tasks, listener, brain, manner)
    }

    /// Serves on a socket that listens already, in whatever network it does.
    pub fn serve(
        tasks: &Tasks,
        listener: TcpListener,
        brain: impl Brain,
        manner: Manner,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { kind: Mutex::new(manner.kind), ..Shared::default() });
        let server = Server { brain: Arc::new(brain), manner, shared: shared.clone() };
        let app = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/responses", post(respond))
            .route("/v1/chat/completions", post(chat))
            .route("/v1/responses/compact", post(compact))
            .route("/v1/agents", get(agents))
            .route("/api/version", get(version))
            .fallback(unknown)
            .layer(axum::middleware::from_fn_with_state(server.clone(), as_its_kind))
            .layer(axum::extract::DefaultBodyLimit::max(REQUEST_BYTES))
            .with_state(server);
        let stopping = tasks.token();
        tasks.spawn("scripted-backend", async move {
            let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
                // Small answers must not wait for each other.
                let _ = stream.set_nodelay(true);
            });
            let served = axum::serve(listener, app)
                .with_graceful_shutdown(async move { stopping.cancelled().await });
            let _ = served.await;
        });
        Ok(Self { address, shared })
    }

    /// Behaves like another kind of server from now on.
    pub fn become_a(&self, kind: Kind) {
        *self.shared.kind.lock().unwrap_or_else(PoisonError::into_inner) = kind;
    }

    /// Base URL, with `/v1`.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Bodies of the requests so far, oldest first, if they are remembered.
    pub fn requests(&self) -> Vec<Value> {
        self.shared
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    /// `Authorization` headers of the requests so far, oldest first, if they are remembered.
    pub fn credentials(&self) -> Vec<String> {
        let credentials = self.shared.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        credentials.iter().cloned().collect()
    }

    /// Requests that broke the pairing rule, in words.
    pub fn faults(&self) -> Vec<String> {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Has only the routes that its kind has, and signs as it does.
async fn as_its_kind(State(server): State<Server>, request: Request, next: Next) -> Response {
    let kind = server.kind();
    let answer = match kind.has(request.uri().path()) {
        true => next.run(request).await,
        false => kind.no_route(request.method().as_str(), request.uri().path()),
    };
    kind.signed(answer)
}

async fn models(State(server): State<Server>) -> Json<Value> {
    Json(server.kind().models())
}

/// One item stands for all that was said; what was, only this server knows.
async fn compact(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    let kind = server.kind();
    match Seen::read(&body) {
        Ok(seen) => {
            server.remember(&headers, &body);
            let item = json!({"type": "compaction", "id": format!("cmp_{}", seen.turn), "encrypted_content": "c2VlbiBpdA"});
            let usage = json!({"input_tokens": 90, "output_tokens": 9, "total_tokens": 99});
            let said = json!({"type": "message", "role": "user", "content": seen.task});
            Json(json!({"object": "response.compaction", "id": "resp_c", "output": [said, item], "usage": usage}))
                .into_response()
        }
        Err(Unread::NoInput) => kind.error(400, "'input' must be a string or array of objects"),
        Err(Unread::Wrong(message)) => refuse(&server, message),
    }
}

async fn agents() -> Json<Value> {
    Json(json!({"object": "list", "data": []}))
}

async fn version() -> Json<Value> {
    Json(json!({"version": "0.13.5"}))
}

async fn unknown(State(server): State<Server>, request: Request) -> Response {
    server.kind().no_route(request.method().as_str(), request.uri().path())
}

async fn respond(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    let kind = server.kind();
    let seen = match Seen::read(&body) {
        Ok(seen) => seen,
        // Whoever only wants to know whether there is such a route, asks so.
        Err(Unread::NoInput) => {
            return kind.error(400, "'input' must be a string or array of objects");
        }
        Err(Unread::Wrong(message)) => return refuse(&server, message),
    };
    if kind != Kind::Plain
        && let Ok(request) = serde_json::from_slice(&body)
        && let Some((status, message)) = kind.refuses(&request)
    {
        return kind.error(status, &message);
    }
    server.remember(&headers, &body);
    drop(body);
    if !server.manner.latency.is_zero() {
        tokio::time::sleep(server.manner.latency).await;
    }
    let reply = server.brain.reply(&seen);
    answer::respond(&seen, reply, (server.manner.pace, kind)).await
}

async fn chat(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    let seen = match chat::read(&body) {
        Ok(seen) => seen,
        Err(message) => return server.kind().error(400, &message),
    };
    server.remember(&headers, &body);
    let pace = server.manner.pace;
    match server.brain.reply(&seen) {
        Reply::Answer(turn) => chat::respond(&seen, &turn, "stop", pace),
        Reply::Incomplete { turn, .. } => chat::respond(&seen, &turn, "length", pace),
        other => answer::respond(&seen, other, (pace, server.kind())).await,
    }
}

impl Server {
    fn kind(&self) -> Kind {
        *self.shared.kind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, headers: &HeaderMap, body: &[u8]) {
        if self.manner.memory == Memory::None {
            return;
        }
        let Ok(request) = serde_json::from_slice(body) else { return };
        let mut requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() == REMEMBERED {
            requests.pop_front();
        }
        requests.push_back(request);
        let mut credentials =
            self.shared.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        if credentials.len() == REMEMBERED {
            credentials.pop_front();
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        credentials.push_back(given.unwrap_or_default().to_owned());
    }
}

fn refuse(server: &Server, message: String) -> Response {
    server.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).push(message.clone());
    server.kind().error(400, &message)
}
