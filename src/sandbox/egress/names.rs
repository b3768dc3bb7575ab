//! Names to addresses, by the system's resolver. It blocks for as long as a stranger's server likes, and cannot be
//! called off: so each lookup has a thread of its own, and there are few at a time, of each call and in all.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs as _},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Lookups at one time, of all calls.
const IN_ALL: usize = 64;
/// Lookups at one time, of one call.
const OF_A_CALL: usize = 2;
/// How long a program waits for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Addresses of one name that are looked at.
const ADDRESSES: usize = 64;

/// The daemon's lookups.
#[derive(Debug, Clone)]
pub(in crate::sandbox) struct Names(Arc<Semaphore>);

impl Default for Names {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(IN_ALL)))
    }
}

/// One call's lookups.
#[derive(Debug)]
pub(super) struct CallNames {
    all: Names,
    own: Arc<Semaphore>,
}

impl CallNames {
    pub(super) fn new(all: Names) -> Self {
        Self { all, own: Arc::new(Semaphore::new(OF_A_CALL)) }
    }

    /// What a name stands for: at least one address.
    pub(super) async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let found = tokio::time::timeout(PATIENCE, self.ask(name));
        found.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn ask(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let permit = |from: &Arc<Semaphore>| from.clone().acquire_owned();
        let closed = |_| io::Error::other("the lookups are over");
        let permits =
            [permit(&self.own).await.map_err(closed)?, permit(&self.all.0).await.map_err(closed)?];
        let (say, answer) = oneshot::channel();
        // With a dot at its end, so that no search domain of this machine is put behind it.
        let name = format!("{name}.");
        thread::Builder::new()
            .name("lookup".into())
            .spawn(move || drop(say.send(resolve(&name, permits))))?;
        answer.await.map_err(|_| io::Error::other("a lookup broke off"))?
    }
}

/// The permits are given back when the resolver is done, not when nobody waits for it any more.
fn resolve(name: &str, _permits: [OwnedSemaphorePermit; 2]) -> io::Result<Vec<IpAddr>> {
    let found: Vec<IpAddr> =
        (name, 0).to_socket_addrs()?.map(|address| address.ip()).take(ADDRESSES).collect();
    if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
}
