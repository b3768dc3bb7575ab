//! `agentctl tools`: what a model may call here.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Format},
    },
    proto::v1,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Lists every tool, with its version, its source and the roles that may use it
    List,
    /// Shows one tool with its schemas
    Get { name: String },
}

pub(super) async fn run(global: &Global, verb: Verb) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.tools();
    match verb {
        Verb::List => {
            let mut tools = Vec::new();
            let mut page_token = String::new();
            loop {
                let request = v1::ListToolsRequest { page_size: 0, page_token };
                let page = client.list_tools(request).await?.into_inner();
                tools.extend(page.tools);
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            list(global, &tools)?;
        }
        Verb::Get { name } => {
            let answer = client.get_tool(v1::GetToolRequest { name }).await?.into_inner();
            get(global, &answer.tool.unwrap_or_default())?;
        }
    }
    Ok(Exit::Done)
}

fn list(global: &Global, tools: &[v1::Tool]) -> std::io::Result<()> {
    match global.output {
        Format::Json => output::json_line(&Value::Array(tools.iter().map(as_json).collect())),
        Format::Table => {
            let heads = ["NAME", "VERSION", "SOURCE", "ROLES"].map(str::to_owned).to_vec();
            let row = |tool: &v1::Tool| {
                let roles = if tool.roles.is_empty() { "-".into() } else { tool.roles.join(",") };
                vec![tool.name.clone(), tool.version.to_string(), tool.source.clone(), roles]
            };
            output::table(&std::iter::once(heads).chain(tools.iter().map(row)).collect::<Vec<_>>())
        }
    }
}

fn get(global: &Global, tool: &v1::Tool) -> std::io::Result<()> {
    if global.output == Format::Json {
        return output::json_line(&as_json(tool));
    }
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    output::table(&[
        row("name", tool.name.clone()),
        row("version", tool.version.to_string()),
        row("source", tool.source.clone()),
        row("roles", tool.roles.join(" ")),
        row("first seen", tool.first_seen_time.map(output::time).unwrap_or_default()),
        row("schema", format!("sha256:{}", tool.schema_sha256)),
    ])?;
    output::line(&format!("\n{}", tool.description))?;
    for (name, schema) in [("arguments", &tool.parameters_schema), ("result", &tool.result_schema)]
    {
        if !schema.is_empty() {
            output::line(&format!("\n{name}\n{}", pretty(schema)))?;
        }
    }
    Ok(())
}

fn pretty(schema: &str) -> String {
    let value: Value = serde_json::from_str(schema).unwrap_or_default();
    serde_json::to_string_pretty(&value).unwrap_or_else(|_| schema.to_owned())
}

fn as_json(tool: &v1::Tool) -> Value {
    let schema = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    json!({
        "name": tool.name,
        "version": tool.version,
        "source": tool.source,
        "roles": tool.roles,
        "first_seen_time": tool.first_seen_time.map(output::time),
        "schema_sha256": tool.schema_sha256,
        "description": tool.description,
        "parameters_schema": schema(&tool.parameters_schema),
        "result_schema": schema(&tool.result_schema),
    })
}
