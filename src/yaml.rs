//! Every YAML call of the crate, with strict options, behind one function.

use std::{fs::File, io::Read as _, path::Path};

use serde::de::DeserializeOwned;
use serde_yaml::{Options, options};

/// Largest YAML file that is read, in bytes.
const FILE_BYTES: u64 = 1 << 20;

/// What is wrong with a YAML text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{place}: {message}", place = self.place())]
pub struct YamlError {
    pub file: String,
    /// Line and column, from 1; none when the file as a whole is at fault.
    pub at: Option<(u64, u64)>,
    pub message: String,
}

impl YamlError {
    fn place(&self) -> String {
        self.at.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default()
    }
}

/// Reads a file of at most 1 MiB as text.
pub fn read(path: &Path) -> Result<String, YamlError> {
    let fault = |message: String| YamlError { file: path.display().to_string(), at: None, message };
    let file = File::open(path).map_err(|error| fault(format!("cannot be opened: {error}")))?;
    let mut text = String::new();
    // The library's own size limit does not bind texts, so that the reading is bounded here.
    file.take(FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| fault(format!("cannot be read as text: {error}")))?;
    match text.len() as u64 > FILE_BYTES {
        true => Err(fault("is longer than 1 MiB".into())),
        false => Ok(text),
    }
}

/// Parses one document. Duplicate keys, unknown keys (where the type denies them), `no` as a boolean
/// and alias bombs are errors with line and column.
pub fn parse<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, YamlError> {
    serde_yaml::from_str_with_options(text, strict()).map_err(|error| YamlError {
        file: file.to_owned(),
        at: error.location().map(|at| (at.line(), at.column())),
        message: message(&error),
    })
}

fn strict() -> Options {
    options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        // Excerpts of a file that may hold a secret must not reach a log.
        with_snippet: false,
    }
}

/// The library's message without the position that is told apart from it.
fn message(error: &serde_yaml::Error) -> String {
    let text = error.without_snippet().to_string();
    match text.rsplit_once(" at line ").or_else(|| text.rsplit_once(" (line ")) {
        Some((message, _)) => message.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn at<T: DeserializeOwned>(text: &str) -> Option<(u64, u64)> {
        parse::<T>("x.yaml", text).err().expect("should be refused").at
    }

    #[test]
    fn duplicate_keys_wrong_types_and_loose_booleans_are_refused_with_their_place() {
        assert_eq!(at::<BTreeMap<String, u32>>("a: 1\na: 2\n"), Some((2, 1)));
        assert_eq!(at::<BTreeMap<String, u32>>("a: 1\nb: x\n"), Some((2, 4)));
        assert_eq!(at::<BTreeMap<String, bool>>("a: no\n"), Some((1, 4)));
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for n in 1..9 {
            let aliases = vec![format!("*a{}", n - 1); 9].join(", ");
            text.push_str(&format!("a{n}: &a{n} [{aliases}]\n"));
        }
        assert!(parse::<serde_json::Value>("x.yaml", &text).is_err());
    }
}
