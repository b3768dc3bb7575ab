//! What was said in a conversation. The backend's own JSON rides along untouched, so that it can be
//! replayed as it came; only what agentd acts on is read out of it, by `backend::wire`.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::{
    budget,
    ids::{CallId, ToolName},
    journal::{AnsweredItem, AskedCall},
};

/// One thing said, in the order it was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    User {
        text: Arc<str>,
    },
    /// Said by the model: the backend's JSON, verbatim, and the call in it, if it is one.
    Model {
        raw: RawJson,
        call: Option<CallId>,
    },
    ToolOutput {
        call_id: CallId,
        output: Arc<str>,
    },
}

/// JSON text as somebody else wrote it, byte for byte. Cheap to clone; known to be valid.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RawJson(Arc<RawValue>);

impl RawJson {
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// For writing it into other JSON as it stands.
    pub fn as_value(&self) -> &RawValue {
        &self.0
    }
}

impl From<Box<RawValue>> for RawJson {
    fn from(raw: Box<RawValue>) -> Self {
        Self(raw.into())
    }
}

impl PartialEq for RawJson {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for RawJson {}

/// Why an answer of the model cannot be acted on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerFault {
    #[error("the backend gave the call id {0} to two different calls in one answer")]
    AmbiguousCallId(CallId),
    #[error(
        "the model asked for {0} tool calls in one answer, {max} are accepted",
        max = budget::CALLS_PER_TURN
    )]
    TooManyCalls(usize),
}

/// The items of an answer that count: a call that is repeated word for word counts once.
///
/// The order is the model's. Errors: see [`AnswerFault`]; nothing of such an answer may be acted on.
pub fn settle(items: Vec<AnsweredItem>) -> Result<Vec<AnsweredItem>, AnswerFault> {
    let mut seen: HashMap<CallId, AskedCall> = HashMap::new();
    let mut settled = Vec::with_capacity(items.len());
    for item in items {
        if let Some(call) = &item.call {
            match seen.get(&call.call_id) {
                Some(earlier) if earlier == call => continue,
                Some(_) => return Err(AnswerFault::AmbiguousCallId(call.call_id.clone())),
                None => seen.insert(call.call_id.clone(), call.clone()),
            };
        }
        settled.push(item);
    }
    match seen.len() {
        calls if calls > budget::CALLS_PER_TURN => Err(AnswerFault::TooManyCalls(calls)),
        _ => Ok(settled),
    }
}

/// Where a conversation breaks the rule that every call has its output and every output its call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairingFault {
    #[error("call {0} has no output")]
    CallWithoutOutput(CallId),
    #[error("output for {0} has no call before it")]
    OutputWithoutCall(CallId),
}

/// What pairing needs to know of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Paired {
    Call(CallId),
    Output(CallId),
    Other,
}

impl Item {
    /// What another backend or model than the one that said it can take of it: words and calls, without the name by
    /// which its own backend knows it. None: nothing, as of reasoning, which is sealed or belongs to what is so named.
    pub fn for_others(&self) -> Option<Self> {
        let Self::Model { raw, call } = self else { return Some(self.clone()) };
        let mut fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(raw.get()).ok()?;
        let kind = fields.get("type").and_then(|kind| kind.as_str()).unwrap_or("message");
        if !matches!(kind, "message" | "function_call") {
            return None;
        }
        fields.remove("id");
        let raw = serde_json::value::to_raw_value(&fields).ok()?.into();
        Some(Self::Model { raw, call: call.clone() })
    }

    /// What pairing needs to know of it.
    pub fn paired(&self) -> Paired {
        match self {
            Self::Model { call: Some(call), .. } => Paired::Call(call.clone()),
            Self::ToolOutput { call_id, .. } => Paired::Output(call_id.clone()),
            Self::Model { call: None, .. } | Self::User { .. } => Paired::Other,
        }
    }
}

/// Checks that each call is followed by exactly one output, and that no output stands alone.
///
/// Ids may come again in a later turn, since local servers repeat theirs: an output belongs to the
/// last open call of its id.
pub fn check_pairing(items: impl IntoIterator<Item = Paired>) -> Result<(), PairingFault> {
    let mut open: Vec<CallId> = Vec::new();
    for item in items {
        match item {
            Paired::Call(id) => open.push(id),
            Paired::Output(id) => match open.iter().position(|call| *call == id) {
                Some(found) => drop(open.swap_remove(found)),
                None => return Err(PairingFault::OutputWithoutCall(id)),
            },
            Paired::Other => {}
        }
    }
    match open.into_iter().next() {
        Some(id) => Err(PairingFault::CallWithoutOutput(id)),
        None => Ok(()),
    }
}

/// Names of tools for a sentence, in the order given.
pub fn names<'a>(tools: impl IntoIterator<Item = &'a ToolName>) -> String {
    tools.into_iter().map(ToolName::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: &str, arguments: &str) -> AnsweredItem {
        AnsweredItem {
            raw: serde_json::value::RawValue::from_string("{}".into()).unwrap().into(),
            call: Some(AskedCall {
                call_id: CallId::new(id),
                tool: ToolName::new("read_file"),
                arguments: arguments.into(),
            }),
        }
    }

    #[test]
    fn another_model_is_given_words_and_calls_and_none_of_the_thoughts() {
        let said = |text: &str, call: Option<&str>| Item::Model {
            raw: serde_json::value::RawValue::from_string(text.into()).unwrap().into(),
            call: call.map(CallId::new),
        };
        assert_eq!(said(r#"{"type":"reasoning","id":"rs_1"}"#, None).for_others(), None);
        assert_eq!(said(r#"{"type":"mcp_call","id":"m"}"#, None).for_others(), None);
        let call = r#"{"type":"function_call","id":"fc_1","call_id":"c","name":"t"}"#;
        let Some(Item::Model { raw, call }) = said(call, Some("c")).for_others() else { panic!() };
        assert_eq!(call, Some(CallId::new("c")));
        assert!(!raw.get().contains("fc_1") && raw.get().contains("\"c\""), "{}", raw.get());
        let heard = Item::User { text: "x".into() };
        assert_eq!(heard.for_others(), Some(heard));
    }

    #[test]
    fn a_call_repeated_word_for_word_counts_once() {
        let settled = settle(vec![asked("a", "{}"), asked("b", "{}"), asked("a", "{}")]).unwrap();
        let ids: Vec<_> = settled.into_iter().map(|item| item.call.unwrap().call_id).collect();
        assert_eq!(ids, [CallId::new("a"), CallId::new("b")]);
    }

    #[test]
    fn one_id_for_two_different_calls_is_a_fault() {
        let fault = settle(vec![asked("a", "{}"), asked("a", r#"{"path":"x"}"#)]).unwrap_err();
        assert_eq!(fault, AnswerFault::AmbiguousCallId(CallId::new("a")));
    }

    #[test]
    fn more_calls_than_the_bound_are_a_fault() {
        let items = (0..=budget::CALLS_PER_TURN).map(|n| asked(&format!("c{n}"), "{}")).collect();
        assert_eq!(
            settle(items).unwrap_err(),
            AnswerFault::TooManyCalls(budget::CALLS_PER_TURN + 1)
        );
    }

    #[test]
    fn pairing_wants_one_output_for_each_call_and_one_call_for_each_output() {
        let (a, b) = (CallId::new("a"), CallId::new("b"));
        let call = |id: &CallId| Paired::Call(id.clone());
        let output = |id: &CallId| Paired::Output(id.clone());
        assert_eq!(check_pairing([call(&a), call(&b), output(&b), output(&a)]), Ok(()));
        assert_eq!(
            check_pairing([call(&a), output(&a), Paired::Other, call(&a), output(&a)]),
            Ok(())
        );
        assert_eq!(check_pairing([call(&a)]), Err(PairingFault::CallWithoutOutput(a.clone())));
        assert_eq!(
            check_pairing([call(&a), output(&a), output(&a)]),
            Err(PairingFault::OutputWithoutCall(a))
        );
    }
}
