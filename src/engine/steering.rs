//! People who steer a run: cancel, pause, resume, and what they say to the model; and what of each is written down.
//! Decides nothing of what follows: see `domain::run`.

use tokio::sync::oneshot;

use crate::{
    domain::{
        budget::{self, Budget, Limits, RoleBudgets, roles_over},
        ids::{Caller, RunId},
        journal::{InputReceived, LostRequest, PauseRequested, RunResumed},
        run::{Phase, RunState, Suspension, Wish, Work},
    },
    engine::{
        Engine, EngineError,
        inbox::{Heard, Message, NotNow, WHY_BYTES, Wanted, check_length},
        run_log::Noted,
        submission::REQUEST_ID_BYTES,
    },
    ports::{JournalError, RunSummary},
};

/// Most inputs of one run, and most that may wait to be heard.
const INPUTS: (usize, usize) = (1000, 16);
/// Longest inputs of one run, all together, in bytes.
const INPUT_BYTES: usize = 4 << 20;

/// Lets a run go on.
#[derive(Debug, Clone)]
pub struct Resume {
    pub by: Caller,
    pub why: String,
    /// Limits from now on; a zero leaves a limit as it is.
    pub budget: Budget,
    /// The same, by role.
    pub role_budgets: RoleBudgets,
    pub lost_request: LostRequest,
}

/// Says something to the model.
#[derive(Debug, Clone)]
pub struct Input {
    pub by: Caller,
    pub text: String,
    /// Makes a repetition known, within the run.
    pub request_id: Option<String>,
}

/// What is written of the wish to pause; nothing where that is the wish already.
pub(super) fn pause(state: &RunState, by: Caller, why: String) -> Result<Vec<Noted>, NotNow> {
    match (&state.phase, state.wish) {
        (Phase::Ended(_), _) => Err(ended(state, "there is nothing to pause")),
        (_, Wish::Cancel) => Err(NotNow::State {
            message: "the run is being cancelled; there is nothing to pause".into(),
        }),
        (_, Wish::Pause) => Ok(Vec::new()),
        (_, Wish::GoOn) => Ok(vec![PauseRequested { by, why }.into()]),
    }
}

/// What is written of the wish to go on; nothing where the run goes on as it is.
pub(super) fn resume(state: &RunState, wanted: Resume) -> Result<Vec<Noted>, NotNow> {
    let Resume { by, why, budget, role_budgets, lost_request } = wanted;
    if state.wish == Wish::Cancel && !state.name().is_ended() {
        return Err(NotNow::State { message: "the run is being cancelled".into() });
    }
    let budget = budget.over(state.budget);
    let budget = (budget != state.budget).then_some(budget);
    let mut role_budgets = roles_over(role_budgets, &state.role_budgets);
    role_budgets.retain(|role, budget| state.role_budgets.get(role) != Some(budget));
    let resumed = RunResumed { by, why, budget, role_budgets, lost_request };
    let is_new = resumed.changes_limits() || state.wish == Wish::Pause;
    match &state.phase {
        Phase::Ended(_) => return Err(ended(state, "fork it, or submit it again")),
        Phase::Going(Work::BackingOff { .. }) => {}
        Phase::Going(_) if !is_new => return Ok(Vec::new()),
        Phase::Going(_) => {}
        // The wish to pause may be taken back all the same.
        Phase::Suspended {
            why: Suspension::OutcomeUnknown { .. } | Suspension::AwaitingApproval { .. },
            ..
        } if is_new => {}
        Phase::Suspended { why, work } => check_lifted(state, (why, work), &resumed)?,
    }
    Ok(vec![resumed.into()])
}

/// Errors: what the run stands still for would still be there.
fn check_lifted(
    state: &RunState,
    (why, work): (&Suspension, &Work),
    resumed: &RunResumed,
) -> Result<(), NotNow> {
    let not_now = |message: String| Err(NotNow::State { message });
    match why {
        Suspension::Paused { .. } => Ok(()),
        Suspension::BudgetExhausted { .. } => {
            let run = resumed.budget.unwrap_or(state.budget);
            let roles = roles_over(resumed.role_budgets.clone(), &state.role_budgets);
            match state.would_exceed(work, Limits { run, roles: &roles }) {
                Some(limit) => not_now(format!(
                    "the run would stand still at once: its budget of {} {} is used up; give a larger one",
                    limit.of,
                    limit.name()
                )),
                None => Ok(()),
            }
        }
        Suspension::RequestLost { message } => match resumed.lost_request {
            LostRequest::Repeat => Ok(()),
            LostRequest::Leave => not_now(message.clone()),
        },
        Suspension::OutcomeUnknown { message, .. }
        | Suspension::AwaitingApproval { message, .. } => not_now(message.clone()),
    }
}

/// What is written of something said; nothing where the very same was said before.
pub(super) fn input(state: &RunState, input: Input) -> Result<Vec<Noted>, NotNow> {
    let Input { by, text, request_id } = input;
    let known = request_id.as_ref().and_then(|id| state.inputs.known.get(id));
    match known {
        Some(said) if **said == *text => return Ok(Vec::new()),
        Some(_) => return Err(NotNow::RequestIdReused),
        None => {}
    }
    let not_now = |message: String| Err(NotNow::State { message });
    match (&state.phase, state.wish) {
        (Phase::Ended(_), _) => return Err(ended(state, "fork it to say something more")),
        (_, Wish::Cancel) => return not_now("the run is being cancelled".into()),
        (_, Wish::GoOn | Wish::Pause) => {}
    }
    let (most, waiting) = INPUTS;
    if state.inputs.count >= most {
        return not_now(format!("{most} inputs were given to this run, and no more are accepted"));
    }
    if state.inputs.bytes + text.len() > INPUT_BYTES {
        return not_now(
            "4 MiB of inputs are accepted a run, in all; give it a file to read".into(),
        );
    }
    if state.inputs.waiting.len() >= waiting {
        return not_now(format!("{waiting} inputs wait to be read; try again after the next turn"));
    }
    Ok(vec![InputReceived { by, text: text.into(), request_id }.into()])
}

fn ended(state: &RunState, so: &str) -> NotNow {
    NotNow::State { message: format!("the run has ended ({}): {so}", state.name().as_str()) }
}

impl Engine {
    /// Asks a run to stop. Once this returns, the wish is on disk. Ended runs return unchanged.
    pub async fn cancel(
        &self,
        by: Caller,
        run: RunId,
        why: String,
    ) -> Result<RunSummary, EngineError> {
        check_length("why", &why, WHY_BYTES)?;
        let summary = self.run(run).await?;
        if summary.status.state.is_ended() {
            return Ok(summary);
        }
        self.steer(run, Wanted::Cancel { by, why }).await
    }

    /// Asks a run to stand still before it begins anything else. Once this returns, the wish is on disk; what is
    /// under way goes on to its end.
    pub async fn pause(
        &self,
        by: Caller,
        run: RunId,
        why: String,
    ) -> Result<RunSummary, EngineError> {
        check_length("why", &why, WHY_BYTES)?;
        self.steer(run, Wanted::Pause { by, why }).await
    }

    /// Lets a run go on that was paused, is out of budget, lost a request, or waits for its backend. Once this
    /// returns, that is on disk. A run that goes on anyway returns unchanged.
    pub async fn resume_run(&self, run: RunId, wanted: Resume) -> Result<RunSummary, EngineError> {
        check_length("why", &wanted.why, WHY_BYTES)?;
        let RunSummary { agent, model, .. } = self.run(run).await?;
        let asks = (agent.as_str(), model.as_deref());
        self.check_limits(&wanted.budget, &wanted.role_budgets, asks)?;
        self.steer(run, Wanted::Resume(wanted)).await
    }

    /// Says something to the model of a run. Once this returns, it is on disk; the model reads it with its next turn.
    pub async fn input(&self, run: RunId, input: Input) -> Result<RunSummary, EngineError> {
        check_length("text", &input.text, budget::TASK_BYTES)?;
        let invalid =
            |field, message: &str| EngineError::InvalidField { field, message: message.to_owned() };
        if input.text.trim().is_empty() {
            return Err(invalid("text", "is empty; say something"));
        }
        if let Some(id) = &input.request_id
            && (id.is_empty() || id.len() > REQUEST_ID_BYTES)
        {
            return Err(invalid("request_id", "has 1 to 128 bytes"));
        }
        self.steer(run, Wanted::Input(input)).await
    }

    /// Has a run's driver hear what somebody wants, also if whoever wants it goes away.
    async fn steer(&self, run: RunId, wanted: Wanted) -> Result<RunSummary, EngineError> {
        let engine = self.clone();
        self.finish(async move {
            match engine.ask_of(run, wanted).await? {
                Heard::Done => engine.run(run).await,
                Heard::NotNow(why) => Err(engine.refused(run, why).await?),
            }
        })
        .await
    }

    /// Puts it before the run's driver, and gives what came of it.
    pub(super) async fn ask_of(&self, run: RunId, wanted: Wanted) -> Result<Heard, EngineError> {
        let summary = self.run(run).await?;
        if summary.pruned.is_some() {
            return Err(JournalError::Pruned { run, head: summary.head }.into());
        }
        let claim = self.claim_of(&summary).await?;
        // Where no driver listens, one has to read the whole run: not all at once.
        let is_live = self.schedule().running.has(run);
        let place = match is_live {
            true => None,
            false => self.inner.hearings.clone().acquire_owned().await.ok(),
        };
        let (done, heard) = oneshot::channel();
        self.tell(run, claim, Message { wanted, done }).await;
        let heard = heard.await;
        drop(place);
        match heard {
            Ok(heard) => Ok(heard?),
            Err(_) => {
                let what = format!("run {run} could not be taken up; the daemon's log says why");
                Err(JournalError::Unreadable { what }.into())
            }
        }
    }

    async fn refused(&self, run: RunId, why: NotNow) -> Result<EngineError, EngineError> {
        let state = self.run(run).await?.status.state;
        Ok(match why {
            NotNow::State { message } => EngineError::InvalidState { run, state, message },
            NotNow::NotUnresolved
            | NotNow::NotWaiting
            | NotNow::Expired
            | NotNow::AskedOtherwise => {
                let message = "it does not stand still for that call".into();
                EngineError::InvalidState { run, state, message }
            }
            NotNow::RequestIdReused => EngineError::InputIdReused { run },
        })
    }
}
