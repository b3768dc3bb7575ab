//! Seals whole records, so that a copy of the database without its key shows only redacted views.
//!
//! AES-256-GCM with a random nonce; bound to what it is, its run and its place. The key is `seal.key` in the state
//! directory, mode 0600: back it up with the database, or runs cannot go on from it.

use std::{fmt, io, path::Path};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom as _, SystemRandom},
};

use crate::{
    domain::ids::{RunId, Sequence},
    private_file,
    sqlite::OpenError,
};

/// File name of the key in the state directory.
pub(super) const KEY: &str = "seal.key";
const KEY_BYTES: usize = 32;
/// First byte of a sealed body.
const FORMAT: u8 = 1;

/// The key of one state directory.
pub(super) struct Seal {
    key: LessSafeKey,
    random: SystemRandom,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

/// What a sealed text is, so that none can stand for another.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// The record of an entry.
    Entry(Sequence),
    /// A run's state after an entry.
    State(Sequence),
    /// A part of a run's conversation, by the place of its first item.
    Piece(usize),
}

/// A sealed body was altered, belongs elsewhere, or was sealed with another key.
#[derive(Debug, thiserror::Error)]
#[error("a sealed body does not open; is seal.key the one it was sealed with?")]
pub(super) struct Broken;

impl Seal {
    /// The state directory's key; made at the first start.
    pub(super) fn open(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join(KEY);
        let file = |source| OpenError::File { path: path.clone(), source };
        let random = SystemRandom::new();
        let fresh = || {
            let mut bytes = vec![0; KEY_BYTES];
            random.fill(&mut bytes).map_err(|_| io::Error::other("no randomness"))?;
            Ok(bytes)
        };
        let bytes = private_file::read_or_create(&path, fresh).map_err(file)?;
        Self::of(&bytes, &path)
    }

    /// A key that is there.
    pub(super) fn read(path: &Path) -> Result<Self, OpenError> {
        let file = |source| OpenError::File { path: path.to_owned(), source };
        Self::of(&std::fs::read(path).map_err(file)?, path)
    }

    fn of(bytes: &[u8], path: &Path) -> Result<Self, OpenError> {
        let key = UnboundKey::new(&AES_256_GCM, bytes);
        let key = key.map_err(|_| OpenError::Key { path: path.to_owned() })?;
        Ok(Self { key: LessSafeKey::new(key), random: SystemRandom::new() })
    }

    /// Seals a text: format, nonce, then the encrypted bytes with their tag.
    pub(super) fn seal(
        &self,
        run: Option<RunId>,
        at: Place,
        body: &str,
    ) -> Result<Vec<u8>, Broken> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| Broken)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len() + AES_256_GCM.tag_len());
        sealed.push(FORMAT);
        sealed.extend_from_slice(&nonce);
        let mut text = body.as_bytes().to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(nonce, bound_to(run, at), &mut text)
            .map_err(|_| Broken)?;
        sealed.append(&mut text);
        Ok(sealed)
    }

    /// Opens what [`Self::seal`] sealed for the same run and place.
    pub(super) fn open_body(
        &self,
        run: Option<RunId>,
        at: Place,
        sealed: &[u8],
    ) -> Result<String, Broken> {
        let (format, rest) = sealed.split_first().ok_or(Broken)?;
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(Broken)?;
        if *format != FORMAT {
            return Err(Broken);
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Broken)?;
        let mut text = text.to_vec();
        let length =
            self.key.open_in_place(nonce, bound_to(run, at), &mut text).map_err(|_| Broken)?.len();
        text.truncate(length);
        String::from_utf8(text).map_err(|_| Broken)
    }
}

fn bound_to(run: Option<RunId>, at: Place) -> Aad<String> {
    let run = run.map(|run| run.to_string()).unwrap_or_default();
    Aad::from(match at {
        Place::Entry(sequence) => format!("{run}/{sequence}"),
        Place::State(sequence) => format!("{run}/{sequence}/state"),
        Place::Piece(first) => format!("{run}/{first}/piece"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_opens_only_with_its_key_its_run_and_its_place() {
        let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let seal = Seal::open(home.path()).unwrap();
        let sealed = seal.seal(None, Place::Entry(Sequence(1)), "words").unwrap();
        let reopened = Seal::open(home.path()).unwrap();
        let at = Place::Entry(Sequence(1));
        assert_eq!(reopened.open_body(None, at, &sealed).unwrap(), "words");
        for other in [Place::Entry(Sequence(2)), Place::State(Sequence(1)), Place::Piece(1)] {
            assert!(reopened.open_body(None, other, &sealed).is_err(), "{other:?}");
        }
        assert!(Seal::open(elsewhere.path()).unwrap().open_body(None, at, &sealed).is_err());
        assert!(!sealed.windows(5).any(|bytes| bytes == b"words"));
    }
}
