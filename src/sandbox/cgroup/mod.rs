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

    /// Makes a call's groups, with its limits set. Errors: none of them is left.
    pub(super) fn create(&self, label: &str, limits: &Limits) -> io::Result<Group> {
        let mut group = Group::default();
        let needed = self.trees.iter().filter(|(tree, _)| tree.is_needed(limits));
        for (tree, place) in needed {
            let path = place.join(format!("{}{label}", self.prefix));
            let made = fs::create_dir(&path);
            group.0.push((tree.clone(), path.clone()));
            let made = match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                made => made,
            };
            if let Err(error) = made.and_then(|()| tree.limit(&path, limits)) {
                group.remove();
                return Err(error);
            }
        }
        Ok(group)
    }
}

impl Group {
    /// The files that the launcher enters, watches and kills the groups by.
    pub(super) fn open(&self) -> io::Result<Vec<(Descriptor, File)>> {
        let files = self.0.iter().map(|(tree, path)| tree.files(path));
        Ok(files.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
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
