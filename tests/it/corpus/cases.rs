//! What a case of the corpus says. Reads `tests/corpus/*.yaml`; carries nothing out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) id: String,
    pub(super) what: String,
    #[serde(default)]
    pub(super) setup: String,
    pub(super) given: Option<Change>,
    pub(super) call: Option<OneOrMore<Call>>,
    pub(super) expect: Option<OneOrMore<Expected>>,
    #[serde(default)]
    pub(super) hides: Vec<String>,
    pub(super) first: Option<String>,
    pub(super) attack: Option<String>,
    pub(super) held_by: Option<String>,
    pub(super) under: Option<String>,
    pub(super) limit: Option<OneOrMore<String>>,
    pub(super) bounded: Option<Bounded>,
    #[serde(rename = "while")]
    pub(super) meanwhile: Option<Meanwhile>,
    pub(super) control: Option<String>,
    pub(super) no_control: Option<String>,
    pub(super) takes: Option<String>,
    pub(super) may_lack: Option<String>,
    pub(super) broken: Option<Change>,
    pub(super) swapped: Option<Swapped>,
    pub(super) submit: Option<Submission>,
    pub(super) reach: Option<Reach>,
    pub(super) absent: Option<String>,
    pub(super) lives: Option<String>,
    pub(super) shown_by: Option<String>,
    pub(super) note: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    pub(super) fn all(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Call {
    pub(super) tool: String,
    pub(super) arguments: Value,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expected {
    pub(super) decision: String,
    pub(super) rule: String,
    pub(super) outcome: String,
}

impl Expected {
    /// Decision and rule, and outcome.
    pub(super) fn as_found(&self) -> [String; 2] {
        [format!("{} {}", self.decision, self.rule), self.outcome.clone()]
    }
}

/// A change of a policy file, and what a reload says to it if it does not take it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    pub(super) file: String,
    /// Empty: the whole file.
    pub(super) replace: String,
    pub(super) by: String,
    #[serde(default)]
    pub(super) says: String,
}

/// A change of policy files that comes and goes as fast as can be while they are read.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Swapped {
    /// In each of these files.
    pub(super) files: Vec<String>,
    pub(super) append: String,
    /// How often they are read.
    pub(super) reloads: usize,
}

/// A run that must not be taken.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    pub(super) workspace: String,
    pub(super) says: String,
}

/// Most that may come of something without a bound.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bounded {
    pub(super) output_bytes: usize,
    /// By how much the daemon may have grown.
    pub(super) daemon_kib: u64,
}

/// What goes on outside of the daemon while the case is carried out.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(super) enum Meanwhile {
    /// Two names of the workspace change places, so often at least.
    Exchange { exchange: [String; 2], times: u64 },
    /// The daemon answers, so often at least, and the workspace never has more processes than that.
    Answer { answers: u32, most_processes: usize },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reach {
    pub(super) script: String,
    pub(super) control: Option<String>,
    #[serde(default)]
    pub(super) decided: Vec<String>,
    /// A host that it may well reach on the way.
    pub(super) may_ask: Option<String>,
    /// What the daemon's ALLOW_NET says.
    #[serde(default = "open")]
    pub(super) allow_net: bool,
    /// A change of the policy that comes as soon as the script has made the file `open`; then the runner makes `go`.
    pub(super) then: Option<Change>,
    /// Why it is not held.
    pub(super) gets_through: Option<String>,
}

fn open() -> bool {
    true
}

impl Case {
    /// Name of the script that tries it; the rule for it brings its limits.
    pub(super) fn script(&self) -> &str {
        self.under.as_deref().unwrap_or("script.sh")
    }

    pub(super) fn calls(&self) -> &[Call] {
        self.call.as_ref().map_or(&[], OneOrMore::all)
    }

    pub(super) fn expected(&self) -> &[Expected] {
        self.expect.as_ref().map_or(&[], OneOrMore::all)
    }

    /// Whether this limit may have ended it: none, unless it says another.
    pub(super) fn may_end_by(&self, limit: Option<&str>) -> bool {
        let limit = limit.unwrap_or("none");
        match &self.limit {
            None => limit == "none",
            Some(limits) => limits.all().iter().any(|one| one == limit),
        }
    }

    /// What is done without walls, where it must get through.
    pub(super) fn control(&self) -> Option<&String> {
        match self.no_control {
            Some(_) => None,
            None => self.control.as_ref().or(self.attack.as_ref()),
        }
    }

    /// Says what is wrong with it, as far as can be seen from it alone.
    pub(super) fn faults(&self) -> Vec<&'static str> {
        let tried = [
            self.call.is_some(),
            self.attack.is_some(),
            self.reach.is_some(),
            self.broken.is_some(),
            self.swapped.is_some(),
            self.submit.is_some(),
            self.shown_by.is_some(),
        ];
        // Of policy files and submissions the control is that the others are taken; of a secret, that the model has it.
        let controlled = self.control().is_some()
            || self.no_control.is_some()
            || !self.hides.is_empty()
            || [&tried[2..]].concat().contains(&true);
        let by_force = self.attack.is_some() || self.reach.is_some();
        [
            (!tried.contains(&true), "nothing is tried"),
            (!controlled, "neither a control nor a word of why there is none"),
            (self.call.is_some() != self.expect.is_some(), "call and expect"),
            (by_force != self.held_by.is_some(), "attack and held_by"),
            (self.control.is_some() && self.no_control.is_some(), "control and no_control"),
        ]
        .into_iter()
        .filter_map(|(wrong, what)| wrong.then_some(what))
        .collect()
    }
}

pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// All cases, file by file.
pub(super) fn corpus() -> Vec<Case> {
    let mut files: Vec<_> = fs::read_dir(root().join("tests/corpus"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let read = |path: &PathBuf| -> Vec<Case> {
        let text = fs::read_to_string(path).unwrap();
        serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    files.iter().flat_map(read).collect()
}

/// Those of them that are of a kind.
pub(super) fn cases(is_one: impl Fn(&Case) -> bool) -> Vec<Case> {
    corpus().into_iter().filter(is_one).collect()
}
