//! One cgroup a call, where the daemon may make some: v1 `memory` and `pids` for limits, the unified
//! tree for killing. Makes groups beneath the daemon's own group only, and removes only its own.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{domain::policy::Limits, sandbox::order::Descriptor};

/// Where groups can be made.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    /// Begins the name of every group of this state directory.
    prefix: String,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    unified: Option<PathBuf>,
}

/// The groups of one call. Removed by [`Group::remove`], which must be called when all is over.
#[derive(Debug, Default)]
pub(super) struct Group {
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    unified: Option<PathBuf>,
}

/// What a call used, by all its processes together; none where nothing counts it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spent {
    pub(super) cpu_ms: Option<u64>,
    pub(super) peak_memory_kib: Option<u64>,
    /// Something in it was killed for want of memory.
    pub(super) out_of_memory: bool,
    /// It wanted more processes than it may have.
    pub(super) refused_processes: bool,
}

impl Cgroups {
    /// Finds out, by trying, where groups can be made; kills and removes what a dead daemon of the
    /// same state directory left.
    pub(super) fn discover(prefix: String) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let usable = |path: Option<PathBuf>| {
            let path = path?;
            sweep(&path, &prefix);
            let probe = path.join(format!("{prefix}probe"));
            fs::create_dir(&probe).ok()?;
            let writable = OpenOptions::new().write(true).open(probe.join("cgroup.procs")).is_ok();
            let _ = fs::remove_dir(&probe);
            writable.then_some(path)
        };
        let memory = usable(own_group(&mounts, &own, Some("memory")));
        let pids = usable(own_group(&mounts, &own, Some("pids")));
        let unified = usable(own_group(&mounts, &own, None));
        Self { prefix, memory, pids, unified }
    }

    pub(super) fn limits_memory(&self) -> bool {
        self.memory.is_some()
    }

    pub(super) fn limits_processes(&self) -> bool {
        self.pids.is_some()
    }

    pub(super) fn kills(&self) -> bool {
        self.unified.is_some()
    }

    /// Makes a call's groups, with its limits set. Errors: none of them is left.
    pub(super) fn create(&self, label: &str, limits: &Limits) -> io::Result<Group> {
        let mut group = Group::default();
        match self.fill(&mut group, label, limits) {
            Ok(()) => Ok(group),
            Err(error) => {
                group.remove();
                Err(error)
            }
        }
    }

    fn fill(&self, group: &mut Group, label: &str, limits: &Limits) -> io::Result<()> {
        let make = |root: &Option<PathBuf>| -> io::Result<Option<PathBuf>> {
            let Some(root) = root else { return Ok(None) };
            let path = root.join(format!("{}{label}", self.prefix));
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                Ok(()) | Err(_) => Ok(Some(path)),
            }
        };
        group.memory = make(&self.memory)?;
        group.pids = make(&self.pids)?;
        group.unified = make(&self.unified)?;
        if let Some(memory) = &group.memory {
            let bytes = limits.memory_bytes.to_string();
            fs::write(memory.join("memory.limit_in_bytes"), &bytes)?;
            // Swap accounting is a kernel option: without it the limit above stands alone.
            let _ = fs::write(memory.join("memory.memsw.limit_in_bytes"), &bytes);
        }
        if let Some(pids) = &group.pids {
            fs::write(pids.join("pids.max"), limits.processes.to_string())?;
        }
        Ok(())
    }
}

impl Group {
    /// The files that the launcher enters and kills the groups by.
    pub(super) fn open(&self) -> io::Result<Vec<(Descriptor, File)>> {
        let write = |path: &Path, name: &str| OpenOptions::new().write(true).open(path.join(name));
        let mut files = Vec::new();
        for path in [&self.memory, &self.pids, &self.unified].into_iter().flatten() {
            files.push((Descriptor::CgroupProcs, write(path, "cgroup.procs")?));
        }
        if let Some(unified) = &self.unified
            && let Ok(kill) = write(unified, "cgroup.kill")
        {
            files.push((Descriptor::CgroupKill, kill));
        }
        if let Some(unified) = &self.unified
            && let Ok(cpu) = File::open(unified.join("cpu.stat"))
        {
            files.push((Descriptor::CgroupCpu, cpu));
        }
        Ok(files)
    }

    /// What was used in it, as far as the kernel counted.
    pub(super) fn spent(&self) -> Spent {
        let value = |path: &Option<PathBuf>, file: &str, key: &str| -> Option<u64> {
            let text = fs::read_to_string(path.as_ref()?.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok()
        };
        let some = |count: Option<u64>| count.is_some_and(|count| count > 0);
        Spent {
            cpu_ms: value(&self.unified, "cpu.stat", "usage_usec ").map(|micros| micros / 1000),
            peak_memory_kib: value(&self.memory, "memory.max_usage_in_bytes", "")
                .map(|bytes| bytes / 1024),
            out_of_memory: some(value(&self.memory, "memory.oom_control", "oom_kill ")),
            refused_processes: some(value(&self.pids, "pids.events", "max ")),
        }
    }

    /// Kills what is left and removes the groups. Blocking, at most about a second.
    pub(super) fn remove(&self) {
        for path in [&self.unified, &self.memory, &self.pids].into_iter().flatten() {
            remove(path);
        }
    }
}

/// This process's group in the tree of `controller`, or in the unified tree.
fn own_group(mounts: &str, own: &str, controller: Option<&str>) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let found = match controller {
            Some(name) => controllers.split(',').any(|known| known == name),
            None => id == "0" && controllers.is_empty(),
        };
        found.then_some(path)
    })?;
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut filesystem = filesystem.split(' ');
        let (kind, options) = (filesystem.next()?, filesystem.nth(1)?);
        let fits = match controller {
            Some(name) => kind == "cgroup" && options.split(',').any(|option| option == name),
            None => kind == "cgroup2",
        };
        let inside = Path::new(path).strip_prefix(root).ok()?;
        fits.then(|| Path::new(point).join(inside))
    })
}

/// Removes every group whose name begins with `prefix`: nobody alive owns it.
fn sweep(parent: &Path, prefix: &str) {
    let Ok(found) = fs::read_dir(parent) else { return };
    for group in found.flatten() {
        if group.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
            remove(&group.path());
        }
    }
}

fn remove(path: &Path) {
    for _ in 0..100 {
        match fs::remove_dir(path) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(_) => kill(path),
        }
        thread::sleep(Duration::from_millis(10));
    }
    tracing::warn!(group = %path.display(), "a cgroup cannot be removed; processes may be left in it");
}

fn kill(path: &Path) {
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in members
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter_map(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_on_v1_hybrid_and_v2() {
        let mounts = "\
30 20 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 20 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";
        let own = "5:memory:/user/alice\n0::/user.slice\n";
        assert_eq!(
            own_group(mounts, own, Some("memory")),
            Some("/sys/fs/cgroup/memory/user/alice".into())
        );
        assert_eq!(own_group(mounts, own, Some("pids")), None);
        assert_eq!(own_group(mounts, own, None), Some("/sys/fs/cgroup/unified/user.slice".into()));
    }
}
