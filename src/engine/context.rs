//! Whether a conversation fits the model, and what is done where it does not: the oldest long outputs are told of by
//! reference, and when that is not enough, something shorter takes the place of its beginning. What is sent then is
//! decided by the fold: see `domain::run::Context`.

use std::sync::Arc;

use crate::{
    agents::summary,
    domain::{
        backend::{Api, BackendName},
        budget::TokenCount,
        item::{Item, RawJson},
        journal::{Compaction, ContextCompacted, ContextTrimmed, ModelRequest, Purpose, Sent},
        run::{self, Context, Ending, Failure, Hearer, Overflow, RunState, Seat, bytes},
    },
    engine::{backends::Backend, colleagues, driver::Driver, team},
    fail_point,
    ports::{Answer, Clock, JournalError, ModelError, ModelFault, ModelSettings, Question},
};

/// Latest outputs, which are never left out.
const KEPT: usize = 4;
/// Tokens that are left to the answer, where nothing says how long it may be.
const ANSWER_TOKENS: u64 = 2048;
/// Tokens that a summary may have.
const SUMMARY_TOKENS: u32 = 2048;
/// Bytes of a record of which there can hardly be more tokens than a third.
const RECORD_TOKEN_BYTES: u64 = 3;

/// Whether what is to be sent fits.
pub(super) enum Fit {
    /// It may be sent, of about so many tokens.
    Fits(u64),
    /// Something else was done; what is next is to be decided anew.
    Changed,
}

/// A conversation on its way to the model.
struct Load<'a> {
    context: &'a Context,
    state: &'a RunState,
    hearer: Hearer<'a>,
    items: &'a [Item],
    /// Bytes of what goes with it.
    around: u64,
}

impl Load<'_> {
    fn bytes(&self) -> u64 {
        self.around + bytes(&self.context.view(&self.state.stage, self.hearer, self.items))
    }

    /// Where outputs are to be cut off so that the rest has `aim` tokens or fewer; as many as can be, if that is not
    /// enough. With the tokens that are left, and the number of outputs.
    fn trimmed(&self, aim: u64) -> Option<(usize, u64, usize)> {
        /// What a reference takes, about.
        const REFERENCE: u64 = 150;
        let mut places = self.context.trimmable(&self.state.stage, self.hearer.seat, self.items);
        places.truncate(places.len().saturating_sub(KEPT));
        let mut left = self.bytes();
        let mut best = None;
        for (outputs, place) in (1..).zip(places) {
            if let Some(Item::ToolOutput { output, .. }) = self.items.get(place) {
                left = left.saturating_sub((output.len() as u64).saturating_sub(REFERENCE));
            }
            best = Some((place + 1, self.context.tokens(left), outputs));
            if self.context.tokens(left) <= aim {
                break;
            }
        }
        best
    }
}

impl Driver {
    /// Makes the conversation fit, if it does not.
    pub(super) async fn fit(
        &mut self,
        (turn, attempt): (u32, u32),
        api: Api,
        items: &Arc<Vec<Item>>,
    ) -> Result<Fit, JournalError> {
        let state = self.log.state();
        let (seat, spec) = (state.stage.seat(), state.spec.clone());
        let voice = match team::voice(&self.world, &spec, state, api) {
            Ok(voice) => voice,
            Err(failure) => {
                self.end(Ending::Failed(failure)).await?;
                return Ok(Fit::Changed);
            }
        };
        let tools = voice.tools.iter().map(|tool| tool.parameters.len() + tool.description.len());
        let around = (voice.instructions.len() + tools.sum::<usize>()) as u64;
        let backend = self.world.mind(state.speaker()).0.clone();
        let strangers = colleagues::strangers(&self.world, state);
        let hearer = Hearer { seat, backend: &backend.name, strangers: &strangers };
        let load = Load { context: &state.context, state, hearer, items, around };
        let whole = load.bytes();
        let estimated = state.context.tokens(whole);
        let room = self.room();
        let overflow = state.context.overflow();
        // Where little was said, or most of it is what every request has, there is nothing to be made shorter.
        let is_long = state.context.view(&state.stage, hearer, items).len() > 2;
        let is_other = room.is_none_or(|room| state.context.tokens(around) < room);
        let can_compact = seat == Seat::Executor && is_long && is_other;
        let is_told = overflow == Overflow::Told;
        let fits = room.is_none_or(|room| estimated <= room);
        if !is_told && (fits || overflow == Overflow::Compacted) {
            return Ok(Fit::Fits(run::by_rule_of_thumb(whole)));
        }
        let room = room.unwrap_or(estimated / 2);
        let trimmed = load.trimmed(room / 10 * 7);
        let is_enough = trimmed.is_some_and(|(_, left, _)| left <= room);
        if let Some((before, tokens_after, outputs)) =
            trimmed.filter(|_| (is_enough && !is_told) || !can_compact)
        {
            tracing::info!(run = %state.id, turn, outputs, estimated, tokens_after, "older outputs are left out");
            let tokens_before = estimated;
            self.log.stage(ContextTrimmed { turn, before, outputs, tokens_before, tokens_after });
            return Ok(Fit::Changed);
        }
        match (can_compact, is_told) {
            (true, _) => self.compact((turn, attempt), api, items, room).await?,
            // It is worth a try: the estimate may be wrong.
            (false, false) => return Ok(Fit::Fits(run::by_rule_of_thumb(whole))),
            (false, true) => self.end(Ending::Failed(too_long())).await?,
        }
        Ok(Fit::Changed)
    }

    /// Tokens that a conversation may have; none where that is not known.
    fn room(&self) -> Option<u64> {
        let state = self.log.state();
        let (backend, mind) = self.world.mind(state.speaker());
        let model = self.world.model_of(state.speaker(), state.spec.model.as_deref());
        let known = mind.context_tokens.or_else(|| backend.model.context_tokens(model));
        let answer = mind.settings.max_output_tokens.map_or(ANSWER_TOKENS, u64::from);
        let limit = state.context.limit(known)?;
        // A model that takes few is left more than nothing.
        Some(limit.saturating_sub(answer).max(limit / 2))
    }

    /// Has the beginning of the conversation replaced by something shorter: what the backend makes of it, or a summary.
    async fn compact(
        &mut self,
        (turn, attempt): (u32, u32),
        api: Api,
        items: &Arc<Vec<Item>>,
        room: u64,
    ) -> Result<(), JournalError> {
        let state = self.log.state();
        let (speaker, spec) = (state.speaker().to_owned(), state.spec.clone());
        let backend = self.world.mind(&speaker).0.clone();
        let upto = state.stage.place_heard(
            kept_from(&state.stage.heard_by(Seat::Executor, items), room),
            items.len(),
        );
        let before = &items[..upto];
        let strangers = colleagues::strangers(&self.world, state);
        let hearer = Hearer { seat: Seat::Executor, backend: &backend.name, strangers: &strangers };
        let view = state.context.view(&state.stage, hearer, before).into_owned();
        let task = match items.get(state.stage.first_of_executor()) {
            Some(Item::User { text }) => text.clone(),
            Some(_) | None => spec.task.clone(),
        };
        let estimated_tokens = run::by_rule_of_thumb(bytes(&view));
        tracing::info!(run = %state.id, turn, estimated_tokens, room, "the conversation is compacted");
        let request = ModelRequest {
            turn,
            attempt,
            items: view.len(),
            estimated_tokens,
            purpose: Purpose::Compaction,
            hosted_tools: Vec::new(),
            backend: backend.name.clone(),
            api,
        };
        self.log.append([request.into()]).await?;
        fail_point::reach("ask.before");
        let model = self.world.model_of(&speaker, spec.model.as_deref()).map(str::to_owned);
        let clock = self.world.clock.clone();
        let shortening = async {
            let asked = Shortening { backend: &backend, model: model.as_deref(), api };
            asked.shorten(&*clock, &view, usize::try_from(room / 2).unwrap_or(usize::MAX)).await
        };
        let Some(shortened) = self.unless_interrupted(shortening).await? else { return Ok(()) };
        fail_point::reach("ask.after");
        match shortened {
            Ok((short, answer)) => {
                let compaction = match short {
                    Short::Summary(text) => Compaction::Summary { task, text: text.into() },
                    Short::Items(items) => Compaction::Backend { items: joined(&items) },
                };
                let cost_micros = self.cost(&answer);
                let tokens = answer.tokens;
                let backend = backend.name.clone();
                let done = ContextCompacted {
                    turn,
                    attempt,
                    upto,
                    backend,
                    compaction,
                    tokens,
                    cost_micros,
                };
                self.log.stage(done);
            }
            Err(error) => {
                let error = self.failed_request((turn, attempt), &backend, error);
                self.log.stage(error);
            }
        }
        Ok(())
    }
}

/// What a conversation became.
enum Short {
    Summary(String),
    Items(Vec<RawJson>),
}

/// Who is asked for it.
struct Shortening<'a> {
    backend: &'a Backend,
    model: Option<&'a str>,
    api: Api,
}

impl Shortening<'_> {
    /// With what it cost.
    async fn shorten(
        &self,
        clock: &dyn Clock,
        view: &[Item],
        most_tokens: usize,
    ) -> Result<(Short, Answer), ModelError> {
        let settings =
            ModelSettings { max_output_tokens: Some(SUMMARY_TOKENS), ..ModelSettings::default() };
        let question = Question {
            api: self.api,
            model: self.model,
            instructions: summary::INSTRUCTIONS,
            items: view,
            tools: &[],
            hosted_tools: &[],
            shape: None,
            settings: &settings,
        };
        match self.backend.model.compact(question).await {
            Some(Ok(compacted)) => {
                let answer = nothing_said(compacted.tokens);
                return Ok((Short::Items(compacted.items), answer));
            }
            Some(Err(error)) => {
                let fault = error.fault;
                tracing::info!(backend = %self.backend.name, ?fault, "it does not compact; it is asked for a summary");
            }
            None => {}
        }
        let most = most_tokens.saturating_mul(RECORD_TOKEN_BYTES as usize);
        let record = [Item::User { text: summary::record(view, most).into() }];
        let answer =
            self.backend.ask(clock, Question { items: &record, ..question }, &|_| {}).await?;
        match &answer.text {
            Some(text) => Ok((Short::Summary(summary::handed_over(text)), answer)),
            None => Err(empty(&self.backend.name)),
        }
    }
}

/// A JSON list of them.
fn joined(items: &[RawJson]) -> Arc<str> {
    let items: Vec<&str> = items.iter().map(RawJson::get).collect();
    format!("[{}]", items.join(",")).into()
}

fn nothing_said(tokens: TokenCount) -> Answer {
    Answer {
        response_id: None,
        model: None,
        text: None,
        incomplete: None,
        items: Vec::new(),
        tokens,
    }
}

fn empty(backend: &BackendName) -> ModelError {
    ModelError {
        fault: ModelFault::Protocol,
        message: format!(
            "the backend {backend} was asked to sum the conversation up, and said nothing"
        ),
        sent: Sent::Maybe,
        http_status: None,
        backend_request_id: None,
        retry_after_ms: None,
        should_retry: None,
    }
}

/// The run cannot be gone on with.
pub(super) fn too_long() -> Failure {
    Failure {
        reason: run::OVERFLOW.into(),
        message: "the conversation is longer than the model takes, also after it was shortened; give a smaller task, or \
                  a model with a larger context"
            .into(),
    }
}

/// From where on the conversation stays as it is: the latest answer with what came of it, unless that is most of it.
fn kept_from(items: &[Item], room: u64) -> usize {
    let is_said = |item: &Item| matches!(item, Item::Model { .. });
    let after = items.iter().rposition(is_said).map_or(items.len(), |last| last + 1);
    let from =
        items[..after].iter().rposition(|item| !is_said(item)).map_or(0, |before| before + 1);
    match bytes(&items[from..]) / RECORD_TOKEN_BYTES <= room / 4 {
        true => from,
        false => items.len(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::domain::ids::CallId;

    fn said() -> Item {
        Item::Model { raw: RawValue::from_string("{}".into()).unwrap().into(), call: None }
    }

    fn got(bytes: usize) -> Item {
        Item::ToolOutput { call_id: CallId::new("c"), output: "x".repeat(bytes).into() }
    }

    #[test]
    fn the_latest_answer_stays_with_its_outputs_unless_they_are_most_of_what_there_is_room_for() {
        let task = || Item::User { text: "task".into() };
        let items = [task(), said(), got(10), said(), said(), got(10), got(10), task()];
        assert_eq!(kept_from(&items, 10_000), 3);
        let items = [task(), said(), got(10), said(), got(100_000)];
        assert_eq!(kept_from(&items, 10_000), items.len());
        assert_eq!(kept_from(&[task()], 10_000), 1);
    }
}
