//! What a launcher is told to do: a call, put into an order with its descriptors.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Seek as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd},
};

use crate::{
    domain::policy::Orders,
    ports::SandboxError,
    sandbox::{
        egress,
        framed::{Framed, Kind, NotGiven, Started},
        order::{
            Access, Descriptor, Order, Rlimits, Terms, Tier, View, Watched, WayOut, Work, Workspace,
        },
        placeholders::{Held, Placeholders},
        programs::{Job, LaunchProof},
        walk::Look,
    },
};

/// Something to be done by a launcher, whichever it will be.
pub(super) struct Call {
    pub(super) proof: LaunchProof,
    pub(super) orders: Orders,
    pub(super) kind: Kind,
    /// For as long as it may run.
    held: Held,
}

/// An order for one launcher.
pub(super) struct Brief {
    order: Order,
    input: Option<File>,
}

impl Call {
    /// Holds what must not come to be in the workspace meanwhile. Blocking.
    pub(super) fn hold(
        placeholders: &Placeholders,
        proof: LaunchProof,
        orders: Orders,
    ) -> Result<Self, SandboxError> {
        let io = |what| move |source| SandboxError::Io { what, source };
        let (held, protected) = match proof.access {
            // Nothing can be made in it.
            Access::ReadOnly => (Held::default(), Vec::new()),
            Access::ReadWrite => placeholders
                .hold(&proof.workspace, &orders.protected)
                .map_err(io("protecting names of the workspace"))?,
        };
        let kind = Kind::of(&proof).map_err(io("looking at the workspace"))?;
        Ok(Self { proof, orders: Orders { protected, ..orders }, kind, held })
    }

    /// Whether letting go of it is work on the workspace.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// `enforced` is what groups do here; `below_start` is where the workspace lies for the launcher.
    pub(super) fn brief(
        &self,
        tier: Tier,
        enforced: &BTreeMap<&'static str, &'static str>,
        below_start: &str,
    ) -> io::Result<Brief> {
        let Self { proof, orders, .. } = self;
        let way_out = way_out(tier, orders);
        let input = match &proof.job {
            Job::Program { input: Some(input), .. } => Some(input_file(input)?),
            Job::Program { input: None, .. } | Job::Look { .. } => None,
        };
        let limits = &orders.limits;
        let unless = |resource, limit| (!enforced.contains_key(resource)).then_some(limit);
        let watched = Watched {
            memory_bytes: unless("memory", limits.memory_bytes),
            processes: unless("processes", limits.processes),
        };
        let cpu_ms = limits.cpu_seconds.saturating_mul(1000);
        let executable = proof.job.executable();
        let kinds =
            [executable.map(|_| Descriptor::Executable), input.as_ref().map(|_| Descriptor::Input)];
        let order = Order {
            work: work(proof, orders, way_out),
            executable: executable.map(|executable| executable.path.clone()),
            terms: Terms { wall_ms: limits.wall_ms, cpu_ms, watched },
            rlimits: Rlimits {
                cpu_seconds: limits.cpu_seconds,
                open_files: limits.open_files,
                file_bytes: limits.file_bytes,
                data_bytes: watched.memory_bytes,
            },
            view: view(proof, orders, below_start)?,
            way_out,
            descriptors: kinds.into_iter().flatten().collect(),
        };
        Ok(Brief { order, input })
    }
}

impl Brief {
    /// Gives a launcher this order, within a runtime. Blocking. Errors: nothing of it is left.
    pub(super) fn give(&self, call: &Call, to: Framed) -> Result<Started, NotGiven> {
        let executable = call.proof.job.executable().map(|executable| executable.open.as_fd());
        let input = self.input.as_ref().map(|input| input.as_fd());
        let descriptors: Vec<BorrowedFd<'_>> = [executable, input].into_iter().flatten().collect();
        to.give(&self.order, &descriptors)
    }
}

fn work(proof: &LaunchProof, orders: &Orders, way_out: WayOut) -> Work {
    match &proof.job {
        Job::Program { .. } => {
            let mut environment = orders.environment.clone();
            if way_out == WayOut::Proxy {
                environment.extend(egress::environment());
            }
            Work::Program { argv: orders.argv.clone(), environment }
        }
        Job::Look { path, query, .. } => {
            let (path, query) = (path.clone(), query.clone());
            Work::Look(Look { path, query, rules: orders.paths.clone() })
        }
    }
}

fn view(proof: &LaunchProof, orders: &Orders, below_start: &str) -> io::Result<View> {
    let workspace = rustix::fs::fstat(&proof.workspace)?;
    // Those of the system are there without being named.
    let program = proof.program.iter().filter(|path| !path.starts_with("/usr/"));
    Ok(View {
        workspace: Workspace {
            path: proof.path.clone(),
            below_start: below_start.to_owned(),
            device: workspace.st_dev,
            inode: workspace.st_ino,
        },
        protected: orders.protected.clone(),
        read_only: orders.read_only.iter().chain(program).cloned().collect(),
        writable: proof.writable.clone(),
        tmp_bytes: orders.limits.tmp_bytes,
    })
}

pub(super) fn way_out(tier: Tier, orders: &Orders) -> WayOut {
    match (tier, &orders.grant) {
        (Tier::Full | Tier::Root, Some(_)) => WayOut::Proxy,
        // In the machine's own network no socket is its alone.
        (Tier::Landlock, _) | (_, None) => WayOut::None,
    }
}

/// A file in memory that the program reads its input from.
fn input_file(input: &str) -> io::Result<File> {
    let file = rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Ok(file)
}
