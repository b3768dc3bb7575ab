//! The policy in force, and how another comes into force. What it decides: `domain::policy`; how files
//! become one: the `PolicyFiles` port.
//!
//! Invariant: a policy comes into force whole, after it stands in the journal, or not at all.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use crate::{
    domain::{
        ids::{Caller, PolicyRevision, Sequence, Timestamp},
        journal::{NewEntry, PolicyReload, Reloaded},
        policy::{Compiled, Policy},
    },
    engine::{Engine, EngineError},
    ports::PolicyFiles,
};

/// The policy in force.
pub struct Policies {
    files: Arc<dyn PolicyFiles>,
    now: RwLock<Standing>,
    /// How many came into force before the one that is.
    count: watch::Sender<u64>,
    /// One reload at a time; whoever asks meanwhile waits, and reads the files again.
    turn: tokio::sync::Mutex<()>,
}

/// How the policy stands.
#[derive(Debug, Clone)]
pub struct Standing {
    pub policy: Arc<Policy>,
    /// When it came into force.
    pub since: Timestamp,
    /// Of the entry in the daemon's chain that says so.
    pub entry: Sequence,
    /// Why the files as they were last read are not in force, one line each; empty when they are.
    pub faults: Arc<[String]>,
}

/// What came of a reload that was not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reload {
    /// The files say what is in force already.
    Unchanged {
        revision: PolicyRevision,
    },
    Applied {
        before: PolicyRevision,
        revision: PolicyRevision,
    },
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policies").field("now", &self.standing().policy.revision).finish()
    }
}

impl Policies {
    /// With a policy that has come into force by an entry of the daemon's chain.
    pub fn new(
        files: Arc<dyn PolicyFiles>,
        policy: Arc<Policy>,
        since: Timestamp,
        entry: Sequence,
    ) -> Self {
        let now = Standing { policy, since, entry, faults: Arc::default() };
        Self {
            files,
            now: RwLock::new(now),
            count: watch::Sender::new(0),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The policy in force now. Whoever decides takes it once and keeps to it.
    pub fn current(&self) -> Arc<Policy> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).policy.clone()
    }

    /// Changes whenever another policy has come into force.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }

    pub fn standing(&self) -> Standing {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the files say now. Nothing comes into force.
    ///
    /// Errors: all that is wrong with them, one line each.
    pub async fn compiled(&self) -> Result<Policy, Vec<String>> {
        self.files.compile().await.policy
    }

    /// The same, with what came of the tests that stand in the files.
    pub async fn tested(&self) -> Compiled {
        self.files.compile().await
    }

    fn set(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.now.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Engine {
    /// Reads the policy files again. Calls that are decided from now on follow what they say; calls under
    /// way keep to what they were decided under.
    ///
    /// Errors: the files are not valid, or do not say `expected`; the policy in force stays in force.
    pub async fn reload_policy(
        &self,
        by: Caller,
        expected: Option<PolicyRevision>,
    ) -> Result<Reload, EngineError> {
        let engine = self.clone();
        self.finish(async move { engine.reload(by, expected).await }).await
    }

    async fn reload(
        &self,
        by: Caller,
        expected: Option<PolicyRevision>,
    ) -> Result<Reload, EngineError> {
        let policies = &self.world().policies;
        let _turn = policies.turn.lock().await;
        let before = policies.current().revision.clone();
        let policy = match policies.compiled().await {
            Ok(policy) => policy,
            Err(faults) => return Err(self.refuse(by, before, faults).await?),
        };
        let found = policy.revision.clone();
        policies.set(|now| now.faults = Arc::default());
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(EngineError::PolicyMoved { expected, found });
        }
        if found == before {
            return Ok(Reload::Unchanged { revision: found });
        }
        let outcome = Reloaded::Applied { revision: found.clone() };
        let (since, entry) = self.note_reload(by, before.clone(), outcome, found.clone()).await?;
        policies.set(|now| {
            *now = Standing { policy: Arc::new(policy), since, entry, faults: Arc::default() };
        });
        policies.count.send_modify(|count| *count += 1);
        Ok(Reload::Applied { before, revision: found })
    }

    /// Keeps what is in force, and remembers why.
    async fn refuse(
        &self,
        by: Caller,
        before: PolicyRevision,
        faults: Vec<String>,
    ) -> Result<EngineError, EngineError> {
        let kept: Arc<[String]> = faults.clone().into();
        self.world().policies.set(|now| now.faults = kept);
        let outcome = Reloaded::Refused { faults: faults.clone() };
        self.note_reload(by, before.clone(), outcome, before).await?;
        Ok(EngineError::PolicyInvalid { faults })
    }

    async fn note_reload(
        &self,
        by: Caller,
        before: PolicyRevision,
        outcome: Reloaded,
        in_force: PolicyRevision,
    ) -> Result<(Timestamp, Sequence), EngineError> {
        let time = self.world().clock.now();
        let record = PolicyReload { by, before, outcome }.into();
        let entry = NewEntry { time, record, policy_revision: Some(in_force) };
        let sequence = self.world().journal.append_daemon(entry).await?;
        Ok((time, sequence))
    }
}
