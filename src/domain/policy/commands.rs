//! Rules about programs. A rule names the first words of a command and lists all that may follow.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::domain::{
    effect::Isolation,
    ids::RuleId,
    journal::Verdict,
    policy::{Limits, Place, Ruling, deny, refuse, strictest},
    tool::EffectClass,
};

/// One rule of `tools.yaml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRule {
    pub id: RuleId,
    /// None: it stands in no file.
    pub place: Option<Place>,
    /// The first words, exactly; at least one.
    pub argv: Vec<String>,
    /// Words beginning with `-` that may follow, exactly as listed.
    pub flags: BTreeSet<String>,
    /// Words beginning with `-` that take a value.
    pub options: BTreeMap<String, OptionRule>,
    pub positionals: Positionals,
    /// Words put in after the program's name.
    pub inject: Vec<String>,
    /// Words put in after the rule's own words.
    pub inject_after: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub class: EffectClass,
    pub decision: Verdict,
    pub limits: Option<Limits>,
    /// How well it must be kept apart, at least; none: as well as any other.
    pub isolation: Option<Isolation>,
    /// Rules of `network.yaml` that say what it may reach.
    pub network: Vec<RuleId>,
    pub why: String,
}

/// All rules about programs, found by the program: a decision takes no longer for the rules about others.
#[derive(Debug, Clone, Default)]
pub struct Commands {
    rules: Vec<CommandRule>,
    /// Places in `rules`, in order.
    by_program: HashMap<String, Vec<usize>>,
}

impl From<Vec<CommandRule>> for Commands {
    fn from(rules: Vec<CommandRule>) -> Self {
        let mut by_program: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, rule) in rules.iter().enumerate() {
            let program = rule.argv.first().cloned().unwrap_or_default();
            by_program.entry(program).or_default().push(place);
        }
        Self { rules, by_program }
    }
}

impl std::ops::Deref for Commands {
    type Target = [CommandRule];

    fn deref(&self) -> &[CommandRule] {
        &self.rules
    }
}

impl Commands {
    /// Those about the program that a command begins with, in the order of the file.
    fn about(&self, argv: &[String]) -> impl Iterator<Item = &CommandRule> + Clone {
        let places = argv.first().and_then(|program| self.by_program.get(program));
        places.into_iter().flatten().map(|place| &self.rules[*place])
    }
}

/// What an option's value may be, and how it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionRule {
    pub value: ValueRule,
    pub form: OptionForm,
}

/// What a value may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueRule {
    OneOf(BTreeSet<String>),
    /// Decimal digits.
    Number,
    /// Letters, digits and `_ . : / + @ , ~ ^ -`, not beginning with `-`, `/` or `~`, and without `..`.
    Name,
    /// A relative path without `..`.
    WorkspacePath,
    /// Anything that does not begin with `-`.
    Any,
}

/// How an option's value is written. Programs differ in what they take for a value, so that only one form
/// is sure for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionForm {
    /// `--option=value`, in one word.
    Joined,
    /// That, or `--option value`, in two.
    JoinedOrSeparate,
}

/// Which words that are not flags may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positionals {
    None,
    /// Relative paths without `..`.
    WorkspacePaths,
    /// See [`ValueRule::Name`].
    Names,
    /// Anything that does not begin with `-`.
    Any,
}

/// Why a command is not what a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// The rule is about another command.
    OtherCommand,
    Flag(String),
    /// The value of this option, which may be another.
    Value(String),
    Positional(String),
}

/// The words after a rule's own, told apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Words that may stand for files of the workspace.
    pub paths: Vec<String>,
}

/// A path, and what is left of it without its first names: one of these it is seen from the workspace.
fn tails(path: &str) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    (0..names.len()).map(|first| names[first..].join("/")).collect()
}

impl Parsed {
    /// Of words of which nobody knows what they are: each may stand for a file, also in a part of it, behind a short
    /// option, by a way round, and with the workspace before it.
    fn of_anything(words: &[String]) -> Self {
        let parts = words.iter().flat_map(|word| {
            let option = word.get(2..).filter(|_| word.starts_with('-'));
            let split = word.split(['=', ':', '@', ',']);
            std::iter::once(word.as_str()).chain(option).chain(split)
        });
        Self { paths: parts.flat_map(tails).collect() }
    }
}

impl CommandRule {
    /// Whether the rule speaks of this command. A rule that does not allow speaks of whatever follows its words.
    pub fn check(&self, argv: &[String]) -> Result<Parsed, Mismatch> {
        let rest = argv.strip_prefix(self.argv.as_slice()).ok_or(Mismatch::OtherCommand)?;
        let mut parsed = Parsed::default();
        if self.decision != Verdict::Allow {
            return Ok(parsed);
        }
        let mut only_positionals = false;
        let mut rest = rest.iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--" if !only_positionals && self.positionals != Positionals::None => {
                    only_positionals = true;
                }
                flag if flag.starts_with('-') && !only_positionals => {
                    if !self.flags.contains(flag) {
                        self.option(word, &mut rest, &mut parsed)?;
                    }
                }
                positional => {
                    if !self.positionals.admit(positional) {
                        return Err(Mismatch::Positional(word.clone()));
                    }
                    parsed.paths.push(word.clone());
                    // A file of another time, as git names it.
                    parsed.paths.extend(word.rsplit_once(':').map(|(_, file)| file.to_owned()));
                }
            }
        }
        Ok(parsed)
    }

    /// An option with its value, which may be the next word.
    fn option<'a>(
        &self,
        word: &str,
        rest: &mut impl Iterator<Item = &'a String>,
        parsed: &mut Parsed,
    ) -> Result<(), Mismatch> {
        let refused = || Mismatch::Flag(word.to_owned());
        let (rule, value) = match word.split_once('=') {
            Some((name, value)) => (self.options.get(name).ok_or_else(refused)?, value),
            None => {
                let rule = self.options.get(word).ok_or_else(refused)?;
                if rule.form == OptionForm::Joined {
                    return Err(Mismatch::Value(word.to_owned()));
                }
                (rule, rest.next().ok_or_else(refused)?.as_str())
            }
        };
        if !rule.value.admit(value) {
            return Err(Mismatch::Value(word.to_owned()));
        }
        if rule.value == ValueRule::WorkspacePath {
            parsed.paths.push(value.to_owned());
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
            Self::Any => ValueRule::Any.admit(word),
            Self::Names => ValueRule::Name.admit(word),
            Self::WorkspacePaths => ValueRule::WorkspacePath.admit(word),
        }
    }
}

impl ValueRule {
    fn admit(&self, word: &str) -> bool {
        let leads_up = || word.split('/').any(|component| component == "..");
        match self {
            Self::OneOf(words) => words.contains(word),
            Self::Number => {
                (1..=9).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_digit())
            }
            Self::Name => {
                let plain =
                    |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/+@,~^-".contains(&byte);
                !word.is_empty()
                    && !word.starts_with(['-', '/', '~'])
                    && word.bytes().all(plain)
                    && !leads_up()
            }
            Self::WorkspacePath => {
                !word.is_empty() && !word.starts_with(['/', '-', '~']) && !leads_up()
            }
            Self::Any => !word.starts_with('-'),
        }
    }
}

/// Longest words of a command that a person is asked about, all together, in bytes: more nobody reads, and each part of
/// each is compared with the rules about paths.
const ASKED_BYTES: usize = 8 << 10;

/// The rule that allows it, with what its words stand for; or the ruling that does not.
pub(super) fn judge<'a>(
    rules: &'a Commands,
    argv: &[String],
    given: &[RuleId],
) -> Result<(&'a CommandRule, Parsed), Ruling> {
    let matching = rules.about(argv).filter(|rule| rule.check(argv).is_ok());
    let open = matching.clone().filter(|rule| !rule.decision.is_given(&rule.id, given));
    if let Some(rule) = strictest(open, |rule| rule.decision) {
        let bytes: usize = argv.iter().map(|word| word.len()).sum();
        if rule.decision == Verdict::RequireApproval && bytes > ASKED_BYTES {
            let why = format!(
                "{bytes} bytes of words are more than a person is asked about: {ASKED_BYTES}"
            );
            return Err(deny(rule.id.clone(), why));
        }
        let ruling = refuse(&rule.id, rule.decision, rule.why.clone());
        return Err(Ruling { class: rule.class, ..ruling });
    }
    // A person looked at the very words: the rule that asked says how they are carried out.
    if let Some(rule) = matching.clone().find(|rule| rule.decision.is_given(&rule.id, given)) {
        return Ok((rule, Parsed::of_anything(&argv[rule.argv.len()..])));
    }
    let allowed = rules.about(argv).find_map(|rule| Some((rule, rule.check(argv).ok()?)));
    allowed.ok_or_else(|| no_rule(rules, argv))
}

/// Says what would be allowed instead, in one line.
fn no_rule(rules: &[CommandRule], argv: &[String]) -> Ruling {
    let near = rules.iter().filter(|rule| rule.decision == Verdict::Allow).find_map(|rule| {
        let shown = rule.argv.join(" ");
        match rule.check(argv) {
            Err(Mismatch::Flag(flag)) => Some(format!("{shown} is allowed, but not with {flag}")),
            Err(Mismatch::Value(option)) => {
                Some(format!("{shown} is allowed, but not with that value of {option}"))
            }
            Err(Mismatch::Positional(word)) => {
                Some(format!("{shown} is allowed, but not with the argument {word:?}"))
            }
            Err(Mismatch::OtherCommand) | Ok(_) => None,
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

    fn judge(rules: &[CommandRule], argv: &[String]) -> Result<RuleId, Ruling> {
        let rules = Commands::from(rules.to_vec());
        super::judge(&rules, argv, &[]).map(|(rule, _)| rule.id.clone())
    }

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    fn rule(id: &str, argv: &str, decision: Verdict) -> CommandRule {
        CommandRule {
            id: RuleId::new(id),
            place: None,
            argv: words(argv),
            flags: ["-s".to_owned()].into(),
            options: BTreeMap::new(),
            positionals: Positionals::WorkspacePaths,
            inject: vec!["--safe".into()],
            inject_after: vec!["--plain".into()],
            environment: BTreeMap::new(),
            class: EffectClass::Pure,
            decision,
            limits: None,
            isolation: None,
            network: Vec::new(),
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
            assert_eq!(status.check(&words(line)).map(drop), expected, "{line}");
        }
    }

    #[test]
    fn an_option_takes_the_values_of_its_kind_in_the_form_that_is_sure() {
        let mut test = rule("cargo.test", "cargo test", Verdict::Allow);
        let option = |value, form| OptionRule { value, form };
        let one_of = ValueRule::OneOf(["always".to_owned(), "never".to_owned()].into());
        let either = OptionForm::JoinedOrSeparate;
        test.options = BTreeMap::from(
            [
                ("--color", option(one_of, OptionForm::Joined)),
                ("-j", option(ValueRule::Number, either)),
                ("-p", option(ValueRule::Name, either)),
                ("--manifest-path", option(ValueRule::WorkspacePath, either)),
            ]
            .map(|(name, rule)| (name.to_owned(), rule)),
        );
        for (line, allowed) in [
            ("cargo test --color=never -j 2 -p tiny", true),
            ("cargo test --manifest-path sub/Cargo.toml", true),
            ("cargo test --manifest-path=sub/Cargo.toml", true),
            ("cargo test --color never", false),
            ("cargo test --color=sometimes", false),
            ("cargo test -j all", false),
            ("cargo test -j", false),
            ("cargo test -p --config", false),
            ("cargo test -p ../other", false),
            ("cargo test --manifest-path=/etc/passwd", false),
            ("cargo test --manifest-path ../x", false),
            ("cargo test --config=x", false),
        ] {
            assert_eq!(test.check(&words(line)).is_ok(), allowed, "{line}");
        }
        let parsed = test.check(&words("cargo test --manifest-path a/b src")).unwrap();
        assert_eq!(parsed.paths, ["a/b", "src"]);
    }

    #[test]
    fn deny_beats_approval_that_beats_allow_and_nothing_matching_is_deny() {
        let asking = [
            rule("ok", "git push", Verdict::Allow),
            rule("ask", "git push", Verdict::RequireApproval),
        ];
        for line in ["git push", "git push origin", "git push -s", "git push --force"] {
            let ruling = judge(&asking, &words(line)).unwrap_err();
            let asked = (RuleId::new("ask"), Verdict::RequireApproval);
            assert_eq!((ruling.rule, ruling.verdict), asked, "{line}");
        }
        let never = [asking, [rule("never", "git", Verdict::Deny), rule("x", "x", Verdict::Allow)]];
        let ruling = judge(&never.concat(), &words("git push")).unwrap_err();
        assert_eq!((ruling.rule, ruling.verdict), (RuleId::new("never"), Verdict::Deny));
        let rules = [
            rule("ok", "git status", Verdict::Allow),
            rule("never", "git status -s", Verdict::Deny),
        ];
        assert_eq!(judge(&rules, &words("git status")).unwrap(), RuleId::new("ok"));
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
