//! `agentctl run checkpoints`, `fork` and `retry`: runs that begin where another one was.

use std::{collections::HashMap, path::PathBuf};

use serde_json::json;

use crate::{
    client::Client,
    ctl::{
        Exit, Failure, Global, budget, connect,
        output::{self, Format},
        runs::{Staying, get, label, stay, words, workspace},
        steer::{Which, each},
    },
    proto::v1,
};

const EXAMPLES: &str = "\
Examples:
  agentctl run fork RUN 'Now write the tests too' --follow       goes on with a run that has ended
  agentctl run checkpoints RUN
  agentctl run fork RUN --at 17 --model gpt-5-mini               the same from there on, with another model";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Fork {
    /// The run to begin at
    id: String,
    /// What to say to the model there
    #[arg(conflicts_with = "file")]
    input: Option<String>,
    /// A file with what to say; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Where to begin, as `agentctl run checkpoints` says [default: the last checkpoint]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "SEQUENCE")]
    at: u64,
    /// The model [default: the run's]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    model: String,
    /// The directory to work in [default: the run's]
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    #[command(flatten)]
    budget: budget::Flags,
    /// Makes it safe to ask again: the same id and words give the same run
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ID")]
    request_id: String,
    /// A label; may be given several times
    #[arg(long, value_parser = label, value_name = "KEY=VALUE")]
    label: Vec<(String, String)>,
    #[command(flatten)]
    staying: Staying,
}

const RETRY_EXAMPLES: &str = "\
Examples:
  agentctl run retry --state failed --label ci=nightly           says which runs that is about
  agentctl run retry --state failed --label ci=nightly --yes     and begins each again where it failed, once";

#[derive(Debug, clap::Args)]
#[command(after_help = RETRY_EXAMPLES)]
pub(super) struct Retry {
    #[command(flatten)]
    which: Which,
}

pub(super) async fn checkpoints(global: &Global, run_id: String) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.runs();
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            v1::ListCheckpointsRequest { run_id: run_id.clone(), page_size: 0, page_token };
        let page = client.list_checkpoints(request).await?.into_inner();
        found.extend(page.checkpoints);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match global.output {
        Format::Json => {
            let found: Vec<_> = found
                .iter()
                .map(|one| {
                    json!({
                        "sequence": one.sequence,
                        "create_time": one.create_time.map(output::time),
                        "turn": one.turn,
                        "item_count": one.item_count,
                        "wants_input": one.wants_input,
                    })
                })
                .collect();
            output::json_line(&json!({ "checkpoints": found }))?;
        }
        Format::Table => {
            let head = ["SEQUENCE", "TURN", "ITEMS", "TIME", "NEXT"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(found.iter().map(row));
            output::table(&rows)?;
        }
    }
    Ok(Exit::Done)
}

fn row(one: &v1::Checkpoint) -> Vec<String> {
    let next = if one.wants_input { "say something" } else { "the model's turn" };
    vec![
        one.sequence.to_string(),
        one.turn.to_string(),
        one.item_count.to_string(),
        one.create_time.map(output::time).unwrap_or_default(),
        next.to_owned(),
    ]
}

pub(super) async fn fork(global: &Global, wanted: Fork) -> Result<Exit, Failure> {
    let input = match (&wanted.input, &wanted.file) {
        (None, None) => String::new(),
        (input, file) => words(input.as_ref(), file.as_ref())?,
    };
    let request = v1::ForkRunRequest {
        id: wanted.id,
        at_sequence: wanted.at,
        input,
        agent: String::new(),
        model: wanted.model,
        workspace: match &wanted.workspace {
            Some(directory) => workspace(Some(directory))?,
            None => String::new(),
        },
        budget: Some(wanted.budget.budget()),
        role_budgets: wanted.budget.role_budgets(),
        labels: wanted.label.into_iter().collect::<HashMap<_, _>>(),
        request_id: wanted.request_id,
        when_workspace_busy: v1::BusyWorkspace::Wait.into(),
    };
    let client = connect::connect(global).await?;
    let run = client.runs().fork_run(request).await?.into_inner().run.unwrap_or_default();
    output::note(
        "the conversation was restored; files are as they are now, nothing restores them",
    )?;
    stay(global, &client, &run, wanted.staying.into()).await
}

/// Each failed run again from its last checkpoint, once: the new run's request id says of which one it is the retry.
pub(super) async fn retry(global: &Global, wanted: Retry) -> Result<Exit, Failure> {
    output::note("conversations are restored; files are as they are now, nothing restores them")?;
    each(global, wanted.which, "retry", async |client: &Client, id| {
        let run = get(client, &id).await?;
        if run.state() != v1::RunState::Failed {
            let state = output::state_name(&run).to_owned();
            let message = format!("it is {state}, and only what has FAILED is begun again");
            return Err(Failure::new(Exit::Unsuccessful, message));
        }
        let request = v1::ForkRunRequest {
            request_id: format!("retry:{id}"),
            labels: run.labels,
            id,
            ..v1::ForkRunRequest::default()
        };
        Ok(client.runs().fork_run(request).await?.into_inner().run)
    })
    .await
}
