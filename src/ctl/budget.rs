//! The flags that limit a run, for every verb that takes them.

use std::collections::HashMap;

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
    /// Suspend the run once agents of a role have used so much of it: ROLE=turns:N,calls:N,tokens:N,time:SECONDS,cost:DOLLARS;
    /// may be repeated
    #[arg(long, value_parser = role_budget, value_name = "ROLE=LIMITS")]
    role_budget: Vec<(String, v1::Budget)>,
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

    pub(super) fn role_budgets(&self) -> HashMap<String, v1::Budget> {
        let mut all: HashMap<String, v1::Budget> = HashMap::new();
        for (role, more) in &self.role_budget {
            let of = all.entry(role.clone()).or_default();
            let over = |new: u64, old: u64| if new == 0 { old } else { new };
            let over_small = |new: u32, old: u32| if new == 0 { old } else { new };
            *of = v1::Budget {
                max_turns: over_small(more.max_turns, of.max_turns),
                max_tool_calls: over_small(more.max_tool_calls, of.max_tool_calls),
                max_tokens: over(more.max_tokens, of.max_tokens),
                max_wall_seconds: over(more.max_wall_seconds, of.max_wall_seconds),
                max_cost_micros: over(more.max_cost_micros, of.max_cost_micros),
            };
        }
        all
    }
}

fn role_budget(text: &str) -> Result<(String, v1::Budget), String> {
    let wanted = "a role and its limits are wanted, executor=turns:20,tokens:100000 for example";
    let (role, limits) = text.split_once('=').ok_or(wanted)?;
    if role.is_empty() || limits.is_empty() {
        return Err(wanted.to_owned());
    }
    let mut budget = v1::Budget::default();
    for limit in limits.split(',') {
        let (what, number) = limit.split_once(':').ok_or(wanted)?;
        let whole = || {
            number.parse().ok().filter(|n: &u64| *n > 0).ok_or_else(|| {
                format!("{what}: a whole number above zero is wanted, not {number:?}")
            })
        };
        let small =
            || u32::try_from(whole()?).map_err(|_| format!("{what}: {number} is too large"));
        match what {
            "turns" => budget.max_turns = small()?,
            "calls" => budget.max_tool_calls = small()?,
            "tokens" => budget.max_tokens = whole()?,
            "time" => budget.max_wall_seconds = whole()?,
            "cost" => budget.max_cost_micros = micros(number)?,
            _ => {
                return Err(format!(
                    "there is no limit {what:?}; there are turns, calls, tokens, time and cost"
                ));
            }
        }
    }
    Ok((role.to_owned(), budget))
}

fn micros(dollars: &str) -> Result<u64, String> {
    let parsed: Result<f64, _> = dollars.parse();
    match parsed {
        Ok(dollars) if (0.000_001..1e9).contains(&dollars) => Ok((dollars * 1e6).round() as u64),
        Ok(_) | Err(_) => Err("a sum in dollars is wanted, 0.50 for example".to_owned()),
    }
}
