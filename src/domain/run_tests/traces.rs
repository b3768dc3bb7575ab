//! What the properties look at, read off the journal, without `fold`.

use super::*;

/// All that a journal holds of one call.
#[derive(Debug, Default)]
pub(super) struct Traces {
    /// Attempts whose intent is on disk, oldest first.
    pub(super) begun: Vec<u32>,
    pub(super) class: Option<EffectClass>,
    /// Whether the daemon died after the last attempt was begun.
    lost: bool,
    on_unknown: OnUnknown,
    /// Whether somebody has said since that it be run again.
    to_retry: bool,
    /// How often that was said.
    pub(super) retries: usize,
    /// What was said last of whether it may be done; none while that is asked, or if it never was.
    said: Option<ApprovalDecision>,
    /// Whether a person was asked since its last attempt was begun, or written down.
    asked: bool,
    pub(super) outputs: usize,
}

pub(super) fn traces(entries: &[Entry], key: CallKey) -> Traces {
    let mut traces = Traces::default();
    for entry in entries {
        match &entry.record {
            Record::ToolCalled(called) if called.call == key => {
                traces.begun.push(1);
                traces.class = Some(called.effect_class);
                traces.on_unknown = called.on_unknown;
                traces.lost = false;
            }
            Record::CallResolved(resolved) if resolved.call == key => {
                traces.to_retry = resolved.resolution == Resolution::Retry;
                traces.retries += usize::from(traces.to_retry);
            }
            Record::ApprovalRequested(asked) if asked.call == key => {
                (traces.asked, traces.said) = (true, None);
            }
            Record::ApprovalDecided(said) if said.call == key => traces.said = Some(said.decision),
            // With leave: what was asked about is begun now.
            Record::Decided(decided)
                if decided.call == key && traces.said == Some(ApprovalDecision::Approved) =>
            {
                (traces.asked, traces.said) = (false, None);
            }
            Record::ToolResumed(resumed) if resumed.call == key => {
                traces.begun.push(resumed.attempt);
                (traces.lost, traces.to_retry) = (false, false);
            }
            Record::ToolOutput(output) if output.call == key => traces.outputs += 1,
            Record::RunRecovered(_) => traces.lost = !traces.begun.is_empty(),
            _ => {}
        }
    }
    traces
}

pub(super) fn begun_calls(entries: &[Entry]) -> BTreeSet<CallKey> {
    let begun = entries.iter().filter_map(|entry| match &entry.record {
        Record::ToolCalled(called) => Some(called.call),
        _ => None,
    });
    begun.collect()
}

pub(super) fn cancel_was_requested(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| matches!(entry.record, Record::CancelRequested(_)))
}

pub(super) fn was_cut_off(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| match &entry.record {
        Record::ModelResponse(response) => response.incomplete.is_some(),
        _ => false,
    })
}

pub(super) fn assert_may_be_invoked(entries: &[Entry], invocation: &Invocation) {
    let traces = traces(entries, invocation.call.key);
    let ok = match invocation.mode {
        InvocationMode::First => traces.begun.is_empty(),
        InvocationMode::Again { attempt } => {
            traces.lost
                && traces.class != Some(EffectClass::NonIdempotent)
                && traces.begun.last().is_some_and(|last| *last < attempt)
        }
        InvocationMode::Retry { attempt } => {
            traces.lost
                && traces.to_retry
                && traces.begun.last().is_some_and(|last| *last < attempt)
        }
        // Or lost before a person was asked about another attempt, and said no.
        InvocationMode::CloseUnknown if traces.said.is_some() => traces.begun.len() > 1,
        InvocationMode::CloseUnknown => {
            traces.lost
                && traces.class == Some(EffectClass::NonIdempotent)
                && traces.on_unknown == OnUnknown::TellModel
        }
        InvocationMode::Approved { attempt } => {
            traces.asked
                && traces.said == Some(ApprovalDecision::Approved)
                && traces.begun.last() == Some(&attempt)
        }
        InvocationMode::CloseDenied => {
            traces.asked
                && matches!(traces.said, Some(ApprovalDecision::Denied | ApprovalDecision::Expired))
        }
        InvocationMode::CloseAsked => cancel_was_requested(entries) && traces.asked,
        InvocationMode::CloseUnstarted => cancel_was_requested(entries) && traces.begun.is_empty(),
        InvocationMode::CloseStarted | InvocationMode::CloseDelegated => {
            cancel_was_requested(entries) && !traces.begun.is_empty()
        }
    };
    assert!(ok && traces.outputs == 0, "{invocation:?} though the journal holds {traces:?}");
}

/// Checks that a conversation can be sent: each call has its output, in the model's order, before
/// anything else is said.
pub(super) fn assert_is_whole(items: &[Item]) {
    assert_eq!(check_pairing(items.iter().map(paired)), Ok(()));
    let is_output = |item: &Item| matches!(item, Item::ToolOutput { .. });
    for exchange in items.chunk_by(|item, next| !is_output(item) || is_output(next)) {
        let calls: Vec<(CallId, String)> = exchange.iter().filter_map(asked_for).collect();
        let outputs: Vec<(CallId, String)> = exchange.iter().filter_map(answer_to).collect();
        assert_eq!(outputs, calls, "in {items:?}");
    }
}

pub(super) fn paired(item: &Item) -> Paired {
    match (asked_for(item), answer_to(item)) {
        (Some((call, _)), _) => Paired::Call(call),
        (None, Some((call, _))) => Paired::Output(call),
        (None, None) => Paired::Other,
    }
}

pub(super) fn asked_for(item: &Item) -> Option<(CallId, String)> {
    let Item::Model { raw, .. } = item else { return None };
    let raw: Value = serde_json::from_str(raw.get()).unwrap();
    (raw["type"] == "function_call").then(|| {
        (CallId::new(raw["call_id"].as_str().unwrap()), raw["id"].as_str().unwrap().to_owned())
    })
}

pub(super) fn answer_to(item: &Item) -> Option<(CallId, String)> {
    match item {
        Item::ToolOutput { call_id, output } => Some((call_id.clone(), output.to_string())),
        Item::User { .. } | Item::Model { .. } => None,
    }
}
