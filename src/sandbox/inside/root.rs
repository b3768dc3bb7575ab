//! The world of confined work: a root made from nothing, with the workspace, the system's directories for
//! reading, and a place for temporary files. Whatever is not put there is not there.
//!
//! The workspace is the attacker's: nothing in it is looked up by a path that could lead elsewhere, and
//! nothing is made in it. It is reached from the current directory, which the kernel carried into our mount
//! namespace, without links, and must be the very inode that the daemon means; names in it are opened one at a time.
//!
//! In two steps, since most of it is the same for all work: what comes first needs no order.

use std::{
    ffi::CStr,
    fs,
    io::{self, Write as _},
    mem::size_of,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::FileTypeExt as _,
    },
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags,
    },
};

use crate::sandbox::{
    inside::at,
    order::{Access, View, Workspace},
};

/// The system's own directories: programs and what they are linked with. Copied as a link where they are one.
const SYSTEM: [&str; 8] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"];

/// What programs look up about the system that is no secret.
const SETTINGS: [&str; 15] = [
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
];

/// Devices that carry nothing from outside.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// How many files a tmpfs may hold: one for so many bytes of it, and so many at least.
const BYTES_A_FILE: u64 = 8192;
const LEAST_FILES: u64 = 4096;

const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("/tmp", "dev/shm"),
    ("/tmp", "var/tmp"),
];

/// What of the machine may be seen, whether or not it is there.
pub(super) fn visible(view: &View) -> impl Iterator<Item = &str> {
    let own = ["/etc/passwd", "/etc/group", "/etc/hosts", "/etc/nsswitch.conf"];
    let own = machine().chain(own).map(|path: &str| path);
    own.chain(view.read_only.iter().map(String::as_str))
}

/// See [`DEVICES`].
pub(super) fn devices() -> impl Iterator<Item = &'static str> {
    DEVICES.into_iter()
}

/// What of the machine all work sees, and all roots are built from.
pub(in crate::sandbox) fn machine() -> impl Iterator<Item = &'static str> {
    SYSTEM.into_iter().chain(SETTINGS)
}

/// Something of the machine, cloned, to be put at a path of the new root.
struct Part {
    tree: OwnedFd,
    path: String,
    kind: Kind,
}

impl Part {
    fn place(&self, root: &OwnedFd) -> io::Result<()> {
        place(root, &self.tree, &self.path, self.kind)
    }
}

/// A root that lies on top of the old one and is not entered yet. Paths are still those of the old one; what is in
/// the new one is reached by descriptor.
pub(super) struct Root(OwnedFd);

const KEPT: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);
const READ_ONLY: MountAttrFlags = KEPT.union(MountAttrFlags::MOUNT_ATTR_RDONLY);

impl Root {
    /// Puts into it what all work sees. Errors: the kernel refuses a mount.
    pub(super) fn build() -> io::Result<Self> {
        let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", all).map_err(|error| at("/", error))?;
        let mut parts = Vec::new();
        let root = tmpfs(1 << 20, "0755", KEPT)?;
        for path in machine() {
            match fs::read_link(path) {
                // A link is as good as what it leads to, if that is there too.
                Ok(target) => link(&root, &target, path)?,
                Err(_) => parts.extend(part(path, READ_ONLY)?),
            }
        }
        for device in DEVICES {
            // On a mount of its own, since the root takes no devices.
            // Read-only, so that what they are cannot be changed; written to they still are.
            let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NOEXEC
                | MountAttrFlags::MOUNT_ATTR_RDONLY;
            parts.extend(part(device, flags)?);
        }
        let processes = processes();
        let (on_top, flags) = (c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
        rustix::mount::move_mount(&root, c"", rustix::fs::CWD, on_top, flags)
            .map_err(|error| at("/", error))?;
        if let Some(processes) = &processes {
            place(&root, processes, "/proc", Kind::Directory)?;
        }
        for part in &parts {
            part.place(&root)?;
        }
        for (target, path) in LINKS {
            link(&root, Path::new(target), path)?;
        }
        settle(&root)?;
        Ok(Self(root))
    }

    /// Puts into it what this work sees besides, and makes it the root of all processes of this mount namespace. The
    /// current directory must be the one that the workspace lies below.
    ///
    /// Errors: the workspace is not there, or the kernel refuses a mount; nothing can be done in here then.
    pub(super) fn enter(self, view: &View, access: Access) -> io::Result<OldRoot> {
        let Self(root) = self;
        let workspace = workspace(&view.workspace)?;
        restrict(
            &workspace,
            match access {
                Access::ReadWrite => KEPT,
                Access::ReadOnly => READ_ONLY,
            },
        )?;
        let mut parts = Vec::new();
        for path in &view.read_only {
            parts.extend(part(path, READ_ONLY)?);
        }
        for path in &view.writable {
            parts.extend(part(path, KEPT)?);
        }
        let flags = KEPT | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        place(&root, &tmpfs(view.tmp_bytes, "1777", flags)?, "/tmp", Kind::Directory)?;
        for part in &parts {
            part.place(&root)?;
        }
        let path = view.workspace.path.as_str();
        place(&root, &workspace, path, Kind::Directory)?;
        protect(&workspace, &view.protected, READ_ONLY)?;
        // Only itself: what is mounted below has its own rules.
        set_attributes(&root, MountAttrFlags::MOUNT_ATTR_RDONLY, 0)?;
        rustix::process::fchdir(&root)?;
        rustix::process::pivot_root(".", ".").map_err(|error| at("pivot_root", error))?;
        Ok(OldRoot)
    }
}

/// A clone of the very directory that was meant: who moved another one to its place since did not mean that.
fn workspace(wanted: &Workspace) -> io::Result<OwnedFd> {
    let path = if wanted.below_start.is_empty() { "." } else { &wanted.below_start };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve)
        .map_err(|error| at(&wanted.path, error))?;
    let stat = rustix::fs::fstat(&found)?;
    if (stat.st_dev, stat.st_ino) != (wanted.device, wanted.inode) {
        let message = format!("{}: another directory has taken its place", wanted.path);
        return Err(io::Error::other(message));
    }
    clone(found.as_fd(), c"", OpenTreeFlags::AT_EMPTY_PATH).map_err(|error| at(&wanted.path, error))
}

/// What lies on top of the new root, where only `/..` leads; and the current directory lies below it.
#[must_use]
pub(super) struct OldRoot;

impl OldRoot {
    /// Lets it go. Nothing that is not ours may run before.
    pub(super) fn let_go(self) -> io::Result<()> {
        rustix::mount::unmount(".", UnmountFlags::DETACH)
            .map_err(|error| at("the old root", error))?;
        Ok(rustix::process::chdir("/")?)
    }
}

/// A clone of what is at this path; none if nothing is.
fn part(path: &str, attributes: MountAttrFlags) -> io::Result<Option<Part>> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(None) };
    let kind = metadata.file_type();
    if !(kind.is_dir() || kind.is_file() || kind.is_char_device()) {
        return Ok(None);
    }
    let name = std::ffi::CString::new(path)?;
    let tree =
        clone(rustix::fs::CWD, &name, OpenTreeFlags::empty()).map_err(|error| at(path, error))?;
    restrict(&tree, attributes).map_err(|error| at(path, error))?;
    let kind = if kind.is_dir() { Kind::Directory } else { Kind::File };
    Ok(Some(Part { tree, path: path.to_owned(), kind }))
}

/// With all that is mounted below: who may not see what lies under a mount may not have it without.
fn clone(
    directory: BorrowedFd<'_>,
    path: &CStr,
    flags: OpenTreeFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags
        | OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(directory, path, flags)
}

fn tmpfs(bytes: u64, mode: &str, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let made = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| at("fsopen", error))?;
    // 0 would be no bound.
    let bytes = bytes.max(4096);
    rustix::mount::fsconfig_set_string(&made, "size", bytes.to_string())?;
    rustix::mount::fsconfig_set_string(&made, "mode", mode)?;
    // Else empty files would cost memory without an end.
    let inodes = (bytes / BYTES_A_FILE).max(LEAST_FILES);
    rustix::mount::fsconfig_set_string(&made, "nr_inodes", inodes.to_string())?;
    rustix::mount::fsconfig_create(&made).map_err(|error| at("fsconfig", error))?;
    let mounted = rustix::mount::fsmount(&made, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
    mounted.map_err(|error| at("fsmount", error))
}

/// The processes of our own namespace and nothing of the kernel's settings. None where the kernel does not
/// let us, as in some containers: most programs do without.
fn processes() -> Option<OwnedFd> {
    let made = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    rustix::mount::fsconfig_set_string(&made, "subset", "pid").ok()?;
    rustix::mount::fsconfig_create(&made).ok()?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&made, FsMountFlags::FSMOUNT_CLOEXEC, attributes).ok()
}

#[derive(Clone, Copy)]
enum Kind {
    Directory,
    File,
}

/// Puts a tree at a path of the new root, making the path.
fn place(root: &OwnedFd, tree: &OwnedFd, path: &str, kind: Kind) -> io::Result<()> {
    let target = make(root, path, kind).map_err(|error| at(path, error))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", &target, c"", flags).map_err(|error| at(path, error))
}

/// Makes a path of the new root, and opens its end. Goes through what is mounted there already.
fn make(root: &OwnedFd, path: &str, kind: Kind) -> rustix::io::Result<OwnedFd> {
    let mut directory = root.try_clone().map_err(|_| rustix::io::Errno::MFILE)?;
    let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
    while let Some(name) = names.next() {
        let is_last = names.peek().is_none();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&directory, name, flags, Mode::empty());
        let next = match open() {
            Err(rustix::io::Errno::NOENT) if is_last && matches!(kind, Kind::File) => {
                let mode = Mode::from_raw_mode(0o444);
                let made = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&directory, name, made, mode)?;
                open()?
            }
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))?;
                open()?
            }
            opened => opened?,
        };
        directory = next;
    }
    Ok(directory)
}

/// Names in the workspace that nothing may change: each is mounted over itself, read-only, so that it can
/// be neither written, replaced nor moved away. All of them are there: see `placeholders`.
fn protect(workspace: &OwnedFd, names: &[String], attributes: MountAttrFlags) -> io::Result<()> {
    for name in names {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let found =
            rustix::fs::openat2(workspace.as_fd(), name.as_str(), flags, Mode::empty(), resolve);
        let found = match found {
            Ok(found) => found,
            Err(error) => return Err(at(name, error)),
        };
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind == rustix::fs::FileType::Symlink {
            return Err(io::Error::other(format!(
                "{name} in the workspace is a link and cannot be protected; replace it by what it leads to"
            )));
        }
        let tree = clone(found.as_fd(), c"", OpenTreeFlags::AT_EMPTY_PATH)
            .map_err(|error| at(name, error))?;
        restrict(&tree, attributes).map_err(|error| at(name, error))?;
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&tree, c"", &found, c"", flags)
            .map_err(|error| at(name, error))?;
    }
    Ok(())
}

/// A link of the new root, where nothing is yet.
fn link(root: &OwnedFd, target: &Path, path: &str) -> io::Result<()> {
    let path = path.trim_start_matches('/');
    if let Some((parent, _)) = path.rsplit_once('/') {
        make(root, parent, Kind::Directory)?;
    }
    match rustix::fs::symlinkat(target, root, path) {
        Err(rustix::io::Errno::EXIST) | Ok(()) => Ok(()),
        Err(error) => Err(at(path, error)),
    }
}

/// The few files that say who and where one is.
fn settle(root: &OwnedFd) -> io::Result<()> {
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let files = [
        (
            "etc/passwd",
            format!(
                "agent:x:{user}:{group}::/tmp:/bin/sh\n\
                 nobody:x:65534:65534::/nonexistent:/bin/false\n"
            ),
        ),
        ("etc/group", format!("agent:x:{group}:\nnogroup:x:65534:\n")),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n".to_owned()),
        ("etc/hostname", "sandbox\n".to_owned()),
    ];
    make(root, "etc", Kind::Directory)?;
    for (path, content) in files {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(root, path, flags, Mode::from_raw_mode(0o444))
            .map_err(|error| at(path, error))?;
        fs::File::from(file).write_all(content.as_bytes())?;
    }
    Ok(())
}

/// Takes rights away from a tree and all that is mounted in it.
fn restrict(tree: &OwnedFd, attributes: MountAttrFlags) -> io::Result<()> {
    set_attributes(tree, attributes, libc::AT_RECURSIVE)
}

fn set_attributes(
    tree: &OwnedFd,
    attributes: MountAttrFlags,
    flags: libc::c_int,
) -> io::Result<()> {
    let wanted = libc::mount_attr {
        attr_set: u64::from(attributes.bits()),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    #[expect(unsafe_code, reason = "mount_setattr has no safe form")]
    // SAFETY: the path is a NUL-terminated string, and the struct is as long as we say.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(at("mount_setattr", io::Error::last_os_error())) }
}
