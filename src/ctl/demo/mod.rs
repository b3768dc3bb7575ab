//! `agentctl demo`: a whole run on a throwaway project with a daemon of its own, and then a judge who
//! looks at what really happened. Everything is real but the model's words, where no backend is
//! configured; then it says so.

mod judge;
mod private_daemon;
mod project;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    client::Client,
    config::{self, Process, Surroundings as _},
    ctl::{
        Exit, Failure, Global,
        demo::{private_daemon::PrivateDaemon, project::Project},
        output::{Colour, Paint},
        timeline::{Timeline, Words},
    },
    ports::Chance as _,
    proto::v1::{self, stream_run_events_response::Event},
    scripted::{Manner, Play, ScriptedBackend},
    system::SystemChance,
    tasks::Tasks,
};

const TASK: &str =
    "The tests of this project fail. Find out why, fix the code, and show that they pass.";
const SCRIPT: &str = include_str!("files/script.yaml");
/// How long the whole run may take with a model of one's own.
const PATIENCE: Duration = Duration::from_secs(900);
/// With --crash, the daemon is killed after one of these entries.
const CRASH_BETWEEN: (u64, u64) = (2, 44);
/// And at most so long after it.
const CRASH_LATER: Duration = Duration::from_millis(120);

#[derive(Debug, clap::Args)]
pub(super) struct Demo {
    /// Kill the daemon in the middle with SIGKILL, start it again, and see the run go on
    #[arg(long)]
    crash: bool,
    /// Policy files to use instead of the demo's
    #[arg(long, value_name = "DIR")]
    policies: Option<PathBuf>,
    /// Words of the scripted model to use instead of the demo's (YAML)
    #[arg(long, value_name = "FILE", conflicts_with = "judge")]
    script: Option<PathBuf>,
    /// Judge an earlier demo's directory again, and run nothing
    #[arg(long, value_name = "DIR")]
    judge: Option<PathBuf>,
    /// Remove everything afterwards
    #[arg(long)]
    remove: bool,
}

/// Whose words the model's are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Backend {
    /// A real one, that the environment names, or the user's configuration file in this section.
    Configured {
        section: Option<serde_json::Value>,
    },
    Scripted {
        url: String,
    },
}

pub(super) async fn run(global: &Global, demo: Demo) -> Result<Exit, Failure> {
    let colour = Colour::of_stdout(global.no_color);
    let mut show = Timeline::new(io::stdout(), colour, Words::AsTheyCome);
    if let Some(directory) = &demo.judge {
        return judge_and_tell(&mut show, colour, &Project::at(directory));
    }
    let chance = SystemChance::default();
    let project = Project::create(&chance, demo.policies.as_deref())?;
    let tasks = Tasks::default();
    let backend = backend(&tasks, demo.script.as_deref()).await?;
    project.remember(&backend)?;
    introduce(&mut show, colour, &project, &backend)?;

    let crash_after = demo.crash.then(|| {
        let (first, last) = CRASH_BETWEEN;
        first + (chance.fraction() * (last - first + 1) as f64) as u64
    });
    let carried_out = tokio::time::timeout(
        PATIENCE,
        carry_out(&mut show, colour, &project, &backend, crash_after),
    );
    let carried_out = carried_out
        .await
        .map_err(|_| Failure::new(Exit::TimedOut, "the run did not end within 15 minutes"))?;
    tasks.stop(Duration::from_secs(1)).await;
    carried_out?;

    let exit = judge_and_tell(&mut show, colour, &project)?;
    match demo.remove {
        true => project.remove()?,
        false => where_it_lies(&mut show, &project)?,
    }
    Ok(exit)
}

/// The backend that is configured, else a scripted one.
async fn backend(tasks: &Tasks, script: Option<&Path>) -> Result<Backend, Failure> {
    let bad_usage = |error: crate::yaml::YamlError| Failure::new(Exit::BadUsage, error.to_string());
    if script.is_none() {
        let section = config::named_backend(&Process).map_err(bad_usage)?;
        let named = ["OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_API_KEY_FILE"];
        if section.is_some() || named.iter().any(|name| Process.variable(name).is_some()) {
            return Ok(Backend::Configured { section });
        }
    }
    let (file, text) = match script {
        None => ("the demo's script".to_owned(), SCRIPT.to_owned()),
        Some(path) => {
            let text =
                crate::yaml::read(path).map_err(|e| Failure::new(Exit::BadUsage, e.to_string()))?;
            (path.display().to_string(), text)
        }
    };
    let script =
        Play::parse(&file, &text).map_err(|e| Failure::new(Exit::BadUsage, e.to_string()))?;
    // Slow enough to be read as it comes, fast enough not to bore.
    let manner = Manner { pace: Duration::from_millis(8), ..Manner::default() };
    let server = ScriptedBackend::start(tasks, script, manner).await?;
    Ok(Backend::Scripted { url: server.url() })
}

type Show = Timeline<io::Stdout>;

fn introduce(
    show: &mut Show,
    colour: Colour,
    project: &Project,
    backend: &Backend,
) -> Result<(), Failure> {
    let words = match backend {
        Backend::Configured { .. } => "The model is the one that you have configured.".to_owned(),
        Backend::Scripted { .. } => colour.paint(
            Paint::Warning,
            "No backend is configured, so the model's words are SCRIPTED. All else is real: the daemon,\n\
             the policy, the sandbox, the journal, the compiler, and the HTTP between them.",
        ),
    };
    show.note(&colour.paint(Paint::Strong, "agentd demo"))?;
    show.note(&format!(
        "A throwaway git project with a failing test, in {}",
        project.workspace().display()
    ))?;
    show.note(&format!("{words}\n"))?;
    Ok(())
}

/// One run from submission to its end; with `crash_after`, through the death of its daemon.
async fn carry_out(
    show: &mut Show,
    colour: Colour,
    project: &Project,
    backend: &Backend,
    crash_after: Option<u64>,
) -> Result<(), Failure> {
    let mut daemon = PrivateDaemon::start(project, backend).await?;
    let client = daemon.connect().await?;
    let request = v1::CreateRunRequest {
        task: TASK.into(),
        workspace: project.workspace().display().to_string(),
        request_id: "demo".into(),
        agent: "default".into(),
        ..Default::default()
    };
    let run = client.runs().create_run(request).await?.into_inner().run.unwrap_or_default();
    let mut seen = follow(show, &client, &run.id, 0, crash_after).await?;
    if crash_after.is_some() && !seen.ended {
        // Not at the moment of an entry only, but anywhere between two.
        let moment = SystemChance::default().fraction() * CRASH_LATER.as_secs_f64();
        tokio::time::sleep(Duration::from_secs_f64(moment)).await;
        daemon.kill().await?;
        let killed = colour
            .paint(Paint::Bad, &format!("☠ daemon killed with SIGKILL after entry {}", seen.last));
        show.note(&killed)?;
        daemon = PrivateDaemon::start(project, backend).await?;
        show.note(
            &colour.paint(Paint::Good, "↻ daemon started again on the same state directory"),
        )?;
        let client = daemon.connect().await?;
        seen = follow(show, &client, &run.id, seen.last, None).await?;
    }
    daemon.stop().await?;
    match seen.ended {
        true => Ok(()),
        false => Err(Failure::new(Exit::Suspended, "the run stands still and needs a person")),
    }
}

/// How far a run has been seen.
struct SeenSoFar {
    last: u64,
    ended: bool,
}

/// Shows a run from a sequence on, until it ends, stands still, or entry `until` has been seen.
async fn follow(
    show: &mut Show,
    client: &Client,
    id: &str,
    after: u64,
    until: Option<u64>,
) -> Result<SeenSoFar, Failure> {
    let mut seen = SeenSoFar { last: after, ended: false };
    let request = v1::StreamRunEventsRequest { id: id.into(), after_sequence: after, follow: true };
    let mut stream = client.runs().stream_run_events(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        match message.event {
            Some(Event::Entry(entry)) => {
                if entry.sequence != seen.last + 1 {
                    let message =
                        format!("entry {} came after entry {}", entry.sequence, seen.last);
                    return Err(Failure::new(Exit::Unsuccessful, message));
                }
                seen.last = entry.sequence;
                seen.ended = entry.kind == "run_finished";
                show.entry(&entry)?;
                if entry.kind == "run_suspended" || until.is_some_and(|until| seen.last >= until) {
                    return Ok(seen);
                }
            }
            Some(Event::TextDelta(delta)) => show.words(&delta.text)?,
            // The programs of the demo are short: their entries say it all.
            Some(Event::ToolOutputDelta(_) | Event::CaughtUp(_) | Event::Heartbeat(_)) | None => {}
        }
    }
    Ok(seen)
}

fn judge_and_tell(show: &mut Show, colour: Colour, project: &Project) -> Result<Exit, Failure> {
    let findings = judge::judge(project)?;
    show.note(&format!("\n{}", colour.paint(Paint::Strong, "What changed")))?;
    show.note(&project.diff()?)?;
    show.note(&colour.paint(Paint::Strong, "The judge"))?;
    for finding in &findings {
        let mark = match finding.verdict {
            judge::Verdict::Holds => colour.paint(Paint::Good, "✓"),
            judge::Verdict::Fails => colour.paint(Paint::Bad, "✗"),
            judge::Verdict::NotTried => colour.paint(Paint::Warning, "–"),
        };
        show.note(&format!("  {mark} {}", finding.what))?;
    }
    match findings.iter().any(|finding| finding.verdict == judge::Verdict::Fails) {
        true => {
            show.note(&colour.paint(Paint::Bad, "\nThe demo FAILED."))?;
            Ok(Exit::Unsuccessful)
        }
        false => {
            show.note(
                &colour.paint(Paint::Good, "\nAll of this happened on this machine just now."),
            )?;
            Ok(Exit::Done)
        }
    }
}

fn where_it_lies(show: &mut Show, project: &Project) -> Result<(), Failure> {
    let directory = project.directory();
    show.note(&format!(
        "\nEverything lies in {0}\n  workspace/  the project\n  state/      the journal, agentd.db\n  \
         policies/   the rules it ran under\n\
         agentctl audit verify --file {0}/state/agentd.db\n\
         agentctl demo --judge {0}",
        directory.display()
    ))?;
    Ok(())
}
