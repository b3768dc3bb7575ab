//! The daemon's program: flags to configuration to `daemon::run` to an exit code.

use std::{os::unix::fs::DirBuilderExt as _, path::PathBuf, process::ExitCode, time::Duration};

use agentd::{
    check::{self, Level},
    config::{Config, Flags, Process},
    daemon,
    tasks::Tasks,
    telemetry,
};
use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

/// Exit status for a configuration or policy that is not valid (EX_CONFIG of sysexits).
const BAD_CONFIGURATION: u8 = 78;
/// Threads that answer callers; what takes long is done elsewhere.
const CALLER_THREADS: usize = 2;

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
    /// Checks the configuration, the policy, the tools and the sandbox, and says what to do about each
    /// finding; exits 0, or 78 where a daemon could not start
    Check(Flags),
}

/// What the program is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Serve,
    Check,
}

fn main() -> ExitCode {
    let program = Program::parse();
    let (task, flags) = match program.command {
        Some(Verb::Serve(flags)) => (Task::Serve, flags),
        Some(Verb::Check(flags)) => (Task::Check, flags),
        None => (Task::Serve, program.flags),
    };
    let config = match Config::load(flags, &Process) {
        Ok(config) => config,
        Err(errors) => return complain(&errors.join("\n"), BAD_CONFIGURATION),
    };
    if let Err(message) = telemetry::start(&config.log, config.log_format) {
        return complain(&message, BAD_CONFIGURATION);
    }
    match task {
        Task::Serve => serve(config),
        Task::Check => check(&config),
    }
}

fn check(config: &Config) -> ExitCode {
    let scratch = std::env::temp_dir().join(format!("agentd-check-{}", std::process::id()));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&scratch);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match (made, runtime) {
        (Ok(()), Ok(runtime)) => runtime,
        (Err(error), _) | (_, Err(error)) => return complain(&error.to_string(), 1),
    };
    let findings = runtime.block_on(check::check(config, launcher(), &scratch));
    let _ = std::fs::remove_dir_all(&scratch);
    findings.iter().for_each(|finding| say(&finding.to_string()));
    match findings.iter().any(|finding| finding.level == Level::Failure) {
        true => ExitCode::from(BAD_CONFIGURATION),
        false => ExitCode::SUCCESS,
    }
}

fn launcher() -> PathBuf {
    daemon::launcher(std::env::var_os("AGENTD_SANDBOX").map(PathBuf::from))
}

fn serve(config: Config) -> ExitCode {
    // The one place where the TLS provider is chosen: see docs/adr/0003-dependencies.md.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (runs, callers) = match runtimes() {
        Ok(runtimes) => runtimes,
        Err(error) => return complain(&format!("no async runtime: {error}"), 1),
    };
    let drivers = Tasks::on(runs.handle().clone());
    let done = callers.block_on(daemon::run(config, launcher(), drivers, say));
    // Work that hangs in the kernel must not keep a stopped daemon alive.
    for runtime in [runs, callers] {
        runtime.shutdown_timeout(Duration::from_millis(250));
    }
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ (daemon::DaemonError::Policy(_) | daemon::DaemonError::Tools(_))) => {
            complain(&telemetry::chain(&error), BAD_CONFIGURATION)
        }
        Err(error) => complain(&telemetry::chain(&error), 1),
    }
}

/// One for runs, one for callers, so that these do not wait behind those: docs/adr/0011-two-runtimes.md. One core is left to
/// the journal's writer, which all runs wait for.
fn runtimes() -> std::io::Result<(Runtime, Runtime)> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let runs = Builder::new_multi_thread()
        .enable_all()
        .thread_name("runs")
        .worker_threads((cores - 1).max(1))
        .build()?;
    let callers = Builder::new_multi_thread()
        .enable_all()
        .thread_name("callers")
        .worker_threads(CALLER_THREADS)
        .build()?;
    Ok((runs, callers))
}

#[expect(clippy::print_stdout, reason = "the line that says the daemon is ready, or a finding")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "the program's last words")]
fn complain(message: &str, status: u8) -> ExitCode {
    eprintln!("agentd: {message}");
    ExitCode::from(status)
}
