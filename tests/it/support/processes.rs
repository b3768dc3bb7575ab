//! Processes of this machine, as its kernel lists them.

use std::fs;

use rustix::process::Pid;

pub(crate) fn children(process: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.flat_map(|thread| fs::read_to_string(thread.path().join("children")));
    let pids = lists.flat_map(|list| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
    });
    pids.collect()
}

/// The process that forks all launchers of a daemon.
pub(crate) fn fork_server(daemon: Pid) -> i32 {
    let is_ours = |process: &i32| command_line(*process).contains("agentd-sandbox");
    let found: Vec<i32> =
        children(daemon.as_raw_nonzero().get()).into_iter().filter(is_ours).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

/// Launchers of a daemon, at work or not.
pub(crate) fn launchers(daemon: Pid) -> Vec<i32> {
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

/// Memory of a process that is no file's, in KiB: what it has allocated and touched.
pub(crate) fn anonymous_kib(process: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// User and system time of a process so far, in ticks of the kernel.
pub(crate) fn cpu_ticks(process: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Connections of this machine's TCP that somebody has accepted on this port and not closed yet.
/// Format: proc_pid_net(5); the states are those of the kernel's `tcp_states.h`.
pub(crate) fn accepted(port: u16) -> usize {
    const ESTABLISHED: &str = "01";
    const CLOSE_WAIT: &str = "08";
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let is_open = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && [ESTABLISHED, CLOSE_WAIT].contains(&fields[3])
    };
    table.lines().skip(1).filter(is_open).count()
}

/// What the descriptors of a process lead to.
pub(crate) fn open_files(process: Pid) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
    let links = descriptors.flat_map(|descriptor| fs::read_link(descriptor.path()));
    links.map(|link| link.display().to_string()).collect()
}
