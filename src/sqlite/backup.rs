//! The whole store as one file, while it is used; and such a file put in the place of a store that nobody uses.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    domain::ids::{Sequence, Timestamp},
    ports::{AuditReport, JournalError, StoreCopy},
    sqlite::{
        DATABASE, OpenError, migrate, rows,
        rows::ReadError,
        seal::{KEY, Place, Seal},
        verify,
    },
};

/// Copies the database into a file that has no name any more, and checks the copy by opening it.
pub(super) fn copy(connection: &Connection, database: &Path) -> Result<StoreCopy, JournalError> {
    let path = database.with_extension("db.copy");
    let failed = |what: String| JournalError::Unreadable {
        what: format!("a copy of it cannot be made: {what}"),
    };
    let copied = copy_to(connection, &path).map_err(|error| failed(error.to_string()));
    // Nobody else may come by it; and a daemon that dies leaves nothing that counts.
    let opened = copied.and_then(|report| {
        let file = File::open(&path).map_err(|error| failed(error.to_string()))?;
        let bytes = file.metadata().map_err(|error| failed(error.to_string()))?.len();
        Ok(StoreCopy { file, bytes, report })
    });
    let _ = fs::remove_file(&path);
    opened
}

fn copy_to(connection: &Connection, path: &Path) -> Result<AuditReport, CopyError> {
    fill(connection, path)?;
    let copy = migrate::open_for_reading(path)?;
    check_pages(&copy)?;
    Ok(verify::verify(&copy, Vec::new())?)
}

/// Copies what a connection sees into a file of its own.
fn fill(connection: &Connection, path: &Path) -> Result<(), CopyError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    // SQLite fills an empty file, and keeps who may read it.
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    connection.execute("VACUUM INTO ?1", [path.to_string_lossy()])?;
    Ok(())
}

/// Copies what a connection sees into a file that stays, and is on disk by then.
pub(super) fn keep(connection: &Connection, path: &Path) -> Result<(), CopyError> {
    fill(connection, path)?;
    File::open(path)?.sync_all()?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error(transparent)]
    File(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] rusqlite::Error),
    #[error("{}", crate::telemetry::chain(.0))]
    Open(#[from] OpenError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("its pages are damaged: {0}")]
    Pages(String),
}

/// Whether the file's pages hold together. What stands in them is [`verify::verify`]'s to say.
fn check_pages(connection: &Connection) -> Result<(), CopyError> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(CopyError::Pages(found)) }
}

/// The same of a store that is used; takes as long as reading all of it.
pub(super) fn examine(connection: &Connection) -> Result<(), ReadError> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    match found.as_str() {
        "ok" => Ok(()),
        _ => Err(ReadError::Pages(found)),
    }
}

/// Why a backup was not put in place.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{path} cannot be used")]
    File { path: PathBuf, source: io::Error },
    #[error("the backup {path} cannot be read: {message}")]
    Unreadable { path: PathBuf, message: String },
    #[error(
        "the backup {path} was altered in {faults} places, the first at {first}; take another one (agentctl audit verify \
         --file says more)"
    )]
    Altered { path: PathBuf, faults: usize, first: String },
    #[error(
        "{key} is not the key that the backup was sealed with, or is missing, and runs could not go on; name the key that \
         was kept with it (--key), and move this one away if it belongs to another store"
    )]
    Key { key: PathBuf },
}

/// What was put in place.
#[derive(Debug)]
pub struct Restored {
    pub report: AuditReport,
    /// Where the store went that was there before; none: there was none.
    pub aside: Option<PathBuf>,
    /// Runs that had not ended when the backup was made.
    pub unended: usize,
}

/// Puts a backup in the place of a state directory's store, which is kept beside it. Nothing goes on from it by itself:
/// see `Engine::resume`.
///
/// Blocking. Errors: a daemon uses the directory, or the file is no backup that a daemon could go on from; nothing is
/// changed then.
pub fn restore(
    backup: &Path,
    key: Option<&Path>,
    state_directory: &Path,
    now: Timestamp,
) -> Result<Restored, RestoreError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::File { path, source }
    };
    let mut directory = DirBuilder::new();
    directory.recursive(true).mode(0o700).create(state_directory).map_err(file(state_directory))?;
    let _lock = migrate::lock(state_directory)?;
    let (report, unended) = check(backup)?;
    let own_key = state_directory.join(KEY);
    check_key(backup, key.unwrap_or(&own_key))?;
    if let Some(key) = key.filter(|key| *key != own_key) {
        let content = fs::read(key).map_err(file(key))?;
        let found = crate::private_file::read_or_create(&own_key, || Ok(content.clone()));
        if found.map_err(file(&own_key))? != content {
            return Err(RestoreError::Key { key: own_key });
        }
    }
    let path = state_directory.join(DATABASE);
    let draft = path.with_extension("db.restored");
    prepare(backup, &draft, now).map_err(|error| RestoreError::Unreadable {
        path: backup.to_owned(),
        message: error.to_string(),
    })?;
    let aside = put_in_place(&draft, &path, now).map_err(file(&path))?;
    Ok(Restored { report, aside, unended })
}

fn check(backup: &Path) -> Result<(AuditReport, usize), RestoreError> {
    let unreadable = |error: CopyError| RestoreError::Unreadable {
        path: backup.to_owned(),
        message: error.to_string(),
    };
    // SQLite would make an empty one.
    File::open(backup).map_err(|error| unreadable(error.into()))?;
    let connection = migrate::open_for_reading(backup)?;
    migrate::check_ours(&connection, backup)?;
    check_pages(&connection).map_err(unreadable)?;
    let report =
        verify::verify(&connection, Vec::new()).map_err(|error| unreadable(error.into()))?;
    if let Some(fault) = report.faults.first() {
        let first = format!("position {}, {}", fault.position.0, fault.what);
        let (path, faults) = (backup.to_owned(), report.faults.len());
        return Err(RestoreError::Altered { path, faults, first });
    }
    let unended = rows::unended(&connection).map_err(|error| unreadable(error.into()))?;
    Ok((report, unended.len()))
}

/// Opens one sealed text of the backup, if there is any.
fn check_key(backup: &Path, key: &Path) -> Result<(), RestoreError> {
    let wrong = || RestoreError::Key { key: key.to_owned() };
    let connection = migrate::open_for_reading(backup)?;
    let sealed = connection
        .query_row(
            "SELECT runs.id, entries.sequence, entries.body FROM entries
             JOIN runs ON runs.place = entries.run WHERE entries.body IS NOT NULL LIMIT 1",
            [],
            |row| {
                let body: Vec<u8> = row.get(2)?;
                Ok((rows::run_id(row, 0)?, Sequence(row.get(1)?), body))
            },
        )
        .optional()
        .map_err(|source| OpenError::Database { path: backup.to_owned(), source })?;
    let Some((run, sequence, body)) = sealed else { return Ok(()) };
    let seal = Seal::read(key).map_err(|_| wrong())?;
    seal.open_body(Some(run), Place::Entry(sequence), &body).map(drop).map_err(|_| wrong())
}

/// Copies the backup beside the store's place, brings it to this schema, and notes in it that it was restored.
fn prepare(backup: &Path, draft: &Path, now: Timestamp) -> Result<(), CopyError> {
    // An earlier restoring may have been cut off.
    for part in ["", "-journal", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{part}", draft.display()));
    }
    // By SQLite, so that what stands in a log beside the backup comes along.
    fill(&migrate::open_for_reading(backup)?, draft)?;
    let mut connection = Connection::open(draft)?;
    // One file: a log beside it would be left behind when it is moved.
    connection.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL;")?;
    migrate::migrate(&mut connection, draft)?;
    connection.execute("UPDATE owner SET restored_us = ?1", params![now.0])?;
    check_pages(&connection)?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(File::open(draft)?.sync_all()?)
}

/// Exists while the store is being exchanged: what lies there meanwhile is neither the old one nor the new.
pub(super) const EXCHANGING: &str = "agentd.db.exchanging";

/// Exchanges the store, and its mirror, which tells of entries that no longer follow; keeps the old ones.
fn put_in_place(draft: &Path, path: &Path, now: Timestamp) -> io::Result<Option<PathBuf>> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let sync = || File::open(directory)?.sync_all();
    // The directory may be new itself.
    let above = directory.parent().filter(|above| !above.as_os_str().is_empty());
    above.map_or(Ok(()), |above| File::open(above)?.sync_all())?;
    let mark = directory.join(EXCHANGING);
    File::create(&mark)?.sync_all()?;
    sync()?;
    let aside = set_aside(path, now)?;
    fs::rename(draft, path)?;
    let mirror = directory.join("audit");
    if mirror.is_dir() {
        fs::rename(&mirror, mirror.with_extension(format!("before-restore-{}", now.0)))?;
    }
    sync()?;
    fs::remove_file(&mark)?;
    sync()?;
    Ok(aside)
}

/// Keeps the store that is there, with what its log holds.
fn set_aside(path: &Path, now: Timestamp) -> io::Result<Option<PathBuf>> {
    if !path.exists() {
        return Ok(None);
    }
    // The log's last entries go into the file; where that cannot be done any more, the log is kept as it is.
    if let Ok(old) = Connection::open(path) {
        let _ = old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }
    let aside = path.with_extension(format!("db.before-restore-{}", now.0));
    fs::hard_link(path, &aside)?;
    for part in ["-wal", "-shm"] {
        let beside = |path: &Path| PathBuf::from(format!("{}{part}", path.display()));
        match fs::rename(beside(path), beside(&aside)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(Some(aside))
}
