//! What is asked of models, what they answer, and what is found out about their backends.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::{
    backend::{Api, BackendName, Capabilities, Colour, ProfileName},
    budget::TokenCount,
    ids::{CallId, RuleId, Timestamp, ToolName},
    item::RawJson,
    journal::Verdict,
    tool::EffectClass,
};

/// The model is about to be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRequest {
    pub turn: u32,
    /// 1 is the first request of the turn.
    pub attempt: u32,
    /// Items of the conversation that are sent.
    pub items: usize,
    /// About how many tokens these are, with the instructions and the tools.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub estimated_tokens: u64,
    /// What is asked for, where it is not an answer.
    #[serde(default, skip_serializing_if = "Purpose::is_answer")]
    pub purpose: Purpose,
    /// What was decided about each hosted tool, in the order of the configuration: those allowed are declared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosted_tools: Vec<HostedDecided>,
    #[serde(default, skip_serializing_if = "BackendName::is_default")]
    pub backend: BackendName,
    #[serde(default, skip_serializing_if = "Api::is_responses")]
    pub api: Api,
}

/// By reference, as serde asks.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a model is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    #[default]
    Answer,
    /// Something shorter that stands for the conversation.
    Compaction,
}

impl Purpose {
    /// By reference, as serde asks.
    fn is_answer(&self) -> bool {
        *self == Self::Answer
    }
}

/// Long outputs are told of by reference from now on: the conversation would not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextTrimmed {
    /// The one that is asked next.
    pub turn: u32,
    /// Place in the conversation; what is long and before it is left out.
    pub before: usize,
    /// How many outputs these are.
    pub outputs: usize,
    /// About how many tokens were to be sent, and how many are.
    pub tokens_before: u64,
    pub tokens_after: u64,
}

/// Something shorter stands for the beginning of the conversation from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextCompacted {
    /// The one that is asked next.
    pub turn: u32,
    /// Of the request that it came of.
    pub attempt: u32,
    /// Place in the conversation; what is before it is not sent any more.
    pub upto: usize,
    #[serde(default, skip_serializing_if = "BackendName::is_default")]
    pub backend: BackendName,
    #[serde(flatten)]
    pub compaction: Compaction,
    pub tokens: TokenCount,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_micros: Option<u64>,
}

impl ContextCompacted {
    /// For everyone: what the backend made of it holds what nobody else is to read.
    pub(super) fn without_items(&self) -> Self {
        let compaction = match &self.compaction {
            Compaction::Summary { .. } => self.compaction.clone(),
            Compaction::Backend { .. } => Compaction::Backend { items: "".into() },
        };
        Self { compaction, ..self.clone() }
    }
}

/// What stands for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Compaction {
    /// What the executor was given at the very beginning, and what the model said when it was asked to sum the rest up.
    Summary { task: Arc<str>, text: Arc<str> },
    /// What the backend made of it: a JSON list of items, which only backends of its kind can read.
    Backend { items: Arc<str> },
}

/// Policy decided whether a hosted tool is declared to the backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostedDecided {
    /// Its place in the configuration's list, from 0.
    pub index: usize,
    /// Without credentials, and of a URL the server alone: `mcp docs at https://mcp.example.com`.
    pub tool: String,
    pub decision: Verdict,
    pub rule: RuleId,
    pub why: String,
    /// What the backend's running it may come to.
    #[serde(default = "unknown_class")]
    pub effect_class: EffectClass,
}

/// Of entries that do not say: the strictest.
fn unknown_class() -> EffectClass {
    EffectClass::NonIdempotent
}

impl HostedDecided {
    /// Whether a request that declares it may be made twice without anybody's leave.
    pub fn may_be_repeated(&self) -> bool {
        self.decision != Verdict::Allow || self.effect_class != EffectClass::NonIdempotent
    }
}

/// The model answered, and its terminal event has come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelResponse {
    pub turn: u32,
    pub attempt: u32,
    /// The backend's id of the response, where it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_id: Option<String>,
    /// Name of the model that answered, as the backend tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it said to people, all messages joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Arc<str>>,
    /// Set when the answer is not whole: `max_output_tokens`, `content_filter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
    /// In the model's order.
    pub items: Vec<AnsweredItem>,
    pub tokens: TokenCount,
    pub duration_ms: u64,
    /// By the price table as it was then, in millionths of a dollar; none where it has no price for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_micros: Option<u64>,
    #[serde(default, skip_serializing_if = "BackendName::is_default")]
    pub backend: BackendName,
    #[serde(default, skip_serializing_if = "Api::is_responses")]
    pub api: Api,
}

/// One item of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AnsweredItem {
    /// The backend's JSON, verbatim.
    pub raw: RawJson,
    /// What the item asks for, when it is a function call that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<AskedCall>,
}

/// A function call as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedCall {
    pub call_id: CallId,
    pub tool: ToolName,
    /// Meant to be a JSON object; not yet checked.
    pub arguments: Arc<str>,
}

/// A request to the model failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendError {
    pub turn: u32,
    pub attempt: u32,
    /// Stable, upper case: `BACKEND_UNAVAILABLE`, `RATE_LIMITED` and the like.
    pub reason: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Sent::is_maybe")]
    pub sent: Sent,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// The backend's id of the request, for its support.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request_id: Option<String>,
    /// When the next attempt is made; none when no attempt is left or would help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "BackendName::is_default")]
    pub backend: BackendName,
}

/// The backend does not work at all by now, and the run waits until it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendAwaited {
    pub turn: u32,
    /// The one that is to be made then.
    pub attempt: u32,
    pub backend: BackendName,
    /// What is wrong with it.
    pub why: String,
    /// When the run gives up.
    pub until: Timestamp,
}

/// From now on the run asks this backend by its chat API: it has no tools there, and gets none later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDegraded {
    /// The first that is asked so.
    pub turn: u32,
    pub backend: BackendName,
    pub why: String,
}

/// What a backend is and can do was found out, and is not what was known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityProbe {
    pub backend: BackendName,
    /// Without credentials.
    pub url: String,
    pub profile: ProfileName,
    pub colour: Colour,
    /// What is wrong with it, where something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    #[serde(flatten)]
    pub capabilities: Capabilities,
}

/// Whether a failed request may have reached the backend, and so may have cost something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sent {
    #[default]
    Maybe,
    /// There was no connection.
    Never,
}

impl Sent {
    /// By reference, as serde asks.
    fn is_maybe(&self) -> bool {
        *self == Self::Maybe
    }
}

/// The model said nothing at all and was told so, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNudged {
    pub turn: u32,
    pub text: Arc<str>,
}

impl ModelResponse {
    /// For everyone: the items themselves may hold what nobody else is to read.
    pub(super) fn without_raw_items(&self) -> Result<String, serde_json::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            turn: u32,
            attempt: u32,
            response_id: &'a Option<String>,
            model: &'a Option<String>,
            text: &'a Option<Arc<str>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            incomplete: &'a Option<String>,
            items: usize,
            calls: Vec<&'a AskedCall>,
            tokens: &'a TokenCount,
            duration_ms: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            cost_micros: Option<u64>,
            #[serde(skip_serializing_if = "BackendName::is_default")]
            backend: &'a BackendName,
            #[serde(skip_serializing_if = "Api::is_responses")]
            api: Api,
        }
        serde_json::to_string(&Shown {
            turn: self.turn,
            attempt: self.attempt,
            response_id: &self.response_id,
            model: &self.model,
            text: &self.text,
            incomplete: &self.incomplete,
            items: self.items.len(),
            calls: self.items.iter().filter_map(|item| item.call.as_ref()).collect(),
            tokens: &self.tokens,
            duration_ms: self.duration_ms,
            cost_micros: self.cost_micros,
            backend: &self.backend,
            api: self.api,
        })
    }
}
