//! Long texts come back in one entry after the other: what a model writes, what a file holds. Each is stored once, every
//! reader sees each entry whole, and pruning removes a text with the last entry that holds it.

use std::fs;

use agentd::{
    proto::v1,
    scripted::{Reply, Seen, Turn},
    sqlite::verify_file,
};
use rusqlite::Connection;
use serde_json::json;

use crate::support::{Backend, Story, TestDaemon};

/// Long enough, with what JSON escapes, and found nowhere else.
fn text() -> String {
    "canary \"of\" \\ many lines\n".repeat(1500)
}

/// Writes a long text, reads it twice, and says it.
fn reply(seen: &Seen) -> Reply {
    Reply::Answer(match (seen.task.as_str(), seen.turn) {
        ("writes", 1) => Turn::call("write_file", json!({"path": "a.txt", "content": text()})),
        ("writes", 2 | 3) | ("reads", 1) => Turn::call("read_file", json!({"path": "a.txt"})),
        ("writes", _) => Turn::say(&text()),
        _ => Turn::say("done"),
    })
}

async fn lab() -> (Backend, TestDaemon) {
    let backend = Backend::start(reply).await;
    let daemon = TestDaemon::start(&backend.url());
    (backend, daemon)
}

/// What the store holds: long texts, entries they belong to, and bytes of the rows' own views.
fn stored(daemon: &TestDaemon) -> (u64, u64, u64) {
    let database = Connection::open(daemon.database()).unwrap();
    let count = |sql: &str| database.query_row(sql, [], |row| row.get(0)).unwrap();
    (
        count("SELECT count(*) FROM texts"),
        count("SELECT count(DISTINCT position) FROM entry_texts"),
        count("SELECT sum(octet_length(view)) FROM entries"),
    )
}

async fn prune(daemon: &TestDaemon, story: &Story) {
    let database = Connection::open(daemon.database()).unwrap();
    let old = "UPDATE runs SET updated_us = updated_us - 86400000000 * 9 WHERE id = ?1";
    assert_eq!(database.execute(old, [&story.run.id]).unwrap(), 1);
    let done = daemon.agentctl(&["audit", "prune", "--older-than", "8", "--yes"]).await;
    assert!(done.status.success(), "{done:?}");
}

fn holds_a_canary(daemon: &TestDaemon) -> bool {
    let files = [daemon.database(), daemon.state().join("agentd.db-wal")];
    files
        .iter()
        .any(|file| fs::read(file).unwrap_or_default().windows(6).any(|bytes| bytes == b"canary"))
}

#[tokio::test]
async fn a_text_is_stored_once_and_every_reader_of_an_entry_has_it_whole() {
    let (_backend, mut daemon) = lab().await;
    let story = daemon.carry_out("writes").await;
    assert_eq!(story.run.answer, text());
    assert_eq!(story.payloads("model_response")[3]["text"], json!(text()), "as a client sees it");
    let (first, second) = (&story.outputs()[1].1, &story.outputs()[2].1);
    assert!(first == second && first.to_string().len() > text().len(), "{first}");

    // The file's content inside a call's arguments; inside an output; and as an answer, in two entries.
    let (texts, entries, bytes) = stored(&daemon);
    assert_eq!(texts, 3, "of {entries} entries");
    assert!(entries >= 6, "{entries}: two about the call, two outputs, two about the answer");
    assert!(bytes < text().len() as u64 / 2, "{bytes}");

    let filter = v1::AuditFilter {
        kinds: vec!["tool_call".into()],
        tool: "write_file".into(),
        ..Default::default()
    };
    let request = v1::ListAuditEntriesRequest { filter: Some(filter), ..Default::default() };
    let mut audit = daemon.client().await.audit();
    let found = audit.list_audit_entries(request).await.unwrap().into_inner();
    let writes: Vec<_> =
        story.entries.iter().filter(|entry| entry.kind == "tool_call").take(1).cloned().collect();
    assert!(found.entries == writes && writes.len() == 1, "as an auditor finds it");

    // A daemon that folds the run again, a copy, and the lines that were exported.
    daemon.kill();
    daemon.restart();
    assert!(daemon.story(&story.run.id).await.entries == story.entries);
    let lines = daemon.home().join("lines.jsonl");
    let export = daemon.agentctl(&["audit", "export", "--to", lines.to_str().unwrap()]).await;
    assert!(export.status.success(), "{export:?}");
    assert_eq!(daemon.stop(), Some(0));
    assert!(fs::read_to_string(&lines).unwrap().contains("canary"));
    for file in [lines, daemon.database()] {
        let verify = ["audit", "verify", "--file", file.to_str().unwrap()];
        let verified = daemon.agentctl(&verify).await;
        assert!(verified.status.success(), "{verified:?}");
    }
}

#[tokio::test]
async fn a_text_goes_with_the_last_run_that_held_it() {
    let (_backend, mut daemon) = lab().await;
    let writes = daemon.carry_out("writes").await;
    let reads = daemon.carry_out("reads").await;
    let (texts, entries, _) = stored(&daemon);
    assert_eq!(texts, 3, "the second run's is the first one's");

    prune(&daemon, &writes).await;
    let (texts, left, _) = stored(&daemon);
    assert_eq!((texts, left), (1, 1), "of {entries} entries");
    assert!(daemon.story(&reads.run.id).await.entries == reads.entries, "whole as before");

    prune(&daemon, &reads).await;
    assert_eq!(stored(&daemon).0, 0);
    assert!(daemon.audit().await.intact);
    assert_eq!(daemon.stop(), Some(0));
    assert!(!holds_a_canary(&daemon), "what was freed is written over");
    assert_eq!(verify_file(&daemon.database(), Vec::new()).unwrap().faults, []);
}

#[tokio::test]
async fn a_damaged_text_takes_no_later_entry_with_it() {
    let (_backend, mut daemon) = lab().await;
    let writes = daemon.carry_out("writes").await;
    assert_eq!(daemon.stop(), Some(0));
    let database = Connection::open(daemon.database()).unwrap();
    let damage = "DROP TRIGGER texts_are_not_updated;
                  UPDATE texts SET text = replace(text, 'many', 'some');";
    database.execute_batch(damage).unwrap();
    drop(database);

    daemon.restart();
    let reads = daemon.carry_out("reads").await;
    let read = &reads.outputs()[0].1;
    assert!(read.to_string().contains("many") && !read.to_string().contains("some"), "{read}");
    let report = daemon.audit().await;
    let about = |run: &str| report.faults.iter().filter(|fault| fault.run_id == run).count();
    assert!(!report.intact && about(&writes.run.id) > 0, "control: the damage is found");
    assert_eq!(about(&reads.run.id), 0, "{:?}", report.faults);
}
