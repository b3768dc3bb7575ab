//! What is worth seeing while it happens and not worth storing: the model's words and what programs
//! write, as they come. Everything is redacted before anyone sees it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::broadcast;

use crate::{
    domain::{
        ids::{CallId, CallKey, RunId},
        redact::Redactor,
    },
    ports::OutputStream,
};

/// Events that a slow follower may be behind; then it misses the oldest.
const BEHIND: usize = 64;
/// Longest text of one event, in bytes: what is kept for the followers of a run is at most [`BEHIND`] times as much.
const PIECE: usize = 4 << 10;
/// Bytes without white space that are held back; more at once is dropped, and seen with the entry.
const HELD: usize = 64 << 10;

/// Something that is seen as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveEvent {
    Text(TextDelta),
    Output(OutputDelta),
}

/// Some words of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextDelta {
    pub turn: u32,
    pub text: String,
}

/// Something that the program of a tool call wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputDelta {
    pub call: CallKey,
    pub call_id: CallId,
    pub stream: OutputStream,
    pub text: String,
}

/// The words of one answer on their way to its followers.
pub(super) struct Words {
    voice: Voice,
    turn: u32,
    held: Mutex<Held>,
}

impl Words {
    pub(super) fn new(live: Arc<Live>, redactor: Arc<Redactor>, run: RunId, turn: u32) -> Self {
        Self { voice: Voice { live, redactor, run }, turn, held: Mutex::default() }
    }

    /// Takes some more words.
    pub(super) fn hear(&self, text: &str) {
        let whole = lock(&self.held).take(text.as_bytes(), &self.voice.redactor);
        self.say(whole);
    }

    /// The answer is over: what was held back is whole.
    pub(super) fn finish(self) {
        let rest = lock(&self.held).rest();
        self.say(rest);
    }

    fn say(&self, text: Option<String>) {
        self.voice.say(text, |text| LiveEvent::Text(TextDelta { turn: self.turn, text }));
    }
}

/// The output of one call's program on its way to the run's followers.
pub(super) struct Output {
    voice: Voice,
    call: CallKey,
    call_id: CallId,
    stdout: Mutex<Held>,
    stderr: Mutex<Held>,
}

impl Output {
    pub(super) fn new(
        live: Arc<Live>,
        redactor: Arc<Redactor>,
        run: RunId,
        (call, call_id): (CallKey, CallId),
    ) -> Self {
        let voice = Voice { live, redactor, run };
        Self { voice, call, call_id, stdout: Mutex::default(), stderr: Mutex::default() }
    }

    /// Takes some more output.
    pub(super) fn hear(&self, stream: OutputStream, bytes: &[u8]) {
        let mut held = lock(self.held(stream));
        if self.voice.live.is_followed(self.voice.run) {
            let whole = held.take(bytes, &self.voice.redactor);
            self.say(stream, whole);
        } else {
            held.pass_over(bytes, &self.voice.redactor);
        }
    }

    /// The program has ended: what was held back is whole.
    pub(super) fn finish(&self) {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let rest = lock(self.held(stream)).rest();
            self.say(stream, rest);
        }
    }

    fn held(&self, stream: OutputStream) -> &Mutex<Held> {
        match stream {
            OutputStream::Stdout => &self.stdout,
            OutputStream::Stderr => &self.stderr,
        }
    }

    fn say(&self, stream: OutputStream, text: Option<String>) {
        self.voice.say(text, |text| {
            let (call, call_id) = (self.call, self.call_id.clone());
            LiveEvent::Output(OutputDelta { call, call_id, stream, text })
        });
    }
}

/// Says things in one run, redacted.
struct Voice {
    live: Arc<Live>,
    redactor: Arc<Redactor>,
    run: RunId,
}

impl Voice {
    fn say(&self, text: Option<String>, event: impl Fn(String) -> LiveEvent) {
        let Some(text) = text else { return };
        let redacted = self.redactor.redact(&text);
        for piece in pieces(&redacted) {
            self.live.say(self.run, event(piece.to_owned()));
        }
    }
}

/// The text in pieces of at most [`PIECE`] bytes.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (piece, rest) = text.split_at(text.floor_char_boundary(PIECE));
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Text on its way. A secret may come in pieces, so that what is not ended by white space is held back.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    start: Start,
    /// Bytes to be dropped yet: they may be the rest of a secret that was missed.
    missed: usize,
}

/// Whether what comes next begins a word that was seen from its beginning.
#[derive(Default, PartialEq, Eq)]
enum Start {
    #[default]
    Known,
    /// Something before it was dropped: it may be the end of a secret.
    Unknown,
}

impl Held {
    /// Takes more; gives what is whole by now.
    fn take(&mut self, mut bytes: &[u8], redactor: &Redactor) -> Option<String> {
        let missed = self.missed.min(bytes.len());
        bytes = &bytes[missed..];
        self.missed -= missed;
        if self.start == Start::Unknown {
            let end = bytes.iter().position(u8::is_ascii_whitespace)?;
            bytes = &bytes[end..];
            self.start = Start::Known;
        }
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.iter().rposition(u8::is_ascii_whitespace).map_or(0, |end| end + 1);
        // A secret may have spaces in it.
        let end = redactor.unfinished(&self.bytes[..end]);
        let whole = (end > 0).then(|| {
            let rest = self.bytes.split_off(end);
            std::mem::replace(&mut self.bytes, rest)
        });
        if self.bytes.len() > HELD {
            self.bytes.clear();
            self.start = Start::Unknown;
            self.missed = redactor.longest_spaced();
        }
        whole.map(text)
    }

    /// Nobody looks: nothing is kept but whether a word has begun.
    fn pass_over(&mut self, bytes: &[u8], redactor: &Redactor) {
        self.bytes.clear();
        self.missed = redactor.longest_spaced();
        self.start = match bytes.last() {
            Some(last) if last.is_ascii_whitespace() && self.missed == 0 => Start::Known,
            Some(_) | None => Start::Unknown,
        };
    }

    fn rest(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.bytes);
        (!rest.is_empty()).then(|| text(rest))
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Followers of the runs that are followed; nothing is kept for the others.
#[derive(Debug, Default)]
pub(super) struct Live {
    followers: Mutex<HashMap<RunId, broadcast::Sender<LiveEvent>>>,
}

impl Live {
    /// Everything that is seen in a run from now on.
    pub(super) fn follow(&self, run: RunId) -> broadcast::Receiver<LiveEvent> {
        let mut followers = lock(&self.followers);
        followers.retain(|_, sender| sender.receiver_count() > 0);
        followers.entry(run).or_insert_with(|| broadcast::channel(BEHIND).0).subscribe()
    }

    fn is_followed(&self, run: RunId) -> bool {
        lock(&self.followers).get(&run).is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// Passes an event on to whoever follows; without followers it is gone. It must be redacted.
    fn say(&self, run: RunId, event: LiveEvent) {
        if let Some(sender) = lock(&self.followers).get(&run) {
            let _ = sender.send(event);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor() -> Redactor {
        Redactor::new(["correct horse battery".to_owned()])
    }

    #[test]
    fn a_secret_with_spaces_is_held_back_until_it_is_whole_or_something_else() {
        let mut held = Held::default();
        held.pass_over(b"it is correct ", &redactor());
        assert_eq!(
            held.take(b"horse battery or so it goes on ", &redactor()),
            Some(" goes on ".into())
        );
        let mut held = Held::default();
        assert_eq!(held.take(b"\xff correct horse ", &redactor()), Some("\u{fffd} ".into()));
        let mut held = Held::default();
        assert_eq!(held.take(b"a correct horse ", &redactor()), Some("a ".into()));
        assert_eq!(held.take(b"battery \n", &redactor()), Some("correct horse battery \n".into()));
        assert_eq!(held.take(b"correct horse ", &redactor()), None);
        assert_eq!(held.take(b"and rider ", &redactor()), Some("correct horse and rider ".into()));
    }

    #[test]
    fn a_long_text_comes_in_pieces_that_can_be_kept_for_slow_followers() {
        for text in ["", "short", &"aé€😀".repeat(3 * PIECE)] {
            let pieces: Vec<&str> = pieces(text).collect();
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|piece| (1..=PIECE).contains(&piece.len())));
            assert!(pieces.len() <= text.len() / (PIECE - 3) + 1);
        }
    }

    #[test]
    fn a_word_is_held_back_until_it_is_whole() {
        let mut held = Held::default();
        assert_eq!(held.take(b"one tw", &redactor()), Some("one ".into()));
        assert_eq!(held.take(b"o-three", &redactor()), None);
        assert_eq!(held.take(b"\nfour", &redactor()), Some("two-three\n".into()));
        assert_eq!(held.rest(), Some("four".into()));
        assert_eq!(held.rest(), None);
    }

    #[test]
    fn the_end_of_a_word_whose_beginning_was_dropped_is_never_shown() {
        let mut held = Held::default();
        held.pass_over(b"my secret is sk-0123", &Redactor::default());
        assert_eq!(held.take(b"456789", &Redactor::default()), None);
        assert_eq!(held.take(b"abc next ", &Redactor::default()), Some(" next ".into()));
        let mut held = Held::default();
        assert_eq!(held.take(&vec![b'x'; HELD + 1], &Redactor::default()), None);
        assert_eq!(held.take(b"yz ", &Redactor::default()), Some(" ".into()));
    }
}
