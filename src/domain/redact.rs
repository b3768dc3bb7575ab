//! Secrets out of text. Applied to every view before it is stored; never to what the engine replays.
//!
//! Known secrets are found wherever they stand; strangers' secrets by the shapes that vendors give
//! their tokens. Linear in the length of the text.

use std::borrow::Cow;

const MARK: &str = "[redacted]";
/// Shorter secrets would hide ordinary words.
const SHORTEST_SECRET: usize = 8;
/// Beginnings of vendors' tokens, and how many token characters must follow to make one.
const SHAPES: [(&str, usize); 9] = [
    ("sk-", 16),
    ("ghp_", 20),
    ("gho_", 20),
    ("ghs_", 20),
    ("github_pat_", 20),
    ("glpat-", 16),
    ("xoxb-", 16),
    ("AKIA", 16),
    ("AIza", 30),
];

/// Replaces secrets by `[redacted]`.
#[derive(Clone, Default)]
pub struct Redactor {
    /// Longest first, so that a secret within another leaves no rest.
    known: Vec<String>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} known secrets)", self.known.len())
    }
}

impl Redactor {
    /// Knows `secrets`; those under 8 bytes are left out.
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let mut known = Vec::new();
        for secret in secrets.into_iter().filter(|secret| secret.len() >= SHORTEST_SECRET) {
            // Text is redacted as JSON, where quotes and control characters stand escaped.
            let escaped = serde_json::Value::from(secret.as_str()).to_string();
            let inner = escaped.trim_matches('"');
            if inner != secret {
                known.push(inner.to_owned());
            }
            known.push(secret);
        }
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { known }
    }

    /// The text without secrets; borrowed when it held none.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for secret in &self.known {
            if text.contains(secret.as_str()) {
                text = Cow::Owned(text.replace(secret.as_str(), MARK));
            }
        }
        for (beginning, least) in SHAPES {
            if let Some(clean) = without_shape(&text, beginning, least) {
                text = Cow::Owned(clean);
            }
        }
        text
    }
}

/// Whether a token may begin after `before`: at the start, after what is no letter or digit, or after
/// an escape such as `\\n`, since views are redacted as JSON text.
fn may_begin_after(before: &str) -> bool {
    match before.as_bytes() {
        [.., b'\\', b'n' | b'r' | b't' | b'b' | b'f'] => true,
        [.., last] => !last.is_ascii_alphanumeric(),
        [] => true,
    }
}

/// The text with tokens of one shape replaced, or none if it has none.
fn without_shape(text: &str, beginning: &str, least: usize) -> Option<String> {
    let mut clean: Option<String> = None;
    let mut copied = 0;
    let mut from = 0;
    while let Some(found) = text[from..].find(beginning) {
        let start = from + found;
        let rest = &text[start + beginning.len()..];
        let length = rest.bytes().take_while(|byte| is_token_byte(*byte)).count();
        let end = start + beginning.len() + length;
        if length >= least && may_begin_after(&text[..start]) {
            let clean = clean.get_or_insert_with(String::new);
            clean.push_str(&text[copied..start]);
            clean.push_str(MARK);
            copied = end;
        }
        from = end;
    }
    if let Some(clean) = &mut clean {
        clean.push_str(&text[copied..]);
    }
    clean
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_secrets_go_wherever_they_stand_also_escaped() {
        let redactor = Redactor::new(["pass\"word\n1".to_owned(), "tiny".to_owned()]);
        let json = serde_json::json!({ "a": "x pass\"word\n1 y tiny" }).to_string();
        assert_eq!(redactor.redact(&json), r#"{"a":"x [redacted] y tiny"}"#);
    }

    #[test]
    fn tokens_of_a_known_shape_go_and_words_that_only_begin_alike_stay() {
        let redactor = Redactor::default();
        assert_eq!(
            redactor.redact("key=sk-abcdefghijklmnop1234, ask-me, task-abcdefghijklmnopqrstuvw"),
            "key=[redacted], ask-me, task-abcdefghijklmnopqrstuvw"
        );
        assert!(matches!(redactor.redact("nothing here"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_token_at_the_start_of_a_line_goes_also_where_the_line_break_is_escaped() {
        let json =
            serde_json::json!({ "a": "keys\nghp_abcdefghijklmnopqrst\tAKIAABCDEFGHIJKLMNOP" });
        let clean = Redactor::default().redact(&json.to_string()).into_owned();
        assert_eq!(clean, r#"{"a":"keys\n[redacted]\t[redacted]"}"#);
    }
}
