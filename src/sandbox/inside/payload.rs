//! The work itself, in the child that does it: takes its place, gives up what it must not have, and becomes
//! the program or looks at the tree. Whatever fails here is told and not begun.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    path::PathBuf,
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Resource, Rlimit, Signal},
};

use crate::sandbox::{
    inside::walls,
    order::{Order, Tier, View, Work},
    walk,
};

/// Everything that the work needs, made before anything is forked.
pub(super) struct Payload<'a> {
    job: Job<'a>,
    /// None: there is nothing to read.
    input: Option<OwnedFd>,
    /// The launcher.
    parent: Pid,
    limits: Vec<(Resource, u64)>,
    tier: Tier,
    view: &'a View,
    /// User and group to become, where nobody has become them before.
    owner: Option<(u32, u32)>,
}

/// What is done once all walls stand.
enum Job<'a> {
    Become { program: Program<'a>, argv: Vec<CString>, environment: Vec<CString> },
    Look { look: &'a walk::Look, git: Option<Program<'a>> },
    Nothing,
}

/// A program, open, and where it lay when it was opened.
struct Program<'a> {
    open: BorrowedFd<'a>,
    path: PathBuf,
    /// A script's interpreter opens the script by its descriptor, which must then outlive the exec; a
    /// binary needs none, and gets none.
    is_script: bool,
}

impl<'a> Payload<'a> {
    pub(super) fn new(
        order: &'a Order,
        executable: Option<BorrowedFd<'a>>,
        input: Option<OwnedFd>,
        owner: Option<(u32, u32)>,
    ) -> io::Result<Self> {
        let job = match &order.work {
            Work::Program { argv, environment } => Job::Become {
                program: Program::new(executable.ok_or_else(super::missing)?)?,
                argv: argv.iter().map(|word| c_string(word)).collect::<io::Result<_>>()?,
                environment: self::environment(environment)?,
            },
            Work::Look(look) => Job::Look { look, git: executable.map(Program::new).transpose()? },
            Work::Nothing => Job::Nothing,
        };
        let (limits, tier, view) = (limits(order), order.tier, &order.view);
        // In a user namespace there is one user, whom the launcher has become.
        let owner = owner.filter(|_| tier != Tier::Full);
        let parent = rustix::process::getpid();
        Ok(Self { job, input, parent, limits, tier, view, owner })
    }

    /// Does the work, in a process of its own whose current directory is the workspace. Gives an exit
    /// status, unless it became the program. Errors: nothing was begun.
    pub(super) fn carry_out(&self) -> io::Result<i32> {
        rustix::process::setsid()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        match &self.input {
            Some(input) => rustix::stdio::dup2_stdin(input)?,
            None => rustix::stdio::dup2_stdin(nothing(self.tier)?)?,
        }
        restore_sigpipe()?;
        for (resource, most) in &self.limits {
            // A second more of CPU time, so that the signal which says why comes before the one that does not.
            let maximum = most + u64::from(*resource == Resource::Cpu);
            // What the daemon itself may not have cannot be given.
            let own = rustix::process::getrlimit(*resource).maximum.unwrap_or(u64::MAX);
            let limit = Rlimit { current: Some(own.min(*most)), maximum: Some(own.min(maximum)) };
            rustix::process::setrlimit(*resource, limit)?;
        }
        if let Some((user, group)) = self.owner {
            super::become_user(user, group)?;
        }
        if self.tier == Tier::Landlock {
            self.die_with_parent()?;
        }
        match &self.job {
            Job::Become { program, argv, environment } => {
                let executable = program.found_again(self.tier)?;
                close_on_exec()?;
                if program.is_script {
                    rustix::io::fcntl_setfd(&executable, rustix::io::FdFlags::empty())?;
                }
                walls::stand(self.tier, self.view)?;
                Err(become_program(executable.as_raw_fd(), argv, environment))
            }
            Job::Look { look, git } => {
                // A summary without git is a summary.
                let git = git.as_ref().and_then(|git| git.found_again(self.tier).ok());
                close_on_exec()?;
                walls::stand(self.tier, self.view)?;
                let git = git.as_ref().map(|git| git.as_fd());
                let looked =
                    std::panic::catch_unwind(|| walk::answer(look, git, io::stdout().lock()));
                Ok(if matches!(looked, Ok(Ok(()))) { 0 } else { 1 })
            }
            Job::Nothing => walls::stand(self.tier, self.view).map(|()| 0),
        }
    }

    /// Where no namespace ends with the launcher. Not before the change of user, which undoes it.
    fn die_with_parent(&self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        match rustix::process::getppid() == Some(self.parent) {
            true => Ok(()),
            false => Err(io::Error::other("the launcher died")),
        }
    }
}

impl<'a> Program<'a> {
    fn new(open: BorrowedFd<'a>) -> io::Result<Self> {
        let own = format!("/proc/self/fd/{}", open.as_raw_fd());
        let path = std::fs::read_link(&own)?;
        let mut start = [0; 2];
        let is_script = File::open(own)?.read_exact(&mut start).is_ok() && start == *b"#!";
        Ok(Self { open, path, is_script })
    }

    /// The same file in the root that we are in now, which has it at the same place or not at all.
    fn found_again(&self, tier: Tier) -> io::Result<OwnedFd> {
        if tier == Tier::Landlock {
            return self.open.try_clone_to_owned();
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = rustix::fs::open(&self.path, flags, Mode::empty());
        let is_same = |found: &OwnedFd| -> io::Result<bool> {
            let (found, vouched) = (rustix::fs::fstat(found)?, rustix::fs::fstat(self.open)?);
            Ok((found.st_dev, found.st_ino) == (vouched.st_dev, vouched.st_ino))
        };
        match found {
            Ok(found) if is_same(&found)? => Ok(found),
            Ok(_) | Err(_) => Err(io::Error::other(format!(
                "{} is not in the sandbox; name its directory under read_only_roots in tools.yaml",
                self.path.display()
            ))),
        }
    }
}

/// An input that is at its end. A descriptor of the machine's own device would let its owner change that.
fn nothing(tier: Tier) -> io::Result<OwnedFd> {
    match tier {
        Tier::Full | Tier::Root => Ok(File::open("/dev/null")?.into()),
        Tier::Landlock => Ok(rustix::fs::memfd_create("nothing", rustix::fs::MemfdFlags::CLOEXEC)?),
    }
}

/// Returns only to fail.
fn become_program(executable: RawFd, argv: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, environment) = (pointers(argv), pointers(environment));
    #[expect(unsafe_code, reason = "execveat has no safe form")]
    // SAFETY: both lists are NUL-terminated arrays of NUL-terminated strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            executable,
            c"".as_ptr(),
            argv.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Our runtime ignores SIGPIPE, and what is ignored stays so in the program: `yes | head` would complain.
fn restore_sigpipe() -> io::Result<()> {
    #[expect(unsafe_code, reason = "signal has no safe form")]
    // SAFETY: the default action involves no code of ours.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks every descriptor from 3 on to be closed when a program starts.
fn close_on_exec() -> io::Result<()> {
    super::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn limits(order: &Order) -> Vec<(Resource, u64)> {
    let rlimits = &order.rlimits;
    let mut limits = vec![
        (Resource::Cpu, rlimits.cpu_seconds),
        (Resource::Nofile, rlimits.open_files),
        (Resource::Fsize, rlimits.file_bytes),
        // Not 0: a program of the machine that takes cores would still be started, outside of all this.
        (Resource::Core, 1),
    ];
    limits.extend(rlimits.data_bytes.map(|bytes| (Resource::Data, bytes)));
    limits
}

fn environment(variables: &BTreeMap<String, String>) -> io::Result<Vec<CString>> {
    variables.iter().map(|(name, value)| c_string(&format!("{name}={value}"))).collect()
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in a word"))
}
