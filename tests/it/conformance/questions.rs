//! What a journal can be asked, and its answers as text. Two stores are alike when all their answers are.

use agentd::{
    domain::{
        chain::ChainHash,
        ids::{Position, RunId, Sequence, Timestamp},
        status::StateName,
    },
    ports::{Approvals, AuditFilter, EntryView, Journal, PageLimit, RunFilter, RunPlace},
};
use serde_json::Value;

use super::records::{Submission, caller, labels, run_id};

/// Enough for everything that a test writes.
pub(super) const ALL: usize = 1000;

/// Kinds of the daemon's entries by number: none, one, two, all that there are, and one of runs alone.
pub(super) const KINDS: [&[&str]; 5] = [
    &[],
    &["daemon_started"],
    &["policy_reload", "run_anchored"],
    &["daemon_started", "policy_reload", "daemon_stopped", "run_anchored"],
    &["run_finished"],
];
/// The number of all that there are.
pub(super) const EVERY_KIND: usize = 3;

/// A question. Runs and callers are numbers, and so are the places that pages begin at.
#[derive(Debug, Clone)]
pub(super) enum Question {
    Submitted(Submission),
    Entries { run: u8, after: u64, limit: usize },
    Views { run: u8, after: u64, limit: usize },
    Notes { kinds: usize, before: Option<u64>, limit: usize },
    Run { run: u8 },
    Checkpoint { run: u8 },
    Runs(List),
    Pending { run: Option<u8>, by: Option<u8>, expired_by: Option<i64>, after: u64, limit: usize },
    Audit { after: u64, limit: usize },
    Unended,
    Verification,
}

/// Runs that are wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct List {
    pub(super) states: Vec<StateName>,
    pub(super) by: Option<u8>,
    pub(super) labels: Vec<usize>,
    /// A run, and the list begins with those that were made before it; none, and with one that is not there: all.
    pub(super) before: Option<u8>,
    pub(super) limit: usize,
}

/// How much of a hash is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hashes {
    Shown,
    /// They cover what a store seals, which no two stores seal alike.
    Hidden,
}

impl Question {
    /// The same about other runs.
    pub(super) fn about(mut self, other: impl Fn(u8) -> u8) -> Self {
        match &mut self {
            Self::Entries { run, .. }
            | Self::Views { run, .. }
            | Self::Run { run }
            | Self::Checkpoint { run } => {
                *run = other(*run);
            }
            Self::Runs(List { before: run, .. }) | Self::Pending { run, .. } => {
                *run = run.map(other);
            }
            Self::Submitted(_)
            | Self::Notes { .. }
            | Self::Audit { .. }
            | Self::Unended
            | Self::Verification => {}
        }
        self
    }

    /// Asks the journal.
    pub(super) async fn ask(&self, journal: &dyn Journal, hashes: Hashes) -> String {
        let shown = |views: Vec<EntryView>| match hashes {
            Hashes::Shown => views,
            Hashes::Hidden => views.into_iter().map(without_hashes).collect(),
        };
        match self.clone() {
            Self::Submitted(submission) => text(journal.submitted(submission.admission()).await),
            Self::Entries { run, after, limit } => {
                text(journal.entries(run_id(run), Sequence(after), limit).await)
            }
            Self::Views { run, after, limit } => text(
                journal
                    .views(run_id(run), Sequence(after), PageLimit::entries(limit))
                    .await
                    .map(shown),
            ),
            Self::Notes { kinds, before, limit } => {
                let before = before.map(Sequence);
                text(journal.daemon_views(KINDS[kinds], before, limit).await.map(shown))
            }
            Self::Run { run } => text(journal.run(run_id(run)).await),
            Self::Checkpoint { run } => text(journal.checkpoint(run_id(run)).await),
            Self::Runs(list) => list.ask(journal).await,
            Self::Pending { run, by, expired_by, after, limit } => {
                let wanted = Approvals {
                    run: run.map(run_id),
                    submitter: by.map(caller),
                    expired_by: expired_by.map(Timestamp),
                };
                text(journal.pending_approvals(wanted, Position(after), limit).await)
            }
            Self::Audit { after, limit } => {
                let page = journal
                    .audit(AuditFilter::default(), Position(after), PageLimit::entries(limit))
                    .await;
                text(page.map(|page| (shown(page.entries), page.looked, page.next)))
            }
            Self::Unended => text(journal.unended().await),
            Self::Verification => {
                let report = journal.verify(Vec::new()).await.map(|mut report| {
                    if hashes == Hashes::Hidden {
                        report.head = ChainHash::START;
                    }
                    report
                });
                text(report)
            }
        }
    }
}

impl List {
    async fn ask(self, journal: &dyn Journal) -> String {
        let before = match self.before {
            Some(run) => place(journal, run_id(run)).await,
            None => None,
        };
        let states = self.states;
        let (submitter, labels) = (self.by.map(caller), labels(&self.labels));
        let wanted = RunFilter { states, submitter, labels };
        let found = journal.runs(wanted, before, self.limit).await;
        // The places themselves are the store's own; only their order is promised.
        text(found.map(|found| {
            assert!(found.is_sorted_by(|(one, _), (next, _)| one > next), "{found:?}");
            found.into_iter().map(|(_, summary)| summary).collect::<Vec<_>>()
        }))
    }
}

/// Where a run stands in the order of submission.
pub(super) async fn place(journal: &dyn Journal, run: RunId) -> Option<RunPlace> {
    let all = journal.runs(RunFilter::default(), None, ALL).await.unwrap();
    all.into_iter().find(|(_, summary)| summary.id == run).map(|(place, _)| place)
}

/// Everything that can be read of a journal whose runs have numbers up to this one.
pub(super) fn everything(runs: u8) -> Vec<Question> {
    let (after, limit) = (0, ALL);
    let of_runs = (1..=runs).flat_map(|run| {
        [
            Question::Run { run },
            Question::Checkpoint { run },
            Question::Entries { run, after, limit },
            Question::Views { run, after, limit },
        ]
    });
    let of_all = [
        Question::Runs(List { limit, ..List::default() }),
        Question::Notes { kinds: EVERY_KIND, before: None, limit },
        Question::Pending { run: None, by: None, expired_by: None, after, limit },
        Question::Audit { after, limit },
        Question::Unended,
        Question::Verification,
    ];
    of_runs.chain(of_all).collect()
}

/// What one and the same journal answers to that.
pub(super) async fn all_answers(journal: &dyn Journal, runs: u8) -> Vec<String> {
    let mut answers = Vec::new();
    for question in everything(runs) {
        answers.push(question.ask(journal, Hashes::Shown).await);
    }
    answers
}

/// A refusal is an answer too, as far as the port says what it is.
pub(super) fn text(answer: impl std::fmt::Debug) -> String {
    format!("{answer:#?}")
}

fn without_hashes(view: EntryView) -> EntryView {
    let mut payload = view.payload;
    if view.kind == "run_anchored" {
        let mut anchor: Value = serde_json::from_str(&payload).unwrap();
        anchor["hash"] = Value::Null;
        payload = anchor.to_string();
    }
    // Of a sealed body, which is another in each store.
    let body_digest = view.body_digest.map(|_| [0; 32]);
    let (previous, hash) = (ChainHash::START, ChainHash::START);
    EntryView { payload, body_digest, previous, hash, ..view }
}
