//! No text lets a known secret through. The secret is the first line of the input, the text all that follows.
#![no_main]

use agentd::domain::redact::Redactor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let Some((secret, text)) = input.split_once('\n') else { return };
    // What stands for a secret may itself look like a part of one that has brackets.
    if !(8..=64).contains(&secret.len())
        || secret.contains(['[', ']'])
        || "redacted".contains(secret)
    {
        return;
    }
    let redactor = Redactor::new([secret.to_owned()]);
    let hexadecimal: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    for wrapped in
        [text.to_owned(), format!("{text}{secret}{text}"), format!("{text}{hexadecimal}")]
    {
        let clean = redactor.redact(&wrapped);
        assert!(!clean.contains(secret), "{secret:?} stands in {clean:?}");
        assert!(!clean.contains(&hexadecimal), "{hexadecimal} stands in {clean:?}");
    }
    // What is let go of a text that goes on never holds the beginning of a secret that its end completes.
    let (before, after) = secret.split_at(secret.ceil_char_boundary(secret.len() / 2));
    let first = format!("{text}{before}");
    if secret.contains(char::is_whitespace) && !after.is_empty() {
        assert!(
            redactor.unfinished(first.as_bytes()) <= first.len() - before.len(),
            "{first:?} goes too far"
        );
    }
});
