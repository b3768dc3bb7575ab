//! The corpus of attacks, `tests/corpus/*.yaml`, run through gRPC and judged from outside of the daemon: as the
//! calls that a model would make, decided by the policy that comes with agentd; and, with that policy out of the
//! way, as a script in the sandbox, which must hold alone. Each script is also run without walls, where it must get
//! through: else it proves nothing.
//!
//! A case: `setup` (a script outside, in the workspace), `call` (one or several) and what to `expect` of each, or
//! all that is to come of them, where that is several things; `given` (a change of a policy file, for this case);
//! `hides` (texts that the model hears and nobody else does); `attack` (a script whose success is that the attack
//! got through) and what it is `held_by`; `first` (what an earlier call of the same run did); `under` (the script's
//! name, which brings its limits), the `limit` that ends it, or what it is `bounded` to; `while` (what goes on
//! outside meanwhile); `absent` (a file of the workspace that must not be there afterwards); `lives` (a file that
//! names a process outside, which must live).
//!
//! `control`: what gets through without walls, where it is not the attack word for word; `no_control`: why nothing
//! can. `takes`: a program, or `cgroup`, without which the case is not run; `may_lack`: what a machine may lack, so
//! that the control fails. Both are told by name.
//!
//! `broken` (a change of a policy file, after which a reload must say what it `says` and change nothing); `swapped`
//! (files that change while they are read); `submit` (a run that is not taken); `reach` (a script that runs where
//! there is an internet of the test's own, under a policy that lets it reach a part of that, and through the proxy;
//! its `control` is run outside of the sandbox, by default the same; what is `decided` about each thing it wants;
//! `then`, a change of the policy while it runs); `shown_by` (the test that shows it, where no single call can);
//! `note`. What stands in braces is told in tests/it/corpus/words.rs: OUT, for example, is a directory outside with
//! a file `canary`, and REL the same seen from the workspace.
//!
//! Controls and scans of /proc block their thread; connections are answered on another, or on a slow machine the daemon
//! would take them for dead.

mod cases;
mod files;
mod meanwhile;
mod reaching;
mod report;
mod stage;
mod words;

use std::{collections::BTreeSet, fs, path::Path, process::Output};

use agentd::proto::v1::{self, stream_run_events_response::Event};
use serde_json::json;

use self::{
    cases::{Call, Case, Expected, Meanwhile, cases, corpus, root},
    files::{changed, restored},
    meanwhile::{Exchange, watch},
    stage::{Scene, Stage, answers},
    words::KEY,
};
use crate::support::{Settings, Story, TestDaemon, not_checked};

/// A policy that keeps nothing from anybody.
const ALL_FILES: &str = "\
schema: agentd/paths/v1
rules:
  - {id: everything, glob: '**', operations: [read, write], decision: allow, why: the sandbox is to hold alone}
protected: [.git]
";

/// How often a case is carried out at most while names change places.
const MOST_ROUNDS: usize = 50;

/// Names cases that this machine cannot run.
fn name_unchecked<'a>(cases: impl IntoIterator<Item = &'a Case>, why: &str) {
    let ids: Vec<_> = cases.into_iter().map(|case| case.id.as_str()).collect();
    if !ids.is_empty() {
        not_checked(&format!("{} attacks of the corpus ({why}): {}", ids.len(), ids.join(", ")));
    }
}

/// Says what lacks here, where the case takes it.
fn lacks(case: &Case, mechanisms: &serde_json::Value) -> Option<String> {
    match case.takes.as_deref() {
        None => None,
        Some("cgroup") => {
            let kept = mechanisms["processes"].as_str().unwrap_or_default();
            (!kept.starts_with("cgroup")).then(|| format!("processes={kept} here"))
        }
        Some(program) => {
            let places = ["/usr/local/bin", "/usr/bin", "/bin"].map(Path::new);
            let is_here = places.iter().any(|place| place.join(program).exists());
            (!is_here).then(|| format!("no {program} here"))
        }
    }
}

/// Says `in` where it got through and `out` where it did not.
fn tried(attack: &str) -> String {
    format!("if {{ {attack}\n}} 2>/dev/null; then echo in; else echo out; fi\n")
}

/// What was found wrong, case by case.
#[derive(Default)]
struct Findings {
    through: Vec<String>,
    powerless: Vec<String>,
    otherwise: Vec<String>,
}

impl Findings {
    fn assert_none(&self) {
        let Self { through, powerless, otherwise } = self;
        let said = |what: &str, found: &[String]| match found {
            [] => String::new(),
            found => format!("{what}:\n{}\n", found.join("\n")),
        };
        let said = [
            said("controls, which fail without walls", powerless),
            said("these got through", through),
            said("decided otherwise", otherwise),
        ];
        let said = said.concat();
        assert!(said.is_empty(), "{said}");
    }
}

impl Stage {
    /// Runs the control of a case. Whether the case can be run on this machine.
    async fn control(&self, case: &Case, findings: &mut Findings) -> bool {
        let Some(control) = case.control() else { return true };
        let scene = self.set(case, "control");
        let script = self.words().text(&case.id, control);
        let script =
            case.first.as_ref().map_or(script.clone(), |_| format!(". ./pure.sh\n{script}"));
        let exchange = self.meanwhile(case, &scene);
        let (through, done) = self.gets_through(&scene, &tried(&script));
        drop(exchange);
        let long = case.bounded.is_none_or(|most| done.stdout.len() > most.output_bytes);
        let can = through && long;
        match (can, &case.may_lack) {
            (true, _) => {}
            (false, Some(why)) => name_unchecked([case], &format!("this machine lacks {why}")),
            (false, None) => findings.powerless.push(format!("{}: {}", case.id, shown(&done))),
        }
        self.strike(scene);
        can || case.may_lack.is_none()
    }

    fn meanwhile(&self, case: &Case, scene: &Scene) -> Option<Exchange> {
        match &case.meanwhile {
            Some(Meanwhile::Exchange { exchange: [one, other], .. }) => {
                Some(Exchange::start(scene.workspace.join(one), scene.workspace.join(other)))
            }
            Some(Meanwhile::Answer { .. }) | None => None,
        }
    }

    /// Carries a case out, with what goes on meanwhile, as often as that takes: where names change places, until they
    /// have done so often enough, and so many different things have come of it.
    async fn carry_out_meanwhile(&self, case: &Case, scene: &Scene, outcomes: usize) -> Vec<Story> {
        let exchange = self.meanwhile(case, scene);
        let mut stories = Vec::new();
        loop {
            let story = self.carry_out(case, &scene.workspace);
            match &case.meanwhile {
                Some(Meanwhile::Answer { answers, most_processes }) => {
                    let (story, watched) = watch(&self.daemon, &scene.workspace, story).await;
                    let kept =
                        watched.answers >= *answers && watched.most_processes <= *most_processes;
                    assert!(kept && watched.most_processes > 1, "{}: {watched:?}", case.id);
                    stories.push(story);
                }
                Some(Meanwhile::Exchange { .. }) | None => stories.push(story.await),
            }
            match (&case.meanwhile, &exchange) {
                (Some(Meanwhile::Exchange { times, .. }), Some(now))
                    if stories.len() < MOST_ROUNDS
                        && (now.times() < *times || came_of(&stories).len() < outcomes) => {}
                (Some(Meanwhile::Exchange { times, .. }), Some(now)) => {
                    assert!(now.times() >= *times, "{}: {} times", case.id, now.times());
                    return stories;
                }
                _ => return stories,
            }
        }
    }
}

/// All that was decided about the calls, and came of them.
fn came_of(stories: &[Story]) -> BTreeSet<[String; 2]> {
    stories.iter().flat_map(answers).collect()
}

fn shown(done: &Output) -> String {
    let words = [&done.stdout, &done.stderr]
        .map(|text| String::from_utf8_lossy(&text[text.len().saturating_sub(300)..]).into_owned());
    format!("{} {words:?}", done.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_call_of_the_corpus_is_decided_as_expected_and_nothing_gets_out() {
    let cases = cases(|case| case.call.is_some());
    let stage = Stage::open(&cases, Settings::default(), |case| case.calls().to_vec()).await;
    let mechanisms = stage.mechanisms().await;
    let mut findings = Findings::default();
    for case in &cases {
        if let Some(why) = lacks(case, &mechanisms) {
            name_unchecked([case], &why);
            continue;
        }
        // An attack that has a script has its control with that.
        if case.attack.is_none() && !stage.control(case, &mut findings).await {
            continue;
        }
        let before = match &case.given {
            Some(change) => Some(changed(&stage.daemon, &stage.words(), &case.id, change).await),
            None => None,
        };
        let scene = stage.set(case, "cases");

        let stories = stage.carry_out_meanwhile(case, &scene, case.expected().len()).await;

        let found = came_of(&stories);
        let expected: BTreeSet<_> = case.expected().iter().map(Expected::as_found).collect();
        if found != expected {
            let outputs = stories[0].outputs();
            findings
                .otherwise
                .push(format!("{}: {found:?} instead of {expected:?}: {outputs:?}", case.id));
        }
        for story in &stories {
            stage.judge(case, story, &scene).await;
        }
        if let Some(before) = before {
            restored(&stage.daemon, case.given.as_ref().unwrap(), before).await;
        }
    }
    findings.assert_none();
    assert!(stage.daemon.audit().await.intact);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_the_corpus_hides_is_heard_by_the_model_and_by_nobody_else() {
    let cases = cases(|case| !case.hides.is_empty());
    let environment = vec![("AGENTD_LOG".into(), "trace".into())];
    let settings = Settings { environment, ..Settings::default() };
    let stage = Stage::open(&cases, settings, |case| case.calls().to_vec()).await;
    for case in &cases {
        let scene = stage.set(case, "cases");
        let (run, mut told) = followed(&stage, case, &scene).await;
        told.extend(asked(&stage, case, &run).await);

        let last = stage.backend.server.requests().pop().unwrap().to_string();
        for secret in case.hides.iter().map(|one| stage.words().text(&case.id, one)) {
            assert!(last.contains(&secret), "{}: control: the model has {secret}", case.id);
            for (what, text) in &told {
                assert!(!text.contains(&secret), "{}: {secret} stands in {what}", case.id);
                let shown = text.contains("[redacted]");
                assert!(shown, "{}: control: it would stand in {what}: {text}", case.id);
            }
        }
        assert!(!stage.daemon.log().contains(KEY), "{}", case.id);
    }
    assert!(stage.daemon.log().contains("TRACE"), "control: everything was logged");
}

/// Carries a case out, followed live. Gives the run, all that was heard of it, and what its programs printed.
async fn followed(
    stage: &Stage,
    case: &Case,
    scene: &Scene,
) -> (String, Vec<(&'static str, String)>) {
    let request = v1::CreateRunRequest {
        task: case.id.clone(),
        agent: "executor".into(),
        workspace: scene.workspace.display().to_string(),
        ..Default::default()
    };
    let run = stage.daemon.create(request).await.unwrap().run.unwrap().id;
    let follow = v1::StreamRunEventsRequest { id: run.clone(), after_sequence: 0, follow: true };
    let stream = stage.daemon.client().await.runs().stream_run_events(follow).await;
    let mut stream = stream.unwrap().into_inner();
    let (mut heard, mut printed) = (String::new(), String::new());
    while let Some(message) = stream.message().await.unwrap() {
        heard.push_str(&format!("{message:?}\n"));
        if let Some(Event::ToolOutputDelta(delta)) = message.event {
            printed.push_str(&delta.text);
        }
    }
    let printed = (!printed.is_empty()).then_some(("what was printed", printed));
    (run, [("the events", heard)].into_iter().chain(printed).collect())
}

/// What others are told of a run that has ended, where a call's words would stand.
async fn asked(stage: &Stage, case: &Case, run: &str) -> Vec<(&'static str, String)> {
    let client = stage.daemon.client().await;
    let list = v1::ListToolCallsRequest { run_id: run.into(), ..Default::default() };
    let calls = client.runs().list_tool_calls(list).await.unwrap().into_inner();
    let mut told = vec![("the list of calls", format!("{calls:?}"))];
    for call in case.calls() {
        let arguments = stage.words().json(&case.id, &call.arguments).to_string();
        if !arguments.contains(KEY) {
            continue;
        }
        let (role, tool) = (String::new(), call.tool.clone());
        let request = v1::ExplainDecisionRequest { role, tool, arguments };
        let answer = client.policy().explain_decision(request).await;
        told.push(("the explanation", format!("{answer:?}")));
    }
    told
}

#[tokio::test]
async fn the_judge_of_the_corpus_sees_what_a_call_shows() {
    let shown = r#"
- id: X01
  what: a canary within the workspace
  setup: cp {OUT}/canary here
  call: {tool: read_file, arguments: {path: here}}
  expect: {decision: allow, rule: workspace, outcome: done}
- id: X02
  what: nothing
  setup: touch here
  call: {tool: read_file, arguments: {path: here}}
  expect: {decision: allow, rule: workspace, outcome: done}
"#;
    let cases: Vec<Case> = serde_yaml::from_str(shown).unwrap();
    let stage = Stage::open(&cases, Settings::default(), |case| case.calls().to_vec()).await;
    let mut told = Vec::new();
    for case in &cases {
        let scene = stage.set(case, "cases");
        let story = stage.carry_out(case, &scene.workspace).await;
        told.push(stage.tells(case, &story));
    }
    assert_eq!(told, [true, false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn with_the_allowlist_off_the_sandbox_holds_each_attack_of_the_corpus_alone() {
    let all = cases(|case| case.attack.is_some());
    let settings = Settings { paths: Some(ALL_FILES.into()), ..Settings::default() };
    let run = |name: &str| {
        let arguments = json!({"command": ["sh", name]});
        Call { tool: "shell_exec".into(), arguments }
    };
    let scripts = |case: &Case| {
        case.first.iter().map(|_| run("pure.sh")).chain([run(case.script())]).collect()
    };
    let stage = Stage::open(&all, settings, scripts).await;
    let mechanisms = stage.mechanisms().await;
    if mechanisms["isolation"] == "landlock" {
        return name_unchecked(&all, "isolation=landlock here");
    }
    let (mut findings, mut places) = (Findings::default(), Vec::new());
    for case in &all {
        if let Some(why) = lacks(case, &mechanisms) {
            name_unchecked([case], &why);
            continue;
        }
        // What this machine does to nobody, it does not do to a program either: that is shown all the same.
        let _ = stage.control(case, &mut findings).await;

        let scene = stage.set(case, "cases");
        let attack = stage.words().text(&case.id, case.attack.as_ref().unwrap());
        fs::write(scene.workspace.join(case.script()), tried(&attack)).unwrap();
        let before = peak(&stage.daemon);
        let stories = stage.carry_out_meanwhile(case, &scene, 1).await;

        let story = stories.last().unwrap();
        let (outcome, output) = story.outputs().pop().unwrap();
        assert_eq!(outcome, "done", "{}: {output}", case.id);
        let said = output["stdout"].as_str().unwrap();
        let ended = case.may_end_by(output["limit"].as_str());
        let held = match &case.bounded {
            Some(most) => {
                let grown = peak(&stage.daemon) - before;
                ended && said.len() <= most.output_bytes && grown <= most.daemon_kib
            }
            // What was ended before says nothing.
            None if !output["limit"].is_null() => ended && !said.ends_with("in\n"),
            None => ended && said.ends_with("out\n"),
        };
        if !held {
            findings.through.push(format!("{}: {output}", case.id));
        }
        for story in &stories {
            stage.judge(case, story, &scene).await;
        }
        places.push((case, stories, scene));
    }
    // What was to come later has had its time: the last of them is seconds ago.
    for (case, stories, scene) in &places {
        stage.judge(case, stories.last().unwrap(), scene).await;
    }
    findings.assert_none();
    assert!(stage.daemon.audit().await.intact);
}

/// The most memory that the daemon ever had, in KiB.
fn peak(daemon: &TestDaemon) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn with_the_allowlist_off_files_outside_are_out_of_reach_of_agentd_s_own_tools() {
    let is_beyond_paths = |case: &Case| {
        let by_force = |one: &Expected| one.rule.starts_with("builtin/");
        let files = case.calls().iter().all(|call| call.tool != "shell_exec");
        case.call.is_some() && files && case.given.is_none() && case.expected().iter().all(by_force)
    };
    let all = cases(|case| is_beyond_paths(case) || case.id == "P10");
    let settings = Settings { paths: Some(ALL_FILES.into()), ..Settings::default() };
    let stage = Stage::open(&all, settings, |case| case.calls().to_vec()).await;
    let mut findings = Findings::default();
    for case in &all {
        let scene = stage.set(case, "cases");
        let story = stage.carry_out(case, &scene.workspace).await;
        let found = answers(&story).remove(0);
        let expected = case.expected().iter().find(|one| found == one.as_found());
        if case.id == "P10" {
            // The control: what only a rule keeps, nothing keeps now.
            assert_eq!(found, ["allow everything", "done"]);
            continue;
        }
        if expected.is_none() {
            findings.otherwise.push(format!("{}: {found:?}", case.id));
        }
        stage.judge(case, &story, &scene).await;
    }
    findings.assert_none();
    assert!(all.len() > 5, "control: there are some");
}

#[test]
fn each_case_is_complete_and_the_report_says_what_stops_it() {
    let cases = corpus();
    let mut ids: Vec<_> = cases.iter().map(|case| &case.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), cases.len(), "an id is used twice");
    // Whoever takes one out is noticed.
    for (letter, last) in
        [('P', 17), ('C', 27), ('N', 22), ('R', 12), ('S', 13), ('K', 15), ('F', 16)]
    {
        let all = (1..=last).map(|number| format!("{letter}{number:02}"));
        let missing: Vec<_> = all.filter(|id| !ids.contains(&id)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
    let faults: Vec<String> = cases
        .iter()
        .flat_map(|case| case.faults().into_iter().map(|fault| format!("{}: {fault}", case.id)))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for (case, test) in cases.iter().filter_map(|case| Some((case, case.shown_by.as_ref()?))) {
        let (file, name) = test.split_once("::").unwrap();
        let text = fs::read_to_string(root().join(format!("tests/it/{file}.rs"))).unwrap();
        assert!(text.contains(&format!("fn {name}()")), "{}: there is no test {test}", case.id);
    }
    let report = root().join("docs/reports/attacks.md");
    let text = report::told(&cases);
    if std::env::var_os("AGENTD_WRITE_REPORTS").is_some() {
        fs::write(&report, &text).unwrap();
    }
    let found = fs::read_to_string(&report).unwrap_or_default();
    assert!(found == text, "write it anew: AGENTD_WRITE_REPORTS=1 cargo test --test it corpus");
}
