//! A long run is opened from its last checkpoint, and a checkpoint is nothing but what the journal comes to.

use agentd::{
    proto::v1::RunState,
    scripted::{Reply, Seen, Turn},
};
use rusqlite::Connection;
use serde_json::json;

use crate::support::{Backend, Settings, TestDaemon};

/// Turns before the call that waits: enough for some checkpoints of eight entries.
const LOOKS: usize = 8;

fn reply(seen: &Seen) -> Reply {
    Reply::Answer(match seen.turn {
        turn if turn <= LOOKS => Turn::call("list_dir", json!({"path": "."})),
        turn if turn == LOOKS + 1 => Turn::call("shell_exec", json!({"command": "sh pure.sh"})),
        _ => Turn::say("done"),
    })
}

/// A daemon that was killed in the middle of a run of which checkpoints are kept.
async fn killed_in_a_long_run() -> (Backend, TestDaemon, String) {
    let backend = Backend::start(reply).await;
    let mut daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: "limits: {checkpoint_entries: 8}\n".into(),
        ..Settings::default()
    });
    daemon.put("pure.sh", "until [ -e go ]; do sleep 0.02; done\n");
    let run = daemon.submit("look around").await.id;
    crate::support::wait_until("the call that waits has begun", || {
        let sql = "SELECT count(*) FROM entries WHERE kind = 'tool_call'";
        let begun = database(&daemon).query_row(sql, [], |row| row.get::<_, usize>(0));
        begun.unwrap() > LOOKS
    })
    .await;
    daemon.kill();
    daemon.put("go", "");
    (backend, daemon, run)
}

fn database(daemon: &TestDaemon) -> Connection {
    Connection::open(daemon.database()).unwrap()
}

fn alter(daemon: &TestDaemon, sql: &str) {
    let changed = database(daemon).execute_batch(sql);
    changed.unwrap();
}

#[tokio::test]
async fn a_run_goes_on_from_its_checkpoint_without_reading_what_lies_before() {
    let (backend, mut daemon, run) = killed_in_a_long_run().await;
    // Whoever reads this entry cannot go on.
    alter(
        &daemon,
        "DROP TRIGGER entries_are_not_updated;
         UPDATE entries SET kind = 'nonsense' WHERE run = 1 AND sequence = 3;",
    );
    daemon.restart();
    assert_eq!(daemon.wait(&run).await.state(), RunState::Succeeded);
    backend.assert_paired();
    let faults = daemon.audit().await.faults;
    assert!(faults.iter().any(|fault| fault.sequence == 3), "{faults:?}");
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_read_is_made_up_for_from_the_journal() {
    for spoilt in [
        "UPDATE checkpoints SET state = x'00';",
        "UPDATE checkpoint_items SET items = x'00' WHERE first = 0;",
        "DELETE FROM checkpoint_items WHERE first = 0;",
    ] {
        let (backend, mut daemon, run) = killed_in_a_long_run().await;
        alter(&daemon, spoilt);
        daemon.restart();
        assert_eq!(daemon.wait(&run).await.state(), RunState::Succeeded, "after {spoilt}");
        backend.assert_paired();
        daemon.story(&run).await.assert_calls_are_tied();
    }
}

#[tokio::test]
async fn a_deep_verification_compares_checkpoints_and_lists_with_what_the_journal_comes_to() {
    let (_backend, mut daemon, run) = killed_in_a_long_run().await;
    daemon.restart();
    daemon.wait(&run).await;
    let saved = daemon.story(&run).await.payloads("checkpoint_saved");
    assert!(saved.len() > 2, "{saved:?}");
    let report = daemon.audit().await;
    assert!(report.intact, "{:?}", report.faults);
    assert_eq!(report.checkpoints, 1);

    for (spoilt, what) in [
        ("UPDATE checkpoints SET sequence = sequence - 1", "its checkpoint cannot be read"),
        ("DELETE FROM checkpoint_items WHERE first = 0", "its checkpoint cannot be read"),
        (
            "UPDATE runs SET status = json_set(status, '$.usage.turns', 99)",
            "the list says that it is SUCCEEDED",
        ),
    ] {
        assert_eq!(daemon.stop(), Some(0));
        let kept = std::fs::read(daemon.database()).unwrap();
        alter(&daemon, spoilt);
        daemon.restart();
        let faults = daemon.audit().await.faults;
        assert_eq!(faults.len(), 1, "{spoilt}: {faults:?}");
        assert!(faults[0].what.starts_with(what), "{spoilt}: {faults:?}");
        assert_eq!((faults[0].position, &faults[0].run_id), (0, &run));
        assert_eq!(daemon.stop(), Some(0));
        std::fs::write(daemon.database(), kept).unwrap();
        daemon.restart();
    }
}
