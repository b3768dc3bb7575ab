//! Which roles may call which method: one table for every method of every service of ours. A method
//! without a row cannot be called by anyone; a test says so before a caller does.

use crate::domain::access::Role;

const ALL: &[Role] = &[Role::Viewer, Role::Submitter, Role::Approver, Role::Admin];
const ADMIN: &[Role] = &[Role::Admin];
pub(super) const SUBMIT: &[Role] = &[Role::Submitter, Role::Admin];
const STEER: &[Role] = &[Role::Submitter, Role::Approver, Role::Admin];
/// What only a person can know or allow.
pub(super) const DECIDE: &[Role] = &[Role::Approver, Role::Admin];
/// What shows runs of others too, without a way to leave them out.
const READ_EVERYTHING: &[Role] = &[Role::Viewer, Role::Approver, Role::Admin];

/// Path and roles. A submitter's runs are its own: what takes a run's id asks `runs::Runs::seen`.
const TABLE: &[(&str, &[Role])] = &[
    ("/agentd.v1.AdminService/BackupDatabase", ADMIN),
    ("/agentd.v1.AdminService/Drain", ADMIN),
    ("/agentd.v1.AdminService/GetConfig", READ_EVERYTHING),
    ("/agentd.v1.AdminService/GetHealth", ALL),
    ("/agentd.v1.AdminService/GetServerInfo", ALL),
    ("/agentd.v1.AdminService/ListAgents", ALL),
    // It costs tokens.
    ("/agentd.v1.AdminService/ProbeBackend", ADMIN),
    ("/agentd.v1.AuditService/ExportAudit", READ_EVERYTHING),
    ("/agentd.v1.AuditService/ListAuditEntries", READ_EVERYTHING),
    ("/agentd.v1.AuditService/PruneRuns", ADMIN),
    ("/agentd.v1.AuditService/StreamAuditEntries", READ_EVERYTHING),
    ("/agentd.v1.AuditService/VerifyAudit", READ_EVERYTHING),
    ("/agentd.v1.PolicyService/ExplainDecision", ALL),
    ("/agentd.v1.PolicyService/GetPolicy", ALL),
    ("/agentd.v1.PolicyService/ListPolicyRevisions", READ_EVERYTHING),
    ("/agentd.v1.PolicyService/ReloadPolicy", ADMIN),
    ("/agentd.v1.PolicyService/TestPolicy", READ_EVERYTHING),
    ("/agentd.v1.PolicyService/ValidatePolicy", READ_EVERYTHING),
    ("/agentd.v1.RunService/ApproveToolCall", DECIDE),
    ("/agentd.v1.RunService/CancelRun", SUBMIT),
    ("/agentd.v1.RunService/CreateRun", SUBMIT),
    ("/agentd.v1.RunService/DenyToolCall", DECIDE),
    ("/agentd.v1.RunService/ForkRun", SUBMIT),
    ("/agentd.v1.RunService/GetRun", ALL),
    ("/agentd.v1.RunService/GetRunDiff", ALL),
    ("/agentd.v1.RunService/ListCheckpoints", ALL),
    ("/agentd.v1.RunService/ListPendingApprovals", ALL),
    ("/agentd.v1.RunService/ListRuns", ALL),
    ("/agentd.v1.RunService/ListToolCalls", ALL),
    ("/agentd.v1.RunService/PauseRun", SUBMIT),
    ("/agentd.v1.RunService/ResolveToolCall", DECIDE),
    // A lost request is repeated by approvers and admins alone: see `runs::resume_run`.
    ("/agentd.v1.RunService/ResumeRun", STEER),
    ("/agentd.v1.RunService/SendRunInput", SUBMIT),
    ("/agentd.v1.RunService/StreamRunEvents", ALL),
    ("/agentd.v1.RunService/WaitRun", ALL),
    ("/agentd.v1.ToolService/GetTool", ALL),
    ("/agentd.v1.ToolService/ListTools", ALL),
    // Tells nothing but the API: for whoever is known.
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", ALL),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", ALL),
];

/// Orchestrators probe without credentials.
const FOR_EVERYONE: &str = "/grpc.health.v1.Health/";

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admitted {
    Everyone,
    /// Known callers in one of these roles.
    Roles(&'static [Role]),
    /// There is no such method.
    Nobody,
}

/// Who may call the method at this path of a request.
pub(super) fn admitted(path: &str) -> Admitted {
    if path.starts_with(FOR_EVERYONE) {
        return Admitted::Everyone;
    }
    let row = TABLE.iter().find(|(method, _)| *method == path);
    row.map_or(Admitted::Nobody, |(_, roles)| Admitted::Roles(roles))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;
    use crate::proto::DESCRIPTORS;

    #[test]
    fn every_method_has_one_row_and_every_row_a_method() {
        let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let ours = set.file.iter().filter(|file| file.package() == "agentd.v1");
        let services = ours.flat_map(|file| &file.service);
        let methods: BTreeSet<String> = services
            .flat_map(|service| {
                let path = |method| format!("/agentd.v1.{}/{method}", service.name());
                service.method.iter().map(move |method| path(method.name()))
            })
            .collect();
        let rows: Vec<&str> = TABLE.iter().map(|(path, _)| *path).collect();
        let missing: Vec<_> =
            methods.iter().filter(|method| !rows.contains(&method.as_str())).collect();
        assert!(missing.is_empty(), "add a row to TABLE in src/grpc/roles.rs for {missing:?}");
        let own = rows.iter().filter(|row| row.starts_with("/agentd."));
        let idle: Vec<_> = own.filter(|row| !methods.contains(**row)).collect();
        assert!(idle.is_empty(), "take out of TABLE in src/grpc/roles.rs: no method {idle:?}");
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), rows.len(), "one row a method");
    }

    #[test]
    fn an_admin_may_call_everything_and_nobody_what_is_not_there() {
        for (path, roles) in TABLE {
            assert!(roles.contains(&Role::Admin), "{path}");
        }
        for path in ["/agentd.v1.RunService/DropAll", "/agentd.v1.RunService", "/", ""] {
            assert_eq!(admitted(path), Admitted::Nobody, "{path}");
        }
        assert_eq!(admitted("/grpc.health.v1.Health/Check"), Admitted::Everyone);
    }
}
