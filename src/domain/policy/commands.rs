//! Rules about programs. A rule names the first words of a command and lists all that may follow.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{
    ids::RuleId,
    journal::Verdict,
    policy::{Limits, Ruling, deny},
    tool::EffectClass,
};

/// One rule of `tools.yaml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRule {
    pub id: RuleId,
    /// The first words, exactly; at least one.
    pub argv: Vec<String>,
    /// Words beginning with `-` that may follow, exactly as listed.
    pub flags: BTreeSet<String>,
    pub positionals: Positionals,
    /// Words put in after the program's name.
    pub inject: Vec<String>,
    /// Words put in after the rule's own words.
    pub inject_after: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub class: EffectClass,
    pub decision: Verdict,
    pub limits: Option<Limits>,
    pub why: String,
}

/// Which words that are not flags may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positionals {
    None,
    /// Relative paths without `..`.
    WorkspacePaths,
    /// Anything that does not begin with `-`.
    Any,
}

/// Why a command is not what a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// The rule is about another command.
    OtherCommand,
    Flag(String),
    Positional(String),
}

impl CommandRule {
    /// Whether the rule speaks of this command. A rule that denies speaks of whatever follows its words.
    pub fn check(&self, argv: &[String]) -> Result<(), Mismatch> {
        let rest = argv.strip_prefix(self.argv.as_slice()).ok_or(Mismatch::OtherCommand)?;
        if self.decision == Verdict::Deny {
            return Ok(());
        }
        let mut only_positionals = false;
        for word in rest {
            match word.as_str() {
                "--" if !only_positionals && self.positionals != Positionals::None => {
                    only_positionals = true;
                }
                flag if flag.starts_with('-') && !only_positionals => {
                    if !self.flags.contains(flag) {
                        return Err(Mismatch::Flag(word.clone()));
                    }
                }
                positional => {
                    if !self.positionals.admit(positional) {
                        return Err(Mismatch::Positional(word.clone()));
                    }
                }
            }
        }
        Ok(())
    }

    /// The argument vector to run for a command that the rule speaks of.
    pub fn full_argv(&self, argv: &[String]) -> Vec<String> {
        let (program, rest) = argv.split_at(argv.len().min(1));
        let (own, rest) = rest.split_at(rest.len().min(self.argv.len().saturating_sub(1)));
        [program, &self.inject, own, &self.inject_after, rest].concat()
    }
}

impl Positionals {
    fn admit(self, word: &str) -> bool {
        match self {
            Self::None => false,
            Self::Any => !word.starts_with('-'),
            Self::WorkspacePaths => {
                !word.is_empty()
                    && !word.starts_with(['/', '-', '~'])
                    && word.split('/').all(|component| component != "..")
            }
        }
    }
}

/// The rule that allows it, or the ruling that does not.
pub(super) fn judge<'a>(
    rules: &'a [CommandRule],
    argv: &[String],
) -> Result<&'a CommandRule, Ruling> {
    let matching = || rules.iter().filter(|rule| rule.check(argv).is_ok());
    if let Some(rule) = matching().find(|rule| rule.decision == Verdict::Deny) {
        return Err(deny(rule.id.clone(), rule.why.clone()));
    }
    matching().next().ok_or_else(|| no_rule(rules, argv))
}

/// Says what would be allowed instead, in one line.
fn no_rule(rules: &[CommandRule], argv: &[String]) -> Ruling {
    let near = rules.iter().filter(|rule| rule.decision == Verdict::Allow).find_map(|rule| {
        let shown = rule.argv.join(" ");
        match rule.check(argv) {
            Err(Mismatch::Flag(flag)) => Some(format!("{shown} is allowed, but not with {flag}")),
            Err(Mismatch::Positional(word)) => {
                Some(format!("{shown} is allowed, but not with the argument {word:?}"))
            }
            Err(Mismatch::OtherCommand) | Ok(()) => None,
        }
    });
    let why = near.unwrap_or_else(|| {
        let allowed: Vec<String> = rules
            .iter()
            .filter(|rule| rule.decision == Verdict::Allow)
            .map(|rule| rule.argv.join(" "))
            .collect();
        format!("this command is not on the allowlist, which is: {}", allowed.join(", "))
    });
    deny(RuleId::new("builtin/no-rule"), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    fn rule(id: &str, argv: &str, decision: Verdict) -> CommandRule {
        CommandRule {
            id: RuleId::new(id),
            argv: words(argv),
            flags: ["-s".to_owned()].into(),
            positionals: Positionals::WorkspacePaths,
            inject: vec!["--safe".into()],
            inject_after: vec!["--plain".into()],
            environment: BTreeMap::new(),
            class: EffectClass::Pure,
            decision,
            limits: None,
            why: "because".into(),
        }
    }

    #[test]
    fn a_rule_speaks_only_of_its_words_its_flags_and_its_paths() {
        let status = rule("git.status", "git status", Verdict::Allow);
        for (line, expected) in [
            ("git status", Ok(())),
            ("git status -s src/a.rs", Ok(())),
            ("git status -- -odd-name", Err(Mismatch::Positional("-odd-name".into()))),
            ("git push", Err(Mismatch::OtherCommand)),
            ("git -c a=b status", Err(Mismatch::OtherCommand)),
            ("git status --output=x", Err(Mismatch::Flag("--output=x".into()))),
            ("git status /etc", Err(Mismatch::Positional("/etc".into()))),
            ("git status a/../../b", Err(Mismatch::Positional("a/../../b".into()))),
            ("git status; id", Err(Mismatch::OtherCommand)),
        ] {
            assert_eq!(status.check(&words(line)), expected, "{line}");
        }
    }

    #[test]
    fn deny_beats_allow_and_nothing_matching_is_deny() {
        let rules = [
            rule("ok", "git status", Verdict::Allow),
            rule("never", "git status -s", Verdict::Deny),
        ];
        assert_eq!(judge(&rules, &words("git status")).unwrap().id, RuleId::new("ok"));
        assert_eq!(judge(&rules, &words("git status -s")).unwrap_err().rule, RuleId::new("never"));
        let ruling = judge(&rules, &words("curl example.test")).unwrap_err();
        assert_eq!(ruling.rule, RuleId::new("builtin/no-rule"));
        assert_eq!(ruling.why, "this command is not on the allowlist, which is: git status");
        assert_eq!(
            judge(&rules, &words("git status --all")).unwrap_err().why,
            "git status is allowed, but not with --all"
        );
    }

    #[test]
    fn an_empty_list_denies_all() {
        assert_eq!(judge(&[], &words("ls")).unwrap_err().rule, RuleId::new("builtin/no-rule"));
    }

    #[test]
    fn injected_words_stand_after_the_program_and_after_the_rule_s_own() {
        let status = rule("git.status", "git status", Verdict::Allow);
        let full = status.full_argv(&words("git status -s"));
        assert_eq!(full, words("git --safe status --plain -s"));
    }

    #[test]
    fn a_rule_that_denies_speaks_of_whatever_follows_its_words() {
        let mut anything = rule("git", "git", Verdict::Allow);
        anything.positionals = Positionals::Any;
        let rules = [anything, rule("git.push", "git push", Verdict::Deny)];
        for line in ["git push", "git push origin main", "git push --force"] {
            let ruling = judge(&rules, &words(line)).unwrap_err();
            assert_eq!(ruling.rule, RuleId::new("git.push"), "{line}");
        }
        assert!(judge(&rules, &words("git fetch")).is_ok(), "control");
    }
}
