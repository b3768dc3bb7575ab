//! The demo's own daemon: the real program, on a state directory of its own.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    client::{Address, Client},
    ctl::{
        Exit, Failure,
        demo::{Backend, project::Project},
    },
    tasks,
};

/// How long the daemon may take to be ready, and to stop.
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(20);

/// A running daemon. Killed when dropped.
#[derive(Debug)]
pub(super) struct PrivateDaemon {
    child: Option<Child>,
    socket: PathBuf,
}

impl PrivateDaemon {
    /// Starts `agentd`, which lies beside this program, and waits until it is ready.
    pub(super) async fn start(project: &Project, backend: &Backend) -> Result<Self, Failure> {
        let program = std::env::current_exe()?.with_file_name("agentd");
        let log = File::options().create(true).append(true).open(project.log())?;
        let mut command = Command::new(&program);
        command
            .arg("serve")
            .arg("--config")
            .arg(project.configuration())
            .arg("--state-dir")
            .arg(project.state())
            .arg("--workspace-root")
            .arg(project.workspace())
            .arg("--policy-dir")
            .arg(project.policies())
            .args(["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        for name in ["AGENTD_MODEL", "AGENTD_LOG", "AGENTD_LOG_FORMAT", "ALLOW_COMMANDS"] {
            if name != "AGENTD_MODEL" || matches!(backend, Backend::Scripted { .. }) {
                command.env_remove(name);
            }
        }
        if let Backend::Scripted { url } = backend {
            command
                .args(["--base-url", url])
                .env_remove("OPENAI_API_KEY")
                .env_remove("OPENAI_API_KEY_FILE");
        }
        let mut child = command.spawn().map_err(|error| {
            let message = format!("{} cannot be started: {error}", program.display());
            Failure::new(Exit::Unavailable, message)
        })?;
        let stdout = child.stdout.take();
        let daemon = Self { child: Some(child), socket: project.state().join("agentd.sock") };
        let ready = tasks::blocking(move || {
            let mut line = String::new();
            stdout
                .map(|stdout| BufReader::new(stdout).read_line(&mut line))
                .transpose()
                .map(|_| line)
        });
        match tokio::time::timeout(START, ready).await {
            Ok(Ok(Ok(line))) if line.starts_with("agentd is ready") => Ok(daemon),
            _ => {
                let words = std::fs::read_to_string(project.log()).unwrap_or_default();
                let message = format!("the demo's daemon did not start:\n{words}");
                Err(Failure::new(Exit::Unavailable, message))
            }
        }
    }

    pub(super) async fn connect(&self) -> Result<Client, Failure> {
        let uri = format!("unix:{}", self.socket.display());
        Ok(Client::connect(&Address { uri, token_file: None }).await?)
    }

    /// Kills the daemon at once, with SIGKILL.
    pub(super) async fn kill(mut self) -> Result<(), Failure> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            wait(child).await?;
        }
        Ok(())
    }

    /// Asks the daemon to stop, and waits for it.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        if let Some(child) = self.child.take() {
            if let Ok(pid) = i32::try_from(child.id())
                && let Some(pid) = Pid::from_raw(pid)
            {
                kill_process(pid, Signal::TERM).map_err(std::io::Error::from)?;
            }
            wait(child).await?;
        }
        Ok(())
    }
}

async fn wait(mut child: Child) -> Result<(), Failure> {
    let waited = tokio::time::timeout(STOP, tasks::blocking(move || child.wait())).await;
    match waited {
        Ok(Ok(status)) => status.map(drop).map_err(Failure::from),
        Ok(Err(error)) => Err(Failure::new(Exit::Unsuccessful, error.to_string())),
        Err(_) => Err(Failure::new(Exit::TimedOut, "the demo's daemon did not stop")),
    }
}

impl Drop for PrivateDaemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
