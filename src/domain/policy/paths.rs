//! Rules about files. Paths come resolved: globs are labels here, the jail is the kernel's.

use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::domain::{
    effect::WorkspacePath,
    ids::RuleId,
    journal::Verdict,
    policy::{Place, Ruling, deny, refuse, strictest},
};

/// What is to be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileOperation {
    Read,
    Write,
}

/// One rule of `paths.yaml`. As data it is its pattern, so that whoever walks a tree elsewhere asks the
/// very same rules.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PathRule {
    pub id: RuleId,
    /// For people; whoever walks a tree does not need it.
    #[serde(skip)]
    pub place: Option<Place>,
    /// Matched against the path relative to the workspace; `*` does not cross `/`.
    pub glob: PathGlob,
    pub operations: Vec<FileOperation>,
    pub decision: Verdict,
    pub why: String,
}

/// A glob over paths, compiled.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathGlob(GlobMatcher);

impl TryFrom<String> for PathGlob {
    type Error = globset::Error;

    fn try_from(pattern: String) -> Result<Self, globset::Error> {
        let glob = GlobBuilder::new(&pattern).literal_separator(true).build()?;
        Ok(Self(glob.compile_matcher()))
    }
}

impl From<PathGlob> for String {
    fn from(glob: PathGlob) -> Self {
        glob.0.glob().glob().to_owned()
    }
}

impl PathGlob {
    /// The pattern, as it was written.
    pub fn as_str(&self) -> &str {
        self.0.glob().glob()
    }
}

impl PathRule {
    pub fn matches(&self, operation: FileOperation, path: &WorkspacePath) -> bool {
        self.operations.contains(&operation) && self.glob.0.is_match(path.as_str())
    }
}

/// The rule that denies it, whatever people allow.
pub fn forbidding<'a>(
    rules: &'a [PathRule],
    operation: FileOperation,
    path: &WorkspacePath,
) -> Option<&'a PathRule> {
    rules.iter().find(|rule| rule.decision == Verdict::Deny && rule.matches(operation, path))
}

/// The rule that allows it, or the ruling that does not.
pub fn judge<'a>(
    rules: &'a [PathRule],
    operation: FileOperation,
    path: &WorkspacePath,
) -> Result<&'a PathRule, Ruling> {
    judge_given(rules, operation, path, &[])
}

/// The same where a person has allowed what the rules `given` ask about.
pub(super) fn judge_given<'a>(
    rules: &'a [PathRule],
    operation: FileOperation,
    path: &WorkspacePath,
    given: &[RuleId],
) -> Result<&'a PathRule, Ruling> {
    let mut matching = rules.iter().filter(|rule| rule.matches(operation, path));
    let open = matching.clone().filter(|rule| !rule.decision.is_given(&rule.id, given));
    if let Some(rule) = strictest(open, |rule| rule.decision) {
        return Err(refuse(&rule.id, rule.decision, format!("{path}: {}", rule.why)));
    }
    matching.next().ok_or_else(|| {
        let verb = match operation {
            FileOperation::Read => "read",
            FileOperation::Write => "written",
        };
        deny(RuleId::new("builtin/no-rule"), format!("no rule allows {path} to be {verb}"))
    })
}
