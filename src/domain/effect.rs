//! What a tool call would do to the world, as data, before it is done; and what was found when it was
//! resolved. Nothing here touches the world: see `ports::Sandbox`.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::domain::{
    ids::RuleId,
    tree::{TreeAnswer, TreeQuery},
};

/// What a tool call wants, in the model's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    ReadFile {
        path: String,
        lines: Lines,
    },
    WriteFile {
        path: String,
        content: Arc<str>,
    },
    EditFile {
        path: String,
        edit: Edit,
    },
    /// Something is to be found out about the tree at and below a directory.
    Look {
        path: String,
        query: TreeQuery,
    },
    Spawn {
        argv: Vec<String>,
    },
    /// The command of a tool that the operator declared.
    RunDeclared {
        /// Bare name, or absolute path.
        program: String,
        argv: Vec<String>,
        /// The call's arguments, which the command reads from its standard input.
        input: Arc<str>,
    },
}

/// Which lines of a file are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// All; of a long file the head and the tail.
    All,
    /// From `first` on, 1 being the first; `last` included.
    Range { first: u64, last: u64 },
}

/// An exact replacement in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub old: Arc<str>,
    pub new: Arc<str>,
    pub places: Places,
}

/// How often the old text may stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// Once; anything else is an error.
    One,
    /// Once or more; each is replaced.
    All,
}

/// Path of a file relative to the workspace, resolved: no `.`, no `..`, no symlink left in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkspacePath(String);

impl WorkspacePath {
    /// Takes what the kernel said the path is. Empty is the workspace itself.
    pub fn from_resolved(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkspacePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for WorkspacePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// What policy is asked about: the effect with every name replaced by what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum Facts {
    ReadFile {
        path: WorkspacePath,
        bytes: u64,
    },
    WriteFile {
        path: WorkspacePath,
        bytes: u64,
        /// SHA-256 of the new content, 64 hexadecimal digits.
        sha256: String,
    },
    EditFile {
        path: WorkspacePath,
        /// SHA-256 of the file before the edit and of what the edit would make of it: by these a lost
        /// attempt is known. Absent where the edit does not fit the file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hashes: Option<EditHashes>,
    },
    Look {
        path: WorkspacePath,
        query: TreeQuery,
    },
    Spawn {
        argv: Vec<String>,
        /// Absolute path of the program that `argv[0]` stands for.
        executable: String,
        /// SHA-256 of that program, 64 hexadecimal digits.
        sha256: String,
    },
    RunDeclared {
        argv: Vec<String>,
        executable: String,
        sha256: String,
    },
}

/// A file before and after an edit: SHA-256 each, 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EditHashes {
    pub before: String,
    pub after: String,
    pub replacements: u64,
}

impl Facts {
    /// The facts as they may be told of a call that was refused: nothing of a file's content.
    pub fn without_content(mut self) -> Self {
        if let Self::EditFile { hashes, .. } = &mut self {
            *hashes = None;
        }
        self
    }
}

/// Something that policy can be asked about.
pub trait Factual {
    fn facts(&self) -> &Facts;
}

impl Factual for Facts {
    fn facts(&self) -> &Facts {
        self
    }
}

/// What a tool's effect gave back, before a tool turns it into words for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EffectResult {
    Read {
        path: WorkspacePath,
        content: Captured,
        file_bytes: u64,
        /// Lines of the whole file, and the number of the first one shown; none when the content is not
        /// text.
        lines: Option<ShownLines>,
    },
    Written {
        path: WorkspacePath,
        bytes: u64,
        before: Before,
    },
    Edited {
        path: WorkspacePath,
        bytes: u64,
        replacements: u64,
        before: Before,
    },
    Looked(TreeAnswer),
    Ran(Ran),
    /// The world said no (no such file, disk full). `reason` is stable, upper case; both are for the
    /// model.
    Failed {
        reason: &'static str,
        message: String,
    },
}

/// Which lines of a file were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownLines {
    pub first: u64,
    /// 0 when none is shown.
    pub last: u64,
    pub total: u64,
}

/// What a written file was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    Absent,
    Replaced,
    /// The content was already there, from an attempt that a crash cut off.
    AlreadyDone,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    pub exit: Exit,
    pub stdout: Captured,
    pub stderr: Captured,
    /// CPU time of the whole process tree, in milliseconds.
    pub cpu_ms: u64,
    /// Largest memory of the whole tree at one time, in KiB; where no cgroup tells it, that of any single
    /// process.
    pub peak_memory_kib: u64,
    pub wall_ms: u64,
    pub isolation: Isolation,
    pub network: NetworkUse,
    /// One of its processes at least was killed for want of memory, also where the program coped with that.
    pub ran_out_of_memory: bool,
}

/// What a program did with what it may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkUse {
    /// Connections and requests that were let through.
    pub opened: u64,
    pub refused: u64,
    /// Bytes to and from all that it reached.
    pub sent: u64,
    pub received: u64,
    /// Why the first of those that were refused were, one line each.
    pub refusals: Vec<String>,
    /// The first addresses that were dialled, each with what for.
    pub dialled: Vec<String>,
}

/// How a program is kept apart from the machine, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// In the machine's own namespaces: Landlock and seccomp alone.
    Landlock,
    /// In namespaces of its own but for users, which takes a daemon that is root.
    Root,
    /// In namespaces of its own, users included.
    Full,
}

impl Isolation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Landlock => "landlock",
            Self::Root => "root",
            Self::Full => "full",
        }
    }
}

/// Why a program is no longer running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// The wall-clock limit was reached; the whole tree was killed.
    TimedOut,
    /// The memory limit was reached; the kernel killed it.
    OutOfMemory,
    /// The limit on CPU time, of all its processes together, was reached; the whole tree was killed.
    CpuTime,
    /// It failed, and had been refused more processes than its limit.
    Processes,
    /// It wrote more to one of its streams than it may; the whole tree was killed.
    Output,
    /// The caller stopped it.
    Stopped,
}

/// One stream of output: its head and its tail, when it was longer than the cap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Captured {
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
    /// Bytes between head and tail that were counted and dropped.
    pub dropped: u64,
}

impl Captured {
    /// What was kept, in one piece.
    pub fn whole(&self) -> Vec<u8> {
        [self.head.as_slice(), &self.tail].concat()
    }
}

/// Why an effect could not be resolved to facts. The model hears it; nothing was touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unresolved {
    /// A built-in rule forbids it whatever the policy says.
    Refused { rule: RuleId, message: String },
    /// There is no such thing. `reason` is stable, upper case.
    Missing { reason: &'static str, message: String },
}
