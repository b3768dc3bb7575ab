//! The journal's mirror: files of lines in the state directory, one for each daemon, which others can read, ship and
//! keep. It follows the journal and nothing follows it: what a crash left out is made up for by the next daemon, and
//! without the files nothing is lost. What a line is: `jsonl`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::ids::{Position, Timestamp},
    jsonl,
    ports::{AuditFilter, Clock, EntryView, Journal, JournalError},
    tasks,
};

/// Name of the directory in the state directory.
pub const DIRECTORY: &str = "audit";
/// Entries that are written together.
const PAGE: usize = 512;
/// How long the mirror may be behind: its syncs must not slow the journal's down.
const PACE: Duration = Duration::from_millis(200);

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
    written: Mutex<Written>,
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
    to: Position,
}

impl Mirror {
    /// Makes the last daemon's file whole, and begins one of this daemon's, whose first entry is at `first`.
    pub async fn open(
        state_directory: &Path,
        (journal, clock): (Arc<dyn Journal>, Arc<dyn Clock>),
        (started, first): (Timestamp, Position),
    ) -> Result<Self, MirrorError> {
        let directory = state_directory.join(DIRECTORY);
        let own = directory.join(format!("run-{}.jsonl", stamp(started)));
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| MirrorError::File { path, source }
        };
        let made = directory.clone();
        let last = tasks::blocking(move || {
            // For the owner alone, as all that lies in the state directory.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&made)?;
            last_file(&made)?.map(|path| Ok((repair(&path)?, path))).transpose()
        });
        let last: Option<(Option<EntryView>, PathBuf)> =
            last.await.map_err(io::Error::other).and_then(|done| done).map_err(at(&directory))?;
        let before = Position(first.0.saturating_sub(1));
        let written = Written { path: own, to: before };
        let mirror = Self { journal, clock, written: Mutex::new(written) };
        if let Some((Some(end), path)) = last {
            mirror.make_up(end, path, before).await?;
        }
        Ok(mirror)
    }

    /// What the last daemon committed and did not mirror any more.
    async fn make_up(
        &self,
        end: EntryView,
        path: PathBuf,
        before: Position,
    ) -> Result<(), MirrorError> {
        let last = Position(end.position.0.saturating_sub(1));
        let page = self.journal.audit(AuditFilter::default(), last, 1).await?;
        // A journal that was put back has less; one that was altered has something else.
        if page.entries.first() != Some(&end) {
            tracing::error!(
                path = %path.display(), position = %end.position,
                "the mirror's last line is not what the journal says there; the mirror begins anew"
            );
            return Ok(());
        }
        let mut old = Written { path, to: end.position };
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
            if let Err(error) = self.catch_up().await {
                // The journal has it all; the next look, or the next daemon, makes up for it.
                tracing::warn!(
                    error = crate::telemetry::chain(&error),
                    "the audit's mirror is behind"
                );
            }
            tokio::select! {
                () = self.clock.sleep(PACE) => {}
                () = stopping.cancelled() => return,
            }
            tokio::select! {
                changed = heads.changed() => if changed.is_err() { return },
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Writes all that the journal has by now; on disk when this returns.
    pub async fn catch_up(&self) -> Result<(), MirrorError> {
        let mut written = self.written.lock().await;
        while self.write_page(&mut written, PAGE).await? {}
        Ok(())
    }

    /// Writes some entries. Tells whether there were any.
    async fn write_page(&self, written: &mut Written, most: usize) -> Result<bool, MirrorError> {
        let page = self.journal.audit(AuditFilter::default(), written.to, most).await?;
        let Some(last) = page.entries.last() else { return Ok(false) };
        let mut text = String::new();
        for view in &page.entries {
            let unwritable = |_| MirrorError::Unwritable { position: view.position };
            text.push_str(&jsonl::line(view).map_err(unwritable)?);
            text.push('\n');
        }
        let (path, to) = (written.path.clone(), last.position);
        let appended = tasks::blocking(move || append(&path, text.as_bytes()));
        appended
            .await
            .map_err(io::Error::other)
            .and_then(|done| done)
            .map_err(|source| MirrorError::File { path: written.path.clone(), source })?;
        written.to = to;
        Ok(true)
    }
}

/// As file names have it: `20261127T034500.123456Z`.
fn stamp(at: Timestamp) -> String {
    let time = jiff::Timestamp::from_microsecond(at.0).map(|time| format!("{time:.6}"));
    time.unwrap_or_default().chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

/// The newest file, by its name; none if there is none.
fn last_file(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest: Option<PathBuf> = None;
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        let is_ours = path.extension().is_some_and(|extension| extension == "jsonl");
        if is_ours && newest.as_ref().is_none_or(|newest| *newest < path) {
            newest = Some(path);
        }
    }
    Ok(newest)
}

/// Cuts off what a crash left of a line; gives the last whole one.
fn repair(path: &Path) -> io::Result<Option<EntryView>> {
    let content = fs::read(path)?;
    let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole < content.len() {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(whole as u64)?;
        file.sync_all()?;
    }
    let lines = content[..whole].strip_suffix(b"\n").unwrap_or_default();
    let last = lines.rsplit(|byte| *byte == b'\n').next();
    Ok(last.and_then(|line| std::str::from_utf8(line).ok()).and_then(jsonl::read))
}

fn append(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file: File = options.create(true).append(true).mode(0o600).open(path)?;
    let before = file.metadata()?.len();
    let written = file.write_all(text).and_then(|()| file.sync_data());
    if written.is_err() {
        // Half a line would be the next one's beginning.
        file.set_len(before)?;
    }
    written
}
