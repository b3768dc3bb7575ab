//! Stores the long texts of views once each, and removes those that no entry holds any more. What is a long text, and how a
//! view becomes whole again: `sqlite::texts`.

use std::borrow::Cow;

use rusqlite::{OptionalExtension as _, params};
use sha2::{Digest as _, Sha256};

use crate::{
    domain::ids::Position,
    sqlite::{
        texts::{CUT, long_strings},
        writer::batch::{Batch, WriteError},
    },
};

impl Batch<'_> {
    /// A view as its entry's row holds it, and how many texts were stored beside it.
    pub(super) fn set_apart<'v>(
        &self,
        position: Position,
        view: &'v str,
    ) -> Result<(Cow<'v, str>, u32), WriteError> {
        let long = long_strings(view);
        if long.is_empty() {
            return Ok((Cow::Borrowed(view), 0));
        }
        let (mut cut, mut taken, mut texts) = (String::new(), 0, 0);
        for range in long {
            let Some(id) = self.text(&view[range.clone()])? else { continue };
            cut.push_str(&view[taken..range.start]);
            self.transaction
                .prepare_cached("INSERT INTO entry_texts (position, at, text) VALUES (?1, ?2, ?3)")?
                .execute(params![position.0, cut.len(), id])?;
            cut.push_str(CUT);
            taken = range.end;
            texts += 1;
        }
        cut.push_str(&view[taken..]);
        Ok((Cow::Owned(cut), texts))
    }

    /// Where a text is stored, from now on if not before. None: what is stored under its digest is something else, so that
    /// the row must hold the text itself, or a damaged text would take the new entry with it.
    fn text(&self, text: &str) -> Result<Option<i64>, WriteError> {
        let digest: [u8; 32] = Sha256::digest(text).into();
        let known = self
            .transaction
            .prepare_cached("SELECT id, text FROM texts WHERE digest = ?1")?
            .query_row([digest], |row| {
                let is_same = row.get_ref(1)?.as_bytes()? == text.as_bytes();
                Ok(is_same.then_some(row.get(0)?))
            })
            .optional()?;
        if let Some(known) = known {
            return Ok(known);
        }
        self.transaction
            .prepare_cached("INSERT INTO texts (digest, text) VALUES (?1, ?2)")?
            .execute(params![digest, text])?;
        Ok(Some(self.transaction.last_insert_rowid()))
    }

    /// The entries of a run before a sequence that have texts beside them.
    pub(super) fn with_texts(&self, place: i64, before: u64) -> rusqlite::Result<Vec<i64>> {
        self.transaction
            .prepare_cached(
                "SELECT position FROM entries WHERE run = ?1 AND sequence < ?2 AND texts > 0",
            )?
            .query_map(params![place, before], |row| row.get(0))?
            .collect()
    }

    /// Removes what stood beside entries that were removed, as far as no other entry holds it.
    pub(super) fn remove_texts(&self, positions: &[i64]) -> rusqlite::Result<()> {
        for position in positions {
            let held: Vec<i64> = self
                .transaction
                .prepare_cached("DELETE FROM entry_texts WHERE position = ?1 RETURNING text")?
                .query_map([position], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for text in held {
                self.transaction
                    .prepare_cached(
                        "DELETE FROM texts WHERE id = ?1
                         AND NOT EXISTS (SELECT 1 FROM entry_texts WHERE text = ?1)",
                    )?
                    .execute([text])?;
            }
        }
        Ok(())
    }
}
