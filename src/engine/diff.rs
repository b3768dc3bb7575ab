//! What a run changed in its workspace.

use crate::{
    domain::{
        ids::{RunId, TreeId},
        journal::Taken,
        policy::Limits,
    },
    engine::{EngineError, World, run_log::RunLog},
    ports::{Keeping, PatchForm, Scene, SnapshotError},
};

/// Longest diff that is given, in bytes.
const DIFF_BYTES: usize = 16 << 20;
/// A snapshot reads a whole workspace, once; a call has less to do.
const WALL_MS: u64 = 120_000;

/// What a run changed, as a patch. Of a run that goes on, what it changed by now.
pub(super) async fn diff(
    world: &World,
    run: RunId,
    form: PatchForm,
) -> Result<Vec<u8>, EngineError> {
    let opened = RunLog::read(&*world.journal, run).await?;
    let state = opened.ok_or(EngineError::UnknownRun(run))?.state;
    let workspace = &state.spec.workspace;
    let none = |message: String| EngineError::NoDiff { run, message };
    let before = match state.snapshots.before {
        Some(Taken::Tree(tree)) => tree,
        Some(Taken::Failed(why)) => return Err(none(why)),
        None => return Ok(Vec::new()),
    };
    let after = match state.snapshots.after {
        Some(Taken::Tree(tree)) => tree,
        Some(Taken::Failed(why)) => return Err(none(why)),
        None => {
            let taken = snapshot(world, (run, workspace), Keeping::AsGitWould).await;
            taken.map_err(|error| none(chain(&error)))?
        }
    };
    let scene = scene(world, run, workspace);
    let diff =
        world.sandbox.diff(&scene, limits(world), (&before, &after), (form, DIFF_BYTES)).await;
    diff.map_err(|error| none(chain(&error)))
}

/// The files of a run's workspace as they are now.
pub(super) async fn snapshot(
    world: &World,
    (run, workspace): (RunId, &str),
    keeping: Keeping,
) -> Result<TreeId, SnapshotError> {
    world.sandbox.snapshot(&scene(world, run, workspace), limits(world), keeping).await
}

/// Makes the files of a run's workspace what they were when that copy of them was taken.
pub(super) async fn restore(
    world: &World,
    run: RunId,
    workspace: &str,
    tree: &TreeId,
) -> Result<(), SnapshotError> {
    world.sandbox.restore(&scene(world, run, workspace), limits(world), tree).await
}

fn scene(world: &World, run: RunId, workspace: &str) -> Scene {
    Scene {
        workspace: workspace.into(),
        program_directories: world.policies.current().program_directories.clone(),
        label: run.to_string(),
        earlier: None,
    }
}

fn limits(world: &World) -> Limits {
    let limits = world.policies.current().limits;
    Limits { wall_ms: limits.wall_ms.max(WALL_MS), ..limits }
}

fn chain(error: &SnapshotError) -> String {
    crate::telemetry::chain(error)
}
