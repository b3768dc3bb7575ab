//! What stands in lists, in which order, and which page of it.

use std::collections::BTreeMap;

use agentd::{
    domain::{
        ids::{RunId, Sequence, Timestamp},
        status::StateName,
    },
    ports::{PageLimit, RunFilter, RunPlace, RunSummary},
};

use super::{
    Store,
    questions::{ALL, place},
    records::{self, How, LABELS, SECRET, Said, Submission, caller, run_id},
};

/// The runs that a list is of.
async fn listed<S: Store>(
    store: &S,
    wanted: RunFilter,
    before: Option<RunPlace>,
    limit: usize,
) -> Vec<RunId> {
    let found = store.journal().runs(wanted, before, limit).await.unwrap();
    found.into_iter().map(|(_, summary)| summary.id).collect()
}

pub(super) async fn a_run_stands_as_its_last_append_says<S: Store>() {
    let store = S::new().await;
    let (journal, run) = (store.journal(), run_id(1));
    let submission = Submission { by: 7, labels: vec![0, 2], ..Submission::default() };
    store.make(run, &submission).await;
    let spec = submission.spec();
    let first = RunSummary {
        id: run,
        task: spec.task.to_string(),
        workspace: spec.workspace,
        agent: spec.agent,
        model: None,
        submitter: caller(7),
        labels: spec.labels,
        forked: None,
        status: store.creation(run, &submission).status,
        head: Sequence(1),
        created: Timestamp(1000),
        updated: Timestamp(1000),
        pruned: None,
    };
    assert_eq!(journal.run(run).await.unwrap().unwrap(), first);

    for state in StateName::ALL.into_iter().filter(|state| !state.is_ended()) {
        let append = store.following(run, state, &[Said::Request, Said::Answer]).await;
        let (head, mut status) = (append.after.next().next(), append.status.clone());
        journal.append(append).await.unwrap();

        if let Some(error) = &mut status.error {
            error.message = error.message.replace(SECRET, "[redacted]");
        }
        let updated = Timestamp(1000 * head.0 as i64);
        let expected = RunSummary { status, head, updated, ..first.clone() };
        assert_eq!(journal.run(run).await.unwrap().unwrap(), expected);
        let listed = journal.runs(RunFilter::default(), None, ALL).await.unwrap();
        assert_eq!(listed.into_iter().map(|(_, run)| run).collect::<Vec<_>>(), [expected]);
    }
}

pub(super) async fn a_run_that_nobody_made_is_not_there<S: Store>() {
    let store = S::new().await;
    let (journal, nobodys) = (store.journal(), run_id(9));
    store.make(run_id(1), &Submission::default()).await;

    assert_eq!(journal.run(nobodys).await.unwrap(), None);
    let start = Sequence(0);
    assert!(journal.entries(nobodys, start, ALL).await.unwrap().is_empty());
    assert_eq!(journal.views(nobodys, start, PageLimit::entries(ALL)).await.unwrap(), []);
}

pub(super) async fn runs_are_listed_newest_first_page_by_page<S: Store>() {
    let store = S::new().await;
    // Neither ids nor what is written later has anything to do with the order.
    let made = [3, 1, 5, 2, 4].map(run_id);
    for run in made {
        store.make(run, &Submission::default()).await;
    }
    store.write(made[1], &[Said::Request]).await;
    let newest: Vec<RunId> = made.into_iter().rev().collect();
    assert_eq!(listed(&store, RunFilter::default(), None, usize::MAX).await, newest);

    for limit in 0..=6 {
        let page = listed(&store, RunFilter::default(), None, limit).await;
        assert_eq!(page, newest[..limit.min(5)]);
        for (at, run) in newest.iter().enumerate() {
            let before = place(store.journal(), *run).await;
            let page = listed(&store, RunFilter::default(), before, limit).await;
            assert_eq!(page, newest[at + 1..(at + 1 + limit).min(5)], "{limit} before {run}");
        }
    }
}

pub(super) async fn runs_are_listed_by_state_by_submitter_and_by_labels<S: Store>() {
    let store = S::new().await;
    let submission = |by, labels: &[usize]| {
        let labels = labels.to_vec();
        Submission { by, labels, ..Submission::default() }
    };
    store.make(run_id(1), &submission(1, &[])).await;
    store.make(run_id(2), &submission(1, &[0])).await;
    store.make(run_id(3), &submission(2, &[0, 2])).await;
    store.make(run_id(4), &submission(2, &[1, 2])).await;
    store.write(run_id(2), &[Said::Request]).await;
    store.write(run_id(3), &[Said::Request]).await;
    store.write(run_id(4), &[Said::Ended(How::Failed)]).await;

    use StateName::{Executing, Failed, Paused, Queued};
    check(&store, &[], None, &[], &[4, 3, 2, 1]).await;
    check(&store, &[Queued], None, &[], &[1]).await;
    check(&store, &[Executing], None, &[], &[3, 2]).await;
    check(&store, &[Failed, Queued], None, &[], &[4, 1]).await;
    check(&store, &[Paused], None, &[], &[]).await;
    check(&store, &[], Some(1), &[], &[2, 1]).await;
    check(&store, &[], Some(3), &[], &[]).await;
    check(&store, &[], None, &[0], &[3, 2]).await;
    check(&store, &[], None, &[2], &[4, 3]).await;
    check(&store, &[], None, &[0, 2], &[3]).await;
    check(&store, &[], None, &[0, 3], &[]).await;
    check(&store, &[Executing, Failed], Some(2), &[2], &[4, 3]).await;
    check(&store, &[Executing], Some(1), &[2], &[]).await;
}

/// Checks which runs are listed, newest first; also on pages, which count those that are wanted and not those that are
/// passed over.
async fn check<S: Store>(
    store: &S,
    states: &[StateName],
    by: Option<u8>,
    labels: &[usize],
    expected: &[u8],
) {
    let (submitter, labels) = (by.map(caller), records::labels(labels));
    let wanted = RunFilter { states: states.to_vec(), submitter, labels };
    let expected: Vec<RunId> = expected.iter().copied().map(run_id).collect();
    assert_eq!(listed(store, wanted.clone(), None, ALL).await, expected, "{wanted:?}");
    let page = listed(store, wanted.clone(), None, 1).await;
    assert_eq!(page, expected[..expected.len().min(1)], "{wanted:?}");
    let before = place(store.journal(), run_id(3)).await;
    let older: Vec<RunId> = expected.into_iter().filter(|run| *run < run_id(3)).collect();
    assert_eq!(listed(store, wanted.clone(), before, ALL).await, older, "{wanted:?}");
}

pub(super) async fn labels_are_compared_whole_whatever_their_characters<S: Store>() {
    let store = S::new().await;
    for n in 0..LABELS.len() {
        let submission = Submission { labels: vec![n], ..Submission::default() };
        store.make(run_id(n as u8), &submission).await;
    }

    for (n, (key, value)) in LABELS.into_iter().enumerate() {
        let wanted = |key: &str, value: &str| RunFilter {
            labels: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            ..RunFilter::default()
        };
        // What is hidden cannot be looked for either.
        let shown = if value == SECRET { "[redacted]" } else { value };
        assert_eq!(listed(&store, wanted(key, shown), None, ALL).await, [run_id(n as u8)], "{key}");
        for other in [format!("{value}x"), value.to_uppercase() + "\0", SECRET.into()] {
            assert_eq!(listed(&store, wanted(key, &other), None, ALL).await, [], "{key}: {other}");
        }
        assert_eq!(listed(&store, wanted(&format!("{key} "), value), None, ALL).await, [], "{key}");
    }
}

pub(super) async fn runs_that_have_not_ended_are_listed_oldest_first<S: Store>() {
    let store = S::new().await;
    let states = StateName::ALL.into_iter().filter(|state| !state.is_ended());
    let going: Vec<(RunId, StateName)> = (1..).map(run_id).zip(states).collect();
    for (run, _) in going.iter().rev() {
        store.make(*run, &Submission::default()).await;
    }
    for (n, how) in (100..).zip([How::Succeeded, How::Failed, How::Cancelled]) {
        store.make(run_id(n), &Submission::default()).await;
        store.write(run_id(n), &[Said::Ended(how)]).await;
    }
    for (run, state) in &going {
        let append = store.following(*run, *state, &[Said::Request]).await;
        store.journal().append(append).await.unwrap();
    }

    let oldest: Vec<RunId> = going.iter().rev().map(|(run, _)| *run).collect();
    assert_eq!(store.journal().unended().await.unwrap(), oldest);
}
