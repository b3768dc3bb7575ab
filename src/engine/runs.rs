//! Submit, read, follow and cancel runs. Which run goes and which waits: [`super::drivers`].

use std::{
    future::Future,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    agents,
    domain::{
        access::{Access, Reach},
        budget::{PerDay, roles_over},
        ids::{CallKey, PolicyRevision, Position, RunId, Sequence, Timestamp},
        journal::{ApprovalDecision, NewEntry, Record, Resolution, RunCreated},
        redact,
        run::RunState,
        status::StateName,
    },
    engine::{
        Intake, LiveEvent, World, diff,
        ledger::Ledger,
        live::Live,
        run_log::status_of,
        schedule::{Claim, Origin, Schedule, Waiting},
        submission::{self, Submission, Submitted, WhenBusy, check, digest},
        tool_calls::{self, ToolCallPage},
    },
    fail_point,
    ports::{
        Admission, Append, AuditFilter, AuditPage, Created, EntryView, JournalError, PageLimit,
        PatchForm, Progress, RunFilter, RunPlace, RunSummary,
    },
    tasks::Tasks,
};

/// Whole runs that are folded at the same time to be looked at; whoever wants one more waits.
const WALKS: usize = 4;
/// Pages of entries that are read at the same time for whoever follows; one more waits. Thousands may wait for the same
/// entry: they must fill neither the memory nor the queue that all other readers wait in.
const PAGES: usize = 64;
/// Things said to runs that are heard at the same time; whoever says more waits.
const HEARINGS: usize = 64;

/// How much may go on at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub running_runs: usize,
    /// Of one submitter; it has no more going, however much room there is.
    pub running_runs_per_submitter: usize,
    /// Beyond these, submissions are refused until there is room.
    pub queued_runs: usize,
    /// Entries of a run after which its state is kept whole again.
    pub checkpoint_entries: u64,
    /// What the runs of one submitter may use on one day.
    pub daily: PerDay,
    /// Room on the disk of the state directory with less of which no new run is taken.
    pub free_disk_bytes: u64,
    /// Event streams that may be open in the whole daemon; one more is refused.
    pub event_streams: usize,
}

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{field}: {message}")]
    InvalidField { field: &'static str, message: String },
    #[error("there is no run {0}")]
    UnknownRun(RunId),
    #[error("{message}")]
    OutOfReach { message: String },
    #[error("{queued} runs are waiting already; try again when some have ended")]
    QueueFull { queued: usize },
    #[error(
        "{places} event streams are open already (limits.event_streams); try again when one has ended"
    )]
    TooManyStreams { places: usize },
    #[error(
        "agentd takes no new runs: it is stopping, or being drained; submit again when it is back"
    )]
    Draining,
    #[error(
        "the disk of the state directory has {free} bytes left, and {wanted} are wanted, with what must stay free \
         (limits.free_disk_mib); make room, then try again"
    )]
    DiskLow { free: u64, wanted: u64 },
    #[error("another backup is being taken; try again when it is done")]
    BackupBusy,
    #[error(
        "another run has or waits for {workspace}; try again when it has ended, or let this one wait"
    )]
    WorkspaceBusy { workspace: String },
    #[error(
        "run {run} does not stand still for call {call}; agentctl run tools says what it waits for"
    )]
    NotUnresolved { run: RunId, call: CallKey },
    #[error("call {call} of run {run} was resolved already, as {}", .found.as_str())]
    AlreadyResolved { run: RunId, call: CallKey, found: Resolution },
    #[error("nobody is asked about call {call} of run {run}; agentctl approvals says what waits")]
    NotWaiting { run: RunId, call: CallKey },
    #[error("call {call} of run {run} was decided about already: {}", .found.as_str())]
    AlreadyDecided { run: RunId, call: CallKey, found: ApprovalDecision },
    #[error(
        "what call {call} of run {run} would do is not what that digest is of; look at it again (agentctl approvals)"
    )]
    AskedOtherwise { run: RunId, call: CallKey },
    #[error("call {call} of run {run} was asked about for too long, and is being refused")]
    AskedTooLong { run: RunId, call: CallKey },
    #[error(
        "whoever submitted run {run} may not allow its calls (approvals.by_submitter in tools.yaml)"
    )]
    OwnRun { run: RunId },
    #[error("run {run} is {}: {message}", .state.as_str())]
    InvalidState { run: RunId, state: StateName, message: String },
    #[error("the request id was used for another input to run {run}")]
    InputIdReused { run: RunId },
    #[error("run {run} has no diff: {message}")]
    NoDiff { run: RunId, message: String },
    #[error("the policy files are not valid, and the policy in force stays:\n{}", .faults.join("\n"))]
    PolicyInvalid { faults: Vec<String> },
    #[error(
        "the policy files say {found} and not {expected}: somebody changed them; look at them, then reload again"
    )]
    PolicyMoved { expected: PolicyRevision, found: PolicyRevision },
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Owns all runs of this daemon. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) world: World,
    pub(super) limits: Limits,
    pub(super) live: Arc<Live>,
    pub(super) ledger: Arc<Ledger>,
    /// What callers wait for: it must not wait behind the runs themselves.
    pub(super) tasks: Tasks,
    /// The runs' drivers.
    pub(super) drivers: Tasks,
    pub(super) schedule: Mutex<Schedule>,
    /// Places for what people say to runs.
    pub(super) hearings: Arc<Semaphore>,
    /// Places for whoever folds a whole run to look at it.
    pub(super) walks: Semaphore,
    /// Places for pages that are read for whoever follows.
    pub(super) pages: Semaphore,
    /// The place for a copy of the store.
    pub(super) copies: Arc<Semaphore>,
    /// Places for event streams.
    pub(super) streams: Arc<Semaphore>,
    /// Whether new runs are taken.
    pub(super) intake: watch::Sender<Intake>,
    /// The first failure of the journal: the daemon must stop.
    pub(super) fatal: watch::Sender<Option<JournalError>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("limits", &self.inner.limits).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine without runs; see [`Self::resume`]. Runs are carried out where `drivers` start.
    pub fn new(world: World, limits: Limits, drivers: Tasks) -> Self {
        Self {
            inner: Arc::new(Inner {
                world,
                limits,
                live: Arc::default(),
                ledger: Arc::new(Ledger::new(limits.daily)),
                tasks: Tasks::default(),
                drivers,
                schedule: Mutex::default(),
                hearings: Arc::new(Semaphore::new(HEARINGS)),
                walks: Semaphore::new(WALKS),
                pages: Semaphore::new(PAGES),
                copies: Arc::new(Semaphore::new(1)),
                streams: Arc::new(Semaphore::new(limits.event_streams.min(Semaphore::MAX_PERMITS))),
                intake: watch::Sender::default(),
                fatal: watch::Sender::new(None),
            }),
        }
    }

    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    pub fn world(&self) -> &World {
        &self.inner.world
    }

    /// Goes on with every run that has not ended; where the store was restored from a backup, lets each of them stand
    /// still instead. Gives the number of those that go on.
    pub async fn resume(&self, restored: Option<Timestamp>) -> Result<usize, EngineError> {
        if let Some(at) = restored {
            self.settle_restored(at).await?;
        }
        let world = &self.inner.world;
        self.inner.ledger.load(&*world.journal, world.clock.now()).await?;
        let mut runs = Vec::new();
        for run in self.inner.world.journal.unended().await? {
            if let Some(summary) = self.inner.world.journal.run(run).await?
                && !summary.status.state.is_suspended()
            {
                let claim = self.claim_of(&summary).await?;
                runs.push(Waiting { run, claim, origin: Origin::Stored });
            }
        }
        let count = runs.len();
        {
            let mut schedule = self.schedule();
            for waiting in runs {
                // Those that were told to stand still just now have a driver, or are queued by it.
                if !schedule.running.has(waiting.run) && !schedule.queue.has(waiting.run) {
                    schedule.queue.push(waiting);
                }
            }
        }
        self.pump();
        Ok(count)
    }

    /// What a run needs of others. Its workspace is leased as it is: lists show it redacted.
    pub(super) async fn claim_of(&self, summary: &RunSummary) -> Result<Claim, EngineError> {
        let claim = |workspace| Claim { submitter: summary.submitter.clone(), workspace };
        if !summary.workspace.contains(redact::MARK) {
            return Ok(claim(summary.workspace.clone()));
        }
        let first = self.inner.world.journal.entries(summary.id, Sequence(0), 1).await?;
        match first.first().map(|entry| &entry.record) {
            Some(Record::RunCreated(created)) => Ok(claim(created.workspace.clone())),
            Some(_) | None => {
                let what = format!("run {} does not begin with its creation", summary.id);
                Err(JournalError::Unreadable { what }.into())
            }
        }
    }

    /// Submits a run. Once this returns, the run is on disk, and will be carried out.
    ///
    /// The same `request_id` and body from the same caller give the same run.
    pub async fn submit(
        &self,
        caller: Access,
        wanted: Submission,
    ) -> Result<Submitted, EngineError> {
        self.check_goes_on()?;
        check(&wanted)?;
        let engine = self.clone();
        self.finish(async move { engine.submit_checked(caller, wanted).await }).await
    }

    async fn submit_checked(
        &self,
        access: Access,
        wanted: Submission,
    ) -> Result<Submitted, EngineError> {
        let caller = access.caller.clone();
        let mut spec = RunCreated {
            task: wanted.task.into(),
            workspace: wanted.workspace,
            // After the digest: what a team is by default must not make a repetition another submission.
            role: None,
            output: None,
            told: Vec::new(),
            team: None,
            agent: wanted.agent,
            model: Some(wanted.model).filter(|model| !model.is_empty()),
            budget: wanted.budget,
            role_budgets: wanted.role_budgets,
            labels: wanted.labels,
            submitter: caller.clone(),
            request_id: wanted.request_id.clone(),
            forked: None,
        };
        let admission = Admission { caller, request_id: wanted.request_id, digest: digest(&spec)? };
        if spec.agent.is_empty() {
            spec.agent = agents::TEAM.to_owned();
        }
        // What was accepted once stays accepted, also where it would be refused by now.
        if let Some(run) = self.inner.world.journal.submitted(admission.clone()).await? {
            return Ok(Submitted::Existed(self.run(run).await?));
        }
        let wanted = submission::Wanted { spec, when_busy: wanted.when_busy };
        self.enter((access, admission), wanted).await
    }

    /// Writes a run that is wanted, and queues it.
    pub(super) async fn enter(
        &self,
        (access, admission): (Access, Admission),
        wanted: submission::Wanted,
    ) -> Result<Submitted, EngineError> {
        let Access { reach, .. } = access;
        let submission::Wanted { mut spec, when_busy } = wanted;
        let world = &self.inner.world;
        let denied = |message| EngineError::OutOfReach { message };
        self.check_agent(&spec.agent)?;
        reach.check_agent(&spec.agent).map_err(denied)?;
        self.check_intake()?;
        self.check_room()?;
        self.check_disk(0)?;
        spec.workspace = self.admit(&spec.workspace, &reach).await?;
        spec.team = agents::is_team(&spec.agent).then_some(world.agents.team);
        let configured = world.agents.configured.iter().find(|agent| agent.name == spec.agent);
        spec.role = configured.map(|agent| agent.role.clone());
        spec.told = world.agents.repository_instructions.clone();
        spec.output = configured.and_then(|agent| agent.output.clone());
        // After the digest: a default that changes must not make a repetition another submission.
        spec.budget = spec.budget.or_default();
        spec.role_budgets = roles_over(spec.role_budgets, &world.agents.role_budgets);
        let asks = (&*spec.agent, spec.model.as_deref());
        self.check_limits(&spec.budget, &spec.role_budgets, asks)?;
        let now = world.clock.now();
        let run = world.chance.run_id(now);
        let state = RunState::created(run, Sequence(1), now, spec.clone());
        let append = Append {
            run,
            epoch: world.epoch,
            after: Sequence(0),
            entries: vec![NewEntry { time: now, record: spec.into(), policy_revision: None }],
            status: status_of(&state),
            checkpoint: None,
        };
        let RunCreated { submitter, workspace, .. } = &*state.spec;
        let claim = Claim { submitter: submitter.clone(), workspace: workspace.clone() };
        let waiting = Waiting { run, claim, origin: Origin::Fresh(Box::new(state)) };
        self.expect(waiting, when_busy)?;
        let created = world.journal.create(admission, append).await;
        // Queued before anything else can fail: it is on disk, so it must be carried out.
        self.arrive(run, &created);
        match created? {
            Created::Existed(run) => Ok(Submitted::Existed(self.run(run).await?)),
            Created::New => Ok(Submitted::New(self.run(run).await?)),
        }
    }

    /// Notes a run that is about to be written, unless it is not to wait and would have to.
    fn expect(&self, waiting: Waiting, when_busy: WhenBusy) -> Result<(), EngineError> {
        let mut schedule = self.schedule();
        if when_busy == WhenBusy::Refuse && !schedule.is_untouched(&waiting.claim.workspace) {
            return Err(EngineError::WorkspaceBusy { workspace: waiting.claim.workspace });
        }
        schedule.arriving.insert(waiting.run, waiting);
        Ok(())
    }

    /// Queues a run that has been written; whoever wanted something of it meanwhile has it already.
    fn arrive(&self, run: RunId, created: &Result<Created, JournalError>) {
        {
            let mut schedule = self.schedule();
            let arrived = schedule.arriving.remove(&run);
            if let (Ok(Created::New), Some(arrived)) = (created, arrived) {
                schedule.queue.push(arrived);
            }
        }
        self.pump();
    }

    async fn admit(&self, workspace: &str, reach: &Reach) -> Result<String, EngineError> {
        let invalid = |message| EngineError::InvalidField { field: "workspace", message };
        let denied = |message| EngineError::OutOfReach { message };
        let path = match self.inner.world.sandbox.admit(workspace).await {
            Ok(path) => path,
            Err(message) => {
                // What is wrong with a directory out of its reach is not the caller's to know.
                reach.check_workspace(Path::new(workspace)).map_err(denied)?;
                return Err(invalid(message));
            }
        };
        reach.check_workspace(&path).map_err(denied)?;
        path.into_os_string()
            .into_string()
            .map_err(|path| invalid(format!("{} is not UTF-8", path.to_string_lossy())))
    }

    /// One run as it stands.
    pub async fn run(&self, run: RunId) -> Result<RunSummary, EngineError> {
        self.inner.world.journal.run(run).await?.ok_or(EngineError::UnknownRun(run))
    }

    /// Runs, newest first.
    pub async fn runs(
        &self,
        wanted: RunFilter,
        before: Option<RunPlace>,
        limit: usize,
    ) -> Result<Vec<(RunPlace, RunSummary)>, EngineError> {
        Ok(self.inner.world.journal.runs(wanted, before, limit).await?)
    }

    /// The run when it has ended or stands still, or as it is when `timeout` is over.
    pub async fn wait(&self, run: RunId, timeout: Duration) -> Result<RunSummary, EngineError> {
        let mut heads = self.inner.world.journal.watch(run);
        let waited = async {
            loop {
                let summary = self.run(run).await?;
                // Read again only when there is something to be told: entries come by the thousand.
                if rests(summary.status.state)
                    || heads.wait_for(|now| now.state.is_some_and(rests)).await.is_err()
                {
                    return Ok(summary);
                }
            }
        };
        tokio::select! {
            summary = waited => summary,
            () = self.stopping().cancelled_owned() => Err(self.farewell()),
            () = self.inner.world.clock.sleep(timeout) => self.run(run).await,
        }
    }

    /// A page of a run's journal after a sequence, oldest first.
    pub async fn entries(
        &self,
        run: RunId,
        after: Sequence,
        limit: PageLimit,
    ) -> Result<Vec<EntryView>, EngineError> {
        let _place = self.inner.pages.acquire().await;
        Ok(self.inner.world.journal.views(run, after, limit).await?)
    }

    /// A page of a run's tool calls whose intent stands after a sequence, oldest first.
    pub async fn tool_calls(
        &self,
        run: RunId,
        after: Sequence,
        limit: usize,
    ) -> Result<ToolCallPage, EngineError> {
        tool_calls::tool_calls(&self.inner.world.journal, run, after, limit).await
    }

    /// Tells of new entries of a run, as a hint.
    pub fn watch(&self, run: RunId) -> watch::Receiver<Progress> {
        self.inner.world.journal.watch(run)
    }

    /// The model's words in a run, and what its programs write, as they come.
    pub fn follow(&self, run: RunId) -> broadcast::Receiver<LiveEvent> {
        self.inner.live.follow(run)
    }

    /// What a run changed in its workspace, or has changed by now: a patch for `git apply`.
    pub async fn diff(&self, run: RunId) -> Result<Vec<u8>, EngineError> {
        let engine = self.clone();
        // To its end also when its caller has gone away: a program is under way.
        self.finish(
            async move { diff::diff(&engine.inner.world, run, PatchForm::Applicable).await },
        )
        .await
    }

    /// Starts a stream to a subscriber; the engine waits for it when it stops.
    ///
    /// Errors: as many as are accepted are open already.
    pub fn spawn_stream(
        &self,
        stream: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), EngineError> {
        let place = self.inner.streams.clone().try_acquire_owned();
        let place = place.map_err(|_| {
            let places = self.inner.limits.event_streams;
            EngineError::TooManyStreams { places }
        })?;
        drop(self.inner.tasks.spawn("stream", async move {
            stream.await;
            drop(place);
        }));
        Ok(())
    }

    /// Cancelled when the daemon stops.
    pub fn stopping(&self) -> CancellationToken {
        self.inner.tasks.token()
    }

    /// What callers are told when the daemon stops: why it does.
    pub fn farewell(&self) -> EngineError {
        match &*self.inner.fatal.borrow() {
            Some(error) => EngineError::Journal(error.clone()),
            None => EngineError::Draining,
        }
    }

    /// A page of the journal over all chains.
    pub async fn audit(
        &self,
        wanted: AuditFilter,
        after: Position,
        limit: PageLimit,
    ) -> Result<AuditPage, EngineError> {
        let _place = self.inner.pages.acquire().await;
        Ok(self.inner.world.journal.audit(wanted, after, limit).await?)
    }

    /// Tells of new entries of any chain, as a hint.
    pub fn watch_head(&self) -> watch::Receiver<Position> {
        self.inner.world.journal.watch_head()
    }

    /// Becomes set when the journal has failed: the daemon must stop.
    pub fn fatal(&self) -> watch::Receiver<Option<JournalError>> {
        self.inner.fatal.subscribe()
    }

    /// Takes no more submissions, lets steps under way finish for at most `grace`, and stops. What has
    /// not finished is left to the next daemon. Tells whether all had finished.
    pub async fn stop(&self, grace: Duration) -> bool {
        let Inner { tasks, drivers, .. } = &*self.inner;
        let (told, driven) = tokio::join!(tasks.stop(grace), drivers.stop(grace));
        told && driven
    }

    pub(super) fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.inner.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submissions that are being written are not counted: as many as callers send at once may come
    /// on top of the bound.
    fn check_room(&self) -> Result<(), EngineError> {
        let queued = self.schedule().queue.len();
        match queued < self.inner.limits.queued_runs {
            true => Ok(()),
            false => Err(EngineError::QueueFull { queued }),
        }
    }

    /// Carries a mutation to its end also when its caller has gone away.
    pub(super) async fn finish<T: Send + 'static>(
        &self,
        mutation: impl Future<Output = Result<T, EngineError>> + Send + 'static,
    ) -> Result<T, EngineError> {
        let done = self.inner.tasks.spawn("mutation", mutation).await.unwrap_or_else(|error| {
            let message = format!("a task ended early: {error}");
            Err(EngineError::Journal(JournalError::Failed { message }))
        });
        fail_point::reach("reply.before");
        if let Err(EngineError::Journal(error)) = &done {
            self.note_failure(error);
        }
        done
    }

    /// Stops the daemon: the journal can no longer be trusted with anything.
    pub fn give_up(&self, error: JournalError) {
        self.inner.fatal.send_replace(Some(error));
    }

    /// A journal that cannot be written, or that somebody else writes, stops the daemon; whatever else
    /// is only this caller's.
    pub(super) fn note_failure(&self, error: &JournalError) {
        match error {
            JournalError::Failed { .. } | JournalError::Conflict { .. } => {
                self.inner.fatal.send_replace(Some(error.clone()));
            }
            JournalError::RequestIdReused { .. }
            | JournalError::Busy
            | JournalError::Pruned { .. }
            | JournalError::NotPrunable { .. }
            | JournalError::Unreadable { .. } => {}
        }
    }
}

/// Whether whoever waits for a run in this state has waited long enough.
fn rests(state: StateName) -> bool {
    state.is_ended() || state.is_suspended()
}
