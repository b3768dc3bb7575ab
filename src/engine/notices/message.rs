//! What a webhook is told of a question: what ListPendingApprovals gives, under the same names, as JSON. Redacted once
//! more, since secrets may have become known after the question was stored.

use serde::Serialize;

use crate::{
    domain::{ids::Timestamp, redact::Redactor},
    ports::{Notice, PendingApproval},
};

/// Longest arguments and facts, in characters, as in lists.
const SHOWN_CHARS: usize = 8000;
/// Longest other text, in characters.
const TEXT_CHARS: usize = 2000;

#[derive(Serialize)]
struct Event {
    #[serde(rename = "type")]
    kind: &'static str,
    /// When the question was asked.
    timestamp: String,
    data: Question,
}

#[derive(Serialize)]
struct Question {
    run_id: String,
    /// Turn and index in one, as agentctl takes it.
    call: String,
    turn: u32,
    index: u32,
    call_id: String,
    tool: String,
    arguments: String,
    facts: String,
    effect_class: &'static str,
    attempt: u32,
    rule: String,
    why: String,
    policy_revision: String,
    digest: String,
    submitter: String,
    task: String,
    workspace: String,
    create_time: String,
    expire_time: String,
    is_truncated: bool,
    is_redacted: bool,
}

/// What is posted at `now`. Id and body are the same at every attempt; the body is at most some 200 KiB.
pub(super) fn notice(pending: &PendingApproval, now: Timestamp, redactor: &Redactor) -> Notice {
    let PendingApproval { run, position, time, asked, .. } = pending;
    let mut shown = Shown { redactor, is_truncated: false, is_redacted: pending.is_redacted };
    let data = Question {
        run_id: run.to_string(),
        call: asked.call.to_string(),
        turn: asked.call.turn,
        index: asked.call.index,
        call_id: shown.text(asked.call_id.as_str(), TEXT_CHARS),
        tool: shown.text(asked.tool.as_str(), TEXT_CHARS),
        arguments: shown.text(&asked.arguments, SHOWN_CHARS),
        facts: shown.text(asked.facts.get(), SHOWN_CHARS),
        effect_class: asked.effect_class.as_str(),
        attempt: asked.attempt,
        rule: shown.text(asked.rule.as_str(), TEXT_CHARS),
        why: shown.text(&asked.why, TEXT_CHARS),
        policy_revision: asked.revision.to_string(),
        digest: asked.digest.clone(),
        submitter: shown.text(pending.submitter.as_str(), TEXT_CHARS),
        task: shown.text(&pending.task, TEXT_CHARS),
        workspace: shown.text(&pending.workspace, TEXT_CHARS),
        create_time: rfc_3339(*time),
        expire_time: rfc_3339(asked.expires),
        is_truncated: shown.is_truncated,
        is_redacted: shown.is_redacted,
    };
    let event = Event { kind: "approval.requested", timestamp: rfc_3339(*time), data };
    Notice {
        // A store that was restored gives places anew: the time tells such questions apart.
        id: format!("{run}-{position}-{}", time.0),
        time: now,
        body: serde_json::json!(event).to_string(),
    }
}

/// Texts on their way out, and what had to be taken from them.
struct Shown<'a> {
    redactor: &'a Redactor,
    is_truncated: bool,
    is_redacted: bool,
}

impl Shown<'_> {
    /// Redacted before it is cut: half a secret would not be known any more.
    fn text(&mut self, text: &str, most: usize) -> String {
        let clean = self.redactor.redact(text);
        let kept: String = clean.chars().take(most).collect();
        self.is_redacted |= clean != text;
        self.is_truncated |= kept.len() < clean.len();
        kept
    }
}

fn rfc_3339(at: Timestamp) -> String {
    jiff::Timestamp::from_microsecond(at.0).map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;
    use crate::{
        domain::{
            ids::{CallId, CallKey, Caller, PolicyRevision, Position, RuleId, ToolName},
            journal::ApprovalRequested,
            tool::EffectClass,
        },
        ports::PendingApproval,
    };

    fn pending() -> PendingApproval {
        let facts = to_raw_value(&json!({"argv": ["sh", "deploy.sh"]})).unwrap();
        PendingApproval {
            run: "0199b3c4-5d6e-7f80-8a9b-0c1d2e3f4a5b".parse().unwrap(),
            position: Position(7),
            time: Timestamp(1_500_000),
            submitter: Caller::new("uid:1000"),
            task: "publish it".into(),
            workspace: "/home/a/src".into(),
            is_redacted: false,
            asked: ApprovalRequested {
                call: CallKey { turn: 3, index: 0 },
                call_id: CallId::new("call_1"),
                tool: ToolName::new("shell_exec"),
                arguments: r#"{"command":"sh deploy.sh"}"#.into(),
                facts: facts.into(),
                effect_class: EffectClass::NonIdempotent,
                attempt: 1,
                rule: RuleId::new("deploy"),
                why: "it publishes".into(),
                revision: PolicyRevision::new("sha256:00"),
                digest: "ab".repeat(32),
                expires: Timestamp(86_401_500_000),
            },
        }
    }

    #[test]
    fn a_notice_says_what_a_person_needs_and_only_its_time_is_another_at_each_attempt() {
        let told = notice(&pending(), Timestamp(9), &Redactor::default());
        assert_eq!(told.id, "0199b3c4-5d6e-7f80-8a9b-0c1d2e3f4a5b-7-1500000");
        let body: Value = serde_json::from_str(&told.body).unwrap();
        let data = json!({
            "run_id": "0199b3c4-5d6e-7f80-8a9b-0c1d2e3f4a5b", "call": "3.0", "turn": 3, "index": 0,
            "call_id": "call_1", "tool": "shell_exec", "arguments": r#"{"command":"sh deploy.sh"}"#,
            "facts": r#"{"argv":["sh","deploy.sh"]}"#, "effect_class": "non-idempotent",
            "attempt": 1, "rule": "deploy", "why": "it publishes", "policy_revision": "sha256:00",
            "digest": "ab".repeat(32), "submitter": "uid:1000", "task": "publish it",
            "workspace": "/home/a/src", "create_time": "1970-01-01T00:00:01.5Z",
            "expire_time": "1970-01-02T00:00:01.5Z", "is_truncated": false, "is_redacted": false,
        });
        let whole = json!({
            "type": "approval.requested", "timestamp": "1970-01-01T00:00:01.5Z", "data": data
        });
        assert_eq!(body, whole);
        let later = notice(&pending(), Timestamp(10), &Redactor::default());
        assert_eq!(later, Notice { time: Timestamp(10), ..told });
    }

    #[test]
    fn a_secret_that_became_known_later_is_not_told_also_where_the_text_is_cut_within_it() {
        let redactor = Redactor::new(["hunter2-hunter2".to_owned()]);
        let arguments = format!("{}hunter2-hunter2", "x".repeat(SHOWN_CHARS - 4));
        let mut pending = pending();
        pending.asked.arguments = arguments.into();
        let told = notice(&pending, Timestamp(9), &redactor);
        let body: Value = serde_json::from_str(&told.body).unwrap();
        assert!(!told.body.contains("hunter"), "{}", told.body);
        let marks = (&body["data"]["is_truncated"], &body["data"]["is_redacted"]);
        assert_eq!(marks, (&json!(true), &json!(true)));
    }

    #[test]
    fn a_notice_is_bounded_whatever_it_is_about() {
        let large = "\u{1}".repeat(1 << 20);
        let mut pending = pending();
        (pending.task, pending.workspace, pending.asked.why) =
            (large.clone(), large.clone(), large.clone());
        pending.asked.arguments = large.clone().into();
        pending.asked.facts = to_raw_value(&large).unwrap().into();
        let told = notice(&pending, Timestamp(9), &Redactor::default());
        assert!(told.body.len() < 200 << 10, "{}", told.body.len());
    }
}
