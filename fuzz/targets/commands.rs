//! Whatever a rule allows is its own words, then flags and options that it lists, and positionals of its kind. The
//! words of a command are the lines of the input.
#![no_main]

use std::sync::OnceLock;

use agentd::{
    domain::{
        ids::ToolName,
        journal::Verdict,
        policy::{CommandRule, Policy, Positionals},
    },
    policy_files::{Sources, compile},
};
use libfuzzer_sys::fuzz_target;

fn policy() -> &'static Policy {
    static POLICY: OnceLock<Policy> = OnceLock::new();
    POLICY.get_or_init(|| {
        let tools =
            ["read_file", "write_file", "edit_file", "list_dir", "search_files", "shell_exec"];
        let tools: Vec<_> =
            tools.into_iter().chain(["repo_summarize"]).map(ToolName::new).collect();
        compile(&Sources::built_in(), &tools).unwrap()
    })
}

fuzz_target!(|text: &str| {
    let argv: Vec<String> = text.lines().map(str::to_owned).collect();
    for rule in policy().commands.iter().filter(|rule| rule.decision == Verdict::Allow) {
        if rule.check(&argv).is_ok() {
            judge(rule, &argv);
        }
    }
});

fn judge(rule: &CommandRule, argv: &[String]) {
    let rest = argv.strip_prefix(rule.argv.as_slice()).expect("it does not begin with its words");
    let mut only_positionals = false;
    let mut is_value = false;
    for word in rest {
        if std::mem::take(&mut is_value) {
            assert!(!word.starts_with('-'), "{}: an option's value is {word:?}", rule.id);
        } else if word == "--" && !only_positionals {
            only_positionals = true;
        } else if word.starts_with('-') && !only_positionals {
            let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
            let option = rule.options.get(name);
            assert!(rule.flags.contains(word) || option.is_some(), "{}: passes {word:?}", rule.id);
            is_value = option.is_some() && !word.contains('=') && !rule.flags.contains(word);
        } else {
            assert!(!word.starts_with('-'), "{}: a positional is {word:?}", rule.id);
            if rule.positionals == Positionals::WorkspacePaths {
                let leads_out =
                    word.starts_with(['/', '~']) || word.split('/').any(|name| name == "..");
                assert!(!leads_out, "{}: a path is {word:?}", rule.id);
            }
        }
    }
    let full = rule.full_argv(argv);
    assert_eq!(full.len(), argv.len() + rule.inject.len() + rule.inject_after.len());
}
