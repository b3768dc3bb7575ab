//! Which run's driver is started when, and what is said to it. What a driver does: see [`super::driver`]; which runs go
//! and which wait, as data: [`super::schedule`].

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::sync::mpsc;

use crate::{
    domain::ids::RunId,
    engine::{
        Engine,
        driver::{Driver, Left},
        inbox::Message,
        recovery,
        run_log::{BUSY, Opened, RunLog},
        schedule::{Claim, Origin, Running, Schedule, Waiting},
    },
    ports::JournalError,
};

/// Wishes that may wait in a run's inbox; the caller of one more waits.
const INBOX: usize = 16;

impl Engine {
    /// Puts a message into the inbox of a run's driver. For a run that waits or stands still one is
    /// started, which hears the message before anything else.
    pub(super) async fn tell(&self, run: RunId, claim: Claim, message: Message) {
        let running = {
            let mut schedule = self.schedule();
            match schedule.running.get(run) {
                Some(running) => (running.inbox.clone(), message),
                None => {
                    let stored = || Waiting { run, claim, origin: Origin::Stored };
                    let waiting = schedule.take(run).unwrap_or_else(stored);
                    return self.start(&mut schedule, waiting, Some(message));
                }
            }
        };
        let (inbox, message) = running;
        let _ = inbox.send(message).await;
    }

    /// Starts every waiting run that may go: there is room, and its workspace is free.
    pub(super) fn pump(&self) {
        if self.check_intake().is_err() {
            return;
        }
        let mut schedule = self.schedule();
        while let Some(waiting) = schedule.next(&self.inner.limits) {
            self.start(&mut schedule, waiting, None);
        }
    }

    fn start(&self, schedule: &mut Schedule, waiting: Waiting, first: Option<Message>) {
        let Waiting { run, claim, origin } = waiting;
        let (inbox, messages) = mpsc::channel(INBOX);
        let has_workspace = schedule.has_workspace(run, &claim);
        if let Some(message) = first {
            // The channel is new and has room.
            let _ = inbox.try_send(message);
        }
        schedule.running.insert(run, Running { claim: claim.clone(), inbox });
        let engine = self.clone();
        self.inner.drivers.spawn("run", async move {
            let driven = AssertUnwindSafe(engine.drive(run, origin, (messages, has_workspace)))
                .catch_unwind();
            match driven.await {
                Ok(Ok(Left { inbox: mut late, goes_on })) => {
                    let stored = || Waiting { run, claim: claim.clone(), origin: Origin::Stored };
                    engine.release(run, goes_on.then(stored));
                    // What was said after the driver's last look is said again, to the next one.
                    while let Some(message) = late.recv().await {
                        engine.tell(run, claim.clone(), message).await;
                    }
                }
                Ok(Err(error)) => {
                    tracing::error!(%run, %error, "the run's driver stopped");
                    engine.note_failure(&error);
                    engine.release(run, None);
                }
                // A fault of ours in one run is none of the others.
                Err(_) => {
                    tracing::error!(%run, "the run's driver panicked; the next daemon takes it up");
                    engine.release(run, None);
                }
            }
        });
    }

    async fn drive(
        &self,
        run: RunId,
        origin: Origin,
        (inbox, has_workspace): (mpsc::Receiver<Message>, bool),
    ) -> Result<Left, JournalError> {
        let world = self.inner.world.clone();
        let opened = match origin {
            Origin::Fresh(state) => Opened::fresh(*state),
            Origin::Stored => {
                let unknown =
                    || JournalError::Unreadable { what: format!("there is no run {run}") };
                self.read(run).await?.ok_or_else(unknown)?
            }
        };
        let entries = self.inner.limits.checkpoint_entries;
        let mut log = RunLog::new(&world, opened, entries, self.inner.ledger.clone());
        recovery::take_over(&world, &mut log).await?;
        let stopping = self.inner.drivers.token();
        let live = self.inner.live.clone();
        Driver { world, live, log, inbox, has_workspace, is_awaiting: false, stopping }
            .drive()
            .await
    }

    /// A run out of the journal, also while everybody reads: nobody else would take it up.
    async fn read(&self, run: RunId) -> Result<Option<Opened>, JournalError> {
        loop {
            match RunLog::read(&*self.inner.world.journal, run).await {
                Err(JournalError::Busy) if !self.inner.drivers.token().is_cancelled() => {
                    self.inner.world.clock.sleep(BUSY).await;
                }
                read => return read,
            }
        }
    }

    /// `again` waits for its workspace, in its old place.
    fn release(&self, run: RunId, again: Option<Waiting>) {
        {
            let mut schedule = self.schedule();
            schedule.release(run);
            if let Some(again) = again {
                schedule.queue.push(again);
            }
        }
        self.pump();
    }
}
