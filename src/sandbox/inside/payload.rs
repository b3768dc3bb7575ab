//! The work itself, in the child that does it: gives up what it must not have, takes its place, and becomes the
//! program or looks at the tree. Whatever fails here is told and not begun.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Resource, Rlimit, Signal},
};

use crate::sandbox::{
    inside::{receive::Held, walls},
    order::{Frame, Order, Rlimits, Tier, Work},
    walk,
};

/// Said by process 1 when nothing of the machine is left to be reached.
pub(super) const BEGIN: u8 = b'B';

/// A process that has given up what needs no order to be given up.
pub(super) struct Place<'a> {
    frame: &'a Frame,
}

/// A program, open, and where it lay when it was opened.
struct Program {
    open: OwnedFd,
    path: PathBuf,
}

/// Gives up for good what can be given up before anything is known of the work. `parent` is whom to die with, where
/// no namespace ends with it.
pub(super) fn stand_by(frame: &Frame, parent: Option<Pid>) -> io::Result<Place<'_>> {
    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    restore_sigpipe()?;
    // In a user namespace there is one user, whom the launcher has become.
    if let Some(owner) = frame.owner.filter(|_| frame.tier != Tier::Full) {
        super::become_user(owner)?;
    }
    if let Some(parent) = parent {
        // Not before the change of user, which undoes it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::other("the launcher died"));
        }
    }
    walls::first(frame.tier, frame.access)?;
    Ok(Place { frame })
}

impl Place<'_> {
    /// Does the work, once process 1 says [`BEGIN`], where there is one. Gives an exit status, unless it became the
    /// program. Errors: nothing was begun.
    pub(super) fn carry_out(
        &self,
        order: &Order,
        held: Held,
        init: Option<&UnixStream>,
    ) -> io::Result<i32> {
        let Frame { tier, access, .. } = *self.frame;
        match held.input {
            Some(input) => rustix::stdio::dup2_stdin(input)?,
            None => rustix::stdio::dup2_stdin(nothing(tier)?)?,
        }
        if tier != Tier::Landlock {
            // The root has changed since we were started, and with it all paths.
            rustix::process::chdir(order.view.workspace.path.as_str())?;
        }
        limit(&order.rlimits)?;
        let program = held.executable.zip(order.executable.as_ref());
        let program = program.map(|(open, path)| Program { open, path: path.into() });
        let stand = || {
            walls::last(tier, access, &order.view)?;
            init.map_or(Ok(()), wait_for_the_word)
        };
        match &order.work {
            Work::Program { argv, environment } => {
                let program = program.ok_or_else(super::missing)?;
                let argv =
                    argv.iter().map(|word| c_string(word)).collect::<io::Result<Vec<_>>>()?;
                let environment = self::environment(environment)?;
                let executable = program.found_again(tier)?;
                close_on_exec()?;
                // A script's interpreter opens the script by its descriptor, which must then outlive the exec; a
                // binary needs none, and gets none.
                if program.is_script() {
                    rustix::io::fcntl_setfd(&executable, rustix::io::FdFlags::empty())?;
                }
                stand()?;
                Err(become_program(executable.as_raw_fd(), &argv, &environment))
            }
            Work::Look(look) => {
                // A summary without git is a summary.
                let git = program.and_then(|git| git.found_again(tier).ok());
                close_on_exec()?;
                stand()?;
                let git = git.as_ref().map(|git| git.as_fd());
                let looked =
                    std::panic::catch_unwind(|| walk::answer(look, git, io::stdout().lock()));
                Ok(if matches!(looked, Ok(Ok(()))) { 0 } else { 1 })
            }
            Work::Nothing => stand().map(|()| 0),
        }
    }
}

impl Program {
    fn is_script(&self) -> bool {
        let mut start = [0; 2];
        File::open(&self.path).and_then(|mut file| file.read_exact(&mut start)).is_ok()
            && start == *b"#!"
    }

    /// The same file in the root that we are in now, which has it at the same place or not at all.
    fn found_again(&self, tier: Tier) -> io::Result<OwnedFd> {
        if tier == Tier::Landlock {
            return self.open.try_clone();
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = rustix::fs::open(&self.path, flags, Mode::empty());
        let is_same = |found: &OwnedFd| -> io::Result<bool> {
            let (found, vouched) = (rustix::fs::fstat(found)?, rustix::fs::fstat(&self.open)?);
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

fn wait_for_the_word(mut init: &UnixStream) -> io::Result<()> {
    let mut word = [0];
    init.read_exact(&mut word)?;
    if word == [BEGIN] { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
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

fn limit(rlimits: &Rlimits) -> io::Result<()> {
    let mut limits = vec![
        (Resource::Cpu, rlimits.cpu_seconds),
        (Resource::Nofile, rlimits.open_files),
        (Resource::Fsize, rlimits.file_bytes),
        // Not 0: a program of the machine that takes cores would still be started, outside of all this.
        (Resource::Core, 1),
    ];
    limits.extend(rlimits.data_bytes.map(|bytes| (Resource::Data, bytes)));
    for (resource, most) in limits {
        // A second more of CPU time, so that the signal which says why comes before the one that does not.
        let maximum = most + u64::from(resource == Resource::Cpu);
        // What the daemon itself may not have cannot be given.
        let own = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit = Rlimit { current: Some(own.min(most)), maximum: Some(own.min(maximum)) };
        rustix::process::setrlimit(resource, limit)?;
    }
    Ok(())
}

fn environment(variables: &BTreeMap<String, String>) -> io::Result<Vec<CString>> {
    variables.iter().map(|(name, value)| c_string(&format!("{name}={value}"))).collect()
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL in a word"))
}
