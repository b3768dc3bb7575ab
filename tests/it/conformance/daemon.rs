//! What the daemon says of itself stands in a chain of its own.

use agentd::domain::ids::Sequence;

use super::{
    Store, chains,
    questions::{ALL, EVERY_KIND, KINDS},
    records::{Noted, Said, Submission, run_id},
};

pub(super) async fn entries_of_the_daemon_have_a_chain_of_their_own<S: Store>() {
    let store = S::new().await;
    let journal = store.journal();
    let mut sequences = Vec::new();
    for n in 1..=3 {
        sequences.push(journal.append_daemon(Noted::Reloaded.entry(n.into())).await.unwrap());
        store.make(run_id(n), &Submission::default()).await;
        store.write(run_id(1), &[Said::Request]).await;
        sequences.push(journal.append_daemon(Noted::Stopped.entry(n.into())).await.unwrap());
    }
    assert_eq!(sequences, [1, 2, 3, 4, 5, 6].map(Sequence));

    let mut views = journal.daemon_views(KINDS[EVERY_KIND], None, ALL).await.unwrap();
    views.reverse();
    let shown: Vec<_> = views.iter().map(|view| (view.run, view.sequence, &*view.kind)).collect();
    let kinds = ["policy_reload", "daemon_stopped"].into_iter().cycle();
    let expected: Vec<_> =
        sequences.iter().zip(kinds).map(|(at, kind)| (None, *at, kind)).collect();
    assert_eq!(shown, expected);
    chains::check(journal).await;
}

pub(super) async fn entries_of_the_daemon_are_listed_newest_first_by_kind_page_by_page<S: Store>() {
    let store = S::new().await;
    let journal = store.journal();
    let notes = [Noted::Started, Noted::Reloaded, Noted::Started, Noted::Stopped, Noted::Reloaded];
    for (time, note) in (1..).zip(notes) {
        journal.append_daemon(note.entry(time)).await.unwrap();
    }
    store.make(run_id(1), &Submission::default()).await;

    let all = journal.daemon_views(KINDS[EVERY_KIND], None, usize::MAX).await.unwrap();
    assert!(all.iter().map(|view| view.sequence.0).eq((1..=5).rev()), "{all:?}");
    for kinds in KINDS {
        let of_kinds = || all.iter().filter(|view| kinds.contains(&&*view.kind)).cloned();
        for limit in 0..=6 {
            let newest: Vec<_> = of_kinds().take(limit).collect();
            assert_eq!(journal.daemon_views(kinds, None, limit).await.unwrap(), newest);
            for before in [0, 1, 2, 3, 4, 5, 6, u64::MAX].map(Sequence) {
                let page: Vec<_> =
                    of_kinds().filter(|view| view.sequence < before).take(limit).collect();
                let found = journal.daemon_views(kinds, Some(before), limit).await.unwrap();
                assert_eq!(found, page, "{limit} of {kinds:?} before {before}");
            }
        }
    }
}
