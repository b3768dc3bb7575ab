//! The SQLite store as the suite opens it: in a directory of its own, which is gone when the test is over.

use std::path::Path;

use agentd::{
    domain::ids::Epoch,
    ports::Journal,
    sqlite::{self, SqliteJournal},
};
use tempfile::TempDir;

use super::{Store, records::redactor};

pub(super) struct SqliteStore {
    journal: SqliteJournal,
    home: TempDir,
}

fn open(home: &Path) -> SqliteJournal {
    sqlite::take(home).unwrap().open(redactor(), None).unwrap()
}

impl Store for SqliteStore {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        Self { journal: open(home.path()), home }
    }

    fn journal(&self) -> &dyn Journal {
        &self.journal
    }

    fn epoch(&self) -> Epoch {
        self.journal.epoch()
    }

    async fn reopened(self) -> Self {
        let Self { journal, home } = self;
        journal.close().await.unwrap();
        // It holds the directory until it is gone.
        drop(journal);
        Self { journal: open(home.path()), home }
    }
}
