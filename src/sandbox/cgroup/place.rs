//! Where groups can be made: beneath the daemon's own group, in each tree that lets it; and, in the tree of v2,
//! what must be done first so that groups there have controllers.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::sandbox::cgroup::trees::V2;

/// Controllers that our groups want, as they are switched on.
const WANTED: [&str; 3] = ["memory", "pids", "cpu"];

/// This process's group in the tree of `controller` of v1, or in the tree of v2.
pub(super) fn own_group(mounts: &str, own: &str, controller: Option<&str>) -> Option<PathBuf> {
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

/// Where to make groups in the tree of v2, and the controllers that they will have. `own` is the daemon's group,
/// `leaf` the name of one below it that the daemon may move to.
///
/// A group whose children have controllers holds no process itself. So the daemon has to go to a leaf, and it does
/// so where its group was given to it alone: a unit with `Delegate=`, or a container. A leaf that systemd made for
/// it (`DelegateSubgroup=`) lies below such a group already.
pub(super) fn in_unified(own: &Path, leaf: &str) -> InUnified {
    if let Some(parent) = own.parent().filter(|parent| is_delegated(parent))
        && switch_on(parent).is_ok()
    {
        return InUnified { place: parent.to_owned(), tree: controllers(parent), moved: None };
    }
    // Of all groups with processes in them, only the root of the machine's tree may do this.
    let is_root = !own.join("cgroup.type").exists();
    if is_root && switch_on(own).is_ok() {
        return InUnified { place: own.to_owned(), tree: controllers(own), moved: None };
    }
    let moved = (!is_root && may_move(own)).then(|| move_to(own, leaf).ok()).flatten();
    let tree = if moved.is_some() { controllers(own) } else { V2::default() };
    InUnified { place: own.to_owned(), tree, moved }
}

/// What was found in the tree of v2.
pub(super) struct InUnified {
    pub(super) place: PathBuf,
    pub(super) tree: V2,
    pub(super) moved: Option<Moved>,
}

/// The daemon is in a leaf below its own group, until this is dropped: whoever starts it again must find its group
/// as it was.
#[derive(Debug)]
pub(super) struct Moved {
    own: PathBuf,
    leaf: PathBuf,
}

impl Drop for Moved {
    fn drop(&mut self) {
        let on = fs::read_to_string(self.own.join("cgroup.subtree_control")).unwrap_or_default();
        let off: Vec<String> = on.split_whitespace().map(|name| format!("-{name}")).collect();
        let _ = fs::write(self.own.join("cgroup.subtree_control"), off.join(" "));
        let _ = fs::write(self.own.join("cgroup.procs"), std::process::id().to_string());
        let _ = fs::remove_dir(&self.leaf);
    }
}

/// What children of a group have.
fn controllers(group: &Path) -> V2 {
    V2::of(&fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default())
}

/// Gives the children of a group what of [`WANTED`] the group has. Errors: it has none of it, or holds processes.
fn switch_on(group: &Path) -> io::Result<()> {
    let has = fs::read_to_string(group.join("cgroup.controllers"))?;
    let wanted = WANTED.into_iter().filter(|name| has.split_whitespace().any(|one| one == *name));
    let wanted: Vec<String> = wanted.map(|name| format!("+{name}")).collect();
    if wanted.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    fs::write(group.join("cgroup.subtree_control"), wanted.join(" "))
}

/// Whether nobody else has a say about a group's children. Where systemd runs, it says of which.
fn may_move(own: &Path) -> bool {
    is_delegated(own) || !Path::new("/run/systemd/system").exists()
}

/// Whether systemd gave a group to whoever is in it.
fn is_delegated(group: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        rustix::fs::getxattr(group, *name, &mut value).is_ok_and(|length| value[..length] == *b"1")
    })
}

/// Moves the daemon to a leaf below its group, if it is alone there. Errors: the daemon is where it was.
fn move_to(own: &Path, leaf: &str) -> io::Result<Moved> {
    let us = std::process::id().to_string();
    let members = fs::read_to_string(own.join("cgroup.procs"))?;
    if members.lines().any(|member| member != us) {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "others are in the group"));
    }
    let leaf = own.join(leaf);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // Dropped where it goes wrong.
    let moved = Moved { own: own.to_owned(), leaf };
    fs::write(moved.leaf.join("cgroup.procs"), &us)?;
    switch_on(own)?;
    Ok(moved)
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

    #[test]
    fn in_a_container_the_own_group_is_the_top_of_what_is_mounted() {
        let mounts = "31 20 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n";
        assert_eq!(own_group(mounts, "0::/\n", None), Some("/sys/fs/cgroup/".into()));
        let of_the_host = "31 20 0:27 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let own = "0::/docker/abc\n";
        assert_eq!(own_group(of_the_host, own, None), Some("/sys/fs/cgroup/".into()));
    }
}
