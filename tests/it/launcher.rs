//! `agentd-sandbox` by itself, spoken to as the daemon does, in cases that a daemon seldom gets into.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{IoSlice, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use agentd::sandbox::Walls;
use agentd::sandbox::order::{
    self, Access, Descriptor, End, Frame, Launch, Launched, Order, Owner, Report, Rlimits, Terms,
    Tier, View, Watched, WayOut, Work, Workspace,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tempfile::TempDir;

use crate::support::{
    PATIENCE, not_checked,
    processes::{children, command_line, descendants},
    wait_until,
};

/// A launcher that has its frame, and the fork server that it comes from.
struct Launcher {
    server: Child,
    requests: UnixStream,
    id: i32,
    control: UnixStream,
    workspace: TempDir,
}

fn send(socket: &UnixStream, message: &impl serde::Serialize, descriptors: &[BorrowedFd<'_>]) {
    let text = serde_json::to_vec(message).unwrap();
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    // Who is gone hears nothing.
    if sendmsg(socket, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL).is_ok() {
        let _ = (&*socket).write_all(&text);
    }
}

impl Launcher {
    fn start(tier: Tier, owner: Option<Owner>) -> Self {
        let launcher = Self::fork(owner);
        launcher.frame(tier, owner);
        launcher
    }

    /// Without a frame.
    fn fork(owner: Option<Owner>) -> Self {
        let workspace = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
        if let Some(Owner { user, group }) = owner {
            std::os::unix::fs::chown(workspace.path(), Some(user), Some(group)).unwrap();
        }
        let (requests, theirs) = UnixStream::pair().unwrap();
        let server = Command::new(env!("CARGO_BIN_EXE_agentd-sandbox"))
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (control, theirs) = UnixStream::pair().unwrap();
        let nothing = File::options().write(true).open("/dev/null").unwrap();
        send(&requests, &Launch {}, &[theirs.as_fd(), nothing.as_fd(), nothing.as_fd()]);
        drop(theirs);
        let answer: Launched = order::read(&requests).unwrap();
        assert_eq!(answer.failure, None);
        let id = children(i32::try_from(server.id()).unwrap())[0];
        Self { server, requests, id, control, workspace }
    }

    fn frame(&self, tier: Tier, owner: Option<Owner>) {
        let (access, descriptors) = (Access::ReadWrite, vec![Descriptor::Start]);
        let place = File::open(self.workspace.path()).unwrap();
        send(&self.control, &Frame { tier, access, owner, descriptors }, &[place.as_fd()]);
        self.control.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// Has it run a shell's script, by this program.
    fn order(&self, program: &str, script: &str) {
        let executable = File::open(program).unwrap();
        let place = self.workspace.path().metadata().unwrap();
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        let order = Order {
            work: Work::Program {
                argv,
                environment: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
            },
            executable: Some(program.to_owned()),
            terms: Terms { wall_ms: 20_000, cpu_ms: 20_000, watched: Watched::default() },
            rlimits: Rlimits {
                cpu_seconds: 20,
                open_files: 64,
                file_bytes: 1 << 20,
                data_bytes: None,
            },
            view: View {
                workspace: Workspace {
                    path: self.workspace.path().display().to_string(),
                    below_start: String::new(),
                    device: place.dev(),
                    inode: place.ino(),
                },
                protected: Vec::new(),
                read_only: Vec::new(),
                writable: Vec::new(),
                tmp_bytes: 1 << 20,
            },
            way_out: WayOut::None,
            descriptors: vec![Descriptor::Executable],
        };
        send(&self.control, &order, &[executable.as_fd()]);
    }

    /// How it says that it ended; none: it says nothing.
    fn end(mut self) -> Option<End> {
        let mut text = Vec::new();
        let _ = self.control.read_to_end(&mut text);
        let mut reports = serde_json::Deserializer::from_slice(&text).into_iter::<Report>();
        reports.next().map(|report| report.unwrap().end)
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Tiers that are to be had here, each as the work's own user, and as another where that can be.
fn worlds() -> Vec<(Tier, Option<Owner>)> {
    let another = Owner { user: 1234, group: 1234 };
    let all = match rustix::process::geteuid().is_root() {
        true => vec![
            (Tier::Full, None),
            (Tier::Full, Some(another)),
            (Tier::Root, None),
            (Tier::Root, Some(another)),
        ],
        false => vec![(Tier::Full, None)],
    };
    let works = |world: &(Tier, Option<Owner>)| {
        let launcher = Launcher::start(world.0, world.1);
        launcher.order("/bin/sh", "exit 0");
        launcher.end() == Some(End::Code(0))
    };
    let worlds: Vec<_> = all.iter().copied().filter(works).collect();
    // Whoever can have namespaces by other means must have all of them.
    let unshare = ["--user", "--map-root-user", "--net", "--pid", "--fork", "--mount", "true"];
    let can =
        Command::new("unshare").args(unshare).output().is_ok_and(|done| done.status.success());
    assert!(!can || worlds == all, "{worlds:?} of {all:?}");
    if worlds.is_empty() {
        not_checked("launchers by themselves (no namespaces can be had here)");
    }
    worlds
}

#[test]
fn what_is_left_running_is_killed_whoever_it_runs_as_and_the_end_is_the_program_s() {
    for (tier, owner) in worlds() {
        let launcher = Launcher::start(tier, owner);
        launcher.order("/bin/sh", "setsid sleep 600 >/dev/null 2>&1 & exit 3");
        assert_eq!(launcher.end(), Some(End::Code(3)), "{tier:?} {owner:?}");
    }
}

/// Dozens of times, since whoever says it goes away at once.
#[test]
fn a_program_that_is_not_in_the_sandbox_is_said_not_to_be_there() {
    let elsewhere = tempfile::tempdir().unwrap();
    let program = elsewhere.path().join("sh");
    std::fs::copy("/bin/sh", &program).unwrap();
    for (tier, owner) in worlds() {
        for _ in 0..25 {
            let launcher = Launcher::start(tier, owner);
            launcher.order(program.to_str().unwrap(), "exit 0");
            match launcher.end() {
                Some(End::NotStarted(why)) => assert!(why.contains("read_only_roots"), "{why}"),
                end => panic!("{tier:?} {owner:?}: {end:?}"),
            }
        }
    }
}

/// While it waits it has a user's own rights, and nothing that this user might want.
#[tokio::test]
async fn a_launcher_that_waits_holds_nothing_where_the_work_s_user_could_get_at_it() {
    for (tier, owner) in worlds() {
        let launcher = Launcher::start(tier, owner);
        let id = launcher.id;
        wait_until("all three are there", || descendants(id).len() == 2).await;
        // It has let go of everything when it waits, in a call to the kernel.
        let work = descendants(id)[1];
        let sockets = || {
            let open =
                std::fs::read_dir(format!("/proc/{work}/fd")).into_iter().flatten().flatten();
            open.filter(|open| open.path().read_link().is_ok_and(|to| to != Path::new("/dev/null")))
                .count()
        };
        wait_until("the work holds its way to process 1 and nothing else", || sockets() <= 2).await;
        let owned = std::fs::metadata(format!("/proc/{work}/fd")).unwrap().uid();
        assert_eq!(owned, 0, "nobody but root may look into it: {tier:?} {owner:?}");
        launcher.order("/bin/sh", "exit 4");
        assert_eq!(launcher.end(), Some(End::Code(4)), "control: it was waiting");
    }
}

/// Whoever it works for, the process that launchers are made from belongs to root or to the daemon's user alone.
#[tokio::test]
async fn the_fork_server_ends_with_the_daemon_s_socket_and_nobody_may_look_into_it() {
    let (tier, owner) = worlds()[0];
    let mut launcher = Launcher::start(tier, owner);
    let server = launcher.server.id();
    let owned = std::fs::metadata(format!("/proc/{server}/fd")).unwrap().uid();
    assert_eq!(owned, 0, "nobody but root may look into it");
    drop(std::mem::replace(&mut launcher.requests, UnixStream::pair().unwrap().0));
    assert!(launcher.server.wait().unwrap().success());
}

/// Not even a process outside of the sandbox, at any moment: a launcher holds what is the daemon's.
#[test]
fn at_no_moment_may_other_processes_of_the_work_s_user_look_into_its_launcher() {
    let others = worlds().into_iter().filter_map(|(tier, owner)| Some((tier, owner?)));
    let mut is_checked = false;
    for (tier, owner) in others {
        is_checked = true;
        for _ in 0..20 {
            let launcher = Launcher::fork(Some(owner));
            let (id, looked, done) = (launcher.id, AtomicBool::new(false), AtomicBool::new(false));
            std::thread::scope(|scope| {
                let looks = scope.spawn(|| {
                    let whose = || std::fs::metadata(format!("/proc/{id}/fd")).map(|fd| fd.uid());
                    let mut seen = BTreeSet::new();
                    while !done.load(Ordering::Relaxed) {
                        seen.extend(whose());
                        looked.store(true, Ordering::Relaxed);
                    }
                    seen
                });
                while !looked.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                launcher.frame(tier, Some(owner));
                launcher.order("/bin/sh", "exit 0");
                let mut text = Vec::new();
                let _ = (&launcher.control).read_to_end(&mut text);
                done.store(true, Ordering::Relaxed);
                assert!(!text.is_empty(), "control: it did its work");
                assert_eq!(looks.join().unwrap(), [0].into(), "{tier:?}");
            });
        }
    }
    if !is_checked {
        not_checked("launchers of another user (nobody but root can start one)");
    }
}

#[tokio::test]
async fn what_was_killed_while_it_waited_says_nothing_that_could_be_taken_for_work() {
    for (tier, owner) in worlds() {
        for place in [0, 1] {
            let launcher = Launcher::start(tier, owner);
            let id = launcher.id;
            wait_until("all three are there", || descendants(id).len() == 2).await;
            let killed = descendants(id)[place];
            let process = rustix::process::Pid::from_raw(killed).unwrap();
            rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
            wait_until("it is dead", || command_line(killed).is_empty()).await;
            launcher.order("/bin/sh", "exit 5");
            let end = launcher.end();
            let is_right = matches!(end, None | Some(End::NotStarted(_) | End::Lost(_)));
            assert!(is_right, "{tier:?} {owner:?} {place}: {end:?}");
        }
    }
}

#[test]
fn a_launcher_is_found_where_the_daemon_is_told_also_from_there() {
    let launcher = Path::new(env!("CARGO_BIN_EXE_agentd-sandbox"));
    let up = "../".repeat(std::env::current_dir().unwrap().components().count());
    let relative = Path::new(&up).join(launcher.strip_prefix("/").unwrap());
    let workspace = tempfile::tempdir().unwrap();
    Walls::probe(relative, workspace.path()).unwrap();
}
