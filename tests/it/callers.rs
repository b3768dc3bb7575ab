//! Callers besides the owner: what each role may call, whose runs a submitter sees, what a caller may
//! name, and which callers a daemon does not start with.

use std::{fs, os::unix::fs::symlink};

use agentd::{
    client::{Address, Client},
    domain::access::Role,
    proto::{DESCRIPTORS, v1},
    scripted::{Reply, Seen, Turn},
    tasks,
};
use prost::Message as _;
use serde_json::json;
use tonic::{Code, Status, codegen::http::uri::PathAndQuery, metadata::MetadataValue};

use crate::support::{Backend, Settings, TestDaemon, agentctl, refusal};

const CALLERS: [(&str, Role); 5] = [
    ("eve", Role::Viewer),
    ("sam", Role::Submitter),
    ("tom", Role::Submitter),
    ("ann", Role::Approver),
    ("root", Role::Admin),
];

fn token(name: &str) -> String {
    format!("token-of-{name}-0123456789")
}

/// A daemon with all of `CALLERS`. Their tokens lie outside of the workspace.
struct Office {
    daemon: TestDaemon,
    tokens: tempfile::TempDir,
    _backend: Backend,
}

impl Office {
    async fn open() -> Self {
        Self::open_with(Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await)
    }

    fn open_with(backend: Backend) -> Self {
        let tokens = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
        let at = tokens.path().display();
        let mut callers = String::from("callers:\n");
        for (name, role) in CALLERS {
            callers += &format!("  - {{name: {name}, role: {role}, token_file: {at}/{name}}}\n");
        }
        for (name, _) in CALLERS {
            fs::write(tokens.path().join(name), format!("{}\n", token(name))).unwrap();
        }
        let settings =
            Settings { base_url: backend.url(), configuration: callers, ..Settings::default() };
        Self { daemon: TestDaemon::start_with(settings), tokens, _backend: backend }
    }

    async fn client(&self, name: &str) -> Client {
        let token_file = Some(self.tokens.path().join(name));
        Client::connect(&Address { uri: self.daemon.tcp.clone(), token_file }).await.unwrap()
    }

    async fn submit(&self, name: &str) -> v1::Run {
        let request = self.daemon.request("say something");
        let answer = self.client(name).await.runs().create_run(request).await.unwrap();
        answer.into_inner().run.unwrap()
    }

    /// What a method answers this caller to a message that is encoded already.
    async fn call(&self, name: &str, method: &str, message: Vec<u8>) -> Result<(), Status> {
        let endpoint = tonic::transport::Endpoint::from_shared(self.daemon.tcp.clone()).unwrap();
        let mut client = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
        client.ready().await.unwrap();
        let mut request = tonic::Request::new(Raw(message));
        let bearer = MetadataValue::try_from(format!("Bearer {}", token(name))).unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let path = PathAndQuery::try_from(method).unwrap();
        let answer = client.server_streaming(request, path, RawCodec).await?;
        answer.into_inner().message().await.map(drop)
    }
}

/// Bytes as they are: for methods that the test knows by their descriptors only.
struct Raw(Vec<u8>);

#[derive(Default)]
struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Raw;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Raw;
    type Error = Status;

    fn encode(&mut self, item: Raw, to: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &item.0);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, Status> {
        bytes::Buf::advance(from, bytes::Buf::remaining(from));
        Ok(Some(()))
    }
}

/// Every method of ours: its path, and the number of the field of its request that holds a run's id.
fn methods() -> Vec<(String, Option<i32>)> {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let ours: Vec<_> = set.file.iter().filter(|file| file.package() == "agentd.v1").collect();
    let field_of = |message: &str| {
        let named =
            |field: &&prost_types::FieldDescriptorProto| ["id", "run_id"].contains(&field.name());
        let messages = ours.iter().flat_map(|file| &file.message_type);
        let found =
            messages.into_iter().find(|one| format!(".agentd.v1.{}", one.name()) == message);
        found.unwrap().field.iter().find(named).map(prost_types::FieldDescriptorProto::number)
    };
    let mut found = Vec::new();
    for service in ours.iter().flat_map(|file| &file.service) {
        for method in &service.method {
            let path = format!("/agentd.v1.{}/{}", service.name(), method.name());
            found.push((path, field_of(method.input_type())));
        }
    }
    found
}

/// A message that holds nothing but this text in this field.
fn message(field: Option<i32>, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(field) = field {
        prost::encoding::string::encode(
            u32::try_from(field).unwrap(),
            &text.to_owned(),
            &mut bytes,
        );
    }
    bytes
}

/// What submitters do, and what is for admins alone.
const STEERING: [&str; 11] = [
    "CreateRun",
    "ForkRun",
    "CancelRun",
    "PauseRun",
    "ResumeRun",
    "SendRunInput",
    "ReloadPolicy",
    "Drain",
    "ProbeBackend",
    "BackupDatabase",
    "PruneRuns",
];

/// What approvers do.
const DECIDING: [&str; 3] = ["ResolveToolCall", "ApproveToolCall", "DenyToolCall"];

#[tokio::test]
async fn each_role_may_call_what_is_its_and_is_told_which_roles_may_call_the_rest() {
    let office = Office::open().await;
    // Said here once more, in other words than the table's: only changes of it are for few.
    let denied = |name: &str, method: &str| match name {
        "eve" => STEERING.iter().chain(&DECIDING).any(|one| method.contains(one)),
        "ann" => STEERING.iter().filter(|one| **one != "ResumeRun").any(|one| method.contains(one)),
        "sam" | "tom" => [
            "VerifyAudit",
            "ListAuditEntries",
            "StreamAuditEntries",
            "ExportAudit",
            "GetConfig",
            "ValidatePolicy",
            "TestPolicy",
            "ReloadPolicy",
            "Drain",
            "ProbeBackend",
            "BackupDatabase",
            "PruneRuns",
            "ListPolicyRevisions",
        ]
        .iter()
        .chain(&DECIDING)
        .any(|one| method.contains(one)),
        _ => false,
    };
    for (name, role) in CALLERS {
        for (method, _) in methods() {
            match office.call(name, &method, Vec::new()).await {
                Err(status) if status.code() == Code::PermissionDenied => {
                    assert!(denied(name, &method), "{name} {method}: {status:?}");
                    assert_eq!(refusal(&status).1, "ROLE_DENIED");
                    let words = status.message();
                    assert!(words.contains(&format!("role {role} may not call")), "{words}");
                    assert!(words.contains(&method[1..]), "{words}");
                    assert!(words.contains("admin"), "{words}");
                }
                Ok(()) => assert!(!denied(name, &method), "{name} {method}"),
                Err(status) => {
                    assert!(!denied(name, &method), "{name} {method}: {status:?}");
                    assert_eq!(status.code(), Code::InvalidArgument, "{name} {method}: {status:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_method_that_no_table_knows_reaches_nothing_whoever_calls() {
    let office = Office::open().await;
    let unknown = "/agentd.v1.RunService/DropEverything";

    for name in ["eve", "root"] {
        let status = office.call(name, unknown, Vec::new()).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::Unimplemented, "UNKNOWN_METHOD".into()));
    }
    let status = office.call("nobody", unknown, Vec::new()).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Unauthenticated, "WRONG_TOKEN".into()));
}

#[tokio::test]
async fn a_run_of_another_is_to_a_submitter_as_one_that_never_was() {
    let office = Office::open().await;
    let (own, other) = (office.submit("sam").await, office.submit("tom").await);
    assert_eq!(own.submitter, "caller:sam");
    let never = "00000000-0000-7000-8000-000000000000";
    let mut asked = 0;

    for (method, field) in methods() {
        let Some(_) = field else { continue };
        // Not for a submitter, whosever the run is.
        if DECIDING.iter().any(|one| method.ends_with(one)) {
            continue;
        }
        asked += 1;
        let call = async |id: &str| office.call("sam", &method, message(field, id)).await;
        let (hidden, unknown) = (call(&other.id).await, call(never).await);
        let (hidden, unknown) = (hidden.unwrap_err(), unknown.unwrap_err());
        assert_eq!(refusal(&hidden), (Code::NotFound, "RUN_NOT_FOUND".into()), "{method}");
        assert_eq!(refusal(&unknown), refusal(&hidden), "{method}");
        let words = |status: &Status, id: &str| status.message().replace(id, "ID");
        assert_eq!(words(&hidden, &other.id), words(&unknown, never), "{method}");
        // The control: its own run is there.
        match call(&own.id).await {
            Ok(()) => {}
            Err(status) => assert_ne!(status.code(), Code::NotFound, "{method}: {status:?}"),
        }
    }
    assert!(asked >= 6, "{asked}");
    let listed = async |name: &str| {
        let request = v1::ListRunsRequest::default();
        let runs = office.client(name).await.runs().list_runs(request).await.unwrap();
        // Its own run was forked on the way.
        let runs = runs.into_inner().runs.into_iter().filter(|run| run.forked_from.is_none());
        let mut runs: Vec<_> = runs.map(|run| run.id).collect();
        runs.sort();
        runs
    };
    let mut both = vec![own.id.clone(), other.id.clone()];
    both.sort();
    assert_eq!(listed("sam").await, [own.id]);
    assert_eq!(listed("tom").await, [other.id]);
    for name in ["eve", "ann", "root"] {
        assert_eq!(listed(name).await, both, "{name}");
    }
}

#[tokio::test]
async fn the_same_request_id_of_two_callers_makes_two_runs() {
    let office = Office::open().await;
    let request = v1::CreateRunRequest { request_id: "same".into(), ..office.daemon.request("x") };
    let create = async |name: &str| {
        let client = office.client(name).await;
        let answer = client.runs().create_run(request.clone()).await.unwrap().into_inner();
        (answer.existed, answer.run.unwrap().id)
    };

    let (first, second, again) = (create("sam").await, create("tom").await, create("sam").await);

    assert!(!first.0 && !second.0 && again.0);
    assert!(first.1 != second.1 && again.1 == first.1);
}

#[tokio::test]
async fn what_a_caller_may_name_is_limited_and_a_link_does_not_widen_it() {
    let home = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
    let limited = format!(
        "  - {{name: limited, role: submitter, token_file: TOKENS/limited, workspaces: [{}], \
         agents: [reviewer]}}\n  - {{name: placed, role: submitter, token_file: TOKENS/placed, \
         workspaces: [{}]}}\n",
        home.path().display(),
        home.path().display()
    );
    // The workspace root is the daemon's own home: nothing of it is below the callers' directory.
    let backend = Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await;
    let tokens = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
    for name in ["limited", "placed"] {
        fs::write(tokens.path().join(name), token(name)).unwrap();
    }
    let at = tokens.path().display().to_string();
    let configuration = format!("callers:\n{}", limited.replace("TOKENS", &at));
    let settings = Settings { base_url: backend.url(), configuration, ..Settings::default() };
    let daemon = TestDaemon::start_with(settings);
    symlink(daemon.workspace(), home.path().join("link")).unwrap();
    let create = async |name: &str, workspace: String, agent: &str| {
        let token_file = Some(tokens.path().join(name));
        let client = daemon.tcp_client(token_file).await;
        let agent = agent.to_owned();
        let request = v1::CreateRunRequest { workspace, agent, ..daemon.request("x") };
        client.runs().create_run(request).await.map(drop)
    };
    let own = daemon.workspace().display().to_string();
    let link = home.path().join("link").display().to_string();

    for (name, workspace, agent, allowed) in [
        ("limited", &own, "", "reviewer".to_owned()),
        ("limited", &own, "executor", "reviewer".to_owned()),
        ("placed", &own, "", home.path().display().to_string()),
        ("placed", &link, "", home.path().display().to_string()),
        ("placed", &format!("{own}/not-there"), "", home.path().display().to_string()),
    ] {
        let status = create(name, workspace.clone(), agent).await.unwrap_err();
        assert_eq!(refusal(&status), (Code::PermissionDenied, "POLICY_DENIED".into()));
        let words = status.message();
        assert!(words.contains(&format!("allowed: {allowed}")), "{words}");
    }
    assert_eq!(daemon.runs().await, []);
}

#[tokio::test]
async fn a_caller_works_in_its_own_directory_and_below() {
    let backend = Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await;
    let root = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
    fs::create_dir_all(root.path().join("mine/below")).unwrap();
    fs::create_dir_all(root.path().join("mine-not")).unwrap();
    fs::write(root.path().join("placed"), token("placed")).unwrap();
    let at = root.path().display();
    let configuration = format!(
        "callers:\n  - {{name: placed, role: submitter, token_file: {at}/placed, \
         workspaces: [{at}/mine], agents: [executor]}}\n"
    );
    let settings = Settings { base_url: backend.url(), configuration, ..Settings::default() };
    let daemon = TestDaemon::start_in(settings, root.path());
    let client = daemon.tcp_client(Some(root.path().join("placed"))).await;
    let create = async |workspace: &str| {
        let workspace = root.path().join(workspace).display().to_string();
        let request = v1::CreateRunRequest { workspace, ..daemon.request("x") };
        client.runs().create_run(request).await.map(drop)
    };

    for workspace in ["mine", "mine/below", "mine/../mine/below"] {
        create(workspace).await.unwrap_or_else(|status| panic!("{workspace}: {status:?}"));
    }
    for workspace in ["mine-not", ".", "mine/../mine-not"] {
        let status = create(workspace).await.unwrap_err();
        assert_eq!(refusal(&status).1, "POLICY_DENIED", "{workspace}");
    }
    // Not even the owner may have tools work where a caller's token lies.
    let workspace = root.path().display().to_string();
    let request = v1::CreateRunRequest { workspace, ..daemon.request("x") };
    let status = daemon.create(request).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
    assert!(status.message().starts_with("workspace: "), "{}", status.message());
}

#[tokio::test]
async fn agentctl_of_a_viewer_reads_and_ends_with_4_where_its_role_says_no() {
    let office = Office::open().await;
    office.submit("sam").await;
    let viewer = async |arguments: &[&str]| {
        let mut command = agentctl(office.daemon.home());
        command.args(["--addr", &office.daemon.tcp, "--token-file"]);
        command.arg(office.tokens.path().join("eve")).args(arguments);
        tasks::blocking(move || command.output()).await.unwrap().unwrap()
    };

    let listed = viewer(&["run", "list", "-o", "json"]).await;
    let refused = viewer(&["run", "submit", "x"]).await;

    assert!(listed.status.success(), "{listed:?}");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("caller:sam"), "{listed:?}");
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("(ROLE_DENIED)"), "{refused:?}");
}

#[tokio::test]
async fn tokens_of_callers_are_redacted_and_no_tool_reads_them() {
    let backend = Backend::start(|seen: &Seen| match seen.outputs.len() {
        0 => Reply::Answer(Turn::call("read_file", json!({"path": "secret"}))),
        _ => Reply::Answer(Turn::say(&format!("it is {}", token("sam")))),
    })
    .await;
    let office = Office::open_with(backend);
    symlink(office.tokens.path().join("sam"), office.daemon.workspace().join("secret")).unwrap();

    let story = office.daemon.carry_out(&format!("my token is {}", token("tom"))).await;

    assert_eq!(story.run.answer, "it is [redacted]");
    assert_eq!(story.run.task, "my token is [redacted]");
    assert!(!format!("{:?}", story.entries).contains("token-of-"));
    assert_ne!(story.outputs()[0].0, "done", "{:?}", story.outputs());
    assert!(!office.daemon.log().contains("token-of-"));
}

#[tokio::test]
async fn callers_that_cannot_be_told_apart_are_refused_at_boot() {
    let backend = Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await;
    let home = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
    let at = home.path().display();
    fs::write(home.path().join("a"), token("a")).unwrap();
    fs::write(home.path().join("b"), token("a")).unwrap();
    fs::write(home.path().join("short"), "0123456789").unwrap();
    for (callers, words) in [
        (
            format!(
                "[{{name: a, role: admin, token_file: {at}/a}}, {{name: b, role: viewer, token_file: {at}/b}}]"
            ),
            "same token",
        ),
        (format!("[{{name: a, role: admin, token_file: {at}/short}}]"), "10 characters"),
        (format!("[{{name: a, role: admin, token_file: {at}/none}}]"), "cannot be opened"),
        (format!("[{{name: A, role: admin, token_file: {at}/a}}]"), "is not a name"),
        (format!("[{{name: a, role: king, token_file: {at}/a}}]"), "king"),
        (format!("[{{name: a, role: admin, token_file: {at}/a, rights: all}}]"), "rights"),
    ] {
        let configuration = format!("callers: {callers}\n");
        let settings = Settings { base_url: backend.url(), configuration, ..Settings::default() };
        let said = TestDaemon::refused(settings);
        assert!(said.contains(words), "{words}: {said}");
        assert!(!said.contains("token-of-"), "{said}");
    }
}
