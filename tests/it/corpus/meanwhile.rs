//! What goes on outside of the daemon while a case is carried out.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use agentd::proto::v1;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::{confinement, support::TestDaemon};

/// A thread that has two names change places, over and over, until it is dropped.
pub(super) struct Exchange {
    stop: Arc<AtomicBool>,
    times: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Exchange {
    pub(super) fn start(one: PathBuf, other: PathBuf) -> Self {
        let (stop, times) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, count) = (stop.clone(), times.clone());
        let thread = thread::spawn(move || {
            while !told.load(Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                count.fetch_add(1, Relaxed);
            }
        });
        Self { stop, times, thread: Some(thread) }
    }

    /// How often they have changed places by now.
    pub(super) fn times(&self) -> u64 {
        self.times.load(Relaxed)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// What was seen of a daemon while it was busy.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// How often it answered.
    pub(super) answers: u32,
    /// The most processes that its workspace had at one time.
    pub(super) most_processes: usize,
}

/// Asks the daemon again and again, and counts the processes of a workspace, until `done` is.
pub(super) async fn watch<T>(
    daemon: &TestDaemon,
    workspace: &Path,
    done: impl Future<Output = T>,
) -> (T, Watched) {
    let mut watched = Watched::default();
    let client = daemon.client().await;
    let mut done = std::pin::pin!(done);
    loop {
        let asked = async {
            let request = v1::GetServerInfoRequest {};
            client.admin().get_server_info(request).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        tokio::select! {
            done = &mut done => return (done, watched),
            () = asked => watched.answers += 1,
        }
        let processes = confinement::processes_in(workspace).len();
        watched.most_processes = watched.most_processes.max(processes);
    }
}
