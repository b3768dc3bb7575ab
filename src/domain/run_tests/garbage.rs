//! Records that make no sense, and chains that no daemon would write.

use super::*;

/// Mostly numbers that other records use too.
pub(super) fn number() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 0..4u32, 1 => Just(u32::MAX)]
}

pub(super) fn any_key() -> impl Strategy<Value = CallKey> {
    (number(), number()).prop_map(|(turn, index)| key(turn, index))
}

pub(super) fn any_suspension() -> impl Strategy<Value = Suspension> {
    let message = || "look at it".to_owned();
    prop_oneof![
        Just(Suspension::BudgetExhausted { limit: "turns".into(), message: message() }),
        Just(Suspension::RequestLost { message: message() }),
        Just(Suspension::Paused { message: message() }),
        vec(any_key(), 0..3)
            .prop_map(move |calls| Suspension::AwaitingApproval { calls, message: message() }),
        vec(any_key(), 0..3)
            .prop_map(move |calls| Suspension::OutcomeUnknown { calls, message: message() }),
    ]
}

pub(super) fn any_resolution() -> impl Strategy<Value = Resolution> {
    select([Resolution::DidNotRun, Resolution::DidRun, Resolution::Retry].as_slice())
}

pub(super) fn any_resumed() -> impl Strategy<Value = Record> {
    let lost = select([LostRequest::Leave, LostRequest::Repeat].as_slice());
    (option::of(budget()), lost).prop_map(|(budget, lost_request)| {
        run_resumed(RunResumed { budget, lost_request, ..by_somebody() })
    })
}

pub(super) fn any_decision() -> impl Strategy<Value = ApprovalDecision> {
    use ApprovalDecision::{Approved, Denied, Expired};
    select([Approved, Denied, Expired].as_slice())
}

pub(super) fn any_ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Succeeded { answer: "all done".into() }),
        Just(Ending::Failed(failure())),
        Just(Ending::Cancelled),
    ]
}

pub(super) fn any_response() -> impl Strategy<Value = Record> {
    let text = option::of(Just(Arc::from("words")));
    let incomplete = option::of(Just("content_filter".to_owned()));
    let tokens = (any::<u64>(), any::<u64>()).prop_map(|(input, output)| TokenCount {
        input,
        output,
        ..TokenCount::default()
    });
    (number(), number(), 0..4usize, text, incomplete, tokens).prop_map(
        |(turn, attempt, calls, text, incomplete, tokens)| {
            ModelResponse { text, incomplete, tokens, ..response(turn, attempt, calls) }.into()
        },
    )
}

/// Any record at all, of a run or of the daemon. Those after which little happens are rare.
pub(super) fn any_record() -> impl Strategy<Value = Record> {
    let retry_at = option::of(any::<i64>().prop_map(Timestamp));
    let class = select(CLASSES.as_slice());
    prop_oneof![
        1 => budget().prop_map(|budget| spec(budget).into()),
        8 => (number(), number()).prop_map(|(turn, attempt)| request(turn, attempt)),
        8 => any_response(),
        4 => (number(), number(), retry_at)
            .prop_map(|(turn, attempt, retry_at)| failed(turn, attempt, retry_at)),
        2 => (number(), number()).prop_map(|(turn, attempt)| awaited(turn, attempt)),
        1 => number().prop_map(degraded),
        1 => (number(), 0..9usize).prop_map(|(turn, before)| trimmed(turn, before)),
        2 => (number(), number()).prop_map(|(turn, attempt)| compacting(turn, attempt)),
        2 => (number(), number(), 0..9usize)
            .prop_map(|(turn, attempt, upto)| compacted(turn, attempt, upto)),
        4 => number().prop_map(nudged),
        2 => (select(SEATS.as_slice()), number()).prop_map(|(seat, round)| began(seat, round).into()),
        2 => (select(SEATS.as_slice()), option::of(any_key()))
            .prop_map(|(seat, call)| helper_began(seat, call).into()),
        4 => (any_key(), select(errands().to_vec())).prop_map(|(call, errand)| {
            ToolCalled { errand: Some(Box::new(errand)), ..intent(call, EffectClass::Pure) }.into()
        }),
        1 => (any_key(), 0..4usize).prop_map(|(call, from)| revised(call, from)),
        1 => select([Moment::Before, Moment::After, Moment::Copy].as_slice()).prop_map(snapshot),
        1 => Just(restored()),
        2 => (0..4usize).prop_map(checked),
        1 => select(SEATS.as_slice()).prop_map(told),
        2 => (number(), number(), select(conclusions()))
            .prop_map(|(turn, round, conclusion)| concluded(turn, round, conclusion)),
        8 => (any_key(), class).prop_map(|(call, class)| called(call, class)),
        8 => (any_key(), number()).prop_map(|(call, attempt)| resumed(call, attempt)),
        4 => (any_key(), any_resolution()).prop_map(|(call, said)| resolved(call, said)),
        4 => any_key().prop_map(decided),
        4 => (any_key(), select(CLASSES.as_slice())).prop_map(|(call, class)| approval_requested(call, class)),
        4 => (any_key(), any_decision()).prop_map(|(call, said)| approval_decided(call, said)),
        8 => any_key().prop_map(output),
        2 => Just(cancelled()),
        2 => Just(paused()),
        2 => select(["turns", "tokens"].as_slice())
            .prop_map(|limit| BudgetWarning { limit: limit.into(), used: 8, of: 10 }.into()),
        1 => Just(CheckpointSaved { items: 9, new_items: 4 }.into()),
        2 => any_resumed(),
        2 => Just(input("and this", None)),
        2 => (number(), number()).prop_map(|(turn, attempt)| unsafe_request(turn, attempt)),
        4 => Just(recovered()),
        2 => any_suspension().prop_map(suspended),
        1 => any_ending().prop_map(finished),
        1 => select(records_of_the_daemon()),
    ]
}

const SEATS: [Seat; 4] = [Seat::Planner, Seat::Executor, Seat::Reviewer, Seat::Asked];

fn conclusions() -> Vec<Conclusion> {
    let unreadable = Conclusion::Unreadable { why: "no JSON".into() };
    let verdicts = verdicts().map(Conclusion::Verdict);
    let step = Conclusion::Step { step: 1, result: "done".into() };
    [Conclusion::Plan(plan()), unreadable, step].into_iter().chain(verdicts).collect()
}

pub(super) fn records_of_the_daemon() -> Vec<Record> {
    vec![
        DaemonStarted {
            version: "0.1.0".into(),
            epoch: Epoch(3),
            sqlite: "3.50.4".into(),
            policy_revision: PolicyRevision::new("sha256:00"),
        }
        .into(),
        probed(),
        reload(Reloaded::Applied { revision: PolicyRevision::new("sha256:01") }),
        reload(Reloaded::Refused { faults: vec!["tools.yaml:3:1: no".into()] }),
        RunAnchored { run_id: run_id(), sequence: Sequence(7), hash: "00".repeat(32) }.into(),
        DrainRequested { by: Caller::new("uid:0"), draining: true }.into(),
        BackupMade { by: Caller::new("uid:0"), bytes: 4096, entries: 7 }.into(),
        StoreRestored { at: Timestamp(9), runs: 2 }.into(),
        HeadSigned {
            entries: Position(11),
            digest: "00".repeat(32),
            key: "01".repeat(32),
            signature: "02".repeat(64),
        }
        .into(),
        RunPruned {
            run_id: run_id(),
            by: Caller::new("uid:0"),
            ended: Timestamp(5),
            state: "FAILED".into(),
            entries: Sequence(7),
            hash: "00".repeat(32),
            positions: "2-8".into(),
        }
        .into(),
        WebhookDelivered {
            run_id: run_id(),
            call: key(1, 0),
            position: Position(5),
            attempts: 2,
            http_status: 204,
        }
        .into(),
        WebhookRefused {
            run_id: run_id(),
            call: key(1, 0),
            position: Position(5),
            attempts: 1,
            http_status: 410,
            reason: "the receiver answered with HTTP status 410".into(),
        }
        .into(),
        DaemonStopped { why: "asked to".into(), is_unexamined: false }.into(),
    ]
}

pub(super) fn reload(outcome: Reloaded) -> Record {
    let before = PolicyRevision::new("sha256:00");
    PolicyReload { by: Caller::new("signal:SIGHUP"), before, outcome }.into()
}

/// A chain that no daemon would write: a life with records in it that do not belong there, or no life
/// at all.
pub(super) fn garbage() -> impl Strategy<Value = Vec<Entry>> {
    let strays = vec((any::<Index>(), any_record()), 1..6);
    let spoilt = (life(), strays).prop_map(|(life, strays)| {
        let mut life = life.into_iter().map(|entry| entry.record);
        let first = life.next();
        let mut records: Vec<Record> = life.collect();
        for (place, stray) in strays {
            records.insert(place.index(records.len() + 1), stray);
        }
        let Some(Record::RunCreated(spec)) = first else { unreachable!("a life begins with it") };
        chain_of(RunCreated { budget: Budget::default(), ..spec }, records)
    });
    let senseless =
        (budget(), vec(any_record(), 0..30)).prop_map(|(budget, records)| chain(budget, records));
    prop_oneof![spoilt, senseless]
}

pub(super) fn any_chain() -> impl Strategy<Value = Vec<Entry>> {
    prop_oneof![life(), garbage()]
}
