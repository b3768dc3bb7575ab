//! Asks the rules what the tests in the files expect of them. A test that failed is a fault of its file. Those
//! of `network.yaml` stand with its shape.

use crate::{
    domain::{
        effect::WorkspacePath,
        journal::Verdict,
        policy::{CommandRule, FileOperation, PathRule, PolicyTest, TestOutcome, judge_path},
    },
    policy_files::{
        Sources,
        compiler::{Compiler, at, place},
        shapes::{CommandShape, PathTest},
    },
    yaml::Placed,
};

impl Compiler {
    /// Takes note of a test; `key` names it in its file.
    pub(super) fn tested(&mut self, key: &str, test: PolicyTest) {
        if !test.has_passed() {
            self.fault(&test.place.to_string(), key, &test.to_string());
        }
        self.tests.note(test);
    }

    pub(super) fn path_tests(
        &mut self,
        file: &str,
        rules: &[PathRule],
        tests: &[Placed<PathTest>],
    ) {
        for (n, placed) in tests.iter().enumerate() {
            let asked = &placed.value;
            let operation = FileOperation::from(asked.operation);
            let verb = match operation {
                FileOperation::Read => "read",
                FileOperation::Write => "write",
            };
            let path = WorkspacePath::from_resolved(asked.path.clone());
            let (verdict, rule, why) = match judge_path(rules, operation, &path) {
                Ok(rule) => (Verdict::Allow, rule.id.clone(), String::new()),
                Err(ruling) => (ruling.verdict, ruling.rule, ruling.why),
            };
            let test = PolicyTest {
                name: format!("{verb} {}", asked.path),
                place: place(file, placed),
                expected: TestOutcome::Decision {
                    verdict: asked.expect,
                    rule: Some(asked.rule.clone()),
                },
                found: TestOutcome::Decision { verdict, rule: Some(rule) },
                why,
            };
            self.tested(&format!("tests[{n}]"), test);
        }
    }

    /// A rule must speak of what it says it matches, and not of what it says it does not.
    pub(super) fn examples(&mut self, sources: &Sources, shape: &CommandShape, rule: &CommandRule) {
        let file = &sources.tools.name;
        let expected = shape.matches.iter().map(|line| (line, TestOutcome::Match));
        let unexpected = shape.not_matches.iter().map(|line| (line, TestOutcome::NoMatch));
        for (placed, expected) in expected.chain(unexpected) {
            let line = &placed.value;
            let mismatch = match shlex::split(line) {
                Some(argv) => rule.mismatch(&argv),
                None => Some("its quotes do not close".into()),
            };
            let found = if mismatch.is_none() { TestOutcome::Match } else { TestOutcome::NoMatch };
            let test = PolicyTest {
                name: format!("{}: {line}", rule.id),
                place: place(file, placed),
                expected,
                found,
                why: mismatch.unwrap_or_default(),
            };
            if !test.has_passed() {
                let verb =
                    if test.found == TestOutcome::Match { "matches" } else { "does not match" };
                let message = format!("{verb} its example {line:?}");
                self.fault(&at(file, &shape.id), &format!("command {}", rule.id), &message);
            }
            self.tests.note(test);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{
            ids::{RuleId, ToolName},
            policy::Compiled,
        },
        policy_files::{DEFAULT_PATHS, DEFAULT_TOOLS, compile_and_test},
    };

    fn compiled(change: impl FnOnce(&mut Sources)) -> Compiled {
        let mut sources = Sources::built_in();
        change(&mut sources);
        let tools =
            ["read_file", "write_file", "edit_file", "list_dir", "search_files", "shell_exec"];
        let tools = tools.into_iter().chain(["repo_summarize"]).map(ToolName::new);
        compile_and_test(&sources, &tools.collect::<Vec<_>>())
    }

    fn find<'a>(compiled: &'a Compiled, name: &str) -> &'a PolicyTest {
        let all = || compiled.tests.shown().map(|test| &test.name).collect::<Vec<_>>();
        let found = compiled.tests.shown().find(|test| test.name == name);
        found.unwrap_or_else(|| panic!("{name} is not in {:#?}", all()))
    }

    fn line_of(text: &str, words: &str) -> u64 {
        let line = text.lines().position(|line| line.contains(words)).unwrap() + 1;
        u64::try_from(line).unwrap()
    }

    fn decided(verdict: Verdict, rule: &str) -> TestOutcome {
        TestOutcome::Decision { verdict, rule: Some(RuleId::new(rule)) }
    }

    #[test]
    fn each_test_and_each_example_is_told_with_its_place_and_what_came_of_it() {
        let compiled = compiled(|_| {});
        assert!(compiled.policy.is_ok());
        assert_eq!(compiled.tests.failed(), 0);
        assert_eq!(compiled.tests.shown().count(), compiled.tests.passed());
        let denied = find(&compiled, "read .env");
        assert_eq!(denied.found, decided(Verdict::Deny, "secrets.env"));
        assert_eq!(denied.place.line, line_of(DEFAULT_PATHS, "path: .env, expect"));
        assert_eq!(denied.place.file.as_ref(), "built-in paths.yaml");
        let example = find(&compiled, "git.log: git log -p");
        assert!(example.has_passed() && example.found == TestOutcome::NoMatch);
        assert_eq!(example.why, "-p is not among its flags and options");
        assert_eq!(example.place.line, line_of(DEFAULT_TOOLS, "\"git log -p\""));
    }

    #[test]
    fn one_test_that_fails_refuses_the_files_and_the_others_are_told_all_the_same() {
        let compiled = compiled(|sources| {
            let paths = &mut sources.paths.text;
            *paths = paths.replace("path: .env, expect: deny", "path: .env, expect: allow");
        });
        let failed = find(&compiled, "read .env");
        assert_eq!(failed.expected, decided(Verdict::Allow, "secrets.env"));
        assert_eq!(failed.found, decided(Verdict::Deny, "secrets.env"));
        let faults = compiled.policy.as_ref().unwrap_err();
        assert_eq!(*faults, [format!("{}: tests[2]: {failed}", failed.place)]);
        assert_eq!(compiled.tests.failed(), 1);
        assert!(find(&compiled, "git.log: git log -p").has_passed());
    }

    #[test]
    fn files_of_another_shape_have_faults_and_no_tests() {
        let compiled = compiled(|sources| sources.paths.text.push_str("surplus: 1\n"));
        assert_eq!(compiled.policy.unwrap_err().len(), 1);
        assert_eq!((compiled.tests.passed(), compiled.tests.failed()), (0, 0));
    }
}
