//! `agentctl policy revisions`: when which policy came into force, and by what.

use serde_json::{Value, json};

use crate::{
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Format},
        timeline::printable,
    },
    proto::v1,
};

pub(super) async fn run(global: &Global, limit: u32) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.policy();
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let (mut revisions, mut page_token) = (Vec::new(), String::new());
    while revisions.len() < limit {
        let page_size = i32::try_from(limit - revisions.len()).unwrap_or(i32::MAX);
        let request = v1::ListPolicyRevisionsRequest { page_size, page_token };
        let page = client.list_policy_revisions(request).await?.into_inner();
        revisions.extend(page.revisions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match global.output {
        Format::Json => {
            let revisions: Vec<_> = revisions.iter().map(as_json).collect();
            output::json_line(&json!({ "revisions": revisions }))?;
        }
        Format::Table => {
            let head = ["TIME", "STATE", "BY", "REVISION", "FAULTS"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(revisions.iter().map(row));
            output::table(&rows)?;
        }
    }
    Ok(Exit::Done)
}

fn row(one: &v1::PolicyRevision) -> Vec<String> {
    // What is wrong with files that were refused is more than a cell holds; the rest is in the JSON.
    let faults = match (one.fault_count, one.faults.first()) {
        (0, _) | (_, None) => "-".to_owned(),
        (1, Some(first)) => printable(first),
        (count, Some(first)) => format!("{} (and {} more)", printable(first), count - 1),
    };
    vec![
        one.time.map(output::time).unwrap_or_default(),
        state(one).to_owned(),
        if one.caller.is_empty() { cause(one).to_lowercase() } else { one.caller.clone() },
        one.revision.clone(),
        faults,
    ]
}

fn state(one: &v1::PolicyRevision) -> &'static str {
    one.state().as_str_name().trim_start_matches("POLICY_REVISION_STATE_")
}

fn cause(one: &v1::PolicyRevision) -> &'static str {
    one.cause().as_str_name().trim_start_matches("POLICY_REVISION_CAUSE_")
}

fn as_json(one: &v1::PolicyRevision) -> Value {
    json!({
        "revision": one.revision,
        "state": state(one),
        "cause": cause(one),
        "caller": (!one.caller.is_empty()).then_some(&one.caller),
        "time": one.time.map(output::time),
        "faults": one.faults,
        "fault_count": one.fault_count,
        "sequence": one.sequence,
    })
}
