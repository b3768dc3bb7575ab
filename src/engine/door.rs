//! What a call's program may reach while it runs: asked of the policy, and written into the run's journal by
//! its driver before anything is dialled. Dials nothing: see `ports::Sandbox`.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    domain::{
        ids::{CallId, CallKey},
        journal::Connection,
        policy::{Destination, Grant, Policy},
    },
    engine::{World, run_log::Noted},
    ports::{Answered, Door, NotNoted, Reached},
};

/// Notes that may wait for the driver: more than all calls of a run at one time can have, since each may ask for
/// 1,000 things. So a note is never lost because its writer went away while it waited for room.
pub(super) const NOTES: usize = 1 << 14;

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

#[async_trait]
impl Door for CallDoor {
    fn ask(&self, grant: &Grant, wanted: Destination) -> Answered {
        let said = |policy: &Policy| Answered {
            ruling: policy.admit(grant, wanted.clone()),
            revision: policy.revision.clone(),
        };
        let pinned = said(&self.pinned);
        let current = self.world.policies.current();
        if Arc::ptr_eq(&current, &self.pinned) {
            return pinned;
        }
        // What the newer one opens is for calls to come.
        let Ok(before) = pinned.ruling else { return pinned };
        let Answered { ruling, revision } = said(&current);
        Answered { ruling: ruling.map(|now| before.and(now)), revision }
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
        let noted = Noted { record: connection.into(), policy: Some(reached.revision.clone()) };
        let (done, written) = oneshot::channel();
        self.notes.try_send(Note { noted, done }).map_err(|_| NotNoted)?;
        written.await.map_err(|_| NotNoted)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.world.policies.changes()
    }
}
