//! The corpus of attacks, `tests/corpus/*.yaml`, run twice through gRPC and judged from outside of the daemon:
//! as the call that a model would make, decided by the policy that comes with agentd; and, with that policy out
//! of the way, as a script in the sandbox, which must hold alone. Each script is also run without walls, where
//! it must get through: else it proves nothing.
//!
//! A case: `setup` (a script outside, in the workspace), `call` and what to `expect` of it; `attack` (a script
//! whose success is that the attack got through) and what it is `held_by`; `absent` (a file of the workspace
//! that must not be there afterwards); `under` (the script's name, which brings its limits) and the `limit` that
//! ends it; `broken` (a change of a policy file, after which a reload must say what it `says` and change nothing);
//! `reach` (a script that runs where there is an internet of the test's own,
//! under a policy that lets it reach a part of that, and through the proxy; its `control` is run outside of the
//! sandbox, by default the same; what is `decided` about each thing it wants); `note`. In braces: OUT, a directory outside with a file `canary`; REL,
//! the same seen from the workspace; STATE, DAEMON and PORT of agentd;
//! `SYS_name`, the number of a system call.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use agentd::{
    proto::v1,
    scripted::{Reply, Seen, Turn},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    egress,
    support::{Backend, Settings, Story, TestDaemon, not_checked},
};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    id: String,
    what: String,
    #[serde(default)]
    setup: String,
    call: Option<Call>,
    expect: Option<Expected>,
    attack: Option<String>,
    held_by: Option<String>,
    under: Option<String>,
    limit: Option<String>,
    broken: Option<Broken>,
    reach: Option<Reach>,
    absent: Option<String>,
    note: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Broken {
    file: String,
    /// Empty: the whole file.
    replace: String,
    by: String,
    says: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reach {
    script: String,
    control: Option<String>,
    /// Why there can be no control.
    no_control: Option<String>,
    #[serde(default)]
    decided: Vec<String>,
    /// A host that it may well reach on the way.
    may_ask: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    tool: String,
    arguments: Value,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    decision: String,
    rule: String,
    outcome: String,
}

const ALL_FILES: &str = "\
schema: agentd/paths/v1
rules:
  - {id: everything, glob: '**', operations: [read, write], decision: allow, why: the sandbox is to hold alone}
protected: [.git]
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn corpus() -> Vec<Case> {
    let mut files: Vec<_> = fs::read_dir(root().join("tests/corpus"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let read = |path: &PathBuf| -> Vec<Case> {
        let text = fs::read_to_string(path).unwrap();
        serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    files.iter().flat_map(read).collect()
}

/// A daemon, and where the workspaces of the cases lie.
struct Stage {
    daemon: TestDaemon,
    _backend: Backend,
}

impl Stage {
    /// With a model that makes the call of the case that its task names.
    async fn open(cases: &[Case], settings: Settings, of: fn(&Case) -> Option<Call>) -> Self {
        let home = std::sync::Arc::new(std::sync::OnceLock::<Words>::new());
        let calls: BTreeMap<String, Option<Call>> =
            cases.iter().map(|case| (case.id.clone(), of(case))).collect();
        let words = home.clone();
        let backend = Backend::start(move |seen: &Seen| {
            let call = calls[&seen.task].as_ref().unwrap();
            Reply::Answer(match seen.turn {
                1 => {
                    let words = words.get().unwrap();
                    Turn::call(&call.tool, words.json(&seen.task, &call.arguments))
                }
                _ => Turn::say("done"),
            })
        })
        .await;
        let daemon = TestDaemon::start_with(Settings { base_url: backend.url(), ..settings });
        home.set(Words::of(&daemon)).unwrap();
        Self { daemon, _backend: backend }
    }

    fn words(&self) -> Words {
        Words::of(&self.daemon)
    }

    /// Sets a case's scene in `place`: its workspace, and what lies outside of it.
    fn set(&self, case: &Case, place: &str) -> PathBuf {
        let (workspace, out) = (self.daemon.home().join(place).join(&case.id), self.out(case));
        fs::create_dir_all(&workspace).unwrap();
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("canary"), canary(case)).unwrap();
        let setup = self.words().text(&case.id, &case.setup);
        let done =
            Command::new("sh").args(["-c", &setup]).current_dir(&workspace).output().unwrap();
        assert!(done.status.success(), "{}: setup: {done:?}", case.id);
        workspace
    }

    fn out(&self, case: &Case) -> PathBuf {
        self.daemon.home().join("outside").join(&case.id)
    }

    async fn carry_out(&self, case: &Case, workspace: &Path) -> Story {
        let request = v1::CreateRunRequest {
            task: case.id.clone(),
            workspace: workspace.display().to_string(),
            ..Default::default()
        };
        let run = self.daemon.create(request).await.unwrap().run.unwrap();
        let story = self.daemon.story(&run.id).await;
        story.assert_calls_are_tied();
        story
    }

    /// What must hold whatever was tried.
    fn judge(&self, case: &Case, story: &Story, workspace: &Path) {
        let everything: String = story.entries.iter().map(|entry| entry.payload.as_str()).collect();
        assert!(!everything.contains(canary(case).as_str()), "{}: the secret got out", case.id);
        let out = self.out(case);
        assert_eq!(fs::read_to_string(out.join("canary")).unwrap(), canary(case), "{}", case.id);
        assert!(!out.join("planted").exists(), "{}: a file was made outside", case.id);
        if let Some(absent) = &case.absent {
            assert!(!workspace.join(absent).exists(), "{}: {absent} is there", case.id);
        }
    }
}

/// Told apart from everything else that could be printed.
fn canary(case: &Case) -> String {
    format!("the canary of {} sings\n", case.id)
}

/// What the braces stand for.
#[derive(Debug)]
struct Words {
    home: PathBuf,
    state: PathBuf,
    daemon: String,
    port: String,
}

impl Words {
    fn of(daemon: &TestDaemon) -> Self {
        Self {
            home: daemon.home().canonicalize().unwrap(),
            state: daemon.state().canonicalize().unwrap(),
            daemon: daemon.pid().as_raw_nonzero().to_string(),
            port: daemon.tcp.rsplit_once(':').unwrap().1.to_owned(),
        }
    }

    fn text(&self, id: &str, text: &str) -> String {
        let out = self.home.join("outside").join(id).display().to_string();
        text.replace("{OUT}", &out)
            .replace("{REL}", &format!("../../outside/{id}"))
            .replace("{STATE}", &self.state.display().to_string())
            .replace("{DAEMON}", &self.daemon)
            .replace("{PORT}", &self.port)
            .replace("{SYS_ptrace}", &libc::SYS_ptrace.to_string())
            .replace("{SYS_socket}", &libc::SYS_socket.to_string())
    }

    /// The same in every text of a call's arguments.
    fn json(&self, id: &str, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(id, text).into(),
            Value::Array(list) => list.iter().map(|one| self.json(id, one)).collect(),
            Value::Object(map) => {
                map.iter().map(|(key, one)| (key.clone(), self.json(id, one))).collect()
            }
            other => other.clone(),
        }
    }
}

#[tokio::test]
async fn each_call_of_the_corpus_is_decided_as_expected_and_nothing_gets_out() {
    let cases: Vec<_> = corpus().into_iter().filter(|case| case.call.is_some()).collect();
    let stage = Stage::open(&cases, Settings::default(), |case| case.call.clone()).await;
    let mut otherwise = Vec::new();
    for case in &cases {
        let workspace = stage.set(case, "cases");

        let story = stage.carry_out(case, &workspace).await;

        let expected = case.expect.as_ref().unwrap();
        let expected =
            [format!("{} {}", expected.decision, expected.rule), expected.outcome.clone()];
        let (outcome, output) = story.outputs().remove(0);
        let found = [story.decisions().remove(0), outcome];
        if found != expected {
            otherwise.push(format!("{}: {found:?} instead of {expected:?}: {output}", case.id));
        }
        stage.judge(case, &story, &workspace);
    }
    assert!(otherwise.is_empty(), "decided otherwise:\n{}", otherwise.join("\n"));
    assert!(stage.daemon.audit().await.intact);
}

#[tokio::test]
async fn with_the_allowlist_off_the_sandbox_holds_each_attack_of_the_corpus_alone() {
    let cases: Vec<_> = corpus().into_iter().filter(|case| case.attack.is_some()).collect();
    let settings = Settings { paths: Some(ALL_FILES.into()), ..Settings::default() };
    let script = |case: &Case| {
        let arguments = json!({"command": ["sh", case.script()]});
        Some(Call { tool: "shell_exec".into(), arguments })
    };
    let stage = Stage::open(&cases, settings, script).await;
    let info = stage.daemon.agentctl(&["info", "-o", "json"]).await;
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    if info["sandbox_limits"]["isolation"] == "landlock" {
        return not_checked(&format!("{} attacks (isolation=landlock here)", cases.len()));
    }
    let (mut through, mut powerless, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for case in &cases {
        let attack = stage.words().text(&case.id, case.attack.as_ref().unwrap());
        let script = format!("if {{ {attack}\n}} 2>/dev/null; then echo in; else echo out; fi\n");

        let control = stage.set(case, "control");
        fs::write(control.join("script.sh"), &script).unwrap();
        let done = Command::new("sh").arg("script.sh").current_dir(&control).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        if !said.ends_with("in\n") {
            powerless.push(format!("{}: {done:?}", case.id));
        }
        fs::remove_dir_all(stage.out(case)).unwrap();

        let workspace = stage.set(case, "cases");
        fs::write(workspace.join(case.script()), &script).unwrap();
        let story = stage.carry_out(case, &workspace).await;

        let (outcome, output) = &story.outputs()[0];
        assert_eq!(outcome, "done", "{}: {output}", case.id);
        let said = output["stdout"].as_str().unwrap();
        let held = match &case.limit {
            Some(limit) => output["limit"] == limit.as_str() && !said.ends_with("in\n"),
            None => said.ends_with("out\n"),
        };
        if !held {
            through.push(format!("{}: {output}", case.id));
        }
        stage.judge(case, &story, &workspace);
        places.push((case, story, workspace));
    }
    // What was to come later has had its time: the last of them is seconds ago.
    for (case, story, workspace) in &places {
        stage.judge(case, story, workspace);
    }
    assert!(powerless.is_empty(), "control: without walls these fail:\n{}", powerless.join("\n"));
    assert!(through.is_empty(), "these got through:\n{}", through.join("\n"));
    assert!(stage.daemon.audit().await.intact);
}

impl Case {
    /// Name of the script that tries it; the rule for it brings its limits.
    fn script(&self) -> &str {
        self.under.as_deref().unwrap_or("script.sh")
    }
}

#[tokio::test]
async fn no_broken_policy_of_the_corpus_comes_into_force_or_takes_anything_out_of_it() {
    let cases: Vec<_> = corpus().into_iter().filter(|case| case.broken.is_some()).collect();
    let stage = Stage::open(&[], Settings::default(), |_| None).await;
    let daemon = &stage.daemon;
    let policies = daemon.home().join("policies");
    let revision = async || {
        let request = v1::GetPolicyRequest {};
        let answer = daemon.client().await.policy().get_policy(request).await.unwrap();
        answer.into_inner().policy.unwrap().revision
    };
    let before = revision().await;
    let mut otherwise = Vec::new();
    for case in &cases {
        let broken = case.broken.as_ref().unwrap();
        let path = policies.join(&broken.file);
        let text = fs::read_to_string(&path).ok();
        let by = stage.words().text(&case.id, &broken.by);
        let changed = match broken.replace.as_str() {
            "" => by,
            part => text.as_ref().unwrap().replacen(part, &by, 1),
        };
        assert_ne!(Some(&changed), text.as_ref(), "{}: control: it changes the file", case.id);
        fs::write(&path, changed).unwrap();

        let request = v1::ReloadPolicyRequest::default();
        let answer = daemon.client().await.policy().reload_policy(request).await;

        match answer {
            Err(refused) if refused.message().contains(&broken.says) => {}
            answer => otherwise.push(format!("{}: {answer:?}", case.id)),
        }
        assert_eq!(revision().await, before, "{}", case.id);
        match text {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
    }
    assert!(otherwise.is_empty(), "{}", otherwise.join("\n"));
    let request = v1::ReloadPolicyRequest::default();
    let answer = daemon.client().await.policy().reload_policy(request).await;
    assert_eq!(
        answer.unwrap().into_inner().revision,
        before,
        "control: as they were, they are fine"
    );
}

/// What the scripts that reach for something are written with: a request to the proxy, and one over SOCKS (an
/// address, and a command unless it is to connect); both succeed when what they ask for is granted.
const ASKING: &str = r#"
ask() {
  exec 3<>/dev/tcp/127.0.0.1/3128; printf "$1" >&3; IFS= read -r line <&3
  case "$line" in *" 200"*) true;; *) false;; esac
}
socks() {
  exec 3<>/dev/tcp/127.0.0.1/3128; printf '\5\1\0' >&3; head -c 2 <&3 >/dev/null
  printf "\5\\${2:-1}\0$1" >&3; [ "$(head -c 2 <&3 | od -An -tu1 | tr -d ' ')" = 50 ]
}
"#;

#[tokio::test]
async fn nothing_of_the_corpus_gets_past_the_proxy_or_around_it() {
    let cases: Vec<_> = corpus().into_iter().filter(|case| case.reach.is_some()).collect();
    let Some(stage) = egress::Stage::open("true") else { return };
    let fair = [
        r"ask 'CONNECT allowed.example.com:443 HTTP/1.1\r\nHost: allowed.example.com:443\r\n\r\n'",
        r"socks '\3\23allowed.example.com\1\273'",
    ];
    for asked in fair {
        let story = stage.carry_out(&format!("{ASKING}{asked} && echo in")).await;
        assert_eq!(story.outputs()[0].1["stdout"], "in\n", "{asked}");
    }
    let (mut through, mut powerless, mut otherwise) = (Vec::new(), Vec::new(), Vec::new());
    for case in &cases {
        let reach = case.reach.as_ref().unwrap();
        let script = |attack: &str| format!("{ASKING}{attack}\n");
        if reach.no_control.is_none() {
            let control = script(reach.control.as_ref().unwrap_or(&reach.script));
            let run = move || {
                Command::new("timeout").args(["10", "bash", "-c", &control]).output().unwrap()
            };
            let done = stage.internet.inside(run);
            if !done.status.success() {
                powerless.push(format!("{}: {done:?}", case.id));
            }
        }
        let before = {
            let seen = stage.internet.seen();
            (seen.requests.len(), seen.names.len())
        };

        stage.daemon.put("attack.sh", &script(&reach.script));
        let judged = "timeout 10 bash attack.sh >/dev/null 2>&1; code=$?
             case $code in 0) echo in;; 124) echo hung;; *) echo out;; esac";
        let story = stage.carry_out(judged).await;

        let (_, output) = &story.outputs()[0];
        if output["stdout"] != "out\n" {
            through.push(format!("{}: {output}", case.id));
        }
        let decided = egress::reached(&story);
        if reach.may_ask.is_none() && decided != reach.decided {
            otherwise.push(format!("{}: {decided:?} instead of {:?}", case.id, reach.decided));
        }
        let seen = stage.internet.seen();
        let expected = |host: &str| host.ends_with(".example.com");
        let asked = &seen.requests[before.0..];
        let may = |one: &String| reach.may_ask.as_ref().is_some_and(|host| one.contains(host));
        if !asked.iter().all(may) || !seen.names[before.1..].iter().all(|name| expected(name)) {
            through.push(format!("{}: {asked:?} {:?}", case.id, &seen.names[before.1..]));
        }
    }
    assert!(powerless.is_empty(), "control: without walls these fail:\n{}", powerless.join("\n"));
    assert!(through.is_empty(), "these got through:\n{}", through.join("\n"));
    assert!(otherwise.is_empty(), "decided otherwise:\n{}", otherwise.join("\n"));
}

#[test]
fn each_case_is_complete_and_the_report_says_what_stops_it() {
    let cases = corpus();
    let mut ids: Vec<_> = cases.iter().map(|case| &case.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), cases.len(), "an id is used twice");
    for case in &cases {
        let by_reader = case.reach.is_some() || case.broken.is_some();
        let tried = case.call.is_some() || case.attack.is_some() || by_reader;
        assert!(tried, "{}: nothing is tried", case.id);
        assert_eq!(case.call.is_some(), case.expect.is_some(), "{}: call and expect", case.id);
        let by_force = case.attack.is_some() || case.reach.is_some();
        assert_eq!(by_force, case.held_by.is_some(), "{}: attack, held_by", case.id);
    }
    let report = root().join("docs/reports/attacks.md");
    let text = told(&cases);
    if std::env::var_os("AGENTD_WRITE_REPORTS").is_some() {
        fs::write(&report, &text).unwrap();
    }
    let found = fs::read_to_string(&report).unwrap_or_default();
    assert!(found == text, "write it anew: AGENTD_WRITE_REPORTS=1 cargo test --test it corpus");
}

fn told(cases: &[Case]) -> String {
    let row = |case: &Case| {
        let policy = match (&case.expect, &case.broken) {
            (Some(expected), _) => format!("{} by `{}`", expected.decision, expected.rule),
            (None, Some(_)) => "is not taken".into(),
            (None, None) => match case.reach.as_ref().and_then(|reach| reach.decided.last()) {
                Some(decided) => {
                    let rule = decided.rsplit(' ').next().unwrap_or_default();
                    format!("deny by `{rule}`")
                }
                None => "-".into(),
            },
        };
        let held = case.held_by.as_deref().unwrap_or("-");
        let no_control = case.reach.as_ref().and_then(|reach| reach.no_control.as_ref());
        let note = match (&case.note, no_control) {
            (Some(note), _) => note.clone(),
            (None, Some(why)) => format!("no control: {why}"),
            (None, None) => String::new(),
        };
        format!("| {} | {} | {policy} | {held} | {note} |", case.id, case.what)
    };
    let reaching = cases.iter().filter(|case| case.reach.is_some()).count();
    let scripts = cases.iter().filter(|case| case.attack.is_some()).count();
    let rows: Vec<String> = cases.iter().map(row).collect();
    format!(
        "# Attacks\n\n\
         {} cases of `tests/corpus`, run by `tests/it/corpus.rs`, which also writes this page. The policy that \
         comes with agentd decides about the call that a model would make. With the policy out of the way, the \
         sandbox alone holds the same thing tried by a script; {scripts} have one, and each of those gets through \
         where there are no walls. {reaching} more reach for something, in an internet of the test's own, under a \
         policy that opens a part of it; what they want gets through without sandbox and proxy, unless it says why \
         that cannot be.\n\n\
         | | what is tried | the policy | behind the walls | |\n|---|---|---|---|---|\n{}\n",
        cases.len(),
        rows.join("\n")
    )
}
