//! Plain records, each the least that `fold` needs of its kind, and chains of them.

use super::*;

pub(super) const CLASSES: [EffectClass; 4] = [
    EffectClass::Pure,
    EffectClass::Idempotent,
    EffectClass::Reconcilable,
    EffectClass::NonIdempotent,
];

pub(super) fn run_id() -> RunId {
    RunId::new(uuid::Uuid::nil())
}

pub(super) fn spec(budget: Budget) -> RunCreated {
    RunCreated {
        task: "tidy up".into(),
        workspace: "/srv/work".into(),
        agent: "executor".into(),
        model: None,
        budget,
        role_budgets: BTreeMap::new(),
        labels: BTreeMap::new(),
        submitter: Caller::new("uid:1000"),
        request_id: None,
        role: None,
        output: None,
        told: Vec::new(),
        team: None,
        forked: None,
    }
}

pub(super) fn request(turn: u32, attempt: u32) -> Record {
    model_request(turn, attempt).into()
}

pub(super) fn model_request(turn: u32, attempt: u32) -> ModelRequest {
    ModelRequest {
        turn,
        attempt,
        items: 1,
        estimated_tokens: 0,
        purpose: Purpose::Answer,
        hosted_tools: Vec::new(),
        backend: BackendName::default(),
        api: Api::Responses,
    }
}

/// An answer that is whole, says nothing and asks for `calls` calls, each with an id of its own that
/// comes again in the next turn, as with local servers.
pub(super) fn response(turn: u32, attempt: u32, calls: usize) -> ModelResponse {
    let reasoning = AnsweredItem { raw: raw(&json!({ "type": "reasoning" })), call: None };
    let asked = (0..calls).map(|index| asked_item(turn, index));
    ModelResponse {
        turn,
        attempt,
        response_id: None,
        model: None,
        text: None,
        incomplete: None,
        items: std::iter::once(reasoning).chain(asked).collect(),
        tokens: TokenCount::default(),
        duration_ms: 1,
        cost_micros: Some(30),
        backend: BackendName::default(),
        api: Api::Responses,
    }
}

/// The key rides along in the item's `id`, so that a conversation can be checked against it.
pub(super) fn asked_item(turn: u32, index: usize) -> AnsweredItem {
    let call_id = format!("call_{index}");
    let id = format!("{turn}.{index}");
    AnsweredItem {
        raw: raw(&json!({ "type": "function_call", "call_id": call_id, "id": id })),
        call: Some(AskedCall {
            call_id: CallId::new(call_id),
            tool: ToolName::new("some_tool"),
            arguments: "{}".into(),
        }),
    }
}

pub(super) fn raw(value: &Value) -> RawJson {
    to_raw_value(value).unwrap().into()
}

pub(super) fn failed(turn: u32, attempt: u32, retry_at: Option<Timestamp>) -> Record {
    backend_error(turn, attempt, retry_at).into()
}

pub(super) fn backend_error(turn: u32, attempt: u32, retry_at: Option<Timestamp>) -> BackendError {
    BackendError {
        turn,
        attempt,
        reason: "BACKEND_UNAVAILABLE".into(),
        message: "connection refused".into(),
        http_status: None,
        backend_request_id: None,
        sent: Sent::Maybe,
        retry_at,
        backend: BackendName::default(),
    }
}

pub(super) fn awaited(turn: u32, attempt: u32) -> Record {
    let why = "connection refused".into();
    let backend = BackendName::default();
    BackendAwaited { turn, attempt, backend, why, until: Timestamp(9) }.into()
}

pub(super) fn degraded(turn: u32) -> Record {
    let why = "it has no Responses API".into();
    RunDegraded { turn, backend: BackendName::default(), why }.into()
}

pub(super) fn trimmed(turn: u32, before: usize) -> Record {
    ContextTrimmed { turn, before, outputs: 2, tokens_before: 9000, tokens_after: 3000 }.into()
}

pub(super) fn compacting(turn: u32, attempt: u32) -> Record {
    ModelRequest { purpose: Purpose::Compaction, ..model_request(turn, attempt) }.into()
}

pub(super) fn compacted(turn: u32, attempt: u32, upto: usize) -> Record {
    let tokens = TokenCount { input: 20, output: 10, ..TokenCount::default() };
    let compaction = Compaction::Summary { task: "do it".into(), text: "what was done".into() };
    let (backend, cost_micros) = (BackendName::default(), Some(3));
    ContextCompacted { turn, attempt, upto, backend, compaction, tokens, cost_micros }.into()
}

pub(super) fn told(seat: Seat) -> Record {
    let left_out = Some("it is not there".into());
    let files = vec![ToldFile { path: "AGENTS.md".into(), bytes: 7, left_out }];
    RepositoryTold { seat, files, text: "be kind".into() }.into()
}

pub(super) fn probed() -> Record {
    CapabilityProbe {
        backend: BackendName::default(),
        url: "http://127.0.0.1:1234/v1".into(),
        profile: ProfileName::LmStudio,
        colour: Colour::Red,
        why: Some("connection refused".into()),
        capabilities: Capabilities { responses: Some(true), ..Capabilities::default() },
    }
    .into()
}

pub(super) fn began(seat: Seat, round: u32) -> AgentBegan {
    let role = RoleName::new(match seat {
        Seat::Planner => "planner",
        Seat::Executor | Seat::Asked => "executor",
        Seat::Reviewer => "reviewer",
    });
    let text = format!("{seat:?}, begin").into();
    AgentBegan { seat, agent: None, call: None, role, round, text }
}

/// Who works for others.
pub(super) fn helper() -> Colleague {
    Colleague { name: "helper".into(), role: RoleName::new("helper"), output: None, max_turns: 2 }
}

/// An agent begins that others have called.
pub(super) fn helper_began(seat: Seat, call: Option<CallKey>) -> AgentBegan {
    let agent = Some(helper());
    AgentBegan { agent, call, role: RoleName::new("helper"), ..began(seat, 0) }
}

pub(super) fn errands() -> [Errand; 3] {
    [Errand::Ask(helper()), Errand::HandOff(helper()), Errand::RevisePlan]
}

pub(super) fn revised(call: CallKey, from_step: usize) -> Record {
    let steps = plan().steps;
    PlanRevised { call, from_step, steps, why: "there is more to do".into() }.into()
}

pub(super) fn restored() -> Record {
    let tree = Some(TreeId::new("4b825dc642cb6eb9a060e54bf8d69288fbee4904"));
    WorkspaceRestored { tree, why: None }.into()
}

pub(super) fn snapshot(moment: Moment) -> Record {
    let taken = Taken::Tree(TreeId::new("4b825dc642cb6eb9a060e54bf8d69288fbee4904"));
    WorkspaceSnapshot { moment, taken }.into()
}

pub(super) fn concluded(turn: u32, round: u32, conclusion: Conclusion) -> Record {
    match conclusion {
        Conclusion::Plan(plan) => PlanMade { turn, plan }.into(),
        Conclusion::Verdict(verdict) => Reviewed { turn, round, verdict }.into(),
        Conclusion::Step { step, result } => StepFinished { turn, step, result }.into(),
        Conclusion::Unreadable { why } => OutputRefused { turn, why, text: "again".into() }.into(),
    }
}

pub(super) fn violation(consequence: Consequence) -> Violation {
    Violation {
        guardrail: Guardrail::Secret,
        consequence,
        path: "a.txt".into(),
        rule: Some("x".into()),
        what: "a secret".into(),
    }
}

/// Now and then something is found.
pub(super) fn checked(n: usize) -> Record {
    let violations = match n % 4 {
        0 => vec![violation(Consequence::Report)],
        1 => vec![violation(Consequence::Veto)],
        _ => Vec::new(),
    };
    let unchecked = (n % 4 == 2).then(|| "no git".to_owned());
    GuardrailsChecked { round: 1, violations, unchecked }.into()
}

pub(super) fn plan() -> Plan {
    let step = Step { intent: "tidy".into(), tools: vec!["shell_exec".into()], check: "ls".into() };
    Plan { steps: vec![step] }
}

pub(super) fn verdicts() -> [plan::Verdict; 3] {
    [
        plan::Verdict::Accept { reason: "it fits".into() },
        plan::Verdict::Revise { findings: vec!["no test".into()] },
        plan::Verdict::Veto { reason: "a secret".into(), rule: Some("builtin/x".into()) },
    ]
}

pub(super) fn nudged(turn: u32) -> Record {
    ModelNudged { turn, text: "you said nothing".into() }.into()
}

pub(super) fn key(turn: u32, index: u32) -> CallKey {
    CallKey { turn, index }
}

pub(super) fn call_id(call: CallKey) -> CallId {
    CallId::new(format!("call_{}", call.index))
}

pub(super) fn called(call: CallKey, effect_class: EffectClass) -> Record {
    intent(call, effect_class).into()
}

pub(super) fn intent(call: CallKey, effect_class: EffectClass) -> ToolCalled {
    ToolCalled {
        call,
        call_id: call_id(call),
        tool: ToolName::new("some_tool"),
        arguments: "{}".into(),
        effect_class,
        on_unknown: OnUnknown::Ask,
        errand: None,
        facts: None,
    }
}

pub(super) fn resumed(call: CallKey, attempt: u32) -> Record {
    ToolResumed { call, call_id: call_id(call), attempt }.into()
}

pub(super) fn resolved(call: CallKey, resolution: Resolution) -> Record {
    let (call_id, why) = (call_id(call), "I looked".to_owned());
    CallResolved { call, call_id, by: Caller::new("uid:0"), resolution, why }.into()
}

pub(super) fn decided(call: CallKey) -> Record {
    Decided {
        call,
        call_id: call_id(call),
        decision: Verdict::Allow,
        rule: RuleId::new("some.rule"),
        why: "it is allowed".into(),
        facts: None,
    }
    .into()
}

pub(super) fn connection(call: CallKey) -> Record {
    Connection {
        call,
        call_id: call_id(call),
        host: Host::parse("api.example.com").unwrap(),
        port: 443,
        method: "CONNECT".into(),
        decision: Verdict::Allow,
        rule: RuleId::new("some.rule"),
        why: "it is allowed".into(),
        addresses: vec!["93.184.215.14".into()],
    }
    .into()
}

/// The output's text is the call's key.
pub(super) fn output(call: CallKey) -> Record {
    ToolOutput {
        call,
        call_id: call_id(call),
        outcome: OutcomeKind::Done,
        output: call.to_string().into(),
        duration_ms: 1,
        used: Some(Used {
            cpu_ms: 3,
            peak_memory_kib: 512,
            isolation: Isolation::Full,
            network: Some(NetworkUsed {
                opened: 1,
                refused: 0,
                sent: 5,
                received: 7,
                dialled: vec!["93.184.215.14 for api.example.com:443".into()],
            }),
        }),
    }
    .into()
}

pub(super) fn cancelled() -> Record {
    CancelRequested { by: Caller::new("uid:1000"), why: "changed my mind".into() }.into()
}

pub(super) fn recovered() -> Record {
    RunRecovered { epoch: Epoch(2) }.into()
}

pub(super) fn suspended(why: Suspension) -> Record {
    RunSuspended { why }.into()
}

pub(super) fn finished(ending: Ending) -> Record {
    RunFinished { ending }.into()
}

pub(super) fn failure() -> Failure {
    Failure { reason: "SANDBOX_FAILED".into(), message: "it fell over".into() }
}

/// A run's chain: its creation, then `records`.
pub(super) fn chain(budget: Budget, records: impl IntoIterator<Item = Record>) -> Vec<Entry> {
    chain_of(spec(budget), records)
}

pub(super) fn chain_of(spec: RunCreated, records: impl IntoIterator<Item = Record>) -> Vec<Entry> {
    let created = Record::from(spec);
    (1..).zip(std::iter::once(created).chain(records)).map(entry).collect()
}

pub(super) fn entry((sequence, record): (u64, Record)) -> Entry {
    Entry { sequence: Sequence(sequence), time: Timestamp(sequence as i64 * 1_000), record }
}

pub(super) fn next_entry(state: &RunState, record: Record) -> Entry {
    entry((state.head.next().0, record))
}

pub(super) fn folded(entries: &[Entry]) -> RunState {
    RunState::from_entries(run_id(), entries.iter().cloned()).unwrap()
}

/// The state of a run with the default budget after `records`.
pub(super) fn after(records: impl IntoIterator<Item = Record>) -> RunState {
    folded(&chain(Budget::default(), records))
}

/// The state after each entry, with the entries up to it.
pub(super) fn each_moment(entries: &[Entry]) -> impl Iterator<Item = (&[Entry], RunState)> {
    let first = folded(&entries[..1]);
    let later = (2..=entries.len()).scan(first.clone(), |state, length| {
        fold_into(state, &entries[length - 1]);
        Some((&entries[..length], state.clone()))
    });
    std::iter::once((&entries[..1], first)).chain(later)
}

pub(super) fn input(text: &str, request_id: Option<&str>) -> Record {
    let (by, request_id) = (Caller::new("uid:1000"), request_id.map(str::to_owned));
    InputReceived { by, text: text.into(), request_id }.into()
}

pub(super) fn paused() -> Record {
    PauseRequested { by: Caller::new("uid:1000"), why: "lunch".into() }.into()
}

pub(super) fn by_somebody() -> RunResumed {
    let (by, lost_request) = (Caller::new("uid:1000"), LostRequest::Leave);
    let role_budgets = BTreeMap::new();
    RunResumed { by, why: String::new(), budget: None, role_budgets, lost_request }
}

pub(super) fn run_resumed(resumed: RunResumed) -> Record {
    resumed.into()
}

/// A request for which the backend may run tools that do something.
pub(super) fn unsafe_request(turn: u32, attempt: u32) -> Record {
    let hosted = HostedDecided {
        index: 0,
        tool: "mcp mail at connector mail".into(),
        decision: Verdict::Allow,
        rule: RuleId::new("mail"),
        why: String::new(),
        effect_class: EffectClass::NonIdempotent,
    };
    ModelRequest { hosted_tools: vec![hosted], ..model_request(turn, attempt) }.into()
}

pub(super) fn approval_requested(call: CallKey, effect_class: EffectClass) -> Record {
    ApprovalRequested {
        call,
        call_id: call_id(call),
        tool: ToolName::new("some_tool"),
        arguments: "{}".into(),
        facts: raw(&json!({ "path": "notes.txt" })),
        effect_class,
        attempt: 1,
        rule: RuleId::new("ask"),
        why: "a person is to look at it".into(),
        revision: PolicyRevision::new("sha256:00"),
        digest: "00".repeat(32),
        expires: Timestamp(5),
    }
    .into()
}

pub(super) fn approval_decided(call: CallKey, decision: ApprovalDecision) -> Record {
    decided_by_somebody(call, decision).into()
}

pub(super) fn decided_by_somebody(call: CallKey, decision: ApprovalDecision) -> ApprovalDecided {
    ApprovalDecided {
        call,
        call_id: call_id(call),
        by: Caller::new("caller:ann"),
        decision,
        digest: "00".repeat(32),
        why: "it is fine".into(),
        grant: None,
    }
}
