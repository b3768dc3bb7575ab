//! What goes on beside callers and runs while the daemon serves: policy files are read again, readiness is told, and a
//! store that was not closed in order is examined.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    domain::{ids::Caller, journal::DaemonStopped},
    engine::{self, Engine, EngineError, Intake},
    grpc::HEALTH_NAMES,
    ports::{Journal, JournalError},
    sqlite,
};

/// How the last daemon on this store ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LastStop {
    /// In order; or there was none.
    Clean,
    Unclean,
}

impl LastStop {
    pub(super) async fn of(journal: &dyn Journal) -> Result<Self, JournalError> {
        let last = journal.daemon_views(&["daemon_started", "daemon_stopped"], None, 1).await?;
        Ok(match last.first() {
            Some(view) if view.kind == "daemon_started" => Self::Unclean,
            Some(view) if says_unexamined(&view.payload) => Self::Unclean,
            Some(_) | None => Self::Clean,
        })
    }
}

fn says_unexamined(stopped: &str) -> bool {
    serde_json::from_str(stopped).is_ok_and(|stopped: DaemonStopped| stopped.is_unexamined)
}

/// After a crash: whether the database is whole, and the journal what was written. Runs go on meanwhile. On pages that
/// do not hold together nothing more may be written.
pub(super) async fn examine(
    journal: Arc<sqlite::SqliteJournal>,
    engine: Engine,
    examined: Arc<AtomicBool>,
) {
    if let Err(error) = journal.examine().await {
        let message = format!("after an unclean stop: {error}");
        return engine.give_up(JournalError::Failed { message });
    }
    match journal.verify().await {
        Ok(report) if report.faults.is_empty() => {
            tracing::info!(entries = report.entries, "the journal is whole after an unclean stop");
        }
        Ok(report) => tracing::error!(
            faults = report.faults.len(),
            "the journal was altered; agentctl audit verify says where"
        ),
        Err(error) => tracing::error!(%error, "the journal cannot be verified"),
    }
    examined.store(true, Ordering::Relaxed);
}

/// Everything but that the process lives.
pub(super) async fn set_ready(health: &HealthReporter, status: ServingStatus) {
    for name in HEALTH_NAMES.into_iter().filter(|name| *name != "liveness").chain([""]) {
        health.set_service_status(name, status).await;
    }
}

/// Tells orchestrators whether new runs are taken.
pub(super) async fn intake(engine: Engine, health: HealthReporter, stopping: CancellationToken) {
    let mut intake = engine.watch_intake();
    while let Some(Ok(())) = stopping.run_until_cancelled(intake.changed()).await {
        let status = match *intake.borrow_and_update() {
            Intake::Open => ServingStatus::Serving,
            Intake::Closed => ServingStatus::NotServing,
        };
        set_ready(&health, status).await;
    }
}

/// Reads the policy files again whenever SIGHUP says so. A failure is told, and changes nothing.
pub(super) async fn reloads(
    engine: Engine,
    mut wanted: mpsc::Receiver<()>,
    stopping: CancellationToken,
) {
    let caller = Caller::new(engine::SIGHUP);
    while let Some(Some(())) = stopping.run_until_cancelled(wanted.recv()).await {
        match engine.reload_policy(caller.clone(), None).await {
            Ok(done) => tracing::info!(?done, "the policy files were read"),
            Err(error @ EngineError::PolicyInvalid { .. }) => tracing::error!("{error}"),
            Err(error) => tracing::error!(%error, "the policy files could not be read"),
        }
    }
}

/// Ends the process then, unless it has ended by itself: a disk or a kernel that hangs must not keep it alive. What is
/// under way is left to the next daemon, as after a crash.
pub(super) fn exit_after(deadline: Duration) {
    let watch = thread::Builder::new().name("deadline".into());
    let watching = watch.spawn(move || {
        thread::sleep(deadline);
        tracing::error!(
            ?deadline,
            "the daemon did not stop in time; what is left is left to the next one"
        );
        process::exit(1);
    });
    if let Err(error) = watching {
        tracing::warn!(%error, "nothing watches over the end of this process");
    }
}
