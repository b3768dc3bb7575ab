//! Every chain of a journal is whole, and its views hide what they must.

use agentd::{
    domain::{
        chain::{ChainHash, Linked},
        head::{JournalDigest, KeptHead},
        ids::{Position, RunId, Sequence},
        journal::{Entry, Record, RunAnchored, RunCreated},
        status::StateName,
    },
    ports::{AuditFilter, EntryView, Journal, PageLimit, RunFilter, RunSummary},
};

use super::{
    Store,
    questions::{ALL, EVERY_KIND, Hashes, KINDS, everything},
    records::{How, Noted, SECRET, Said, Submission, redactor, run_id},
};

/// Whether the view of an entry is all that is stored of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    AsSeen,
    /// The hash covers the sealed body too, which the port does not show.
    AlsoSealed,
}

/// Checks all chains of a journal, each against its entries, and all against each other.
pub(super) async fn check(journal: &dyn Journal) {
    let runs = journal.runs(RunFilter::default(), None, ALL).await.unwrap();
    let mut notes = daemon(journal).await;
    let mut positions: Vec<u64> = notes.iter().map(|view| view.position.0).collect();
    for (_, run) in &runs {
        let views = journal.views(run.id, Sequence(0), PageLimit::entries(ALL)).await.unwrap();
        let entries = journal.entries(run.id, Sequence(0), ALL).await.unwrap();
        check_run(run, &entries, &views);
        check_anchor(run, &views, &notes);
        positions.extend(views.iter().map(|view| view.position.0));
    }
    notes.reverse();
    check_links(None, &notes, |view| {
        if view.payload.contains("[redacted]") { Stored::AlsoSealed } else { Stored::AsSeen }
    });
    positions.sort_unstable();
    assert!(positions.iter().copied().eq(1..=positions.len() as u64), "gaps: {positions:?}");

    let report = journal.verify(Vec::new()).await.unwrap();
    assert_eq!(report.faults, []);
    assert_eq!((report.entries, report.runs), (positions.len() as u64, runs.len() as u64));
    assert_eq!(report.head, notes.last().map_or(ChainHash::START, |view| view.hash));
}

/// The chain of the daemon, newest first.
async fn daemon(journal: &dyn Journal) -> Vec<EntryView> {
    journal.daemon_views(KINDS[EVERY_KIND], None, ALL).await.unwrap()
}

fn check_run(run: &RunSummary, entries: &[Entry], views: &[EntryView]) {
    assert_eq!(entries.len(), views.len(), "{run:?}");
    assert!(matches!(entries[0].record, Record::RunCreated(_)), "{run:?}");
    let redactor = redactor();
    for (entry, view) in entries.iter().zip(views) {
        let stored = entry.record.stored(&redactor).unwrap();
        assert_eq!((entry.sequence, entry.time), (view.sequence, view.time));
        assert_eq!((entry.record.kind(), entry.record.version()), (&*view.kind, view.version));
        assert_eq!(stored.view, view.payload);
    }
    check_links(Some(run.id), views, |view| {
        let entry = &entries[view.sequence.0 as usize - 1];
        match entry.record.stored(&redactor).unwrap().body {
            None => Stored::AsSeen,
            Some(_) => Stored::AlsoSealed,
        }
    });
    let last = &entries[entries.len() - 1];
    assert_eq!((run.head, run.created, run.updated), (last.sequence, entries[0].time, last.time));
}

/// Checks that each view, oldest first, names the hash of the one before it, and that its own is what it must be.
fn check_links(run: Option<RunId>, views: &[EntryView], stored: impl Fn(&EntryView) -> Stored) {
    let mut previous = ChainHash::START;
    for (sequence, view) in (1..).map(Sequence).zip(views) {
        assert_eq!((view.run, view.sequence, view.previous), (run, sequence, previous), "{view:?}");
        let linked = Linked {
            run,
            sequence,
            position: view.position,
            time: view.time,
            kind: &view.kind,
            version: view.version,
            view: &view.payload,
            body_digest: None,
            policy_revision: view.policy_revision.as_deref(),
        };
        let as_seen = linked.hash(previous);
        assert_eq!(view.hash == as_seen, stored(view) == Stored::AsSeen, "{view:?}");
        previous = view.hash;
    }
}

/// Checks that the end of a run is anchored once it has ended, and not before.
fn check_anchor(run: &RunSummary, views: &[EntryView], notes: &[EntryView]) {
    let anchors = notes.iter().filter(|note| note.kind == "run_anchored");
    let anchors = anchors.map(|note| serde_json::from_str::<RunAnchored>(&note.payload).unwrap());
    let found: Vec<RunAnchored> = anchors.filter(|anchor| anchor.run_id == run.id).collect();
    let last = &views[views.len() - 1];
    let (sequence, hash) = (last.sequence, last.hash.to_string());
    match run.status.state.is_ended() {
        true => assert_eq!(found, [RunAnchored { run_id: run.id, sequence, hash }]),
        false => assert_eq!(found, []),
    }
}

pub(super) async fn every_entry_is_chained_to_the_one_before_it<S: Store>() {
    let store = S::new().await;
    let journal = store.journal();
    for n in 1..=3 {
        store.make(run_id(n), &Submission { body: n, ..Submission::default() }).await;
    }
    for said in [Said::Request, Said::Answer, Said::Secret, Said::Request] {
        for n in 1..=3 {
            store.write(run_id(n), &[said, said]).await;
            journal.append_daemon(Noted::Started.entry(n.into())).await.unwrap();
        }
    }

    check(journal).await;
}

pub(super) async fn the_end_of_an_ended_run_is_anchored_in_the_chain_of_the_daemon<S: Store>() {
    let store = S::new().await;
    let journal = store.journal();
    let ended = [How::Succeeded, How::Failed, How::Cancelled];
    for (n, how) in (1..).zip(ended) {
        store.make(run_id(n), &Submission::default()).await;
        store.write(run_id(n), &[Said::Request, Said::Ended(how)]).await;
    }
    store.make(run_id(4), &Submission::default()).await;
    let paused = store.following(run_id(4), StateName::Paused, &[Said::Request]).await;
    journal.append(paused).await.unwrap();

    let mut anchors = Vec::new();
    for view in daemon(journal).await {
        let anchor: RunAnchored = serde_json::from_str(&view.payload).unwrap();
        let end = journal
            .views(anchor.run_id, Sequence(2), PageLimit::entries(ALL))
            .await
            .unwrap()
            .remove(0);
        assert_eq!((anchor.sequence, anchor.hash), (Sequence(3), end.hash.to_string()));
        assert_eq!((view.time, view.policy_revision), (end.time, None));
        anchors.push(anchor.run_id);
    }
    assert_eq!(anchors, [3, 2, 1].map(run_id));
    check(journal).await;
}

pub(super) async fn views_hide_secrets_and_entries_do_not<S: Store>() {
    let store = S::new().await;
    let journal = store.journal();
    let with_secret = Submission { body: 1, labels: vec![8], ..Submission::default() };
    store.make(run_id(1), &with_secret).await;
    let said = [Said::Secret, Said::Asked { call: 0, expires: 1 }, Said::Ended(How::Failed)];
    store.write(run_id(1), &said).await;
    journal.append_daemon(Noted::Stopped.entry(1)).await.unwrap();

    let views = journal.views(run_id(1), Sequence(0), PageLimit::entries(ALL)).await.unwrap();
    let stopped = daemon(journal).await.remove(0);
    assert_eq!(stopped.payload, r#"{"why":"[redacted] was stolen"}"#);
    for view in views.iter().chain([&stopped]) {
        assert!(view.payload.contains("[redacted]"), "{view:?}");
        assert!(!view.payload.contains(SECRET), "{view:?}");
    }
    for entry in journal.entries(run_id(1), Sequence(0), ALL).await.unwrap() {
        let whole = entry.record.encode().unwrap();
        assert!(whole.contains(SECRET) && !whole.contains("[redacted]"), "{whole}");
    }
    check(journal).await;
}

pub(super) async fn lists_hide_secrets_also_where_they_shorten_a_text<S: Store>() {
    let store = S::new().await;
    let journal = store.journal();
    let submission = Submission { body: 1, labels: vec![8], ..Submission::default() };
    for (n, before) in (1..).zip([0, 1985, 1990, 1995]) {
        // Lists may show less of a task than all; what they show is never a part of a secret.
        let task = format!("{}{SECRET}", "x".repeat(before)).into();
        let mut append = store.creation(run_id(n), &submission);
        let spec = RunCreated { task, ..submission.spec() };
        append.entries[0].record = spec.into();
        journal.create(submission.admission(), append).await.unwrap();
        let paused = [Said::Asked { call: 0, expires: 1 }];
        journal.append(store.following(run_id(n), StateName::Paused, &paused).await).await.unwrap();
    }
    store.write(run_id(1), &[Said::Ended(How::Succeeded)]).await;
    store.write(run_id(2), &[Said::Ended(How::Failed)]).await;

    for question in everything(4) {
        let answer = question.ask(journal, Hashes::Shown).await;
        let is_whole = answer.contains("Entry {");
        assert_eq!(answer.contains(&SECRET[..5]), is_whole, "{question:?}: {answer}");
    }
}

pub(super) async fn verifying_counts_everything_and_finds_nothing_wrong<S: Store>() {
    let store = S::new().await;
    let empty = store.journal().verify(Vec::new()).await.unwrap();
    assert_eq!((empty.entries, empty.runs, empty.head), (0, 0, ChainHash::START));
    assert_eq!(empty.faults, []);

    store.make(run_id(1), &Submission::default()).await;
    store.make(run_id(2), &Submission { body: 1, ..Submission::default() }).await;
    store.write(run_id(1), &[Said::Asked { call: 0, expires: 1 }, Said::Answer]).await;
    store.write(run_id(2), &[Said::Secret, Said::Ended(How::Succeeded)]).await;
    store.journal().append_daemon(Noted::Stopped.entry(1)).await.unwrap();
    let stopped = store.journal().append_daemon(Noted::Started.entry(2)).await.unwrap();

    let report = store.journal().verify(Vec::new()).await.unwrap();
    // Two creations, two entries each after them, one anchor, two of the daemon.
    assert_eq!((report.entries, report.runs), (9, 2));
    assert_eq!(report.faults, []);
    let last = daemon(store.journal()).await.remove(0);
    assert_eq!((last.sequence, last.hash), (stopped, report.head));
}

pub(super) async fn a_head_that_was_kept_fits_the_journal_it_was_kept_of_and_no_other<S: Store>() {
    let store = S::new().await;
    store.make(run_id(1), &Submission::default()).await;
    store.write(run_id(1), &[Said::Answer, Said::Ended(How::Succeeded)]).await;
    let page = store
        .journal()
        .audit(AuditFilter::default(), Position(0), PageLimit::entries(100))
        .await
        .unwrap();
    let mut digest = JournalDigest::START;
    let heads = page.entries.iter().map(|entry| {
        digest = digest.and(entry.hash);
        KeptHead { entries: entry.position, digest }
    });
    let heads: Vec<KeptHead> = heads.collect();
    assert_eq!(store.journal().verify(heads.clone()).await.unwrap().faults, []);

    let last = *heads.last().unwrap();
    let others = [
        KeptHead { digest: heads[0].digest, ..last },
        KeptHead { entries: Position(last.entries.0 - 1), ..last },
        KeptHead { entries: Position(last.entries.0 + 1), ..last },
    ];
    for other in others {
        let report = store.journal().verify(vec![other]).await.unwrap();
        assert_eq!(report.faults.len(), 1, "{other:?}: {report:?}");
    }
    assert!(heads.len() > 3, "control: there is something to sign");
}
