//! Settings out of flags, environment and file, each with its source; every fault collected, so that all
//! are told at once.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    config::Surroundings,
    yaml::{Content, Node, Place},
};

/// One setting, and the names it goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    /// In the file: `backend.model`.
    pub(super) key: &'static str,
    pub(super) variable: Option<&'static str>,
    pub(super) flag: Option<&'static str>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Flag(&'static str),
    Environment(&'static str),
    File { path: PathBuf, at: Place },
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File { path, at: (line, _) } => write!(f, "file {}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A setting as it may be shown to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownValue {
    pub key: String,
    pub value: String,
    pub source: String,
}

/// A type that settings have.
pub(super) trait SettingValue: Sized {
    /// From a variable.
    fn from_text(text: &str) -> Result<Self, String>;
    /// From the file.
    fn from_scalar(value: &Value) -> Result<Self, String>;
    fn shown(&self) -> String;
}

/// The file that was read.
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) root: Node,
}

/// Takes settings one after the other.
pub(super) struct Reader<'a> {
    around: &'a dyn Surroundings,
    file: Option<File>,
    keys: Vec<&'static str>,
    errors: Vec<String>,
    shown: Vec<ShownValue>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(around: &'a dyn Surroundings, file: Option<File>) -> Self {
        Self { around, file, keys: Vec::new(), errors: Vec::new(), shown: Vec::new() }
    }

    /// The value of a setting: flag, then environment, then file, then default. None where nothing says
    /// it, or where what is said is wrong.
    pub(super) fn take<T: SettingValue>(
        &mut self,
        setting: Setting,
        flag: Option<T>,
        default: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        let (value, origin) =
            self.find(setting, flag).or_else(|| Some((default()?, Origin::Default)))?;
        self.show(setting.key, value.shown(), &origin);
        Some(value)
    }

    fn find<T: SettingValue>(&mut self, setting: Setting, flag: Option<T>) -> Option<(T, Origin)> {
        // Looked at whatever wins: a fault in the file is a fault all the same.
        let in_file = self.in_file(setting.key);
        if let (Some(value), Some(name)) = (flag, setting.flag) {
            return Some((value, Origin::Flag(name)));
        }
        let variable = setting.variable;
        if let Some((name, text)) =
            variable.and_then(|name| Some((name, self.around.variable(name)?)))
        {
            return match T::from_text(&text) {
                Ok(value) => Some((value, Origin::Environment(name))),
                Err(message) => {
                    self.errors.push(format!("{name}: {message}"));
                    None
                }
            };
        }
        in_file
    }

    fn in_file<T: SettingValue>(&mut self, key: &'static str) -> Option<(T, Origin)> {
        let (path, node) = self.node(key)?;
        let parsed = match &node.content {
            Content::Scalar(Value::Null) => return None,
            Content::Scalar(value) => T::from_scalar(value),
            Content::List(_) => Err("is a list; one value is wanted".into()),
            Content::Map(_) => Err("is a map; one value is wanted".into()),
        };
        match parsed {
            Ok(value) => Some((value, Origin::File { path, at: node.at })),
            Err(message) => {
                self.fault_at(node.at, key, &message);
                None
            }
        }
    }

    /// What stands in the file under a key; the key is then known.
    pub(super) fn node(&mut self, key: &'static str) -> Option<(PathBuf, Node)> {
        self.keys.push(key);
        let file = self.file.as_ref()?;
        let mut node = &file.root;
        for name in key.split('.') {
            let Content::Map(entries) = &node.content else { return None };
            node = entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)?;
        }
        Some((file.path.clone(), node.clone()))
    }

    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.around.variable(name)
    }

    pub(super) fn show(&mut self, key: &str, value: String, origin: &Origin) {
        self.shown.push(ShownValue { key: key.to_owned(), value, source: origin.to_string() });
    }

    pub(super) fn fault(&mut self, message: String) {
        self.errors.push(message);
    }

    pub(super) fn fault_at(&mut self, (line, column): Place, key: &str, message: &str) {
        let path = self.file.as_ref().map(|file| file.path.display().to_string());
        self.errors.push(format!("{}:{line}:{column}: {key}: {message}", path.unwrap_or_default()));
    }

    /// Everything that was shown, or everything that is wrong; unknown keys are.
    pub(super) fn finish(mut self) -> Result<Vec<ShownValue>, Vec<String>> {
        if let Some(file) = self.file.take() {
            let unknown = unknown(&file.root, "", &self.keys);
            let path = file.path.display();
            self.errors.extend(
                unknown
                    .into_iter()
                    .map(|((line, column), what)| format!("{path}:{line}:{column}: {what}")),
            );
        }
        if self.errors.is_empty() { Ok(self.shown) } else { Err(self.errors) }
    }
}

/// Keys that no setting goes by, each with the nearest that one does.
fn unknown(node: &Node, section: &str, keys: &[&str]) -> Vec<(Place, String)> {
    let Content::Map(entries) = &node.content else {
        let what = match section {
            "" => "the file is not a map of settings".to_owned(),
            section => format!("{section}: is not a section of settings"),
        };
        let nothing = matches!(node.content, Content::Scalar(Value::Null));
        return if nothing { Vec::new() } else { vec![(node.at, what)] };
    };
    let mut found = Vec::new();
    for (key, below) in entries {
        let path =
            if section.is_empty() { key.name.clone() } else { format!("{section}.{}", key.name) };
        if keys.contains(&path.as_str()) {
            continue;
        }
        if keys.iter().any(|known| known.starts_with(&format!("{path}."))) {
            found.extend(unknown(below, &path, keys));
            continue;
        }
        let hint =
            nearest(&path, keys).map_or(String::new(), |near| format!("; did you mean {near}?"));
        found.push((key.at, format!("{path}: there is no such setting{hint}")));
    }
    found
}

fn nearest<'k>(path: &str, keys: &[&'k str]) -> Option<&'k str> {
    let near = keys.iter().map(|key| (strsim::damerau_levenshtein(path, key), *key)).min()?;
    let allowed = (path.len() / 3).clamp(2, 5);
    (near.0 <= allowed).then_some(near.1)
}

pub(super) fn wanted(what: &str, value: &Value) -> String {
    let is = match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    };
    format!("is {is}; {what} is wanted")
}

/// A setting that is one of two words.
macro_rules! either {
    ($setting:ty, $one:literal => $first:ident, $other:literal => $second:ident) => {
        impl $crate::config::reader::SettingValue for $setting {
            fn from_text(text: &str) -> Result<Self, String> {
                match text {
                    $one => Ok(Self::$first),
                    $other => Ok(Self::$second),
                    _ => Err(format!(concat!("{:?} is neither ", $one, " nor ", $other), text)),
                }
            }

            fn from_scalar(value: &serde_json::Value) -> Result<Self, String> {
                Self::from_text(&String::from_scalar(value)?)
            }

            fn shown(&self) -> String {
                let word = match self {
                    Self::$first => $one,
                    Self::$second => $other,
                };
                word.to_owned()
            }
        }
    };
}
pub(super) use either;

impl SettingValue for String {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn from_scalar(value: &Value) -> Result<Self, String> {
        value.as_str().map(str::to_owned).ok_or_else(|| wanted("a text", value))
    }

    fn shown(&self) -> String {
        self.clone()
    }
}

impl SettingValue for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.into())
    }

    /// Absolute: what a file says must not depend on where agentd is started.
    fn from_scalar(value: &Value) -> Result<Self, String> {
        match value.as_str().map(Path::new) {
            Some(path) if path.is_absolute() => Ok(path.to_owned()),
            Some(path) => {
                Err(format!("{} is not an absolute path; begin it with /", path.display()))
            }
            None => Err(wanted("an absolute path", value)),
        }
    }

    fn shown(&self) -> String {
        self.display().to_string()
    }
}

impl SettingValue for SocketAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("{text:?} is not an address such as 127.0.0.1:7080"))
    }

    fn from_scalar(value: &Value) -> Result<Self, String> {
        match value.as_str() {
            Some(text) => Self::from_text(text),
            None => Err(wanted("an address such as 127.0.0.1:7080", value)),
        }
    }

    fn shown(&self) -> String {
        self.to_string()
    }
}

impl SettingValue for bool {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
    }

    fn from_scalar(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| wanted("true or false", value))
    }

    fn shown(&self) -> String {
        self.to_string()
    }
}

/// A number of things, at least one: none would let nothing happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count(pub(super) u64);

/// How many of something to keep, which may be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spare(pub(super) u8);

const MOST_SPARE: u8 = 16;

impl Spare {
    fn new(count: Option<u64>) -> Result<Self, String> {
        let count = count.and_then(|count| u8::try_from(count).ok());
        count
            .filter(|count| *count <= MOST_SPARE)
            .map(Self)
            .ok_or_else(|| format!("a whole number from 0 to {MOST_SPARE} is wanted"))
    }
}

impl SettingValue for Spare {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::new(text.parse().ok())
    }

    fn from_scalar(value: &Value) -> Result<Self, String> {
        Self::new(value.as_u64())
    }

    fn shown(&self) -> String {
        self.0.to_string()
    }
}

/// An amount of room, which may be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room(pub(super) u64);

impl SettingValue for Room {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("{text:?} is not a whole number"))
    }

    fn from_scalar(value: &Value) -> Result<Self, String> {
        value.as_u64().map(Self).ok_or_else(|| wanted("a whole number", value))
    }

    fn shown(&self) -> String {
        self.0.to_string()
    }
}

impl SettingValue for Count {
    fn from_text(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(0) => Err("0 would let nothing happen; give at least 1".into()),
            Ok(count) => Ok(Self(count)),
            Err(_) => Err(format!("{text:?} is not a whole number")),
        }
    }

    fn from_scalar(value: &Value) -> Result<Self, String> {
        match value.as_u64() {
            Some(0) => Err("0 would let nothing happen; give at least 1".into()),
            Some(count) => Ok(Self(count)),
            None => Err(wanted("a whole number", value)),
        }
    }

    fn shown(&self) -> String {
        self.0.to_string()
    }
}
