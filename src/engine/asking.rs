//! One request to the model: when it is made, by which API, what of it is written down, and what follows where it fails.

use std::{sync::Arc, time::Duration};

use crate::{
    domain::{
        backend::{Api, BackendName},
        ids::Timestamp,
        journal::{BackendAwaited, BackendError, ModelResponse, RunDegraded, Sent},
        retry,
        run::{Ending, Failure, Hearer, Overflow, RunState},
    },
    engine::{
        World,
        backends::Backend,
        colleagues,
        context::{Fit, too_long},
        driver::Driver,
        hosted,
        inbox::Message,
        live::Words,
        run_log::Noted,
        team,
    },
    fail_point,
    ports::{Answer, JournalError, ModelError, ModelFault, Question},
};

/// Those who waited for a backend ask within so much time of each other, when it works again.
const CROWD: Duration = Duration::from_secs(1);

/// What came first.
enum Heard<T> {
    It(T),
    /// The daemon stops.
    Stop,
    Word(Option<Message>),
}

impl Driver {
    /// The backend of the agent that speaks.
    fn backend(&self) -> Arc<Backend> {
        self.world.mind(self.log.state().speaker()).0.clone()
    }

    /// Waits until `at`; tells whether nothing came between.
    pub(super) async fn wait_until(&mut self, at: Option<Timestamp>) -> Result<bool, JournalError> {
        let Some(at) = at else { return Ok(true) };
        let left = at.0.saturating_sub(self.world.clock.now().0);
        // The clock may be set back meanwhile: no wait is longer than the longest that is ever planned.
        let left = Duration::from_micros(u64::try_from(left).unwrap_or(0))
            .min(Duration::from_millis(retry::LONGEST_WAIT_MS));
        if left.is_zero() {
            return Ok(true);
        }
        let clock = self.world.clock.clone();
        self.log.append([]).await?;
        let heard = self.unless_told(async move { clock.sleep(left).await }).await?;
        Ok(heard.is_some())
    }

    /// Does that, unless somebody says something or the daemon stops: then it is to be decided anew.
    async fn unless_told<T>(
        &mut self,
        it: impl Future<Output = T>,
    ) -> Result<Option<T>, JournalError> {
        let heard = tokio::select! {
            it = it => Heard::It(it),
            () = self.stopping.cancelled() => Heard::Stop,
            message = self.inbox.recv() => Heard::Word(message),
        };
        match heard {
            Heard::It(it) => Ok(Some(it)),
            Heard::Word(Some(message)) => {
                message.hear(&mut self.log).await?;
                Ok(None)
            }
            Heard::Stop | Heard::Word(None) => Ok(None),
        }
    }

    /// Waits until the backend may be asked, and says by which API. None: something came between.
    ///
    /// Who waits for long is seen to wait, and gives up in the end.
    pub(super) async fn await_backend(
        &mut self,
        turn: u32,
        attempt: u32,
    ) -> Result<Option<Api>, JournalError> {
        let backend = self.backend();
        let Some(why) = backend.shut() else { return self.settle_api(turn, &backend).await };
        let clock = self.world.clock.clone();
        let until = match self.log.state().strikes.until {
            Some(until) if self.is_awaiting => until,
            known => {
                self.is_awaiting = true;
                let limit = millis(self.world.agents.backend_wait);
                let until = known.unwrap_or_else(|| clock.now().plus_millis(limit));
                tracing::info!(run = %self.log.state().id, backend = %backend.name, why, "waits for the backend");
                let why = self.world.redactor.redact(&why).into_owned();
                let backend = backend.name.clone();
                self.log
                    .append([BackendAwaited { turn, attempt, backend, why, until }.into()])
                    .await?;
                until
            }
        };
        let left = until.0.saturating_sub(clock.now().0) / 1000;
        let left = u64::try_from(left).unwrap_or(0).min(millis(self.world.agents.backend_wait));
        if left == 0 {
            return self.give_up(&backend, &why).await.map(|()| None);
        }
        let crowd = CROWD.mul_f64(self.world.chance.fraction());
        let opened = async {
            tokio::select! {
                () = async { backend.opened().await; clock.sleep(crowd).await } => {}
                () = clock.sleep(Duration::from_millis(left)) => {}
            }
        };
        self.unless_told(opened).await?;
        // Whatever it was, it is to be looked at anew.
        Ok(None)
    }

    async fn give_up(&mut self, backend: &Backend, why: &str) -> Result<(), JournalError> {
        let minutes = self.world.agents.backend_wait.as_secs().div_ceil(60);
        let message = format!(
            "the backend {} did not work for {minutes} min (limits.backend_wait_seconds): {why}. \
             Start it, then go on with a fork of this run",
            backend.name
        );
        let reason = ModelFault::Unavailable.reason().into();
        self.end(Ending::Failed(Failure { reason, message })).await
    }

    /// The API by which this run asks that backend: as it did before, or as the backend is found to be.
    async fn settle_api(
        &mut self,
        turn: u32,
        backend: &Arc<Backend>,
    ) -> Result<Option<Api>, JournalError> {
        self.is_awaiting = false;
        if let Some(api) = self.log.state().apis.get(&backend.name) {
            return Ok(Some(*api));
        }
        let finding = backend.clone();
        let found = self.unless_told(async move { finding.api().await }).await?;
        // The first look may just have found that it does not work.
        let Some((api, why)) = found.filter(|_| backend.shut().is_none()) else { return Ok(None) };
        if let (Api::Chat, Some(why)) = (api, why) {
            let run = self.log.state().id;
            tracing::warn!(%run, backend = %backend.name, why, "the run is degraded: read-only, without tools");
            let (backend, why) = (backend.name.clone(), why.to_owned());
            self.log.stage(RunDegraded { turn, backend, why });
        }
        Ok(Some(api))
    }

    pub(super) async fn ask(
        &mut self,
        turn: u32,
        attempt: u32,
        api: Api,
    ) -> Result<(), JournalError> {
        let Some(items) = self.log.conversation().await? else { return Ok(()) };
        let Fit::Fits(estimated) = Box::pin(self.fit((turn, attempt), api, &items)).await? else {
            return Ok(());
        };
        let backend = self.backend();
        let RunState { stage, context, .. } = self.log.state();
        let strangers = colleagues::strangers(&self.world, self.log.state());
        let hearer = Hearer { seat: stage.seat(), backend: &backend.name, strangers: &strangers };
        let heard = context.view(stage, hearer, &items);
        let policy = self.world.policies.current();
        let hosted = hosted::admitted(&policy, &self.log.state().role, (api, &*backend.model));
        let sent = (heard.len(), estimated);
        let noted = hosted.noted((turn, attempt), sent, (backend.name.clone(), api));
        self.log.append([noted]).await?;
        fail_point::reach("ask.before");
        let started = self.world.clock.steady_ms();
        let state = self.log.state();
        let words = Words::new(self.live.clone(), self.world.redactor.clone(), state.id, turn);
        let said = |text: &str| words.hear(text);
        // Held apart from the run, which people may steer meanwhile.
        let spec = state.spec.clone();
        let Ok(voice) = team::voice(&self.world, &spec, state, api) else {
            return Ok(());
        };
        let (_, mind) = self.world.mind(state.speaker());
        let question = Question {
            api,
            model: self.world.model_of(state.speaker(), spec.model.as_deref()),
            instructions: &voice.instructions,
            items: &heard,
            tools: &voice.tools,
            hosted_tools: &hosted.leaves,
            shape: voice.shape(),
            settings: &mind.settings,
        };
        let answer = {
            let world = &self.world;
            let mut answering = std::pin::pin!(backend.ask(&*world.clock, question, &said));
            loop {
                tokio::select! {
                    answer = &mut answering => break answer,
                    // Dropping the request closes its connection: nobody waits for that answer any more.
                    () = self.stopping.cancelled() => return Ok(()),
                    message = self.inbox.recv() => {
                        let Some(message) = message else { return Ok(()) };
                        let interrupts = message.interrupts();
                        message.hear(&mut self.log).await?;
                        if interrupts {
                            return Ok(());
                        }
                    }
                }
            }
        };
        fail_point::reach("ask.after");
        // Or what is folded in next would have to copy the conversation.
        drop(heard);
        drop(items);
        let duration_ms = self.world.clock.steady_ms().saturating_sub(started);
        match answer.and_then(|answer| self.unless_cut_off(&backend, answer)) {
            Ok(answer) => {
                words.finish();
                let cost = self.cost(&answer);
                let asked = (backend.name.clone(), api);
                self.log.stage(response((turn, attempt), asked, duration_ms, answer, cost));
            }
            Err(error) => {
                let error = self.failed_request((turn, attempt), &backend, error);
                self.log.stage(error);
            }
        }
        Ok(())
    }

    /// The answer, unless the backend has read only a part of the conversation.
    fn unless_cut_off(&self, backend: &Backend, answer: Answer) -> Result<Answer, ModelError> {
        let context = &self.log.state().context;
        let read = answer.tokens.input;
        // Once compacted, it is taken as it comes: what it says of tokens may be something else.
        let may_be_cut = backend.model.cuts_silently() && context.overflow() == Overflow::None;
        if !may_be_cut || !context.was_cut_off(read) {
            return Ok(answer);
        }
        Err(ModelError {
            fault: ModelFault::ContextOverflow,
            message: format!(
                "the backend {} read {read} tokens, which is less than it was sent: it dropped the beginning of the \
                 conversation",
                backend.name
            ),
            sent: Sent::Maybe,
            http_status: None,
            backend_request_id: None,
            retry_after_ms: None,
            should_retry: None,
        })
    }

    /// Does that, and hears what people say meanwhile; none where that ends it, or the daemon stops.
    pub(super) async fn unless_interrupted<T>(
        &mut self,
        it: impl Future<Output = T>,
    ) -> Result<Option<T>, JournalError> {
        let mut it = std::pin::pin!(it);
        loop {
            tokio::select! {
                it = &mut it => return Ok(Some(it)),
                () = self.stopping.cancelled() => return Ok(None),
                message = self.inbox.recv() => {
                    let Some(message) = message else { return Ok(None) };
                    let interrupts = message.interrupts();
                    message.hear(&mut self.log).await?;
                    if interrupts {
                        return Ok(None);
                    }
                }
            }
        }
    }

    pub(super) fn failed_request(
        &self,
        (turn, attempt): (u32, u32),
        backend: &Backend,
        error: ModelError,
    ) -> BackendError {
        // The backend's own words may repeat what was sent to it.
        let words = self.world.redactor.redact(&error.message);
        tracing::warn!(run = %self.log.state().id, turn, attempt, %words, "a request to the model failed");
        let because = match error.fault {
            ModelFault::RateLimited => retry::Because::Limited,
            _ => retry::Because::Other,
        };
        // Nobody is to lose a run because its backend is down: it waits for that, and is asked again.
        let strikes = self.log.state().strikes;
        let before = match because {
            retry::Because::Limited => strikes.limited,
            retry::Because::Other => strikes.failed,
        };
        let has_attempts = before + 1 < retry::most_attempts(because) || backend.shut().is_some();
        let asks_too_much = error.retry_after_ms.is_some_and(|wait| wait > retry::LONGEST_WAIT_MS);
        let overflows = error.fault == ModelFault::ContextOverflow;
        // Once it is shortened, it may fit.
        let shortens = overflows && self.log.state().context.overflow() == Overflow::None;
        let passes = error.is_passing() && has_attempts && !asks_too_much;
        let retry_at = (passes && !overflows).then(|| {
            let jitter = self.world.chance.fraction();
            let delay = retry::delay_ms(before + 1, because, error.retry_after_ms, jitter);
            self.world.clock.now().plus_millis(delay)
        });
        let retry_at = retry_at.or_else(|| shortens.then(|| self.world.clock.now()));
        let message = match (asks_too_much, overflows && !shortens) {
            (true, _) => {
                format!("{}; it asks to be left alone for longer than a day", error.message)
            }
            (false, true) => format!("{} ({})", too_long().message, error.message),
            (false, false) => error.message,
        };
        BackendError {
            turn,
            attempt,
            reason: error.fault.reason().into(),
            message,
            sent: error.sent,
            http_status: error.http_status,
            backend_request_id: error.backend_request_id,
            retry_at,
            backend: backend.name.clone(),
        }
    }

    /// By the name that was asked for, or by that which answered; none where neither has a price.
    pub(super) fn cost(&self, answer: &Answer) -> Option<u64> {
        let World { prices, .. } = &self.world;
        let state = self.log.state();
        let asked = self.world.model_of(state.speaker(), state.spec.model.as_deref());
        let mut names = asked.into_iter().chain(answer.model.as_deref());
        let price = names.find_map(|name| prices.get(name))?;
        Some(price.cost_micros(&answer.tokens))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn response(
    (turn, attempt): (u32, u32),
    (backend, api): (BackendName, Api),
    duration_ms: u64,
    answer: Answer,
    cost_micros: Option<u64>,
) -> Noted {
    let response = ModelResponse {
        turn,
        attempt,
        response_id: answer.response_id,
        model: answer.model,
        text: answer.text.map(Into::into),
        incomplete: answer.incomplete,
        items: answer.items,
        tokens: answer.tokens,
        duration_ms,
        cost_micros,
        backend,
        api,
    };
    response.into()
}
