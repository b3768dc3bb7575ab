//! What is known of a model server: its name in the configuration, which API it is spoken to by, what it can do, and how
//! it is. Pure.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Name of a backend in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackendName(Arc<str>);

impl BackendName {
    /// The backend of everybody who names none.
    pub const DEFAULT: &str = "default";

    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the one that need not be named.
    pub fn is_default(&self) -> bool {
        &*self.0 == Self::DEFAULT
    }
}

impl Default for BackendName {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The API that a request to a backend is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `POST /v1/responses`, with tools.
    #[default]
    Responses,
    /// `POST /v1/chat/completions`, read-only: no tool is declared, and none is ever run.
    Chat,
}

impl Api {
    pub fn is_responses(&self) -> bool {
        *self == Self::Responses
    }
}

/// What a probe found that a backend can do; none where it could not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// `/v1/agents`, the vendor's own loop: looked for, never used.
    pub agents: Option<bool>,
    pub responses: Option<bool>,
    pub chat: Option<bool>,
    /// Whether answers come as they are written.
    pub streaming: Option<bool>,
    /// Whether it knows earlier responses by their ids. agentd never relies on it.
    pub stateful: Option<bool>,
    /// Whether answers can be held to a JSON schema.
    pub structured_output: Option<bool>,
    /// Whether it makes long conversations shorter by itself.
    pub compaction: Option<bool>,
}

impl Capabilities {
    /// Each by its name.
    pub fn named(&self) -> [(&'static str, Option<bool>); 7] {
        [
            ("agents", self.agents),
            ("responses", self.responses),
            ("chat", self.chat),
            ("streaming", self.streaming),
            ("stateful", self.stateful),
            ("structured_output", self.structured_output),
            ("compaction", self.compaction),
        ]
    }

    /// What is new, and what was known where the new look could not tell.
    pub fn or(self, known: Self) -> Self {
        Self {
            agents: self.agents.or(known.agents),
            responses: self.responses.or(known.responses),
            chat: self.chat.or(known.chat),
            streaming: self.streaming.or(known.streaming),
            stateful: self.stateful.or(known.stateful),
            structured_output: self.structured_output.or(known.structured_output),
            compaction: self.compaction.or(known.compaction),
        }
    }

    /// The API by which a run is to ask: the chat one only where the other is known to be absent, and it is not.
    pub fn api(&self) -> Api {
        match (self.responses, self.chat) {
            (Some(false), Some(true) | None) => Api::Chat,
            _ => Api::Responses,
        }
    }
}

/// `agents=true responses=true chat=unknown ...`, as in the log.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (name, found)) in self.named().into_iter().enumerate() {
            let space = if place > 0 { " " } else { "" };
            match found {
                Some(found) => write!(f, "{space}{name}={found}")?,
                None => write!(f, "{space}{name}=unknown")?,
            }
        }
        Ok(())
    }
}

/// A kind of model server, with quirks of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileName {
    OpenAi,
    LmStudio,
    LlamaCpp,
    Ollama,
    Vllm,
    /// None of them, as far as one can tell.
    #[default]
    Generic,
}

impl ProfileName {
    pub const ALL: [Self; 6] =
        [Self::OpenAi, Self::LmStudio, Self::LlamaCpp, Self::Ollama, Self::Vllm, Self::Generic];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::LmStudio => "lmstudio",
            Self::LlamaCpp => "llamacpp",
            Self::Ollama => "ollama",
            Self::Vllm => "vllm",
            Self::Generic => "generic",
        }
    }

    /// The profile of that name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.as_str() == text)
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a backend or the daemon is, worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    Green,
    /// It works, but not with all that it should.
    Degraded,
    Red,
}

impl Colour {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Green => "green",
            Self::Degraded => "degraded",
            Self::Red => "red",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_backend_that_is_known_to_lack_the_one_api_is_asked_by_the_other() {
        let api = |responses, chat| Capabilities { responses, chat, ..Default::default() }.api();
        assert_eq!(api(Some(false), Some(true)), Api::Chat);
        // Some fall over what is not quite a request.
        assert_eq!(api(Some(false), None), Api::Chat);
        for (responses, chat) in
            [(None, Some(true)), (Some(true), Some(true)), (Some(false), Some(false)), (None, None)]
        {
            assert_eq!(api(responses, chat), Api::Responses, "{responses:?} {chat:?}");
        }
    }

    #[test]
    fn what_was_known_stays_known_where_a_look_could_not_tell() {
        let known =
            Capabilities { responses: Some(true), stateful: Some(false), ..Default::default() };
        let new = Capabilities { responses: Some(false), ..Default::default() };
        let both = new.or(known);
        assert_eq!((both.responses, both.stateful), (Some(false), Some(false)));
        assert_eq!(
            both.to_string(),
            "agents=unknown responses=false chat=unknown streaming=unknown stateful=false structured_output=unknown compaction=unknown"
        );
    }
}
