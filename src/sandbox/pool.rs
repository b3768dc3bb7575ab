//! Launchers that wait for an order, so that a call need not wait for a launcher: a few of each kind that was wanted
//! lately, made again in the background. One is only given away while the machine looks as it did when its world
//! was built. Who wants one when there is none starts his own: see `launcher`.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Mode, OFlags},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::policy::Limits,
    ports::SandboxError,
    sandbox::{
        cgroup::Cgroups,
        framed::{Framed, Kind},
        inside,
        launcher::Ground,
        spawner::Spawner,
    },
    tasks,
};

/// Kinds of which so many wait as may; with more, the one that waited longest goes for the next.
const KINDS: usize = 3;
/// How long the work that was just ordered is left the processor.
const PAUSE: Duration = Duration::from_millis(10);
/// Kinds that were wanted and not yet looked at; whoever finds no room does without.
const WANTED: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    /// How many of a kind wait: more than one turn of a model calls at once are of no use.
    of_a_kind: usize,
    waiting: Mutex<Waiting>,
    /// The list of mounts, which tells when it changes.
    mounts: File,
    wanted: mpsc::Sender<Kind>,
}

#[derive(Debug, Default)]
struct Waiting {
    launchers: VecDeque<(Kind, Machine, Framed)>,
    /// How often all were let go: who was started before the last time is not taken any more.
    generation: u64,
    is_closed: bool,
}

/// What worlds are built from, by device and inode; none: it is not there. A file that was replaced is another.
#[derive(Debug, PartialEq, Eq)]
struct Machine(Vec<Option<(u64, u64)>>);

impl Machine {
    fn look() -> Self {
        let inode = |path| fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()));
        Self(inside::machine().map(inode).collect())
    }
}

impl Pool {
    /// Also gives what [`Keeper`] needs to know. Errors: the kernel does not list mounts.
    pub(super) fn new(of_a_kind: usize) -> io::Result<(Self, mpsc::Receiver<Kind>)> {
        let (wanted, heard) = mpsc::channel(WANTED);
        let mounts = File::open(MOUNTS)?;
        Ok((Self { of_a_kind, waiting: Mutex::default(), mounts, wanted }, heard))
    }

    /// One of that kind whose groups can have these limits; and asks for another. Blocking.
    pub(super) fn take(&self, kind: Kind, limits: &Limits, cgroups: &Cgroups) -> Option<Framed> {
        let _ = self.wanted.try_send(kind);
        if changed(&self.mounts) {
            self.dismiss_all();
        }
        let now = Machine::look();
        loop {
            let (_, then, framed) = {
                let mut waiting = self.lock();
                let fits = |(of, _, framed): &(Kind, Machine, Framed)| {
                    *of == kind && cgroups.suits(framed.group(), limits)
                };
                let found = waiting.launchers.iter().position(fits)?;
                waiting.launchers.remove(found)?
            };
            if then == now {
                return Some(framed);
            }
            framed.dismiss();
        }
    }

    /// Lets all go, and takes no more. Blocking.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.dismiss_all();
    }

    fn dismiss_all(&self) {
        let launchers = {
            let mut waiting = self.lock();
            waiting.generation += 1;
            std::mem::take(&mut waiting.launchers)
        };
        launchers.into_iter().for_each(|(_, _, framed)| framed.dismiss());
    }

    /// Whether there are too few of a kind, and of which generation another would be.
    fn wants(&self, kind: Kind) -> Option<u64> {
        let waiting = self.lock();
        let count = waiting.launchers.iter().filter(|(of, _, _)| *of == kind).count();
        (!waiting.is_closed && count < self.of_a_kind).then_some(waiting.generation)
    }

    /// Blocking.
    fn put(&self, kind: Kind, machine: Machine, generation: u64, framed: Framed) {
        let gone = {
            let mut waiting = self.lock();
            if waiting.is_closed || waiting.generation != generation {
                Some(framed)
            } else {
                waiting.launchers.push_back((kind, machine, framed));
                let is_full = waiting.launchers.len() > KINDS * self.of_a_kind;
                let oldest = is_full.then(|| waiting.launchers.pop_front()).flatten();
                oldest.map(|(_, _, framed)| framed)
            }
        };
        if let Some(framed) = gone {
            framed.dismiss();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills a pool.
pub(super) struct Keeper {
    pub(super) pool: Arc<Pool>,
    pub(super) spawner: Arc<Spawner>,
    /// Goes after the spawner: a cgroup in which a launcher is cannot be removed.
    pub(super) ground: Arc<Ground>,
    /// The directory above all workspaces.
    pub(super) root: PathBuf,
}

impl Keeper {
    /// Makes what is wanted, and lets all go when mounts change: a world keeps in use whatever was mounted when it was
    /// built. Ends when told to.
    pub(super) async fn keep(self, mut wanted: mpsc::Receiver<Kind>, stop: CancellationToken) {
        let mounts = match watched() {
            Ok(mounts) => mounts,
            Err(error) => {
                tracing::warn!(%error, "mounts cannot be watched; no launcher is made ready beforehand");
                return;
            }
        };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = mounts.ready(Interest::PRIORITY) => {
                    let Ok(mut changed) = changed else { return };
                    changed.clear_ready();
                    let pool = self.pool.clone();
                    let _ = tasks::blocking(move || pool.dismiss_all()).await;
                }
                kind = wanted.recv() => {
                    let Some(kind) = kind else { return };
                    tokio::time::sleep(PAUSE).await;
                    if let Err(error) = self.fill(kind).await {
                        tracing::debug!(%error, "no launcher could be made ready beforehand");
                    }
                }
            }
        }
    }

    async fn fill(&self, kind: Kind) -> Result<(), SandboxError> {
        while let Some(generation) = self.pool.wants(kind) {
            let (ground, root) = (self.ground.clone(), self.root.clone());
            let prepared = tasks::blocking(move || {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let start = rustix::fs::open(root, flags, Mode::empty())?;
                let machine = Machine::look();
                ground.group("ready", None).map(|group| (start, machine, group))
            });
            let io = |source| SandboxError::Io { what: "making a launcher ready", source };
            let prepared = prepared.await.map_err(|error| io(io::Error::other(error)))?;
            let (start, machine, group): (OwnedFd, _, _) = prepared.map_err(io)?;
            let ground = self.ground.clone();
            let framed =
                self.spawner.run(move |server| ground.frame(server, kind, &start, group)).await??;
            let pool = self.pool.clone();
            let put = tasks::blocking(move || pool.put(kind, machine, generation, framed)).await;
            put.map_err(|error| io(io::Error::other(error)))?;
        }
        Ok(())
    }
}

const MOUNTS: &str = "/proc/self/mountinfo";

/// Ready when the list of mounts has changed.
fn watched() -> io::Result<AsyncFd<File>> {
    let mounts = File::open(MOUNTS)?;
    #[expect(unsafe_code, reason = "what is registered must keep its descriptor")]
    // SAFETY: a file has one descriptor, which is open for as long as the file is there.
    let watched = unsafe { AsyncFd::register_with_interest(mounts, Interest::PRIORITY) };
    Ok(watched?)
}

/// Whether the list of mounts has changed since this was last asked of it.
fn changed(mounts: &File) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut events = [PollFd::new(mounts, PollFlags::PRI)];
    let polled = rustix::event::poll(&mut events, Some(&now));
    polled.is_err() || events[0].revents().intersects(PollFlags::PRI | PollFlags::ERR)
}
