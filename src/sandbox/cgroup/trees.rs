//! What there is to say to each kind of tree of cgroups: v1, one controller a tree, and v2, all in one. Which
//! trees there are and where: `place`; when groups are made and removed: the module above.
//!
//! Why not a library: docs/adr/0014-cgroups.md.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    path::Path,
};

use crate::{
    domain::policy::Limits,
    sandbox::{cgroup::Spent, order::Descriptor},
};

/// Period over which a share of CPU time is kept, in microseconds.
const PERIOD: u64 = 100_000;

/// One tree of groups.
pub(super) trait Tree: fmt::Debug + Send + Sync {
    /// What it does here: resources, each with the mechanism's name.
    fn enforces(&self) -> Vec<(&'static str, &'static str)>;

    /// Whether a call with these limits, or else any call, needs a group in it.
    fn is_needed(&self, limits: Option<&Limits>) -> bool;

    /// Sets the limits of a new group.
    fn limit(&self, group: &Path, limits: &Limits) -> io::Result<()>;

    /// The files that a launcher enters, watches and kills a group by.
    fn files(&self, group: &Path) -> io::Result<Vec<(Descriptor, File)>>;

    /// What was used in a group, as far as this tree counts.
    fn spent(&self, group: &Path) -> Spent;
}

/// A controller of v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum V1 {
    Memory,
    Pids,
    Cpu,
}

impl V1 {
    pub(super) const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    /// Its name in the kernel's files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

impl Tree for V1 {
    fn enforces(&self) -> Vec<(&'static str, &'static str)> {
        let resource = match self {
            Self::Memory => "memory",
            Self::Pids => "processes",
            Self::Cpu => "cpu_share",
        };
        vec![(resource, "cgroup_v1")]
    }

    fn is_needed(&self, limits: Option<&Limits>) -> bool {
        // Each group costs a tenth of a start.
        *self != Self::Cpu || limits.is_some_and(|limits| limits.cpu_percent.is_some())
    }

    fn limit(&self, group: &Path, limits: &Limits) -> io::Result<()> {
        match self {
            Self::Memory => {
                let bytes = limits.memory_bytes.to_string();
                fs::write(group.join("memory.limit_in_bytes"), &bytes)?;
                // Swap accounting is a kernel option: without it the limit above stands alone.
                let _ = fs::write(group.join("memory.memsw.limit_in_bytes"), &bytes);
                Ok(())
            }
            Self::Pids => fs::write(group.join("pids.max"), limits.processes.to_string()),
            Self::Cpu => {
                let Some(quota) = quota(limits) else { return Ok(()) };
                fs::write(group.join("cpu.cfs_period_us"), PERIOD.to_string())?;
                match fs::write(group.join("cpu.cfs_quota_us"), quota.to_string()) {
                    // A group above has less: that is the share then.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                    written => written,
                }
            }
        }
    }

    fn files(&self, group: &Path) -> io::Result<Vec<(Descriptor, File)>> {
        Ok(vec![(Descriptor::CgroupProcs, for_writing(group, "cgroup.procs")?)])
    }

    fn spent(&self, group: &Path) -> Spent {
        match self {
            Self::Memory => Spent {
                peak_memory_kib: value(group, "memory.max_usage_in_bytes", "").map(kib),
                // The counter of failures is of no use: with swap accounting another one takes the hit.
                out_of_memory: is_some(value(group, "memory.oom_control", "oom_kill ")),
                ..Spent::default()
            },
            Self::Pids => Spent { refused_processes: refused(group), ..Spent::default() },
            Self::Cpu => Spent::default(),
        }
    }
}

/// The tree of v2, with the controllers that our groups have there; beside v1 it usually has none, and can kill
/// and count CPU time all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct V2 {
    pub(super) memory: Has,
    pub(super) pids: Has,
    pub(super) cpu: Has,
}

/// Whether groups have a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Has {
    It,
    #[default]
    Not,
}

impl V2 {
    /// Out of a `cgroup.controllers`.
    pub(super) fn of(controllers: &str) -> Self {
        let has = |name| match controllers.split_whitespace().any(|one| one == name) {
            true => Has::It,
            false => Has::Not,
        };
        Self { memory: has("memory"), pids: has("pids"), cpu: has("cpu") }
    }
}

impl Tree for V2 {
    fn enforces(&self) -> Vec<(&'static str, &'static str)> {
        let resources =
            [("memory", self.memory), ("processes", self.pids), ("cpu_share", self.cpu)];
        let has = resources.into_iter().filter(|(_, has)| *has == Has::It);
        has.map(|(resource, _)| (resource, "cgroup_v2")).chain([("cpu", "cgroup_v2")]).collect()
    }

    fn is_needed(&self, _: Option<&Limits>) -> bool {
        true
    }

    fn limit(&self, group: &Path, limits: &Limits) -> io::Result<()> {
        if self.memory == Has::It {
            fs::write(group.join("memory.max"), limits.memory_bytes.to_string())?;
            // Without swap there is nothing to limit.
            let _ = fs::write(group.join("memory.swap.max"), "0");
            // Half a program is of no use: the whole group dies.
            fs::write(group.join("memory.oom.group"), "1")?;
        }
        if self.pids == Has::It {
            fs::write(group.join("pids.max"), limits.processes.to_string())?;
        }
        if self.cpu == Has::It
            && let Some(quota) = quota(limits)
        {
            fs::write(group.join("cpu.max"), format!("{quota} {PERIOD}"))?;
        }
        Ok(())
    }

    fn files(&self, group: &Path) -> io::Result<Vec<(Descriptor, File)>> {
        let mut files = vec![(Descriptor::CgroupProcs, for_writing(group, "cgroup.procs")?)];
        // Kernels before 5.14 have no such file.
        files.extend(
            for_writing(group, "cgroup.kill").ok().map(|kill| (Descriptor::CgroupKill, kill)),
        );
        let cpu = File::open(group.join("cpu.stat"));
        files.extend(cpu.ok().map(|cpu| (Descriptor::CgroupCpu, cpu)));
        Ok(files)
    }

    fn spent(&self, group: &Path) -> Spent {
        Spent {
            cpu_ms: value(group, "cpu.stat", "usage_usec ").map(|micros| micros / 1000),
            peak_memory_kib: value(group, "memory.peak", "").map(kib),
            out_of_memory: is_some(value(group, "memory.events", "oom_kill ")),
            refused_processes: refused(group),
        }
    }
}

fn quota(limits: &Limits) -> Option<u64> {
    Some(limits.cpu_percent?.saturating_mul(PERIOD / 100))
}

fn for_writing(group: &Path, file: &str) -> io::Result<File> {
    OpenOptions::new().write(true).open(group.join(file))
}

/// The number after `key` in a file of a group; none where there is no such file or key.
fn value(group: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(group.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok()
}

fn kib(bytes: u64) -> u64 {
    bytes / 1024
}

fn is_some(count: Option<u64>) -> bool {
    count.is_some_and(|count| count > 0)
}

fn refused(group: &Path) -> bool {
    is_some(value(group, "pids.events", "max "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(cpu_percent: Option<u64>) -> Limits {
        Limits {
            wall_ms: 1000,
            cpu_seconds: 1,
            cpu_percent,
            memory_bytes: 64 << 20,
            processes: 8,
            open_files: 64,
            file_bytes: 1 << 20,
            tmp_bytes: 1 << 20,
            stdout_bytes: 1 << 20,
            stderr_bytes: 1 << 20,
        }
    }

    /// What stands in the files that were written.
    fn written(tree: &dyn Tree, limits: &Limits) -> Vec<(String, String)> {
        let group = tempfile::tempdir().unwrap();
        tree.limit(group.path(), limits).unwrap();
        let mut files: Vec<_> = fs::read_dir(group.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect()
    }

    #[test]
    fn each_limit_is_written_in_its_tree_s_own_words() {
        let half = limits(Some(50));
        let memory =
            [("memory.limit_in_bytes", "67108864"), ("memory.memsw.limit_in_bytes", "67108864")];
        assert_eq!(written(&V1::Memory, &half), pairs(&memory));
        assert_eq!(written(&V1::Pids, &half), pairs(&[("pids.max", "8")]));
        let share = [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000")];
        assert_eq!(written(&V1::Cpu, &half), pairs(&share));
        let all = V2::of("cpuset cpu io memory hugetlb pids");
        let v2 = [
            ("cpu.max", "200000 100000"),
            ("memory.max", "67108864"),
            ("memory.oom.group", "1"),
            ("memory.swap.max", "0"),
            ("pids.max", "8"),
        ];
        assert_eq!(written(&all, &limits(Some(200))), pairs(&v2));
        assert_eq!(written(&V2::of("hugetlb"), &half), []);
    }

    #[test]
    fn what_was_used_is_read_back_from_either_kind() {
        let group = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        put("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
        put("memory.max_usage_in_bytes", "4096\n");
        put("pids.events", "max 16\n");
        put("cpu.stat", "usage_usec 5000\nuser_usec 1\n");
        put("memory.events", "low 0\noom 2\noom_kill 2\noom_group_kill 1\n");
        put("memory.peak", "8192\n");
        let v1 = V1::Memory.spent(group.path());
        assert_eq!((v1.out_of_memory, v1.peak_memory_kib), (true, Some(4)));
        assert!(V1::Pids.spent(group.path()).refused_processes);
        let v2 = V2::default().spent(group.path());
        assert_eq!((v2.out_of_memory, v2.peak_memory_kib, v2.cpu_ms), (true, Some(8), Some(5)));
        put("memory.events", "oom_kill 0\n");
        assert!(!V2::default().spent(group.path()).out_of_memory);
    }
}
