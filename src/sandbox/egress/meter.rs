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
#[derive(Debug, Default)]
pub(super) struct Meters(Mutex<BTreeMap<RuleId, Arc<Meter>>>);

/// What one call sent and got under one rule.
#[derive(Debug)]
pub(super) struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
    most_sent: u64,
    most_received: u64,
}

impl Meters {
    /// The meter of a rule. The limits of its first passage hold for the whole call.
    pub(super) fn of(&self, passage: &Passage) -> Arc<Meter> {
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(Meter {
                sent: AtomicU64::new(0),
                received: AtomicU64::new(0),
                most_sent: passage.most_sent(),
                most_received: passage.most_received(),
            })
        };
        meters.entry(passage.rule().clone()).or_insert_with(new).clone()
    }

    /// Bytes sent and received in all.
    pub(super) fn totals(&self) -> (u64, u64) {
        let meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |(sent, received): (u64, u64), meter: &Arc<Meter>| {
            (
                sent + meter.sent.load(Ordering::Relaxed),
                received + meter.received.load(Ordering::Relaxed),
            )
        };
        meters.values().fold((0, 0), count)
    }
}

/// How many more bytes may pass; at most as many as are asked for. Several connections may count at once, so
/// that what is taken here is given back where it was not used.
fn take(count: &AtomicU64, most: u64, wanted: usize) -> io::Result<usize> {
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
        let most = take(&meter.received, meter.most_received, buffer.remaining())?;
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
        let most = take(&meter.sent, meter.most_sent, bytes.len())?;
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
