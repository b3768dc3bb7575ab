//! `agentctl config`: the settings that the daemon runs with.

use clap::Subcommand;
use serde_json::json;

use crate::{
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Format},
    },
    proto::v1,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Shows every setting in force with its source; secrets are hidden
    View,
}

pub(super) async fn run(global: &Global, verb: Verb) -> Result<Exit, Failure> {
    let Verb::View = verb;
    let request = v1::GetConfigRequest {};
    let config = connect::connect(global).await?.admin().get_config(request).await?.into_inner();
    match global.output {
        Format::Json => {
            let value = |value: &v1::ConfigValue| json!({"key": value.key, "value": value.value, "source": value.source});
            let values: Vec<_> = config.values.iter().map(value).collect();
            let file = Some(&config.file).filter(|file| !file.is_empty());
            output::json_line(&json!({"file": file, "values": values}))?;
        }
        Format::Table => {
            let heads = ["SETTING", "VALUE", "SOURCE"].map(str::to_owned).to_vec();
            let row = |value: &v1::ConfigValue| {
                vec![value.key.clone(), value.value.clone(), value.source.clone()]
            };
            let rows = std::iter::once(heads).chain(config.values.iter().map(row));
            output::table(&rows.collect::<Vec<_>>())?;
        }
    }
    Ok(Exit::Done)
}
