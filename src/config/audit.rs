//! How often the journal's head is signed, with which key, and how long ended runs are kept.

use std::{path::PathBuf, time::Duration};

use crate::{
    config::{
        names,
        reader::{Count, Reader},
    },
    domain::status::StateName,
    engine::Keep,
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

/// How long ended runs are kept, by how they ended; by default for ever.
pub(super) fn keep(reader: &mut Reader<'_>) -> Keep {
    let settings = [
        (names::KEEP_SUCCEEDED, StateName::Succeeded),
        (names::KEEP_FAILED, StateName::Failed),
        (names::KEEP_CANCELLED, StateName::Cancelled),
    ];
    let kept = settings.into_iter().filter_map(|(setting, state)| {
        let days: Count = reader.take(setting, None, || None)?;
        Some((state, Duration::from_secs(days.0.saturating_mul(24 * 60 * 60))))
    });
    Keep(kept.collect())
}
