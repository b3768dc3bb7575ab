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

pub(crate) fn descendants(process: i32) -> Vec<i32> {
    let below = children(process);
    let further: Vec<i32> = below.iter().copied().flat_map(descendants).collect();
    [below, further].concat()
}

pub(crate) fn command_line(process: i32) -> String {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}
