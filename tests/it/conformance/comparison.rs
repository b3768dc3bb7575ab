//! Whatever is done, a store answers as the model does: the same operations go to both, one after the other, and every
//! answer is compared. What comes together, in any order, is in the named tests.

use agentd::{
    domain::{
        ids::{Epoch, RunId, Sequence},
        status::StateName,
    },
    ports::{Created, Progress},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError},
};
use tokio::{runtime, sync::watch};

use super::{
    MemoryStore, Store, chains,
    operations::{After, Lifetime, Operation, named, operations},
    questions::{Hashes, all_answers, everything, text},
    records::{Said, Submission, appended, run_id},
};

/// Compares a store with the model.
pub(super) fn check<S: Store>() {
    // Every attempt at a shorter case opens a store: these take a minute at most.
    let config = Config { cases: 64, max_shrink_iters: 2000, ..Config::default() };
    proptest!(config, |(operations in operations())| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(carry_out::<S>(operations))?;
    });
}

async fn carry_out<S: Store>(operations: Vec<Operation>) -> Result<(), TestCaseError> {
    let mut pair = Pair::<S>::new().await;
    for operation in operations {
        pair = pair.step(operation).await?;
        pair.compare_watchers()?;
    }
    pair.compare_everything().await?;
    chains::check(pair.store.journal()).await;
    Ok(())
}

/// The model and a store, to which the same was done.
struct Pair<S> {
    model: MemoryStore,
    store: S,
    /// Runs that were made.
    runs: u8,
    /// Entries of the daemon that were written, as far as they were not anchors.
    notes: u64,
    watchers: Vec<(RunId, [watch::Receiver<Progress>; 2])>,
}

impl<S: Store> Pair<S> {
    async fn new() -> Self {
        let (model, store) = (MemoryStore::new().await, S::new().await);
        Self { model, store, runs: 0, notes: 0, watchers: Vec::new() }
    }

    fn named(&self, number: u8) -> RunId {
        run_id(named(number, self.runs))
    }

    async fn step(mut self, operation: Operation) -> Result<Self, TestCaseError> {
        match operation {
            Operation::Create(submission) => self.create(&submission).await?,
            Operation::Append { run, after, epoch, state, said } => {
                self.append(self.named(run), after, epoch, state, &said).await?;
            }
            Operation::Note(note) => {
                self.notes += 1;
                let entry = note.entry(self.notes);
                let expected = self.model.journal().append_daemon(entry.clone()).await;
                let answer = self.store.journal().append_daemon(entry).await;
                prop_assert_eq!(text(answer), text(expected));
            }
            Operation::Ask(question) => {
                let question = question.about(|run| named(run, self.runs));
                let expected = question.ask(self.model.journal(), Hashes::Hidden).await;
                let answer = question.ask(self.store.journal(), Hashes::Hidden).await;
                prop_assert_eq!(answer, expected, "{:?}", question);
            }
            Operation::Watch { run } => self.watch(self.named(run)),
            Operation::Reopen => return self.reopen().await,
        }
        Ok(self)
    }

    async fn create(&mut self, submission: &Submission) -> Result<(), TestCaseError> {
        let run = run_id(self.runs + 1);
        let expected = self.model.submit(run, submission).await;
        let answer = self.store.submit(run, submission).await;
        prop_assert_eq!(text(&answer), text(expected));
        if matches!(answer, Ok(Created::New)) {
            self.runs += 1;
        }
        Ok(())
    }

    async fn append(
        &self,
        run: RunId,
        after: After,
        lifetime: Lifetime,
        state: StateName,
        said: &[Said],
    ) -> Result<(), TestCaseError> {
        let stands = self.model.journal().run(run).await.unwrap();
        let (head, before) = stands.map_or((0, None), |run| (run.head.0, Some(run.status.state)));
        if before.is_some_and(StateName::is_ended) {
            // No daemon writes to a run that has ended, and what a store makes of it is not promised.
            return Ok(());
        }
        let after = Sequence(match after {
            After::Last => head,
            After::LastButOne => head.saturating_sub(1),
            After::Next => head + 1,
        });
        let append = |Epoch(this)| {
            let epoch = match lifetime {
                Lifetime::This => this,
                Lifetime::Earlier => this - 1,
                Lifetime::Later => this + 1,
            };
            appended(Epoch(epoch), run, after, state, said)
        };
        let expected = self.model.journal().append(append(self.model.epoch())).await;
        let answer = self.store.journal().append(append(self.store.epoch())).await;
        prop_assert_eq!(text(answer), text(expected));
        Ok(())
    }

    fn watch(&mut self, run: RunId) {
        if !self.watchers.iter().any(|(watched, _)| *watched == run) {
            let both = [self.model.journal(), self.store.journal()].map(|it| it.watch(run));
            self.watchers.push((run, both));
        }
    }

    fn compare_watchers(&self) -> Result<(), TestCaseError> {
        for (run, [model, store]) in &self.watchers {
            prop_assert_eq!(*store.borrow(), *model.borrow(), "who watches {}", run);
        }
        Ok(())
    }

    async fn compare_everything(&self) -> Result<(), TestCaseError> {
        for question in everything(self.runs) {
            let expected = question.ask(self.model.journal(), Hashes::Hidden).await;
            let answer = question.ask(self.store.journal(), Hashes::Hidden).await;
            prop_assert_eq!(answer, expected, "{:?}", question);
        }
        Ok(())
    }

    /// The next lifetime of both, in which the store says what it said before, hashes and all.
    async fn reopen(self) -> Result<Self, TestCaseError> {
        let Self { model, store, runs, notes, .. } = self;
        let (epoch, before) = (store.epoch(), all_answers(store.journal(), runs).await);
        let (model, store) = (model.reopened().await, store.reopened().await);
        prop_assert!(store.epoch() > epoch, "{:?} after {:?}", store.epoch(), epoch);
        prop_assert_eq!(all_answers(store.journal(), runs).await, before);
        Ok(Self { model, store, runs, notes, watchers: Vec::new() })
    }
}
