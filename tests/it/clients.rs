//! Clients that nobody here wrote, in other languages: every method from generated code, the README's
//! grpcurl lines as pasted, and the judge of proto files, who must also be able to say no.
//!
//! They run where `AGENTD_REAL_PARTS` names the directory that `scripts/real-parts.sh` prints; elsewhere
//! each says NOT CHECKED on stderr. The scripts lie in `python` and `node` beside this file.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use agentd::{
    proto::DESCRIPTORS,
    scripted::{Script, Turn},
    tasks,
};
use prost::Message as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    real_parts::servers::{Parts, parts},
    support::{Backend, TestDaemon},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn run(mut command: Command) -> Output {
    tasks::blocking(move || command.output()).await.unwrap().unwrap()
}

/// `SERVICE/METHOD` of all of ours, sorted.
fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let ours = set.file.iter().filter(|file| file.package() == "agentd.v1");
    let mut methods = Vec::new();
    for service in ours.flat_map(|file| &file.service) {
        methods.extend(service.method.iter().map(|m| format!("{}/{}", service.name(), m.name())));
    }
    methods.sort();
    methods
}

#[derive(Clone, Copy)]
enum Language {
    Python,
    Node,
}

/// The script of a language that calls every method of the proto files in `proto`.
fn every_method(parts: &Parts, language: Language, proto: &Path) -> Command {
    let mut command = match language {
        Language::Python => parts.python_script("every_method.py"),
        Language::Node => parts.node_script("every_method.js"),
    };
    command.arg("--proto").arg(proto);
    command
}

async fn calls_every_method(language: Language, what: &str) {
    let Some(parts) = parts(what) else { return };
    let turns = vec![
        Turn::call("write_file", json!({"path": "a", "content": "hello\n"})),
        Turn::say("done"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    let mut git = Command::new("git");
    git.args(["init", "-q"]).current_dir(daemon.workspace());
    assert!(run(git).await.status.success());
    let mut script = every_method(&parts, language, &Path::new(ROOT).join("proto"));
    script.args(["--address", daemon.tcp.strip_prefix("http://").unwrap()]);
    script.arg("--token-file").arg(daemon.token_file());
    script.arg("--workspace").arg(daemon.workspace());

    let output = run(script).await;

    assert!(output.status.success(), "{}\n{}", text(&output.stderr), daemon.log());
    let called: Vec<String> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(called, methods());
    backend.assert_paired();
}

#[tokio::test]
async fn generated_python_calls_every_method() {
    calls_every_method(Language::Python, "every method from generated Python").await;
}

#[tokio::test]
async fn node_calls_every_method() {
    calls_every_method(Language::Node, "every method from Node").await;
}

/// A copy of the proto files, in which something stands instead of something else.
fn altered(from: &str, to: &str) -> (TempDir, PathBuf) {
    let home = scratch();
    let folder = home.path().join("proto/agentd/v1");
    fs::create_dir_all(&folder).unwrap();
    let mut found = 0;
    for file in fs::read_dir(Path::new(ROOT).join("proto/agentd/v1")).unwrap().flatten() {
        let content = fs::read_to_string(file.path()).unwrap();
        found += content.matches(from).count();
        fs::write(folder.join(file.file_name()), content.replace(from, to)).unwrap();
    }
    assert_eq!(found, 1, "{from:?} stands there once");
    let proto = home.path().join("proto");
    (home, proto)
}

const GET_RUN: &str = "rpc GetRun(GetRunRequest) returns (GetRunResponse);";

#[tokio::test]
async fn a_method_without_an_exercise_fails_each_script_and_so_does_an_exercise_without_a_method() {
    let Some(parts) = parts("that a forgotten method fails the foreign clients") else { return };
    let more = format!("{GET_RUN}\n  rpc FindRun(GetRunRequest) returns (GetRunResponse);");
    for (language, file) in [
        (Language::Python, "tests/it/python/every_method.py"),
        (Language::Node, "tests/it/node/every_method.js"),
    ] {
        for (to, words) in [
            (more.as_str(), format!("add to EXERCISES in {file}: RunService/FindRun")),
            ("", format!("take out of EXERCISES in {file}: RunService/GetRun")),
        ] {
            let (_home, proto) = altered(GET_RUN, to);
            // Nobody listens there, and nothing is called: it fails before.
            let mut script = every_method(&parts, language, &proto);
            script.args([
                "--address",
                "127.0.0.1:1",
                "--workspace",
                "/",
                "--token-file",
                "/dev/null",
            ]);
            let output = run(script).await;
            assert!(!output.status.success());
            assert_eq!(text(&output.stderr).trim(), words);
        }
    }
}

#[tokio::test]
async fn the_grpcurl_lines_of_the_readme_work_as_pasted() {
    let Some(parts) = parts("the README's grpcurl lines") else { return };
    let backend = Backend::start(crate::agents::content).await;
    let daemon = TestDaemon::start(&backend.url());
    let states = scratch();
    symlink(daemon.state(), states.path().join("agentd")).unwrap();
    let mut script = parts.python_script("readme_grpcurl.py");
    script.args(["--address", daemon.tcp.strip_prefix("http://").unwrap(), "--readme"]);
    script.arg(Path::new(ROOT).join("README.md"));
    script.env("XDG_STATE_HOME", states.path()).current_dir(daemon.workspace());

    let output = run(script).await;

    assert!(output.status.success(), "{}", text(&output.stderr));
    let told: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let named: Vec<&str> = told.iter().map(|line| line["method"].as_str().unwrap()).collect();
    assert_eq!(
        named,
        [
            "list",
            "agentd.v1.RunService/ListRuns",
            "agentd.v1.RunService/CreateRun",
            "grpc.health.v1.Health/Check"
        ]
    );
    assert!(told[0]["answer"].as_array().unwrap().contains(&json!("agentd.v1.RunService")));
    assert_eq!(told[3]["answer"], json!({"status": "SERVING"}));
    let run = told[2]["answer"]["run"]["id"].as_str().unwrap();
    assert_eq!(daemon.story(run).await.run.answer, "done");
}

/// `buf` on a copy of the proto files. Gives whether it was content, and what it said.
async fn buf(parts: &Parts, verb: &[&str], from: &str, to: &str) -> (bool, String) {
    let (home, _) = altered(from, to);
    fs::copy(Path::new(ROOT).join("buf.yaml"), home.path().join("buf.yaml")).unwrap();
    let mut command = parts.buf();
    command.args(verb).current_dir(home.path()).env("HOME", home.path());
    let output = run(command).await;
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test]
async fn buf_finds_bad_style_and_a_broken_promise_in_the_proto_files_and_nothing_else() {
    let Some(parts) = parts("the proto files by buf") else { return };
    let baseline = format!("{ROOT}/proto/baseline.binpb");
    let (lint, breaking) = (["lint"], ["breaking", "--against", &baseline]);

    for verb in [lint.as_slice(), &breaking] {
        assert_eq!(buf(&parts, verb, GET_RUN, GET_RUN).await, (true, String::new()), "{verb:?}");
    }
    let bad = GET_RUN.replace("GetRun(", "get_run(");
    let (content, said) = buf(&parts, &lint, GET_RUN, &bad).await;
    assert!(!content && said.contains("should be PascalCase"), "{said}");
    let (content, said) = buf(&parts, &breaking, GET_RUN, "").await;
    assert!(!content && said.contains("Previously present RPC \"GetRun\""), "{said}");
    let field = "uint64 head_sequence = 10;";
    let (content, said) = buf(&parts, &breaking, field, "uint32 head_sequence = 10;").await;
    assert!(!content && said.contains("changed type"), "{said}");
}
