//! Signs heads of the journal, and checks signatures (Ed25519). What a head says: `domain::head`. The key lies in a file
//! of its own; whoever holds the public key, or heads from before, can tell when the journal was written anew.

use std::{cmp::Reverse, fmt, io, path::Path};

use ring::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};

use crate::{
    domain::{
        chain::ChainHash,
        head::{HeadSigned, JournalDigest, KeptHead, SignedHeads, signed_bytes},
        hex::{hex, unhex},
        ids::{Position, Timestamp},
    },
    private_file,
};

/// File name of the key in the state directory, where the configuration names no other place.
pub const KEY: &str = "sign.key";
const HEAD_SIGNED: &str = "head_signed";
/// Keys that a report names.
const MOST_KEYS: usize = 16;

/// Holds the key that heads are signed with.
pub struct Signer {
    pair: Ed25519KeyPair,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// With the key of `path` (PKCS #8, DER), which is made there at the first start.
    ///
    /// Errors: the file cannot be read or made, or holds no Ed25519 key.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fresh = || {
            let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
            made.map(|document| document.as_ref().to_vec())
                .map_err(|_| io::Error::other("no random bytes can be had"))
        };
        let document = private_file::read_or_create(path, fresh)?;
        let wrong = |_| {
            let said = "holds no Ed25519 key (PKCS #8, DER); put back the key that was there, or move it away: \
                        a new one is made then";
            io::Error::new(io::ErrorKind::InvalidData, said)
        };
        // Keys of other makers leave the public half out.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&document).map_err(wrong)?;
        Ok(Self { pair })
    }

    /// Signs the journal up to an entry.
    pub fn sign(&self, entries: Position, time: Timestamp, digest: JournalDigest) -> HeadSigned {
        let signature = self.pair.sign(&signed_bytes(entries, time, digest));
        HeadSigned {
            entries,
            digest: digest.to_string(),
            key: hex(self.pair.public_key().as_ref()),
            signature: hex(signature.as_ref()),
        }
    }
}

/// The digest that a head signs for, if the key that it names has signed it at that time.
pub fn verified(head: &HeadSigned, time: Timestamp) -> Option<JournalDigest> {
    let digest = JournalDigest(unhex(&head.digest)?.try_into().ok()?);
    let key = UnparsedPublicKey::new(&ED25519, unhex(&head.key)?);
    let signature = unhex(&head.signature)?;
    key.verify(&signed_bytes(head.entries, time, digest), &signature).ok()?;
    Some(digest)
}

/// Follows a journal entry by entry, and compares it with the heads in it and with those that somebody kept.
#[derive(Debug)]
pub struct HeadWalk {
    /// Of all that was followed; none while something before it is missing.
    digest: Option<JournalDigest>,
    /// The last one first.
    kept: Vec<KeptHead>,
    /// Whether any was given that has been neither compared nor told of.
    is_silent: bool,
    scope: Scope,
    heads: SignedHeads,
}

/// What is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of the journal: every head that was kept must fit.
    Whole,
    /// Lines of it, which may begin late, end early, and leave out what was pruned: heads are compared as far as they go.
    Part,
}

/// An entry as far as heads are about it.
#[derive(Debug, Clone, Copy)]
pub struct Followed<'a> {
    pub position: Position,
    pub time: Timestamp,
    pub kind: &'a str,
    pub view: &'a str,
    pub hash: ChainHash,
}

impl HeadWalk {
    /// Before the first entry of the journal.
    pub fn new(mut kept: Vec<KeptHead>, scope: Scope) -> Self {
        kept.sort_by_key(|head| Reverse(head.entries));
        let (digest, is_silent) = (Some(JournalDigest::START), !kept.is_empty());
        Self { digest, kept, is_silent, scope, heads: SignedHeads::default() }
    }

    /// The first entry that is here is not the journal's first: heads of before cannot be compared.
    pub fn begin_at(&mut self, first: Position) {
        self.digest = None;
        self.kept.retain(|head| head.entries >= first);
    }

    /// Entries are missing here, which is told by others. The next head says what they came to, but nothing that was kept
    /// can be compared any more: what is missing could be anything.
    pub fn skip(&mut self) {
        self.digest = None;
        self.kept.clear();
    }

    /// Follows one entry; gives what is wrong.
    pub fn follow(&mut self, entry: &Followed<'_>) -> Vec<String> {
        let mut faults = Vec::new();
        if entry.kind == HEAD_SIGNED {
            faults.extend(self.check(entry).err().map(str::to_owned));
        }
        faults.extend(self.compare(Position(entry.position.0.saturating_sub(1))));
        self.digest = self.digest.map(|digest| digest.and(entry.hash));
        faults
    }

    /// With the heads that were kept of what was followed by now.
    fn compare(&mut self, followed: Position) -> Vec<String> {
        let mut faults = Vec::new();
        while let Some(head) = self.kept.pop_if(|head| head.entries <= followed) {
            self.is_silent = false;
            let entries = head.entries;
            if self.digest.is_none() || entries != followed {
                faults.push(format!("what a kept head of {entries} entries signs is not all here"));
            } else if self.digest != Some(head.digest) {
                faults.push(format!(
                    "the journal before it is not what a kept head of {entries} entries signs"
                ));
            } else {
                self.heads.compared += 1;
            }
        }
        faults
    }

    fn check(&mut self, entry: &Followed<'_>) -> Result<(), &'static str> {
        let head: HeadSigned =
            serde_json::from_str(entry.view).map_err(|_| "is a signed head that cannot be read")?;
        let signed = verified(&head, entry.time).ok_or("its signature does not fit")?;
        if head.entries.0 + 1 != entry.position.0 || *self.digest.get_or_insert(signed) != signed {
            return Err("the journal before it is not what it signs");
        }
        self.heads.count += 1;
        self.heads.entries = head.entries;
        if !self.heads.keys.contains(&head.key) && self.heads.keys.len() < MOST_KEYS {
            self.heads.keys.push(head.key);
        }
        Ok(())
    }

    /// After the last entry: the heads that fit, and what is wrong with the end.
    pub fn finish(mut self, entries: Position) -> (SignedHeads, Vec<String>) {
        let mut faults = self.compare(entries);
        if let (Scope::Whole, Some(last)) = (self.scope, self.kept.first()) {
            let last = last.entries;
            faults.push(format!(
                "the journal ends at entry {entries}, and a kept head signs {last} entries"
            ));
        }
        if self.is_silent && faults.is_empty() {
            faults.push(
                "none of the kept heads can be compared with what is here: it begins after them, ends before them, or \
                 lacks entries; look at the database, or a copy of it"
                    .into(),
            );
        }
        (self.heads, faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_known_by_its_key_and_by_nothing_that_was_changed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(KEY);
        let (digest, time) = (JournalDigest([3; 32]), Timestamp(5));
        let head = Signer::open(&path).unwrap().sign(Position(9), time, digest);
        let again = Signer::open(&path).unwrap().sign(Position(9), time, digest);
        assert_eq!(head, again);
        assert_eq!(verified(&head, time), Some(digest));
        let other = Signer::open(&home.path().join("other")).unwrap();
        let changed = [
            HeadSigned { entries: Position(8), ..head.clone() },
            HeadSigned { digest: "04".repeat(32), ..head.clone() },
            HeadSigned { key: other.sign(Position(9), time, digest).key, ..head.clone() },
            HeadSigned { signature: head.signature.replace('0', "1"), ..head.clone() },
            HeadSigned { signature: "é".into(), ..head.clone() },
            HeadSigned { digest: "03".into(), ..head.clone() },
        ];
        for one in changed {
            assert_eq!(verified(&one, time), None, "{one:?}");
        }
        assert_eq!(verified(&head, Timestamp(6)), None);
    }

    #[test]
    fn a_file_that_holds_no_key_is_told_and_stays() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(KEY);
        std::fs::write(&path, "nonsense").unwrap();
        let error = Signer::open(&path).unwrap_err();
        assert!(error.to_string().starts_with("holds no Ed25519 key"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"nonsense");
    }

    fn walked(kept: &[KeptHead], hashes: &[u8]) -> Vec<String> {
        let mut walk = HeadWalk::new(kept.to_vec(), Scope::Whole);
        let mut faults = Vec::new();
        for (place, byte) in (1..).zip(hashes) {
            faults.extend(walk.follow(&Followed {
                position: Position(place),
                time: Timestamp(0),
                kind: "daemon_started",
                view: "{}",
                hash: ChainHash([*byte; 32]),
            }));
        }
        faults.extend(walk.finish(Position(hashes.len() as u64)).1);
        faults
    }

    fn kept(hashes: &[u8]) -> KeptHead {
        let digest =
            hashes.iter().fold(JournalDigest::START, |sum, byte| sum.and(ChainHash([*byte; 32])));
        KeptHead { entries: Position(hashes.len() as u64), digest }
    }

    #[test]
    fn a_journal_that_goes_on_from_each_kept_head_has_no_fault() {
        let heads = [kept(&[1, 2]), kept(&[1]), kept(&[1, 2]), kept(&[1, 2, 3])];
        assert_eq!(walked(&heads, &[1, 2, 3, 4]), Vec::<String>::new());
    }

    #[test]
    fn a_journal_that_was_written_anew_or_cut_off_does_not_fit_its_kept_heads() {
        let heads = [kept(&[1, 2]), kept(&[1, 2, 3])];
        let unlike = |entries| {
            format!("the journal before it is not what a kept head of {entries} entries signs")
        };
        assert_eq!(walked(&heads, &[1, 9, 3, 4]), [unlike(2), unlike(3)]);
        assert_eq!(walked(&heads, &[2, 1, 3]), [unlike(2), unlike(3)]);
        let short = "the journal ends at entry 2, and a kept head signs 3 entries";
        assert_eq!(walked(&heads, &[1, 2]), [short]);
    }
}
