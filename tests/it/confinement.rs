//! What a program that was allowed to run can still not do. Attacks with positive controls, judged from
//! outside of the daemon.

use std::{collections::HashMap, fs, path::Path};

use agentd::{
    proto::v1,
    scripted::{Script, Turn},
};
use serde_json::{Value, json};

use crate::support::{
    Backend, Settings, Story, TestDaemon,
    processes::{command_line, descendants, launchers},
    wait_until,
};

/// Runs one script of the workspace as a tool call. Gives what the model heard of it.
async fn run(
    daemon_of: impl FnOnce(String) -> TestDaemon,
    name: &str,
    script: &str,
) -> (TestDaemon, Story, Value) {
    let turns = vec![Turn::call("shell_exec", json!({"command": ["sh", name]})), Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = daemon_of(backend.url());
    daemon.put(name, script);
    let story = daemon.carry_out("run it").await;
    let (outcome, output) = story.outputs().remove(0);
    assert_eq!(outcome, "done", "{output}");
    (daemon, story, output)
}

async fn plain(name: &str, script: &str) -> (TestDaemon, Story, Value) {
    run(|url| TestDaemon::start(&url), name, script).await
}

/// Whether any process of this machine has this word in its command line.
fn is_running(word: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines.any(|line| line.split(|byte| *byte == 0).any(|found| found == word.as_bytes()))
}

/// A number of seconds that no other test sleeps, and a sign that such a sleeper would be seen.
async fn sleepers_of(test: &str) -> String {
    let seconds = format!("{}.{}", 1000 + test.len(), std::process::id());
    let mut control = std::process::Command::new("sleep").arg(&seconds).spawn().unwrap();
    wait_until("control: a sleeper is seen", || is_running(&seconds)).await;
    control.kill().unwrap();
    control.wait().unwrap();
    seconds
}

async fn mechanisms(daemon: &TestDaemon) -> HashMap<String, String> {
    let request = v1::GetServerInfoRequest {};
    daemon
        .client()
        .await
        .admin()
        .get_server_info(request)
        .await
        .unwrap()
        .into_inner()
        .sandbox_limits
}

#[tokio::test]
async fn a_program_s_environment_is_made_from_nothing() {
    let planted = ("PLANTED_SECRET".to_owned(), "not-for-tools".to_owned());
    let with_secret = |url: String| {
        let environment = vec![planted.clone()];
        TestDaemon::start_with(Settings { base_url: url, environment, ..Settings::default() })
    };
    let (daemon, _, output) = run(with_secret, "script.sh", "env").await;

    let own = fs::read(format!("/proc/{}/environ", daemon.pid().as_raw_nonzero())).unwrap();
    assert!(String::from_utf8_lossy(&own).contains("not-for-tools"), "control: the daemon has it");
    let mut names: Vec<&str> = output["stdout"]
        .as_str()
        .unwrap()
        .lines()
        .map(|line| line.split('=').next().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "GIT_CONFIG_GLOBAL",
            "GIT_CONFIG_NOSYSTEM",
            "GIT_OPTIONAL_LOCKS",
            "GIT_PAGER",
            "GIT_TERMINAL_PROMPT",
            "HOME",
            "LANG",
            "PATH",
            "PWD",
            "TMPDIR",
            "TZ",
        ],
        "what the policy names, and what the shell itself sets"
    );
}

#[tokio::test]
async fn a_program_s_input_is_empty_and_no_descriptor_of_the_daemon_is_open() {
    let script = "cat; echo end of input; for f in /proc/$$/fd/*; do readlink $f; done";
    let (daemon, _, output) = plain("script.sh", script).await;

    let targets = |pid: &str| -> Vec<String> {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        links
            .filter_map(|link| Some(fs::read_link(link.path()).ok()?.display().to_string()))
            .collect()
    };
    let own = targets(&daemon.pid().as_raw_nonzero().to_string());
    assert!(own.iter().any(|target| target.ends_with("agentd.db")), "control: {own:?}");
    let stdout = output["stdout"].as_str().unwrap();
    let (before, open) = stdout.split_once("end of input\n").unwrap();
    assert_eq!(before, "");
    for target in open.lines() {
        let expected =
            target == "/dev/null" || target.starts_with("pipe:") || target.ends_with("script.sh");
        assert!(expected, "{target} is open in the program");
    }
}

#[tokio::test]
async fn a_program_cannot_gain_privileges() {
    let (_daemon, _, output) = plain("script.sh", "grep NoNewPrivs /proc/self/status").await;
    assert_eq!(output["stdout"], "NoNewPrivs:\t1\n");
}

#[tokio::test]
async fn a_program_dies_of_a_closed_pipe_as_it_would_anywhere() {
    let (_daemon, _, output) =
        plain("script.sh", "yes | head -n 1; grep SigIgn /proc/self/status").await;
    let ignored = output["stdout"].as_str().unwrap().strip_prefix("y\nSigIgn:\t").unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_eq!(ignored & (1 << 12), 0, "SIGPIPE is ignored: {ignored:x}");
    assert_eq!(output["stderr"], "");
}

#[tokio::test]
async fn when_its_time_is_up_the_whole_tree_is_killed_also_what_has_detached_itself() {
    let seconds = sleepers_of("the whole tree").await;
    let script = "setsid sh -c 'echo > detached; exec sleep SECONDS' &\n\
                  sleep SECONDS & echo > child\n\
                  while true; do sleep SECONDS; done"
        .replace("SECONDS", &seconds);
    let (daemon, story, output) = plain("short.sh", &script).await;

    assert_eq!(output["limit"], "timeout");
    for name in ["detached", "child"] {
        assert!(daemon.read(name).is_some(), "control: {name} was started");
    }
    assert!(!is_running(&seconds), "one of them lives");
    assert_no_groups_left(&story.run.id);
}

#[tokio::test]
async fn what_a_program_leaves_behind_is_killed_when_it_ends() {
    let seconds = sleepers_of("left behind").await;
    let script = "setsid sh -c 'echo left > left; exec sleep SECONDS' & \n\
                  while [ ! -s left ]; do :; done; echo main is done"
        .replace("SECONDS", &seconds);
    let (daemon, story, output) = plain("script.sh", &script).await;

    assert_eq!((&output["exit_code"], &output["stdout"]), (&json!(0), &json!("main is done\n")));
    assert!(daemon.read("left").is_some(), "control: it was started");
    assert!(!is_running(&seconds), "it lives, and holds the output open");
    assert_no_groups_left(&story.run.id);
}

#[tokio::test]
async fn who_kills_the_launcher_kills_the_program_and_what_it_started() {
    let seconds = sleepers_of("the launcher's death").await;
    let script = "setsid sh -c 'echo > started; exec sleep SECONDS' & sleep SECONDS"
        .replace("SECONDS", &seconds);
    let turns = vec![Turn::call("shell_exec", json!({"command": ["sh", "script.sh"]}))];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    if mechanisms(&daemon).await["isolation"] == "landlock" {
        crate::support::not_checked("a killed launcher's programs (isolation=landlock)");
        return;
    }
    daemon.put("script.sh", &script);
    let run = daemon.submit("run it").await;
    wait_until("it has started", || daemon.read("started").is_some()).await;
    // One is at work; others may wait for work.
    let of_work = |launcher: &i32| {
        descendants(*launcher).into_iter().any(|process| command_line(process).contains(&seconds))
    };
    let launchers: Vec<i32> = launchers(daemon.pid()).into_iter().filter(of_work).collect();
    assert_eq!(launchers.len(), 1, "control: there is one");
    let launcher = rustix::process::Pid::from_raw(launchers[0]).unwrap();
    rustix::process::kill_process(launcher, rustix::process::Signal::KILL).unwrap();

    wait_until("nobody sleeps", || !is_running(&seconds)).await;
    assert_eq!(daemon.wait(&run.id).await.state(), v1::RunState::Failed);
}

/// No cgroup of this run is left in any tree.
pub(crate) fn assert_no_groups_left(run: &str) {
    let trees = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    for tree in trees {
        let groups = fs::read_dir(tree.path()).into_iter().flatten().flatten();
        let left: Vec<_> =
            groups.filter(|group| group.file_name().to_string_lossy().contains(run)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn long_output_keeps_its_head_and_its_tail_and_says_how_much_is_missing() {
    let (_daemon, _, output) = plain("script.sh", "seq 1 1000000").await;
    let stdout = output["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("1\n2\n3\n") && stdout.ends_with("999999\n1000000\n"));
    assert!(stdout.contains("bytes left out ...]"));
    assert!(stdout.len() < 40_000, "{}", stdout.len());
}

#[tokio::test]
async fn a_file_cannot_grow_beyond_its_limit() {
    let script = "dd if=/dev/zero of=big bs=65536 count=64 2>/dev/null; echo status $?";
    let (control, _, output) = plain("script.sh", script).await;
    assert_eq!(output["stdout"], "status 0\n", "control: with more room it does");
    assert_eq!(fs::metadata(control.workspace().join("big")).unwrap().len(), 4 << 20);

    let (daemon, _, output) = plain("short.sh", script).await;
    assert_ne!(output["stdout"], "status 0\n");
    assert_eq!(fs::metadata(daemon.workspace().join("big")).unwrap().len(), 1 << 20);
}

#[tokio::test]
async fn memory_beyond_the_limit_is_not_given_and_the_daemon_lives() {
    // tail keeps the whole input, since it has no line break.
    let script = "head -c 200000000 /dev/zero | tail -n 1 | wc -c; echo end";
    let (_control, _, output) = plain("script.sh", script).await;
    assert_eq!(output["stdout"], "200000000\nend\n", "control: with more memory it does");

    let (daemon, _, output) = plain("small.sh", script).await;
    assert!(!output["stdout"].as_str().unwrap().contains("200000000"), "{output}");
    assert_eq!(output["limit"], "oom", "{output} {:?}", mechanisms(&daemon).await);
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_fork_bomb_stays_within_its_limit_and_nothing_of_it_is_left() {
    // Not forked: it must outlive the bomb, also where that has taken the last place.
    let bomb = "bomb() { bomb | bomb & }; bomb; exec sleep 1000";
    let backend = Backend::start(Script { turns: vec![Turn::say("unused")] }).await;
    let probe = TestDaemon::start(&backend.url());
    if !mechanisms(&probe).await["processes"].starts_with("cgroup") {
        // Where the launcher only looks now and then, the bomb is quicker, and hits the machine for a moment.
        crate::support::not_checked("the fork bomb (no cgroup can be made here; processes=polled)");
        return;
    }
    let (daemon, story, output) = plain("short.sh", bomb).await;

    assert_eq!(output["limit"], "timeout", "{output}");
    assert_eq!(daemon.audit().await.faults, []);
    let workspace = daemon.workspace();
    wait_until("no process is left in the workspace", || processes_in(&workspace).is_empty()).await;
    assert_no_groups_left(&story.run.id);
}

/// Processes whose working directory this is, or lies below it.
pub(crate) fn processes_in(directory: &Path) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory))
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

#[tokio::test]
async fn cpu_time_is_counted_recorded_and_ends_a_program_that_uses_it_up() {
    let (_control, story, output) = plain("script.sh", "head -c 300000000 /dev/zero | wc -c").await;
    assert_eq!(output["stdout"], "300000000\n", "control: with more time it does");
    let used = &story.payloads("tool_output")[0]["used"];
    assert!(used["cpu_ms"].as_u64().unwrap() > 0, "{used}");
    assert!(used["peak_memory_kib"].as_u64().unwrap() > 100, "{used}");

    let (_daemon, story, output) = plain("busy.sh", "while :; do :; done").await;
    assert_eq!(output["limit"], "cpu", "{output}");
    let used = story.payloads("tool_output")[0]["used"]["cpu_ms"].as_u64().unwrap();
    assert!(used > 0, "{used} ms");
    let many = "for i in 1 2 3 4; do (while :; do :; done) & done; wait; echo all are done";
    let (_daemon, story, output) = plain("busy.sh", many).await;
    assert_eq!((&output["limit"], &output["stdout"]), (&json!("cpu"), &json!("")), "{output}");
    let used = story.payloads("tool_output")[0]["used"]["cpu_ms"].as_u64().unwrap();
    assert!(used > 0, "of all together: {used} ms");
}

#[tokio::test]
async fn a_program_has_no_more_than_its_share_of_the_cpu() {
    let busy = "while :; do :; done";
    let spent = |story: &Story| {
        story.payloads("tool_output")[0]["used"]["cpu_ms"].as_u64().expect("its CPU time")
    };
    let (daemon, story, output) = plain("share.sh", busy).await;
    assert_eq!(output["limit"], "timeout", "{output}");
    if mechanisms(&daemon).await["cpu_share"] == "none" {
        crate::support::not_checked("a share of the CPU (no cgroup can be made here)");
        return;
    }
    let share = spent(&story);
    let (_control, story, _) = plain("whole.sh", busy).await;
    assert!(spent(&story) > 2 * share, "control: without a share it takes more than {share} ms");
}

#[tokio::test]
async fn a_program_that_is_refused_more_processes_is_told_so() {
    let script = "for i in $(seq 100); do sleep 50 & done; echo started";
    let (_control, _, output) = plain("script.sh", script).await;
    assert_eq!(output["stdout"], "started\n", "control: with more room it does");
    let (_daemon, _, output) = plain("small.sh", script).await;
    assert_eq!(output["limit"], "pids", "{output}");
}
