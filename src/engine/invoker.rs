//! One tool call, top to bottom: arguments, effect, facts, decision; then, once that is on disk, the
//! effect itself and its outcome. Each step takes what the last one gave.

mod errand;

use std::{path::PathBuf, sync::Arc};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        approval::{self, Leave},
        effect::{Effect, EffectResult, Facts, NetworkUse, Unresolved},
        ids::{PolicyRevision, RoleName, RuleId, RunId, ToolName},
        item::{RawJson, names},
        journal::{
            ApprovalDecided, ApprovalDecision, ApprovalRequested, Decided, NetworkUsed, Record,
            ToolCalled, ToolOutput, ToolResumed, Used, Verdict,
        },
        policy::{Decision, Permit, Policy, Ruling},
        run::{Invocation, InvocationMode},
        tool::{EffectClass, OnUnknown, OutcomeKind, ToolCall, ToolOutcome},
    },
    engine::{
        World,
        ceiling::{Ceiling, enter},
        colleagues::Errands,
        door::{CallDoor, Note},
        live::{Live, Output},
        run_log::{Noted, Recorded},
    },
    fail_point,
    ports::{Attempt, Company, OutputStream, ResolveError, Resolved, SandboxError, Scene},
    tools::Entry,
};

/// Reason of a call that nobody can tell the outcome of.
const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
/// Reason of a call that ended because the sandbox itself failed.
const SANDBOX_FAILED: &str = "SANDBOX_FAILED";
const NOTHING_TOUCHED: &str = "the sandbox failed, and nothing was touched";

/// A call that has been decided about, and nothing more.
pub(super) struct Prepared {
    /// What must be on disk before anything else happens.
    pub(super) intent: Vec<Noted>,
    pub(super) pending: Pending,
    /// What the call stands for, where its intent does not say it any more.
    facts: Option<RawJson>,
}

impl Prepared {
    /// Whether a person is asked about it as of something of that class.
    fn is_of_class(&self, class: EffectClass) -> bool {
        self.intent.iter().any(|noted| match &noted.record {
            Record::ApprovalRequested(asked) => asked.effect_class == class,
            _ => false,
        })
    }

    /// There is one intent a call, and that one is on disk already.
    fn resume(&mut self, attempt: u32) {
        let call = &self.pending.call;
        let resumed = ToolResumed { call: call.key, call_id: call.call_id.clone(), attempt };
        self.facts = self.facts.take().or_else(|| self.called_facts());
        self.intent[0] = resumed.into();
        for noted in &mut self.intent {
            if let Record::ApprovalRequested(asked) = &mut noted.record {
                asked.attempt = attempt;
            }
        }
    }

    /// A person was asked about it before: its intent is on disk, and the decision says what it stands for by now.
    fn allowed(mut self) -> Self {
        let facts = self.facts.take().or_else(|| self.called_facts());
        self.intent.remove(0);
        if let Some(Noted { record: Record::Decided(decided), .. }) = self.intent.first_mut()
            && decided.decision == Verdict::Allow
        {
            decided.facts = facts;
        }
        self
    }

    fn called_facts(&self) -> Option<RawJson> {
        match self.intent.first() {
            Some(Noted { record: Record::ToolCalled(called), .. }) => called.facts.clone(),
            Some(_) | None => None,
        }
    }
}

/// What is to be done about a call once its intent is on disk.
pub(super) struct Pending {
    call: ToolCall,
    next: Next,
    /// What it was decided under.
    policy: Arc<Policy>,
}

impl Pending {
    /// Whether carrying it out may change something in the world.
    pub(super) fn may_change_something(&self) -> bool {
        match &self.next {
            Next::Run { permit, .. } => permit.ruling().class != EffectClass::Pure,
            Next::Answer(_) | Next::Ask(_) | Next::Delegate | Next::Broken(_) => false,
        }
    }

    /// Whether a person is asked first, or another agent sees to it: then there is nothing to perform.
    pub(super) fn waits(&self) -> bool {
        matches!(self.next, Next::Ask(_) | Next::Delegate)
    }
}

enum Next {
    Run {
        tool: Arc<Entry>,
        permit: Box<Permit<Resolved>>,
        attempt: Attempt,
    },
    Answer(ToolOutcome),
    /// Nothing before a person has allowed it.
    Ask(Box<Facts>),
    /// Nothing: another agent sees to it.
    Delegate,
    /// The sandbox itself failed before anything was touched.
    Broken(SandboxError),
}

/// Who says that a call may be run twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twice {
    AsPolicySays,
    AsSomebodySaid,
}

/// A call that has come to its end.
pub(super) struct Finished {
    pub(super) output: ToolOutput,
    /// The sandbox itself failed; the operator hears of it, and the run ends.
    pub(super) failure: Option<SandboxError>,
}

/// Where a call is made, and by whom.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) run: RunId,
    /// Absolute, resolved.
    pub(super) workspace: PathBuf,
    /// Of the agent that asked for it.
    pub(super) role: RoleName,
    /// What that agent was given of the tools that its role has; none: all of them.
    pub(super) tools: Option<Vec<ToolName>>,
    /// What it may want of others, in this turn.
    pub(super) errands: Arc<Errands>,
}

/// Decides about one call. Touches nothing.
pub(super) async fn prepare(
    world: &World,
    Site { run, workspace, role, tools, errands }: Site,
    invocation: Invocation,
) -> Prepared {
    let Invocation { call, mode, earlier, leave, denied } = invocation;
    let policy = world.policies.current();
    if let Some(decided) = mode.begins().then(|| errands.decide(&call)).flatten() {
        return errand::prepared(call, decided, (policy, mode));
    }
    match mode {
        InvocationMode::First if tools.as_ref().is_some_and(|own| !own.contains(&call.tool)) => {
            let rule = RuleId::new("builtin/agent-tools");
            let own = names(tools.iter().flatten());
            let message = format!("this agent was not given {}; it has: {own}", call.tool);
            let outcome = ToolOutcome::refused(&rule, &message);
            refusal(call, built_in(rule, message), Next::Answer(outcome), (policy, None))
        }
        InvocationMode::First => {
            let scene = scene(&policy, run, workspace, &call, None);
            first(world, policy, (scene, &role), (call, &leave)).await
        }
        InvocationMode::Again { attempt } => {
            let scene = scene(&policy, run, workspace, &call, earlier);
            again(world, policy, (scene, &role), (call, &leave), (attempt, Twice::AsPolicySays))
                .await
        }
        InvocationMode::Retry { attempt } => {
            let scene = scene(&policy, run, workspace, &call, earlier);
            again(world, policy, (scene, &role), (call, &leave), (attempt, Twice::AsSomebodySaid))
                .await
        }
        InvocationMode::Approved { attempt: 1 } => {
            let scene = scene(&policy, run, workspace, &call, None);
            first(world, policy, (scene, &role), (call, &leave)).await.allowed()
        }
        InvocationMode::Approved { attempt } => {
            let scene = scene(&policy, run, workspace, &call, earlier);
            let twice = (attempt, Twice::AsSomebodySaid);
            again(world, policy, (scene, &role), (call, &leave), twice).await.allowed()
        }
        InvocationMode::CloseUnstarted => {
            let ruling = built_in(RuleId::new("builtin/cancelled"), "the run was cancelled".into());
            let outcome =
                ToolOutcome::cancelled("the run was cancelled before the call was started");
            refusal(call, ruling, Next::Answer(outcome), (policy, None))
        }
        InvocationMode::CloseStarted => {
            let outcome = ToolOutcome::cancelled(
                "the run was cancelled after the daemon died; whether the call took effect is not known",
            );
            closed(call, outcome, policy)
        }
        InvocationMode::CloseAsked => {
            let message =
                "the run was cancelled before anybody had allowed the call; nothing was started";
            closed(call, ToolOutcome::cancelled(message), policy)
        }
        InvocationMode::CloseDelegated => {
            let message = "the run was cancelled before the agent had answered";
            closed(call, ToolOutcome::cancelled(message), policy)
        }
        InvocationMode::CloseDenied => {
            let (rule, message) = denial(denied.as_deref());
            closed(call, ToolOutcome::refused(&rule, &message), policy)
        }
        InvocationMode::CloseUnknown => {
            let outcome = ToolOutcome::failed(
                OUTCOME_UNKNOWN,
                "the daemon died while the call ran; whether it took effect is not known, and it was not run \
                 again: look before you do it again",
            );
            closed(call, outcome, policy)
        }
    }
}

/// A call whose intent is on disk, and for which nothing more is done.
fn closed(call: ToolCall, outcome: ToolOutcome, policy: Arc<Policy>) -> Prepared {
    let next = Next::Answer(outcome);
    Prepared { intent: Vec::new(), pending: Pending { call, next, policy }, facts: None }
}

/// Why a person did not allow a call, for the model.
fn denial(said: Option<&ApprovalDecided>) -> (RuleId, String) {
    match said {
        Some(said) if said.decision == ApprovalDecision::Expired => (
            RuleId::new("builtin/approval-expired"),
            "a person was asked to allow this call, and nobody did in time: do without it".into(),
        ),
        Some(said) if !said.why.is_empty() => (
            RuleId::new("builtin/approval-denied"),
            format!("a person was asked to allow this call, and said no: {}", said.why),
        ),
        Some(_) | None => (
            RuleId::new("builtin/approval-denied"),
            "a person was asked to allow this call, and said no: do without it".into(),
        ),
    }
}

async fn first(
    world: &World,
    policy: Arc<Policy>,
    (scene, role): (Scene, &RoleName),
    (call, leave): (ToolCall, &Leave),
) -> Prepared {
    let revision = Some(policy.revision.clone());
    let refusal = |call, ruling, next| {
        refusal(call, ruling, next, (policy.clone(), Some(policy.revision.clone())))
    };
    let (tool, effect) = match understand(world, &call) {
        Ok(understood) => understood,
        Err((ruling, outcome)) => return refusal(call, ruling, Next::Answer(outcome)),
    };
    let resolved = match world.sandbox.resolve(&scene, effect).await {
        Ok(resolved) => resolved,
        Err(ResolveError::Unresolved(unresolved)) => {
            let (ruling, outcome) = unresolved_outcome(unresolved);
            return refusal(call, ruling, Next::Answer(outcome));
        }
        Err(ResolveError::Sandbox(error)) => {
            let rule = RuleId::new("builtin/sandbox-failed");
            let ruling = built_in(rule, "the sandbox failed, and nothing was touched".into());
            return refusal(call, ruling, Next::Broken(error));
        }
    };
    let facts = resolved.facts.clone();
    let (facts, ruling, next) = match policy.decide_with_leave(role, &call, resolved, leave) {
        Decision::Allow(permit) => {
            let ruling = permit.ruling().clone();
            let permit = Box::new(permit);
            (facts, ruling, Next::Run { tool, permit, attempt: Attempt::First })
        }
        Decision::Ask(ruling) => (facts.clone(), ruling, Next::Ask(Box::new(facts))),
        Decision::Deny(ruling) => {
            let outcome = ToolOutcome::refused(&ruling.rule, &ruling.why);
            (facts.without_content(), ruling, Next::Answer(outcome))
        }
    };
    let called = Noted {
        record: ToolCalled {
            facts: ToolCalled::facts_json(&facts),
            on_unknown: policy.on_unknown,
            ..called(&call, ruling.class)
        }
        .into(),
        policy: revision.clone(),
    };
    let asked = match &next {
        Next::Ask(facts) => asked(world, &policy, &call, (facts, &ruling)),
        Next::Run { .. } | Next::Answer(_) | Next::Delegate | Next::Broken(_) => None,
    };
    let decided = Noted { record: decided(&call, ruling).into(), policy: revision.clone() };
    let asked = asked.map(|asked| Noted { record: asked.into(), policy: revision });
    let intent = [called, decided].into_iter().chain(asked).collect();
    Prepared { intent, pending: Pending { call, next, policy }, facts: None }
}

/// What a person is asked; none where there are no facts to ask about.
fn asked(
    world: &World,
    policy: &Policy,
    call: &ToolCall,
    (facts, ruling): (&Facts, &Ruling),
) -> Option<ApprovalRequested> {
    Some(ApprovalRequested {
        call: call.key,
        call_id: call.call_id.clone(),
        tool: call.tool.clone(),
        arguments: call.arguments.clone(),
        facts: ToolCalled::facts_json(facts)?,
        effect_class: ruling.class,
        attempt: 1,
        rule: ruling.rule.clone(),
        why: ruling.why.clone(),
        revision: policy.revision.clone(),
        digest: approval::digest(call, facts, (&ruling.rule, &policy.revision)),
        expires: world.clock.now().plus_millis(policy.approvals.expire_ms),
    })
}

/// Like [`first`], for a call whose intent is on disk and whose outcome is not: it enters at the
/// decision again, since the policy may have changed meanwhile.
async fn again(
    world: &World,
    policy: Arc<Policy>,
    scene: (Scene, &RoleName),
    call: (ToolCall, &Leave),
    (attempt, twice): (u32, Twice),
) -> Prepared {
    let mut prepared = first(world, policy, scene, call).await;
    // Nobody is asked to allow what must not be done twice anyway.
    if twice == Twice::AsPolicySays
        && let Next::Ask(_) = prepared.pending.next
        && prepared.is_of_class(EffectClass::NonIdempotent)
    {
        prepared.intent.truncate(2);
        prepared.pending.next = Next::Answer(ToolOutcome::failed(
            OUTCOME_UNKNOWN,
            "the daemon died while the call ran; whether it took effect is not known, and the \
             policy wants a person to allow a second attempt",
        ));
    }
    prepared.resume(attempt);
    prepared.pending.next = match prepared.pending.next {
        // By now the policy says that nobody may do it twice.
        Next::Run { permit, .. }
            if twice == Twice::AsPolicySays
                && permit.ruling().class == EffectClass::NonIdempotent =>
        {
            Next::Answer(ToolOutcome::failed(
                OUTCOME_UNKNOWN,
                "the daemon died while the call ran; whether it took effect is not known, and the \
                 policy forbids a second attempt",
            ))
        }
        Next::Run { tool, permit, .. } => Next::Run { tool, permit, attempt: Attempt::Again },
        Next::Answer(outcome) if outcome.kind == OutcomeKind::Refused => {
            Next::Answer(ToolOutcome::failed(
                OUTCOME_UNKNOWN,
                "the daemon died while the call ran; whether it took effect is not known, and the \
                 policy refuses a second attempt",
            ))
        }
        next @ (Next::Answer(_) | Next::Ask(_) | Next::Delegate | Next::Broken(_)) => next,
    };
    prepared
}

/// What calls of one run have around them while they are carried out.
pub(super) struct Around {
    pub(super) world: World,
    pub(super) live: Arc<Live>,
    pub(super) run: RunId,
    pub(super) ceiling: Ceiling,
    pub(super) stop: CancellationToken,
    pub(super) notes: mpsc::Sender<Note>,
}

/// Carries out a call whose intent is on disk, to its outcome.
pub(super) async fn perform(around: &Around, recorded: Recorded<Pending>) -> Finished {
    let Pending { call, next, policy } = recorded.into_inner();
    let started = around.world.clock.steady_ms();
    let answered = |outcome, failure| Done { outcome, failure, used: None };
    let done = match next {
        Next::Answer(outcome) => answered(outcome, None),
        // Not performed: see `Pending::waits`.
        Next::Ask(_) | Next::Delegate => {
            answered(ToolOutcome::cancelled("nobody has allowed the call"), None)
        }
        Next::Broken(error) => {
            answered(ToolOutcome::failed(SANDBOX_FAILED, NOTHING_TOUCHED), Some(error))
        }
        Next::Run { tool, permit, attempt } => {
            run(around, &call, policy, (&tool, *permit, attempt)).await
        }
    };
    let output = ToolOutput {
        call: call.key,
        call_id: call.call_id,
        outcome: done.outcome.kind,
        output: done.outcome.output,
        duration_ms: around.world.clock.steady_ms().saturating_sub(started),
        used: done.used,
    };
    Finished { output, failure: done.failure }
}

/// What became of a call.
struct Done {
    outcome: ToolOutcome,
    failure: Option<SandboxError>,
    used: Option<Used>,
}

async fn run(
    around: &Around,
    call: &ToolCall,
    policy: Arc<Policy>,
    (tool, permit, attempt): (&Entry, Permit<Resolved>, Attempt),
) -> Done {
    let Around { world, live, run, ceiling, stop, notes } = around;
    let (permit, mut room) = match enter(ceiling, permit, &policy, stop).await {
        Ok(entered) => entered,
        Err(outcome) => return Done { outcome, failure: None, used: None },
    };
    let name = (call.key, call.call_id.clone());
    let output = Output::new(live.clone(), world.redactor.clone(), *run, name.clone());
    let heard = |stream: OutputStream, bytes: &[u8]| output.hear(stream, bytes);
    let (call, call_id) = name;
    let notes = notes.clone();
    let door = CallDoor { world: world.clone(), pinned: policy, call, call_id, notes };
    let company = Company { stop, heard: &heard, door: Some(&door) };
    fail_point::reach("effect.before");
    let result = world.sandbox.run(permit, attempt, company).await;
    fail_point::reach("effect.after");
    output.finish();
    match result {
        Ok(result) => {
            let used = used_by(&result);
            if let (Some(room), Some(used)) = (&mut room, &used) {
                room.used(used.cpu_ms);
            }
            Done { outcome: tool.outcome(result), failure: None, used }
        }
        Err(error) => {
            let message = match error.has_touched_nothing() {
                true => NOTHING_TOUCHED,
                false => "the sandbox failed; whether the call took effect is not known",
            };
            let outcome = ToolOutcome::failed(SANDBOX_FAILED, message);
            Done { outcome, failure: Some(error), used: None }
        }
    }
}

fn used_by(result: &EffectResult) -> Option<Used> {
    match result {
        EffectResult::Ran(ran) => Some(Used {
            cpu_ms: ran.cpu_ms,
            peak_memory_kib: ran.peak_memory_kib,
            isolation: ran.isolation,
            network: network_used(&ran.network),
        }),
        _ => None,
    }
}

/// None where nothing was asked for.
fn network_used(used: &NetworkUse) -> Option<NetworkUsed> {
    let NetworkUse { opened, refused, sent, received, .. } = *used;
    let dialled = used.dialled.clone();
    (opened + refused > 0).then_some(NetworkUsed { opened, refused, sent, received, dialled })
}

fn understand(
    world: &World,
    call: &ToolCall,
) -> Result<(Arc<Entry>, Effect), (Ruling, ToolOutcome)> {
    let refuse = |rule: RuleId, message: String| {
        let outcome = ToolOutcome::refused(&rule, &message);
        (built_in(rule, message), outcome)
    };
    let tool = world.tools.find(&call.tool).ok_or_else(|| {
        let known = names(world.tools.specs().iter().map(|spec| &spec.name));
        let message = format!("there is no tool {}; there are {known}", call.tool);
        refuse(RuleId::new("builtin/unknown-tool"), message)
    })?;
    let effect = tool.effect(&call.arguments).map_err(|bad| refuse(bad.rule, bad.message))?;
    Ok((tool.clone(), effect))
}

fn unresolved_outcome(unresolved: Unresolved) -> (Ruling, ToolOutcome) {
    match unresolved {
        Unresolved::Refused { rule, message } => {
            let outcome = ToolOutcome::refused(&rule, &message);
            (built_in(rule, message), outcome)
        }
        Unresolved::Missing { reason, message } => {
            let outcome = ToolOutcome::failed(reason, &message);
            (built_in(RuleId::new("builtin/missing"), message), outcome)
        }
    }
}

/// A call that comes to its end without touching anything.
fn refusal(
    call: ToolCall,
    ruling: Ruling,
    next: Next,
    (policy, revision): (Arc<Policy>, Option<PolicyRevision>),
) -> Prepared {
    let called = Noted { record: called(&call, ruling.class).into(), policy: revision.clone() };
    let decided = Noted { record: decided(&call, ruling).into(), policy: revision };
    Prepared { intent: vec![called, decided], pending: Pending { call, next, policy }, facts: None }
}

fn called(call: &ToolCall, effect_class: EffectClass) -> ToolCalled {
    ToolCalled {
        call: call.key,
        call_id: call.call_id.clone(),
        tool: call.tool.clone(),
        arguments: call.arguments.clone(),
        effect_class,
        on_unknown: OnUnknown::Ask,
        errand: None,
        facts: None,
    }
}

fn decided(call: &ToolCall, ruling: Ruling) -> Decided {
    Decided {
        call: call.key,
        call_id: call.call_id.clone(),
        decision: ruling.verdict,
        rule: ruling.rule,
        why: ruling.why,
        facts: None,
    }
}

fn built_in(rule: RuleId, why: String) -> Ruling {
    Ruling { verdict: Verdict::Deny, rule, why, class: EffectClass::Pure }
}

fn scene(
    policy: &Policy,
    run: RunId,
    workspace: PathBuf,
    call: &ToolCall,
    earlier: Option<RawJson>,
) -> Scene {
    Scene {
        earlier: earlier.and_then(|facts| serde_json::from_str(facts.get()).ok()),
        workspace,
        program_directories: policy.program_directories.clone(),
        label: format!("{run}-{}-{}", call.key.turn, call.key.index),
    }
}
