//! What a gap in the journal means after a crash, and answers of a model that are none.

use super::*;

/// A run whose model asked for one call of each of `classes`; all intents are on disk.
fn under_way(classes: &[EffectClass]) -> Vec<Record> {
    let intents = (0..).zip(classes).map(|(index, class)| called(key(1, index), *class));
    [request(1, 1), response(1, 1, classes.len()).into()].into_iter().chain(intents).collect()
}

fn invocation(index: u32, mode: InvocationMode) -> Invocation {
    let call = ToolCall {
        key: key(1, index),
        call_id: call_id(key(1, index)),
        tool: ToolName::new("some_tool"),
        arguments: "{}".into(),
    };
    Invocation { call, mode, earlier: None, leave: Leave::default(), denied: None }
}

fn check(
    records: impl IntoIterator<Item = Record>,
    gap: impl IntoIterator<Item = Record>,
    command: Command,
) {
    assert_eq!(decide(&after(records.into_iter().chain(gap))), command);
}

#[test]
fn a_request_without_an_answer_is_made_again_and_its_cost_stays_unknown() {
    let state = after([request(1, 1), recovered()]);
    assert_eq!(decide(&state), Command::AskModel { turn: 1, attempt: 2, at: None });
    assert_eq!(state.usage, Usage { turns_of_unknown_cost: 1, ..Usage::default() });
}

#[test]
fn the_answer_to_a_request_that_was_given_up_is_not_taken_for_the_next_one() {
    let late = response(1, 1, 1).into();
    check([request(1, 1), recovered(), request(1, 2)], [late], Command::Rest);
}

#[test]
fn a_lost_call_that_may_be_repeated_is_carried_out_again() {
    for class in [EffectClass::Pure, EffectClass::Idempotent, EffectClass::Reconcilable] {
        let again = Command::Invoke(vec![invocation(0, InvocationMode::Again { attempt: 2 })]);
        check(under_way(&[class]), [recovered()], again);
    }
}

#[test]
fn a_call_that_is_lost_twice_is_carried_out_a_third_time() {
    let again = Command::Invoke(vec![invocation(0, InvocationMode::Again { attempt: 3 })]);
    let gaps = [recovered(), resumed(key(1, 0), 2), recovered()];
    check(under_way(&[EffectClass::Idempotent]), gaps, again);
}

#[test]
fn a_lost_call_that_must_not_be_repeated_stops_the_run_for_a_person_to_look() {
    let state = after(under_way(&[EffectClass::NonIdempotent]).into_iter().chain([recovered()]));
    let Command::Suspend(why) = decide(&state) else { panic!("{:?}", decide(&state)) };
    let Suspension::OutcomeUnknown { calls, .. } = &why else { panic!("{why:?}") };
    assert_eq!(*calls, [key(1, 0)]);
    let next = next_entry(&state, suspended(why));
    let stopped = fold(state, &next);
    assert_eq!((stopped.name(), decide(&stopped)), (StateName::NeedsAttention, Command::Rest));
}

#[test]
fn other_lost_calls_are_carried_out_before_the_run_stops() {
    let calls = [EffectClass::NonIdempotent, EffectClass::Pure];
    let again = Command::Invoke(vec![invocation(1, InvocationMode::Again { attempt: 2 })]);
    check(under_way(&calls), [recovered()], again);
    let later = [recovered(), resumed(key(1, 1), 2), output(key(1, 1))];
    let state = after(under_way(&calls).into_iter().chain(later));
    assert!(matches!(decide(&state), Command::Suspend(Suspension::OutcomeUnknown { .. })));
}

/// A run that stands still for one call.
fn standing_still() -> Vec<Record> {
    let calls = vec![key(1, 0)];
    let why = Suspension::OutcomeUnknown { calls, message: "look at it".into() };
    let gap = [recovered(), suspended(why)];
    under_way(&[EffectClass::NonIdempotent]).into_iter().chain(gap).collect()
}

#[test]
fn a_call_that_somebody_wants_again_is_carried_out_once_more_and_if_it_is_lost_again_the_run_stops_again()
 {
    let retry = || resolved(key(1, 0), Resolution::Retry);
    let again = Command::Invoke(vec![invocation(0, InvocationMode::Retry { attempt: 2 })]);
    check(standing_still(), [retry()], again.clone());
    // Also when the daemon dies before it has begun.
    check(standing_still(), [retry(), recovered()], again);
    let lost = [retry(), resumed(key(1, 0), 2), recovered()];
    let state = after(standing_still().into_iter().chain(lost));
    assert!(matches!(decide(&state), Command::Suspend(Suspension::OutcomeUnknown { .. })));
}

#[test]
fn a_call_whose_end_somebody_tells_has_that_output_and_the_run_goes_on() {
    for said in [Resolution::DidNotRun, Resolution::DidRun] {
        let told = [resolved(key(1, 0), said), output(key(1, 0))];
        check(standing_still(), told, Command::AskModel { turn: 2, attempt: 1, at: None });
    }
}

#[test]
fn a_run_that_stands_still_for_two_calls_goes_on_when_both_are_resolved() {
    let calls = [EffectClass::NonIdempotent; 2];
    let why = Suspension::OutcomeUnknown {
        calls: vec![key(1, 0), key(1, 1)],
        message: "look at them".into(),
    };
    let one = [recovered(), suspended(why), resolved(key(1, 1), Resolution::Retry)];
    let records: Vec<Record> = under_way(&calls).into_iter().chain(one).collect();
    assert_eq!(after(records.clone()).name(), StateName::NeedsAttention);
    let other = [resolved(key(1, 0), Resolution::DidRun), output(key(1, 0))];
    let again = Command::Invoke(vec![invocation(1, InvocationMode::Retry { attempt: 2 })]);
    check(records, other, again);
}

#[test]
fn the_model_is_told_of_a_lost_call_where_the_policy_said_so() {
    let on_unknown = OnUnknown::TellModel;
    let intent = ToolCalled { on_unknown, ..intent(key(1, 0), EffectClass::NonIdempotent) };
    let records = [request(1, 1), response(1, 1, 1).into(), intent.into()];
    let close = Command::Invoke(vec![invocation(0, InvocationMode::CloseUnknown)]);
    check(records, [recovered()], close);
}

#[test]
fn a_call_whose_intent_never_reached_the_disk_is_carried_out_for_the_first_time() {
    let first = Command::Invoke(vec![invocation(0, InvocationMode::First)]);
    check([request(1, 1), response(1, 1, 1).into()], [], first);
}

#[test]
fn a_wait_for_the_backend_goes_on_after_a_crash() {
    let at = Timestamp(5_000_000);
    let records = [request(1, 1), failed(1, 1, Some(at))];
    check(records, [], Command::AskModel { turn: 1, attempt: 2, at: Some(at) });
}

#[test]
fn while_its_daemon_lives_nothing_is_asked_for_twice() {
    check([request(1, 1)], [], Command::Rest);
    check(under_way(&CLASSES), [], Command::Rest);
}

#[test]
fn cancelling_a_run_that_needs_attention_closes_the_lost_call_and_ends_the_run() {
    let calls = vec![key(1, 0)];
    let why = Suspension::OutcomeUnknown { calls, message: "look at it".into() };
    let close = Command::Invoke(vec![invocation(0, InvocationMode::CloseStarted)]);
    let gap = || [recovered(), suspended(why.clone()), cancelled()];
    check(under_way(&[EffectClass::NonIdempotent]), gap(), close);
    let closed = gap().into_iter().chain([output(key(1, 0))]);
    let end = Command::Finish(Ending::Cancelled);
    check(under_way(&[EffectClass::NonIdempotent]), closed, end);
}

#[test]
fn a_model_that_says_nothing_is_told_so_once_and_then_the_run_fails() {
    let silent = [request(1, 1), response(1, 1, 0).into()];
    check(silent.clone(), [], Command::Nudge { turn: 1 });
    let again = [nudged(1), request(2, 1), response(2, 1, 0).into()];
    let state = after(silent.into_iter().chain(again));
    let Command::Finish(Ending::Failed(failure)) = decide(&state) else { panic!("{state:?}") };
    assert_eq!(failure.reason, "EMPTY_ANSWER");
}

#[test]
fn nothing_that_a_cut_off_answer_asks_for_is_done() {
    let incomplete = Some("max_output_tokens".to_owned());
    let cut_off = ModelResponse { incomplete, ..response(1, 1, 2) };
    let state = after([request(1, 1), cut_off.into()]);
    let Command::Finish(Ending::Failed(failure)) = decide(&state) else { panic!("{state:?}") };
    assert_eq!(failure.reason, "INCOMPLETE_RESPONSE");
}

#[test]
fn more_tokens_than_can_be_counted_exhaust_the_budget() {
    let tokens = TokenCount { input: 1, output: u64::MAX, ..TokenCount::default() };
    let answer = ModelResponse { tokens, ..response(1, 1, 1) };
    let records = [request(1, 1), answer.into(), called(key(1, 0), EffectClass::Pure)];
    let state = after(records.into_iter().chain([output(key(1, 0))]));
    assert!(matches!(decide(&state), Command::Suspend(Suspension::BudgetExhausted { .. })));
}
