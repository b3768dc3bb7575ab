//! What was said in a run. The beginning of a long one may be text still, as a checkpoint keeps it: who only wants to
//! know how the run stands need not read it.

use std::sync::Arc;

use crate::domain::{item::Item, run::StoredFault};

/// The conversation so far, oldest first, as the model must see it. It only grows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conversation {
    unread: Option<Unread>,
    /// What follows what has not been read.
    items: Arc<Vec<Item>>,
}

/// The beginning of a conversation, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unread {
    /// JSON, each a list of items.
    pieces: Arc<[String]>,
    /// How many items there are to be in all of them.
    items: usize,
}

impl Conversation {
    /// The one that these pieces hold, of so many items.
    pub(super) fn stored(pieces: impl IntoIterator<Item = String>, items: usize) -> Self {
        let pieces = pieces.into_iter().collect();
        Self { unread: Some(Unread { pieces, items }), items: Arc::default() }
    }

    pub fn len(&self) -> usize {
        self.unread.as_ref().map_or(0, |unread| unread.items) + self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it.
    ///
    /// Errors: its beginning cannot be read; it stays as it is.
    pub fn read(&mut self) -> Result<&Arc<Vec<Item>>, StoredFault> {
        if let Some(unread) = &self.unread {
            let mut items = unread.read()?;
            items.extend(self.items.iter().cloned());
            *self = items.into();
        }
        Ok(&self.items)
    }

    /// All of it; none where its beginning has not been read.
    pub fn get(&self) -> Option<&[Item]> {
        self.unread.is_none().then_some(&*self.items)
    }

    /// What was said from a place on, from 0; none where that has not been read, or is past its end.
    pub fn since(&self, place: usize) -> Option<&[Item]> {
        let unread = self.unread.as_ref().map_or(0, |unread| unread.items);
        self.items.get(place.checked_sub(unread)?..)
    }

    pub(super) fn extend(&mut self, items: impl IntoIterator<Item = Item>) {
        Arc::make_mut(&mut self.items).extend(items);
    }
}

impl Unread {
    fn read(&self) -> Result<Vec<Item>, StoredFault> {
        let mut items = Vec::with_capacity(self.items.min(1 << 16));
        for piece in &*self.pieces {
            items.append(&mut serde_json::from_str(piece)?);
        }
        match items.len() == self.items {
            true => Ok(items),
            false => Err(StoredFault::Items { expected: self.items, found: items.len() }),
        }
    }
}

impl From<Vec<Item>> for Conversation {
    fn from(items: Vec<Item>) -> Self {
        Self { unread: None, items: Arc::new(items) }
    }
}
