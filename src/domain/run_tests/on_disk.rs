//! Records as they stand on disk.

use super::*;

pub(super) fn written_and_read(record: &Record) -> Record {
    let json = record.encode().unwrap();
    Record::decode(record.kind(), record.version(), &json).unwrap()
}

/// Each kind at least once, in the order of [`Record::KINDS`], with everything set that can be.
fn examples() -> Vec<Record> {
    let call = key(1, 0);
    let first = vec![
        spec(Budget::default()).into(),
        RunCreated {
            model: Some("qwen3".into()),
            labels: BTreeMap::from([("team".into(), "infra".into())]),
            request_id: Some("r-1".into()),
            role: Some(RoleName::new("writer")),
            told: vec!["AGENTS.md".into()],
            output: Some("{}".into()),
            team: Some(Team { max_review_rounds: 3, on_veto: OnVeto::Restore }),
            role_budgets: BTreeMap::from([(RoleName::new("planner"), Budget::default())]),
            ..spec(Budget::default())
        }
        .into(),
        request(1, 1),
        ModelRequest {
            hosted_tools: vec![HostedDecided {
                index: 0,
                tool: "mcp docs at https://mcp.example.com".into(),
                decision: Verdict::Allow,
                rule: RuleId::new("docs"),
                why: "it is allowed".into(),
                effect_class: EffectClass::NonIdempotent,
            }],
            estimated_tokens: 7,
            purpose: Purpose::Compaction,
            backend: BackendName::new("local"),
            api: Api::Chat,
            ..model_request(1, 1)
        }
        .into(),
    ];
    let on = vec![
        resolved(call, Resolution::DidNotRun),
        resolved(call, Resolution::DidRun),
        resolved(call, Resolution::Retry),
        resumed(call, 2),
        decided(call),
        connection(call),
        output(call),
        snapshot(Moment::Before),
        snapshot(Moment::Copy),
        WorkspaceSnapshot { moment: Moment::After, taken: Taken::Failed("disk full".into()) }
            .into(),
        restored(),
        WorkspaceRestored { tree: None, why: Some("disk full".into()) }.into(),
        BudgetWarning { limit: "turns".into(), used: 8, of: 10 }.into(),
        CheckpointSaved { items: 9, new_items: 4 }.into(),
        input("look again", None),
        input("look again", Some("i-1")),
        paused(),
        cancelled(),
        recovered(),
    ];
    let endings = vec![
        finished(Ending::Succeeded { answer: "all done".into() }),
        finished(Ending::Failed(failure())),
        finished(Ending::Cancelled),
    ];
    [
        first,
        of_answers(),
        of_agents(),
        of_calls(call),
        of_approvals(call),
        on,
        of_standing_still(call),
        endings,
        records_of_the_daemon(),
    ]
    .concat()
}

fn of_calls(call: CallKey) -> Vec<Record> {
    let facts = Some(raw(&json!({ "path": "notes.txt" })));
    vec![
        called(call, EffectClass::Pure),
        ToolCalled { facts, ..intent(call, EffectClass::NonIdempotent) }.into(),
        ToolCalled {
            errand: Some(Box::new(Errand::Ask(Colleague {
                output: Some("{}".into()),
                ..helper()
            }))),
            ..intent(call, EffectClass::Pure)
        }
        .into(),
        ToolCalled { on_unknown: OnUnknown::TellModel, ..intent(call, EffectClass::NonIdempotent) }
            .into(),
    ]
}

fn of_answers() -> Vec<Record> {
    vec![
        ModelResponse {
            response_id: Some("resp_1".into()),
            model: Some("qwen3".into()),
            text: Some("all done".into()),
            incomplete: Some("content_filter".into()),
            tokens: TokenCount { input: 9, cached_input: 4, output: 3, reasoning: 2 },
            backend: BackendName::new("local"),
            api: Api::Chat,
            ..response(1, 1, 2)
        }
        .into(),
        failed(1, 1, None),
        BackendError {
            http_status: Some(503),
            backend_request_id: Some("req_1".into()),
            sent: Sent::Maybe,
            backend: BackendName::new("local"),
            ..backend_error(1, 1, Some(Timestamp(5)))
        }
        .into(),
        awaited(1, 2),
        degraded(1),
        trimmed(1, 4),
        compacted(1, 2, 4),
        ContextCompacted {
            turn: 1,
            attempt: 2,
            upto: 4,
            backend: BackendName::new("local"),
            compaction: Compaction::Backend { items: r#"[{"type":"compaction"}]"#.into() },
            tokens: TokenCount::default(),
            cost_micros: None,
        }
        .into(),
        nudged(1),
    ]
}

fn of_agents() -> Vec<Record> {
    vec![
        began(Seat::Planner, 0).into(),
        helper_began(Seat::Asked, Some(key(1, 0))).into(),
        told(Seat::Planner),
        concluded(1, 0, Conclusion::Plan(plan())),
        revised(key(1, 0), 2),
        concluded(1, 0, Conclusion::Step { step: 1, result: "done".into() }),
        concluded(1, 0, Conclusion::Unreadable { why: "no JSON".into() }),
        GuardrailViolation { round: 1, violation: violation(Consequence::Veto) }.into(),
        checked(0),
        checked(1),
        checked(2),
        concluded(1, 1, Conclusion::Verdict(verdicts()[0].clone())),
        concluded(1, 1, Conclusion::Verdict(verdicts()[1].clone())),
        concluded(1, 1, Conclusion::Verdict(verdicts()[2].clone())),
    ]
}

fn of_approvals(call: CallKey) -> Vec<Record> {
    vec![
        approval_requested(call, EffectClass::NonIdempotent),
        approval_decided(call, ApprovalDecision::Denied),
        approval_decided(call, ApprovalDecision::Expired),
        ApprovalDecided {
            grant: Some(RunGrant {
                rule: RuleId::new("ask"),
                tool: ToolName::new("some_tool"),
                revision: PolicyRevision::new("sha256:00"),
                by: Caller::new("caller:ann"),
            }),
            ..decided_by_somebody(call, ApprovalDecision::Approved)
        }
        .into(),
    ]
}

fn of_standing_still(call: CallKey) -> Vec<Record> {
    vec![
        suspended(Suspension::BudgetExhausted { limit: "turns".into(), message: "more".into() }),
        suspended(Suspension::OutcomeUnknown { calls: vec![call], message: "look".into() }),
        suspended(Suspension::AwaitingApproval { calls: vec![call], message: "allow".into() }),
        suspended(Suspension::RequestLost { message: "look".into() }),
        suspended(Suspension::Paused { message: "it waits".into() }),
        run_resumed(RunResumed { budget: Some(Budget::default()), ..by_somebody() }),
        run_resumed(RunResumed { lost_request: LostRequest::Repeat, ..by_somebody() }),
    ]
}

#[test]
fn every_kind_of_record_has_an_example() {
    let mut kinds: Vec<&str> = examples().iter().map(Record::kind).collect();
    kinds.dedup();
    assert_eq!(kinds, Record::KINDS);
}

#[test]
fn every_record_reads_back_as_it_was_written() {
    for record in examples() {
        // Records that carry the backend's JSON cannot be compared; what they show of themselves can.
        assert_eq!(format!("{:?}", written_and_read(&record)), format!("{record:?}"));
    }
}

#[test]
fn a_request_of_before_hosted_tools_were_decided_about_is_read_as_one_without_any() {
    let old = r#"{"turn":1,"attempt":1,"items":1}"#;
    let record = Record::decode("model_request", 1, old).unwrap();
    assert_eq!(record.encode().unwrap(), old);
    assert_eq!(format!("{record:?}"), format!("{:?}", request(1, 1)));
}

#[test]
fn a_hosted_tool_of_before_effect_classes_is_taken_for_the_strictest() {
    let old = r#"{"index":0,"tool":"file_search","decision":"allow","rule":"r","why":""}"#;
    let read: HostedDecided = serde_json::from_str(old).unwrap();
    assert!(!read.may_be_repeated());
}
