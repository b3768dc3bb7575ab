//! What holds of whatever the compiler gives, in words of its own: nothing here asks the code that made it.

use std::collections::BTreeSet;

use agentd::{
    domain::{
        effect::{Facts, WorkspacePath},
        ids::{RoleName, RuleId, ToolName},
        journal::Verdict,
        policy::{
            CommandRule, Compiled, Decision, FileOperation, HostedKind, HostedPattern, HostedRule,
            Policy, TestOutcome, Tests,
        },
    },
    policy_files::Sources,
};

/// What a fault may name instead of a line: keys of which a file has one.
const KEYS: [&str; 5] = ["limits", "roles.", "program_directories", "read_only_roots", "protected"];
/// Rules, and things asked of them, that are tried; the first ones.
const TRIED: usize = 8;

pub fn are_the_same(one: &Compiled, two: &Compiled) {
    match (&one.policy, &two.policy) {
        (Ok(one), Ok(two)) => {
            assert_eq!(one.revision, two.revision);
            assert_eq!((&one.roles, &one.network), (&two.roles, &two.network));
            assert_eq!(*one.commands, *two.commands);
            let [one, two] = [one, two].map(|policy| serde_json::to_string(&policy.paths).unwrap());
            assert_eq!(one, two);
        }
        (one, two) => {
            let (one, two) = (one.as_ref().map(|_| ()), two.as_ref().map(|_| ()));
            assert_eq!(one, two, "the same files, and not the same faults");
        }
    }
    assert!(one.tests.shown().eq(two.tests.shown()));
}

/// One line each, which begins with a place that is there.
pub fn tell_places(sources: &Sources, faults: &[String]) {
    assert!(!faults.is_empty(), "refused without a reason");
    for fault in faults {
        assert!(!fault.contains(char::is_control), "it steers the terminal: {fault:?}");
        assert!(has_place(sources, fault), "nobody knows where this is: {fault:?}");
    }
}

fn has_place(sources: &Sources, fault: &str) -> bool {
    if fault.starts_with("ALLOW_COMMANDS: ") {
        return true;
    }
    let files = [Some(&sources.tools), Some(&sources.paths), sources.network.as_ref()];
    files.into_iter().flatten().any(|file| {
        let Some(rest) = fault.strip_prefix(file.name.as_str()) else { return false };
        if let Some(key) = rest.strip_prefix(": ") {
            return KEYS.iter().any(|known| key.starts_with(known));
        }
        let mut parts = rest.strip_prefix(':').unwrap_or_default().splitn(3, ':');
        let mut number = || parts.next().and_then(|part| part.parse::<usize>().ok()).unwrap_or(0);
        let (line, column) = (number(), number());
        // YAML takes a carriage return for the end of a line. What breaks off is at fault behind its end.
        let lines = file.text.matches(['\n', '\r']).count() + 1;
        (1..=lines).contains(&line) && column > 0
    })
}

pub fn keeps_limits(policy: &Policy) {
    let own = policy.commands.iter().filter_map(|command| command.limits);
    for limits in own.chain([policy.limits]) {
        let all = [
            limits.wall_ms,
            limits.cpu_seconds,
            limits.cpu_percent.unwrap_or(1),
            limits.memory_bytes,
            limits.processes,
            limits.open_files,
            limits.file_bytes,
            limits.tmp_bytes,
        ];
        assert!(all.iter().all(|limit| *limit > 0), "a limit is nothing: {limits:?}");
    }
}

pub fn is_well_formed(policy: &Policy, known: &[ToolName]) {
    for role in policy.roles.values() {
        assert!(role.tools.iter().all(|tool| known.contains(tool)), "{role:?}");
    }
    let network: BTreeSet<&RuleId> = policy.network.rules.iter().map(|rule| &rule.id).collect();
    assert_eq!(network.len(), policy.network.rules.len(), "two rules of the network have one id");
    for rule in &policy.network.rules {
        assert_ne!(rule.decision, Verdict::RequireApproval, "{rule:?}");
        assert!(rule.decision == Verdict::Deny || rule.ports.is_some(), "any port: {rule:?}");
        let roles = rule.roles.iter().flatten();
        assert!(roles.into_iter().all(|role| policy.roles.contains_key(role)), "{rule:?}");
    }
    let allows = |id: &RuleId| {
        policy.network.rules.iter().any(|rule| rule.id == *id && rule.decision == Verdict::Allow)
    };
    let mut ids = BTreeSet::new();
    for rule in policy.commands.iter().filter(|rule| rule.place.is_some()) {
        assert!(ids.insert(&rule.id), "two commands have one id: {rule:?}");
    }
    for rule in policy.commands.iter() {
        let program = rule.argv.first().expect("a command has a program");
        assert!(!program.is_empty() && !program.contains('/'), "{rule:?}");
        assert!(rule.flags.iter().all(|flag| flag.starts_with('-')), "{rule:?}");
        let is_option = |name: &String| name.starts_with('-') && !name.contains('=');
        assert!(rule.options.keys().all(is_option), "{rule:?}");
        assert!(rule.network.iter().all(allows), "{rule:?}");
    }
    let ids = policy.paths.iter().map(|rule| &rule.id).chain(ids).chain(network);
    assert!(ids.into_iter().all(|id| !id.as_str().starts_with("builtin/")), "{policy:?}");
    for path in policy.program_directories.iter().chain(&policy.read_only_roots) {
        let mut names = path.split('/');
        assert_eq!(names.next(), Some(""), "{path:?} is not absolute");
        assert!(names.all(|name| !matches!(name, "" | "." | "..")), "{path:?}");
    }
    for root in &policy.read_only_roots {
        let own = |below: &str| format!("{below}/").starts_with(&format!("{root}/"));
        assert!(!own("/var/lib/agentd") && !root.starts_with("/var/lib/agentd/"), "{root:?}");
    }
    for name in &policy.protected {
        assert!(!matches!(name.as_str(), "" | "." | "..") && !name.contains('/'), "{name:?}");
    }
}

pub fn denies_what_no_rule_allows(policy: &Policy) {
    let nobody = RoleName::new("a role that is not there");
    for role in policy.roles.keys().take(TRIED).chain([&nobody]) {
        for argv in policy.commands.iter().take(TRIED).flat_map(asked).chain([vec![]]) {
            let rules: Vec<&CommandRule> =
                policy.commands.iter().filter(|rule| argv.starts_with(&rule.argv)).collect();
            let may = has(policy, role, "shell_exec")
                && rules.iter().all(|rule| rule.decision == Verdict::Allow)
                && rules.iter().any(|rule| lists(rule, &argv[rule.argv.len()..]));
            let (executable, sha256) = (String::new(), String::new());
            let facts = Facts::Spawn { argv: argv.clone(), executable, sha256 };
            let does = decide(policy, role, "shell_exec", facts) == Verdict::Allow;
            assert!(may || !does, "{role} may run {argv:?}");
        }
        for path in ["", "a", ".env", "src/main.rs", "/etc/passwd", "../a"] {
            for (operation, tool) in
                [(FileOperation::Read, "read_file"), (FileOperation::Write, "write_file")]
            {
                let path = WorkspacePath::from_resolved(path);
                let rules = policy.paths.iter().filter(|rule| rule.matches(operation, &path));
                let verdicts: Vec<Verdict> = rules.map(|rule| rule.decision).collect();
                let may = has(policy, role, tool)
                    && !verdicts.is_empty()
                    && verdicts.iter().all(|verdict| *verdict == Verdict::Allow);
                let does = decide(policy, role, tool, file(operation, path.clone()));
                assert_eq!(does == Verdict::Allow, may, "{role}, {tool}, {path}");
            }
        }
    }
}

/// A hosted tool is declared for a role if rules speak of both, and all of them allow it.
pub fn declares_what_a_rule_allows(policy: &Policy) {
    let nobody = RoleName::new("a role that is not there");
    for role in policy.roles.keys().take(TRIED).chain([&nobody]) {
        for fate in policy.hosted_for(role) {
            let speaks = |rule: &&HostedRule| {
                let about = match (&rule.about, &fate.tool.kind) {
                    (HostedPattern::CodeInterpreter, HostedKind::CodeInterpreter)
                    | (HostedPattern::FileSearch, HostedKind::FileSearch) => true,
                    (HostedPattern::Mcp(places), HostedKind::Mcp { at, .. }) => {
                        places.as_ref().is_none_or(|places| places.iter().any(|place| place == at))
                    }
                    _ => false,
                };
                about && rule.roles.as_ref().is_none_or(|roles| roles.contains(role))
            };
            let rules: Vec<&HostedRule> = policy.hosted.rules.iter().filter(speaks).collect();
            let may = !rules.is_empty()
                && rules.iter().all(|rule| rule.decision == Verdict::Allow)
                && policy.roles.contains_key(role);
            assert_eq!(fate.ruled.is_ok(), may, "{role}, {}", fate.tool);
        }
    }
}

/// Every test about files, asked again in the name of whoever may read and write.
pub fn decides_as_its_tests_say(policy: &Policy, tests: &Tests) {
    for (verb, operation, tool) in [
        ("read ", FileOperation::Read, "read_file"),
        ("write ", FileOperation::Write, "write_file"),
    ] {
        let Some(role) = policy.roles.keys().find(|role| has(policy, role, tool)) else { continue };
        for test in tests.shown().filter(|test| test.place.file.as_ref() == "paths.yaml") {
            let TestOutcome::Decision { verdict, .. } = test.expected else { continue };
            if let Some(path) = test.name.strip_prefix(verb) {
                let facts = file(operation, WorkspacePath::from_resolved(path));
                assert_eq!(decide(policy, role, tool, facts), verdict, "{test}");
            }
        }
    }
}

/// A rule's own words alone, and with what may not follow them, or may.
fn asked(rule: &CommandRule) -> impl Iterator<Item = Vec<String>> {
    let flag = rule.flags.first().map_or("-", String::as_str);
    let option = rule.options.keys().next().map_or("--", String::as_str);
    let joined = format!("{option}=x");
    let rests: [&[&str]; 7] =
        [&[], &["-x"], &["x", flag], &["--", flag], &[option, "-x"], &[&joined], &["../x"]];
    let whole = |rest: &[&str]| {
        rule.argv.iter().cloned().chain(rest.iter().map(|word| (*word).to_owned())).collect()
    };
    rests.map(whole).into_iter()
}

/// Whether each word with a `-` that follows a rule's own is one of its flags or options.
fn lists(rule: &CommandRule, rest: &[String]) -> bool {
    rest.iter().take_while(|word| *word != "--").filter(|word| word.starts_with('-')).all(|word| {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        rule.flags.contains(word) || rule.options.contains_key(name)
    })
}

fn has(policy: &Policy, role: &RoleName, tool: &str) -> bool {
    policy.roles.get(role).is_some_and(|role| role.tools.contains(&ToolName::new(tool)))
}

fn decide(policy: &Policy, role: &RoleName, tool: &str, facts: Facts) -> Verdict {
    match policy.decide(role, &ToolName::new(tool), facts) {
        Decision::Allow(_) => Verdict::Allow,
        Decision::Ask(_) => Verdict::RequireApproval,
        Decision::Deny(_) => Verdict::Deny,
    }
}

fn file(operation: FileOperation, path: WorkspacePath) -> Facts {
    match operation {
        FileOperation::Read => Facts::ReadFile { path, bytes: 0 },
        FileOperation::Write => Facts::WriteFile { path, bytes: 0, sha256: String::new() },
    }
}
