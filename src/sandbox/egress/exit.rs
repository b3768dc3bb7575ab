//! From a destination to a connection: asked about, looked up, looked at, written down, dialled. In this order,
//! and each once.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::Ordering,
    time::Duration,
};

use tokio::net::TcpStream;

use crate::{
    domain::{
        host::{Host, reserved},
        ids::RuleId,
        journal::Verdict,
        policy::{Destination, Passage},
    },
    ports::Reached,
    sandbox::egress::{Current, Egress, MOST_DECISIONS, meter::Metered},
};

/// How long a name may take to be looked up, and an address to answer.
const DIAL: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const TRIED: usize = 4;

/// A connection to what was wanted.
pub(super) struct Opened {
    pub(super) passage: Passage,
    pub(super) stream: Metered<TcpStream>,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum Refusal {
    /// For the program: the rule, and why.
    Denied(String),
    /// It may be reached, and cannot be.
    Unreachable(String),
    /// It is let through as a request, but its bytes are used up, or the journal is not to be written.
    Unavailable(String),
}

impl Egress<'_> {
    /// Opens a connection, if all that has a say lets it.
    pub(super) async fn open(&self, wanted: Destination, now: &Current) -> Result<Opened, Refusal> {
        if self.decisions.fetch_add(1, Ordering::Relaxed) >= MOST_DECISIONS {
            let message = format!("a call may ask for {MOST_DECISIONS} connections");
            return Err(Refusal::Unavailable(message));
        }
        let passage = match self.door.ask(&self.grant, wanted.clone()) {
            Ok(passage) => passage,
            Err(ruling) => return Err(self.deny(&wanted, &ruling.rule, &ruling.why, &[]).await),
        };
        let addresses = match look_up(&wanted).await {
            Ok(addresses) => addresses,
            Err(error) => {
                self.allow(&passage, &[]).await?;
                return Err(Refusal::Unreachable(format!("{wanted} cannot be found: {error}")));
            }
        };
        // One address of our own among others is enough to mean harm.
        if let Some(what) = addresses.iter().find_map(|address| off_limits(*address)) {
            let rule = RuleId::new("builtin/not-public");
            let why = format!(
                "{} stands for an address that is {what}; programs reach only the public internet",
                wanted.host
            );
            return Err(self.deny(&wanted, &rule, &why, &addresses).await);
        }
        self.allow(&passage, &addresses).await?;
        now.set(&wanted);
        // Whoever tightened the policy since was not heard by this connection yet.
        if let Err(ruling) = self.door.ask(&self.grant, wanted.clone()) {
            return Err(self.deny(&wanted, &ruling.rule, &ruling.why, &addresses).await);
        }
        let stream = dial(&addresses, wanted.port).await.map_err(|error| {
            Refusal::Unreachable(format!("{wanted} cannot be reached: {error}"))
        })?;
        let _ = stream.set_nodelay(true);
        let meter = self.meters.of(&passage);
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok(Opened { passage, stream: Metered::new(stream, meter) })
    }

    /// Writes down that something is refused, and says so.
    pub(super) async fn deny(
        &self,
        wanted: &Destination,
        rule: &RuleId,
        why: &str,
        addresses: &[IpAddr],
    ) -> Refusal {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let told = format!("{wanted} is denied by {rule}: {why}");
        self.tell(&told);
        let decision = Verdict::Deny;
        let noted = self.door.note(Reached { wanted, decision, rule, why, addresses }).await;
        match noted {
            Ok(()) => Refusal::Denied(told),
            Err(error) => Refusal::Unavailable(error.to_string()),
        }
    }

    async fn allow(&self, passage: &Passage, addresses: &[IpAddr]) -> Result<(), Refusal> {
        let (wanted, decision) = (passage.destination(), Verdict::Allow);
        let (rule, why) = (passage.rule(), passage.why());
        let noted = self.door.note(Reached { wanted, decision, rule, why, addresses }).await;
        noted.map_err(|error| Refusal::Unavailable(error.to_string()))
    }
}

/// All that the host stands for, at most [`TRIED`] of them, each looked at before any is dialled.
async fn look_up(wanted: &Destination) -> io::Result<Vec<IpAddr>> {
    let name = match &wanted.host {
        Host::Address(address) => return Ok(vec![*address]),
        // With a dot at its end, so that no search domain of this machine is put behind it.
        Host::Name(name) => format!("{name}."),
    };
    let found = tokio::time::timeout(DIAL, tokio::net::lookup_host((name, wanted.port)));
    let found = found.await.map_err(|_| io::ErrorKind::TimedOut)??;
    let addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    if addresses.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(addresses) }
}

/// What an address is that no program may reach; none: it may.
fn off_limits(address: IpAddr) -> Option<&'static str> {
    reserved(address).or_else(|| is_ours(address).then_some("this machine's own"))
}

/// Whether the kernel would send to an address from that very address, as it does for its own alone. Connecting
/// a datagram socket sends nothing.
fn is_ours(address: IpAddr) -> bool {
    let any: SocketAddr = match address {
        IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let source = UdpSocket::bind(any)
        .and_then(|socket| socket.connect((address, 9)).and_then(|()| socket.local_addr()));
    // Without a route nothing can be dialled either.
    source.is_ok_and(|source| source.ip() == address)
}

async fn dial(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses.iter().take(TRIED) {
        let dialled = tokio::time::timeout(DIAL, TcpStream::connect((*address, port)));
        match dialled.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
