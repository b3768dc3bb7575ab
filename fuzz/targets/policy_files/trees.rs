//! YAML as trees, to be changed so that it mostly stays what a policy file may be. Knows nothing of policies but
//! what stands in the files that come with agentd and in the seed that has every key.

use std::{collections::BTreeMap, sync::OnceLock};

use agentd::{
    policy_files::{DEFAULT_NETWORK, DEFAULT_PATHS, DEFAULT_TOOLS},
    yaml::{self, Content},
};
use fastrand::Rng;
use libfuzzer_sys::fuzzer_mutate;
use serde_json::Value;

/// Scalars as they are written that stand for more, or less, than they look like.
const STRANGE: [&str; 32] = [
    "\"\"",
    "0",
    "1",
    "-1",
    "65536",
    "18446744073709551615",
    "18446744073709551616",
    "1.5",
    ".inf",
    "007",
    "0x10",
    "~",
    "true",
    "no",
    "'no'",
    "!!int '1'",
    "!!str 1",
    "!!binary aGk=",
    "'*'",
    "'**'",
    "'[a'",
    "'{a,b}'",
    "'/'",
    "'..'",
    "'a/../b'",
    "'-'",
    "'--'",
    "'--a=b'",
    "'*.example.com'",
    "127.0.0.1",
    "builtin/no-rule",
    "\"a\\nb\\e\\0ä\u{202e}\"",
];
/// Longest text that is made of one, and deepest nesting.
const MUCH: usize = 2000;

/// A YAML text with one to four changes, mostly one; any may undo another. None: it is no YAML.
pub fn changed(text: &str, random: &mut Rng) -> Option<String> {
    let mut tree = parse(text)?;
    let most = random.usize(1..=4);
    for _ in 0..random.usize(1..=most) {
        change(&mut tree, random);
    }
    Some(tree.to_document())
}

#[derive(Clone)]
enum Tree {
    /// Text, number or whatever else, as it is written.
    Scalar(String),
    List(Vec<Tree>),
    /// Keys as they are written; one may come twice.
    Map(Vec<(String, Tree)>),
}

/// What kind of thing stands somewhere: the key it has; with `[]`, the key of the list it is in.
type Role = String;

/// What stands in files that are known, by its role.
fn examples() -> &'static BTreeMap<Role, Vec<Tree>> {
    static EXAMPLES: OnceLock<BTreeMap<Role, Vec<Tree>>> = OnceLock::new();
    EXAMPLES.get_or_init(|| {
        let mut examples = BTreeMap::new();
        let files = [DEFAULT_TOOLS, DEFAULT_PATHS, DEFAULT_NETWORK];
        for text in files.into_iter().chain(crate::EVERY_KEY.splitn(4, crate::DIVIDER).take(3)) {
            parse(text).expect("a seed is YAML").gather("", &mut examples);
        }
        examples
    })
}

fn parse(text: &str) -> Option<Tree> {
    yaml::parse_tree("", text).ok().map(Tree::from)
}

impl From<yaml::Node> for Tree {
    fn from(node: yaml::Node) -> Self {
        match node.content {
            Content::Scalar(value) => Self::Scalar(value.to_string()),
            Content::List(nodes) => Self::List(nodes.into_iter().map(Self::from).collect()),
            Content::Map(entries) => Self::Map(
                entries.into_iter().map(|(key, node)| (written(&key.name), node.into())).collect(),
            ),
        }
    }
}

/// A key: bare where it can be, as people write it.
fn written(key: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    match !key.is_empty() && key.bytes().all(is_plain) {
        true => key.to_owned(),
        false => Value::from(key).to_string(),
    }
}

impl Tree {
    fn count(&self) -> usize {
        1 + match self {
            Self::Scalar(_) => 0,
            Self::List(items) => items.iter().map(Self::count).sum(),
            Self::Map(entries) => entries.iter().map(|(_, value)| value.count()).sum(),
        }
    }

    /// The `n`th of the tree in the order of the text, from 0, and its role. Error: how many are missing.
    fn nth(&mut self, role: &str, mut n: usize) -> Result<(&mut Self, Role), usize> {
        if n == 0 {
            return Ok((self, role.to_owned()));
        }
        n -= 1;
        match self {
            Self::Scalar(_) => {}
            Self::List(items) => {
                let role = format!("{role}[]");
                for item in items {
                    match item.nth(&role, n) {
                        Err(missing) => n = missing,
                        found => return found,
                    }
                }
            }
            Self::Map(entries) => {
                for (key, value) in entries {
                    match value.nth(key, n) {
                        Err(missing) => n = missing,
                        found => return found,
                    }
                }
            }
        }
        Err(n)
    }

    fn gather(self, role: &str, into: &mut BTreeMap<Role, Vec<Self>>) {
        into.entry(role.to_owned()).or_default().push(self.clone());
        match self {
            Self::Scalar(_) => {}
            Self::List(items) => {
                items.into_iter().for_each(|item| item.gather(&format!("{role}[]"), into));
            }
            Self::Map(entries) => {
                entries.into_iter().for_each(|(key, value)| value.gather(&key, into));
            }
        }
    }

    /// The keys at the top, and the items of lists there, on lines of their own.
    fn to_document(&self) -> String {
        let Self::Map(entries) = self else { return self.to_string() };
        let mut text = String::new();
        for (key, value) in entries {
            text.push_str(&format!("{key}:"));
            match value {
                Self::List(items) if !items.is_empty() => {
                    items.iter().for_each(|item| text.push_str(&format!("\n  - {item}")));
                }
                _ => text.push_str(&format!(" {value}")),
            }
            text.push('\n');
        }
        text
    }
}

/// In one line.
impl std::fmt::Display for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Scalar(text) => f.write_str(text),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(Self::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Map(entries) => {
                let entries: Vec<_> =
                    entries.iter().map(|(key, value)| format!("{key}: {value}")).collect();
                write!(f, "{{{}}}", entries.join(", "))
            }
        }
    }
}

fn change(tree: &mut Tree, random: &mut Rng) {
    let count = tree.count();
    let mut any = |tree: &mut Tree| tree.nth("", random.usize(..count)).map(|(one, _)| one.clone());
    let Ok(another) = any(tree) else { return };
    let Ok((place, role)) = tree.nth("", random.usize(..count)) else { return };
    match (random.u8(..24), &mut *place) {
        (0, _) => *place = another,
        (1, _) => *place = strange(random),
        (2, _) => *place = exaggerated(place, random),
        (3, _) => rename(place, random),
        (4, Tree::Scalar(text)) => *text = "\"\"".into(),
        (4, Tree::List(items)) => items.clear(),
        (4, Tree::Map(entries)) => entries.clear(),
        (5 | 6, _) => remove(place, random),
        (7 | 8, _) => repeat(place, random),
        (9 | 10, _) => reorder(place, random),
        (11 | 12, Tree::Scalar(text)) => retouch(text, random),
        // Half the time what leaves a file that may be one.
        _ => graft(place, &role, random),
    }
}

fn strange(random: &mut Rng) -> Tree {
    Tree::Scalar(random.choice(STRANGE).unwrap_or_default().to_owned())
}

/// What takes more room than anybody needs, or is said in a roundabout way.
fn exaggerated(tree: &Tree, random: &mut Rng) -> Tree {
    let much = random.usize(1..=MUCH);
    Tree::Scalar(match random.u8(..5) {
        0 => format!("{}{tree}{}", "[".repeat(much), "]".repeat(much)),
        1 => format!("\"{}\"", random.choice(["a", "é", "../", "*", "\\t"]).unwrap().repeat(much)),
        2 => format!("&a {tree}"),
        3 => "*a".into(),
        _ => format!("{{<<: {tree}}}"),
    })
}

fn repeat(tree: &mut Tree, random: &mut Rng) {
    match tree {
        Tree::Scalar(_) => {}
        Tree::List(items) => items.extend(random.choice(&*items).cloned()),
        Tree::Map(entries) => entries.extend(random.choice(&*entries).cloned()),
    }
}

fn reorder(tree: &mut Tree, random: &mut Rng) {
    match tree {
        Tree::Scalar(_) => {}
        Tree::List(items) => random.shuffle(items),
        // The keys stay; what they stand for changes places.
        Tree::Map(entries) if entries.len() > 1 => {
            let (one, two) = (random.usize(..entries.len()), random.usize(..entries.len()));
            let value = entries[one].1.clone();
            entries[one].1 = std::mem::replace(&mut entries[two].1, value);
        }
        Tree::Map(_) => {}
    }
}

fn remove(tree: &mut Tree, random: &mut Rng) {
    match tree {
        Tree::List(items) if !items.is_empty() => drop(items.remove(random.usize(..items.len()))),
        Tree::Map(entries) if !entries.is_empty() => {
            entries.remove(random.usize(..entries.len()));
        }
        Tree::Scalar(_) | Tree::List(_) | Tree::Map(_) => {}
    }
}

fn rename(tree: &mut Tree, random: &mut Rng) {
    let Tree::Map(entries) = tree else { return };
    let Some((key, _)) = random.choice(entries) else { return };
    *key = match random.bool() {
        true => random.choice(STRANGE).unwrap_or_default().to_owned(),
        false => random.choice(examples().keys()).cloned().unwrap_or_default().replace("[]", ""),
    };
}

/// Puts in what stands at such a place in a known file: all of it, or a part of it more.
fn graft(tree: &mut Tree, role: &str, random: &mut Rng) {
    let Some(example) = examples().get(role).and_then(|known| random.choice(known)) else { return };
    match (tree, example) {
        (Tree::List(items), Tree::List(more)) if random.bool() => {
            items.extend(random.choice(more).cloned());
        }
        (Tree::Map(entries), Tree::Map(more)) if random.u8(..4) > 0 => {
            let Some((key, value)) = random.choice(more) else { return };
            match entries.iter_mut().find(|(own, _)| own == key) {
                Some((_, own)) => *own = value.clone(),
                None => entries.push((key.clone(), value.clone())),
            }
        }
        (tree, example) => *tree = example.clone(),
    }
}

/// Changes a scalar as libFuzzer would, which knows what texts and numbers were compared with.
fn retouch(text: &mut String, random: &mut Rng) {
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str()));
    *text = match value {
        Value::Number(number) if number.is_u64() && random.bool() => {
            let number = number.as_u64().unwrap_or_default();
            [number.wrapping_add(1), number.wrapping_sub(1), number >> 1, number.wrapping_mul(2)]
                [random.usize(..4)]
            .to_string()
        }
        Value::String(inner) => Value::from(touched(&inner)).to_string(),
        _ => touched(text),
    };
}

fn touched(text: &str) -> String {
    let room = text.len() + 16;
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(room, 0);
    let size = fuzzer_mutate(&mut bytes, text.len(), room);
    String::from_utf8_lossy(&bytes[..size]).into_owned()
}
