//! `agentctl health` and `agentctl info`: how the daemon is, and what it is.

use serde_json::json;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::{
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Colour, Format, Paint},
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
    let service = match (health.live, health.ready) {
        (true, _) => "liveness",
        (_, true) => "readiness",
        _ => "",
    };
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
