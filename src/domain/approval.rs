//! What people allowed of calls that policy lets nobody but a person allow. Decides nothing: `Policy::decide_with_leave`
//! asks whether it covers a call.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::domain::{
    effect::Facts,
    hex::hex,
    ids::{Caller, PolicyRevision, RuleId, ToolName},
    tool::ToolCall,
};

/// A person allowed one call, exactly as it was shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The rule that asked.
    pub rule: RuleId,
    /// See [`digest`].
    pub digest: String,
}

/// A person allowed whatever this rule asks about of this tool for the rest of the run, while the policy stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunGrant {
    pub rule: RuleId,
    pub tool: ToolName,
    pub revision: PolicyRevision,
    pub by: Caller,
}

/// All that people allowed that may have to do with one call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leave {
    pub approvals: Vec<Approval>,
    pub grants: Vec<RunGrant>,
}

impl Leave {
    /// The rules that need not ask about this call, resolved to these facts, under this revision.
    pub fn rules(&self, call: &ToolCall, facts: &Facts, revision: &PolicyRevision) -> Vec<RuleId> {
        if self.approvals.is_empty() && self.grants.is_empty() {
            return Vec::new();
        }
        let approved = self
            .approvals
            .iter()
            .filter(|given| given.digest == digest(call, facts, (&given.rule, revision)));
        let granted = self
            .grants
            .iter()
            .filter(|grant| grant.tool == call.tool && grant.revision == *revision);
        let rules = approved.map(|given| &given.rule).chain(granted.map(|grant| &grant.rule));
        rules.cloned().collect()
    }
}

/// What an approval is bound to: SHA-256, as 64 hexadecimal digits, over the tool, the arguments as the model wrote
/// them, what they stand for (resolved paths, the executable and its hash, the file before and after an edit), and the
/// rule that asks with its policy, which says how it is carried out.
pub fn digest(
    call: &ToolCall,
    facts: &Facts,
    (rule, revision): (&RuleId, &PolicyRevision),
) -> String {
    let mut hasher = Sha256::new();
    hasher.update(b"agentd/approval/1\n");
    // Facts are strings and numbers, and always have a JSON.
    let facts = serde_json::to_string(facts).unwrap_or_default();
    for part in [call.tool.as_str(), &call.arguments, &facts, rule.as_str(), revision.as_str()] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{CallId, CallKey};

    fn call(arguments: &str) -> ToolCall {
        ToolCall {
            key: CallKey { turn: 1, index: 0 },
            call_id: CallId::new("c"),
            tool: ToolName::new("shell_exec"),
            arguments: arguments.into(),
        }
    }

    fn spawn(executable: &str, sha256: &str) -> Facts {
        let argv = vec!["git".to_owned(), "push".to_owned()];
        Facts::Spawn { argv, executable: executable.into(), sha256: sha256.into() }
    }

    #[test]
    fn an_approval_covers_the_very_call_and_nothing_that_differs_anywhere() {
        let (asked, facts) = (call("{}"), spawn("/bin/git", "00"));
        let (rule, revision) = (RuleId::new("push"), PolicyRevision::new("sha256:1"));
        let digest = digest(&asked, &facts, (&rule, &revision));
        let approval = Approval { rule, digest: digest.clone() };
        let leave = Leave { approvals: vec![approval], grants: Vec::new() };
        let other = Approval { rule: RuleId::new("other"), digest };
        let other = Leave { approvals: vec![other], grants: Vec::new() };
        assert!(other.rules(&asked, &facts, &revision).is_empty(), "another rule's question");
        let reloaded = PolicyRevision::new("sha256:2");
        assert!(leave.rules(&asked, &facts, &reloaded).is_empty(), "another policy");
        assert_eq!(leave.rules(&asked, &facts, &revision), [RuleId::new("push")]);
        for (call, facts) in [
            (call("{} "), facts.clone()),
            (asked.clone(), spawn("/tmp/git", "00")),
            (asked.clone(), spawn("/bin/git", "01")),
            (ToolCall { tool: ToolName::new("other"), ..asked.clone() }, facts.clone()),
        ] {
            assert!(leave.rules(&call, &facts, &revision).is_empty(), "{call:?} {facts:?}");
        }
    }

    #[test]
    fn a_grant_for_the_run_covers_the_rule_s_calls_until_the_policy_changes() {
        let grant = RunGrant {
            rule: RuleId::new("push"),
            tool: ToolName::new("shell_exec"),
            revision: PolicyRevision::new("sha256:1"),
            by: Caller::new("caller:ann"),
        };
        let leave = Leave { approvals: Vec::new(), grants: vec![grant] };
        let rules = |call: &ToolCall, revision: &str| {
            leave.rules(call, &spawn("/bin/git", "00"), &PolicyRevision::new(revision))
        };
        assert_eq!(rules(&call("{}"), "sha256:1"), [RuleId::new("push")]);
        assert_eq!(rules(&call("[]"), "sha256:1"), [RuleId::new("push")]);
        assert!(rules(&call("{}"), "sha256:2").is_empty());
        let other = ToolCall { tool: ToolName::new("other"), ..call("{}") };
        assert!(rules(&other, "sha256:1").is_empty());
    }
}
