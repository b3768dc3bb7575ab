//! `agentctl backup`, `restore` and `drain`: what is done to a daemon before and after it is replaced.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    config::{self, Process},
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Format},
    },
    domain::hex::hex,
    ports::Clock as _,
    proto::v1::{self, backup_database_response::Part},
    sqlite,
    system::SystemClock,
    telemetry,
};

/// How often it is asked what still runs.
const PACE: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(super) struct Backup {
    /// Where to write it; must not exist
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// A backup, or a copy of agentd.db that no daemon used
    file: PathBuf,
    /// The state directory to put it into; its daemon must have stopped [default: the default one]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The seal.key that was kept with the backup, where the state directory has none
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Drain {
    /// Come back once nothing runs any more
    #[arg(long, conflicts_with = "undo")]
    wait: bool,
    /// Take new runs again
    #[arg(long)]
    undo: bool,
}

pub(super) async fn backup(global: &Global, wanted: Backup) -> Result<Exit, Failure> {
    let named = |error: std::io::Error| {
        Failure::new(Exit::BadUsage, format!("{}: {error}", wanted.file.display()))
    };
    let mut client = connect::connect(global).await?.admin();
    let mut stream = client.backup_database(v1::BackupDatabaseRequest {}).await?.into_inner();
    // Half a backup must not be taken for one: it has its name once it is whole and on disk.
    let draft = PathBuf::from(format!("{}.part", wanted.file.display()));
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600);
    let mut file = options.open(&draft).map_err(named)?;
    let received = receive(&mut stream, &mut file).await;
    let kept = received.and_then(|summary| {
        file.sync_all().map_err(named)?;
        // Unlike a renaming, it replaces nothing.
        std::fs::hard_link(&draft, &wanted.file).map_err(named)?;
        let above = wanted.file.parent().filter(|above| !above.as_os_str().is_empty());
        File::open(above.unwrap_or(Path::new("."))).and_then(|above| above.sync_all())?;
        Ok(summary)
    });
    let _ = std::fs::remove_file(&draft);
    let summary = kept?;
    show(global, &wanted.file, &summary)?;
    Ok(if summary.intact { Exit::Done } else { Exit::Unsuccessful })
}

async fn receive(
    stream: &mut tonic::Streaming<v1::BackupDatabaseResponse>,
    file: &mut File,
) -> Result<v1::BackupSummary, Failure> {
    let mut digest = Sha256::new();
    while let Some(message) = stream.message().await? {
        match message.part {
            Some(Part::Chunk(chunk)) => {
                digest.update(&chunk);
                file.write_all(&chunk)?;
            }
            Some(Part::Summary(summary))
                if digest.clone().finalize().as_slice() == summary.sha256 =>
            {
                return Ok(summary);
            }
            Some(Part::Summary(_)) => break,
            None => {}
        }
    }
    Err(Failure::new(Exit::Unavailable, "the backup did not come whole; take it again".to_owned()))
}

fn show(global: &Global, file: &Path, summary: &v1::BackupSummary) -> std::io::Result<()> {
    let v1::BackupSummary { bytes, entries, runs, intact, .. } = summary;
    let file = file.display();
    match global.output {
        Format::Json => output::json_line(&json!({
            "file": file.to_string(), "bytes": bytes, "entries": entries, "runs": runs, "intact": intact,
            "sha256": hex(&summary.sha256), "head_hash": hex(&summary.head_hash),
        })),
        Format::Table => {
            let verdict =
                if *intact { "intact" } else { "ALTERED: agentctl audit verify --file says where" };
            output::line(&format!(
                "{file}: {bytes} bytes, {entries} entries, {runs} runs, {verdict}"
            ))?;
            output::line(
                "what is secret in it is sealed: keep seal.key of the state directory with it",
            )
        }
    }
}

pub(super) fn restore(global: &Global, wanted: Restore) -> Result<Exit, Failure> {
    let Some(state) = wanted.state_dir.or_else(|| config::default_state(&Process)) else {
        let message = "there is no default state directory here; name one (--state-dir)";
        return Err(Failure::new(Exit::BadUsage, message.to_owned()));
    };
    let now = SystemClock::default().now();
    let restored = sqlite::restore(&wanted.file, wanted.key.as_deref(), &state, now)
        .map_err(|error| Failure::new(Exit::Unsuccessful, telemetry::chain(&error)))?;
    let aside = restored.aside.as_ref().map(|path| path.display().to_string());
    let (entries, runs, unended) =
        (restored.report.entries, restored.report.runs, restored.unended);
    match global.output {
        Format::Json => output::json_line(&json!({
            "state_dir": state.display().to_string(), "entries": entries, "runs": runs,
            "unended": unended, "aside": aside,
        }))?,
        Format::Table => {
            output::line(&format!("{} restored: {entries} entries, {runs} runs", state.display()))?;
            if let Some(aside) = aside {
                output::line(&format!("the store that was there is kept as {aside}"))?;
            }
            if unended > 0 {
                output::line(&format!(
                    "{unended} runs had not ended: the next daemon lets them stand still, since what they did after the \
                     backup is not in it. Look at their workspaces, then agentctl run resume, or run cancel"
                ))?;
            }
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn drain(global: &Global, wanted: Drain) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.admin();
    let request = v1::DrainRequest { undo: wanted.undo, only_tell: false };
    let mut drained = client.drain(request).await?.into_inner();
    while wanted.wait && drained.running > 0 {
        tokio::time::sleep(PACE).await;
        let request = v1::DrainRequest { undo: false, only_tell: true };
        drained = client.drain(request).await?.into_inner();
        if !drained.draining {
            let message = "the daemon was opened again meanwhile, or is another one by now";
            return Err(Failure::new(Exit::Unsuccessful, message.to_owned()));
        }
    }
    show_drained(global, &drained)?;
    Ok(Exit::Done)
}

fn show_drained(global: &Global, drained: &v1::DrainResponse) -> std::io::Result<()> {
    let v1::DrainResponse { draining, running, queued } = drained;
    match global.output {
        Format::Json => {
            output::json_line(&json!({"draining": draining, "running": running, "queued": queued}))
        }
        Format::Table => {
            let intake = if *draining { "takes no new runs" } else { "takes new runs" };
            output::line(&format!("the daemon {intake}: {running} run, {queued} wait"))
        }
    }
}
