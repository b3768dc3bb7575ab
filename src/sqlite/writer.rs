//! The one thread that writes. It takes what is waiting, writes it in one transaction, syncs once, and
//! answers all: while one sync runs, the next batch forms.
//!
//! Invariant: every check comes before the first write of its job, so that a refused job leaves its
//! batch alone; and after any failure of the store nothing more is acknowledged.

mod batch;
mod derived;
mod folding;
mod heads;
mod pruning;
mod texts;

pub use heads::Signing;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    thread,
};

use rusqlite::{Connection, TransactionBehavior, config::DbConfig};
use tokio::sync::{mpsc, oneshot};

use crate::{
    domain::{
        ids::{Epoch, RunId, Sequence, Timestamp},
        journal::NewEntry,
        redact::Redactor,
    },
    fail_point,
    ports::{Admission, Append, Created, JournalError, Progress, PruneOrder, Pruning},
    sqlite::{
        OpenError, Shared,
        seal::Seal,
        writer::{
            batch::{Batch, JobError, WriteError},
            folding::Folding,
            heads::Heads,
        },
    },
};

/// Jobs that may wait; appends of running runs wait for room, new submissions are refused.
const QUEUE: usize = 4096;
/// Jobs of one transaction.
const BATCH: usize = 256;

/// Hands jobs to the writer's thread.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
}

enum Job {
    Create {
        admission: Admission,
        append: Append,
        reply: Reply<Created>,
    },
    Append {
        append: Append,
        reply: Reply<()>,
    },
    Daemon {
        entry: Box<NewEntry>,
        reply: Reply<Sequence>,
    },
    /// Removes a part of what a run held.
    Prune {
        order: PruneOrder,
        reply: Reply<Pruning>,
    },
    /// Signs for what no head signs for yet.
    Sign {
        time: Timestamp,
        reply: Reply<()>,
    },
    /// Nothing is to be done: whoever asks wants to know that somebody would.
    Beat {
        reply: Reply<()>,
    },
    /// The last job: puts everything into the database file itself.
    Close {
        reply: Reply<()>,
    },
}

type Reply<T> = oneshot::Sender<Result<T, JournalError>>;

/// An answer that is given once its transaction is on disk.
enum Answer {
    Created(Reply<Created>, Result<Created, JournalError>),
    Done(Reply<()>, Result<(), JournalError>),
    Pruned(Reply<Pruning>, Result<Pruning, JournalError>),
    Noted(Reply<Sequence>, Result<Sequence, JournalError>),
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        epoch: Epoch,
        seal: Arc<Seal>,
        redactor: Redactor,
        shared: Arc<Shared>,
        signing: Option<Signing>,
    ) -> Result<Self, OpenError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let heads = Heads::read(&connection).map_err(|source| OpenError::Database {
            path: connection.path().unwrap_or_default().into(),
            source,
        })?;
        shared.head.send_replace(heads.position);
        let state = Thread {
            connection,
            epoch,
            seal,
            redactor,
            shared,
            signing,
            heads,
            folding: Folding::default(),
            failed: None,
        };
        thread::Builder::new()
            .name("journal-writer".into())
            .spawn(move || state.work(queue))
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { jobs })
    }

    pub(super) async fn create(
        &self,
        admission: Admission,
        append: Append,
    ) -> Result<Created, JournalError> {
        let (reply, answer) = oneshot::channel();
        match self.jobs.try_send(Job::Create { admission, append, reply }) {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(gone())),
            Err(mpsc::error::TrySendError::Full(_)) => Err(JournalError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(gone()),
        }
    }

    pub(super) async fn append(&self, append: Append) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Append { append, reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    pub(super) async fn append_daemon(&self, entry: NewEntry) -> Result<Sequence, JournalError> {
        let (reply, answer) = oneshot::channel();
        let job = Job::Daemon { entry: Box::new(entry), reply };
        self.jobs.send(job).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl Writer {
    pub(super) async fn prune(&self, order: PruneOrder) -> Result<Pruning, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Prune { order, reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    pub(super) async fn sign(&self, time: Timestamp) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Sign { time, reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    pub(super) async fn beat(&self) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Beat { reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Writes what waits, folds the log into the database file, and stops the thread.
    pub(super) async fn close(&self) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Close { reply }).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> JournalError {
    JournalError::Failed { message: "its writer has stopped".into() }
}

struct Thread {
    connection: Connection,
    epoch: Epoch,
    seal: Arc<Seal>,
    redactor: Redactor,
    shared: Arc<Shared>,
    signing: Option<Signing>,
    heads: Heads,
    folding: Folding,
    failed: Option<String>,
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("heads", &self.heads).finish_non_exhaustive()
    }
}

impl Thread {
    fn work(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut jobs, BATCH) > 0 {
            let close = jobs.iter().position(|job| matches!(job, Job::Close { .. }));
            let last = close.map(|place| jobs.split_off(place));
            let beats: Vec<Job> =
                jobs.extract_if(.., |job| matches!(job, Job::Beat { .. })).collect();
            let together = jobs.len();
            if !jobs.is_empty() {
                self.write(jobs.drain(..));
            }
            self.beat(beats);
            // Of many who write at once, those who are about to get to it first: fewer, larger commits. A thread that
            // nobody waits for goes on at once.
            if together > 1 {
                thread::yield_now();
            }
            if let Some(last) = last {
                return self.close(last);
            }
            self.fold(!queue.is_empty());
        }
    }

    fn beat(&self, beats: Vec<Job>) {
        for beat in beats {
            if let Job::Beat { reply } = beat {
                let failed = self.failed.clone();
                // Who asked may be gone.
                let _ = reply
                    .send(failed.map_or(Ok(()), |message| Err(JournalError::Failed { message })));
            }
        }
    }

    /// Answers the job that closes; what came after it is refused by being dropped.
    fn close(self, last: Vec<Job>) {
        let folded = match &self.failed {
            Some(message) => Err(JournalError::Failed { message: message.clone() }),
            None => self
                .connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                .map_err(|error| JournalError::Failed { message: error.to_string() }),
        };
        if folded.is_err() {
            self.abandon();
        }
        if let Some(Job::Close { reply }) = last.into_iter().next() {
            let _ = reply.send(folded);
        }
    }

    /// Writes a batch, and answers it once it is on disk.
    fn write(&mut self, jobs: impl Iterator<Item = Job>) {
        if let Some(message) = &self.failed {
            return jobs.for_each(|job| job.fail(message));
        }
        let mut answers = Vec::with_capacity(BATCH);
        let mut heads = Vec::with_capacity(BATCH);
        match self.write_batch(jobs, &mut answers, &mut heads) {
            Ok(after) => {
                let written = after.position != self.heads.position;
                self.heads = after;
                self.shared.head.send_replace(after.position);
                self.shared.commits.fetch_add(u64::from(written), Ordering::Relaxed);
                heads.into_iter().for_each(|(run, progress)| self.shared.announce(run, progress));
                answers.into_iter().for_each(Answer::give);
            }
            Err(error) => {
                let message = self.fail(&error);
                answers.into_iter().for_each(|answer| answer.fail(&message));
            }
        }
    }

    /// What is copied was acknowledged before, and stays in the log where the copy fails.
    fn fold(&mut self, is_awaited: bool) {
        if self.failed.is_none()
            && let Err(error) = self.folding.fold(&self.connection, is_awaited)
        {
            self.fail(&error.into());
        }
    }

    /// After a failed commit or sync nobody knows what is on disk: acknowledges nothing more.
    fn fail(&mut self, error: &WriteError) -> String {
        let message = format!("{error}; check the disk, then start agentd again");
        tracing::error!(%error, "the journal cannot be written, the daemon must stop");
        self.abandon();
        self.failed = Some(message.clone());
        let error = JournalError::Failed { message: message.clone() };
        self.shared.failed.send_replace(Some(error));
        message
    }

    /// Leaves the files as they are: the last connection that closes would sync once more and fold the log into the
    /// database, and a sync that succeeds after one that failed says nothing of what the failed one was to keep.
    fn abandon(&self) {
        let setting = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        if let Err(error) = self.connection.set_db_config(setting, true) {
            tracing::error!(%error, "the journal is folded into the database in spite of its failure");
        }
    }

    fn write_batch(
        &mut self,
        jobs: impl Iterator<Item = Job>,
        answers: &mut Vec<Answer>,
        announced: &mut Vec<(RunId, Progress)>,
    ) -> Result<Heads, WriteError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut batch = Batch {
            transaction,
            epoch: self.epoch,
            seal: &self.seal,
            redactor: &self.redactor,
            signing: self.signing.as_ref(),
            heads: self.heads,
            time: Timestamp(0),
            announced,
        };
        let mut broken = None;
        for job in jobs {
            // Once the store has failed, the rest of the batch still gets its answer.
            match job {
                Job::Create { admission, append, reply } => {
                    let done = batch.unless(&broken, |batch| batch.create(&admission, &append));
                    answers.push(Answer::Created(reply, keep(done, &mut broken)));
                }
                Job::Append { append, reply } => {
                    let done = batch.unless(&broken, |batch| batch.append(&append));
                    answers.push(Answer::Done(reply, keep(done, &mut broken)));
                }
                Job::Daemon { entry, reply } => {
                    let done = batch.unless(&broken, |batch| batch.daemon(&entry));
                    answers.push(Answer::Noted(reply, keep(done, &mut broken)));
                }
                Job::Prune { order, reply } => {
                    let done = batch.unless(&broken, |batch| batch.prune(&order));
                    answers.push(Answer::Pruned(reply, keep(done, &mut broken)));
                }
                Job::Sign { time, reply } => {
                    let done = batch.unless(&broken, |batch| batch.sign(time));
                    answers.push(Answer::Done(reply, keep(done, &mut broken)));
                }
                // Taken out of the batch before it is written.
                Job::Close { .. } | Job::Beat { .. } => {}
            }
        }
        let time = batch.time;
        let _ = keep(batch.unless(&broken, |batch| batch.sign_if_due(time)), &mut broken);
        if let Some(error) = broken {
            return Err(error);
        }
        let after = batch.heads;
        fail_point::reach("commit.before");
        batch.transaction.commit()?;
        fail_point::reach("commit.after");
        Ok(after)
    }
}

/// Keeps the batch's first failure; the job's own answer is then replaced by it.
fn keep<T>(done: Result<T, JobError>, broken: &mut Option<WriteError>) -> Result<T, JournalError> {
    match done {
        Ok(value) => Ok(value),
        Err(JobError::Refused(refusal)) => Err(refusal),
        Err(JobError::Write(error)) => {
            broken.get_or_insert(error);
            Err(gone())
        }
    }
}

impl Job {
    fn fail(self, message: &str) {
        let error = JournalError::Failed { message: message.to_owned() };
        match self {
            Self::Create { reply, .. } => drop(reply.send(Err(error))),
            Self::Daemon { reply, .. } => drop(reply.send(Err(error))),
            Self::Prune { reply, .. } => drop(reply.send(Err(error))),
            Self::Append { reply, .. }
            | Self::Sign { reply, .. }
            | Self::Beat { reply }
            | Self::Close { reply } => drop(reply.send(Err(error))),
        }
    }
}

impl Answer {
    /// The caller may be gone; what it asked for is done all the same.
    fn give(self) {
        match self {
            Self::Created(reply, answer) => drop(reply.send(answer)),
            Self::Done(reply, answer) => drop(reply.send(answer)),
            Self::Noted(reply, answer) => drop(reply.send(answer)),
            Self::Pruned(reply, answer) => drop(reply.send(answer)),
        }
    }

    fn fail(self, message: &str) {
        let error = JournalError::Failed { message: message.to_owned() };
        match self {
            Self::Created(reply, _) => drop(reply.send(Err(error))),
            Self::Done(reply, _) => drop(reply.send(Err(error))),
            Self::Noted(reply, _) => drop(reply.send(Err(error))),
            Self::Pruned(reply, _) => drop(reply.send(Err(error))),
        }
    }
}
