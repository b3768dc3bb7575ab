//! When which policy came into force, out of the redacted views of the daemon's own chain. Keeps nothing: what is
//! in force is in `policies`.

use crate::{
    domain::{
        ids::{Caller, PolicyRevision, Sequence, Timestamp},
        journal::{DecodeError, PolicyReload, Record, Reloaded},
    },
    engine::{Engine, EngineError},
    ports::{EntryView, JournalError},
};

/// Who reloads where the daemon was sent that signal.
pub const SIGHUP: &str = "signal:SIGHUP";

/// Kinds of entries that tell of it.
const KINDS: &[&str] = &["daemon_started", "policy_reload"];
/// Entries that are read at once: each view has up to 2 MiB.
const ENTRIES: usize = 16;
/// Faults of a refused reload that are told.
const FAULTS: usize = 10;

/// One time that the policy files were read and came into force, or were refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRead {
    /// In the daemon's chain.
    pub sequence: Sequence,
    pub time: Timestamp,
    /// What was in force from then on.
    pub revision: PolicyRevision,
    pub because: ReadBecause,
}

/// What made the daemon read the files, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadBecause {
    Started,
    Applied {
        by: Caller,
    },
    Refused {
        by: Caller,
        /// At most 10 of them.
        faults: Vec<String>,
        /// How many there were.
        count: usize,
    },
}

impl Engine {
    /// The times that a policy came into force or was refused, newest first, at most `limit`, older than `before`
    /// where that is given.
    pub async fn policy_revisions(
        &self,
        before: Option<Sequence>,
        limit: usize,
    ) -> Result<Vec<PolicyRead>, EngineError> {
        let (mut found, mut before) = (Vec::new(), before);
        while found.len() < limit {
            let wanted = ENTRIES.min(limit - found.len());
            let views = self.world().journal.daemon_views(KINDS, before, wanted).await?;
            let is_last = views.len() < wanted;
            for view in views {
                before = Some(view.sequence);
                found.extend(read(&view)?);
            }
            if is_last {
                break;
            }
        }
        Ok(found)
    }
}

/// What an entry tells of the policy; none where it tells nothing of it.
fn read(view: &EntryView) -> Result<Option<PolicyRead>, EngineError> {
    let unreadable = |error: DecodeError| JournalError::Unreadable { what: error.to_string() };
    let record = Record::decode(&view.kind, view.version, &view.payload).map_err(unreadable)?;
    let (revision, because) = match record {
        Record::DaemonStarted(started) => (started.policy_revision, ReadBecause::Started),
        Record::PolicyReload(reload) => of_reload(reload),
        _ => return Ok(None),
    };
    Ok(Some(PolicyRead { sequence: view.sequence, time: view.time, revision, because }))
}

fn of_reload(reload: PolicyReload) -> (PolicyRevision, ReadBecause) {
    let PolicyReload { by, before, outcome } = reload;
    match outcome {
        Reloaded::Applied { revision } => (revision, ReadBecause::Applied { by }),
        Reloaded::Refused { mut faults } => {
            let count = faults.len();
            faults.truncate(FAULTS);
            (before, ReadBecause::Refused { by, faults, count })
        }
    }
}
