//! Policy files are refused with reasons, or make a policy in which no limit is nothing. The first byte says which
//! of the three files the rest stands for.
#![no_main]

use agentd::{
    domain::{ids::ToolName, policy::Gate},
    policy_files::{PolicyErrors, Source, Sources, compile},
};
use libfuzzer_sys::fuzz_target;

/// Small ones for the other two, so that many inputs are tried a second.
const TOOLS: &str = "schema: agentd/tools/v1
limits: {wall_seconds: 1, cpu_seconds: 1, memory_mib: 1, processes: 1, open_files: 8, file_mib: 1}
program_directories: [/bin]
roles: {executor: {tools: [read_file]}}
";
const PATHS: &str = "schema: agentd/paths/v1
rules: [{id: all, glob: '**', operations: [read], decision: allow, why: w}]
";
const NETWORK: &str = "schema: agentd/network/v1
rules: [{id: web, hosts: [example.com], ports: [443], decision: allow, why: w}]
";

fuzz_target!(|input: &str| {
    let mut characters = input.chars();
    let Some(which) = characters.next() else { return };
    let [mut tools, mut paths, mut network] = [TOOLS, PATHS, NETWORK];
    match which {
        't' => tools = characters.as_str(),
        'p' => paths = characters.as_str(),
        _ => network = characters.as_str(),
    }
    let file = |name: &str, text: &str| Source { name: name.into(), text: text.into() };
    let sources = Sources {
        tools: file("tools.yaml", tools),
        paths: file("paths.yaml", paths),
        network: Some(file("network.yaml", network)),
        allow_net: Gate::Open,
        ..Sources::built_in()
    };
    let tools = ["read_file", "write_file", "edit_file", "list_dir", "search_files", "shell_exec"];
    let tools: Vec<_> = tools.into_iter().chain(["repo_summarize"]).map(ToolName::new).collect();
    match compile(&sources, &tools) {
        Err(PolicyErrors(faults)) => {
            assert!(!faults.is_empty(), "refused without a reason");
            assert!(
                faults.iter().all(|fault| fault.contains(".yaml")),
                "without a file: {faults:?}"
            );
        }
        Ok(policy) => {
            let own = policy.commands.iter().filter_map(|command| command.limits);
            for limits in own.chain([policy.limits]) {
                let all = [
                    limits.wall_ms,
                    limits.cpu_seconds,
                    limits.memory_bytes,
                    limits.processes,
                    limits.open_files,
                    limits.file_bytes,
                    limits.tmp_bytes,
                ];
                assert!(all.iter().all(|limit| *limit > 0), "a limit is nothing: {limits:?}");
            }
            let again = compile(&sources, &tools).expect("it was fine a moment ago");
            assert_eq!(again.revision, policy.revision);
        }
    }
});
