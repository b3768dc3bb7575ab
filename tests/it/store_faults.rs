//! A disk that is full, that cannot sync or that is slow, and a wall clock that jumps, all while runs are under way. What
//! is not on disk is not acknowledged, and whoever asked is told why; what was acknowledged is done, once, by the next
//! daemon; and no wait follows the wall clock.

#![expect(
    clippy::disallowed_methods,
    reason = "who waits here is a task of the test, which ends with it"
)]

use std::{
    collections::BTreeMap,
    error::Error as _,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use agentd::{
    client::Client,
    proto::v1::{self, CallResolution, RunState},
    scripted::{Reply, Seen, Turn},
};
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    shim::{Counter, Shim},
    support::{Backend, PATIENCE, Settings, Story, TestDaemon, refusal, wait_until},
};

/// A question to a person, as `approvals` has it.
const ASKS: &str =
    "  - {id: test.asks, argv: [sh, asks.sh], decision: require_approval, why: it publishes}\n";
/// Leaves a line each time it runs, and may not run twice.
const COUNTS: &str = "echo ran >>ran\n";
const HOUR: Duration = Duration::from_secs(3600);

fn shell(command: &str) -> Turn {
    Turn::call("shell_exec", json!({ "command": command }))
}

async fn daemon_on(shim: &Shim, backend: &Backend) -> TestDaemon {
    let settings =
        Settings { base_url: backend.url(), commands: ASKS.into(), ..Settings::default() };
    TestDaemon::start_on(settings, shim)
}

/// A run's request, in a workspace of its own.
fn request(daemon: &TestDaemon, name: &str) -> v1::CreateRunRequest {
    let workspace = workspace(daemon, name);
    fs::create_dir_all(&workspace).unwrap();
    fs::write(workspace.join("script.sh"), COUNTS).unwrap();
    fs::write(workspace.join("asks.sh"), COUNTS).unwrap();
    v1::CreateRunRequest {
        task: name.into(),
        agent: "executor".into(),
        workspace: workspace.display().to_string(),
        request_id: name.into(),
        ..Default::default()
    }
}

fn workspace(daemon: &TestDaemon, name: &str) -> PathBuf {
    daemon.workspace().join(name)
}

fn times_run(daemon: &TestDaemon, name: &str) -> usize {
    fs::read_to_string(workspace(daemon, name).join("ran")).unwrap_or_default().lines().count()
}

// --- a disk that refuses -------------------------------------------------------------------------------------------

/// What callers were told.
struct Told {
    /// Ids by request id.
    acknowledged: BTreeMap<String, String>,
    /// Why the last submission was refused. None: there was nobody left to refuse it.
    refused: Option<tonic::Status>,
    /// How the stream of a run ended, and how a wait for it.
    farewells: [tonic::Status; 2],
}

/// Submits until that is refused, while one run is followed and waited for.
async fn submit_until_refused(daemon: &TestDaemon) -> Told {
    const MOST: usize = 200;
    let client = daemon.client().await;
    let create = async |name: String| -> Result<String, tonic::Status> {
        let answer = client.runs().create_run(request(daemon, &name)).await?;
        Ok(answer.into_inner().run.unwrap().id)
    };
    let first = create("hang".into()).await.unwrap();
    let mut acknowledged = BTreeMap::from([("hang".to_owned(), first.clone())]);
    let farewells = farewells(&client, first).await;
    for number in 0..MOST {
        let name = format!("run-{number}");
        let Err(refused) = create(name.clone()).await.map(|id| acknowledged.insert(name, id))
        else {
            continue;
        };
        // Until the daemon is gone there is time for a few more.
        for late in 0..20 {
            let answer = create(format!("late-{late}")).await;
            answer.expect_err("a store that has failed acknowledges nothing more");
        }
        // Whoever comes when it is gone, or going, is let in no more and has that from the transport; the stream and
        // the wait were let in.
        let is_let_in = refused.source().is_none();
        let refused = Some(refused).filter(|_| is_let_in);
        let farewells = tokio::time::timeout(PATIENCE, farewells).await.unwrap();
        return Told { acknowledged, refused, farewells };
    }
    panic!("{MOST} runs were taken, and the fault did not come");
}

/// How a stream and a wait end, both of which are open when this returns.
async fn farewells(client: &Client, id: String) -> impl Future<Output = [tonic::Status; 2]> {
    let following = v1::StreamRunEventsRequest { id: id.clone(), after_sequence: 0, follow: true };
    let mut followed = client.runs().stream_run_events(following).await.unwrap().into_inner();
    // The run is never without an entry: its first words say that the stream is open.
    followed.message().await.unwrap();
    let stream = async move {
        loop {
            match followed.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stream ended without a reason"),
                Err(farewell) => return farewell,
            }
        }
    };
    let waiting = v1::WaitRunRequest { id, timeout: Some(PATIENCE.try_into().unwrap()) };
    let runs = client.runs();
    let wait = async move { runs.clone().wait_run(waiting).await.unwrap_err() };
    // Both hear their farewell while nobody asks for it yet.
    let (mut streams, mut waits) = (JoinSet::new(), JoinSet::new());
    streams.spawn(stream);
    waits.spawn(wait);
    async move {
        [streams.join_next().await.unwrap().unwrap(), waits.join_next().await.unwrap().unwrap()]
    }
}

/// Counts, then is done; one hangs on to its answer for as long as its daemon lives.
fn counting(seen: &Seen) -> Reply {
    match (seen.task.as_str(), seen.turn) {
        ("hang", _) => Reply::Hang,
        (_, 1) => Reply::Answer(shell("sh script.sh")),
        _ => Reply::Answer(Turn::say("done")),
    }
}

/// The daemon stops for this fault, whoever asked is told `words`, and the next one does all that was acknowledged.
async fn check_that_it_stops(shim: Shim, fault: impl Fn(&Shim), words: &str) -> Shim {
    let backend = Backend::start(counting).await;
    let mut daemon = daemon_on(&shim, &backend).await;
    fault(&shim);
    let told = submit_until_refused(&daemon).await;
    for status in told.farewells.iter().chain(&told.refused) {
        assert_eq!(refusal(status), (Code::Unavailable, "STORE_FAILED".into()));
        assert!(status.message().contains(words), "{status:?}");
        assert!(status.get_details_retry_info().is_some(), "it may be tried again: {status:?}");
    }
    assert_eq!(daemon.exit_code().await, Some(1), "it acknowledges nothing more");
    assert_eq!(shim.get(Counter::SyncsAfter), 0, "a sync that failed is not tried again");
    let log = daemon.log();
    assert!(log.contains("the journal cannot be written, and the daemon stops: "), "{log}");
    let advice = format!("{words}; check the disk, then start agentd again");
    assert!(log.contains(&advice), "{log}");

    // With the disk as it should be, and before anybody asks for anything else.
    for (counter, value) in [(Counter::WritesLeft, -1), (Counter::SyncsLeft, -1)] {
        shim.set(counter, value);
    }
    daemon.boot_dying(&[]);
    daemon.cancel(&told.acknowledged["hang"]).await;
    for (name, id) in &told.acknowledged {
        let story = settled(&daemon, name, id).await;
        let expected = if name == "hang" { RunState::Cancelled } else { RunState::Succeeded };
        assert_eq!(story.state(), expected, "{name}");
        // Whoever asks again with the same words is told of the same run.
        let again = daemon.create(request(&daemon, name)).await.unwrap().run.unwrap();
        assert_eq!(&again.id, id, "{name}");
    }
    // The one that was refused may be there or not: nobody was told.
    let known = daemon.runs().await.len();
    let count = told.acknowledged.len();
    assert!(known == count || known == count + 1, "{known} runs, {count} acknowledged");
    assert!(daemon.audit().await.intact);
    backend.assert_paired();
    assert_eq!(daemon.stop(), Some(0));
    shim
}

/// The run's end. Where the daemon asks what became of a call, the tool's own file says.
async fn settled(daemon: &TestDaemon, name: &str, id: &str) -> Story {
    let mut said = CallResolution::Unspecified;
    if daemon.wait(id).await.state() == RunState::NeedsAttention {
        said = match times_run(daemon, name) {
            0 => CallResolution::DidNotRun,
            _ => CallResolution::DidRun,
        };
        let request = v1::ResolveToolCallRequest {
            run_id: id.into(),
            turn: 1,
            resolution: said.into(),
            ..Default::default()
        };
        daemon.client().await.runs().resolve_tool_call(request).await.unwrap();
        daemon.wait_for_entry(id, "run_finished").await;
    }
    let story = daemon.story(id).await;
    let expected = usize::from(name != "hang" && said != CallResolution::DidNotRun);
    assert_eq!(times_run(daemon, name), expected, "{name}, and a person said {said:?}");
    story
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_stops_the_daemon_and_with_room_everything_goes_on_once() {
    // Some runs have come to their end by then, and others are in the middle.
    let full = |shim: &Shim| shim.set(Counter::WritesLeft, 600);
    let shim = check_that_it_stops(Shim::of_faults(), full, "database or disk is full").await;
    assert!(shim.get(Counter::WritesRefused) > 0, "the fault came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_stops_the_daemon_and_is_not_tried_again() {
    let broken = |shim: &Shim| {
        shim.set(Counter::SyncsToFail, i64::MAX);
        shim.set(Counter::SyncsLeft, 20);
    };
    let shim = Shim::of_faults();
    let shim = check_that_it_stops(shim, broken, "disk I/O error").await;
    assert_eq!(shim.get(Counter::SyncsFailed), 1, "the fault came");
}

/// The kernel tells of a failure once, and drops what it could not write: to sync again succeeds, and means nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_would_succeed_the_second_time_is_not_tried_again_either() {
    let broken = |shim: &Shim| {
        shim.set(Counter::SyncsToFail, 1);
        shim.set(Counter::SyncsLeft, 20);
    };
    let shim = Shim::of_faults();
    let shim = check_that_it_stops(shim, broken, "disk I/O error").await;
    assert_eq!(shim.get(Counter::SyncsFailed), 1, "the fault came");
}

/// The log is copied into the database file, and then begun again: a copy of which nobody knows whether it is on disk must
/// not count. It is made between two calls, and tells the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_cannot_be_folded_into_the_database_is_kept_and_stops_the_daemon() {
    let broken = |shim: &Shim| shim.set(Counter::FoldsToFail, 1);
    let shim = check_that_it_stops(Shim::of_faults(), broken, "disk I/O error").await;
    assert_eq!(shim.get(Counter::SyncsFailed), 1, "the fault came");
}

// --- a slow disk ---------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_does_not_wait_for_a_slow_disk_and_nothing_is_lost_on_it() {
    /// Each is a chance to read while its own sync is under way.
    const RUNS: usize = 8;
    let backend = Backend::start(counting).await;
    let shim = Shim::of_faults();
    let mut daemon = daemon_on(&shim, &backend).await;
    shim.set(Counter::SyncMicroseconds, 50_000);
    let client = daemon.client().await;
    let first = daemon.create(request(&daemon, "run-0")).await.unwrap().run.unwrap().id;
    let mut ids = vec![("run-0".to_owned(), first)];
    let mut is_answered = false;
    for number in 1..RUNS {
        let name = format!("run-{number}");
        let (wanted, runs) = (request(&daemon, &name), client.runs());
        let created = tokio::spawn(async move { runs.clone().create_run(wanted).await });
        is_answered |= is_answered_within_a_sync(&shim, &client, &ids[0].1).await;
        ids.push((name, created.await.unwrap().unwrap().into_inner().run.unwrap().id));
    }
    assert!(is_answered, "every answer came with the end of a sync");
    let mut stories = Vec::new();
    for (name, id) in &ids {
        let story = daemon.story(id).await;
        assert_eq!((story.state(), times_run(&daemon, name)), (RunState::Succeeded, 1));
        stories.push(story);
    }
    daemon.restart();
    for story in &stories {
        assert_eq!(daemon.journal(&story.run.id).await, story.entries);
    }
    assert!(daemon.audit().await.intact);
}

/// Whether a run was read, by either way, while one and the same sync of the database was under way. No clock is asked:
/// on a machine that is busy both take longer.
async fn is_answered_within_a_sync(shim: &Shim, client: &Client, id: &str) -> bool {
    wait_until("a sync begins", || shim.get(Counter::SyncsUnderWay) > 0).await;
    let this = shim.get(Counter::Syncs);
    client.runs().get_run(v1::GetRunRequest { id: id.into() }).await.unwrap();
    client.runs().list_runs(v1::ListRunsRequest::default()).await.unwrap();
    shim.get(Counter::SyncsUnderWay) > 0 && shim.get(Counter::Syncs) == this
}

// --- a clock that jumps --------------------------------------------------------------------------------------------

/// What one caller waits for, and the back-off after a request that failed.
const WAIT: Duration = Duration::from_secs(2);

/// When requests for the run that backs off came, by this process's own clock.
type Requests = Arc<Mutex<Vec<Instant>>>;

fn words_of_the_clock_test(seen: &Seen, requests: &Requests) -> Reply {
    let unavailable = || Reply::Http {
        status: 503,
        headers: vec![("retry-after".into(), WAIT.as_secs().to_string())],
        body: String::new(),
    };
    match (seen.task.as_str(), seen.turn) {
        ("hang", _) => Reply::Hang,
        ("back off", _) => {
            let mut requests = requests.lock().unwrap();
            requests.push(Instant::now());
            if requests.len() == 1 { unavailable() } else { Reply::Answer(Turn::say("done")) }
        }
        ("ask", 1) => Reply::Answer(shell("sh asks.sh")),
        ("work", 1..=12) => Reply::Answer(shell("sh script.sh")),
        _ => Reply::Answer(Turn::say("done")),
    }
}

/// Whichever way the clock goes by an hour, in the middle of all that waits and works, nothing waits shorter or longer.
async fn check_a_jump(microseconds: i64) {
    let requests = Requests::default();
    let shared = requests.clone();
    let backend = Backend::start(move |seen: &Seen| words_of_the_clock_test(seen, &shared)).await;
    let shim = Shim::of_faults();
    let daemon = daemon_on(&shim, &backend).await;
    let mut ids = BTreeMap::new();
    for name in ["hang", "back off", "ask", "work"] {
        let run = daemon.create(request(&daemon, name)).await.unwrap().run.unwrap();
        ids.insert(name, run.id);
    }
    assert_eq!(daemon.wait(&ids["ask"]).await.state(), RunState::AwaitingApproval);
    daemon.wait_for_entry(&ids["back off"], "backend_error").await;
    daemon.wait_for_entry(&ids["work"], "tool_output").await;
    let waiting = {
        let (client, id) = (daemon.client().await, ids["hang"].clone());
        tokio::spawn(async move {
            let begun = Instant::now();
            let request = v1::WaitRunRequest { id, timeout: Some(WAIT.try_into().unwrap()) };
            let answer = client.runs().wait_run(request).await.unwrap().into_inner();
            (answer.timed_out, begun.elapsed())
        })
    };
    let following = {
        let (client, id) = (daemon.client().await, ids["hang"].clone());
        let request = v1::StreamRunEventsRequest { id, after_sequence: 0, follow: true };
        let mut followed = client.runs().stream_run_events(request).await.unwrap().into_inner();
        tokio::spawn(async move { while followed.message().await.unwrap().is_some() {} })
    };

    shim.set(Counter::ClockOffset, microseconds);

    wait_until("somebody asks for the time", || shim.get(Counter::ClockReads) > 0).await;
    let waited = tokio::time::timeout(PATIENCE, waiting).await.expect("a wait that goes on");
    let (timed_out, elapsed) = waited.unwrap();
    assert!(timed_out && elapsed >= WAIT, "a wait of {WAIT:?} took {elapsed:?}");
    for name in ["back off", "work"] {
        daemon.wait_for_entry(&ids[name], "run_finished").await;
    }
    let asked = requests.lock().unwrap().clone();
    assert_eq!(asked.len(), 2, "one that failed, and one more");
    let backed_off = asked[1] - asked[0];
    assert!(WAIT <= backed_off && backed_off < PATIENCE, "{backed_off:?} instead of {WAIT:?}");
    assert_eq!(times_run(&daemon, "work"), 12);
    // A question stays open for a day, and that is not over.
    assert_eq!(daemon.get(&ids["ask"]).await.state(), RunState::AwaitingApproval);
    approve(&daemon).await;
    daemon.wait_for_entry(&ids["ask"], "run_finished").await;
    assert_eq!(times_run(&daemon, "ask"), 1);
    daemon.cancel(&ids["hang"]).await;
    let followed = tokio::time::timeout(PATIENCE, following).await;
    followed.expect("a stream that goes on beyond its run's end").unwrap();
    for (name, id) in &ids {
        let story = daemon.story(id).await;
        assert!(story.run.state() == RunState::Succeeded || *name == "hang", "{story:?}");
        let times: Vec<(i64, i32)> = story.entries.iter().map(time).collect();
        assert!(times.is_sorted(), "{name}: {times:?}");
    }
    assert!(daemon.audit().await.intact);
    // A run that begins now shows which clock that was: the control of the rest.
    let late = daemon.create(request(&daemon, "late")).await.unwrap().run.unwrap();
    let late = time(&daemon.journal(&late.id).await[0]).0;
    let ahead = late - time(&daemon.journal(&ids["hang"]).await[0]).0;
    let expected = microseconds / 1_000_000;
    assert!((ahead - expected).abs() < 600, "{ahead} s instead of {expected} s");
}

/// Seconds and nanoseconds.
fn time(entry: &v1::JournalEntry) -> (i64, i32) {
    entry.time.as_ref().map(|time| (time.seconds, time.nanos)).unwrap()
}

async fn approve(daemon: &TestDaemon) {
    let client = daemon.client().await;
    let request = v1::ListPendingApprovalsRequest::default();
    let page = client.runs().list_pending_approvals(request).await.unwrap().into_inner();
    let asked = &page.approvals[0];
    let request = v1::ApproveToolCallRequest {
        run_id: asked.run_id.clone(),
        turn: asked.turn,
        index: asked.index,
        digest: asked.digest.clone(),
        ..Default::default()
    };
    client.runs().approve_tool_call(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_ahead_by_an_hour_ends_no_wait_before_its_time() {
    check_a_jump(i64::try_from(HOUR.as_micros()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_by_an_hour_makes_no_wait_longer_and_no_entry_earlier() {
    check_a_jump(-i64::try_from(HOUR.as_micros()).unwrap()).await;
}
