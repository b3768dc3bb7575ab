//! What the daemon and `agentd-sandbox` say to each other. Shapes, and how they are read.
//!
//! The fork server's standard input is a socket, over which the daemon asks for launchers and gives each a socket of
//! its own. Over that the daemon sends a frame, from which a world is built that fits any
//! work of its kind, and then, at once or much later, one order. Each is its length (4 bytes, little endian),
//! then JSON, with descriptors beside the first byte. The launcher answers with a JSON report, and ends. If the daemon
//! closes the socket, or dies, the launcher kills everything.

use std::{collections::BTreeMap, io};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use crate::domain::effect::Isolation as Tier;
use crate::sandbox::walk::Look;

/// Longest order, and longest frame, in bytes.
pub const ORDER_BYTES: usize = 4 << 20;

/// Reads one order, or frame. Errors: it is too long, breaks off, or is none.
pub fn read<T: DeserializeOwned>(mut from: impl io::Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > ORDER_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the order is too long"));
    }
    let mut order = vec![0; length];
    from.read_exact(&mut order)?;
    Ok(serde_json::from_slice(&order)?)
}

/// What comes with descriptors.
pub trait Message: Serialize + DeserializeOwned {
    /// What the descriptors stand for, in the order they are sent.
    fn descriptors(&self) -> &[Descriptor];
}

/// What the fork server is asked for: a launcher, with these ends of its socket and pipes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Launch {}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Launched {
    /// Why there is no launcher; none: there is one.
    pub failure: Option<String>,
}

/// What a launcher is told first: what work it is for, of which it can do one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Frame {
    pub tier: Tier,
    pub access: Access,
    /// Whom the work acts as; none: the daemon's user.
    pub owner: Option<Owner>,
    pub descriptors: Vec<Descriptor>,
}

/// A user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub user: u32,
    pub group: u32,
}

/// What to do, and within which limits.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub work: Work,
    /// Where the executable lay when it was opened.
    pub executable: Option<String>,
    pub terms: Terms,
    pub rlimits: Rlimits,
    pub view: View,
    pub way_out: WayOut,
    pub descriptors: Vec<Descriptor>,
}

/// Limits that the launcher keeps itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub wall_ms: u64,
    /// CPU time of all processes together.
    pub cpu_ms: u64,
    pub watched: Watched,
}

impl Message for Launch {
    fn descriptors(&self) -> &[Descriptor] {
        &[Descriptor::Control, Descriptor::Stdout, Descriptor::Stderr]
    }
}

impl Message for Launched {
    fn descriptors(&self) -> &[Descriptor] {
        if self.failure.is_none() { &[Descriptor::Process] } else { &[] }
    }
}

impl Message for Frame {
    fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }
}

impl Message for Terms {
    fn descriptors(&self) -> &[Descriptor] {
        &[Descriptor::Mounts]
    }
}

impl Message for Order {
    fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }
}

/// What the work sees of the machine besides the system's own directories. Everything else is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub workspace: Workspace,
    /// Names in the workspace, without `/`, that nothing may make, change or move away.
    pub protected: Vec<String>,
    /// Absolute paths, to be read; what is not there is left out.
    pub read_only: Vec<String>,
    /// Absolute paths of our own, to be written.
    pub writable: Vec<String>,
    /// Most that may lie in `/tmp`.
    pub tmp_bytes: u64,
}

/// A directory, found by its path below [`Descriptor::Start`] and known by its inode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// Absolute, here as there.
    pub path: String,
    /// Empty: it is where one starts.
    pub below_start: String,
    pub device: u64,
    pub inode: u64,
}

/// What may be done with the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// Whether the work can reach anything outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WayOut {
    None,
    /// By a socket that listens at [`PROXY_PORT`] of the work's own 127.0.0.1, and is answered by the daemon.
    /// It comes over the launcher's socket, with [`LISTENING`], before the work starts.
    Proxy,
}

/// See [`WayOut::Proxy`].
pub const PROXY_PORT: u16 = 3128;
/// The byte that comes with a listening socket. No report begins with it.
pub const LISTENING: u8 = b'L';

/// What the confined child does.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// It becomes a program.
    Program { argv: Vec<String>, environment: BTreeMap<String, String> },
    /// It looks at the workspace itself, and writes the answer to its standard output.
    Look(Look),
    /// Nothing: whether the walls stand is all that is asked.
    Nothing,
}

/// Limits that the kernel keeps for each process; none: unlimited.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rlimits {
    pub cpu_seconds: u64,
    pub open_files: u64,
    pub file_bytes: u64,
    /// Set where no cgroup limits memory.
    pub data_bytes: Option<u64>,
}

/// Limits on all processes together that the launcher keeps by looking again and again, since no cgroup does;
/// none: one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Watched {
    pub memory_bytes: Option<u64>,
    pub processes: Option<u64>,
}

/// What a descriptor stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Descriptor {
    /// The launcher's end of its socket to the daemon.
    Control,
    Stdout,
    Stderr,
    /// A process, as `pidfd_open` gives it.
    Process,
    /// The workspace, or a directory above it.
    Start,
    /// The program; for a look, git, where there is one.
    Executable,
    /// What the program reads from its standard input.
    Input,
    /// Held by the launcher until it has seen the last process dead: whoever waits for its lock waits
    /// for that, unless the launcher itself was killed.
    Alive,
    /// A `cgroup.procs` to enter.
    CgroupProcs,
    /// A `cgroup.kill` that kills all within.
    CgroupKill,
    /// A `cpu.stat` that counts all within.
    CgroupCpu,
    /// The work's mount namespace, among the launcher's own processes: whoever holds it puts off its end.
    Mounts,
}

/// Most descriptors of an order.
pub const MOST_DESCRIPTORS: usize = 12;

/// How it ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub end: End,
    pub cpu_ms: u64,
    pub peak_memory_kib: u64,
    pub wall_ms: u64,
}

/// Why the program is no longer running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    Code(i32),
    Signal(i32),
    TimedOut,
    /// All processes together used up their CPU time.
    CpuTime,
    /// They had more memory together than they may, and no cgroup saw it.
    Memory,
    /// There were more of them than there may be, and no cgroup saw it.
    Processes,
    /// The daemon closed the socket.
    Stopped,
    /// The launcher could not watch it; nobody knows what it did. Nothing of it is left.
    Lost(String),
    /// The program never started.
    NotStarted(String),
}
