//! A model server whose words are scripted: real HTTP, the real wire format, no model. The demo uses it
//! where no backend is configured and says so; tests and benchmarks use it too. It checks on every
//! request that each call has its output. Knows nothing of the daemon.

mod answer;
mod request;
mod script;

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
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::tasks::Tasks;

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
        let shared = Arc::new(Shared::default());
        let server = Server { brain: Arc::new(brain), manner, shared: shared.clone() };
        let app = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/responses", post(respond))
            .fallback(unknown)
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

async fn models() -> Json<Value> {
    Json(
        json!({"object": "list", "data": [{"id": "scripted", "object": "model", "owned_by": "agentd"}]}),
    )
}

async fn unknown() -> Response {
    let error = json!({"error": {"message": "there is no such route", "type": "invalid_request_error",
                                  "param": null, "code": null}});
    (StatusCode::NOT_FOUND, Json(error)).into_response()
}

async fn respond(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    let seen = match Seen::read(&body) {
        Ok(seen) => seen,
        Err(message) => return refuse(&server, message),
    };
    if server.manner.memory == Memory::Requests
        && let Ok(request) = serde_json::from_slice(&body)
    {
        let mut requests = server.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.len() == REMEMBERED {
            requests.pop_front();
        }
        requests.push_back(request);
        let mut credentials =
            server.shared.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        if credentials.len() == REMEMBERED {
            credentials.pop_front();
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        credentials.push_back(given.unwrap_or_default().to_owned());
    }
    drop(body);
    if !server.manner.latency.is_zero() {
        tokio::time::sleep(server.manner.latency).await;
    }
    let reply = server.brain.reply(&seen);
    answer::respond(&seen, reply, server.manner.pace).await
}

fn refuse(server: &Server, message: String) -> Response {
    server.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).push(message.clone());
    let error = json!({"error": {"message": message, "type": "invalid_request_error",
                                  "param": "input", "code": null}});
    (StatusCode::BAD_REQUEST, Json(error)).into_response()
}
