//! The one way out of a sandbox: a proxy for HTTP, for tunnels and for SOCKS5, which listens within the
//! sandbox's own network and answers from here. Whoever asks is known by the socket that it came over, so that
//! there is nothing to steal; each name is parsed once, asked about, looked up once, and what was looked at is
//! what is dialled. Decides nothing: see `ports::Door`.
//!
//! Everything of a call happens in one future: when that is dropped, so is every connection.

mod exit;
mod http;
mod meter;
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
use tokio::net::{TcpListener, TcpStream};

use crate::{
    domain::{
        effect::NetworkUse,
        policy::{Destination, Grant},
    },
    ports::Door,
    sandbox::{egress::meter::Meters, order::PROXY_PORT},
};

/// Connections of one call that are open at the same time; more wait in the kernel.
const AT_ONCE: usize = 64;
/// Decisions that one call may ask for; then it reaches nothing any more.
const MOST_DECISIONS: u64 = 1000;
/// How long a program may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(30);
/// Refusals that are told with the outcome of the call.
const TOLD: usize = 8;

/// Where a program finds the proxy. Names in both cases, since programs differ in which they read.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    let http = format!("http://127.0.0.1:{PROXY_PORT}");
    let any = format!("socks5h://127.0.0.1:{PROXY_PORT}");
    let own = "localhost,127.0.0.1,::1".to_owned();
    let both = |name: &str, value: String| {
        [(name.to_ascii_uppercase(), value.clone()), (name.to_owned(), value)]
    };
    [
        both("http_proxy", http.clone()),
        both("https_proxy", http),
        both("all_proxy", any),
        both("no_proxy", own),
    ]
    .into_iter()
    .flatten()
}

/// What one call may reach, and what it did with that.
pub(super) struct Egress<'a> {
    grant: Grant,
    door: &'a dyn Door,
    meters: Meters,
    decisions: AtomicU64,
    opened: AtomicU64,
    refused: AtomicU64,
    refusals: Mutex<Vec<String>>,
}

impl<'a> Egress<'a> {
    pub(super) fn new(grant: Grant, door: &'a dyn Door) -> Self {
        Self {
            grant,
            door,
            meters: Meters::default(),
            decisions: AtomicU64::default(),
            opened: AtomicU64::default(),
            refused: AtomicU64::default(),
            refusals: Mutex::default(),
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
                accepted = listener.accept(), if open.len() < AT_ONCE => match accepted {
                    Ok((client, _)) => open.push(self.attend(client)),
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
            refusals: self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// One connection of the program, whatever it speaks, until either end closes it or a new policy cuts it.
    async fn attend(&self, client: TcpStream) {
        let _ = client.set_nodelay(true);
        let now = Arc::new(Current::default());
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
    }

    /// Returns once a new policy no longer lets through what is open.
    async fn cut(&self, now: &Current) {
        let mut changes = self.door.changes();
        while changes.changed().await.is_ok() {
            if let Some(wanted) = now.get()
                && let Err(ruling) = self.door.ask(&self.grant, wanted.clone())
            {
                self.tell(&format!("{wanted} was cut off by {}: {}", ruling.rule, ruling.why));
                return;
            }
        }
        // No policy can come any more.
        std::future::pending().await
    }

    fn tell(&self, refusal: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() < TOLD {
            refusals.push(refusal.to_owned());
        }
    }
}

/// What one connection of the program is open to.
#[derive(Debug, Default)]
struct Current(Mutex<Option<Destination>>);

impl Current {
    fn set(&self, wanted: &Destination) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(wanted.clone());
    }

    fn get(&self) -> Option<Destination> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
