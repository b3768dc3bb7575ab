//! Policy files are refused with reasons, each with its place, or make a policy that keeps its promises:
//! `promises.rs`. Here is what an input stands for, and how one is changed into the next: as bytes, or, since
//! those seldom stay YAML, as a tree: `trees.rs`.
#![no_main]

mod promises;
mod trees;

use agentd::{
    domain::{
        ids::ToolName,
        policy::{Gate, HostedKind, HostedTool, McpPlace},
    },
    policy_files::{Source, Sources, compile_and_test},
};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// What stands between the texts of an input: `tools.yaml`, `paths.yaml`, `network.yaml` and `ALLOW_COMMANDS`.
const DIVIDER: &str = "\n===\n";
/// Instead of those that are empty, or not there. Small, so that many inputs are tried a second.
const SMALL: [&str; 4] = [
    "schema: agentd/tools/v1
limits: {wall_seconds: 1, cpu_seconds: 1, memory_mib: 1, processes: 1, open_files: 8, file_mib: 1}
program_directories: [/bin]
roles: {executor: {tools: [read_file]}}
",
    "schema: agentd/paths/v1
rules: [{id: all, glob: '**', operations: [read], decision: allow, why: w}]
",
    "schema: agentd/network/v1
rules: [{id: web, hosts: [example.com], ports: [443], decision: allow, why: w}]
",
    "",
];
/// Every key that the files may have.
const EVERY_KEY: &str = include_str!("../../seeds/policy_files/every-key");

fuzz_target!(|input: &str| {
    let sources = sources(texts(input));
    let known = ["read_file", "write_file", "shell_exec"].map(ToolName::new);
    let compiled = compile_and_test(&sources, &known);
    // For some of them, since it takes as long again.
    if input.len() % 4 == 0 {
        promises::are_the_same(&compiled, &compile_and_test(&sources, &known));
    }
    match &compiled.policy {
        Err(faults) => promises::tell_places(&sources, faults),
        Ok(policy) => {
            assert_eq!(compiled.tests.failed(), 0, "it is taken although its tests fail");
            promises::keeps_limits(policy);
            promises::is_well_formed(policy, &known);
            promises::denies_what_no_rule_allows(policy);
            promises::declares_what_a_rule_allows(policy);
            promises::decides_as_its_tests_say(policy, &compiled.tests);
        }
    }
});

fn texts(input: &str) -> [&str; 4] {
    let mut texts = SMALL;
    for (text, own) in texts.iter_mut().zip(input.splitn(SMALL.len(), DIVIDER)) {
        if !own.trim().is_empty() {
            *text = own;
        }
    }
    texts
}

fn sources([tools, paths, network, extra_commands]: [&str; 4]) -> Sources {
    let file = |name: &str, text: &str| Source { name: name.into(), text: text.into() };
    Sources {
        tools: file("tools.yaml", tools),
        paths: file("paths.yaml", paths),
        network: Some(file("network.yaml", network)),
        extra_commands: Some(extra_commands.into()),
        allow_net: Gate::Open,
        declared: Vec::new(),
        hosted: hosted(),
        home: Some("/home/somebody".into()),
        off_limits: vec!["/var/lib/agentd".into()],
    }
}

/// One of each kind, at places that the seeds speak of.
fn hosted() -> Vec<HostedTool> {
    let at = |place: Result<McpPlace, _>| HostedKind::Mcp {
        label: "m".into(),
        at: place.expect("a place"),
    };
    let server = McpPlace::server("https://mcp.example.com/sse").expect("a server");
    let kinds = [
        HostedKind::CodeInterpreter,
        HostedKind::FileSearch,
        HostedKind::Mcp { label: "m".into(), at: server },
        at(McpPlace::connector("mail")),
        at(McpPlace::tunnel("t")),
    ];
    let tool = |(index, kind)| HostedTool { index, kind, digest: String::new() };
    kinds.into_iter().enumerate().map(tool).collect()
}

fuzz_mutator!(|data: &mut [u8], size: usize, longest: usize, seed: u32| {
    let mut random = fastrand::Rng::with_seed(u64::from(seed));
    let changed = match random.u8(..8) {
        0 => None,
        // The target, too, sees no further than there is text.
        _ => data[..size].utf8_chunks().next().and_then(|text| changed(text.valid(), &mut random)),
    };
    match changed {
        Some(changed) if changed.len() <= longest => {
            data[..changed.len()].copy_from_slice(changed.as_bytes());
            changed.len()
        }
        Some(_) | None => fuzzer_mutate(data, size, longest),
    }
});

/// The input with one file of the three changed as a tree. None: it is not YAML.
fn changed(input: &str, random: &mut fastrand::Rng) -> Option<String> {
    let mut texts = texts(input);
    let sound = [SMALL, self::texts(EVERY_KEY)];
    // What is broken would stay so, and hide what is wrong elsewhere.
    for (n, text) in texts.iter_mut().enumerate() {
        if random.u8(..3) == 0 {
            *text = sound[random.usize(..sound.len())][n];
        }
    }
    let mut texts = texts.map(str::to_owned);
    let text = &mut texts[random.usize(..3)];
    *text = trees::changed(text, random)?;
    Some(texts.join(DIVIDER))
}
