//! The tests that stand in policy files, and what came of them. Asks no rule: that is done where the files are
//! read, in `policy_files`.

use std::fmt;

use crate::domain::{
    ids::RuleId,
    journal::Verdict,
    policy::{Place, Policy},
};

/// What policy files come to.
#[derive(Debug)]
pub struct Compiled {
    /// Where anything is wrong, a failed test included: all of it, one line each with its place.
    pub policy: Result<Policy, Vec<String>>,
    pub tests: Tests,
}

impl Compiled {
    /// Files that did not come as far as to their tests.
    pub fn refused(faults: Vec<String>) -> Self {
        Self { policy: Err(faults), tests: Tests::default() }
    }
}

/// One test of a policy file, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTest {
    /// What it asks about: `write .git/config`, `git.log: git log -p`.
    pub name: String,
    pub place: Place,
    pub expected: TestOutcome,
    pub found: TestOutcome,
    /// What the rules say to it; empty where they say nothing against it.
    pub why: String,
}

impl PolicyTest {
    pub fn has_passed(&self) -> bool {
        self.expected == self.found
    }
}

/// As a fault, where it has failed.
impl fmt::Display for PolicyTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, expected, found, why, .. } = self;
        write!(f, "{name}: expects {expected}, the rules say {found}")?;
        if why.is_empty() { Ok(()) } else { write!(f, " ({why})") }
    }
}

/// What a test expects, and what it finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TestOutcome {
    Decision {
        verdict: Verdict,
        /// None: no rule speaks of it.
        rule: Option<RuleId>,
    },
    /// A rule speaks of its example.
    Match,
    NoMatch,
}

impl fmt::Display for TestOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decision { verdict, rule: Some(rule) } => {
                write!(f, "{} by {rule}", verdict.as_str())
            }
            Self::Decision { verdict, rule: None } => write!(f, "{} by no rule", verdict.as_str()),
            Self::Match => f.write_str("match"),
            Self::NoMatch => f.write_str("no match"),
        }
    }
}

/// What came of all tests of the policy files: every one is counted, and as many are kept as are ever shown.
#[derive(Debug, Clone, Default)]
pub struct Tests {
    /// At most `SHOWN` that passed and as many that failed.
    kept: Vec<PolicyTest>,
    passed: usize,
    failed: usize,
}

impl Tests {
    /// Most tests that are told one by one.
    pub const SHOWN: usize = 500;

    pub fn note(&mut self, test: PolicyTest) {
        let count = if test.has_passed() { &mut self.passed } else { &mut self.failed };
        *count += 1;
        if *count <= Self::SHOWN {
            self.kept.push(test);
        }
    }

    pub fn passed(&self) -> usize {
        self.passed
    }

    pub fn failed(&self) -> usize {
        self.failed
    }

    /// The tests in the order in which they were noted, at most [`Self::SHOWN`]: of more, those that failed go
    /// before those that passed.
    pub fn shown(&self) -> impl Iterator<Item = &PolicyTest> {
        let mut room = Self::SHOWN.saturating_sub(self.failed);
        self.kept.iter().filter(move |test| {
            let is_shown = !test.has_passed() || room > 0;
            room = room.saturating_sub(usize::from(test.has_passed()));
            is_shown
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(passed: usize, failed: usize) -> Tests {
        let test = |name: String, found: TestOutcome| PolicyTest {
            name,
            place: Place { file: "paths.yaml".into(), line: 1, column: 1 },
            expected: TestOutcome::Match,
            found,
            why: String::new(),
        };
        let mut tests = Tests::default();
        (0..passed).for_each(|n| tests.note(test(format!("p{n}"), TestOutcome::Match)));
        (0..failed).for_each(|n| tests.note(test(format!("f{n}"), TestOutcome::NoMatch)));
        tests
    }

    fn shown(tests: &Tests) -> (usize, usize) {
        let passed = tests.shown().filter(|test| test.has_passed()).count();
        (passed, tests.shown().count() - passed)
    }

    #[test]
    fn of_too_many_tests_all_are_counted_and_those_that_failed_are_shown_first() {
        for (passed, failed, expected) in [
            (2, 1, (2, 1)),
            (500, 0, (500, 0)),
            (10_000, 3, (497, 3)),
            (10_000, 10_000, (0, 500)),
            (3, 499, (1, 499)),
        ] {
            let tests = noted(passed, failed);
            assert_eq!((tests.passed(), tests.failed()), (passed, failed));
            assert_eq!(shown(&tests), expected, "{passed} passed, {failed} failed");
        }
        let names: Vec<String> = noted(1, 2).shown().map(|test| test.name.clone()).collect();
        assert_eq!(names, ["p0", "f0", "f1"]);
    }

    #[test]
    fn a_test_that_failed_says_what_it_expects_and_what_the_rules_say() {
        let test = PolicyTest {
            name: "read .env".into(),
            place: Place { file: "paths.yaml".into(), line: 3, column: 5 },
            expected: TestOutcome::Decision {
                verdict: Verdict::Allow,
                rule: Some(RuleId::new("all")),
            },
            found: TestOutcome::Decision { verdict: Verdict::Deny, rule: None },
            why: "it holds secrets".into(),
        };
        let expected =
            "read .env: expects allow by all, the rules say deny by no rule (it holds secrets)";
        assert_eq!(test.to_string(), expected);
    }
}
