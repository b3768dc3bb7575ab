//! What lies between a daemon and those who call it over TCP: passes their bytes on, and resets connections in the middle
//! of what they ask or are answered.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use agentd::{client::Address, tasks::Tasks};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{Dice, PATIENCE, TestDaemon};

/// When a connection is reset: with so many bytes that came through, of one direction, and more of them at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is not.
    Whole,
    OfRequests(usize),
    OfAnswers(usize),
}

/// What a relay has done so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: AtomicUsize,
    /// Resets in the middle of what was asked.
    pub(crate) in_requests: AtomicUsize,
    /// Resets in the middle of what was answered.
    pub(crate) in_answers: AtomicUsize,
}

pub(crate) struct Relay {
    way: Address,
    pub(crate) counts: Arc<Counts>,
    tasks: Tasks,
}

impl Relay {
    /// A way to the daemon, each connection on which has the fate that `fate` says.
    pub(crate) async fn start(
        daemon: &TestDaemon,
        dice: Dice,
        fate: fn(&mut Dice) -> Fate,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let token_file: Option<PathBuf> = Some(daemon.token_file());
        let to: SocketAddr = daemon.tcp.strip_prefix("http://").unwrap().parse().unwrap();
        let (tasks, counts) = (Tasks::default(), Arc::new(Counts::default()));
        let relay = Self { way: Address { uri, token_file }, counts: counts.clone(), tasks };
        let (tasks, stopping) = (relay.tasks.clone(), relay.tasks.token());
        let dice = Mutex::new(dice);
        relay.tasks.spawn("relay", async move {
            while let Some(Ok((caller, _))) = stopping.run_until_cancelled(listener.accept()).await
            {
                let fate = fate(&mut dice.lock().unwrap());
                let (counts, stopping) = (counts.clone(), stopping.clone());
                tasks.spawn("connection", async move {
                    let carried = carry(caller, to, fate, &counts);
                    // Whatever breaks breaks for both of its ends.
                    let _ = stopping.run_until_cancelled(carried).await;
                });
            }
        });
        relay
    }

    /// What callers are to connect to.
    pub(crate) fn way(&self) -> &Address {
        &self.way
    }

    /// Closes all connections, and takes no more.
    pub(crate) async fn stop(self) -> Arc<Counts> {
        assert!(self.tasks.stop(PATIENCE).await, "the relay does not end");
        self.counts
    }
}

/// How one direction came to its end.
enum Ended {
    Closed,
    Cut,
}

/// Passes bytes on in both directions until the connection is closed, or meets its fate.
async fn carry(
    mut caller: TcpStream,
    to: SocketAddr,
    fate: Fate,
    counts: &Counts,
) -> io::Result<()> {
    counts.connections.fetch_add(1, Relaxed);
    let mut daemon = TcpStream::connect(to).await?;
    caller.set_nodelay(true)?;
    daemon.set_nodelay(true)?;
    let (of_requests, of_answers) = match fate {
        Fate::Whole => (usize::MAX, usize::MAX),
        Fate::OfRequests(bytes) => (bytes, usize::MAX),
        Fate::OfAnswers(bytes) => (usize::MAX, bytes),
    };
    let (ended, cut) = {
        let (from_caller, to_caller) = caller.split();
        let (from_daemon, to_daemon) = daemon.split();
        tokio::select! {
            ended = pass(from_caller, to_daemon, of_requests) => (ended?, &counts.in_requests),
            ended = pass(from_daemon, to_caller, of_answers) => (ended?, &counts.in_answers),
        }
    };
    if let Ended::Cut = ended {
        cut.fetch_add(1, Relaxed);
        // Closed with no time to linger, a connection is reset.
        caller.set_zero_linger()?;
        daemon.set_zero_linger()?;
    }
    Ok(())
}

/// Passes so many bytes on, and cuts off what follows them.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut most: usize,
) -> io::Result<Ended> {
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(Ended::Closed);
        }
        to.write_all(&buffer[..count.min(most)]).await?;
        if count > most {
            return Ok(Ended::Cut);
        }
        most -= count;
    }
}
