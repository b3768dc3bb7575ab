//! From a destination to a connection: asked about, written down, looked up, looked at, dialled. In this order:
//! a name that is looked up is seen by strangers already.

use std::{
    io,
    net::{IpAddr, UdpSocket},
    sync::atomic::Ordering,
    time::Duration,
};

use tokio::net::TcpStream;

use crate::{
    domain::{
        host::{Host, reserved},
        ids::{PolicyRevision, RuleId},
        journal::Verdict,
        policy::{Destination, Passage},
    },
    ports::{Answered, Reached},
    sandbox::egress::{Current, Egress, MOST_DECISIONS, Open, meter::Metered},
};

/// How long an address may take to answer.
const DIAL: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const TRIED: usize = 4;

/// A connection to what was wanted.
pub(super) struct Opened {
    pub(super) passage: Passage,
    pub(super) revision: PolicyRevision,
    pub(super) stream: Metered<TcpStream>,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum Refusal {
    /// For the program: the rule, and why.
    Denied(String),
    /// It may be reached, and cannot be.
    Unreachable(String),
    /// Nothing more is reached: too much was asked for, or the journal is not to be written.
    Unavailable(String),
}

/// By which rule of ours, and why, something is denied.
pub(super) struct Denial<'a> {
    pub(super) rule: &'a RuleId,
    pub(super) why: &'a str,
    pub(super) revision: &'a PolicyRevision,
    pub(super) addresses: &'a [IpAddr],
}

impl Egress<'_> {
    /// Opens a connection, if all that has a say lets it.
    pub(super) async fn open(&self, wanted: Destination, now: &Current) -> Result<Opened, Refusal> {
        if self.decisions.fetch_add(1, Ordering::Relaxed) >= MOST_DECISIONS {
            let message = format!("a call may ask for {MOST_DECISIONS} connections");
            return Err(Refusal::Unavailable(message));
        }
        let (passage, revision) = self.ask(&wanted).await?;
        self.allow(&passage, &revision).await?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        let addresses = match &wanted.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => self.names.look_up(name).await.map_err(|error| {
                Refusal::Unreachable(format!("{wanted} cannot be found: {error}"))
            })?,
        };
        // One address of our own among others is enough to mean harm.
        if let Some(what) = addresses.iter().find_map(|address| off_limits(*address)) {
            let why = format!(
                "{} stands for an address that is {what}; programs reach only the public internet",
                wanted.host
            );
            let rule = &RuleId::new("builtin/not-public");
            let denial = Denial { rule, why: &why, revision: &revision, addresses: &addresses };
            return Err(self.deny(&wanted, denial).await);
        }
        let meter = self.meters.of(&passage, *self.changes.borrow());
        now.set(Open { wanted: wanted.clone(), tunnels: passage.tunnels(), meter: meter.clone() });
        // Whoever tightened the policy since was not heard by this connection yet.
        let (passage, revision) = self.ask(&wanted).await?;
        meter.lower(&passage);
        let (stream, address) = dial(&addresses, wanted.port).await.map_err(|error| {
            Refusal::Unreachable(format!("{wanted} cannot be reached: {error}"))
        })?;
        self.tell_dialled(&format!("{address} for {wanted}"));
        let _ = stream.set_nodelay(true);
        Ok(Opened { passage, revision, stream: Metered::new(stream, meter) })
    }

    /// Asks; what is refused is written down.
    async fn ask(&self, wanted: &Destination) -> Result<(Passage, PolicyRevision), Refusal> {
        let Answered { ruling, revision } = self.door.ask(&self.grant, wanted.clone());
        match ruling {
            Ok(passage) => Ok((passage, revision)),
            Err(ruling) => {
                let (rule, why) = (&ruling.rule, ruling.why.as_str());
                let denial = Denial { rule, why, revision: &revision, addresses: &[] };
                Err(self.deny(wanted, denial).await)
            }
        }
    }

    /// Writes down that something is refused, and says so.
    pub(super) async fn deny(&self, wanted: &Destination, denial: Denial<'_>) -> Refusal {
        let Denial { rule, why, revision, addresses } = denial;
        self.refused.fetch_add(1, Ordering::Relaxed);
        let told = format!("{wanted} is denied by {rule}: {why}");
        self.tell_refused(&told);
        let decision = Verdict::Deny;
        let reached = Reached { wanted, decision, rule, why, revision, addresses };
        match self.door.note(reached).await {
            Ok(()) => Refusal::Denied(told),
            Err(error) => Refusal::Unavailable(error.to_string()),
        }
    }

    async fn allow(&self, passage: &Passage, revision: &PolicyRevision) -> Result<(), Refusal> {
        let (wanted, decision) = (passage.destination(), Verdict::Allow);
        let (rule, why) = (passage.rule(), passage.why());
        let reached = Reached { wanted, decision, rule, why, revision, addresses: &[] };
        let noted = self.door.note(reached).await;
        noted.map_err(|error| Refusal::Unavailable(error.to_string()))
    }
}

/// What an address is that no program may reach; none: it may.
fn off_limits(address: IpAddr) -> Option<&'static str> {
    reserved(address)
        .or_else(|| is_ours(address).then_some("this machine's own, or not to be told from those"))
}

/// Whether an address is this machine's: then, and only then, a socket can be bound to it. What cannot be told
/// is taken for ours; so is everything where the system lets sockets be bound to any address.
fn is_ours(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => true,
        Err(error) => {
            // Where a family is not to be had, nothing of it can be dialled either.
            let foreign = [libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT];
            error.raw_os_error().is_none_or(|code| !foreign.contains(&code))
        }
    }
}

/// The first that answers.
async fn dial(addresses: &[IpAddr], port: u16) -> io::Result<(TcpStream, IpAddr)> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses.iter().take(TRIED) {
        let dialled = tokio::time::timeout(DIAL, TcpStream::connect((*address, port)));
        match dialled.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok((stream, *address)),
            Err(error) => last = error,
        }
    }
    Err(last)
}
