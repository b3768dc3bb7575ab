//! What is left of a program's walls where the machine does not give all of them: the tier that is found is
//! the tier that is told, and what it promises holds.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net as unix,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command},
};

use agentd::scripted::{Reply, Script, Seen, Turn};
use serde_json::{Value, json};

use crate::{
    support::{Backend, Settings, Story, TestDaemon, not_checked},
    walls,
};

/// A script that tries what every tier must refuse, and what every tier must allow.
const SCRIPT: &str = "\
    cat ../canary 2>/dev/null || echo kept from files\n\
    perl -e 'exit(syscall(SOCKET, 2, 1, 0) < 0)' && bash -c 'exec 3<>/dev/tcp/127.0.0.1/PORT' \
        2>/dev/null || echo kept from the network\n\
    unshare -Ur true 2>/dev/null || echo kept from namespaces\n\
    echo made > made && cat made\n";

/// A model that calls one script: that which the task names, or else `script.sh`.
async fn caller_of_scripts() -> Backend {
    Backend::start(|seen: &Seen| {
        let script = if seen.task.ends_with(".sh") { &seen.task } else { "script.sh" };
        Reply::Answer(match seen.turn {
            1 => Turn::call("shell_exec", json!({"command": ["sh", script]})),
            _ => Turn::say("done"),
        })
    })
    .await
}

async fn story(
    start: impl FnOnce(&TestDaemon, Command) -> Option<Command>,
) -> Option<((TestDaemon, Backend), Story, Vec<String>)> {
    let backend = caller_of_scripts().await;
    let mut daemon = TestDaemon::start(&backend.url());
    daemon.stop();
    fs::write(daemon.home().join("canary"), "a secret of the machine").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
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
    let isolation = told(&daemon).await["isolation"].clone();
    let story = daemon.carry_out("run it").await;
    let (outcome, output) = story.outputs().remove(0);
    assert_eq!(outcome, "done", "{output}");
    let said = output["stdout"].as_str().unwrap();
    let lines = [isolation.as_str()].into_iter().chain(said.lines()).map(str::to_owned).collect();
    Some(((daemon, backend), story, lines))
}

const KEPT: [&str; 4] =
    ["kept from files", "kept from the network", "kept from namespaces", "made"];

/// What `agentctl info` says of isolation and of each limit.
async fn told(daemon: &TestDaemon) -> BTreeMap<String, String> {
    let info = daemon.agentctl(&["info", "-o", "json"]).await;
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    serde_json::from_value(info["sandbox_limits"].clone()).unwrap()
}

/// Weakest first.
const TIERS: [&str; 3] = ["landlock", "root", "full"];

/// True on every machine; in a container without rights of its own `scripts/container.sh` runs it.
#[tokio::test]
async fn the_tier_that_is_found_is_told_is_recorded_is_what_a_program_has_and_holds() {
    let backend = caller_of_scripts().await;
    let daemon = TestDaemon::start(&backend.url());
    let told = told(&daemon).await;
    let tier = told["isolation"].as_str();
    everybody_says_the_same(&daemon, &told).await;
    daemon.put("script.sh", "echo ran > ran");
    for wanted in TIERS {
        daemon.want(wanted).await;
        let story = daemon.carry_out("run it").await;
        let (outcome, output) = story.outputs().remove(0);
        let place = |tier: &str| TIERS.iter().position(|known| *known == tier).unwrap();
        match place(wanted) <= place(tier) {
            true => {
                assert_eq!((outcome.as_str(), &output["exit_code"]), ("done", &json!(0)));
                assert_eq!(story.payloads("tool_output")[0]["used"]["isolation"], tier);
                fs::remove_file(daemon.workspace().join("ran")).unwrap();
            }
            false => {
                assert_eq!(output["error"]["reason"], "ISOLATION_TOO_WEAK", "{output}");
                assert_eq!(daemon.read("ran"), None);
            }
        }
    }
    daemon.want("landlock").await;
    let crowd = Crowd::gather();
    let attacks = attacks(&daemon, &crowd);
    let control = walls::without(&daemon, &attacks.script());
    assert_eq!(control, "in\n".repeat(attacks.count()), "control: without walls all succeed");
    fs::remove_file(daemon.state().join("planted")).unwrap();

    daemon.put(
        "script.sh",
        &format!("echo up > up; until [ -e seen ]; do sleep 0.02; done\n{}", attacks.script()),
    );
    let run = daemon.submit("run it").await;
    daemon.wait_for_file("up").await;
    let seen = Outside::of(&daemon);
    daemon.put("seen", "");
    let story = daemon.story(&run.id).await;

    let grouped = told.values().any(|mechanism| mechanism.starts_with("cgroup"));
    assert_eq!(seen, Outside::expected(tier, grouped), "{told:?}");
    let (outcome, output) = story.outputs().remove(0);
    assert_eq!(outcome, "done", "{output}");
    assert_eq!(output["stdout"], attacks.expected(tier), "{}", attacks.script());
    assert!(!daemon.state().join("planted").exists());
    if ["memory", "processes", "cpu"].iter().all(|limit| told[*limit] == "polled") {
        limits_are_kept_without_any_cgroup(&daemon).await;
    }
    assert!(daemon.audit().await.intact, "the daemon answers, and its journal is whole");
}

/// `agentd check` and `agentctl doctor` are of one mind with `agentctl info`.
async fn everybody_says_the_same(daemon: &TestDaemon, told: &BTreeMap<String, String>) {
    let (_, said) = daemon.check();
    for (limit, mechanism) in told {
        assert!(said.contains(&format!("limit {limit}: {mechanism}\n")), "{limit}: {said}");
    }
    assert!(!said.contains("limit network: none\n      ->"), "no way out needs no mending: {said}");
    let starts = said.contains("\nok    sandbox: ");
    assert!(starts || said.contains("FAIL  sandbox: no program starts"), "{said}");
    let doctor = daemon.agentctl(&["doctor", "-o", "json"]).await;
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    assert!(doctor.contains(&format!("sandbox: isolation {}", told["isolation"])), "{doctor}");
}

/// Processes of nobody, to be seen or not. More than a namespace of processes could show by chance.
struct Crowd(Vec<Child>);

impl Crowd {
    fn gather() -> Self {
        let sleeper = |_| Command::new("sleep").arg("600").spawn().unwrap();
        Self((0..12).map(sleeper).collect())
    }

    fn pids(&self) -> String {
        self.0.iter().map(|child| format!(" {}", child.id())).collect()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a program tries, and what listens meanwhile.
struct Attacks {
    /// In every tier they fail.
    kept_always: Vec<String>,
    /// These where it has namespaces of its own.
    kept_apart: Vec<String>,
    _listening: (TcpListener, unix::UnixListener),
}

impl Attacks {
    fn script(&self) -> String {
        self.kept_always.iter().chain(&self.kept_apart).map(|one| walls::tried(one)).collect()
    }

    fn count(&self) -> usize {
        self.kept_always.len() + self.kept_apart.len()
    }

    fn expected(&self, tier: &str) -> String {
        let apart = if tier == "landlock" { "in\n" } else { "out\n" };
        "out\n".repeat(self.kept_always.len()) + &apart.repeat(self.kept_apart.len())
    }
}

fn attacks(daemon: &TestDaemon, crowd: &Crowd) -> Attacks {
    fs::write(daemon.home().join("canary"), "a secret of the machine").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let daemon_s = daemon.tcp.rsplit_once(':').unwrap().1;
    let name = format!("agentd-it-tiers-{}", std::process::id());
    let address = unix::SocketAddr::from_abstract_name(&name).unwrap();
    let hidden = unix::UnixListener::bind_addr(&address).unwrap();
    let own = daemon.pid().as_raw_nonzero();
    let connect = |port: &str| format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'");
    let local = |path: &str| {
        format!(
            "perl -MSocket -e 'socket(S,PF_UNIX,SOCK_STREAM,0) or die; \
             connect(S,sockaddr_un(\"{path}\")) or die'"
        )
    };
    Attacks {
        kept_always: vec![
            "cat ../canary".into(),
            "cat ../state/token".into(),
            "echo x > ../state/planted".into(),
            // By what only the daemon has: in a namespace of its own the number may be somebody else's.
            format!("grep -z '^HOME={}' /proc/{own}/environ", daemon.home().display()),
            format!("tr '\\0' ' ' </proc/{own}/cmdline | grep 'agent[d] serve'"),
            format!("kill -CONT {own} {}", crowd.pids()),
            connect(daemon_s),
            connect(&port.to_string()),
            local("../state/agentd.sock"),
            local(&format!("\\0{name}")),
        ],
        kept_apart: vec![
            format!("perl -e 'exit(grep({{ -e \"/proc/$_\" }} @ARGV) < 12)' {}", crowd.pids()),
            "mkdir .git; echo x > .git/config".into(),
        ],
        _listening: (listener, hidden),
    }
}

/// What the kernel tells others of a program that runs.
#[derive(Debug, PartialEq, Eq)]
struct Outside {
    /// Namespaces that it does not share with the daemon.
    own: Vec<&'static str>,
    no_new_privileges: bool,
    capabilities: bool,
    /// seccomp's filters, besides the daemon's.
    filters: u64,
    in_group: bool,
}

impl Outside {
    const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "uts", "user"];

    fn of(daemon: &TestDaemon) -> Self {
        let (program, daemon) =
            (program(daemon), PathBuf::from(format!("/proc/{}", daemon.pid().as_raw_nonzero())));
        let link = |process: &Path, name: &str| fs::read_link(process.join("ns").join(name));
        let is_own = |name: &&str| link(&program, name).unwrap() != link(&daemon, name).unwrap();
        let groups = |process: &Path| fs::read_to_string(process.join("cgroup")).unwrap();
        Self {
            own: Self::NAMESPACES.into_iter().filter(is_own).collect(),
            no_new_privileges: status(&program, "NoNewPrivs") == 1,
            capabilities: status(&program, "CapPrm") | status(&program, "CapEff") != 0,
            filters: status(&program, "Seccomp_filters") - status(&daemon, "Seccomp_filters"),
            in_group: groups(&program) != groups(&daemon),
        }
    }

    fn expected(tier: &str, in_group: bool) -> Self {
        let own = match tier {
            "full" => Self::NAMESPACES.to_vec(),
            "root" => Self::NAMESPACES[..6].to_vec(),
            "landlock" => Vec::new(),
            other => panic!("nobody knows the tier {other}"),
        };
        Self { own, no_new_privileges: true, capabilities: false, filters: 1, in_group }
    }
}

/// The process that the script of this daemon's workspace is.
fn program(daemon: &TestDaemon) -> PathBuf {
    let workspace = daemon.workspace().canonicalize().unwrap();
    let is_it = |process: &PathBuf| {
        fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == workspace)
            && fs::read(process.join("cmdline")).is_ok_and(|words| words == b"sh\0script.sh\0")
    };
    let mut processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes.find(is_it).expect("the program is there")
}

/// A number of a process's status; capabilities are hexadecimal.
fn status(process: &Path, name: &str) -> u64 {
    let status = fs::read_to_string(process.join("status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    u64::from_str_radix(value.unwrap(), 16).unwrap()
}

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
async fn a_command_s_own_minimum_holds_instead_of_the_policy_s() {
    let call = |script: &str| Turn::call("shell_exec", json!({"command": ["sh", script]}));
    let turns = vec![call("own.sh"), call("script.sh"), Turn::say("done")];
    let backend = Backend::start(Script { turns }).await;
    let commands =
        "\n  - {id: test.own, argv: [sh, own.sh], isolation: full, why: a careful one}\n";
    let settings =
        Settings { base_url: backend.url(), commands: commands.into(), ..Settings::default() };
    let mut daemon = TestDaemon::start_with(settings);
    daemon.stop();
    let Some(command) = without(&["user"], &daemon.command()) else { return };
    assert!(daemon.boot_as(command), "{}", daemon.log());
    daemon.put("own.sh", "touch own");
    daemon.put("script.sh", "touch other");

    let outputs = daemon.carry_out("run both").await.outputs();

    assert_eq!(outputs[0].1["error"]["reason"], "ISOLATION_TOO_WEAK", "{outputs:?}");
    assert_eq!(outputs[1].1["exit_code"], 0, "control: {outputs:?}");
    assert_eq!((daemon.read("own"), daemon.read("other")), (None, Some(String::new())));
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
    assert_eq!(made.uid(), 65534);
}

/// Where no group can be made the launcher looks for itself.
async fn limits_are_kept_without_any_cgroup(daemon: &TestDaemon) {
    let told = told(daemon).await;
    for resource in ["memory", "processes", "cpu"] {
        assert_eq!(told[resource], "polled", "{told:?}");
    }
    let owner = fs::metadata(daemon.workspace()).unwrap();
    // Each of them is well within the limit on its own.
    let four = "for i in 1 2 3 4; do (head -c 30000000 /dev/zero | tail -n 1 | (sleep 9; wc -c)) & done; wait";
    let bash = "for i in $(seq 100); do sleep 50 & done; wait";
    let spin = "for i in 1 2 3 4; do (while :; do :; done) & done; wait";
    for (name, script, limit) in
        [("small.sh", four, "oom"), ("small.sh", bash, "pids"), ("busy.sh", spin, "cpu")]
    {
        daemon.put("script.sh", "exit 1");
        daemon.put(name, script);
        let (user, group) = (Some(owner.uid()), Some(owner.gid()));
        std::os::unix::fs::chown(daemon.workspace().join(name), user, group).unwrap();
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
