//! The hash chain over the journal's entries: each names all before it, so that none can be changed alone. What
//! entries say: [`crate::domain::journal`]; who recomputes the chain: the store.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::domain::{
    hex::hex,
    ids::{Position, RunId, Sequence, Timestamp},
};

/// SHA-256 of an entry and of all before it in its chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ChainHash(pub [u8; 32]);

impl ChainHash {
    /// What the first entry of a chain names as its predecessor.
    pub const START: Self = Self([0; 32]);
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainHash({self})")
    }
}

/// Everything of an entry that its hash covers.
#[derive(Debug, Clone, Copy)]
pub struct Linked<'a> {
    /// None: the daemon's own chain.
    pub run: Option<RunId>,
    pub sequence: Sequence,
    pub position: Position,
    pub time: Timestamp,
    pub kind: &'a str,
    pub version: u32,
    pub view: &'a str,
    /// SHA-256 of the sealed body, where there is one: an auditor checks it without the key.
    pub body_digest: Option<&'a [u8]>,
    pub policy_revision: Option<&'a str>,
}

impl Linked<'_> {
    /// Hash of this entry after `previous`.
    ///
    /// SHA-256 over `agentd/entry/1`, then each field as its length (8 bytes, little endian) and its
    /// bytes, in the order of this struct, `previous` last; numbers are 8 bytes, little endian; an
    /// absent field has length 2^64 - 1 and no bytes. See docs/journal.md.
    pub fn hash(&self, previous: ChainHash) -> ChainHash {
        let run = self.run.map(|run| run.to_string());
        let mut hasher = Sha256::new();
        hasher.update(b"agentd/entry/1");
        field(&mut hasher, run.as_deref().map(str::as_bytes));
        field(&mut hasher, Some(&self.sequence.0.to_le_bytes()));
        field(&mut hasher, Some(&self.position.0.to_le_bytes()));
        field(&mut hasher, Some(&self.time.0.to_le_bytes()));
        field(&mut hasher, Some(self.kind.as_bytes()));
        field(&mut hasher, Some(&u64::from(self.version).to_le_bytes()));
        field(&mut hasher, Some(self.view.as_bytes()));
        field(&mut hasher, self.body_digest);
        field(&mut hasher, self.policy_revision.map(str::as_bytes));
        field(&mut hasher, Some(&previous.0));
        ChainHash(hasher.finalize().into())
    }
}

fn field(hasher: &mut Sha256, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        None => hasher.update(u64::MAX.to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Linked<'static> {
        Linked {
            run: None,
            sequence: Sequence(1),
            position: Position(7),
            time: Timestamp(3),
            kind: "daemon_stopped",
            version: 1,
            view: "{}",
            body_digest: None,
            policy_revision: None,
        }
    }

    #[test]
    fn every_field_of_an_entry_changes_its_hash() {
        let plain = entry().hash(ChainHash::START);
        let others = [
            Linked { run: Some(RunId::new(uuid::Uuid::nil())), ..entry() }.hash(ChainHash::START),
            Linked { sequence: Sequence(2), ..entry() }.hash(ChainHash::START),
            Linked { position: Position(8), ..entry() }.hash(ChainHash::START),
            Linked { time: Timestamp(4), ..entry() }.hash(ChainHash::START),
            Linked { kind: "daemon_started", ..entry() }.hash(ChainHash::START),
            Linked { version: 2, ..entry() }.hash(ChainHash::START),
            Linked { view: "{ }", ..entry() }.hash(ChainHash::START),
            Linked { body_digest: Some(&[]), ..entry() }.hash(ChainHash::START),
            Linked { policy_revision: Some(""), ..entry() }.hash(ChainHash::START),
            entry().hash(ChainHash([1; 32])),
        ];
        for (n, other) in others.iter().enumerate() {
            assert_ne!(plain, *other, "field {n} is not covered");
        }
    }
}
