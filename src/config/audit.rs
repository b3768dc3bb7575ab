//! How often the journal's head is signed, and with which key.

use std::{path::PathBuf, time::Duration};

use crate::config::{
    names,
    reader::{Count, Reader},
};

/// How the journal's head is signed.
#[derive(Debug, Clone)]
pub struct HeadSettings {
    /// Entries after which it is signed at the latest.
    pub entries: u64,
    /// Time after which it is signed at the latest, if anything was written.
    pub every: Duration,
    /// File of the key; none: in the state directory.
    pub key: Option<PathBuf>,
}

/// The settings; what is wrong with them is told through the reader.
pub(super) fn heads(reader: &mut Reader<'_>) -> Option<HeadSettings> {
    let entries = reader.take(names::HEAD_ENTRIES, None, || Some(Count(1000)));
    let minutes = reader.take(names::HEAD_MINUTES, None, || Some(Count(10)));
    let key = reader.take(names::SIGNING_KEY, None, || None);
    let every = Duration::from_secs(minutes?.0.saturating_mul(60));
    Some(HeadSettings { entries: entries?.0, every, key })
}
