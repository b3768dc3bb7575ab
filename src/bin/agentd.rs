//! The daemon's program: flags to configuration to `daemon::run` to an exit code.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use agentd::{
    config::{Config, Flags, Process},
    daemon, telemetry,
};
use clap::{Parser, Subcommand};

/// Exit status for a configuration or policy that is not valid (EX_CONFIG of sysexits).
const BAD_CONFIGURATION: u8 = 78;

/// Carries out LLM agent runs: every tool call decided, confined and journalled.
#[derive(Parser)]
#[command(name = "agentd", version, args_conflicts_with_subcommands = true)]
struct Program {
    #[command(subcommand)]
    command: Option<Verb>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs the daemon in the foreground until SIGTERM or SIGINT (the default)
    Serve(Flags),
}

fn main() -> ExitCode {
    let program = Program::parse();
    let flags = match program.command {
        Some(Verb::Serve(flags)) => flags,
        None => program.flags,
    };
    let config = match Config::load(flags, &Process) {
        Ok(config) => config,
        Err(errors) => return complain(&errors.join("\n"), BAD_CONFIGURATION),
    };
    if let Err(message) = telemetry::start(&config.log, config.log_format) {
        return complain(&message, BAD_CONFIGURATION);
    }
    serve(config)
}

fn serve(config: Config) -> ExitCode {
    // The one place where the TLS provider is chosen: see docs/adr/0003-dependencies.md.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("no async runtime: {error}"), 1),
    };
    let launcher = daemon::launcher(std::env::var_os("AGENTD_SANDBOX").map(PathBuf::from));
    let done = runtime.block_on(daemon::run(config, launcher, say));
    // Work that hangs in the kernel must not keep a stopped daemon alive.
    runtime.shutdown_timeout(Duration::from_millis(500));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ (daemon::DaemonError::Policy(_) | daemon::DaemonError::Tools(_))) => {
            complain(&telemetry::chain(&error), BAD_CONFIGURATION)
        }
        Err(error) => complain(&telemetry::chain(&error), 1),
    }
}

#[expect(clippy::print_stdout, reason = "the one line that says the daemon is ready")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "the program's last words")]
fn complain(message: &str, status: u8) -> ExitCode {
    eprintln!("agentd: {message}");
    ExitCode::from(status)
}
