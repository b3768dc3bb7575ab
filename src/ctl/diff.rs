//! `agentctl run diff`: what a run changed, as a patch.

use std::io::{self, Write as _};

use crate::{
    client::Client,
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Colour, Format, Paint},
    },
    proto::v1,
};

/// Prints the patch as it is, so that `git apply` takes it; a terminal gets colours.
pub(super) async fn run(global: &Global, id: String) -> Result<Exit, Failure> {
    let patch = patch(&connect::connect(global).await?, &id).await?;
    match (global.output, Colour::of_stdout(global.no_color)) {
        (Format::Json, _) => {
            let patch = String::from_utf8_lossy(&patch);
            output::json_line(&serde_json::json!({ "patch": patch }))?;
        }
        (Format::Table, Colour::Off) => io::stdout().write_all(&patch)?,
        (Format::Table, Colour::On) => {
            for line in String::from_utf8_lossy(&patch).lines() {
                output::line(&painted(line))?;
            }
        }
    }
    Ok(Exit::Done)
}

/// What a run changed.
pub(super) async fn patch(client: &Client, id: &str) -> Result<Vec<u8>, tonic::Status> {
    let request = v1::GetRunDiffRequest { id: id.to_owned() };
    let mut stream = client.runs().get_run_diff(request).await?.into_inner();
    let mut patch = Vec::new();
    while let Some(message) = stream.message().await? {
        patch.extend(message.chunk);
    }
    Ok(patch)
}

fn painted(line: &str) -> String {
    let paint = match line.as_bytes() {
        [b'+', b'+', b'+', ..] | [b'-', b'-', b'-', ..] | [b'd', b'i', b'f', b'f', ..] => {
            Paint::Strong
        }
        [b'+', ..] => Paint::Good,
        [b'-', ..] => Paint::Bad,
        [b'@', ..] => Paint::Name,
        _ => return super::timeline::printable(line),
    };
    Colour::On.paint(paint, &super::timeline::printable(line))
}
