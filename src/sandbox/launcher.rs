//! Has one program, or one look, done by `agentd-sandbox`, from the order to what came of it, and sees to it that
//! nothing of it is left. Never starts a program itself, never uses pre_exec. Which launcher does it: one that has
//! waited for it (`pool`), or a new one (`framed`); what it is told: `brief`.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        budget,
        effect::{Exit, Ran},
        hex::hex,
        policy::{Grant, Limits, Orders},
    },
    ports::{Company, OutputStream, SandboxError},
    sandbox::{
        brief::{Brief, Call, way_out},
        capture::capture,
        cgroup::{Cgroups, Group, Spent},
        egress::{Egress, Outside},
        fork_server::ForkServer,
        framed::{Framed, Kind, NotGiven, Started},
        mechanisms::mechanisms,
        order::{End, Tier, WayOut},
        placeholders::Placeholders,
        pool::{Keeper, Pool},
        programs::{Job, LaunchProof},
        report::report,
        spawner::Spawner,
    },
    tasks::{self, Tasks},
};

/// How long leftovers of a dead daemon may take to die.
const LEFTOVERS: Duration = Duration::from_secs(10);
/// How long a launcher may take beyond the program's own time before it is killed itself.
const GRACE: Duration = Duration::from_secs(10);
/// The signal that a process gets at its limit of CPU time.
const CPU_TIME_IS_UP: i32 = libc::SIGXCPU;

/// Longest answer of a look that is read, in bytes.
const LOOK_BYTES: usize = 1 << 20;

/// Starts launchers, and keeps some ready.
#[derive(Debug)]
pub(super) struct Launcher {
    spawner: Arc<Spawner>,
    /// Goes after the spawner: a cgroup in which a launcher is cannot be removed.
    ground: Arc<Ground>,
    /// What the groups do here: resources, each with its mechanism.
    enforced: Arc<BTreeMap<&'static str, &'static str>>,
    placeholders: Arc<Placeholders>,
    outside: Outside,
    /// The directory above all workspaces.
    root: PathBuf,
    ready: Option<Ready>,
    tasks: Tasks,
}

/// Launchers that are made beforehand, and what whoever makes them has to hear.
#[derive(Debug)]
struct Ready {
    pool: Arc<Pool>,
    unheard: Mutex<Option<mpsc::Receiver<Kind>>>,
}

/// What every launcher is started with.
#[derive(Debug)]
pub(super) struct Ground {
    tier: Tier,
    /// Locked by every launcher for as long as a process of it lives.
    alive: File,
    cgroups: Cgroups,
    /// How many launchers there were.
    started: AtomicU64,
}

impl Ground {
    /// Groups of their own for a launcher: the first of two looks at one run must not end the other.
    pub(super) fn group(&self, label: &str, limits: Option<&Limits>) -> io::Result<Group> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        self.cgroups.create(&format!("{label}-{number}"), limits)
    }

    /// Starts a launcher, on the thread for it.
    pub(super) fn frame(
        &self,
        server: &mut ForkServer,
        kind: Kind,
        start: impl AsFd,
        group: Group,
    ) -> Result<Framed, SandboxError> {
        Framed::start(server, (self.tier, kind), start.as_fd(), &self.alive, group)
    }
}

impl Launcher {
    /// Blocking. `spawner` and the tier that it can reach have been found out before. All workspaces lie below
    /// `root`; `ready` launchers of each kind wait.
    pub(super) fn open(
        (spawner, tier): (Spawner, Tier),
        state_directory: &Path,
        root: PathBuf,
        ready: u8,
    ) -> Result<Self, SandboxError> {
        let io = |what| move |source| SandboxError::Io { what, source };
        let instance = hex(&Sha256::digest(state_directory.as_os_str().as_encoded_bytes())[..4]);
        let cgroups = Cgroups::discover(format!("agentd-{instance}-"));
        let alive = wait_for_leftovers(&state_directory.join("sandbox.lock"))
            .map_err(io("waiting for leftover programs"))?;
        // In the group that the daemon is in from now on.
        spawner.prepare()?;
        let enforced = Arc::new(cgroups.enforces());
        // In the machine's own namespaces there is little to be made beforehand.
        let ready = match tier {
            Tier::Full | Tier::Root if ready > 0 => {
                let (pool, wanted) = Pool::new(ready.into()).map_err(io("listing mounts"))?;
                Some(Ready { pool: Arc::new(pool), unheard: Mutex::new(Some(wanted)) })
            }
            Tier::Full | Tier::Root | Tier::Landlock => None,
        };
        Ok(Self {
            spawner: Arc::new(spawner),
            ground: Arc::new(Ground { tier, alive, cgroups, started: AtomicU64::default() }),
            enforced,
            placeholders: Arc::default(),
            outside: Outside::new(),
            root,
            ready,
            tasks: Tasks::default(),
        })
    }

    pub(super) fn mechanisms(&self) -> BTreeMap<String, String> {
        mechanisms(self.ground.tier, &self.enforced)
    }

    /// Runs a program to its end. `stop` kills it, and its whole tree, early.
    pub(super) async fn run(
        &self,
        proof: LaunchProof,
        orders: Orders,
        company: Company<'_>,
    ) -> Result<Ended, SandboxError> {
        let keep = match &proof.job {
            Job::Program { .. } => budget::OUTPUT_TEXT_BYTES,
            // An answer is bounded where it is made; here it must be whole.
            Job::Look { .. } => LOOK_BYTES,
        };
        self.run_with(proof, orders, keep, company).await
    }

    /// Runs one of our own programs to its end, and keeps so much of each of its streams.
    pub(super) async fn run_kept(
        &self,
        proof: LaunchProof,
        orders: Orders,
        keep: usize,
    ) -> Result<Ended, SandboxError> {
        let company = Company { stop: &CancellationToken::new(), heard: &|_, _| {}, door: None };
        self.run_with(proof, orders, keep, company).await
    }

    async fn run_with(
        &self,
        proof: LaunchProof,
        orders: Orders,
        keep: usize,
        company: Company<'_>,
    ) -> Result<Ended, SandboxError> {
        let tier = self.ground.tier;
        if tier < orders.least_isolation {
            return Ok(Ended::TooWeak(format!(
                "the policy wants isolation {} and this machine has {}; the operator can allow agentd user \
                 namespaces, or say less in tools.yaml",
                orders.least_isolation.as_str(),
                tier.as_str()
            )));
        }
        let grant = match way_out(tier, &orders) {
            WayOut::Proxy => orders.grant.clone(),
            WayOut::None => None,
        };
        let sight = Sight { grant, keep, company };
        let (call, ready) = self.begin(proof, orders).await?;
        let ended = self.go_through_with(&call, ready, &sight).await;
        if call.holds() {
            blocking(move || {
                drop(call);
                Ok(())
            })
            .await?;
        }
        ended
    }

    async fn go_through_with(
        &self,
        call: &Arc<Call>,
        ready: Option<Started>,
        sight: &Sight<'_>,
    ) -> Result<Ended, SandboxError> {
        if let Some(started) = ready {
            let ended = self.see_through(started, call, sight).await?;
            // It has not begun. A launcher of our own starts in the workspace itself, from the machine as it is now,
            // and may do better.
            if !matches!(ended, Ended::NotStarted(_)) {
                return Ok(ended);
            }
        }
        let started = self.fresh(call).await?;
        self.see_through(started, call, sight).await
    }

    /// The call, and one that has waited for it and works on it now; none: there is none, or it takes no order.
    async fn begin(
        &self,
        proof: LaunchProof,
        orders: Orders,
    ) -> Result<(Arc<Call>, Option<Started>), SandboxError> {
        let (placeholders, pool) = (self.placeholders.clone(), self.pool());
        let (ground, enforced, root) =
            (self.ground.clone(), self.enforced.clone(), self.root.clone());
        // What touches the workspace is done away from the thread that starts all launchers.
        blocking(move || {
            let call = Call::hold(&placeholders, proof, orders)?;
            let below = Path::new(&call.proof.path).strip_prefix(root).ok().and_then(Path::to_str);
            let started = match pool.zip(below) {
                Some((pool, below)) => {
                    let brief = call.brief(ground.tier, &enforced, below).map_err(ordering)?;
                    ready(&pool, &ground, &call, &brief)?
                }
                None => None,
            };
            Ok((Arc::new(call), started))
        })
        .await
    }

    /// A new one, for this call alone.
    async fn fresh(&self, call: &Arc<Call>) -> Result<Started, SandboxError> {
        let brief = call.brief(self.ground.tier, &self.enforced, "").map_err(ordering)?;
        let (ground, of) = (self.ground.clone(), call.clone());
        let group = blocking(move || {
            let limits = &of.orders.limits;
            let group = ground.group(&of.proof.label, Some(limits)).map_err(limiting)?;
            match group.limit(limits) {
                Ok(()) => Ok(group),
                Err(error) => {
                    group.remove();
                    Err(limiting(error))
                }
            }
        })
        .await?;
        let (ground, call) = (self.ground.clone(), call.clone());
        let started = self.spawner.run(move |server| {
            let framed = ground.frame(server, call.kind, &call.proof.workspace, group)?;
            brief.give(&call, framed).map_err(|error| match error {
                NotGiven::Unread(error) => ordering(error),
                NotGiven::Lost(error) => lost(error.to_string()),
            })
        });
        started.await?
    }

    /// Those that wait; whoever makes them is started with the first call.
    fn pool(&self) -> Option<Arc<Pool>> {
        let Ready { pool, unheard } = self.ready.as_ref()?;
        let unheard = unheard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(wanted) = unheard {
            let (ground, spawner) = (self.ground.clone(), self.spawner.clone());
            let keeper = Keeper { pool: pool.clone(), spawner, ground, root: self.root.clone() };
            self.tasks.spawn("launchers", keeper.keep(wanted, self.tasks.token()));
        }
        Some(pool.clone())
    }

    /// From the order to what came of it.
    async fn see_through(
        &self,
        started: Started,
        call: &Call,
        sight: &Sight<'_>,
    ) -> Result<Ended, SandboxError> {
        let Started { process, group, control, stdout, stderr } = started;
        let Sight { grant, keep, company: Company { stop, heard, door } } = sight;
        let egress = grant.clone().zip(*door);
        let egress = egress.map(|(grant, door)| Egress::new(grant, door, &self.outside));
        let hear_stdout = |bytes: &[u8]| heard(OutputStream::Stdout, bytes);
        let hear_stderr = |bytes: &[u8]| heard(OutputStream::Stderr, bytes);
        let (limits, flooded) = (&call.orders.limits, stop.child_token());
        let streams = async {
            tokio::join!(
                capture(stdout, *keep, limits.stdout_bytes, &flooded, &hear_stdout),
                capture(stderr, *keep, limits.stderr_bytes, &flooded, &hear_stderr)
            )
        };
        let wall = Duration::from_millis(limits.wall_ms);
        let heard = tokio::time::timeout(wall + GRACE, async {
            tokio::join!(report(control, &flooded, egress.as_ref()), streams)
        })
        .await;
        let Ok((report, (stdout, stderr))) = heard else {
            // Nothing may be left, however it went.
            blocking(move || {
                process.kill();
                let _ = process.wait(None);
                group.remove();
                Ok(())
            })
            .await?;
            return Err(lost("it did not end in time and was killed".into()));
        };
        let spent = group.spent();
        // What was reported on is dead; the launcher itself is at its end, and so are its groups.
        tasks::in_background(move || {
            if let Err(error) = process.wait(None) {
                tracing::warn!(%error, "a launcher cannot be waited for");
            }
            group.remove();
        });
        let report = report?;
        let exit = match exit(report.end, &spent) {
            Ok(_) if flooded.is_cancelled() && !stop.is_cancelled() => Exit::Output,
            Ok(exit) => exit,
            Err(ended) => return ended,
        };
        let read = |source| SandboxError::Io { what: "reading a program's output", source };
        Ok(Ended::Ran(Box::new(Ran {
            exit,
            stdout: stdout.map_err(read)?,
            stderr: stderr.map_err(read)?,
            cpu_ms: spent.cpu_ms.unwrap_or(report.cpu_ms),
            peak_memory_kib: spent.peak_memory_kib.unwrap_or(report.peak_memory_kib),
            wall_ms: report.wall_ms,
            isolation: self.ground.tier,
            network: egress.map(|egress| egress.used()).unwrap_or_default(),
            ran_out_of_memory: spent.out_of_memory,
        })))
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.tasks.token().cancel();
        if let Some(Ready { pool, .. }) = &self.ready {
            pool.close();
        }
    }
}

/// One of those that wait, with this order.
fn ready(
    pool: &Pool,
    ground: &Ground,
    call: &Call,
    brief: &Brief,
) -> Result<Option<Started>, SandboxError> {
    let limits = &call.orders.limits;
    let Some(framed) = pool.take(call.kind, limits, &ground.cgroups) else { return Ok(None) };
    match framed.group().limit(limits) {
        Ok(()) => match brief.give(call, framed) {
            Ok(started) => Ok(Some(started)),
            Err(NotGiven::Unread(_)) => Ok(None),
            Err(NotGiven::Lost(error)) => Err(lost(error.to_string())),
        },
        Err(error) => {
            framed.dismiss();
            Err(limiting(error))
        }
    }
}

/// How a call is seen, whichever launcher does it.
struct Sight<'a> {
    grant: Option<Grant>,
    /// So much of each stream.
    keep: usize,
    company: Company<'a>,
}

/// How the program ended; or that it did not run.
fn exit(end: End, spent: &Spent) -> Result<Exit, Result<Ended, SandboxError>> {
    Ok(match end {
        End::NotStarted(message) => return Err(Ok(Ended::NotStarted(message))),
        End::Lost(message) => return Err(Err(lost(message))),
        End::TimedOut => Exit::TimedOut,
        End::Stopped => Exit::Stopped,
        // A program that copes with the death of one of its processes has ended well.
        End::Signal(_) if spent.out_of_memory => Exit::OutOfMemory,
        End::Code(code) if code != 0 && spent.out_of_memory => Exit::OutOfMemory,
        End::Memory => Exit::OutOfMemory,
        End::Processes => Exit::Processes,
        End::CpuTime => Exit::CpuTime,
        // Each process has the whole limit besides: one alone can be the first to reach it.
        End::Signal(CPU_TIME_IS_UP) => Exit::CpuTime,
        End::Code(code) if code != 0 && spent.refused_processes => Exit::Processes,
        End::Code(code) => Exit::Code(code),
        End::Signal(signal) => Exit::Signal(signal),
    })
}

/// How a launcher's work ended.
pub(super) enum Ended {
    Ran(Box<Ran>),
    /// Nothing was done; the text says why.
    NotStarted(String),
    /// The same, since it could not be kept apart as well as it must be.
    TooWeak(String),
}

/// Waits until no launcher of an earlier daemon is left: each of them holds the lock until all its
/// processes are dead, and dies with its daemon.
fn wait_for_leftovers(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    let step = Duration::from_millis(10);
    for _ in 0..LEFTOVERS.as_millis() / step.as_millis() {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                flock(&file, FlockOperation::LockShared)?;
                return Ok(file);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(step),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "programs started by the daemon before this one are still running; end them, then start again",
    ))
}

/// Blocking work, whose own failure is one to tell.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    tasks::blocking(work).await.map_err(|error| lost(error.to_string()))?
}

fn limiting(source: io::Error) -> SandboxError {
    SandboxError::Io { what: "making a cgroup for a program", source }
}

fn ordering(source: io::Error) -> SandboxError {
    SandboxError::Io { what: "handing an order to the launcher", source }
}

pub(super) fn lost(message: String) -> SandboxError {
    SandboxError::Lost { message }
}
