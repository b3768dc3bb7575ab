//! Questions that a webhook is to be told of, each with the moment of its next attempt. Holds places in the journal, and
//! never what is asked there.

use std::{collections::BTreeMap, time::Duration};

use crate::domain::ids::Position;

/// One attempt to tell of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    /// Place of the entry that asks.
    pub(super) question: Position,
    /// 1 is the first of this daemon.
    pub(super) number: u32,
    /// Not before; in milliseconds of the clock that never goes back.
    due_ms: u64,
}

impl Attempt {
    pub(super) fn first(question: Position, now_ms: u64) -> Self {
        Self { question, number: 1, due_ms: now_ms }
    }

    /// The same once more, later.
    pub(super) fn put_off(self, now_ms: u64, by: Duration) -> Self {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        Self { due_ms: now_ms.saturating_add(by), ..self }
    }

    /// The one that follows when this one failed.
    pub(super) fn next(self, now_ms: u64, after: Duration) -> Self {
        Self { number: self.number.saturating_add(1), ..self.put_off(now_ms, after) }
    }
}

/// Attempts that have not been begun, at most one for a question. Bounded by whoever adds to it.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    attempts: BTreeMap<Position, Attempt>,
}

impl Waiting {
    pub(super) fn add(&mut self, attempt: Attempt) {
        self.attempts.insert(attempt.question, attempt);
    }

    pub(super) fn len(&self) -> usize {
        self.attempts.len()
    }

    /// Takes out, of those that are due, one with the fewest attempts behind it: a question that fails again and again
    /// must not hold up one that nobody has heard of.
    pub(super) fn take_due(&mut self, now_ms: u64) -> Option<Attempt> {
        let due = self.attempts.values().filter(|attempt| attempt.due_ms <= now_ms);
        let next = due.min_by_key(|attempt| (attempt.number, attempt.due_ms))?.question;
        self.attempts.remove(&next)
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.attempts.values().map(|attempt| attempt.due_ms).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_taken_once_and_what_failed_less_often_comes_first() {
        let second = Duration::from_secs(1);
        let mut waiting = Waiting::default();
        waiting.add(Attempt::first(Position(1), 0).next(0, second).next(0, second));
        waiting.add(Attempt::first(Position(2), 500));
        waiting.add(Attempt::first(Position(3), 0).put_off(0, 2 * second));
        assert_eq!((waiting.len(), waiting.next_due()), (3, Some(500)));
        assert_eq!(waiting.take_due(499), None);
        let taken = |waiting: &mut Waiting| {
            waiting.take_due(1500).map(|attempt| (attempt.question.0, attempt.number))
        };
        assert_eq!(taken(&mut waiting), Some((2, 1)));
        assert_eq!(taken(&mut waiting), Some((1, 3)));
        assert_eq!(taken(&mut waiting), None);
        assert_eq!(waiting.next_due(), Some(2000));
    }
}
