//! Health over HTTP, for orchestrators and people with a browser: no token, and nothing in it that is a secret. How the
//! daemon is: `engine::health`.

mod connections;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::backend::Colour,
    engine::{BackendHealth, Engine, Health, Intake, Store},
};

/// Requests that are answered at the same time; more wait.
const AT_ONCE: usize = 64;

/// Serves until `stopping`, and ends what is open then.
pub async fn serve(engine: Engine, listener: TcpListener, stopping: CancellationToken) {
    let app = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(AT_ONCE))
        .with_state(engine);
    connections::take(app, listener, stopping).await;
}

/// Whether the runtime and the store's writer tick. Never looks at what the daemon depends on.
async fn livez(State(engine): State<Engine>) -> Response {
    match engine.store_stirs().await {
        Store::Works => plain(StatusCode::OK, "ok"),
        Store::Stuck => plain(StatusCode::SERVICE_UNAVAILABLE, "the store's writer does not stir"),
    }
}

/// Whether runs are taken.
async fn readyz(State(engine): State<Engine>) -> Response {
    match engine.refuses_runs().await {
        None => plain(StatusCode::OK, "ok"),
        Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn healthz(State(engine): State<Engine>) -> Response {
    let health = engine.health().await;
    let code = match health.status {
        Colour::Green | Colour::Degraded => StatusCode::OK,
        Colour::Red => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(told(&health))).into_response()
}

fn plain(code: StatusCode, text: &'static str) -> Response {
    (code, format!("{text}\n")).into_response()
}

/// The same words as in `GetHealth`. What a probe could not tell is null.
fn told(health: &Health) -> Value {
    let backend = health.backend();
    let can = backend.map(|backend| backend.capabilities).unwrap_or_default();
    json!({
        "status": health.status,
        "reasons": health.reasons,
        "agents_api": can.agents,
        "responses_api": can.responses,
        "chat_api": can.chat,
        "lm_studio_reachable": backend.is_some_and(|backend| backend.is_reachable),
        "last_ok": health.last_ok().map(|time| time.to_string()),
        "backend": backend.map(backend_told),
        "backends": health.backends.iter().map(backend_told).collect::<Vec<_>>(),
        "sandbox": health.sandbox,
        "policy": {"revision": health.policy_revision.as_str()},
        "store": match health.store {
            Store::Works => "ok",
            Store::Stuck => "stuck",
        },
        "intake": match health.intake {
            Intake::Open => "open",
            Intake::Closed => "closed",
        },
        // There is no client of MCP servers in here; those that backends dial are theirs.
        "mcp": [],
    })
}

fn backend_told(backend: &BackendHealth) -> Value {
    let capabilities: serde_json::Map<String, Value> = backend
        .capabilities
        .named()
        .into_iter()
        .map(|(name, found)| (name.to_owned(), found.into()))
        .collect();
    json!({
        "name": backend.name.as_str(),
        "url": backend.url,
        "status": backend.colour,
        "why": backend.why,
        "profile": backend.profile.as_str(),
        "capabilities": capabilities,
        "reachable": backend.is_reachable,
        "awaited": backend.is_awaited,
        "last_ok": backend.last_ok.map(|time| time.to_string()),
    })
}
