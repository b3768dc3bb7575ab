//! Opening a database: the lock, the settings that make it durable, the schema. Never reads a run.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FlockOperation, flock};

use crate::{domain::ids::Epoch, sqlite::backup};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Marks a database as agentd's: `agtd` in ASCII.
const APPLICATION_ID: i32 = 0x6167_7464;
/// Versions before this one can corrupt a WAL database when two connections write or checkpoint.
const LEAST_SQLITE: i32 = 3_051_003;
/// Prepared statements that a connection keeps: more than there are.
const STATEMENTS: usize = 64;

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "another agentd owns the state directory {directory}; stop it, or give this one its own \
         with --state-dir"
    )]
    Owned { directory: PathBuf },
    #[error(
        "{path} cannot be opened; check that the directory exists and is writable, or choose another with --state-dir"
    )]
    File { path: PathBuf, source: io::Error },
    #[error("the database {path} cannot be used")]
    Database { path: PathBuf, source: rusqlite::Error },
    #[error(
        "{path} is a database, but not agentd's; move it away or choose another state directory"
    )]
    Foreign { path: PathBuf },
    #[error(
        "{path} was written by a newer agentd (schema {found}, this one knows {known}); install that \
         version again, or restore a backup"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "the database is of an older schema, and the copy {path} that is kept of it cannot be made; make room, then start \
         agentd again"
    )]
    NotKept { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{path} cannot be brought to this version's schema")]
    Migration { path: PathBuf, source: Box<refinery::Error> },
    #[error(
        "SQLite {version} has the WAL-reset bug, which can corrupt the journal; build with the \
         bundled SQLite (3.51.3 or newer)"
    )]
    UnsafeSqlite { version: &'static str },
    #[error("{path} is not a sealing key of 32 bytes; restore it from a backup")]
    Key { path: PathBuf },
    #[error(
        "a restore into {directory} was cut off in the middle; do it again (agentctl restore), or put one of the \
         agentd.db.before-restore files back and remove agentd.db.exchanging"
    )]
    Exchanging { directory: PathBuf },
    #[error("a thread for the journal cannot be started")]
    Thread { source: io::Error },
}

/// Holds a state directory for this process.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    /// Given back outright: a process that is forked at this moment, and has not become its program yet, holds the same
    /// open file, and with it the lock.
    fn drop(&mut self) {
        // Closing it is all that is left to do otherwise.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Takes the state directory for this process, or says who has it.
pub(super) fn lock(directory: &Path) -> Result<Lock, OpenError> {
    let path = directory.join("agentd.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| OpenError::File { path: path.clone(), source })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(OpenError::Owned { directory: directory.to_owned() })
        }
        Err(source) => Err(OpenError::File { path, source: source.into() }),
    }
}

/// Where a store comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Found,
    /// Just now, by us, at this build's schema.
    Made,
}

/// Opens the database for the one writer, at this build's schema, in a new epoch.
pub(super) fn open_for_writing(path: &Path) -> Result<(Connection, Epoch), OpenError> {
    check_sqlite(rusqlite::version_number(), rusqlite::version())?;
    let origin = if path.exists() { Origin::Found } else { Origin::Made };
    if origin == Origin::Made {
        create(path)?;
    }
    let database = |source| OpenError::Database { path: path.to_owned(), source };
    let mut connection = Connection::open(path).map_err(database)?;
    match origin {
        Origin::Made => configure(&connection).map_err(database)?,
        Origin::Found => {
            // Nothing is written before it is known that the file is ours and that we know its schema.
            check_ours(&connection, path)?;
            configure(&connection).map_err(database)?;
            mark(&connection).map_err(database)?;
            keep_older(&connection, path)?;
            migrate(&mut connection, path)?;
        }
    }
    // Not synced by itself: nothing is done in an epoch before its first entry is on disk, and that sync
    // takes along what stands before it in the log.
    let epoch = connection
        .execute_batch("PRAGMA synchronous = NORMAL;")
        .and_then(|()| {
            let bump = "UPDATE owner SET epoch = epoch + 1 RETURNING epoch";
            connection.query_row(bump, [], |row| row.get(0))
        })
        .and_then(|epoch| {
            connection.execute_batch("PRAGMA synchronous = FULL;").map(|()| Epoch(epoch))
        })
        .map_err(database)?;
    Ok((connection, epoch))
}

/// Makes an empty store beside its place and moves it there: whole and on disk, or not there. While it is
/// made, nothing of it is worth a sync.
fn create(path: &Path) -> Result<(), OpenError> {
    let draft = path.with_extension("db.new");
    let failed = |source| OpenError::File { path: draft.clone(), source };
    let database = |source| OpenError::Database { path: draft.clone(), source };
    // An earlier making may have been cut off.
    for ending in ["new", "new-wal", "new-shm", "new-journal"] {
        let leftover = draft.with_extension(ending);
        match fs::remove_file(&leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
    }
    let mut options = OpenOptions::new();
    let file = options.create_new(true).write(true).mode(0o600).open(&draft).map_err(failed)?;
    let mut connection = Connection::open(&draft).map_err(database)?;
    // Not syncing comes first: every setting of the file itself is a commit.
    let settings = format!(
        "PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;
         PRAGMA application_id = {APPLICATION_ID};"
    );
    connection.execute_batch(&settings).map_err(database)?;
    migrate(&mut connection, &draft)?;
    // Last, so that everything stands in the file that is moved, and nothing in a log beside it.
    connection.execute_batch("PRAGMA journal_mode = WAL;").map_err(database)?;
    connection.close().map_err(|(_, source)| database(source))?;
    let directory = path.parent().unwrap_or(Path::new("."));
    file.sync_all()
        .and_then(|()| fs::rename(&draft, path))
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(failed)
}

/// Refuses a SQLite, by its number (3051003 is 3.51.3), that can corrupt the journal.
fn check_sqlite(number: i32, version: &'static str) -> Result<(), OpenError> {
    match number < LEAST_SQLITE {
        true => Err(OpenError::UnsafeSqlite { version }),
        false => Ok(()),
    }
}

/// Opens the database for reading only.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, OpenError> {
    let database = |source| OpenError::Database { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(database)?;
    let settings = "PRAGMA busy_timeout = 5000; PRAGMA trusted_schema = OFF; PRAGMA mmap_size = 0;";
    connection.execute_batch(settings).map_err(database)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Refuses a file that is not agentd's, or of a schema that this build does not know.
pub(super) fn check_ours(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    check_owner(connection, path)?;
    check_version(connection, path)
}

fn check_owner(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let database = |source| OpenError::Database { path: path.to_owned(), source };
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let id = pragma("application_id").map_err(database)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(database)?;
    match (id, tables) {
        (APPLICATION_ID, _) | (0, 0) => Ok(()),
        _ => Err(OpenError::Foreign { path: path.to_owned() }),
    }
}

/// Marks an empty file as ours, which an older agentd may have left.
fn mark(connection: &Connection) -> rusqlite::Result<()> {
    let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    match id {
        0 => connection.pragma_update(None, "application_id", APPLICATION_ID),
        _ => Ok(()),
    }
}

/// FULL: a commit is on disk when it returns. Only the writer's thread checkpoints, every 16 MiB.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA busy_timeout = 5000;
         PRAGMA wal_autocheckpoint = 0; -- see writer::folding
         PRAGMA journal_size_limit = 67108864;
         PRAGMA mmap_size = 0;
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;
         PRAGMA secure_delete = FAST;",
    )
}

fn check_version(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let found = schema(connection);
    let found = found.map_err(|source| OpenError::Database { path: path.to_owned(), source })?;
    let known = newest();
    match found > known {
        true => Err(OpenError::Newer { path: path.to_owned(), found, known }),
        false => Ok(()),
    }
}

/// Version of the schema that a file has; 0 while it has none.
fn schema(connection: &Connection) -> rusqlite::Result<i64> {
    let history = "SELECT 1 FROM sqlite_schema WHERE name = 'refinery_schema_history'";
    if !connection.prepare(history)?.exists([])? {
        return Ok(0);
    }
    let newest = "SELECT coalesce(max(version), 0) FROM refinery_schema_history";
    connection.query_row(newest, [], |row| row.get(0))
}

/// Version of the schema that this build writes.
fn newest() -> i64 {
    let migrations = embedded::migrations::runner();
    let migrations = migrations.get_migrations().iter();
    migrations.map(|migration| i64::from(migration.version())).max().unwrap_or(0)
}

/// Keeps a file of an older schema as it is, whole and on disk, before it is migrated: the build that wrote it cannot read
/// what comes of it.
fn keep_older(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let database = |source| OpenError::Database { path: path.to_owned(), source };
    let (found, known) = (schema(connection).map_err(database)?, newest());
    if found == 0 || found == known {
        return Ok(());
    }
    let copy = path.with_extension(format!("db.before-v{known}"));
    backup::keep(connection, &copy)
        .map_err(|source| OpenError::NotKept { path: copy.clone(), source: Box::new(source) })?;
    tracing::info!(copy = %copy.display(), found, known, "the database is migrated; a copy of it was kept");
    Ok(())
}

pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    embedded::migrations::runner()
        .run(connection)
        .map(drop)
        .map_err(|source| OpenError::Migration { path: path.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pragma(connection: &Connection, name: &str) -> String {
        connection
            .pragma_query_value(None, name, |row| {
                Ok(match row.get_ref(0)? {
                    rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                    value => value.as_str()?.to_owned(),
                })
            })
            .unwrap()
    }

    #[test]
    fn what_the_writer_commits_is_on_disk_when_the_commit_returns() {
        let home = tempfile::tempdir().unwrap();
        let (connection, _) = open_for_writing(&home.path().join("agentd.db")).unwrap();
        // Only the connection itself can tell how it syncs: 2 is FULL.
        assert_eq!(pragma(&connection, "journal_mode"), "wal");
        assert_eq!(pragma(&connection, "synchronous"), "2");
        assert_eq!(pragma(&connection, "foreign_keys"), "1");
        assert_eq!(pragma(&connection, "trusted_schema"), "0");
        assert_eq!(pragma(&connection, "mmap_size"), "0");
        assert_eq!(pragma(&connection, "application_id"), APPLICATION_ID.to_string());
    }

    #[test]
    fn a_store_is_made_whole_also_where_an_earlier_making_was_cut_off_or_left_an_empty_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agentd.db");
        fs::write(home.path().join("agentd.db.new"), "half a store").unwrap();
        drop(open_for_writing(&path).unwrap());
        assert!(!home.path().join("agentd.db.new").exists());
        let (connection, epoch) = open_for_writing(&path).unwrap();
        assert_eq!(epoch, Epoch(2));
        assert_eq!(pragma(&connection, "application_id"), APPLICATION_ID.to_string());

        let path = home.path().join("empty.db");
        fs::write(&path, "").unwrap();
        drop(open_for_writing(&path).unwrap());
        let (connection, _) = open_for_writing(&path).unwrap();
        assert_eq!(pragma(&connection, "application_id"), APPLICATION_ID.to_string());
    }

    #[test]
    fn a_sqlite_with_the_wal_reset_bug_is_refused_by_name() {
        let refused = check_sqlite(3_051_002, "3.51.2").unwrap_err();
        assert!(
            refused.to_string().starts_with("SQLite 3.51.2 has the WAL-reset bug"),
            "{refused}"
        );
        check_sqlite(3_051_003, "3.51.3").unwrap();
        check_sqlite(rusqlite::version_number(), rusqlite::version()).unwrap();
    }

    #[test]
    fn each_opening_for_writing_is_an_epoch_of_its_own() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agentd.db");
        let epochs = [(); 3].map(|()| open_for_writing(&path).unwrap().1);
        assert_eq!(epochs, [Epoch(1), Epoch(2), Epoch(3)]);
    }

    #[test]
    fn a_connection_for_reading_cannot_write() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agentd.db");
        let (_writer, _) = open_for_writing(&path).unwrap();
        let reader = open_for_reading(&path).unwrap();
        let error = reader.execute("UPDATE owner SET epoch = 77", []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ReadOnly));
    }

    #[test]
    fn a_state_directory_has_one_owner_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let held = lock(home.path()).unwrap();
        assert!(
            matches!(lock(home.path()), Err(OpenError::Owned { directory }) if directory == home.path())
        );
        drop(held);
        let held = lock(home.path()).unwrap();
        // As a process has it that was forked and is not its program yet.
        let inherited = held.0.try_clone().unwrap();
        drop(held);
        lock(home.path()).expect("it is given back, whoever has it open");
        drop(inherited);
    }
}
