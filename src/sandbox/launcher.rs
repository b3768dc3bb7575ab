//! Starts `agentd-sandbox` for one program, hands it its order and its descriptors, reads what comes
//! out, and sees to it that nothing of it is left. Never starts a program itself, never uses pre_exec.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{fs::OpenOptionsExt as _, net::UnixStream as StdUnixStream},
    },
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use tokio::net::{UnixStream, unix::pipe};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        budget,
        effect::{Exit, Ran},
        policy::Orders,
    },
    ports::{Company, OutputStream, SandboxError},
    sandbox::{
        capture::capture,
        cgroup::{Cgroups, Group},
        egress::{self, Egress, Outside},
        files::hex,
        order::{Access, Descriptor, End, Order, Rlimits, Tier, View, Watched, WayOut, Work},
        placeholders::{Held, Placeholders},
        programs::{Job, LaunchProof},
        report::report,
        spawner::{self, Spawner, input_file, send},
        walk::Look,
    },
    tasks,
};

/// How long leftovers of a dead daemon may take to die.
const LEFTOVERS: Duration = Duration::from_secs(10);
/// How long a launcher may take beyond the program's own time before it is killed itself.
const GRACE: Duration = Duration::from_secs(10);
/// The signal that a process gets at its limit of CPU time.
const CPU_TIME_IS_UP: i32 = libc::SIGXCPU;

/// Longest answer of a look that is read, in bytes.
const LOOK_BYTES: usize = 1 << 20;

/// Starts launchers.
#[derive(Debug)]
pub(super) struct Launcher {
    spawner: Spawner,
    shared: Arc<Shared>,
}

/// What every start needs.
#[derive(Debug)]
struct Shared {
    tier: Tier,
    /// Locked by every launcher for as long as a process of it lives.
    alive: File,
    cgroups: Cgroups,
    /// What they do here: resources, each with its mechanism.
    enforced: BTreeMap<&'static str, &'static str>,
    placeholders: Placeholders,
    outside: Outside,
    /// How many launches there were.
    started: AtomicU64,
}

impl Launcher {
    /// Blocking. `spawner` and the tier that it can reach have been found out before.
    pub(super) fn open(
        (spawner, tier): (Spawner, Tier),
        state_directory: &Path,
    ) -> Result<Self, SandboxError> {
        let instance = hex(&Sha256::digest(state_directory.as_os_str().as_encoded_bytes())[..4]);
        let cgroups = Cgroups::discover(format!("agentd-{instance}-"));
        let alive = wait_for_leftovers(&state_directory.join("sandbox.lock"))
            .map_err(|source| SandboxError::Io { what: "waiting for leftover programs", source })?;
        let (placeholders, started) = (Placeholders::default(), AtomicU64::default());
        let enforced = cgroups.enforces();
        let outside = Outside::new();
        let shared = Shared { tier, alive, cgroups, enforced, placeholders, outside, started };
        Ok(Self { spawner, shared: Arc::new(shared) })
    }

    pub(super) fn mechanisms(&self) -> BTreeMap<String, String> {
        let Shared { tier, enforced, .. } = &*self.shared;
        let by =
            |resource, otherwise| enforced.get(resource).copied().unwrap_or(otherwise).to_owned();
        let kill = match (enforced.contains_key("cpu"), tier) {
            (true, _) => "cgroup_v2_kill",
            (false, Tier::Full | Tier::Root) => "pid_namespace",
            (false, Tier::Landlock) => "subreaper",
        };
        let can_look = can_look();
        let network = match tier {
            Tier::Full | Tier::Root => "proxy",
            Tier::Landlock => "none",
        };
        BTreeMap::from([
            ("isolation".into(), tier.as_str().into()),
            ("cpu".into(), by("cpu", if can_look { "polled" } else { "rlimit" })),
            ("cpu_share".into(), by("cpu_share", "none")),
            ("memory".into(), by("memory", if can_look { "polled" } else { "rlimit" })),
            ("processes".into(), by("processes", if can_look { "polled" } else { "none" })),
            ("open_files".into(), "rlimit".into()),
            ("file_size".into(), "rlimit".into()),
            ("wall_time".into(), "launcher".into()),
            ("output".into(), "daemon".into()),
            ("network".into(), network.into()),
            ("kill".into(), kill.into()),
        ])
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
        Company { stop, heard, door }: Company<'_>,
    ) -> Result<Ended, SandboxError> {
        let wall = Duration::from_millis(orders.limits.wall_ms);
        if self.shared.tier < orders.least_isolation {
            return Ok(Ended::TooWeak(format!(
                "the policy wants isolation {} and this machine has {}; the operator can allow agentd user \
                 namespaces, or say less in tools.yaml",
                orders.least_isolation.as_str(),
                self.shared.tier.as_str()
            )));
        }
        let way_out = way_out(self.shared.tier, &orders);
        let egress = match (way_out, orders.grant.clone(), door) {
            (WayOut::Proxy, Some(grant), Some(door)) => {
                Some(Egress::new(grant, door, &self.shared.outside))
            }
            _ => None,
        };
        // What touches the workspace is done away from the thread that starts all launchers.
        let shared = self.shared.clone();
        let prepared = tasks::blocking(move || prepare(&shared, proof, orders));
        let prepared = prepared.await.map_err(|error| lost(error.to_string()))??;
        let shared = self.shared.clone();
        let started = self.spawner.run(move |program| start(program, &shared, prepared));
        let Started { mut child, group, held, control, stdout, stderr } = started.await??;
        let hear_stdout = |bytes: &[u8]| heard(OutputStream::Stdout, bytes);
        let hear_stderr = |bytes: &[u8]| heard(OutputStream::Stderr, bytes);
        let streams = async {
            tokio::join!(capture(stdout, keep, &hear_stdout), capture(stderr, keep, &hear_stderr))
        };
        let report = tokio::time::timeout(wall + GRACE, async {
            tokio::join!(report(control, stop, egress.as_ref()), streams)
        })
        .await;
        // Nothing may be left, however it went: the launcher is dead and its groups are gone after this.
        let cleaned = tasks::blocking(move || {
            let killed = if report.is_err() { child.kill() } else { Ok(()) };
            let waited = killed.and_then(|()| child.wait());
            let spent = group.spent();
            group.remove();
            drop(held);
            (report, waited, spent)
        });
        let (report, waited, spent) = cleaned.await.map_err(|error| lost(error.to_string()))?;
        waited.map_err(|source| SandboxError::Io { what: "waiting for the launcher", source })?;
        let (report, (stdout, stderr)) =
            report.map_err(|_| lost("it did not end in time and was killed".into()))?;
        let read = |source| SandboxError::Io { what: "reading a program's output", source };
        let ran = report?;
        let exit = match ran.end {
            End::NotStarted(message) => return Ok(Ended::NotStarted(message)),
            End::Lost(message) => return Err(lost(message)),
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
        };
        Ok(Ended::Ran(Box::new(Ran {
            exit,
            stdout: stdout.map_err(read)?,
            stderr: stderr.map_err(read)?,
            cpu_ms: spent.cpu_ms.unwrap_or(ran.cpu_ms),
            peak_memory_kib: spent.peak_memory_kib.unwrap_or(ran.peak_memory_kib),
            wall_ms: ran.wall_ms,
            isolation: self.shared.tier,
            network: egress.map(|egress| egress.used()).unwrap_or_default(),
            ran_out_of_memory: spent.out_of_memory,
        })))
    }
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

/// A launcher under way.
struct Started {
    child: Child,
    group: Group,
    held: Held,
    control: UnixStream,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

/// All that a start needs, made.
struct Prepared {
    proof: LaunchProof,
    orders: Orders,
    group: Group,
    held: Held,
}

fn prepare(shared: &Shared, proof: LaunchProof, orders: Orders) -> Result<Prepared, SandboxError> {
    let io = |what| move |source| SandboxError::Io { what, source };
    let (held, protected) = match proof.access {
        // Nothing can be made in it.
        Access::ReadOnly => (Held::default(), Vec::new()),
        Access::ReadWrite => shared
            .placeholders
            .hold(&proof.workspace, &orders.protected)
            .map_err(io("protecting names of the workspace"))?,
    };
    let orders = Orders { protected, ..orders };
    // Two looks at one run are two groups: the first to end must not end the other.
    let number = shared.started.fetch_add(1, Ordering::Relaxed);
    let group = shared
        .cgroups
        .create(&format!("{}-{number}", proof.label), &orders.limits)
        .map_err(io("making a cgroup for a program"))?;
    Ok(Prepared { proof, orders, group, held })
}

fn start(program: &Path, shared: &Shared, prepared: Prepared) -> Result<Started, SandboxError> {
    let Prepared { proof, orders, group, held } = prepared;
    match start_in(program, shared, &proof, orders, &group) {
        Ok((child, control, stdout, stderr)) => {
            Ok(Started { child, group, held, control, stdout, stderr })
        }
        Err(error) => {
            group.remove();
            Err(error)
        }
    }
}

type Ends = (Child, UnixStream, pipe::Receiver, pipe::Receiver);

fn start_in(
    program: &Path,
    shared: &Shared,
    proof: &LaunchProof,
    orders: Orders,
    group: &Group,
) -> Result<Ends, SandboxError> {
    let io = |what| move |source: io::Error| SandboxError::Io { what, source };
    let (mut child, control) = spawner::spawn(program, Stdio::piped)?;
    let ends = hand_over(&control, &mut child, shared, proof, orders, group)
        .and_then(|(stdout, stderr)| {
            control.set_nonblocking(true)?;
            Ok((UnixStream::from_std(control)?, stdout, stderr))
        })
        .map_err(io("handing an order to the launcher"));
    match ends {
        Ok((control, stdout, stderr)) => Ok((child, control, stdout, stderr)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn hand_over(
    control: &StdUnixStream,
    child: &mut Child,
    shared: &Shared,
    proof: &LaunchProof,
    orders: Orders,
    group: &Group,
) -> io::Result<(pipe::Receiver, pipe::Receiver)> {
    let groups = group.open()?;
    let input = match &proof.job {
        Job::Program { input: Some(input), .. } => Some(input_file(input)?),
        Job::Program { input: None, .. } | Job::Look { .. } => None,
    };
    let executable = match &proof.job {
        Job::Program { executable, .. } => Some(executable),
        Job::Look { git, .. } => git.as_ref(),
    };
    let mut descriptors: Vec<(Descriptor, BorrowedFd<'_>)> = vec![
        (Descriptor::Workspace, proof.workspace.as_fd()),
        (Descriptor::Alive, shared.alive.as_fd()),
    ];
    descriptors.extend(executable.map(|file| (Descriptor::Executable, file.as_fd())));
    descriptors.extend(input.as_ref().map(|file| (Descriptor::Input, file.as_fd())));
    descriptors.extend(groups.iter().map(|(kind, file)| (*kind, file.as_fd())));
    let order = order(shared, proof, orders, descriptors.iter().map(|(kind, _)| *kind).collect());
    send(control, &order, &descriptors.iter().map(|(_, fd)| *fd).collect::<Vec<_>>())?;
    let gone = || io::Error::other("a pipe of the launcher is missing");
    let stdout = child.stdout.take().ok_or_else(gone)?;
    let stderr = child.stderr.take().ok_or_else(gone)?;
    Ok((
        pipe::Receiver::from_owned_fd(OwnedFd::from(stdout))?,
        pipe::Receiver::from_owned_fd(OwnedFd::from(stderr))?,
    ))
}

fn order(
    shared: &Shared,
    proof: &LaunchProof,
    orders: Orders,
    descriptors: Vec<Descriptor>,
) -> Order {
    let limits = orders.limits;
    let way_out = way_out(shared.tier, &orders);
    let mut environment = orders.environment;
    if way_out == WayOut::Proxy {
        environment.extend(egress::environment());
    }
    let work = match &proof.job {
        Job::Program { .. } => Work::Program { argv: orders.argv, environment },
        Job::Look { path, query, .. } => {
            Work::Look(Look { path: path.clone(), query: query.clone(), rules: orders.paths })
        }
    };
    // Those of the system are there without being named.
    let program = proof.program.iter().filter(|path| !path.starts_with("/usr/"));
    let view = View {
        workspace: proof.path.clone(),
        access: proof.access,
        protected: orders.protected,
        read_only: orders.read_only.into_iter().chain(program.cloned()).collect(),
        writable: proof.writable.clone(),
        tmp_bytes: limits.tmp_bytes,
    };
    let unless = |resource, limit| (!shared.enforced.contains_key(resource)).then_some(limit);
    let watched = Watched {
        memory_bytes: unless("memory", limits.memory_bytes),
        processes: unless("processes", limits.processes),
    };
    let rlimits = Rlimits {
        cpu_seconds: limits.cpu_seconds,
        open_files: limits.open_files,
        file_bytes: limits.file_bytes,
        data_bytes: watched.memory_bytes,
    };
    let daemon = rustix::process::getpid().as_raw_nonzero().get();
    let (wall_ms, cpu_ms) = (limits.wall_ms, limits.cpu_seconds.saturating_mul(1000));
    let (tier, run_as) = (shared.tier, proof.run_as);
    Order {
        work,
        wall_ms,
        cpu_ms,
        watched,
        rlimits,
        tier,
        view,
        run_as,
        way_out,
        daemon,
        descriptors,
    }
}

/// Whether launchers see what processes use: the kernel lists children, and `/proc` hides nobody.
fn can_look() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hides = mounts.lines().filter(|line| line.contains(" - proc ")).any(|line| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        options.split(',').any(|option| option.starts_with("hidepid=") && option != "hidepid=0")
    });
    !hides && Path::new("/proc/thread-self/children").exists()
}

fn way_out(tier: Tier, orders: &Orders) -> WayOut {
    match (tier, &orders.grant) {
        (Tier::Full | Tier::Root, Some(_)) => WayOut::Proxy,
        // In the machine's own network no socket is its alone.
        (Tier::Landlock, _) | (_, None) => WayOut::None,
    }
}

pub(super) fn lost(message: String) -> SandboxError {
    SandboxError::Lost { message }
}
