//! One daemon after the other on one state directory, each of which dies, while callers submit, follow and resolve. What
//! they were told, and what the tools themselves counted, is the judge: nothing acknowledged is lost, and nothing is
//! done twice without a person having said so. Who dies how: `kills` and `power_loss`.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use agentd::{
    client::{Address, Client},
    fail_point::VARIABLE,
    jsonl,
    proto::v1::{self, CallResolution, RunState, stream_run_events_response::Event},
    scripted::{Reply, Seen, Turn},
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    shim::{
        Shim,
        disk::{Disk, Stays},
    },
    support::{Backend, Dice, Settings, Story, TestDaemon},
};

/// Runs that are under way at each death.
pub(crate) const JOBS: usize = 3;
/// Callers that submit each of them, with one request id.
const CALLERS: usize = 4;
/// What a run's calls do, by the turn that asks for them; the scripts leave a line each time they run.
const SCRIPTS: [(&str, &str); 2] =
    [("script.sh", "echo ran >>ran\n"), ("pure.sh", "echo ran >>pure-ran\n")];
/// Longest that a round may take: then a run is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

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
pub(crate) enum Death {
    /// At a named place, once it has been passed so often.
    At(&'static str, usize),
    /// After so long.
    After(Duration),
}

/// A run as its callers know it.
pub(crate) struct Job {
    /// Its request id.
    name: String,
    waits: Waits,
    workspace: PathBuf,
    pub(crate) id: String,
    /// Sequence and hash of every entry that the one who followed it was told, over all deaths.
    told: Vec<(u64, Vec<u8>)>,
    /// What a person had to say of a call.
    said: Option<CallResolution>,
}

/// What a death of the daemon takes along.
struct Power {
    shim: Shim,
    disk: Disk,
    dice: Dice,
    cuts: usize,
    /// Cuts in the middle of a commit.
    in_commits: usize,
}

/// What each caller waits for, by the name of its run: told when a round is stuck.
#[derive(Clone, Default)]
struct Waits(Arc<Mutex<BTreeMap<String, String>>>);

impl Waits {
    fn note(&self, run: &str, what: impl Into<String>) {
        self.0.lock().unwrap().insert(run.to_owned(), what.into());
    }

    fn told(&self) -> String {
        let waits = self.0.lock().unwrap();
        waits.iter().map(|(run, what)| format!("{run} waits for {what}\n")).collect()
    }
}

/// One daemon after the other on one state directory.
pub(crate) struct Lab {
    daemon: TestDaemon,
    backend: Backend,
    /// None: a death is the daemon's alone.
    power: Option<Power>,
    jobs: Vec<Job>,
    /// Runs that are under way at each death, and callers that submit each of them.
    crowd: (usize, usize),
    /// Deaths, by what the journal held last of a run that was under way then.
    gaps: BTreeMap<String, usize>,
    deaths: usize,
    /// Of the callers of this round.
    waits: Waits,
}

/// With a checkpoint every few entries: what is kept of a run must be what its journal comes to, whenever it dies.
fn settings(backend: &Backend) -> Settings {
    let configuration = "limits: {checkpoint_entries: 8}\n".into();
    Settings { base_url: backend.url(), configuration, ..Settings::default() }
}

impl Lab {
    /// A death is the daemon's alone: what it wrote is there.
    pub(crate) async fn open() -> Self {
        let backend = Backend::start(reply).await;
        let daemon = TestDaemon::start_with(settings(&backend));
        Self::of(daemon, backend, None)
    }

    /// With most deaths the power fails too, and with it what was not on disk.
    pub(crate) async fn open_on(shim: Shim, dice: Dice) -> Self {
        let backend = Backend::start(reply).await;
        let daemon = TestDaemon::start_on(settings(&backend), &shim);
        let disk = Disk::new(&daemon.state(), dice.clone());
        let power = Power { shim, disk, dice, cuts: 0, in_commits: 0 };
        Self::of(daemon, backend, Some(power))
    }

    fn of(daemon: TestDaemon, backend: Backend, power: Option<Power>) -> Self {
        Self {
            daemon,
            backend,
            power,
            jobs: Vec::new(),
            crowd: (JOBS, CALLERS),
            gaps: BTreeMap::new(),
            deaths: 0,
            waits: Waits::default(),
        }
    }

    /// So many runs at once, and so many callers for each.
    pub(crate) fn with_crowd(self, runs: usize, callers: usize) -> Self {
        Self { crowd: (runs, callers), ..self }
    }

    /// Power cuts so far.
    pub(crate) fn cuts(&self) -> usize {
        self.power.as_ref().map_or(0, |power| power.cuts)
    }

    /// Deaths that fell into a run so far.
    pub(crate) fn in_the_middle(&self) -> usize {
        self.gaps.values().sum()
    }

    /// New runs, a death in the middle of them, and daemons until all have come to their end.
    pub(crate) async fn round(&mut self, number: usize, death: &Death) {
        self.die();
        let variable = match death {
            Death::At(point, passed) => vec![(VARIABLE, format!("{point}:{passed}"))],
            Death::After(_) => Vec::new(),
        };
        let mut is_up = self.daemon.boot_dying(&variable);
        let started = Instant::now();
        let mut is_to_die = Some(death);
        let way = Address { uri: self.daemon.socket(), token_file: None };
        self.waits = Waits::default();
        let mut callers = self.callers(number, &way);
        while !callers.is_empty() {
            let is_due =
                matches!(is_to_die, Some(Death::After(delay)) if started.elapsed() >= *delay);
            if !is_up || is_due || self.daemon.has_died() {
                self.die();
                self.deaths += usize::from(is_to_die.take().is_some());
                is_up = self.daemon.boot_dying(&[]);
                assert!(is_up, "it does not come up after {death:?}\n{}", self.daemon.log());
            }
            let stuck =
                || format!("stuck after {death:?}\n{}{}", self.waits.told(), self.daemon.log());
            assert!(started.elapsed() < PATIENCE, "{}", stuck());
            tokio::select! {
                Some(job) = callers.join_next() => self.jobs.push(job.unwrap()),
                () = tokio::time::sleep(Duration::from_millis(2)) => {}
            }
        }
        // What it did not die of by now, it could still die of while it is looked at.
        if is_to_die.is_some() {
            self.die();
            assert!(self.daemon.boot_dying(&[]), "{}", self.daemon.log());
        }
        self.judge_last(death).await;
    }

    /// New runs, all of whose callers come this way. Nobody dies.
    pub(crate) async fn round_without_death(&mut self, number: usize, way: &Address) {
        let mut callers = self.callers(number, way);
        let carried_out = async {
            while let Some(job) = callers.join_next().await {
                self.jobs.push(job.unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, carried_out).await.expect("stuck");
        self.judge_last(&"no death").await;
    }

    /// Who submits and follows the runs of a round.
    fn callers(&self, number: usize, way: &Address) -> JoinSet<Job> {
        let (runs, submitters) = self.crowd;
        let mut callers = JoinSet::new();
        for name in (0..runs).map(|n| format!("{number}-{n}")) {
            let workspace = self.daemon.workspace().join(&name);
            callers.spawn(job(way.clone(), workspace, name, submitters, self.waits.clone()));
        }
        callers
    }

    /// The daemon of this moment.
    pub(crate) fn daemon(&self) -> &TestDaemon {
        &self.daemon
    }

    async fn judge_last(&mut self, when: &impl Debug) {
        let (runs, _) = self.crowd;
        for n in self.jobs.len() - runs..self.jobs.len() {
            self.judge(n, when).await;
        }
    }

    /// The daemon dies, and the power with it in four of five times. In between, what was not on disk stays so beyond a
    /// daemon that reads it.
    fn die(&mut self) {
        self.daemon.kill();
        let Some(power) = &mut self.power else { return };
        let differ = power.disk.take_in(&power.shim);
        // What was under way when it was killed, and what a rename has made of two names.
        assert!(differ.len() <= 2, "the log does not say what the directory does: {differ:?}");
        if power.dice.below(5) > 0 {
            power.cuts += 1;
            power.in_commits += usize::from(power.disk.is_open("agentd.db-wal"));
            power.disk.lose_power(Stays::ByChance);
        }
    }

    /// What was told and what was counted must be what the journal says.
    async fn judge(&mut self, n: usize, death: &impl Debug) {
        let job = &self.jobs[n];
        let story = self.daemon.story(&job.id).await;
        assert_eq!(story.state(), RunState::Succeeded, "{death:?}");
        job.assert_was_told(&story, death);
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

    /// All files of the mirror together hold every entry, whole and in order: after a stop in order, or, where that did
    /// not wait for a slow disk and said so, after the next one.
    #[expect(clippy::print_stdout, reason = "it is what the gate shows")]
    fn judge_mirror(&mut self, entries: u64) {
        for _ in 0..5 {
            let said_so = self.daemon.log().contains("the next daemon makes up for the mirror");
            if self.mirrored() >= entries || !said_so {
                break;
            }
            println!("  a stop did not wait for the mirror, and said so");
            self.daemon.restart();
            assert_eq!(self.daemon.stop(), Some(0));
        }
        let mirrored = self.mirrored();
        assert!(mirrored >= entries, "{mirrored} of {entries}\n{}", self.daemon.log());
    }

    /// How many entries are whole and in order in the mirror.
    fn mirrored(&self) -> u64 {
        let directory = self.daemon.state().join("audit");
        let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> = files.collect();
        files.sort();
        let mut lines = Vec::new();
        for file in &files {
            let content = fs::read(file).unwrap();
            // What a death left of a line at the end of a file does not count, and the next file has it whole.
            let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            lines.extend_from_slice(&content[..whole]);
        }
        let report = jsonl::verify(lines.as_slice(), Vec::new()).unwrap();
        let said = || {
            self.daemon
                .log()
                .lines()
                .filter(|line| line.contains("mirror"))
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert!(report.faults.is_empty(), "{:?}\n{}", report.faults, said());
        report.entries
    }

    /// What the store and the model say of all rounds together.
    pub(crate) async fn judge_all(&self) -> v1::VerifyAuditResponse {
        let audit = self.daemon.audit().await;
        assert!(audit.intact, "{audit:?}");
        assert_eq!(audit.runs as usize, self.jobs.len(), "one run for each request id");
        self.backend.assert_paired();
        audit
    }

    /// What holds of all rounds together.
    #[expect(clippy::print_stdout, reason = "it is what the gate shows")]
    pub(crate) async fn close(mut self, what: &str) {
        let audit = self.judge_all().await;
        let in_the_middle = self.in_the_middle();
        println!(
            "{what}: {} kills, {} runs, {in_the_middle} taken over",
            self.deaths,
            self.jobs.len()
        );
        self.gaps.iter().for_each(|(gap, count)| println!("  {count:>5} {gap}"));
        assert!(in_the_middle > 0, "no death fell into a run");
        assert_eq!(self.daemon.stop(), Some(0));
        self.judge_mirror(audit.entries);
        let Some(mut power) = self.power else { return };
        println!("  {:>5} power cuts", power.cuts);
        println!("  {:>5} in a commit", power.in_commits);
        assert!(power.in_commits > 0, "no cut took anything along");
        let differ = power.disk.take_in(&power.shim);
        assert!(differ.is_empty(), "the shim has not seen all that was done: {differ:?}");
    }
}

/// One run, submitted by several callers and followed to its end, through any number of daemons.
async fn job(way: Address, workspace: PathBuf, name: String, callers: usize, waits: Waits) -> Job {
    fs::create_dir(&workspace).unwrap();
    for (script, content) in SCRIPTS {
        fs::write(workspace.join(script), content).unwrap();
    }
    let request = v1::CreateRunRequest {
        task: name.clone(),
        agent: "executor".into(),
        workspace: workspace.display().to_string(),
        request_id: name.clone(),
        ..Default::default()
    };
    waits.note(&name, "its id");
    let mut job = Job { waits, ..Job::submitted(&way, &request, callers).await };
    job.follow(&way).await;
    job
}

async fn client(way: &Address) -> Option<Client> {
    Client::connect(way).await.ok()
}

/// The id, as soon as it is acknowledged.
async fn submitted(way: &Address, request: &v1::CreateRunRequest) -> String {
    loop {
        if let Some(client) = client(way).await
            && let Ok(answer) = client.runs().create_run(request.clone()).await
        {
            return answer.into_inner().run.unwrap().id;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Job {
    /// The run that several callers have made at once, with one request id.
    pub(crate) async fn submitted(
        way: &Address,
        request: &v1::CreateRunRequest,
        callers: usize,
    ) -> Self {
        let submitting = (0..callers).map(|_| submitted(way, request));
        let mut ids = futures_util::future::join_all(submitting).await;
        ids.dedup();
        assert_eq!(ids.len(), 1, "one request id, one run: {ids:?}");
        let (name, waits) = (request.request_id.clone(), Waits::default());
        let workspace = request.workspace.clone().into();
        Self { name, waits, workspace, id: ids.remove(0), told: Vec::new(), said: None }
    }

    /// Follows the run to its end, however often it is broken off.
    pub(crate) async fn follow(&mut self, way: &Address) {
        while !self.is_followed_to_its_end(way).await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Follows from where it was told last. False: the daemon died.
    async fn is_followed_to_its_end(&mut self, way: &Address) -> bool {
        let after_sequence = self.told.last().map_or(0, |(sequence, _)| *sequence);
        let id = self.id.clone();
        let request = v1::StreamRunEventsRequest { id, after_sequence, follow: true };
        self.waits.note(&self.name, "a connection");
        let Some(client) = client(way).await else { return false };
        self.waits.note(&self.name, "what it was told before");
        if !self.is_told_again(&client).await {
            return false;
        }
        self.waits.note(&self.name, "its stream");
        let stream = match client.runs().stream_run_events(request).await {
            Ok(stream) => stream,
            Err(status) => {
                assert_ne!(status.code(), tonic::Code::NotFound, "an acknowledged run is gone");
                return false;
            }
        };
        let mut stream = stream.into_inner();
        self.waits.note(&self.name, format!("what follows {after_sequence}"));
        while let Ok(Some(message)) = stream.message().await {
            let Some(Event::Entry(entry)) = message.event else { continue };
            let last = self.told.last().map_or(0, |(sequence, _)| *sequence);
            assert_eq!(entry.sequence, last + 1, "neither a gap nor a repetition");
            self.told.push((entry.sequence, entry.hash));
            self.waits.note(&self.name, format!("what follows {} of its stream", entry.sequence));
            match entry.kind.as_str() {
                "run_finished" => return true,
                "run_suspended" if entry.payload.contains("OUTCOME_UNKNOWN") => {
                    self.resolve(&client, &entry.payload).await
                }
                _ => {}
            }
        }
        self.waits.note(&self.name, "how it stands");
        // What was under way when the stream broke off may be known no more: a run that stands still is looked at.
        let get = v1::GetRunRequest { id: self.id.clone() };
        if let Ok(answer) = client.runs().get_run(get).await
            && answer.into_inner().run.unwrap().state() == RunState::NeedsAttention
        {
            self.resolve(&client, "{\"calls\":[\"1.0\"]}").await;
        }
        false
    }

    /// What it was told is all that there is to tell.
    pub(crate) fn assert_was_told(&self, story: &Story, when: &impl Debug) {
        let written: Vec<(u64, Vec<u8>)> =
            story.entries.iter().map(|entry| (entry.sequence, entry.hash.clone())).collect();
        assert_eq!(self.told, written, "what was told is what any later caller is told: {when:?}");
    }

    /// What was told before must be the beginning of what is told now. False: the daemon died.
    async fn is_told_again(&self, client: &Client) -> bool {
        let id = self.id.clone();
        let request = v1::StreamRunEventsRequest { id, after_sequence: 0, follow: false };
        let mut stream = match client.runs().stream_run_events(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => {
                assert_ne!(status.code(), tonic::Code::NotFound, "an acknowledged run is gone");
                return false;
            }
        };
        let mut again = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    if let Some(Event::Entry(entry)) = message.event {
                        again.push((entry.sequence, entry.hash));
                    }
                }
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        assert!(again.starts_with(&self.told), "what a follower was told is gone, or another");
        true
    }

    /// Says what the tool's own file says.
    async fn resolve(&mut self, client: &Client, payload: &str) {
        let payload: Value = serde_json::from_str(payload).unwrap();
        assert_eq!(payload["calls"], json!(["1.0"]), "a person is asked about nothing else");
        // A program that was killed when it had just opened its file has left an empty one.
        let ran = fs::read_to_string(self.workspace.join("ran")).unwrap_or_default();
        let resolution = match ran.lines().count() {
            0 => CallResolution::DidNotRun,
            _ => CallResolution::DidRun,
        };
        self.said = Some(resolution);
        self.waits.note(&self.name, "what becomes of its call");
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
