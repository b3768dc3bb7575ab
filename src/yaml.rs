//! Every YAML call of the crate, with strict options: to a type, or to a tree that knows its places.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::fs::{Mode, OFlags};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_yaml::{Options, Spanned, options};

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
    text_of(path, File::open(path))
}

/// The same, of an open directory: that one's file, whatever its name stands for by now. Errors call it `path`.
pub fn read_in(directory: &OwnedFd, name: &str, path: &Path) -> Result<String, YamlError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(directory, name, flags, Mode::empty());
    text_of(path, opened.map(File::from).map_err(io::Error::from))
}

fn text_of(path: &Path, opened: io::Result<File>) -> Result<String, YamlError> {
    let fault = |message: String| YamlError { file: path.display().to_string(), at: None, message };
    let file = opened.map_err(|error| fault(format!("cannot be opened: {error}")))?;
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

/// Line and column, from 1.
pub type Place = (u64, u64);

/// A value, and where it is written.
#[derive(Debug, Clone)]
pub struct Placed<T> {
    pub value: T,
    pub place: Place,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Placed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<T>::deserialize(deserializer)?;
        Ok(Self { value, place: (referenced.line(), referenced.column()) })
    }
}

/// A document with the place of everything in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub at: Place,
    pub content: Content,
}

/// What stands at a place.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A text, a number, a boolean or null.
    Scalar(Value),
    List(Vec<Node>),
    /// In the order of the document.
    Map(Vec<(Key, Node)>),
}

/// A key of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub at: Place,
    pub name: String,
}

impl Node {
    /// The same without places.
    pub fn to_value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(nodes) => nodes.iter().map(Self::to_value).collect(),
            Content::Map(entries) => entries
                .iter()
                .map(|(key, node)| (key.name.clone(), node.to_value()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

/// Parses one document to a tree. Errors: as [`parse`].
pub fn parse_tree(file: &str, text: &str) -> Result<Node, YamlError> {
    parse::<Spanned<Raw>>(file, text).map(Node::from)
}

enum Raw {
    Scalar(Value),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl From<Spanned<Raw>> for Node {
    fn from(raw: Spanned<Raw>) -> Self {
        let content = match raw.value {
            Raw::Scalar(value) => Content::Scalar(value),
            Raw::List(nodes) => Content::List(nodes.into_iter().map(Self::from).collect()),
            Raw::Map(entries) => Content::Map(
                entries
                    .into_iter()
                    .map(|(key, node)| {
                        let at = (key.referenced.line(), key.referenced.column());
                        (Key { at, name: key.value }, Self::from(node))
                    })
                    .collect(),
            ),
        };
        Self { at: (raw.referenced.line(), raw.referenced.column()), content }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Raw;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
                Ok(Raw::Scalar(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
                Ok(Raw::Scalar(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
                Ok(Raw::Scalar(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
                Ok(Raw::Scalar(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
                Ok(Raw::Scalar(value.into()))
            }
            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Null))
            }
            fn visit_none<E>(self) -> Result<Raw, E> {
                Ok(Raw::Scalar(Value::Null))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Raw::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
                let mut map = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    map.push(entry);
                }
                Ok(Raw::Map(map))
            }
        }
        deserializer.deserialize_any(Any)
    }
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

/// The library's message without the position that is told apart from it, in one line.
fn message(error: &serde_yaml::Error) -> String {
    let text = error.without_snippet().to_string();
    match text.rsplit_once(" at line ").or_else(|| text.rsplit_once(" (line ")) {
        Some((message, _)) => in_one_line(message),
        None => in_one_line(&text),
    }
}

/// A text from a file as it can be told: control characters are escaped, so that it neither breaks a line
/// nor steers a terminal.
pub fn in_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
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
    fn a_message_is_one_line_whatever_the_file_says() {
        let error = parse::<BTreeMap<String, u32>>("x.yaml", "a: \"b\\n\\e[2J\"\n").unwrap_err();
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
        assert_eq!(in_one_line("a\n\u{1b}ä"), "a\\n\\u{1b}ä");
    }

    #[test]
    fn a_tree_knows_the_place_of_every_key_and_value() {
        let tree = parse_tree("x.yaml", "a: 1\nb:\n  - no\n  - {c: true}\n").unwrap();
        let Content::Map(entries) = &tree.content else { panic!("{tree:?}") };
        assert_eq!((entries[1].0.name.as_str(), entries[1].0.at), ("b", (2, 1)));
        let Content::List(items) = &entries[1].1.content else { panic!("{tree:?}") };
        assert_eq!(items[0].at, (3, 5));
        let expected = serde_json::json!({"a": 1, "b": ["no", {"c": true}]});
        assert_eq!(tree.to_value(), expected);
        assert_eq!(parse_tree("x.yaml", "a: 1\na: 2\n").unwrap_err().at, Some((2, 1)));
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
