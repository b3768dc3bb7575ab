//! What is written is read back as it was written; what does not belong there is refused, and leaves no trace.

use agentd::{
    domain::{
        ids::{Epoch, Position, Sequence},
        journal::{Entry, NewEntry},
        status::StateName,
    },
    ports::{
        Append, AuditFilter, Checkpoint, Created, Journal, JournalError, NewCheckpoint, PageLimit,
        Piece,
    },
};
use futures_util::future::{join, join_all, join3};

use super::{
    Store, chains,
    questions::{ALL, all_answers, text},
    records::{How, Noted, Said, Submission, appended, run_id},
};

/// Entries as they are compared.
fn told(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| text((entry.sequence, entry.time, &entry.record))).collect()
}

/// The same of what is to be written after a sequence.
fn to_be_told(after: u64, entries: &[NewEntry]) -> Vec<String> {
    let sequences = (after + 1..).map(Sequence);
    sequences.zip(entries).map(|(at, entry)| text((at, entry.time, &entry.record))).collect()
}

/// Refuses one append, and checks that nothing came of it.
async fn check_refused(journal: &dyn Journal, append: Append, found: u64) {
    let before = all_answers(journal, 3).await;
    let (run, expected, found) = (append.run, append.after, Sequence(found));
    let refused = journal.append(append).await;
    assert_eq!(text(refused), text(Err::<(), _>(JournalError::Conflict { run, expected, found })));
    assert_eq!(all_answers(journal, 3).await, before);
}

pub(super) async fn what_is_acknowledged_is_read_back_in_order_without_a_gap<S: Store>() {
    let store = S::new().await;
    let journal = store.journal();
    let mut written = [Vec::new(), Vec::new()];
    let submission = Submission { body: 1, labels: vec![1, 3], ..Submission::default() };
    for (n, written) in (1..).zip(&mut written) {
        let mut creation = store.creation(run_id(n), &submission);
        let (state, said) = (StateName::Queued, &[Said::Secret]);
        let more = appended(store.epoch(), run_id(n), Sequence(1), state, said);
        creation.entries.extend(more.entries);
        written.extend(creation.entries.clone());
        let created = journal.create(submission.admission(), creation).await;
        assert_eq!(created.unwrap(), Created::New);
    }
    for length in 1..6 {
        for (n, written) in (1..).zip(&mut written) {
            let said = [Said::Request, Said::Answer, Said::Secret, Said::Output { call: 0 }];
            let said: Vec<Said> = said.into_iter().cycle().take(length).collect();
            let append = store.following(run_id(n), StateName::Executing, &said).await;
            written.extend(append.entries.clone());
            journal.append(append).await.unwrap();

            let entries = journal.entries(run_id(n), Sequence(0), ALL).await.unwrap();
            assert_eq!(told(&entries), to_be_told(0, written));
        }
    }
    chains::check(journal).await;
}

pub(super) async fn a_page_begins_after_its_cursor_and_ends_at_its_limit<S: Store>() {
    let store = S::new().await;
    let journal = store.journal();
    for n in 1..=2 {
        store.make(run_id(n), &Submission::default()).await;
    }
    for said in [Said::Request, Said::Secret, Said::Answer] {
        for n in 1..=2 {
            store.write(run_id(n), &[said]).await;
        }
    }
    let run = run_id(2);
    let entries = told(&journal.entries(run, Sequence(0), usize::MAX).await.unwrap());
    let views = journal.views(run, Sequence(0), PageLimit::entries(usize::MAX)).await.unwrap();
    assert_eq!((entries.len(), views.len()), (4, 4));

    for after in 0..=5 {
        for limit in 0..=5 {
            let page = after.min(4)..(after + limit).min(4).max(after.min(4));
            let after = Sequence(after as u64);
            let found = journal.entries(run, after, limit).await.unwrap();
            assert_eq!(told(&found), entries[page.clone()], "{limit} after {after}");
            let found = journal.views(run, after, PageLimit::entries(limit)).await.unwrap();
            assert_eq!(found, views[page], "{limit} after {after}");
        }
    }
}

pub(super) async fn a_page_ends_with_the_entry_that_reaches_its_bytes<S: Store>() {
    let store = S::new().await;
    store.make(run_id(1), &Submission::default()).await;
    store.write(run_id(1), &[Said::Request, Said::Asked { call: 0, expires: 1 }]).await;
    let journal = store.journal();
    let (run, start) = (run_id(1), Sequence(0));
    let all = journal.views(run, start, PageLimit::entries(usize::MAX)).await.unwrap();
    assert_eq!(all.len(), 3);

    for entries in 1..=3 {
        let bytes: usize = all[..entries].iter().map(|view| view.payload.len()).sum();
        for (bytes, expected) in [(bytes, entries), (bytes + 1, 3.min(entries + 1))] {
            let limit = PageLimit { entries: 3, bytes };
            let page = journal.views(run, start, limit).await.unwrap();
            assert_eq!(page, all[..expected], "{limit:?}");
            let wanted = AuditFilter { run: Some(run), ..AuditFilter::default() };
            let page = journal.audit(wanted, Position(0), limit).await.unwrap();
            assert_eq!(page.entries, all[..expected], "{limit:?}");
        }
    }
}

pub(super) async fn an_append_after_any_other_entry_than_the_last_is_refused_whole<S: Store>() {
    let store = S::new().await;
    store.make(run_id(1), &Submission::default()).await;
    store.write(run_id(1), &[Said::Request, Said::Asked { call: 0, expires: 1 }]).await;

    let wrong = [0, 1, 2, 4, 1 << 40];
    for after in wrong.map(Sequence) {
        let said = [Said::Decided { call: 0 }, Said::Ended(How::Succeeded)];
        let append = appended(store.epoch(), run_id(1), after, StateName::Executing, &said);
        check_refused(store.journal(), append, 3).await;
    }
    store.write(run_id(1), &[Said::Decided { call: 0 }]).await;
    chains::check(store.journal()).await;
}

pub(super) async fn an_append_of_another_epoch_is_refused_whole<S: Store>() {
    let store = S::new().await.reopened().await;
    store.make(run_id(1), &Submission::default()).await;

    let Epoch(ours) = store.epoch();
    for other in [0, ours - 1, ours + 1] {
        let state = StateName::Executing;
        let append = appended(Epoch(other), run_id(1), Sequence(1), state, &[Said::Request]);
        check_refused(store.journal(), append, 1).await;
    }
    store.write(run_id(1), &[Said::Request]).await;
    chains::check(store.journal()).await;
}

pub(super) async fn an_append_to_a_run_that_nobody_made_is_refused_whole<S: Store>() {
    let store = S::new().await;
    store.make(run_id(1), &Submission::default()).await;

    for after in [0, 1, 2].map(Sequence) {
        let state = StateName::Executing;
        let append = appended(store.epoch(), run_id(2), after, state, &[Said::Request]);
        check_refused(store.journal(), append, 0).await;
    }
}

pub(super) async fn of_writers_who_follow_the_same_entry_one_is_let_through<S: Store>() {
    let store = S::new().await;
    store.make(run_id(1), &Submission::default()).await;
    let says = [Said::Request, Said::Secret, Said::Answer, Said::Output { call: 0 }];
    let mut writers = Vec::new();
    for said in says {
        writers.push(store.following(run_id(1), StateName::Executing, &[said, said]).await);
    }

    let answers = writers.iter().map(|append| store.journal().append(append.clone()));
    let answers = join_all(answers).await;

    let through: Vec<usize> = (0..4).filter(|writer| answers[*writer].is_ok()).collect();
    let [winner] = through[..] else { panic!("not one of them: {answers:?}") };
    let run = run_id(1);
    let conflict = JournalError::Conflict { run, expected: Sequence(1), found: Sequence(3) };
    for (writer, answer) in answers.into_iter().enumerate().filter(|(writer, _)| *writer != winner)
    {
        assert_eq!(text(answer.unwrap_err()), text(&conflict), "writer {writer}");
    }
    let entries = store.journal().entries(run, Sequence(1), ALL).await.unwrap();
    assert_eq!(told(&entries), to_be_told(1, &writers[winner].entries));
    chains::check(store.journal()).await;
}

/// Runs that are written to together: enough that a store that writes in batches has some of each kind in one.
const TOGETHER: u8 = 30;

pub(super) async fn a_refused_job_leaves_the_others_of_its_batch_alone<S: Store>() {
    let store = S::new().await;
    let journal = store.journal();
    let first = Submission { request: Some(0), ..Submission::default() };
    store.make(run_id(1), &first).await;
    for n in 2..=TOGETHER {
        store.make(run_id(n), &Submission::default()).await;
    }
    let reused = Submission { body: 1, ..first };
    let after = |n: u8, after: u64, epoch: u64| {
        let said = [Said::Secret, Said::Asked { call: 0, expires: 1 }];
        let (epoch, after) = (Epoch(store.epoch().0 + epoch), Sequence(after));
        appended(epoch, run_id(n), after, StateName::AwaitingApproval, &said)
    };

    let jobs = (1..=TOGETHER).map(async |n| {
        let refused = [after(n, 0, 0), after(n, 7, 0), after(n, 1, 1)];
        let [behind, beyond, foreign] = refused.map(|append| journal.append(append));
        let id = join(store.submit(run_id(100 + n), &reused), behind);
        let good =
            join(journal.append(after(n, 1, 0)), journal.append_daemon(Noted::Started.entry(1)));
        let ((id, behind), (good, noted), (beyond, foreign)) =
            join3(id, good, join(beyond, foreign)).await;
        assert!(matches!(id, Err(JournalError::RequestIdReused { .. })), "{id:?}");
        for refused in [behind, beyond, foreign] {
            assert!(matches!(refused, Err(JournalError::Conflict { .. })), "{refused:?}");
        }
        good.unwrap();
        noted.unwrap();
    });
    join_all(jobs).await;

    for n in 1..=TOGETHER {
        let entries = journal.entries(run_id(n), Sequence(1), ALL).await.unwrap();
        assert_eq!(told(&entries), to_be_told(1, &after(n, 1, 0).entries));
    }
    assert_eq!(journal.unended().await.unwrap(), (1..=TOGETHER).map(run_id).collect::<Vec<_>>());
    chains::check(journal).await;
}

pub(super) async fn after_a_restart_everything_is_the_same_and_the_earlier_owner_is_refused<
    S: Store,
>() {
    let store = S::new().await;
    for n in 1..=3 {
        let submission = Submission { request: Some(n), body: n, ..Submission::default() };
        store.make(run_id(n), &submission).await;
    }
    store.write(run_id(1), &[Said::Answer, Said::Asked { call: 0, expires: 1 }]).await;
    store.write(run_id(2), &[Said::Secret, Said::Ended(How::Succeeded)]).await;
    store.journal().append_daemon(Noted::Stopped.entry(1)).await.unwrap();
    let before = all_answers(store.journal(), 3).await;
    let (epoch, state) = (store.epoch(), StateName::Executing);

    let store = store.reopened().await;

    assert!(store.epoch() > epoch, "{:?} after {epoch:?}", store.epoch());
    assert_eq!(all_answers(store.journal(), 3).await, before);
    let late = appended(epoch, run_id(1), Sequence(3), state, &[Said::Request]);
    check_refused(store.journal(), late, 3).await;
    store.write(run_id(1), &[Said::Decided { call: 0 }]).await;
    let noted = store.journal().append_daemon(Noted::Started.entry(2)).await.unwrap();
    assert_eq!(noted, Sequence(3));
    chains::check(store.journal()).await;
}

pub(super) async fn nothing_is_written_after_the_end_of_a_run<S: Store>() {
    let store = S::new().await;
    store.make(run_id(1), &Submission::default()).await;
    let end = [Said::Ended(How::Cancelled)];
    let end = store.following(run_id(1), StateName::Cancelled, &end).await;
    store.journal().append(end).await.unwrap();
    let head = store.head(run_id(1)).await;
    let (state, said) = (StateName::Executing, &[Said::Request]);
    let late = appended(store.epoch(), run_id(1), head, state, said);
    check_refused(store.journal(), late, head.0).await;
}

pub(super) async fn an_append_of_nothing_changes_nothing<S: Store>() {
    let store = S::new().await;
    store.make(run_id(1), &Submission::default()).await;
    let before = all_answers(store.journal(), 1).await;
    let mut nothing = store.following(run_id(1), StateName::Executing, &[]).await;
    nothing.entries.clear();
    store.journal().append(nothing).await.unwrap();
    assert_eq!(all_answers(store.journal(), 1).await, before);
}

pub(super) async fn a_run_is_made_once_at_its_beginning_and_by_the_owner_alone<S: Store>() {
    let store = S::new().await;
    let (journal, submission) = (store.journal(), Submission::default());
    store.make(run_id(1), &submission).await;
    let before = all_answers(journal, 2).await;
    let earlier = Epoch(store.epoch().0.saturating_sub(1));
    let early = Append { epoch: earlier, ..store.creation(run_id(2), &submission) };
    let late = Append { after: Sequence(9), ..store.creation(run_id(2), &submission) };
    for refused in [store.creation(run_id(1), &submission), early, late] {
        let refused = journal.create(submission.admission(), refused).await;
        assert!(matches!(refused, Err(JournalError::Conflict { .. })), "{refused:?}");
    }
    assert_eq!(all_answers(journal, 2).await, before);
    store.make(run_id(2), &submission).await;
}

pub(super) async fn a_checkpoint_is_that_of_the_last_append_that_had_one_with_all_that_was_said<
    S: Store,
>() {
    let mut store = S::new().await;
    store.make(run_id(1), &Submission::default()).await;
    let piece = |first, items: &str| Piece { first, items: items.into() };
    let said = [
        (Some(("one", piece(0, "a"))), vec![piece(0, "a")]),
        (Some(("two", piece(3, "b"))), vec![piece(0, "a"), piece(3, "b")]),
        (Some(("three", piece(5, "c"))), vec![piece(0, "a"), piece(3, "b"), piece(5, "c")]),
        (None, vec![piece(0, "a"), piece(3, "b"), piece(5, "c")]),
        // From there on it is said anew.
        (Some(("four", piece(3, "d"))), vec![piece(0, "a"), piece(3, "d")]),
    ];
    let mut kept = None;
    for (new, pieces) in said {
        let mut append = store.following(run_id(1), StateName::Executing, &[Said::Request]).await;
        append.checkpoint =
            new.map(|(state, piece)| NewCheckpoint { state: state.to_owned(), piece });
        let state = append.checkpoint.as_ref().map(|checkpoint| checkpoint.state.clone());
        let sequence = append.after.next();
        kept = state.map(|state| Checkpoint { sequence, state, pieces }).or(kept);
        store.journal().append(append).await.unwrap();
        assert_eq!(store.journal().checkpoint(run_id(1)).await.unwrap(), kept);
    }
    store = store.reopened().await;
    assert_eq!(store.journal().checkpoint(run_id(1)).await.unwrap(), kept);
    assert_eq!(store.journal().checkpoint(run_id(2)).await.unwrap(), None);
}
