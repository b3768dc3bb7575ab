//! What a request to the model declares of the tools that the backend runs itself: what the policy allows when it is
//! made, and nothing else. Runs none of them.

use crate::{
    domain::{
        backend::{Api, BackendName},
        ids::{PolicyRevision, RoleName, RuleId},
        journal::{HostedDecided, ModelRequest, Purpose, Verdict},
        policy::{HostedLeave, Policy},
    },
    engine::run_log::Noted,
    ports::Model,
};

/// What was decided for one request.
pub(super) struct Admitted {
    /// For those that are declared, in the order of the configuration.
    pub(super) leaves: Vec<HostedLeave>,
    decided: Vec<HostedDecided>,
    revision: PolicyRevision,
}

/// Asks the policy about every hosted tool, and the backend about those that it allows.
///
/// None is declared by chat, and so none is decided about.
pub(super) fn admitted(
    policy: &Policy,
    role: &RoleName,
    (api, model): (Api, &dyn Model),
) -> Admitted {
    let (mut leaves, mut decided) = (Vec::new(), Vec::new());
    if api == Api::Chat {
        return Admitted { leaves, decided, revision: policy.revision.clone() };
    }
    for fate in policy.hosted_for(role) {
        let noted = fate.decided();
        match (&fate.ruled, model.leaves_out(fate.tool.index)) {
            (Ok(_), Some(why)) => {
                let rule = RuleId::new("builtin/backend-profile");
                decided.push(HostedDecided { decision: Verdict::Deny, rule, why, ..noted });
            }
            _ => {
                decided.push(noted);
                leaves.extend(fate.ruled.ok());
            }
        }
    }
    Admitted { leaves, decided, revision: policy.revision.clone() }
}

impl Admitted {
    /// The intent to ask, with what was decided. Without hosted tools no policy applied.
    pub(super) fn noted(
        &self,
        (turn, attempt): (u32, u32),
        (items, estimated_tokens): (usize, u64),
        (backend, api): (BackendName, Api),
    ) -> Noted {
        let hosted_tools = self.decided.clone();
        let policy = (!hosted_tools.is_empty()).then(|| self.revision.clone());
        Noted {
            record: ModelRequest {
                turn,
                attempt,
                items,
                estimated_tokens,
                purpose: Purpose::Answer,
                hosted_tools,
                backend,
                api,
            }
            .into(),
            policy,
        }
    }
}
