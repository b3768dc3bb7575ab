//! The journal's head is signed, and whoever kept one can tell when the journal before it was written anew: by one who
//! may write every file of the daemon, too.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use agentd::scripted::{Reply, Seen, Turn};
use serde_json::Value;

use crate::support::{Backend, Settings, TestDaemon};

/// Signs after so few entries that a run sees some of it.
const OFTEN: &str = "audit: {head_entries: 4}\n";

/// Does the digest over from the database alone, as docs/journal.md says, up to a position.
const DIGEST: &str = r#"
import hashlib, sqlite3, sys
sum = bytes(32)
rows = sqlite3.connect(sys.argv[1]).execute(
    "SELECT hash FROM entries WHERE position <= ? ORDER BY position", [int(sys.argv[2])])
for (entry,) in rows:
    sum = hashlib.sha256(b"agentd/journal/1" + sum + entry).digest()
print(sum.hex())
"#;

/// Writes a head's message, its signature and the key as other programs want them.
const PARTS: &str = r#"
import datetime, json, struct, sys
line = json.loads(open(sys.argv[1]).read().splitlines()[-1])
head = line["payload"]
at = datetime.datetime.fromisoformat(line["time"].replace("Z", "+00:00"))
since = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
micros = (since.days * 86400 + since.seconds) * 1000000 + since.microseconds
message = b"agentd/head/1" + struct.pack("<QQ", head["entries"], micros) + bytes.fromhex(head["digest"])
open("message", "wb").write(message)
open("signature", "wb").write(bytes.fromhex(head["signature"]))
open("key.der", "wb").write(bytes.fromhex("302a300506032b6570032100" + head["key"]))
"#;

async fn lab() -> (Backend, TestDaemon) {
    let backend = Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await;
    let settings = Settings { configuration: OFTEN.into(), ..Settings::default() };
    let daemon = TestDaemon::start_with(Settings { base_url: backend.url(), ..settings });
    (backend, daemon)
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|part| String::from_utf8_lossy(part).into_owned()).concat()
}

/// What a holder outside keeps.
async fn keep(daemon: &TestDaemon, name: &str) -> PathBuf {
    let file = daemon.home().join(name);
    let path = file.to_str().unwrap();
    let done = daemon.agentctl(&["audit", "export", "--kind", "head_signed", "--to", path]).await;
    assert!(done.status.success(), "{}", said(&done));
    file
}

async fn verify(daemon: &TestDaemon, more: &[&str]) -> (Option<i32>, Value) {
    let done = daemon.agentctl(&[&["-o", "json", "audit", "verify"], more].concat()).await;
    let report = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| said(&done).into());
    (done.status.code(), report)
}

fn faults(report: &Value) -> Vec<&str> {
    let faults = report["faults"].as_array().unwrap_or_else(|| panic!("{report}"));
    faults.iter().map(|fault| fault["what"].as_str().unwrap()).collect()
}

fn python(directory: &Path, script: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("python3");
    let done = command.arg("-c").arg(script).args(arguments).current_dir(directory).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{}", said(&done));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn what_a_head_signs_can_be_told_without_agentd() {
    let (_backend, daemon) = lab().await;
    daemon.carry_out("a task").await;
    let kept = keep(&daemon, "heads.jsonl").await;

    let text = fs::read_to_string(&kept).unwrap();
    let head: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let signed = head["payload"]["entries"].as_u64().unwrap();
    let database = daemon.database();
    let counted = [database.to_str().unwrap(), &signed.to_string()];
    assert_eq!(
        python(daemon.home(), DIGEST, &counted),
        head["payload"]["digest"].as_str().unwrap()
    );

    python(daemon.home(), PARTS, &[kept.to_str().unwrap()]);
    let verified = |message: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key.der"]);
        openssl.args(["-rawin", "-in", message, "-sigfile", "signature"]);
        openssl.current_dir(daemon.home()).output().unwrap()
    };
    assert!(verified("message").status.success(), "{}", said(&verified("message")));
    fs::write(daemon.home().join("other"), "agentd/head/1").unwrap();
    assert!(!verified("other").status.success(), "control: another message is not signed");
}

#[tokio::test]
async fn heads_are_signed_as_entries_come_and_at_the_end_of_a_daemon() {
    let (_backend, mut daemon) = lab().await;
    daemon.carry_out("a task").await;
    daemon.carry_out("another task").await;

    let (code, report) = verify(&daemon, &[]).await;
    let (entries, signed) = (&report["entries"], &report["signed_entries"]);
    let unsigned = entries.as_u64().unwrap() - signed.as_u64().unwrap();
    assert!(code == Some(0) && report["signed_heads"].as_u64().unwrap() >= 2, "{report}");
    // The head itself, and what came after it.
    assert!(unsigned <= 4, "{report}");
    let key = report["keys"][0].clone();

    assert_eq!(daemon.stop(), Some(0));
    let file = daemon.database();
    let (_, stopped) = verify(&daemon, &["--file", file.to_str().unwrap()]).await;
    let (entries, signed) = (&stopped["entries"], &stopped["signed_entries"]);
    assert_eq!(entries.as_u64().unwrap(), signed.as_u64().unwrap() + 1, "{stopped}");

    daemon.restart();
    daemon.carry_out("a third task").await;
    let (_, report) = verify(&daemon, &["--deep"]).await;
    assert!(report["signed_entries"].as_u64() > signed.as_u64(), "{report}");
    assert_eq!(report["keys"], serde_json::json!([key]), "the key stays");
}

/// A store that somebody puts back to where it was and goes on with differently is intact in itself: who has the files has
/// the key. Only a head that was kept elsewhere tells, also of a copy and of a mirror.
#[tokio::test]
async fn a_journal_that_was_written_anew_is_found_by_a_head_that_was_kept() {
    let (_backend, mut daemon) = lab().await;
    daemon.carry_out("first").await;
    assert_eq!(daemon.stop(), Some(0));
    let before = fs::read(daemon.database()).unwrap();
    daemon.restart();
    daemon.carry_out("what is to be forgotten").await;
    let kept = keep(&daemon, "heads.jsonl").await;
    let heads = ["--heads", kept.to_str().unwrap()];
    let (code, report) = verify(&daemon, &heads).await;
    assert_eq!(code, Some(0), "it is as it was: {report}");
    let count = fs::read_to_string(&kept).unwrap().lines().count();
    assert_eq!(report["kept_heads_compared"], count);

    assert_eq!(daemon.stop(), Some(0));
    fs::write(daemon.database(), &before).unwrap();
    fs::remove_dir_all(daemon.state().join("audit")).unwrap();
    let file = daemon.database();
    let cut = [&["--file", file.to_str().unwrap()], &heads[..]].concat();
    let (code, report) = verify(&daemon, &cut).await;
    assert_eq!(code, Some(1), "{report}");
    let last = faults(&report).pop().unwrap().to_owned();
    assert!(last.starts_with("the journal ends at entry "), "{report}");

    daemon.restart();
    daemon.carry_out("another").await;
    daemon.carry_out("and another").await;
    let (code, report) = verify(&daemon, &["--deep"]).await;
    assert_eq!((code, faults(&report)), (Some(0), vec![]), "control: in itself it is intact");
    let (code, report) = verify(&daemon, &heads).await;
    let other = "the journal before it is not what a kept head of";
    assert!(code == Some(1) && faults(&report)[0].starts_with(other), "{report}");
    assert_eq!(daemon.stop(), Some(0));
    let file = fs::read_dir(daemon.state().join("audit")).unwrap().next().unwrap().unwrap().path();
    let mirror = ["--file", file.to_str().unwrap()];
    let (code, report) = verify(&daemon, &mirror).await;
    assert_eq!((code, faults(&report)), (Some(0), vec![]), "control: so is its mirror");
    let (code, report) = verify(&daemon, &[&mirror, &heads[..]].concat()).await;
    assert!(code == Some(1) && faults(&report)[0].contains(other), "{report}");
}

#[tokio::test]
async fn a_head_in_the_journal_that_signs_something_else_is_found() {
    let (_backend, mut daemon) = lab().await;
    daemon.carry_out("a task").await;
    assert_eq!(daemon.stop(), Some(0));

    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    database.execute_batch("DROP TRIGGER entries_are_not_updated").unwrap();
    let swap = "UPDATE entries SET view = (SELECT view FROM entries WHERE kind = 'head_signed'
                                           ORDER BY position LIMIT 1)
                WHERE position = (SELECT max(position) FROM entries WHERE kind = 'head_signed')";
    assert_eq!(database.execute(swap, []).unwrap(), 1);
    drop(database);

    let file = daemon.database();
    let (code, report) = verify(&daemon, &["--file", file.to_str().unwrap()]).await;
    assert_eq!(code, Some(1));
    let found = faults(&report);
    assert!(found.contains(&"was altered: its hash does not fit"), "{report}");
    assert!(found.contains(&"its signature does not fit"), "its time is another: {report}");
}

#[tokio::test]
async fn a_file_that_holds_no_heads_or_changed_ones_is_bad_usage() {
    let (_backend, daemon) = lab().await;
    daemon.carry_out("a task").await;
    let kept = keep(&daemon, "heads.jsonl").await;
    let text = fs::read_to_string(&kept).unwrap();

    let first = text.lines().next().unwrap();
    let entries: Value = serde_json::from_str(first).unwrap();
    let entries = entries["payload"]["entries"].to_string();
    let changed = first.replace(&format!("\"entries\":{entries}"), "\"entries\":3");
    for (content, expected) in [
        ("", "holds no signed head"),
        ("nonsense\n", "line 1 is no signed head"),
        (&changed, "line 1: the signature does not fit what it signs"),
    ] {
        fs::write(&kept, content).unwrap();
        let done = daemon.agentctl(&["audit", "verify", "--heads", kept.to_str().unwrap()]).await;
        let text = said(&done);
        assert!(done.status.code() == Some(2) && text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn a_key_of_its_own_place_is_used_and_one_that_is_none_is_told() {
    let backend = Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await;
    let place = tempfile::tempdir().unwrap();
    let key = place.path().join("head.key");
    // By another maker, who leaves the public half out.
    let mut openssl = Command::new("openssl");
    openssl.args(["genpkey", "-algorithm", "ed25519", "-outform", "DER", "-out"]).arg(&key);
    assert!(openssl.output().unwrap().status.success());
    let configuration = format!("audit: {{head_entries: 4, signing_key: {}}}\n", key.display());
    let mut daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration,
        ..Settings::default()
    });
    daemon.carry_out("a task").await;
    assert!(!daemon.state().join("sign.key").exists());
    assert!(verify(&daemon, &[]).await.1["signed_heads"].as_u64().unwrap() > 0);
    assert_eq!(daemon.stop(), Some(0));

    fs::write(&key, "nonsense").unwrap();
    let done = daemon.command().output().unwrap();
    assert!(!done.status.success());
    let log = daemon.log();
    assert!(log.contains("(audit.signing_key), cannot be used"), "{log}");
    assert!(log.contains("holds no Ed25519 key"), "{log}");
}
