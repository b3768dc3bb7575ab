//! What a request says, as far as a script needs it, and whether its calls and outputs are paired.

use serde::Deserialize;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Number of the answer that is asked for, from 1.
    pub turn: usize,
    /// The first user message.
    pub task: String,
    pub model: String,
    pub streaming: bool,
    /// Whether the answer is to have the shape of a schema.
    pub has_shape: bool,
    /// Outputs of tools, in the order of the conversation.
    pub outputs: Vec<String>,
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    model: String,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    text: Option<serde::de::IgnoredAny>,
    input: Input,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

/// Why a request is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// Its input is neither text nor a list.
    NoInput,
    /// In the words of the servers that check it.
    Wrong(String),
}

#[derive(Deserialize)]
struct Item {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    role: String,
    #[serde(default)]
    call_id: String,
    #[serde(default)]
    content: Content,
    #[serde(default)]
    output: String,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Content {
    Text(String),
    Other(serde::de::IgnoredAny),
    #[default]
    None,
}

impl Seen {
    /// Errors: not a request, or a call without its output, or an output without its call; in the words
    /// of the servers that check it.
    pub(super) fn read(body: &[u8]) -> Result<Self, Unread> {
        let request: Request =
            serde_json::from_slice(body).map_err(|error| unread(body, &error))?;
        let input = match request.input {
            Input::Text(text) => vec![Item::said(text)],
            Input::Items(items) => items,
        };
        check_pairing(&input).map_err(Unread::Wrong)?;
        let mut seen = Self {
            turn: 1,
            task: String::new(),
            model: request.model,
            streaming: request.stream,
            has_shape: request.text.is_some(),
            outputs: Vec::new(),
        };
        let mut users = 0;
        let mut before_was_output = false;
        for item in input {
            let is_output = item.kind == "function_call_output";
            if is_output {
                seen.turn += usize::from(!before_was_output);
                seen.outputs.push(item.output);
            } else if item.role == "user" {
                users += 1;
                // What is said together with outputs asks for no answer of its own.
                seen.turn += usize::from(users > 1 && !before_was_output);
                if let (1, Content::Text(text)) = (users, item.content) {
                    seen.task = text;
                }
            }
            before_was_output = is_output;
        }
        Ok(seen)
    }
}

fn unread(body: &[u8], error: &serde_json::Error) -> Unread {
    #[derive(Deserialize)]
    struct Bare {
        input: u64,
    }
    match serde_json::from_slice::<Bare>(body) {
        Ok(Bare { input: 0 }) => Unread::NoInput,
        _ => Unread::Wrong(format!("the body is no request: {error}")),
    }
}

impl Item {
    fn said(text: String) -> Self {
        Self {
            kind: "message".into(),
            role: "user".into(),
            call_id: String::new(),
            content: Content::Text(text),
            output: String::new(),
        }
    }
}

fn check_pairing(items: &[Item]) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    for item in items {
        match item.kind.as_str() {
            "function_call" if item.call_id.is_empty() => {
                return Err("a function call has no call_id".into());
            }
            "function_call" => open.push(&item.call_id),
            "function_call_output" => match open.iter().position(|id| *id == item.call_id) {
                Some(place) => drop(open.swap_remove(place)),
                None => {
                    return Err(format!(
                        "No tool call found for function call output with call_id {}.",
                        item.call_id
                    ));
                }
            },
            _ => {}
        }
    }
    match open.first() {
        Some(id) => Err(format!("No tool output found for function call {id}.")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(input: serde_json::Value) -> Result<Seen, Unread> {
        Seen::read(json!({"model": "m", "input": input}).to_string().as_bytes())
    }

    #[test]
    fn turns_are_counted_by_the_groups_of_outputs() {
        let call = |id: &str| json!({"type": "function_call", "call_id": id});
        let output =
            |id: &str| json!({"type": "function_call_output", "call_id": id, "output": id});
        let user = json!({"type": "message", "role": "user", "content": "task"});
        let seen = read(json!([
            user,
            call("a"),
            call("b"),
            output("a"),
            output("b"),
            call("c"),
            output("c")
        ]));
        let seen = seen.unwrap();
        assert_eq!((seen.turn, seen.task.as_str(), seen.outputs.len()), (3, "task", 3));
    }

    #[test]
    fn an_open_call_and_a_stray_output_are_refused() {
        let call = json!({"type": "function_call", "call_id": "a"});
        let output = json!({"type": "function_call_output", "call_id": "a", "output": ""});
        let wrong = |input| match read(input) {
            Err(Unread::Wrong(why)) => why,
            read => panic!("{read:?}"),
        };
        assert!(wrong(json!([call])).starts_with("No tool output found"));
        assert!(wrong(json!([output])).starts_with("No tool call found"));
        assert_eq!(read(json!(0)), Err(Unread::NoInput));
    }
}
