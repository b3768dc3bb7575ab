//! Which workspaces runs have for themselves. A workspace that holds another, or lies within it, is the same files.

use std::{collections::BTreeMap, path::Path};

use crate::domain::ids::RunId;

/// Who has which workspace. By path, so that what lies within one stands behind it, in one row.
#[derive(Default)]
pub(super) struct Leases(BTreeMap<String, RunId>);

impl Leases {
    pub(super) fn insert(&mut self, workspace: String, run: RunId) {
        self.0.insert(workspace, run);
    }

    /// Gives a workspace back if this run has it; says whether it had it.
    pub(super) fn give_back(&mut self, workspace: &str, run: RunId) -> bool {
        let had = self.has(workspace, run);
        if had {
            self.0.remove(workspace);
        }
        had
    }

    pub(super) fn has(&self, workspace: &str, run: RunId) -> bool {
        self.0.get(workspace) == Some(&run)
    }

    /// Whether no run has this workspace, one that holds it, or one within it.
    pub(super) fn is_free(&self, workspace: &str) -> bool {
        let is_leased = |path: &Path| path.to_str().is_some_and(|path| self.0.contains_key(path));
        let within = format!("{}/", workspace.trim_end_matches('/'));
        let first_behind = self.0.range(within.clone()..).next();
        let holds_one = first_behind.is_some_and(|(leased, _)| leased.starts_with(&within));
        !holds_one && !Path::new(workspace).ancestors().any(is_leased)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_beside(leased: &str, wanted: &str) -> bool {
        let mut leases = Leases::default();
        let run = RunId::new(uuid::Uuid::from_u128(1));
        for other in ["/b", "/a-b", "/a.b/c", leased] {
            leases.insert(other.into(), run);
        }
        leases.is_free(wanted)
    }

    #[test]
    fn a_workspace_is_taken_with_all_that_holds_it_and_all_within_it() {
        for (leased, wanted) in
            [("/a", "/a"), ("/a", "/a/c/d"), ("/a/c/d", "/a"), ("/a/c", "/"), ("/", "/a")]
        {
            assert!(!free_beside(leased, wanted), "{wanted} beside {leased}");
        }
    }

    #[test]
    fn a_workspace_whose_name_only_begins_like_a_taken_one_is_free() {
        for (leased, wanted) in [("/a", "/ab"), ("/ab", "/a"), ("/a/c", "/a/d"), ("/a/c", "/a.b/d")]
        {
            assert!(free_beside(leased, wanted), "{wanted} beside {leased}");
        }
    }
}
