//! The loop of one run: decide, perform, append, fold. The driver is the run's one owner: whoever
//! wants something of a run that is going says it in the driver's inbox.

use std::{path::PathBuf, sync::Arc};

use futures_util::{StreamExt as _, future::join_all, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    agents::executor,
    domain::{
        backend::Api,
        journal::{
            BudgetWarning, ModelNudged, Moment, OnVeto, RunFinished, RunSuspended, Taken,
            WorkspaceSnapshot,
        },
        run::{Command, Ending, Failure, Invocation, Suspension, Wish, decide},
    },
    engine::{
        World,
        ceiling::Ceiling,
        colleagues, diff,
        door::{self, Note},
        inbox::Message,
        invoker,
        ledger::Standing,
        live::Live,
        run_log::{Recorded, RunLog},
        team,
    },
    fail_point,
    ports::{JournalError, Keeping, SandboxError},
};

/// Tool calls of one run that run at the same time; the others wait for their turn.
const CALLS_AT_ONCE: usize = 8;

/// How a driver left its run.
pub(super) struct Left {
    /// With what came too late to be heard.
    pub(super) inbox: mpsc::Receiver<Message>,
    /// Whether there is more to do for a driver that has the workspace.
    pub(super) goes_on: bool,
}

/// Carries one run on until it ends, stands still, or the daemon stops.
pub(super) struct Driver {
    pub(super) world: World,
    pub(super) live: Arc<Live>,
    pub(super) log: RunLog,
    pub(super) inbox: mpsc::Receiver<Message>,
    /// Whether the workspace is the run's: who only has to hear something has it not.
    pub(super) has_workspace: bool,
    /// Whether it has said that it waits for a backend that does not work.
    pub(super) is_awaiting: bool,
    /// The daemon is stopping: finish the step under way, begin no other.
    pub(super) stopping: CancellationToken,
}

impl Driver {
    /// Errors: the journal failed; nothing more may be done.
    pub(super) async fn drive(mut self) -> Result<Left, JournalError> {
        loop {
            // Who wants it to stand still does not wait for another request.
            while let Ok(message) = self.inbox.try_recv() {
                message.hear(&mut self.log).await?;
            }
            if self.stopping.is_cancelled() {
                self.leave_workspace().await;
                self.log.append([]).await?;
                return Ok(Left { inbox: self.inbox, goes_on: false });
            }
            let command = decide(self.log.state());
            // What closes a run that is to stop touches nothing, and neither does standing still.
            let is_harmless = match command {
                Command::Suspend(_) => true,
                Command::Restore => false,
                _ => self.log.state().wish == Wish::Cancel,
            };
            if !self.has_workspace && !is_harmless {
                return Ok(Left { inbox: self.inbox, goes_on: command != Command::Rest });
            }
            match command {
                Command::AskModel { turn, attempt, at } => match self.log.standing() {
                    Standing::Out(why) => self.suspend(why).await?,
                    Standing::NearlyOut(warning) => self.warn(warning),
                    Standing::Well => {
                        if self.wait_until(at).await?
                            && let Some(api) = self.await_backend(turn, attempt).await?
                        {
                            self.ask(turn, attempt, api).await?;
                        }
                    }
                },
                Command::Invoke(calls) => self.invoke(calls).await?,
                Command::Nudge { turn } => {
                    let state = self.log.state();
                    let backend = &self.world.mind(state.speaker()).0.name;
                    let text = match state.apis.get(backend) {
                        Some(Api::Chat) => executor::NUDGE_WITHOUT_TOOLS,
                        Some(Api::Responses) | None => executor::NUDGE,
                    };
                    self.log.stage(ModelNudged { turn, text: text.into() });
                }
                // Boxed: what few runs do now and then must not make the future of each of them larger.
                Command::Begin(seat) => Box::pin(self.begin(seat)).await?,
                Command::TellRepository => Box::pin(self.tell_repository()).await?,
                Command::CheckWork => Box::pin(self.check_work()).await?,
                Command::Restore => Box::pin(self.restore()).await?,
                Command::Return { call, ending } => self.return_to_caller(call, ending),
                Command::Conclude { turn, conclusion } => self.conclude(turn, conclusion),
                Command::Warn(warning) => self.warn(warning),
                Command::Suspend(why) => self.suspend(why).await?,
                Command::Finish(ending) => self.finish(ending).await?,
                Command::Rest => return Ok(Left { inbox: self.inbox, goes_on: false }),
            }
        }
    }

    fn warn(&mut self, warning: BudgetWarning) {
        tracing::info!(run = %self.log.state().id, ?warning, "most of a limit is used up");
        self.log.stage(warning);
    }

    async fn suspend(&mut self, why: Suspension) -> Result<(), JournalError> {
        tracing::info!(run = %self.log.state().id, ?why, "the run stands still");
        self.leave_workspace().await;
        self.log.append([RunSuspended { why }.into()]).await
    }

    /// Ends the run, or the work of who was asked by another agent.
    pub(super) async fn end(&mut self, ending: Ending) -> Result<(), JournalError> {
        match self.log.state().asked().first().map(|asked| asked.call.key) {
            Some(call) => {
                self.return_to_caller(call, ending);
                Ok(())
            }
            None => self.finish(ending).await,
        }
    }

    async fn finish(&mut self, ending: Ending) -> Result<(), JournalError> {
        let snapshots = &self.log.state().snapshots;
        if let (Some(Taken::Tree(_)), None) = (&snapshots.before, &snapshots.after) {
            Box::pin(self.take_snapshot(Moment::After)).await;
        }
        self.log.append([RunFinished { ending }.into()]).await?;
        tracing::info!(run = %self.log.state().id, state = self.log.state().name().as_str(), "ended");
        Ok(())
    }

    /// Carries calls out: all intents on disk first, then the effects side by side.
    async fn invoke(&mut self, calls: Vec<Invocation>) -> Result<(), JournalError> {
        let state = self.log.state();
        let site = invoker::Site {
            run: state.id,
            workspace: PathBuf::from(&state.spec.workspace),
            role: state.role.clone(),
            tools: team::own_tools(&self.world, state),
            errands: colleagues::open(&self.world, state, &calls),
        };
        let preparing =
            calls.into_iter().map(|call| invoker::prepare(&self.world, site.clone(), call));
        let prepared = join_all(preparing).await;
        let may_change = prepared.iter().any(|call| call.pending.may_change_something());
        if may_change {
            // Boxed, like what else few runs do.
            Box::pin(self.look_at_copy()).await;
        }
        if may_change && self.log.state().snapshots.before.is_none() {
            Box::pin(self.take_snapshot(Moment::Before)).await;
            let team = self.log.state().spec.team;
            if team.is_some_and(|team| team.on_veto == OnVeto::Restore) {
                Box::pin(self.take_snapshot(Moment::Copy)).await;
            }
        }
        let intended = prepared.into_iter().map(|call| (call.intent, call.pending)).collect();
        let mut recorded = self.log.record(intended).await?;
        recorded.retain(|call: &Recorded<invoker::Pending>| !call.get().waits());
        match recorded.is_empty() {
            true => Ok(()),
            false => self.perform(recorded).await,
        }
    }

    /// Remembers the files of the workspace, together with whatever is written next.
    pub(super) async fn take_snapshot(&mut self, moment: Moment) {
        let taken = self.snapshot(moment).await;
        self.log.stage(WorkspaceSnapshot { moment, taken });
    }

    pub(super) async fn snapshot(&self, moment: Moment) -> Taken {
        let state = self.log.state();
        let keeping = match moment {
            Moment::Before | Moment::After => Keeping::AsGitWould,
            Moment::Copy | Moment::Left => Keeping::Bytes,
        };
        let workspace = &state.spec.workspace;
        match diff::snapshot(&self.world, (state.id, workspace), keeping).await {
            Ok(tree) => Taken::Tree(tree),
            Err(error) => {
                let why = crate::telemetry::chain(&error);
                tracing::debug!(run = %state.id, why, "no snapshot of the workspace");
                Taken::Failed(why)
            }
        }
    }

    async fn perform(
        &mut self,
        recorded: Vec<Recorded<invoker::Pending>>,
    ) -> Result<(), JournalError> {
        let mut left = recorded.len();
        let (say, mut notes) = mpsc::channel(door::NOTES);
        let around = invoker::Around {
            world: self.world.clone(),
            live: self.live.clone(),
            run: self.log.state().id,
            ceiling: Ceiling::new(self.log.state().usage.cpu_ms),
            stop: CancellationToken::new(),
            notes: say,
        };
        let performing = recorded.into_iter().map(|call| invoker::perform(&around, call));
        let mut running = std::pin::pin!(stream::iter(performing).buffer_unordered(CALLS_AT_ONCE));
        let mut failure = None;
        while left > 0 {
            tokio::select! {
                // What a call's program wanted stands before its output.
                biased;
                Some(note) = notes.recv() => self.note(note, &mut notes).await?,
                Some(finished) = running.next() => {
                    left -= 1;
                    if let Ok(note) = notes.try_recv() {
                        self.note(note, &mut notes).await?;
                    }
                    fail_point::reach("result.before");
                    self.log.stage(finished.output);
                    failure = failure.or(finished.failure);
                    // The last output is written together with what comes next.
                    if left > 0 {
                        self.log.append([]).await?;
                    }
                }
                Some(message) = self.inbox.recv() => {
                    let interrupts = message.interrupts();
                    message.hear(&mut self.log).await?;
                    if interrupts {
                        around.stop.cancel();
                    }
                }
            }
        }
        match (failure, self.log.state().wish) {
            (Some(error), Wish::GoOn | Wish::Pause) => self.fail(&error).await,
            // A run that is to stop stops, whatever became of the sandbox.
            (Some(error), Wish::Cancel) => {
                let message = crate::telemetry::chain(&error);
                tracing::warn!(run = %self.log.state().id, %message, "the sandbox failed");
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    /// Writes a note down, together with all others that wait.
    async fn note(
        &mut self,
        first: Note,
        others: &mut mpsc::Receiver<Note>,
    ) -> Result<(), JournalError> {
        let mut waiting = Vec::new();
        let mut next = Some(first);
        while let Some(Note { noted, done }) = next.take() {
            self.log.stage(noted);
            waiting.push(done);
            next = others.try_recv().ok();
        }
        self.log.append([]).await?;
        for done in waiting {
            // Who asked may be gone.
            let _ = done.send(());
        }
        Ok(())
    }

    /// The sandbox itself failed: the run cannot be trusted to go on.
    async fn fail(&mut self, error: &SandboxError) -> Result<(), JournalError> {
        let message = crate::telemetry::chain(error);
        tracing::error!(run = %self.log.state().id, %message, "the sandbox failed");
        let failure = Failure { reason: "SANDBOX_FAILED".into(), message };
        self.close_open(&failure);
        self.finish(Ending::Failed(failure)).await
    }
}
