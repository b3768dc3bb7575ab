//! Page tokens: opaque to callers, and good only for the very list that gave them.

use sha2::{Digest as _, Sha256};
use tonic::Status;

use crate::{
    domain::hex::{hex, unhex},
    grpc::convert,
};

/// Most entries of a page, whatever list it is of.
const MOST: usize = 200;
/// Begins every token; a token of another shape begins otherwise.
const VERSION: &str = "p1";
/// How much of the hash a token carries, in bytes.
const CHECK_BYTES: usize = 8;

/// One list with its filters: a token of another list, or of this one filtered otherwise, is refused.
///
/// A token is no secret and opens nothing: what a caller may see is decided without it.
#[derive(Debug, Clone)]
pub(super) struct List(String);

impl List {
    pub(super) fn new(method: &str, filters: impl IntoIterator<Item = String>) -> Self {
        let filters: Vec<String> = filters.into_iter().collect();
        Self(format!("{method}\n{}", filters.join("\n")))
    }

    /// The token of the page that begins after `place`.
    pub(super) fn token(&self, place: &str) -> String {
        format!("{VERSION}{}{}", hex(place.as_bytes()), hex(&self.check(place)))
    }

    /// Where the page begins: after the place; none: at the start.
    pub(super) fn place(&self, token: &str) -> Result<Option<String>, Status> {
        if token.is_empty() {
            return Ok(None);
        }
        let read = || {
            let bytes = unhex(token.strip_prefix(VERSION)?)?;
            let (place, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
            let place = std::str::from_utf8(place).ok()?;
            (check == self.check(place)).then(|| place.to_owned())
        };
        let message = "is not a token from an earlier answer to this very request";
        read().map(Some).ok_or_else(|| convert::invalid("page_token", message.into()))
    }

    /// The same where places are numbers.
    pub(super) fn number<T: std::str::FromStr>(&self, token: &str) -> Result<Option<T>, Status> {
        let place = self.place(token)?;
        place.map(|place| place.parse()).transpose().map_err(|_| {
            convert::invalid("page_token", "is not a token from an earlier answer".into())
        })
    }

    fn check(&self, place: &str) -> [u8; CHECK_BYTES] {
        let mut hasher = Sha256::new();
        hasher.update(b"agentd/page/1\n");
        hasher.update((self.0.len() as u64).to_le_bytes());
        hasher.update(&self.0);
        hasher.update(place);
        let mut check = [0; CHECK_BYTES];
        check.copy_from_slice(&hasher.finalize()[..CHECK_BYTES]);
        check
    }
}

/// How long a page is: `default` where the caller does not say, 200 where it wants more.
pub(super) fn size(wanted: i32, default: usize) -> Result<usize, Status> {
    match usize::try_from(wanted) {
        Ok(0) => Ok(default),
        Ok(size) => Ok(size.min(MOST)),
        Err(_) => Err(convert::invalid("page_size", format!("{wanted} is negative"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_the_list_that_gave_it_and_for_no_other() {
        let runs = List::new("ListRuns", ["QUEUED".to_owned()]);
        let token = runs.token("17");
        assert_eq!(runs.number(&token).unwrap(), Some(17_i64));
        assert_eq!(runs.place("").unwrap(), None);
        for other in [
            List::new("ListToolCalls", ["QUEUED".to_owned()]),
            List::new("ListRuns", []),
            List::new("ListRuns", ["QUEUED".to_owned(), "FAILED".to_owned()]),
        ] {
            assert!(other.place(&token).is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_token_that_was_altered_anywhere_is_refused() {
        let runs = List::new("ListRuns", []);
        let token = runs.token("17");
        for at in 0..token.len() {
            let mut altered = token.clone().into_bytes();
            altered[at] = if altered[at] == b'3' { b'4' } else { b'3' };
            let altered = String::from_utf8(altered).unwrap();
            assert!(runs.place(&altered).is_err(), "{altered}");
        }
        for foreign in ["17", "p1", "p1zz", "p1123", &token[..token.len() - 2], "é"] {
            assert!(runs.place(foreign).is_err(), "{foreign}");
        }
    }
}
