//! Limits, each with its unit. Who enforces which: the run's limits in `domain::run`, the bounds of
//! bodies and texts where they enter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
