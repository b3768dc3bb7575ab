//! `agentctl approvals`, `agentctl run approve` and `agentctl run deny`: what waits for a person, and what they say.

use std::io::{self, IsTerminal as _};

use serde_json::{Value, json};

use crate::{
    client::Client,
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Format},
        resolve::call,
        runs::print_run,
        timeline::{clip, steers},
    },
    proto::v1,
};

/// Characters of what a call would do that a table shows.
const SHOWN: usize = 100;

const EXAMPLES: &str = "\
Examples:
  agentctl approvals                                   what waits, over all runs
  agentctl run approve RUN 3.0                         shows this call, and asks
  agentctl run approve RUN 3.0 --digest 52c1f0a9be37   exactly what was shown under that
  agentctl run approve RUN 3.0 --always                also whatever the same rule asks about in this run
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
    /// What exactly is meant: the first 12 digits or more of what `agentctl approvals` shows. Without it, a terminal
    /// is shown all of it and asked
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
            let head = ["RUN", "CALL", "DIGEST", "TOOL", "RULE", "SUBMITTER", "EXPIRES", "WHAT"];
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
    // To refuse what was not looked at does no harm.
    let digest = match wanted.which.digest {
        Some(_) => digest(&client, &wanted.which).await?,
        None => meant(&client, &wanted.which).await?.digest,
    };
    let Which { id, call: (turn, index), why, .. } = wanted.which;
    let request = v1::DenyToolCallRequest { run_id: id, turn, index, digest, why };
    let answer = client.runs().deny_tool_call(request).await?;
    print_run(global, &answer.into_inner().run.unwrap_or_default())?;
    Ok(Exit::Done)
}

/// Digits of a digest that stand for it.
const DIGITS: usize = 12;

/// What is meant by what was typed, in full.
async fn meant(client: &Client, which: &Which) -> Result<v1::PendingApproval, Failure> {
    let (turn, index) = which.call;
    let found = pending(client, &which.id).await?;
    let found = found.into_iter().find(|one| (one.turn, one.index) == which.call);
    found.ok_or_else(|| {
        let message = format!(
            "nobody is asked about call {turn}.{index} of run {}; agentctl approvals says what waits",
            which.id
        );
        Failure::new(Exit::Unsuccessful, message)
    })
}

/// The digest of what is to be allowed: what was looked at before, by what was given; or what is looked at now.
async fn digest(client: &Client, which: &Which) -> Result<String, Failure> {
    let Some(given) = &which.digest else {
        let asked = meant(client, which).await?;
        confirm(&asked)?;
        return Ok(asked.digest);
    };
    if given.len() == 64 {
        return Ok(given.clone());
    }
    if given.len() < DIGITS {
        let message = format!("--digest takes the first {DIGITS} digits or more");
        return Err(Failure::new(Exit::BadUsage, message));
    }
    let asked = meant(client, which).await?;
    match asked.digest.starts_with(given) {
        true => Ok(asked.digest),
        false => {
            let message = "what is asked by now is not what that digest is of; look at it again (agentctl approvals)";
            Err(Failure::new(Exit::Unsuccessful, message))
        }
    }
}

/// Shows all of it to whoever sits there, and asks.
fn confirm(asked: &v1::PendingApproval) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        let message = "say what exactly is meant: --digest, as agentctl approvals shows it";
        return Err(Failure::new(Exit::BadUsage, message));
    }
    for line in details(asked) {
        output::note(&line)?;
    }
    output::note("allow exactly this? [y/N]")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Unsuccessful, "nothing was allowed")),
    }
}

/// Everything that is known of a call, a line each.
fn details(asked: &v1::PendingApproval) -> Vec<String> {
    let mut lines = vec![
        format!("tool       {}", quoted(&asked.tool)),
        format!("arguments  {}", quoted(&asked.arguments)),
        format!("stands for {}", quoted(&asked.facts)),
        format!("rule       {}: {}", quoted(&asked.rule), quoted(&asked.why)),
    ];
    if asked.attempt > 1 {
        lines.push(format!("attempt    {}: an earlier one may have taken effect", asked.attempt));
    }
    if asked.is_redacted {
        lines.push("part of it is or looks like a secret, and is hidden here".into());
    }
    if asked.is_truncated {
        lines.push("it is longer than shown: agentctl run events has all of it".into());
    }
    lines
}

/// Text that can neither steer the terminal nor stand for other text.
fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|c| match steers(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    });
    escaped.collect()
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
        pending.digest.chars().take(DIGITS).collect(),
        quoted(&pending.tool),
        quoted(&pending.rule),
        quoted(&pending.submitter),
        pending.expire_time.map(output::time).unwrap_or_default(),
        clip(&what(pending), SHOWN),
    ]
}

/// What the call would do: the words of a command, each quoted; the path of a file and what becomes of it.
fn what(pending: &v1::PendingApproval) -> String {
    let facts: Value = serde_json::from_str(&pending.facts).unwrap_or(Value::Null);
    let hidden = if pending.is_redacted || pending.is_truncated { "(more than this) " } else { "" };
    match facts["argv"].as_array() {
        Some(argv) => {
            let words = argv.iter().map(|word| quoted(&word.to_string()));
            format!("{hidden}{}", words.collect::<Vec<_>>().join(" "))
        }
        None => format!("{hidden}{}", quoted(&pending.arguments)),
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
        "is_redacted": pending.is_redacted,
        "attempt": pending.attempt,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(argv: &str) -> v1::PendingApproval {
        let facts = format!("{{\"argv\":{argv}}}");
        v1::PendingApproval { facts, ..Default::default() }
    }

    #[test]
    fn no_words_of_a_call_can_pass_for_others() {
        assert_eq!(what(&asked(r#"["rm","-rf","a] [b"]"#)), r#""rm" "-rf" "a] [b""#);
        let hostile = what(&asked("[\"a\\n0b1c  3.0\",\"\u{202e}txt.exe\",\"\\u001b[2J\"]"));
        assert_eq!(hostile, r#""a\n0b1c  3.0" "\u{202e}txt.exe" "\u001b[2J""#);
        let long = v1::PendingApproval { is_truncated: true, ..asked(r#"["rm"]"#) };
        assert_eq!(what(&long), r#"(more than this) "rm""#);
    }
}
