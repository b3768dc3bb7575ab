//! How things are printed: JSON on stdout and nothing else there; words where people look.

use std::io::{self, IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Effects, Style};
use serde_json::{Value, json};

use crate::{domain::hex::hex, proto::v1};

/// What answers look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// Whether colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    On,
    Off,
}

impl Colour {
    /// On for a terminal, unless the flag or NO_COLOR or a dumb terminal says no.
    pub(crate) fn choose(no_color: bool, is_terminal: bool) -> Self {
        let refused = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match no_color || refused("NO_COLOR") || dumb || !is_terminal {
            true => Self::Off,
            false => Self::On,
        }
    }

    /// The colours of stderr, where progress goes.
    pub(crate) fn of_stderr(no_color: bool) -> Self {
        Self::choose(no_color, io::stderr().is_terminal())
    }

    /// The colours of stdout.
    pub(crate) fn of_stdout(no_color: bool) -> Self {
        Self::choose(no_color, io::stdout().is_terminal())
    }

    /// `text` in `paint`, if colours are used.
    pub(crate) fn paint(self, paint: Paint, text: &str) -> String {
        match self {
            Self::Off => text.to_owned(),
            Self::On => {
                let style = paint.style();
                format!("{style}{text}{style:#}")
            }
        }
    }
}

/// A message for people, beside what is printed.
pub(crate) fn note(text: &str) -> io::Result<()> {
    writeln!(io::stderr(), "agentctl: {text}")
}

/// What a piece of text is, as far as its colour goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Good,
    Bad,
    Warning,
    Name,
    Faint,
    Strong,
}

impl Paint {
    fn style(self) -> Style {
        let colour = |colour: AnsiColor| Style::new().fg_color(Some(colour.into()));
        match self {
            Self::Good => colour(AnsiColor::Green),
            Self::Bad => colour(AnsiColor::Red),
            Self::Warning => colour(AnsiColor::Yellow),
            Self::Name => colour(AnsiColor::Cyan),
            Self::Faint => Style::new().effects(Effects::DIMMED),
            Self::Strong => Style::new().effects(Effects::BOLD),
        }
    }
}

/// One line on stdout.
pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// One JSON value on stdout.
pub(crate) fn json_line(value: &Value) -> io::Result<()> {
    line(&value.to_string())
}

/// Columns, the first row being their names; each as wide as its widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// A state's name as the contract writes it.
pub(crate) fn state_name(run: &v1::Run) -> &'static str {
    short_state(run.state())
}

pub(crate) fn short_state(state: v1::RunState) -> &'static str {
    state.as_str_name().trim_start_matches("RUN_STATE_")
}

/// A run as one JSON object.
pub(crate) fn run_json(run: &v1::Run) -> Value {
    let usage = run.usage.unwrap_or_default();
    json!({
        "id": run.id,
        "state": state_name(run),
        "answer": some(&run.answer),
        "usage": {
            "turns": usage.turns,
            "tool_calls": usage.tool_calls,
            "input_tokens": usage.input_tokens,
            "cached_input_tokens": usage.cached_input_tokens,
            "output_tokens": usage.output_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
            "turns_of_unknown_cost": usage.turns_of_unknown_cost,
            "cpu_ms": usage.cpu_ms,
            "wall_ms": usage.wall_ms,
            "cost_micros": usage.cost_micros,
        },
        "error": run.error.as_ref().map(|e| json!({"reason": e.reason, "message": e.message})),
        "agent": run.agent,
        "model": some(&run.model),
        "workspace": run.workspace,
        "task": run.task,
        "head_sequence": run.head_sequence,
        "create_time": run.create_time.map(time),
        "update_time": run.update_time.map(time),
        "prune_time": run.prune_time.map(time),
        "degraded": run.degraded,
        "submitter": run.submitter,
        "forked_from": run.forked_from.as_ref().map(|from| json!({"run_id": from.run_id, "sequence": from.sequence})),
        "labels": run.labels.iter().collect::<std::collections::BTreeMap<_, _>>(),
    })
}

/// A journal entry as one JSON object, with the names of the contract.
pub(crate) fn entry_json(entry: &v1::JournalEntry) -> Value {
    json!({
        "run_id": entry.run_id,
        "sequence": entry.sequence,
        "position": entry.position,
        "time": entry.time.map(time),
        "kind": entry.kind,
        "version": entry.version,
        "payload": serde_json::from_str(&entry.payload).unwrap_or(Value::Null),
        "policy_revision": some(&entry.policy_revision),
        "body_digest": (!entry.body_digest.is_empty()).then(|| hex(&entry.body_digest)),
        "previous_hash": hex(&entry.previous_hash),
        "hash": hex(&entry.hash),
    })
}

pub(crate) fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// RFC 3339 in UTC with microseconds.
pub(crate) fn time(at: prost_types::Timestamp) -> String {
    jiff::Timestamp::new(at.seconds, at.nanos).map(|time| format!("{time:.6}")).unwrap_or_default()
}
