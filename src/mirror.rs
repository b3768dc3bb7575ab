//! The journal's mirror: files of lines in the state directory, one for each daemon, which others can read, ship and
//! keep. It follows the journal and nothing follows it: what a crash left out is made up for by the next daemon, and
//! without the files nothing is lost. What a line is: `jsonl`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::ids::{Position, Timestamp},
    fail_point, jsonl,
    ports::{AuditFilter, Clock, EntryView, Journal, JournalError, PageLimit},
    tasks,
};

/// Name of the directory in the state directory.
pub const DIRECTORY: &str = "audit";
/// Entries that are written together.
const PAGE: usize = 512;
/// How long the mirror may be behind: its syncs must not slow the journal's down.
const PACE: Duration = Duration::from_millis(200);
/// How long it rests after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Files, the newest by name, whose last lines are looked at.
const LOOKED_AT: usize = 256;
/// Bytes that are read at once from behind.
const BLOCK: u64 = 64 << 10;

/// Why the mirror is not written.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("{path} cannot be written")]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("entry {position} of the journal cannot be written as a line")]
    Unwritable { position: Position },
}

/// One daemon's mirror.
pub struct Mirror {
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    directory: PathBuf,
    /// This daemon's file, and the position of its first entry.
    own: PathBuf,
    first: Position,
    files: Mutex<Files>,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mirror")
    }
}

/// How far it has come, and where.
#[derive(Debug)]
struct Written {
    path: PathBuf,
    /// Length of the file as far as it is whole.
    length: u64,
    to: Position,
}

/// What is known of the files.
#[derive(Debug)]
enum Files {
    /// Nothing: what the last daemon left has not been looked at.
    Unseen,
    Own(Written),
}

impl Mirror {
    /// The mirror of a daemon whose first entry is at `first`. Touches nothing yet: no fault of the mirror keeps a
    /// daemon from starting.
    pub fn new(
        state_directory: &Path,
        (journal, clock): (Arc<dyn Journal>, Arc<dyn Clock>),
        (started, first): (Timestamp, Position),
    ) -> Self {
        let directory = state_directory.join(DIRECTORY);
        let own = directory.join(format!("run-{}.jsonl", stamp(started)));
        Self { journal, clock, directory, own, first, files: Mutex::new(Files::Unseen) }
    }

    /// Makes up for what the last daemon left out, and begins a file of this one's.
    async fn begin(&self) -> Result<Written, MirrorError> {
        let directory = self.directory.clone();
        let found = tasks::blocking(move || {
            let is_first = !directory.exists();
            let last = last_line(&directory)?;
            // A daemon that died before it had synced has left it where it can be read, and can still be lost: then there
            // would be a gap before this one's file.
            if let Some((_, old)) = &last {
                File::open(&old.path)?.sync_data()?;
                sync_names(&old.path)?;
            }
            Ok((is_first, last))
        })
        .await;
        let found = found.map_err(io::Error::other).and_then(|found| found);
        let (is_first, last) =
            found.map_err(|source| MirrorError::File { path: self.directory.clone(), source })?;
        let before = Position(self.first.0.saturating_sub(1));
        // The daemons before this one died before they had mirrored anything. Where somebody has taken the files away, what
        // was in them is not written again, unless it is little.
        if last.is_none() && (is_first || before.0 <= PAGE as u64) {
            return Ok(Written { path: self.own.clone(), length: 0, to: Position(0) });
        }
        if let Some((end, old)) = last.filter(|(end, _)| end.position <= before) {
            self.make_up(end, old, before).await?;
        }
        Ok(Written { path: self.own.clone(), length: 0, to: before })
    }

    /// What the last daemon committed and did not mirror any more.
    async fn make_up(
        &self,
        end: EntryView,
        mut old: Written,
        before: Position,
    ) -> Result<(), MirrorError> {
        let last = Position(end.position.0.saturating_sub(1));
        let page = self.journal.audit(AuditFilter::default(), last, PageLimit::entries(1)).await?;
        // A journal that was put back has less; one that was altered has something else.
        if page.entries.first() != Some(&end) {
            tracing::error!(
                path = %old.path.display(), position = %end.position,
                "the mirror's last line is not what the journal says there; the mirror begins anew"
            );
            return Ok(());
        }
        while old.to < before {
            let wanted = usize::try_from(before.0 - old.to.0).unwrap_or(PAGE).min(PAGE);
            if !self.write_page(&mut old, wanted).await? {
                break;
            }
        }
        Ok(())
    }

    /// Follows the journal until the daemon stops.
    pub async fn follow(self: Arc<Self>, stopping: CancellationToken) {
        let mut heads = self.journal.watch_head();
        loop {
            // Stopped between two pages, and never within one: what a dropped future appends goes on in its thread,
            // beside whoever appends next.
            let written = self.catch_up(&stopping).await;
            let pace = match &written {
                Ok(()) => PACE,
                Err(error) => {
                    // The journal has it all; the next look, or the next daemon, makes up for it.
                    let error = crate::telemetry::chain(error);
                    tracing::warn!(error, "the audit's mirror is behind");
                    RETRY
                }
            };
            tokio::select! {
                () = self.clock.sleep(pace) => {}
                () = stopping.cancelled() => return,
            }
            if written.is_ok() {
                tokio::select! {
                    changed = heads.changed() => if changed.is_err() { return },
                    () = stopping.cancelled() => return,
                }
            }
        }
    }

    /// Writes all that the journal has by now, or what it can until the daemon stops; on disk when this returns. Not to be
    /// dropped before, unless nothing is written any more after it.
    pub async fn catch_up(&self, stopping: &CancellationToken) -> Result<(), MirrorError> {
        let mut files = self.files.lock().await;
        if let Files::Unseen = *files {
            *files = Files::Own(self.begin().await?);
        }
        let Files::Own(written) = &mut *files else { return Ok(()) };
        while !stopping.is_cancelled() && self.write_page(written, PAGE).await? {}
        Ok(())
    }

    /// Writes some entries. Tells whether there were any.
    async fn write_page(&self, written: &mut Written, most: usize) -> Result<bool, MirrorError> {
        let most = PageLimit::entries(most);
        let page = self.journal.audit(AuditFilter::default(), written.to, most).await?;
        let Some(last) = page.entries.last() else { return Ok(false) };
        let mut text = String::new();
        for view in &page.entries {
            let unwritable = |_| MirrorError::Unwritable { position: view.position };
            text.push_str(&jsonl::line(view).map_err(unwritable)?);
            text.push('\n');
        }
        let (path, length, to) = (written.path.clone(), written.length, last.position);
        let bytes = text.len() as u64;
        let appended = tasks::blocking(move || append(&path, length, text.as_bytes())).await;
        appended
            .map_err(io::Error::other)
            .and_then(|done| done)
            .map_err(|source| MirrorError::File { path: written.path.clone(), source })?;
        (written.to, written.length) = (to, length + bytes);
        Ok(true)
    }
}

/// As file names have it: `20261127T034500.123456Z`.
fn stamp(at: Timestamp) -> String {
    let time = jiff::Timestamp::from_microsecond(at.0).map(|time| format!("{time:.6}"));
    time.unwrap_or_default().chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

/// The last whole line of all files, and the file that it ends; what a crash left of a line behind it does not count.
/// None: there is none that can be read.
///
/// By position and not by name: the clock may have been set back between two daemons.
fn last_line(directory: &Path) -> io::Result<Option<(EntryView, Written)>> {
    // For the owner alone, as all that lies in the state directory.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut paths = Vec::new();
    for file in fs::read_dir(directory)? {
        let file = file?;
        let name = file.file_name();
        let is_ours =
            name.to_str().is_some_and(|name| name.starts_with("run-") && name.ends_with(".jsonl"));
        if is_ours && file.file_type()?.is_file() {
            paths.push(file.path());
        }
    }
    paths.sort();
    let mut last: Option<(EntryView, Written)> = None;
    for path in paths.into_iter().rev().take(LOOKED_AT) {
        let (text, length) = last_line_of(&mut File::open(&path)?)?;
        match std::str::from_utf8(&text).ok().and_then(jsonl::read) {
            Some(view) if last.as_ref().is_none_or(|(last, _)| last.position < view.position) => {
                let to = view.position;
                last = Some((view, Written { path, length, to }));
            }
            Some(_) => {}
            None if text.is_empty() => {}
            None => {
                tracing::error!(path = %path.display(), "the last line of a mirror is none of agentd's")
            }
        }
    }
    Ok(last)
}

/// The last whole line of a file without its end, and the length up to that end. Reads from behind.
fn last_line_of(file: &mut File) -> io::Result<(Vec<u8>, u64)> {
    let mut start = file.metadata()?.len();
    let mut tail: Vec<u8> = Vec::new();
    loop {
        let ends: Vec<usize> = tail
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
            .map(|(at, _)| at)
            .take(2)
            .collect();
        match (ends.as_slice(), start) {
            ([last, before], _) => {
                return Ok((tail[before + 1..*last].to_vec(), start + *last as u64 + 1));
            }
            ([last], 0) => return Ok((tail[..*last].to_vec(), *last as u64 + 1)),
            (_, 0) => return Ok((Vec::new(), 0)),
            _ => {}
        }
        let block = start.min(BLOCK);
        start -= block;
        let mut head = vec![0; usize::try_from(block).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut head)?;
        head.append(&mut tail);
        tail = head;
    }
}

/// Writes behind what is whole of a file.
fn append(path: &Path, length: u64, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file: File = options.create(true).append(true).mode(0o600).open(path)?;
    // Half a line, of a crash or of a disk that was full, would be the next one's beginning.
    if file.metadata()?.len() > length {
        file.set_len(length)?;
    }
    fail_point::reach("mirror.before");
    file.write_all(text)?;
    fail_point::reach("mirror.after");
    file.sync_data()?;
    match length {
        0 => sync_names(path),
        _ => Ok(()),
    }
}

/// A file that is new, and its directory, which may be: their names must last, too.
fn sync_names(path: &Path) -> io::Result<()> {
    path.ancestors().skip(1).take(2).try_for_each(|above| File::open(above)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_is_found_from_behind_however_long_it_is() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("lines");
        let long = "x".repeat(3 * BLOCK as usize);
        for (content, line, length) in [
            (String::new(), "", 0),
            ("half".into(), "", 0),
            ("one\n".into(), "one", 4),
            ("one\nhalf".into(), "one", 4),
            ("one\ntwo\n".into(), "two", 8),
            (format!("one\n{long}\nhalf"), long.as_str(), 5 + long.len() as u64),
            (format!("{long}\n{long}"), long.as_str(), 1 + long.len() as u64),
        ] {
            fs::write(&path, &content).unwrap();
            let (found, whole) = last_line_of(&mut File::open(&path).unwrap()).unwrap();
            assert_eq!(
                (found.as_slice(), whole),
                (line.as_bytes(), length),
                "{} bytes",
                content.len()
            );
        }
    }
}
