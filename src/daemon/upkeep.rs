//! What goes on beside callers and runs while the daemon serves: policy files are read again, readiness is told, the
//! journal's head is signed, a store that was not closed in order is examined, and a webhook may be told of questions.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    config::Config,
    daemon::{DaemonError, Parts, Servers},
    domain::{
        ids::{Caller, Position, Timestamp},
        journal::DaemonStopped,
        redact::Redactor,
    },
    engine::{self, Engine, EngineError, Intake, Keep},
    grpc::HEALTH_NAMES,
    ports::{AuditFilter, Clock as _, Journal, JournalError, PageLimit, Webhook},
    signing::{self, Signer},
    sqlite,
    system::SystemClock,
    webhook::HttpWebhook,
};

/// Time between two looks at what is kept for too long.
const RETENTION: Duration = Duration::from_secs(60 * 60);
/// Time between two looks whether the examination is done.
const LOOK: Duration = Duration::from_millis(200);
/// In microseconds.
const WEEK: i64 = 7 * 24 * 60 * 60 * 1_000_000;

/// How the last daemon on this store ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LastStop {
    /// In order; or there was none.
    Clean,
    Unclean,
}

/// What the daemons before this one left in the store.
#[derive(Clone, Copy)]
pub(super) struct LastLife {
    pub(super) stop: LastStop,
    /// A time that has certainly come, whatever the clock says.
    pub(super) known_time: Timestamp,
}

impl LastLife {
    pub(super) async fn of(
        journal: &sqlite::SqliteJournal,
        now: Timestamp,
    ) -> Result<Self, JournalError> {
        let stop = LastStop::of(journal).await?;
        Ok(Self { stop, known_time: known_time(journal, now).await? })
    }
}

impl LastStop {
    async fn of(journal: &dyn Journal) -> Result<Self, JournalError> {
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
async fn examine(journal: Arc<sqlite::SqliteJournal>, engine: Engine, examined: Arc<AtomicBool>) {
    if let Err(error) = journal.examine().await {
        let message = format!("after an unclean stop: {error}");
        return engine.give_up(JournalError::Failed { message });
    }
    match journal.verify(Vec::new()).await {
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

/// The journal of a store, whose heads are signed.
pub(super) fn open(
    store: sqlite::Store,
    config: &Config,
    redactor: Redactor,
) -> Result<Arc<sqlite::SqliteJournal>, DaemonError> {
    let path = config.heads.key.clone();
    let path = path.unwrap_or_else(|| config.state_directory.join(signing::KEY));
    let signer = Signer::open(&path)
        .map_err(|source| DaemonError::SigningKey { path: path.clone(), source })?;
    let signing = sqlite::Signing { signer, entries: config.heads.entries };
    Ok(Arc::new(store.open(redactor, Some(signing))?))
}

/// Starts all of it.
pub(super) fn start(config: &Config, parts: &Parts, servers: &Servers, wanted: mpsc::Receiver<()>) {
    let Servers { tasks, health, .. } = servers;
    let (engine, journal) = (&parts.engine, &parts.journal);
    tasks.spawn("store", store_failure(engine.clone(), parts.journal.failed(), tasks.token()));
    let every = config.watching.interval;
    for backend in engine.world().backends.all() {
        let (clock, journal) = (engine.world().clock.clone(), engine.world().journal.clone());
        let watching = backend.clone().watch(clock, journal, every, tasks.token());
        tasks.spawn("backend", watching);
    }
    tasks.spawn("approvals", engine.clone().let_approvals_expire());
    tasks.spawn("webhook", engine.clone().tell_of_questions());
    tasks.spawn("intake", intake(engine.clone(), health.clone(), tasks.token()));
    if parts.last.stop == LastStop::Unclean {
        let examined = examine(journal.clone(), engine.clone(), parts.examined.clone());
        let token = tasks.token();
        tasks.spawn("examination", async move { token.run_until_cancelled(examined).await });
    }
    tasks.spawn("mirror", parts.mirror.clone().follow(tasks.token()));
    tasks.spawn("reloads", reloads(engine.clone(), wanted, tasks.token()));
    let (mirror, examined) = (parts.mirror.clone(), parts.examined.clone());
    let (is_in_order, waits) = (parts.last.stop == LastStop::Clean, parts.clock.clone());
    let stopping = tasks.token();
    let ready = async move {
        while !is_in_order && !examined.load(Ordering::Relaxed) && !stopping.is_cancelled() {
            stopping.run_until_cancelled(waits.sleep(LOOK)).await;
        }
        // What the mirror cannot do, it tells by itself.
        let _ = mirror.catch_up(&stopping).await;
    };
    let keep = (config.keep.clone(), parts.last.known_time);
    tasks.spawn("retention", retention(engine.clone(), keep, ready, tasks.token()));
    let clock = parts.clock.clone();
    tasks.spawn("heads", heads(journal.clone(), clock, config.heads.every, tasks.token()));
}

/// Prunes ended runs that were kept for long enough, and what a daemon that died left half pruned.
///
/// Not before a store that was left in disorder is examined, and the mirror has what is removed. What is removed is gone:
/// so the clock is not believed alone. At the start it may be a week beyond the last entry, and from then on it goes as fast
/// as time does.
async fn retention(
    engine: Engine,
    (keep, known): (Keep, Timestamp),
    ready: impl Future<Output = ()>,
    stopping: CancellationToken,
) {
    // Stops by itself: an append to the mirror is not to be broken off.
    ready.await;
    let clock = engine.world().clock.clone();
    let started = clock.steady_ms();
    let mut ticks = tokio::time::interval(RETENTION);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        let passed = i64::try_from(clock.steady_ms() - started).unwrap_or(0) * 1000;
        let now = clock.now().min(Timestamp(known.0.saturating_add(passed)));
        if let Err(error) = engine.prune_expired(&keep, now).await {
            tracing::warn!(%error, "ended runs could not be pruned; the next hour tries again");
        }
    }
}

/// A time that has certainly come: that of the last entry, and a week; or now.
async fn known_time(
    journal: &sqlite::SqliteJournal,
    now: Timestamp,
) -> Result<Timestamp, JournalError> {
    let before = Position(journal.head().0.saturating_sub(1));
    let page = journal.audit(AuditFilter::default(), before, PageLimit::entries(1)).await?;
    let last = page.entries.first().map(|entry| Timestamp(entry.time.0.saturating_add(WEEK)));
    Ok(last.unwrap_or(now).min(now))
}

/// Signs the journal's head from time to time, if anything was written. What the journal cannot do, it tells by itself.
async fn heads(
    journal: Arc<sqlite::SqliteJournal>,
    clock: Arc<SystemClock>,
    every: Duration,
    stopping: CancellationToken,
) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first one is at once.
    ticks.tick().await;
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        if journal.sign(clock.now()).await.is_err() {
            return;
        }
    }
}

/// Who is told of questions to people, if the configuration names one.
pub(super) fn webhook(config: &Config) -> Result<Option<Arc<dyn Webhook>>, DaemonError> {
    let Some(settings) = &config.webhook else { return Ok(None) };
    let webhook = HttpWebhook::new(settings).map_err(DaemonError::Webhook)?;
    Ok(Some(Arc::new(webhook)))
}

/// Everything but that the process lives.
pub(super) async fn set_ready(health: &HealthReporter, status: ServingStatus) {
    for name in HEALTH_NAMES.into_iter().filter(|name| *name != "liveness").chain([""]) {
        health.set_service_status(name, status).await;
    }
}

/// Tells orchestrators whether new runs are taken.
async fn intake(engine: Engine, health: HealthReporter, stopping: CancellationToken) {
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
async fn reloads(engine: Engine, mut wanted: mpsc::Receiver<()>, stopping: CancellationToken) {
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

/// A store that fails between two calls stops the daemon as one that fails within a call does.
async fn store_failure(
    engine: Engine,
    mut failed: watch::Receiver<Option<JournalError>>,
    stopping: CancellationToken,
) {
    let told = stopping.run_until_cancelled(failed.wait_for(Option::is_some)).await;
    let error = told.and_then(Result::ok).and_then(|error| error.clone());
    if let Some(error) = error {
        engine.give_up(error);
    }
}
