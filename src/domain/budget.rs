//! Limits, each with its unit. Who enforces which: the run's limits in `domain::run`, the bounds of
//! bodies and texts where they enter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::ids::RoleName;

/// Longest task text that is accepted, in bytes.
pub const TASK_BYTES: usize = 1 << 20;
/// Most bytes of one stream of output (stdout, stderr, a file) that the model is shown: half from
/// the head, half from the tail.
pub const OUTPUT_TEXT_BYTES: usize = 32 * 1024;
/// Largest file that read_file and edit_file take, in bytes.
pub const FILE_BYTES: u64 = 16 << 20;
/// Most tool calls that one answer of the model may ask for.
pub const CALLS_PER_TURN: usize = 64;

/// Limits of one run. Reaching one suspends the run; it loses nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Answers of the model.
    pub max_turns: u32,
    /// Tool calls, refused ones included.
    pub max_tool_calls: u32,
    /// Input and output tokens together, as the backend counts them.
    pub max_tokens: u64,
    /// Time in which a request or a call of the run is under way, in seconds. Zero: any.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_wall_seconds: u64,
    /// What its answers cost by the price table, in millionths of a dollar. Zero: any.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_cost_micros: u64,
}

/// A limit of zero is none.
fn or_any(limit: u64) -> u64 {
    if limit == 0 { u64::MAX } else { limit }
}

/// As [`or_any`] for a role.
fn or_any_of(role: Option<&RoleName>, limit: u64) -> u64 {
    if role.is_some() { or_any(limit) } else { limit }
}

/// By reference, as serde asks.
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Budget {
    /// With the default wherever it says zero.
    pub fn or_default(self) -> Self {
        self.over(Self::default())
    }

    /// With `base` wherever it says zero.
    pub fn over(self, base: Self) -> Self {
        let or = |wanted: u64, base: u64| if wanted == 0 { base } else { wanted };
        let or_small = |wanted: u32, base: u32| if wanted == 0 { base } else { wanted };
        Self {
            max_turns: or_small(self.max_turns, base.max_turns),
            max_tool_calls: or_small(self.max_tool_calls, base.max_tool_calls),
            max_tokens: or(self.max_tokens, base.max_tokens),
            max_wall_seconds: or(self.max_wall_seconds, base.max_wall_seconds),
            max_cost_micros: or(self.max_cost_micros, base.max_cost_micros),
        }
    }
}

/// Limits of what the agents of each role use of a run. A zero is any.
pub type RoleBudgets = BTreeMap<RoleName, Budget>;

/// With `base` for each role wherever `wanted` does not say.
pub fn roles_over(mut wanted: RoleBudgets, base: &RoleBudgets) -> RoleBudgets {
    for (role, base) in base {
        let own = wanted.entry(role.clone()).or_insert(*base);
        *own = own.over(*base);
    }
    wanted
}

/// What limits a run.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Of all its agents together.
    pub run: Budget,
    pub roles: &'a RoleBudgets,
}

/// One limit, and how far it is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<'a> {
    /// In words that a number can stand before.
    pub what: &'static str,
    /// Whose; none where it is the whole run's.
    pub role: Option<&'a RoleName>,
    pub used: u64,
    pub of: u64,
}

impl Limit<'_> {
    /// Names it, also in the journal.
    pub fn name(&self) -> String {
        match self.role {
            Some(role) => format!("{} of {role}", self.what),
            None => self.what.to_owned(),
        }
    }

    pub fn is_used_up(&self) -> bool {
        self.used >= self.of
    }

    /// Whether 80 percent are used.
    pub fn is_nearly_used_up(&self) -> bool {
        u128::from(self.used) * 5 >= u128::from(self.of) * 4 && self.used > 0
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            max_turns: 100,
            max_tool_calls: 500,
            max_tokens: 5_000_000,
            max_wall_seconds: 0,
            max_cost_micros: 0,
        }
    }
}

/// What the runs of one submitter use on one day. As limits, zero is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerDay {
    /// Answers of the model.
    pub turns: u64,
    /// Tool calls that were begun.
    pub tool_calls: u64,
    /// Input and output tokens together, as the backend counts them.
    pub tokens: u64,
    /// What answers cost by the price table, in millionths of a dollar.
    pub cost_micros: u64,
}

impl PerDay {
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self {
            turns: self.turns.saturating_add(more.turns),
            tool_calls: self.tool_calls.saturating_add(more.tool_calls),
            tokens: self.tokens.saturating_add(more.tokens),
            cost_micros: self.cost_micros.saturating_add(more.cost_micros),
        }
    }

    /// What is limited: its name, what is used of it, and the limit.
    pub fn against(&self, limits: &Self) -> Vec<(&'static str, u64, u64)> {
        let all = [
            ("turns a day", self.turns, limits.turns),
            ("tool calls a day", self.tool_calls, limits.tool_calls),
            ("tokens a day", self.tokens, limits.tokens),
            ("millionths of a dollar a day", self.cost_micros, limits.cost_micros),
        ];
        all.into_iter().filter(|(_, _, limit)| *limit > 0).collect()
    }
}

/// What a run has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Requests to the model that were answered.
    pub turns: u32,
    pub tool_calls: u32,
    pub input_tokens: u64,
    pub cached_input_tokens: u64,
    pub output_tokens: u64,
    pub reasoning_tokens: u64,
    /// Requests that were lost with the daemon or the connection: they may have cost something.
    pub turns_of_unknown_cost: u32,
    /// CPU time of programs, in milliseconds.
    #[serde(default)]
    pub cpu_ms: u64,
    /// Time in which a request or a call was under way, in microseconds, by the times of its entries.
    #[serde(default)]
    pub wall_us: u64,
    /// What its answers cost by the price table, in millionths of a dollar; those without a price count nothing.
    #[serde(default)]
    pub cost_micros: u64,
}

impl Usage {
    /// How far the limits are used up that are looked at before a turn.
    pub fn against<'a>(&self, budget: &Budget, role: Option<&'a RoleName>) -> [Limit<'a>; 4] {
        let tokens = self.input_tokens.saturating_add(self.output_tokens);
        let limit = |what, used, of| Limit { what, role, used, of };
        // A run always has the first two.
        let turns = or_any_of(role, u64::from(budget.max_turns));
        [
            limit("turns", u64::from(self.turns), turns),
            limit("tokens", tokens, or_any_of(role, budget.max_tokens)),
            limit("seconds of work", self.wall_us / 1_000_000, or_any(budget.max_wall_seconds)),
            limit("millionths of a dollar", self.cost_micros, or_any(budget.max_cost_micros)),
        ]
    }

    /// How far the limit of tool calls is used up, with so many more.
    pub fn calls_against<'a>(
        &self,
        more: u64,
        budget: &Budget,
        role: Option<&'a RoleName>,
    ) -> Limit<'a> {
        let used = u64::from(self.tool_calls).saturating_add(more);
        let of = or_any_of(role, u64::from(budget.max_tool_calls));
        Limit { what: "tool calls", role, used, of }
    }

    /// Adds what was used between two moments of a run.
    pub fn add_between(&mut self, before: &Self, after: &Self) {
        let small = |sum: &mut u32, before: u32, after: u32| {
            *sum = sum.saturating_add(after.saturating_sub(before));
        };
        let large = |sum: &mut u64, before: u64, after: u64| {
            *sum = sum.saturating_add(after.saturating_sub(before));
        };
        small(&mut self.turns, before.turns, after.turns);
        small(&mut self.tool_calls, before.tool_calls, after.tool_calls);
        let unknown = &mut self.turns_of_unknown_cost;
        small(unknown, before.turns_of_unknown_cost, after.turns_of_unknown_cost);
        large(&mut self.input_tokens, before.input_tokens, after.input_tokens);
        let cached = &mut self.cached_input_tokens;
        large(cached, before.cached_input_tokens, after.cached_input_tokens);
        large(&mut self.output_tokens, before.output_tokens, after.output_tokens);
        large(&mut self.reasoning_tokens, before.reasoning_tokens, after.reasoning_tokens);
        large(&mut self.cpu_ms, before.cpu_ms, after.cpu_ms);
        large(&mut self.wall_us, before.wall_us, after.wall_us);
        large(&mut self.cost_micros, before.cost_micros, after.cost_micros);
    }

    pub fn add_tokens(&mut self, tokens: &TokenCount) {
        // The counts are the backend's word: absurd ones must not wrap around a budget.
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.input_tokens, tokens.input);
        add(&mut self.cached_input_tokens, tokens.cached_input);
        add(&mut self.output_tokens, tokens.output);
        add(&mut self.reasoning_tokens, tokens.reasoning);
    }
}

/// What a model's tokens cost, in dollars for a million of each kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    pub input: f64,
    /// Of input that came from the backend's cache.
    pub cached_input: f64,
    /// Reasoning included.
    pub output: f64,
}

impl Price {
    /// What an answer cost, in millionths of a dollar.
    pub fn cost_micros(&self, tokens: &TokenCount) -> u64 {
        let fresh = tokens.input.saturating_sub(tokens.cached_input);
        let cost = |tokens: u64, price: f64| tokens as f64 * price;
        let sum = cost(fresh, self.input)
            + cost(tokens.cached_input.min(tokens.input), self.cached_input)
            + cost(tokens.output, self.output);
        // Saturates: the counts are the backend's word.
        sum.ceil() as u64
    }
}

/// Prices by the name of the model.
pub type Prices = BTreeMap<String, Price>;

/// Tokens of one answer, as the backend counts them; a backend that does not count reports zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenCount {
    pub input: u64,
    /// Of `input`, those served from the backend's cache.
    pub cached_input: u64,
    pub output: u64,
    /// Of `output`, those spent on reasoning.
    pub reasoning: u64,
}
