//! Faults of the disk and of the wall clock, in a real daemon: `faults.c` stands between it and the system, is told what
//! to do by counters that both share, and logs what is done to the state directory. What a power cut leaves of that is
//! in `disk`.

pub(crate) mod disk;
mod steps;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// Counters that the daemon and the test share, in the order of `struct control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    WritesLeft,
    WritesRefused,
    SyncsLeft,
    SyncsToFail,
    FoldsToFail,
    SyncsFailed,
    SyncsAfter,
    SyncMicroseconds,
    SyncsUnderWay,
    Syncs,
    Foldings,
    ClockOffset,
    ClockReads,
}

const COUNTERS: usize = Counter::ClockReads as usize + 1;

/// How the log of the database is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commits {
    /// As the daemon asks for it.
    Synced,
    /// As with `PRAGMA synchronous=NORMAL`, which the daemon does not have: the sync at a commit is left out.
    Unsynced,
}

/// The library, and what it and the test tell each other.
pub(crate) struct Shim {
    directory: TempDir,
    control: File,
    commits: Commits,
    is_recording: bool,
}

impl Shim {
    /// Lets faults happen; everything else goes its way.
    pub(crate) fn of_faults() -> Self {
        Self::built(Commits::Synced, false)
    }

    /// Also logs what is done, for power cuts.
    pub(crate) fn of_power_cuts(commits: Commits) -> Self {
        Self::built(commits, true)
    }

    fn built(commits: Commits, is_recording: bool) -> Self {
        let directory = tempfile::Builder::new().prefix("agentd-shim-").tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/shim/faults.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]);
        compiler.arg("-o").arg(directory.path().join("faults.so")).arg(source);
        let built =
            compiler.output().expect("the faults want a C compiler, as the build of SQLite does");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let control = directory.path().join("control");
        let mut options = File::options();
        let control = options.read(true).write(true).create_new(true).open(control).unwrap();
        control.set_len((COUNTERS * size_of::<i64>()) as u64).unwrap();
        fs::write(directory.path().join("log"), "").unwrap();
        let shim = Self { directory, control, commits, is_recording };
        shim.set(Counter::WritesLeft, -1);
        shim.set(Counter::SyncsLeft, -1);
        shim
    }

    /// What a daemon with this state directory must have in its environment.
    pub(crate) fn variables(&self, state: &Path) -> Vec<(String, String)> {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let mut variables = vec![
            ("LD_PRELOAD", path("faults.so")),
            ("FAULTS_CONTROL", path("control")),
            ("FAULTS_BELOW", state.display().to_string()),
        ];
        if self.is_recording {
            variables.push(("FAULTS_LOG", self.log().display().to_string()));
        }
        if self.commits == Commits::Unsynced {
            variables.push(("FAULTS_LAZY", "1".into()));
        }
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub(crate) fn get(&self, counter: Counter) -> i64 {
        let mut bytes = [0; size_of::<i64>()];
        self.control.read_exact_at(&mut bytes, place(counter)).unwrap();
        i64::from_ne_bytes(bytes)
    }

    /// At once, also in a daemon that runs.
    pub(crate) fn set(&self, counter: Counter, value: i64) {
        self.control.write_all_at(&value.to_ne_bytes(), place(counter)).unwrap();
    }

    /// What was done to the state directory since this was asked last.
    fn take_log(&self) -> Vec<u8> {
        let bytes = fs::read(self.log()).unwrap();
        fs::write(self.log(), "").unwrap();
        bytes
    }
}

fn place(counter: Counter) -> u64 {
    (counter as usize * size_of::<i64>()) as u64
}
