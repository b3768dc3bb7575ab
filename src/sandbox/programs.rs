//! Which program a name stands for: an open descriptor, its real path and its hash. Blocking.

use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    sync::{Mutex, PoisonError},
};

use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::{
    domain::effect::Facts,
    ports::{ResolveError, SandboxError, Scene},
    sandbox::files::{HashWriter, hex, missing, refused, reopen},
};

/// A program to be started, and where.
pub(super) struct SpawnProof {
    pub(super) workspace: OwnedFd,
    pub(super) executable: OwnedFd,
    pub(super) label: String,
}

/// Hashes of programs that were hashed before.
#[derive(Debug, Default)]
pub(super) struct Programs {
    hashes: Mutex<HashMap<Identity, String>>,
}

/// What changes when a file's content does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Hashes that are kept; all are forgotten when there would be more.
const MOST_HASHES: usize = 256;

impl Programs {
    /// Finds the program that `argv[0]` stands for in the scene's program directories.
    pub(super) fn resolve(
        &self,
        scene: &Scene,
        workspace: OwnedFd,
        mut argv: Vec<String>,
    ) -> Result<(Facts, SpawnProof), ResolveError> {
        let name = program_name(scene, argv.first().map_or("", String::as_str))?;
        let (executable, path) = find(scene, &name)?;
        if Path::new(&path).starts_with(&scene.workspace) {
            return Err(refused(
                "builtin/program",
                format!("{name} lies in the workspace, which the agent itself can write"),
            ));
        }
        let sha256 = self.hash(&executable).map_err(|error| {
            refused(
                "builtin/program",
                format!("{name} cannot be read, and so not vouched for: {error}"),
            )
        })?;
        argv[0] = name;
        let facts = Facts::Spawn { argv, executable: path, sha256 };
        Ok((facts, SpawnProof { workspace, executable, label: scene.label.clone() }))
    }

    fn hash(&self, executable: &OwnedFd) -> io::Result<String> {
        let file = reopen(executable)?;
        let metadata = file.metadata()?;
        let identity = Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        if let Some(known) = self.known().get(&identity) {
            return Ok(known.clone());
        }
        let mut hasher = Sha256::new();
        io::copy(&mut &file, &mut HashWriter(&mut hasher))?;
        let hash = hex(&hasher.finalize());
        let mut known = self.known();
        if known.len() >= MOST_HASHES {
            known.clear();
        }
        known.insert(identity, hash.clone());
        Ok(hash)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Identity, String>> {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bare name: a path is taken only where it lies in a program directory.
fn program_name(scene: &Scene, word: &str) -> Result<String, ResolveError> {
    let (directory, name) = match word.rsplit_once('/') {
        None => return Ok(word.to_owned()),
        Some(parts) => parts,
    };
    match scene.program_directories.iter().any(|known| known == directory) {
        true => Ok(name.to_owned()),
        false => Err(refused(
            "builtin/program",
            format!(
                "{word:?} is not in a program directory; give the bare name of a program in {}",
                scene.program_directories.join(", ")
            ),
        )),
    }
}

fn find(scene: &Scene, name: &str) -> Result<(OwnedFd, String), ResolveError> {
    for directory in &scene.program_directories {
        let path = Path::new(directory).join(name);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::open(&path, flags, Mode::empty()) else { continue };
        let Ok(stat) = rustix::fs::fstat(&file) else { continue };
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if is_file && stat.st_mode & 0o111 != 0 {
            let real =
                rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())
                    .map_err(|error| SandboxError::Io {
                        what: "looking up a program",
                        source: error.into(),
                    })?;
            return Ok((file, real.to_string_lossy().into_owned()));
        }
    }
    Err(missing(format!(
        "there is no program {name:?} in {}",
        scene.program_directories.join(", ")
    )))
}
