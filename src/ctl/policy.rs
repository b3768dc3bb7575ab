//! `agentctl policy`: the rules in force, and whether those in the files could be.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use crate::{
    config::{Process, Surroundings as _},
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Format},
        revisions, tested,
    },
    domain::{ids::ToolName, policy::Compiled},
    policy_files::{self, PolicyErrors, Sources},
    proto::v1::{self, PolicySubject},
    tools::Toolbox,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Shows the policy in force
    Show,
    /// Checks policy files, with the tests that stand in them: those of a directory, or the daemon's own
    #[command(after_help = VALIDATE_EXAMPLES)]
    Validate {
        /// A directory with tools.yaml and paths.yaml; no daemon is needed for it
        directory: Option<PathBuf>,
    },
    /// Runs the tests that stand in policy files, and says of each what came of it
    #[command(after_help = TEST_EXAMPLES)]
    Test {
        /// A directory with tools.yaml and paths.yaml; no daemon is needed for it
        directory: Option<PathBuf>,
    },
    /// Says what would be decided about a command or a tool call, and why
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain {
        /// The command, as a model would give it to shell_exec
        #[arg(required_unless_present = "tool", conflicts_with = "tool", value_name = "COMMAND")]
        command: Vec<String>,
        /// Another tool than shell_exec
        #[arg(long, requires = "arguments", value_name = "NAME")]
        tool: Option<String>,
        /// The tool's arguments, a JSON object
        #[arg(long, requires = "tool", value_name = "JSON")]
        arguments: Option<String>,
        /// Role of the agent
        #[arg(long, default_value = "executor", value_name = "NAME")]
        role: String,
    },
    /// Puts the daemon's policy files into force, all of them or none
    Reload {
        /// Only if the files are still those that `validate` told this revision of
        #[arg(long, default_value = "", hide_default_value = true, value_name = "REVISION")]
        expect: String,
    },
    /// Lists when which policy came into force and by what, and what was refused, newest first
    Revisions {
        /// How many at most
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: u32,
    },
}

const VALIDATE_EXAMPLES: &str = "\
Examples:
  agentctl policy validate ./policies          before they are installed; exit code 2 if they are not valid
  agentctl policy validate                     those that the daemon would read now
  agentctl policy reload                       then into force";

const TEST_EXAMPLES: &str = "\
Examples:
  agentctl policy test ./policies              before they are installed; exit code 2 if one fails
  agentctl policy test                         those that the daemon would read now
  agentctl policy test -o json | jq '.tests[] | select(.passed | not)'";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  agentctl policy explain 'git log -p'         one word is a line, split as shell_exec would
  agentctl policy explain -- git log -p        several are the command's words
  agentctl policy explain --tool write_file --arguments '{\"path\": \".git/config\", \"content\": \"\"}'
The exit code is 0 if it would be allowed, 4 if not, 6 if a person would have to approve it.";

pub(super) async fn run(global: &Global, verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Show => show(global).await,
        Verb::Validate { directory: Some(directory) } => validate_files(global, &directory),
        Verb::Validate { directory: None } => validate(global).await,
        Verb::Test { directory: Some(directory) } => tested::files(global, &directory),
        Verb::Test { directory: None } => tested::daemon(global).await,
        Verb::Explain { command, tool, arguments, role } => {
            let (tool, arguments) = match (tool, arguments) {
                (Some(tool), Some(arguments)) => (tool, arguments),
                (Some(_), None) | (None, _) => ("shell_exec".to_owned(), shell_exec(&command)),
            };
            explain(global, v1::ExplainDecisionRequest { role, tool, arguments }).await
        }
        Verb::Reload { expect } => reload(global, expect).await,
        Verb::Revisions { limit } => revisions::run(global, limit).await,
    }
}

async fn show(global: &Global) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.policy();
    let answer = client.get_policy(v1::GetPolicyRequest {}).await?.into_inner();
    let policy = answer.policy.unwrap_or_default();
    if global.output == Format::Json {
        output::json_line(&as_json(&policy))?;
        return Ok(Exit::Done);
    }
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("revision", policy.revision.clone()),
        row("in force since", policy.since_time.map(output::time).unwrap_or_default()),
        row("ALLOW_NET", if policy.allow_net { "on" } else { "off" }.into()),
    ];
    rows.extend(policy.faults.iter().map(|fault| row("files refused", fault.clone())));
    rows.extend(policy.roles.iter().map(|role| {
        let tools = if role.tools.is_empty() { "-".into() } else { role.tools.join(" ") };
        row(&format!("role {}", role.name), tools)
    }));
    output::table(&rows)?;
    output::line("")?;
    let head = ["RULE", "DECISION", "SPEAKS OF", "WHY"].map(str::to_owned).to_vec();
    let rule = |rule: &v1::PolicyRule| {
        let of = format!("{} {}", subject(rule), rule.pattern);
        vec![rule.id.clone(), rule.decision.clone(), of, rule.why.clone()]
    };
    output::table(&std::iter::once(head).chain(policy.rules.iter().map(rule)).collect::<Vec<_>>())?;
    show_hosted(&policy.hosted_tools)?;
    Ok(Exit::Done)
}

/// What becomes of the tools that the backend would run; nothing where there are none.
fn show_hosted(tools: &[v1::PolicyHostedTool]) -> Result<(), Failure> {
    if tools.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let head = ["HOSTED TOOL", "ROLE", "DECISION", "RULE", "WHY"].map(str::to_owned).to_vec();
    let row = |one: &v1::PolicyHostedTool| {
        [&one.tool, &one.role, &one.decision, &one.rule, &one.why].map(Clone::clone).to_vec()
    };
    output::table(&std::iter::once(head).chain(tools.iter().map(row)).collect::<Vec<_>>())?;
    Ok(())
}

fn subject(rule: &v1::PolicyRule) -> &'static str {
    match rule.subject() {
        PolicySubject::Path => "path",
        PolicySubject::Command => "command",
        PolicySubject::Network => "network",
        PolicySubject::HostedTool => "hosted tool",
        PolicySubject::Unspecified => "-",
    }
}

fn as_json(policy: &v1::Policy) -> serde_json::Value {
    let rule = |rule: &v1::PolicyRule| {
        json!({
            "id": rule.id, "subject": subject(rule), "pattern": rule.pattern,
            "decision": rule.decision, "why": rule.why,
        })
    };
    let hosted_tool = |one: &v1::PolicyHostedTool| {
        json!({
            "tool": one.tool, "role": one.role, "decision": one.decision, "rule": one.rule,
            "why": one.why,
        })
    };
    json!({
        "revision": policy.revision,
        "since": policy.since_time.map(output::time),
        "allow_net": policy.allow_net,
        "faults": policy.faults,
        "roles": policy.roles.iter()
            .map(|role| json!({"name": role.name, "tools": role.tools}))
            .collect::<Vec<_>>(),
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
        "hosted_tools": policy.hosted_tools.iter().map(hosted_tool).collect::<Vec<_>>(),
    })
}

async fn validate(global: &Global) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.policy();
    let answer = client.validate_policy(v1::ValidatePolicyRequest {}).await?.into_inner();
    let current = Some(answer.current_revision);
    told(global, &answer.revision, answer.faults, current)
}

fn validate_files(global: &Global, directory: &Path) -> Result<Exit, Failure> {
    match compiled(directory).policy {
        Ok(policy) => told(global, policy.revision.as_str(), Vec::new(), None),
        Err(faults) => told(global, "", faults, None),
    }
}

/// Without a daemon, and so without the tools that one declares: roles can name only the built-in ones.
pub(super) fn compiled(directory: &Path) -> Compiled {
    let mut sources = match Sources::from_directory(directory) {
        Ok(sources) => sources,
        Err(PolicyErrors(faults)) => return Compiled::refused(faults),
    };
    sources.home = Process.variable("HOME");
    sources.extra_commands = Process.variable("ALLOW_COMMANDS");
    let built_in = Toolbox::built_in();
    let known: Vec<ToolName> = built_in.specs().iter().map(|spec| spec.name.clone()).collect();
    policy_files::compile_and_test(&sources, &known)
}

/// Says what came of it. JSON goes to standard output, faults for people to standard error.
pub(super) fn told(
    global: &Global,
    revision: &str,
    faults: Vec<String>,
    current: Option<String>,
) -> Result<Exit, Failure> {
    let is_valid = faults.is_empty();
    if global.output == Format::Json {
        output::json_line(&json!({
            "valid": is_valid, "revision": is_valid.then_some(revision),
            "current_revision": current, "faults": faults,
        }))?;
        return Ok(if is_valid { Exit::Done } else { Exit::BadUsage });
    }
    if !is_valid {
        let message = format!("the policy is not valid:\n{}", faults.join("\n"));
        return Err(Failure::new(Exit::BadUsage, message));
    }
    let in_force = match current {
        Some(current) if current == revision => ", and in force",
        Some(_) => "; `agentctl policy reload` puts it into force",
        None => "",
    };
    output::line(&format!("valid: {revision}{in_force}"))?;
    Ok(Exit::Done)
}

/// One word is a line; several are words.
fn shell_exec(command: &[String]) -> String {
    match command {
        [line] => json!({ "command": line }),
        words => json!({ "command": words }),
    }
    .to_string()
}

async fn explain(global: &Global, request: v1::ExplainDecisionRequest) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.policy();
    let found = client.explain_decision(request).await?.into_inner();
    let exit = match found.decision.as_str() {
        "allow" => Exit::Done,
        "require_approval" => Exit::Suspended,
        _ => Exit::Denied,
    };
    let limits: std::collections::BTreeMap<_, _> = found.limits.iter().collect();
    if global.output == Format::Json {
        let candidate = |one: &v1::PolicyCandidate| {
            json!({
                "rule": one.rule, "decision": one.decision, "place": one.place,
                "mismatch": (!one.mismatch.is_empty()).then_some(&one.mismatch),
            })
        };
        output::json_line(&json!({
            "decision": found.decision, "rule": found.rule, "why": found.why,
            "revision": found.revision, "normalised": found.normalised, "argv": found.argv,
            "limits": limits, "reaches": found.reaches, "nearest_rule": found.nearest_rule,
            "candidates": found.candidates.iter().map(candidate).collect::<Vec<_>>(),
        }))?;
        return Ok(exit);
    }
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("decision", format!("{} by {}", found.decision, found.rule)),
        row("why", found.why.clone()),
        row("understood as", found.normalised.clone()),
    ];
    if !found.argv.is_empty() {
        rows.push(row("would run", found.argv.join(" ")));
    }
    if !found.nearest_rule.is_empty() {
        rows.push(row("nearest rule", found.nearest_rule.clone()));
    }
    let limits = limits.iter().map(|(name, limit)| format!("{name}={limit}"));
    let limits = limits.collect::<Vec<_>>().join(" ");
    if !limits.is_empty() {
        rows.push(row("limits", limits));
    }
    rows.extend(found.reaches.iter().map(|line| row("may reach", line.clone())));
    rows.push(row("revision", found.revision.clone()));
    output::table(&rows)?;
    if !found.candidates.is_empty() {
        output::line("")?;
        let head = ["RULE", "DECISION", "FITS", "PLACE"].map(str::to_owned).to_vec();
        let candidate = |one: &v1::PolicyCandidate| {
            let fits = if one.mismatch.is_empty() {
                "yes".into()
            } else {
                format!("no: {}", one.mismatch)
            };
            vec![one.rule.clone(), one.decision.clone(), fits, one.place.clone()]
        };
        let candidates = found.candidates.iter().map(candidate);
        output::table(&std::iter::once(head).chain(candidates).collect::<Vec<_>>())?;
    }
    Ok(exit)
}

async fn reload(global: &Global, expected_revision: String) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.policy();
    let request = v1::ReloadPolicyRequest { expected_revision };
    let v1::ReloadPolicyResponse { revision, previous_revision } =
        client.reload_policy(request).await?.into_inner();
    if global.output == Format::Json {
        output::json_line(&json!({"revision": revision, "previous_revision": previous_revision}))?;
        return Ok(Exit::Done);
    }
    output::line(&match revision == previous_revision {
        true => format!("in force already: {revision}"),
        false => format!("in force: {revision}\nbefore:   {previous_revision}"),
    })?;
    Ok(Exit::Done)
}
