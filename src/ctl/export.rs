//! `agentctl run export`: all that is known of a run, as a directory of files.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use tonic::Code;

use crate::{
    client::Client,
    ctl::{Exit, Failure, Global, calls, connect, diff, output, runs::get},
    proto::v1::{self, stream_run_events_response::Event},
};

#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// The run
    id: String,
    /// The directory to write, which must not be there yet [default: the run's id]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Writes `run.json`, `journal.jsonl`, `tool-calls.json`, and `answer.md` and `changes.patch` where there are any.
pub(super) async fn run(global: &Global, wanted: Export) -> Result<Exit, Failure> {
    let client = connect::connect(global).await?;
    let run = get(&client, &wanted.id).await?;
    let directory = wanted.to.unwrap_or_else(|| PathBuf::from(&run.id));
    let named = |error: std::io::Error| {
        Failure::new(Exit::BadUsage, format!("{}: {error}", directory.display()))
    };
    fs::create_dir(&directory).map_err(named)?;
    write(&directory, "run.json", format!("{:#}\n", output::run_json(&run)).as_bytes())?;
    journal(&client, &run.id, &directory).await?;
    let calls = calls::as_json_document(&client, &run.id).await?;
    write(&directory, "tool-calls.json", format!("{calls:#}\n").as_bytes())?;
    if !run.answer.is_empty() {
        write(&directory, "answer.md", format!("{}\n", run.answer.trim_end()).as_bytes())?;
    }
    match diff::patch(&client, &run.id).await {
        Ok(patch) if patch.is_empty() => output::note("no changes.patch: the run changed nothing")?,
        Ok(patch) => write(&directory, "changes.patch", &patch)?,
        // Outside of a git repository there is none.
        Err(status) if status.code() == Code::FailedPrecondition => {
            output::note(&format!("no changes.patch: {}", status.message()))?;
        }
        Err(status) => return Err(status.into()),
    }
    output::line(&directory.display().to_string())?;
    Ok(Exit::Done)
}

/// One line an entry, with the fields of the mirror.
async fn journal(client: &Client, id: &str, directory: &Path) -> Result<(), Failure> {
    let mut file = BufWriter::new(File::create(directory.join("journal.jsonl"))?);
    let request =
        v1::StreamRunEventsRequest { id: id.to_owned(), after_sequence: 0, follow: false };
    let mut stream = client.runs().stream_run_events(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        if let Some(Event::Entry(entry)) = message.event {
            writeln!(file, "{}", output::entry_json(&entry))?;
        }
    }
    Ok(file.flush()?)
}

fn write(directory: &Path, name: &str, content: &[u8]) -> Result<(), Failure> {
    Ok(fs::write(directory.join(name), content)?)
}
