//! A run as it happens, for people: one entry, one line or a few.

use std::io::{self, Write};

use serde_json::Value;

use crate::{
    ctl::output::{Colour, Paint},
    proto::v1,
};

/// Lines of a program's output that are shown, and the longest line.
const OUTPUT_LINES: usize = 6;
const LINE_CHARS: usize = 110;

/// Renders entries and words as they come.
pub(super) struct Timeline<W> {
    out: W,
    colour: Colour,
    /// Microseconds of the first entry.
    start: Option<i128>,
    /// Words of the turn under way that are on the screen already.
    live: Live,
    /// Calls of the turn under way, each with what it is about.
    calls: Vec<(String, String)>,
    output_is_shown: OutputShown,
}

/// Whether the output of the call under way is on the screen already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OutputShown {
    Yes,
    No,
}

/// Whether words are shown while they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    AsTheyCome,
    WhenDone,
}

enum Live {
    /// Words wait for their entry.
    Off,
    /// Nothing of this turn has been shown.
    Idle,
    /// The cursor stands in the middle of the words of this turn.
    Midway,
}

impl<W: Write> Timeline<W> {
    pub(super) fn new(out: W, colour: Colour, words: Words) -> Self {
        let live = match words {
            Words::AsTheyCome => Live::Idle,
            Words::WhenDone => Live::Off,
        };
        Self { out, colour, start: None, live, calls: Vec::new(), output_is_shown: OutputShown::No }
    }

    /// A line that is no entry.
    pub(super) fn note(&mut self, text: &str) -> io::Result<()> {
        self.end_words()?;
        writeln!(self.out, "{text}")
    }

    /// Some words of the model.
    pub(super) fn words(&mut self, text: &str) -> io::Result<()> {
        match self.live {
            Live::Off => return Ok(()),
            Live::Idle => write!(self.out, "         ")?,
            Live::Midway => {}
        }
        self.live = Live::Midway;
        write!(self.out, "{}", printable(text).replace('\n', "\n         "))?;
        self.out.flush()
    }

    /// Something that a program wrote, while it runs.
    pub(super) fn program_words(&mut self, text: &str) -> io::Result<()> {
        if !matches!(self.live, Live::Off) {
            self.output_is_shown = OutputShown::Yes;
        }
        self.words(text)
    }

    /// One journal entry.
    pub(super) fn entry(&mut self, entry: &v1::JournalEntry) -> io::Result<()> {
        let payload: Value = serde_json::from_str(&entry.payload).unwrap_or(Value::Null);
        // Whatever stands there may be the model's words.
        let text = |key: &str| printable(payload[key].as_str().unwrap_or_default());
        match entry.kind.as_str() {
            "run_created" => {
                let id = self.colour.paint(Paint::Strong, &entry.run_id);
                self.line(entry, &format!("run {id} in {}", text("workspace")))?;
                self.quote(&text("task"))
            }
            "model_response" => {
                self.calls.clear();
                self.response(&payload)
            }
            "tool_call" => {
                let tool = self.colour.paint(Paint::Name, &text("tool"));
                let what = what(&payload);
                self.line(entry, &format!("→ {tool} {what}"))?;
                self.calls.push((text("call"), what));
                Ok(())
            }
            "call_resolved" => {
                let (call, how) = (text("call"), text("resolution").replace('_', " "));
                self.line(entry, &format!("call {call} {how}, says {}", text("by")))
            }
            "tool_resumed" => {
                let attempt = &payload["attempt"];
                let again = self.colour.paint(Paint::Warning, "again");
                self.line(entry, &format!("→ call {} {again}, attempt {attempt}", text("call")))
            }
            // What is missing is no refusal; its output says it.
            "decision" if text("decision") == "deny" && text("rule") != "builtin/missing" => {
                let refused = self.colour.paint(Paint::Warning, "✗ refused");
                self.line(entry, &format!("{refused} by rule {}: {}", text("rule"), text("why")))
            }
            "connection" => {
                let what = format!("{} {}:{}", text("method"), text("host"), payload["port"]);
                match text("decision").as_str() {
                    "allow" => self.line(entry, &format!("⇄ {what} by rule {}", text("rule"))),
                    _ => {
                        let refused = self.colour.paint(Paint::Warning, "✗ refused");
                        let by = format!("by rule {}: {}", text("rule"), text("why"));
                        self.line(entry, &format!("{refused} {what} {by}"))
                    }
                }
            }
            "tool_output" => self.output(entry, &payload),
            "backend_error" => {
                let failed = self.colour.paint(Paint::Warning, "! backend");
                let next = if payload["retry_at"].is_null() { "" } else { "; asking again" };
                self.line(entry, &format!("{failed} {}{next}", text("message")))
            }
            "context_trimmed" => {
                let outputs = &payload["outputs"];
                self.line(entry, &format!("… {outputs} older outputs are left out, to save room"))
            }
            "context_compacted" => {
                self.line(entry, &format!("… the conversation was compacted, by {}", text("by")))
            }
            "backend_awaited" => {
                let waits = self.colour.paint(Paint::Warning, "‖ waits for the backend");
                self.line(entry, &format!("{waits} {}: {}", text("backend"), text("why")))
            }
            "run_degraded" => {
                let only = self.colour.paint(Paint::Warning, "! READ-ONLY, WITHOUT TOOLS");
                self.line(entry, &format!("{only}: backend {}: {}", text("backend"), text("why")))
            }
            "run_recovered" => {
                let back = self.colour.paint(Paint::Warning, "↻ taken over");
                self.line(entry, &format!("{back} by a new daemon"))
            }
            "cancel_requested" => self.line(entry, &format!("cancel requested by {}", text("by"))),
            "run_suspended" => {
                let stands = self.colour.paint(Paint::Warning, "‖ suspended");
                self.line(entry, &format!("{stands} {}: {}", text("reason"), text("message")))
            }
            "run_finished" => self.finished(entry, &payload),
            _ => self.agents(entry, &payload),
        }
    }

    /// Which agent speaks, and what it has come to.
    fn agents(&mut self, entry: &v1::JournalEntry, payload: &Value) -> io::Result<()> {
        let text = |value: &Value| printable(value.as_str().unwrap_or_default());
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        match entry.kind.as_str() {
            "agent_began" => {
                let begins = match (payload["agent"]["name"].as_str(), payload["call"].is_null()) {
                    (None, _) => format!("» the {} begins", text(&payload["seat"])),
                    (Some(name), true) => format!("» the agent {} goes on", printable(name)),
                    (Some(name), false) => format!("» the agent {} is asked", printable(name)),
                };
                self.line(entry, &begins)
            }
            "step_finished" => {
                let result = text(&payload["result"]);
                let first = result.lines().next().unwrap_or_default();
                self.line(entry, &format!("step {} is done: {first}", payload["step"]))
            }
            "plan_revised" => {
                let why = text(&payload["why"]);
                self.line(entry, &format!("the plan is revised: {why}"))?;
                let from = payload["from_step"].as_u64().unwrap_or(1);
                for (number, step) in (from..).zip(list(&payload["steps"])) {
                    self.quote(&format!("{number}. {}", text(&step["intent"])))?;
                }
                Ok(())
            }
            "workspace_restored" => {
                let line = match payload["why"].as_str() {
                    None => "the workspace is again as it was before the run".to_owned(),
                    Some(why) => format!("the workspace is as the run left it: {}", printable(why)),
                };
                self.line(entry, &self.colour.paint(Paint::Warning, &line))
            }
            "repository_told" => {
                let offered = |file: &&Value| file["left_out"].is_null();
                let files = list(&payload["files"]);
                let names: Vec<String> =
                    files.iter().filter(offered).map(|file| text(&file["path"])).collect();
                let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
                self.line(entry, &format!("» is told of the repository: {names}"))
            }
            "plan_made" => {
                self.line(entry, "the plan")?;
                for (number, step) in (1..).zip(list(&payload["plan"]["steps"])) {
                    self.quote(&format!("{number}. {}", text(&step["intent"])))?;
                }
                Ok(())
            }
            "output_refused" => {
                let refused =
                    self.colour.paint(Paint::Warning, "! not the shape that was asked for");
                self.line(entry, &format!("{refused}: {}", text(&payload["why"])))
            }
            "guardrails_checked" => {
                for found in list(&payload["violations"]) {
                    let (path, what) = (text(&found["path"]), text(&found["what"]));
                    let line = format!("! {}: {path} {what}", text(&found["consequence"]));
                    self.line(entry, &self.colour.paint(Paint::Warning, &line))?;
                }
                Ok(())
            }
            "review_verdict" => {
                let verdict = text(&payload["verdict"]);
                let paint = if verdict == "accept" { Paint::Good } else { Paint::Warning };
                let verdict = self.colour.paint(paint, &format!("verdict: {verdict}"));
                let said = format!("{verdict} {}", text(&payload["reason"]));
                self.line(entry, said.trim_end())?;
                for finding in list(&payload["findings"]) {
                    self.quote(&format!("- {}", text(&finding)))?;
                }
                Ok(())
            }
            _ => self.people(entry, payload),
        }
    }

    /// What people are asked, and what they say.
    fn people(&mut self, entry: &v1::JournalEntry, payload: &Value) -> io::Result<()> {
        let text = |key: &str| printable(payload[key].as_str().unwrap_or_default());
        match entry.kind.as_str() {
            "approval_requested" => {
                let asks = self.colour.paint(Paint::Warning, "? asks");
                let call = text("call");
                self.line(
                    entry,
                    &format!(
                        "{asks} for leave for call {call} by rule {}: {}",
                        text("rule"),
                        text("why")
                    ),
                )
            }
            "approval_decided" => {
                let paint = match payload["decision"].as_str() {
                    Some("approved") => Paint::Good,
                    _ => Paint::Warning,
                };
                let said = self.colour.paint(paint, &text("decision"));
                let always = if payload["grant"].is_null() {
                    ""
                } else {
                    ", and what its rule asks about in this run"
                };
                self.line(entry, &format!("{said} call {} by {}{always}", text("call"), text("by")))
            }
            "input_received" => {
                self.line(entry, &format!("« {} says", text("by")))?;
                self.quote(&text("text"))
            }
            "budget_warning" => {
                let most = self.colour.paint(Paint::Warning, "! budget");
                let (used, of) = (&payload["used"], &payload["of"]);
                self.line(entry, &format!("{most} {used} of {of} {} are used up", text("limit")))
            }
            "pause_requested" => self.line(entry, &format!("pause requested by {}", text("by"))),
            "run_resumed" => {
                let on = self.colour.paint(Paint::Good, "▸ resumed");
                self.line(entry, &format!("{on} by {}", text("by")))
            }
            _ => Ok(()),
        }
    }

    fn finished(&mut self, entry: &v1::JournalEntry, payload: &Value) -> io::Result<()> {
        let state = payload["state"].as_str().unwrap_or_default();
        let paint = if state == "SUCCEEDED" { Paint::Good } else { Paint::Bad };
        let state = self.colour.paint(paint, &format!("● {state}"));
        match payload["message"].as_str() {
            Some(message) => self.line(entry, &format!("{state} {}", printable(message))),
            None => self.line(entry, &state),
        }
    }

    fn response(&mut self, payload: &Value) -> io::Result<()> {
        let shown = matches!(self.live, Live::Midway);
        self.end_words()?;
        match payload["text"].as_str() {
            Some(text) if !shown => self.quote(text),
            _ => Ok(()),
        }
    }

    fn output(&mut self, entry: &v1::JournalEntry, payload: &Value) -> io::Result<()> {
        let output: Value = payload["output"]
            .as_str()
            .and_then(|output| serde_json::from_str(output).ok())
            .unwrap_or(Value::Null);
        match payload["outcome"].as_str() {
            // The decision has said it.
            Some("refused") => Ok(()),
            Some("done") => {
                let (paint, summary) = summary(&output);
                let millis = payload["duration_ms"].as_u64().unwrap_or(0);
                let took = self.colour.paint(Paint::Faint, &format!("({millis} ms)"));
                let summary = self.colour.paint(paint, &summary);
                let whose = self.whose(payload);
                self.line(entry, &format!("{summary}{whose} {took}"))?;
                match std::mem::replace(&mut self.output_is_shown, OutputShown::No) {
                    OutputShown::Yes => Ok(()),
                    OutputShown::No => self.program_output(&output),
                }
            }
            _ => {
                let message = output["error"]["message"].as_str().unwrap_or("failed");
                let failed = self.colour.paint(Paint::Bad, "✗");
                self.line(entry, &format!("{failed} {}", printable(message)))
            }
        }
    }

    /// Which call an output belongs to, where there are several to choose from.
    fn whose(&self, payload: &Value) -> String {
        let call = self.calls.iter().find(|(call, _)| payload["call"] == call.as_str());
        match call {
            Some((_, what)) if self.calls.len() > 1 => format!(" {what}"),
            Some(_) | None => String::new(),
        }
    }

    fn program_output(&mut self, output: &Value) -> io::Result<()> {
        let streams = ["stdout", "stderr"].map(|name| output[name].as_str().unwrap_or_default());
        let lines: Vec<&str> = streams.iter().flat_map(|text| text.lines()).collect();
        let hidden = lines.len().saturating_sub(OUTPUT_LINES);
        for line in lines.iter().skip(hidden) {
            let line = clip(&printable(line), LINE_CHARS);
            writeln!(
                self.out,
                "           {}",
                self.colour.paint(Paint::Faint, &format!("│ {line}"))
            )?;
        }
        Ok(())
    }

    fn quote(&mut self, text: &str) -> io::Result<()> {
        for line in text.trim_end().lines() {
            writeln!(self.out, "         {}", printable(line))?;
        }
        Ok(())
    }

    fn line(&mut self, entry: &v1::JournalEntry, text: &str) -> io::Result<()> {
        self.end_words()?;
        let at = entry
            .time
            .map_or(0, |t| i128::from(t.seconds) * 1_000_000 + i128::from(t.nanos) / 1000);
        let since = (at - *self.start.get_or_insert(at)).max(0);
        let (seconds, hundredths) = (since / 1_000_000, since / 10_000 % 100);
        let time = self.colour.paint(Paint::Faint, &format!("{seconds:>4}.{hundredths:02}s"));
        writeln!(self.out, "{time}  {text}")
    }

    fn end_words(&mut self) -> io::Result<()> {
        if matches!(self.live, Live::Midway) {
            self.live = Live::Idle;
            writeln!(self.out)?;
        }
        Ok(())
    }
}

/// What a call is about, in a few words.
fn what(payload: &Value) -> String {
    let facts = &payload["facts"];
    if let Some(argv) = facts["argv"].as_array() {
        let words: Vec<&str> = argv.iter().filter_map(Value::as_str).collect();
        return clip(&printable(&words.join(" ")), LINE_CHARS);
    }
    if let Some(path) = facts["path"].as_str() {
        return printable(path);
    }
    clip(&printable(payload["arguments"].as_str().unwrap_or_default()), LINE_CHARS)
}

fn summary(output: &Value) -> (Paint, String) {
    if let Some(code) = output["exit_code"].as_i64() {
        let paint = if code == 0 { Paint::Good } else { Paint::Bad };
        return (paint, format!("{} exit {code}", if code == 0 { "✓" } else { "✗" }));
    }
    if let Some(limit) = output["limit"].as_str() {
        return (Paint::Bad, format!("✗ limit {limit}"));
    }
    if let Some(signal) = output["signal"].as_i64() {
        return (Paint::Bad, format!("✗ signal {signal}"));
    }
    let bytes = output["bytes"].as_u64().unwrap_or(0);
    let verb = if output["created"].is_boolean() { "written" } else { "read" };
    (Paint::Good, format!("✓ {bytes} bytes {verb}"))
}

/// Text from a model or a program must not steer the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if steers(c) && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Whether a character changes how others are shown, or is not seen itself.
pub(super) fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

pub(super) fn clip(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
    }

    #[test]
    fn a_refused_call_is_one_line_with_its_rule() {
        let mut out = Vec::new();
        let mut timeline = Timeline::new(&mut out, Colour::Off, Words::WhenDone);
        let entry = |kind: &str, payload: &str| v1::JournalEntry {
            kind: kind.into(),
            payload: payload.into(),
            ..Default::default()
        };
        let call = r#"{"call":"1.0","tool":"read_file","arguments":"{}","facts":{"path":".env"}}"#;
        timeline.entry(&entry("tool_call", call)).unwrap();
        let decision = r#"{"call":"1.0","decision":"deny","rule":"secrets.env","why":"no"}"#;
        timeline.entry(&entry("decision", decision)).unwrap();
        timeline.entry(&entry("tool_output", r#"{"outcome":"refused","output":"{}"}"#)).unwrap();
        let hostile = r#"{"call":"1.1","tool":"a\u001b[2J","arguments":"{}"}"#;
        timeline.entry(&entry("tool_call", hostile)).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "   0.00s  → read_file .env\n   0.00s  ✗ refused by rule secrets.env: no\n   \
             0.00s  → a\u{fffd}[2J {}\n"
        );
    }
}
