//! What an agent may want of the run and of other agents, as tools: to hand the conversation over, to ask another one, to
//! revise the plan. Which tools those are, how their arguments read, and what the others are told.

use std::sync::Arc;

use serde::Deserialize;

use crate::{
    agents::Agent,
    domain::{
        ids::ToolName,
        journal::{Colleague, Errand},
        plan::{Plan, Step},
        tool::{NAME_BYTES, ToolSpec},
    },
};

const HAND_OFF: &str = "transfer_to_";
const ASK: &str = "ask_";
/// Name of the tool that replaces what is left of a plan.
pub const REVISE_PLAN: &str = "revise_plan";

const HAND_OFF_SCHEMA: &str = r#"{"type":"object","properties":{"message":{"type":"string","description":"What it should know besides what was said so far"}},"required":["message"],"additionalProperties":false}"#;
const ASK_SCHEMA: &str = r#"{"type":"object","properties":{"input":{"type":"string","description":"The whole question or task: it knows nothing of what was said here"}},"required":["input"],"additionalProperties":false}"#;
const REVISE_SCHEMA: &str = r#"{"type":"object","properties":{"why":{"type":"string","description":"What is wrong with the plan"},"steps":{"type":"array","description":"In the place of the step under way and all that follow","items":{"type":"object","properties":{"intent":{"type":"string"},"tools":{"type":"array","items":{"type":"string"}},"check":{"type":"string"}},"required":["intent","tools","check"],"additionalProperties":false}}},"required":["why","steps"],"additionalProperties":false}"#;

/// A tool that carries out an errand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrandTool {
    pub spec: ToolSpec,
    pub errand: Errand,
}

/// What a call of such a tool says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Message(String),
    Revised { steps: Vec<Step>, why: String },
}

/// Longest name of an agent that others may call, in bytes: it is a part of the name of a tool.
pub const NAME_MOST: usize = NAME_BYTES - HAND_OFF.len();

/// The tools of an agent that may hand over to some, and ask some.
pub fn tools(hand_offs: &[&Agent], asks: &[&Agent]) -> Vec<ErrandTool> {
    let hand_offs = hand_offs.iter().map(|agent| {
        let description = format!(
            "Hands the conversation over to the agent {}, who goes on from here in your place: {}",
            agent.name, agent.description
        );
        let errand = Errand::HandOff(colleague(agent));
        tool(&named(HAND_OFF, &agent.name), &description, HAND_OFF_SCHEMA, errand)
    });
    let asks = asks.iter().map(|agent| {
        let description = format!(
            "Asks the agent {} and waits for its answer: {}. Say all that it needs to know",
            agent.name,
            agent.description.trim_end_matches('.')
        );
        tool(&named(ASK, &agent.name), &description, ASK_SCHEMA, Errand::Ask(colleague(agent)))
    });
    hand_offs.chain(asks).collect()
}

/// The tool with which an executor puts other steps in the place of those that are left.
pub fn revise_plan() -> ErrandTool {
    let description = "Replaces the step under way and all that follow by other steps, when the plan turns out to be \
                       wrong. What is done stays done; the first of the new steps is under way then";
    tool(REVISE_PLAN, description, REVISE_SCHEMA, Errand::RevisePlan)
}

fn tool(name: &str, description: &str, parameters: &str, errand: Errand) -> ErrandTool {
    let spec = ToolSpec {
        name: ToolName::new(name),
        description: description.into(),
        parameters: parameters.into(),
        result: None,
    };
    ErrandTool { spec, errand }
}

/// Names of tools are written with `_`; names of agents have none.
fn named(prefix: &str, agent: &str) -> String {
    format!("{prefix}{}", agent.replace('-', "_"))
}

fn colleague(agent: &Agent) -> Colleague {
    Colleague {
        name: agent.name.as_str().into(),
        role: agent.role.clone(),
        output: agent.output.clone(),
        max_turns: agent.max_turns,
    }
}

/// Reads the arguments of a call.
///
/// Errors: what is wrong with them, for the model.
pub fn read(errand: &Errand, arguments: &str) -> Result<Said, String> {
    #[derive(Deserialize)]
    struct Message {
        #[serde(default)]
        message: String,
    }
    #[derive(Deserialize)]
    struct Input {
        input: String,
    }
    #[derive(Deserialize)]
    struct Why {
        #[serde(default)]
        why: String,
    }
    let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
    // A list would do for the parser, by the order of its items.
    if !arguments.trim_start().starts_with('{') {
        return Err("the arguments must be a JSON object".into());
    }
    let unread = |error: serde_json::Error| format!("the arguments cannot be read: {error}");
    match errand {
        Errand::HandOff(_) => {
            let Message { message } = serde_json::from_str(arguments).map_err(unread)?;
            Ok(Said::Message(message))
        }
        Errand::Ask(_) => {
            let Input { input } = serde_json::from_str(arguments).map_err(unread)?;
            match input.trim().is_empty() {
                true => Err("`input` is empty; say what is asked".into()),
                false => Ok(Said::Message(input)),
            }
        }
        Errand::RevisePlan => {
            let Why { why } = serde_json::from_str(arguments).map_err(unread)?;
            let Plan { steps } = Plan::read(arguments)?;
            Ok(Said::Revised { steps, why })
        }
    }
}

/// What an agent is told to whom the conversation was handed over.
pub fn handed_over(from: &str, message: &str) -> String {
    let message = message.trim();
    match message.is_empty() {
        true => format!("The agent {from} handed this over to you: go on from here."),
        false => format!("The agent {from} handed this over to you, and says: {message}"),
    }
}

/// What whoever was asked has answered, for the agent that asked.
pub fn answered(by: &str, answer: &str) -> serde_json::Value {
    /// Longest answer that is passed on, in bytes: the head and the tail of a longer one.
    const MOST: usize = 64 << 10;
    let answer = super::reviewer::head_and_tail(answer, MOST);
    serde_json::json!({ "agent": by, "answer": answer })
}

/// Names of those to whom these tools hand over, and of those whom they ask.
pub fn named_in(tools: &[ErrandTool]) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
    let (mut hand_offs, mut asks) = (Vec::new(), Vec::new());
    for tool in tools {
        match &tool.errand {
            Errand::HandOff(to) => hand_offs.push(to.name.clone()),
            Errand::Ask(of) => asks.push(of.name.clone()),
            Errand::RevisePlan => {}
        }
    }
    (hand_offs, asks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::{built_in, executor};

    #[test]
    fn a_hand_off_and_an_asking_are_tools_named_after_the_agent() {
        let executor = built_in().into_iter().find(|agent| agent.name == executor::NAME).unwrap();
        let fixer = Agent { name: "code-fixer".into(), ..executor };
        let tools = tools(&[&fixer], &[&fixer]);
        let names: Vec<&str> = tools.iter().map(|tool| tool.spec.name.as_str()).collect();
        assert_eq!(names, ["transfer_to_code_fixer", "ask_code_fixer"]);
        assert!(tools.iter().all(|tool| tool.spec.description.contains("code-fixer")));
        for tool in &tools {
            let schema: serde_json::Value = serde_json::from_str(&tool.spec.parameters).unwrap();
            assert!(jsonschema::validator_for(&schema).is_ok(), "{schema}");
        }
    }

    #[test]
    fn arguments_are_read_or_refused_in_words() {
        let tools = [revise_plan()];
        let revise = |text: &str| read(&tools[0].errand, text);
        let steps = r#"[{"intent": "x", "tools": [], "check": "y"}]"#;
        let Ok(Said::Revised { steps, why }) =
            revise(&format!(r#"{{"why": "no such file", "steps": {steps}}}"#))
        else {
            panic!()
        };
        assert_eq!((steps[0].check.as_str(), why.as_str()), ("y", "no such file"));
        for (text, words) in [
            ("{\"steps\": []}", "1 to 40"),
            ("{", "cannot be read"),
            ("[]", "must be a JSON object"),
        ] {
            assert!(revise(text).unwrap_err().contains(words), "{text}");
        }
    }
}
