//! `agentctl doctor`: what is the matter, and what to type next.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::{
    client::{Client, ConnectError},
    config::{self, Process},
    ctl::{
        Exit, Failure, Global, connect, health,
        output::{self, Colour, Format, Paint},
        timeline::printable,
    },
    proto::v1,
};

/// One thing that was looked at.
struct Finding {
    level: Level,
    what: String,
    /// The next command to type; empty where nothing has to be done.
    remedy: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Fine,
    Warning,
    Failure,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Warning => "warn",
            Self::Failure => "fail",
        }
    }
}

fn finding(level: Level, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { level, what: what.into(), remedy: remedy.into() }
}

#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// Look at this backend alone, with a few real requests: what it is and all that it can do
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "default")]
    backend: Option<String>,
}

/// Exits 0 where nothing failed, 3 where no daemon can be asked or the backend is red, else 1.
pub(super) async fn run(global: &Global, doctor: Doctor) -> Result<Exit, Failure> {
    if let Some(name) = &doctor.backend {
        return probe(global, name).await;
    }
    let mut findings = vec![token()];
    let exit = match connect::connect(global).await {
        Ok(client) => {
            findings.extend(ask(&client).await?);
            match findings.iter().any(|finding| finding.level == Level::Failure) {
                true => Exit::Unsuccessful,
                false => Exit::Done,
            }
        }
        Err(error) => {
            findings.push(unreachable(&error));
            Exit::Unavailable
        }
    };
    print(global, &findings)?;
    Ok(exit)
}

fn unreachable(error: &ConnectError) -> Finding {
    let remedy = match error {
        ConnectError::Unreachable { .. } => "agentd check && agentd serve",
        ConnectError::Address { .. } => "agentctl --addr unix:PATH doctor",
        ConnectError::Token { .. } | ConnectError::NotAToken { .. } => {
            "agentctl --token-file STATE_DIR/token doctor"
        }
    };
    finding(Level::Failure, format!("daemon: {error}"), remedy)
}

/// The token of the default state directory, which TCP wants.
fn token() -> Finding {
    let path = config::default_state(&Process).map(|state| state.join("token"));
    let Some(path) = path.filter(|path| path.exists()) else {
        return finding(
            Level::Fine,
            "token: none in the default state directory; the socket needs none",
            "",
        );
    };
    let shown = path.display();
    match std::fs::metadata(&path).map(|metadata| metadata.permissions().mode() & 0o077) {
        Ok(0) => finding(Level::Fine, format!("token: {shown}"), ""),
        Ok(_) => finding(
            Level::Failure,
            format!("token: others can read {shown}"),
            format!("chmod 600 {shown}"),
        ),
        Err(error) => {
            finding(Level::Failure, format!("token: {shown}: {error}"), format!("ls -l {shown}"))
        }
    }
}

async fn ask(client: &Client) -> Result<Vec<Finding>, Failure> {
    let info = client.admin().get_server_info(v1::GetServerInfoRequest {}).await?.into_inner();
    let mut findings = vec![version(&info), ready(client).await?, policy(&info)];
    findings.extend(backends(client).await?);
    findings.push(isolation(&info));
    findings.extend(limits(&info));
    Ok(findings)
}

fn version(info: &v1::GetServerInfoResponse) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    match info.version == own {
        true => finding(Level::Fine, format!("daemon: version {own}, as this client"), ""),
        false => finding(
            Level::Warning,
            format!("daemon: version {}, this client is {own}", info.version),
            "install both from one package, then restart agentd",
        ),
    }
}

async fn ready(client: &Client) -> Result<Finding, Failure> {
    let request = HealthCheckRequest { service: "readiness".into() };
    let answer = client.health().check(request).await?.into_inner();
    Ok(match answer.status() == ServingStatus::Serving {
        true => finding(Level::Fine, "daemon: takes runs", ""),
        false => finding(Level::Failure, "daemon: takes no runs, it is stopping", "agentd serve"),
    })
}

fn policy(info: &v1::GetServerInfoResponse) -> Finding {
    match info.policy_faults.as_slice() {
        [] => finding(Level::Fine, format!("policy: {} is in force", info.policy_revision), ""),
        faults => finding(
            Level::Failure,
            format!("policy: the files are not in force: {}", faults.join("; ")),
            "mend them, then: agentctl policy validate, agentctl policy reload",
        ),
    }
}

/// How each backend is, as the daemon's last look found it.
async fn backends(client: &Client) -> Result<Vec<Finding>, Failure> {
    let health = client.admin().get_health(v1::GetHealthRequest {}).await?.into_inner();
    let told = |backend: &v1::BackendHealth| {
        let v1::BackendHealth { name, url, profile, why, .. } = backend;
        let look = format!("agentctl doctor --backend {name}");
        match backend.status() {
            v1::HealthStatus::Green => {
                finding(Level::Fine, format!("backend {name}: {url} works ({profile})"), "")
            }
            v1::HealthStatus::Degraded => {
                finding(Level::Warning, format!("backend {name}: {url}: {why}"), look)
            }
            v1::HealthStatus::Red | v1::HealthStatus::Unspecified => finding(
                Level::Failure,
                format!("backend {name}: {url}: {why}"),
                format!(
                    "start the model server, or OPENAI_BASE_URL=URL agentd serve; then: {look}"
                ),
            ),
        }
    };
    Ok(health.backends.iter().map(told).collect())
}

/// Everything about one backend, found out now, with a few real requests.
async fn probe(global: &Global, name: &str) -> Result<Exit, Failure> {
    let request = v1::ProbeBackendRequest { name: name.into() };
    let client = connect::connect(global).await?;
    let probed = client.admin().probe_backend(request).await?.into_inner();
    let backend = probed.backend.unwrap_or_default();
    if global.output == Format::Json {
        output::json_line(&json!({
            "backend": health::backend_json(&backend),
            "models": probed.models,
            "remarks": probed.remarks,
        }))?;
    } else {
        let row = |name: &str, value: &str| vec![name.to_owned(), printable(value)];
        let colour = health::status(backend.status());
        let mut rows = vec![
            row("backend", &backend.name),
            row("url", &backend.url),
            row("status", colour),
            row("profile", &backend.profile),
            row("models", &probed.models.join(" ")),
        ];
        rows.extend(health::found(&backend).map(|(name, found)| row(name, found)));
        if !backend.why.is_empty() {
            rows.push(row("why", &backend.why));
        }
        rows.extend(probed.remarks.iter().map(|remark| row("not told", remark)));
        output::table(&rows)?;
    }
    Ok(match backend.status() {
        v1::HealthStatus::Red | v1::HealthStatus::Unspecified => Exit::Unavailable,
        v1::HealthStatus::Green | v1::HealthStatus::Degraded => Exit::Done,
    })
}

fn limits(info: &v1::GetServerInfoResponse) -> Vec<Finding> {
    let mut limits: Vec<_> = info.sandbox_limits.iter().collect();
    limits.sort();
    // No way out is a wall and no limit.
    let weak = |name: &str, by: &str| match name {
        "network" => false,
        "memory" => matches!(by, "none" | "rlimit"),
        _ => by == "none",
    };
    let found = limits.iter().filter(|(name, by)| weak(name, by)).map(|(name, by)| {
        let what = format!("sandbox: the limit of {name} is kept by {by}");
        finding(Level::Warning, what, "give agentd a writable cgroup, then: agentd check")
    });
    let found: Vec<Finding> = found.collect();
    match found.is_empty() {
        true => vec![finding(Level::Fine, "sandbox: every limit is kept", "")],
        false => found,
    }
}

/// How well programs are kept apart; in the weakest tier the policy may not let any start.
fn isolation(info: &v1::GetServerInfoResponse) -> Finding {
    let tier = info.sandbox_limits.get("isolation").map_or("unknown", String::as_str);
    let what = format!("sandbox: isolation {tier}");
    match tier {
        "full" | "root" => finding(Level::Fine, what, ""),
        _ => finding(
            Level::Warning,
            format!(
                "{what}; programs have no namespaces of their own, and start only if tools.yaml says so"
            ),
            "agentd check says what is missing, docs/security.md how to allow it",
        ),
    }
}

fn print(global: &Global, findings: &[Finding]) -> std::io::Result<()> {
    if global.output == Format::Json {
        let rows = findings.iter().map(|finding| {
            json!({"level": finding.level.name(), "what": finding.what, "remedy": finding.remedy})
        });
        return output::json_line(&json!({"findings": rows.collect::<Vec<_>>()}));
    }
    let colour = Colour::of_stdout(global.no_color);
    for finding in findings {
        let paint = match finding.level {
            Level::Fine => Paint::Good,
            Level::Warning => Paint::Warning,
            Level::Failure => Paint::Bad,
        };
        let level = colour.paint(paint, &format!("{:<4}", finding.level.name()));
        output::line(&format!("{level}  {}", finding.what))?;
        if !finding.remedy.is_empty() {
            output::line(&format!("      -> {}", finding.remedy))?;
        }
    }
    Ok(())
}
