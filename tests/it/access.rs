//! Who may call, and what lies open: tokens on TCP, modes of files, one owner of a state directory, and
//! what the daemon refuses to start with.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Stdio},
};

use agentd::{
    domain::journal::DaemonStopped,
    policy_files::{DEFAULT_PATHS, DEFAULT_TOOLS},
    ports::EntryView,
    proto::{DESCRIPTORS, v1, v1::RunState},
    scripted::{Reply, Seen, Turn},
    sqlite,
};
use prost::Message as _;
use rusqlite::Connection;
use tempfile::TempDir;
use tonic::{
    Code, Status,
    codegen::http::uri::PathAndQuery,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb;

use crate::support::{Backend, TestDaemon, exited, refusal, wait_until};

async fn talkative() -> Backend {
    Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await
}

async fn channel(daemon: &TestDaemon) -> Channel {
    Endpoint::from_shared(daemon.tcp.clone()).unwrap().connect().await.unwrap()
}

/// Paths of all methods of agentd's own services.
fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut methods = Vec::new();
    for file in set.file.iter().filter(|file| file.package() == "agentd.v1") {
        for service in &file.service {
            let name = service.name();
            methods
                .extend(service.method.iter().map(|m| format!("/agentd.v1.{name}/{}", m.name())));
        }
    }
    assert!(methods.len() >= 8, "{methods:?}");
    methods
}

/// What a method answers to an empty message with this `authorization`.
async fn call(channel: &Channel, method: &str, authorization: Option<&str>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let mut request = tonic::Request::new(());
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", MetadataValue::try_from(value).unwrap());
    }
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = PathAndQuery::try_from(method).unwrap();
    let answer = client.server_streaming(request, path, codec).await?;
    answer.into_inner().message().await.map(drop)
}

// Callers.

/// What a daemon that stopped in order wrote last, before the head that signs it.
fn last_words(daemon: &TestDaemon) -> EntryView {
    let mut entries = sqlite::views_of_file(&daemon.database()).unwrap();
    assert_eq!(entries.pop().unwrap().kind, "head_signed");
    entries.pop().unwrap()
}

#[tokio::test]
async fn over_tcp_no_method_answers_without_the_token() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let channel = channel(&daemon).await;
    let token = fs::read_to_string(daemon.token_file()).unwrap().trim().to_owned();
    assert!(token.len() >= 32);
    let longer = format!("Bearer {token}0");
    let shorter = format!("Bearer {}", &token[1..]);
    let basic = format!("Basic {token}");

    for method in methods() {
        for (authorization, reason) in [
            (None, "NO_TOKEN"),
            (Some(""), "NO_TOKEN"),
            (Some(token.as_str()), "NO_TOKEN"),
            (Some(basic.as_str()), "NO_TOKEN"),
            (Some("Bearer "), "WRONG_TOKEN"),
            (Some("Bearer 0"), "WRONG_TOKEN"),
            (Some(longer.as_str()), "WRONG_TOKEN"),
            (Some(shorter.as_str()), "WRONG_TOKEN"),
        ] {
            let status = call(&channel, &method, authorization).await.expect_err(&method);
            let expected = (Code::Unauthenticated, reason.to_owned());
            assert_eq!(refusal(&status), expected, "{method} {authorization:?}");
            assert!(status.message().contains("token"), "it says where the token lies");
            assert!(!format!("{status:?}").contains(&token), "and does not tell it");
        }
    }
    for service in ["grpc.reflection.v1", "grpc.reflection.v1alpha"] {
        let method = format!("/{service}.ServerReflection/ServerReflectionInfo");
        let status = call(&channel, &method, None).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::Unauthenticated, "NO_TOKEN".into()));
    }
    assert_eq!(daemon.runs().await, [], "and nothing was done");
}

#[tokio::test]
async fn with_the_token_every_method_lets_the_caller_in() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let channel = channel(&daemon).await;
    let token = fs::read_to_string(daemon.token_file()).unwrap();
    let bearer = format!("Bearer {}", token.trim());

    for method in methods() {
        match call(&channel, &method, Some(&bearer)).await {
            Ok(()) => {}
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{method}: {status:?}"),
        }
    }
}

#[tokio::test]
async fn a_run_can_be_submitted_and_waited_for_over_tcp() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let client = daemon.tcp_client(Some(daemon.token_file())).await;

    let created = client.runs().create_run(daemon.request("over tcp")).await.unwrap().into_inner();
    let request = v1::WaitRunRequest { id: created.run.unwrap().id, timeout: None };
    let answer = client.runs().wait_run(request).await.unwrap().into_inner();

    assert_eq!(answer.run.unwrap().state(), RunState::Succeeded);
}

#[tokio::test]
async fn a_token_of_one_daemon_is_wrong_for_another() {
    let backend = talkative().await;
    let (one, other) = (TestDaemon::start(&backend.url()), TestDaemon::start(&backend.url()));
    let client = one.tcp_client(Some(other.token_file())).await;

    let status = client.runs().list_runs(v1::ListRunsRequest::default()).await.unwrap_err();

    assert_eq!(refusal(&status), (Code::Unauthenticated, "WRONG_TOKEN".into()));
}

#[tokio::test]
async fn health_is_told_to_everyone_over_tcp_and_through_the_socket() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let mut tcp = HealthClient::new(channel(&daemon).await);
    let mut socket = daemon.client().await.health();

    for service in ["", "liveness", "readiness", "startup", "agentd.v1.RunService"] {
        let request = HealthCheckRequest { service: service.into() };
        let over_tcp = tcp.check(request.clone()).await.unwrap().into_inner();
        let through_socket = socket.check(request).await.unwrap().into_inner();
        assert_eq!(over_tcp.status(), ServingStatus::Serving, "{service}");
        assert_eq!(over_tcp, through_socket);
    }
    let request = HealthCheckRequest { service: "nonsense".into() };
    assert_eq!(tcp.check(request).await.unwrap_err().code(), Code::NotFound);
}

/// The services that both versions of reflection list.
#[tokio::test]
async fn reflection_lists_every_service_in_both_of_its_versions() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let socket =
        || async { Endpoint::from_shared(daemon.socket()).unwrap().connect().await.unwrap() };

    let request = pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(pb::v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut client = pb::v1::server_reflection_client::ServerReflectionClient::new(socket().await);
    let mut answers =
        client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let pb::v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = answer
    else {
        panic!("{answer:?}")
    };
    let mut v1: Vec<String> = list.service.into_iter().map(|service| service.name).collect();

    let request = pb::v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            pb::v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut client =
        pb::v1alpha::server_reflection_client::ServerReflectionClient::new(socket().await);
    let mut answers =
        client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let pb::v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list) =
        answer
    else {
        panic!("{answer:?}")
    };
    let mut v1alpha: Vec<String> = list.service.into_iter().map(|service| service.name).collect();

    v1.sort();
    v1alpha.sort();
    let own = ["AdminService", "AuditService", "RunService"].map(|s| format!("agentd.v1.{s}"));
    for name in own.iter().map(String::as_str).chain(["grpc.health.v1.Health"]) {
        assert!(v1.iter().any(|listed| listed == name), "{name} is not in {v1:?}");
        assert!(v1alpha.iter().any(|listed| listed == name), "{name} is not in {v1alpha:?}");
    }
}

// Files.

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|_| panic!("{}", path.display())).permissions().mode()
        & 0o7777
}

#[tokio::test]
async fn nobody_but_the_owner_can_read_or_call_through_the_state_directory() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.carry_out("leave something behind").await;

    assert_eq!(mode(&daemon.state()), 0o700);
    let files = fs::read_dir(daemon.state()).unwrap().flatten().map(|entry| entry.path());
    let mut found: Vec<(String, u32)> = files
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), mode(&path)))
        .collect();
    found.sort();
    for name in ["agentd.db", "agentd.sock", "seal.key", "token"] {
        assert!(found.iter().any(|(file, _)| file == name), "{name} is not in {found:?}");
    }
    for (name, mode) in &found {
        let expected = if daemon.state().join(name).is_dir() { 0o700 } else { 0o600 };
        assert_eq!(*mode, expected, "{name} in {found:?}");
    }
    assert_eq!(fs::metadata(daemon.state().join("seal.key")).unwrap().size(), 32);
}

#[tokio::test]
async fn token_and_key_are_made_once() {
    let backend = talkative().await;
    let mut daemon = TestDaemon::start(&backend.url());
    let read = |daemon: &TestDaemon| {
        let state = daemon.state();
        (fs::read(state.join("token")).unwrap(), fs::read(state.join("seal.key")).unwrap())
    };
    let before = read(&daemon);

    daemon.restart();

    assert_eq!(read(&daemon), before);
    let other = TestDaemon::start(&backend.url());
    assert_ne!(read(&other).0, before.0, "each daemon has its own");
    assert_ne!(read(&other).1, before.1, "each daemon has its own");
}

// What it does not start with.

/// A place for a daemon that is not meant to start.
fn scratch() -> TempDir {
    let home = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
    fs::create_dir_all(home.path().join("policies")).unwrap();
    fs::write(home.path().join("policies/tools.yaml"), DEFAULT_TOOLS).unwrap();
    fs::write(home.path().join("policies/paths.yaml"), DEFAULT_PATHS).unwrap();
    fs::write(home.path().join("agentd.yaml"), "").unwrap();
    home
}

fn serve(home: &TempDir, listen: &str) -> Command {
    let home = home.path();
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentd"));
    command
        .args(["serve", "--listen", listen, "--http-listen", "127.0.0.1:0"])
        .arg("--config")
        .arg(home.join("agentd.yaml"))
        .arg("--policy-dir")
        .arg(home.join("policies"))
        .arg("--state-dir")
        .arg(home.join("state"))
        .arg("--workspace-root")
        .arg(home)
        .env_clear()
        .env("HOME", home);
    command
}

/// Exit code and last words of a daemon that refuses to start.
fn refused(mut command: Command) -> (Option<i32>, String) {
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut child = child;
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let code = exited(child);
    assert_eq!(std::io::read_to_string(&mut stdout).unwrap(), "", "it never was ready");
    (code, std::io::read_to_string(&mut stderr).unwrap())
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_directory_says_whose_it_is_and_what_to_do() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let mut second = daemon.command();
    second.stderr(Stdio::piped());

    let (code, words) = refused(second);

    assert_eq!(code, Some(1), "{words}");
    let state = daemon.state().display().to_string();
    assert!(words.contains("another agentd") && words.contains(&state), "{words}");
    assert!(words.contains("--state-dir"), "{words}");
    let story = daemon.carry_out("the first is unharmed").await;
    assert_eq!(story.state(), RunState::Succeeded);
}

#[test]
fn an_address_that_others_can_reach_is_refused_before_anything_is_made() {
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:7080"] {
        let home = scratch();
        let (code, words) = refused(serve(&home, listen));
        assert_eq!(code, Some(78), "{listen}: {words}");
        let ip = listen.parse::<SocketAddr>().unwrap().ip();
        assert!(words.contains(&ip.to_string()) && words.contains("loopback"), "{words}");
        assert!(!home.path().join("state").exists());
        assert_ne!(ip, IpAddr::from([127, 0, 0, 1]));
    }
}

#[test]
fn a_policy_with_an_unknown_key_is_refused_with_file_line_and_column() {
    for (file, text) in [("tools.yaml", DEFAULT_TOOLS), ("paths.yaml", DEFAULT_PATHS)] {
        let home = scratch();
        let path = home.path().join("policies").join(file);
        fs::write(&path, format!("{text}\nallow_everything: true\n")).unwrap();

        let (code, words) = refused(serve(&home, "127.0.0.1:0"));

        assert_eq!(code, Some(78), "{words}");
        let line = text.lines().count() + 2;
        let place = format!("{}:{line}:1: ", path.display());
        assert!(words.contains(&place) && words.contains("allow_everything"), "{place}\n{words}");
    }
}

#[test]
fn a_configuration_with_an_unknown_key_is_refused_with_file_line_and_column() {
    let home = scratch();
    let path = home.path().join("agentd.yaml");
    fs::write(&path, "log: info\nlimits:\n  running_rums: 1\n").unwrap();

    let (code, words) = refused(serve(&home, "127.0.0.1:0"));

    assert_eq!(code, Some(78), "{words}");
    assert!(words.contains(&format!("{}:3:3: ", path.display())), "{words}");
    assert!(words.contains("running_rums") && words.contains("running_runs"), "{words}");
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_and_left_untouched() {
    let backend = talkative().await;
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.carry_out("something to lose").await;
    daemon.stop();
    let connection = Connection::open(daemon.database()).unwrap();
    connection
        .execute("UPDATE refinery_schema_history SET version = 9999 WHERE version = 1", [])
        .unwrap();
    drop(connection);
    let before = fs::read(daemon.database()).unwrap();

    let mut command = daemon.command();
    command.stderr(Stdio::piped());
    let (code, words) = refused(command);

    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("newer agentd") && words.contains("9999"), "{words}");
    assert!(fs::read(daemon.database()).unwrap() == before, "not a byte of it has changed");
}

#[test]
fn a_database_of_somebody_else_is_refused_and_left_untouched() {
    let plain = "CREATE TABLE contacts (name TEXT); INSERT INTO contacts VALUES ('Ada');";
    let branded = "PRAGMA application_id = 252006673;";
    for sql in [plain, branded] {
        let home = scratch();
        fs::create_dir(home.path().join("state")).unwrap();
        let path = home.path().join("state/agentd.db");
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let before = fs::read(&path).unwrap();

        let (code, words) = refused(serve(&home, "127.0.0.1:0"));

        assert_eq!(code, Some(1), "{words}");
        assert!(words.contains("not agentd's") && words.contains("agentd.db"), "{words}");
        assert!(fs::read(&path).unwrap() == before, "not a byte of it has changed: {sql}");
    }
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_untouched() {
    let home = scratch();
    fs::create_dir(home.path().join("state")).unwrap();
    let path = home.path().join("state/agentd.db");
    let poem = "This is a poem and no database.\n".repeat(100);
    fs::write(&path, &poem).unwrap();

    let (code, words) = refused(serve(&home, "127.0.0.1:0"));

    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("agentd.db"), "{words}");
    assert_eq!(fs::read_to_string(&path).unwrap(), poem);
}

// How it ends.

#[tokio::test]
async fn sigterm_ends_streams_with_draining_and_leaves_the_journal_in_order() {
    let backend = Backend::start(|_: &Seen| Reply::Hang).await;
    let mut daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("never ends").await;
    let request =
        v1::StreamRunEventsRequest { id: run.id.clone(), after_sequence: 0, follow: true };
    let mut stream =
        daemon.client().await.runs().stream_run_events(request).await.unwrap().into_inner();
    backend.wait_for_requests(1).await;

    daemon.terminate();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if all had been said"),
            Err(status) => break status,
        }
    };
    let code = daemon.exit_code().await;

    assert_eq!(refusal(&status), (Code::Unavailable, "DRAINING".into()));
    assert_eq!(code, Some(0), "{}", daemon.log());
    let last = last_words(&daemon);
    let stopped =
        serde_json::to_string(&DaemonStopped { why: "SIGTERM".into(), is_unexamined: false })
            .unwrap();
    assert_eq!((last.kind.as_str(), last.payload), ("daemon_stopped", stopped));
    assert_eq!(sqlite::verify_file(&daemon.database(), Vec::new()).unwrap().faults, []);
    assert!(!daemon.state().join("agentd.sock").exists(), "nobody is behind it any more");
}

#[tokio::test]
async fn what_was_under_way_when_the_daemon_was_stopped_goes_on_with_the_next_one() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let backend = Backend::start(move |_: &Seen| {
        match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Reply::Hang,
            _ => Reply::Answer(Turn::say("better late")),
        }
    })
    .await;
    let mut daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("stopped midway").await;
    backend.wait_for_requests(1).await;
    daemon.terminate();
    assert_eq!(daemon.exit_code().await, Some(0));

    daemon.restart();

    let story = daemon.story(&run.id).await;
    assert_eq!((story.state(), story.run.answer.as_str()), (RunState::Succeeded, "better late"));
}

#[tokio::test]
async fn a_signal_to_interrupt_stops_it_as_well() {
    let backend = talkative().await;
    let mut daemon = TestDaemon::start(&backend.url());
    rustix::process::kill_process(daemon.pid(), rustix::process::Signal::INT).unwrap();
    assert_eq!(daemon.exit_code().await, Some(0));
    let last = last_words(&daemon);
    assert_eq!(last.payload, r#"{"why":"SIGINT"}"#);
    wait_until("the socket is gone", || !daemon.state().join("agentd.sock").exists()).await;
}
