//! What was in force when: every start, every reload and every refused one is listed, with who asked for it.

use agentd::proto::v1::{self, PolicyRevisionCause as Cause, PolicyRevisionState as State};
use serde_json::Value;
use tonic::Code;

use crate::{
    policy::{append, daemon, hang_up, in_force, reload},
    support::{Backend, TestDaemon, refusal},
};

/// Everything that is listed, page by page.
async fn listed(daemon: &TestDaemon, page_size: i32) -> Vec<v1::PolicyRevision> {
    let (mut revisions, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListPolicyRevisionsRequest { page_size, page_token };
        let page = daemon.client().await.policy().list_policy_revisions(request).await.unwrap();
        let page = page.into_inner();
        assert!(page_size == 0 || page.revisions.len() <= usize::try_from(page_size).unwrap());
        revisions.extend(page.revisions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return revisions;
        }
    }
}

/// A daemon that has started, was told another policy by RPC and one more by SIGHUP, and then refused one. Gives
/// the revisions that were in force, oldest first.
async fn eventful() -> (Backend, TestDaemon, [String; 3]) {
    let (backend, daemon) = daemon().await;
    let first = in_force(&daemon).await.revision;
    append(&daemon, "# by rpc\n");
    let second = reload(&daemon, "").await.unwrap().revision;
    append(&daemon, "# by signal\n");
    hang_up(&daemon);
    let third = loop {
        let now = in_force(&daemon).await.revision;
        if now != second {
            break now;
        }
    };
    append(&daemon, "surplus: 1\n");
    reload(&daemon, "").await.unwrap_err();
    (backend, daemon, [first, second, third])
}

fn owner() -> String {
    format!("uid:{}", rustix::process::geteuid().as_raw())
}

#[tokio::test]
async fn every_start_reload_and_refusal_is_listed_newest_first_with_who_asked_for_it() {
    let (_backend, daemon, [first, second, third]) = eventful().await;

    let listed = listed(&daemon, 0).await;

    let told = listed.iter().map(|one| {
        (one.state(), one.cause(), one.caller.clone(), one.revision.clone(), one.fault_count)
    });
    let expected = [
        (State::Refused, Cause::Rpc, owner(), third.clone(), 1),
        (State::Current, Cause::Sighup, "signal:SIGHUP".into(), third, 0),
        (State::Past, Cause::Rpc, owner(), second, 0),
        (State::Past, Cause::Start, String::new(), first, 0),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    let faults = &listed[0].faults;
    assert!(faults.len() == 1 && faults[0].contains("surplus"), "{faults:?}");
    let time = |one: &v1::PolicyRevision| one.time.map(|time| (time.seconds, time.nanos)).unwrap();
    for pair in listed.windows(2) {
        assert!(pair[0].sequence > pair[1].sequence, "{pair:?}");
        assert!(time(&pair[0]) >= time(&pair[1]), "{pair:?}");
    }
    assert_eq!(listed[1].time, in_force(&daemon).await.since_time);
}

#[tokio::test]
async fn revisions_are_the_same_page_by_page_and_a_page_knows_what_is_current() {
    let (_backend, daemon, _) = eventful().await;
    let whole = listed(&daemon, 0).await;

    for size in 1..=5 {
        assert_eq!(listed(&daemon, size).await, whole, "{size} a page");
    }
    let client = daemon.client().await;
    let ask = |page_size: i32, page_token: &str| {
        let request =
            v1::ListPolicyRevisionsRequest { page_size, page_token: page_token.to_owned() };
        let mut client = client.policy();
        async move { client.list_policy_revisions(request).await }
    };
    let token = ask(1, "").await.unwrap().into_inner().next_page_token;
    for (size, token) in [(-1, ""), (1, "17"), (1, &token[1..])] {
        let refused = ask(size, token).await.unwrap_err();
        assert_eq!(refusal(&refused), (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
    }
    let tools = v1::ListToolsRequest { page_size: 1, page_token: String::new() };
    let other = client.tools().list_tools(tools).await.unwrap().into_inner().next_page_token;
    assert!(!other.is_empty());
    let refused = ask(1, &other).await.unwrap_err();
    assert_eq!(refusal(&refused).1, "INVALID_ARGUMENT", "a token of another list");
}

#[tokio::test]
async fn a_restart_is_listed_and_what_was_before_it_stays() {
    let (_backend, mut daemon) = daemon().await;
    append(&daemon, "# changed while it runs\n");
    let second = reload(&daemon, "").await.unwrap().revision;

    daemon.restart();

    let listed = listed(&daemon, 0).await;
    let told: Vec<_> = listed.iter().map(|one| (one.state(), one.cause())).collect();
    assert_eq!(
        told,
        [(State::Current, Cause::Start), (State::Past, Cause::Rpc), (State::Past, Cause::Start)]
    );
    assert_eq!((&listed[0].revision, &listed[1].revision), (&second, &second));
    assert_ne!(listed[2].revision, second);
}

#[tokio::test]
async fn a_reload_that_brought_nothing_new_is_not_listed() {
    let (_backend, daemon) = daemon().await;
    reload(&daemon, "").await.unwrap();
    let listed = listed(&daemon, 0).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0].state(), State::Current);
}

#[tokio::test]
async fn of_a_refusal_with_many_faults_the_first_are_told_and_all_are_counted() {
    let (_backend, daemon) = daemon().await;
    let twice =
        |n: usize| format!("  - {{id: twice, argv: [a-program-{n}], match: [other], why: no}}\n");
    append(&daemon, &(0..300).map(twice).collect::<String>());
    reload(&daemon, "").await.unwrap_err();
    let all = u32::try_from(in_force(&daemon).await.faults.len()).unwrap();

    let refused = listed(&daemon, 1).await.remove(0);

    assert!(all >= 300, "{all}");
    let told = (refused.state(), refused.fault_count, refused.faults.len());
    assert_eq!(told, (State::Refused, all, 10));
    assert!(refused.faults.iter().all(|fault| fault.chars().count() <= 200));
}

#[tokio::test]
async fn agentctl_lists_the_revisions() {
    let (_backend, daemon, [first, _, third]) = eventful().await;
    let run = async |arguments: &[&str]| {
        let output = daemon.agentctl(&[&["policy", "revisions"], arguments].concat()).await;
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };

    let table = run(&[]).await;
    let json: Value = serde_json::from_str(&run(&["-o", "json"]).await).unwrap();
    let newest = run(&["--limit", "2"]).await;

    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 5, "{table}");
    for (line, words) in lines.iter().zip([
        ["TIME", "STATE", "REVISION"],
        ["REFUSED", owner().as_str(), "surplus"],
        ["CURRENT", "signal:SIGHUP", third.as_str()],
        ["PAST", owner().as_str(), "sha256:"],
        ["PAST", "start", first.as_str()],
    ]) {
        assert!(words.iter().all(|word| line.contains(word)), "{words:?} are not in {line}");
    }
    assert_eq!(newest.lines().count(), 3, "{newest}");
    let revisions = json["revisions"].as_array().unwrap();
    let states: Vec<&str> = revisions.iter().map(|one| one["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["REFUSED", "CURRENT", "PAST", "PAST"]);
    assert_eq!(revisions[1]["cause"], "SIGHUP");
    assert_eq!(revisions[3]["caller"], Value::Null);
}
