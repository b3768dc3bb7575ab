//! The daemon dies again and again, at every named place and at random times, while callers submit, follow and resolve.
//! What they were told, and what the tools themselves counted, is the judge: nothing acknowledged is lost, and nothing
//! is done twice without a person having said so.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use agentd::{
    client::{Address, Client},
    fail_point::{POINTS, VARIABLE},
    proto::v1::{self, CallResolution, RunState, stream_run_events_response::Event},
    scripted::{Reply, Seen, Turn},
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use crate::support::{Backend, Settings, TestDaemon};

/// Kills of each test unless AGENTD_KILLS says otherwise.
const KILLS: usize = 24;
/// Runs that are under way at each death.
const JOBS: usize = 3;
/// Callers that submit each of them, with one request id.
const CALLERS: usize = 4;
/// What a run's calls do, by the turn that asks for them; the scripts leave a line each time they run.
const SCRIPTS: [(&str, &str); 2] =
    [("script.sh", "echo ran >>ran\n"), ("pure.sh", "echo ran >>pure-ran\n")];
/// Longest that a round may take: then a run is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

fn kills() -> usize {
    let wanted = std::env::var("AGENTD_KILLS").ok();
    wanted.map_or(KILLS, |wanted| wanted.parse().expect("AGENTD_KILLS is a number"))
}

fn reply(seen: &Seen) -> Reply {
    let shell =
        |turn: Turn, command: &str| turn.and_call("shell_exec", json!({"command": command}));
    Reply::Answer(match seen.turn {
        1 => shell(Turn::default(), "sh script.sh"),
        2 => shell(Turn::default(), "sh pure.sh")
            .and_call("write_file", json!({"path": "out.txt", "content": "one\n"})),
        3 => Turn::call(
            "edit_file",
            json!({"path": "out.txt", "old_text": "one", "new_text": "two"}),
        ),
        _ => Turn::say("done"),
    })
}

/// When the daemon is to die.
#[derive(Debug, Clone)]
enum Death {
    /// At a named place, once it has been passed so often.
    At(&'static str, usize),
    /// After so long.
    After(Duration),
}

/// A run as its callers know it.
struct Job {
    workspace: PathBuf,
    id: String,
    /// Sequence and hash of every entry that the one who followed it was told, over all deaths.
    told: Vec<(u64, Vec<u8>)>,
    /// What a person had to say of a call.
    said: Option<CallResolution>,
}

/// One daemon after the other on one state directory.
struct Lab {
    daemon: TestDaemon,
    backend: Backend,
    jobs: Vec<Job>,
    /// Deaths, by what the journal held last of a run that was under way then.
    gaps: BTreeMap<String, usize>,
    deaths: usize,
}

impl Lab {
    async fn open() -> Self {
        let backend = Backend::start(reply).await;
        let daemon = TestDaemon::start_with(Settings {
            base_url: backend.url(),
            configuration: "limits: {checkpoint_entries: 8}\n".into(),
            ..Settings::default()
        });
        Self { daemon, backend, jobs: Vec::new(), gaps: BTreeMap::new(), deaths: 0 }
    }

    /// New runs, a death in the middle of them, and daemons until all have come to their end.
    async fn round(&mut self, number: usize, death: &Death) {
        self.daemon.kill();
        let variable = match death {
            Death::At(point, passed) => vec![(VARIABLE, format!("{point}:{passed}"))],
            Death::After(_) => Vec::new(),
        };
        let mut is_up = self.daemon.boot_dying(&variable);
        let started = Instant::now();
        let mut is_to_die = Some(death);
        let mut callers = JoinSet::new();
        for n in 0..JOBS {
            let workspace = self.daemon.workspace().join(format!("{number}-{n}"));
            callers.spawn(job(self.daemon.socket(), workspace, format!("{number}-{n}")));
        }
        while !callers.is_empty() {
            if let (Some(Death::After(delay)), true) = (is_to_die, is_up)
                && started.elapsed() >= *delay
            {
                self.daemon.kill();
                is_up = false;
            }
            if !is_up || self.daemon.has_died() {
                self.deaths += usize::from(is_to_die.take().is_some());
                is_up = self.daemon.boot_dying(&[]);
                assert!(is_up, "it does not come up after {death:?}\n{}", self.daemon.log());
            }
            assert!(started.elapsed() < PATIENCE, "stuck after {death:?}\n{}", self.daemon.log());
            tokio::select! {
                Some(job) = callers.join_next() => self.jobs.push(job.unwrap()),
                () = tokio::time::sleep(Duration::from_millis(2)) => {}
            }
        }
        let first = self.jobs.len() - JOBS;
        for n in first..self.jobs.len() {
            self.judge(n, death).await;
        }
    }

    /// What was told and what was counted must be what the journal says.
    async fn judge(&mut self, n: usize, death: &Death) {
        let job = &self.jobs[n];
        let story = self.daemon.story(&job.id).await;
        assert_eq!(story.state(), RunState::Succeeded, "{death:?}");
        let written: Vec<(u64, Vec<u8>)> =
            story.entries.iter().map(|entry| (entry.sequence, entry.hash.clone())).collect();
        assert_eq!(job.told, written, "what was told is what any later caller is told: {death:?}");
        story.assert_calls_are_tied();
        let lines = |name: &str| {
            fs::read_to_string(job.workspace.join(name)).unwrap_or_default().lines().count()
        };
        let expected = usize::from(job.said != Some(CallResolution::DidNotRun));
        assert_eq!(lines("ran"), expected, "{death:?}, and a person said {:?}", job.said);
        assert!(lines("pure-ran") >= 1, "{death:?}");
        assert_eq!(
            fs::read_to_string(job.workspace.join("out.txt")).unwrap(),
            "two\n",
            "{death:?}"
        );
        for suspended in story.payloads("run_suspended") {
            assert_eq!(suspended["calls"], json!(["1.0"]), "only what must not run twice is asked");
        }
        for pair in story.kinds().windows(2).filter(|pair| pair[1] == "run_recovered") {
            *self.gaps.entry(format!("after {}", pair[0])).or_default() += 1;
        }
    }

    /// What holds of all rounds together.
    #[expect(clippy::print_stdout, reason = "it is what the gate shows")]
    async fn close(mut self, what: &str) {
        let audit = self.daemon.audit().await;
        assert!(audit.intact, "{audit:?}");
        assert_eq!(audit.runs as usize, self.jobs.len(), "one run for each request id");
        self.backend.assert_paired();
        let in_the_middle: usize = self.gaps.values().sum();
        println!(
            "{what}: {} kills, {} runs, {in_the_middle} taken over",
            self.deaths,
            self.jobs.len()
        );
        self.gaps.iter().for_each(|(gap, count)| println!("  {count:>5} {gap}"));
        assert!(in_the_middle > 0, "no death fell into a run");
        assert_eq!(self.daemon.stop(), Some(0));
    }
}

/// One run, submitted by several callers and followed to its end, through any number of daemons.
async fn job(socket: String, workspace: PathBuf, name: String) -> Job {
    fs::create_dir(&workspace).unwrap();
    for (script, content) in SCRIPTS {
        fs::write(workspace.join(script), content).unwrap();
    }
    let request = v1::CreateRunRequest {
        task: name.clone(),
        workspace: workspace.display().to_string(),
        request_id: name,
        ..Default::default()
    };
    let submitting = (0..CALLERS).map(|_| submitted(&socket, &request));
    let mut ids = futures_util::future::join_all(submitting).await;
    ids.dedup();
    assert_eq!(ids.len(), 1, "one request id, one run: {ids:?}");
    let mut job = Job { workspace, id: ids.remove(0), told: Vec::new(), said: None };
    while !job.is_followed_to_its_end(&socket).await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    job
}

async fn client(socket: &str) -> Option<Client> {
    Client::connect(&Address { uri: socket.to_owned(), token_file: None }).await.ok()
}

/// The id, as soon as it is acknowledged.
async fn submitted(socket: &str, request: &v1::CreateRunRequest) -> String {
    loop {
        if let Some(client) = client(socket).await
            && let Ok(answer) = client.runs().create_run(request.clone()).await
        {
            return answer.into_inner().run.unwrap().id;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Job {
    /// Follows from where it was told last. False: the daemon died.
    async fn is_followed_to_its_end(&mut self, socket: &str) -> bool {
        let after_sequence = self.told.last().map_or(0, |(sequence, _)| *sequence);
        let id = self.id.clone();
        let request = v1::StreamRunEventsRequest { id, after_sequence, follow: true };
        let Some(client) = client(socket).await else { return false };
        let stream = match client.runs().stream_run_events(request).await {
            Ok(stream) => stream,
            Err(status) => {
                assert_ne!(status.code(), tonic::Code::NotFound, "an acknowledged run is gone");
                return false;
            }
        };
        let mut stream = stream.into_inner();
        while let Ok(Some(message)) = stream.message().await {
            let Some(Event::Entry(entry)) = message.event else { continue };
            let last = self.told.last().map_or(0, |(sequence, _)| *sequence);
            assert_eq!(entry.sequence, last + 1, "neither a gap nor a repetition");
            self.told.push((entry.sequence, entry.hash));
            match entry.kind.as_str() {
                "run_finished" => return true,
                "run_suspended" => self.resolve(&client, &entry.payload).await,
                _ => {}
            }
        }
        // What was under way when the stream broke off may be known no more: a run that stands still is looked at.
        let get = v1::GetRunRequest { id: self.id.clone() };
        if let Ok(answer) = client.runs().get_run(get).await
            && answer.into_inner().run.unwrap().state() == RunState::NeedsAttention
        {
            self.resolve(&client, "{\"calls\":[\"1.0\"]}").await;
        }
        false
    }

    /// Says what the tool's own file says.
    async fn resolve(&mut self, client: &Client, payload: &str) {
        let payload: Value = serde_json::from_str(payload).unwrap();
        assert_eq!(payload["calls"], json!(["1.0"]), "a person is asked about nothing else");
        let resolution = match self.workspace.join("ran").exists() {
            true => CallResolution::DidRun,
            false => CallResolution::DidNotRun,
        };
        self.said = Some(resolution);
        let request = v1::ResolveToolCallRequest {
            run_id: self.id.clone(),
            turn: 1,
            resolution: resolution.into(),
            ..Default::default()
        };
        // Who dies before it answers is asked again.
        let _ = client.runs().resolve_tool_call(request).await;
    }
}

/// The same numbers in every run of the test.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_named_place_the_daemon_dies_at_nothing_is_lost_and_nothing_is_done_twice() {
    let mut lab = Lab::open().await;
    let mut dice = Dice(1);
    for number in 0..kills() {
        let point = POINTS[number % POINTS.len()];
        // Each call and each commit of the runs is passed alive sometimes.
        let passed = usize::try_from(dice.below(3 * JOBS as u64)).unwrap();
        lab.round(number, &Death::At(point, passed)).await;
    }
    lab.close("at named places").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_the_daemon_dies_nothing_is_lost_and_nothing_is_done_twice() {
    let mut lab = Lab::open().await;
    let mut dice = Dice(2);
    for number in 0..kills() {
        let delay = Duration::from_micros(dice.below(150_000));
        lab.round(number, &Death::After(delay)).await;
    }
    lab.close("at random times").await;
}

#[test]
fn a_build_for_people_has_no_place_to_die_at() {
    let source =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fail_point.rs"));
    let source = source.unwrap();
    let (without, with) = source.split_once("#[cfg(debug_assertions)]").unwrap();
    assert!(without.contains(
        "#[cfg(not(debug_assertions))]\n#[inline]\npub fn reach(_point: &'static str) {}"
    ));
    assert!(with.contains("std::env::var(VARIABLE)") && !without.contains("env::var"));
}
