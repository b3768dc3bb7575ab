//! Names in a workspace that must not come to be while a program runs there. A mount can only protect what
//! is there: for as long as programs run, an empty directory stands in for each that is not.
//!
//! Whoever kills the daemon in between leaves such a directory behind; it is empty, and means nothing.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{AtFlags, Mode},
    io::Errno,
    process::geteuid,
};

/// How many programs rely on each name that we made: device and inode of the workspace, and the name.
#[derive(Debug, Default)]
pub(super) struct Placeholders {
    made: Mutex<HashMap<Place, usize>>,
}

type Place = (u64, u64, String);

/// For as long as this is held, the names are there.
#[derive(Debug, Default)]
pub(super) struct Held {
    by: Option<(Arc<Placeholders>, OwnedFd)>,
    places: Vec<Place>,
}

impl Placeholders {
    /// Makes what is not there. Gives what is there now; what is not could not be made by anybody else either.
    ///
    /// Errors: something that is not there could be made, but not by us.
    pub(super) fn hold(
        self: &Arc<Self>,
        workspace: &OwnedFd,
        names: &[String],
    ) -> io::Result<(Held, Vec<String>)> {
        let stat = rustix::fs::fstat(workspace)?;
        let mut places = Vec::new();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut there = Vec::new();
        for name in names {
            let place = (stat.st_dev, stat.st_ino, name.clone());
            let count = made.get(&place).copied().unwrap_or_default();
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
                Err(error) => return Err(error.into()),
            }
            there.push(name.clone());
            made.insert(place.clone(), count + 1);
            places.push(place);
        }
        drop(made);
        Ok((Held { by: Some((self.clone(), workspace.try_clone()?)), places }, there))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some((placeholders, workspace)) = &self.by else { return };
        let mut made = placeholders.made.lock().unwrap_or_else(PoisonError::into_inner);
        for place in self.places.drain(..) {
            match made.get_mut(&place) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    made.remove(&place);
                    // Whoever put something into it meanwhile, from outside, keeps it.
                    let _ = rustix::fs::unlinkat(workspace.as_fd(), &place.2, AtFlags::REMOVEDIR);
                }
            }
        }
    }
}
