//! `shell_exec`: one program with its arguments, and no shell. A command given as one string is split
//! into words as a shell would, and anything only a shell could do is refused.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        effect::{Effect, EffectResult, Exit},
        tool::{ToolOutcome, ToolSpec},
    },
    tools::{BadCall, Tool, arguments, done, other, spec, text},
};

#[derive(Debug)]
pub(super) struct ShellExec;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Arguments {
    /// The program and its arguments: a list of words, or one string that is split into words. There
    /// is no shell: no pipes, no redirection, no variables, one program a call.
    command: Command,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Command {
    Words(Vec<String>),
    Line(String),
}

#[derive(Serialize, JsonSchema)]
struct Answer {
    /// Exit status of the program; absent when it did not end by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    /// Signal that killed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    /// Limit that ended it, or one of its processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
    stdout: String,
    stderr: String,
    wall_ms: u64,
    /// What it wanted to reach and may not, one line each.
    #[serde(skip_serializing_if = "Option::is_none")]
    network_refused: Option<Vec<String>>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Limit {
    /// It took too long.
    Timeout,
    /// It wanted too much memory.
    Oom,
    /// It used up its CPU time.
    Cpu,
    /// It wanted too many processes.
    Pids,
    /// It wrote too much.
    Output,
}

/// Most words of a command.
const MOST_WORDS: usize = 256;
/// Words that mean something to a shell and nothing to a program.
const SHELL_WORDS: [&str; 12] =
    ["|", "||", "&", "&&", ";", ">", ">>", "<", "<<", "2>", "2>&1", "&>"];

impl Tool for ShellExec {
    fn spec(&self) -> ToolSpec {
        spec::<Arguments, Answer>(
            "shell_exec",
            "Runs one program in the workspace and shows its exit code and output. Only commands on \
             the allowlist run; there is no shell.",
        )
    }

    fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let Arguments { command } = arguments(raw)?;
        let argv = match command {
            Command::Words(words) => words,
            Command::Line(line) => split(&line)?,
        };
        check(&argv)?;
        Ok(Effect::Spawn { argv })
    }

    fn outcome(&self, result: EffectResult) -> ToolOutcome {
        let ran = match result {
            EffectResult::Ran(ran) => ran,
            result => return other("shell_exec", result),
        };
        let mut answer = Answer {
            exit_code: None,
            signal: None,
            limit: None,
            stdout: text(&ran.stdout),
            stderr: text(&ran.stderr),
            wall_ms: ran.wall_ms,
            network_refused: Some(ran.network.refusals).filter(|refusals| !refusals.is_empty()),
        };
        match ran.exit {
            Exit::Code(code) => {
                answer.exit_code = Some(code);
                answer.limit = ran.ran_out_of_memory.then_some(Limit::Oom);
            }
            Exit::Signal(signal) => answer.signal = Some(signal),
            Exit::TimedOut => answer.limit = Some(Limit::Timeout),
            Exit::OutOfMemory => answer.limit = Some(Limit::Oom),
            Exit::CpuTime => answer.limit = Some(Limit::Cpu),
            Exit::Processes => answer.limit = Some(Limit::Pids),
            Exit::Output => answer.limit = Some(Limit::Output),
            Exit::Stopped => {
                return ToolOutcome::cancelled("the run was cancelled; the program was killed");
            }
        }
        done(&answer)
    }
}

fn no_shell(message: String) -> BadCall {
    BadCall::new("builtin/no-shell", message)
}

/// Splits a line into words, and refuses what would not mean the same without a shell.
fn split(line: &str) -> Result<Vec<String>, BadCall> {
    // shlex takes a line break for a space and drops comments: a second command would slip through.
    if line.contains(['\n', '\r', '\0']) {
        return Err(no_shell("a command is one line; give a list of words instead".into()));
    }
    if line.split_whitespace().any(|word| word.starts_with('#')) {
        return Err(no_shell("a word begins with '#'; give a list of words instead".into()));
    }
    shlex::split(line).ok_or_else(|| {
        no_shell(format!("the quotes in {line:?} do not close; give a list of words"))
    })
}

fn check(argv: &[String]) -> Result<(), BadCall> {
    let bad = |message: &str| Err(BadCall::arguments(message.to_owned()));
    match argv {
        [] => return bad("the command is empty; give a program and its arguments"),
        [program, ..] if program.is_empty() => return bad("the program's name is empty"),
        words if words.len() > MOST_WORDS => return bad("a command has at most 256 words"),
        words if words.iter().any(|word| word.contains('\0')) => {
            return bad("a word contains a NUL byte");
        }
        _ => {}
    }
    let shell_word = argv.iter().find(|word| {
        SHELL_WORDS.contains(&word.as_str()) || word.starts_with("$(") || word.starts_with('`')
    });
    match shell_word {
        Some(word) => Err(no_shell(format!(
            "there is no shell, so {word:?} would not do what it says; run one program a call"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn argv(arguments: serde_json::Value) -> Result<Vec<String>, String> {
        match ShellExec.effect(&arguments.to_string()) {
            Ok(Effect::Spawn { argv }) => Ok(argv),
            Ok(other) => panic!("{other:?}"),
            Err(bad) => Err(bad.rule.as_str().to_owned()),
        }
    }

    #[test]
    fn a_line_is_split_into_words_and_a_list_is_taken_as_it_is() {
        let words = |words: &[&str]| Ok(words.iter().map(|w| (*w).to_owned()).collect());
        assert_eq!(
            argv(json!({"command": "grep -n 'a b' src"})),
            words(&["grep", "-n", "a b", "src"])
        );
        assert_eq!(argv(json!({"command": ["echo", "a b"]})), words(&["echo", "a b"]));
    }

    #[test]
    fn what_only_a_shell_could_do_is_refused() {
        for line in [
            "git status\nid",
            "git status # x",
            "git log | head",
            "make && id",
            "echo $(id)",
            "echo `id`",
            "echo a > b",
            "echo 'open",
        ] {
            assert_eq!(argv(json!({"command": line})), Err("builtin/no-shell".into()), "{line}");
        }
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused_with_the_rule_that_says_so() {
        for arguments in [
            json!({}),
            json!({"command": []}),
            json!({"command": ""}),
            json!({"command": 7}),
            json!({"command": "ls", "disable_sandbox": true}),
            json!([1]),
        ] {
            assert_eq!(argv(arguments.clone()), Err("builtin/arguments".into()), "{arguments}");
        }
    }
}
