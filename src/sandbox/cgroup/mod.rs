//! The cgroups of a call, where the daemon may make some: made, entered by the launcher, read and removed.
//! Beneath the daemon's own group only, and only what it made itself. What each tree is told: `trees`.

mod place;
mod trees;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use crate::{
    domain::policy::Limits,
    sandbox::{
        cgroup::{
            place::{InUnified, Moved},
            trees::{Tree, V1},
        },
        order::Descriptor,
    },
};

/// Where groups can be made.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    /// Begins the name of every group of this state directory.
    prefix: String,
    /// Each with the group beneath which ours are made.
    trees: Vec<(Arc<dyn Tree>, PathBuf)>,
    /// Held for as long as groups are made.
    _moved: Option<Moved>,
}

/// The groups of one call. Removed by [`Group::remove`], which must be called when all is over.
#[derive(Debug, Default)]
pub(super) struct Group(Vec<(Arc<dyn Tree>, PathBuf)>);

/// What a call used, by all its processes together; none where nothing counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
        let mut trees: Vec<(Arc<dyn Tree>, PathBuf)> = Vec::new();
        for controller in V1::ALL {
            let place = place::own_group(&mounts, &own, Some(controller.name()));
            if let Some(place) = place.filter(|place| is_usable(place, &prefix)) {
                trees.push((Arc::new(controller), place));
            }
        }
        let mut in_leaf = None;
        if let Some(own) = place::own_group(&mounts, &own, None) {
            let InUnified { place, tree, moved } =
                place::in_unified(&own, &format!("{prefix}daemon"));
            in_leaf = moved;
            if is_usable(&place, &prefix) {
                trees.push((Arc::new(tree), place));
            }
        }
        Self { prefix, trees, _moved: in_leaf }
    }

    /// What enforces or counts each resource, where a group does.
    pub(super) fn enforces(&self) -> BTreeMap<&'static str, &'static str> {
        self.trees.iter().flat_map(|(tree, _)| tree.enforces()).collect()
    }

    /// Makes the groups that a call needs; none: that any call does. Their limits are set later. Errors: none of
    /// them is left.
    pub(super) fn create(&self, label: &str, limits: Option<&Limits>) -> io::Result<Group> {
        let mut group = Group::default();
        for (tree, place) in self.needed(limits) {
            let path = place.join(format!("{}{label}", self.prefix));
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    group.remove();
                    return Err(error);
                }
                Ok(()) | Err(_) => group.0.push((tree.clone(), path)),
            }
        }
        Ok(group)
    }

    /// Whether these are all the groups that a call with these limits needs.
    pub(super) fn suits(&self, group: &Group, limits: &Limits) -> bool {
        self.needed(Some(limits)).count() == group.0.len()
    }

    fn needed(&self, limits: Option<&Limits>) -> impl Iterator<Item = &(Arc<dyn Tree>, PathBuf)> {
        self.trees.iter().filter(move |(tree, _)| tree.is_needed(limits))
    }
}

impl Group {
    /// The files that the launcher enters, watches and kills the groups by.
    pub(super) fn open(&self) -> io::Result<Vec<(Descriptor, File)>> {
        let files = self.0.iter().map(|(tree, path)| tree.files(path));
        Ok(files.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Sets the limits of a call, before it begins.
    pub(super) fn limit(&self, limits: &Limits) -> io::Result<()> {
        self.0.iter().try_for_each(|(tree, path)| tree.limit(path, limits))
    }

    /// What was used in it, as far as the kernel counted.
    pub(super) fn spent(&self) -> Spent {
        let all = self.0.iter().map(|(tree, path)| tree.spent(path));
        all.fold(Spent::default(), |sum, one| Spent {
            cpu_ms: sum.cpu_ms.or(one.cpu_ms),
            peak_memory_kib: sum.peak_memory_kib.or(one.peak_memory_kib),
            out_of_memory: sum.out_of_memory || one.out_of_memory,
            refused_processes: sum.refused_processes || one.refused_processes,
        })
    }

    /// Kills what is left and removes the groups. Blocking, at most about a second.
    pub(super) fn remove(&self) {
        // The tree of v2, which kills at one stroke, is the last.
        for (_, path) in self.0.iter().rev() {
            remove(path);
        }
    }
}

/// Whether groups can be made beneath `place`. What a dead daemon left there is gone.
fn is_usable(place: &Path, prefix: &str) -> bool {
    sweep(place, prefix);
    let probe = place.join(format!("{prefix}probe"));
    if fs::create_dir(&probe).is_err() {
        return false;
    }
    let writable = OpenOptions::new().write(true).open(probe.join("cgroup.procs")).is_ok();
    // Of v2 alone: what is "domain invalid" takes no process.
    let kind = fs::read_to_string(probe.join("cgroup.type"));
    let _ = fs::remove_dir(&probe);
    // The trees of v1 have no such file.
    writable && kind.map_or(true, |kind| kind.trim() == "domain")
}

/// Removes every group whose name begins with `prefix`: nobody alive owns it, but for the one that we are in.
fn sweep(parent: &Path, prefix: &str) {
    let Ok(found) = fs::read_dir(parent) else { return };
    let us = std::process::id().to_string();
    for group in found.flatten().filter(|group| group.path().is_dir()) {
        let is_ours = group.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        let members = fs::read_to_string(group.path().join("cgroup.procs")).unwrap_or_default();
        if is_ours && members.lines().all(|member| member != us) {
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
