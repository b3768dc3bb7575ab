//! The journal in SQLite: one writer thread, a few readers, one owner per state directory.
//! Knows nothing of what entries mean. Start with [`take`].

mod backup;
mod migrate;
mod readers;
mod retention;
mod rows;
mod seal;
mod texts;
mod verify;
mod writer;

pub use backup::{RestoreError, Restored, restore};
pub use migrate::OpenError;
pub use verify::{verify_file, views_of_file};
pub use writer::Signing;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use async_trait::async_trait;
use rusqlite::Connection;
use tokio::sync::{OnceCell, watch};

use crate::{
    domain::{
        head::KeptHead,
        ids::{Epoch, Position, RunId, Sequence, Timestamp},
        journal::{Entry, NewEntry},
        redact::Redactor,
    },
    ports::{
        Admission, Append, Approvals, AuditFilter, AuditPage, AuditReport, Backups, Checkpoint,
        Created, EndedRun, EntryView, Journal, JournalError, PageLimit, PendingApproval, Progress,
        Prunable, PruneOrder, Pruning, Pulse, Retention, RunFilter, RunPlace, RunSummary,
        StoreCopy,
    },
};

/// File name of the database in the state directory.
pub const DATABASE: &str = "agentd.db";

/// Version of the SQLite that is built in.
pub fn version() -> &'static str {
    rusqlite::version()
}

/// A state directory's store, taken over and at this build's schema. Nothing reads or writes it yet.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
    epoch: Epoch,
    seal: Arc<seal::Seal>,
    lock: migrate::Lock,
    restored: Option<Timestamp>,
}

/// Takes the state directory's store over, creating or migrating it.
///
/// Blocking. Bumps the epoch, so that a writer of an earlier lifetime is refused. Errors: another
/// daemon owns the directory, the file is not ours or from a newer version, or the disk refuses.
pub fn take(state_directory: &Path) -> Result<Store, OpenError> {
    let lock = migrate::lock(state_directory)?;
    let path = state_directory.join(DATABASE);
    if state_directory.join(backup::EXCHANGING).exists() {
        return Err(OpenError::Exchanging { directory: state_directory.to_owned() });
    }
    // Of a backup that was cut off.
    let _ = std::fs::remove_file(path.with_extension("db.copy"));
    // The first start syncs both to disk: side by side that takes as long as one.
    let directory = state_directory.to_owned();
    let sealing = thread::Builder::new()
        .name("journal-seal".into())
        .spawn(move || seal::Seal::open(&directory))
        .map_err(|source| OpenError::Thread { source })?;
    let opened = migrate::open_for_writing(&path);
    let panicked = |_| Err(OpenError::Thread { source: io::Error::other("it panicked") });
    let seal = sealing.join().unwrap_or_else(panicked);
    let (connection, epoch) = opened?;
    let restored = connection
        .query_row("SELECT restored_us FROM owner", [], |row| row.get(0))
        .map(|time: Option<i64>| time.map(Timestamp))
        .map_err(|source| OpenError::Database { path: path.clone(), source })?;
    Ok(Store { path, connection, epoch, seal: Arc::new(seal?), lock, restored })
}

impl Store {
    /// When it was restored from a backup, if nobody has gone on from it since.
    pub fn restored(&self) -> Option<Timestamp> {
        self.restored
    }

    /// The journal in this store; what `redactor` knows stands in no view of it. Without `signing` no head is signed.
    ///
    /// Errors: no thread can be started, or the database cannot be read.
    pub fn open(
        self,
        redactor: Redactor,
        signing: Option<Signing>,
    ) -> Result<SqliteJournal, OpenError> {
        let Self { path, connection, epoch, seal, lock, restored: _ } = self;
        let shared = Arc::new(Shared::default());
        let writer = writer::Writer::start(
            connection,
            epoch,
            seal.clone(),
            redactor,
            shared.clone(),
            signing,
        )?;
        let readers = readers::Readers::start(&path, &seal, 2, 4096)?;
        let auditor = OnceCell::new();
        Ok(SqliteJournal { path, seal, epoch, writer, readers, auditor, shared, _lock: lock })
    }
}

/// The journal of one state directory.
#[derive(Debug)]
pub struct SqliteJournal {
    path: PathBuf,
    seal: Arc<seal::Seal>,
    epoch: Epoch,
    writer: writer::Writer,
    readers: readers::Readers,
    /// A verification reads everything, and is seldom: it must not stand in the way of other readers, and
    /// costs nothing before the first.
    auditor: OnceCell<readers::Readers>,
    shared: Arc<Shared>,
    /// Held for as long as the journal is open.
    _lock: migrate::Lock,
}

/// What the writer and its callers share.
#[derive(Debug, Default)]
struct Shared {
    /// Only runs that somebody watches.
    watchers: Mutex<HashMap<RunId, watch::Sender<Progress>>>,
    /// Last position on disk.
    head: watch::Sender<Position>,
    /// Of this lifetime.
    commits: AtomicU64,
    /// Why nothing more is written.
    failed: watch::Sender<Option<JournalError>>,
}

impl SqliteJournal {
    /// Says why nothing more is written, once that is so: also where nobody has asked for anything.
    pub fn failed(&self) -> watch::Receiver<Option<JournalError>> {
        self.shared.failed.subscribe()
    }

    /// This lifetime's epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether the file's pages hold together; takes as long as reading all of it.
    ///
    /// Errors: they do not, or it cannot be told.
    pub async fn examine(&self) -> Result<(), JournalError> {
        self.auditor().await?.ask(|reader| backup::examine(&reader.connection)).await
    }

    async fn auditor(&self) -> Result<&readers::Readers, JournalError> {
        let start = async || readers::Readers::start(&self.path, &self.seal, 1, 4);
        let started = self.auditor.get_or_try_init(start).await;
        started.map_err(|error| JournalError::Unreadable { what: crate::telemetry::chain(&error) })
    }

    /// Last position on disk.
    pub fn head(&self) -> Position {
        *self.shared.head.borrow()
    }

    /// Signs for what no head signs for yet; nothing where nobody signs.
    pub async fn sign(&self, time: Timestamp) -> Result<(), JournalError> {
        self.writer.sign(time).await
    }

    /// Writes what waits, folds everything into the database file, and takes nothing more.
    pub async fn close(&self) -> Result<(), JournalError> {
        self.writer.close().await
    }
}

impl Shared {
    fn announce(&self, run: RunId, progress: Progress) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = watchers.get(&run) {
            watcher.send_replace(progress);
            if watcher.is_closed() {
                watchers.remove(&run);
            }
        }
    }

    fn watch(&self, run: RunId) -> watch::Receiver<Progress> {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        // A run that ends unwatched is never announced again; forget such rows before they add up.
        if watchers.len() > 1024 {
            watchers.retain(|_, watcher| !watcher.is_closed());
        }
        watchers.entry(run).or_insert_with(|| watch::Sender::new(Progress::default())).subscribe()
    }
}

#[async_trait]
impl Retention for SqliteJournal {
    async fn prunable(&self, wanted: Prunable) -> Result<Vec<EndedRun>, JournalError> {
        self.readers.ask(move |reader| retention::prunable(&reader.connection, &wanted)).await
    }

    async fn prune(&self, order: PruneOrder) -> Result<Pruning, JournalError> {
        self.writer.prune(order).await
    }

    async fn half_pruned(&self) -> Result<Vec<RunId>, JournalError> {
        self.readers.ask(|reader| retention::half_pruned(&reader.connection)).await
    }
}

#[async_trait]
impl Backups for SqliteJournal {
    fn size(&self) -> io::Result<u64> {
        let log = std::fs::metadata(self.path.with_extension("db-wal"));
        Ok(std::fs::metadata(&self.path)?.len() + log.map_or(0, |log| log.len()))
    }

    async fn copy(&self) -> Result<StoreCopy, JournalError> {
        let path = self.path.clone();
        let copied =
            self.auditor().await?.ask(move |reader| Ok(backup::copy(&reader.connection, &path)));
        copied.await?
    }
}

#[async_trait]
impl Pulse for SqliteJournal {
    async fn beat(&self) -> Result<(), JournalError> {
        self.writer.beat().await
    }
}

#[async_trait]
impl Journal for SqliteJournal {
    async fn create(&self, admission: Admission, append: Append) -> Result<Created, JournalError> {
        self.writer.create(admission, append).await
    }

    async fn submitted(&self, admission: Admission) -> Result<Option<RunId>, JournalError> {
        self.readers
            .look_up(move |reader| Ok(rows::submitted(&reader.connection, &admission)?))
            .await?
    }

    async fn append(&self, append: Append) -> Result<(), JournalError> {
        self.writer.append(append).await
    }

    async fn append_daemon(&self, entry: NewEntry) -> Result<Sequence, JournalError> {
        self.writer.append_daemon(entry).await
    }

    async fn entries(
        &self,
        run: RunId,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Entry>, JournalError> {
        self.readers
            .ask(move |reader| rows::entries(&reader.connection, &reader.seal, run, after, limit))
            .await
    }

    async fn views(
        &self,
        run: RunId,
        after: Sequence,
        limit: PageLimit,
    ) -> Result<Vec<EntryView>, JournalError> {
        self.readers.ask(move |reader| rows::views(&reader.connection, run, after, limit)).await
    }

    async fn daemon_views(
        &self,
        kinds: &'static [&'static str],
        before: Option<Sequence>,
        limit: usize,
    ) -> Result<Vec<EntryView>, JournalError> {
        self.readers
            .ask(move |reader| rows::daemon_views(&reader.connection, kinds, before, limit))
            .await
    }

    async fn audit(
        &self,
        wanted: AuditFilter,
        after: Position,
        limit: PageLimit,
    ) -> Result<AuditPage, JournalError> {
        self.readers.ask(move |reader| rows::audit(&reader.connection, &wanted, after, limit)).await
    }

    fn watch_head(&self) -> watch::Receiver<Position> {
        self.shared.head.subscribe()
    }

    fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    async fn run(&self, run: RunId) -> Result<Option<RunSummary>, JournalError> {
        self.readers.look_up(move |reader| rows::run(&reader.connection, run)).await
    }

    async fn runs(
        &self,
        wanted: RunFilter,
        before: Option<RunPlace>,
        limit: usize,
    ) -> Result<Vec<(RunPlace, RunSummary)>, JournalError> {
        self.readers.ask(move |reader| rows::runs(&reader.connection, &wanted, before, limit)).await
    }

    async fn pending_approvals(
        &self,
        wanted: Approvals,
        after: Position,
        limit: usize,
    ) -> Result<Vec<PendingApproval>, JournalError> {
        self.readers
            .ask(move |reader| rows::pending_approvals(&reader.connection, &wanted, after, limit))
            .await
    }

    async fn checkpoint(&self, run: RunId) -> Result<Option<Checkpoint>, JournalError> {
        self.readers
            .ask(move |reader| rows::checkpoint(&reader.connection, &reader.seal, run))
            .await
    }

    async fn unended(&self) -> Result<Vec<RunId>, JournalError> {
        self.readers.ask(|reader| rows::unended(&reader.connection)).await
    }

    async fn verify(&self, kept: Vec<KeptHead>) -> Result<AuditReport, JournalError> {
        self.auditor().await?.ask(|reader| verify::verify(&reader.connection, kept)).await
    }

    fn watch(&self, run: RunId) -> watch::Receiver<Progress> {
        self.shared.watch(run)
    }
}
