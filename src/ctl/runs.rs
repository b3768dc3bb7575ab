//! `agentctl run`: submit, list, get, wait, follow, events; `calls.rs`, `diff.rs`, `resolve.rs` and `steer.rs` hold
//! the rest.

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use clap::Subcommand;

use crate::{
    client::Client,
    ctl::{
        Exit, Failure, Global, approvals, budget, calls, connect, diff, export, forks,
        output::{self, Colour, Format},
        resolve, steer,
        timeline::{Timeline, Words, printable},
    },
    proto::v1::{self, RunState, stream_run_events_response::Event},
};

/// Runs that are asked for at once.
const PAGE: i32 = 200;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Submits a run
    #[command(after_help = SUBMIT_EXAMPLES)]
    Submit(Submit),
    /// Lists runs, newest first
    List {
        /// Only runs in this state; may be given several times
        #[arg(long, value_name = "STATE")]
        state: Vec<String>,
        /// Only runs with this label; may be given several times
        #[arg(long, value_parser = label, value_name = "KEY=VALUE")]
        label: Vec<(String, String)>,
        /// How many at most
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: i32,
    },
    /// Shows one run
    Get { id: String },
    /// Waits until a run has ended or stands still
    Wait { id: String },
    /// Shows a run as it happens, from its start
    Follow { id: String },
    /// Prints a run's journal
    Events {
        id: String,
        /// Only entries after this sequence
        #[arg(long, default_value_t = 0, value_name = "SEQUENCE")]
        after: u64,
        /// Stay until the run has ended
        #[arg(long)]
        follow: bool,
    },
    /// Lists what a run's model asked of tools, and what came of it
    Tools { id: String },
    /// Prints what a run changed, as a patch for `git apply`
    Diff { id: String },
    /// Says what became of a call that was under way when the daemon died
    Resolve(resolve::Resolve),
    /// Lists places of a run at which another can begin
    Checkpoints { id: String },
    /// Begins a new run at a checkpoint of another, with its conversation; files are as they are
    Fork(forks::Fork),
    /// Begins failed runs again, each where it failed
    Retry(forks::Retry),
    /// Writes all that is known of a run into a directory
    Export(export::Export),
    /// Allows a call that a rule wants a person to allow
    Approve(approvals::Approve),
    /// Refuses one; the model is told why, and the run goes on
    Deny(approvals::Deny),
    /// Asks a run to stand still once what is under way is done
    Pause(steer::Pause),
    /// Lets a run go on that was paused, is out of budget, lost a request or waits for its backend
    Resume(steer::Resume),
    /// Says something to a run's model, which reads it with its next turn
    Input(steer::Input),
    /// Asks a run to stop
    Cancel(steer::Cancel),
}

const SUBMIT_EXAMPLES: &str = "\
Examples:
  agentctl run submit --follow 'Make the failing test pass'       watch it; exit code 0 if it succeeded
  agentctl run submit -f task.md --workspace ~/src/project        prints the run's ID, and waits for nothing
  agentctl run submit -f task.md --wait -o json --request-id \"$CI_JOB_ID\"
                                                                  in CI: safe to repeat, one JSON object";

#[derive(Debug, clap::Args)]
pub(super) struct Submit {
    /// The task, in words
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    task: Option<String>,
    /// A file with the task; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The directory to work in [default: this one]
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// Who carries it out: default (plan, execute, review), executor (one agent alone), or another of `agentctl agents list`
    /// [default: default]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    agent: String,
    /// The model [default: the daemon's]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    model: String,
    /// Makes it safe to submit again: the same id and task give the same run
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ID")]
    request_id: String,
    #[command(flatten)]
    budget: budget::Flags,
    /// A label; may be given several times
    #[arg(long, value_parser = label, value_name = "KEY=VALUE")]
    label: Vec<(String, String)>,
    /// Refuse the run instead of queueing it while another has the workspace
    #[arg(long)]
    refuse_if_busy: bool,
    #[command(flatten)]
    staying: Staying,
}

pub(super) async fn run(global: &Global, verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Submit(submit) => self::submit(global, submit).await,
        Verb::List { state, label, limit } => list(global, (&state, &label), limit).await,
        Verb::Get { id } => {
            let run = get(&connect::connect(global).await?, &id).await?;
            print_run(global, &run)?;
            Ok(Exit::Done)
        }
        Verb::Wait { id } => {
            let client = connect::connect(global).await?;
            let run = wait(&client, &id).await?;
            print_run(global, &run)?;
            Ok(exit_of(&run))
        }
        Verb::Follow { id } => follow(global, &connect::connect(global).await?, &id).await,
        Verb::Events { id, after, follow } => events(global, &id, after, follow).await,
        Verb::Tools { id } => calls::run(global, id).await,
        Verb::Diff { id } => diff::run(global, id).await,
        Verb::Resolve(wanted) => resolve::run(global, wanted).await,
        Verb::Checkpoints { id } => forks::checkpoints(global, id).await,
        Verb::Fork(wanted) => forks::fork(global, wanted).await,
        Verb::Retry(wanted) => forks::retry(global, wanted).await,
        Verb::Export(wanted) => export::run(global, wanted).await,
        Verb::Approve(wanted) => approvals::approve(global, wanted).await,
        Verb::Deny(wanted) => approvals::deny(global, wanted).await,
        Verb::Pause(wanted) => steer::pause(global, wanted).await,
        Verb::Resume(wanted) => steer::resume(global, wanted).await,
        Verb::Input(wanted) => steer::input(global, wanted).await,
        Verb::Cancel(wanted) => steer::cancel(global, wanted).await,
    }
}

async fn submit(global: &Global, submit: Submit) -> Result<Exit, Failure> {
    let request = v1::CreateRunRequest {
        task: words(submit.task.as_ref(), submit.file.as_ref())?,
        workspace: workspace(submit.workspace.as_deref())?,
        agent: submit.agent,
        model: submit.model,
        request_id: submit.request_id,
        labels: submit.label.into_iter().collect::<HashMap<_, _>>(),
        budget: Some(submit.budget.budget()),
        role_budgets: submit.budget.role_budgets(),
        when_workspace_busy: match submit.refuse_if_busy {
            true => v1::BusyWorkspace::Refuse.into(),
            false => v1::BusyWorkspace::Wait.into(),
        },
    };
    let client = connect::connect(global).await?;
    let run = client.runs().create_run(request).await?.into_inner().run.unwrap_or_default();
    stay(global, &client, &run, submit.staying.into()).await
}

/// What to do once a run is there.
#[derive(Clone, Copy)]
pub(super) enum Stay {
    Follow,
    Wait,
    No,
}

/// The flags of commands that begin a run.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Staying {
    /// Wait until the run has ended
    #[arg(long)]
    wait: bool,
    /// Show the run as it happens
    #[arg(long)]
    follow: bool,
}

impl From<Staying> for Stay {
    fn from(flags: Staying) -> Self {
        match flags {
            Staying { follow: true, .. } => Self::Follow,
            Staying { wait: true, .. } => Self::Wait,
            Staying { .. } => Self::No,
        }
    }
}

/// Prints a run that was begun, at once or when it has ended.
pub(super) async fn stay(
    global: &Global,
    client: &Client,
    run: &v1::Run,
    stay: Stay,
) -> Result<Exit, Failure> {
    match stay {
        Stay::Follow => follow(global, client, &run.id).await,
        Stay::Wait => {
            let run = wait(client, &run.id).await?;
            print_run(global, &run)?;
            Ok(exit_of(&run))
        }
        Stay::No => {
            match global.output {
                Format::Json => output::json_line(&output::run_json(run))?,
                Format::Table => output::line(&run.id)?,
            }
            Ok(Exit::Done)
        }
    }
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// Words as they were typed, or those of a file; `-` is standard input.
pub(super) fn words(typed: Option<&String>, file: Option<&PathBuf>) -> Result<String, Failure> {
    match (typed, file) {
        (Some(task), _) => Ok(task.clone()),
        (None, Some(path)) if path == Path::new("-") => Ok(io::read_to_string(io::stdin())?),
        (None, Some(path)) => std::fs::read_to_string(path)
            .map_err(|error| Failure::new(Exit::BadUsage, format!("{}: {error}", path.display()))),
        (None, None) => {
            Err(Failure::new(Exit::BadUsage, "give it in words, or a file with --file"))
        }
    }
}

/// The daemon has another current directory than we have.
pub(super) fn workspace(wanted: Option<&Path>) -> Result<String, Failure> {
    let path = std::path::absolute(wanted.unwrap_or(Path::new(".")))?;
    let path = path.canonicalize().unwrap_or(path);
    path.into_os_string().into_string().map_err(|path| {
        Failure::new(Exit::BadUsage, format!("{} is not UTF-8", path.to_string_lossy()))
    })
}

pub(super) async fn get(client: &Client, id: &str) -> Result<v1::Run, Failure> {
    let answer = client.runs().get_run(v1::GetRunRequest { id: id.to_owned() }).await?;
    Ok(answer.into_inner().run.unwrap_or_default())
}

/// The run when it has ended or stands still.
async fn wait(client: &Client, id: &str) -> Result<v1::Run, Failure> {
    loop {
        let request = v1::WaitRunRequest { id: id.to_owned(), timeout: None };
        let answer = client.runs().wait_run(request).await?.into_inner();
        if !answer.timed_out {
            return Ok(answer.run.unwrap_or_default());
        }
    }
}

/// How the program ends that waited for this run.
pub(super) fn exit_of(run: &v1::Run) -> Exit {
    match run.state() {
        RunState::Succeeded => Exit::Done,
        RunState::AwaitingApproval
        | RunState::Paused
        | RunState::NeedsAttention
        | RunState::OutOfBudget => Exit::Suspended,
        RunState::Failed => {
            let reason = run.error.as_ref().map_or("", |error| error.reason.as_str());
            // What the backend will not take, it will not take from whoever tries again.
            let backend = (reason.starts_with("BACKEND_") && reason != "BACKEND_REJECTED")
                || matches!(reason, "RATE_LIMITED" | "TIMEOUT" | "QUOTA_EXHAUSTED");
            if backend { Exit::Unavailable } else { Exit::Unsuccessful }
        }
        _ => Exit::Unsuccessful,
    }
}

/// Shows a run on stderr as it happens, and its end on stdout.
async fn follow(global: &Global, client: &Client, id: &str) -> Result<Exit, Failure> {
    let words = match io::stderr().is_terminal() {
        true => Words::AsTheyCome,
        false => Words::WhenDone,
    };
    let mut timeline = Timeline::new(io::stderr(), Colour::of_stderr(global.no_color), words);
    let request = v1::StreamRunEventsRequest { id: id.to_owned(), after_sequence: 0, follow: true };
    let mut stream = client.runs().stream_run_events(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        match message.event {
            Some(Event::Entry(entry)) => {
                timeline.entry(&entry)?;
                // A run that stood still once may have gone on since.
                if entry.kind == "run_suspended"
                    && get(client, id).await?.head_sequence == entry.sequence
                {
                    break;
                }
            }
            Some(Event::TextDelta(delta)) => timeline.words(&delta.text)?,
            Some(Event::ToolOutputDelta(delta)) => timeline.program_words(&delta.text)?,
            Some(Event::CaughtUp(_) | Event::Heartbeat(_)) | None => {}
        }
    }
    let run = get(client, id).await?;
    match global.output {
        Format::Json => output::json_line(&output::run_json(&run))?,
        Format::Table if run.answer.is_empty() => {}
        Format::Table if io::stdout().is_terminal() => output::line(&printable(&run.answer))?,
        Format::Table => output::line(&run.answer)?,
    }
    Ok(exit_of(&run))
}

async fn events(global: &Global, id: &str, after: u64, follow: bool) -> Result<Exit, Failure> {
    let client = connect::connect(global).await?;
    let request = v1::StreamRunEventsRequest { id: id.to_owned(), after_sequence: after, follow };
    let mut stream = client.runs().stream_run_events(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        let Some(Event::Entry(entry)) = message.event else { continue };
        match global.output {
            Format::Json => output::json_line(&output::entry_json(&entry))?,
            Format::Table => {
                let time = entry.time.map(output::time).unwrap_or_default();
                output::line(&format!(
                    "{:>5}  {time}  {:<16}  {}",
                    entry.sequence,
                    entry.kind,
                    printable(&entry.payload)
                ))?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Runs in one of these states and with all of these labels, newest first, at most `limit`.
pub(super) async fn listed(
    client: &Client,
    states: &[String],
    labels: &[(String, String)],
    limit: i32,
) -> Result<Vec<v1::Run>, Failure> {
    let states = states.iter().map(|name| state(name)).collect::<Result<Vec<i32>, _>>()?;
    let labels: HashMap<String, String> = labels.iter().cloned().collect();
    let (mut runs, mut page_token) = (Vec::new(), String::new());
    loop {
        let page_size = (limit - i32::try_from(runs.len()).unwrap_or(limit)).min(PAGE);
        let (states, labels) = (states.clone(), labels.clone());
        let request = v1::ListRunsRequest { page_size, page_token, states, labels };
        let page = client.runs().list_runs(request).await?.into_inner();
        runs.extend(page.runs);
        page_token = page.next_page_token;
        if page_token.is_empty() || runs.len() >= usize::try_from(limit).unwrap_or(0) {
            return Ok(runs);
        }
    }
}

async fn list(
    global: &Global,
    (states, labels): (&[String], &[(String, String)]),
    limit: i32,
) -> Result<Exit, Failure> {
    print_list(global, &listed(&connect::connect(global).await?, states, labels, limit).await?)?;
    Ok(Exit::Done)
}

pub(super) fn print_list(global: &Global, runs: &[v1::Run]) -> io::Result<()> {
    match global.output {
        Format::Json => {
            let runs: Vec<_> = runs.iter().map(output::run_json).collect();
            output::json_line(&serde_json::json!({ "runs": runs }))
        }
        Format::Table => {
            let head = ["ID", "STATE", "TURNS", "CALLS", "CREATED", "TASK"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(runs.iter().map(row));
            output::table(&rows)
        }
    }
}

fn row(run: &v1::Run) -> Vec<String> {
    let usage = run.usage.unwrap_or_default();
    let task = run.task.lines().next().unwrap_or_default();
    vec![
        run.id.clone(),
        output::state_name(run).to_owned(),
        usage.turns.to_string(),
        usage.tool_calls.to_string(),
        run.create_time.map(output::time).unwrap_or_default(),
        printable(&task.chars().take(60).collect::<String>()),
    ]
}

pub(super) fn state(name: &str) -> Result<i32, Failure> {
    let full = format!("RUN_STATE_{}", name.to_uppercase().replace('-', "_"));
    RunState::from_str_name(&full)
        .map(i32::from)
        .ok_or_else(|| Failure::new(Exit::BadUsage, format!("{name:?} is not a state of a run")))
}

pub(super) fn print_run(global: &Global, run: &v1::Run) -> io::Result<()> {
    if global.output == Format::Json {
        return output::json_line(&output::run_json(run));
    }
    let usage = run.usage.unwrap_or_default();
    let used = format!(
        "{} turns, {} calls, {} tokens in, {} out",
        usage.turns, usage.tool_calls, usage.input_tokens, usage.output_tokens
    );
    let mut rows = vec![
        ("id", run.id.clone()),
        ("state", output::state_name(run).to_owned()),
        ("workspace", run.workspace.clone()),
        ("task", printable(&run.task)),
        ("used", used),
    ];
    if let Some(error) = &run.error {
        rows.push(("error", format!("{}: {}", error.reason, printable(&error.message))));
    }
    if !run.answer.is_empty() {
        rows.push(("answer", printable(&run.answer)));
    }
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    output::table(&rows)
}
