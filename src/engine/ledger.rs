//! What each submitter's runs have used on this day (UTC), and whether that is all they may. Counted from what entries say;
//! after a start, from the journal's entries of the day.

use std::{
    collections::{HashMap, hash_map::Entry as Known},
    sync::{Mutex, PoisonError},
};

use serde::Deserialize;

use crate::{
    domain::{
        budget::{PerDay, TokenCount},
        ids::{Caller, Position, RunId, Timestamp},
        journal::{BudgetWarning, Record},
        run::Suspension,
    },
    ports::{AuditFilter, EntryView, Journal, JournalError, PageLimit},
};

/// Length of a day, in microseconds.
const DAY: i64 = 24 * 60 * 60 * 1_000_000;
/// Entries that are read at once.
const PAGE: usize = 1000;
/// Submitters that are remembered; when there are more, those of days gone by are forgotten.
const SUBMITTERS: usize = 1024;

/// Counts what is used.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    limits: PerDay,
    /// By submitter: the day, counted from 1970, and what was used on it.
    used: Mutex<HashMap<Caller, (i64, PerDay)>>,
}

/// How a submitter stands on this day.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Well,
    /// Most of a limit is used up; `warned` did not say so.
    NearlyOut(BudgetWarning),
    Out(Suspension),
}

/// What an entry used, as far as everyone may see it.
#[derive(Deserialize)]
struct Answered {
    tokens: TokenCount,
    cost_micros: Option<u64>,
}

impl Ledger {
    pub(super) fn new(limits: PerDay) -> Self {
        Self { limits, used: Mutex::default() }
    }

    /// Counts what entries of today say that was written before this daemon began.
    pub(super) async fn load(
        &self,
        journal: &dyn Journal,
        now: Timestamp,
    ) -> Result<(), JournalError> {
        if self.limits == PerDay::default() {
            return Ok(());
        }
        let midnight = Timestamp(day_of(now) * DAY);
        let tomorrow = Timestamp(midnight.0 + DAY);
        let kinds =
            ["model_response", "context_compacted", "tool_call"].map(str::to_owned).to_vec();
        let wanted = AuditFilter {
            kinds,
            since: Some(midnight),
            until: Some(tomorrow),
            ..AuditFilter::default()
        };
        let mut submitters: HashMap<RunId, Option<Caller>> = HashMap::new();
        let mut after = Some(last_before(journal, midnight).await?);
        while let Some(place) = after {
            let page = journal.audit(wanted.clone(), place, PageLimit::entries(PAGE)).await?;
            for entry in &page.entries {
                let Some(run) = entry.run else { continue };
                let submitter = match submitters.entry(run) {
                    Known::Occupied(known) => known.into_mut(),
                    Known::Vacant(new) => {
                        let found = journal.run(run).await?.map(|summary| summary.submitter);
                        new.insert(found)
                    }
                };
                if let Some(submitter) = submitter {
                    self.add(submitter, (entry.time, now), used_by_view(entry));
                }
            }
            after = page.next;
        }
        Ok(())
    }

    /// Counts what was used, and is on disk by now. An entry's time may be ahead of the clock, where that was set back: what
    /// is used now is used today.
    pub(super) fn add(
        &self,
        submitter: &Caller,
        (time, now): (Timestamp, Timestamp),
        more: PerDay,
    ) {
        if self.limits == PerDay::default() {
            return;
        }
        let (day, today) = (day_of(time).min(day_of(now)), day_of(now));
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= SUBMITTERS {
            used.retain(|_, (last, _)| *last == today);
        }
        let (last, sum) = used.entry(submitter.clone()).or_default();
        if *last != today {
            (*last, *sum) = (today, PerDay::default());
        }
        // What was written yesterday and counted late is no more of today's.
        if day == today {
            *sum = sum.plus(more);
        }
    }

    /// How a submitter stands now; `warned` are the limits that its run was warned of.
    pub(super) fn standing(
        &self,
        submitter: &Caller,
        now: Timestamp,
        warned: &[String],
    ) -> Standing {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let used = match used.get(submitter) {
            Some((day, used)) if *day == day_of(now) => *used,
            Some(_) | None => PerDay::default(),
        };
        let limits = used.against(&self.limits);
        if let Some((what, _, of)) = limits.iter().find(|(_, used, of)| used >= of) {
            return Standing::Out(Suspension::BudgetExhausted {
                limit: (*what).to_owned(),
                message: format!(
                    "{submitter} has used up its {of} {what} (UTC; `daily` in the configuration); everything is kept. \
                     Let the run go on tomorrow (agentctl run resume), or with a higher limit, or cancel it"
                ),
            });
        }
        let near = limits.into_iter().find(|(what, used, of)| {
            u128::from(*used) * 5 >= u128::from(*of) * 4 && !warned.iter().any(|it| it == what)
        });
        near.map_or(Standing::Well, |(what, used, of)| {
            Standing::NearlyOut(BudgetWarning { limit: what.to_owned(), used, of })
        })
    }
}

/// What a record says was used; none: nothing.
pub(super) fn used_by(record: &Record) -> Option<PerDay> {
    match record {
        Record::ModelResponse(answer) => Some(of_answer(&answer.tokens, answer.cost_micros)),
        Record::ContextCompacted(done) => {
            Some(PerDay { turns: 0, ..of_answer(&done.tokens, done.cost_micros) })
        }
        Record::ToolCalled(_) => Some(of_call()),
        _ => None,
    }
}

fn day_of(time: Timestamp) -> i64 {
    time.0.div_euclid(DAY)
}

fn of_call() -> PerDay {
    PerDay { tool_calls: 1, ..PerDay::default() }
}

fn of_answer(tokens: &TokenCount, cost_micros: Option<u64>) -> PerDay {
    PerDay {
        turns: 1,
        tool_calls: 0,
        tokens: tokens.input.saturating_add(tokens.output),
        cost_micros: cost_micros.unwrap_or(0),
    }
}

fn used_by_view(entry: &EntryView) -> PerDay {
    match (entry.kind.as_str(), serde_json::from_str(&entry.payload)) {
        ("model_response", Ok(Answered { tokens, cost_micros })) => of_answer(&tokens, cost_micros),
        ("context_compacted", Ok(Answered { tokens, cost_micros })) => {
            PerDay { turns: 0, ..of_answer(&tokens, cost_micros) }
        }
        ("context_compacted", Err(_)) => PerDay::default(),
        // What it used cannot be read, but that there was an answer.
        ("model_response", Err(_)) => of_answer(&TokenCount::default(), None),
        _ => of_call(),
    }
}

/// A position before which nothing was written since `time`. Positions and times go forward together, but for a clock that
/// was set: an hour of that is allowed for.
async fn last_before(journal: &dyn Journal, time: Timestamp) -> Result<Position, JournalError> {
    let early = Timestamp(time.0 - DAY / 24);
    let (mut low, mut high) = (0, journal.watch_head().borrow().0);
    while low < high {
        let middle = low + (high - low) / 2;
        let page =
            journal.audit(AuditFilter::default(), Position(middle), PageLimit::entries(1)).await?;
        match page.entries.first() {
            Some(entry) if entry.time < early => low = entry.position.0.max(middle + 1),
            Some(_) | None => high = middle,
        }
    }
    Ok(Position(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp(DAY * 3 + DAY / 2);

    fn ledger() -> Ledger {
        Ledger::new(PerDay { turns: 10, ..PerDay::default() })
    }

    fn turns(ledger: &Ledger, who: &str, count: u64, time: Timestamp) {
        counted(ledger, who, count, (time, time));
    }

    fn counted(ledger: &Ledger, who: &str, count: u64, times: (Timestamp, Timestamp)) {
        (0..count).for_each(|_| {
            ledger.add(&Caller::new(who), times, of_answer(&TokenCount::default(), None));
        });
    }

    #[test]
    fn a_submitter_is_warned_at_four_fifths_and_stopped_at_the_limit_and_no_other_is() {
        let (ledger, ann) = (ledger(), Caller::new("caller:ann"));
        turns(&ledger, "caller:ann", 7, NOON);
        assert_eq!(ledger.standing(&ann, NOON, &[]), Standing::Well);
        turns(&ledger, "caller:ann", 1, NOON);
        let warning = BudgetWarning { limit: "turns a day".into(), used: 8, of: 10 };
        assert_eq!(ledger.standing(&ann, NOON, &[]), Standing::NearlyOut(warning));
        assert_eq!(ledger.standing(&ann, NOON, &["turns a day".into()]), Standing::Well);
        turns(&ledger, "caller:ann", 2, NOON);
        assert!(matches!(ledger.standing(&ann, NOON, &[]), Standing::Out(_)));
        assert_eq!(ledger.standing(&Caller::new("caller:sam"), NOON, &[]), Standing::Well);
    }

    #[test]
    fn every_day_begins_anew_and_what_is_counted_late_is_not_of_the_new_one() {
        let (ledger, ann) = (ledger(), Caller::new("caller:ann"));
        turns(&ledger, "caller:ann", 10, NOON);
        let tomorrow = Timestamp(NOON.0 + DAY);
        assert_eq!(ledger.standing(&ann, tomorrow, &[]), Standing::Well);
        turns(&ledger, "caller:ann", 1, tomorrow);
        counted(&ledger, "caller:ann", 10, (NOON, tomorrow));
        assert_eq!(ledger.standing(&ann, tomorrow, &[]), Standing::Well);
    }

    #[test]
    fn a_clock_that_was_ahead_leaves_no_day_without_a_limit() {
        let (ledger, ann) = (ledger(), Caller::new("caller:ann"));
        let next_year = Timestamp(NOON.0 + 365 * DAY);
        turns(&ledger, "caller:ann", 1, next_year);
        // The run's entries stay ahead of the clock, which is right again.
        counted(&ledger, "caller:ann", 10, (next_year, NOON));
        assert!(matches!(ledger.standing(&ann, NOON, &[]), Standing::Out(_)));
    }
}
