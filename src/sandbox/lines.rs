//! Lines of a text. Reads nothing.

use crate::domain::{
    budget,
    effect::{Captured, Lines, ShownLines},
};

/// The lines that are wanted, as far as they may be shown.
pub(super) fn select(text: &str, wanted: Lines) -> (Captured, ShownLines) {
    let total = text.lines().count() as u64;
    match wanted {
        Lines::All => (ends(text), ShownLines { first: 1, last: total, total }),
        Lines::Range { first, last } => {
            let (content, shown) = range(text, first, last.min(total));
            let last = if shown == 0 { 0 } else { first + shown - 1 };
            (content, ShownLines { first, last, total })
        }
    }
}

/// The whole text, or its head and its tail, cut between characters.
fn ends(text: &str) -> Captured {
    let half = budget::OUTPUT_TEXT_BYTES / 2;
    if text.len() <= 2 * half {
        return Captured { head: text.into(), ..Captured::default() };
    }
    let head = &text[..text.floor_char_boundary(half)];
    let tail = &text[text.ceil_char_boundary(text.len() - half)..];
    let dropped = (text.len() - head.len() - tail.len()) as u64;
    Captured { head: head.into(), tail: tail.into(), dropped }
}

/// Whole lines from `first` to `last`, as many as may be shown, and their number. One line that is too
/// long for itself is cut.
fn range(text: &str, first: u64, last: u64) -> (Captured, u64) {
    let skip = usize::try_from(first.saturating_sub(1)).unwrap_or(usize::MAX);
    let count = usize::try_from((last + 1).saturating_sub(first)).unwrap_or(usize::MAX);
    let wanted = || text.split_inclusive('\n').skip(skip).take(count);
    let bytes: usize = wanted().map(str::len).sum();
    let mut head = String::new();
    let mut shown = 0;
    for line in wanted() {
        let room = budget::OUTPUT_TEXT_BYTES - head.len();
        if line.len() > room && shown > 0 {
            break;
        }
        head.push_str(&line[..line.floor_char_boundary(room.min(line.len()))]);
        shown += 1;
    }
    let dropped = (bytes - head.len()) as u64;
    (Captured { head: head.into_bytes(), tail: Vec::new(), dropped }, shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, first: u64, last: u64) -> (String, ShownLines, u64) {
        let (content, lines) = select(text, Lines::Range { first, last });
        (String::from_utf8(content.head).unwrap(), lines, content.dropped)
    }

    #[test]
    fn a_range_shows_whole_lines_and_says_which() {
        let text = "a\nb\nc\nd";
        let lines = |first, last| ShownLines { first, last, total: 4 };
        assert_eq!(shown(text, 2, 3), ("b\nc\n".into(), lines(2, 3), 0));
        assert_eq!(shown(text, 3, u64::MAX), ("c\nd".into(), lines(3, 4), 0));
        assert_eq!(shown(text, 9, 12), (String::new(), lines(9, 0), 0));
    }

    #[test]
    fn a_range_that_is_too_long_ends_after_a_whole_line_and_counts_the_rest() {
        let line = format!("{}\n", "x".repeat(9_999));
        let (text, lines, dropped) = shown(&line.repeat(10), 1, 10);
        assert_eq!((text.len(), lines.last, dropped), (30_000, 3, 70_000));
        let (text, lines, dropped) = shown(&"ü".repeat(40_000), 1, 1);
        assert_eq!((text.len(), lines.last, dropped), (32_768, 1, 80_000 - 32_768));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let (content, lines) = select(&"€".repeat(20_000), Lines::All);
        assert!(std::str::from_utf8(&content.head).is_ok());
        assert!(std::str::from_utf8(&content.tail).is_ok());
        assert_eq!(content.head.len() + content.tail.len() + content.dropped as usize, 60_000);
        assert_eq!(lines, ShownLines { first: 1, last: 1, total: 1 });
    }
}
