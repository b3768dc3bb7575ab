//! Lines that match a pattern, by ripgrep's own libraries.

use std::io;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{
    BinaryDetection, Searcher, SearcherBuilder, Sink, SinkContext, SinkContextKind, SinkMatch,
};

use crate::{
    domain::tree::{
        ANSWER_BYTES, Case, Incomplete, Match, Matches, SearchQuery, Syntax, TOO_LONG,
        TOO_MANY_RESULTS, TreeAnswer,
    },
    sandbox::walk::{Go, Tree, fault},
};

/// Larger files are skipped, in bytes.
const FILE_BYTES: u64 = 64 << 20;
/// Longest line that the searcher holds, in bytes; a file with a longer one is skipped.
const LINE_HEAP: usize = 16 << 20;
/// Most characters of a line that are shown.
const LINE_CHARS: usize = 400;
/// Largest compiled pattern, in bytes.
const PATTERN_HEAP: usize = 10 << 20;

pub(super) fn search(tree: &Tree<'_>, query: &SearchQuery) -> TreeAnswer {
    let matcher = match matcher(query) {
        Ok(matcher) => matcher,
        Err(error) => return fault("BAD_PATTERN", bad_pattern(query, &error)),
    };
    let globs = match globs(&query.globs) {
        Ok(globs) => globs,
        Err(error) => return fault("BAD_GLOB", format!("globs: {error}")),
    };
    let mut searcher = SearcherBuilder::new()
        .line_number(true)
        .before_context(query.context_lines)
        .after_context(query.context_lines)
        .binary_detection(BinaryDetection::quit(0))
        .heap_limit(Some(LINE_HEAP))
        .build();
    let mut found = Matches::default();
    let mut bytes = 0;
    let mut full = None;
    let unfinished = tree.walk(query.ignored, None, |entry| {
        let wanted = globs.as_ref().is_none_or(|globs| globs.is_match(&entry.path));
        if !entry.kind.is_file() || !wanted {
            return Go::On;
        }
        let room = Room { matches: query.most - found.matches.len(), bytes: ANSWER_BYTES - bytes };
        let mut sink = Lines::new(&entry.path, room);
        match search_file(tree, &entry.path, &mut searcher, &matcher, &mut sink) {
            Searched::Yes => found.files_searched += 1,
            Searched::Skipped => found.files_skipped += 1,
        }
        bytes += sink.bytes;
        full = sink.full;
        found.matches.extend(sink.matches);
        if full.is_some() { Go::Enough } else { Go::On }
    });
    let shown = found.matches.len();
    let cut = full.map(|reason| {
        let message = format!(
            "there are more than the {shown} matches shown; narrow the pattern, the path or the globs"
        );
        Incomplete::new(reason, message)
    });
    found.incomplete = unfinished.or(cut);
    TreeAnswer::Matches(found)
}

fn matcher(query: &SearchQuery) -> Result<RegexMatcher, grep_regex::Error> {
    RegexMatcherBuilder::new()
        .case_insensitive(query.case == Case::Insensitive)
        .fixed_strings(query.syntax == Syntax::Literal)
        .line_terminator(Some(b'\n'))
        .size_limit(PATTERN_HEAP)
        .build(&query.pattern)
}

fn bad_pattern(query: &SearchQuery, error: &grep_regex::Error) -> String {
    match query.syntax {
        Syntax::Regex => format!("pattern: {error}. Set literal to search for the text itself"),
        Syntax::Literal => format!("pattern: {error}"),
    }
}

/// None: every file. A glob without `/` means the file's name, wherever it lies.
fn globs(patterns: &[String]) -> Result<Option<GlobSet>, globset::Error> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let anywhere =
            if pattern.contains('/') { pattern.clone() } else { format!("**/{pattern}") };
        set.add(
            GlobBuilder::new(anywhere.trim_start_matches("./")).literal_separator(true).build()?,
        );
    }
    set.build().map(Some)
}

enum Searched {
    Yes,
    Skipped,
}

fn search_file(
    tree: &Tree<'_>,
    path: &str,
    searcher: &mut Searcher,
    matcher: &RegexMatcher,
    sink: &mut Lines<'_>,
) -> Searched {
    let Some(file) = tree.open(path) else { return Searched::Skipped };
    if file.metadata().is_ok_and(|metadata| metadata.len() > FILE_BYTES) {
        return Searched::Skipped;
    }
    match searcher.search_file(matcher, &file, &mut *sink) {
        Ok(()) if sink.binary => Searched::Skipped,
        Ok(()) => Searched::Yes,
        Err(_) => Searched::Skipped,
    }
}

/// How much more may be shown.
struct Room {
    matches: usize,
    bytes: usize,
}

/// The matches of one file.
struct Lines<'a> {
    path: &'a str,
    room: Room,
    bytes: usize,
    matches: Vec<Match>,
    /// Context that belongs to the next match.
    before: Vec<String>,
    binary: bool,
    full: Option<&'static str>,
}

impl<'a> Lines<'a> {
    fn new(path: &'a str, room: Room) -> Self {
        let (matches, before) = (Vec::new(), Vec::new());
        Self { path, room, bytes: 0, matches, before, binary: false, full: None }
    }

    fn take(&mut self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end_matches(['\n', '\r']);
        let shown = match text.char_indices().nth(LINE_CHARS) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        };
        self.bytes += shown.len() + 4;
        shown
    }
}

impl Sink for &mut Lines<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, matched: &SinkMatch<'_>) -> io::Result<bool> {
        self.full = match () {
            () if self.matches.len() == self.room.matches => Some(TOO_MANY_RESULTS),
            () if self.bytes > self.room.bytes => Some(TOO_LONG),
            () => None,
        };
        if self.full.is_some() {
            return Ok(false);
        }
        let text = self.take(matched.bytes());
        self.bytes += self.path.len() + 40;
        let found = Match {
            path: self.path.to_owned(),
            line: matched.line_number().unwrap_or(0),
            text,
            before: std::mem::take(&mut self.before),
            after: Vec::new(),
        };
        self.matches.push(found);
        Ok(true)
    }

    fn context(&mut self, _: &Searcher, context: &SinkContext<'_>) -> io::Result<bool> {
        let text = self.take(context.bytes());
        match (context.kind(), self.matches.last_mut()) {
            (SinkContextKind::After, Some(found)) => found.after.push(text),
            (SinkContextKind::Before, _) => self.before.push(text),
            (SinkContextKind::After | SinkContextKind::Other, _) => {}
        }
        Ok(true)
    }

    fn binary_data(&mut self, _: &Searcher, _: u64) -> io::Result<bool> {
        self.binary = true;
        Ok(false)
    }
}
