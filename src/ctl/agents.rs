//! `agentctl agents`: who a run can be given to.

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
    /// Lists every agent, with its role and its tools
    List,
}

pub(super) async fn run(global: &Global, verb: Verb) -> Result<Exit, Failure> {
    let Verb::List = verb;
    let mut client = connect::connect(global).await?.admin();
    let (mut agents, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListAgentsRequest { page_size: 0, page_token };
        let page = client.list_agents(request).await?.into_inner();
        agents.extend(page.agents);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match global.output {
        Format::Json => {
            let agents: Vec<_> = agents.iter().map(as_json).collect();
            output::json_line(&json!({ "agents": agents }))?;
        }
        Format::Table => {
            let head = ["NAME", "ROLE", "MODEL", "TOOLS", "DESCRIPTION"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(agents.iter().map(row));
            output::table(&rows)?;
        }
    }
    Ok(Exit::Done)
}

fn row(agent: &v1::Agent) -> Vec<String> {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    vec![
        agent.name.clone(),
        agent.role.clone(),
        or_dash(&agent.model),
        or_dash(&agent.tools.join(",")),
        agent.description.clone(),
    ]
}

fn as_json(agent: &v1::Agent) -> Value {
    json!({
        "name": agent.name,
        "description": agent.description,
        "role": agent.role,
        "model": (!agent.model.is_empty()).then_some(&agent.model),
        "tools": agent.tools,
        "instructions": agent.instructions,
        "backend": agent.backend,
        "output_schema": (!agent.output_schema.is_empty()).then_some(&agent.output_schema),
        "built_in": agent.built_in,
        "hand_offs": agent.hand_offs,
        "agents_as_tools": agent.agents_as_tools,
    })
}
