//! What planners and reviewers say, once it has been checked: a plan, and a verdict. How they are asked for it: `agents`.

use serde::{Deserialize, Serialize};

/// Most steps of a plan, and most findings of a verdict.
pub const MOST: usize = 40;
/// How often the plan of a run may be revised.
pub const REVISIONS: usize = 10;
/// Longest text of a step, a finding or a reason, in characters; what is longer is cut.
const TEXT_CHARS: usize = 2000;

/// How the work is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In their order; at least one.
    pub steps: Vec<Step>,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is to be achieved.
    pub intent: String,
    /// Tools that it will take, as the planner thinks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// How one sees that it was done.
    pub check: String,
}

/// What a reviewer thinks of the work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    Accept {
        reason: String,
    },
    /// The work goes back.
    Revise {
        /// What is to be mended; at least one.
        findings: Vec<String>,
    },
    /// The run ends.
    Veto {
        reason: String,
        /// The rule of the policy that was offended against, where it is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<String>,
    },
}

/// A verdict as models write it, whatever else they add.
#[derive(Deserialize)]
struct Written {
    verdict: String,
    #[serde(default)]
    findings: Vec<String>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    rule: Option<String>,
}

impl Plan {
    /// The plan in a model's answer.
    ///
    /// Errors: in words that the model can do something with.
    pub fn read(answer: &str) -> Result<Self, String> {
        let mut plan: Self =
            serde_json::from_str(object(answer)?).map_err(|error| error.to_string())?;
        if plan.steps.is_empty() || plan.steps.len() > MOST {
            return Err(format!("a plan has 1 to {MOST} steps, this one has {}", plan.steps.len()));
        }
        for step in &mut plan.steps {
            if step.intent.trim().is_empty() || step.check.trim().is_empty() {
                return Err("each step wants an intent and a check, in words".into());
            }
            step.tools.truncate(MOST);
            step.tools.iter_mut().chain([&mut step.intent, &mut step.check]).for_each(cut);
        }
        Ok(plan)
    }
}

impl Verdict {
    /// The verdict in a model's answer.
    ///
    /// Errors: in words that the model can do something with.
    pub fn read(answer: &str) -> Result<Self, String> {
        let said: Written =
            serde_json::from_str(object(answer)?).map_err(|error| error.to_string())?;
        let Written { verdict, mut findings, mut reason, mut rule } = said;
        findings.retain(|finding| !finding.trim().is_empty());
        findings.truncate(MOST);
        findings.iter_mut().chain([&mut reason]).chain(&mut rule).for_each(cut);
        match verdict.as_str() {
            "accept" => Ok(Self::Accept { reason }),
            "revise" if findings.is_empty() => {
                Err("the verdict revise wants at least one finding".into())
            }
            "revise" => Ok(Self::Revise { findings }),
            "veto" if reason.trim().is_empty() => Err("the verdict veto wants a reason".into()),
            "veto" => Ok(Self::Veto { reason, rule: rule.filter(|rule| !rule.is_empty()) }),
            other => {
                let other: String = other.chars().take(40).collect();
                Err(format!("there is no verdict {other:?}; there are accept, revise and veto"))
            }
        }
    }
}

/// What came of a step, as it is kept beside the answer that it is in.
pub fn result(answer: &str) -> String {
    let mut result = answer.to_owned();
    cut(&mut result);
    result
}

/// The JSON object of an answer: models like to put it between words, or into a fence.
fn object(answer: &str) -> Result<&str, String> {
    let (start, end) = (answer.find('{'), answer.rfind('}'));
    match (start, end) {
        (Some(start), Some(end)) if start < end => Ok(&answer[start..=end]),
        _ => Err("there is no JSON object in it".into()),
    }
}

fn cut(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(TEXT_CHARS) {
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_from_between_words_and_fences() {
        let answer = "Here it is:\n```json\n{\"steps\": [{\"intent\": \"mend add\", \"tools\": [\"edit_file\"], \
                      \"check\": \"the test passes\", \"mood\": 3}], \"more\": true}\n```\nGood luck.";
        let step = Step {
            intent: "mend add".into(),
            tools: vec!["edit_file".into()],
            check: "the test passes".into(),
        };
        assert_eq!(Plan::read(answer), Ok(Plan { steps: vec![step] }));
    }

    #[test]
    fn what_is_no_plan_is_refused_in_words() {
        for (answer, words) in [
            ("I would rather not.", "no JSON object"),
            ("} {", "no JSON object"),
            ("{\"steps\": []}", "1 to 40 steps"),
            ("{\"steps\": [{\"intent\": \" \", \"check\": \"x\"}]}", "an intent and a check"),
            ("{\"steps\": [{\"intent\": \"x\"}]}", "missing field `check`"),
            ("{\"steps\": 3}", "expected a sequence"),
        ] {
            let refused = Plan::read(answer).unwrap_err();
            assert!(refused.contains(words), "{answer}: {refused}");
        }
    }

    #[test]
    fn a_verdict_wants_what_it_is_made_of() {
        let read = |text: &str| Verdict::read(text);
        assert_eq!(
            read(r#"{"verdict": "accept", "findings": [], "reason": "it fits", "rule": null}"#),
            Ok(Verdict::Accept { reason: "it fits".into() })
        );
        assert_eq!(
            read(r#"{"verdict": "revise", "findings": ["no test", " "]}"#),
            Ok(Verdict::Revise { findings: vec!["no test".into()] })
        );
        assert_eq!(
            read(r#"{"verdict": "veto", "reason": "it took a secret", "rule": ""}"#),
            Ok(Verdict::Veto { reason: "it took a secret".into(), rule: None })
        );
        for (text, words) in [
            (r#"{"verdict": "revise"}"#, "at least one finding"),
            (r#"{"verdict": "veto"}"#, "wants a reason"),
            (r#"{"verdict": "Accept"}"#, "there is no verdict \"Accept\""),
            (r#"{"reason": "fine"}"#, "missing field `verdict`"),
        ] {
            assert!(read(text).unwrap_err().contains(words), "{text}");
        }
    }

    #[test]
    fn long_words_are_cut_at_a_character() {
        let long = "ä".repeat(3000);
        let read = Verdict::read(&format!(r#"{{"verdict": "veto", "reason": "{long}"}}"#)).unwrap();
        let Verdict::Veto { reason, .. } = read else { panic!("{read:?}") };
        assert_eq!(reason.chars().count(), TEXT_CHARS + 1);
    }
}
