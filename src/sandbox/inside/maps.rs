//! The maps of the work's user namespace: which user and group of the machine it has, and by what names. Enters no
//! namespace.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::process::{DumpableBehavior, Pid, WaitOptions};

use crate::sandbox::{
    inside::{self, Fork, at},
    order::Owner,
};

const MAPS: &str = "the maps of the user namespace";

/// Who we are; within a namespace without maps nobody can tell any more.
pub(super) fn ourselves() -> Owner {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    Owner { user: user.as_raw(), group: group.as_raw() }
}

/// By the process itself, which gives itself what it was outside.
pub(super) fn write_own(outside: Owner) -> io::Result<()> {
    if outside.user != 0 {
        // Else what is ours in /proc would be root's, and could not be written.
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    }
    write(Path::new("/proc/self"), outside).map_err(|error| at(MAPS, error))
}

/// Writes the maps of a launcher that is to become another user. From inside they could only be written by who can be
/// looked into by that user's other processes, and a launcher holds what is the daemon's.
pub(super) struct Mapper {
    child: Pid,
    go: File,
}

impl Mapper {
    /// Forks it, before the launcher enters its user namespace.
    pub(super) fn start(owner: Owner) -> io::Result<Self> {
        let (word, go) = inside::pipe()?;
        let launcher = rustix::process::getpid();
        match inside::fork()? {
            Fork::Child => {
                drop(go);
                let place = PathBuf::from(format!("/proc/{launcher}"));
                let done = wait_for(word).and_then(|()| write(&place, owner));
                inside::exit(
                    done.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO)),
                )
            }
            Fork::Parent(child) => Ok(Self { child, go }),
        }
    }

    /// Once the launcher is in its user namespace.
    pub(super) fn map(self) -> io::Result<()> {
        let Self { child, mut go } = self;
        go.write_all(b"m")?;
        loop {
            match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(ended) => {
                    let status = ended.and_then(|(_, status)| status.exit_status());
                    return match status {
                        Some(0) => Ok(()),
                        Some(error) => Err(at(MAPS, io::Error::from_raw_os_error(error))),
                        None => {
                            Err(io::Error::other("nobody wrote the maps of the user namespace"))
                        }
                    };
                }
            }
        }
    }
}

fn wait_for(mut word: File) -> io::Result<()> {
    word.read_exact(&mut [0])
}

/// Of the process whose directory this is. Nobody is root in there, and the daemon's root is nobody special.
fn write(process: &Path, Owner { user, group }: Owner) -> io::Result<()> {
    let write = |name: &str, text: String| fs::write(process.join(name), text);
    let inside = |id| if id == 0 { 1000 } else { id };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{} {user} 1", inside(user)))?;
    write("gid_map", format!("{} {group} 1", inside(group)))
}
