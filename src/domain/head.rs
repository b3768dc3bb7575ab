//! Signed heads: one digest that stands for the whole journal up to an entry, signed, for somebody outside to keep. Who
//! signs and who checks signatures: [`crate::signing`]. What else is chained: [`crate::domain::chain`].

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::domain::{
    chain::ChainHash,
    ids::{Position, Timestamp},
};

/// SHA-256 over the hashes of all entries of the journal, in the order of position: over all chains, and how they lie
/// between one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalDigest(pub [u8; 32]);

impl JournalDigest {
    /// Of a journal without entries.
    pub const START: Self = Self([0; 32]);

    /// With one more entry: SHA-256 over `agentd/journal/1`, the digest before, and the entry's hash.
    #[must_use]
    pub fn and(self, entry: ChainHash) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"agentd/journal/1");
        hasher.update(self.0);
        hasher.update(entry.0);
        Self(hasher.finalize().into())
    }
}

impl fmt::Display for JournalDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ChainHash(self.0).fmt(f)
    }
}

/// The whole journal up to an entry, signed. An entry of the daemon's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadSigned {
    /// Entries that are signed for: all up to this position.
    pub entries: Position,
    /// Their [`JournalDigest`]; 64 hexadecimal digits.
    pub digest: String,
    /// The Ed25519 public key; 64 hexadecimal digits.
    pub key: String,
    /// Over [`signed_bytes`]; 128 hexadecimal digits.
    pub signature: String,
}

/// What a head's signature is over: `agentd/head/1`, the number of entries and the time of the entry (microseconds since
/// 1970), 8 bytes each, little endian, and the digest.
pub fn signed_bytes(entries: Position, time: Timestamp, digest: JournalDigest) -> Vec<u8> {
    let parts: [&[u8]; 4] =
        [b"agentd/head/1", &entries.0.to_le_bytes(), &time.0.to_le_bytes(), &digest.0];
    parts.concat()
}

/// A head that somebody kept: what the journal up to there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptHead {
    pub entries: Position,
    pub digest: JournalDigest,
}

/// The signed heads that were found in a journal, and fit it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SignedHeads {
    pub count: u64,
    /// Entries that the last one signs for.
    pub entries: Position,
    /// Heads kept elsewhere that fit.
    pub compared: u64,
    /// Public keys that signed, in the order of their first head; at most 16.
    pub keys: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_head_changes_what_is_signed() {
        let digest = JournalDigest([7; 32]);
        let bytes =
            |entries, time, digest| signed_bytes(Position(entries), Timestamp(time), digest);
        let plain = bytes(1, 2, digest);
        assert_eq!(plain.len(), 13 + 8 + 8 + 32);
        let others =
            [bytes(2, 2, digest), bytes(1, 1, digest), bytes(1, 2, JournalDigest([8; 32]))];
        assert!(others.iter().all(|other| *other != plain));
    }
}
