//! What of a conversation is sent, when not all of it fits: which outputs are told of by reference, and what stands for its
//! beginning. The conversation itself only grows, and the journal has all of it.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::domain::{
    backend::BackendName,
    item::{Item, RawJson},
    journal::{BackendError, Compaction, ContextCompacted, ModelRequest, ModelResponse},
    run::{Seat, Stage},
};

/// Outputs that are shorter stay: a reference to them would save nothing, in bytes.
const SHORT: usize = 1 << 10;
/// Bytes of a token, as an estimate for text of any kind.
const TOKEN_BYTES: u64 = 4;

/// How a run's conversation is shortened.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Context {
    /// Long outputs before this place of the conversation are told of by reference, to the executor.
    trimmed_before: usize,
    /// The same to another agent that speaks now.
    trimmed_of_other: usize,
    compacted: Option<Compacted>,
    /// Of the request under way, in tokens, as the rule of thumb has it.
    sent: u64,
    /// Of the last request that was answered.
    measured: Option<Measured>,
    /// As many tokens were too many once.
    too_many: Option<u64>,
    overflow: Overflow,
}

/// What stands for the beginning of what the executor has heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Compacted {
    /// Of the conversation; what is before it is not sent.
    upto: usize,
    items: Arc<[Item]>,
    /// That alone can read it; none: every backend can.
    only: Option<BackendName>,
}

/// How many tokens a request had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Measured {
    /// By the rule of thumb.
    estimated: u64,
    /// As the backend says.
    read: u64,
}

/// Whether the turn under way did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Overflow {
    #[default]
    None,
    /// It is to be compacted.
    Told,
    /// It was, for this turn.
    Compacted,
}

/// Who is about to be sent what it has heard and said.
#[derive(Debug, Clone, Copy)]
pub struct Hearer<'a> {
    pub seat: Seat,
    pub backend: &'a BackendName,
    /// Those who spoke in what it has heard and do not think as it does, by [`Stage::voices`]: what only their own
    /// backend and model can read is left out.
    pub strangers: &'a [Option<String>],
}

/// Why a request failed that was too long.
pub const OVERFLOW: &str = "CONTEXT_OVERFLOW";

impl Context {
    /// What the agent in that seat has heard and said, as it is sent to that backend.
    pub fn view<'a>(
        &self,
        stage: &Stage,
        Hearer { seat, backend, strangers }: Hearer<'_>,
        items: &'a [Item],
    ) -> Cow<'a, [Item]> {
        let compacted = self.compacted.as_ref().filter(|compacted| {
            seat == Seat::Executor && compacted.only.as_ref().is_none_or(|only| only == backend)
        });
        let trimmed_before = self.trimmed_before(seat);
        if trimmed_before == 0 && compacted.is_none() && strangers.is_empty() {
            return stage.heard_by(seat, items);
        }
        let upto = compacted.map_or(0, |compacted| compacted.upto);
        let is_strange =
            |voice: Option<&str>| strangers.iter().any(|stranger| stranger.as_deref() == voice);
        let places = stage.spoken(seat, items.len()).into_iter().flat_map(|(voice, places)| {
            let is_strange = is_strange(voice);
            places.map(move |place| (is_strange, place))
        });
        let rest = places.filter(|(_, place)| *place >= upto).filter_map(|(is_strange, place)| {
            let item = items.get(place)?;
            match (is_strange, place < trimmed_before) {
                (true, _) if matches!(item, Item::Model { .. }) => item.for_others(),
                (_, true) => Some(shortened(item)),
                (_, false) => Some(item.clone()),
            }
        });
        let beginning = compacted.map_or(&[][..], |compacted| &compacted.items);
        beginning.iter().cloned().chain(rest).collect()
    }

    /// The same with long outputs before `place` told of by reference.
    pub fn trimmed_to(&self, seat: Seat, place: usize) -> Self {
        let mut trimmed = self.clone();
        trimmed.trim(seat, place);
        trimmed
    }

    fn trimmed_before(&self, seat: Seat) -> usize {
        match seat {
            Seat::Executor => self.trimmed_before,
            Seat::Planner | Seat::Reviewer | Seat::Asked => self.trimmed_of_other,
        }
    }

    fn trim(&mut self, seat: Seat, place: usize) {
        let before = match seat {
            Seat::Executor => &mut self.trimmed_before,
            Seat::Planner | Seat::Reviewer | Seat::Asked => &mut self.trimmed_of_other,
        };
        *before = place.max(*before);
    }

    /// Places of the outputs that could still be told of by reference, oldest first.
    pub fn trimmable(&self, stage: &Stage, seat: Seat, items: &[Item]) -> Vec<usize> {
        let upto = self.compacted.as_ref().filter(|_| seat == Seat::Executor);
        let upto = upto.map_or(0, |compacted| compacted.upto);
        let from = upto.max(self.trimmed_before(seat));
        let places = stage.places(seat, items.len()).into_iter().flatten();
        places.filter(|place| *place >= from && items.get(*place).is_some_and(is_long)).collect()
    }

    pub fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// Most tokens that are worth a try: what is known of the model, and what was too many once.
    pub fn limit(&self, known: Option<u64>) -> Option<u64> {
        match (known, self.too_many) {
            (Some(known), Some(too_many)) => Some(known.min(too_many)),
            (known, too_many) => known.or(too_many),
        }
    }

    /// So many bytes in tokens: by the last request that was answered, or else by a rule of thumb.
    pub fn tokens(&self, bytes: u64) -> u64 {
        self.corrected(by_rule_of_thumb(bytes))
    }

    /// What the rule of thumb says, as the last request that was answered corrects it.
    fn corrected(&self, estimated: u64) -> u64 {
        match self.measured {
            // Some tell only what they did not know already.
            Some(Measured { estimated: then, read }) if then > 0 && read > then => {
                estimated.saturating_mul(read) / then
            }
            Some(_) | None => estimated,
        }
    }

    /// Whether a backend that drops the beginning of what is too long, and does not say so, has done that: it read fewer
    /// tokens than there can have been.
    pub fn was_cut_off(&self, read: u64) -> bool {
        const ENOUGH: u64 = 500;
        let Some(before) = self.measured else {
            return read > 0 && self.sent >= 8 * ENOUGH && read < self.sent / 4;
        };
        let more = self.corrected(self.sent.saturating_sub(before.estimated));
        let is_the_same = read >= before.read / 10 * 9 && read <= before.read + more / 8;
        // Some tell only what they did not know already: about as much as there is more.
        let is_the_rest = read >= more / 20 * 17 && read <= more / 20 * 23;
        read >= ENOUGH && more >= ENOUGH / 2 && is_the_same && !is_the_rest
    }

    /// Another agent speaks, and maybe another model.
    pub(super) fn is_anothers(&mut self) {
        (self.measured, self.too_many, self.overflow) = (None, None, Overflow::None);
        self.trimmed_of_other = 0;
    }

    /// What one model made of the beginning, another may not be able to read: the whole is there for it.
    pub(super) fn is_handed_over(&mut self) {
        self.compacted = self.compacted.take().filter(|compacted| compacted.only.is_none());
    }

    pub(super) fn requested(&mut self, request: &ModelRequest) {
        self.sent = request.estimated_tokens;
    }

    pub(super) fn answered(&mut self, response: &ModelResponse) {
        self.measured = Some(Measured { estimated: self.sent, read: response.tokens.input });
        self.overflow = Overflow::None;
    }

    pub(super) fn failed(&mut self, error: &BackendError) {
        if error.reason == OVERFLOW {
            let fewer = self.corrected(self.sent).saturating_mul(9) / 10;
            self.too_many = Some(self.too_many.map_or(fewer, |known| known.min(fewer)));
            if self.overflow == Overflow::None {
                self.overflow = Overflow::Told;
            }
        }
    }

    pub(super) fn trimmed(&mut self, seat: Seat, before: usize) {
        self.trim(seat, before);
        // Where nothing can be compacted, that is what was to be done about it.
        if self.overflow == Overflow::Told {
            self.overflow = Overflow::Compacted;
        }
    }

    pub(super) fn compacted(&mut self, done: &ContextCompacted) {
        let items: Vec<Item> = match &done.compaction {
            Compaction::Summary { task, text } => {
                [task, text].map(|text| Item::User { text: text.clone() }).to_vec()
            }
            Compaction::Backend { items } => {
                let items: Vec<RawJson> = serde_json::from_str(items).unwrap_or_default();
                items.into_iter().map(|raw| Item::Model { raw, call: None }).collect()
            }
        };
        let only = match &done.compaction {
            Compaction::Summary { .. } => None,
            Compaction::Backend { .. } => Some(done.backend.clone()),
        };
        self.compacted = Some(Compacted { upto: done.upto, items: items.into(), only });
        self.measured = None;
        self.overflow = Overflow::Compacted;
    }
}

/// So many bytes in tokens, about.
pub fn by_rule_of_thumb(bytes: u64) -> u64 {
    bytes.div_ceil(TOKEN_BYTES)
}

fn is_long(item: &Item) -> bool {
    matches!(item, Item::ToolOutput { output, .. } if output.len() > SHORT)
}

fn shortened(item: &Item) -> Item {
    match item {
        Item::ToolOutput { call_id, output } if output.len() > SHORT => {
            let bytes = output.len();
            let output = format!(
                "[{bytes} bytes of output were left out to save room. They are in the run's journal; call the tool \
                 again if you need them]"
            );
            Item::ToolOutput { call_id: call_id.clone(), output: output.into() }
        }
        other => other.clone(),
    }
}

/// Bytes of what is sent of these items.
pub fn bytes(items: &[Item]) -> u64 {
    /// What stands around an item, about.
    const AROUND: usize = 60;
    let length = |item: &Item| match item {
        Item::User { text } => text.len(),
        Item::Model { raw, .. } => raw.get().len(),
        Item::ToolOutput { output, .. } => output.len(),
    };
    items.iter().map(|item| (length(item) + AROUND) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::CallId;

    fn output(bytes: usize) -> Item {
        Item::ToolOutput { call_id: CallId::new("c"), output: "x".repeat(bytes).into() }
    }

    #[test]
    fn long_outputs_before_a_place_are_told_of_by_reference_and_short_ones_stay() {
        let items = [output(5000), output(10), output(5000)];
        let context = Context::default();
        let stage = Stage::default();
        assert_eq!(context.trimmable(&stage, Seat::Executor, &items), [0, 2]);
        let trimmed = context.trimmed_to(Seat::Executor, 2);
        let backend = BackendName::default();
        let hearer = Hearer { seat: Seat::Executor, backend: &backend, strangers: &[] };
        let view = trimmed.view(&stage, hearer, &items);
        assert!(bytes(&view) < 6000, "{view:?}");
        assert_eq!(view[1..], items[1..]);
        assert_eq!(trimmed.trimmable(&stage, Seat::Executor, &items), [2]);
    }

    #[test]
    fn a_backend_that_reads_no_more_than_before_of_more_than_before_has_cut_it_off() {
        let context = |estimated, read, sent| Context {
            measured: Some(Measured { estimated, read }),
            sent,
            ..Context::default()
        };
        assert!(context(3000, 4000, 4600).was_cut_off(4050));
        assert!(!context(3000, 4000, 4600).was_cut_off(5600), "it read all");
        assert!(!context(3000, 4000, 3100).was_cut_off(4050), "there was not much more");
        assert!(!context(3000, 1600, 4600).was_cut_off(1600), "it knew the rest already");
        // More was added than it takes, nearly.
        assert!(context(3000, 4000, 5500).was_cut_off(4096));
        // There is more of it than the rule of thumb says: 4,500 of 3,000, and 4,575 of 3,050.
        assert!(!context(3000, 4500, 3050).was_cut_off(4575));
        assert!(!context(3000, 4000, 4600).was_cut_off(0), "it does not tell");
        assert!(Context { sent: 40_000, ..Context::default() }.was_cut_off(4000));
        assert!(!Context { sent: 3000, ..Context::default() }.was_cut_off(500));
    }

    #[test]
    fn an_estimate_is_corrected_upwards_by_what_was_read_before() {
        let measured = |read| Context {
            measured: Some(Measured { estimated: 1000, read }),
            ..Context::default()
        };
        assert_eq!(Context::default().tokens(4000), 1000);
        assert_eq!(measured(1500).tokens(4000), 1500);
        assert_eq!(measured(10).tokens(4000), 1000, "the rest was known to it");
    }
}
