//! Backends that come and go: their health flips both ways, runs wait for them and lose nothing, and what they answer that
//! is no answer is asked for again.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Brain, Kind, Reply, Script, ScriptedBackend, Seen, Turn},
    tasks::Tasks,
};
use serde_json::{Value, json};

use crate::support::{Backend, Dice, Settings, TestDaemon, manner};

/// A daemon that looks at its backend each second.
fn attentive(base_url: &str, configuration: &str) -> TestDaemon {
    TestDaemon::start_with(Settings {
        base_url: base_url.into(),
        configuration: configuration.into(),
        environment: vec![("HEALTH_INTERVAL_S".into(), "1".into())],
        ..Settings::default()
    })
}

/// A place where a server can come up again after it went down.
struct Place(std::net::SocketAddr);

impl Place {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self(listener.local_addr().unwrap())
    }

    fn url(&self) -> String {
        format!("http://{}/v1", self.0)
    }

    /// A server here, until its tasks stop. Those who were connected to an earlier one may be in the way for a moment.
    async fn serve(&self, brain: impl Brain) -> (ScriptedBackend, Tasks) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.0).unwrap();
        let tasks = Tasks::default();
        let server = ScriptedBackend::serve(&tasks, socket.listen(64).unwrap(), brain, manner());
        (server.unwrap(), tasks)
    }
}

/// Ends a server as a kill does: those it talks to are cut off.
async fn kill(tasks: Tasks) {
    tasks.stop(Duration::ZERO).await;
}

/// Status and body of `/healthz`, `/readyz`, `/livez`.
async fn http(daemon: &TestDaemon, path: &str) -> (u16, String) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.get(format!("{}{path}", daemon.http)).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn healthz(daemon: &TestDaemon) -> (u16, Value) {
    let (status, body) = http(daemon, "/healthz").await;
    (status, serde_json::from_str(&body).unwrap())
}

async fn wait_for_status(daemon: &TestDaemon, wanted: &str) -> Value {
    let deadline = tokio::time::timeout(crate::support::PATIENCE, async {
        loop {
            let (_, health) = healthz(daemon).await;
            if health["status"] == wanted {
                return health;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    deadline.await.unwrap_or_else(|_| panic!("it never was {wanted}:\n{}", daemon.log()))
}

#[tokio::test]
async fn health_flips_when_the_backend_dies_and_back_when_it_returns_and_the_daemon_lives_on() {
    let place = Place::new();
    let (_server, tasks) = place.serve(Script { turns: Vec::new() }).await;
    let daemon = attentive(&place.url(), "");
    let green = wait_for_status(&daemon, "green").await;
    assert_eq!(healthz(&daemon).await.0, 200);
    assert_eq!((&green["responses_api"], &green["chat_api"]), (&json!(true), &json!(true)));
    assert_eq!((&green["lm_studio_reachable"], &green["store"]), (&json!(true), &json!("ok")));
    assert!(green["last_ok"].is_string() && green["sandbox"].is_object(), "{green}");
    assert!(green["policy"]["revision"].as_str().unwrap().starts_with("sha256:"));

    kill(tasks).await;
    let red = wait_for_status(&daemon, "red").await;
    assert_eq!(healthz(&daemon).await.0, 503);
    assert_eq!(red["lm_studio_reachable"], false);
    assert!(red["reasons"][0].as_str().unwrap().contains(&place.url()), "{red}");
    assert!(red["last_ok"].is_string(), "when it last worked is still known");
    for path in ["/livez", "/readyz"] {
        assert_eq!(http(&daemon, path).await, (200, "ok\n".into()), "{path}");
    }
    let told = daemon.agentctl(&["health", "-o", "json"]).await;
    assert_eq!(told.status.code(), Some(3), "{told:?}");
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["status"], "red");
    for flag in ["--live", "--ready"] {
        assert!(daemon.agentctl(&["health", flag]).await.status.success(), "{flag}");
    }

    let (_server, _tasks) = place.serve(Script { turns: Vec::new() }).await;
    wait_for_status(&daemon, "green").await;
    let colours: Vec<Value> = daemon
        .entries_of_the_daemon("capability_probe")
        .iter()
        .map(|probe| probe["colour"].clone())
        .collect();
    assert_eq!(colours, ["green", "red", "green"]);
    let table = daemon.agentctl(&["health"]).await;
    let table = String::from_utf8(table.stdout).unwrap();
    let apis = match manner().kind {
        Kind::OpenAi => "+responses +chat +agents",
        _ => "+responses +chat -agents",
    };
    assert!(table.starts_with("green") && table.contains(apis), "{table}");
}

#[tokio::test]
async fn a_server_that_lists_its_models_but_cannot_generate_is_red_after_the_first_failure() {
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    let brain = move |_: &Seen| match is_broken.load(Relaxed) {
        true => Reply::Http {
            status: 500,
            headers: Vec::new(),
            body: r#"{"error":{"message":"out of memory"}}"#.into(),
        },
        false => Reply::Answer(Turn::say("Hello.")),
    };
    let backend = Backend::start(brain).await;
    let daemon = attentive(&backend.url(), "");
    wait_for_status(&daemon, "green").await;
    let run = daemon.submit("hello").await;
    daemon.wait_for_entry(&run.id, "backend_error").await;
    let (status, health) = healthz(&daemon).await;
    assert_eq!((status, &health["status"]), (503, &json!("red")), "{health}");
    let why = health["reasons"][0].as_str().unwrap();
    assert!(
        why.contains("HTTP 500") && !why.contains("out of memory"),
        "it tells nobody's words: {why}"
    );
    // Nobody asks it for anything but the daemon itself, and it is found to be well again.
    daemon.agentctl(&["run", "cancel", &run.id]).await;
    broken.store(false, Relaxed);
    wait_for_status(&daemon, "green").await;
}

#[tokio::test]
async fn a_run_waits_for_a_backend_that_is_not_there_yet_and_goes_on_when_it_comes() {
    let place = Place::new();
    let mut daemon = attentive(&place.url(), "");
    let run = daemon.submit("hello").await;
    let awaited = daemon.wait_for_entry(&run.id, "backend_awaited").await;
    let awaited: Value = serde_json::from_str(&awaited.payload).unwrap();
    assert!(awaited["why"].as_str().unwrap().contains("cannot be reached"), "{awaited}");
    assert_eq!(daemon.runs().await[0].state(), RunState::WaitingForBackend);
    // A daemon that dies meanwhile makes no difference.
    daemon.kill();
    daemon.restart();
    let (_server, _tasks) = place.serve(Script { turns: vec![Turn::say("Hello.")] }).await;
    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), story.run.answer.as_str()), (RunState::Succeeded, "Hello."));
    assert_eq!(story.payloads("model_request").len(), 1, "nothing was asked in vain");
}

#[tokio::test]
async fn a_run_gives_up_on_a_backend_that_never_comes_and_says_what_to_do() {
    let place = Place::new();
    let daemon = attentive(&place.url(), "limits: {backend_wait_seconds: 1}\n");
    let story = daemon.carry_out("hello").await;
    let error = story.run.error.unwrap();
    assert_eq!(
        (story.run.state, error.reason.as_str()),
        (RunState::Failed.into(), "BACKEND_UNAVAILABLE")
    );
    assert!(error.message.contains("limits.backend_wait_seconds"), "{}", error.message);
}

#[tokio::test]
async fn when_five_requests_in_a_row_fail_everybody_waits_until_one_is_answered() {
    // It lists its models all the time; it answers nobody until it is told to.
    let works = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let (is_working, count) = (works.clone(), asked.clone());
    let brain = move |seen: &Seen| {
        count.fetch_add(usize::from(seen.task.contains("task")), Relaxed);
        match is_working.load(Relaxed) {
            false => Reply::Http { status: 503, headers: Vec::new(), body: "{}".into() },
            true => Reply::Answer(Turn::say("Done.")),
        }
    };
    let backend = Backend::start(brain).await;
    let daemon = attentive(&backend.url(), "");
    let mut runs = Vec::new();
    for number in 0..8 {
        let workspace = daemon.workspace().join(number.to_string());
        std::fs::create_dir_all(&workspace).unwrap();
        let workspace = workspace.to_str().unwrap().to_owned();
        let request = v1::CreateRunRequest { workspace, ..daemon.request("a task") };
        runs.push(daemon.create(request).await.unwrap().run.unwrap().id);
    }
    for run in &runs {
        daemon.wait_for_entry(run, "backend_awaited").await;
    }
    let (_, health) = healthz(&daemon).await;
    assert_eq!(health["backend"]["awaited"], true, "{health}");
    let before = asked.load(Relaxed);
    works.store(true, Relaxed);
    for run in &runs {
        let story = daemon.story(run).await;
        assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    }
    assert_eq!(asked.load(Relaxed) - before, runs.len(), "each asked once more");
}

#[tokio::test]
async fn a_long_wait_that_the_backend_asks_for_is_seen_survives_the_daemon_and_can_be_cut_short() {
    let calm = Arc::new(AtomicBool::new(false));
    let is_calm = calm.clone();
    let brain = move |_: &Seen| match is_calm.load(Relaxed) {
        false => Reply::Http {
            status: 429,
            headers: vec![("retry-after".into(), "3600".into())],
            body: r#"{"error":{"message":"come back later"}}"#.into(),
        },
        true => Reply::Answer(Turn::say("Here I am.")),
    };
    let backend = Backend::start(brain).await;
    let mut daemon = attentive(&backend.url(), "");
    let run = daemon.submit("hello").await;
    let error = daemon.wait_for_entry(&run.id, "backend_error").await;
    let failed: Value = serde_json::from_str(&error.payload).unwrap();
    let wait = failed["retry_at"].as_i64().unwrap() / 1_000_000 - error.time.unwrap().seconds;
    assert!((3598..=3602).contains(&wait), "{wait}");
    daemon.kill();
    daemon.restart();
    assert_eq!(daemon.runs().await[0].state(), RunState::WaitingForBackend);
    calm.store(true, Relaxed);
    let resumed = daemon.agentctl(&["run", "resume", &run.id]).await;
    assert!(resumed.status.success(), "{resumed:?}");
    let story = daemon.story(&run.id).await;
    assert_eq!(story.run.answer, "Here I am.");
    assert_eq!(story.payloads("model_request").len(), 2);
}

/// Writes a file in each of twenty turns, whatever comes between, and then says so.
fn steps(seen: &Seen) -> Turn {
    match seen.turn {
        turn @ 1..=20 => {
            Turn::call("write_file", json!({"path": format!("{turn}.txt"), "content": "x"}))
        }
        _ => Turn::say("Twenty."),
    }
}

/// One answer in twenty is none, in one of five ways, by the dice.
fn faulty(dice: &Mutex<Dice>, seen: &Seen) -> Reply {
    let mut dice = dice.lock().unwrap();
    let http =
        |status, body: &str| Reply::Http { status, headers: Vec::new(), body: body.to_owned() };
    match dice.below(100) {
        0 => Reply::Http {
            status: 429,
            headers: vec![("retry-after-ms".into(), "50".into())],
            body: "{}".into(),
        },
        1 => http(500, r#"{"error":{"message":"oops"}}"#),
        2 => Reply::Cut { turn: steps(seen), events: 3 },
        3 => http(200, "<html>It works!</html>"),
        4 => http(200, r#"{"id":"resp_1","object":"response","status":"completed","outp"#),
        _ => Reply::Answer(steps(seen)),
    }
}

#[tokio::test]
async fn of_thirty_runs_of_twenty_steps_none_fails_where_one_answer_in_twenty_is_none() {
    let dice = Mutex::new(Dice::of_seed(5));
    let backend = Backend::start(move |seen: &Seen| faulty(&dice, seen)).await;
    let daemon = attentive(&backend.url(), "");
    let runs = spread(&daemon, 30).await;
    let mut failed_requests = 0;
    for (place, run) in runs.iter().enumerate() {
        let story = daemon.story(run).await;
        assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
        assert_eq!(story.outputs().len(), 20, "each step was done once");
        failed_requests += story.payloads("backend_error").len();
        let files = std::fs::read_dir(daemon.workspace().join(place.to_string())).unwrap().count();
        assert_eq!(files, 20);
        story.assert_calls_are_tied();
    }
    assert!(failed_requests > 10, "control: {failed_requests} of about 630 requests failed");
    backend.assert_paired();
}

/// So many runs, each with a workspace of its own.
async fn spread(daemon: &TestDaemon, count: usize) -> Vec<String> {
    let mut runs = Vec::new();
    for number in 0..count {
        let workspace = daemon.workspace().join(number.to_string());
        std::fs::create_dir_all(&workspace).unwrap();
        let workspace = workspace.to_str().unwrap().to_owned();
        let request = v1::CreateRunRequest { workspace, ..daemon.request("twenty steps") };
        runs.push(daemon.create(request).await.unwrap().run.unwrap().id);
    }
    runs
}

#[tokio::test]
async fn under_a_backend_that_goes_up_and_down_no_run_is_lost_and_no_step_done_twice() {
    let rounds = std::env::var("AGENTD_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    let place = Place::new();
    let daemon = attentive(&place.url(), "");
    let mut dice = Dice::of_seed(6);
    for _ in 0..rounds {
        up_and_down(&daemon, &place, &mut dice).await;
    }
    assert!(daemon.audit().await.intact);
}

/// Fifty runs of twenty steps, and a backend that goes down six times meanwhile, or as often as they take.
async fn up_and_down(daemon: &TestDaemon, place: &Place, dice: &mut Dice) {
    const DOWNS: u32 = 6;
    let runs = spread(daemon, 50).await;
    let mut downs = 0;
    let (_last, _tasks) = loop {
        let (server, tasks) = place.serve(|seen: &Seen| Reply::Answer(steps(seen))).await;
        if downs == DOWNS {
            break (server, tasks);
        }
        tokio::time::sleep(Duration::from_millis(100 + dice.below(300))).await;
        kill(tasks).await;
        downs += 1;
        tokio::time::sleep(Duration::from_millis(dice.below(300))).await;
    };
    let mut awaited = 0;
    for run in &runs {
        let story = daemon.story(run).await;
        assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
        let called = story.payloads("tool_call");
        let once: HashSet<String> =
            called.iter().map(|called| called["call"].to_string()).collect();
        assert_eq!((called.len(), once.len()), (20, 20), "each step once");
        story.assert_calls_are_tied();
        awaited += story.payloads("backend_awaited").len() + story.payloads("backend_error").len();
    }
    assert!(awaited > 10, "control: they felt it, {awaited} times");
}

#[tokio::test]
async fn each_agent_asks_the_backend_and_the_model_that_the_configuration_gives_it() {
    let local = Backend::start(Script { turns: vec![Turn::say("Done by the local one.")] }).await;
    let strong = Backend::start(|seen: &Seen| {
        Reply::Answer(Turn::say(match seen.task.starts_with("Plan") {
            true => r#"{"steps": [{"intent": "answer", "tools": [], "check": "there is one"}]}"#,
            false => r#"{"verdict": "accept", "findings": [], "reason": "there is one"}"#,
        }))
    })
    .await;
    let configuration = format!(
        "backends:\n  strong: {{base_url: '{}', model: large, profile: openai}}\n\
         agents:\n  planner: {{backend: strong, temperature: 0.5}}\n  reviewer: {{backend: strong, model: larger, reasoning_effort: high}}\n",
        strong.url()
    );
    let daemon = attentive(&local.url(), &configuration);
    let request = v1::CreateRunRequest {
        agent: "default".into(),
        model: "small".into(),
        ..daemon.request("Answer.")
    };
    let run = daemon.create(request).await.unwrap().run.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!(
        (story.state(), story.run.answer.as_str()),
        (RunState::Succeeded, "Done by the local one.")
    );
    let asked = |backend: &Backend| -> Vec<Value> {
        backend.server.requests().iter().map(|request| request["model"].clone()).collect()
    };
    assert_eq!(asked(&local), ["small"]);
    assert_eq!(asked(&strong), ["large", "larger"]);
    let of_strong = strong.server.requests();
    assert_eq!(
        (&of_strong[0]["temperature"], &of_strong[1]["reasoning"]["effort"]),
        (&json!(0.5), &json!("high"))
    );
    let schemas: Vec<&Value> =
        of_strong.iter().map(|request| &request["text"]["format"]["name"]).collect();
    assert_eq!(schemas, ["plan", "verdict"]);
    let by: Vec<Value> =
        story.payloads("model_response").iter().map(|answer| answer["backend"].clone()).collect();
    assert_eq!(by, [json!("strong"), Value::Null, json!("strong")]);
    let (_, health) = healthz(&daemon).await;
    let names: Vec<&Value> =
        health["backends"].as_array().unwrap().iter().map(|b| &b["name"]).collect();
    assert_eq!(names, ["default", "strong"]);
}

#[tokio::test]
async fn a_schema_that_the_backend_turns_out_not_to_take_is_left_out_from_then_on() {
    // As old servers are: they refuse what they do not know.
    let brain = |seen: &Seen| match seen.has_shape {
        true => Reply::Http {
            status: 400,
            headers: Vec::new(),
            body: r#"{"error":{"message":"'text.format' of type 'json_schema' is not supported"}}"#
                .into(),
        },
        false if seen.task.starts_with("Plan") => {
            Reply::Answer(Turn::say(r#"{"steps": [{"intent": "a", "tools": [], "check": "b"}]}"#))
        }
        false if seen.task.starts_with("Review") => {
            Reply::Answer(Turn::say(r#"{"verdict": "accept", "findings": [], "reason": ""}"#))
        }
        false => Reply::Answer(Turn::say("Done.")),
    };
    let backend =
        Backend::start_as(brain, agentd::scripted::Manner { kind: Kind::OpenAi, ..manner() }).await;
    let daemon = attentive(&backend.url(), "");
    let request = v1::CreateRunRequest { agent: "default".into(), ..daemon.request("Answer.") };
    let run = daemon.create(request).await.unwrap().run.unwrap();
    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert_eq!(story.payloads("backend_error"), Vec::<Value>::new());
    let shaped =
        backend.server.requests().iter().filter(|request| request.get("text").is_some()).count();
    assert_eq!(shaped, 1);
}
