//! Counts the bytes of a call, by the rule that lets them through, and stops them at the rule's limit.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::domain::{ids::RuleId, policy::Passage};

/// The meters of one call.
#[derive(Debug)]
pub(super) struct Meters {
    /// How many policies had come into force when the call began.
    began: u64,
    by_rule: Mutex<BTreeMap<RuleId, Arc<Meter>>>,
}

/// What one call sent and got under one rule.
#[derive(Debug)]
pub(super) struct Meter {
    /// Of these it counted nothing itself.
    before: (u64, u64),
    sent: AtomicU64,
    received: AtomicU64,
    most_sent: AtomicU64,
    most_received: AtomicU64,
}

impl Meters {
    pub(super) fn new(began: u64) -> Self {
        Self { began, by_rule: Mutex::default() }
    }

    /// The meter of a rule. The least limit of all its passages holds. A rule that a newer policy brought (`now`
    /// policies have come into force) may be an old one by another name: it counts what the call did until then.
    pub(super) fn of(&self, passage: &Passage, now: u64) -> Arc<Meter> {
        let (sent, received) = if now == self.began { (0, 0) } else { self.totals() };
        let mut meters = self.by_rule.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(Meter {
                before: (sent, received),
                sent: AtomicU64::new(sent),
                received: AtomicU64::new(received),
                most_sent: AtomicU64::new(u64::MAX),
                most_received: AtomicU64::new(u64::MAX),
            })
        };
        let meter = meters.entry(passage.rule().clone()).or_insert_with(new).clone();
        meter.lower(passage);
        meter
    }

    /// Bytes sent and received in all.
    pub(super) fn totals(&self) -> (u64, u64) {
        let meters = self.by_rule.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |(sent, received): (u64, u64), meter: &Arc<Meter>| {
            (
                sent + meter.sent.load(Ordering::Relaxed) - meter.before.0,
                received + meter.received.load(Ordering::Relaxed) - meter.before.1,
            )
        };
        meters.values().fold((0, 0), count)
    }
}

impl Meter {
    /// Keeps to what a passage lets through from now on, if that is less.
    pub(super) fn lower(&self, passage: &Passage) {
        self.most_sent.fetch_min(passage.most_sent(), Ordering::Relaxed);
        self.most_received.fetch_min(passage.most_received(), Ordering::Relaxed);
    }

    /// Whether no more passes in one direction.
    pub(super) fn is_used_up(&self) -> bool {
        let full = |count: &AtomicU64, most: &AtomicU64| {
            count.load(Ordering::Relaxed) >= most.load(Ordering::Relaxed)
        };
        full(&self.sent, &self.most_sent) || full(&self.received, &self.most_received)
    }
}

/// How many more bytes may pass; at most as many as are asked for. Several connections may count at once, so
/// that what is taken here is given back where it was not used.
fn take(count: &AtomicU64, most: &AtomicU64, wanted: usize) -> io::Result<usize> {
    let most = most.load(Ordering::Relaxed);
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    let taken = |now: u64| wanted.min(most.saturating_sub(now));
    let before = count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            (taken(now) > 0 || wanted == 0).then(|| now + taken(now))
        })
        .map_err(|_| io::Error::other("the rule lets no more bytes through"))?;
    Ok(usize::try_from(taken(before)).unwrap_or(usize::MAX))
}

fn give_back(count: &AtomicU64, unused: usize) {
    count.fetch_sub(unused as u64, Ordering::Relaxed);
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub(super) struct Metered<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, meter: Arc<Meter>) -> Self {
        Self { stream, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let meter = self.meter.clone();
        let most = take(&meter.received, &meter.most_received, buffer.remaining())?;
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        let read = Pin::new(&mut self.stream).poll_read(context, &mut part);
        let got = part.filled().len();
        buffer.advance(got);
        give_back(&meter.received, most - got);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let meter = self.meter.clone();
        let most = take(&meter.sent, &meter.most_sent, bytes.len())?;
        let written = Pin::new(&mut self.stream).poll_write(context, &bytes[..most]);
        let done = match &written {
            Poll::Ready(Ok(done)) => *done,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        give_back(&meter.sent, most - done);
        Poll::Ready(Ok(ready!(written)?))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
