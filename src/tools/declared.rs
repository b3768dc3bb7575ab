//! Tools that the operator declared: a command, a JSON Schema, and nothing of ours in between. The
//! command reads the call's arguments as JSON from its standard input; words of it may name arguments.

use serde_json::Value;

use crate::{
    domain::{
        effect::{Effect, EffectResult, Exit, Ran},
        tool::{Declaration, ToolOutcome, ToolSpec, Word},
    },
    tools::{BadCall, Tool, arguments, other, text},
};

/// One declared tool.
#[derive(Debug)]
pub(super) struct Declared(pub(super) Declaration);

impl Tool for Declared {
    fn spec(&self) -> ToolSpec {
        self.0.spec.clone()
    }

    fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let given: serde_json::Map<String, Value> = arguments(raw)?;
        let mut argv = vec![self.0.program.clone()];
        for word in &self.0.words {
            match word {
                Word::Literal(word) => argv.push(word.clone()),
                Word::Argument(name) => argv.extend(word_of(name, given.get(name))?),
            }
        }
        let input = Value::Object(given).to_string().into();
        Ok(Effect::RunDeclared { program: self.0.program.clone(), argv, input })
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        match result {
            EffectResult::Ran(ran) => self.ran(&ran),
            result => other(self.0.spec.name.as_str(), result),
        }
    }
}

impl Declared {
    fn ran(&self, ran: &Ran) -> ToolOutcome {
        let stderr = || text(&ran.stderr);
        let failed = |reason: &str, message: String| {
            let found = [("stdout", text(&ran.stdout)), ("stderr", stderr())];
            let found = found.map(|(name, text)| (name.to_owned(), text.into()));
            ToolOutcome::failed_with(reason, &message, found.into_iter().collect())
        };
        match ran.exit {
            Exit::Code(0) => {}
            Exit::Code(code) => {
                return failed("EXIT_STATUS", format!("the command ended with status {code}"));
            }
            Exit::Signal(signal) => {
                return failed("SIGNAL", format!("the command was killed by signal {signal}"));
            }
            Exit::TimedOut => return failed("TIMEOUT", "the command took too long".into()),
            Exit::OutOfMemory => {
                return failed("OUT_OF_MEMORY", "the command wanted too much memory".into());
            }
            Exit::CpuTime => {
                return failed("CPU_TIME", "the command used up its CPU time".into());
            }
            Exit::Processes => {
                return failed(
                    "TOO_MANY_PROCESSES",
                    "the command wanted too many processes".into(),
                );
            }
            Exit::Output => {
                return failed("TOO_MUCH_OUTPUT", "the command wrote more than it may".into());
            }
            Exit::Stopped => {
                return ToolOutcome::cancelled("the run was cancelled; the command was killed");
            }
        }
        if self.0.spec.result.is_none() {
            let mut shown = serde_json::json!({"stdout": text(&ran.stdout), "stderr": stderr()});
            if !ran.network.refusals.is_empty() {
                shown["network_refused"] = ran.network.refusals.clone().into();
            }
            return ToolOutcome::done(&shown);
        }
        // A result that was cut cannot be JSON.
        match serde_json::from_slice::<Value>(&ran.stdout.whole()) {
            Ok(result) if ran.stdout.dropped == 0 => ToolOutcome::done(&result),
            Ok(_) => failed("RESULT_TOO_LONG", "the command wrote too much".into()),
            Err(error) => {
                failed("RESULT_NOT_JSON", format!("the command's output is not JSON: {error}"))
            }
        }
    }
}

/// The word that an argument becomes; none for one that is not given.
fn word_of(name: &str, value: Option<&Value>) -> Result<Option<String>, BadCall> {
    let bad = |what: &str| Err(BadCall::arguments(format!("/{name}: {what}")));
    let word = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Number(value)) => value.to_string(),
        Some(Value::Array(_) | Value::Object(_)) => {
            return bad("must be a string, a number or a boolean to be a word of a command");
        }
    };
    match word {
        // The command would take it for an option of its own.
        word if word.starts_with('-') && !matches!(value, Some(Value::Number(_))) => {
            bad("begins with '-', which the command would take for an option")
        }
        word if word.contains('\0') => bad("contains a NUL byte"),
        word => Ok(Some(word)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_argument_becomes_one_word_and_never_an_option() {
        let word = |value: Value| word_of("path", Some(&value)).map_err(|bad| bad.message);
        assert_eq!(word(json!("a b; rm")), Ok(Some("a b; rm".into())));
        assert_eq!(word(json!(-3)), Ok(Some("-3".into())));
        assert_eq!(word(json!(null)), Ok(None));
        assert!(word(json!("--exec=x")).unwrap_err().starts_with("/path: begins with '-'"));
        assert!(word(json!(["a"])).is_err());
        assert!(word(json!("a\0b")).is_err());
    }
}
