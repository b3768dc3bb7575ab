//! Launchers that wait for a call: the next call is done by one of them, unless the machine has changed since, and
//! what becomes of one that waits is nobody's loss.

use std::{fs, path::Path, process::Command};

use agentd::{
    proto::v1,
    scripted::{Reply, Seen, Turn},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{
    Backend, Settings, TestDaemon, not_checked,
    processes::{command_line, descendants, fork_server, launchers},
    wait_until,
};

/// Waits, with its launcher, until it is let go.
const LASTING: &str = "echo up > up; until [ -e go ]; do sleep 0.02; done";

/// A daemon whose model has one script called in each run.
async fn daemon() -> (Backend, TestDaemon) {
    let brain = |seen: &Seen| {
        Reply::Answer(match seen.turn {
            1 => Turn::call("shell_exec", json!({"command": ["sh", "script.sh"]})),
            _ => Turn::say("done"),
        })
    };
    let backend = Backend::start(brain).await;
    let daemon = TestDaemon::start(&backend.url());
    (backend, daemon)
}

/// Whether any wait on this machine; says so if not.
async fn any_wait(daemon: &TestDaemon) -> bool {
    let info = daemon.agentctl(&["info", "-o", "json"]).await;
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let waits = info["sandbox_limits"]["isolation"] != "landlock";
    if !waits {
        not_checked("launchers that wait (isolation=landlock: there are none)");
    }
    waits
}

/// Launchers whose processes all wait.
fn waiting(daemon: &TestDaemon) -> Vec<i32> {
    let waits = |launcher: &i32| {
        let below = descendants(*launcher);
        let ours = |process: &i32| command_line(*process).contains("agentd-sandbox");
        below.len() == 2 && ours(launcher) && below.iter().all(ours)
    };
    launchers(daemon.pid()).into_iter().filter(waits).collect()
}

/// Has a script run, whatever by; gives what it printed, and how it went.
async fn call(daemon: &TestDaemon, script: &str) -> String {
    daemon.put("script.sh", script);
    let story = daemon.carry_out("run it").await;
    let (outcome, output) = story.outputs().remove(0);
    assert_eq!(outcome, "done", "{output}");
    output["stdout"].as_str().unwrap().to_owned()
}

/// A first call, after which some wait for the next.
async fn some_that_wait(daemon: &TestDaemon) -> Vec<i32> {
    assert_eq!(waiting(daemon), Vec::<i32>::new(), "control: nobody waits before a first call");
    call(daemon, "true").await;
    wait_until("two launchers wait", || waiting(daemon).len() == 2).await;
    waiting(daemon)
}

/// Runs a command where the daemon's mounts are.
fn beside(daemon: &TestDaemon, command: &str) {
    let pid = daemon.pid().as_raw_nonzero().to_string();
    let done =
        Command::new("nsenter").args(["-m", "-t", &pid, "sh", "-c", command]).output().unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Starts the daemon again, with mounts of its own, after `first`. Tells whether that can be done here.
fn start_with_own_mounts(daemon: &mut TestDaemon, first: &str) -> bool {
    daemon.stop();
    let serve = daemon.command();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("{first} && exec \"$@\"")).arg("sh");
    command.arg(serve.get_program()).args(serve.get_args());
    if !rustix::process::geteuid().is_root() || !daemon.boot_as(command) {
        not_checked("a daemon with mounts of its own (nobody but root can make some)");
        return false;
    }
    true
}

#[tokio::test]
async fn the_next_call_is_done_by_one_that_waited_and_none_is_left_of_a_daemon_that_stopped() {
    let (_backend, mut daemon) = daemon().await;
    if !any_wait(&daemon).await {
        return;
    }
    let waited = some_that_wait(&daemon).await;
    daemon.put("script.sh", LASTING);
    let run = daemon.submit("run it").await;
    daemon.wait_for_file("up").await;
    let works = |launcher: &i32| {
        descendants(*launcher)
            .into_iter()
            .any(|process| command_line(process).contains("script.sh"))
    };
    let at_work: Vec<i32> = launchers(daemon.pid()).into_iter().filter(works).collect();
    assert_eq!(at_work.len(), 1);
    assert!(waited.contains(&at_work[0]), "{at_work:?} of {waited:?}");
    wait_until("another waits in its place", || waiting(&daemon).len() == 2).await;
    daemon.put("go", "");
    daemon.wait(&run.id).await;

    let left = waiting(&daemon);
    daemon.terminate();
    assert_eq!(daemon.exit_code().await, Some(0));
    wait_until("nobody waits any more", || {
        left.iter().all(|launcher| !Path::new(&format!("/proc/{launcher}")).exists())
    })
    .await;
    assert_eq!(groups(&daemon.groups()), Vec::<String>::new());
}

/// Groups that are named for this daemon, in any tree.
fn groups(prefix: &str) -> Vec<String> {
    let trees = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let groups = trees.flat_map(|tree| fs::read_dir(tree.path()).into_iter().flatten().flatten());
    let names = groups.map(|group| group.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

#[tokio::test]
async fn a_call_is_done_although_all_that_waited_were_killed() {
    let (_backend, daemon) = daemon().await;
    if !any_wait(&daemon).await {
        return;
    }
    for launcher in some_that_wait(&daemon).await {
        kill_process(Pid::from_raw(launcher).unwrap(), Signal::KILL).unwrap();
    }
    assert_eq!(call(&daemon, "echo all the same").await, "all the same\n");
}

#[tokio::test]
async fn a_call_is_done_although_what_forks_launchers_was_killed_and_the_launchers_with_it() {
    let (_backend, daemon) = daemon().await;
    let waited = match any_wait(&daemon).await {
        true => some_that_wait(&daemon).await,
        false => Vec::new(),
    };
    let server = fork_server(daemon.pid());
    kill_process(Pid::from_raw(server).unwrap(), Signal::KILL).unwrap();
    wait_until("they die with it", || {
        waited.iter().all(|launcher| command_line(*launcher).is_empty())
    })
    .await;
    assert_eq!(call(&daemon, "echo all the same").await, "all the same\n");
    assert_ne!(fork_server(daemon.pid()), server);
}

/// The machine may have stood still, or somebody stopped it; whom it is the parent of knows nothing of that.
#[tokio::test]
async fn a_silent_fork_server_is_followed_by_another_and_takes_no_call_along() {
    let (_backend, daemon) = daemon().await;
    daemon.put("script.sh", LASTING);
    let lasting = daemon.submit("run it").await;
    daemon.wait_for_file("up").await;
    let server = Pid::from_raw(fork_server(daemon.pid())).unwrap();
    kill_process(server, Signal::STOP).unwrap();
    let elsewhere = daemon.home().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("script.sh"), "echo all the same").unwrap();
    // More than may have been made ready before.
    for _ in 0..4 {
        let workspace = elsewhere.display().to_string();
        let request = v1::CreateRunRequest { workspace, ..daemon.request("run it") };
        let run = daemon.create(request).await.unwrap().run.unwrap();
        let (outcome, output) = daemon.story(&run.id).await.outputs().remove(0);
        assert_eq!((outcome.as_str(), &output["stdout"]), ("done", &json!("all the same\n")));
    }
    daemon.put("go", "");
    let ended = daemon.wait(&lasting.id).await;
    assert_eq!(ended.state(), v1::RunState::Succeeded, "it was under way all the time");
    kill_process(server, Signal::CONT).unwrap();
}

#[tokio::test]
async fn who_unmounts_something_need_not_wait_for_those_that_wait() {
    let (_backend, mut daemon) = daemon().await;
    let mounted = "mount -t tmpfs none /mnt && echo > /mnt/here";
    if !any_wait(&daemon).await || !start_with_own_mounts(&mut daemon, mounted) {
        return;
    }
    let waited = some_that_wait(&daemon).await;
    let holds = |launcher: &i32| {
        let holds = |process: &i32| {
            let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo"));
            mounts.unwrap_or_default().lines().any(|mount| mount.contains(" /mnt "))
        };
        descendants(*launcher).iter().any(holds)
    };
    assert!(waited.iter().all(holds), "control: their worlds keep it in use");

    beside(&daemon, "umount /mnt");

    wait_until("nobody holds it", || !waited.iter().any(holds)).await;
    assert_eq!(call(&daemon, "echo all the same").await, "all the same\n");
}

#[tokio::test]
async fn a_call_sees_what_has_replaced_a_file_of_the_system_since_launchers_began_to_wait() {
    let (_backend, mut daemon) = daemon().await;
    let place = daemon.home().join("etc");
    let copied =
        format!("cp -a /etc {place} && mount --bind {place} /etc", place = place.display());
    if !any_wait(&daemon).await
        || !start_with_own_mounts(&mut daemon, &format!("{copied} && echo old > /etc/timezone"))
    {
        return;
    }
    assert_eq!(call(&daemon, "cat /etc/timezone").await, "old\n", "control");
    wait_until("two launchers wait", || waiting(&daemon).len() == 2).await;

    beside(&daemon, "echo new > /etc/newer && mv /etc/newer /etc/timezone");

    assert_eq!(call(&daemon, "cat /etc/timezone").await, "new\n");
}

#[tokio::test]
async fn a_workspace_that_is_another_directory_by_now_is_found_by_a_new_launcher() {
    let (_backend, daemon) = daemon().await;
    if !any_wait(&daemon).await {
        return;
    }
    some_that_wait(&daemon).await;
    let aside = daemon.home().join("aside");
    fs::rename(daemon.workspace(), &aside).unwrap();
    fs::create_dir(daemon.workspace()).unwrap();
    assert_eq!(call(&daemon, "ls").await, "script.sh\n", "what is there now");
    assert!(fs::read_dir(&aside).unwrap().count() > 0, "control: there was something else");
}

/// The way there is closed to whoever the work acts as; a launcher that waits cannot go it.
#[tokio::test]
async fn a_workspace_below_a_directory_that_its_owner_may_not_enter_is_worked_in_all_the_same() {
    let (_backend, daemon) = daemon().await;
    if !rustix::process::geteuid().is_root() {
        not_checked("the work of another user (nobody but root can do it)");
        return;
    }
    if !any_wait(&daemon).await {
        return;
    }
    fs::write(daemon.workspace().join("script.sh"), "").unwrap();
    let owned = [daemon.workspace(), daemon.workspace().join("script.sh")];
    owned.iter().for_each(|path| std::os::unix::fs::chown(path, Some(1234), Some(1234)).unwrap());
    for _ in 0..3 {
        assert_eq!(call(&daemon, "id -u").await, "1234\n");
    }
}

#[tokio::test]
async fn nobody_waits_where_the_operator_wants_none() {
    let (backend, _) = daemon().await;
    let settings = Settings {
        base_url: backend.url(),
        configuration: "limits: {ready_launchers: 0}\n".into(),
        ..Settings::default()
    };
    let daemon = TestDaemon::start_with(settings);
    for _ in 0..3 {
        call(&daemon, "true").await;
        assert_eq!(waiting(&daemon), Vec::<i32>::new());
    }
}
