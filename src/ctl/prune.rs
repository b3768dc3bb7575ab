//! `agentctl audit prune`: removes what ended runs held, or says what it would remove.

use serde_json::json;

use crate::{
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Format},
        runs,
    },
    ports::Clock as _,
    proto::v1,
    system::SystemClock,
};

/// Runs of one request.
const PAGE: i32 = 100;
/// In seconds.
const DAY: u64 = 24 * 60 * 60;

pub(super) const EXAMPLES: &str = "\
Examples:
  agentctl audit prune --older-than 90                        which runs that is about
  agentctl audit prune --older-than 30 --state failed --yes   and does it";

/// Which ended runs, and whether it is done.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Runs that ended more than so many days ago
    #[arg(long, value_name = "DAYS")]
    older_than: u64,
    /// Only runs that ended in this state; may be given several times
    #[arg(long, value_name = "STATE")]
    state: Vec<String>,
    /// Does it: for good. Backups that were taken before still hold what is removed
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(global: &Global, which: Which) -> Result<Exit, Failure> {
    let states = which.state.iter().map(|name| runs::state(name)).collect::<Result<Vec<_>, _>>()?;
    let age = i64::try_from(which.older_than.saturating_mul(DAY)).unwrap_or(i64::MAX);
    let now = SystemClock::default().now().0;
    let before = prost_types::Timestamp {
        seconds: now.div_euclid(1_000_000).saturating_sub(age),
        nanos: i32::try_from(now.rem_euclid(1_000_000) * 1000).unwrap_or(0),
    };
    let mut client = connect::connect(global).await?.audit();
    let (mut pruned, mut has_more) = (Vec::new(), true);
    while has_more {
        let request = v1::PruneRunsRequest {
            ended_before: Some(before),
            states: states.clone(),
            limit: if which.yes { PAGE } else { i32::MAX },
            dry_run: !which.yes,
        };
        let page = client.prune_runs(request).await?.into_inner();
        has_more = page.has_more && which.yes;
        if page.has_more && !which.yes {
            output::note("these, and more than these")?;
        }
        pruned.extend(page.runs);
    }
    print(global, &pruned)?;
    if !which.yes {
        output::note(&format!("{} runs to prune; nothing was done: --yes does it", pruned.len()))?;
    }
    Ok(Exit::Done)
}

fn print(global: &Global, runs: &[v1::PrunedRun]) -> std::io::Result<()> {
    let state = |run: &v1::PrunedRun| output::short_state(run.state());
    match global.output {
        Format::Json => {
            let run = |run: &v1::PrunedRun| {
                json!({"run_id": run.run_id, "state": state(run),
                       "end_time": run.end_time.map(output::time), "entries": run.entries})
            };
            output::json_line(&json!({"runs": runs.iter().map(run).collect::<Vec<_>>()}))
        }
        Format::Table => runs.iter().try_for_each(|run| {
            let ended = run.end_time.map(output::time).unwrap_or_default();
            let (state, entries) = (state(run), run.entries);
            output::line(&format!("{}  {state:<10}  {ended}  {entries:>7} entries", run.run_id))
        }),
    }
}
