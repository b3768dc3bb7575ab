//! Long texts of entries' views: each is stored once, under its SHA-256, however many entries hold it. What finds them in a
//! view, and puts them back. That they are stored and removed: `writer::texts`.

use std::ops::Range;

use rusqlite::{Connection, types::ValueRef};
use sha2::{Digest as _, Sha256};

use crate::{domain::ids::Position, sqlite::rows::ReadError};

/// Shortest string of a view that is stored beside it, in bytes as it stands there, with its quotes: a page of the
/// database, which its row would not hold either.
pub(super) const LONG: usize = 4 << 10;
/// What stands for it in the row, so that this is still JSON.
pub(super) const CUT: &str = "\"\"";

/// Where the long strings of a JSON text are, quotes included, in their order.
pub(super) fn long_strings(json: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    if json.len() < LONG {
        return found;
    }
    let mut at = 0;
    while let Some(start) = json.get(at..).and_then(|rest| rest.find('"')).map(|next| at + next)
        && let Some(end) = end_of_string(json, start)
    {
        if end - start >= LONG {
            found.push(start..end);
        }
        at = end;
    }
    found
}

/// Past the closing quote of the string that begins at `start`.
fn end_of_string(json: &str, start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += json.get(at..)?.find(['"', '\\'])?;
        match json.as_bytes().get(at)? {
            b'"' => return Some(at + 1),
            // What follows a backslash is escaped.
            _ => at += 2,
        }
    }
}

/// The view of an entry whose row holds it without so many of its texts.
pub(super) fn whole(
    connection: &Connection,
    position: Position,
    cut: String,
    texts: u32,
) -> Result<String, ReadError> {
    if texts == 0 {
        return Ok(cut);
    }
    let mut statement = connection.prepare_cached(
        "SELECT entry_texts.at, texts.text, sum(octet_length(texts.text)) OVER ()
         FROM entry_texts JOIN texts ON texts.id = entry_texts.text
         WHERE entry_texts.position = ?1 ORDER BY entry_texts.at",
    )?;
    let mut found = statement.query([position.0])?;
    let misfit = || ReadError::Text { position };
    let (mut view, mut taken, mut put_back) = (String::new(), 0, 0_u32);
    while let Some(row) = found.next()? {
        let at: usize = row.get(0)?;
        let between = cut.get(taken..at).ok_or_else(misfit)?;
        if !cut[at..].starts_with(CUT) {
            return Err(misfit());
        }
        if view.is_empty() {
            // To the byte: thousands may be read at once, and what grows takes up to twice its room.
            view.reserve_exact(cut.len() + row.get::<_, usize>(2)?);
        }
        view.push_str(between);
        view.push_str(row.get_ref(1)?.as_str().map_err(|_| misfit())?);
        taken = at + CUT.len();
        put_back += 1;
    }
    if put_back != texts {
        return Err(misfit());
    }
    view.push_str(&cut[taken..]);
    Ok(view)
}

/// What does not fit of the texts as they are stored, and of which entry, where that is known; at most so many faults. That
/// one is not the text of its entry, the entry's hash says; that an entry is missing, those around it.
pub(super) fn faults(
    connection: &Connection,
    most: usize,
) -> Result<Vec<(Option<Position>, &'static str)>, ReadError> {
    let mut faults = Vec::new();
    let mut statement = connection.prepare(
        "SELECT texts.digest, texts.text, min(entry_texts.position)
         FROM texts LEFT JOIN entry_texts ON entry_texts.text = texts.id GROUP BY texts.id",
    )?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()?
        && faults.len() < most
    {
        let fits = match (row.get_ref(0)?, row.get_ref(1)?) {
            (ValueRef::Blob(digest), ValueRef::Text(text)) => {
                Sha256::digest(text).as_slice() == digest
            }
            _ => false,
        };
        let position = row.get(2).map(Position).ok();
        faults.extend(match position {
            None => Some((None, "a long text that no entry holds is stored")),
            Some(_) if fits => None,
            Some(position) => {
                Some((Some(position), "the digest of a long text of it does not fit"))
            }
        });
    }
    let mut statement = connection.prepare(
        "SELECT DISTINCT entry_texts.position FROM entry_texts LEFT JOIN entries USING (position)
         WHERE entries.texts = 0 OR entries.position IS NULL AND (
             EXISTS (SELECT 1 FROM pruned_entries WHERE pruned_entries.position = entry_texts.position)
             OR entry_texts.position NOT BETWEEN 1 AND (SELECT max(position) FROM entries))
         ORDER BY 1 LIMIT ?1",
    )?;
    let mut found = statement.query([i64::try_from(most).unwrap_or(i64::MAX)])?;
    while let Some(row) = found.next()? {
        faults.push((
            row.get(0).map(Position).ok(),
            "a long text is said to stand in it, and does not",
        ));
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_strings_are_found_as_they_stand_in_json_escaped_quotes_and_all() {
        let long = "\\\"ä".repeat(LONG);
        let value = serde_json::json!({ "a": "short", "b": [long, { "c": long }], "d": "\\" });
        let json = value.to_string();
        let found = long_strings(&json);
        assert_eq!(found.len(), 2);
        for range in found {
            assert_eq!(serde_json::from_str::<String>(&json[range]).unwrap(), long);
        }
    }

    #[test]
    fn a_string_is_long_from_the_first_byte_on_that_is_one_too_many() {
        let of = |bytes: usize| format!("[\"{}\",0]", "x".repeat(bytes - 2));
        assert!(long_strings(&of(LONG - 1)).is_empty());
        assert_eq!(long_strings(&of(LONG)), std::iter::once(1..LONG + 1).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_json_is_left_as_it_is() {
        for text in ["", "\"", "\"\\", "ä\\\"ä"] {
            let text = format!("\"{}{text}", "x".repeat(LONG));
            assert!(long_strings(&text).len() <= 1, "{text}");
        }
    }
}
