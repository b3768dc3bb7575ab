//! `RunService`.

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use futures_util::{FutureExt as _, Stream, stream};
use tokio::sync::{broadcast, watch};
use tonic::{Request, Response, Status};

use crate::{
    domain::{
        access::{Access, Role},
        ids::{CallKey, RunId, Sequence},
        journal::LostRequest,
        status::StateName,
    },
    engine::{
        CallResolution, Engine, EngineError, Input, LiveEvent, Resume, Submission, Submitted,
        check_labels,
    },
    grpc::{
        approvals, caller, convert, forks,
        outlet::{Gone, Outlet, outlet},
        page::{self, List},
        roles,
    },
    ports::{PageLimit, Progress, RunFilter, RunPlace, RunSummary},
    proto::v1::{self, run_service_server::RunService, stream_run_events_response::Event},
};

/// Runs of a page, if the caller does not say.
const PAGE: usize = 50;
/// Tool calls of a page, if the caller does not say.
const CALLS: usize = 100;
/// What is read for a subscriber at once, when it wants something; no more is kept for it.
const STREAM_PAGE: PageLimit = PageLimit { entries: 16, bytes: 16 << 10 };
/// Silence after which a stream says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Bytes of a diff in one message.
const CHUNK: usize = 256 << 10;
/// How long WaitRun waits, if the caller does not say, and at most.
const WAIT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(600));

#[derive(Debug)]
pub(super) struct Runs {
    engine: Engine,
}

type Chunks = Pin<Box<dyn Stream<Item = Result<v1::GetRunDiffResponse, Status>> + Send>>;
type Events = Pin<Box<dyn Stream<Item = Result<v1::StreamRunEventsResponse, Status>> + Send>>;

impl Runs {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine }
    }

    /// The run of this id, as far as it exists for the caller: one that it may not see is as unknown
    /// as one that never was.
    async fn seen(&self, access: &Access, id: &str) -> Result<RunSummary, Status> {
        let id = convert::run_id(id)?;
        let run = self.engine.run(id).await.map_err(convert::status)?;
        match access.sees_runs_of(&run.submitter) {
            true => Ok(run),
            false => Err(convert::status(EngineError::UnknownRun(id))),
        }
    }
}

#[tonic::async_trait]
impl RunService for Runs {
    type StreamRunEventsStream = Events;

    async fn create_run(
        &self,
        request: Request<v1::CreateRunRequest>,
    ) -> Result<Response<v1::CreateRunResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let submission = Submission {
            when_busy: convert::when_busy(request.when_workspace_busy()),
            task: request.task,
            workspace: request.workspace,
            agent: request.agent,
            model: request.model,
            request_id: Some(request.request_id).filter(|id| !id.is_empty()),
            labels: request.labels.into_iter().collect(),
            budget: convert::budget(request.budget),
            role_budgets: convert::role_budgets(request.role_budgets),
        };
        let submitted = self.engine.submit(access, submission).await.map_err(convert::status)?;
        let (run, existed) = match submitted {
            Submitted::New(run) => (run, false),
            Submitted::Existed(run) => (run, true),
        };
        Ok(Response::new(v1::CreateRunResponse { run: Some(convert::run(run)), existed }))
    }

    async fn get_run(
        &self,
        request: Request<v1::GetRunRequest>,
    ) -> Result<Response<v1::GetRunResponse>, Status> {
        let run = self.seen(&caller::of(&request)?, &request.into_inner().id).await?;
        Ok(Response::new(v1::GetRunResponse { run: Some(convert::run(run)) }))
    }

    async fn list_runs(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let size = page::size(request.page_size, PAGE)?;
        let known = request.states.iter().map(|number| convert::listed_state(*number));
        let known = known.collect::<Result<Vec<_>, _>>()?;
        let states: Vec<_> = known.iter().flatten().copied().collect();
        let labels: BTreeMap<String, String> = request.labels.into_iter().collect();
        check_labels(&labels).map_err(convert::status)?;
        let asked = states.iter().map(|state| state.as_str().to_owned());
        let asked = asked.chain(labels.iter().map(|(key, value)| format!("{key}={value}")));
        let list = List::new("ListRuns", asked);
        let before = list.number(&request.page_token)?.map(RunPlace);
        if !known.is_empty() && states.is_empty() {
            return Ok(Response::new(v1::ListRunsResponse::default()));
        }
        let wanted = RunFilter { states, submitter: access.sees_only().cloned(), labels };
        let found = self.engine.runs(wanted, before, size + 1).await.map_err(convert::status)?;
        let last = found.get(size - 1).filter(|_| found.len() > size);
        let next_page_token =
            last.map(|(place, _)| list.token(&place.0.to_string())).unwrap_or_default();
        let runs = found.into_iter().take(size).map(|(_, run)| convert::listed_run(run)).collect();
        Ok(Response::new(v1::ListRunsResponse { runs, next_page_token }))
    }

    async fn list_tool_calls(
        &self,
        request: Request<v1::ListToolCallsRequest>,
    ) -> Result<Response<v1::ListToolCallsResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let run = self.seen(&access, &request.run_id).await?;
        let size = page::size(request.page_size, CALLS)?;
        let list = List::new("ListToolCalls", [run.id.to_string()]);
        let after = list.number(&request.page_token)?.map_or(Sequence(0), Sequence);
        let found = self.engine.tool_calls(run.id, after, size).await.map_err(convert::status)?;
        let next = found.next.map(|place| list.token(&place.to_string()));
        let state = run.status.state;
        let tool_calls =
            found.calls.into_iter().map(|call| convert::tool_call(run.id, state, call)).collect();
        let next_page_token = next.unwrap_or_default();
        Ok(Response::new(v1::ListToolCallsResponse { tool_calls, next_page_token }))
    }

    async fn wait_run(
        &self,
        request: Request<v1::WaitRunRequest>,
    ) -> Result<Response<v1::WaitRunResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let id = self.seen(&access, &request.id).await?.id;
        let (default, most) = WAIT;
        let timeout = match request.timeout {
            None => default,
            Some(timeout) => Duration::try_from(timeout)
                .map_err(|_| convert::invalid("timeout", "is not a positive duration".into()))?,
        };
        let run = self.engine.wait(id, timeout.min(most)).await.map_err(convert::status)?;
        let state = run.status.state;
        let timed_out = !state.is_ended() && !state.is_suspended();
        Ok(Response::new(v1::WaitRunResponse { run: Some(convert::run(run)), timed_out }))
    }

    async fn stream_run_events(
        &self,
        request: Request<v1::StreamRunEventsRequest>,
    ) -> Result<Response<Events>, Status> {
        let (access, left) = (caller::of(&request)?, caller::time_left_of(&request));
        let request = request.into_inner();
        let run = self.seen(&access, &request.id).await?.id;
        let follow = if request.follow { Follow::UntilEnd } else { Follow::No };
        let (events, stream) = outlet();
        let feed = Feed {
            engine: self.engine.clone(),
            run,
            // No journal is that long; the store counts in 63 bits.
            sent: Sequence(request.after_sequence.min(i64::MAX as u64)),
            events,
        };
        self.engine.spawn_stream(feed.send(follow, left)).map_err(convert::status)?;
        Ok(Response::new(Box::pin(stream)))
    }

    type GetRunDiffStream = Chunks;

    async fn get_run_diff(
        &self,
        request: Request<v1::GetRunDiffRequest>,
    ) -> Result<Response<Chunks>, Status> {
        let id = self.seen(&caller::of(&request)?, &request.into_inner().id).await?.id;
        let patch = self.engine.diff(id).await.map_err(convert::status)?;
        let chunks: Vec<_> = patch
            .chunks(CHUNK)
            .map(|chunk| Ok(v1::GetRunDiffResponse { chunk: chunk.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn resolve_tool_call(
        &self,
        request: Request<v1::ResolveToolCallRequest>,
    ) -> Result<Response<v1::ResolveToolCallResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let id = self.seen(&access, &request.run_id).await?.id;
        let with = CallResolution {
            call: CallKey { turn: request.turn, index: request.index },
            by: access.caller,
            resolution: convert::resolution(request.resolution())?,
            result: request.result,
            why: request.why,
        };
        let run = self.engine.resolve(id, with).await.map_err(convert::status)?;
        Ok(Response::new(v1::ResolveToolCallResponse { run: Some(convert::run(run)) }))
    }

    async fn list_pending_approvals(
        &self,
        request: Request<v1::ListPendingApprovalsRequest>,
    ) -> Result<Response<v1::ListPendingApprovalsResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let run = match request.run_id.as_str() {
            "" => None,
            id => Some(self.seen(&access, id).await?.id),
        };
        let page = (run, request.page_size, request.page_token.as_str());
        Ok(Response::new(approvals::list(&self.engine, &access, page).await?))
    }

    async fn approve_tool_call(
        &self,
        request: Request<v1::ApproveToolCallRequest>,
    ) -> Result<Response<v1::ApproveToolCallResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let id = self.seen(&access, &request.run_id).await?.id;
        let run = approvals::decide(&self.engine, access, id, request.into()).await?;
        Ok(Response::new(v1::ApproveToolCallResponse { run: Some(convert::run(run)) }))
    }

    async fn deny_tool_call(
        &self,
        request: Request<v1::DenyToolCallRequest>,
    ) -> Result<Response<v1::DenyToolCallResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let id = self.seen(&access, &request.run_id).await?.id;
        let run = approvals::decide(&self.engine, access, id, request.into()).await?;
        Ok(Response::new(v1::DenyToolCallResponse { run: Some(convert::run(run)) }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let run = self.seen(&access, &request.run_id).await?.id;
        let page = (request.page_size, request.page_token.as_str());
        Ok(Response::new(forks::checkpoints(&self.engine, run, page).await?))
    }

    async fn fork_run(
        &self,
        request: Request<v1::ForkRunRequest>,
    ) -> Result<Response<v1::ForkRunResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let run = self.seen(&access, &request.id).await?.id;
        Ok(Response::new(forks::fork(&self.engine, access, run, request).await?))
    }

    async fn pause_run(
        &self,
        request: Request<v1::PauseRunRequest>,
    ) -> Result<Response<v1::PauseRunResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let id = self.seen(&access, &request.id).await?.id;
        let paused = self.engine.pause(access.caller, id, request.why).await;
        let run = Some(convert::run(paused.map_err(convert::status)?));
        Ok(Response::new(v1::PauseRunResponse { run }))
    }

    async fn resume_run(
        &self,
        request: Request<v1::ResumeRunRequest>,
    ) -> Result<Response<v1::ResumeRunResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let id = self.seen(&access, &request.id).await?.id;
        if request.repeat_lost_request && !roles::DECIDE.contains(&access.role) {
            let path = "/agentd.v1.RunService/ResumeRun with repeat_lost_request";
            return Err(convert::role_denied(access.role, path, roles::DECIDE));
        }
        let changes_budget = request.budget.is_some_and(|budget| budget != v1::Budget::default())
            || !request.role_budgets.is_empty();
        if access.role == Role::Approver && (!request.repeat_lost_request || changes_budget) {
            let path = "/agentd.v1.RunService/ResumeRun but for repeat_lost_request";
            return Err(convert::role_denied(access.role, path, roles::SUBMIT));
        }
        let wanted = Resume {
            by: access.caller,
            why: request.why,
            budget: convert::budget(request.budget),
            role_budgets: convert::role_budgets(request.role_budgets),
            lost_request: match request.repeat_lost_request {
                true => LostRequest::Repeat,
                false => LostRequest::Leave,
            },
        };
        let run = self.engine.resume_run(id, wanted).await.map_err(convert::status)?;
        Ok(Response::new(v1::ResumeRunResponse { run: Some(convert::run(run)) }))
    }

    async fn send_run_input(
        &self,
        request: Request<v1::SendRunInputRequest>,
    ) -> Result<Response<v1::SendRunInputResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let id = self.seen(&access, &request.id).await?.id;
        let input = Input {
            by: access.caller,
            text: request.text,
            request_id: Some(request.request_id).filter(|id| !id.is_empty()),
        };
        let run = self.engine.input(id, input).await.map_err(convert::status)?;
        Ok(Response::new(v1::SendRunInputResponse { run: Some(convert::run(run)) }))
    }

    async fn cancel_run(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        let access = caller::of(&request)?;
        let request = request.into_inner();
        let id = self.seen(&access, &request.id).await?.id;
        let run =
            self.engine.cancel(access.caller, id, request.why).await.map_err(convert::status)?;
        Ok(Response::new(v1::CancelRunResponse { run: Some(convert::run(run)) }))
    }
}

/// How long a stream goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    No,
    UntilEnd,
}

/// One subscriber's way through a run's journal. What it sends comes from the store; the signal of new
/// entries only wakes it, so that it can neither miss nor repeat one.
struct Feed {
    engine: Engine,
    run: RunId,
    sent: Sequence,
    events: Outlet<v1::StreamRunEventsResponse>,
}

impl Feed {
    async fn send(mut self, follow: Follow, left: Option<Duration>) {
        let clock = self.engine.world().clock.clone();
        let patience = async {
            match left {
                Some(left) => clock.sleep(left).await,
                None => std::future::pending().await,
            }
        };
        let (engine, events) = (self.engine.clone(), self.events.clone());
        let stopping = engine.stopping();
        // Subscribed before the first read: what is written meanwhile wakes us.
        let heads = self.engine.watch(self.run);
        let words = self.engine.follow(self.run);
        let why = tokio::select! {
            () = events.closed() => return,
            _ = self.run_to_end(follow, heads, words) => return,
            () = patience => convert::deadline(),
            () = stopping.cancelled() => convert::status(engine.farewell()),
        };
        events.say_farewell(why);
    }

    async fn run_to_end(
        &mut self,
        follow: Follow,
        mut heads: watch::Receiver<Progress>,
        mut words: broadcast::Receiver<LiveEvent>,
    ) -> Result<(), Gone> {
        let mut ended = self.send_stored().await? || self.is_ended().await?;
        self.event(Event::CaughtUp(v1::CaughtUp { head_sequence: self.sent.0 })).await?;
        while follow == Follow::UntilEnd && !ended {
            // Nothing is taken up, and kept, for somebody who does not read.
            self.events.wanted().await;
            tokio::select! {
                // Entries first: a program that writes without end must not keep them back.
                biased;
                changed = heads.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    // Its last entry may have been seen by the caller before it came here.
                    let is_over = heads.borrow_and_update().state.is_some_and(StateName::is_ended);
                    self.send_said(&mut words).await?;
                    ended = self.send_stored().await? || is_over;
                }
                said = next_words(&mut words) => {
                    self.event(convert::live(said)).await?;
                }
                () = self.engine.world().clock.sleep(HEARTBEAT) => {
                    let head_sequence = self.sent.0;
                    self.event(Event::Heartbeat(v1::Heartbeat { head_sequence })).await?;
                }
            }
        }
        Ok(())
    }

    /// Sends the words that were said by now: before the entries that hold them.
    async fn send_said(&mut self, words: &mut broadcast::Receiver<LiveEvent>) -> Result<(), Gone> {
        for _ in 0..words.len() {
            self.events.wanted().await;
            let Some(said) = next_words(words).now_or_never() else { return Ok(()) };
            self.event(convert::live(said)).await?;
        }
        Ok(())
    }

    /// Sends all that is stored and not yet sent, once it is wanted; tells whether the run's last entry was among it.
    async fn send_stored(&mut self) -> Result<bool, Gone> {
        loop {
            self.events.wanted().await;
            let page = match self.engine.entries(self.run, self.sent, STREAM_PAGE).await {
                Ok(page) => page,
                Err(error) => return self.fail(error).await,
            };
            let may_be_more = STREAM_PAGE.is_reached_by(&page);
            for view in page {
                self.sent = view.sequence;
                let ended = view.kind == "run_finished";
                self.event(Event::Entry(convert::entry(view))).await?;
                if ended {
                    return Ok(true);
                }
            }
            if !may_be_more {
                return Ok(false);
            }
        }
    }

    /// Whether nothing can follow what was sent, or was to be passed over.
    async fn is_ended(&self) -> Result<bool, Gone> {
        match self.engine.run(self.run).await {
            Ok(run) => Ok(run.status.state.is_ended() && run.head <= self.sent),
            Err(error) => self.fail(error).await,
        }
    }

    /// The subscriber is told why its stream ends.
    async fn fail(&self, error: EngineError) -> Result<bool, Gone> {
        let _ = self.events.send(Err(convert::status(error))).await;
        Err(Gone)
    }

    async fn event(&self, event: Event) -> Result<(), Gone> {
        self.events.send(Ok(v1::StreamRunEventsResponse { event: Some(event) })).await
    }
}

/// The next words; those that were missed are passed over.
async fn next_words(words: &mut broadcast::Receiver<LiveEvent>) -> LiveEvent {
    loop {
        match words.recv().await {
            Ok(said) => return said,
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
