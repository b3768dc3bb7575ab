//! Databases of every schema that was left behind lie in `tests/golden`: this build brings each up to its own, finds
//! nothing lost in it, and goes on with its runs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use agentd::{
    proto::v1::{self, CallResolution, RunState},
    scripted::{Reply, Seen, Turn},
    sqlite::verify_file,
};
use rusqlite::Connection;
use serde_json::json;

use crate::support::{Backend, Settings, TestDaemon};

/// A credential that stands in a task: its views are redacted, its sealed body is not.
const SECRET: &str = "planted-2f5c1e-secret";
/// What a run of each database is, by its label `what`, and how it stood when the daemon was killed.
const RUNS: [(&str, RunState); 5] = [
    ("done", RunState::Succeeded),
    ("cancelled", RunState::Cancelled),
    ("out of budget", RunState::OutOfBudget),
    ("unresolved", RunState::NeedsAttention),
    ("asking", RunState::Executing),
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn what(seen: &Seen) -> &str {
    RUNS.iter().map(|(what, _)| *what).find(|what| seen.task.starts_with(what)).unwrap()
}

fn settings(backend: &Backend) -> Settings {
    let environment = vec![("OPENAI_API_KEY".into(), SECRET.into())];
    Settings { base_url: backend.url(), environment, ..Settings::default() }
}

/// The newest schema that this build has a migration to.
fn newest() -> u32 {
    let names = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).unwrap();
    let number = |name: String| name[1..].split("__").next().unwrap().parse::<u32>().unwrap();
    names.map(|file| number(file.unwrap().file_name().into_string().unwrap())).max().unwrap()
}

#[test]
fn a_database_of_every_schema_before_the_newest_is_kept() {
    for schema in 1..newest() {
        let kept = golden().join(format!("v{schema}/agentd.db"));
        assert!(kept.exists(), "{} is missing: docs/howto/add-a-migration.md", kept.display());
        let database = Connection::open(kept).unwrap();
        let found: u32 = database
            .query_row("SELECT max(version) FROM refinery_schema_history", [], |row| row.get(0))
            .unwrap();
        assert_eq!(found, schema);
    }
}

#[tokio::test]
async fn a_database_of_every_schema_is_brought_up_and_its_runs_go_on() {
    for kept in fs::read_dir(golden()).unwrap() {
        bring_up(&kept.unwrap().path()).await;
    }
}

/// With AGENTD_WRITE_GOLDEN it is kept: docs/howto/add-a-migration.md.
#[tokio::test]
async fn a_database_of_this_schema_is_brought_up_as_well() {
    let home = tempfile::tempdir().unwrap();
    // Paths of workspaces stand in the database: what is kept must not tell of the machine it was made on.
    let (kept, workspace) = match std::env::var_os("AGENTD_WRITE_GOLDEN") {
        Some(_) => (golden().join(format!("v{}", newest())), PathBuf::from("/srv/project")),
        None => (home.path().join("kept"), home.path().join("project")),
    };
    make(&kept, &workspace).await;
    bring_up(&kept).await;
}

async fn bring_up(kept: &Path) {
    let backend = Backend::start(|seen: &Seen| match what(seen) {
        "unresolved" if seen.turn == 1 => panic!("its first turn was answered already"),
        _ => Reply::Answer(Turn::say("done")),
    })
    .await;
    let before = verify_file(&kept.join("agentd.db"), Vec::new()).unwrap();
    assert_eq!(before.faults, [], "{}", kept.display());
    let daemon = TestDaemon::start_from(settings(&backend), kept);
    let version = newest();
    let copy = daemon.state().join(format!("agentd.db.before-v{version}"));
    let is_older = kept.file_name().unwrap() != "kept" && !kept.ends_with(format!("v{version}"));
    assert_eq!(copy.exists(), is_older, "what is migrated is kept as it was");
    if is_older {
        let old = verify_file(&copy, Vec::new()).unwrap();
        assert_eq!((old.faults, old.entries), (vec![], before.entries));
    }

    let after = daemon.audit().await;
    assert!(after.intact && after.entries > before.entries, "{after:?}");
    let list = v1::ListRunsRequest::default();
    let runs = daemon.client().await.runs().list_runs(list).await.unwrap().into_inner().runs;
    assert_eq!(runs.len(), RUNS.len());
    for (name, state) in RUNS {
        let run = runs.iter().find(|run| run.labels["what"] == name).unwrap();
        assert!(!run.task.contains(SECRET) && run.task.contains("[redacted]"), "{}", run.task);
        go_on(&daemon, run, state).await;
    }
    // Whoever goes on with a run reads the whole of it, with the key that lies beside the database.
    assert!(backend.server.requests()[0].to_string().contains(SECRET));
    assert!(daemon.audit().await.intact);
}

async fn go_on(daemon: &TestDaemon, run: &v1::Run, state: RunState) {
    let (run_id, turn) = (run.id.clone(), 1);
    let mut client = daemon.client().await.runs();
    match state {
        RunState::Executing => {}
        RunState::NeedsAttention => {
            assert_eq!(daemon.wait(&run.id).await.state(), state);
            let resolution = CallResolution::DidNotRun.into();
            let request =
                v1::ResolveToolCallRequest { run_id, turn, resolution, ..Default::default() };
            client.resolve_tool_call(request).await.unwrap();
        }
        RunState::OutOfBudget => {
            assert_eq!(run.state(), state);
            let budget = Some(v1::Budget { max_turns: 9, ..Default::default() });
            let request = v1::ResumeRunRequest { id: run_id, budget, ..Default::default() };
            client.resume_run(request).await.unwrap();
        }
        ended => {
            assert_eq!(run.state(), ended);
            return;
        }
    }
    assert_eq!(daemon.wait(&run.id).await.state(), RunState::Succeeded, "{}", run.task);
}

/// Makes a database with one run of each kind, whose workspace it makes for the purpose.
async fn make(kept: &Path, workspace: &Path) {
    fs::create_dir_all(kept).unwrap();
    fs::create_dir(workspace).expect("the workspace is not there yet");
    fs::write(workspace.join("a"), "").unwrap();
    fs::write(workspace.join("script.sh"), "echo up >up\nsleep 600\n").unwrap();
    let backend = Backend::start(|seen: &Seen| match (what(seen), seen.turn) {
        ("unresolved", _) => {
            Reply::Answer(Turn::call("shell_exec", json!({"command": "sh script.sh"})))
        }
        ("done", 2) => Reply::Answer(Turn::say("done")),
        ("asking", _) => Reply::Hang,
        _ => Reply::Answer(Turn::call("read_file", json!({"path": "a"}))),
    })
    .await;
    let mut daemon = TestDaemon::start_in(settings(&backend), workspace.parent().unwrap());
    for (name, state) in RUNS {
        let request = v1::CreateRunRequest {
            task: format!("{name}: the key is {SECRET}"),
            agent: "executor".into(),
            workspace: workspace.display().to_string(),
            labels: [("what".to_owned(), name.to_owned())].into(),
            budget: Some(v1::Budget { max_turns: 2, ..Default::default() }),
            ..Default::default()
        };
        let run = daemon.create(request).await.unwrap().run.unwrap();
        match state {
            RunState::NeedsAttention => {
                daemon.wait_for_entry(&run.id, "decision").await;
                while !workspace.join("up").exists() {
                    tokio::task::yield_now().await;
                }
                daemon.restart();
                assert_eq!(daemon.wait(&run.id).await.state(), state);
            }
            RunState::Cancelled => {
                daemon.cancel(&run.id).await;
            }
            RunState::Executing => {
                daemon.wait_for_entry(&run.id, "model_request").await;
            }
            state => assert_eq!(daemon.wait(&run.id).await.state(), state),
        }
    }
    daemon.kill();
    let database = Connection::open(daemon.database()).unwrap();
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(database);
    for name in ["agentd.db", "seal.key"] {
        fs::copy(daemon.state().join(name), kept.join(name)).unwrap();
    }
    fs::remove_dir_all(workspace).unwrap();
}
