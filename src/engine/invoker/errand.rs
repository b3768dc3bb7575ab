//! A call that wants something of another agent, or of the run itself: its intent, its decision, and what follows. What it
//! wants: `engine::colleagues`.

use std::sync::Arc;

use crate::{
    domain::{
        ids::RuleId,
        journal::{Record, Verdict},
        policy::{Policy, Ruling},
        run::InvocationMode,
        tool::{EffectClass, ToolCall, ToolOutcome},
    },
    engine::{
        colleagues::Decided,
        invoker::{Next, Prepared, built_in, refusal},
        run_log::Noted,
    },
};

/// It touches nothing in the world.
pub(super) fn prepared(
    call: ToolCall,
    decided: Decided,
    (policy, mode): (Arc<Policy>, InvocationMode),
) -> Prepared {
    let (errand, ruling, revised, next) = match decided {
        Decided::Refused { rule, message } => {
            let outcome = ToolOutcome::refused(&rule, &message);
            (None, built_in(rule, message), None, Next::Answer(outcome))
        }
        Decided::Done { errand, why, revised, outcome } => {
            (Some(errand), by_configuration(why), revised, Next::Answer(outcome))
        }
        Decided::Delegated { errand, why } => {
            (Some(errand), by_configuration(why), None, Next::Delegate)
        }
    };
    let mut prepared = refusal(call, ruling, next, (policy, None));
    match mode.attempt() {
        1 => {
            if let Some(Noted { record: Record::ToolCalled(called), .. }) =
                prepared.intent.first_mut()
            {
                called.errand = errand.map(Box::new);
            }
            prepared.intent.extend(revised.map(Noted::from));
        }
        // What it does to the run is on disk.
        attempt => prepared.resume(attempt),
    }
    prepared
}

fn by_configuration(why: String) -> Ruling {
    let rule = RuleId::new("builtin/colleagues");
    Ruling { verdict: Verdict::Allow, rule, why, class: EffectClass::Pure }
}
