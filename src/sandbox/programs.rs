//! Which program a name stands for: an open descriptor, its real path and its hash. Blocking.

use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        effect::{Facts, WorkspacePath},
        hex::hex,
        tree::TreeQuery,
    },
    ports::{ResolveError, SandboxError, Scene},
    sandbox::{
        files::{HashWriter, missing, refused, reopen},
        order::Access,
    },
};

/// Something to be done by a launcher, and where.
pub(super) struct LaunchProof {
    pub(super) workspace: OwnedFd,
    /// Path of the workspace, absolute.
    pub(super) path: String,
    pub(super) access: Access,
    /// Absolute path of the program, to be there whatever else is.
    pub(super) program: Option<String>,
    /// Absolute paths of our own that may be written.
    pub(super) writable: Vec<String>,
    /// Whether it acts as whoever owns the workspace, where the daemon is root; any other daemon has only its own
    /// user.
    pub(super) as_owner: bool,
    pub(super) label: String,
    pub(super) job: Job,
}

/// What a launcher is to do.
pub(super) enum Job {
    /// Run a program, which reads `input`.
    Program { executable: Executable, input: Option<Arc<str>> },
    /// Look at a directory; git tells of its history.
    Look { path: WorkspacePath, query: TreeQuery, git: Option<Executable> },
}

impl Job {
    /// The program; for a look, git, where there is one.
    pub(super) fn executable(&self) -> Option<&Executable> {
        match self {
            Self::Program { executable, .. } => Some(executable),
            Self::Look { git, .. } => git.as_ref(),
        }
    }
}

/// A program, open, and its real path.
pub(super) struct Executable {
    pub(super) open: OwnedFd,
    pub(super) path: String,
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
    ) -> Result<(Facts, LaunchProof), ResolveError> {
        let name = program_name(scene, argv.first().map_or("", String::as_str))?;
        let found = find(scene, &name)?;
        let (executable, sha256) = self.vouch(scene, &name, found)?;
        argv[0] = name;
        let path = executable.path.clone();
        let facts = Facts::Spawn { argv, executable: path.clone(), sha256 };
        let proof = launch(scene, workspace, Job::Program { executable, input: None });
        Ok((facts, LaunchProof { program: Some(path), ..proof }))
    }

    /// Finds the program of a declared tool: a bare name, or the path that the operator wrote.
    pub(super) fn resolve_declared(
        &self,
        scene: &Scene,
        workspace: OwnedFd,
        program: &str,
        argv: Vec<String>,
        input: Arc<str>,
    ) -> Result<(Facts, LaunchProof), ResolveError> {
        let found = match program.starts_with('/') {
            false => find(scene, program)?,
            true => open_program(Path::new(program))?.ok_or_else(|| {
                missing("NO_SUCH_PROGRAM", format!("{program} is not a program that can be run"))
            })?,
        };
        let (executable, sha256) = self.vouch(scene, program, found)?;
        let path = executable.path.clone();
        let facts = Facts::RunDeclared { argv, executable: path.clone(), sha256 };
        let proof = launch(scene, workspace, Job::Program { executable, input: Some(input) });
        Ok((facts, LaunchProof { program: Some(path), ..proof }))
    }

    /// Prepares a look at a directory.
    pub(super) fn resolve_look(
        &self,
        scene: &Scene,
        workspace: OwnedFd,
        path: &WorkspacePath,
        query: &TreeQuery,
    ) -> LaunchProof {
        let git = match query {
            TreeQuery::Summarize(_) => Self::find(scene, "git"),
            TreeQuery::List(_) | TreeQuery::Search(_) => None,
        };
        launch(scene, workspace, Job::Look { path: path.clone(), query: query.clone(), git })
    }

    /// The program of that name, for our own use; none if there is none.
    pub(super) fn find(scene: &Scene, name: &str) -> Option<Executable> {
        find(scene, name).ok()
    }

    /// The program, and its hash, unless the agent itself could have written it.
    fn vouch(
        &self,
        scene: &Scene,
        name: &str,
        executable: Executable,
    ) -> Result<(Executable, String), ResolveError> {
        if Path::new(&executable.path).starts_with(&scene.workspace) {
            return Err(refused(
                "builtin/program",
                format!("{name} lies in the workspace, which the agent itself can write"),
            ));
        }
        let sha256 = self.hash(&executable.open).map_err(|error| {
            refused(
                "builtin/program",
                format!("{name} cannot be read, and so not vouched for: {error}"),
            )
        })?;
        Ok((executable, sha256))
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

fn launch(scene: &Scene, workspace: OwnedFd, job: Job) -> LaunchProof {
    let access = match &job {
        Job::Program { .. } => Access::ReadWrite,
        Job::Look { .. } => Access::ReadOnly,
    };
    LaunchProof {
        workspace,
        path: scene.workspace.display().to_string(),
        access,
        program: None,
        writable: Vec::new(),
        as_owner: true,
        label: scene.label.clone(),
        job,
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

fn find(scene: &Scene, name: &str) -> Result<Executable, ResolveError> {
    for directory in &scene.program_directories {
        if let Some(found) = open_program(&Path::new(directory).join(name))? {
            return Ok(found);
        }
    }
    Err(missing(
        "NO_SUCH_PROGRAM",
        format!("there is no program {name:?} in {}", scene.program_directories.join(", ")),
    ))
}

/// The program at a path with its real path; none if there is none that may be run.
fn open_program(path: &Path) -> Result<Option<Executable>, ResolveError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let Ok(open) = rustix::fs::open(path, flags, Mode::empty()) else { return Ok(None) };
    let Ok(stat) = rustix::fs::fstat(&open) else { return Ok(None) };
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_file || stat.st_mode & 0o111 == 0 {
        return Ok(None);
    }
    let real = rustix::fs::readlink(format!("/proc/self/fd/{}", open.as_raw_fd()), Vec::new())
        .map_err(|error| SandboxError::Io { what: "looking up a program", source: error.into() })?;
    Ok(Some(Executable { open, path: real.to_string_lossy().into_owned() }))
}
