//! A copy of the store is taken while the daemon goes on, and put in the place of a store that is lost. Nothing goes on
//! from it by itself: what was done after it was made, it does not know.

use std::{fs, path::PathBuf, process::Output};

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Seen, Turn},
};
use rusqlite::Connection;
use serde_json::json;

use crate::support::{Backend, Settings, TestDaemon, wait_until};

fn reply(seen: &Seen) -> Reply {
    Reply::Answer(match (seen.task.as_str(), seen.turn) {
        ("slow", 1) => Turn::call("shell_exec", json!({"command": ["sh", "script.sh"]})),
        _ => Turn::say("done"),
    })
}

/// Counts itself, and waits for a file `go`.
const BLOCKS: &str = "echo ran >>ran\nuntil [ -e go ]; do sleep 0.02; done\n";

async fn lab() -> (Backend, TestDaemon) {
    let backend = Backend::start(reply).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put("script.sh", BLOCKS);
    (backend, daemon)
}

async fn agentctl(daemon: &TestDaemon, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = daemon.agentctl(arguments).await;
    let text = [stdout, stderr].map(|part| String::from_utf8(part).unwrap()).concat();
    (status.code(), text)
}

async fn take(daemon: &TestDaemon, name: &str) -> PathBuf {
    let file = daemon.home().join(name);
    let (code, said) = agentctl(daemon, &["backup", file.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{said}");
    file
}

async fn restore(daemon: &TestDaemon, file: &str, more: &[&str]) -> (Option<i32>, String) {
    let state = daemon.state();
    let arguments = ["restore", file, "--state-dir", state.to_str().unwrap()];
    agentctl(daemon, &[&arguments, more].concat()).await
}

#[tokio::test]
async fn a_restored_store_holds_what_the_backup_held_and_its_unended_runs_stand_still() {
    let (_backend, mut daemon) = lab().await;
    let ended = daemon.carry_out("quick").await;
    let slow = daemon.submit("slow").await.id;
    assert_eq!(daemon.wait_for_file("ran").await, "ran\n");
    let file = take(&daemon, "backup.db").await;
    let (code, said) = restore(&daemon, file.to_str().unwrap(), &[]).await;
    assert_eq!(code, Some(1), "a daemon uses the store: {said}");
    assert!(said.contains("another agentd owns the state directory"), "{said}");
    daemon.put("go", "");
    assert_eq!(daemon.wait(&slow).await.state(), RunState::Succeeded);
    // What came after the backup is in the store that is kept aside.
    let late = daemon.carry_out("late").await;
    assert_eq!(daemon.stop(), Some(0));

    let (code, said) = restore(&daemon, file.to_str().unwrap(), &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 runs had not ended"), "{said}");
    let aside = fs::read_dir(daemon.state()).unwrap().map(|entry| entry.unwrap().file_name());
    let aside: Vec<_> = aside.map(|name| name.into_string().unwrap()).collect();
    assert!(aside.iter().any(|name| name.starts_with("agentd.db.before-restore-")), "{aside:?}");

    daemon.restart();
    assert_eq!(daemon.story(&ended.run.id).await.entries, ended.entries);
    let request = v1::GetRunRequest { id: late.run.id };
    assert!(daemon.client().await.runs().get_run(request).await.is_err());
    let run = daemon.wait(&slow).await;
    assert!(matches!(run.state(), RunState::Paused | RunState::NeedsAttention), "{run:?}");
    let report = daemon.audit().await;
    assert!(report.intact, "{:?}", report.faults);
    assert_eq!(daemon.read("ran").unwrap(), "ran\n", "nothing ran again");
    // Once said, it is for the next daemon as for any.
    daemon.restart();
    assert_eq!(daemon.wait(&slow).await.state(), run.state());
}

#[tokio::test]
async fn a_restored_run_that_waits_for_a_person_does_not_go_on_with_the_answer_alone() {
    let backend = Backend::start(|seen: &Seen| {
        Reply::Answer(match seen.turn {
            1 => Turn::call("shell_exec", json!({"command": ["sh", "asks.sh"]})),
            _ => Turn::say("done"),
        })
    })
    .await;
    let mut daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        commands: "  - {id: test.asks, argv: [sh, asks.sh], decision: require_approval, why: it publishes}\n"
            .into(),
        ..Settings::default()
    });
    daemon.put("asks.sh", "echo ran >>ran\n");
    let run = daemon.submit("ask").await.id;
    assert_eq!(daemon.wait(&run).await.state(), RunState::AwaitingApproval);
    let file = take(&daemon, "backup.db").await;
    assert_eq!(daemon.stop(), Some(0));
    let (code, said) = restore(&daemon, file.to_str().unwrap(), &[]).await;
    assert_eq!(code, Some(0), "{said}");
    daemon.restart();
    let (code, said) =
        agentctl(&daemon, &["run", "deny", &run, "1.0", "--why", "it was done"]).await;
    assert_eq!(code, Some(0), "{said}");
    wait_until("it stands still for the restoring", || {
        let sql = "SELECT state FROM runs WHERE place = 1";
        let connection = Connection::open(daemon.database()).unwrap();
        connection.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap() == "PAUSED"
    })
    .await;
    assert_eq!(daemon.story(&run).await.payloads("model_request").len(), 1, "nobody asked it");
}

#[tokio::test]
async fn a_backup_that_was_altered_or_whose_key_is_missing_is_not_put_in_place() {
    let (_backend, mut daemon) = lab().await;
    daemon.carry_out("quick").await;
    let file = take(&daemon, "backup.db").await;
    assert_eq!(daemon.stop(), Some(0));
    let before = fs::read(daemon.database()).unwrap();
    let file = file.to_str().unwrap();

    let key = daemon.home().join("kept.key");
    fs::rename(daemon.state().join("seal.key"), &key).unwrap();
    let (code, said) = restore(&daemon, file, &[]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is not the key that the backup was sealed with"), "{said}");
    let (code, said) = restore(&daemon, "/dev/null", &[]).await;
    assert_eq!(code, Some(1), "{said}");

    let altered = daemon.home().join("altered.db");
    fs::copy(file, &altered).unwrap();
    let sql =
        "DROP TRIGGER entries_are_not_updated; UPDATE entries SET view = '{}' WHERE position = 2";
    Connection::open(&altered).unwrap().execute_batch(sql).unwrap();
    let (code, said) =
        restore(&daemon, altered.to_str().unwrap(), &["--key", key.to_str().unwrap()]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("position 2, was altered"), "{said}");
    assert_eq!(fs::read(daemon.database()).unwrap(), before, "nothing was changed");

    let (code, said) = restore(&daemon, file, &["--key", key.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read(daemon.state().join("seal.key")).unwrap(), fs::read(&key).unwrap());
    daemon.restart();
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_backup_is_never_written_over_a_file_and_stands_in_the_journal() {
    let (_backend, daemon) = lab().await;
    let file = take(&daemon, "backup.db").await;
    let (code, said) = agentctl(&daemon, &["backup", file.to_str().unwrap()]).await;
    assert_eq!(code, Some(2), "{said}");
    let (_, said) =
        agentctl(&daemon, &["-o", "json", "audit", "list", "--kind", "backup_made"]).await;
    let entry: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(entry["payload"]["bytes"], fs::metadata(&file).unwrap().len());
    // No copy is left behind.
    assert!(!daemon.state().join("agentd.db.copy").exists());
    let checked = agentctl(&daemon, &["audit", "verify", "--file", file.to_str().unwrap()]).await;
    assert_eq!(checked.0, Some(0), "{}", checked.1);
}

#[tokio::test]
async fn one_backup_is_taken_at_a_time_and_none_where_the_disk_has_no_room_for_it() {
    let (_backend, mut daemon) = lab().await;
    // So much that the whole of it does not fit into what waits on the way to a client who does not read.
    for _ in 0..3 {
        let request = v1::CreateRunRequest { task: "x".repeat(1 << 20), ..daemon.request("") };
        let run = daemon.create(request).await.unwrap().run.unwrap();
        daemon.wait(&run.id).await;
    }
    let client = daemon.client().await;
    let request = v1::BackupDatabaseRequest {};
    let mut unread = client.admin().backup_database(request).await.unwrap().into_inner();
    unread.message().await.unwrap();
    let other = daemon.client().await;
    let status = other.admin().backup_database(request).await.unwrap_err();
    assert!(status.message().contains("another backup is being taken"), "{status:?}");
    drop(unread);

    daemon.kill();
    let file = daemon.home().join("agentd.yaml");
    let limits = "limits: {free_disk_mib: 1000000000000}\n";
    fs::write(&file, fs::read_to_string(&file).unwrap() + limits).unwrap();
    daemon.restart();
    let client = daemon.client().await;
    let status = client.admin().backup_database(request).await.unwrap_err();
    assert!(status.message().contains("limits.free_disk_mib"), "{status:?}");
}

#[tokio::test]
async fn after_an_unclean_stop_the_store_is_examined_and_one_with_damaged_pages_stops_the_daemon() {
    let (_backend, mut daemon) = lab().await;
    daemon.carry_out("quick").await;
    daemon.kill();
    daemon.restart();
    let log = || daemon.log();
    wait_until("it is found whole", || log().contains("whole after an unclean stop")).await;

    daemon.kill();
    let connection = Connection::open(daemon.database()).unwrap();
    // A page that nobody reads by the way.
    let index = "SELECT rootpage FROM sqlite_schema WHERE name = 'checkpoint_items_by_run'";
    let page: usize = connection.query_row(index, [], |row| row.get(0)).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let size: usize = connection.query_row("PRAGMA page_size", [], |row| row.get(0)).unwrap();
    drop(connection);
    let mut bytes = fs::read(daemon.database()).unwrap();
    bytes[(page - 1) * size..page * size].fill(0xAA);
    fs::write(daemon.database(), bytes).unwrap();
    daemon.restart();
    assert_eq!(daemon.exit_code().await, Some(1));
    assert!(daemon.log().contains("restore a backup"), "{}", daemon.log());
}

#[tokio::test]
async fn with_too_little_room_on_the_disk_no_run_is_taken_and_those_that_go_on_come_to_their_end() {
    let (_backend, mut daemon) = lab().await;
    let slow = daemon.submit("slow").await.id;
    daemon.wait_for_file("ran").await;
    daemon.kill();
    let file = daemon.home().join("agentd.yaml");
    // As much as no disk has.
    let limits = "limits: {free_disk_mib: 1000000000000}\n";
    fs::write(&file, fs::read_to_string(&file).unwrap() + limits).unwrap();
    daemon.restart();
    let status = daemon.create(daemon.request("quick")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert!(status.message().contains("limits.free_disk_mib"), "{}", status.message());
    // It stands still because of the lost call, and can be steered to its end all the same.
    daemon.cancel(&slow).await;
    assert_eq!(daemon.wait(&slow).await.state(), RunState::Cancelled);
}
