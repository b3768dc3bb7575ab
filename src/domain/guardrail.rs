//! What the work of a run must not do, whatever a model says of it: found in the patch of what it changed. Reads the patch
//! that git writes; knows nothing of languages but how their tests are marked.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::domain::{
    effect::WorkspacePath,
    policy::{FileOperation, PathRule, forbidding},
    redact::Redactor,
};

/// Most violations that are told.
const MOST: usize = 50;
/// Longest path that is told, in characters.
const PATH_CHARS: usize = 300;
/// How tests begin, in the languages that are common: what ends in a space or a bracket is a beginning of a line.
const TESTS: [&str; 12] = [
    "#[test]",
    "#[tokio::test",
    "#[rstest",
    "def test_",
    "async def test_",
    "func Test",
    "@Test",
    "it(",
    "test(",
    "it.each(",
    "test.each(",
    "TEST(",
];

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guardrail {
    /// A file was changed that a rule of the policy denies to write.
    ForbiddenPath,
    /// What was added holds a secret.
    Secret,
    /// A test was removed, or a file of tests.
    DeletedTest,
    /// What was changed cannot be told.
    Unreadable,
}

/// What becomes of the run where it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consequence {
    /// It ends.
    #[default]
    Veto,
    /// The reviewer is told.
    Report,
}

/// What becomes of the run by what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Guardrails {
    pub forbidden_paths: Consequence,
    pub secrets: Consequence,
    pub deleted_tests: Consequence,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    pub guardrail: Guardrail,
    pub consequence: Consequence,
    /// Relative to the workspace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The rule of the policy, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)?;
        match &self.rule {
            Some(rule) => write!(f, " (rule {rule})"),
            None => Ok(()),
        }
    }
}

/// One file of a patch.
#[derive(Debug, Default)]
struct Change<'a> {
    path: String,
    is_deleted: bool,
    is_new: bool,
    added: Vec<&'a str>,
    removed: Vec<&'a str>,
}

impl Guardrails {
    fn of(&self, guardrail: Guardrail) -> Consequence {
        match guardrail {
            Guardrail::ForbiddenPath => self.forbidden_paths,
            Guardrail::Secret => self.secrets,
            Guardrail::DeletedTest => self.deleted_tests,
            Guardrail::Unreadable => Consequence::Veto,
        }
    }

    /// What a patch does that it must not, at most so much as people read.
    pub fn check(&self, patch: &str, rules: &[PathRule], redactor: &Redactor) -> Vec<Violation> {
        let changes = changes(patch);
        let mut found: Vec<Violation> = Vec::new();
        for change in &changes {
            found.extend(self.forbidden(change, rules));
            found.extend(self.secret(change, redactor));
        }
        found.extend(self.deleted_tests(&changes));
        found.truncate(MOST);
        found
    }

    /// That what was changed cannot be told, and why.
    pub fn unreadable(&self, why: &str) -> Violation {
        self.found(Guardrail::Unreadable, "", format!("what was changed cannot be told: {why}"))
    }

    fn found(&self, guardrail: Guardrail, path: &str, what: String) -> Violation {
        let path = path.chars().take(PATH_CHARS).collect();
        Violation { guardrail, consequence: self.of(guardrail), path, rule: None, what }
    }

    fn forbidden(&self, change: &Change<'_>, rules: &[PathRule]) -> Option<Violation> {
        let path = WorkspacePath::from_resolved(change.path.clone());
        let rule = forbidding(rules, FileOperation::Write, &path)?;
        let found = self.found(Guardrail::ForbiddenPath, &change.path, rule.why.clone());
        Some(Violation { rule: Some(rule.id.to_string()), ..found })
    }

    fn secret(&self, change: &Change<'_>, redactor: &Redactor) -> Option<Violation> {
        let is_secret = |line: &&&str| {
            redactor.redact(line) != **line
                || (line.contains("-----BEGIN ") && line.contains("PRIVATE KEY-----"))
        };
        let lines = change.added.iter().filter(is_secret).count();
        let what = || format!("{lines} lines that were added hold what looks like a credential");
        (lines > 0).then(|| self.found(Guardrail::Secret, &change.path, what()))
    }

    /// A test that moved was not removed: what counts is how many there are in all.
    fn deleted_tests(&self, changes: &[Change<'_>]) -> Vec<Violation> {
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let is_elsewhere = |path: &str| {
            changes.iter().any(|other| other.is_new && name(&other.path) == name(path))
        };
        let gone = changes.iter().filter(|change| {
            change.is_deleted && is_test_file(&change.path) && !is_elsewhere(&change.path)
        });
        let mut found: Vec<Violation> = gone
            .map(|change| {
                self.found(
                    Guardrail::DeletedTest,
                    &change.path,
                    "a file of tests was deleted".into(),
                )
            })
            .collect();
        let tests = |lines: &[&str]| lines.iter().filter(|line| begins_test(line)).count();
        let removed: usize = changes.iter().map(|change| tests(&change.removed)).sum();
        let added: usize = changes.iter().map(|change| tests(&change.added)).sum();
        if removed > added && found.is_empty() {
            let path = changes
                .iter()
                .find(|change| tests(&change.removed) > tests(&change.added))
                .map_or("", |change| &change.path);
            let what = format!("{removed} tests were removed and {added} added");
            found.push(self.found(Guardrail::DeletedTest, path, what));
        }
        found
    }
}

fn begins_test(line: &str) -> bool {
    let line = line.trim_start();
    TESTS.iter().any(|test| line.starts_with(test))
}

fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    let is_code = name.contains('.');
    let is_named = stem.starts_with("test_")
        || stem.ends_with("_test")
        || stem.ends_with("_tests")
        || stem.ends_with("Test")
        || stem.ends_with("Tests")
        || matches!(stem, "test" | "tests")
        || name.contains(".test.")
        || name.contains(".spec.");
    let mut directories = path.split('/').rev().skip(1);
    let is_placed =
        directories.any(|place| matches!(place, "test" | "tests" | "__tests__" | "spec"));
    is_code && (is_named || is_placed)
}

/// The files of a patch.
fn changes(patch: &str) -> Vec<Change<'_>> {
    let mut changes: Vec<Change<'_>> = Vec::new();
    // Lines that are left of a hunk, old and new: what stands in one is no header, whatever it looks like.
    let mut left = (0_u64, 0_u64);
    for line in patch.lines() {
        if left != (0, 0)
            && let Some(change) = changes.last_mut()
        {
            match line.as_bytes().first() {
                Some(b'+') => {
                    change.added.push(&line[1..]);
                    left.1 = left.1.saturating_sub(1);
                }
                Some(b'-') => {
                    change.removed.push(&line[1..]);
                    left.0 = left.0.saturating_sub(1);
                }
                Some(b'\\') => {}
                Some(_) | None => left = (left.0.saturating_sub(1), left.1.saturating_sub(1)),
            }
            continue;
        }
        if let Some(names) = line.strip_prefix("diff --git ") {
            changes.push(Change { path: path_of(names), ..Change::default() });
        } else if let Some(change) = changes.last_mut() {
            change.is_deleted |= line.starts_with("deleted file mode ");
            change.is_new |= line.starts_with("new file mode ");
            left = hunk(line).unwrap_or(left);
        }
    }
    changes
}

/// How many lines of the old and the new file a hunk has.
fn hunk(line: &str) -> Option<(u64, u64)> {
    let (old, rest) = line.strip_prefix("@@ -")?.split_once(" +")?;
    let (new, _) = rest.split_once(" @@")?;
    let length = |range: &str| range.split_once(',').map_or(Some(1), |(_, n)| n.parse().ok());
    Some((length(old)?, length(new)?))
}

/// The path that both names of a header say, which differ by their first letter only: a file is not renamed.
fn path_of(names: &str) -> String {
    let first = names.get(..names.len().saturating_sub(1) / 2).unwrap_or(names);
    let path = match first.strip_prefix('"') {
        Some(quoted) => unquoted(quoted.strip_suffix('"').unwrap_or(quoted)),
        None => first.to_owned(),
    };
    path.strip_prefix("a/").map(str::to_owned).unwrap_or(path)
}

/// Git writes the bytes of unusual names as C does.
fn unquoted(quoted: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), quoted.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let octal = rest.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &rest[3..];
            continue;
        }
        let Some((escaped, after)) = rest.split_first() else { break };
        rest = after;
        bytes.push(match escaped {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            other => *other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ids::RuleId, journal::Verdict, policy::PathGlob};

    const PATCH: &str = "\
diff --git a/src/lib.rs b/src/lib.rs
index 1..2 100644
--- a/src/lib.rs
+++ b/src/lib.rs
@@ -1,3 +1,2 @@
 fn a() {}
-    #[test]
-fn b() {}
+let key = \"AKIAABCDEFGHIJKLMNOP\";
diff --git a/tests/it.rs b/tests/it.rs
deleted file mode 100644
--- a/tests/it.rs
+++ /dev/null
@@ -1 +0,0 @@
-diff --git a/fake b/fake
diff --git \"a/deploy/\\303\\244.key\" \"b/deploy/\\303\\244.key\"
new file mode 100644
--- /dev/null
+++ \"b/deploy/\\303\\244.key\"
@@ -0,0 +1 @@
+-----BEGIN EC PRIVATE KEY-----
\\ No newline at end of file
";

    fn rules() -> Vec<PathRule> {
        vec![PathRule {
            id: RuleId::new("no.keys"),
            place: None,
            glob: PathGlob::try_from("**/*.key".to_owned()).unwrap(),
            operations: vec![FileOperation::Write],
            decision: Verdict::Deny,
            why: "keys are made elsewhere".into(),
        }]
    }

    fn found(patch: &str) -> Vec<(Guardrail, String)> {
        let found = Guardrails::default().check(patch, &rules(), &Redactor::default());
        found.into_iter().map(|found| (found.guardrail, found.path)).collect()
    }

    #[test]
    fn a_patch_is_read_file_by_file_and_what_looks_like_a_header_in_it_is_none() {
        let paths: Vec<String> = changes(PATCH).into_iter().map(|change| change.path).collect();
        assert_eq!(paths, ["src/lib.rs", "tests/it.rs", "deploy/ä.key"]);
    }

    #[test]
    fn secrets_forbidden_paths_and_deleted_tests_are_found_where_they_are() {
        assert_eq!(
            found(PATCH),
            [
                (Guardrail::Secret, "src/lib.rs".into()),
                (Guardrail::ForbiddenPath, "deploy/ä.key".into()),
                (Guardrail::Secret, "deploy/ä.key".into()),
                (Guardrail::DeletedTest, "tests/it.rs".into()),
            ]
        );
        let rule = Guardrails::default().check(PATCH, &rules(), &Redactor::default());
        assert_eq!(rule[1].rule.as_deref(), Some("no.keys"));
    }

    #[test]
    fn a_test_that_is_taken_out_of_a_file_is_found_and_one_that_moves_is_not() {
        let removed =
            "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1,2 +1 @@\n x\n-def test_a():\n";
        let moved = "diff --git a/b.py b/b.py\n--- a/b.py\n+++ b/b.py\n@@ -1 +1,2 @@\n x\n+    def test_a():\n";
        assert_eq!(found(removed), [(Guardrail::DeletedTest, "a.py".into())]);
        assert_eq!(found(&format!("{removed}{moved}")), []);
        let gone = "diff --git a/tests/a.rs b/tests/a.rs\ndeleted file mode 100644\n";
        let back = "diff --git a/it/a.rs b/it/a.rs\nnew file mode 100644\n";
        assert_eq!(found(gone), [(Guardrail::DeletedTest, "tests/a.rs".into())]);
        assert_eq!(found(&format!("{gone}{back}")), []);
    }

    #[test]
    fn what_is_no_patch_is_no_violation_and_no_panic() {
        for text in [
            "",
            "diff --git ",
            "diff --git \"",
            "@@ -1 +1 @@\n+sk-",
            "diff --git a\n@@ -x +y @@\n\\",
        ] {
            assert_eq!(found(text), [], "{text}");
        }
    }
}
