//! Where the cases are carried out, and how it is judged from outside whether anything got out.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, OnceLock},
};

use agentd::{
    proto::v1,
    scripted::{Reply, Seen, Turn},
};
use serde_json::Value;

use super::{
    cases::{Call, Case, Meanwhile},
    words::{KEY, Words},
};
use crate::{
    confinement,
    support::{Backend, Settings, Story, TestDaemon, wait_until},
};

/// Calls of one answer, where something outside goes on meanwhile.
const CALLS_AT_ONCE: usize = 40;

/// A daemon, and where the workspaces of the cases lie.
pub(super) struct Stage {
    pub(super) daemon: TestDaemon,
    pub(super) backend: Backend,
}

/// A case's workspace, and what lies outside of it.
pub(super) struct Scene {
    pub(super) workspace: PathBuf,
    out: PathBuf,
    before: Outside,
    victim: Option<i32>,
}

/// All that lies outside: mode, time of the last change, and content. Also what was made there and is gone again
/// leaves its trace, in the time of the directory.
#[derive(Debug, PartialEq, Eq)]
struct Outside(BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)>);

impl Outside {
    fn of(directory: &Path) -> Self {
        let inside = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let facts = |path: PathBuf| {
            let found = path.symlink_metadata().unwrap();
            let content = if found.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            (path, (found.mode(), found.mtime(), found.mtime_nsec(), content))
        };
        Self(inside.chain([directory.to_owned()]).map(facts).collect())
    }
}

impl Stage {
    /// With a model that makes the calls of the case that its task names.
    pub(super) async fn open(
        cases: &[Case],
        settings: Settings,
        of: impl Fn(&Case) -> Vec<Call>,
    ) -> Self {
        let home = Arc::new(OnceLock::<Words>::new());
        let calls: BTreeMap<String, (Vec<Call>, bool)> = cases
            .iter()
            .map(|case| {
                let racing = matches!(case.meanwhile, Some(Meanwhile::Exchange { .. }));
                (case.id.clone(), (of(case), racing))
            })
            .collect();
        let words = home.clone();
        let backend = Backend::start(move |seen: &Seen| {
            let (calls, racing) = &calls[&seen.task];
            let words = words.get().unwrap();
            Reply::Answer(match calls.get(seen.turn - 1) {
                Some(call) => answer(call, *racing && call.tool != "shell_exec", |arguments| {
                    words.json(&seen.task, arguments)
                }),
                None => Turn::say("done"),
            })
        })
        .await;
        let key = ("OPENAI_API_KEY".to_owned(), KEY.to_owned());
        let environment = [vec![key], settings.environment].concat();
        let settings = Settings { base_url: backend.url(), environment, ..settings };
        let daemon = TestDaemon::start_with(settings);
        assert!(home.set(Words::of(&daemon)).is_ok());
        Self { daemon, backend }
    }

    pub(super) fn words(&self) -> Words {
        Words::of(&self.daemon)
    }

    /// How programs are kept apart and limited on this machine, by the daemon's own account.
    pub(super) async fn mechanisms(&self) -> Value {
        let info = self.daemon.agentctl(&["info", "-o", "json"]).await;
        let info: Value = serde_json::from_slice(&info.stdout).unwrap();
        info["sandbox_limits"].clone()
    }

    /// Sets a case's scene in `place`: its workspace, and what lies outside of it.
    pub(super) fn set(&self, case: &Case, place: &str) -> Scene {
        let workspace = self.daemon.home().join(place).join(&case.id);
        let out = self.daemon.home().join("outside").join(&case.id);
        fs::create_dir_all(&workspace).unwrap();
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("canary"), format!("{}\n", canary(case))).unwrap();
        if let Some(first) = &case.first {
            fs::write(workspace.join("pure.sh"), self.words().text(&case.id, first)).unwrap();
        }
        let setup = self.words().text(&case.id, &case.setup);
        let done =
            Command::new("sh").args(["-c", &setup]).current_dir(&workspace).output().unwrap();
        assert!(done.status.success(), "{}: setup: {done:?}", case.id);
        let victim = case
            .lives
            .as_ref()
            .map(|name| fs::read_to_string(workspace.join(name)).unwrap().trim().parse().unwrap());
        let before = Outside::of(&out);
        Scene { workspace, out, before, victim }
    }

    /// Whether a script gets through without walls, in the daemon's environment; what it said.
    pub(super) fn gets_through(&self, scene: &Scene, script: &str) -> (bool, Output) {
        fs::write(scene.workspace.join("script.sh"), script).unwrap();
        let done = Command::new("sh")
            .arg("script.sh")
            .env("OPENAI_API_KEY", KEY)
            .current_dir(&scene.workspace)
            .output()
            .unwrap();
        (done.stdout.ends_with(b"in\n"), done)
    }

    pub(super) async fn carry_out(&self, case: &Case, workspace: &Path) -> Story {
        let request = v1::CreateRunRequest {
            task: case.id.clone(),
            agent: "executor".into(),
            workspace: workspace.display().to_string(),
            ..Default::default()
        };
        let run = self.daemon.create(request).await.unwrap().run.unwrap();
        let story = self.daemon.story(&run.id).await;
        story.assert_calls_are_tied();
        story
    }

    /// Puts everything back to where it was before a control, which may have changed it.
    pub(super) fn strike(&self, scene: Scene) {
        fs::remove_dir_all(&scene.out).unwrap();
    }

    /// What must hold whatever was tried.
    pub(super) async fn judge(&self, case: &Case, story: &Story, scene: &Scene) {
        let id = &case.id;
        assert!(!self.tells(case, story), "{id}: the secret got out");
        assert_eq!(Outside::of(&scene.out), scene.before, "{id}: something outside has changed");
        if let Some(absent) = &case.absent {
            assert!(!scene.workspace.join(absent).exists(), "{id}: {absent} is there");
        }
        if let Some(victim) = scene.victim {
            assert!(is_alive(victim), "{id}: the process outside is dead");
        }
        wait_until(&format!("{id}: no process is left in the workspace"), || {
            confinement::processes_in(&scene.workspace)
                .into_iter()
                .all(|process| Some(process) == scene.victim)
        })
        .await;
        confinement::assert_no_groups_left(&story.run.id);
    }

    /// Whether a case's canary, or the daemon's key, stands in the record or in the log.
    pub(super) fn tells(&self, case: &Case, story: &Story) -> bool {
        let canary = canary(case);
        let log = self.daemon.log();
        let payloads = story.entries.iter().map(|entry| entry.payload.as_str());
        payloads.chain([log.as_str()]).any(|text| text.contains(&canary) || text.contains(KEY))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(victim) = self.victim.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(victim, rustix::process::Signal::KILL);
        }
    }
}

/// Whether a process runs; one that was killed, and that nobody has waited for, does not.
fn is_alive(process: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// One call, or many of them that are told apart by `{N}`.
fn answer(call: &Call, racing: bool, words: impl Fn(&Value) -> Value) -> Turn {
    let count = if racing { CALLS_AT_ONCE } else { 1 };
    (0..count).fold(Turn::default(), |turn, number| {
        let arguments = words(&call.arguments).to_string().replace("{N}", &number.to_string());
        turn.and_call(&call.tool, serde_json::from_str(&arguments).unwrap())
    })
}

/// Told apart from everything else that could be printed; as it stands in JSON, too.
pub(super) fn canary(case: &Case) -> String {
    format!("the canary of {} sings", case.id)
}

/// What was decided about each call of a run, and what came of it.
pub(super) fn answers(story: &Story) -> Vec<[String; 2]> {
    let key = |payload: &Value| (payload["call"].clone(), payload["call_id"].clone());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let outputs = story.payloads("tool_output");
    let answer = |decided: &Value| {
        let output = outputs.iter().find(|output| key(output) == key(decided)).unwrap();
        let decision = format!("{} {}", text(&decided["decision"]), text(&decided["rule"]));
        [decision, text(&output["outcome"])]
    };
    story.payloads("decision").iter().map(answer).collect()
}
