//! Scripts: what is answered, turn by turn, as people and tests write it.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    scripted::{Brain, request::Seen},
    yaml,
};

/// What the model says and asks for, turn by turn.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    pub turns: Vec<Turn>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Turn {
    /// Words for people; empty for none.
    pub say: String,
    /// What it thinks before that; empty for nothing.
    pub think: String,
    /// How many tokens it says it read; made up where it is not given.
    pub input_tokens: Option<u64>,
    pub calls: Vec<Call>,
}

/// One function call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    pub tool: String,
    pub arguments: Arguments,
    /// Made up from turn and place where it is not given.
    #[serde(default)]
    pub call_id: Option<String>,
}

/// A call's arguments.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Arguments {
    /// Sent as it stands, so that a script can be malformed.
    Text(String),
    Json(Value),
}

/// What is answered to one request.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Answer(Turn),
    /// An answer that is cut off after so many events of its stream.
    Cut {
        turn: Turn,
        events: usize,
    },
    /// An answer that says of itself that it was cut off.
    Incomplete {
        turn: Turn,
        reason: String,
    },
    /// Any other answer, as it stands.
    Http {
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// No answer at all.
    Hang,
}

impl Script {
    /// Reads a script from YAML. Errors carry file, line and column.
    pub fn parse(file: &str, text: &str) -> Result<Self, yaml::YamlError> {
        yaml::parse(file, text)
    }
}

impl Brain for Script {
    fn reply(&self, seen: &Seen) -> Reply {
        match self.turns.get(seen.turn - 1) {
            Some(turn) => Reply::Answer(turn.clone()),
            None => Reply::Http {
                status: 400,
                headers: Vec::new(),
                body: format!(
                    "{{\"error\":{{\"message\":\"the script has {} turns, this is turn {}\"}}}}",
                    self.turns.len(),
                    seen.turn
                ),
            },
        }
    }
}

/// Several conversations, each with a script of its own.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Play {
    /// The first whose beginning fits is meant.
    pub conversations: Vec<Conversation>,
}

/// A conversation, known by its first user message.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// Empty: any.
    #[serde(default)]
    pub begins: String,
    pub turns: Vec<Turn>,
}

impl Play {
    /// Reads a play from YAML. Errors carry file, line and column.
    pub fn parse(file: &str, text: &str) -> Result<Self, yaml::YamlError> {
        yaml::parse(file, text)
    }
}

impl Brain for Play {
    fn reply(&self, seen: &Seen) -> Reply {
        let fits = |one: &&Conversation| seen.task.starts_with(&one.begins);
        let turns = self.conversations.iter().find(fits).map(|one| one.turns.clone());
        Script { turns: turns.unwrap_or_default() }.reply(seen)
    }
}

impl Turn {
    /// An answer that only says something.
    pub fn say(words: &str) -> Self {
        Self { say: words.into(), ..Self::default() }
    }

    /// An answer that asks for one call.
    pub fn call(tool: &str, arguments: Value) -> Self {
        Self::default().and_call(tool, arguments)
    }

    /// The same with a thought before it.
    pub fn thinking(self, thought: &str) -> Self {
        Self { think: thought.into(), ..self }
    }

    /// The same with one more call.
    pub fn and_call(mut self, tool: &str, arguments: Value) -> Self {
        self.calls.push(Call {
            tool: tool.into(),
            arguments: Arguments::Json(arguments),
            call_id: None,
        });
        self
    }
}

impl Arguments {
    pub(super) fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Json(value) => value.to_string(),
        }
    }
}
