//! Where effects happen: files beneath the workspace, programs under `agentd-sandbox`. Accepts only
//! permits, and works on the descriptors that were resolved, never on names again.
//!
//! What it cannot do: docs/security.md.

mod brief;
mod capture;
mod cgroup;
mod edits;
mod egress;
mod files;
mod fork_server;
mod framed;
pub mod inside;
mod launcher;
mod lines;
mod mechanisms;
pub mod order;
mod placeholders;
mod pool;
mod programs;
mod reads;
mod report;
mod snapshots;
mod spawner;
pub mod walk;
mod wire;

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::{
    domain::{
        budget::OUTPUT_TEXT_BYTES as PROGRAM_BYTES,
        effect::{Effect, EffectResult, Exit, Facts, Unresolved},
        ids::TreeId,
        policy::{Limits, Permit},
    },
    ports::{
        Attempt, Company, Keeping, PatchForm, ResolveError, Resolved, Sandbox, SandboxError, Scene,
        SnapshotError,
    },
    sandbox::{launcher::Ended, programs::Job},
    tasks,
};

/// The sandbox of this machine.
#[derive(Debug)]
pub struct LocalSandbox {
    launcher: launcher::Launcher,
    programs: Arc<programs::Programs>,
    places: Arc<Places>,
    snapshots: Arc<snapshots::Snapshots>,
}

/// Where workspaces may lie.
#[derive(Debug)]
pub struct Places {
    /// Every workspace lies at or below it.
    pub workspace_root: PathBuf,
    /// What no tool may read or write, agentd's own: no workspace holds or lies in one of these.
    pub off_limits: Vec<PathBuf>,
}

impl Places {
    /// With every path resolved. Errors: the root is not there.
    fn resolve(self) -> Result<Self, SandboxError> {
        let root = self.workspace_root;
        let workspace_root = root.canonicalize().map_err(|source| SandboxError::Workspace {
            workspace: root.display().to_string(),
            source,
        })?;
        let off_limits = self.off_limits.into_iter().filter_map(|path| path.canonicalize().ok());
        Ok(Self { workspace_root, off_limits: off_limits.collect() })
    }

    /// The workspace, resolved, if it is a directory where one may lie.
    fn admit(&self, wanted: &Path) -> Result<PathBuf, String> {
        if !wanted.is_absolute() {
            return Err(format!("{} is not an absolute path", wanted.display()));
        }
        let found =
            wanted.canonicalize().map_err(|error| format!("{}: {error}", wanted.display()))?;
        if !found.is_dir() {
            return Err(format!("{} is not a directory", wanted.display()));
        }
        if !found.starts_with(&self.workspace_root) {
            return Err(format!(
                "{} is not below the workspace root {}; choose a directory there, or start agentd \
                 with another --workspace-root",
                found.display(),
                self.workspace_root.display()
            ));
        }
        let touched = |own: &&PathBuf| own.starts_with(&found) || found.starts_with(own);
        match self.off_limits.iter().find(touched) {
            None => Ok(found),
            Some(own) => Err(format!(
                "{} holds or lies in {}, which is agentd's own; choose another directory",
                found.display(),
                own.display()
            )),
        }
    }
}

/// What this machine lets programs be kept apart by, found by trying.
#[derive(Debug)]
pub struct Walls {
    spawner: spawner::Spawner,
    tier: order::Tier,
    refusals: Vec<String>,
}

impl Walls {
    /// Tries, strongest first, with the launcher at `launcher` and a workspace that is only read.
    ///
    /// Blocking. Errors: the launcher is missing, or nothing keeps a program apart here.
    pub fn probe(launcher: PathBuf, workspace: &Path) -> Result<Self, SandboxError> {
        let spawner = spawner::Spawner::start(launcher)?;
        let (tier, refusals) = spawner.strongest(workspace)?;
        Ok(Self { spawner, tier, refusals })
    }

    /// Why it is not a stronger tier: one line each.
    pub fn refusals(&self) -> &[String] {
        &self.refusals
    }
}

/// What was resolved, held open.
enum Proof {
    Read(reads::ReadProof),
    Write(files::WriteProof),
    Edit(edits::EditProof),
    Launch(programs::LaunchProof),
}

impl LocalSandbox {
    /// Prepares the sandbox of one state directory.
    ///
    /// So many launchers of each kind wait for a call, once there was one.
    ///
    /// Blocking. What a dead daemon of the same directory left running is killed and gone when this
    /// returns. Errors: leftovers do not die within 10 s.
    pub fn open(
        walls: Walls,
        state_directory: &Path,
        places: Places,
        ready_launchers: u8,
    ) -> Result<Self, SandboxError> {
        let places = Arc::new(places.resolve()?);
        let (strongest, root) = ((walls.spawner, walls.tier), places.workspace_root.clone());
        let launcher = launcher::Launcher::open(strongest, state_directory, root, ready_launchers)?;
        let snapshots = Arc::new(snapshots::Snapshots::new(state_directory));
        Ok(Self { launcher, programs: Arc::default(), places, snapshots })
    }
}

#[async_trait]
impl Sandbox for LocalSandbox {
    async fn admit(&self, workspace: &str) -> Result<PathBuf, String> {
        let (wanted, places) = (PathBuf::from(workspace), self.places.clone());
        tasks::blocking(move || places.admit(&wanted)).await.map_err(|error| error.to_string())?
    }

    async fn resolve(&self, scene: &Scene, effect: Effect) -> Result<Resolved, ResolveError> {
        let (scene, programs) = (scene.clone(), self.programs.clone());
        tasks::blocking(move || resolve(&scene, &programs, effect)).await.map_err(join_error)?
    }

    async fn run(
        &self,
        permit: Permit<Resolved>,
        attempt: Attempt,
        company: Company<'_>,
    ) -> Result<EffectResult, SandboxError> {
        let (resolved, orders) = permit.redeem();
        let proof = resolved.proof.downcast::<Proof>().map_err(|_| SandboxError::ForeignProof)?;
        match *proof {
            Proof::Read(proof) => {
                tasks::blocking(move || reads::read(&proof)).await.map_err(join_error)
            }
            Proof::Write(proof) => {
                let limit = orders.limits.file_bytes;
                tasks::blocking(move || files::write(&proof, attempt, limit))
                    .await
                    .map_err(join_error)
            }
            Proof::Edit(proof) => {
                let limit = orders.limits.file_bytes;
                tasks::blocking(move || edits::edit(proof, limit)).await.map_err(join_error)
            }
            Proof::Launch(proof) => match proof.job {
                Job::Program { .. } => {
                    self.launcher.run(proof, orders, company).await.map(program_result)
                }
                // What it writes is an answer for us, and nothing to be seen before it is whole.
                Job::Look { .. } => {
                    let company = Company { heard: &|_, _| {}, ..company };
                    self.launcher.run(proof, orders, company).await.map(look_result)
                }
            },
        }
    }

    async fn snapshot(
        &self,
        scene: &Scene,
        limits: Limits,
        keeping: Keeping,
    ) -> Result<TreeId, SnapshotError> {
        let (place, snapshots) = (scene.clone(), self.snapshots.clone());
        let prepared =
            tasks::blocking(move || snapshots.take(&place, limits, workspace_of(&place)?, keeping));
        let (proof, orders) = prepared.await.map_err(join_error)??;
        let ended = self.launcher.run_kept(proof, orders, PROGRAM_BYTES).await?;
        snapshots::tree(ended)
    }

    async fn restore(
        &self,
        scene: &Scene,
        limits: Limits,
        tree: &TreeId,
    ) -> Result<(), SnapshotError> {
        let (place, snapshots, tree) = (scene.clone(), self.snapshots.clone(), tree.clone());
        let prepared = tasks::blocking(move || {
            snapshots.restore(&place, limits, workspace_of(&place)?, &tree)
        });
        let (proof, orders) = prepared.await.map_err(join_error)??;
        snapshots::done(self.launcher.run_kept(proof, orders, PROGRAM_BYTES).await?)
    }

    async fn diff(
        &self,
        scene: &Scene,
        limits: Limits,
        (before, after): (&TreeId, &TreeId),
        (form, most): (PatchForm, usize),
    ) -> Result<Vec<u8>, SnapshotError> {
        let (place, snapshots) = (scene.clone(), self.snapshots.clone());
        let (before, after) = (before.clone(), after.clone());
        let prepared = tasks::blocking(move || {
            let workspace = workspace_of(&place)?;
            snapshots.compare(&place, limits, workspace, (&before, &after, form))
        });
        let (proof, orders) = prepared.await.map_err(join_error)??;
        let ended = self.launcher.run_kept(proof, orders, most).await?;
        snapshots::patch(ended, most)
    }

    fn mechanisms(&self) -> BTreeMap<String, String> {
        self.launcher.mechanisms()
    }
}

fn resolve(
    scene: &Scene,
    programs: &programs::Programs,
    effect: Effect,
) -> Result<Resolved, ResolveError> {
    let workspace = open_workspace(scene)?;
    let (facts, proof): (Facts, Proof) = match effect {
        Effect::ReadFile { path, lines } => reads::resolve(scene, &workspace, &path, lines)
            .map(|(facts, proof)| (facts, Proof::Read(proof)))?,
        Effect::WriteFile { path, content } => {
            files::resolve_write(scene, &workspace, &path, content)
                .map(|(facts, proof)| (facts, Proof::Write(proof)))?
        }
        Effect::EditFile { path, edit } => edits::resolve(scene, &workspace, &path, &edit)
            .map(|(facts, proof)| (facts, Proof::Edit(proof)))?,
        Effect::Look { path, query } => {
            let path = files::resolve_directory(scene, &workspace, &path)?;
            let proof = programs.resolve_look(scene, workspace, &path, &query);
            (Facts::Look { path, query }, Proof::Launch(proof))
        }
        Effect::Spawn { argv } => programs
            .resolve(scene, workspace, argv)
            .map(|(facts, proof)| (facts, Proof::Launch(proof)))?,
        Effect::RunDeclared { program, argv, input } => programs
            .resolve_declared(scene, workspace, &program, argv, input)
            .map(|(facts, proof)| (facts, Proof::Launch(proof)))?,
    };
    Ok(Resolved { facts, proof: Box::new(proof) })
}

fn program_result(ended: Ended) -> EffectResult {
    match ended {
        Ended::Ran(ran) => EffectResult::Ran(*ran),
        Ended::NotStarted(message) => EffectResult::Failed { reason: "NOT_STARTED", message },
        Ended::TooWeak(message) => EffectResult::Failed { reason: "ISOLATION_TOO_WEAK", message },
    }
}

fn look_result(ended: Ended) -> EffectResult {
    let failed = |reason, message: &str| EffectResult::Failed { reason, message: message.into() };
    let ran = match ended {
        Ended::Ran(ran) => ran,
        Ended::NotStarted(message) | Ended::TooWeak(message) => {
            return failed("NOT_STARTED", &message);
        }
    };
    let smaller = "look at a smaller directory";
    match ran.exit {
        Exit::Code(0) => match serde_json::from_slice(&ran.stdout.whole()) {
            Ok(answer) => EffectResult::Looked(answer),
            Err(error) => failed("LOOK_FAILED", &format!("the answer cannot be read: {error}")),
        },
        Exit::TimedOut => failed("TIMEOUT", &format!("the look took too long; {smaller}")),
        Exit::OutOfMemory => {
            failed("OUT_OF_MEMORY", &format!("the look wanted too much memory; {smaller}"))
        }
        Exit::CpuTime => failed("CPU_TIME", &format!("the look took too much CPU time; {smaller}")),
        Exit::Code(_) | Exit::Signal(_) | Exit::Processes | Exit::Output => {
            let words = String::from_utf8_lossy(&ran.stderr.head).trim().to_owned();
            failed("LOOK_FAILED", &format!("the look broke off: {words}"))
        }
        Exit::Stopped => EffectResult::Ran(*ran),
    }
}

fn open_workspace(scene: &Scene) -> Result<OwnedFd, ResolveError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // It was resolved when the run was admitted: whoever put a link on the way since means something else.
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(CWD, &scene.workspace, flags, Mode::empty(), resolve);
    opened.map_err(|error| {
        let message = format!("the workspace is gone: {}", io::Error::from(error));
        files::missing("WORKSPACE_GONE", message)
    })
}

fn workspace_of(scene: &Scene) -> Result<OwnedFd, SnapshotError> {
    open_workspace(scene).map_err(|error| match error {
        ResolveError::Unresolved(Unresolved::Missing { message, .. })
        | ResolveError::Unresolved(Unresolved::Refused { message, .. }) => {
            SnapshotError::Failed { message }
        }
        ResolveError::Sandbox(error) => error.into(),
    })
}

fn join_error(error: tokio::task::JoinError) -> SandboxError {
    SandboxError::Io { what: "work on the workspace", source: io::Error::other(error) }
}
