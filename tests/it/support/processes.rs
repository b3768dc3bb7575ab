//! Processes of this machine, as its kernel lists them.

use std::fs;

pub(crate) fn children(process: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.flat_map(|thread| fs::read_to_string(thread.path().join("children")));
    let pids = lists.flat_map(|list| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
    });
    pids.collect()
}

/// The process that forks all launchers of a daemon.
pub(crate) fn fork_server(daemon: rustix::process::Pid) -> i32 {
    let is_ours = |process: &i32| command_line(*process).contains("agentd-sandbox");
    let found: Vec<i32> =
        children(daemon.as_raw_nonzero().get()).into_iter().filter(is_ours).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

/// Launchers of a daemon, at work or not.
pub(crate) fn launchers(daemon: rustix::process::Pid) -> Vec<i32> {
    children(fork_server(daemon))
}

pub(crate) fn descendants(process: i32) -> Vec<i32> {
    let below = children(process);
    let further: Vec<i32> = below.iter().copied().flat_map(descendants).collect();
    [below, further].concat()
}

pub(crate) fn command_line(process: i32) -> String {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}
