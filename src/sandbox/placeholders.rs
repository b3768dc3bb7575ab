//! Names in a workspace that must not come to be while a program runs there. A mount can only protect what
//! is there: for as long as programs run, an empty directory stands in for each that is not.
//!
//! Whoever kills the daemon in between leaves such a directory behind; it is empty, and means nothing.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{AtFlags, Mode},
    io::Errno,
    process::geteuid,
};

/// How many programs rely on each name that we made, by workspace: one that hangs, as on a dead network,
/// holds up no other.
#[derive(Debug, Default)]
pub(super) struct Placeholders {
    made: Mutex<HashMap<Workspace, Names>>,
}

/// Device and inode.
type Workspace = (u64, u64);
type Names = Arc<Mutex<HashMap<String, usize>>>;

/// For as long as this is held, the names are there.
#[derive(Debug, Default)]
pub(super) struct Held {
    by: Option<(Names, OwnedFd)>,
    names: Vec<String>,
}

impl Placeholders {
    /// Makes what is not there. Gives what is there now; what is not could not be made by anybody else either.
    ///
    /// Blocking. Errors: something that is not there could be made, but not by us.
    pub(super) fn hold(
        &self,
        workspace: &OwnedFd,
        names: &[String],
    ) -> io::Result<(Held, Vec<String>)> {
        let stat = rustix::fs::fstat(workspace)?;
        let made = self.of((stat.st_dev, stat.st_ino));
        let descriptor = workspace.try_clone()?;
        // From here on dropping it undoes what was made.
        let mut held = Held { by: Some((made.clone(), descriptor)), names: Vec::new() };
        let mut there = Vec::new();
        let mut counts = lock(&made);
        for name in names {
            let count = counts.get(name).copied().unwrap_or_default();
            match rustix::fs::mkdirat(workspace, name.as_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) => {}
                Err(Errno::EXIST) if count > 0 => {}
                Err(Errno::EXIST) => {
                    there.push(name.clone());
                    continue;
                }
                Err(Errno::ROFS) => continue,
                // Only its owner can let itself in again.
                Err(Errno::ACCESS) if stat.st_uid != geteuid().as_raw() => continue,
                Err(error) => {
                    drop(counts);
                    return Err(error.into());
                }
            }
            there.push(name.clone());
            counts.insert(name.clone(), count + 1);
            held.names.push(name.clone());
        }
        drop(counts);
        Ok((held, there))
    }

    /// What was made in a workspace; what nobody relies on any more is forgotten.
    fn of(&self, workspace: Workspace) -> Names {
        let mut made = lock(&self.made);
        made.retain(|_, names| Arc::strong_count(names) > 1);
        made.entry(workspace).or_default().clone()
    }
}

impl Held {
    /// Whether nothing was made.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some((made, workspace)) = &self.by else { return };
        let mut counts = lock(made);
        for name in self.names.drain(..) {
            match counts.get_mut(&name) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    counts.remove(&name);
                    // Whoever put something into it meanwhile, from outside, keeps it.
                    let _ = rustix::fs::unlinkat(workspace.as_fd(), &name, AtFlags::REMOVEDIR);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
