//! What is worth seeing while it happens and not worth storing: the model's words as they come.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::broadcast;

use crate::domain::ids::RunId;

/// Deltas that a slow follower may be behind; then it misses the oldest.
const BEHIND: usize = 256;

/// Some words of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextDelta {
    pub turn: u32,
    pub text: String,
}

/// Followers of the runs that are followed; nothing is kept for the others.
#[derive(Debug, Default)]
pub(super) struct Live {
    followers: Mutex<HashMap<RunId, broadcast::Sender<TextDelta>>>,
}

impl Live {
    /// Everything that is said in a run from now on.
    pub(super) fn follow(&self, run: RunId) -> broadcast::Receiver<TextDelta> {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.retain(|_, sender| sender.receiver_count() > 0);
        followers.entry(run).or_insert_with(|| broadcast::channel(BEHIND).0).subscribe()
    }

    /// Passes words on to whoever follows; without followers they are gone.
    pub(super) fn say(&self, run: RunId, turn: u32, text: &str) {
        let followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followers.get(&run) {
            let _ = sender.send(TextDelta { turn, text: text.to_owned() });
        }
    }
}
