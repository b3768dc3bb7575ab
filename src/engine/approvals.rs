//! What people say of calls that policy lets nobody but a person allow, and what of it is written down; and that what
//! nobody says anything about expires. Decides nothing of what follows: see `domain::run`.

use std::time::Duration;

use futures_util::future::join_all;

use crate::{
    domain::{
        access::Access,
        approval::RunGrant,
        ids::{CallKey, Caller, Position, RunId, Timestamp},
        journal::{ApprovalDecided, ApprovalDecision, ApprovalRequested, Record},
        policy::BySubmitter,
        run::{Phase, RunState},
    },
    engine::{
        Engine, EngineError,
        inbox::{Heard, NotNow, WHY_BYTES, Wanted, check_length},
        run_log::Noted,
    },
    ports::{Approvals, PendingApproval, RunSummary},
};

/// How often it is looked for approvals that have expired.
const LOOK: Duration = Duration::from_secs(1);
/// How long a run's driver may be busy with something else before others are looked at.
const PATIENCE: Duration = Duration::from_secs(5);
/// Approvals that are looked at together.
const PAGE: usize = 8;

/// What somebody says of one call.
#[derive(Debug, Clone)]
pub struct ApprovalChoice {
    pub call: CallKey,
    pub by: Caller,
    pub decision: ApprovalDecision,
    pub scope: Scope,
    /// Of the call as it was shown to them.
    pub digest: String,
    pub why: String,
}

/// How far an approval goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// This call.
    Call,
    /// Whatever the same rule asks about of the same tool, for the rest of the run, while the policy stays as it is.
    Run,
}

/// What is written of it. Errors: nobody is asked about that call, or about another form of it.
pub(super) fn records(
    state: &RunState,
    choice: ApprovalChoice,
    now: Timestamp,
) -> Result<Vec<Noted>, NotNow> {
    let ApprovalChoice { call, by, decision, scope, digest, why } = choice;
    let asked = asked(state, call).ok_or(NotNow::NotWaiting)?;
    match decision {
        ApprovalDecision::Expired if now < asked.expires => return Ok(Vec::new()),
        ApprovalDecision::Expired => {}
        ApprovalDecision::Approved | ApprovalDecision::Denied if asked.digest != digest => {
            return Err(NotNow::AskedOtherwise);
        }
        ApprovalDecision::Approved if now >= asked.expires => return Err(NotNow::Expired),
        ApprovalDecision::Approved | ApprovalDecision::Denied => {}
    }
    let grant = (scope == Scope::Run).then(|| RunGrant {
        rule: asked.rule.clone(),
        tool: asked.tool.clone(),
        revision: asked.revision.clone(),
        by: by.clone(),
    });
    let (call_id, digest) = (asked.call_id.clone(), asked.digest.clone());
    Ok(vec![ApprovalDecided { call, call_id, by, decision, digest, why, grant }.into()])
}

fn asked(state: &RunState, call: CallKey) -> Option<&ApprovalRequested> {
    match state.phase {
        Phase::Ended(_) => None,
        Phase::Going(_) | Phase::Suspended { .. } => {
            state.open_call(call)?.waits_for().map(|asked| &**asked)
        }
    }
}

impl Engine {
    /// What people are asked, over all runs or of one, oldest first, at most `limit`, after a place in the journal.
    pub async fn pending_approvals(
        &self,
        wanted: Approvals,
        after: Position,
        limit: usize,
    ) -> Result<Vec<PendingApproval>, EngineError> {
        Ok(self.inner.world.journal.pending_approvals(wanted, after, limit).await?)
    }

    /// Allows a call, or does not. Once this returns, that is on disk, and the run goes on as soon as it has its
    /// workspace. The same again gives the run as it is: the first decision holds.
    pub async fn decide_approval(
        &self,
        access: &Access,
        run: RunId,
        choice: ApprovalChoice,
    ) -> Result<RunSummary, EngineError> {
        check_length("why", &choice.why, WHY_BYTES)?;
        let summary = self.run(run).await?;
        let rule = self.inner.world.policies.current().approvals.by_submitter;
        let allows = choice.decision == ApprovalDecision::Approved;
        if allows && rule == BySubmitter::Refuse && summary.submitter == access.caller {
            return Err(EngineError::OwnRun { run });
        }
        let engine = self.clone();
        self.finish(async move {
            let (call, decision) = (choice.call, choice.decision);
            let heard = match summary.status.state.is_ended() {
                true => Heard::NotNow(NotNow::NotWaiting),
                false => engine.ask_of(run, Wanted::Decide(choice)).await?,
            };
            match heard {
                Heard::Done => {}
                Heard::NotNow(NotNow::AskedOtherwise) => {
                    return Err(EngineError::AskedOtherwise { run, call });
                }
                Heard::NotNow(NotNow::Expired) => {
                    return Err(EngineError::AskedTooLong { run, call });
                }
                Heard::NotNow(_) => engine.was_decided(run, call, decision).await?,
            }
            engine.run(run).await
        })
        .await
    }

    /// Errors: it was not, or otherwise.
    async fn was_decided(
        &self,
        run: RunId,
        call: CallKey,
        wanted: ApprovalDecision,
    ) -> Result<(), EngineError> {
        let decision = |record| match record {
            Record::ApprovalDecided(said) if said.call == call => Some(said.decision),
            _ => None,
        };
        match self.last_said(run, "approval_decided", decision).await? {
            Some(found) if found == wanted => Ok(()),
            Some(found) => Err(EngineError::AlreadyDecided { run, call, found }),
            None => Err(EngineError::NotWaiting { run, call }),
        }
    }

    /// Refuses, until the daemon stops, calls that nobody has said anything about in time.
    pub async fn let_approvals_expire(self) {
        let stopping = self.stopping();
        let clock = self.inner.world.clock.clone();
        loop {
            tokio::select! {
                () = self.expire_due() => {}
                () = stopping.cancelled() => return,
            }
            tokio::select! {
                () = clock.sleep(LOOK) => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// All that are due: one that cannot be refused now is left to the next look.
    async fn expire_due(&self) {
        let now = self.inner.world.clock.now();
        let mut after = Position(0);
        loop {
            let due = Approvals { expired_by: Some(now), ..Approvals::default() };
            let page = match self.pending_approvals(due, after, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, "approvals that are due cannot be looked up");
                    return;
                }
            };
            let Some(last) = page.last() else { return };
            after = last.position;
            join_all(page.into_iter().map(|pending| self.expire(pending))).await;
        }
    }

    async fn expire(&self, pending: PendingApproval) {
        let PendingApproval { run, asked, .. } = pending;
        let call = asked.call;
        let choice = ApprovalChoice {
            call,
            by: Caller::new("agentd"),
            decision: ApprovalDecision::Expired,
            scope: Scope::Call,
            digest: asked.digest,
            why: String::new(),
        };
        tracing::info!(%run, %call, "nobody has allowed the call in time");
        let patience = self.inner.world.clock.sleep(PATIENCE);
        tokio::select! {
            heard = self.ask_of(run, Wanted::Decide(choice)) => if let Err(error) = heard {
                tracing::warn!(%run, %call, %error, "the call cannot be refused now");
            },
            () = patience => {}
        }
    }
}
