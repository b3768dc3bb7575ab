//! The seeds of the fuzzers (`fuzz/seeds`) are still what their readers take: a seed that is refused at the door
//! leads a fuzzer nowhere, and nobody would notice.

use std::fs;

use agentd::{
    domain::{
        ids::ToolName,
        policy::{Gate, HostPattern},
        redact::Redactor,
    },
    policy_files::{Sources, compile},
    sandbox::order::{self, Frame, Order},
};

#[test]
fn each_seed_of_the_policy_files_makes_a_policy() {
    for (name, seed) in seeds("policy_files") {
        let mut sources = Sources::built_in();
        sources.allow_net = Gate::Open;
        sources.home = Some("/home/somebody".into());
        // As the target takes it apart: what is empty is left to others.
        let mut texts =
            seed.splitn(4, "\n===\n").map(|text| (!text.trim().is_empty()).then_some(text));
        let mut next = || texts.next().flatten().map(str::to_owned);
        if let Some(tools) = next() {
            sources.tools.text = tools;
        }
        if let Some(paths) = next() {
            sources.paths.text = paths;
        }
        if let (Some(text), Some(network)) = (next(), &mut sources.network) {
            network.text = text;
        }
        sources.extra_commands = next();
        let compiled = compile(&sources, &tools()).map(drop);
        assert_eq!(compiled, Ok(()), "{name}");
    }
}

#[test]
fn each_seed_of_the_commands_is_allowed_by_a_rule() {
    let policy = compile(&Sources::built_in(), &tools()).unwrap();
    for (name, seed) in seeds("commands") {
        let argv: Vec<String> = seed.lines().map(str::to_owned).collect();
        assert!(policy.commands.iter().any(|rule| rule.check(&argv).is_ok()), "{name}: {argv:?}");
    }
}

#[test]
fn each_seed_of_the_hosts_is_one() {
    for (name, seed) in seeds("hosts") {
        assert!(HostPattern::parse(&seed).is_ok(), "{name}: {seed:?}");
    }
}

#[test]
fn each_seed_of_the_redactor_holds_its_secret() {
    for (name, seed) in seeds("redactor") {
        let (secret, text) = seed.split_once('\n').unwrap();
        assert!(Redactor::new([secret.to_owned()]).redact(text) != text, "{name}: {seed:?}");
    }
}

/// Each is the length of a frame (4 bytes, little endian), the frame as JSON, and an order in the same way.
#[test]
fn each_seed_of_the_orders_is_a_frame_and_an_order() {
    for (name, seed) in bytes("orders") {
        let mut stream = seed.as_slice();
        let frame = order::read::<Frame>(&mut stream).map(drop);
        assert!(frame.is_ok(), "{name}: {frame:?}");
        let order = order::read::<Order>(&mut stream).map(drop);
        assert!(order.is_ok(), "{name}: {order:?}");
        assert!(stream.is_empty(), "{name}: {} bytes follow", stream.len());
    }
}

fn tools() -> Vec<ToolName> {
    [
        "read_file",
        "write_file",
        "edit_file",
        "list_dir",
        "search_files",
        "repo_summarize",
        "shell_exec",
    ]
    .map(ToolName::new)
    .to_vec()
}

fn seeds(target: &str) -> impl Iterator<Item = (String, String)> {
    let text = |(name, seed)| (name, String::from_utf8(seed).expect("a seed of texts is text"));
    bytes(target).into_iter().map(text)
}

/// The seeds of a target, with their names; at least one.
fn bytes(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = format!("{}/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{directory}: {error}"));
    let seeds: Vec<_> = files
        .map(|file| {
            let path = file.unwrap().path();
            (path.display().to_string(), fs::read(&path).unwrap())
        })
        .collect();
    assert!(!seeds.is_empty(), "{directory} is empty");
    seeds
}
