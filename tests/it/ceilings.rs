//! What a program may write, and what the programs of one run may have together.

use std::fs;

use agentd::scripted::{Reply, Script, Seen, Turn};
use serde_json::{Value, json};

use crate::support::{Backend, Settings, TestDaemon};

const LOUD: &str = "
  - id: test.loud
    argv: [sh, loud.sh]
    limits: {wall_seconds: 50, cpu_seconds: 50, memory_mib: 64, processes: 64, open_files: 64, file_mib: 1,
      stdout_mib: 1, stderr_mib: 2}
    why: the test's own script, with little to say
";

async fn loud(script: &str) -> Value {
    let turns =
        vec![Turn::call("shell_exec", json!({"command": ["sh", "loud.sh"]})), Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let settings =
        Settings { base_url: backend.url(), commands: LOUD.into(), ..Settings::default() };
    let daemon = TestDaemon::start_with(settings);
    daemon.put("loud.sh", script);
    let story = daemon.carry_out("say it").await;
    let (outcome, output) = story.outputs().remove(0);
    assert_eq!(outcome, "done", "{output}");
    output
}

#[tokio::test]
async fn who_writes_more_than_it_may_is_killed_and_the_outcome_says_which_limit_that_was() {
    for script in ["yes; echo never", "yes >&2; echo never", "yes & exec yes"] {
        let output = loud(script).await;
        assert_eq!(output["limit"], "output", "{script}: {output}");
        assert!(output["exit_code"].is_null(), "{output}");
        assert!(!output["stdout"].as_str().unwrap().contains("never"), "{output}");
    }
    let output = loud("head -c 1048576 /dev/zero; head -c 2097152 /dev/zero >&2").await;
    assert_eq!((&output["exit_code"], &output["limit"]), (&json!(0), &json!(null)), "control");
}

/// Tells, in `seen`, how many of its like are at work, and works until `enough` are, or for a while.
const ONE_OF_SOME: &str = "\
    mkdir -p running; mine=$(mktemp -p running)\n\
    ls running | wc -l >> seen\n\
    for n in $(seq 40); do [ $(ls running | wc -l) -ge $(cat enough) ] && break; sleep 0.02; done\n\
    ls running | wc -l >> seen\n\
    rm $mine\n";

/// A daemon whose tools.yaml is the default one but for what `change` does to it.
fn daemon_with(backend: &Backend, change: impl Fn(String) -> String) -> TestDaemon {
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.stop();
    let path = daemon.home().join("policies/tools.yaml");
    let rules = fs::read_to_string(&path).unwrap();
    let changed = change(rules.clone());
    assert_ne!(changed, rules, "control: there is something to change");
    fs::write(&path, changed).unwrap();
    daemon.restart();
    daemon
}

/// Most of them that were at work at one time.
async fn at_once(ceiling: &str) -> usize {
    let turn = (0..4).fold(Turn::default(), |turn, _| {
        turn.and_call("shell_exec", json!({"command": ["sh", "script.sh"]}))
    });
    let backend = Backend::start(Script { turns: vec![turn, Turn::say("done")] }).await;
    let daemon = daemon_with(&backend, |rules| {
        rules.replace("run_limits: {memory_mib: 16384, processes: 2048,", ceiling)
    });
    daemon.put("script.sh", ONE_OF_SOME);
    daemon.put("enough", "4");
    let story = daemon.carry_out("four of them").await;
    assert!(story.outputs().iter().all(|(_, output)| output["exit_code"] == 0));
    let seen = daemon.read("seen").unwrap();
    seen.lines().map(|line| line.trim().parse().unwrap()).max().unwrap()
}

#[tokio::test]
async fn calls_of_one_run_wait_until_their_limits_fit_below_the_run_s_ceiling() {
    // Each may have 2048 MiB and 256 processes.
    assert_eq!(at_once("run_limits: {memory_mib: 8192, processes: 1024,").await, 4, "control");
    assert_eq!(at_once("run_limits: {memory_mib: 4096, processes: 2048,").await, 2);
    assert_eq!(at_once("run_limits: {memory_mib: 16384, processes: 512,").await, 2);
}

#[tokio::test]
async fn when_a_run_s_programs_have_used_up_their_cpu_time_no_other_is_started() {
    let backend = Backend::start(|seen: &Seen| {
        let call = || Turn::call("shell_exec", json!({"command": ["sh", "script.sh"]}));
        Reply::Answer(if seen.turn < 3 { call() } else { Turn::say("done") })
    })
    .await;
    let daemon = daemon_with(&backend, |rules| {
        let one = |line: &str| match line.split_once("cpu_seconds: ") {
            Some((before, after)) => {
                let rest = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
                format!("{before}cpu_seconds: 1{rest}\n")
            }
            None => format!("{line}\n"),
        };
        rules.lines().map(one).collect()
    });
    daemon.put("script.sh", "echo started >> started; while :; do :; done");

    let story = daemon.carry_out("use it up").await;

    let outputs = story.outputs();
    assert_eq!(outputs[0].1["limit"], "cpu", "{outputs:?}");
    assert_eq!(outputs[1].1["error"]["reason"], "RUN_CPU_TIME", "{outputs:?}");
    assert_eq!(daemon.read("started").unwrap(), "started\n");
    let used = story.run.usage.unwrap().cpu_ms;
    assert!((500..3000).contains(&used), "about its second: {used}");
    assert_eq!(daemon.carry_out("another run has its own").await.outputs()[0].1["limit"], "cpu");
}
