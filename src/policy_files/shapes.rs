//! The shapes of `tools.yaml` and `paths.yaml` as people write them. Unknown keys are errors.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{
    domain::{
        effect::Isolation,
        ids::{RoleName, RuleId, ToolName},
        journal::Verdict,
        policy::{BySubmitter, Enforcement, FileOperation, Positionals},
        tool::{EffectClass, OnUnknown},
    },
    policy_files::hosted::HostedShape,
    yaml::Placed,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolsFile {
    #[serde(rename = "schema")]
    _schema: ToolsSchema,
    pub(super) limits: LimitsShape,
    #[serde(default)]
    pub(super) run_limits: RunLimitsShape,
    pub(super) program_directories: Vec<String>,
    #[serde(default)]
    pub(super) isolation: IsolationShape,
    #[serde(default)]
    pub(super) on_unknown: OnUnknown,
    #[serde(default)]
    pub(super) approvals: ApprovalsShape,
    #[serde(default)]
    pub(super) read_only_roots: Vec<String>,
    pub(super) roles: BTreeMap<RoleName, RoleShape>,
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) commands: Vec<CommandShape>,
    #[serde(default)]
    pub(super) hosted_tools: Vec<HostedShape>,
}

#[derive(Debug, Deserialize)]
enum ToolsSchema {
    #[serde(rename = "agentd/tools/v1")]
    V1,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsShape {
    pub(super) wall_seconds: u64,
    pub(super) cpu_seconds: u64,
    pub(super) cpu_percent: Option<u64>,
    pub(super) memory_mib: u64,
    pub(super) processes: u64,
    pub(super) open_files: u64,
    pub(super) file_mib: u64,
    #[serde(default = "tmp_mib")]
    pub(super) tmp_mib: u64,
    #[serde(default = "stream_mib")]
    pub(super) stdout_mib: u64,
    #[serde(default = "stream_mib")]
    pub(super) stderr_mib: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RunLimitsShape {
    pub(super) memory_mib: Option<u64>,
    pub(super) processes: Option<u64>,
    pub(super) cpu_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IsolationShape {
    pub(super) minimum: Isolation,
    pub(super) enforcement: Enforcement,
}

impl Default for IsolationShape {
    fn default() -> Self {
        Self { minimum: Isolation::Root, enforcement: Enforcement::Strict }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ApprovalsShape {
    pub(super) expire_seconds: u64,
    pub(super) by_submitter: BySubmitter,
}

impl Default for ApprovalsShape {
    fn default() -> Self {
        Self { expire_seconds: 24 * 3600, by_submitter: BySubmitter::Accept }
    }
}

fn stream_mib() -> u64 {
    64
}

fn tmp_mib() -> u64 {
    256
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoleShape {
    /// A role that has these tools too.
    pub(super) inherits: Option<RoleName>,
    #[serde(default)]
    pub(super) tools: Vec<ToolName>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandShape {
    pub(super) id: Placed<RuleId>,
    pub(super) argv: Vec<String>,
    #[serde(default)]
    pub(super) flags: Vec<String>,
    #[serde(default)]
    pub(super) options: BTreeMap<String, OptionShape>,
    #[serde(default)]
    pub(super) positionals: PositionalsShape,
    #[serde(default)]
    pub(super) inject: Vec<String>,
    #[serde(default)]
    pub(super) inject_after: Vec<String>,
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
    #[serde(default = "unknown_effect")]
    pub(super) effect: EffectClass,
    #[serde(default = "allow")]
    pub(super) decision: Verdict,
    pub(super) limits: Option<LimitsShape>,
    pub(super) isolation: Option<Isolation>,
    #[serde(default)]
    pub(super) network: Vec<RuleId>,
    pub(super) why: String,
    #[serde(default, rename = "match")]
    pub(super) matches: Vec<Placed<String>>,
    #[serde(default, rename = "not_match")]
    pub(super) not_matches: Vec<Placed<String>>,
}

fn unknown_effect() -> EffectClass {
    EffectClass::NonIdempotent
}

fn allow() -> Verdict {
    Verdict::Allow
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OptionShape {
    pub(super) value: Option<ValueShape>,
    #[serde(default)]
    pub(super) one_of: Vec<String>,
    #[serde(default)]
    pub(super) form: FormShape,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ValueShape {
    Number,
    Name,
    WorkspacePath,
    Any,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FormShape {
    #[default]
    Joined,
    JoinedOrSeparate,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PositionalsShape {
    #[default]
    None,
    Names,
    WorkspacePaths,
    Any,
}

impl From<PositionalsShape> for Positionals {
    fn from(shape: PositionalsShape) -> Self {
        match shape {
            PositionalsShape::None => Self::None,
            PositionalsShape::Names => Self::Names,
            PositionalsShape::WorkspacePaths => Self::WorkspacePaths,
            PositionalsShape::Any => Self::Any,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PathsFile {
    #[serde(rename = "schema")]
    _schema: PathsSchema,
    pub(super) rules: Vec<PathShape>,
    #[serde(default)]
    pub(super) protected: Vec<String>,
    #[serde(default)]
    pub(super) tests: Vec<Placed<PathTest>>,
}

#[derive(Debug, Deserialize)]
enum PathsSchema {
    #[serde(rename = "agentd/paths/v1")]
    V1,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PathShape {
    pub(super) id: Placed<RuleId>,
    pub(super) glob: String,
    pub(super) operations: Vec<OperationShape>,
    pub(super) decision: Verdict,
    pub(super) why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PathTest {
    pub(super) operation: OperationShape,
    pub(super) path: String,
    pub(super) expect: Verdict,
    pub(super) rule: RuleId,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OperationShape {
    Read,
    Write,
}

impl From<OperationShape> for FileOperation {
    fn from(shape: OperationShape) -> Self {
        match shape {
            OperationShape::Read => Self::Read,
            OperationShape::Write => Self::Write,
        }
    }
}
