//! What people are asked about is listed for as long as nobody has answered.

use agentd::{
    domain::{
        ids::{CallKey, Position, RunId, Timestamp},
        journal::{ApprovalRequested, Record},
        status::StateName,
    },
    ports::{Approvals, PendingApproval},
};

use super::{
    Store, chains,
    questions::ALL,
    records::{How, SECRET, Said, Submission, caller, run_id},
};

/// A run and a call of it, by its place.
type Asked = (RunId, u32);

fn asked(found: &[PendingApproval]) -> Vec<Asked> {
    found.iter().map(|pending| (pending.run, pending.asked.call.index)).collect()
}

async fn pending<S: Store>(store: &S, wanted: Approvals) -> Vec<Asked> {
    let found = store.journal().pending_approvals(wanted, Position(0), ALL).await.unwrap();
    asked(&found)
}

async fn all<S: Store>(store: &S) -> Vec<Asked> {
    pending(store, Approvals::default()).await
}

/// A store with two runs that ask about the same two calls each.
async fn asking<S: Store>() -> S {
    let store = S::new().await;
    for n in 1..=2 {
        store.make(run_id(n), &Submission { by: n, body: n, ..Submission::default() }).await;
    }
    for call in 0..2 {
        for n in 1..=2 {
            let expires = 10 * i64::from(n) + i64::from(call);
            let said = [Said::Request, Said::Asked { call, expires }];
            let append = store.following(run_id(n), StateName::AwaitingApproval, &said).await;
            store.journal().append(append).await.unwrap();
        }
    }
    let both = [(run_id(1), 0), (run_id(2), 0), (run_id(1), 1), (run_id(2), 1)];
    assert_eq!(all(&store).await, both);
    store
}

pub(super) async fn a_question_is_listed_until_somebody_decides<S: Store>() {
    let store: S = asking().await;
    store.write(run_id(1), &[Said::Decided { call: 0 }]).await;
    let rest = [(run_id(2), 0), (run_id(1), 1), (run_id(2), 1)];
    assert_eq!(all(&store).await, rest);

    // What nobody asks about may be decided all the same.
    store.write(run_id(1), &[Said::Decided { call: 0 }, Said::Decided { call: 7 }]).await;
    assert_eq!(all(&store).await, rest);
    chains::check(store.journal()).await;
}

pub(super) async fn a_question_is_listed_until_its_call_has_an_output<S: Store>() {
    let store: S = asking().await;
    store.write(run_id(2), &[Said::Output { call: 1 }]).await;

    assert_eq!(all(&store).await, [(run_id(1), 0), (run_id(2), 0), (run_id(1), 1)]);
    chains::check(store.journal()).await;
}

pub(super) async fn a_question_is_listed_until_its_run_ends<S: Store>() {
    let store: S = asking().await;
    store.write(run_id(1), &[Said::Ended(How::Cancelled)]).await;

    assert_eq!(all(&store).await, [(run_id(2), 0), (run_id(2), 1)]);
    chains::check(store.journal()).await;
}

pub(super) async fn a_question_that_is_asked_anew_is_listed_once_in_its_new_place<S: Store>() {
    let store: S = asking().await;
    store.write(run_id(1), &[Said::Decided { call: 1 }, Said::Asked { call: 1, expires: 1 }]).await;
    store.write(run_id(2), &[Said::Asked { call: 0, expires: 2 }]).await;

    let found = [(run_id(1), 0), (run_id(2), 1), (run_id(1), 1), (run_id(2), 0)];
    assert_eq!(all(&store).await, found);
    let expired = Approvals { expired_by: Some(Timestamp(2)), ..Approvals::default() };
    assert_eq!(pending(&store, expired).await, found[2..]);
    chains::check(store.journal()).await;
}

pub(super) async fn questions_are_listed_in_the_order_of_asking_page_by_page<S: Store>() {
    let store: S = asking().await;
    let page = async |after: Position, limit: usize| {
        let wanted = Approvals::default();
        store.journal().pending_approvals(wanted, after, limit).await.unwrap()
    };
    let everything = page(Position(0), usize::MAX).await;
    assert!(everything.is_sorted_by(|one, next| one.position < next.position), "{everything:?}");

    for limit in 0..=5 {
        assert_eq!(page(Position(0), limit).await, everything[..limit.min(4)]);
        for (at, PendingApproval { position, .. }) in everything.iter().enumerate() {
            let next = at + 1..(at + 1 + limit).min(4);
            assert_eq!(page(*position, limit).await, everything[next], "{limit} after {at}");
            let this = at..(at + limit).min(4);
            let before = Position(position.0 - 1);
            assert_eq!(page(before, limit).await, everything[this], "{limit} from {at}");
        }
    }
}

pub(super) async fn questions_are_listed_by_run_by_submitter_and_by_expiry<S: Store>() {
    let store: S = asking().await;
    let check = async |run: Option<u8>, by: Option<u8>, expired_by: Option<i64>, expected: &[_]| {
        let (run, submitter) = (run.map(run_id), by.map(caller));
        let wanted = Approvals { run, submitter, expired_by: expired_by.map(Timestamp) };
        let expected: Vec<Asked> =
            expected.iter().map(|(run, call)| (run_id(*run), *call)).collect();
        assert_eq!(pending(&store, wanted.clone()).await, expected, "{wanted:?}");
    };
    check(Some(1), None, None, &[(1, 0), (1, 1)]).await;
    check(Some(3), None, None, &[]).await;
    check(None, Some(2), None, &[(2, 0), (2, 1)]).await;
    check(None, Some(3), None, &[]).await;
    check(Some(1), Some(2), None, &[]).await;
    check(None, None, Some(9), &[]).await;
    check(None, None, Some(10), &[(1, 0)]).await;
    check(None, None, Some(20), &[(1, 0), (2, 0), (1, 1)]).await;
    check(None, Some(2), Some(20), &[(2, 0)]).await;
    check(Some(1), Some(1), Some(11), &[(1, 0), (1, 1)]).await;
}

pub(super) async fn a_listed_question_says_who_wants_what_without_secrets<S: Store>() {
    let store: S = asking().await;
    let wanted = Approvals { run: Some(run_id(1)), ..Approvals::default() };
    let found = store.journal().pending_approvals(wanted, Position(0), 1).await.unwrap().remove(0);

    let said = Said::Asked { call: 0, expires: 10 }.record();
    let Record::ApprovalRequested(whole) = said else { panic!("{said:?}") };
    let hidden = |text: &str| text.replace(SECRET, "[redacted]");
    let spec = Submission { by: 1, body: 1, ..Submission::default() }.spec();
    assert_ne!(hidden(&spec.task), &*spec.task, "control: there is something to hide");
    let expected = PendingApproval {
        run: run_id(1),
        // After two creations and a request.
        position: Position(4),
        time: Timestamp(3000),
        submitter: caller(1),
        task: hidden(&spec.task),
        workspace: hidden(&spec.workspace),
        is_redacted: true,
        asked: ApprovalRequested {
            call: CallKey { turn: 1, index: 0 },
            arguments: hidden(&whole.arguments).into(),
            ..whole
        },
    };
    assert_eq!(found, expected);
}
