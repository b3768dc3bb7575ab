//! A run of three agents: the planner's plan, the executor's work, the reviewer's verdict; what each of them is told and
//! may do, and that none of it is lost with a daemon that dies.

use std::sync::{Mutex, mpsc};

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Seen, Turn},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{Backend, Settings, Story, TestDaemon, wait_until};

pub(crate) const PLAN: &str =
    r#"{"steps": [{"intent": "greet", "tools": ["write_file"], "check": "hello.txt says hello"}]}"#;
pub(crate) const ACCEPT: &str =
    r#"{"verdict": "accept", "findings": [], "reason": "it says hello"}"#;
pub(crate) const REVISE: &str =
    r#"{"verdict": "revise", "findings": ["it is not polite"], "reason": ""}"#;
pub(crate) const VETO: &str = r#"{"verdict": "veto", "findings": [], "reason": "it reads secrets", "rule": "builtin/secrets"}"#;

/// Who is asked: each agent has a conversation of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Planner,
    Executor,
    Reviewer,
}

pub(crate) fn who(task: &str) -> Who {
    match task {
        task if task.starts_with("Plan this task.") => Who::Planner,
        task if task.starts_with("Review this work") => Who::Reviewer,
        _ => Who::Executor,
    }
}

fn write(content: &str) -> Turn {
    Turn::call("write_file", json!({"path": "hello.txt", "content": content}))
}

/// Plans after a look around and a try to write; does what is planned, badly, and reads what it may not; is sent back.
fn reply(seen: &Seen) -> Reply {
    Reply::Answer(match (who(&seen.task), seen.turn) {
        (Who::Planner, 1) => Turn::call("read_file", json!({"path": "a.txt"}))
            .and_call("write_file", json!({"path": "b.txt", "content": "x"})),
        (Who::Planner, _) => Turn::say(&format!("Here it is.\n```json\n{PLAN}\n```")),
        (Who::Executor, 1) => write("hello\n"),
        (Who::Executor, 2) => Turn::call("read_file", json!({"path": ".env"})),
        (Who::Executor, 3) => Turn::say("I greeted."),
        (Who::Executor, 4) => write("hello, please\n"),
        (Who::Executor, _) => Turn::say("I greeted politely."),
        (Who::Reviewer, _) if seen.task.contains("hello, please") => Turn::say(ACCEPT),
        (Who::Reviewer, _) => Turn::say(REVISE),
    })
}

pub(crate) async fn lab(brain: impl agentd::scripted::Brain) -> (Backend, TestDaemon) {
    let backend = Backend::start(brain).await;
    let daemon =
        TestDaemon::start_with(Settings { base_url: backend.url(), ..Settings::default() });
    prepare(&daemon);
    (backend, daemon)
}

/// The workspace is a project with one commit, a test, and a secret that is not in it.
pub(crate) fn prepare(daemon: &TestDaemon) {
    daemon.put("a.txt", "a\n");
    daemon.put("test_a.py", "def test_a():\n    pass\n");
    daemon.put(".env", "TOKEN=canary\n");
    let git = |arguments: &[&str]| {
        let done = std::process::Command::new("git")
            .args([
                "-C",
                daemon.workspace().to_str().unwrap(),
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@t",
            ])
            .args(arguments)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    git(&["init", "-q"]);
    git(&["add", "a.txt", "test_a.py"]);
    git(&["commit", "-qm", "first"]);
}

pub(crate) fn request(daemon: &TestDaemon) -> v1::CreateRunRequest {
    v1::CreateRunRequest { agent: "default".into(), ..daemon.request("Greet the world.") }
}

pub(crate) async fn submit(daemon: &TestDaemon) -> String {
    daemon.create(request(daemon)).await.unwrap().run.unwrap().id
}

/// Three agents at their shortest: a plan, a word, and consent.
pub(crate) fn content(seen: &Seen) -> Reply {
    Reply::Answer(Turn::say(match who(&seen.task) {
        Who::Planner => PLAN,
        Who::Executor => "done",
        Who::Reviewer => ACCEPT,
    }))
}

/// Each agent that began, in order.
fn seats(story: &Story) -> Vec<String> {
    story
        .payloads("agent_began")
        .iter()
        .map(|began| began["seat"].as_str().unwrap().to_owned())
        .collect()
}

/// The requests that one of the agents made.
pub(crate) fn requests(backend: &Backend, of: Who) -> Vec<Value> {
    let first = |request: &Value| request["input"][0]["content"].as_str().unwrap().to_owned();
    backend.server.requests().into_iter().filter(|request| who(&first(request)) == of).collect()
}

pub(crate) fn tools(request: &Value) -> Vec<String> {
    let tools = request["tools"].as_array().cloned().unwrap_or_default();
    tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_run_that_names_no_agent_is_planned_done_and_reviewed() {
    let backend = Backend::start(content).await;
    let daemon = TestDaemon::start(&backend.url());
    let unnamed = v1::CreateRunRequest { agent: String::new(), ..daemon.request("Say it.") };
    let called = daemon.create(unnamed).await.unwrap().run.unwrap().id;
    daemon.wait(&called).await;

    let workspace = daemon.workspace().display().to_string();
    let submit = ["run", "submit", "Say it.", "--workspace", &workspace, "--wait", "-o", "json"];
    let typed = daemon.agentctl(&submit).await;
    let typed: Value = serde_json::from_slice(&typed.stdout).unwrap();

    for id in [called.as_str(), typed["id"].as_str().unwrap()] {
        let story = daemon.story(id).await;
        let run = (story.state(), story.run.agent.as_str(), story.run.answer.as_str());
        assert_eq!(run, (RunState::Succeeded, "default", "done"), "{:?}", story.run.error);
        assert_eq!(seats(&story), ["planner", "executor", "reviewer"]);
        assert_eq!(story.payloads("review_verdict")[0]["verdict"], "accept");
    }
}

#[tokio::test]
async fn a_plan_is_made_and_carried_out_and_the_work_is_sent_back_until_the_reviewer_takes_it() {
    let (backend, daemon) = lab(reply).await;
    let id = submit(&daemon).await;
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert_eq!(story.run.answer, "I greeted politely.", "the executor's, not the reviewer's");
    assert_eq!(daemon.read("hello.txt").unwrap(), "hello, please\n");
    assert_eq!(seats(&story), ["planner", "executor", "reviewer", "executor", "reviewer"]);
    let plan: Value = serde_json::from_str(PLAN).unwrap();
    assert_eq!(story.payloads("plan_made")[0]["plan"], plan);
    let verdicts: Vec<Value> =
        story.payloads("review_verdict").iter().map(|said| said["verdict"].clone()).collect();
    assert_eq!(verdicts, ["revise", "accept"]);
    story.assert_calls_are_tied();

    // A planner and a reviewer are shown tools that change nothing, and may use no other.
    assert_eq!(daemon.read("b.txt"), None, "the planner wrote nothing");
    assert_eq!(story.decisions()[1], "deny roles.planner");
    let looking = ["read_file", "list_dir", "search_files", "repo_summarize"];
    for who in [Who::Planner, Who::Reviewer] {
        for request in requests(&backend, who) {
            let mut shown = tools(&request);
            shown.sort();
            let mut looking = looking.map(str::to_owned);
            looking.sort();
            assert_eq!(shown, looking, "{who:?}");
        }
    }
    let working = requests(&backend, Who::Executor);
    assert!(tools(&working[0]).contains(&"shell_exec".to_owned()));

    // Each has its own conversation: the executor is given the plan and the findings, and hears nothing else of the others.
    let heard = working.last().unwrap()["input"].to_string();
    assert!(
        heard.contains("Greet the world.")
            && heard.contains("1. greet (check: hello.txt says hello)"),
        "{heard}"
    );
    assert!(heard.contains("- it is not polite"), "{heard}");
    assert!(!heard.contains("Here it is.") && !heard.contains("verdict"), "{heard}");

    // The reviewer is given the evidence of that moment, and nothing of an earlier review.
    let reviews = requests(&backend, Who::Reviewer);
    let evidence = reviews[0]["input"][0]["content"].as_str().unwrap();
    for part in [
        "Review this work, round 1.",
        "Greet the world.",
        "1. greet",
        "+hello\n",
        "- the engineer: read_file {\"path\":\".env\"}: refused by",
        "- the planner: write_file {\"content\":\"x\",\"path\":\"b.txt\"}: refused by roles.planner",
        "I greeted.",
    ] {
        assert!(evidence.contains(part), "{part}: {evidence}");
    }
    let own = evidence.split("# Tool calls").nth(1).unwrap();
    assert!(own.contains("hello.txt") && !own.contains("b.txt"), "only the engineer's: {own}");
    assert_eq!(reviews[1]["input"].as_array().unwrap().len(), 1);
    assert!(reviews[1]["input"].to_string().contains("round 2"));
    assert!(
        !backend.server.requests().iter().any(|request| request.to_string().contains("canary"))
    );
    backend.assert_paired();
}

#[tokio::test]
async fn an_agent_whose_words_have_not_the_shape_is_told_so_once() {
    let stubborn = |seen: &Seen| {
        Reply::Answer(match (who(&seen.task), seen.turn) {
            (Who::Planner, 1) => Turn::say("I would rather not plan."),
            (Who::Planner, _) => Turn::say(PLAN),
            (Who::Executor, _) => Turn::say("Nothing to do."),
            (Who::Reviewer, _) => Turn::say("Looks good to me!"),
        })
    };
    let (backend, daemon) = lab(stubborn).await;
    let story = daemon.story(&submit(&daemon).await).await;
    assert_eq!(story.state(), RunState::Failed);
    let error = story.run.error.clone().unwrap();
    assert_eq!(error.reason, "OUTPUT_INVALID");
    assert!(error.message.contains("no JSON object"), "{}", error.message);
    let refused = story.payloads("output_refused");
    assert_eq!(refused.len(), 2, "the planner once, the reviewer once");
    let planning = requests(&backend, Who::Planner);
    assert!(planning[1]["input"].to_string().contains("Answer once more"), "{}", planning[1]);
    let words = story.payloads("model_response");
    assert_eq!(words.last().unwrap()["text"], "Looks good to me!", "the evidence is kept");
}

#[tokio::test]
async fn a_veto_ends_the_run_and_so_does_one_revision_too_many() {
    let vetoing = |seen: &Seen| {
        Reply::Answer(match who(&seen.task) {
            Who::Planner => Turn::say(PLAN),
            Who::Executor => Turn::say("Done."),
            Who::Reviewer => Turn::say(VETO),
        })
    };
    let (_backend, daemon) = lab(vetoing).await;
    let story = daemon.story(&submit(&daemon).await).await;
    let error = story.run.error.clone().unwrap();
    assert_eq!((story.state(), error.reason.as_str()), (RunState::Failed, "VETOED"));
    assert!(error.message.contains("(rule builtin/secrets): it reads secrets"), "{error:?}");

    let never = |seen: &Seen| {
        Reply::Answer(match who(&seen.task) {
            Who::Planner => Turn::say(PLAN),
            Who::Executor => Turn::say("Done."),
            Who::Reviewer => Turn::say(REVISE),
        })
    };
    let backend = Backend::start(never).await;
    for (configuration, reviews) in [("", 4), ("review: {max_rounds: 1}\n", 2)] {
        let daemon = TestDaemon::start_with(Settings {
            base_url: backend.url(),
            configuration: configuration.into(),
            ..Settings::default()
        });
        let story = daemon.story(&submit(&daemon).await).await;
        let error = story.run.error.clone().unwrap();
        assert_eq!((story.state(), error.reason.as_str()), (RunState::Failed, "REVIEW_FAILED"));
        assert!(error.message.contains("it is not polite"), "{error:?}");
        assert_eq!(story.payloads("review_verdict").len(), reviews, "{configuration}");
    }
}

#[tokio::test]
async fn a_reviewer_s_own_budget_stops_the_run_before_the_review_and_a_larger_one_lets_it_go_on() {
    let (_backend, mut daemon) = lab(reply).await;
    let one = v1::Budget { max_turns: 1, ..Default::default() };
    let request = v1::CreateRunRequest {
        role_budgets: [("reviewer".to_owned(), one)].into(),
        ..request(&daemon)
    };
    let id = daemon.create(request).await.unwrap().run.unwrap().id;
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::OutOfBudget);
    let said = story.run.error.clone().unwrap().message;
    assert!(said.contains("the budget of the role reviewer in the run, of 1 turns"), "{said}");
    assert_eq!(seats(&story), ["planner", "executor", "reviewer", "executor", "reviewer"]);

    daemon.kill();
    daemon.restart();
    let resumed =
        daemon.agentctl(&["run", "resume", &id, "--role-budget", "reviewer=turns:9"]).await;
    assert!(resumed.status.success(), "{resumed:?}");
    let story = daemon.story(&id).await;
    assert_eq!((story.state(), seats(&story).len()), (RunState::Succeeded, 5));
}

#[tokio::test]
async fn agents_that_die_with_their_daemon_go_on_where_they_were() {
    let places: [(&str, &[u32]); 4] = [
        ("ask.before", &[0, 2, 5, 8]),
        ("ask.after", &[1, 4, 5]),
        ("result.before", &[0, 3, 4]),
        ("commit.after", &[5, 8, 11, 14, 17]),
    ];
    for (point, nths) in places {
        for nth in nths {
            let (backend, mut daemon) = lab(reply).await;
            daemon.kill();
            assert!(daemon.boot_dying(&[("AGENTD_FAIL_POINT", format!("{point}:{nth}"))]));
            let client = daemon.client().await;
            let request = v1::CreateRunRequest { request_id: "one".into(), ..request(&daemon) };
            let _ = client.runs().create_run(request.clone()).await;
            wait_until(&format!("it dies at {point}:{nth}"), || daemon.has_died()).await;
            assert!(daemon.boot_dying(&[]));
            let id = daemon.create(request).await.unwrap().run.unwrap().id;
            let story = daemon.story(&id).await;
            assert_eq!(story.state(), RunState::Succeeded, "{point} {nth}: {:?}", story.run.error);
            assert_eq!(
                seats(&story),
                ["planner", "executor", "reviewer", "executor", "reviewer"],
                "{point} {nth}"
            );
            assert_eq!(daemon.read("hello.txt").unwrap(), "hello, please\n");
            backend.assert_paired();
        }
    }
}

type Work = Box<dyn Fn() -> Turn + Send + Sync>;

/// The executor does one call after the other, since those of one turn run side by side; the reviewer takes whatever it is
/// shown.
pub(crate) fn obliging(
    does: impl Fn() -> Turn + Send + Sync + 'static,
) -> impl agentd::scripted::Brain {
    move |seen: &Seen| {
        Reply::Answer(match (who(&seen.task), seen.turn) {
            (Who::Planner, _) => Turn::say(PLAN),
            (Who::Executor, turn) => match does().calls.into_iter().nth(turn - 1) {
                Some(call) => Turn { calls: vec![call], ..Turn::default() },
                None => Turn::say("I did as planned."),
            },
            (Who::Reviewer, _) => Turn::say(ACCEPT),
        })
    }
}

fn script(content: &str) -> Turn {
    Turn::call("write_file", json!({"path": "script.sh", "content": content}))
        .and_call("shell_exec", json!({"command": ["sh", "script.sh"]}))
}

/// With a reviewer that takes anything: what must not be done ends the run before the reviewer is asked.
#[tokio::test]
async fn a_planted_secret_a_deleted_test_or_a_forbidden_file_is_a_veto_whatever_the_reviewer_says()
{
    let key = || format!("key = \"AKIA{}\"\n", "Q".repeat(16));
    let cases: Vec<(&str, &str, Work)> = vec![
        (
            "secret",
            "config.py: 1 lines that were added hold what looks like a credential",
            Box::new(move || {
                Turn::call("write_file", json!({"path": "config.py", "content": key()}))
            }),
        ),
        (
            // A repository that says of its files that they be not shown.
            "secret",
            "config.py: 1 lines that were added",
            Box::new(move || {
                let hide = "*.py -diff\nconfig.py binary\n";
                Turn::call("write_file", json!({"path": ".gitattributes", "content": hide}))
                    .and_call("write_file", json!({"path": "config.py", "content": key()}))
            }),
        ),
        (
            "deleted_test",
            "test_a.py: a file of tests was deleted",
            Box::new(|| script("rm test_a.py script.sh\n")),
        ),
        (
            "forbidden_path",
            "deploy/.env.production: ",
            Box::new(|| script("mkdir -p deploy; echo x >deploy/.env.production\n")),
        ),
    ];
    for (guardrail, words, does) in cases {
        let (backend, daemon) = lab(obliging(does)).await;
        let story = daemon.story(&submit(&daemon).await).await;
        let error = story.run.error.clone().unwrap_or_default();
        assert_eq!(
            (story.state(), error.reason.as_str()),
            (RunState::Failed, "VETOED"),
            "{guardrail}: {:?} {:?} {:?}",
            story.outputs(),
            story.payloads("workspace_snapshot"),
            story.payloads("guardrails_checked")
        );
        assert!(error.message.contains(words), "{guardrail}: {}", error.message);
        let found = &story.payloads("guardrails_checked")[0]["violations"];
        assert!(
            found.as_array().unwrap().iter().any(|found| found["guardrail"] == guardrail),
            "{guardrail}: {found}"
        );
        assert_eq!(
            requests(&backend, Who::Reviewer),
            Vec::<Value>::new(),
            "nobody to be talked round"
        );
        assert!(daemon.audit().await.intact);
    }
    // Control: the same team, the same reviewer, and nothing that must not be done.
    let (_backend, daemon) = lab(obliging(|| write("hello\n"))).await;
    let story = daemon.story(&submit(&daemon).await).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert_eq!(story.payloads("guardrails_checked")[0]["violations"], json!([]));
}

#[tokio::test]
async fn what_the_configuration_only_wants_reported_the_reviewer_is_told() {
    let backend = Backend::start(obliging(|| script("rm test_a.py script.sh\n"))).await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: "guardrails: {deleted_tests: report}\n".into(),
        ..Settings::default()
    });
    prepare(&daemon);
    let story = daemon.story(&submit(&daemon).await).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    let told = requests(&backend, Who::Reviewer)[0]["input"][0]["content"].to_string();
    assert!(told.contains("test_a.py: a file of tests was deleted"), "{told}");

    let said = TestDaemon::refused(Settings {
        base_url: backend.url(),
        configuration: "guardrails: {deleted_tests: ignore}\n".into(),
        ..Settings::default()
    });
    assert!(said.contains("\"ignore\" is neither veto nor report"), "{said}");
}

/// Without git nobody can tell what was changed, and the record and the reviewer are told so.
#[tokio::test]
async fn where_nothing_can_be_looked_at_the_record_says_why() {
    let backend = Backend::start(obliging(|| write("hello\n"))).await;
    let daemon = TestDaemon::start(&backend.url());
    let story = daemon.story(&submit(&daemon).await).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    let checked = &story.payloads("guardrails_checked")[0];
    assert!(checked["unchecked"].as_str().unwrap().contains("git"), "{checked}");
    let told = requests(&backend, Who::Reviewer)[0]["input"][0]["content"].to_string();
    assert!(told.contains("nothing could be looked at"), "{told}");
}

/// Whenever a person says something, the engineer hears it before the run ends, and the reviewer knows of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_a_person_says_reaches_the_engineer_whoever_speaks_at_that_moment() {
    for moment in [Who::Planner, Who::Executor, Who::Reviewer] {
        let (asked, mut was_asked) = watch::channel(false);
        let (let_go, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let brain = move |seen: &Seen| {
            // The first answer of that moment waits until somebody has spoken.
            if who(&seen.task) == moment && !asked.send_replace(true) {
                // Whoever drives the sockets may be this very thread: another is to take over.
                tokio::task::block_in_place(|| held.lock().unwrap().recv().unwrap());
            }
            Reply::Answer(match who(&seen.task) {
                Who::Planner => Turn::say(PLAN),
                Who::Executor => Turn::say("Done."),
                Who::Reviewer => Turn::say(ACCEPT),
            })
        };
        let (backend, daemon) = lab(brain).await;
        let id = submit(&daemon).await;
        was_asked.wait_for(|asked| *asked).await.unwrap();
        let said = daemon.agentctl(&["run", "input", &id, "And be polite."]).await;
        assert!(said.status.success(), "{said:?}");
        let_go.send(()).unwrap();
        let story = daemon.story(&id).await;
        assert_eq!(story.state(), RunState::Succeeded, "{moment:?}: {:?}", story.run.error);
        let heard = requests(&backend, Who::Executor);
        assert!(
            heard.last().unwrap()["input"].to_string().contains("And be polite."),
            "{moment:?}"
        );
        let told = requests(&backend, Who::Reviewer).last().unwrap()["input"].to_string();
        assert!(told.contains("# What a person added"), "{moment:?}: {told}");
        backend.assert_paired();
    }
}

/// A daemon that is killed in the middle of a snapshot leaves git's lock, as does one that snapshots beside another.
#[tokio::test]
async fn what_was_changed_can_be_told_in_spite_of_a_lock_that_was_left_and_by_many_at_once() {
    let writes = |seen: &Seen| match seen.turn {
        1 => Reply::Answer(write("hello\n")),
        _ => Reply::Hang,
    };
    let (_backend, mut daemon) = lab(writes).await;
    let first = daemon.submit("write").await.id;
    daemon.wait_for_entry(&first, "tool_output").await;
    daemon.cancel(&first).await;
    daemon.wait(&first).await;
    let snapshots = daemon.state().join("snapshots");
    let names = || -> Vec<String> {
        let found = std::fs::read_dir(&snapshots).unwrap().flatten();
        let names = found.map(|file| file.file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("index-")).collect()
    };
    let [kept] = names().try_into().unwrap();
    daemon.kill();
    for left in [format!("{kept}.lock"), format!("{kept}-1-0"), format!("{kept}-1-0.lock")] {
        std::fs::write(snapshots.join(left), "").unwrap();
    }
    daemon.restart();
    assert_eq!(names(), [kept], "what was left is removed");
    std::fs::write(snapshots.join(format!("{}.lock", names()[0])), "").unwrap();

    let second = daemon.submit("write").await.id;
    daemon.wait_for_entry(&second, "tool_output").await;
    daemon.put("more.txt", "more\n");
    let client = daemon.client().await;
    let diffs = (0..8).map(|_| {
        let (client, id) = (client.clone(), second.clone());
        async move { client.runs().get_run_diff(v1::GetRunDiffRequest { id }).await }
    });
    for diff in futures_util::future::join_all(diffs).await {
        let mut diff = diff.unwrap().into_inner();
        let mut patch = Vec::new();
        while let Some(part) = diff.message().await.unwrap() {
            patch.extend(part.chunk);
        }
        assert!(String::from_utf8(patch).unwrap().contains("+more"), "each is told");
    }
    daemon.cancel(&second).await;
}
