//! What an HTTP answer that is not a response means, and how to say it. Never decides to retry.
//! Invariant: a backend's own words are free of secrets before they are cut, since half a secret is not known for one.

use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;

use crate::{
    domain::{journal::Sent, redact::Redactor},
    ports::{ModelError, ModelFault},
};

/// Longest part of a backend's own words that is repeated, in characters.
const QUOTE_CHARS: usize = 500;

/// A failure of which only words are known.
pub(super) fn plain(fault: ModelFault, message: String) -> ModelError {
    ModelError {
        fault,
        message,
        sent: Sent::Maybe,
        http_status: None,
        backend_request_id: None,
        retry_after_ms: None,
        should_retry: None,
    }
}

/// The request did not come to an answer.
pub(super) fn transport(url: &str, error: &reqwest::Error) -> ModelError {
    let why = crate::telemetry::chain(&error);
    let sent = if error.is_connect() { Sent::Never } else { Sent::Maybe };
    let (fault, message) = if error.is_timeout() {
        (ModelFault::Timeout, format!("the backend {url} did not answer in time: {why}"))
    } else if error.is_body() || error.is_decode() {
        let message = format!("the backend {url} was lost in the middle of an answer: {why}");
        (ModelFault::Unavailable, message)
    } else {
        let message =
            format!("the backend {url} cannot be reached: {why}. Is the model server running?");
        (ModelFault::Unavailable, message)
    };
    ModelError { sent, ..plain(fault, message) }
}

/// The backend answered with an HTTP error.
pub(super) fn status(
    (url, redactor): (&str, &Redactor),
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> ModelError {
    let said = quote(&words(body), redactor);
    let code = code(body);
    let fault = match (status.as_u16(), code.as_deref()) {
        (_, Some("insufficient_quota")) => ModelFault::QuotaExhausted,
        (401 | 403, _) => ModelFault::Unauthenticated,
        (429, _) => ModelFault::RateLimited,
        (408, _) => ModelFault::Timeout,
        (_, Some("conversation_locked")) => ModelFault::Unavailable,
        _ if is_overflow(code.as_deref(), &said) => ModelFault::ContextOverflow,
        (409, _) | (500.., _) => ModelFault::Unavailable,
        _ => ModelFault::Rejected,
    };
    let remedy = match fault {
        ModelFault::Unauthenticated => ". Check OPENAI_API_KEY",
        ModelFault::QuotaExhausted => ". Add quota at the provider, or use another backend",
        _ => "",
    };
    ModelError {
        fault,
        message: format!("the backend {url} answered {status}: {said}{remedy}"),
        sent: Sent::Maybe,
        http_status: Some(status.as_u16()),
        backend_request_id: header(headers, "x-request-id"),
        retry_after_ms: retry_after_ms(headers),
        should_retry: header(headers, "x-should-retry").and_then(|text| text.trim().parse().ok()),
    }
}

/// The response itself says that it failed.
pub(super) fn in_body((url, redactor): (&str, &Redactor), error: Option<&Value>) -> ModelError {
    let said = error.map_or_else(|| "no reason given".to_owned(), text_of);
    let said = quote(&said, redactor);
    let code = error.and_then(|error| error.get("code")).and_then(Value::as_str);
    let fault = match code {
        Some("rate_limit_exceeded" | "slow_down") => ModelFault::RateLimited,
        Some("insufficient_quota") => ModelFault::QuotaExhausted,
        Some("invalid_prompt") => ModelFault::Rejected,
        code if is_overflow(code, &said) => ModelFault::ContextOverflow,
        // LM Studio says so with a 200.
        None if error.is_some_and(Value::is_string) && names_no_route(&said) => {
            ModelFault::Rejected
        }
        _ => ModelFault::Unavailable,
    };
    let retry_after_ms = match fault {
        ModelFault::RateLimited => asked_in_words(&said),
        _ => None,
    };
    let message = format!("the backend {url} gave up on the answer: {said}");
    ModelError { retry_after_ms, ..plain(fault, message) }
}

/// Whether the conversation is too long for the model, by the code or by the words of the servers that have none.
fn is_overflow(code: Option<&str>, said: &str) -> bool {
    const WORDS: [&str; 8] = [
        "context length",
        "context size",
        "context window",
        "maximum context",
        "context the overflows",
        "prompt is too long",
        "exceed_context_size",
        "too many input tokens",
    ];
    let said = said.to_ascii_lowercase();
    code == Some("context_length_exceeded") || WORDS.iter().any(|words| said.contains(words))
}

/// Whether an error says that there is no such route, and does not speak of a model that is not there.
pub(super) fn names_no_route(said: &str) -> bool {
    const WORDS: [&str; 9] = [
        "unexpected endpoint",
        "not found",
        "unknown route",
        "no such route",
        "no route",
        "method not allowed",
        "unknown url",
        "invalid url",
        "cannot post",
    ];
    let said = said.to_ascii_lowercase();
    !said.contains("model") && WORDS.iter().any(|words| said.contains(words))
}

/// "try again in 1.5s", as some say in the middle of a stream, where there are no headers any more.
fn asked_in_words(said: &str) -> Option<u64> {
    let rest = said.split("try again in ").nth(1)?;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let number: f64 = rest[..end].trim_end_matches('.').parse().ok()?;
    let unit = rest[end..].trim_start();
    let millis = match unit {
        _ if unit.starts_with("ms") => number,
        _ if unit.starts_with('s') => number * 1000.0,
        _ if unit.starts_with('m') => number * 60_000.0,
        _ => return None,
    };
    Some(millis.ceil() as u64)
}

/// How long the backend asks to be left alone: `retry-after-ms`, or `retry-after` in seconds or as a date, which is
/// compared with the date of the answer itself: the server's clock may go differently.
fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    if let Some(millis) =
        header(headers, "retry-after-ms").and_then(|text| text.trim().parse().ok())
    {
        return Some(millis);
    }
    let asked = header(headers, "retry-after")?;
    if let Ok(until) = httpdate::parse_http_date(asked.trim()) {
        let now = httpdate::parse_http_date(header(headers, "date")?.trim()).ok()?;
        let wait = until.duration_since(now).unwrap_or_default();
        return u64::try_from(wait.as_millis()).ok();
    }
    let seconds: f64 = asked.trim().parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then_some((seconds * 1000.0).ceil() as u64)
}

pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn code(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    body.get("error")?.get("code")?.as_str().map(str::to_owned)
}

/// The words of an error body, in whichever envelope: an object, a string, `detail`, or no JSON.
fn words(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(body) => text_of(body.get("error").or_else(|| body.get("detail")).unwrap_or(&body)),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    match text.trim() {
        "" => "nothing more".to_owned(),
        text => text.to_owned(),
    }
}

fn text_of(error: &Value) -> String {
    match error {
        Value::String(text) => text.clone(),
        other => match other.get("message").and_then(Value::as_str) {
            Some(message) => message.to_owned(),
            None => other.to_string(),
        },
    }
}

/// The beginning of it, on one line and without secrets.
fn quote(words: &str, redactor: &Redactor) -> String {
    let words = redactor.redact(words);
    words.chars().take(QUOTE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: u16, body: &str) -> ModelFault {
        let code = StatusCode::from_u16(code).unwrap();
        status(("b", &Redactor::default()), code, &HeaderMap::new(), body.as_bytes()).fault
    }

    #[test]
    fn each_status_has_its_fault() {
        assert_eq!(fault(401, ""), ModelFault::Unauthenticated);
        assert_eq!(fault(429, "{}"), ModelFault::RateLimited);
        assert_eq!(
            fault(429, r#"{"error":{"code":"insufficient_quota"}}"#),
            ModelFault::QuotaExhausted
        );
        assert_eq!(fault(503, "<html>"), ModelFault::Unavailable);
        assert_eq!(fault(400, r#"{"error":{"code":400}}"#), ModelFault::Rejected);
    }

    #[test]
    fn a_secret_goes_before_the_words_are_cut_wherever_it_stands_in_them() {
        let secret = "s3cr3t/of:the,house-";
        let redactor = Redactor::new([secret.to_owned()]);
        for before in QUOTE_CHARS - secret.len()..=QUOTE_CHARS {
            let words = format!("{}{secret}{}", "-".repeat(before), "-".repeat(QUOTE_CHARS));
            let body = serde_json::json!({"error": {"message": &words}});
            let refused = status(
                ("b", &redactor),
                StatusCode::BAD_REQUEST,
                &HeaderMap::new(),
                body.to_string().as_bytes(),
            );
            let gave_up = in_body(("b", &redactor), body.get("error"));
            for error in [refused, gave_up] {
                assert!(!error.message.contains("s3"), "{before}: {error}");
            }
            assert_eq!(quote(&words, &redactor).chars().count(), QUOTE_CHARS);
        }
    }

    #[test]
    fn the_words_are_found_in_every_server_s_envelope() {
        for (body, said) in [
            (r#"{"error":{"message":"too long","code":400}}"#, "too long"),
            (r#"{"error":"Unexpected endpoint"}"#, "Unexpected endpoint"),
            (r#"{"detail":"Not Found"}"#, "Not Found"),
            ("<h1>Bad Gateway</h1>", "<h1>Bad Gateway</h1>"),
            ("", "nothing more"),
        ] {
            assert_eq!(words(body.as_bytes()), said);
        }
    }

    #[test]
    fn the_wish_to_be_left_alone_is_read_in_both_forms() {
        let asked = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after_ms(&headers)
        };
        assert_eq!(asked("retry-after", "1.5"), Some(1500));
        assert_eq!(asked("retry-after-ms", "300"), Some(300));
        assert_eq!(asked("retry-after", "soon"), None);
        let until = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(asked("retry-after", until), None);
        let mut headers = HeaderMap::new();
        headers.insert("date", "Sun, 06 Nov 1994 08:48:37 GMT".parse().unwrap());
        headers.insert("retry-after", until.parse().unwrap());
        assert_eq!(retry_after_ms(&headers), Some(60_000));
        headers.insert("date", "Sun, 06 Nov 1994 09:00:00 GMT".parse().unwrap());
        assert_eq!(retry_after_ms(&headers), Some(0));
    }

    #[test]
    fn the_wish_to_be_left_alone_is_read_in_words_where_there_are_no_headers_any_more() {
        let asked = |words: &str| {
            let error = serde_json::json!({"code": "rate_limit_exceeded", "message": words});
            in_body(("b", &Redactor::default()), Some(&error)).retry_after_ms
        };
        assert_eq!(asked("Rate limit reached. Please try again in 1.5s."), Some(1500));
        assert_eq!(asked("Please try again in 20ms."), Some(20));
        assert_eq!(asked("Please try again in 6m0s"), Some(360_000));
        assert_eq!(asked("Please try again in a while"), None);
        assert_eq!(asked("Slow down"), None);
    }

    #[test]
    fn a_conversation_that_is_too_long_is_told_by_code_and_by_the_words_of_each_server() {
        for (code, body) in [
            (
                400,
                r#"{"error":{"code":"context_length_exceeded","message":"Your input is too big"}}"#,
            ),
            (
                400,
                r#"{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it","type":"exceed_context_size_error"}}"#,
            ),
            (
                400,
                r#"{"error":"Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens"}"#,
            ),
            (
                400,
                r#"{"object":"error","message":"This model's maximum context length is 4096 tokens","code":400}"#,
            ),
            (500, r#"{"error":"the input length exceeds the context length"}"#),
        ] {
            assert_eq!(fault(code, body), ModelFault::ContextOverflow, "{body}");
        }
        assert_eq!(fault(503, r#"{"error":{"message":"no slot"}}"#), ModelFault::Unavailable);
        assert_eq!(
            fault(429, r#"{"error":{"message":"context window quota"}}"#),
            ModelFault::RateLimited
        );
    }

    #[test]
    fn a_route_that_is_not_there_is_not_a_model_that_is_not_there() {
        assert!(names_no_route("Unexpected endpoint or method. (POST /v1/responses)"));
        assert!(names_no_route("Not Found") && names_no_route("Invalid URL (GET /v1/agents)"));
        assert!(!names_no_route("model 'x' not found, try pulling it first"));
        let error = serde_json::json!("Unexpected endpoint or method. (POST /v1/responses)");
        let told = in_body(("b", &Redactor::default()), Some(&error));
        assert_eq!(told.fault, ModelFault::Rejected);
    }

    #[test]
    fn a_server_that_says_whether_to_try_again_is_heard() {
        let told = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-should-retry", value.parse().unwrap());
            status(("b", &Redactor::default()), StatusCode::CONFLICT, &headers, b"").should_retry
        };
        assert_eq!((told("true"), told("false"), told("maybe")), (Some(true), Some(false), None));
    }
}
