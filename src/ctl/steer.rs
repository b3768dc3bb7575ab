//! `agentctl run pause`, `resume`, `input` and `cancel`: for one run, for several, or for all that a filter finds.

use std::path::PathBuf;

use crate::{
    client::Client,
    ctl::{
        Exit, Failure, Global, budget, connect, output,
        runs::{label, listed, print_list, print_run, words},
    },
    proto::v1,
};

/// Runs that one command steers at most.
const MOST: i32 = 10_000;

const EXAMPLES: &str = "\
Examples:
  agentctl run resume RUN --budget-tokens 200000                  a run that is out of budget, with a larger one
  agentctl run cancel --state queued --label ci=nightly           says which runs that is about
  agentctl run cancel --state queued --label ci=nightly --yes     and does it";

/// Which runs.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The runs
    #[arg(required_unless_present_any = ["state", "label"], conflicts_with_all = ["state", "label"], value_name = "RUN")]
    ids: Vec<String>,
    /// All runs in this state; may be given several times. Says which those are, unless --yes is given too
    #[arg(long, value_name = "STATE")]
    state: Vec<String>,
    /// All runs with this label; may be given several times. The same
    #[arg(long, value_parser = label, value_name = "KEY=VALUE")]
    label: Vec<(String, String)>,
    /// Do it to all that are found
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Cancel {
    #[command(flatten)]
    which: Which,
    /// Kept in the journal
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    why: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Pause {
    #[command(flatten)]
    which: Which,
    /// Kept in the journal
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    why: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Resume {
    #[command(flatten)]
    which: Which,
    /// Kept in the journal
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    why: String,
    #[command(flatten)]
    budget: budget::Flags,
    /// Make a request once more that was lost while the backend may have run tools of its own for it
    #[arg(long)]
    repeat_request: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Input {
    /// The run
    id: String,
    /// What to say
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    text: Option<String>,
    /// A file with what to say; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Makes it safe to send again: the same id and words count once
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ID")]
    request_id: String,
}

pub(super) async fn pause(global: &Global, wanted: Pause) -> Result<Exit, Failure> {
    let why = wanted.why;
    each(global, wanted.which, "pause", async |client: &Client, id| {
        let request = v1::PauseRunRequest { id, why: why.clone() };
        Ok(client.runs().pause_run(request).await?.into_inner().run)
    })
    .await
}

pub(super) async fn resume(global: &Global, wanted: Resume) -> Result<Exit, Failure> {
    let request = v1::ResumeRunRequest {
        id: String::new(),
        why: wanted.why,
        budget: Some(wanted.budget.budget()),
        role_budgets: wanted.budget.role_budgets(),
        repeat_lost_request: wanted.repeat_request,
    };
    each(global, wanted.which, "resume", async |client: &Client, id| {
        let request = v1::ResumeRunRequest { id, ..request.clone() };
        Ok(client.runs().resume_run(request).await?.into_inner().run)
    })
    .await
}

pub(super) async fn cancel(global: &Global, wanted: Cancel) -> Result<Exit, Failure> {
    let why = wanted.why;
    each(global, wanted.which, "cancel", async |client: &Client, id| {
        let request = v1::CancelRunRequest { id, why: why.clone() };
        Ok(client.runs().cancel_run(request).await?.into_inner().run)
    })
    .await
}

pub(super) async fn input(global: &Global, wanted: Input) -> Result<Exit, Failure> {
    let text = words(wanted.text.as_ref(), wanted.file.as_ref())?;
    let request = v1::SendRunInputRequest { id: wanted.id, text, request_id: wanted.request_id };
    let answer = connect::connect(global).await?.runs().send_run_input(request).await?;
    print_run(global, &answer.into_inner().run.unwrap_or_default())?;
    Ok(Exit::Done)
}

/// Steers each run that is meant, and goes on where one refuses.
pub(super) async fn each(
    global: &Global,
    which: Which,
    verb: &str,
    steer: impl AsyncFn(&Client, String) -> Result<Option<v1::Run>, Failure>,
) -> Result<Exit, Failure> {
    let client = connect::connect(global).await?;
    if let [id] = &which.ids[..] {
        let run = steer(&client, id.clone()).await?.unwrap_or_default();
        print_run(global, &run)?;
        return Ok(Exit::Done);
    }
    let is_found = which.ids.is_empty();
    let ids = match is_found {
        false => which.ids,
        true => {
            let found = listed(&client, &which.state, &which.label, MOST).await?;
            if !which.yes {
                return would(global, verb, &found);
            }
            found.into_iter().map(|run| run.id).collect()
        }
    };
    let (mut steered, mut refused) = (Vec::new(), 0_usize);
    for id in ids {
        match steer(&client, id.clone()).await {
            Ok(run) => steered.extend(run),
            Err(failure) if failure.exit == Exit::Unavailable => {
                print_list(global, &steered)?;
                return Err(failure);
            }
            Err(failure) => {
                refused += 1;
                output::note(&format!("{id}: {}", failure.message))?;
            }
        }
    }
    print_list(global, &steered)?;
    match refused {
        0 => Ok(Exit::Done),
        _ => Err(Failure::new(Exit::Unsuccessful, format!("{refused} runs refused to {verb}"))),
    }
}

/// Says what would be done.
fn would(global: &Global, verb: &str, found: &[v1::Run]) -> Result<Exit, Failure> {
    print_list(global, found)?;
    output::note(&format!("{} runs to {verb}; nothing was done: --yes does it", found.len()))?;
    Ok(Exit::Done)
}
