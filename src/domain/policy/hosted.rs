//! Rules about tools that the backend runs itself. To declare one is the effect that is decided about: what it does
//! then, nobody here can confine. No credential of one comes here.

use std::{collections::BTreeSet, fmt};

use crate::domain::{
    ids::{RoleName, RuleId},
    journal::{HostedDecided, Verdict},
    origin::{BadOrigin, Origin},
    policy::{Place, Policy, Ruling, allow, deny, refuse, strictest},
    tool::EffectClass,
};

/// The hosted tools, and what may be declared of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosted {
    /// In the order of the file.
    pub rules: Vec<HostedRule>,
    /// In the order of the configuration.
    pub tools: Vec<HostedTool>,
}

/// A tool that the operator wants the backend to run, as far as policy looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedTool {
    /// Its place in the configuration's list, from 0.
    pub index: usize,
    pub kind: HostedKind,
    /// SHA-256 of the declaration as it was written, where credentials are only named: 64 hexadecimal digits.
    pub digest: String,
}

/// What a hosted tool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostedKind {
    CodeInterpreter,
    FileSearch,
    Mcp { label: String, at: McpPlace },
}

/// Where the backend finds an MCP server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum McpPlace {
    Server(Origin),
    /// One that the backend's vendor keeps, by its id.
    Connector(String),
    /// One that dials the backend's vendor, by its id.
    Tunnel(String),
}

/// Longest label and longest id of a connector or a tunnel, in bytes.
const NAME_BYTES: usize = 128;

/// A text is no label and no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("has 1 to 128 letters, digits, '_', '-' and '.'")]
pub struct BadName;

impl HostedKind {
    /// What its running may come to, as far as anybody outside of the backend can tell. A search changes nothing;
    /// code is interpreted in a container of the backend's that reaches nothing; a server does what it likes.
    fn class(&self) -> EffectClass {
        match self {
            Self::FileSearch => EffectClass::Pure,
            Self::CodeInterpreter => EffectClass::Idempotent,
            Self::Mcp { .. } => EffectClass::NonIdempotent,
        }
    }

    /// An MCP server by what the backend calls it.
    pub fn mcp(label: &str, at: McpPlace) -> Result<Self, BadName> {
        Ok(Self::Mcp { label: name(label)?, at })
    }
}

impl McpPlace {
    /// The server that a URL leads to, whatever its path.
    pub fn server(url: &str) -> Result<Self, BadOrigin> {
        Origin::of_url(url).map(Self::Server)
    }

    pub fn connector(id: &str) -> Result<Self, BadName> {
        name(id).map(Self::Connector)
    }

    pub fn tunnel(id: &str) -> Result<Self, BadName> {
        name(id).map(Self::Tunnel)
    }
}

fn name(text: &str) -> Result<String, BadName> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    match (1..=NAME_BYTES).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(BadName),
    }
}

impl fmt::Display for HostedTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            HostedKind::CodeInterpreter => f.write_str("code_interpreter"),
            HostedKind::FileSearch => f.write_str("file_search"),
            HostedKind::Mcp { label, at } => write!(f, "mcp {label} at {at}"),
        }
    }
}

impl fmt::Display for McpPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(origin) => origin.fmt(f),
            Self::Connector(id) => write!(f, "connector {id}"),
            Self::Tunnel(id) => write!(f, "tunnel {id}"),
        }
    }
}

/// One rule under `hosted_tools` in `tools.yaml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedRule {
    pub id: RuleId,
    pub place: Place,
    pub about: HostedPattern,
    /// None: any.
    pub roles: Option<BTreeSet<RoleName>>,
    pub decision: Verdict,
    pub why: String,
}

/// Which hosted tools a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostedPattern {
    CodeInterpreter,
    FileSearch,
    /// Those at these places; none: wherever they are, for a rule that does not allow.
    Mcp(Option<BTreeSet<McpPlace>>),
}

impl HostedPattern {
    fn matches(&self, kind: &HostedKind) -> bool {
        match (self, kind) {
            (Self::CodeInterpreter, HostedKind::CodeInterpreter)
            | (Self::FileSearch, HostedKind::FileSearch)
            | (Self::Mcp(None), HostedKind::Mcp { .. }) => true,
            (Self::Mcp(Some(places)), HostedKind::Mcp { at, .. }) => places.contains(at),
            (Self::CodeInterpreter | Self::FileSearch | Self::Mcp(_), _) => false,
        }
    }
}

impl fmt::Display for HostedPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CodeInterpreter => f.write_str("code_interpreter"),
            Self::FileSearch => f.write_str("file_search"),
            Self::Mcp(None) => f.write_str("mcp anywhere"),
            Self::Mcp(Some(places)) => {
                let places: Vec<String> = places.iter().map(ToString::to_string).collect();
                write!(f, "mcp at {}", places.join(", "))
            }
        }
    }
}

impl HostedRule {
    /// Tools and roles, for people.
    pub fn speaks_of_what(&self) -> String {
        let role = |roles: &BTreeSet<RoleName>| {
            let roles: Vec<String> = roles.iter().map(ToString::to_string).collect();
            format!("{} for {}", self.about, roles.join(", "))
        };
        self.roles.as_ref().map_or_else(|| self.about.to_string(), role)
    }

    fn speaks_of(&self, role: &RoleName, tool: &HostedTool) -> bool {
        self.roles.as_ref().is_none_or(|roles| roles.contains(role))
            && self.about.matches(&tool.kind)
    }
}

/// Leave to declare one hosted tool to the backend. [`Policy::admit_hosted`] alone makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedLeave {
    index: usize,
    ruling: Ruling,
}

impl HostedLeave {
    /// The tool's place in the configuration's list, from 0.
    pub fn index(&self) -> usize {
        self.index
    }
}

/// What becomes of one hosted tool for agents in one role.
#[derive(Debug, Clone)]
pub struct HostedFate<'a> {
    pub tool: &'a HostedTool,
    pub ruled: Result<HostedLeave, Ruling>,
}

impl HostedFate<'_> {
    pub fn ruling(&self) -> &Ruling {
        match &self.ruled {
            Ok(leave) => &leave.ruling,
            Err(ruling) => ruling,
        }
    }

    /// As the journal remembers it.
    pub fn decided(&self) -> HostedDecided {
        let Ruling { verdict, rule, why, .. } = self.ruling().clone();
        let (index, tool) = (self.tool.index, self.tool.to_string());
        let effect_class = self.tool.kind.class();
        HostedDecided { index, tool, decision: verdict, rule, why, effect_class }
    }
}

/// What becomes of one hosted tool.
#[derive(Debug, Clone)]
pub struct HostedOutlook<'a> {
    pub tool: &'a HostedTool,
    /// For every role of the policy, in the order of their names.
    pub fates: Vec<(&'a RoleName, HostedFate<'a>)>,
}

impl HostedOutlook<'_> {
    /// Whether it is declared to the backend for agents in some role.
    pub fn is_declared(&self) -> bool {
        self.fates.iter().any(|(_, fate)| fate.ruled.is_ok())
    }
}

impl fmt::Display for HostedOutlook<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self.fates.iter().map(|(role, fate)| {
            let Ruling { verdict, rule, .. } = fate.ruling();
            format!("{} by {rule} for {role}", verdict.as_str())
        });
        write!(f, "{}: {}", self.tool, said.collect::<Vec<_>>().join(", "))
    }
}

/// The rule that allows it, or the ruling that does not: all matching rules count.
fn judge<'a>(
    rules: &'a [HostedRule],
    role: &RoleName,
    tool: &HostedTool,
) -> Result<&'a HostedRule, Ruling> {
    let mut matching = rules.iter().filter(|rule| rule.speaks_of(role, tool));
    if let Some(rule) = strictest(matching.clone(), |rule| rule.decision) {
        return Err(refuse(&rule.id, rule.decision, rule.why.clone()));
    }
    matching.next().ok_or_else(|| {
        let why = format!("no rule under hosted_tools in tools.yaml allows {tool} to {role}");
        deny(RuleId::new("builtin/no-rule"), why)
    })
}

impl Policy {
    /// Decides whether a hosted tool is declared to the backend for an agent in `role`.
    pub fn admit_hosted(&self, role: &RoleName, tool: &HostedTool) -> Result<HostedLeave, Ruling> {
        self.role(role)?;
        let rule = judge(&self.hosted.rules, role, tool)?;
        let ruling = allow(&rule.id, &rule.why, tool.kind.class());
        Ok(HostedLeave { index: tool.index, ruling })
    }

    /// What becomes of each hosted tool for an agent in `role`, in the order of the configuration.
    pub fn hosted_for(&self, role: &RoleName) -> Vec<HostedFate<'_>> {
        let fate = |tool| HostedFate { tool, ruled: self.admit_hosted(role, tool) };
        self.hosted.tools.iter().map(fate).collect()
    }

    /// What becomes of each hosted tool for every role, in the order of the configuration.
    pub fn hosted_outlook(&self) -> impl Iterator<Item = HostedOutlook<'_>> {
        self.hosted.tools.iter().map(|tool| {
            let fate = |role| (role, HostedFate { tool, ruled: self.admit_hosted(role, tool) });
            HostedOutlook { tool, fates: self.roles.keys().map(fate).collect() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { file: "tools.yaml".into(), line: 1, column: 1 }
    }

    fn rule(id: &str, about: HostedPattern, decision: Verdict) -> HostedRule {
        let (id, why) = (RuleId::new(id), "said so".to_owned());
        HostedRule { id, place: place(), about, roles: None, decision, why }
    }

    fn mcp(places: &[McpPlace]) -> HostedPattern {
        HostedPattern::Mcp(Some(places.iter().cloned().collect()))
    }

    fn server(url: &str) -> McpPlace {
        McpPlace::server(url).unwrap()
    }

    fn tool(kind: HostedKind) -> HostedTool {
        HostedTool { index: 3, kind, digest: String::new() }
    }

    fn at(place: McpPlace) -> HostedTool {
        tool(HostedKind::mcp("docs", place).unwrap())
    }

    /// What is decided, and by which rule.
    fn decided(rules: &[HostedRule], role: &str, tool: &HostedTool) -> String {
        match judge(rules, &RoleName::new(role), tool) {
            Ok(rule) => format!("allow {}", rule.id),
            Err(ruling) => format!("{} {}", ruling.verdict.as_str(), ruling.rule),
        }
    }

    #[test]
    fn a_server_is_allowed_by_scheme_host_and_port_and_by_nothing_that_looks_like_them() {
        let rules = [rule("docs", mcp(&[server("https://mcp.example.com")]), Verdict::Allow)];
        let of = |url| decided(&rules, "executor", &at(server(url)));
        for url in ["https://mcp.example.com/a/b?c", "https://MCP.example.com.:443"] {
            assert_eq!(of(url), "allow docs", "{url}");
        }
        for url in [
            "http://mcp.example.com/",
            "https://mcp.example.com:8443/",
            "https://mcp.example.com.evil.test/",
            "https://a.mcp.example.com/",
            "https://example.com/",
        ] {
            assert_eq!(of(url), "deny builtin/no-rule", "{url}");
        }
        let other = at(McpPlace::connector("mcp.example.com").unwrap());
        assert_eq!(decided(&rules, "executor", &other), "deny builtin/no-rule");
    }

    #[test]
    fn deny_beats_approval_that_beats_allow_whatever_their_order() {
        let about = || mcp(&[server("https://mcp.example.com")]);
        let tool = at(server("https://mcp.example.com/mcp"));
        let allow = rule("a", about(), Verdict::Allow);
        let ask = rule("ask", HostedPattern::Mcp(None), Verdict::RequireApproval);
        let deny = rule("d", HostedPattern::Mcp(None), Verdict::Deny);
        for (rules, expected) in [
            (vec![&allow], "allow a"),
            (vec![&allow, &ask], "require_approval ask"),
            (vec![&ask, &allow], "require_approval ask"),
            (vec![&allow, &ask, &deny], "deny d"),
            (vec![&deny, &allow], "deny d"),
            (vec![], "deny builtin/no-rule"),
        ] {
            let rules: Vec<HostedRule> = rules.into_iter().cloned().collect();
            assert_eq!(decided(&rules, "executor", &tool), expected, "{rules:?}");
        }
    }

    #[test]
    fn a_rule_speaks_of_its_type_its_places_and_its_roles_only() {
        let search = tool(HostedKind::FileSearch);
        let code = tool(HostedKind::CodeInterpreter);
        let connector = at(McpPlace::connector("connector_mail").unwrap());
        let tunnel = at(McpPlace::tunnel("connector_mail").unwrap());
        let mut for_reviewers = rule("s", HostedPattern::FileSearch, Verdict::Allow);
        for_reviewers.roles = Some([RoleName::new("reviewer")].into());
        let mail = mcp(&[McpPlace::connector("connector_mail").unwrap()]);
        let rules = [for_reviewers, rule("mail", mail, Verdict::Allow)];
        for (role, tool, expected) in [
            ("reviewer", &search, "allow s"),
            ("executor", &search, "deny builtin/no-rule"),
            ("executor", &code, "deny builtin/no-rule"),
            ("executor", &connector, "allow mail"),
            ("executor", &tunnel, "deny builtin/no-rule"),
        ] {
            assert_eq!(decided(&rules, role, tool), expected, "{role} {tool}");
        }
    }

    #[test]
    fn what_is_no_plain_name_is_neither_a_label_nor_an_id() {
        for text in ["", "a b", "a\n", "ä", &"x".repeat(129)] {
            assert_eq!(McpPlace::connector(text), Err(BadName), "{text:?}");
        }
        assert_eq!(at(server("http://h:81/x")).to_string(), "mcp docs at http://h:81");
    }
}
