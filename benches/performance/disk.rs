//! What the disk costs while we measure: it is printed beside every figure that depends on it.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::Instant,
};

use rusqlite::Connection;

use crate::figures::{median, milliseconds, quantile};

const TIMES: usize = 100;

/// In milliseconds, medians where nothing else is said.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disk {
    /// A sync of 4 KiB appended to a file.
    pub(crate) fsync: f64,
    /// A commit of one small row, with `synchronous = FULL`, by the same SQLite.
    pub(crate) commit: f64,
    pub(crate) commit_p99: f64,
}

impl Disk {
    pub(crate) fn measure(directory: &Path) -> Self {
        let mut commits = commits(directory);
        let commit_p99 = quantile(&mut commits, 0.99);
        Self { fsync: fsync(directory), commit: median(&mut commits), commit_p99 }
    }
}

fn fsync(directory: &Path) -> f64 {
    let path = directory.join("probe");
    let mut file = File::create(&path).unwrap();
    let mut times: Vec<f64> = (0..TIMES)
        .map(|_| {
            file.write_all(&[7; 4096]).unwrap();
            let started = Instant::now();
            file.sync_data().unwrap();
            milliseconds(started.elapsed())
        })
        .collect();
    fs::remove_file(path).unwrap();
    median(&mut times)
}

fn commits(directory: &Path) -> Vec<f64> {
    let path = directory.join("probe.db");
    let connection = Connection::open(&path).unwrap();
    let settings = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                    CREATE TABLE rows (number INTEGER PRIMARY KEY, text TEXT);";
    connection.execute_batch(settings).unwrap();
    let times: Vec<f64> = (0..5 * TIMES)
        .map(|number| {
            let started = Instant::now();
            let mut insert = connection.prepare_cached("INSERT INTO rows VALUES (?1, ?2)").unwrap();
            insert.execute(rusqlite::params![number, "a small row"]).unwrap();
            milliseconds(started.elapsed())
        })
        .collect();
    drop(connection);
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(directory.join(format!("probe.db{suffix}")));
    }
    times
}
