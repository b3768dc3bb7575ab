//! A run's state as text, so that a run can be opened without folding its journal from the first entry. Derived: what
//! cannot be read back is folded anew. What is worth keeping, and when, is not decided here.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::{
    item::Item,
    run::{Conversation, RunState},
};

/// Whose text it is: another build may fold otherwise, and must not go on from what this one thought.
const BUILD: &str = env!("CARGO_PKG_VERSION");

#[derive(Serialize)]
struct Written<'a> {
    build: &'a str,
    /// How long the conversation is, which is kept beside it.
    items: usize,
    state: &'a RunState,
}

#[derive(Deserialize)]
struct Found {
    build: String,
    items: usize,
    state: Box<RawValue>,
}

/// Why a stored state is not gone on from.
#[derive(Debug, thiserror::Error)]
pub enum StoredFault {
    #[error("it was stored by agentd {0}")]
    OtherBuild(String),
    #[error("it does not have the shape of a state: {0}")]
    Shape(#[from] serde_json::Error),
    #[error("its conversation has {found} items, not {expected}")]
    Items { expected: usize, found: usize },
}

impl StoredFault {
    /// Whether nothing is wrong with it but that it is not ours.
    pub fn is_other_build(&self) -> bool {
        matches!(self, Self::OtherBuild(_))
    }
}

impl RunState {
    /// The state without its conversation, as JSON. The same state always gives the same bytes.
    pub fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Written { build: BUILD, items: self.items.len(), state: self })
    }

    /// The state that [`Self::encode`] wrote, with the pieces of its conversation, in order, as
    /// [`encode_items`] wrote them. These are not read yet.
    pub fn decode(
        state: &str,
        pieces: impl IntoIterator<Item = String>,
    ) -> Result<Self, StoredFault> {
        let found: Found = serde_json::from_str(state)?;
        if found.build != BUILD {
            return Err(StoredFault::OtherBuild(found.build));
        }
        let mut state: Self = serde_json::from_str(found.state.get())?;
        state.items = Conversation::stored(pieces, found.items);
        Ok(state)
    }
}

/// A piece of a conversation as JSON.
pub fn encode_items(items: &[Item]) -> Result<String, serde_json::Error> {
    serde_json::to_string(items)
}
