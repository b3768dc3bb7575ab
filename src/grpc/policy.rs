//! `PolicyService`.

use std::collections::HashMap;

use tonic::{Request, Response, Status};

use crate::{
    agents::executor,
    domain::{
        ids::{Caller, PolicyRevision, RoleName, Sequence, ToolName},
        journal::{HostedDecided, Verdict},
        policy::{
            Candidate, CommandRule, Compiled, Explanation, FileOperation, Gate, HostedOutlook,
            HostedRule, Limits, NetworkRule, PathRule, Policy, PolicyTest,
        },
        redact::Redactor,
    },
    engine::{Engine, PolicyRead, ReadBecause, Reload, SIGHUP, Standing},
    grpc::{
        caller, convert,
        page::{self, List},
    },
    proto::v1::{self, policy_service_server::PolicyService},
};

/// Revisions of a page whose size the caller does not say.
const PAGE: usize = 50;
/// Faults that a test of the files tells, and characters of each.
const FAULTS: usize = 100;
const FAULT_CHARS: usize = 400;
/// Characters of each text of a test: 500 tests stay within what clients accept.
const TEST_CHARS: usize = 200;

#[derive(Debug)]
pub(super) struct Policies {
    engine: Engine,
}

impl Policies {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl PolicyService for Policies {
    async fn get_policy(
        &self,
        _request: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::GetPolicyResponse>, Status> {
        let policy = Some(shown(&self.engine.world().policies.standing()));
        Ok(Response::new(v1::GetPolicyResponse { policy }))
    }

    async fn validate_policy(
        &self,
        _request: Request<v1::ValidatePolicyRequest>,
    ) -> Result<Response<v1::ValidatePolicyResponse>, Status> {
        let policies = &self.engine.world().policies;
        let current_revision = policies.current().revision.to_string();
        let (revision, faults) = match policies.compiled().await {
            Ok(policy) => (policy.revision.to_string(), Vec::new()),
            Err(faults) => (String::new(), faults),
        };
        Ok(Response::new(v1::ValidatePolicyResponse { faults, revision, current_revision }))
    }

    async fn test_policy(
        &self,
        _request: Request<v1::TestPolicyRequest>,
    ) -> Result<Response<v1::TestPolicyResponse>, Status> {
        let world = self.engine.world();
        let current = world.policies.current();
        let compiled = world.policies.tested().await;
        Ok(Response::new(tested(&compiled, &current.revision, &world.redactor)))
    }

    async fn explain_decision(
        &self,
        request: Request<v1::ExplainDecisionRequest>,
    ) -> Result<Response<v1::ExplainDecisionResponse>, Status> {
        let v1::ExplainDecisionRequest { role, tool, arguments } = request.into_inner();
        if tool.is_empty() {
            let message = "is empty; ListTools tells the names".into();
            return Err(convert::invalid("tool", message));
        }
        let role = if role.is_empty() { executor::role() } else { RoleName::new(role) };
        let world = self.engine.world();
        let policy = world.policies.current();
        let tool = ToolName::new(tool);
        let Some(entry) = world.tools.find(&tool) else {
            return Err(convert::unknown_tool(tool.as_str()));
        };
        let revision = policy.revision.to_string();
        Ok(Response::new(match entry.effect(&arguments) {
            Ok(effect) => {
                let found = explained(&policy.explain(&role, &tool, &effect), revision);
                masked(found, &world.redactor)
            }
            // What is no call of this tool is refused before any rule is asked.
            Err(bad) => v1::ExplainDecisionResponse {
                decision: decision(Verdict::Deny),
                rule: bad.rule.to_string(),
                why: world.redactor.redact(&bad.message).into_owned(),
                revision,
                ..Default::default()
            },
        }))
    }

    async fn reload_policy(
        &self,
        request: Request<v1::ReloadPolicyRequest>,
    ) -> Result<Response<v1::ReloadPolicyResponse>, Status> {
        let by = caller::of(&request)?.caller;
        let expected = request.into_inner().expected_revision;
        let expected = (!expected.is_empty()).then(|| PolicyRevision::new(expected));
        let done = self.engine.reload_policy(by, expected).await.map_err(convert::status)?;
        let (revision, previous) = match done {
            Reload::Unchanged { revision } => (revision.clone(), revision),
            Reload::Applied { before, revision } => (revision, before),
        };
        let (revision, previous_revision) = (revision.to_string(), previous.to_string());
        Ok(Response::new(v1::ReloadPolicyResponse { revision, previous_revision }))
    }

    async fn list_policy_revisions(
        &self,
        request: Request<v1::ListPolicyRevisionsRequest>,
    ) -> Result<Response<v1::ListPolicyRevisionsResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size, PAGE)?;
        let list = List::new("ListPolicyRevisions", []);
        let before = list.number(&request.page_token)?.map(Sequence);
        let found = self.engine.policy_revisions(before, size + 1).await;
        let found = found.map_err(convert::status)?;
        let last = found.get(size - 1).filter(|_| found.len() > size);
        let next_page_token =
            last.map(|read| list.token(&read.sequence.to_string())).unwrap_or_default();
        let current = self.engine.world().policies.standing().entry;
        let revisions = found.into_iter().take(size).map(|read| revision(read, current)).collect();
        Ok(Response::new(v1::ListPolicyRevisionsResponse { revisions, next_page_token }))
    }
}

/// Without secrets: whoever asks about a call may have copied it from somewhere, and shows the answer around.
fn masked(
    mut found: v1::ExplainDecisionResponse,
    redactor: &Redactor,
) -> v1::ExplainDecisionResponse {
    let mask = |text: &mut String| *text = redactor.redact(text).into_owned();
    mask(&mut found.why);
    mask(&mut found.normalised);
    found.argv.iter_mut().for_each(mask);
    found.candidates.iter_mut().for_each(|candidate| mask(&mut candidate.mismatch));
    found
}

fn explained(found: &Explanation, revision: String) -> v1::ExplainDecisionResponse {
    let candidate = |candidate: &Candidate| v1::PolicyCandidate {
        rule: candidate.rule.to_string(),
        decision: decision(candidate.decision),
        place: candidate.place.as_ref().map(ToString::to_string).unwrap_or_default(),
        mismatch: candidate.mismatch.clone().unwrap_or_default(),
    };
    v1::ExplainDecisionResponse {
        decision: decision(found.ruling.verdict),
        rule: found.ruling.rule.to_string(),
        why: found.ruling.why.clone(),
        revision,
        normalised: found.normalised.clone(),
        argv: found.argv.clone(),
        limits: found.limits.map(limits).unwrap_or_default(),
        candidates: found.candidates.iter().map(candidate).collect(),
        reaches: found.reaches.clone(),
        nearest_rule: found.nearest.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// Without secrets: an example may hold one, and who shows the answer around does not expect it.
fn tested(
    compiled: &Compiled,
    current: &PolicyRevision,
    redactor: &Redactor,
) -> v1::TestPolicyResponse {
    let text = |text: &str, most: usize| redactor.redact(text).chars().take(most).collect();
    let test = |test: &PolicyTest| v1::PolicyTest {
        name: text(&test.name, TEST_CHARS),
        place: test.place.to_string(),
        expected: text(&test.expected.to_string(), TEST_CHARS),
        found: text(&test.found.to_string(), TEST_CHARS),
        why: text(&test.why, TEST_CHARS),
        passed: test.has_passed(),
    };
    let (revision, faults) = match &compiled.policy {
        Ok(policy) => (policy.revision.to_string(), [].as_slice()),
        Err(faults) => (String::new(), faults.as_slice()),
    };
    v1::TestPolicyResponse {
        tests: compiled.tests.shown().map(test).collect(),
        passed_count: count(compiled.tests.passed()),
        failed_count: count(compiled.tests.failed()),
        faults: faults.iter().take(FAULTS).map(|fault| text(fault, FAULT_CHARS)).collect(),
        revision,
        current_revision: current.to_string(),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn revision(read: PolicyRead, current: Sequence) -> v1::PolicyRevision {
    let PolicyRead { sequence, time, revision, because } = read;
    let (by, refused) = match because {
        ReadBecause::Started => (None, None),
        ReadBecause::Applied { by } => (Some(by), None),
        ReadBecause::Refused { by, faults, count } => (Some(by), Some((faults, count))),
    };
    let cause = match by.as_ref().map(Caller::as_str) {
        None => v1::PolicyRevisionCause::Start,
        Some(SIGHUP) => v1::PolicyRevisionCause::Sighup,
        Some(_) => v1::PolicyRevisionCause::Rpc,
    };
    let state = match refused {
        Some(_) => v1::PolicyRevisionState::Refused,
        None if sequence == current => v1::PolicyRevisionState::Current,
        None => v1::PolicyRevisionState::Past,
    };
    let (faults, fault_count) = refused.unwrap_or_default();
    v1::PolicyRevision {
        revision: revision.to_string(),
        state: state.into(),
        cause: cause.into(),
        caller: by.map(|by| by.to_string()).unwrap_or_default(),
        time: Some(convert::timestamp(time)),
        faults: faults.iter().map(|fault| convert::short_fault(fault)).collect(),
        fault_count: count(fault_count),
        sequence: sequence.0,
    }
}

fn limits(limits: Limits) -> HashMap<String, u64> {
    let Limits {
        wall_ms,
        cpu_seconds,
        cpu_percent,
        memory_bytes,
        processes,
        open_files,
        file_bytes,
        tmp_bytes,
        stdout_bytes,
        stderr_bytes,
    } = limits;
    let named = [
        ("wall_ms", wall_ms),
        ("cpu_seconds", cpu_seconds),
        ("memory_bytes", memory_bytes),
        ("processes", processes),
        ("open_files", open_files),
        ("file_bytes", file_bytes),
        ("tmp_bytes", tmp_bytes),
        ("stdout_bytes", stdout_bytes),
        ("stderr_bytes", stderr_bytes),
    ];
    let share = cpu_percent.map(|percent| ("cpu_percent", percent));
    named.into_iter().chain(share).map(|(name, limit)| (name.to_owned(), limit)).collect()
}

fn shown(standing: &Standing) -> v1::Policy {
    let policy: &Policy = &standing.policy;
    let role = |(name, role): (&_, &crate::domain::policy::Role)| v1::PolicyRole {
        name: ToString::to_string(name),
        tools: role.tools.iter().map(ToString::to_string).collect(),
    };
    v1::Policy {
        revision: policy.revision.to_string(),
        since_time: Some(convert::timestamp(standing.since)),
        faults: standing.faults.to_vec(),
        roles: policy.roles.iter().map(role).collect(),
        rules: policy
            .paths
            .iter()
            .map(path_rule)
            .chain(policy.commands.iter().map(command_rule))
            .chain(policy.network.rules.iter().map(network_rule))
            .chain(policy.hosted.rules.iter().map(hosted_rule))
            .collect(),
        allow_net: policy.network.gate == Gate::Open,
        hosted_tools: policy.hosted_outlook().flat_map(hosted_tool).collect(),
    }
}

/// One for each role.
fn hosted_tool(outlook: HostedOutlook<'_>) -> impl Iterator<Item = v1::PolicyHostedTool> {
    outlook.fates.into_iter().map(|(role, fate)| {
        let HostedDecided { tool, decision: verdict, rule, why, .. } = fate.decided();
        let (role, rule) = (role.to_string(), rule.to_string());
        v1::PolicyHostedTool { tool, role, decision: decision(verdict), rule, why }
    })
}

fn path_rule(rule: &PathRule) -> v1::PolicyRule {
    let operations = rule.operations.iter().map(|operation| match operation {
        FileOperation::Read => "read",
        FileOperation::Write => "write",
    });
    let operations = operations.collect::<Vec<_>>().join(", ");
    v1::PolicyRule {
        id: rule.id.to_string(),
        subject: v1::PolicySubject::Path.into(),
        pattern: format!("{} ({operations})", rule.glob.as_str()),
        decision: decision(rule.decision),
        why: rule.why.clone(),
    }
}

fn command_rule(rule: &CommandRule) -> v1::PolicyRule {
    v1::PolicyRule {
        id: rule.id.to_string(),
        subject: v1::PolicySubject::Command.into(),
        pattern: rule.argv.join(" "),
        decision: decision(rule.decision),
        why: rule.why.clone(),
    }
}

fn network_rule(rule: &NetworkRule) -> v1::PolicyRule {
    v1::PolicyRule {
        id: rule.id.to_string(),
        subject: v1::PolicySubject::Network.into(),
        pattern: rule.speaks_of_what(),
        decision: decision(rule.decision),
        why: rule.why.clone(),
    }
}

fn hosted_rule(rule: &HostedRule) -> v1::PolicyRule {
    v1::PolicyRule {
        id: rule.id.to_string(),
        subject: v1::PolicySubject::HostedTool.into(),
        pattern: rule.speaks_of_what(),
        decision: decision(rule.decision),
        why: rule.why.clone(),
    }
}

fn decision(verdict: Verdict) -> String {
    verdict.as_str().into()
}
