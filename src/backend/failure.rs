//! What an HTTP answer that is not a response means, and how to say it. Never decides to retry.

use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;

use crate::{
    domain::journal::Sent,
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
    url: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> ModelError {
    let said = words(body);
    let code = code(body);
    let fault = match (status.as_u16(), code.as_deref()) {
        (_, Some("insufficient_quota")) => ModelFault::QuotaExhausted,
        (401 | 403, _) => ModelFault::Unauthenticated,
        (429, _) => ModelFault::RateLimited,
        (408, _) => ModelFault::Timeout,
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
    }
}

/// The response itself says that it failed.
pub(super) fn in_body(url: &str, error: Option<&Value>) -> ModelError {
    let said = error.map_or_else(|| "no reason given".to_owned(), |error| clip(&text_of(error)));
    let fault = match error.and_then(|error| error.get("code")).and_then(Value::as_str) {
        Some("rate_limit_exceeded" | "slow_down") => ModelFault::RateLimited,
        Some("insufficient_quota") => ModelFault::QuotaExhausted,
        Some("invalid_prompt" | "context_length_exceeded") => ModelFault::Rejected,
        _ => ModelFault::Unavailable,
    };
    plain(fault, format!("the backend {url} gave up on the answer: {said}"))
}

/// How long the backend asks to be left alone: `retry-after-ms`, or `retry-after` in seconds.
fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    if let Some(millis) =
        header(headers, "retry-after-ms").and_then(|text| text.trim().parse().ok())
    {
        return Some(millis);
    }
    let seconds: f64 = header(headers, "retry-after")?.trim().parse().ok()?;
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
        text => clip(text),
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

fn clip(text: &str) -> String {
    text.chars().take(QUOTE_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: u16, body: &str) -> ModelFault {
        let status_code = StatusCode::from_u16(code).unwrap();
        status("b", status_code, &HeaderMap::new(), body.as_bytes()).fault
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
    }
}
