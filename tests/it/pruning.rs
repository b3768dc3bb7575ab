//! What ended runs held is removed when somebody wants it, or has been kept for long enough; and the journal can be
//! verified past it: by the daemon, on a copy, and from what was exported.

use std::{fs, path::Path, process::Output};

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Seen, Turn},
};
use rusqlite::Connection;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{Backend, Settings, TestDaemon, refusal, wait_until};

fn reply(seen: &Seen) -> Reply {
    Reply::Answer(match (seen.task.as_str(), seen.turn) {
        // More entries than one step removes.
        ("long", turn) if turn < 100 => {
            let call = |turn: Turn, _| turn.and_call("read_file", json!({"path": "a.txt"}));
            (0..3).fold(Turn::default(), call)
        }
        (task, 1) if task.contains("canary-task") => {
            Turn::call("read_file", json!({"path": "a.txt"}))
        }
        ("fails", _) => return Reply::Http { status: 400, headers: vec![], body: "{}".into() },
        (task, _) if task.contains("canary-task") => Turn::say(&"canary-answer ".repeat(150)),
        _ => Turn::say("done"),
    })
}

async fn lab(configuration: &str) -> (Backend, TestDaemon) {
    let backend = Backend::start(reply).await;
    let configuration = configuration.to_owned();
    let settings = Settings { base_url: backend.url(), configuration, ..Settings::default() };
    let daemon = TestDaemon::start_with(settings);
    daemon.put("a.txt", "canary-file\n");
    (backend, daemon)
}

async fn agentctl(daemon: &TestDaemon, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = daemon.agentctl(arguments).await;
    (status.code(), [stdout, stderr].map(|part| String::from_utf8(part).unwrap()).concat())
}

async fn get(daemon: &TestDaemon, id: &str) -> v1::Run {
    let request = v1::GetRunRequest { id: id.into() };
    daemon.client().await.runs().get_run(request).await.unwrap().into_inner().run.unwrap()
}

/// Whether a text stands anywhere in the database or its log.
fn holds(daemon: &TestDaemon, text: &str) -> bool {
    let log = daemon.state().join("agentd.db-wal");
    let files = [daemon.database(), log].map(|path| fs::read(path).unwrap_or_default());
    files.iter().any(|bytes| bytes.windows(text.len()).any(|found| found == text.as_bytes()))
}

fn faults(file: &Path) -> Vec<String> {
    let report = agentd::sqlite::verify_file(file, Vec::new()).unwrap();
    report.faults.into_iter().map(|fault| fault.what).collect()
}

#[tokio::test]
async fn what_a_pruned_run_held_is_gone_and_everything_else_verifies_as_before() {
    let (_backend, mut daemon) = lab("").await;
    let canaries = ["canary-task", "canary-file", "canary-answer"];
    let gone = daemon.carry_out(&"canary-task ".repeat(200)).await.run.id;
    let kept = daemon.carry_out("another").await;
    assert!(canaries.iter().all(|text| holds(&daemon, text)), "control");
    let heads = daemon.home().join("heads.jsonl");
    let whole = daemon.home().join("whole.jsonl");

    // By age alone it would be both.
    let database = Connection::open(daemon.database()).unwrap();
    let old = "UPDATE runs SET updated_us = updated_us - 86400000000 * 9 WHERE id = ?1";
    assert_eq!(database.execute(old, [&gone]).unwrap(), 1);
    let prune = ["audit", "prune", "--older-than", "8"];
    let (code, said) = agentctl(&daemon, &prune).await;
    assert!(code == Some(0) && said.contains(&gone) && said.contains("1 runs to prune"), "{said}");
    assert_eq!(get(&daemon, &gone).await.prune_time, None, "nothing was done");
    let (code, said) = agentctl(&daemon, &[&prune[..], &["--yes"]].concat()).await;
    assert!(code == Some(0) && said.contains(&gone) && !said.contains(&kept.run.id), "{said}");

    let run = get(&daemon, &gone).await;
    assert!(run.prune_time.is_some() && run.state() == RunState::Succeeded, "{run:?}");
    assert_eq!((run.task.as_str(), run.answer.as_str()), ("", ""));
    let request = v1::StreamRunEventsRequest { id: gone.clone(), ..Default::default() };
    let mut stream =
        daemon.client().await.runs().stream_run_events(request).await.unwrap().into_inner();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if nothing had been there"),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal(&status), (Code::OutOfRange, "RUN_PRUNED".into()));
    let fork = v1::ForkRunRequest { id: gone.clone(), ..Default::default() };
    let status = daemon.client().await.runs().fork_run(fork).await.unwrap_err();
    assert_eq!(refusal(&status).1, "RUN_PRUNED");
    let (code, said) = agentctl(&daemon, &["run", "diff", &gone]).await;
    assert!(code != Some(0) && said.contains("was pruned"), "{said}");
    let (code, said) = agentctl(&daemon, &["audit", "list", "--run", &gone]).await;
    assert!(code == Some(2) && said.contains("was pruned"), "{said}");
    let (code, said) = agentctl(&daemon, &["run", "pause", &gone]).await;
    assert!(code == Some(2) && said.contains("was pruned"), "{said}");
    assert_eq!(daemon.story(&kept.run.id).await.entries.len(), kept.entries.len());

    assert!(daemon.audit().await.intact);
    let path = whole.to_str().unwrap();
    assert_eq!(agentctl(&daemon, &["audit", "export", "--to", path]).await.0, Some(0));
    let export = ["audit", "export", "--kind", "head_signed", "--to", heads.to_str().unwrap()];
    assert_eq!(agentctl(&daemon, &export).await.0, Some(0));
    assert_eq!(daemon.stop(), Some(0));
    let left: Vec<_> = canaries.iter().filter(|text| holds(&daemon, text)).collect();
    assert_eq!(left, Vec::<&&str>::new());
    let database = daemon.database();
    let verify = ["audit", "verify", "--file", database.to_str().unwrap()];
    let heads = ["--heads", heads.to_str().unwrap()];
    let (code, said) = agentctl(&daemon, &[&verify[..], &heads].concat()).await;
    assert!(code == Some(0) && said.contains("could be compared, and fit"), "{said}");
    // Lines do not hold what is left of pruned entries: chains can be followed in them, the digest cannot.
    let verify = ["audit", "verify", "--file", path];
    let (code, said) = agentctl(&daemon, &verify).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = agentctl(&daemon, &[&verify[..], &heads].concat()).await;
    assert!(code == Some(1) && said.contains("none of the kept heads can be compared"), "{said}");
}

#[tokio::test]
async fn a_request_id_of_a_pruned_run_makes_no_second_run() {
    let (_backend, daemon) = lab("").await;
    let request = v1::CreateRunRequest { request_id: "once".into(), ..daemon.request("a task") };
    let first = daemon.create(request.clone()).await.unwrap().run.unwrap().id;
    daemon.wait(&first).await;
    let (code, said) = agentctl(&daemon, &["audit", "prune", "--older-than", "0", "--yes"]).await;
    assert!(code == Some(0) && said.contains(&first), "{said}");

    let again = daemon.create(request).await.unwrap().run.unwrap();
    assert_eq!((again.id, again.prune_time.is_some()), (first, true));
}

#[tokio::test]
async fn a_run_that_goes_on_is_not_pruned_and_one_that_ended_otherwise_only_if_that_is_wanted() {
    let (_backend, daemon) = lab("").await;
    let done = daemon.carry_out("done").await.run.id;
    let failed = daemon.carry_out("fails").await.run;
    assert_eq!(failed.state(), RunState::Failed);

    let prune = ["audit", "prune", "--older-than", "0", "--state", "failed", "--yes"];
    let (code, said) = agentctl(&daemon, &prune).await;
    assert!(code == Some(0) && said.contains(&failed.id) && !said.contains(&done), "{said}");
    // The second is a state that no run can be in: nothing is left of such a list, and that must not mean any.
    for state in ["paused", "reviewing"] {
        let prune = ["audit", "prune", "--older-than", "0", "--state", state, "--yes"];
        let (code, said) = agentctl(&daemon, &prune).await;
        assert!(code == Some(2) && said.contains("in which no run has ended"), "{said}");
    }
    assert_eq!(get(&daemon, &done).await.prune_time, None);
    assert!(daemon.audit().await.intact);
}

/// What is removed in many steps, and by a daemon that is killed in between, is gone in the end.
#[tokio::test]
async fn a_daemon_that_dies_while_it_prunes_leaves_the_rest_to_the_next_one() {
    let (_backend, mut daemon) = lab("").await;
    let long = daemon.carry_out("long").await;
    assert!(long.entries.len() > 512, "control: more than one step, {}", long.entries.len());
    // From the next commit on, the daemon gets as far as the first step.
    assert_eq!(daemon.stop(), Some(0));
    assert!(daemon.boot_dying(&[("AGENTD_FAIL_POINT", "commit.before:3".into())]));
    let (code, said) = agentctl(&daemon, &["audit", "prune", "--older-than", "0", "--yes"]).await;
    assert_eq!(code, Some(3), "it dies: {said}");
    let left = |state: &TestDaemon| -> (u64, u64) {
        let database = Connection::open(state.database()).unwrap();
        let count = |table: &str| {
            let place = "(SELECT place FROM runs WHERE id = ?1)";
            let sql = format!("SELECT count(*) FROM {table} WHERE run = {place}");
            database.query_row(&sql, [&long.run.id], |row| row.get(0)).unwrap()
        };
        (count("entries"), count("pruned_entries"))
    };
    wait_until("the daemon is dead", || daemon.has_died()).await;
    let (whole, removed) = left(&daemon);
    assert!(whole > 0 && removed > 0, "control: in the middle of it: {whole}, {removed}");
    assert_eq!(faults(&daemon.database()), Vec::<String>::new(), "in the middle, too");

    assert!(daemon.boot_dying(&[]));
    wait_until("the rest is gone", || left(&daemon).0 == 0).await;
    assert_eq!(left(&daemon).1, long.entries.len() as u64);
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn runs_that_were_kept_for_as_long_as_the_configuration_says_are_pruned() {
    let (_backend, mut daemon) = lab("retention: {succeeded_days: 3}\n").await;
    let old = daemon.carry_out("old").await.run.id;
    let failed = daemon.carry_out("fails").await.run.id;
    let new = daemon.carry_out("new").await.run.id;
    assert_eq!(daemon.stop(), Some(0));
    let database = Connection::open(daemon.database()).unwrap();
    let age = "UPDATE runs SET updated_us = updated_us - 86400000000 * 4 WHERE id IN (?1, ?2)";
    assert_eq!(database.execute(age, [&old, &failed]).unwrap(), 2);
    drop(database);

    daemon.restart();
    let is_pruned = async |id: &str| get(&daemon, id).await.prune_time.is_some();
    while !is_pruned(&old).await {
        tokio::task::yield_now().await;
    }
    assert!(!is_pruned(&failed).await && !is_pruned(&new).await);
    let list = ["-o", "json", "audit", "list", "--kind", "run_pruned"];
    let (_, said) = agentctl(&daemon, &list).await;
    let entry: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    let payload = entry["payload"]
        .as_str()
        .map_or(entry["payload"].clone(), |text| serde_json::from_str(text).unwrap());
    assert_eq!((&payload["run_id"], &payload["by"]), (&json!(old), &json!("retention")));
}

/// Entries that are missing without a word are found, whoever removed them.
#[tokio::test]
async fn entries_that_somebody_removed_as_if_they_were_pruned_are_found() {
    let (_backend, mut daemon) = lab("").await;
    let run = daemon.carry_out("a task").await.run.id;
    daemon.carry_out("another").await;
    assert_eq!(daemon.stop(), Some(0));
    let attacks = [
        // What pruning does, but for saying so.
        (
            "INSERT INTO pruned_entries SELECT position, run, sequence, hash FROM entries WHERE run = 1;
             DELETE FROM entries WHERE run = 1;
             UPDATE runs SET pruned_us = 1 WHERE place = 1",
            "its entries are removed, and the journal does not say that it was pruned",
        ),
        // Another entry's hash for one of them.
        (
            "INSERT INTO pruned_entries SELECT position, run, sequence, hash FROM entries WHERE run = 1;
             DELETE FROM entries WHERE run = 1;
             DROP TRIGGER pruned_entries_are_not_updated;
             UPDATE pruned_entries SET hash = zeroblob(32) WHERE sequence = 1",
            "the journal before it is not what it signs",
        ),
        // Still there, and hidden from readers.
        (
            "UPDATE runs SET pruned_us = 1 WHERE place = 1",
            "the list of runs does not say of it what the journal says: that it was pruned, or was not",
        ),
        (
            "DROP TRIGGER entries_are_not_deleted; DELETE FROM entries WHERE run = 1",
            "the run's chain does not end where the run says it does",
        ),
    ];
    for (attack, expected) in attacks {
        let copy = daemon.home().join("copy.db");
        fs::copy(daemon.database(), &copy).unwrap();
        Connection::open(&copy).unwrap().execute_batch(attack).unwrap();
        let found = faults(&copy);
        assert!(found.iter().any(|fault| fault == expected), "{attack}: {found:?}");
    }
    let plain = "DELETE FROM entries WHERE run = 1";
    let refused = Connection::open(daemon.database()).unwrap().execute_batch(plain).unwrap_err();
    assert!(refused.to_string().contains("append-only"), "{refused} {run}");
}
