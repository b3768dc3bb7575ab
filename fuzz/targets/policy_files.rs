//! Policy files are refused with reasons, or make a policy in which no limit is nothing. The first byte says which
//! of the three files the rest stands for.
#![no_main]

use agentd::{
    domain::{ids::ToolName, policy::Gate},
    policy_files::{PolicyErrors, Source, Sources, compile},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let mut characters = input.chars();
    let Some(which) = characters.next() else { return };
    let file = |name: &str| Source { name: name.into(), text: characters.as_str().to_owned() };
    let mut sources = Sources { allow_net: Gate::Open, ..Sources::built_in() };
    match which {
        't' => sources.tools = file("tools.yaml"),
        'p' => sources.paths = file("paths.yaml"),
        _ => sources.network = Some(file("network.yaml")),
    }
    let tools = ["read_file", "write_file", "edit_file", "list_dir", "search_files", "shell_exec"];
    let tools: Vec<_> = tools.into_iter().chain(["repo_summarize"]).map(ToolName::new).collect();
    match compile(&sources, &tools) {
        Err(PolicyErrors(faults)) => {
            assert!(!faults.is_empty(), "refused without a reason");
            assert!(faults.iter().all(|fault| fault.contains(".yaml")), "without a file: {faults:?}");
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
