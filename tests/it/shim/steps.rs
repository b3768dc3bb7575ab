//! Reads the log that `faults.c` writes: `struct step`, the paths and the data behind it.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::PathBuf};

/// What was done, with the place in the log where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) at: u64,
    pub(super) done: Done,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Done {
    Created {
        path: PathBuf,
        file: u64,
        mode: u32,
    },
    Wrote {
        file: u64,
        offset: usize,
        data: Vec<u8>,
    },
    Cut {
        file: u64,
        length: usize,
    },
    /// What stands in the log before `upto`, of this file or of the names in this directory, is on disk.
    Synced {
        file: u64,
        upto: u64,
    },
    SyncedNames {
        directory: PathBuf,
        upto: u64,
    },
    Renamed {
        from: PathBuf,
        to: PathBuf,
    },
    Unlinked {
        path: PathBuf,
    },
    MadeDirectory {
        path: PathBuf,
    },
}

/// Bytes of `struct step`.
const HEADER: usize = 48;

/// All whole steps. What a death cut off of the last one is not there.
pub(super) fn read(log: &[u8]) -> Vec<Step> {
    let (mut steps, mut rest) = (Vec::new(), log);
    while rest.len() >= HEADER {
        let length = number(rest, 0) as usize;
        let Some((step, behind)) = rest.split_at_checked(length) else { break };
        steps.push(Step { at: (log.len() - rest.len()) as u64, done: done(step) });
        rest = behind;
    }
    steps
}

fn done(step: &[u8]) -> Done {
    let (file, at, upto) = (long(step, 8), long(step, 16), long(step, 24));
    let lengths = [32, 36].map(|place| number(step, place) as usize);
    let text =
        |from: usize, length: usize| PathBuf::from(OsStr::from_bytes(&step[from..from + length]));
    let path = text(HEADER, lengths[0]);
    let other = text(HEADER + lengths[0], lengths[1]);
    let data = &step[HEADER + lengths[0] + lengths[1]..];
    match number(step, 4) {
        1 => Done::Created { path, file, mode: at as u32 },
        2 => Done::Wrote { file, offset: at as usize, data: data.to_vec() },
        3 => Done::Cut { file, length: at as usize },
        4 if at == 1 => Done::SyncedNames { directory: path, upto },
        4 => Done::Synced { file, upto },
        5 => Done::Renamed { from: path, to: other },
        6 => Done::Unlinked { path },
        7 => Done::MadeDirectory { path },
        what => panic!("a step that nobody knows: {what}"),
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}
