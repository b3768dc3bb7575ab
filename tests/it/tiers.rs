//! What is left of a program's walls where the machine does not give all of them: the tier that is found is
//! the tier that is told, and what it promises holds.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use agentd::scripted::{Reply, Script, Seen, Turn};
use serde_json::{Value, json};

use crate::support::{Backend, Story, TestDaemon, not_checked};

/// A script that tries what every tier must refuse, and what every tier must allow.
const SCRIPT: &str = "\
    cat ../canary 2>/dev/null || echo kept from files\n\
    perl -e 'exit(syscall(SOCKET, 2, 1, 0) < 0)' && bash -c 'exec 3<>/dev/tcp/127.0.0.1/PORT' \
        2>/dev/null || echo kept from the network\n\
    unshare -Ur true 2>/dev/null || echo kept from namespaces\n\
    echo made > made && cat made\n";

async fn story(
    start: impl FnOnce(&TestDaemon, Command) -> Option<Command>,
) -> Option<((TestDaemon, Backend), Story, Vec<String>)> {
    // The task of a run is the script that is called.
    let backend = Backend::start(|seen: &Seen| {
        let script = if seen.task.ends_with(".sh") { &seen.task } else { "script.sh" };
        Reply::Answer(match seen.turn {
            1 => Turn::call("shell_exec", json!({"command": ["sh", script]})),
            _ => Turn::say("done"),
        })
    })
    .await;
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.stop();
    fs::write(daemon.home().join("canary"), "a secret of the machine").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let socket = libc::SYS_socket.to_string();
    daemon.put("script.sh", &SCRIPT.replace("PORT", &port).replace("SOCKET", &socket));
    let control = Command::new("sh").arg("script.sh").current_dir(daemon.workspace()).output();
    let control = String::from_utf8(control.unwrap().stdout).unwrap();
    assert!(control.starts_with("a secret of the machine"), "control: {control}");
    assert!(!control.contains("network"), "control: {control}");
    fs::remove_file(daemon.workspace().join("made")).unwrap();
    let command = start(&daemon, daemon.command())?;
    assert!(daemon.boot_as(command), "{}", daemon.log());
    let info = daemon.agentctl(&["info", "-o", "json"]).await;
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let isolation = info["sandbox_limits"]["isolation"].as_str().unwrap().to_owned();
    let story = daemon.carry_out("run it").await;
    let (outcome, output) = story.outputs().remove(0);
    assert_eq!(outcome, "done", "{output}");
    let said = output["stdout"].as_str().unwrap();
    let lines = [isolation.as_str()].into_iter().chain(said.lines()).map(str::to_owned).collect();
    Some(((daemon, backend), story, lines))
}

const KEPT: [&str; 4] =
    ["kept from files", "kept from the network", "kept from namespaces", "made"];

/// Runs the daemon in a user namespace in which no more of these can be made.
fn without(namespaces: &[&str], serve: &Command) -> Option<Command> {
    let limits: String = namespaces
        .iter()
        .map(|kind| format!("echo 0 > /proc/sys/user/max_{kind}_namespaces && "))
        .collect();
    let tried =
        Command::new("unshare").args(["-Ur", "sh", "-c", &format!("{limits} true")]).output();
    if !tried.is_ok_and(|output| output.status.success()) {
        not_checked("a machine without namespaces (none can be made to look like one here)");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["-Ur", "sh", "-c", &format!("{limits} exec \"$@\""), "sh"]);
    command.arg(serve.get_program()).args(serve.get_args());
    Some(command)
}

#[tokio::test]
async fn without_user_namespaces_a_root_daemon_still_has_all_the_others() {
    let Some((_daemon, _, said)) = story(|_, serve| without(&["user"], &serve)).await else {
        return;
    };
    assert_eq!(said[0], "root");
    assert_eq!(said[1..], KEPT);
}

#[tokio::test]
async fn without_any_namespace_landlock_and_seccomp_stand_alone_where_the_policy_says_so() {
    for said in
        ["{minimum: landlock, enforcement: strict}", "{minimum: full, enforcement: best_effort}"]
    {
        let allowed = |daemon: &TestDaemon, serve: Command| {
            let path = daemon.home().join("policies/tools.yaml");
            let rules = fs::read_to_string(&path).unwrap();
            let strict = "{minimum: root, enforcement: strict}";
            assert!(rules.contains(strict), "control: that is the default");
            fs::write(path, rules.replace(strict, said)).unwrap();
            without(&NONE, &serve)
        };
        let Some(((daemon, _backend), story, said)) = story(allowed).await else { return };
        alone(&daemon, &story, &said).await;
    }
}

const NONE: [&str; 4] = ["user", "mnt", "pid", "net"];

async fn alone(daemon: &TestDaemon, story: &Story, said: &[String]) {
    assert_eq!(story.payloads("tool_output")[0]["used"]["isolation"], "landlock");
    assert_eq!(said[0], "landlock");
    assert_eq!(said[1..], KEPT);
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_program_that_cannot_be_kept_apart_as_the_policy_wants_does_not_start() {
    let backend = Backend::start(Script {
        turns: vec![
            Turn::call("shell_exec", json!({"command": ["sh", "script.sh"]})),
            Turn::call("list_dir", json!({})),
            Turn::say("done"),
        ],
    })
    .await;
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.stop();
    daemon.put("script.sh", "echo ran > ran");
    let Some(command) = without(&NONE, &daemon.command()) else { return };
    assert!(daemon.boot_as(command), "{}", daemon.log());

    let story = daemon.carry_out("run it").await;

    let outputs = story.outputs();
    assert_eq!(outputs[0].1["error"]["reason"], "ISOLATION_TOO_WEAK", "{}", outputs[0].1);
    assert_eq!(daemon.read("ran"), None);
    assert_eq!(outputs[1].0, "done", "what agentd looks at itself is kept apart well enough");
}

#[tokio::test]
async fn an_ordinary_user_has_every_wall_and_whose_the_workspace_is_can_work_in_it() {
    if !rustix::process::geteuid().is_root() {
        not_checked("the difference between root and an ordinary user (this user is not root)");
        return;
    }
    let (user, group) = ("--reuid=65534", "--regid=65534");
    let as_nobody = |daemon: &TestDaemon, serve: Command| {
        // Where the programs were built, that user may not be able to look.
        let programs = Path::new(serve.get_program()).parent().unwrap();
        let own = daemon.home().join("bin");
        fs::create_dir(&own).unwrap();
        for name in ["agentd", "agentd-sandbox"] {
            fs::copy(programs.join(name), own.join(name)).unwrap();
        }
        give_away(daemon.home());
        // And whoever may have no core file may not give a program one.
        let mut command = Command::new("prlimit");
        command.args(["--core=0:0", "setpriv", user, group, "--clear-groups"]);
        command.arg(own.join("agentd"));
        command.args(serve.get_args());
        Some(command)
    };
    let Some(((daemon, _backend), _, said)) = story(as_nobody).await else { return };
    assert_eq!(said[0], "full");
    assert_eq!(said[1..], KEPT);
    limits_are_kept_without_any_cgroup(&daemon).await;

    // The same directory under a daemon that is root: its programs act as the workspace's owner.
    let as_root = |daemon: &TestDaemon, serve: Command| {
        give_away(&daemon.workspace());
        Some(serve)
    };
    let Some(((daemon, _backend), _, said)) = story(as_root).await else { return };
    assert_eq!(said[1..], KEPT);
    let made = fs::metadata(daemon.workspace().join("made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 65534);
}

/// That user can make no group: the launcher looks for itself.
async fn limits_are_kept_without_any_cgroup(daemon: &TestDaemon) {
    let info = daemon.agentctl(&["info", "-o", "json"]).await;
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    for resource in ["memory", "processes", "cpu"] {
        assert_eq!(info["sandbox_limits"][resource], "polled", "{info}");
    }
    // Each of them is well within the limit on its own.
    let four = "for i in 1 2 3 4; do (head -c 30000000 /dev/zero | tail -n 1 | (sleep 9; wc -c)) & done; wait";
    let bash = "for i in $(seq 100); do sleep 50 & done; wait";
    let spin = "for i in 1 2 3 4; do (while :; do :; done) & done; wait";
    for (name, script, limit) in
        [("small.sh", four, "oom"), ("small.sh", bash, "pids"), ("busy.sh", spin, "cpu")]
    {
        daemon.put("script.sh", "exit 1");
        daemon.put(name, script);
        std::os::unix::fs::chown(daemon.workspace().join(name), Some(65534), Some(65534)).unwrap();
        let story = daemon.carry_out(name).await;
        let (_, output) = story.outputs().remove(0);
        assert_eq!(output["limit"], limit, "{script}: {output}");
    }
}

fn give_away(directory: &Path) {
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
        if path.is_dir() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}
