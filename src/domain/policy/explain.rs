//! Why the policy decides as it does: the very same judgement, with every rule that could have spoken. Decides
//! nothing itself, and touches nothing: a path is taken as it is written, no link in it is followed.

use crate::domain::{
    effect::{EditHashes, Effect, Facts, WorkspacePath},
    ids::{RoleName, RuleId, ToolName},
    journal::Verdict,
    policy::{
        CommandRule, FileOperation, Limits, PathRule, Place, Policy, Ruling, commands::Mismatch,
        deny,
    },
};

/// A decision, and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub ruling: Ruling,
    /// What was judged, as it was understood: the words of a command, or a path.
    pub normalised: String,
    /// For a command that is allowed: all the words it would run with.
    pub argv: Vec<String>,
    /// For what is allowed.
    pub limits: Option<Limits>,
    /// For a program that is allowed: what it may reach, one line for each rule.
    pub reaches: Vec<String>,
    /// Every rule about the same program, or about files, in the order of the files.
    pub candidates: Vec<Candidate>,
    /// The rule that came nearest to allowing what is denied.
    pub nearest: Option<RuleId>,
}

/// One rule that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub rule: RuleId,
    pub decision: Verdict,
    pub place: Option<Place>,
    /// The first thing by which it does not fit; none: it does.
    pub mismatch: Option<String>,
}

impl Policy {
    /// What would be decided about `effect`, which `tool` wants for an agent in `role`, and why.
    pub fn explain(&self, role: &RoleName, tool: &ToolName, effect: &Effect) -> Explanation {
        let facts = self.facts_of(effect);
        let judged = self
            .check_role(role, tool)
            .and_then(|()| stays_inside(effect))
            .and_then(|()| self.judge((role, tool), &facts, &[]));
        let (ruling, orders) = match judged {
            Ok((ruling, orders)) => (ruling, Some(orders)),
            Err(ruling) => (ruling, None),
        };
        let candidates = match &facts {
            Facts::Spawn { argv, .. } => self.command_candidates(argv),
            Facts::ReadFile { path, .. } | Facts::Look { path, .. } => {
                self.path_candidates(&[FileOperation::Read], path)
            }
            Facts::WriteFile { path, .. } => self.path_candidates(&[FileOperation::Write], path),
            Facts::EditFile { path, .. } => {
                self.path_candidates(&[FileOperation::Read, FileOperation::Write], path)
            }
            Facts::RunDeclared { .. } => Vec::new(),
        };
        let nearest = match (&facts, ruling.verdict) {
            (Facts::Spawn { argv, .. }, Verdict::Deny) => self.nearest(argv),
            _ => None,
        };
        let grant = orders.as_ref().and_then(|orders| orders.grant.as_ref());
        let reaches = grant.map(|grant| self.reaches(grant)).unwrap_or_default();
        let (argv, limits) =
            orders.map_or((Vec::new(), None), |orders| (orders.argv, Some(orders.limits)));
        let normalised = normalised(&facts);
        Explanation { ruling, normalised, argv, limits, reaches, candidates, nearest }
    }

    /// As far as they can be told without a look at the world.
    fn facts_of(&self, effect: &Effect) -> Facts {
        let path = |text: &str| {
            let names = text.split('/').filter(|name| !matches!(*name, "" | "."));
            WorkspacePath::from_resolved(names.collect::<Vec<_>>().join("/"))
        };
        let (executable, sha256) = (String::new(), String::new());
        match effect {
            Effect::ReadFile { path: file, .. } => Facts::ReadFile { path: path(file), bytes: 0 },
            Effect::WriteFile { path: file, content } => {
                Facts::WriteFile { path: path(file), bytes: content.len() as u64, sha256 }
            }
            Effect::EditFile { path: file, .. } => {
                Facts::EditFile { path: path(file), hashes: None::<EditHashes> }
            }
            Effect::Look { path: directory, query } => {
                Facts::Look { path: path(directory), query: query.clone() }
            }
            Effect::Spawn { argv } => Facts::Spawn { argv: self.bare(argv), executable, sha256 },
            Effect::RunDeclared { argv, .. } => {
                Facts::RunDeclared { argv: argv.clone(), executable, sha256 }
            }
        }
    }

    /// A program of a program directory goes by its name.
    fn bare(&self, argv: &[String]) -> Vec<String> {
        let mut argv = argv.to_vec();
        if let Some(word) = argv.first_mut()
            && let Some((directory, name)) = word.rsplit_once('/')
            && self.program_directories.iter().any(|known| known == directory)
        {
            *word = name.to_owned();
        }
        argv
    }

    fn command_candidates(&self, argv: &[String]) -> Vec<Candidate> {
        let about = |rule: &&CommandRule| rule.argv.first() == argv.first();
        let candidate = |rule: &CommandRule| Candidate {
            rule: rule.id.clone(),
            decision: rule.decision,
            place: rule.place.clone(),
            mismatch: rule.mismatch(argv),
        };
        self.commands.iter().filter(about).map(candidate).collect()
    }

    fn path_candidates(
        &self,
        operations: &[FileOperation],
        path: &WorkspacePath,
    ) -> Vec<Candidate> {
        let mismatch = |rule: &PathRule| {
            if !operations.iter().any(|operation| rule.operations.contains(operation)) {
                return Some("it speaks of other operations".to_owned());
            }
            let fits = operations.iter().any(|operation| rule.matches(*operation, path));
            (!fits).then(|| format!("its glob {} does not match", rule.glob.as_str()))
        };
        let candidate = |rule: &PathRule| Candidate {
            rule: rule.id.clone(),
            decision: rule.decision,
            place: rule.place.clone(),
            mismatch: mismatch(rule),
        };
        self.paths.iter().map(candidate).collect()
    }

    /// Of the rules that allow: that which shares the most words, and among those one that fails only by
    /// what follows its own words.
    fn nearest(&self, argv: &[String]) -> Option<RuleId> {
        let shared = |rule: &CommandRule| {
            rule.argv.iter().zip(argv).take_while(|(own, word)| own == word).count()
        };
        let rank = |rule: &CommandRule| {
            let is_about_it = rule.check(argv) != Err(Mismatch::OtherCommand);
            (shared(rule), is_about_it)
        };
        let allowing = self.commands.iter().filter(|rule| rule.decision == Verdict::Allow);
        // Of equals the first.
        let best = allowing.rev().max_by_key(|rule| rank(rule))?;
        (shared(best) > 0).then(|| best.id.clone())
    }
}

impl CommandRule {
    /// The first thing by which a command does not fit the rule, in words; none: it does.
    pub fn mismatch(&self, argv: &[String]) -> Option<String> {
        Some(match self.check(argv).err()? {
            Mismatch::OtherCommand => format!("it speaks of `{}`", self.argv.join(" ")),
            Mismatch::Flag(word) => format!("{word} is not among its flags and options"),
            Mismatch::Value(word) => {
                format!("{word}: it takes another value, or another form of it")
            }
            Mismatch::Positional(word) => format!("{word:?} is not an argument that it takes"),
        })
    }
}

/// A path that does not lie below the workspace, as it is written, is refused before any rule is asked.
fn stays_inside(effect: &Effect) -> Result<(), Ruling> {
    let path = match effect {
        Effect::ReadFile { path, .. }
        | Effect::WriteFile { path, .. }
        | Effect::EditFile { path, .. }
        | Effect::Look { path, .. } => path,
        Effect::Spawn { .. } | Effect::RunDeclared { .. } => return Ok(()),
    };
    if !path.starts_with('/') && path.split('/').all(|name| name != "..") {
        return Ok(());
    }
    let why =
        format!("{path} may lie outside of the workspace; ask with a path below it, without ..");
    Err(deny(RuleId::new("builtin/path-escape"), why))
}

fn normalised(facts: &Facts) -> String {
    match facts {
        Facts::Spawn { argv, .. } | Facts::RunDeclared { argv, .. } => {
            let words = argv.iter().map(|word| format!("[{word}]"));
            words.collect::<Vec<_>>().join(" ")
        }
        Facts::ReadFile { path, .. } | Facts::Look { path, .. } => format!("read {path}"),
        Facts::WriteFile { path, .. } => format!("write {path}"),
        Facts::EditFile { path, .. } => format!("read and write {path}"),
    }
}
