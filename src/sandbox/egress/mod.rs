//! The one way out of a sandbox: a proxy for HTTP, for tunnels and for SOCKS5, which listens within the
//! sandbox's own network and answers from here. Whoever asks is known by the socket that it came over, so that
//! there is nothing to steal; each name is parsed once, asked about, looked up once, and what was looked at is
//! what is dialled. Decides nothing: see `ports::Door`.
//!
//! Everything of a call happens in one future: when that is dropped, so is every connection.

mod exit;
mod http;
mod meter;
mod names;
mod socks;
mod tls;
mod tunnel;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use crate::{
    domain::{
        effect::NetworkUse,
        ids::{PolicyRevision, RuleId},
        policy::{Destination, Grant, Tunnels},
    },
    ports::{Answered, Door},
    sandbox::{
        egress::{
            exit::Denial,
            meter::{Meter, Meters},
            names::CallNames,
        },
        order::PROXY_PORT,
    },
};

/// Connections of one call that are open at the same time; more wait in the kernel.
const AT_ONCE: usize = 24;
/// Decisions that one call may ask for; then it reaches nothing any more.
const MOST_DECISIONS: u64 = 1000;
/// How long a program may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(30);
/// Refusals that are told with the outcome of the call, and how long each may be, in characters.
const TOLD: usize = 8;
const TOLD_CHARACTERS: usize = 600;
/// Addresses that are told with the outcome.
const DIALLED: usize = 32;
/// Connections that are open at the same time, of all calls; less where the process may have few descriptors.
const IN_ALL: usize = 1024;
/// How long to wait where there is no descriptor for another connection.
const BREATH: Duration = Duration::from_millis(100);

/// What all calls share.
#[derive(Debug, Clone)]
pub(super) struct Outside {
    names: names::Names,
    connections: Arc<Semaphore>,
}

impl Outside {
    pub(super) fn new() -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        // Each has one to the program and one beyond.
        let fitting =
            descriptors.map_or(IN_ALL, |most| usize::try_from(most / 8).unwrap_or(IN_ALL));
        let connections = Arc::new(Semaphore::new(fitting.clamp(1, IN_ALL)));
        Self { names: names::Names::default(), connections }
    }
}

/// Where a program finds the proxy. Names in both cases, since programs differ in which they read.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    let http = format!("http://127.0.0.1:{PROXY_PORT}");
    let own = "localhost,127.0.0.1,::1".to_owned();
    let both = |name: &str, value: String| {
        [(name.to_ascii_uppercase(), value.clone()), (name.to_owned(), value)]
    };
    // Not `all_proxy`: some clients break off where it names SOCKS.
    [both("http_proxy", http.clone()), both("https_proxy", http), both("no_proxy", own)]
        .into_iter()
        .flatten()
}

/// What one call may reach, and what it did with that.
pub(super) struct Egress<'a> {
    grant: Grant,
    door: &'a dyn Door,
    changes: watch::Receiver<u64>,
    names: CallNames,
    connections: Arc<Semaphore>,
    meters: Meters,
    decisions: AtomicU64,
    opened: AtomicU64,
    refused: AtomicU64,
    refusals: Mutex<Vec<String>>,
    dialled: Mutex<Vec<String>>,
}

impl<'a> Egress<'a> {
    pub(super) fn new(grant: Grant, door: &'a dyn Door, outside: &Outside) -> Self {
        let changes = door.changes();
        let began = *changes.borrow();
        Self {
            grant,
            door,
            meters: Meters::new(began),
            changes,
            names: CallNames::new(outside.names.clone()),
            connections: outside.connections.clone(),
            decisions: AtomicU64::default(),
            opened: AtomicU64::default(),
            refused: AtomicU64::default(),
            refusals: Mutex::default(),
            dialled: Mutex::default(),
        }
    }

    /// Serves whoever connects to the socket, for as long as it is awaited. Ends only with an error of the
    /// socket itself.
    pub(super) async fn serve(&self, listener: OwnedFd) -> io::Error {
        let listener = std::net::TcpListener::from(listener);
        let listener =
            match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
                Ok(listener) => listener,
                Err(error) => return error,
            };
        let mut open = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = accept(&listener), if open.len() < AT_ONCE => match accepted {
                    Ok(client) => open.push(async {
                        // Nobody closes it.
                        let Ok(_room) = self.connections.acquire().await else { return };
                        self.attend(client).await;
                    }),
                    // It went away before it was let in.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return error,
                },
                Some(()) = open.next(), if !open.is_empty() => {}
            }
        }
    }

    /// What has been done by now.
    pub(super) fn used(&self) -> NetworkUse {
        let (sent, received) = self.meters.totals();
        NetworkUse {
            opened: self.opened.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            sent,
            received,
            refusals: lock(&self.refusals).clone(),
            dialled: lock(&self.dialled).clone(),
        }
    }

    /// One connection of the program, whatever it speaks, until either end closes it or a new policy cuts it.
    async fn attend(&self, client: TcpStream) {
        let _ = client.set_nodelay(true);
        let now = Current::default();
        let talk = async {
            let mut first = [0];
            match tokio::time::timeout(PATIENCE, client.peek(&mut first)).await {
                Ok(Ok(1)) if first[0] == socks::VERSION => socks::attend(self, client, &now).await,
                Ok(Ok(1)) => http::attend(self, client, &now).await,
                _ => {}
            }
        };
        tokio::select! {
            () = talk => {}
            () = self.cut(&now) => {}
        }
        if let Some(Open { wanted, .. }) = now.get().filter(|open| open.meter.is_used_up()) {
            let why = "the call has sent or got all the bytes that its rule lets through";
            let revision = self.door.ask(&self.grant, wanted.clone()).revision;
            self.break_off(&wanted, "builtin/bytes", why, &revision).await;
        }
    }

    /// Returns once a new policy no longer lets through what is open.
    async fn cut(&self, now: &Current) {
        let mut changes = self.door.changes();
        while changes.changed().await.is_ok() {
            let Some(Open { wanted, tunnels, meter }) = now.get() else { continue };
            let Answered { ruling, revision } = self.door.ask(&self.grant, wanted.clone());
            match ruling {
                Err(ruling) => {
                    let (rule, why) = (ruling.rule.as_str(), ruling.why.as_str());
                    return self.break_off(&wanted, rule, why, &revision).await;
                }
                // What it began with is past.
                Ok(passage) if passage.tunnels() == Tunnels::Tls && tunnels != Tunnels::Tls => {
                    let why = "a tunnel to it must begin with TLS from now on";
                    return self.break_off(&wanted, "builtin/tls-name", why, &revision).await;
                }
                Ok(passage) => meter.lower(&passage),
            }
        }
        // No policy can come any more.
        std::future::pending().await
    }

    /// Writes down that what was let through is so no longer.
    async fn break_off(
        &self,
        wanted: &Destination,
        rule: &str,
        why: &str,
        revision: &PolicyRevision,
    ) {
        let (rule, why) = (&RuleId::new(rule), &format!("it was cut off: {why}"));
        self.deny(wanted, Denial { rule, why, revision, addresses: &[] }).await;
    }

    fn tell_refused(&self, refusal: &str) {
        let mut refusals = lock(&self.refusals);
        if refusals.len() < TOLD {
            refusals.push(refusal.chars().take(TOLD_CHARACTERS).collect());
        }
    }

    fn tell_dialled(&self, what: &str) {
        let mut dialled = lock(&self.dialled);
        if dialled.len() < DIALLED && !dialled.iter().any(|known| known == what) {
            dialled.push(what.to_owned());
        }
    }
}

async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    loop {
        match listener.accept().await {
            Err(error) if is_want_of_room(&error) => tokio::time::sleep(BREATH).await,
            accepted => return Ok(accepted?.0),
        }
    }
}

/// Too few descriptors or buffers, which others will give back.
fn is_want_of_room(error: &io::Error) -> bool {
    let wants = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| wants.contains(&code))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one connection of the program is open to.
#[derive(Debug, Default)]
struct Current(Mutex<Option<Open>>);

#[derive(Debug, Clone)]
struct Open {
    wanted: Destination,
    tunnels: Tunnels,
    meter: Arc<Meter>,
}

impl Current {
    fn set(&self, open: Open) {
        *lock(&self.0) = Some(open);
    }

    fn get(&self) -> Option<Open> {
        lock(&self.0).clone()
    }
}
