//! `agentctl health` and `agentctl info`: how the daemon is, and what it is.

use std::{collections::BTreeMap, iter};

use serde_json::{Value, json};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::{
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Colour, Format, Paint},
        timeline::printable,
    },
    proto::v1,
};

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(super) struct Health {
    /// Only whether the daemon lives
    #[arg(long)]
    live: bool,
    /// Only whether it takes runs
    #[arg(long)]
    ready: bool,
}

pub(super) async fn run(global: &Global, health: Health) -> Result<Exit, Failure> {
    match (health.live, health.ready) {
        (true, _) => service(global, "liveness").await,
        (_, true) => service(global, "readiness").await,
        _ => whole(global).await,
    }
}

/// What orchestrators are told.
async fn service(global: &Global, service: &str) -> Result<Exit, Failure> {
    let request = HealthCheckRequest { service: service.into() };
    let answer = connect::connect(global).await?.health().check(request).await?.into_inner();
    let serving = answer.status() == ServingStatus::Serving;
    let name = if serving { "SERVING" } else { "NOT_SERVING" };
    match global.output {
        Format::Json => output::json_line(&json!({"status": name}))?,
        Format::Table => {
            let paint = if serving { Paint::Good } else { Paint::Bad };
            output::line(&Colour::of_stdout(global.no_color).paint(paint, name))?;
        }
    }
    Ok(if serving { Exit::Done } else { Exit::Unavailable })
}

/// The daemon with its backends: red is a failure, degraded is not.
async fn whole(global: &Global) -> Result<Exit, Failure> {
    let request = v1::GetHealthRequest {};
    let health = match connect::connect(global).await?.admin().get_health(request).await {
        Ok(health) => health.into_inner(),
        // Whoever is not known is told what orchestrators are.
        Err(status) if status.code() == tonic::Code::Unauthenticated => {
            return service(global, "").await;
        }
        Err(status) => return Err(status.into()),
    };
    match global.output {
        Format::Json => output::json_line(&health_json(&health))?,
        Format::Table => {
            let colour = Colour::of_stdout(global.no_color);
            output::line(&colour.paint(paint(health.status()), status(health.status())))?;
            for reason in &health.reasons {
                output::line(&format!("  {}", printable(reason)))?;
            }
            let rows = health.backends.iter().map(row);
            let head =
                ["BACKEND", "STATUS", "PROFILE", "APIS", "LAST OK", "URL"].map(str::to_owned);
            output::table(&iter::once(head.to_vec()).chain(rows).collect::<Vec<_>>())?;
        }
    }
    Ok(match health.status() {
        v1::HealthStatus::Red | v1::HealthStatus::Unspecified => Exit::Unavailable,
        v1::HealthStatus::Green | v1::HealthStatus::Degraded => Exit::Done,
    })
}

pub(super) fn status(status: v1::HealthStatus) -> &'static str {
    match status {
        v1::HealthStatus::Green => "green",
        v1::HealthStatus::Degraded => "degraded",
        v1::HealthStatus::Red | v1::HealthStatus::Unspecified => "red",
    }
}

fn paint(status: v1::HealthStatus) -> Paint {
    match status {
        v1::HealthStatus::Green => Paint::Good,
        v1::HealthStatus::Degraded => Paint::Warning,
        v1::HealthStatus::Red | v1::HealthStatus::Unspecified => Paint::Bad,
    }
}

/// Each API as it was found: `+responses -agents ?chat`.
fn row(backend: &v1::BackendHealth) -> Vec<String> {
    let can = backend.capabilities.unwrap_or_default();
    let apis =
        [("responses", can.responses_api), ("chat", can.chat_api), ("agents", can.agents_api)];
    let apis = apis.map(|(name, found)| {
        let sign = match found {
            Some(true) => '+',
            Some(false) => '-',
            None => '?',
        };
        format!("{sign}{name}")
    });
    vec![
        backend.name.clone(),
        status(backend.status()).to_owned(),
        backend.profile.clone(),
        apis.join(" "),
        backend.last_ok.map_or_else(|| "never".to_owned(), output::time),
        backend.url.clone(),
    ]
}

/// The names of `/healthz`.
fn health_json(health: &v1::GetHealthResponse) -> Value {
    let backends: Vec<Value> = health.backends.iter().map(backend_json).collect();
    let first = health.backends.first().cloned().unwrap_or_default();
    let can = first.capabilities.unwrap_or_default();
    json!({
        "status": status(health.status()),
        "reasons": health.reasons,
        "agents_api": can.agents_api,
        "responses_api": can.responses_api,
        "chat_api": can.chat_api,
        "lm_studio_reachable": first.reachable,
        "last_ok": first.last_ok.map(output::time),
        "backend": backends.first(),
        "backends": backends,
        "sandbox": health.sandbox_limits.iter().collect::<BTreeMap<_, _>>(),
        "policy": {"revision": health.policy_revision},
        "store": if health.store_works { "ok" } else { "stuck" },
        "intake": if health.draining { "closed" } else { "open" },
    })
}

/// Each thing that a backend may be able to do, and whether it can.
pub(super) fn found(backend: &v1::BackendHealth) -> [(&'static str, &'static str); 7] {
    let can = backend.capabilities.unwrap_or_default();
    let told = |found: Option<bool>| match found {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
    };
    [
        ("agents", told(can.agents_api)),
        ("responses", told(can.responses_api)),
        ("chat", told(can.chat_api)),
        ("streaming", told(can.streaming)),
        ("stateful", told(can.stateful)),
        ("structured output", told(can.structured_output)),
        ("compaction", told(can.compaction)),
    ]
}

pub(super) fn backend_json(backend: &v1::BackendHealth) -> Value {
    let can = backend.capabilities.unwrap_or_default();
    json!({
        "name": backend.name,
        "url": backend.url,
        "status": status(backend.status()),
        "why": output::some(&backend.why),
        "profile": backend.profile,
        "capabilities": {
            "agents": can.agents_api,
            "responses": can.responses_api,
            "chat": can.chat_api,
            "streaming": can.streaming,
            "stateful": can.stateful,
            "structured_output": can.structured_output,
            "compaction": can.compaction,
        },
        "reachable": backend.reachable,
        "awaited": backend.awaited,
        "last_ok": backend.last_ok.map(output::time),
    })
}

pub(super) async fn info(global: &Global) -> Result<Exit, Failure> {
    let request = v1::GetServerInfoRequest {};
    let info = connect::connect(global).await?.admin().get_server_info(request).await?.into_inner();
    let mut limits: Vec<_> = info.sandbox_limits.iter().collect();
    limits.sort();
    let tools: Vec<&str> = info.tools.iter().map(|tool| tool.name.as_str()).collect();
    match global.output {
        Format::Json => output::json_line(&json!({
            "version": info.version,
            "sqlite_version": info.sqlite_version,
            "start_time": info.start_time.map(output::time),
            "backend_url": info.backend_url,
            "model": info.model,
            "workspace_root": info.workspace_root,
            "state_dir": info.state_dir,
            "policy_revision": info.policy_revision,
            "sandbox_limits": limits.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
            "tools": tools,
            "max_running_runs": info.max_running_runs,
            "max_queued_runs": info.max_queued_runs,
            "entries": info.entries,
            "commits": info.commits,
        }))?,
        Format::Table => {
            let limits: Vec<String> =
                limits.iter().map(|(name, by)| format!("{name}={by}")).collect();
            let model = if info.model.is_empty() { "the backend's first" } else { &info.model };
            let row = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
            output::table(&[
                row("version", &info.version),
                row("sqlite", &info.sqlite_version),
                row("backend", &info.backend_url),
                row("model", model),
                row("workspace root", &info.workspace_root),
                row("state", &info.state_dir),
                row("policy", &info.policy_revision),
                row("sandbox", &limits.join(" ")),
                row("tools", &tools.join(" ")),
            ])?;
        }
    }
    Ok(Exit::Done)
}
