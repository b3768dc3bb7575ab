//! Bad input ends in a clear error with a stable reason, and loses nothing. What is not here stands with
//! its subject: unknown ids and workspaces in `submissions`, files and trees in `tools`, schemas in
//! `declared`, configurations in `configuration`, tokens and second daemons in `access`.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::{ffi::OsStringExt as _, fs::PermissionsExt as _},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use agentd::{
    client::Client,
    proto::v1::{self, BusyWorkspace, RunState},
    scripted::{Reply, Script, Seen, Turn},
};
use serde_json::{Value, json};
use tonic::{Code, Status, codegen::http::uri::PathAndQuery};
use tonic_types::StatusExt as _;

use crate::support::{Backend, Settings, TestDaemon, not_checked, refusal};

/// The run that was there before stands as it ended, and the journal is intact.
async fn nothing_is_lost(daemon: &TestDaemon, earlier: &v1::Run) {
    let now = daemon.wait(&earlier.id).await;
    assert_eq!((now.state(), &now.answer), (earlier.state(), &earlier.answer));
    assert!(daemon.audit().await.intact);
}

async fn cancel(daemon: &TestDaemon, id: &str) -> v1::Run {
    let request = v1::CancelRunRequest { id: id.into(), why: String::new() };
    daemon.client().await.runs().cancel_run(request).await.unwrap();
    daemon.wait(id).await
}

#[tokio::test]
async fn a_task_of_100_mib_is_refused_and_the_daemon_goes_on() {
    let backend = Backend::start(Script { turns: vec![Turn::say("fine")] }).await;
    let daemon = TestDaemon::start(&backend.url());
    let earlier = daemon.carry_out("first").await.run;
    let error = daemon.create(daemon.request(&"x".repeat(100 << 20))).await.unwrap_err();
    assert!(matches!(error.code(), Code::OutOfRange | Code::ResourceExhausted), "{error:?}");
    let error = daemon.create(daemon.request(&"x".repeat((1 << 20) + 1))).await.unwrap_err();
    assert_eq!(refusal(&error), (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
    assert!(error.message().contains("1 MiB is accepted"), "{error:?}");
    nothing_is_lost(&daemon, &earlier).await;
}

#[tokio::test]
async fn a_workspace_that_is_leased_is_refused_to_whom_it_is_not_worth_waiting_for() {
    let brain = |seen: &Seen| match seen.task.contains("hang") {
        true => Reply::Hang,
        false => Reply::Answer(Turn::say("fine")),
    };
    let backend = Backend::start(brain).await;
    let daemon = TestDaemon::start(&backend.url());
    let holder = daemon.submit("hang on to it").await;
    daemon.wait_for_entry(&holder.id, "model_request").await;
    daemon.put("sub/file", "");
    let refuse = |workspace: String| v1::CreateRunRequest {
        workspace,
        when_workspace_busy: BusyWorkspace::Refuse.into(),
        ..daemon.request("now or never")
    };
    let here = daemon.workspace().display().to_string();
    for workspace in [here.clone(), format!("{here}/sub")] {
        let error = daemon.create(refuse(workspace)).await.unwrap_err();
        assert_eq!(refusal(&error), (Code::FailedPrecondition, "WORKSPACE_BUSY".into()));
    }
    let waiting = daemon.submit("I can wait").await;
    assert_eq!(waiting.state(), RunState::Queued);
    cancel(&daemon, &holder.id).await;
    assert_eq!(daemon.wait(&waiting.id).await.state(), RunState::Succeeded);
    assert!(daemon.audit().await.intact);
}

/// A server that answers every request by hand. Gives its base URL.
fn server(answer: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 65536]);
                answer(stream);
            });
        }
    });
    format!("http://{address}/v1")
}

/// Reason and message of the first failed request of a run against a backend; then the run is cancelled,
/// and nothing of it is lost.
async fn first_failure(base_url: &str) -> (String, String, TestDaemon) {
    let daemon = TestDaemon::start(base_url);
    let request = v1::CreateRunRequest { model: "m".into(), ..daemon.request("ask") };
    let run = daemon.create(request).await.unwrap().run.unwrap();
    let entry = daemon.wait_for_entry(&run.id, "backend_error").await;
    let payload: Value = serde_json::from_str(&entry.payload).unwrap();
    let text = |key: &str| payload[key].as_str().unwrap().to_owned();
    let ended = cancel(&daemon, &run.id).await;
    assert_eq!((ended.state(), ended.task.as_str()), (RunState::Cancelled, "ask"));
    assert!(daemon.audit().await.intact);
    (text("reason"), text("message"), daemon)
}

/// Why a run waits for a backend that does not work; then it is cancelled, and nothing of it is lost.
async fn awaited(base_url: &str) -> (String, TestDaemon) {
    let daemon = TestDaemon::start(base_url);
    let run = daemon.create(daemon.request("ask")).await.unwrap().run.unwrap();
    let entry = daemon.wait_for_entry(&run.id, "backend_awaited").await;
    let payload: Value = serde_json::from_str(&entry.payload).unwrap();
    assert_eq!(daemon.runs().await[0].state(), RunState::WaitingForBackend);
    let ended = cancel(&daemon, &run.id).await;
    assert_eq!((ended.state(), ended.task.as_str()), (RunState::Cancelled, "ask"));
    assert!(daemon.audit().await.intact);
    (payload["why"].as_str().unwrap().to_owned(), daemon)
}

#[tokio::test]
async fn a_backend_that_answers_html_is_told_apart_from_a_model() {
    let page = "<html><body>It works!</body></html>";
    let base_url = server(move |mut stream| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length";
        let _ = write!(stream, "{head}: {}\r\n\r\n{page}", page.len());
    });
    let (reason, message, _) = first_failure(&base_url).await;
    assert_eq!(reason, "BACKEND_PROTOCOL", "{message}");
    assert!(message.contains(&base_url), "it names the backend: {message}");
}

#[tokio::test]
async fn a_backend_that_answers_nothing_is_waited_for() {
    let base_url = server(drop);
    let (why, _) = awaited(&base_url).await;
    assert!(why.contains(&base_url), "{why}");
}

#[tokio::test]
async fn an_unreachable_backend_is_waited_for_and_the_message_says_where_it_should_be() {
    let (message, daemon) = awaited("http://127.0.0.1:9/v1").await;
    let usage = daemon.runs().await[0].usage.unwrap();
    assert_eq!(usage.turns_of_unknown_cost, 0, "what was never sent cost nothing");
    assert!(message.contains("http://127.0.0.1:9/v1"), "{message}");
}

#[tokio::test]
async fn a_backend_that_answers_a_gibibyte_is_cut_off_and_costs_no_memory() {
    const WHOLE: u64 = 1 << 30;
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let base_url = server(move |mut stream| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
        let _ = write!(stream, "{head}: {WHOLE}\r\n\r\n{{\"x\": \"");
        let chunk = [b'x'; 1 << 16];
        while count.load(Ordering::Relaxed) < WHOLE && stream.write_all(&chunk).is_ok() {
            count.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    });
    let (reason, message, daemon) = first_failure(&base_url).await;
    assert_eq!(reason, "BACKEND_PROTOCOL", "{message}");
    assert!(sent.load(Ordering::Relaxed) < WHOLE / 4, "it was read to the end");
    let status = format!("/proc/{}/status", daemon.pid().as_raw_nonzero());
    let status = fs::read_to_string(status).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").trim().parse().unwrap();
    assert!(peak < 200 << 10, "{peak} KiB at the most");
}

#[tokio::test]
async fn a_run_id_that_is_no_id_of_no_run_or_not_utf_8_is_refused() {
    let daemon = TestDaemon::start("http://127.0.0.1:9");
    let get = async |id: &str| {
        let request = v1::GetRunRequest { id: id.into() };
        refusal(&daemon.client().await.runs().get_run(request).await.unwrap_err())
    };
    let unknown = get("0199b3c4-5d6e-7f80-8a9b-0c1d2e3f4a5b").await;
    assert_eq!(unknown, (Code::NotFound, "RUN_NOT_FOUND".into()));
    let odd = get("\u{fffd}\u{0}").await;
    assert_eq!(odd, (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
    let bytes = std::ffi::OsString::from_vec(vec![0xff, 0xfe]);
    let output = daemon.agentctl_command().args(["run", "get"]).arg(bytes).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let dir = std::ffi::OsString::from_vec(b"/tmp/\xff".to_vec());
    let mut submit = daemon.agentctl_command();
    let output = submit.args(["run", "submit", "x", "--workspace"]).arg(dir).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not UTF-8"), "{output:?}");
}

/// CreateRunRequest by a client that does not look at its text.
#[derive(Clone, PartialEq, prost::Message)]
struct LooseRequest {
    #[prost(bytes = "vec", tag = "1")]
    task: Vec<u8>,
    #[prost(string, tag = "2")]
    workspace: String,
}

#[tokio::test]
async fn a_task_that_is_not_utf_8_is_refused_and_makes_no_run() {
    let daemon = TestDaemon::start("http://127.0.0.1:9");
    let endpoint = tonic::transport::Endpoint::from_shared(daemon.tcp.clone()).unwrap();
    let mut client = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
    let token = fs::read_to_string(daemon.token_file()).unwrap();
    let workspace = daemon.workspace().display().to_string();
    let mut send = async |task: &[u8]| {
        client.ready().await.unwrap();
        let message = LooseRequest { task: task.to_vec(), workspace: workspace.clone() };
        let mut request = tonic::Request::new(message);
        let bearer = format!("Bearer {}", token.trim()).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let path = PathAndQuery::from_static("/agentd.v1.RunService/CreateRun");
        let codec = tonic_prost::ProstCodec::<LooseRequest, v1::CreateRunResponse>::default();
        client.unary(request, path, codec).await
    };
    send(b"a task").await.expect("control: text is taken");

    let error = send(b"a t\xe2sk").await.unwrap_err();

    assert_eq!(refusal(&error), (Code::InvalidArgument, "MALFORMED_REQUEST".into()));
    assert!(error.message().contains("UTF-8"), "{error:?}");
    assert_eq!(daemon.runs().await.len(), 1);
    assert!(daemon.audit().await.intact);
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named_and_left_as_it_is() {
    let mut daemon = TestDaemon::start("http://127.0.0.1:9");
    daemon.stop();
    let locked = daemon.home().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
    fs::write(daemon.home().join("file"), "mine").unwrap();
    let mut places = vec![daemon.home().join("file")];
    match rustix::process::geteuid().is_root() {
        // Modes do not bind root; a mount would.
        true => not_checked("a state directory that is read-only by its mode (this user is root)"),
        false => places.push(locked.join("state")),
    }
    for place in places {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentd"));
        command.arg("serve").arg("--state-dir").arg(&place).args([
            "--listen",
            "127.0.0.1:0",
            "--http-listen",
            "127.0.0.1:0",
        ]);
        refused_state(command, place.to_str().unwrap());
    }
    assert_eq!(fs::read_to_string(daemon.home().join("file")).unwrap(), "mine");
}

fn refused_state(mut command: Command, place: &str) {
    let output = command.env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(place) && said.contains("--state-dir"), "{said}");
}

/// In a mount namespace of its own, which goes away with it.
fn unshared(setup: &str, serve: &Command) -> Command {
    in_shell(&format!("{setup} && exec \"$@\""), serve)
}

/// The same, with a shell that stays until the daemon has ended, and ends as it did.
fn unshared_kept(setup: &str, serve: &Command) -> Command {
    in_shell(&format!("{setup} && {{ \"$@\"; exit $?; }}"), serve)
}

fn in_shell(script: &str, serve: &Command) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(serve.get_program());
    command.args(serve.get_args());
    command
}

fn may_mount() -> bool {
    let tried =
        Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    let may = tried.is_ok_and(|output| output.status.success());
    if !may {
        not_checked("file systems that are full or read-only (this user may mount none)");
    }
    may
}

#[test]
fn a_read_only_file_system_under_the_state_directory_is_named() {
    if !may_mount() {
        return;
    }
    let mut daemon = TestDaemon::start("http://127.0.0.1:9");
    daemon.stop();
    let state = daemon.state().display().to_string();
    let setup = format!("mount --bind '{state}' '{state}' && mount -o remount,bind,ro '{state}'");
    let command = unshared(&setup, &daemon.command());
    refused_state(command, &state);
    daemon.restart();
}

#[tokio::test]
async fn a_full_disk_under_the_workspace_fails_the_call_and_leaves_the_file_as_it_was() {
    if !may_mount() {
        return;
    }
    let turns = vec![
        Turn::call("write_file", json!({"path": "small", "content": "first"})),
        Turn::call("write_file", json!({"path": "small", "content": "x".repeat(400 << 10)})),
        Turn::call("read_file", json!({"path": "small"})),
        Turn::say("the disk is full"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.stop();
    let workspace = daemon.workspace();
    let setup = format!("mount -t tmpfs -o size=256k none '{}'", workspace.display());
    assert!(daemon.boot_as(unshared(&setup, &daemon.command())));
    let story = daemon.carry_out("fill it").await;
    let heard = story.outputs();
    assert_eq!(heard[0].0, "done");
    assert_eq!(heard[1].1["error"]["reason"], "DISK_FULL", "{}", heard[1].1);
    assert_eq!(heard[2].1["content"], "first", "the file is as it was");
    assert_eq!(story.state(), RunState::Succeeded);
    assert!(daemon.audit().await.intact);
}

/// Fills the store with runs that wait, and have long tasks, until one is refused. Gives the ids of those that
/// were accepted, and the refusal.
async fn fill(daemon: &TestDaemon, client: &Client) -> (Vec<String>, Status) {
    let mut accepted: Vec<String> = Vec::new();
    loop {
        let task = format!("{} {}", accepted.len(), "x".repeat(100_000));
        match client.runs().create_run(daemon.request(&task)).await {
            Ok(created) => accepted.push(created.into_inner().run.unwrap().id),
            Err(refusal) => return (accepted, refusal),
        }
        assert!(accepted.len() < 1000, "the disk is never full");
    }
}

#[tokio::test]
async fn a_full_disk_under_the_store_stops_the_daemon_and_loses_nothing_that_was_acknowledged() {
    if !may_mount() {
        return;
    }
    let brain = |seen: &Seen| match seen.task.contains("hang") {
        true => Reply::Hang,
        false => Reply::Answer(Turn::say("fine")),
    };
    let backend = Backend::start(brain).await;
    let mut daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        // Submissions go on until the store itself finds no room.
        configuration: "limits: {free_disk_mib: 0}\n".into(),
        ..Settings::default()
    });
    daemon.stop();
    let (state, kept) = (daemon.state(), daemon.home().join("kept"));
    let (here, there) = (state.display(), kept.display());
    // A small disk under the state directory, whose content outlives it. Nobody outside sees what is on it,
    // so that it is given a token that is known.
    let setup = format!(
        "cp -a {here}/token {there}/ && mount -t tmpfs -o size=3m,mode=700 none {here} &&
         cp -a {there}/token {here}/ && trap 'cp -a {here}/. {there}/' EXIT"
    );
    fs::create_dir(&kept).unwrap();
    let mut command = unshared_kept(&setup, &daemon.command());
    command.stderr(fs::File::create(daemon.home().join("last-words")).unwrap());
    assert!(daemon.boot_as(command));
    let client = daemon.tcp_client(Some(daemon.token_file())).await;
    // It hangs on to the workspace, and writes nothing more.
    let first = client.runs().create_run(daemon.request("hang")).await.unwrap().into_inner();
    let first = first.run.unwrap().id;
    backend.wait_for_requests(1).await;
    let following =
        v1::StreamRunEventsRequest { id: first.clone(), after_sequence: 0, follow: true };
    let mut followed = client.runs().stream_run_events(following).await.unwrap().into_inner();

    let (accepted, refused) = fill(&daemon, &client).await;

    assert_eq!(refusal(&refused), (Code::Unavailable, "STORE_FAILED".into()));
    assert!(refused.message().contains("full"), "{refused:?}");
    assert!(refused.get_details_retry_info().is_some(), "it may be tried again: {refused:?}");
    assert!(accepted.len() > 5, "control: there was room for some");
    let farewell = async {
        loop {
            if let Err(farewell) = followed.message().await.map(Option::unwrap) {
                return farewell;
            }
        }
    };
    assert_eq!(refusal(&farewell.await), (Code::Unavailable, "STORE_FAILED".into()));
    assert_eq!(daemon.exit_code().await, Some(1), "it acknowledges nothing more");
    let said = fs::read_to_string(daemon.home().join("last-words")).unwrap();
    assert!(said.contains("full; check the disk, then start agentd again"), "{said}");
    // On a disk with room, all of them are there and are carried out.
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&kept, &state).unwrap();
    daemon.restart();
    cancel(&daemon, &first).await;
    for id in &accepted {
        assert_eq!(daemon.wait(id).await.state(), RunState::Succeeded);
    }
    assert_eq!(daemon.runs().await.len(), accepted.len() + 1);
    assert!(daemon.audit().await.intact);
}
