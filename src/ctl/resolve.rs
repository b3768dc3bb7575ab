//! `agentctl run resolve`: what a person says of a call that was under way when the daemon died.

use crate::{
    ctl::{Exit, Failure, Global, connect, runs::print_run},
    proto::v1,
};

const EXAMPLES: &str = "\
Examples:
  agentctl run tools RUN                                what the run waits for: UNRESOLVED
  agentctl run resolve RUN 3.0 did-not-run              it took no effect; the model is told
  agentctl run resolve RUN 3.0 did-run --result 'v1.2 is published'
                                                        it took effect; the model reads the result
  agentctl run resolve RUN 3.0 retry                    run it once more";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Resolve {
    /// The run
    id: String,
    /// The call, as `agentctl run tools` names it: 3.0
    #[arg(value_parser = call)]
    call: (u32, u32),
    /// What became of it
    became: Became,
    /// What a call that did run has given, for the model to read
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    result: String,
    /// Kept in the journal
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    why: String,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Became {
    /// It took no effect, and is not run again
    DidNotRun,
    /// It took effect
    DidRun,
    /// Whatever became of it, run it once more
    Retry,
}

impl From<Became> for v1::CallResolution {
    fn from(became: Became) -> Self {
        match became {
            Became::DidNotRun => Self::DidNotRun,
            Became::DidRun => Self::DidRun,
            Became::Retry => Self::Retry,
        }
    }
}

pub(super) fn call(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('.').map(|(turn, index)| (turn.parse(), index.parse()));
    match parsed {
        Some((Ok(turn), Ok(index))) => Ok((turn, index)),
        _ => Err("is a turn and a place in its answer, such as 3.0".into()),
    }
}

pub(super) async fn run(global: &Global, wanted: Resolve) -> Result<Exit, Failure> {
    let Resolve { id, call: (turn, index), became, result, why } = wanted;
    let resolution = v1::CallResolution::from(became).into();
    let request = v1::ResolveToolCallRequest { run_id: id, turn, index, resolution, result, why };
    let answer = connect::connect(global).await?.runs().resolve_tool_call(request).await?;
    print_run(global, &answer.into_inner().run.unwrap_or_default())?;
    Ok(Exit::Done)
}
