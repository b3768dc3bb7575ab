//! The one thread that starts launchers, and what is said to a launcher when it starts. Permanent, since
//! the kernel takes the death of the thread that started a child for the death of its parent.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    ports::SandboxError,
    sandbox::{
        fork_server::{ForkServer, Forked},
        order::{
            Access, Descriptor, End, Frame, Order, Owner, Report, Rlimits, Terms, Tier, View,
            Watched, WayOut, Work, Workspace,
        },
        wire,
    },
};

/// Starts that may wait; who finds no room waits for it on a thread of its own.
const QUEUE: usize = 64;
/// How long a trial may take.
const TRIAL: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce(&mut ForkServer) + Send>;

/// Runs what starts launchers.
#[derive(Debug)]
pub(super) struct Spawner {
    /// None: no more are taken.
    jobs: Option<mpsc::SyncSender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Spawner {
    /// Starts the thread, for the launcher at this path.
    pub(super) fn start(program: PathBuf) -> Result<Self, SandboxError> {
        if !program.is_file() {
            return Err(SandboxError::Launcher {
                launcher: program.display().to_string(),
                source: io::ErrorKind::NotFound.into(),
            });
        }
        let (jobs, queue) = mpsc::sync_channel::<Job>(QUEUE);
        // The server does not start where we do.
        let program = std::path::absolute(program)
            .map_err(|source| SandboxError::Io { what: "finding the launcher", source })?;
        let thread = thread::Builder::new()
            .name("sandbox-spawner".into())
            .spawn(move || {
                let mut server = ForkServer::new(program);
                queue.iter().for_each(|job| job(&mut server));
            })
            .map_err(|source| SandboxError::Io { what: "starting a thread", source })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `job` on the thread, which has the launchers. Gives what it gave.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut ForkServer) -> T + Send + 'static,
    ) -> Result<T, SandboxError> {
        let (reply, answer) = oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        let job: Job = Box::new(move |server| {
            let _guard = runtime.enter();
            drop(reply.send(job(server)));
        });
        self.queue(job).await?;
        answer.await.map_err(|_| ended())
    }

    async fn queue(&self, job: Job) -> Result<(), SandboxError> {
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        match jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(mpsc::TrySendError::Disconnected(_)) => Err(ended()),
            Err(mpsc::TrySendError::Full(job)) => {
                let jobs = jobs.clone();
                let sent = crate::tasks::blocking(move || jobs.send(job)).await;
                sent.map_err(|_| ended())?.map_err(|_| ended())
            }
        }
    }

    /// The strongest tier in which work can be done here, found by doing some, and why no stronger one.
    /// Blocking. Errors: there is none, or no launcher.
    pub(super) fn strongest(&self, workspace: &Path) -> Result<(Tier, Vec<String>), SandboxError> {
        let workspace = workspace.to_owned();
        self.run_blocking(move |server| {
            let found = strongest(server, &workspace);
            // For what comes next the daemon may have to be alone in its cgroup.
            server.stop();
            found
        })
    }

    /// Starts what launchers are forked from. Blocking.
    pub(super) fn prepare(&self) -> Result<(), SandboxError> {
        self.run_blocking(ForkServer::prepare)
    }

    fn run_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut ForkServer) -> Result<T, SandboxError> + Send + 'static,
    ) -> Result<T, SandboxError> {
        let (reply, answer) = mpsc::channel();
        let job: Job = Box::new(move |server| drop(reply.send(job(server))));
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        jobs.send(job).map_err(|_| ended())?;
        answer.recv().map_err(|_| ended())?
    }
}

impl Drop for Spawner {
    /// Blocking. No launcher is left that ends with the thread.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ended() -> SandboxError {
    SandboxError::Lost { message: "the thread that starts launchers has ended".into() }
}

/// See [`Spawner::strongest`].
fn strongest(
    server: &mut ForkServer,
    workspace: &Path,
) -> Result<(Tier, Vec<String>), SandboxError> {
    let mut refusals = Vec::new();
    for tier in [Tier::Full, Tier::Root, Tier::Landlock] {
        // Whoever has no launcher has learnt nothing of the tier.
        match attempt(server.fork()?, tier, workspace) {
            Ok(()) => return Ok((tier, refusals)),
            Err(error) => refusals.push(format!("{}: {error}", tier.as_str())),
        }
    }
    Err(SandboxError::NoTier { refusals: refusals.join("; ") })
}

/// Puts up the walls of a tier around nothing.
fn attempt(forked: Forked, tier: Tier, workspace: &Path) -> io::Result<()> {
    let Forked { process, control, .. } = forked;
    let place = File::open(workspace)?;
    let metadata = place.metadata()?;
    let owner = Owner { user: metadata.uid(), group: metadata.gid() };
    let frame = Frame {
        tier,
        access: Access::ReadOnly,
        owner: (rustix::process::geteuid().is_root() && owner.user != 0).then_some(owner),
        descriptors: vec![Descriptor::Start],
    };
    let order = Order {
        work: Work::Nothing,
        executable: None,
        terms: Terms { wall_ms: 5000, cpu_ms: 5000, watched: Watched::default() },
        rlimits: Rlimits { cpu_seconds: 5, open_files: 64, file_bytes: 0, data_bytes: None },
        view: View {
            workspace: Workspace {
                path: workspace.display().to_string(),
                below_start: String::new(),
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            protected: Vec::new(),
            read_only: Vec::new(),
            writable: Vec::new(),
            tmp_bytes: 1 << 20,
        },
        way_out: WayOut::None,
        descriptors: Vec::new(),
    };
    let sent = wire::send(&control, &frame, &[place.as_fd()]);
    let said = sent.and_then(|()| wire::send(&control, &order, &[])).and_then(|()| {
        control.set_read_timeout(Some(TRIAL))?;
        let mut text = Vec::new();
        (&control).take(64 << 10).read_to_end(&mut text)?;
        Ok(serde_json::from_slice::<Report>(&text)?)
    });
    if said.is_err() {
        process.kill();
    }
    process.wait(None)?;
    match said?.end {
        End::Code(0) => Ok(()),
        End::NotStarted(message) | End::Lost(message) => Err(io::Error::other(message)),
        other => Err(io::Error::other(format!("a trial ended with {other:?}"))),
    }
}
