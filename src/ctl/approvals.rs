//! `agentctl approvals`, `agentctl run approve` and `agentctl run deny`: what waits for a person, and what they say.

use serde_json::{Value, json};

use crate::{
    client::Client,
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Format},
        resolve::call,
        runs::print_run,
        timeline::printable,
    },
    proto::v1,
};

/// Characters of what a call would do that a table shows.
const SHOWN: usize = 100;

const EXAMPLES: &str = "\
Examples:
  agentctl approvals                                   what waits, over all runs
  agentctl run approve RUN 3.0                         this call, exactly as it is shown
  agentctl run approve RUN 3.0 --always                and whatever the same rule asks about in this run
  agentctl run deny RUN 3.0 --why 'use the staging remote'      the model is told why";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Approve {
    #[command(flatten)]
    which: Which,
    /// Allow whatever the same rule asks about of the same tool too, for the rest of this run, while the policy stays
    /// as it is
    #[arg(long)]
    always: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Deny {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The run
    id: String,
    /// The call, as `agentctl approvals` names it: 3.0
    #[arg(value_parser = call)]
    call: (u32, u32),
    /// What exactly is meant, as `agentctl approvals -o json` gives it [default: what is shown now]
    #[arg(long, value_name = "HEX")]
    digest: Option<String>,
    /// Kept in the journal; where the call is denied, the model reads it
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    why: String,
}

/// Everything that waits for a person.
pub(super) async fn list(global: &Global) -> Result<Exit, Failure> {
    let client = connect::connect(global).await?;
    let pending = pending(&client, "").await?;
    match global.output {
        Format::Json => {
            let approvals: Vec<_> = pending.iter().map(as_json).collect();
            output::json_line(&json!({ "approvals": approvals }))?;
        }
        Format::Table => {
            let head = ["RUN", "CALL", "TOOL", "RULE", "SUBMITTER", "EXPIRES", "WHAT"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(pending.iter().map(row));
            output::table(&rows)?;
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn approve(global: &Global, wanted: Approve) -> Result<Exit, Failure> {
    let client = connect::connect(global).await?;
    let digest = digest(&client, &wanted.which).await?;
    let Which { id, call: (turn, index), why, .. } = wanted.which;
    let scope = match wanted.always {
        true => v1::ApprovalScope::Run,
        false => v1::ApprovalScope::Call,
    };
    let scope = scope.into();
    let request = v1::ApproveToolCallRequest { run_id: id, turn, index, digest, scope, why };
    let answer = client.runs().approve_tool_call(request).await?;
    print_run(global, &answer.into_inner().run.unwrap_or_default())?;
    Ok(Exit::Done)
}

pub(super) async fn deny(global: &Global, wanted: Deny) -> Result<Exit, Failure> {
    let client = connect::connect(global).await?;
    let digest = digest(&client, &wanted.which).await?;
    let Which { id, call: (turn, index), why, .. } = wanted.which;
    let request = v1::DenyToolCallRequest { run_id: id, turn, index, digest, why };
    let answer = client.runs().deny_tool_call(request).await?;
    print_run(global, &answer.into_inner().run.unwrap_or_default())?;
    Ok(Exit::Done)
}

/// The digest that was given, or that of what waits now, which is shown.
async fn digest(client: &Client, which: &Which) -> Result<String, Failure> {
    if let Some(digest) = &which.digest {
        return Ok(digest.clone());
    }
    let found = pending(client, &which.id).await?;
    let found = found.iter().find(|one| (one.turn, one.index) == which.call).ok_or_else(|| {
        let (turn, index) = which.call;
        let message = format!(
            "nobody is asked about call {turn}.{index} of run {}; agentctl approvals says what waits",
            which.id
        );
        Failure::new(Exit::Unsuccessful, message)
    })?;
    output::note(&format!("{} {}", found.tool, what(found)))?;
    Ok(found.digest.clone())
}

/// What waits, of one run or, where none is named, of all.
async fn pending(client: &Client, run_id: &str) -> Result<Vec<v1::PendingApproval>, Failure> {
    let (mut pending, mut page_token) = (Vec::new(), String::new());
    loop {
        let run_id = run_id.to_owned();
        let request = v1::ListPendingApprovalsRequest { page_size: 0, page_token, run_id };
        let page = client.runs().list_pending_approvals(request).await?.into_inner();
        pending.extend(page.approvals);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(pending);
        }
    }
}

fn row(pending: &v1::PendingApproval) -> Vec<String> {
    vec![
        pending.run_id.clone(),
        format!("{}.{}", pending.turn, pending.index),
        printable(&pending.tool),
        pending.rule.clone(),
        printable(&pending.submitter),
        pending.expire_time.map(output::time).unwrap_or_default(),
        what(pending).chars().take(SHOWN).collect(),
    ]
}

/// What the call would do: the words of a command as they would run, the path of a file.
fn what(pending: &v1::PendingApproval) -> String {
    let facts: Value = serde_json::from_str(&pending.facts).unwrap_or(Value::Null);
    if let Some(argv) = facts["argv"].as_array() {
        let words = argv.iter().filter_map(Value::as_str).map(|word| format!("[{word}]"));
        return printable(&words.collect::<Vec<_>>().join(" "));
    }
    match facts["path"].as_str() {
        Some(path) => printable(path),
        None => printable(&pending.arguments),
    }
}

fn as_json(pending: &v1::PendingApproval) -> Value {
    json!({
        "run_id": pending.run_id,
        "turn": pending.turn,
        "index": pending.index,
        "call_id": pending.call_id,
        "tool": pending.tool,
        "arguments": pending.arguments,
        "facts": serde_json::from_str::<Value>(&pending.facts).ok(),
        "is_truncated": pending.is_truncated,
        "effect_class": pending.effect_class,
        "rule": pending.rule,
        "why": pending.why,
        "policy_revision": pending.policy_revision,
        "digest": pending.digest,
        "submitter": pending.submitter,
        "task": pending.task,
        "workspace": pending.workspace,
        "create_time": pending.create_time.map(output::time),
        "expire_time": pending.expire_time.map(output::time),
    })
}
