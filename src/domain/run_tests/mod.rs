//! What [`fold`] and [`decide`] promise, shown on made-up lives of runs. A [`World`] obeys `decide`, and lets
//! everything go wrong that can; what it left in the journal is looked at here.
//!
//! Nothing here knows of a port: whole daemons are tested from `tests/it`.

mod gaps;
mod garbage;
mod on_disk;
mod records;
mod traces;
mod world;

use std::collections::{BTreeSet, HashMap};

use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::domain::{
    approval::{Leave, RunGrant},
    backend::{Capabilities, Colour, ProfileName},
    budget::{TokenCount, Usage},
    effect::Isolation,
    guardrail::{Consequence, Guardrail, Violation},
    head::HeadSigned,
    host::Host,
    ids::{CallId, Caller, Epoch, PolicyRevision, Position, RoleName, RuleId, ToolName, TreeId},
    item::{Paired, RawJson, check_pairing},
    journal::{
        AgentBegan, AnsweredItem, ApprovalDecided, ApprovalDecision, ApprovalRequested, AskedCall,
        BackendAwaited, BackendError, BackupMade, BudgetWarning, CallResolved, CancelRequested,
        CapabilityProbe, CheckpointSaved, Colleague, Compaction, Connection, ContextCompacted,
        ContextTrimmed, DaemonStarted, DaemonStopped, Decided, DrainRequested, Errand,
        GuardrailViolation, GuardrailsChecked, HostedDecided, InputReceived, LostRequest,
        ModelNudged, ModelRequest, ModelResponse, Moment, NetworkUsed, OnVeto, OutputRefused,
        PauseRequested, PlanMade, PlanRevised, PolicyReload, Purpose, Reloaded, RepositoryTold,
        Resolution, Reviewed, RunAnchored, RunDegraded, RunFinished, RunPruned, RunRecovered,
        RunResumed, RunSuspended, Sent, StepFinished, StoreRestored, Team, ToldFile, ToolCalled,
        ToolOutput, ToolResumed, Used, Verdict, WebhookDelivered, WebhookRefused,
        WorkspaceRestored, WorkspaceSnapshot,
    },
    plan::{self, Plan, Step},
    retry,
    status::StateName,
    tool::{EffectClass, OnUnknown, OutcomeKind},
};
use garbage::*;
use on_disk::written_and_read;
use records::*;
use traces::*;
use world::*;

// Folding.

proptest! {
    #[test]
    fn folding_a_prefix_and_then_the_rest_is_folding_all(entries in any_chain(), cut in any::<Index>()) {
        let (prefix, rest) = entries.split_at(1 + cut.index(entries.len()));
        prop_assert_eq!(rest.iter().fold(folded(prefix), fold), folded(&entries));
    }

    #[test]
    fn what_is_read_back_folds_to_what_was_written(entries in any_chain()) {
        let read_back: Vec<Entry> = entries
            .iter()
            .map(|entry| Entry { record: written_and_read(&entry.record), ..entry.clone() })
            .collect();
        prop_assert_eq!(folded(&read_back), folded(&entries));
    }

    #[test]
    fn whatever_the_entries_every_one_is_folded_and_something_can_be_decided(entries in garbage()) {
        for (so_far, state) in each_moment(&entries) {
            let last = &so_far[so_far.len() - 1];
            prop_assert_eq!((state.head, state.updated), (last.sequence, last.time));
            decide(&state);
        }
    }

    #[test]
    fn nothing_follows_the_end(before in any_chain(), ending in any_ending(), rest in vec(any_record(), 1..8)) {
        let before = folded(&before);
        let end = next_entry(&before, finished(ending));
        let ended = fold(before, &end);
        let mut state = ended.clone();
        for record in rest {
            state = fold(state.clone(), &next_entry(&state, record));
            prop_assert_eq!(decide(&state), Command::Rest);
        }
        prop_assert_eq!((state.phase, state.items, state.usage), (ended.phase, ended.items, ended.usage));
    }

    #[test]
    fn a_new_daemon_changes_nothing_where_nothing_was_under_way(entries in any_chain()) {
        for (_, before) in each_moment(&entries).filter(|(_, state)| !state.is_under_way()) {
            let taken_over = next_entry(&before, recovered());
            let (head, updated) = (taken_over.sequence, taken_over.time);
            let after = fold(before.clone(), &taken_over);
            prop_assert_eq!(after, RunState { head, updated, ..before });
        }
    }
}

// Lives of runs. What is to be done is asked after every single entry, not only where the world asks.

proptest! {
    #[test]
    fn a_call_is_begun_once_and_again_only_when_its_daemon_died(entries in life()) {
        for (so_far, state) in each_moment(&entries) {
            if let Command::Invoke(invocations) = decide(&state) {
                prop_assert!(!invocations.is_empty());
                invocations.iter().for_each(|invocation| assert_may_be_invoked(so_far, invocation));
            }
        }
        for call in begun_calls(&entries) {
            let traces = traces(&entries, call);
            prop_assert!(traces.begun.is_sorted_by(|one, next| one < next), "{:?}", traces);
            prop_assert!(traces.outputs <= 1, "{:?}", traces);
            if traces.class == Some(EffectClass::NonIdempotent) {
                prop_assert!(traces.begun.len() <= 1 + traces.retries, "{:?}", traces);
            }
        }
    }

    #[test]
    fn a_request_is_made_once_and_after_a_failure_or_a_death_it_has_a_number_of_its_own(entries in life()) {
        let mut last = (0, 0);
        for entry in &entries {
            if let Record::ModelRequest(ModelRequest { turn, attempt, .. }) = entry.record {
                prop_assert!(last < (turn, attempt), "{:?} after {:?}", (turn, attempt), last);
                last = (turn, attempt);
            }
        }
    }

    #[test]
    fn the_model_is_asked_only_when_every_call_has_its_output_in_the_model_s_order(entries in life()) {
        for (_, state) in each_moment(&entries) {
            if let Command::AskModel { .. } = decide(&state) {
                let items = state.items.get().unwrap();
                assert_is_whole(&state.stage.heard_by(state.stage.seat(), items));
            }
        }
    }

    #[test]
    fn a_request_for_which_the_backend_may_have_done_something_is_not_made_again_unless_somebody_said_so(
        entries in life()
    ) {
        let mut lost = false;
        for entry in &entries {
            match &entry.record {
                Record::ModelRequest(request) => {
                    prop_assert!(!lost, "{:?} though the last one was lost", request);
                    lost = request.hosted_tools.iter().any(|tool| !tool.may_be_repeated());
                }
                Record::ModelResponse(_) => lost = false,
                Record::BackendError(error) if error.http_status.is_some_and(|status| status < 500) => lost = false,
                Record::RunResumed(RunResumed { lost_request: LostRequest::Repeat, .. }) => lost = false,
                _ => {}
            }
        }
    }

    #[test]
    fn what_was_said_of_a_call_is_heard_whatever_the_run_stands_still_for(entries in life()) {
        for (so_far, state) in each_moment(&entries) {
            if let Record::ApprovalDecided(said) = &so_far[so_far.len() - 1].record {
                let waits = state.open_call(said.call).is_some_and(|open| open.waits_for().is_some());
                prop_assert!(!waits, "{:?}", said);
            }
        }
    }

    #[test]
    fn after_a_wish_to_pause_nothing_is_begun_until_somebody_lets_the_run_go_on(entries in life()) {
        let mut wants_pause = false;
        for entry in &entries {
            match &entry.record {
                Record::PauseRequested(_) => wants_pause = true,
                Record::RunResumed(_) | Record::CancelRequested(_) => wants_pause = false,
                Record::ModelRequest(_) => prop_assert!(!wants_pause, "{:?}", entry),
                _ => {}
            }
        }
    }

    #[test]
    fn what_people_say_is_heard_once_in_its_order_and_never_between_a_call_and_its_output(entries in life()) {
        let state = folded(&entries);
        let said = entries.iter().filter(|entry| matches!(entry.record, Record::InputReceived(_))).count();
        let is_said = |item: &&Item| matches!(item, Item::User { text } if &**text == "and this");
        let heard = state.items.get().unwrap().iter().filter(is_said).count();
        prop_assert_eq!(heard + state.inputs.waiting.len(), said);
        if let Phase::Going(Work::ToAsk { .. }) = state.phase {
            prop_assert_eq!(state.inputs.waiting.len(), 0);
        }
        if let Phase::Ended(Ending::Succeeded { .. }) = state.phase {
            prop_assert_eq!(state.inputs.waiting.len(), 0, "the run ended though somebody had said something");
        }
    }

    #[test]
    fn a_stored_state_is_read_back_whole_wherever_its_conversation_is_cut(
        entries in any_chain(),
        cut in any::<Index>(),
    ) {
        for (_, state) in each_moment(&entries) {
            let items = state.items.get().unwrap();
            let (head, tail) = items.split_at(cut.index(items.len() + 1));
            let pieces = [head, tail].map(|items| encode_items(items).unwrap());
            let stored = state.encode().unwrap();
            let mut read = RunState::decode(&stored, pieces.clone()).unwrap();
            prop_assert_eq!(read.items.len(), state.items.len());
            prop_assert_eq!(read.items.read().map(drop).map_err(|fault| fault.to_string()), Ok(()));
            prop_assert_eq!(&read, &state);
            // The same bytes, also after it was stored once.
            prop_assert_eq!(read.encode().unwrap(), stored);
        }
    }

    #[test]
    fn every_run_comes_to_rest(fate in fate()) {
        // That it takes a bounded number of steps is checked by the world.
        let world = World::new(fate).live();
        prop_assert!(world.state.name().is_ended() || world.state.name().is_suspended());
        prop_assert_eq!(decide(&world.state), Command::Rest);
    }

    #[test]
    fn a_cancelled_run_ends_as_cancelled_and_leaves_no_call_open(entries in life()) {
        let state = folded(&entries);
        if cancel_was_requested(&entries) {
            prop_assert_eq!(&state.phase, &Phase::Ended(Ending::Cancelled));
            for call in begun_calls(&entries) {
                prop_assert_eq!(traces(&entries, call).outputs, 1, "of call {}", call);
            }
            // What an answer asked for that was cut off has not been begun, and has no output.
            if !was_cut_off(&entries) {
                let items = state.items.get().unwrap();
                assert_is_whole(&state.stage.heard_by(Seat::Executor, items));
            }
        }
    }

    #[test]
    fn each_limit_is_warned_of_once_for_each_budget_and_before_it_is_used_up(entries in life()) {
        let mut warned = BTreeSet::new();
        for (so_far, state) in each_moment(&entries) {
            match &so_far[so_far.len() - 1].record {
                Record::RunResumed(RunResumed { budget: Some(_), .. }) => warned.clear(),
                Record::BudgetWarning(warning) => {
                    prop_assert!(warned.insert(warning.limit.clone()), "{:?} again", warning);
                    prop_assert!(warning.used * 5 >= warning.of * 4);
                }
                Record::ModelRequest(_) => {
                    let (used, of) = (state.usage.turns, state.budget.max_turns);
                    prop_assert!(used == 0 || used * 5 < of * 4 || warned.contains("turns"));
                }
                _ => {}
            }
        }
    }

    #[test]
    fn no_budget_is_overrun(entries in life()) {
        for (so_far, state) in each_moment(&entries) {
            let (used, budget) = (state.usage, state.budget);
            let mut by_roles = Usage::default();
            state.role_usage.values().for_each(|of| by_roles.add_between(&Usage::default(), of));
            prop_assert_eq!(by_roles, used);
            // The last answer may go over the limit of tokens; none is asked for after that.
            if let Command::AskModel { .. } = decide(&state) {
                prop_assert!(used.turns < budget.max_turns);
                prop_assert!(used.input_tokens + used.output_tokens < budget.max_tokens);
                prop_assert!(budget.max_cost_micros == 0 || used.cost_micros < budget.max_cost_micros);
            }
            // Calls that a cancellation closes count, too; nothing is done for them.
            if !cancel_was_requested(so_far) {
                prop_assert!(used.tool_calls <= budget.max_tool_calls);
            }
        }
    }
}

#[test]
fn the_world_shows_every_ending_and_every_mode_of_invocation() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..300 {
        let entries = life().new_tree(&mut runner).unwrap().current();
        seen.insert(folded(&entries).name().as_str().to_owned());
        for (_, state) in each_moment(&entries) {
            if let Phase::Suspended { why: Suspension::RequestLost { .. }, .. } = state.phase {
                seen.insert("RequestLost".to_owned());
            }
            if let Command::Invoke(invocations) = decide(&state) {
                seen.extend(invocations.iter().map(|invocation| format!("{:?}", invocation.mode)));
            }
        }
    }
    let wanted = [
        "OUT_OF_BUDGET",
        "NEEDS_ATTENTION",
        "SUCCEEDED",
        "FAILED",
        "CANCELLED",
        "First",
        "Again { attempt: 2 }",
        "Again { attempt: 3 }",
        "CloseUnstarted",
        "CloseStarted",
        "PAUSED",
        "RequestLost",
        "AWAITING_APPROVAL",
        "Approved { attempt: 1 }",
        "CloseAsked",
        "CloseDenied",
    ];
    let missing: Vec<_> = wanted.into_iter().filter(|name| !seen.contains(*name)).collect();
    assert!(missing.is_empty(), "no life shows {missing:?}");
}
