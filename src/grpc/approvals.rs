//! What people are asked about, and what they say: the part of `RunService` that approvers use.

use tonic::Status;

use crate::{
    domain::{
        access::Access,
        ids::{CallKey, Position, RunId},
        journal::ApprovalDecision,
    },
    engine::{ApprovalChoice, Engine, Scope},
    grpc::{
        convert,
        page::{self, List},
    },
    ports::{Approvals, PendingApproval, RunSummary},
    proto::v1,
};

/// Questions of a page, if the caller does not say.
const PAGE: usize = 50;
/// What a page may hold before it ends, in bytes: clients accept answers of 4 MiB.
const PAGE_BYTES: usize = 1700 << 10;
/// Characters of the arguments and of the facts that lists show.
const SHOWN_CHARS: usize = 8000;

/// A page of what people are asked about, as far as the caller sees the runs.
pub(super) async fn list(
    engine: &Engine,
    access: &Access,
    (run, page_size, page_token): (Option<RunId>, i32, &str),
) -> Result<v1::ListPendingApprovalsResponse, Status> {
    let size = page::size(page_size, PAGE)?;
    let list = List::new("ListPendingApprovals", run.map(|run| run.to_string()));
    let after = list.number(page_token)?.map_or(Position(0), Position);
    let wanted = Approvals { run, submitter: access.sees_only().cloned(), expired_by: None };
    let found = engine.pending_approvals(wanted, after, size + 1).await.map_err(convert::status)?;
    let (mut approvals, mut bytes, mut next_page_token) = (Vec::new(), 0, String::new());
    let mut last = after;
    for pending in found {
        if approvals.len() == size || bytes > PAGE_BYTES {
            next_page_token = list.token(&last.0.to_string());
            break;
        }
        last = pending.position;
        let approval = approval(pending);
        bytes += prost::Message::encoded_len(&approval);
        approvals.push(approval);
    }
    // What is large comes in smaller pages: whether there is more is asked.
    if next_page_token.is_empty() && !approvals.is_empty() {
        let wanted = Approvals { run, submitter: access.sees_only().cloned(), expired_by: None };
        let more = engine.pending_approvals(wanted, last, 1).await.map_err(convert::status)?;
        if !more.is_empty() {
            next_page_token = list.token(&last.0.to_string());
        }
    }
    Ok(v1::ListPendingApprovalsResponse { approvals, next_page_token })
}

/// Puts what somebody says of a call before its run.
pub(super) async fn decide(
    engine: &Engine,
    access: Access,
    run: RunId,
    said: Said,
) -> Result<RunSummary, Status> {
    let Said { call, decision, scope, digest, why } = said;
    if digest.is_empty() {
        let message = "is missing; it is what ListPendingApprovals gives with the call".into();
        return Err(convert::invalid("digest", message));
    }
    let by = access.caller.clone();
    let choice = ApprovalChoice { call, by, decision, scope, digest, why };
    engine.decide_approval(&access, run, choice).await.map_err(convert::status)
}

/// What somebody says of a call.
pub(super) struct Said {
    call: CallKey,
    decision: ApprovalDecision,
    scope: Scope,
    digest: String,
    why: String,
}

impl From<v1::ApproveToolCallRequest> for Said {
    fn from(request: v1::ApproveToolCallRequest) -> Self {
        Self {
            call: CallKey { turn: request.turn, index: request.index },
            decision: ApprovalDecision::Approved,
            scope: match request.scope() {
                v1::ApprovalScope::Unspecified | v1::ApprovalScope::Call => Scope::Call,
                v1::ApprovalScope::Run => Scope::Run,
            },
            digest: request.digest,
            why: request.why,
        }
    }
}

impl From<v1::DenyToolCallRequest> for Said {
    fn from(request: v1::DenyToolCallRequest) -> Self {
        Self {
            call: CallKey { turn: request.turn, index: request.index },
            decision: ApprovalDecision::Denied,
            scope: Scope::Call,
            digest: request.digest,
            why: request.why,
        }
    }
}

fn approval(pending: PendingApproval) -> v1::PendingApproval {
    let PendingApproval { run, time, submitter, task, workspace, is_redacted, asked, .. } = pending;
    let shown = |text: &str| text.chars().take(SHOWN_CHARS).collect::<String>();
    let (arguments, facts) = (shown(&asked.arguments), shown(asked.facts.get()));
    v1::PendingApproval {
        run_id: run.to_string(),
        turn: asked.call.turn,
        index: asked.call.index,
        call_id: asked.call_id.to_string(),
        tool: asked.tool.to_string(),
        is_truncated: arguments.len() < asked.arguments.len()
            || facts.len() < asked.facts.get().len(),
        arguments,
        facts,
        effect_class: asked.effect_class.as_str().into(),
        rule: asked.rule.to_string(),
        why: asked.why,
        policy_revision: asked.revision.to_string(),
        digest: asked.digest,
        submitter: submitter.to_string(),
        task,
        workspace,
        create_time: Some(convert::timestamp(time)),
        is_redacted,
        attempt: asked.attempt,
        expire_time: Some(convert::timestamp(asked.expires)),
    }
}
