//! One submission makes one run, however often it is sent.

use agentd::{
    domain::{
        ids::{RunId, Sequence},
        status::StateName,
    },
    ports::{Created, JournalError},
};
use futures_util::future::join_all;

use super::{
    Store, chains,
    questions::{all_answers, text},
    records::{Said, Submission, appended, request_id, run_id},
};

async fn known<S: Store>(
    store: &S,
    submission: &Submission,
) -> Result<Option<RunId>, JournalError> {
    store.journal().submitted(submission.admission()).await
}

pub(super) async fn a_repeated_submission_makes_no_other_run_also_after_a_restart<S: Store>() {
    let store = S::new().await;
    let submission = Submission { request: Some(1), ..Submission::default() };
    assert_eq!(known(&store, &submission).await.unwrap(), None);
    store.make(run_id(1), &submission).await;
    let before = all_answers(store.journal(), 2).await;

    let store = {
        assert_eq!(known(&store, &submission).await.unwrap(), Some(run_id(1)));
        let again = store.submit(run_id(2), &submission).await.unwrap();
        assert_eq!(again, Created::Existed(run_id(1)));
        store.reopened().await
    };
    assert_eq!(known(&store, &submission).await.unwrap(), Some(run_id(1)));
    let again = store.submit(run_id(2), &submission).await.unwrap();
    assert_eq!(again, Created::Existed(run_id(1)));

    assert_eq!(all_answers(store.journal(), 2).await, before);
}

pub(super) async fn submissions_that_come_together_under_one_id_make_one_run<S: Store>() {
    let store = S::new().await;
    let submission = Submission { request: Some(1), ..Submission::default() };

    let answers = (1..=20).map(|n| store.submit(run_id(n), &submission));
    let answers: Vec<Created> =
        join_all(answers).await.into_iter().map(|answer| answer.unwrap()).collect();

    let made = answers.iter().position(|answer| *answer == Created::New).unwrap();
    let run = run_id(1 + made as u8);
    let expected = |n: usize| if n == made { Created::New } else { Created::Existed(run) };
    assert_eq!(answers, (0..20).map(expected).collect::<Vec<_>>());
    assert_eq!(store.journal().unended().await.unwrap(), [run]);
    chains::check(store.journal()).await;
}

pub(super) async fn another_body_under_a_known_id_is_refused_and_writes_nothing<S: Store>() {
    let store = S::new().await;
    let first = Submission { request: Some(1), ..Submission::default() };
    store.make(run_id(1), &first).await;
    let before = all_answers(store.journal(), 2).await;
    let other = Submission { body: 1, ..first };

    let reused = JournalError::RequestIdReused { request_id: request_id(1), run: run_id(1) };
    assert_eq!(text(known(&store, &other).await.unwrap_err()), text(&reused));
    assert_eq!(text(store.submit(run_id(2), &other).await.unwrap_err()), text(&reused));

    assert_eq!(all_answers(store.journal(), 2).await, before);
}

pub(super) async fn an_id_is_known_only_of_the_caller_who_used_it<S: Store>() {
    let store = S::new().await;
    let mine = Submission { request: Some(1), ..Submission::default() };
    let theirs = Submission { by: 2, body: 1, ..mine.clone() };
    store.make(run_id(1), &mine).await;
    assert_eq!(known(&store, &theirs).await.unwrap(), None);
    store.make(run_id(2), &theirs).await;

    assert_eq!(known(&store, &mine).await.unwrap(), Some(run_id(1)));
    assert_eq!(known(&store, &theirs).await.unwrap(), Some(run_id(2)));
    chains::check(store.journal()).await;
}

pub(super) async fn submissions_without_an_id_are_never_the_same<S: Store>() {
    let store = S::new().await;
    for n in 1..=3 {
        store.make(run_id(n), &Submission::default()).await;
        assert_eq!(known(&store, &Submission::default()).await.unwrap(), None);
    }

    assert_eq!(store.journal().unended().await.unwrap(), [1, 2, 3].map(run_id));
    chains::check(store.journal()).await;
}

pub(super) async fn a_run_that_does_not_begin_with_its_creation_is_refused<S: Store>() {
    let store = S::new().await;
    let submission = Submission { request: Some(1), ..Submission::default() };
    let (run, nothing) = (run_id(1), Sequence(0));
    for said in [&[][..], &[Said::Request]] {
        let append = appended(store.epoch(), run, nothing, StateName::Queued, said);
        let refused = store.journal().create(submission.admission(), append).await.unwrap_err();
        let conflict = JournalError::Conflict { run, expected: nothing, found: nothing };
        assert_eq!(text(refused), text(conflict));
    }

    assert_eq!(known(&store, &submission).await.unwrap(), None);
    assert_eq!(store.journal().verify(Vec::new()).await.unwrap().entries, 0);
    store.make(run, &submission).await;
}
