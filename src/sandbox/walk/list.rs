//! What lies in a directory.

use std::fs::FileType;

use crate::{
    domain::tree::{
        ANSWER_BYTES, EntryKind, Incomplete, ListQuery, ListedEntry, Listing, MOST_ENTRIES,
        TOO_LONG, TOO_MANY_RESULTS, TreeAnswer,
    },
    sandbox::walk::{Found, Go, Tree},
};

pub(super) fn list(tree: &Tree<'_>, query: &ListQuery) -> TreeAnswer {
    let mut entries = Vec::new();
    let mut bytes = 0;
    let mut full = None;
    let unfinished = tree.walk(query.ignored, Some(query.depth), |found| {
        bytes += found.path.len() + 48;
        full = match entries.len() {
            MOST_ENTRIES => Some(TOO_MANY_RESULTS),
            _ if bytes > ANSWER_BYTES => Some(TOO_LONG),
            _ => None,
        };
        if full.is_some() {
            return Go::Enough;
        }
        entries.push(listed(tree, found));
        Go::On
    });
    let shown = entries.len();
    let cut = full.map(|reason| {
        Incomplete::new(
            reason,
            format!(
                "only the first {shown} are shown; list a directory below it, or with less depth"
            ),
        )
    });
    TreeAnswer::Listing(Listing {
        path: tree.shown_path(),
        entries,
        incomplete: unfinished.or(cut),
    })
}

fn listed(tree: &Tree<'_>, found: Found) -> ListedEntry {
    let kind = kind(found.kind);
    let bytes = (kind == EntryKind::File).then(|| size(tree, &found.path)).flatten();
    ListedEntry { path: found.path, kind, bytes }
}

pub(super) fn kind(kind: FileType) -> EntryKind {
    match kind {
        kind if kind.is_file() => EntryKind::File,
        kind if kind.is_dir() => EntryKind::Directory,
        kind if kind.is_symlink() => EntryKind::Link,
        _ => EntryKind::Other,
    }
}

/// Size of a file, which may be gone.
pub(super) fn size(tree: &Tree<'_>, path: &str) -> Option<u64> {
    let stat = rustix::fs::statat(&tree.root, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).ok()?;
    u64::try_from(stat.st_size).ok()
}
