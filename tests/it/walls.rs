//! What lies outside of a program's walls stays outside, whatever the policy let it run: attacks by an
//! allowed script, each with a control that does the same without walls and gets through.

use std::{
    fs,
    net::TcpListener,
    os::{linux::net::SocketAddrExt as _, unix::net as unix},
    path::Path,
    process::Command,
};

use agentd::scripted::{Script, Turn};
use serde_json::{Value, json};

use crate::support::{Backend, TestDaemon, not_checked};

/// A daemon whose model has one script run.
async fn daemon() -> (Backend, TestDaemon) {
    let call = |name: &str| Turn::call("shell_exec", json!({"command": ["sh", name]}));
    let turns = vec![call("script.sh"), Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    (backend, daemon)
}

/// Whether programs have namespaces of their own on this machine; says so if not.
async fn has_namespaces(daemon: &TestDaemon) -> bool {
    let info = daemon.agentctl(&["info", "-o", "json"]).await;
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let isolation = info["sandbox_limits"]["isolation"].as_str().unwrap().to_owned();
    if isolation == "landlock" {
        not_checked("what namespaces hide (isolation=landlock on this machine)");
    }
    isolation != "landlock"
}

/// What the script prints behind the walls.
async fn behind(daemon: &TestDaemon, script: &str) -> String {
    daemon.put("script.sh", script);
    let story = daemon.carry_out("run it").await;
    let (outcome, output) = story.outputs().remove(0);
    assert_eq!(outcome, "done", "{output}");
    output["stdout"].as_str().unwrap().to_owned()
}

/// What the script prints without walls, in a directory beside the workspace.
pub(crate) fn without(daemon: &TestDaemon, script: &str) -> String {
    let place = daemon.home().join("control");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("script.sh"), script).unwrap();
    let output = Command::new("sh").arg("script.sh").current_dir(&place).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Says `in` where it worked and `out` where it did not.
pub(crate) fn tried(attack: &str) -> String {
    format!("if {{ {attack}\n}} >/dev/null 2>&1; then echo in; else echo out; fi\n")
}

#[tokio::test]
async fn files_outside_of_the_workspace_are_not_there() {
    let (_backend, daemon) = daemon().await;
    fs::write(daemon.home().join("canary"), "a secret of the machine").unwrap();
    let attacks = [
        "cat ../canary",
        "cat ../state/token",
        "cat ../agentd.yaml",
        "echo x > ../state/planted",
        "ln -s ../canary link && cat link",
        "cat /proc/self/root/etc/shadow /etc/shadow",
    ]
    .map(tried)
    .concat();

    assert_eq!(without(&daemon, &attacks), "in\n".repeat(6), "control");
    fs::remove_file(daemon.state().join("planted")).unwrap();
    assert_eq!(behind(&daemon, &attacks).await, "out\n".repeat(6));
    assert!(!daemon.state().join("planted").exists());
}

#[tokio::test]
async fn nothing_outside_can_be_connected_to() {
    let (_backend, daemon) = daemon().await;
    if !has_namespaces(&daemon).await {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = daemon.tcp.rsplit_once(':').unwrap().1.to_owned();
    let name = format!("agentd-it-{}", std::process::id());
    let address = unix::SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract = unix::UnixListener::bind_addr(&address).unwrap();
    let connect = |port: &str| format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'");
    let perl = |path: &str| {
        format!(
            "perl -MSocket -e 'socket(S,PF_UNIX,SOCK_STREAM,0) or die; \
             connect(S,sockaddr_un(\"{path}\")) or die'"
        )
    };
    let socket = daemon.state().join("agentd.sock").display().to_string();
    let attacks =
        [connect(&port.to_string()), connect(&own), perl(&socket), perl(&format!("\\0{name}"))]
            .map(|attack| tried(&attack))
            .concat();

    assert_eq!(without(&daemon, &attacks), "in\n".repeat(4), "control");
    listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(behind(&daemon, &attacks).await, "out\n".repeat(4));
    assert!(listener.accept().is_err(), "nobody came");
}

#[tokio::test]
async fn a_program_can_talk_to_itself_over_the_loopback_address() {
    let (_backend, daemon) = daemon().await;
    if !has_namespaces(&daemon).await {
        return;
    }
    let script = "perl -MIO::Socket::INET -e '\
        my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => \"127.0.0.1\") or die; \
        IO::Socket::INET->new(PeerAddr => \"127.0.0.1\", PeerPort => $s->sockport) or die; \
        print \"met\\n\"'";
    assert_eq!(behind(&daemon, script).await, "met\n");
}

#[tokio::test]
async fn processes_outside_are_neither_seen_nor_hit() {
    let (_backend, daemon) = daemon().await;
    if !has_namespaces(&daemon).await {
        return;
    }
    let mut victim = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = victim.id();
    let own = daemon.pid().as_raw_nonzero();
    let attacks = [
        format!("cat /proc/{own}/environ"),
        format!("kill -0 {pid} && grep -z sleep /proc/{pid}/cmdline"),
        format!("kill -STOP {pid} && kill -CONT {pid} && [ -e /proc/{pid} ] && [ {pid} -gt 99 ]"),
    ]
    .map(|attack| tried(&attack))
    .concat();

    assert_eq!(without(&daemon, &attacks), "in\n".repeat(3), "control");
    let attacks = format!("{attacks}kill -9 -1\n");
    assert_eq!(behind(&daemon, &attacks).await, "out\n".repeat(3));
    assert_eq!(victim.try_wait().unwrap(), None, "it lives");
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(daemon.audit().await.intact, "so does the daemon");
}

#[tokio::test]
async fn a_repository_s_git_directory_cannot_be_written_or_moved_away() {
    let (_backend, daemon) = daemon().await;
    if !has_namespaces(&daemon).await {
        return;
    }
    let repository = |place: &Path| {
        fs::create_dir_all(place).unwrap();
        let made = Command::new("git").args(["init", "-q"]).current_dir(place).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    };
    repository(&daemon.workspace());
    repository(&daemon.home().join("control"));
    let attacks = [
        "echo id > .git/hooks/post-commit",
        "echo '[core] fsmonitor = id' >> .git/config",
        "rm -rf .git/hooks && mkdir .git/hooks",
        "mv .git g && mkdir .git",
    ]
    .map(tried)
    .concat();

    assert_eq!(without(&daemon, &attacks), "in\n".repeat(4), "control");
    let before = fs::read(daemon.workspace().join(".git/config")).unwrap();
    assert_eq!(behind(&daemon, &attacks).await, "out\n".repeat(4));
    assert_eq!(fs::read(daemon.workspace().join(".git/config")).unwrap(), before);
    assert!(!daemon.workspace().join(".git/hooks/post-commit").exists());
}

#[tokio::test]
async fn a_git_directory_that_is_not_there_cannot_be_made_and_nothing_of_it_stays() {
    let (_backend, daemon) = daemon().await;
    if !has_namespaces(&daemon).await {
        return;
    }
    let attacks = [
        "mkdir -p .git/hooks && echo id > .git/hooks/post-commit",
        "rmdir .git; mkdir .git && echo x > .git/config",
        "mv .git elsewhere",
        "git init -q",
    ]
    .map(tried)
    .concat();

    assert!(without(&daemon, &attacks).starts_with("in\n"), "control");
    assert_eq!(behind(&daemon, &attacks).await, "out\n".repeat(4));
    assert!(!daemon.workspace().join(".git").exists());
}

#[tokio::test]
async fn a_git_directory_that_is_a_link_is_refused_before_anything_runs() {
    let turns =
        vec![Turn::call("shell_exec", json!({"command": ["sh", "script.sh"]})), Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    if !has_namespaces(&daemon).await {
        return;
    }
    daemon.put("script.sh", "echo ran > ran");
    daemon.put("real/config", "");
    std::os::unix::fs::symlink("real", daemon.workspace().join(".git")).unwrap();

    let story = daemon.carry_out("run it").await;

    let (outcome, output) = story.outputs().remove(0);
    assert_eq!((outcome.as_str(), &output["error"]["reason"]), ("failed", &json!("NOT_STARTED")));
    assert!(output["error"]["message"].as_str().unwrap().contains(".git"), "{output}");
    assert_eq!(daemon.read("ran"), None);
}

#[tokio::test]
async fn the_kernel_s_dangerous_calls_are_refused() {
    let (_backend, daemon) = daemon().await;
    let attacks = [
        "unshare -Ur true",
        "unshare -Urm mount -t tmpfs none /mnt",
        // ptrace a child that asks for it.
        &syscall(libc::SYS_ptrace, "0, 0, 0, 0"),
        // userfaultfd, for user mode only.
        &syscall(libc::SYS_userfaultfd, "1"),
        // The session's keyring.
        &syscall(libc::SYS_keyctl, "0, -3, 0"),
        // AF_NETLINK and AF_VSOCK.
        &syscall(libc::SYS_socket, "16, 3, 0"),
        &syscall(libc::SYS_socket, "40, 1, 0"),
        // A raw socket by its old name, and MPTCP, which nobody needs inside.
        &syscall(libc::SYS_socket, "2, 10, 3"),
        &syscall(libc::SYS_socket, "2, 1, 262"),
        // An old personality, in which memory lies where an attacker wants it.
        &syscall(libc::SYS_personality, "6"),
    ]
    .map(tried)
    .concat();

    let control = without(&daemon, &attacks);
    let open = control.lines().filter(|line| *line == "in").count();
    // A container refuses some itself.
    assert!(open >= 4, "control: {control}");
    if open < 10 {
        not_checked(&format!("{} calls that this machine refuses to everybody", 10 - open));
    }
    assert_eq!(behind(&daemon, &attacks).await, "out\n".repeat(10));
}

fn syscall(number: libc::c_long, arguments: &str) -> String {
    format!("perl -e 'exit(syscall({number}, {arguments}) < 0)'")
}

#[tokio::test]
async fn temporary_files_are_the_call_s_own_bounded_and_never_run() {
    let (_backend, daemon) = daemon().await;
    if !has_namespaces(&daemon).await {
        return;
    }
    let name = format!("/tmp/agentd-it-canary-{}", std::process::id());
    fs::write(&name, "outside").unwrap();
    let attacks = [
        format!("cat {name}"),
        "cp /bin/true /tmp/agentd-it-true && /tmp/agentd-it-true; s=$?; \
         rm -f /tmp/agentd-it-true; (exit $s)"
            .to_owned(),
        "dd if=/dev/zero of=/tmp/agentd-it-a bs=1M count=200 && \
         dd if=/dev/zero of=/tmp/agentd-it-b bs=1M count=100; s=$?; \
         rm -f /tmp/agentd-it-a /tmp/agentd-it-b; (exit $s)"
            .to_owned(),
    ]
    .map(|attack| tried(&attack))
    .concat();

    assert_eq!(without(&daemon, &attacks), "in\n".repeat(3), "control");
    assert_eq!(behind(&daemon, &attacks).await, "out\n".repeat(3));
    fs::remove_file(name).unwrap();
    let works = [
        "cp /bin/true ./true && ./true",
        "echo x > /tmp/x && grep x /tmp/x",
        "[ ! -e /tmp/y ] && echo x > /dev/shm/y",
    ]
    .map(tried)
    .concat();
    assert_eq!(behind(&daemon, &works).await, "in\n".repeat(3), "control: there is room for work");
}

#[tokio::test]
async fn a_program_has_no_capability_and_is_nobody_special() {
    let (_backend, daemon) = daemon().await;
    if !has_namespaces(&daemon).await {
        return;
    }
    let script = "grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f 2\n\
                  ls /proc/sys /sys /home /root 2>/dev/null; ls /proc/self/fd | wc -l; hostname";
    let said = behind(&daemon, script).await;
    let none = "0000000000000000\n".repeat(3);
    // Three of its own, and the directory that is being listed.
    assert_eq!(said, format!("{none}4\nsandbox\n"));
}

#[tokio::test]
async fn no_file_can_be_made_that_would_run_as_its_owner() {
    let (_backend, daemon) = daemon().await;
    let attacks = [
        "cp /bin/true s && chmod 4755 s && [ -u s ]",
        "cp /bin/true g && chmod g+s g && [ -g g ]",
        "perl -e 'use Fcntl; sysopen(F, \"o\", O_CREAT|O_WRONLY, 04755) or die' && [ -u o ]",
        "perl -e 'my $n = \"n\"; exit(syscall(MKNODAT, -100, $n, 0104755, 0) < 0)' && [ -u n ]",
    ]
    .map(tried)
    .concat()
    .replace("MKNODAT", &libc::SYS_mknodat.to_string());

    assert_eq!(without(&daemon, &attacks), "in\n".repeat(4), "control");
    assert_eq!(behind(&daemon, &attacks).await, "out\n".repeat(4));
    for name in ["s", "g", "o", "n"] {
        let mode = fs::metadata(daemon.workspace().join(name)).map(|found| found.permissions());
        let mode = mode.map_or(0, |found| std::os::unix::fs::PermissionsExt::mode(&found));
        assert_eq!(mode & 0o6000, 0, "{name}: {mode:o}");
    }
    let works = [
        "cp /bin/true x && chmod 755 x && ./x",
        "touch y && chmod 1777 y",
        "perl -e 'use Fcntl; sysopen(F, \"z\", O_CREAT|O_WRONLY, 0755) or die' && [ -x z ]",
    ]
    .map(tried)
    .concat();
    assert_eq!(behind(&daemon, &works).await, "in\n".repeat(3), "control: other modes are fine");
}

#[tokio::test]
async fn the_machine_s_devices_and_the_limits_of_others_cannot_be_changed() {
    let (_backend, daemon) = daemon().await;
    if !has_namespaces(&daemon).await {
        return;
    }
    // No control without walls: it would change the machine's own device.
    let attacks = [
        "chmod 666 /dev/full",
        "touch -a -d @1000000000 /dev/full",
        "perl -e 'exit(!chmod(0666, *STDIN))'",
        "prlimit --pid 1 --cpu=0",
    ]
    .map(tried)
    .concat();
    let changed = || {
        let device = fs::metadata("/dev/full").unwrap();
        (std::os::unix::fs::MetadataExt::ctime(&device), device.permissions())
    };
    let before = changed();

    assert_eq!(behind(&daemon, &attacks).await, "out\n".repeat(4));
    assert_eq!(changed(), before);
    let works = ["prlimit --nofile=64 true", "echo x > /dev/null", "head -c 8 /dev/urandom"];
    assert_eq!(behind(&daemon, &works.map(tried).concat()).await, "in\n".repeat(3), "control");
}

#[tokio::test]
async fn empty_files_are_bounded_too() {
    let (_backend, daemon) = daemon().await;
    if !has_namespaces(&daemon).await {
        return;
    }
    let attack = tried(
        "d=$(mktemp -d) && perl -e 'for (1..40000) { open(F, \">$ARGV[0]/$_\") or die }' $d; \
         s=$?; rm -rf $d; (exit $s)",
    );
    assert_eq!(without(&daemon, &attack), "in\n", "control");
    assert_eq!(behind(&daemon, &attack).await, "out\n");
}

/// Programs that people work with, each on something real. Those that this machine lacks are named.
#[tokio::test]
async fn real_programs_work_behind_the_walls() {
    let (_backend, daemon) = daemon().await;
    if !has_namespaces(&daemon).await {
        return;
    }
    let trials = [
        ("git", "git --version && git log --oneline 2>&1 | grep -q 'not a git repository'"),
        (
            "python3",
            "python3 -c 'import json, ssl, tempfile, subprocess; tempfile.TemporaryFile(); \
          print(subprocess.run([\"true\"]).returncode)'",
        ),
        (
            "node",
            "echo 'require(\"node:test\")(\"t\", () => {})' > t.test.js && node --test t.test.js",
        ),
        ("gcc", "echo 'int main(void) { return 0; }' > a.c && gcc -o a a.c && ./a"),
        ("make", "printf 'all:\\n\\techo made > made\\n' > Makefile && make && [ -s made ]"),
        ("perl", "perl -e 'print 1'"),
        ("bash", "bash -c 'cat <<< here'"),
    ];
    let mut script = String::new();
    for (program, trial) in trials {
        match Path::new("/usr/bin").join(program).exists() {
            true => script.push_str(&tried(trial)),
            false => {
                not_checked(&format!("{program} behind the walls (it is not on this machine)"))
            }
        }
    }
    let count = script.matches("then echo in").count();
    assert!(count >= 4, "control: some are here");
    assert_eq!(behind(&daemon, &script).await, "in\n".repeat(count), "{script}");
}
