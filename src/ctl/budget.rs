//! The flags that limit a run, for every verb that takes them.

use clap::Args;

use crate::proto::v1;

/// What is not given stays as it is, or is the daemon's default.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Suspend the run after so many turns
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    budget_turns: u32,
    /// Suspend the run after so many tool calls
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    budget_calls: u32,
    /// Suspend the run after so many tokens
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    budget_tokens: u64,
    /// Suspend the run after so many seconds of work; what it stands still for does not count
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "SECONDS")]
    budget_time: u64,
    /// Suspend the run once its answers have cost so much, by the daemon's price table
    #[arg(long, value_parser = micros, value_name = "DOLLARS")]
    budget_cost: Option<u64>,
}

impl Flags {
    pub(super) fn budget(&self) -> v1::Budget {
        v1::Budget {
            max_turns: self.budget_turns,
            max_tool_calls: self.budget_calls,
            max_tokens: self.budget_tokens,
            max_wall_seconds: self.budget_time,
            max_cost_micros: self.budget_cost.unwrap_or(0),
        }
    }
}

fn micros(dollars: &str) -> Result<u64, String> {
    let parsed: Result<f64, _> = dollars.parse();
    match parsed {
        Ok(dollars) if (0.000_001..1e9).contains(&dollars) => Ok((dollars * 1e6).round() as u64),
        Ok(_) | Err(_) => Err("a sum in dollars is wanted, 0.50 for example".to_owned()),
    }
}
