//! What may be done to a journal, at random. A run is named by a number, of which [`named`] makes one of those that
//! were made: so a failing case still fails when what it does not need is left out of it.

use agentd::domain::status::StateName;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    questions::{ALL, KINDS, List, Question},
    records::{How, LABELS, Noted, Said, Submission},
};

/// One step.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    /// Makes the next run, unless it is a repetition or refused.
    Create(Submission),
    Append {
        run: u8,
        after: After,
        epoch: Lifetime,
        state: StateName,
        said: Vec<Said>,
    },
    Note(Noted),
    Ask(Question),
    Watch {
        run: u8,
    },
    /// Ends this lifetime and begins the next.
    Reopen,
}

/// The entry that an append says it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Last,
    /// One too few.
    LastButOne,
    /// One too many.
    Next,
}

/// Whose epoch an append names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    This,
    Earlier,
    Later,
}

/// The run that a number names where so many were made: one of them, the last where there are fewer, or by 0 the next,
/// which nobody has made.
pub(super) fn named(number: u8, made: u8) -> u8 {
    match number.min(made) {
        0 => made + 1,
        number => number,
    }
}

/// About as many as are made.
const RUNS: u8 = 5;
/// Numbers of callers, of request ids, of bodies and of calls.
const FEW: u8 = 3;
/// More than a run has entries, as a rule.
const ENTRIES: u64 = 8;

pub(super) fn operations() -> impl Strategy<Value = Vec<Operation>> {
    // Of a failing case, what was made first is left out first: turned round, that is the last, on which nothing stands.
    vec(operation(), 1..60).prop_map(|mut operations| {
        operations.reverse();
        operations
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => submission().prop_map(Operation::Create),
        12 => append(),
        3 => select(&[Noted::Started, Noted::Reloaded, Noted::Stopped][..]).prop_map(Operation::Note),
        12 => question().prop_map(Operation::Ask),
        2 => run().prop_map(|run| Operation::Watch { run }),
        1 => Just(Operation::Reopen),
    ]
}

fn run() -> impl Strategy<Value = u8> {
    0..=RUNS
}

fn submission() -> impl Strategy<Value = Submission> {
    (0..FEW, option::of(0..FEW), 0..FEW, some_labels())
        .prop_map(|(by, request, body, labels)| Submission { by, request, body, labels })
}

fn some_labels() -> impl Strategy<Value = Vec<usize>> {
    vec(0..LABELS.len(), 0..3)
}

fn append() -> impl Strategy<Value = Operation> {
    let after = prop_oneof![
        8 => Just(After::Last),
        1 => Just(After::LastButOne),
        1 => Just(After::Next),
    ];
    let epoch = prop_oneof![
        8 => Just(Lifetime::This),
        1 => Just(Lifetime::Earlier),
        1 => Just(Lifetime::Later),
    ];
    let said = (vec(said(), 1..4), option::weighted(0.1, how())).prop_map(|(mut said, ended)| {
        said.extend(ended.map(Said::Ended));
        said
    });
    (run(), after, epoch, going(), said).prop_map(|(run, after, epoch, state, said)| {
        Operation::Append { run, after, epoch, state, said }
    })
}

fn said() -> impl Strategy<Value = Said> {
    let call = || 0..u32::from(FEW);
    prop_oneof![
        2 => Just(Said::Request),
        1 => Just(Said::Secret),
        1 => Just(Said::Answer),
        3 => (call(), time()).prop_map(|(call, expires)| Said::Asked { call, expires }),
        1 => call().prop_map(|call| Said::Decided { call }),
        1 => call().prop_map(|call| Said::Output { call }),
    ]
}

fn how() -> impl Strategy<Value = How> {
    select(&[How::Succeeded, How::Failed, How::Cancelled][..])
}

fn going() -> impl Strategy<Value = StateName> {
    any_state().prop_map(|state| if state.is_ended() { StateName::Executing } else { state })
}

fn any_state() -> impl Strategy<Value = StateName> {
    select(&StateName::ALL[..])
}

fn time() -> impl Strategy<Value = i64> {
    0..4_i64
}

/// Small ones, since what is cut off is where mistakes are.
fn limit() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..5_usize, 1 => Just(ALL), 1 => Just(usize::MAX)]
}

fn question() -> impl Strategy<Value = Question> {
    prop_oneof![
        2 => submission().prop_map(Question::Submitted),
        2 => (run(), 0..ENTRIES, limit())
            .prop_map(|(run, after, limit)| Question::Entries { run, after, limit }),
        2 => (run(), 0..ENTRIES, limit())
            .prop_map(|(run, after, limit)| Question::Views { run, after, limit }),
        4 => (0..KINDS.len(), option::of(0..ENTRIES), limit())
            .prop_map(|(kinds, before, limit)| Question::Notes { kinds, before, limit }),
        1 => run().prop_map(|run| Question::Run { run }),
        1 => run().prop_map(|run| Question::Checkpoint { run }),
        4 => list().prop_map(Question::Runs),
        4 => pending(),
        1 => Just(Question::Unended),
        1 => Just(Question::Verification),
    ]
}

/// A filter among others.
fn seldom<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    option::weighted(0.25, value)
}

fn list() -> impl Strategy<Value = List> {
    let states = prop_oneof![2 => vec(any_state(), 0..1), 1 => vec(any_state(), 1..4)];
    (states, option::of(0..FEW), some_labels(), option::of(run()), limit())
        .prop_map(|(states, by, labels, before, limit)| List { states, by, labels, before, limit })
}

fn pending() -> impl Strategy<Value = Question> {
    // A page that begins late, of few, would show nothing, whatever was wrong with it.
    let after = prop_oneof![Just(0), 0..3 * ENTRIES];
    (seldom(run()), seldom(0..FEW), option::of(time()), after, limit()).prop_map(
        |(run, by, expired_by, after, limit)| Question::Pending {
            run,
            by,
            expired_by,
            after,
            limit,
        },
    )
}
