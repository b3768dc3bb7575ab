//! Looks at a tree of files and answers in JSON. Runs in the launcher, in the child that would otherwise
//! become a program and under the same limits: the daemon itself opens nothing by name in a workspace.
//! Single-threaded; the workspace is the current directory.
//!
//! Links are never followed, and every file is opened beneath the workspace by the kernel.

mod list;
mod search;
mod summary;

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use ignore::{DirEntry, WalkBuilder};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use crate::domain::{
    effect::WorkspacePath,
    policy::{FileOperation, PathRule, judge_path},
    tree::{Ignored, Incomplete, MOST_VISITED, TOO_MANY_FILES, TreeAnswer, TreeQuery},
};

/// What the launcher is asked to look at.
#[derive(Debug, Serialize, Deserialize)]
pub struct Look {
    /// The directory, relative to the workspace, resolved.
    pub path: WorkspacePath,
    pub query: TreeQuery,
    /// What may be read.
    pub rules: Vec<PathRule>,
}

/// Looks, and writes the answer.
pub fn answer(look: &Look, git: Option<BorrowedFd<'_>>, mut out: impl Write) -> io::Result<()> {
    let tree = Tree { root: open_here()?, look };
    let answer = match &look.query {
        TreeQuery::List(query) => list::list(&tree, query),
        TreeQuery::Search(query) => search::search(&tree, query),
        TreeQuery::Summarize(query) => summary::summarize(&tree, query, git),
    };
    serde_json::to_writer(&mut out, &answer)?;
    out.flush()
}

fn open_here() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(".", flags, Mode::empty())?)
}

/// The workspace and the question.
struct Tree<'a> {
    root: OwnedFd,
    look: &'a Look,
}

/// One thing met on the way.
struct Found {
    /// Relative to the workspace.
    path: String,
    /// Levels below the directory that is looked at; 1 is in it.
    depth: usize,
    kind: std::fs::FileType,
}

impl Tree<'_> {
    /// Visits all at and below the directory, by path, until `visit` says that it has seen enough or
    /// too much has been visited.
    fn walk(
        &self,
        ignored: Ignored,
        depth: Option<usize>,
        mut visit: impl FnMut(Found) -> Go,
    ) -> Option<Incomplete> {
        let above = match self.look.path.as_str() {
            "" => 0,
            path => path.split('/').count(),
        };
        let mut visited = 0;
        for entry in self.entries(ignored, depth.map(|depth| depth + above)) {
            // What cannot be read is as if it were not there: the model can do nothing about it.
            let Ok(entry) = entry else { continue };
            visited += 1;
            if visited > MOST_VISITED {
                return Some(Incomplete::new(
                    TOO_MANY_FILES,
                    format!(
                        "there are more than {MOST_VISITED} files and directories; look at a smaller \
                         directory"
                    ),
                ));
            }
            if let Some(found) = found(&entry, above)
                && visit(found) == Go::Enough
            {
                return None;
            }
        }
        None
    }

    /// From the workspace down, so that every `.gitignore` on the way counts; but only into the
    /// directory that is looked at.
    fn entries(
        &self,
        ignored: Ignored,
        depth: Option<usize>,
    ) -> impl Iterator<Item = Result<DirEntry, ignore::Error>> {
        let target = Path::new(".").join(self.look.path.as_str());
        let respect = ignored == Ignored::LeaveOut;
        WalkBuilder::new(".")
            .standard_filters(false)
            .ignore(respect)
            .git_ignore(respect)
            .git_exclude(respect)
            .require_git(false)
            .follow_links(false)
            .max_depth(depth)
            .sort_by_file_name(std::ffi::OsStr::cmp)
            .filter_entry(move |entry| {
                let path = entry.path();
                entry.file_name() != ".git"
                    && (path.starts_with(&target) || target.starts_with(path))
            })
            .build()
    }

    /// Opens a regular file that policy lets be read.
    fn open(&self, path: &str) -> Option<File> {
        let named = WorkspacePath::from_resolved(path);
        judge_path(&self.look.rules, FileOperation::Read, &named).ok()?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file =
            rustix::fs::openat2(self.root.as_fd(), path, flags, Mode::empty(), resolve).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then(|| file.into())
    }

    fn shown_path(&self) -> String {
        match self.look.path.as_str() {
            "" => ".".into(),
            path => path.into(),
        }
    }
}

/// Whether to go on walking.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    Enough,
}

/// None: a directory on the way, or the one that is looked at, or a name that is not UTF-8.
fn found(entry: &DirEntry, above: usize) -> Option<Found> {
    let depth = entry.depth().checked_sub(above).filter(|depth| *depth > 0)?;
    let path = entry.path().to_str()?;
    let path = path.strip_prefix("./").unwrap_or(path).to_owned();
    Some(Found { path, depth, kind: entry.file_type()? })
}

fn fault(reason: &str, message: String) -> TreeAnswer {
    TreeAnswer::Fault { reason: reason.into(), message }
}
