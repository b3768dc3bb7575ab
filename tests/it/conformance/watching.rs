//! Who watches a run is told how far it has come.

use agentd::{
    domain::{ids::Sequence, status::StateName},
    ports::Progress,
};
use futures_util::future::join;

use super::{
    Store,
    records::{How, Said, Submission, appended, run_id},
};

fn progress(head: u64, state: StateName) -> Progress {
    Progress { head: Sequence(head), state: Some(state) }
}

pub(super) async fn who_watches_a_run_is_told_of_each_new_head_and_state<S: Store>() {
    let store = S::new().await;
    let (journal, run) = (store.journal(), run_id(1));
    // A run may be watched before it is there, and by many.
    let (mut one, other) = (journal.watch(run), journal.watch(run));
    assert_eq!(*one.borrow_and_update(), Progress::default());

    // Who wrote is answered last: by then everybody has been told.
    store.make(run, &Submission::default()).await;
    assert!(one.has_changed().unwrap());
    assert_eq!(*one.borrow_and_update(), progress(1, StateName::Queued));
    let paused = store.following(run, StateName::Paused, &[Said::Request, Said::Request]).await;
    journal.append(paused).await.unwrap();
    assert_eq!(*one.borrow_and_update(), progress(3, StateName::Paused));
    store.write(run, &[Said::Ended(How::Cancelled)]).await;
    assert_eq!(*one.borrow_and_update(), progress(4, StateName::Cancelled));
    assert_eq!(*other.borrow(), progress(4, StateName::Cancelled));
}

pub(super) async fn what_those_who_watch_are_told_of_is_there_to_be_read<S: Store>() {
    let store = S::new().await;
    let (journal, run) = (store.journal(), run_id(1));
    store.make(run, &Submission::default()).await;
    let mut watcher = journal.watch(run);

    let append = store.following(run, StateName::Executing, &[Said::Request]).await;
    let heard = async {
        let heard = *watcher.wait_for(|progress| progress.head == Sequence(2)).await.unwrap();
        (heard, journal.run(run).await.unwrap().unwrap().head)
    };
    let (written, heard) = join(journal.append(append), heard).await;

    written.unwrap();
    assert_eq!(heard, (progress(2, StateName::Executing), Sequence(2)));
}

pub(super) async fn a_refused_append_tells_those_who_watch_nothing<S: Store>() {
    let store = S::new().await;
    let (journal, run) = (store.journal(), run_id(1));
    let submission = Submission { request: Some(1), ..Submission::default() };
    store.make(run, &submission).await;
    let watchers = [journal.watch(run), journal.watch(run_id(2))];

    for after in [0, 2].map(Sequence) {
        let state = StateName::Executing;
        let append = appended(store.epoch(), run, after, state, &[Said::Request]);
        journal.append(append).await.unwrap_err();
    }
    store.submit(run, &submission).await.unwrap();
    store.submit(run_id(2), &submission).await.unwrap();

    for watcher in watchers {
        assert!(!watcher.has_changed().unwrap());
        assert_eq!(*watcher.borrow(), Progress::default());
    }
}

pub(super) async fn who_watches_a_run_hears_nothing_of_others<S: Store>() {
    let store = S::new().await;
    store.make(run_id(1), &Submission::default()).await;
    store.make(run_id(2), &Submission::default()).await;
    let watchers = [1, 2].map(|n| store.journal().watch(run_id(n)));

    store.write(run_id(1), &[Said::Request]).await;

    assert!(watchers[0].has_changed().unwrap());
    assert!(!watchers[1].has_changed().unwrap());
}
