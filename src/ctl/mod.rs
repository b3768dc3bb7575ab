//! The command-line client: one file a noun, each parses, calls and renders. Speaks gRPC, but for what
//! needs no daemon.

mod agents;
mod approvals;
mod audit;
mod backup;
mod budget;
mod calls;
mod config;
mod connect;
mod demo;
mod diff;
mod doctor;
mod export;
mod forks;
mod health;
mod manual;
mod output;
mod policy;
mod prune;
mod resolve;
mod revisions;
mod runs;
mod steer;
mod tested;
mod timeline;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{client::ConnectError, telemetry};

/// Submits runs to agentd, follows them, and looks at what they did.
///
/// Exit codes: 0 done and succeeded; 1 the run ended without success; 2 bad usage; 3 daemon or backend
/// unavailable; 4 denied by policy or role; 5 timed out waiting; 6 suspended, needs a person.
#[derive(Debug, Parser)]
#[command(name = "agentctl", version, infer_subcommands = false, after_help = EXAMPLES)]
pub struct Program {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

/// The first hour, for whoever has only this program.
const EXAMPLES: &str = "\
Examples:
  agentctl demo                                a whole run on a throwaway project; needs no model
  agentd serve --workspace-root ~/src          the daemon, in another terminal
  cd ~/src/project
  agentctl run submit --follow 'Why does the build warn? Change nothing.'
  agentctl run list                            then, with an ID: run get, tools, events, diff
  agentctl doctor                              what is the matter, and what to type next";

/// Flags that every verb knows.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The daemon: unix:PATH or http://HOST:PORT [default: the socket of the default state directory,
    /// then http://127.0.0.1:7080]
    #[arg(long, global = true, env = "AGENTCTL_ADDR", value_name = "ADDRESS")]
    addr: Option<String>,
    /// File with the bearer token, for TCP [default: `token` in the default state directory]
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<std::path::PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: output::Format,
    /// No colours (NO_COLOR does the same)
    #[arg(long, global = true)]
    no_color: bool,
    /// Give up waiting after so many seconds
    #[arg(long, global = true, value_name = "SECONDS")]
    timeout: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Shows a whole run on a throwaway project, start to finish
    Demo(demo::Demo),
    /// Submits runs, and looks at them
    #[command(subcommand)]
    Run(runs::Verb),
    /// Shows which tools a model may call
    #[command(subcommand)]
    Tools(tools::Verb),
    /// Shows the rules in force, checks policy files, and puts them into force
    #[command(subcommand)]
    Policy(policy::Verb),
    /// Shows the settings that the daemon runs with
    #[command(subcommand)]
    Config(config::Verb),
    /// Shows which agents a run can be given to
    #[command(subcommand)]
    Agents(agents::Verb),
    /// Lists everything that waits for a person to allow it, over all runs
    Approvals,
    /// Checks that the journal is what was written
    #[command(subcommand)]
    Audit(audit::Verb),
    /// Writes a checked copy of the database into a file, while the daemon goes on
    Backup(backup::Backup),
    /// Puts a backup in the place of a stopped daemon's store
    Restore(backup::Restore),
    /// Lets the daemon take no new runs, before it is stopped or replaced
    Drain(backup::Drain),
    /// Tells whether the daemon is well
    Health(health::Health),
    /// Finds out what is the matter, and says what to type next
    Doctor(doctor::Doctor),
    /// Prints a completion script for a shell
    Completion { shell: clap_complete::Shell },
    /// Prints the manual page, or writes one for each command
    Man {
        /// Write the pages into this directory
        #[arg(long, value_name = "DIR")]
        directory: Option<std::path::PathBuf>,
    },
    /// Tells the daemon's version, limits, policy, tools and sandbox
    Info,
    /// Tells the client's version
    Version,
}

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Unsuccessful = 1,
    BadUsage = 2,
    Unavailable = 3,
    Denied = 4,
    TimedOut = 5,
    Suspended = 6,
}

/// Why the program could not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Unsuccessful, format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // Whoever reads us has seen enough, `head` for example: that is no failure.
        let exit = match error.kind() {
            std::io::ErrorKind::BrokenPipe => Exit::Done,
            _ => Exit::Unsuccessful,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let exit = match error {
            ConnectError::Unreachable { .. } => Exit::Unavailable,
            ConnectError::Address { .. } => Exit::BadUsage,
            ConnectError::Token { .. } | ConnectError::NotAToken { .. } => Exit::Denied,
        };
        Self::new(exit, telemetry::chain(&error))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // What the daemon answered has no source: this is the connection's own end, whatever code it got.
        if let Some(cause) = std::error::Error::source(&status) {
            let cause = telemetry::chain(cause);
            let message = format!(
                "the connection to agentd was lost ({cause}). Runs go on once it is back: see `agentctl health`, then ask again"
            );
            return Self::new(Exit::Unavailable, message);
        }
        let exit = match status.code() {
            Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::OutOfRange => {
                Exit::BadUsage
            }
            Code::Unavailable
            | Code::ResourceExhausted
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal => Exit::Unavailable,
            Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
            Code::DeadlineExceeded => Exit::TimedOut,
            _ => Exit::Unsuccessful,
        };
        let reason = status.get_details_error_info().map(|info| info.reason);
        let message = match reason {
            Some(reason) => format!("{} ({reason})", status.message()),
            None => status.message().to_owned(),
        };
        Self::new(exit, message)
    }
}

/// Does what the command line says.
pub async fn run(program: Program) -> Result<Exit, Failure> {
    let Program { global, noun } = program;
    let done = match global.timeout {
        None => call(&global, noun).await,
        Some(seconds) => {
            let patience = std::time::Duration::from_secs(seconds);
            tokio::time::timeout(patience, call(&global, noun)).await.unwrap_or_else(|_| {
                let message = format!("gave up after {seconds} s; what was submitted goes on");
                Err(Failure::new(Exit::TimedOut, message))
            })
        }
    };
    match done {
        Err(failure) if failure.exit == Exit::Done => Ok(Exit::Done),
        done => done,
    }
}

async fn call(global: &Global, noun: Noun) -> Result<Exit, Failure> {
    match noun {
        Noun::Demo(demo) => demo::run(global, demo).await,
        Noun::Run(verb) => runs::run(global, verb).await,
        Noun::Tools(verb) => tools::run(global, verb).await,
        Noun::Policy(verb) => policy::run(global, verb).await,
        Noun::Config(verb) => config::run(global, verb).await,
        Noun::Approvals => approvals::list(global).await,
        Noun::Agents(verb) => agents::run(global, verb).await,
        Noun::Audit(verb) => audit::run(global, verb).await,
        Noun::Health(health) => health::run(global, health).await,
        Noun::Backup(wanted) => backup::backup(global, wanted).await,
        Noun::Restore(wanted) => backup::restore(global, wanted),
        Noun::Drain(wanted) => backup::drain(global, wanted).await,
        Noun::Doctor(doctor) => doctor::run(global, doctor).await,
        Noun::Completion { shell } => manual::completion(shell),
        Noun::Man { directory } => manual::man(directory),
        Noun::Info => health::info(global).await,
        Noun::Version => output::line(&format!("agentctl {}", env!("CARGO_PKG_VERSION")))
            .map(|()| Exit::Done)
            .map_err(Failure::from),
    }
}

/// Says what went wrong, and gives the exit code that goes with it.
#[expect(clippy::print_stderr, reason = "the program's last words")]
pub fn complain(failure: &Failure) -> ExitCode {
    eprintln!("agentctl: {}", failure.message);
    ExitCode::from(failure.exit as u8)
}
