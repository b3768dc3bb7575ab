//! Whose turn it is to speak: which part of a run's conversation is which agent's, and how far its agents have come. What
//! their words and the entries make of it: [`super::team`].

use std::{borrow::Cow, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::domain::{
    ids::CallKey,
    item::Item,
    journal::{Colleague, GuardrailsChecked, PlanRevised},
    plan::{Plan, Step},
    run::{HandOff, asked::Asking},
};

/// What an agent does in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seat {
    Planner,
    Executor,
    Reviewer,
    /// Works for another one, which used it as a tool.
    Asked,
}

/// What one agent heard and said without another in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) seat: Seat,
    /// By which it was asked, in that seat.
    pub(super) call: Option<CallKey>,
    /// Who sits there; none: who the run began with, or the built-in agent.
    pub(super) agent: Option<Arc<Colleague>>,
    /// Place of its first item in the conversation.
    pub(super) from: usize,
    /// The turns before it.
    pub(super) after: u32,
}

/// Steps of the plan that were replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Of the first of them, from 1.
    pub from_step: usize,
    /// In the executor's words.
    pub why: String,
    pub replaced: Vec<Step>,
}

impl Part {
    pub(super) fn of(seat: Seat, from: usize, after: u32) -> Self {
        Self { seat, call: None, agent: None, from, after }
    }
}

/// How far the agents have come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stage {
    /// Who spoke when: each part of the conversation is one agent's, and begins at this item. None: all of it is one
    /// agent's.
    pub(super) parts: Vec<Part>,
    pub plan: Option<Arc<Plan>>,
    /// How the executor has changed it, oldest first.
    pub revisions: Vec<Revision>,
    /// What came of those steps of it that are done, in the executor's words.
    pub results: Vec<Arc<str>>,
    /// What the executor said last.
    pub result: Option<Arc<str>>,
    /// What was found in it that it must not do.
    pub checked: Option<Arc<GuardrailsChecked>>,
    /// What the reviewer wants mended.
    pub findings: Vec<String>,
    /// How often the work was sent back.
    pub rounds: u32,
    /// Whether the agent that speaks was told that its words had not the shape that was asked for.
    pub(super) is_corrected: bool,
    /// Who was told what the repository says.
    pub(super) told: Vec<Seat>,
    /// Who works for whom: the last one speaks.
    pub(super) asked: Vec<Asking>,
    /// Somebody is to go on with what was said.
    pub(super) handing: Option<Box<HandOff>>,
}

impl Stage {
    /// Of a run that goes on with what an executor has heard.
    pub(super) fn of_executor() -> Self {
        Self { parts: vec![Part::of(Seat::Executor, 0, 0)], ..Self::default() }
    }

    pub fn seat(&self) -> Seat {
        self.parts.last().map_or(Seat::Executor, |part| part.seat)
    }

    /// Who sits there; none: who the run began with, or the built-in agent.
    pub fn agent(&self) -> Option<&Colleague> {
        self.parts.last()?.agent.as_deref()
    }

    /// The same of another seat, as it was last.
    pub fn agent_in(&self, seat: Seat) -> Option<&Arc<Colleague>> {
        self.parts.iter().rev().find(|part| part.seat == seat)?.agent.as_ref()
    }

    /// Number of the step under way, from 1; none where there is no plan, or all of it is done.
    pub fn step(&self) -> Option<usize> {
        let plan = self.plan.as_ref()?;
        let done = self.results.len();
        (done < plan.steps.len()).then_some(done + 1)
    }

    /// Other steps take the place of those that are left.
    pub(super) fn revise_plan(&mut self, revised: &PlanRevised) {
        let Some(plan) = &mut self.plan else { return };
        let plan = Arc::make_mut(plan);
        let done = self.results.len().min(plan.steps.len());
        let replaced = plan.steps.split_off(done);
        plan.steps.extend(revised.steps.iter().cloned());
        let (from_step, why) = (revised.from_step, revised.why.clone());
        self.revisions.push(Revision { from_step, why, replaced });
    }

    /// By which call the agent that speaks was asked; none: by none.
    pub fn call(&self) -> Option<CallKey> {
        self.parts.last()?.call
    }

    /// Who is to go on with what was said.
    pub fn handing(&self) -> Option<&HandOff> {
        self.handing.as_deref()
    }

    /// Who has said something of what the agent in that seat has heard, itself included; none: who the run began with, or
    /// the built-in agent.
    pub fn voices(&self, seat: Seat) -> Vec<Option<&str>> {
        let mut voices: Vec<_> = self.spoken(seat, 0).into_iter().map(|(voice, _)| voice).collect();
        voices.dedup();
        voices
    }

    /// The part under way.
    pub(super) fn part(&self) -> Part {
        self.parts.last().cloned().unwrap_or(Part::of(Seat::Executor, 0, 0))
    }

    /// From now on it is known whose each part is.
    pub(super) fn all_is_one_agents(&mut self) {
        if self.parts.is_empty() {
            self.parts.push(Part::of(Seat::Executor, 0, 0));
        }
    }

    /// Whether who speaks was told that its words had not the shape that was asked for.
    pub fn is_corrected(&self) -> bool {
        self.is_corrected
    }

    /// Place of what the executor was given at the very beginning.
    pub fn first_of_executor(&self) -> usize {
        let part = self.parts.iter().find(|part| part.seat == Seat::Executor);
        part.map_or(0, |part| part.from)
    }

    /// Whether who speaks is still to be told what the repository says.
    pub(super) fn is_untold(&self) -> bool {
        let is_to_know = matches!(self.seat(), Seat::Planner | Seat::Executor);
        is_to_know && !self.told.contains(&self.seat())
    }

    /// Who speaks has something else to do than to say the same in another shape.
    pub(super) fn go_on(&mut self) {
        self.is_corrected = false;
    }

    /// Who spoke in a turn.
    pub fn speaker(&self, turn: u32) -> Seat {
        let part = self.parts.iter().rev().find(|part| part.after < turn);
        part.map_or(Seat::Executor, |part| part.seat)
    }

    /// Places of what an agent has heard and said, in a conversation of so many items.
    pub(super) fn places(&self, seat: Seat, length: usize) -> Vec<Range<usize>> {
        if self.parts.is_empty() {
            return std::iter::once(0..length).collect();
        }
        let mut places: Vec<Range<usize>> = Vec::new();
        for (_, place) in self.parts_of(seat, length) {
            match places.last_mut() {
                Some(last) if last.end == place.start => last.end = place.end,
                _ => places.push(place),
            }
        }
        places
    }

    /// The same with who spoke there, as [`Self::voices`] has it.
    pub(super) fn spoken(&self, seat: Seat, length: usize) -> Vec<(Option<&str>, Range<usize>)> {
        if self.parts.is_empty() {
            return vec![(None, 0..length)];
        }
        let parts = self.parts_of(seat, length).into_iter();
        parts
            .map(|(part, places)| (part.agent.as_ref().map(|agent| &*agent.name), places))
            .collect()
    }

    fn parts_of(&self, seat: Seat, length: usize) -> Vec<(&Part, Range<usize>)> {
        let ends = self.parts.iter().skip(1).map(|part| part.from).chain([length]);
        let call = self.parts.last().filter(|_| seat == Seat::Asked).and_then(|last| last.call);
        let is_its = |part: &Part| part.seat == seat && part.call == call;
        let parts = self.parts.iter().zip(ends).filter(|(part, _)| is_its(part));
        // The conversation may be cut off before its end.
        let place = |(part, end): (_, usize)| {
            let part: &Part = part;
            (part, part.from.min(length)..end.min(length))
        };
        let mut parts: Vec<_> = parts.map(place).collect();
        if seat == Seat::Reviewer {
            parts.drain(..parts.len().saturating_sub(1));
        }
        parts
    }

    /// Place in a conversation of so many items of the so many-th that the executor has heard; the end, where there are
    /// fewer.
    pub fn place_heard(&self, nth: usize, length: usize) -> usize {
        self.places(Seat::Executor, length).into_iter().flatten().nth(nth).unwrap_or(length)
    }

    /// What an agent has heard and said, out of the whole conversation. A reviewer has not heard earlier ones.
    pub fn heard_by<'a>(&self, seat: Seat, items: &'a [Item]) -> Cow<'a, [Item]> {
        if self.parts.is_empty() {
            return Cow::Borrowed(items);
        }
        let places = self.places(seat, items.len()).into_iter();
        let parts: Vec<&[Item]> = places.filter_map(|place| items.get(place)).collect();
        match parts.as_slice() {
            [only] => Cow::Borrowed(only),
            parts => Cow::Owned(parts.concat()),
        }
    }
}
