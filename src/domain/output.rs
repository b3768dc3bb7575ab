//! The last words of an agent that is to answer in a shape of its own: the JSON in them, if it keeps to the schema. Pure.

use std::sync::Arc;

use serde_json::Value;

/// Longest complaint, in characters.
const WHY_CHARS: usize = 400;

/// Whether that is a schema that words can be held to. Errors: in words.
pub fn check_schema(schema: &Value) -> Result<(), String> {
    jsonschema::validator_for(schema).map(drop).map_err(|error| error.to_string())
}

/// The JSON in an answer, which keeps to the schema.
///
/// Errors: in words that the model can do something with.
pub fn read(schema: &str, answer: &str) -> Result<Arc<str>, String> {
    let schema: Value = serde_json::from_str(schema).map_err(|error| error.to_string())?;
    let validator = jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
    let text = json(answer).ok_or("there is no JSON in it")?;
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    match validator.validate(&value) {
        Ok(()) => Ok(text.into()),
        Err(error) => {
            let at = error.instance_path().to_string();
            let why = format!("{}{}{error}", at, if at.is_empty() { "" } else { ": " });
            Err(why.chars().take(WHY_CHARS).collect())
        }
    }
}

/// The JSON of an answer: models like to put it between words, or into a fence.
fn json(answer: &str) -> Option<&str> {
    let start = answer.find(['{', '['])?;
    let end = answer.rfind(['}', ']'])?;
    (start < end).then(|| &answer[start..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str =
        r#"{"type":"object","properties":{"risk":{"enum":["low","high"]}},"required":["risk"]}"#;

    #[test]
    fn what_keeps_to_the_schema_is_taken_out_of_the_words_around_it() {
        let answer = "Here:\n```json\n{\"risk\": \"low\"}\n```";
        assert_eq!(read(SCHEMA, answer).unwrap().as_ref(), r#"{"risk": "low"}"#);
    }

    #[test]
    fn what_does_not_is_refused_in_words() {
        assert!(read(SCHEMA, "I cannot tell.").unwrap_err().contains("no JSON"));
        assert!(read(SCHEMA, r#"{"risk": "some"}"#).unwrap_err().contains("/risk"));
        assert!(read(SCHEMA, "{}").unwrap_err().contains("risk"));
        assert!(check_schema(&serde_json::json!({"type": "teleport"})).is_err());
    }
}
