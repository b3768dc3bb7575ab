//! What is worth seeing while it happens and not worth storing: the model's words as they come.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::broadcast;

use crate::domain::{ids::RunId, redact::Redactor};

/// Deltas that a slow follower may be behind; then it misses the oldest.
const BEHIND: usize = 256;

/// Some words of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextDelta {
    pub turn: u32,
    pub text: String,
}

/// The words of one answer on their way to its followers, redacted. A secret may come in pieces, so
/// that words are held back until white space ends them.
pub(super) struct Words {
    live: Arc<Live>,
    redactor: Arc<Redactor>,
    run: RunId,
    turn: u32,
    held: Mutex<String>,
}

/// Bytes without white space that are held back; more at once is dropped, and seen with the entry.
const HELD: usize = 64 << 10;

impl Words {
    pub(super) fn new(live: Arc<Live>, redactor: Arc<Redactor>, run: RunId, turn: u32) -> Self {
        Self { live, redactor, run, turn, held: Mutex::default() }
    }

    /// Takes some more words.
    pub(super) fn hear(&self, text: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push_str(text);
        if let Some(end) = held.rfind(char::is_whitespace) {
            let rest = held.split_off(end);
            let whole = std::mem::replace(&mut *held, rest);
            self.live.say(self.run, self.turn, &self.redactor.redact(&whole));
        }
        if held.len() > HELD {
            held.clear();
        }
    }

    /// The answer is over: what was held back is whole.
    pub(super) fn finish(self) {
        let held = self.held.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !held.is_empty() {
            self.live.say(self.run, self.turn, &self.redactor.redact(&held));
        }
    }
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

    /// Passes words on to whoever follows; without followers they are gone. They must be redacted.
    fn say(&self, run: RunId, turn: u32, text: &str) {
        let followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followers.get(&run) {
            let _ = sender.send(TextDelta { turn, text: text.to_owned() });
        }
    }
}
