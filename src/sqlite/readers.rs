//! Threads that read, each with its own connection. A read never holds up the writer, and no read
//! transaction outlives its job.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::{
    ports::JournalError,
    sqlite::{OpenError, migrate, rows::ReadError, seal::Seal},
};

type Job = Box<dyn FnOnce(&Reader) + Send>;

/// What a job reads with.
pub(super) struct Reader {
    pub(super) connection: Connection,
    pub(super) seal: Arc<Seal>,
}

/// Hands jobs to whichever thread is free.
pub(super) struct Readers {
    jobs: mpsc::SyncSender<Job>,
    /// For a look at one row, by whoever asks.
    here: Mutex<Reader>,
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readers")
    }
}

impl Readers {
    /// `threads` connections; of jobs that wait, `queue` are kept, and one more is refused as busy.
    pub(super) fn start(
        path: &Path,
        seal: &Arc<Seal>,
        threads: usize,
        queue: usize,
    ) -> Result<Self, OpenError> {
        let (jobs, queue) = mpsc::sync_channel::<Job>(queue);
        let queue = Arc::new(Mutex::new(queue));
        for n in 0..threads {
            let reader =
                Reader { connection: migrate::open_for_reading(path)?, seal: seal.clone() };
            let queue = queue.clone();
            thread::Builder::new()
                .name(format!("journal-reader-{n}"))
                .spawn(move || {
                    while let Some(job) = next(&queue) {
                        job(&reader)
                    }
                })
                .map_err(|source| OpenError::Thread { source })?;
        }
        let here = Reader { connection: migrate::open_for_reading(path)?, seal: seal.clone() };
        Ok(Self { jobs, here: Mutex::new(here) })
    }

    /// Looks one row up, on the caller's own thread: that takes tens of microseconds, and to wake another
    /// thread and be woken by it takes milliseconds where every core is busy. Whoever finds the place taken
    /// asks the threads.
    pub(super) async fn look_up<T: Send + 'static>(
        &self,
        row: impl FnOnce(&Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, JournalError> {
        if let Ok(reader) = self.here.try_lock() {
            return row(&reader).map_err(unreadable);
        }
        self.ask(row).await
    }

    /// Runs `job` on a reading thread and gives what it read.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |reader| drop(reply.send(job(reader))));
        self.jobs.try_send(job).map_err(|_| JournalError::Busy)?;
        match answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(unreadable(error)),
            Err(_) => Err(JournalError::Unreadable { what: "its reader has stopped".into() }),
        }
    }
}

fn unreadable(error: ReadError) -> JournalError {
    match error {
        ReadError::Pruned { run, head } => JournalError::Pruned { run, head },
        error => JournalError::Unreadable { what: error.to_string() },
    }
}

fn next(queue: &Mutex<mpsc::Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}
