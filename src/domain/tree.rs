//! What is asked about a tree of files, and what comes of it, in data. Who walks: `sandbox::walk`, in the
//! launcher, never in the daemon.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Files and directories that one walk visits at most.
pub const MOST_VISITED: usize = 200_000;
/// Largest answer of a walk, in bytes of JSON or so.
pub const ANSWER_BYTES: usize = 48 << 10;
/// Most entries of a listing.
pub const MOST_ENTRIES: usize = 1000;
/// Most matching lines of a search.
pub const MOST_MATCHES: usize = 1000;

/// Reason of an answer that stopped because it had visited [`MOST_VISITED`].
pub const TOO_MANY_FILES: &str = "TOO_MANY_FILES";
/// Reason of an answer that shows as many as it may.
pub const TOO_MANY_RESULTS: &str = "TOO_MANY_RESULTS";
/// Reason of an answer that would be longer than it may.
pub const TOO_LONG: &str = "TOO_LONG";

/// What is to be found out about a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "look", rename_all = "snake_case")]
pub enum TreeQuery {
    List(ListQuery),
    Search(SearchQuery),
    Summarize(SummaryQuery),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListQuery {
    /// How many levels below the directory are shown; 1 is the directory itself.
    pub depth: usize,
    pub ignored: Ignored,
}

/// What becomes of files that `.gitignore` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ignored {
    LeaveOut,
    Include,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchQuery {
    pub pattern: String,
    pub syntax: Syntax,
    pub case: Case,
    /// Globs a file's path must match one of; none: every file.
    pub globs: Vec<String>,
    /// Lines shown around a match.
    pub context_lines: usize,
    pub most: usize,
    pub ignored: Ignored,
}

/// How a pattern is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Syntax {
    Regex,
    Literal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Case {
    Sensitive,
    Insensitive,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryQuery {
    /// Largest summary, in bytes of JSON.
    pub bytes: usize,
}

/// What a walk found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "found", rename_all = "snake_case")]
pub enum TreeAnswer {
    Listing(Listing),
    Matches(Matches),
    Summary(Summary),
    /// The question itself cannot be answered; `reason` is stable, upper case.
    Fault {
        reason: String,
        message: String,
    },
}

/// The entries of a directory, by path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Listing {
    pub path: String,
    pub entries: Vec<ListedEntry>,
    /// Why there is more than is shown; absent when all is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<Incomplete>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListedEntry {
    /// Relative to the workspace.
    pub path: String,
    pub kind: EntryKind,
    /// Size of a file in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    File,
    Directory,
    /// A symbolic link; it is not followed.
    Link,
    Other,
}

/// The lines that a search found, by path and line.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Matches {
    pub matches: Vec<Match>,
    pub files_searched: u64,
    /// Files that were not searched: not text, too large, or off limits by policy.
    pub files_skipped: u64,
    /// Why there is more than is shown; absent when all is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<Incomplete>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Match {
    /// Relative to the workspace.
    pub path: String,
    /// From 1.
    pub line: u64,
    pub text: String,
    /// Lines before it, where context was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<String>,
    /// Lines after it, where context was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
}

/// Why an answer is not the whole one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Incomplete {
    /// Stable, upper case: see the constants of this module.
    pub reason: String,
    /// What to do to see the rest.
    pub message: String,
}

/// What a tree is about, at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    pub path: String,
    pub files: u64,
    pub bytes: u64,
    /// By bytes, largest first.
    pub languages: Vec<Language>,
    /// Directories down to two levels, by path, with what lies at and below them.
    pub layout: Vec<Directory>,
    /// Manifests, main programs and the like, by path.
    pub entry_points: Vec<EntryPoint>,
    /// Largest files, largest first.
    pub largest: Vec<ListedEntry>,
    /// Newest first; empty where there is no git repository.
    pub commits: Vec<Commit>,
    /// Why there is more than is shown; absent when all is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<Incomplete>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Language {
    pub name: String,
    pub files: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Directory {
    pub path: String,
    pub files: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EntryPoint {
    pub path: String,
    /// What it is: "Cargo package", "npm package", "main program".
    pub what: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Commit {
    /// Abbreviated hash.
    pub id: String,
    /// Day of the author's date.
    pub date: String,
    pub subject: String,
}

impl Incomplete {
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}
