//! How the daemon is, from how its parts are. What callers and orchestrators are told of it is made elsewhere.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    domain::{
        backend::Colour,
        ids::{PolicyRevision, Timestamp},
    },
    engine::{BackendHealth, Engine, Intake},
};

/// Longest wait for a sign of life of the store.
const BEAT: Duration = Duration::from_secs(5);

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub status: Colour,
    /// Why it is not green, one for each thing.
    pub reasons: Vec<String>,
    /// The default one first, then the others by name.
    pub backends: Vec<BackendHealth>,
    /// What enforces each limit of programs.
    pub sandbox: BTreeMap<String, String>,
    pub policy_revision: PolicyRevision,
    pub store: Store,
    pub intake: Intake,
}

/// How the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Works,
    /// Its writer has failed, or does not stir.
    Stuck,
}

impl Health {
    /// The backend of runs that name none.
    pub fn backend(&self) -> Option<&BackendHealth> {
        self.backends.first()
    }

    /// When that last worked.
    pub fn last_ok(&self) -> Option<Timestamp> {
        self.backend().and_then(|backend| backend.last_ok)
    }
}

impl Engine {
    /// How the daemon is.
    pub async fn health(&self) -> Health {
        let world = self.world();
        let default = world.backends.default();
        let others = world.backends.all().filter(|backend| backend.name != default.name);
        let backends: Vec<BackendHealth> =
            std::iter::once(default).chain(others).map(|backend| backend.health()).collect();
        let store = self.store_stirs().await;
        let intake = self.drained().intake;
        let policy = world.policies.standing();
        let mut reasons = Vec::new();
        let mut status = Colour::Green;
        let mut note = |colour, reason: String| {
            status = status.max(colour);
            reasons.push(reason);
        };
        if store == Store::Stuck {
            note(Colour::Red, "store: nothing can be written".into());
        }
        for (place, backend) in backends.iter().enumerate() {
            if let Some(why) = &backend.why {
                // Runs that name no other can still go on.
                let colour = if place == 0 { backend.colour } else { Colour::Degraded };
                note(colour, format!("backend {}: {why}", backend.name));
            }
        }
        if !policy.faults.is_empty() {
            note(
                Colour::Degraded,
                "policy: the files are not valid, and an earlier revision is in force".into(),
            );
        }
        if intake == Intake::Closed {
            note(
                Colour::Degraded,
                "runs: the daemon is being drained and takes no new ones".into(),
            );
        }
        Health {
            status,
            reasons,
            backends,
            sandbox: world.sandbox.mechanisms(),
            policy_revision: policy.policy.revision.clone(),
            store,
            intake,
        }
    }

    /// Whether the store's writer stirs.
    pub async fn store_stirs(&self) -> Store {
        let world = self.world();
        tokio::select! {
            beat = world.pulse.beat() => if beat.is_ok() { Store::Works } else { Store::Stuck },
            () = world.clock.sleep(BEAT) => Store::Stuck,
        }
    }

    /// Why no runs are taken; none if they are.
    pub async fn refuses_runs(&self) -> Option<&'static str> {
        match (self.store_stirs().await, self.drained().intake) {
            (Store::Stuck, _) => Some("the store cannot write"),
            (Store::Works, Intake::Closed) => Some("the daemon is being drained"),
            (Store::Works, Intake::Open) => None,
        }
    }
}
