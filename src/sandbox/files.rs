//! File effects. Names are resolved once, beneath the workspace, by the kernel (openat2); what follows
//! works on the descriptors. Blocking.

use std::{
    fs::{File, Permissions},
    io::{self, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        effect::{Before, EffectResult, Facts, Unresolved, WorkspacePath},
        hex::hex,
        ids::RuleId,
    },
    ports::{Attempt, ResolveError, SandboxError, Scene},
};

/// Longest path that is looked up, in bytes.
const PATH_BYTES: usize = 4096;

/// A place to be written.
pub(super) struct WriteProof {
    pub(super) path: WorkspacePath,
    directory: OwnedFd,
    name: String,
    pub(super) content: Arc<str>,
    pub(super) sha256: String,
    /// Name of the file that is written first and then takes the place; its own for each call.
    draft: String,
}

/// Finds the directory beneath the workspace that a file is to be written in.
pub(super) fn resolve_write(
    scene: &Scene,
    workspace: &OwnedFd,
    path: &str,
    content: Arc<str>,
) -> Result<(Facts, WriteProof), ResolveError> {
    let (parent, name) = match relative(scene, path)?.rsplit_once('/') {
        Some((parent, name)) => (parent, name),
        None => (".", relative(scene, path)?),
    };
    if matches!(name, "" | "." | "..") {
        return Err(missing("NOT_A_FILE", format!("{path:?} names a directory, not a file")));
    }
    let directory = beneath(
        workspace,
        if parent.is_empty() { "." } else { parent },
        OFlags::PATH | OFlags::DIRECTORY,
    )
    .map_err(|error| match error {
        Errno::NOENT => missing("NOT_FOUND", format!("the directory of {path:?} does not exist")),
        error => unresolved(path, error),
    })?;
    match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => regular(path, FileType::from_raw_mode(stat.st_mode))?,
        Err(Errno::NOENT) => {}
        Err(error) => return Err(unresolved(path, error)),
    }
    let parent = real_path(workspace, &directory)?;
    let real = match parent.as_str() {
        "" => WorkspacePath::from_resolved(name),
        parent => WorkspacePath::from_resolved(format!("{parent}/{name}")),
    };
    let sha256 = hex(&Sha256::digest(content.as_bytes()));
    let facts = Facts::WriteFile {
        path: real.clone(),
        bytes: content.len() as u64,
        sha256: sha256.clone(),
    };
    let draft = format!(".agentd-{}.tmp", scene.label);
    Ok((facts, WriteProof { path: real, directory, name: name.to_owned(), content, sha256, draft }))
}

/// Finds a directory beneath the workspace that is to be looked at.
pub(super) fn resolve_directory(
    scene: &Scene,
    workspace: &OwnedFd,
    path: &str,
) -> Result<WorkspacePath, ResolveError> {
    let relative = relative(scene, path)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let directory = beneath(workspace, relative, flags).map_err(|error| unresolved(path, error))?;
    real_path(workspace, &directory)
}

/// Replaces or creates a file, whole or not at all; on disk when it returns.
pub(super) fn write(proof: &WriteProof, attempt: Attempt, limit: u64) -> EffectResult {
    let bytes = proof.content.len() as u64;
    if bytes > limit {
        let message = format!("{bytes} bytes are more than the {limit} that a file may have");
        return EffectResult::Failed { reason: "FILE_TOO_LARGE", message };
    }
    match write_draft_and_rename(proof, attempt) {
        Ok(before) => EffectResult::Written { path: proof.path.clone(), bytes, before },
        Err(error) => write_failed(&proof.path, &error),
    }
}

pub(super) fn write_failed(path: &WorkspacePath, error: &io::Error) -> EffectResult {
    let reason = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "DISK_FULL",
        io::ErrorKind::ReadOnlyFilesystem => "READ_ONLY",
        io::ErrorKind::PermissionDenied => "NOT_PERMITTED",
        _ => "WRITE_FAILED",
    };
    let message = format!("{path} cannot be written, and is as it was: {error}");
    EffectResult::Failed { reason, message }
}

pub(super) fn write_draft_and_rename(proof: &WriteProof, attempt: Attempt) -> io::Result<Before> {
    let existing = open_existing(proof)?;
    if attempt == Attempt::Again {
        // The lost attempt may have left its draft, or may have done everything.
        match rustix::fs::unlinkat(&proof.directory, &proof.draft, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(file) = &existing
            && sha256_of(file)? == proof.sha256
        {
            file.sync_all()?;
            sync_directory(&proof.directory)?;
            return Ok(Before::AlreadyDone);
        }
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let draft =
        rustix::fs::openat(&proof.directory, &proof.draft, flags, Mode::from_raw_mode(0o644))?;
    let mut draft = File::from(draft);
    let renamed = draft
        .write_all(proof.content.as_bytes())
        .and_then(|()| inherit(&draft, existing.as_ref(), &proof.directory))
        .and_then(|()| draft.sync_all())
        .and_then(|()| {
            let directory = proof.directory.as_fd();
            Ok(rustix::fs::renameat(directory, &proof.draft, directory, &proof.name)?)
        });
    if let Err(error) = renamed {
        let _ = rustix::fs::unlinkat(&proof.directory, &proof.draft, AtFlags::empty());
        return Err(error);
    }
    sync_directory(&proof.directory)?;
    Ok(if existing.is_some() { Before::Replaced } else { Before::Absent })
}

pub(super) fn open_existing(proof: &WriteProof) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(&proof.directory, &proof.name, flags, Mode::empty()) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The new file keeps the mode of the old one; where the daemon is root, also the owner.
fn inherit(draft: &File, existing: Option<&File>, directory: &OwnedFd) -> io::Result<()> {
    if let Some(existing) = existing {
        // Never setuid or setgid: the content is the model's.
        let mode = existing.metadata()?.permissions().mode() & 0o777;
        draft.set_permissions(Permissions::from_mode(mode))?;
    }
    if rustix::process::geteuid().is_root() {
        let owner = match existing {
            Some(existing) => rustix::fs::fstat(existing)?,
            None => rustix::fs::fstat(directory)?,
        };
        let (uid, gid) =
            (rustix::fs::Uid::from_raw(owner.st_uid), rustix::fs::Gid::from_raw(owner.st_gid));
        rustix::fs::fchown(draft, Some(uid), Some(gid))?;
    }
    Ok(())
}

fn sync_directory(directory: &OwnedFd) -> io::Result<()> {
    // A descriptor that only holds the place cannot be synced; the same place, opened, can.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(directory, ".", flags, Mode::empty())?;
    Ok(rustix::fs::fsync(&directory)?)
}

pub(super) fn sha256_of(file: &File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut &*file, &mut HashWriter(&mut hasher))?;
    Ok(hex(&hasher.finalize()))
}

/// Feeds what is copied into it to a hash.
pub(super) struct HashWriter<'a>(pub(super) &'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The open file that a place-holding descriptor stands for, for reading.
pub(super) fn reopen(file: &OwnedFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The path as it is looked up: relative, also where the model wrote the workspace's own path.
pub(super) fn relative<'a>(scene: &Scene, path: &'a str) -> Result<&'a str, ResolveError> {
    if path.is_empty() || path.len() > PATH_BYTES || path.contains('\0') {
        return Err(refused("builtin/path", "a path has 1 to 4096 bytes and no NUL".into()));
    }
    let inside = Path::new(path).strip_prefix(&scene.workspace).ok().and_then(Path::to_str);
    Ok(match inside {
        Some("") => ".",
        Some(inside) if path.starts_with('/') => inside,
        Some(_) | None if path.starts_with('/') => return Err(escape(path)),
        Some(_) | None => path,
    })
}

pub(super) fn beneath(workspace: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: something was renamed meanwhile, and the kernel cannot vouch for the path.
    for _ in 0..16 {
        match rustix::fs::openat2(workspace, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            found => return found,
        }
    }
    Err(Errno::AGAIN)
}

/// Where an open file lies beneath the workspace, by the kernel's own account.
pub(super) fn real_path(
    workspace: &OwnedFd,
    file: &OwnedFd,
) -> Result<WorkspacePath, ResolveError> {
    let name = |fd: BorrowedFd<'_>| -> Result<String, ResolveError> {
        let link =
            rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new()).map_err(
                |error| SandboxError::Io { what: "looking up a path", source: error.into() },
            )?;
        link.into_string()
            .map_err(|_| refused("builtin/path", "a name on the way is not UTF-8".into()))
    };
    let (root, path) = (name(workspace.as_fd())?, name(file.as_fd())?);
    let inside = match root.as_str() {
        "/" => path.strip_prefix('/'),
        root if path == root => Some(""),
        root => path.strip_prefix(root).and_then(|rest| rest.strip_prefix('/')),
    };
    inside.map(WorkspacePath::from_resolved).ok_or_else(|| {
        refused("builtin/path-escape", "the file is no longer in the workspace".into())
    })
}

pub(super) fn regular(path: &str, kind: FileType) -> Result<(), ResolveError> {
    match kind {
        FileType::RegularFile => Ok(()),
        FileType::Directory => {
            Err(missing("NOT_A_FILE", format!("{path:?} is a directory, not a file")))
        }
        FileType::Symlink => Err(refused(
            "builtin/not-regular",
            format!("{path:?} is a symbolic link; name the file that it leads to"),
        )),
        _ => Err(refused("builtin/not-regular", format!("{path:?} is not a regular file"))),
    }
}

fn escape(path: &str) -> ResolveError {
    let message =
        format!("{path:?} leads out of the workspace; only what is inside may be touched");
    refused("builtin/path-escape", message)
}

pub(super) fn unresolved(path: &str, error: Errno) -> ResolveError {
    match error {
        Errno::XDEV => escape(path),
        Errno::LOOP => refused(
            "builtin/path-escape",
            format!("{path:?} goes through a link that may not be followed"),
        ),
        Errno::NOENT => missing("NOT_FOUND", format!("{path:?} does not exist")),
        Errno::NOTDIR => {
            missing("NOT_A_DIRECTORY", format!("{path:?}, or a part of it, is not a directory"))
        }
        Errno::ACCESS | Errno::PERM => {
            missing("NOT_PERMITTED", format!("{path:?} may not be opened by this user"))
        }
        Errno::NAMETOOLONG => missing("NOT_FOUND", format!("a name in {path:?} is too long")),
        error => {
            missing("READ_FAILED", format!("{path:?} cannot be opened: {}", io::Error::from(error)))
        }
    }
}

pub(super) fn refused(rule: &'static str, message: String) -> ResolveError {
    ResolveError::Unresolved(Unresolved::Refused { rule: RuleId::new(rule), message })
}

pub(super) fn missing(reason: &'static str, message: String) -> ResolveError {
    ResolveError::Unresolved(Unresolved::Missing { reason, message })
}
