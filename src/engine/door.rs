//! What a call's program may reach while it runs: asked of the policy, and written into the run's journal by
//! its driver before anything is dialled. Dials nothing: see `ports::Sandbox`.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    domain::{
        ids::{CallId, CallKey, PolicyRevision},
        journal::Connection,
        policy::{Destination, Grant, Passage, Policy, Ruling},
    },
    engine::{World, run_log::Noted},
    ports::{Door, NotNoted, Reached},
};

/// Notes that may wait for the driver; who finds no room waits.
pub(super) const NOTES: usize = 16;

/// Something for the driver to write down, and who waits for that.
pub(super) struct Note {
    pub(super) noted: Noted,
    pub(super) done: oneshot::Sender<()>,
}

/// The door of one call.
pub(super) struct CallDoor {
    pub(super) world: World,
    /// The policy that the call was decided under.
    pub(super) pinned: Arc<Policy>,
    pub(super) call: CallKey,
    pub(super) call_id: CallId,
    pub(super) notes: mpsc::Sender<Note>,
}

impl CallDoor {
    fn revision(&self) -> PolicyRevision {
        self.world.policies.current().revision.clone()
    }
}

#[async_trait]
impl Door for CallDoor {
    fn ask(&self, grant: &Grant, wanted: Destination) -> Result<Passage, Ruling> {
        let passage = self.pinned.admit(grant, wanted.clone())?;
        let current = self.world.policies.current();
        match Arc::ptr_eq(&current, &self.pinned) {
            true => Ok(passage),
            // What the newer one opens is for calls to come.
            false => current.admit(grant, wanted),
        }
    }

    async fn note(&self, reached: Reached<'_>) -> Result<(), NotNoted> {
        let connection = Connection {
            call: self.call,
            call_id: self.call_id.clone(),
            host: reached.wanted.host.clone(),
            port: reached.wanted.port,
            method: reached.wanted.by.method().to_owned(),
            decision: reached.decision,
            rule: reached.rule.clone(),
            why: reached.why.to_owned(),
            addresses: reached.addresses.iter().map(ToString::to_string).collect(),
        };
        let noted = Noted { record: connection.into(), policy: Some(self.revision()) };
        let (done, written) = oneshot::channel();
        self.notes.send(Note { noted, done }).await.map_err(|_| NotNoted)?;
        written.await.map_err(|_| NotNoted)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.world.policies.changes()
    }
}
