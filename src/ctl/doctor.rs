//! `agentctl doctor`: what is the matter, and what to type next.

use std::{
    net::{TcpStream, ToSocketAddrs as _},
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use serde_json::json;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::{
    client::{Client, ConnectError},
    config::{self, Process},
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Colour, Format, Paint},
    },
    proto::v1,
};

/// How long the backend may take to take a connection.
const PATIENCE: Duration = Duration::from_secs(3);

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

/// Exits 0 where nothing failed, 3 where no daemon can be asked, else 1.
pub(super) async fn run(global: &Global) -> Result<Exit, Failure> {
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
    let mut findings =
        vec![version(&info), ready(client).await?, policy(&info), backend(&info).await];
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

/// Whether something listens where the backend should be; what it can do is not asked.
async fn backend(info: &v1::GetServerInfoResponse) -> Finding {
    let url = info.backend_url.clone();
    let Some(address) = authority(&url) else {
        return finding(
            Level::Failure,
            format!("backend: {url} names no host"),
            "agentctl config view",
        );
    };
    let tried = crate::tasks::blocking(move || {
        let mut last = std::io::Error::other("the name stands for no address");
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    });
    match tried.await {
        Ok(Ok(())) => finding(Level::Fine, format!("backend: {url} takes connections"), ""),
        Ok(Err(error)) => finding(
            Level::Failure,
            format!("backend: {url}: {error}"),
            "start the model server, or OPENAI_BASE_URL=URL agentd serve",
        ),
        Err(error) => finding(Level::Failure, format!("backend: {error}"), "agentctl doctor"),
    }
}

/// Host and port of an address.
fn authority(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split('/').next().filter(|host| !host.is_empty())?;
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match (has_port, scheme) {
        (true, _) => Some(host.to_owned()),
        (false, "https") => Some(format!("{host}:443")),
        (false, _) => Some(format!("{host}:80")),
    }
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
