//! What keeps each limit on this machine, as it is told. Keeps none itself.

use std::{collections::BTreeMap, path::Path};

use crate::sandbox::order::Tier;

/// By resource; `enforced` is what the daemon's groups do.
pub(super) fn mechanisms(
    tier: Tier,
    enforced: &BTreeMap<&'static str, &'static str>,
) -> BTreeMap<String, String> {
    let by = |resource, otherwise| enforced.get(resource).copied().unwrap_or(otherwise).to_owned();
    let kill = match (enforced.contains_key("cpu"), tier) {
        (true, _) => "cgroup_v2_kill",
        (false, Tier::Full | Tier::Root) => "pid_namespace",
        (false, Tier::Landlock) => "subreaper",
    };
    let can_look = can_look();
    let network = match tier {
        Tier::Full | Tier::Root => "proxy",
        Tier::Landlock => "none",
    };
    BTreeMap::from([
        ("isolation".into(), tier.as_str().into()),
        ("cpu".into(), by("cpu", if can_look { "polled" } else { "rlimit" })),
        ("cpu_share".into(), by("cpu_share", "none")),
        ("memory".into(), by("memory", if can_look { "polled" } else { "rlimit" })),
        ("processes".into(), by("processes", if can_look { "polled" } else { "none" })),
        ("open_files".into(), "rlimit".into()),
        ("file_size".into(), "rlimit".into()),
        ("wall_time".into(), "launcher".into()),
        ("output".into(), "daemon".into()),
        ("network".into(), network.into()),
        ("kill".into(), kill.into()),
    ])
}

/// Whether launchers see what processes use: the kernel lists children, and `/proc` hides nobody.
fn can_look() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hides = mounts.lines().filter(|line| line.contains(" - proc ")).any(|line| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        options.split(',').any(|option| option.starts_with("hidepid=") && option != "hidepid=0")
    });
    !hides && Path::new("/proc/thread-self/children").exists()
}
