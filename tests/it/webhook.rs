//! Whoever is to be told of questions to people is: signed, at least once, again only while it makes sense, and without
//! anybody waiting for it. The receiver is a server of the test.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Seen, Turn},
    tasks::Tasks,
};
use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::support::{Backend, Settings, TestDaemon, not_checked, wait_until};

const ASKS: &str =
    "  - {id: test.asks, argv: [sh, asks.sh], decision: require_approval, why: it publishes}\n";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// One request to the receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Post {
    path: String,
    id: String,
    timestamp: String,
    signature: String,
    body: String,
}

impl Post {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The task of the run that asks.
    fn task(&self) -> String {
        self.json()["data"]["task"].as_str().unwrap().to_owned()
    }

    /// What it is signed with, recomputed by other code than the daemon's.
    fn expected_signature(&self) -> String {
        let key = BASE64_STANDARD.decode(&SECRET["whsec_".len()..]).unwrap();
        let padded = |with: u8| -> Vec<u8> {
            let padding = std::iter::repeat_n(0, 64 - key.len());
            key.iter().copied().chain(padding).map(|byte| byte ^ with).collect()
        };
        let signed = format!("{}.{}.{}", self.id, self.timestamp, self.body);
        let inner = Sha256::new().chain_update(padded(0x36)).chain_update(signed).finalize();
        let outer = Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize();
        format!("v1,{}", BASE64_STANDARD.encode(outer))
    }
}

/// How the receiver answers.
#[derive(Debug, Clone)]
enum Answer {
    Status(u16),
    /// With a header.
    With(u16, &'static str, String),
    Never,
}

/// Says how a post is answered, by the post and by how often its question came before.
type Manner = Arc<dyn Fn(&Post, usize) -> Answer + Send + Sync>;

struct Receiver {
    url: String,
    posts: Arc<Mutex<Vec<Post>>>,
    manner: Arc<Mutex<Manner>>,
    _tasks: Tasks,
}

impl Receiver {
    async fn start(manner: impl Fn(&Post, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook/planted-path", listener.local_addr().unwrap());
        let posts = Arc::<Mutex<Vec<Post>>>::default();
        let manner: Arc<Mutex<Manner>> = Arc::new(Mutex::new(Arc::new(manner)));
        let app = Router::new().fallback(receive).with_state((posts.clone(), manner.clone()));
        let tasks = Tasks::default();
        tasks.spawn("receiver", async move { axum::serve(listener, app).await.unwrap() });
        Self { url, posts, manner, _tasks: tasks }
    }

    fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }

    /// Posts about runs with this task.
    fn about(&self, task: &str) -> Vec<Post> {
        self.posts().into_iter().filter(|post| post.task() == task).collect()
    }

    async fn wait_for(&self, task: &str, count: usize) -> Vec<Post> {
        wait_until(&format!("{count} posts about {task}"), || self.about(task).len() >= count)
            .await;
        self.about(task)
    }

    /// Answers otherwise from now on.
    fn answer(&self, manner: impl Fn(&Post, usize) -> Answer + Send + Sync + 'static) {
        *self.manner.lock().unwrap() = Arc::new(manner);
    }
}

type Shared = (Arc<Mutex<Vec<Post>>>, Arc<Mutex<Manner>>);

async fn receive(State((posts, manner)): State<Shared>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let header =
        |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let (id, timestamp, signature) =
        (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
    let path = head.uri.path().to_owned();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let answer = note(&posts, &manner, Post { path, id, timestamp, signature, body });
    let status = |status| StatusCode::from_u16(status).unwrap();
    match answer {
        Answer::Status(code) => status(code).into_response(),
        Answer::With(code, name, value) => (status(code), [(name, value)]).into_response(),
        Answer::Never => std::future::pending().await,
    }
}

/// Remembers a post. Gives the answer to it.
fn note(posts: &Mutex<Vec<Post>>, manner: &Mutex<Manner>, post: Post) -> Answer {
    let manner = manner.lock().unwrap().clone();
    let mut posts = posts.lock().unwrap();
    let before = posts.iter().filter(|earlier| earlier.id == post.id).count();
    posts.push(post.clone());
    manner(&post, before)
}

/// A daemon whose runs ask once, unless their task is `quick`; and who is told of it.
struct Office {
    daemon: TestDaemon,
    receiver: Receiver,
    _secret: tempfile::TempDir,
    _backend: Backend,
}

fn reply(seen: &Seen) -> Reply {
    Reply::Answer(match (&*seen.task, seen.turn) {
        ("quick", _) => Turn::say("done"),
        (task, 1) => Turn::call("shell_exec", json!({"command": ["sh", "asks.sh", task]})),
        _ => Turn::say("done"),
    })
}

fn configuration(url: &str, secret: &tempfile::TempDir) -> String {
    let path = secret.path().join("secret");
    fs::write(&path, format!("{SECRET}\n")).unwrap();
    format!("approvals: {{webhook: {{url: '{url}', secret: {{file: {}}}}}}}\n", path.display())
}

impl Office {
    async fn open(manner: impl Fn(&Post, usize) -> Answer + Send + Sync + 'static) -> Self {
        let (backend, receiver) = (Backend::start(reply).await, Receiver::start(manner).await);
        let secret = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
        let daemon = TestDaemon::start_with(Settings {
            base_url: backend.url(),
            configuration: configuration(&receiver.url, &secret),
            commands: ASKS.into(),
            environment: vec![("OPENAI_API_KEY".into(), "planted-5f3c9a-key".into())],
            ..Settings::default()
        });
        daemon.put("asks.sh", "echo ran >>ran\n");
        Self { daemon, receiver, _secret: secret, _backend: backend }
    }

    /// Submits a run that asks, and waits until it does.
    async fn ask(&self, task: &str) -> v1::Run {
        let run = self.daemon.submit(task).await;
        let run = self.daemon.wait(&run.id).await;
        let is_asking = run.state() == RunState::AwaitingApproval;
        assert!(is_asking, "{task}: {run:?}\n{}", self.daemon.log());
        run
    }

    async fn pending(&self) -> Vec<v1::PendingApproval> {
        let request = v1::ListPendingApprovalsRequest::default();
        let page = self.daemon.client().await.runs().list_pending_approvals(request).await;
        page.unwrap().into_inner().approvals
    }

    async fn approve(&self, run: &v1::Run) {
        let asked = self.pending().await.into_iter().find(|asked| asked.run_id == run.id).unwrap();
        let request = v1::ApproveToolCallRequest {
            run_id: asked.run_id,
            turn: asked.turn,
            index: asked.index,
            digest: asked.digest,
            ..Default::default()
        };
        self.daemon.client().await.runs().approve_tool_call(request).await.unwrap();
    }

    /// Payloads of the daemon's own entries of a kind, oldest first.
    async fn noted(&self, kind: &str) -> Vec<Value> {
        let filter = v1::AuditFilter { kinds: vec![kind.into()], ..Default::default() };
        let (filter, page_size) = (Some(filter), 500);
        let request = v1::ListAuditEntriesRequest { filter, page_size, ..Default::default() };
        let page = self.daemon.client().await.audit().list_audit_entries(request).await.unwrap();
        let entries = page.into_inner().entries;
        entries.iter().map(|entry| serde_json::from_str(&entry.payload).unwrap()).collect()
    }

    /// Waits until so many entries of a kind are on disk.
    async fn wait_for_noted(&self, kind: &str, count: usize) -> Vec<Value> {
        let noted = async {
            loop {
                let noted = self.noted(kind).await;
                if noted.len() >= count {
                    return noted;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(crate::support::PATIENCE, noted)
            .await
            .expect("no such entries in time")
    }
}

/// Whether the example of the documentation takes it; none where there is no Python.
fn example_takes(post: &Post, secret: &str) -> Option<bool> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/howto/receive-a-webhook.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, example) = page.split_once("```python\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let script = format!(
        "{example}\nimport json, sys\ngiven = json.load(sys.stdin)\n\
         print(is_from_agentd(given['secret'], given['headers'], given['body'].encode()))\n"
    );
    let mut python = Command::new("python3");
    python.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = python.spawn().ok()?;
    let headers = json!({
        "webhook-id": post.id, "webhook-timestamp": post.timestamp,
        "webhook-signature": post.signature
    });
    let given = json!({"secret": secret, "headers": headers, "body": post.body}).to_string();
    child.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(output.stdout == b"True\n")
}

#[tokio::test]
async fn a_question_is_posted_once_with_all_that_the_list_says_and_a_signature_that_verifies() {
    let office = Office::open(|_, _| Answer::Status(204)).await;
    let run = office.ask("publish it").await;
    let told = office.wait_for_noted("webhook_delivered", 1).await;
    let posts = office.receiver.posts();
    let post = &posts[0];
    assert_eq!(post.signature, post.expected_signature());
    match example_takes(post, SECRET) {
        Some(taken) => {
            assert!(taken, "the example of the documentation");
            let forged = Post { body: post.body.replace("publish", "destroy"), ..post.clone() };
            assert_eq!(example_takes(&forged, SECRET), Some(false), "control");
        }
        None => not_checked("the example of docs/howto/receive-a-webhook.md: there is no python3"),
    }

    let listed = office.pending().await.remove(0);
    let body = post.json();
    assert_eq!(body["type"], "approval.requested");
    assert_eq!(body["timestamp"], body["data"]["create_time"]);
    for (key, value) in [
        ("run_id", json!(listed.run_id)),
        ("call", json!("1.0")),
        ("turn", json!(listed.turn)),
        ("index", json!(listed.index)),
        ("call_id", json!(listed.call_id)),
        ("tool", json!(listed.tool)),
        ("arguments", json!(listed.arguments)),
        ("facts", json!(listed.facts)),
        ("effect_class", json!(listed.effect_class)),
        ("attempt", json!(listed.attempt)),
        ("rule", json!("test.asks")),
        ("why", json!("it publishes")),
        ("policy_revision", json!(listed.policy_revision)),
        ("digest", json!(listed.digest)),
        ("submitter", json!(listed.submitter)),
        ("task", json!("publish it")),
        ("workspace", json!(listed.workspace)),
        ("is_truncated", json!(false)),
        ("is_redacted", json!(false)),
    ] {
        assert_eq!(body["data"][key], value, "{key}");
    }
    let position = told[0]["position"].as_u64().unwrap();
    let noted = json!({"run_id": run.id, "call": "1.0", "position": position, "attempts": 1,
                       "http_status": 204});
    assert_eq!(told, [noted]);
    assert!(post.id.starts_with(&format!("{}-{position}-", run.id)), "{}", post.id);

    office.ask("another").await;
    office.wait_for_noted("webhook_delivered", 2).await;
    let tasks: Vec<String> = office.receiver.posts().iter().map(Post::task).collect();
    assert_eq!(tasks, ["publish it", "another"], "each once");
    assert!(office.daemon.audit().await.intact);
}

#[tokio::test]
async fn a_receiver_that_cannot_take_it_at_first_gets_it_again_with_the_same_id() {
    let office = Office::open(|_, before| match before {
        0 => Answer::Status(500),
        1 => Answer::With(503, "retry-after", "1".into()),
        _ => Answer::Status(200),
    })
    .await;
    office.ask("publish it").await;
    let told = office.wait_for_noted("webhook_delivered", 1).await;
    assert_eq!((&told[0]["attempts"], &told[0]["http_status"]), (&json!(3), &json!(200)));
    let posts = office.receiver.posts();
    assert_eq!(posts.len(), 3);
    for post in &posts {
        assert_eq!((&post.id, &post.body), (&posts[0].id, &posts[0].body));
        assert_eq!(post.signature, post.expected_signature());
    }
    let moment = |post: &Post| post.timestamp.parse::<u64>().unwrap();
    assert!(moment(&posts[2]) > moment(&posts[1]), "a second passed, as it was asked for");
}

#[tokio::test]
async fn a_question_that_was_answered_or_cancelled_meanwhile_is_not_told_any_more() {
    let office = Office::open(|post, _| match &*post.task() {
        "unheard" => Answer::Status(500),
        _ => Answer::With(429, "retry-after", "1".into()),
    })
    .await;
    let (answered, cancelled) = (office.ask("answered").await, office.ask("cancelled").await);
    office.receiver.wait_for("answered", 1).await;
    office.receiver.wait_for("cancelled", 1).await;
    office.approve(&answered).await;
    office.daemon.cancel(&cancelled.id).await;
    assert_eq!(office.daemon.wait(&answered.id).await.state(), RunState::Succeeded);
    assert_eq!(office.daemon.wait(&cancelled.id).await.state(), RunState::Cancelled);
    office.ask("unheard").await;
    // By then what was on its way has arrived; and what follows takes longer than the others were put off for.
    office.receiver.wait_for("unheard", 2).await;
    let others =
        |office: &Office| ["answered", "cancelled"].map(|task| office.receiver.about(task).len());
    let before = others(&office);
    office.receiver.wait_for("unheard", 4).await;
    assert_eq!(others(&office), before);
    assert_eq!(office.noted("webhook_delivered").await, [json!(null); 0]);
}

#[tokio::test]
async fn what_a_receiver_refuses_for_good_is_noted_and_not_told_again_by_the_next_daemon_either() {
    let mut office = Office::open(|post, _| match &*post.task() {
        "unwanted" => Answer::Status(410),
        _ => Answer::Status(202),
    })
    .await;
    let run = office.ask("unwanted").await;
    let noted = office.wait_for_noted("webhook_refused", 1).await;
    let position = noted[0]["position"].as_u64().unwrap();
    let refused = json!({"run_id": run.id, "call": "1.0", "position": position, "attempts": 1,
                         "http_status": 410, "reason": "the receiver answered with HTTP status 410"});
    assert_eq!(noted, [refused]);
    assert_eq!(office.daemon.stop(), Some(0));
    office.daemon.restart();
    office.ask("wanted").await;
    office.wait_for_noted("webhook_delivered", 1).await;
    let tasks: Vec<String> = office.receiver.posts().iter().map(Post::task).collect();
    assert_eq!(tasks, ["unwanted", "wanted"]);
    assert_eq!(office.pending().await.len(), 2, "people are asked all the same");
}

#[tokio::test]
async fn across_deaths_every_question_arrives_and_what_arrived_is_not_told_again() {
    let mut office = Office::open(|post, _| match &*post.task() {
        "heard" => Answer::Status(204),
        _ => Answer::Status(503),
    })
    .await;
    office.ask("heard").await;
    office.wait_for_noted("webhook_delivered", 1).await;
    for n in 0..3 {
        office.ask(&format!("unheard {n}")).await;
        office.receiver.wait_for(&format!("unheard {n}"), 1).await;
    }
    office.daemon.kill();
    let ids = |office: &Office| -> BTreeSet<String> {
        office.receiver.posts().into_iter().map(|post| post.id).collect()
    };
    let before = ids(&office);
    assert_eq!(before.len(), 4);
    office.receiver.answer(|_, _| Answer::Status(200));
    office.daemon.restart();
    office.wait_for_noted("webhook_delivered", 4).await;
    assert_eq!(ids(&office), before, "a question keeps its id");

    let posts = office.receiver.posts().len();
    for death in ["stop", "kill"] {
        match death {
            "stop" => assert_eq!(office.daemon.stop(), Some(0)),
            _ => office.daemon.kill(),
        }
        office.daemon.restart();
        office.ask(death).await;
        office.receiver.wait_for(death, 1).await;
        let told = if death == "stop" { 5 } else { 6 };
        office.wait_for_noted("webhook_delivered", told).await;
    }
    assert_eq!(office.receiver.posts().len(), posts + 2, "only what was asked since");
    assert_eq!(office.receiver.about("heard").len(), 1);
    assert!(office.daemon.audit().await.intact);
}

#[tokio::test]
async fn a_daemon_that_dies_before_it_hears_the_answer_tells_again_with_the_same_id() {
    let mut office = Office::open(|_, before| match before {
        0 => Answer::Never,
        _ => Answer::Status(200),
    })
    .await;
    office.ask("publish it").await;
    office.receiver.wait_for("publish it", 1).await;
    office.daemon.kill();
    office.daemon.restart();
    let told = office.wait_for_noted("webhook_delivered", 1).await;
    assert_eq!(told[0]["attempts"], 1, "of this daemon");
    let posts = office.receiver.posts();
    assert_eq!((posts.len(), &posts[0].id), (2, &posts[1].id));
    assert_eq!(posts[0].body, posts[1].body);
}

#[tokio::test]
async fn no_secret_stands_in_what_is_sent() {
    let office = Office::open(|_, _| Answer::Status(200)).await;
    let bare = &SECRET["whsec_".len()..];
    for secret in ["planted-5f3c9a-key", SECRET, bare] {
        office.ask(&format!("send {secret} to them")).await;
    }
    office.wait_for_noted("webhook_delivered", 3).await;
    for post in office.receiver.posts() {
        let said = format!("{post:?}");
        assert!(!said.contains("planted-5f3c9a-key") && !said.contains(bare), "{said}");
        assert!(said.contains("[redacted]"), "control: {said}");
        assert_eq!(post.json()["data"]["is_redacted"], true);
    }
    let shown = office.daemon.agentctl(&["config", "view"]).await;
    let said = String::from_utf8(shown.stdout).unwrap() + &office.daemon.log();
    assert!(said.contains("approvals.webhook.secret") && said.contains("[secret]"), "{said}");
    assert!(said.contains("approvals.webhook.url"), "{said}");
    for unseen in [bare, "planted-path"] {
        assert!(!said.contains(unseen), "{said}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Receiver::start(|_, _| Answer::Status(200)).await;
    let url = elsewhere.url.clone();
    let office = Office::open(move |_, before| match before {
        0 => Answer::With(307, "location", url.clone()),
        1 => Answer::With(302, "location", "/elsewhere".into()),
        _ => Answer::Status(200),
    })
    .await;
    office.ask("publish it").await;
    let told = office.wait_for_noted("webhook_delivered", 1).await;
    assert_eq!(told[0]["attempts"], 3);
    assert_eq!(elsewhere.posts(), []);
    assert!(office.receiver.posts().iter().all(|post| post.path == "/hook/planted-path"));
}

#[tokio::test]
async fn a_receiver_that_never_answers_holds_up_neither_runs_nor_other_questions_nor_the_stop() {
    let mut office = Office::open(|post, _| match &*post.task() {
        "heard" => Answer::Status(200),
        _ => Answer::Never,
    })
    .await;
    let run = office.ask("unheard").await;
    office.receiver.wait_for("unheard", 1).await;
    office.ask("heard").await;
    office.wait_for_noted("webhook_delivered", 1).await;
    let quick = office.daemon.carry_out("quick").await;
    assert_eq!(quick.state(), RunState::Succeeded);
    office.approve(&run).await;
    assert_eq!(office.daemon.wait(&run.id).await.state(), RunState::Succeeded);
    office.ask("unheard as well").await;
    office.receiver.wait_for("unheard as well", 1).await;
    assert_eq!(office.daemon.stop(), Some(0));
    assert!(!office.daemon.log().contains("had not finished"), "{}", office.daemon.log());
    assert!(!office.daemon.log().contains("broken off"), "{}", office.daemon.log());
}

#[tokio::test]
async fn more_questions_than_are_looked_at_together_arrive_and_none_of_them_twice() {
    const QUESTIONS: usize = 70;
    let mut office = Office::open(|_, _| Answer::Status(503)).await;
    for n in 0..QUESTIONS {
        office.ask(&format!("question {n}")).await;
    }
    office.daemon.kill();
    office.receiver.answer(|_, _| Answer::Status(200));
    office.daemon.restart();
    let told = office.wait_for_noted("webhook_delivered", QUESTIONS).await;
    let positions: BTreeSet<u64> = told.iter().filter_map(|it| it["position"].as_u64()).collect();
    // By the account of the daemon that told: what the dead one had sent may yet arrive.
    let attempts: Vec<Option<u64>> = told.iter().map(|it| it["attempts"].as_u64()).collect();
    assert_eq!((positions.len(), attempts), (QUESTIONS, vec![Some(1); QUESTIONS]));
    let posts = office.receiver.posts();
    assert_eq!(office.daemon.stop(), Some(0));
    office.daemon.restart();
    office.ask("one more").await;
    office.wait_for_noted("webhook_delivered", QUESTIONS + 1).await;
    assert_eq!(office.receiver.posts().len(), posts.len() + 1);
    assert!(office.daemon.audit().await.intact);
}

#[tokio::test]
async fn a_receiver_that_breaks_the_connection_is_told_again_and_its_path_is_not_logged() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook/planted-path", listener.local_addr().unwrap());
    let backend = Backend::start(reply).await;
    let secret = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: configuration(&url, &secret),
        commands: ASKS.into(),
        environment: vec![("AGENTD_LOG".into(), "debug".into())],
        ..Settings::default()
    });
    daemon.put("asks.sh", "echo ran >>ran\n");
    let run = daemon.submit("publish it").await;
    drop(listener.accept().await.unwrap());
    let (mut stream, _) = listener.accept().await.unwrap();
    // An answer before any of the question would be no HTTP.
    assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    wait_until("it is told", || daemon.log().contains("was told of a question")).await;
    assert!(daemon.log().contains("the webhook was not told"), "{}", daemon.log());
    assert!(!daemon.log().contains("planted-path"), "{}", daemon.log());
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::AwaitingApproval);
}

#[test]
fn what_is_wrong_with_a_webhook_is_told_with_its_place_and_nothing_secret_is_repeated() {
    let home = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
    let put = |name: &str, content: &str| {
        let path = home.path().join(name);
        fs::write(&path, content).unwrap();
        format!("{{file: {}}}", path.display())
    };
    let (good, bare) = (put("good", SECRET), put("bare", "hunter2-hunter2-hunter2-hunter2"));
    let short = put("short", "whsec_aHVudGVyMg==");
    let broken = put("broken", "whsec_hunter2-hunter2-hunter2-hunter2");
    let url = "https://hooks.example.com/hunter2";
    let both = |url: &str, secret: &str| format!("{{url: '{url}', secret: {secret}}}");
    for (webhook, fault) in [
        (both("http://hooks.example.com/hunter2", &good), "approvals.webhook.url: is not https"),
        (both("https://me:hunter2@example.com", &good), "approvals.webhook.url: holds credentials"),
        (both("hooks hunter2", &good), "approvals.webhook.url: is not a URL"),
        (format!("{{url: 7, secret: {good}}}"), "approvals.webhook.url: is a number"),
        (format!("{{url: '{url}'}}"), "approvals.webhook.secret: is missing"),
        (format!("{{secret: {good}}}"), "approvals.webhook.url: is missing"),
        (both(url, "hunter2-hunter2-hunter2-hunter2"), "must name where the secret is"),
        (both(url, "{file: /no/such/secret}"), "/no/such/secret cannot be opened"),
        (both(url, "{env: NO_SUCH_VARIABLE}"), "the variable NO_SUCH_VARIABLE is not set"),
        (both(url, &short), "is a key of 7 bytes, 24 at least are wanted"),
        (both(url, &bare), "does not begin with whsec_"),
        (both(url, &broken), "begins with whsec_, and no base64 follows"),
        (format!("{{url: '{url}', sercet: {good}}}"), "did you mean approvals.webhook.secret?"),
    ] {
        let said = TestDaemon::refused(Settings {
            base_url: "http://127.0.0.1:9".into(),
            configuration: format!("approvals: {{webhook: {webhook}}}\n"),
            ..Settings::default()
        });
        assert!(said.contains(fault), "{fault}\nis not in\n{said}");
        assert!(!said.contains("hunter2"), "{said}");
        assert!(said.contains("agentd.yaml:1:"), "{said}");
    }
}
