//! What a caller may do: its role, the runs it sees, and what it may name in a submission. Which method
//! wants which role: `grpc/roles.rs`. How a caller proves who it is: `grpc/caller.rs`.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::domain::ids::Caller;

/// What a caller is let do. One caller has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads everything.
    Viewer,
    /// Submits runs, and sees and steers its own.
    Submitter,
    /// Reads everything, and decides about calls that wait for a person.
    Approver,
    /// Does everything.
    Admin,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Submitter, Self::Approver, Self::Admin];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Submitter => "submitter",
            Self::Approver => "approver",
            Self::Admin => "admin",
        })
    }
}

/// A known caller. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    pub caller: Caller,
    pub role: Role,
    pub reach: Arc<Reach>,
}

impl Access {
    /// The daemon's owner: an admin without limits.
    pub fn owner(caller: Caller) -> Self {
        Self { caller, role: Role::Admin, reach: Arc::default() }
    }

    /// Whose runs this caller sees; none: everybody's.
    pub fn sees_only(&self) -> Option<&Caller> {
        match self.role {
            Role::Submitter => Some(&self.caller),
            Role::Viewer | Role::Approver | Role::Admin => None,
        }
    }

    /// Whether runs of this submitter exist for the caller.
    pub fn sees_runs_of(&self, submitter: &Caller) -> bool {
        self.sees_only().is_none_or(|own| own == submitter)
    }
}

/// What a caller may name in a submission; none: whatever the daemon has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Absolute, resolved: these directories and what is below them.
    pub workspaces: Option<Vec<PathBuf>>,
    pub agents: Option<Vec<String>>,
}

impl Reach {
    /// Errors: what is allowed instead, for the caller.
    pub fn check_agent(&self, agent: &str) -> Result<(), String> {
        match &self.agents {
            Some(agents) if !agents.iter().any(|allowed| allowed == agent) => {
                Err(format!("agent {agent:?} is not one of yours; allowed: {}", listed(agents)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The same for a workspace; `resolved` is where it really lies.
    pub fn check_workspace(&self, resolved: &Path) -> Result<(), String> {
        let Some(allowed) = &self.workspaces else { return Ok(()) };
        if allowed.iter().any(|directory| resolved.starts_with(directory)) {
            return Ok(());
        }
        let allowed: Vec<_> = allowed.iter().map(|path| path.display().to_string()).collect();
        let path = resolved.display();
        Err(format!("{path} is not in one of your workspaces; allowed: {}", listed(&allowed)))
    }
}

fn listed(allowed: &[String]) -> String {
    match allowed {
        [] => "none".into(),
        allowed => allowed.join(", "),
    }
}

/// A caller with the bearer token that proves it.
#[derive(Clone)]
pub struct Credential {
    pub access: Access,
    pub token: Arc<str>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the token.
        f.debug_struct("Credential").field("access", &self.access).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(role: Role) -> Access {
        Access { role, ..Access::owner(Caller::new("caller:a")) }
    }

    #[test]
    fn only_a_submitter_is_limited_to_its_own_runs() {
        let other = Caller::new("caller:b");
        for role in [Role::Viewer, Role::Approver, Role::Admin] {
            assert!(access(role).sees_runs_of(&other), "{role}");
        }
        assert!(!access(Role::Submitter).sees_runs_of(&other));
        assert!(access(Role::Submitter).sees_runs_of(&Caller::new("caller:a")));
    }

    #[test]
    fn a_directory_whose_name_only_begins_alike_is_not_within_reach() {
        let reach = Reach { workspaces: Some(vec!["/src/a".into()]), agents: None };
        assert_eq!(reach.check_workspace(Path::new("/src/a/b")), Ok(()));
        let refused = "/src/ab is not in one of your workspaces; allowed: /src/a";
        assert_eq!(reach.check_workspace(Path::new("/src/ab")), Err(refused.into()));
    }

    #[test]
    fn an_empty_list_allows_none_and_no_list_allows_all() {
        let none = Reach { workspaces: None, agents: Some(Vec::new()) };
        let refused = "agent \"executor\" is not one of yours; allowed: none";
        assert_eq!(none.check_agent("executor"), Err(refused.into()));
        assert_eq!(Reach::default().check_agent("executor"), Ok(()));
    }
}
