//! The journal over all runs, as lists, as a stream, and as files of lines that others keep: the same entries
//! everywhere, whatever happens to the daemon, and a byte that was changed in a file is found.

use std::{fs, path::PathBuf};

use agentd::{
    jsonl,
    proto::v1,
    scripted::{Script, Turn},
    sqlite::views_of_file,
};
use serde_json::{Value, json};

use crate::support::{Backend, TestDaemon, wait_until};

async fn busy() -> (Backend, TestDaemon) {
    let turns = vec![
        Turn::call("read_file", json!({"path": ".env"}))
            .and_call("write_file", json!({"path": "a", "content": "x"})),
        Turn::say("done"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    daemon.put(".env", "KEY=1");
    (backend, daemon)
}

/// The mirror's files, oldest first.
fn files(daemon: &TestDaemon) -> Vec<PathBuf> {
    let found = fs::read_dir(daemon.state().join("audit")).unwrap();
    let mut found: Vec<PathBuf> = found.map(|file| file.unwrap().path()).collect();
    found.sort();
    found
}

fn mirrored(daemon: &TestDaemon) -> String {
    files(daemon).iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

fn journal(daemon: &TestDaemon) -> String {
    let views = views_of_file(&daemon.database()).unwrap();
    views.iter().map(|view| jsonl::line(view).unwrap() + "\n").collect()
}

#[tokio::test]
async fn the_mirror_holds_every_entry_once_through_deaths_and_torn_lines() {
    let (_backend, mut daemon) = busy().await;
    daemon.carry_out("first").await;
    wait_until("the run's end is mirrored", || mirrored(&daemon).contains("run_finished")).await;
    daemon.carry_out("second").await;
    daemon.kill();
    // As after a power cut: half of the last line, and what came after the one before it, is missing.
    let last = files(&daemon).pop().unwrap();
    let text = fs::read_to_string(&last).unwrap();
    let kept = text.lines().count() / 2;
    let whole: String = text.lines().take(kept).map(|line| line.to_owned() + "\n").collect();
    fs::write(&last, whole.clone() + "{\"run_id\":\"0199").unwrap();
    daemon.restart();
    daemon.carry_out("third").await;
    assert_eq!(daemon.stop(), Some(0));

    assert_eq!(files(&daemon).len(), 2, "one for each daemon");
    assert_eq!(mirrored(&daemon), journal(&daemon), "to the byte, and nothing twice");
    assert!(mirrored(&daemon).lines().last().unwrap().contains("head_signed"), "the last words");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&last).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    for file in files(&daemon) {
        let verified =
            daemon.agentctl(&["audit", "verify", "--file", file.to_str().unwrap()]).await;
        assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    }
    let text = fs::read_to_string(&last).unwrap().replacen("\"deny\"", "\"allow\"", 1);
    fs::write(&last, text).unwrap();
    let altered = daemon.agentctl(&["audit", "verify", "--file", last.to_str().unwrap()]).await;
    assert_eq!(altered.status.code(), Some(1), "{altered:?}");
    let said = String::from_utf8_lossy(&altered.stdout).into_owned();
    assert!(said.contains("was altered: its hash does not fit"), "{said}");
}

#[tokio::test]
async fn files_without_a_whole_line_and_files_of_others_leave_no_gap() {
    let (_backend, mut daemon) = busy().await;
    daemon.carry_out("first").await;
    wait_until("the run's end is mirrored", || mirrored(&daemon).contains("run_finished")).await;
    daemon.kill();
    let audit = daemon.state().join("audit");
    // A daemon that died before its first line was whole, with a clock ahead; and what somebody left there.
    fs::write(audit.join("run-99990101T000000.000000Z.jsonl"), "{\"run_id\":").unwrap();
    fs::write(audit.join("zoo.jsonl"), "not ours\n").unwrap();
    daemon.restart();
    daemon.carry_out("second").await;
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(fs::read_to_string(audit.join("zoo.jsonl")).unwrap(), "not ours\n");
    let mut lines: Vec<String> = mirrored(&daemon)
        .lines()
        .filter(|line| jsonl::read(line).is_some())
        .map(str::to_owned)
        .collect();
    lines.sort_by_key(|line| jsonl::read(line).unwrap().position);
    assert_eq!(lines.join("\n") + "\n", journal(&daemon));
}

#[tokio::test]
async fn what_daemons_wrote_that_died_before_they_had_mirrored_anything_is_made_up_for() {
    let (_backend, mut daemon) = busy().await;
    daemon.carry_out("first").await;
    daemon.kill();
    // As if that had come to nothing yet.
    let _ = fs::remove_dir_all(daemon.state().join("audit"));
    daemon.restart();
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(mirrored(&daemon), journal(&daemon), "from the first entry on");
}

#[tokio::test]
async fn a_mirror_that_cannot_be_written_keeps_nobody_from_working() {
    let (_backend, mut daemon) = busy().await;
    let audit = daemon.state().join("audit");
    daemon.kill();
    // It may have come to nothing yet.
    let _ = fs::remove_dir_all(&audit);
    fs::write(&audit, "in the way").unwrap();
    daemon.restart();
    daemon.carry_out("first").await;
    let log = daemon.log();
    assert!(log.contains("the audit's mirror is behind"), "{log}");
    fs::remove_file(&audit).unwrap();
    daemon.kill();
    daemon.restart();
    daemon.carry_out("second").await;
    assert_eq!(daemon.stop(), Some(0));
    assert!(journal(&daemon).ends_with(&mirrored(&daemon)), "from that daemon on");
}

#[tokio::test]
async fn a_mirror_that_is_not_the_journal_s_is_left_as_it_is_and_a_new_one_begun() {
    let (_backend, mut daemon) = busy().await;
    daemon.carry_out("first").await;
    assert_eq!(daemon.stop(), Some(0));
    let last = files(&daemon).pop().unwrap();
    let text = fs::read_to_string(&last).unwrap();
    // One line less, and the one before it is another's.
    let forged = text.replace("daemon_stopped", "daemon_stoppeX");
    fs::write(&last, &forged).unwrap();
    daemon.restart();
    daemon.carry_out("second").await;
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(fs::read_to_string(&last).unwrap(), forged);
    let begun = fs::read_to_string(files(&daemon).pop().unwrap()).unwrap();
    assert!(journal(&daemon).ends_with(&begun) && begun.contains("daemon_started"));
}

async fn listed(daemon: &TestDaemon, filter: v1::AuditFilter) -> Vec<v1::JournalEntry> {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let filter = Some(filter.clone());
        let request = v1::ListAuditEntriesRequest { filter, page_size: 3, page_token };
        let page = daemon.client().await.audit().list_audit_entries(request).await.unwrap();
        let page = page.into_inner();
        assert!(page.entries.len() <= 3);
        found.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

#[tokio::test]
async fn entries_are_found_by_run_kind_tool_decision_rule_caller_and_time() {
    let (_backend, daemon) = busy().await;
    let story = daemon.carry_out("first").await;
    let (first, of_first) = (story.run, story.entries.len());
    let second = daemon.carry_out("second").await.run;
    let all = listed(&daemon, v1::AuditFilter::default()).await;
    let positions: Vec<u64> = all.iter().map(|entry| entry.position).collect();
    assert_eq!(positions, (1..=all.len() as u64).collect::<Vec<_>>());
    let any = v1::AuditFilter::default;
    let by_uid = format!("uid:{}", rustix::process::geteuid().as_raw());
    let begun = all.iter().find(|entry| entry.run_id == second.id).unwrap().time;
    for (filter, expected) in [
        (v1::AuditFilter { run_id: first.id.clone(), ..any() }, of_first),
        (v1::AuditFilter { kinds: vec!["decision".into()], ..any() }, 4),
        (v1::AuditFilter { kinds: vec!["decision".into(), "tool_call".into()], ..any() }, 8),
        (v1::AuditFilter { tool: "write_file".into(), ..any() }, 2),
        (v1::AuditFilter { decision: "deny".into(), ..any() }, 2),
        (v1::AuditFilter { rule: "secrets.env".into(), run_id: first.id.clone(), ..any() }, 1),
        (v1::AuditFilter { caller: by_uid, kinds: vec!["run_created".into()], ..any() }, 2),
        (v1::AuditFilter { caller: "caller:eve".into(), ..any() }, 0),
        (v1::AuditFilter { since_time: begun, run_id: first.id.clone(), ..any() }, 0),
        (v1::AuditFilter { until_time: begun, run_id: second.id.clone(), ..any() }, 0),
    ] {
        let found = listed(&daemon, filter.clone()).await;
        assert_eq!(found.len(), expected, "{filter:?}: {found:#?}");
    }
    let flags = ["audit", "list", "--kind", "decision", "--decision", "deny", "-o", "json"];
    let shown = daemon.agentctl(&flags).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    let rules: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rules.len(), 2, "{shown}");
    assert_eq!(rules[0]["payload"]["rule"], "secrets.env");
}

#[tokio::test]
async fn a_stream_of_all_runs_goes_on_after_a_position_and_tells_what_comes() {
    let (_backend, daemon) = busy().await;
    daemon.carry_out("first").await;
    let filter = Some(v1::AuditFilter { kinds: vec!["run_finished".into()], ..Default::default() });
    let after_position = daemon.audit().await.entries;
    let request =
        v1::StreamAuditEntriesRequest { filter: filter.clone(), after_position, follow: true };
    let stream = daemon.client().await.audit().stream_audit_entries(request).await.unwrap();
    let mut stream = stream.into_inner();
    let run = daemon.carry_out("second").await.run;
    let told = stream.message().await.unwrap().unwrap().entry.unwrap();
    assert_eq!((told.run_id.as_str(), told.kind.as_str()), (run.id.as_str(), "run_finished"));
    let request = v1::StreamAuditEntriesRequest { filter, after_position: 0, follow: false };
    let stream = daemon.client().await.audit().stream_audit_entries(request).await.unwrap();
    let mut stream = stream.into_inner();
    let mut count = 0;
    while stream.message().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 2, "and without following it ends");
}

#[tokio::test]
async fn an_export_is_the_journal_s_lines() {
    let (_backend, mut daemon) = busy().await;
    let story = daemon.carry_out("first").await;
    let run = &story.run;
    let to = daemon.home().join("all.jsonl");
    let done = daemon.agentctl(&["audit", "export", "--to", to.to_str().unwrap()]).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let one = daemon.agentctl(&["audit", "export", "--run", &run.id]).await;
    assert_eq!(daemon.stop(), Some(0));
    let exported = fs::read_to_string(&to).unwrap();
    assert!(journal(&daemon).starts_with(&exported) && exported.contains("run_anchored"));
    let one = String::from_utf8(one.stdout).unwrap();
    let run_file = daemon.home().join("one.jsonl");
    fs::write(&run_file, &one).unwrap();
    let whole = daemon.agentctl(&["audit", "verify", "--file", run_file.to_str().unwrap()]).await;
    assert_eq!(whole.status.code(), Some(0), "{whole:?}");
    assert!(one.lines().all(|line| jsonl::read(line).unwrap().run.unwrap().to_string() == run.id));
    assert_eq!(one.lines().count(), story.entries.len());
}
