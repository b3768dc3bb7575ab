//! The journal cannot be changed without anybody noticing, and no secret stands in what others than the
//! engine see.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use agentd::{
    domain::ids::{Position, Sequence},
    ports::{AuditFault, AuditReport, EntryView},
    proto::v1::{self, RunState, stream_run_events_response::Event},
    scripted::{Reply, Script, Seen, Turn},
    sqlite::{verify_file, views_of_file},
};
use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Backend, Settings, TestDaemon};

/// The database of a daemon that carried out two runs and stopped in order.
struct Closed {
    _home: TempDir,
    path: PathBuf,
    entries: Vec<EntryView>,
    /// Ids of its runs, in the order of submission.
    runs: Vec<String>,
}

impl Closed {
    async fn new() -> Self {
        let turns = vec![
            // Long enough that texts of it stand beside its entries.
            Turn::call("write_file", json!({"path": "out", "content": "x".repeat(9000)})),
            Turn::say("done"),
        ];
        let backend = Backend::start(Script { turns }).await;
        let mut daemon = TestDaemon::start(&backend.url());
        // Its runs' entries are to stand together.
        daemon.first_look().await;
        let first = daemon.carry_out("first").await.run.id;
        let second = daemon.carry_out("second").await.run.id;
        daemon.terminate();
        assert_eq!(daemon.exit_code().await, Some(0));
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("agentd.db");
        fs::copy(daemon.database(), &path).unwrap();
        let entries = views_of_file(&path).unwrap();
        let closed = Self { _home: home, path, entries, runs: vec![first, second] };
        let report = verify_file(&closed.path, Vec::new()).unwrap();
        assert_eq!((report.faults.as_slice(), report.runs), (&[][..], 2), "control: it is intact");
        assert_eq!(report.entries, closed.entries.len() as u64);
        closed
    }

    /// What is found after these statements were carried out behind the daemon's back.
    fn after(&self, sql: &str) -> AuditReport {
        let copy = self.path.with_file_name("altered.db");
        fs::copy(&self.path, &copy).unwrap();
        let connection = Connection::open(&copy).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA synchronous = OFF;
                 DROP TRIGGER entries_are_not_updated;
                 DROP TRIGGER entries_are_not_deleted;
                 DROP TRIGGER texts_are_not_updated;
                 DROP TRIGGER texts_are_not_deleted;
                 DROP TRIGGER entry_texts_are_not_updated;
                 DROP TRIGGER entry_texts_are_not_deleted;
                 {sql};"
            ))
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert!(connection.changes() > 0, "control: something was altered by {sql}");
        connection.close().unwrap();
        verify_file(&copy, Vec::new()).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The first place that is found after these statements.
    fn first_fault(&self, sql: &str) -> AuditFault {
        let mut faults = self.after(sql).faults;
        assert!(!faults.is_empty(), "not found: {sql}");
        assert!(faults.is_sorted_by_key(|fault| fault.position), "{sql}: {faults:?}");
        faults.remove(0)
    }
}

#[tokio::test]
async fn an_altered_value_of_any_entry_and_any_column_is_found_at_its_position() {
    let closed = Closed::new().await;
    let columns: Vec<String> = Connection::open(&closed.path)
        .unwrap()
        .prepare("SELECT name FROM pragma_table_info('entries')")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    // For each column, values that fit its type and are not what was there.
    let altered = |column: &str| match column {
        "position" => vec![],
        "run" => vec!["run + 7"],
        "sequence" => vec!["sequence + 1000"],
        "time_us" => vec!["time_us + 1", "time_us - 1", "0"],
        "kind" => vec!["kind || 'x'", "upper(kind)", "''"],
        "version" => vec!["version + 1"],
        "view" => vec!["view || ' '", "replace(view, ':', ': ')", "'{}'", "'null '"],
        "body" => vec!["zeroblob(40)", "iif(body IS NULL, x'', NULL)"],
        "body_digest" => vec!["zeroblob(32)", "iif(body_digest IS NULL, x'', NULL)"],
        "policy_revision" => {
            vec!["coalesce(policy_revision, '') || 'x'", "iif(policy_revision IS NULL, '', NULL)"]
        }
        "previous" | "hash" => vec!["randomblob(32)"],
        "texts" => vec!["texts + 1", "texts + 300"],
        other => panic!("what alters the column {other}?"),
    };

    for EntryView { position: Position(position), run, sequence, .. } in &closed.entries {
        for column in &columns {
            for value in altered(column) {
                let sql =
                    format!("UPDATE entries SET {column} = {value} WHERE position = {position}");
                let fault = closed.first_fault(&sql);
                assert_eq!(fault.position, Position(*position), "{sql}: {fault:?}");
                if !matches!(column.as_str(), "run" | "sequence") {
                    assert_eq!((fault.run, fault.sequence), (*run, *sequence), "{sql}: {fault:?}");
                }
            }
        }
        let sql = format!("UPDATE entries SET position = 7000000 WHERE position = {position}");
        let missing = format!("entry {position} of the journal is missing");
        let fault = closed.first_fault(&sql);
        assert_eq!(fault.what, missing);
        let next = position + 1;
        let at = if next > closed.entries.len() as u64 { 7_000_000 } else { next };
        assert_eq!(fault.position, Position(at), "told where it should have been");
    }
}

#[tokio::test]
async fn long_texts_that_were_altered_moved_or_removed_are_found_at_their_entry() {
    let closed = Closed::new().await;
    let database = Connection::open(&closed.path).unwrap();
    let held = "SELECT id, min(position), max(position) FROM entry_texts JOIN texts
                ON entry_texts.text = texts.id GROUP BY id";
    let texts: Vec<(i64, u64, u64)> = database
        .prepare(held)
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    drop(database);
    assert!(!texts.is_empty(), "control: there are long texts");
    assert!(texts.iter().any(|(_, first, last)| first < last), "and one that entries share");
    for (id, first, last) in texts {
        for (table, set) in [
            ("texts", "text = replace(text, 'xx', 'xy')"),
            ("texts", "text = 7"),
            ("texts", "text = CAST(x'ff' AS TEXT)"),
            ("texts", "digest = randomblob(32)"),
            ("texts", "digest = x''"),
            ("texts", "id = id + 1000"),
        ] {
            let sql = format!("UPDATE {table} SET {set} WHERE id = {id}");
            let faults = closed.after(&sql).faults;
            assert!(
                faults.iter().any(|fault| fault.position == Position(first)),
                "{sql}: {faults:?}"
            );
        }
        for position in [first, last] {
            for sql in [
                format!("DELETE FROM texts WHERE id = {id}"),
                format!("DELETE FROM entry_texts WHERE position = {position}"),
                format!("UPDATE entry_texts SET at = at + 1 WHERE position = {position}"),
                format!("UPDATE entry_texts SET at = -1 WHERE position = {position}"),
                format!("UPDATE entry_texts SET at = 1000000 WHERE position = {position}"),
                format!("UPDATE entry_texts SET text = 0 WHERE position = {position}"),
                format!("UPDATE entries SET texts = 0 WHERE position = {position}"),
                format!("UPDATE entries SET texts = -1 WHERE position = {position}"),
            ] {
                let faults = closed.after(&sql).faults;
                let at = |fault: &AuditFault| fault.position == Position(position);
                assert!(faults.iter().any(at), "{sql}: {faults:?}");
            }
        }
    }
    for sql in [
        "INSERT INTO texts (digest, text) VALUES (x'01', 'a')",
        "INSERT INTO entry_texts SELECT 1, 0, id FROM texts LIMIT 1",
        "INSERT INTO entry_texts SELECT 900000, 0, id FROM texts LIMIT 1",
    ] {
        assert_ne!(closed.after(sql).faults, [], "{sql}");
    }
}

#[tokio::test]
async fn values_that_no_daemon_can_read_are_found_at_their_position_too() {
    let closed = Closed::new().await;
    for (column, value) in [
        ("sequence", "-1"),
        ("version", "-1"),
        ("version", "5000000000"),
        ("view", "CAST(x'ff' AS TEXT)"),
        ("kind", "CAST(x'ff' AS TEXT)"),
        ("policy_revision", "CAST(x'ff' AS TEXT)"),
        ("previous", "x''"),
        ("previous", "zeroblob(33)"),
        ("hash", "x'00'"),
    ] {
        for position in [1, 5] {
            let sql = format!("UPDATE entries SET {column} = {value} WHERE position = {position}");
            assert_eq!(closed.first_fault(&sql).position, Position(position), "{sql}");
        }
    }
    let fault = closed.first_fault("UPDATE entries SET position = -3 WHERE position = 4");
    assert_eq!(fault.position, Position(1), "where it stands now");
    for set in ["head = -1", "head_hash = x''", "id = 'nobody'", "id = CAST(x'ff' AS TEXT)"] {
        let report = closed.after(&format!("UPDATE runs SET {set} WHERE place = 1"));
        assert_ne!(report.faults, [], "{set}");
    }
}

#[tokio::test]
async fn a_missing_entry_is_found_wherever_it_stood() {
    let closed = Closed::new().await;
    let last = closed.entries.len() as u64;
    for position in 1..last {
        let sql = format!("DELETE FROM entries WHERE position = {position}");
        let fault = closed.first_fault(&sql);
        assert_eq!(fault.position, Position(position + 1));
        assert_eq!(fault.what, format!("entry {position} of the journal is missing"));
    }
    // Nothing follows the last one: only who kept the head elsewhere can tell.
    let report = closed.after(&format!("DELETE FROM entries WHERE position = {last}"));
    assert_eq!(report.faults, []);
    assert_ne!(report.head, verify_file(&closed.path, Vec::new()).unwrap().head);
}

#[tokio::test]
async fn two_entries_that_changed_places_are_found() {
    let closed = Closed::new().await;
    let last = closed.entries.len();
    for (one, other) in (1..last).map(|n| (n, n + 1)).chain([(1, last), (2, 9)]) {
        // A position, or a place in a chain, is taken by one entry only: they meet on a third.
        let (a, b) = (&closed.entries[one - 1], &closed.entries[other - 1]);
        let fault = closed.first_fault(&format!(
            "UPDATE entries SET position = -1 WHERE position = {one};
             UPDATE entries SET position = {one} WHERE position = {other};
             UPDATE entries SET position = {other} WHERE position = -1"
        ));
        assert_eq!(fault.position, Position(one as u64));
        if a.run == b.run {
            let fault = closed.first_fault(&format!(
                "UPDATE entries SET sequence = 999 WHERE position = {one};
                 UPDATE entries SET sequence = {} WHERE position = {other};
                 UPDATE entries SET sequence = {} WHERE position = {one}",
                a.sequence, b.sequence
            ));
            assert_eq!(fault.position, Position(one as u64));
        }
    }
}

#[tokio::test]
async fn a_missing_run_is_found_however_thoroughly_it_was_removed() {
    let closed = Closed::new().await;
    for (place, id) in (1..).zip(&closed.runs) {
        let own: Vec<&EntryView> = closed
            .entries
            .iter()
            .filter(|entry| entry.run.is_some_and(|run| run.to_string() == *id))
            .collect();
        let (first, last) = (own[0].position, own[own.len() - 1].position);
        let anchored = Position(last.0 + 1);

        let report = closed.after(&format!(
            "DELETE FROM entries WHERE run = {place}; DELETE FROM runs WHERE place = {place}"
        ));
        let told: Vec<(Position, String)> =
            report.faults.iter().map(|fault| (fault.position, fault.what.clone())).collect();
        assert_eq!(
            told,
            [
                (anchored, format!("entry {} of the journal is missing", first.0)),
                (anchored, format!("run {id} was anchored and is missing"))
            ]
        );
        let fault = closed.first_fault(&format!("DELETE FROM runs WHERE place = {place}"));
        assert_eq!((fault.position, fault.what.as_str()), (first, "its run is missing"));
        let fault = closed.first_fault(&format!("DELETE FROM entries WHERE run = {place}"));
        assert_eq!(fault.position, anchored);
        let renamed = "0199b3c4-5d6e-7f80-8a9b-0c1d2e3f4a5b";
        let sql = format!("UPDATE runs SET id = '{renamed}' WHERE place = {place}");
        assert_eq!(closed.first_fault(&sql).position, first);
    }
}

#[tokio::test]
async fn a_run_whose_head_was_altered_is_found() {
    let closed = Closed::new().await;
    for (place, id) in (1..).zip(&closed.runs) {
        let own = closed.entries.iter().filter(|e| e.run.is_some_and(|run| run.to_string() == *id));
        let head = own.map(|entry| entry.sequence).max().unwrap();
        for (set, sequence) in [
            ("head = head + 1", Sequence(head.0 + 1)),
            ("head = head - 1", Sequence(head.0 - 1)),
            ("head = 0", Sequence(0)),
            ("head_hash = randomblob(32)", head),
        ] {
            let report = closed.after(&format!("UPDATE runs SET {set} WHERE place = {place}"));
            let fault = AuditFault {
                position: Position(report.entries),
                run: Some(id.parse().unwrap()),
                sequence,
                what: "the run's chain does not end where the run says it does".into(),
            };
            assert_eq!(report.faults, [fault], "{set}");
        }
    }
}

#[tokio::test]
async fn a_question_to_people_that_was_made_up_is_found() {
    let closed = Closed::new().await;
    let made_up = "INSERT INTO approvals (position, run, call, expires_us) VALUES (5, 1, '1.0', 9)";
    let fault = closed.first_fault(made_up);
    assert!(fault.what.contains("the list of what people are asked"), "{fault:?}");
    assert_eq!(fault.run, Some(closed.runs[0].parse().unwrap()));
}

#[tokio::test]
async fn the_journal_refuses_to_be_changed_through_sqlite() {
    let closed = Closed::new().await;
    let connection = Connection::open(&closed.path).unwrap();
    for sql in [
        "UPDATE entries SET view = '{}' WHERE position = 3",
        "UPDATE entries SET view = view",
        "UPDATE OR REPLACE entries SET position = 1 WHERE position = 2",
        "DELETE FROM entries WHERE position = 3",
        "DELETE FROM entries",
        "UPDATE texts SET text = ''",
        "DELETE FROM texts",
        "UPDATE entry_texts SET at = at + 1",
        "DELETE FROM entry_texts",
    ] {
        let error = connection.execute(sql, []).unwrap_err();
        assert_eq!(error.to_string(), "the journal is append-only", "{sql}");
    }
    assert!(views_of_file(&closed.path).unwrap() == closed.entries, "nothing was changed");

    // A replacement fires no such trigger. It is found by its hash.
    connection
        .execute(
            "REPLACE INTO entries SELECT position, run, sequence, time_us, kind, version, '{}', body,
             body_digest, policy_revision, previous, hash, texts FROM entries WHERE position = 3",
            [],
        )
        .unwrap();
    connection.close().unwrap();
    assert_eq!(verify_file(&closed.path, Vec::new()).unwrap().faults[0].position, Position(3));
}

#[tokio::test]
async fn an_altered_journal_is_told_by_a_running_daemon_as_well() {
    let backend = Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await;
    let daemon = TestDaemon::start(&backend.url());
    let story = daemon.carry_out("tell the truth").await;
    let told = &story.entries[2];
    assert!(daemon.audit().await.intact);

    let connection = Connection::open(daemon.database()).unwrap();
    connection
        .execute_batch(&format!(
            "DROP TRIGGER entries_are_not_updated;
             UPDATE entries SET view = replace(view, 'done', 'dont') WHERE position = {}",
            told.position
        ))
        .unwrap();
    drop(connection);

    let answer = daemon.audit().await;
    assert!(!answer.intact);
    let fault = &answer.faults[0];
    assert_eq!((fault.position, &fault.run_id), (told.position, &story.run.id));
    let verified = daemon.agentctl(&["audit", "verify"]).await;
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
}

// Secrets.

const KEY: &str = "planted-key-4f9a8b7c6d5e";
const TOKEN: &str = "sk-plantedABCDEFGH0123456789";
/// The key as programs wrap it.
const IN_BASE64: &str = "cGxhbnRlZC1rZXktNGY5YThiN2M2ZDVl";
const IN_HEXADECIMAL: &str = "706c616e7465642d6b65792d346639613862376336643565";

/// Fails if a planted secret stands in `text`.
fn assert_clean(what: &str, text: &[u8]) {
    for secret in [KEY, TOKEN, IN_BASE64, IN_HEXADECIMAL] {
        let found = text.windows(secret.len()).position(|window| window == secret.as_bytes());
        if let Some(place) = found {
            let around = &text[place.saturating_sub(80)..(place + 60).min(text.len())];
            panic!("a secret stands in {what}: {}", String::from_utf8_lossy(around));
        }
    }
}

/// All files below a directory.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.extend([path].into_iter().filter(|path| path.is_file())),
        }
    }
    found
}

fn with_key(backend: &Backend) -> TestDaemon {
    TestDaemon::start_with(Settings {
        base_url: backend.url(),
        environment: vec![
            ("OPENAI_API_KEY".into(), KEY.into()),
            ("AGENTD_LOG".into(), "trace".into()),
        ],
        ..Settings::default()
    })
}

#[tokio::test]
async fn a_secret_reaches_the_model_and_nobody_else() {
    let both = format!("{KEY} and {TOKEN}");
    let turns = vec![
        Turn::call("read_file", json!({"path": "notes"})),
        Turn::call("write_file", json!({"path": "copy", "content": both})),
        Turn::call("shell_exec", json!({"command": "sh pure.sh"})),
        Turn::call("shell_exec", json!({"command": ["ls", TOKEN]})),
        Turn::call("read_file", json!({"path": KEY})),
        Turn::say(&format!("You told me {both}, I think.")),
    ];
    let backend = Backend::start_slow(Script { turns }, std::time::Duration::from_millis(1)).await;
    let mut daemon = with_key(&backend);
    daemon.put("notes", &format!("first {KEY}\n{TOKEN}\tthen \"{TOKEN}\"\n{KEY}"));
    daemon.put("pure.sh", "until [ -e go ]; do sleep 0.02; done; cat notes; cat notes >&2\n\
         head -c 30 notes | tail -c 24 | base64; head -c 30 notes | tail -c 24 | od -An -tx1 | tr -d ' \n'");
    let mut request = daemon.request(&format!("remember {both}"));
    request.labels = [("mine".to_owned(), KEY.to_owned())].into();
    let run = daemon.create(request).await.unwrap().run.unwrap();
    assert_clean("the answer to CreateRun", format!("{run:?}").as_bytes());

    // Followed live, words included.
    let follow = v1::StreamRunEventsRequest { id: run.id.clone(), after_sequence: 0, follow: true };
    let mut stream =
        daemon.client().await.runs().stream_run_events(follow).await.unwrap().into_inner();
    let mut words = String::new();
    while let Some(message) = stream.message().await.unwrap() {
        assert_clean("a live event", format!("{message:?}").as_bytes());
        match message.event {
            Some(Event::CaughtUp(_)) => daemon.put("go", ""),
            Some(Event::TextDelta(delta)) => words.push_str(&delta.text),
            _ => {}
        }
    }
    assert_clean("the words as they came, joined", words.as_bytes());
    assert!(words.starts_with("You told me"), "control: words came: {words:?}");

    let story = daemon.story(&run.id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    assert_eq!(story.run.answer, "You told me [redacted] and [redacted], I think.");
    assert_clean("the journal", format!("{:?}", story.entries).as_bytes());
    assert_clean("GetRun", format!("{:?}", daemon.get(&run.id).await).as_bytes());
    assert_clean("ListRuns", format!("{:?}", daemon.runs().await).as_bytes());
    let id = run.id.as_str();
    for arguments in [
        &["run", "get", id][..],
        &["run", "get", id, "-o", "json"],
        &["run", "list"],
        &["run", "list", "-o", "json"],
        &["run", "events", id],
        &["run", "events", id, "-o", "json"],
        &["run", "follow", id],
        &["run", "wait", id],
        &["info"],
        &["policy", "explain", &format!("ls {KEY} {TOKEN}")],
    ] {
        let output = daemon.agentctl(arguments).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_clean(&format!("stdout of {arguments:?}"), &output.stdout);
        assert_clean(&format!("stderr of {arguments:?}"), &output.stderr);
    }
    assert_clean("the log", daemon.log().as_bytes());
    assert!(daemon.log().contains("TRACE"), "control: everything was logged");

    // The model and the workspace have it all.
    let last = backend.server.requests().pop().unwrap().to_string();
    for wrapped in [IN_BASE64, IN_HEXADECIMAL] {
        assert!(last.contains(wrapped), "control: {last}");
    }
    for secret in [KEY, TOKEN] {
        assert!(last.matches(secret).count() >= 6, "control: {last}");
        assert!(daemon.read("copy").unwrap().contains(secret));
    }
    // While the daemon writes and after it has stopped, in every byte that it keeps.
    for path in files(&daemon.state()) {
        assert_clean(&path.display().to_string(), &fs::read(&path).unwrap());
    }
    daemon.terminate();
    assert_eq!(daemon.exit_code().await, Some(0));
    for path in files(&daemon.state()) {
        assert_clean(&path.display().to_string(), &fs::read(&path).unwrap());
    }
    assert_clean("the log", daemon.log().as_bytes());
}

#[tokio::test]
async fn a_secret_survives_the_daemon_only_under_seal() {
    let asked = AtomicUsize::new(0);
    let backend = Backend::start(move |_: &Seen| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Hang,
        _ => Reply::Answer(Turn::say("I remember")),
    })
    .await;
    let mut daemon = with_key(&backend);
    let run = daemon.submit(&format!("remember {KEY}")).await;
    backend.wait_for_requests(1).await;
    daemon.kill();
    for path in files(&daemon.state()) {
        assert_clean(&path.display().to_string(), &fs::read(&path).unwrap());
    }

    daemon.restart();

    assert_eq!(daemon.wait(&run.id).await.answer, "I remember");
    assert_eq!(backend.tasks(), [format!("remember {KEY}"), format!("remember {KEY}")]);
}

#[tokio::test]
async fn a_backend_that_repeats_the_key_does_not_make_it_known() {
    let said = format!(r#"{{"error":{{"message":"Incorrect API key: {KEY}, {TOKEN}"}}}}"#);
    let backend = Backend::start(move |_: &Seen| Reply::Http {
        status: 401,
        headers: vec![("x-request-id".into(), KEY.into())],
        body: said.clone(),
    })
    .await;
    let daemon = with_key(&backend);

    let story = daemon.carry_out("let me in").await;

    assert_eq!(story.state(), RunState::Failed);
    let message = &story.run.error.as_ref().unwrap().message;
    assert!(message.contains("Incorrect API key: [redacted], [redacted]"), "{message}");
    assert_clean("the journal", format!("{story:?}").as_bytes());
    for path in files(&daemon.state()) {
        assert_clean(&path.display().to_string(), &fs::read(&path).unwrap());
    }
    assert_clean("the log", daemon.log().as_bytes());
    assert!(daemon.log().contains("a request to the model failed"), "control: it was logged");
}

#[tokio::test]
async fn a_key_that_a_backend_repeats_is_not_cut_in_half_either() {
    // Longer than what is repeated of it, which ends in the middle of the key.
    let words = format!("{} {KEY} {}", "-".repeat(480), "-".repeat(100));
    let said = json!({"error": {"message": words, "code": "insufficient_quota"}}).to_string();
    let backend = Backend::start(move |_: &Seen| Reply::Http {
        status: 429,
        headers: Vec::new(),
        body: said.clone(),
    })
    .await;
    let daemon = with_key(&backend);

    let story = daemon.carry_out("let me in").await;
    let doctor = daemon.agentctl(&["doctor", "--backend"]).await;
    let health = daemon.agentctl(&["health", "-o", "json"]).await;

    let message = &story.run.error.as_ref().unwrap().message;
    assert!(
        message.contains("--- [redacted]") && message.ends_with("another backend"),
        "{message}"
    );
    let told = format!("{story:?}{doctor:?}{health:?}{}", daemon.log());
    assert!(!told.contains(&KEY[..8]), "{told}");
    assert!(format!("{doctor:?}").contains("answered 429"), "control: it was told: {doctor:?}");
    for path in files(&daemon.state()) {
        let content = fs::read(&path).unwrap();
        let half = content.windows(8).any(|window| window == &KEY.as_bytes()[..8]);
        assert!(!half, "half a secret stands in {}", path.display());
    }
}

#[tokio::test]
async fn the_daemon_s_own_token_is_a_secret_like_any_other() {
    let backend =
        Backend::start(|seen: &Seen| Reply::Answer(Turn::say(&format!("I heard: {}", seen.task))))
            .await;
    let daemon = TestDaemon::start(&backend.url());
    let token = fs::read_to_string(daemon.token_file()).unwrap().trim().to_owned();

    let story = daemon.carry_out(&format!("my token is {token}")).await;

    assert_eq!(story.run.answer, "I heard: my token is [redacted]");
    assert!(!format!("{story:?}").contains(&token));
    assert_eq!(backend.tasks(), [format!("my token is {token}")]);
}
