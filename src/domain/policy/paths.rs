//! Rules about files. Paths come resolved: globs are labels here, the jail is the kernel's.

use globset::GlobMatcher;

use crate::domain::{
    effect::WorkspacePath,
    ids::RuleId,
    journal::Verdict,
    policy::{Ruling, deny},
};

/// What is to be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOperation {
    Read,
    Write,
}

/// One rule of `paths.yaml`.
#[derive(Debug, Clone)]
pub struct PathRule {
    pub id: RuleId,
    /// Matched against the path relative to the workspace; `*` does not cross `/`.
    pub glob: GlobMatcher,
    pub operations: Vec<FileOperation>,
    pub decision: Verdict,
    pub why: String,
}

impl PathRule {
    pub fn matches(&self, operation: FileOperation, path: &WorkspacePath) -> bool {
        self.operations.contains(&operation) && self.glob.is_match(path.as_str())
    }
}

/// The rule that allows it, or the ruling that does not.
pub fn judge<'a>(
    rules: &'a [PathRule],
    operation: FileOperation,
    path: &WorkspacePath,
) -> Result<&'a PathRule, Ruling> {
    let matching = || rules.iter().filter(|rule| rule.matches(operation, path));
    if let Some(rule) = matching().find(|rule| rule.decision == Verdict::Deny) {
        return Err(deny(rule.id.clone(), format!("{path}: {}", rule.why)));
    }
    matching().next().ok_or_else(|| {
        let verb = match operation {
            FileOperation::Read => "read",
            FileOperation::Write => "written",
        };
        deny(RuleId::new("builtin/no-rule"), format!("no rule allows {path} to be {verb}"))
    })
}
