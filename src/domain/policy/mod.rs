//! What may be done: one immutable set of rules, and the only place where permission is made.
//!
//! Invariant: a [`Permit`] has private fields and no constructor; [`Policy::decide`] alone makes one.
//! Every matching rule is collected; deny beats require_approval, and that beats allow; nothing matching is deny.
//!
//! Permission cannot be made up elsewhere. This compiles, since it asks the policy:
//!
//! ```
//! use agentd::domain::{effect::Facts, ids::{RoleName, ToolName}, policy::{Decision, Permit, Policy}};
//! fn ask(policy: &Policy, facts: Facts) -> Option<Permit<Facts>> {
//!     match policy.decide(&RoleName::new("executor"), &ToolName::new("read_file"), facts) {
//!         Decision::Allow(permit) => Some(permit),
//!         Decision::Ask(_) | Decision::Deny(_) => None,
//!     }
//! }
//! ```
//!
//! This does not, since it forges one:
//!
//! ```compile_fail,E0451
//! use agentd::domain::{effect::Facts, ids::RoleName, policy::{Decision, Permit, Policy}};
//! fn forge(permit: Permit<Facts>, facts: Facts) -> Permit<Facts> {
//!     Permit { subject: facts, ..permit }
//! }
//! ```
//!
//! Nor can one be used twice:
//!
//! ```compile_fail,E0382
//! use agentd::domain::{effect::Facts, policy::Permit};
//! fn twice(permit: Permit<Facts>) {
//!     let first = permit.redeem();
//!     let second = permit.redeem();
//! }
//! ```

mod commands;
mod explain;
mod hosted;
mod network;
mod paths;
mod tested;

pub use commands::{CommandRule, Commands, OptionForm, OptionRule, Positionals, ValueRule};
pub use explain::{Candidate, Explanation};
pub use hosted::{
    BadName, Hosted, HostedFate, HostedKind, HostedLeave, HostedOutlook, HostedPattern, HostedRule,
    HostedTool, McpPlace,
};
pub use network::{
    Destination, Gate, Grant, HostPattern, Network, NetworkRule, Passage, Passing, Tunnels,
    judge as judge_network,
};
pub use paths::{FileOperation, PathGlob, PathRule, forbidding, judge as judge_path};
pub use tested::{Compiled, PolicyTest, TestOutcome, Tests};

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{
    approval::Leave,
    effect::{Facts, Factual, Isolation, WorkspacePath},
    ids::{PolicyRevision, RoleName, RuleId, ToolName},
    journal::Verdict,
    tool::{EffectClass, OnUnknown, ToolCall},
};

/// The rules at one revision. Immutable; a reload makes another.
#[derive(Debug, Clone)]
pub struct Policy {
    pub revision: PolicyRevision,
    pub roles: BTreeMap<RoleName, Role>,
    pub paths: Vec<PathRule>,
    pub commands: Commands,
    /// Tools that the operator declared: to declare one is to allow it to the roles that have it.
    pub declared: BTreeMap<ToolName, DeclaredRule>,
    /// Limits of a call whose rule sets none.
    pub limits: Limits,
    /// What the programs of one run may use together.
    pub run_limits: RunLimits,
    /// Directories where programs are looked for, in order; absolute.
    pub program_directories: Vec<String>,
    /// What programs may read besides the system's directories: toolchains in a home, say. Absolute.
    pub read_only_roots: Vec<String>,
    /// Names in a workspace, without `/`, that no program may make, change or move away.
    pub protected: Vec<String>,
    pub isolation: IsolationRule,
    pub on_unknown: OnUnknown,
    pub approvals: ApprovalRule,
    pub network: Network,
    pub hosted: Hosted,
}

/// How well programs must be kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsolationRule {
    pub minimum: Isolation,
    pub enforcement: Enforcement,
}

/// What becomes of a program that cannot be kept apart so well here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// It does not start.
    Strict,
    /// It runs as well apart as can be; the record says how well that is.
    BestEffort,
}

impl IsolationRule {
    /// For something that states a minimum of its own, or none.
    fn least(self, own: Option<Isolation>) -> Isolation {
        match self.enforcement {
            Enforcement::Strict => own.unwrap_or(self.minimum),
            Enforcement::BestEffort => Isolation::Landlock,
        }
    }
}

/// How people are asked about calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApprovalRule {
    /// A call that nobody has said anything about for so long is refused.
    pub expire_ms: u64,
    pub by_submitter: BySubmitter,
}

/// Whether whoever submitted a run may allow its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BySubmitter {
    Accept,
    Refuse,
}

/// Where a rule is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: std::sync::Arc<str>,
    /// Both from 1.
    pub line: u64,
    pub column: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// What agents in a role may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    pub tools: BTreeSet<ToolName>,
}

/// How a declared tool's command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredRule {
    pub class: EffectClass,
    pub limits: Limits,
    /// How well it must be kept apart, at least; none: as well as any other.
    pub isolation: Option<Isolation>,
    pub environment: BTreeMap<String, String>,
    /// Rules of `network.yaml` that say what it may reach.
    pub network: Vec<RuleId>,
}

/// Limits of one tool call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub wall_ms: u64,
    pub cpu_seconds: u64,
    /// Most CPU time at one time, in percent of one CPU; none: all there is.
    pub cpu_percent: Option<u64>,
    pub memory_bytes: u64,
    pub processes: u64,
    pub open_files: u64,
    /// Largest file that may be written.
    pub file_bytes: u64,
    /// Most that may lie in temporary files.
    pub tmp_bytes: u64,
    /// Most that may be written to each of its streams. How much of it is kept is another matter.
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
}

/// Limits of the programs of one run together, above those of each call; none: there is no such limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunLimits {
    /// Of the programs that run at one time, by their own limits.
    pub memory_bytes: Option<u64>,
    pub processes: Option<u64>,
    /// CPU time of all programs of the run.
    pub cpu_seconds: Option<u64>,
}

/// Limits that one tool sets for itself; the others are the policy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitsOver {
    pub wall_ms: Option<u64>,
    pub cpu_seconds: Option<u64>,
    pub cpu_percent: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub processes: Option<u64>,
    pub open_files: Option<u64>,
    pub file_bytes: Option<u64>,
    pub tmp_bytes: Option<u64>,
    pub stdout_bytes: Option<u64>,
    pub stderr_bytes: Option<u64>,
}

impl LimitsOver {
    /// The limits that hold.
    pub fn over(self, base: Limits) -> Limits {
        Limits {
            wall_ms: self.wall_ms.unwrap_or(base.wall_ms),
            cpu_seconds: self.cpu_seconds.unwrap_or(base.cpu_seconds),
            cpu_percent: self.cpu_percent.or(base.cpu_percent),
            memory_bytes: self.memory_bytes.unwrap_or(base.memory_bytes),
            processes: self.processes.unwrap_or(base.processes),
            open_files: self.open_files.unwrap_or(base.open_files),
            file_bytes: self.file_bytes.unwrap_or(base.file_bytes),
            tmp_bytes: self.tmp_bytes.unwrap_or(base.tmp_bytes),
            stdout_bytes: self.stdout_bytes.unwrap_or(base.stdout_bytes),
            stderr_bytes: self.stderr_bytes.unwrap_or(base.stderr_bytes),
        }
    }
}

/// A decision, with the rule that made it.
#[derive(Debug)]
pub enum Decision<T> {
    Allow(Permit<T>),
    /// A person has to say so first.
    Ask(Ruling),
    Deny(Ruling),
}

/// Which rule decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    pub verdict: Verdict,
    pub rule: RuleId,
    /// For the model and for people: the reason, and what would be allowed.
    pub why: String,
    pub class: EffectClass,
}

/// Leave to carry out one effect, once, as resolved.
#[derive(Debug)]
pub struct Permit<T> {
    subject: T,
    orders: Box<Orders>,
    ruling: Ruling,
}

/// How a permitted effect is to be carried out.
#[derive(Debug, Clone)]
pub struct Orders {
    pub limits: Limits,
    /// For a program: its whole argument vector, with what the rule injects.
    pub argv: Vec<String>,
    /// For a program: its whole environment.
    pub environment: BTreeMap<String, String>,
    /// For a walk: the rules that each file on the way is asked about before it is read.
    pub paths: Vec<PathRule>,
    /// Absolute paths that a program may read besides the system's own.
    pub read_only: Vec<String>,
    /// Names in the workspace that a program may neither make nor change.
    pub protected: Vec<String>,
    /// For a program: how well it must be kept apart; weaker, it does not start.
    pub least_isolation: Isolation,
    /// For a program that may reach something: who it is to be asked for.
    pub grant: Option<Grant>,
}

impl<T> Permit<T> {
    pub fn ruling(&self) -> &Ruling {
        &self.ruling
    }

    /// Limits of the program that is permitted; none: what is permitted is no program.
    pub fn program_limits(&self) -> Option<Limits> {
        (!self.orders.argv.is_empty()).then_some(self.orders.limits)
    }

    /// The same with so much CPU time at most.
    pub fn within(mut self, cpu_seconds: u64) -> Self {
        let limit = &mut self.orders.limits.cpu_seconds;
        *limit = cpu_seconds.min(*limit);
        self
    }

    /// Gives what is permitted to whoever carries it out, and is gone.
    pub fn redeem(self) -> (T, Orders) {
        (self.subject, *self.orders)
    }
}

impl Policy {
    /// Decides about `subject`, which `tool` wants, for an agent in `role`.
    pub fn decide<T: Factual>(&self, role: &RoleName, tool: &ToolName, subject: T) -> Decision<T> {
        self.decide_given((role, tool), subject, &[])
    }

    /// The same for a call that people gave leave for: what they allowed need not be asked about again.
    pub fn decide_with_leave<T: Factual>(
        &self,
        role: &RoleName,
        call: &ToolCall,
        subject: T,
        leave: &Leave,
    ) -> Decision<T> {
        let given = leave.rules(call, subject.facts(), &self.revision);
        self.decide_given((role, &call.tool), subject, &given)
    }

    fn decide_given<T: Factual>(
        &self,
        who: (&RoleName, &ToolName),
        subject: T,
        given: &[RuleId],
    ) -> Decision<T> {
        match self.judge(who, subject.facts(), given) {
            Ok((ruling, orders)) => {
                Decision::Allow(Permit { subject, orders: Box::new(orders), ruling })
            }
            Err(ruling) if ruling.verdict == Verdict::RequireApproval => Decision::Ask(ruling),
            Err(ruling) => Decision::Deny(ruling),
        }
    }

    fn judge(
        &self,
        (role, tool): (&RoleName, &ToolName),
        facts: &Facts,
        given: &[RuleId],
    ) -> Result<(Ruling, Orders), Ruling> {
        self.check_role(role, tool)?;
        let grant = |rule: &RuleId, network: &[RuleId]| {
            let (role, tool, rule) = (role.clone(), tool.clone(), rule.clone());
            (!network.is_empty()).then_some(Grant { role, tool, rule })
        };
        match facts {
            Facts::ReadFile { path, .. } => {
                let rule = self.path_rule(FileOperation::Read, path, given)?;
                Ok((allow(&rule.id, &rule.why, EffectClass::Pure), self.plain_orders()))
            }
            Facts::WriteFile { path, .. } => {
                let rule = self.path_rule(FileOperation::Write, path, given)?;
                Ok((allow(&rule.id, &rule.why, EffectClass::Reconcilable), self.plain_orders()))
            }
            Facts::EditFile { path, .. } => {
                // Whether an edit fits tells what stands in the file: it must be readable too.
                let readable = self.path_rule(FileOperation::Read, path, given);
                let writable = self.path_rule(FileOperation::Write, path, given);
                let rule = match (writable, readable) {
                    (Err(ruling), _) if ruling.verdict == Verdict::Deny => return Err(ruling),
                    (_, Err(ruling)) | (Err(ruling), Ok(_)) => {
                        return Err(Ruling { class: EffectClass::Reconcilable, ..ruling });
                    }
                    (Ok(rule), Ok(_)) => rule,
                };
                Ok((allow(&rule.id, &rule.why, EffectClass::Reconcilable), self.plain_orders()))
            }
            Facts::Look { path, .. } => {
                let rule = self.path_rule(FileOperation::Read, path, given)?;
                // Our own code walks, which no tier lets out.
                let least_isolation = Isolation::Landlock;
                let paths = self.paths.clone();
                let orders = Orders { paths, least_isolation, ..self.plain_orders() };
                Ok((allow(&rule.id, &rule.why, EffectClass::Pure), orders))
            }
            Facts::Spawn { argv, .. } => {
                let (rule, parsed) = commands::judge(&self.commands, argv, given)?;
                // A file that read_file may not show is not to be had by another program's words either.
                for path in &parsed.paths {
                    self.check_named(path, given)
                        .map_err(|ruling| Ruling { class: rule.class, ..ruling })?;
                }
                let orders = Orders {
                    limits: rule.limits.unwrap_or(self.limits),
                    least_isolation: self.isolation.least(rule.isolation),
                    argv: rule.full_argv(argv),
                    environment: rule.environment.clone(),
                    grant: grant(&rule.id, &rule.network),
                    ..self.plain_orders()
                };
                Ok((allow(&rule.id, &rule.why, rule.class), orders))
            }
            Facts::RunDeclared { argv, .. } => {
                let id = network::declared_rule(tool);
                let Some(rule) = self.declared.get(tool) else {
                    let why = format!("{tool} is not a declared tool of this policy");
                    return Err(deny(RuleId::new("builtin/no-rule"), why));
                };
                let orders = Orders {
                    limits: rule.limits,
                    least_isolation: self.isolation.least(rule.isolation),
                    argv: argv.clone(),
                    environment: rule.environment.clone(),
                    grant: grant(&id, &rule.network),
                    ..self.plain_orders()
                };
                Ok((allow(&id, "the operator declared this tool", rule.class), orders))
            }
        }
    }

    /// Whether a rule forbids reading what a command names. The path is not resolved: what a program can
    /// reach is the sandbox's to say, this is for whoever asks openly.
    fn check_named(&self, path: &str, given: &[RuleId]) -> Result<(), Ruling> {
        let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
        let path = WorkspacePath::from_resolved(names.collect::<Vec<_>>().join("/"));
        match self.path_rule(FileOperation::Read, &path, given) {
            Err(ruling) if ruling.rule != RuleId::new("builtin/no-rule") => Err(ruling),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn path_rule(
        &self,
        operation: FileOperation,
        path: &WorkspacePath,
        given: &[RuleId],
    ) -> Result<&PathRule, Ruling> {
        let class = match operation {
            FileOperation::Read => EffectClass::Pure,
            FileOperation::Write => EffectClass::Reconcilable,
        };
        paths::judge_given(&self.paths, operation, path, given)
            .map_err(|ruling| Ruling { class, ..ruling })
    }

    fn check_role(&self, role: &RoleName, tool: &ToolName) -> Result<(), Ruling> {
        match self.role(role)?.tools.contains(tool) {
            true => Ok(()),
            false => Err(deny(
                RuleId::new(format!("roles.{role}")),
                format!("role {role} may not use {tool}"),
            )),
        }
    }

    fn role(&self, role: &RoleName) -> Result<&Role, Ruling> {
        let why = || format!("the policy has no role {role}");
        self.roles.get(role).ok_or_else(|| deny(RuleId::new("builtin/unknown-role"), why()))
    }

    fn plain_orders(&self) -> Orders {
        Orders {
            limits: self.limits,
            argv: Vec::new(),
            environment: BTreeMap::new(),
            paths: Vec::new(),
            read_only: self.read_only_roots.clone(),
            protected: self.protected.clone(),
            least_isolation: self.isolation.least(None),
            grant: None,
        }
    }
}

fn allow(rule: &RuleId, why: &str, class: EffectClass) -> Ruling {
    Ruling { verdict: Verdict::Allow, rule: rule.clone(), why: why.to_owned(), class }
}

/// What a rule says that does not allow.
fn refuse(rule: &RuleId, verdict: Verdict, why: String) -> Ruling {
    Ruling { verdict, ..deny(rule.clone(), why) }
}

/// Of the rules that match, the one that does not allow, the strictest first.
fn strictest<'a, R>(
    matching: impl Iterator<Item = &'a R> + Clone,
    decision: impl Fn(&R) -> Verdict,
) -> Option<&'a R> {
    let of = |verdict| matching.clone().find(|rule| decision(rule) == verdict);
    of(Verdict::Deny).or_else(|| of(Verdict::RequireApproval))
}

fn deny(rule: RuleId, why: String) -> Ruling {
    Ruling { verdict: Verdict::Deny, rule, why, class: EffectClass::Pure }
}
