//! Secrets out of text. Applied to every view before it is stored; never to what the engine replays.
//!
//! Known secrets are found wherever they stand; strangers' secrets by the shapes that vendors give
//! their tokens. Linear in the length of the text.

use std::{borrow::Cow, collections::BTreeSet};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::{
    Engine as _,
    engine::general_purpose::{GeneralPurpose, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::domain::hex::hex;

pub const MARK: &str = "[redacted]";
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
    /// Finds every known secret in all its forms in one pass; none: there is none.
    known: Option<AhoCorasick>,
    /// Forms of secrets that hold white space.
    spaced: Vec<String>,
    count: usize,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} known secrets)", self.count)
    }
}

impl Redactor {
    /// Knows `secrets`, also in JSON, in base64, in hexadecimal and in a URL; those under 8 bytes are left out.
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let secrets = secrets.into_iter().filter(|secret| secret.len() >= SHORTEST_SECRET);
        let secrets: BTreeSet<String> = secrets.collect();
        let forms: BTreeSet<String> = secrets.iter().flat_map(|secret| forms(secret)).collect();
        // The longest wins, so that a secret within another leaves no rest. What is too much for it is not known.
        let found = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&forms);
        let spaced = forms.iter().filter(|form| form.contains(char::is_whitespace));
        Self {
            known: found.ok().filter(|_| !forms.is_empty()),
            spaced: spaced.cloned().collect(),
            count: secrets.len(),
        }
    }

    /// The text without secrets; borrowed when it held none.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        if let Some(known) = &self.known
            && known.is_match(text.as_ref())
        {
            let mut clean = String::with_capacity(text.len());
            known.replace_all_with(&text, &mut clean, |_, _, clean| {
                clean.push_str(MARK);
                true
            });
            text = Cow::Owned(clean);
        }
        for (beginning, least) in SHAPES {
            if let Some(clean) = without_shape(&text, beginning, least) {
                text = Cow::Owned(clean);
            }
        }
        text
    }

    /// The same for JSON, which stays JSON of the same shape: secrets are replaced in strings, never in names and
    /// numbers, where a secret of digits, or one that is a word, may stand by chance.
    ///
    /// Text that is no JSON is taken as text.
    pub fn redact_json<'a>(&self, json: &'a str) -> Cow<'a, str> {
        let redacted = self.redact(json);
        let Cow::Owned(text) = redacted else { return redacted };
        let Ok(mut whole) = serde_json::from_str::<Value>(json) else { return Cow::Owned(text) };
        match serde_json::from_str(&text) {
            Ok(found) if have_one_shape(&whole, &found) => Cow::Owned(text),
            Ok(_) | Err(_) => {
                self.redact_strings(&mut whole);
                Cow::Owned(whole.to_string())
            }
        }
    }

    fn redact_strings(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(redacted) = self.redact(text) {
                    *text = redacted;
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.redact_strings(value)),
            Value::Object(fields) => {
                fields.values_mut().for_each(|value| self.redact_strings(value));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Where, at the end of a text that goes on, a secret with white space in it may have begun; the length of the
    /// text if none has.
    pub fn unfinished(&self, text: &[u8]) -> usize {
        let begins = |secret: &String| {
            let longest = text.len().min(secret.len() - 1);
            (1..=longest).rev().find(|length| text.ends_with(&secret.as_bytes()[..*length]))
        };
        text.len() - self.spaced.iter().filter_map(begins).max().unwrap_or(0)
    }
}

impl Redactor {
    /// Bytes of the longest secret with white space in it: so much after something that was missed may be the rest
    /// of one.
    pub fn longest_spaced(&self) -> usize {
        self.spaced.iter().map(String::len).max().unwrap_or(0)
    }
}

/// Whether two values differ in the texts of strings alone.
fn have_one_shape(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::String(_), Value::String(_)) => true,
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| have_one_shape(a, b))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, value)| {
                    other.get(name).is_some_and(|other| have_one_shape(value, other))
                })
        }
        (one, other) => one == other,
    }
}

/// All that a secret may look like, however it was turned into text.
fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    // Text is redacted as JSON, where quotes and control characters stand escaped.
    let escaped = serde_json::Value::from(secret).to_string();
    let hexadecimal: String = hex(bytes);
    let percent = utf8_percent_encode(secret, IN_A_URL).to_string();
    // Which digits are capital is the encoder's choice.
    let small = small_digits(&percent);
    let mut forms = vec![
        secret.to_owned(),
        escaped[1..escaped.len() - 1].to_owned(),
        hexadecimal.to_ascii_uppercase(),
        hexadecimal,
        small,
        percent,
    ];
    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        forms.extend((0..3).map(|before| base64_core(engine, bytes, before)));
    }
    forms.retain(|form| form.len() >= SHORTEST_SECRET);
    forms
}

/// Characters that do not stand for themselves in a URL's query.
const IN_A_URL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

fn small_digits(percent: &str) -> String {
    let mut parts = percent.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut text, part| {
        let (digits, rest) = part.split_at(part.len().min(2));
        text.push('%');
        text.push_str(&digits.to_ascii_lowercase());
        text.push_str(rest);
        text
    })
}

/// The characters of a base64 text that are those of these bytes alone, where so many (0 to 2) stand before them
/// in their group of three.
fn base64_core(engine: &GeneralPurpose, bytes: &[u8], before: usize) -> String {
    let padded = [vec![0; before], bytes.to_vec()].concat();
    let text = engine.encode(&padded);
    // Each character has six bits; those that hold a bit of what stands before or after are not sure.
    let first = (before * 8).div_ceil(6);
    let last = padded.len() * 8 / 6;
    text[first..last].to_owned()
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
    fn a_known_secret_goes_in_whatever_it_was_wrapped() {
        let secret = "s3cret/key+with=~ \u{fc}ml";
        let redactor = Redactor::new([secret.to_owned()]);
        let hexadecimal: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let percent = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
        for before in ["", "a", "ab", "abc"] {
            for after in ["", "x", "xy"] {
                let text = format!("{before}{secret}{after}");
                for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
                    let clean = redactor.redact(&engine.encode(&text)).into_owned();
                    assert!(
                        clean.contains(MARK) && clean.len() < MARK.len() + 12,
                        "{text}: {clean}"
                    );
                }
            }
        }
        assert_eq!(redactor.redact(&hexadecimal), MARK);
        assert_eq!(redactor.redact(&hexadecimal.to_uppercase()), MARK);
        let in_a_url = utf8_percent_encode(secret, IN_A_URL).to_string();
        assert_eq!(redactor.redact(&format!("?k={in_a_url}&x")), format!("?k={MARK}&x"));
        assert_eq!(redactor.redact(&small_digits(&in_a_url)), MARK);
        assert_ne!(percent, in_a_url, "control: encoders differ");
    }

    #[test]
    fn a_secret_with_spaces_is_held_back_where_it_may_have_begun() {
        let redactor = Redactor::new(["correct horse battery".to_owned()]);
        assert_eq!(redactor.unfinished(b"it is correct horse "), 6);
        assert_eq!(redactor.unfinished(b"it is corrected "), 16);
        assert_eq!(redactor.unfinished(b"it is c"), 6);
        assert_eq!(redactor.unfinished(b""), 0);
    }

    #[test]
    fn of_two_secrets_that_begin_alike_the_longer_goes_whole() {
        let redactor = Redactor::new(["password".to_owned(), "password-of-the-store".to_owned()]);
        assert_eq!(redactor.redact("password-of-the-store password"), format!("{MARK} {MARK}"));
    }

    #[test]
    fn near_misses_by_the_million_are_one_pass() {
        let redactor = Redactor::new(["aaaaaaaaaaaaaaab".to_owned(), "x y z x y z!".to_owned()]);
        for part in ["a", "sk- ", "ghp_aaa ", "x y z ", "\\n"] {
            let text = part.repeat((4 << 20) / part.len());
            assert!(redactor.redact(&text) == text.as_str(), "{part:?}");
            assert!(redactor.unfinished(text.as_bytes()) + 12 > text.len());
        }
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

    #[test]
    fn json_stays_json_of_its_shape_whatever_secrets_look_like() {
        let secrets = ["12345678", "workspace", "SUCCEEDED"].map(str::to_owned);
        let redactor = Redactor::new(secrets);
        let json = r#"{"tokens":123456789,"workspace":"my workspace","state":"SUCCEEDED","key":"12345678"}"#;
        let redacted = redactor.redact_json(json);
        let redacted: Value = serde_json::from_str(&redacted).unwrap();
        assert_eq!(
            redacted,
            serde_json::json!({"tokens": 123_456_789, "workspace": "my [redacted]",
                               "state": "[redacted]", "key": "[redacted]"})
        );
        assert_eq!(redactor.redact_json("12345678 is no json"), "[redacted] is no json");
    }
}
