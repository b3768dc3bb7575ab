//! Calls that are reset half way, sent twice, and out of order, behind a relay. Callers do what real ones do: they ask
//! again until they are told. What they were told, and what the tools themselves counted, is the judge; that of the kill
//! loop (`deaths`), where it is the same.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use agentd::{
    client::{Address, Client},
    proto::v1::{self, CallResolution, RunState},
    scripted::{Reply, Seen, Turn},
};
use futures_util::future::{join_all, try_join_all};
use serde_json::json;
use tonic::{Response, Status};
use tonic_types::StatusExt as _;

use crate::{
    deaths::{Job, Lab},
    support::{
        Backend, Dice, PATIENCE, Settings, Story, TestDaemon,
        processes::{accepted, open_files},
        refusal,
        relay::{Fate, Relay},
        wait_until,
    },
};

/// Rounds of each test unless AGENTD_RPC_FAULTS says otherwise.
const ROUNDS: usize = 10;
/// Event streams that the daemon has places for.
const STREAMS: usize = 64;
/// Callers that submit each run, with one request id.
const CALLERS: usize = 3;
const ASKS: &str =
    "  - {id: test.asks, argv: [sh, asks.sh], decision: require_approval, why: it publishes}\n";
/// Adds a line each time it runs, and waits until it is told to go on.
const WAITS: &str = "echo ran >>ran; until [ -e go ]; do sleep 0.02; done\n";

fn rounds() -> usize {
    let wanted = std::env::var("AGENTD_RPC_FAULTS").ok();
    wanted.map_or(ROUNDS, |wanted| wanted.parse().expect("AGENTD_RPC_FAULTS is a number"))
}

/// A call and its answer take some hundred bytes each, a journal some thousand.
fn any_fate(dice: &mut Dice) -> Fate {
    let kind = dice.below(4);
    let mut bytes = |most| usize::try_from(dice.below(most)).unwrap();
    match kind {
        0 => Fate::Whole,
        1 => Fate::OfRequests(bytes(500)),
        2 => Fate::OfAnswers(bytes(500)),
        _ => Fate::OfAnswers(bytes(20_000)),
    }
}

/// Asks for one call that must not run twice, for whose leave somebody is asked where the task is to publish.
fn reply(seen: &Seen) -> Reply {
    let command = if seen.task == "publish" { "sh asks.sh" } else { "sh script.sh" };
    Reply::Answer(match seen.turn {
        1 => Turn::call("shell_exec", json!({"command": command})),
        _ => Turn::say("done"),
    })
}

fn start(backend: &Backend) -> TestDaemon {
    TestDaemon::start_with(Settings {
        base_url: backend.url(),
        commands: ASKS.into(),
        // Without launchers that wait: there may be one more or less of them whenever files are counted.
        configuration: format!("limits: {{event_streams: {STREAMS}, ready_launchers: 0}}\n"),
        ..Settings::default()
    })
}

/// A request for a run in a workspace of its own, with a request id and a label that are its name.
fn request(daemon: &TestDaemon, task: &str, name: &str) -> v1::CreateRunRequest {
    daemon.put(&format!("{name}/script.sh"), WAITS);
    daemon.put(&format!("{name}/asks.sh"), "echo ran >>ran\n");
    v1::CreateRunRequest {
        workspace: daemon.workspace().join(name).display().to_string(),
        request_id: name.into(),
        labels: [("name".to_owned(), name.to_owned())].into(),
        ..daemon.request(task)
    }
}

fn times_run(daemon: &TestDaemon, name: &str) -> usize {
    daemon.read(&format!("{name}/ran")).unwrap_or_default().lines().count()
}

/// Asks until the daemon has said something, each time by a new connection. Gives its answer, or the reason of its refusal.
async fn told<R, T, F>(
    way: &Address,
    request: R,
    call: impl Fn(Client, R) -> F,
) -> Result<T, String>
where
    R: Clone,
    F: Future<Output = Result<Response<T>, Status>>,
{
    let asking = async {
        loop {
            if let Ok(client) = Client::connect(way).await {
                match call(client, request.clone()).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) if status.get_details_error_info().is_some() => {
                        return Err(refusal(&status).1);
                    }
                    // Nobody knows what became of it.
                    Err(_) => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("no answer comes through")
}

async fn create(way: &Address, request: &v1::CreateRunRequest) -> v1::CreateRunResponse {
    let call = async |client: Client, request| client.runs().create_run(request).await;
    told(way, request.clone(), call).await.unwrap()
}

async fn cancel(way: &Address, id: &str) -> Result<v1::CancelRunResponse, String> {
    let request = v1::CancelRunRequest { id: id.into(), why: String::new() };
    told(way, request, async |client, request| client.runs().cancel_run(request).await).await
}

async fn pause(way: &Address, id: &str) -> Result<v1::PauseRunResponse, String> {
    let request = v1::PauseRunRequest { id: id.into(), why: String::new() };
    told(way, request, async |client, request| client.runs().pause_run(request).await).await
}

async fn resume(way: &Address, id: &str) -> Result<v1::ResumeRunResponse, String> {
    let request = v1::ResumeRunRequest { id: id.into(), ..Default::default() };
    told(way, request, async |client, request| client.runs().resume_run(request).await).await
}

async fn say(way: &Address, id: &str, text: &str) -> Result<v1::SendRunInputResponse, String> {
    let request =
        v1::SendRunInputRequest { id: id.into(), text: text.into(), request_id: text.into() };
    told(way, request, async |client, request| client.runs().send_run_input(request).await).await
}

async fn state(way: &Address, id: &str) -> RunState {
    let request = v1::GetRunRequest { id: id.into() };
    let call = async |client: Client, request| client.runs().get_run(request).await;
    let run: v1::GetRunResponse = told(way, request, call).await.unwrap();
    run.run.unwrap().state()
}

/// Runs of this name, as the daemon lists them.
async fn named(way: &Address, name: &str) -> Vec<v1::Run> {
    let labels = [("name".to_owned(), name.to_owned())].into();
    let request = v1::ListRunsRequest { labels, ..Default::default() };
    let call = async |client: Client, request| client.runs().list_runs(request).await;
    let listed: v1::ListRunsResponse = told(way, request, call).await.unwrap();
    listed.runs
}

/// What people decide of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Approved,
    Denied,
}

impl Decision {
    fn opposite(self) -> Self {
        match self {
            Self::Approved => Self::Denied,
            Self::Denied => Self::Approved,
        }
    }

    /// As the journal has it.
    fn name(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Denied => "denied",
        }
    }

    /// Decides, and gives what it was told.
    async fn said(self, way: &Address, asked: &v1::PendingApproval) -> Said<Self> {
        let (run_id, digest) = (asked.run_id.clone(), asked.digest.clone());
        let (turn, index) = (asked.turn, asked.index);
        let done = match self {
            Self::Approved => {
                let request = v1::ApproveToolCallRequest {
                    run_id,
                    turn,
                    index,
                    digest,
                    ..Default::default()
                };
                let call =
                    async |client: Client, request| client.runs().approve_tool_call(request).await;
                told(way, request, call).await.map(drop)
            }
            Self::Denied => {
                let why = String::new();
                let request = v1::DenyToolCallRequest { run_id, turn, index, digest, why };
                let call =
                    async |client: Client, request| client.runs().deny_tool_call(request).await;
                told(way, request, call).await.map(drop)
            }
        };
        Said { what: self, done }
    }
}

/// What somebody said, and what came of it.
struct Said<T> {
    what: T,
    done: Result<(), String>,
}

/// The first holds: whoever said the same was told so, and everybody else was refused.
fn assert_first_holds<T: PartialEq + Copy>(
    said: &[Said<T>],
    name: impl Fn(T) -> &'static str,
    (held, refused): (&[&str], &str),
) {
    assert_eq!(held.len(), 1, "one decision: {held:?}");
    for Said { what, done } in said {
        match done {
            Ok(()) => assert_eq!(name(*what), held[0], "what was acknowledged is there"),
            Err(reason) => {
                assert_eq!((name(*what) == held[0], reason.as_str()), (false, refused));
            }
        }
    }
}

/// What the payloads of one kind say in one field.
fn field<'a>(payloads: &'a [serde_json::Value], key: &str) -> Vec<&'a str> {
    payloads.iter().map(|payload| payload[key].as_str().unwrap()).collect()
}

/// What is asked of people about this run, once it is.
async fn asked(way: &Address, id: &str) -> v1::PendingApproval {
    let request = v1::ListPendingApprovalsRequest { run_id: id.into(), ..Default::default() };
    loop {
        let call =
            async |client: Client, request| client.runs().list_pending_approvals(request).await;
        let page: v1::ListPendingApprovalsResponse =
            told(way, request.clone(), call).await.unwrap();
        if let Some(asked) = page.approvals.into_iter().next() {
            return asked;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A call is allowed and refused at once, and again when all is over.
async fn decided(daemon: &TestDaemon, way: &Address, name: &str, first: Decision) {
    let request = request(daemon, "publish", name);
    let mut job = Job::submitted(way, &request, CALLERS).await;
    let asked = asked(way, &job.id).await;
    let at_once = [first, first, first.opposite()];
    let deciding = join_all(at_once.map(|decision| decision.said(way, &asked)));
    let ((), mut said) = tokio::join!(job.follow(way), deciding);
    said.extend(join_all([first.opposite(), first].map(|it| it.said(way, &asked))).await);

    let story = daemon.story(&job.id).await;
    job.assert_was_told(&story, &name);
    let payloads = story.payloads("approval_decided");
    let held = field(&payloads, "decision");
    assert_first_holds(&said, Decision::name, (&held, "CALL_ALREADY_DECIDED"));
    assert_eq!(times_run(daemon, name), usize::from(held[0] == "approved"));
    assert_one_run(way, name, &story).await;
}

/// A run is to go on before it is to pause, pauses, hears things twice, and goes on.
async fn steered(daemon: &TestDaemon, way: &Address, name: &str) {
    let request = request(daemon, "work", name);
    let mut job = Job::submitted(way, &request, CALLERS).await;
    let id = job.id.clone();
    wait_until("it runs", || times_run(daemon, name) > 0).await;
    let steering = async {
        resume(way, &id).await.expect("it goes on as it is");
        try_join_all([pause(way, &id), pause(way, &id)]).await.unwrap();
        let words =
            ["one", "two"].map(|text| try_join_all([say(way, &id, text), say(way, &id, text)]));
        try_join_all(words).await.unwrap();
        daemon.put(&format!("{name}/go"), "");
        // A wish to pause that was long under way may come after one to go on.
        while state(way, &id).await != RunState::Succeeded {
            if state(way, &id).await == RunState::Paused {
                for done in join_all([resume(way, &id), resume(way, &id)]).await {
                    // Whoever comes last may find it ended.
                    assert!(done.is_ok() || done == Err("INVALID_STATE".into()), "{done:?}");
                }
            }
        }
        say(way, &id, "one").await.expect("it was heard");
    };
    tokio::join!(job.follow(way), steering);

    let story = daemon.story(&job.id).await;
    job.assert_was_told(&story, &name);
    let payloads = story.payloads("input_received");
    let mut heard = field(&payloads, "request_id");
    heard.sort_unstable();
    assert_eq!(heard, ["one", "two"], "each is heard once");
    assert!(!story.payloads("pause_requested").is_empty(), "what was acknowledged is there");
    assert_eq!(times_run(daemon, name), 1);
    assert_one_run(way, name, &story).await;
}

/// A run is cancelled by somebody who has seen it in a list before those who made it know of it.
async fn cancelled(daemon: &TestDaemon, way: &Address, name: &str) {
    let request = request(daemon, "work", name);
    let cancelling = async {
        loop {
            if let Some(run) = named(way, name).await.first() {
                try_join_all([cancel(way, &run.id), cancel(way, &run.id)]).await.unwrap();
                return run.id.clone();
            }
        }
    };
    let (mut job, id) = tokio::join!(Job::submitted(way, &request, CALLERS), cancelling);
    assert_eq!(job.id, id);
    job.follow(way).await;
    cancel(way, &id).await.unwrap();
    let again = create(way, &request).await;
    assert_eq!((again.existed, again.run.unwrap().id), (true, id));

    let story = daemon.story(&job.id).await;
    job.assert_was_told(&story, &name);
    assert_eq!(story.state(), RunState::Cancelled);
    assert!(times_run(daemon, name) <= 1);
    assert_one_run(way, name, &story).await;
}

/// One run for the request id, with one end, each of whose calls has one intent and one output.
async fn assert_one_run(way: &Address, name: &str, story: &Story) {
    assert_eq!(named(way, name).await.len(), 1, "one request id, one run");
    assert_eq!(story.payloads("run_finished").len(), 1);
    story.assert_calls_are_tied();
}

/// A run that stands still, since its daemon died while a call was under way that must not run twice.
async fn standing_still(daemon: &mut TestDaemon, name: &str) -> String {
    let run = daemon.create(request(daemon, "work", name)).await.unwrap().run.unwrap();
    wait_until("it runs", || times_run(daemon, name) > 0).await;
    daemon.kill();
    daemon.put(&format!("{name}/go"), "");
    daemon.restart();
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::NeedsAttention);
    run.id
}

fn resolution(resolution: CallResolution) -> &'static str {
    match resolution {
        CallResolution::DidRun => "did_run",
        CallResolution::DidNotRun => "did_not_run",
        CallResolution::Unspecified | CallResolution::Retry => "not said here",
    }
}

/// Two say that the call did run while a third says that it did not, and both again.
async fn resolved(daemon: &TestDaemon, way: &Address, name: &str, id: &str) {
    use CallResolution::{DidNotRun, DidRun};
    let resolve = async |what: CallResolution| {
        let (run_id, resolution) = (id.to_owned(), what.into());
        let request =
            v1::ResolveToolCallRequest { run_id, turn: 1, resolution, ..Default::default() };
        let call = async |client: Client, request| client.runs().resolve_tool_call(request).await;
        Said { what, done: told(way, request, call).await.map(drop) }
    };
    let mut said = join_all([DidRun, DidRun, DidNotRun].map(resolve)).await;
    said.extend(join_all([DidNotRun, DidRun].map(resolve)).await);

    let story = daemon.story(id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    let payloads = story.payloads("call_resolved");
    let held = field(&payloads, "resolution");
    assert_first_holds(&said, resolution, (&held, "CALL_ALREADY_RESOLVED"));
    assert_eq!(times_run(daemon, name), 1);
}

/// All kinds of things that people do, at the same time.
async fn round(daemon: &TestDaemon, way: &Address, name: &str) {
    let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|n| format!("{name}-{n}"));
    tokio::join!(
        decided(daemon, way, &a, Decision::Approved),
        decided(daemon, way, &b, Decision::Denied),
        steered(daemon, way, &c),
        cancelled(daemon, way, &d),
        cancelled(daemon, way, &e),
    );
}

/// What the daemon has open when it has done everything once, with nobody connected.
async fn files_after_a_quiet_round(daemon: &TestDaemon) -> Vec<String> {
    let relay = Relay::start(daemon, Dice(0), |_| Fate::Whole).await;
    round(daemon, relay.way(), "quiet").await;
    relay.stop().await;
    assert!(daemon.audit().await.intact);
    daemon.is_at_rest().await;
    open_files(daemon.pid())
}

/// The daemon has closed all connections of callers, and whatever else is not a connection to the model.
#[expect(clippy::print_stdout, reason = "it is what a failure is told with")]
async fn assert_nothing_is_left_open(daemon: &TestDaemon, before: &[String]) {
    let port = daemon.tcp.rsplit_once(':').unwrap().1.parse().unwrap();
    daemon.is_at_rest().await;
    println!("{} of callers; {:?}; before: {before:?}", accepted(port), open_files(daemon.pid()));
    wait_until("callers' connections are closed", || accepted(port) == 0).await;
    let others = |files: &[String]| files.iter().filter(|it| !it.starts_with("socket:")).count();
    let is_as_before = || others(&open_files(daemon.pid())) <= others(before);
    wait_until("files are closed", is_as_before).await;
}

/// The daemon holds on to no stream of those who have gone.
async fn assert_all_places_are_free(daemon: &TestDaemon, id: &str) {
    let client = daemon.client().await;
    let request = v1::StreamRunEventsRequest { id: id.into(), after_sequence: 0, follow: true };
    let all_places = async {
        loop {
            let opening =
                (0..STREAMS).map(async |_| client.runs().stream_run_events(request.clone()).await);
            if join_all(opening).await.iter().all(Result::is_ok) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_places).await.expect("streams are open yet");
}

/// Ends a relay, and shows that it did what it is for.
#[expect(clippy::print_stdout, reason = "it is what the gate shows")]
async fn end(relay: Relay, what: &str) {
    let counts = relay.stop().await;
    let [connections, in_requests, in_answers] =
        [&counts.connections, &counts.in_requests, &counts.in_answers].map(|it| it.load(Relaxed));
    println!(
        "{what}: {connections} connections, {in_requests} reset in requests and {in_answers} in answers"
    );
    assert!(in_requests > 0 && in_answers > 0, "control");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_connection_is_reset_nothing_is_lost_and_nothing_is_done_twice() {
    let mut lab = Lab::open().await;
    let relay = Relay::start(lab.daemon(), Dice::of_seed(7), any_fate).await;
    for number in 0..rounds() {
        lab.round_without_death(number, relay.way()).await;
    }
    lab.judge_all().await;
    end(relay, "runs and their followers").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_say_twice_and_out_of_order_over_broken_connections_holds_once() {
    let backend = Backend::start(reply).await;
    let mut daemon = start(&backend);
    let stands_still = standing_still(&mut daemon, "lost").await;
    let (pid, files) = (daemon.pid(), files_after_a_quiet_round(&daemon).await);
    let relay = Relay::start(&daemon, Dice::of_seed(8), any_fate).await;

    resolved(&daemon, relay.way(), "lost", &stands_still).await;
    for number in 0..rounds() {
        round(&daemon, relay.way(), &number.to_string()).await;
    }

    end(relay, "people").await;
    assert_eq!(daemon.pid(), pid);
    assert!(!daemon.has_died());
    assert!(daemon.audit().await.intact);
    backend.assert_paired();
    assert_nothing_is_left_open(&daemon, &files).await;
    let waiting = daemon.create(request(&daemon, "work", "last")).await.unwrap().run.unwrap();
    wait_until("it runs", || times_run(&daemon, "last") > 0).await;
    assert_all_places_are_free(&daemon, &waiting.id).await;
}

/// The control of both: what came through is asked again, and whoever asks again without saying so gets another run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_again_without_a_request_id_gets_two_runs_and_is_found_out() {
    const TRIES: usize = 100;
    let backend = Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await;
    let daemon = start(&backend);
    let relay = Relay::start(&daemon, Dice::of_seed(9), any_fate).await;
    for number in 0..TRIES {
        let name = number.to_string();
        let with = request(&daemon, "work", &name);
        let without = v1::CreateRunRequest { request_id: String::new(), ..with.clone() };
        create(relay.way(), &without).await;
        let made = named(relay.way(), &name).await.len();
        create(relay.way(), &with).await;
        assert_eq!(named(relay.way(), &name).await.len(), made + 1, "with one it is one more");
        if made > 1 {
            return;
        }
    }
    panic!("nothing that came through was ever asked again");
}
