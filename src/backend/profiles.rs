//! What is known of each kind of model server: what is left out of requests to it, what is not believed of its answers,
//! and where that was learned. Hints choose a profile, the configuration may choose another; none decides what a server
//! can do: see `capabilities`.

use reqwest::header::HeaderMap;
use serde_json::Value;

use crate::domain::backend::ProfileName;

/// How requests and answers of one kind of server differ from what the specification says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    pub name: ProfileName,
    /// Types of items that it takes; of the others, which only it or another server can have made, none is sent back.
    pub takes: Takes,
    /// Whether it is told of tools that backends run themselves.
    pub hosted_tools: Hosted,
    /// Where answers may be held to a JSON schema, if at all.
    pub shapes: Shapes,
    /// Whether reasoning is asked for in the form that it can be sent back in.
    pub asks_for_reasoning: bool,
    /// Whether it says of an answer that was cut off that it is whole.
    pub calls_cut_answers_whole: bool,
    /// Whether it drops the beginning of what is too long, and does not say so.
    pub cuts_silently: bool,
    /// What each of this is for: the quirk, and where it is told of.
    pub lessons: &'static [Lesson],
}

/// Types of items that a server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Everything,
    Only(&'static [&'static str]),
}

/// Hosted tools that a server is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hosted {
    All,
    OnlyMcp,
    None,
}

/// When a server holds an answer to a JSON schema as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shapes {
    /// Also where the model may call tools instead.
    Always,
    /// Where it has tools, the schema would keep it from calling them.
    WithoutTools,
}

/// A quirk, what is done about it, and who told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lesson {
    pub quirk: &'static str,
    pub done: &'static str,
    pub source: &'static str,
}

const fn lesson(quirk: &'static str, done: &'static str, source: &'static str) -> Lesson {
    Lesson { quirk, done, source }
}

const PLAIN: Profile = Profile {
    name: ProfileName::Generic,
    takes: Takes::Everything,
    hosted_tools: Hosted::All,
    shapes: Shapes::WithoutTools,
    asks_for_reasoning: false,
    calls_cut_answers_whole: false,
    cuts_silently: false,
    lessons: &[],
};

const OPENAI: Profile = Profile {
    name: ProfileName::OpenAi,
    asks_for_reasoning: true,
    shapes: Shapes::Always,
    lessons: &[lesson(
        "reasoning items that are not stored are unknown when they come back (404)",
        "they are asked for with their encrypted content, and go back whole",
        "openai/openai-agents-python #722",
    )],
    ..PLAIN
};

const LM_STUDIO: Profile = Profile {
    name: ProfileName::LmStudio,
    hosted_tools: Hosted::OnlyMcp,
    lessons: &[
        lesson(
            "unknown routes are answered with 200 and a string as error",
            "what it can do is told by bodies and never by the status alone",
            "lmstudio-ai/lmstudio-bug-tracker #618, #1323, #2085",
        ),
        lesson(
            "answers lack tools, annotations and the details of usage",
            "nothing is missed that agentd does not act on",
            "0xPlaygrounds/rig #1021",
        ),
        lesson(
            "of hosted tools it knows remote MCP servers alone",
            "it is told of no others",
            "LM Studio's documentation of /v1/responses",
        ),
    ],
    ..PLAIN
};

const LLAMA_CPP: Profile = Profile {
    name: ProfileName::LlamaCpp,
    takes: Takes::Only(&["message", "function_call", "function_call_output"]),
    hosted_tools: Hosted::None,
    calls_cut_answers_whole: true,
    lessons: &[
        lesson(
            "an answer that ends at its limit says that it is completed",
            "one that has as many tokens as it may have counts as cut off",
            "docs/reports/llama-cpp.md",
        ),
        lesson(
            "reasoning items without a summary or a content are refused (400)",
            "reasoning is not sent back",
            "ggml-org/llama.cpp #29159, PR #27751",
        ),
        lesson(
            "tools that are no functions are refused by older builds (400), and skipped by newer ones",
            "it is told of none",
            "ggml-org/llama.cpp #20156",
        ),
        lesson(
            "the code of an error is an integer",
            "errors are read whatever their code is",
            "llama.cpp's tools/server",
        ),
    ],
    ..PLAIN
};

const OLLAMA: Profile = Profile {
    name: ProfileName::Ollama,
    takes: Takes::Only(&["message", "function_call", "function_call_output", "reasoning"]),
    hosted_tools: Hosted::None,
    calls_cut_answers_whole: true,
    cuts_silently: true,
    lessons: &[
        lesson(
            "an answer that was cut off says that it is completed",
            "one that has as many tokens as it may have counts as cut off",
            "ollama/ollama PR #17239",
        ),
        lesson(
            "a conversation that is too long loses its beginning without a word",
            "the tokens that it says it read are compared with what was sent; a conversation that was cut is compacted",
            "ollama/ollama's documentation of the context length",
        ),
        lesson(
            "ids are drawn from a million, and come again",
            "calls are known by their turn and their place",
            "ollama/ollama's openai/responses.go",
        ),
        lesson(
            "items of unknown types are refused (400)",
            "they are not sent back",
            "ollama/ollama's openai/responses.go",
        ),
        lesson(
            "previous_response_id is ignored without a word",
            "the whole conversation is sent each time, as to every server",
            "ollama/ollama's openai/responses.go",
        ),
    ],
    ..PLAIN
};

const VLLM: Profile = Profile {
    name: ProfileName::Vllm,
    lessons: &[
        lesson(
            "a response is only known by its id where the server keeps them (404 otherwise)",
            "the whole conversation is sent each time, as to every server",
            "vLLM's VLLM_ENABLE_RESPONSES_API_STORE",
        ),
        lesson(
            "a stream may break off at the end of a tool call",
            "a stream without its last event is no answer, and the request is made again",
            "vllm-project/vllm PR #52418, #55284",
        ),
    ],
    ..PLAIN
};

/// The profile of that name.
pub fn profile(name: ProfileName) -> &'static Profile {
    match name {
        ProfileName::OpenAi => &OPENAI,
        ProfileName::LmStudio => &LM_STUDIO,
        ProfileName::LlamaCpp => &LLAMA_CPP,
        ProfileName::Ollama => &OLLAMA,
        ProfileName::Vllm => &VLLM,
        ProfileName::Generic => &PLAIN,
    }
}

/// What a server looks like.
pub(super) struct Hints<'a> {
    pub(super) headers: &'a HeaderMap,
    /// Who owns the first model that it lists.
    pub(super) owner: Option<&'a str>,
    /// What it answers to `GET /api/version`.
    pub(super) version: Option<&'a Value>,
    /// What it answers to a route that it may not have.
    pub(super) elsewhere: Option<&'a Value>,
}

impl Hints<'_> {
    /// The kind of server, as far as one can tell.
    pub(super) fn profile(&self) -> ProfileName {
        let header = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        let has_version =
            self.version.and_then(|body| body.get("version")).is_some_and(Value::is_string);
        let errs_in_a_string =
            self.elsewhere.and_then(|body| body.get("error")).is_some_and(Value::is_string);
        match self.owner {
            _ if header("openai-version").is_some() => ProfileName::OpenAi,
            Some("llamacpp") => ProfileName::LlamaCpp,
            Some("vllm") => ProfileName::Vllm,
            _ if header("server") == Some("llama.cpp") => ProfileName::LlamaCpp,
            _ if has_version => ProfileName::Ollama,
            _ if header("x-powered-by") == Some("Express") && errs_in_a_string => {
                ProfileName::LmStudio
            }
            _ => ProfileName::Generic,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_profile_that_differs_says_what_taught_it_and_so_does_the_page() {
        let page = include_str!("../../docs/backends.md");
        for name in ProfileName::ALL {
            let known = profile(name);
            assert_eq!(known.name, name);
            assert_eq!(known.lessons.is_empty(), name == ProfileName::Generic, "{name}");
            for Lesson { quirk, done, source } in known.lessons {
                let row = format!("| {name} | {quirk} | {done} | {source} |");
                assert!(page.contains(&row), "docs/backends.md lacks\n{row}");
            }
        }
    }

    #[test]
    fn servers_are_known_by_what_they_look_like() {
        let known =
            |header: Option<(&'static str, &str)>, owner, version: Value, elsewhere: Value| {
                let mut headers = HeaderMap::new();
                if let Some((name, value)) = header {
                    headers.insert(name, value.parse().unwrap());
                }
                let (version, elsewhere) = (Some(&version), Some(&elsewhere));
                Hints { headers: &headers, owner, version, elsewhere }.profile()
            };
        let not_found = json!({"error": {"message": "Invalid URL"}});
        let express = Some(("x-powered-by", "Express"));
        let odd = json!({"error": "Unexpected endpoint or method. (GET /api/version)"});
        for (found, expected) in [
            (
                known(
                    Some(("openai-version", "2020-10-01")),
                    Some("system"),
                    not_found.clone(),
                    not_found.clone(),
                ),
                ProfileName::OpenAi,
            ),
            (
                known(express, Some("organization_owner"), odd.clone(), odd.clone()),
                ProfileName::LmStudio,
            ),
            (
                known(express, Some("me"), not_found.clone(), not_found.clone()),
                ProfileName::Generic,
            ),
            (
                known(None, Some("llamacpp"), not_found.clone(), not_found.clone()),
                ProfileName::LlamaCpp,
            ),
            (
                known(None, Some("library"), json!({"version": "0.13.5"}), not_found.clone()),
                ProfileName::Ollama,
            ),
            (known(None, Some("vllm"), not_found.clone(), not_found.clone()), ProfileName::Vllm),
            (known(None, None, not_found.clone(), not_found), ProfileName::Generic),
        ] {
            assert_eq!(found, expected);
        }
    }
}
