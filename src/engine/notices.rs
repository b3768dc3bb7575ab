//! Tells a webhook of every question to people: once the question is on disk, again and again until the receiver took it
//! or refused it for good, and only while it waits for an answer. What came of it is in the journal, so that the next
//! daemon goes on with the rest. What is sent: [`message`]. What an answer means: [`outcome`]. Who is next: [`waiting`].
//!
//! Invariant: nothing waits for a receiver but what it is to be told.

mod message;
mod outcome;
mod waiting;

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::mpsc;

use self::{
    outcome::{Outcome, outcome},
    waiting::{Attempt, Waiting},
};
use crate::{
    domain::{
        ids::Position,
        journal::{Record, WebhookDelivered, WebhookRefused},
    },
    engine::{Engine, EngineError, World},
    ports::{Approvals, EntryView, JournalError, PendingApproval, Webhook},
};

/// Posts that are under way at the same time.
const AT_ONCE: usize = 8;
/// Questions that are told of or wait to be told of again. Further ones are left in the journal until there is room.
const MOST: usize = 1024;
/// Questions, or entries of the daemon, that are looked at together.
const PAGE: usize = 64;
/// What was told already, and entries that come often: they say how far back a page has come.
const TOLD: &[&str] = &["daemon_started", "run_anchored", "webhook_delivered", "webhook_refused"];
/// How long after one look at the journal the next one may be.
const PACE: Duration = Duration::from_millis(100);
/// How long to wait after the journal could not be read or written.
const RETRY: Duration = Duration::from_secs(1);

impl Engine {
    /// Tells the webhook, where there is one, of every question to people, until the daemon stops.
    ///
    /// What is being sent then is broken off; what was answered by then is written down before this returns.
    pub async fn tell_of_questions(self) {
        let Some(webhook) = self.inner.world.webhook.clone() else { return };
        let notices = Notices { engine: &self, webhook: &*webhook };
        let (found, questions) = mpsc::channel(PAGE);
        let stopping = self.stopping();
        tokio::join!(stopping.run_until_cancelled(notices.look(found)), notices.tell(questions));
    }
}

/// What is done for one webhook.
struct Notices<'a> {
    engine: &'a Engine,
    webhook: &'a dyn Webhook,
}

impl Notices<'_> {
    /// Finds every question that has not been told of: those that earlier daemons left, then those that come. Waits
    /// while nobody takes them.
    async fn look(&self, found: mpsc::Sender<Position>) {
        let clock = &self.engine.inner.world.clock;
        let mut heads = self.engine.watch_head();
        let earlier = *heads.borrow_and_update();
        let mut after = Position(0);
        loop {
            let looked = self.find(&mut after, earlier, &found).await;
            if let Err(error) = looked {
                tracing::warn!(%error, "it cannot be looked up what the webhook is to be told");
                clock.sleep(RETRY).await;
                continue;
            }
            clock.sleep(PACE).await;
            if heads.changed().await.is_err() {
                return;
            }
        }
    }

    /// Hands over all questions behind `after` by now. What an earlier daemon may have told of stands at `earlier` or
    /// before.
    async fn find(
        &self,
        after: &mut Position,
        earlier: Position,
        found: &mpsc::Sender<Position>,
    ) -> Result<(), EngineError> {
        loop {
            let page = self.engine.pending_approvals(Approvals::default(), *after, PAGE).await?;
            let mut questions: BTreeSet<Position> =
                page.into_iter().map(|asked| asked.position).collect();
            let (Some(first), Some(last)) = (questions.first(), questions.last().copied()) else {
                return Ok(());
            };
            if *first <= earlier {
                self.leave_out_told(&mut questions).await?;
            }
            for question in questions {
                if found.send(question).await.is_err() {
                    return Ok(());
                }
            }
            *after = last;
        }
    }

    /// Takes out what was settled before. Reads the daemon's own chain, newest first, back to the oldest question.
    async fn leave_out_told(&self, questions: &mut BTreeSet<Position>) -> Result<(), EngineError> {
        let journal = &self.engine.inner.world.journal;
        let Some(oldest) = questions.first().copied() else { return Ok(()) };
        let mut before = None;
        loop {
            let page = journal.daemon_views(TOLD, before, PAGE).await?;
            for question in page.iter().filter_map(told) {
                questions.remove(&question);
            }
            match page.last() {
                Some(view) if view.position > oldest => before = Some(view.sequence),
                Some(_) | None => return Ok(()),
            }
        }
    }

    /// Tells of the questions that are found, some at the same time.
    async fn tell(&self, mut found: mpsc::Receiver<Position>) {
        let clock = &self.engine.inner.world.clock;
        let stopping = self.engine.stopping();
        let mut waiting = Waiting::default();
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < AT_ONCE
                && let Some(next) = waiting.take_due(clock.steady_ms())
            {
                under_way.push(self.attempt(next));
            }
            let due = waiting.next_due().filter(|_| under_way.len() < AT_ONCE);
            let left =
                Duration::from_millis(due.unwrap_or_default().saturating_sub(clock.steady_ms()));
            tokio::select! {
                Some(question) = found.recv(), if waiting.len() + under_way.len() < MOST => {
                    waiting.add(Attempt::first(question, clock.steady_ms()));
                }
                Some(again) = under_way.next(), if !under_way.is_empty() => {
                    if let Some(again) = again {
                        waiting.add(again);
                    }
                }
                () = clock.sleep(left), if due.is_some() => {}
                () = stopping.cancelled() => break,
            }
        }
        // Each breaks off what it sends by itself, and writes down what was answered.
        while under_way.next().await.is_some() {}
    }

    /// Tells once of a question that still waits for an answer. Gives the next attempt, if there is to be one.
    async fn attempt(&self, attempt: Attempt) -> Option<Attempt> {
        let World { clock, chance, redactor, .. } = &self.engine.inner.world;
        let asked = match self.still_asked(attempt.question).await {
            Ok(asked) => asked?,
            Err(error) => {
                tracing::warn!(%error, "a question cannot be read; the webhook is told later");
                return Some(attempt.put_off(clock.steady_ms(), RETRY));
            }
        };
        let notice = message::notice(&asked, clock.now(), redactor);
        // What is broken off is left to the next daemon.
        let stopping = self.engine.stopping();
        let answered = stopping.run_until_cancelled(self.webhook.post(&notice)).await?;
        let (run_id, call, attempts) = (asked.run, asked.asked.call, attempt.number);
        let position = asked.position;
        match outcome(answered, attempts, chance.fraction()) {
            Outcome::Delivered { http_status } => {
                tracing::info!(%run_id, %call, attempts, "the webhook was told of a question");
                let told = WebhookDelivered { run_id, call, position, attempts, http_status };
                self.write_down(told.into()).await;
                None
            }
            Outcome::Refused { http_status, reason } => {
                tracing::warn!(%run_id, %call, attempts, reason, "the webhook refused a question");
                let told = WebhookRefused { run_id, call, position, attempts, http_status, reason };
                self.write_down(told.into()).await;
                None
            }
            Outcome::Again { after, why } => {
                // Of a receiver that is away for hours, ever fewer lines say so.
                if attempts.is_power_of_two() {
                    tracing::warn!(%run_id, %call, attempts, why, ?after, "the webhook was not told");
                }
                Some(attempt.next(clock.steady_ms(), after))
            }
        }
    }

    /// The question, unless somebody has answered it by now, or may no longer.
    async fn still_asked(
        &self,
        question: Position,
    ) -> Result<Option<PendingApproval>, EngineError> {
        let before = Position(question.0.saturating_sub(1));
        let found = self.engine.pending_approvals(Approvals::default(), before, 1).await?;
        let now = self.engine.inner.world.clock.now();
        let is_it =
            |asked: &PendingApproval| asked.position == question && now < asked.asked.expires;
        Ok(found.into_iter().next().filter(is_it))
    }

    /// Writes what came of it. Where that fails, the next daemon tells of the question once more.
    async fn write_down(&self, record: Record) {
        let clock = &self.engine.inner.world.clock;
        let stopping = self.engine.stopping();
        loop {
            let Err(error) = self.engine.note(record.clone()).await else { return };
            tracing::warn!(%error, "what came of a webhook cannot be written down");
            let is_busy = matches!(error, EngineError::Journal(JournalError::Busy));
            if let EngineError::Journal(error) = &error {
                self.engine.note_failure(error);
            }
            if !is_busy || stopping.run_until_cancelled(clock.sleep(RETRY)).await.is_none() {
                return;
            }
        }
    }
}

/// The question that an entry settles, if it does.
fn told(view: &EntryView) -> Option<Position> {
    match Record::decode(&view.kind, view.version, &view.payload) {
        Ok(Record::WebhookDelivered(told)) => Some(told.position),
        Ok(Record::WebhookRefused(told)) => Some(told.position),
        Ok(_) | Err(_) => None,
    }
}
