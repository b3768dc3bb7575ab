//! Rules about what programs may reach. Decides about names alone: what a name stands for is looked at by
//! whoever dials, and never before the name was let through.

use std::{collections::BTreeSet, fmt};

use crate::domain::{
    host::{BadHost, Host},
    ids::{RoleName, RuleId, ToolName},
    journal::Verdict,
    policy::{Place, Policy, Ruling, deny},
};

/// What programs may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    pub gate: Gate,
    pub rules: Vec<NetworkRule>,
}

/// `ALLOW_NET`, above all rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gate {
    /// The rules decide.
    Open,
    /// Nothing is reached, whatever the rules say.
    #[default]
    Shut,
}

/// One rule of `network.yaml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRule {
    pub id: RuleId,
    pub place: Place,
    pub hosts: Vec<HostPattern>,
    /// None: any, for a rule that denies.
    pub ports: Option<BTreeSet<u16>>,
    /// Requests of plain HTTP with these, at any of the ports, and no tunnels, in which no method is seen. None:
    /// tunnels, and requests at port 80.
    pub methods: Option<BTreeSet<String>>,
    /// None: any.
    pub roles: Option<BTreeSet<RoleName>>,
    pub tunnels: Tunnels,
    /// Most bytes that one call may send to, and get from, what this rule lets it reach.
    pub most_sent: Option<u64>,
    pub most_received: Option<u64>,
    pub decision: Verdict,
    pub why: String,
}

/// Where plain HTTP is spoken without being named.
const PLAIN_PORT: u16 = 80;
/// Longest list of what may be reached that is told, in characters.
const TOLD: usize = 300;

/// What a tunnel must begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tunnels {
    /// TLS that names the host for which the tunnel was asked.
    #[default]
    Tls,
    Anything,
}

/// Which hosts a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    Exactly(Host),
    /// All names below this one, without itself.
    Below(std::sync::Arc<str>),
}

impl HostPattern {
    /// Reads `api.example.com`, `*.example.com` or an address. Errors: neither a host nor `*.` and a name.
    pub fn parse(text: &str) -> Result<Self, BadHost> {
        match text.strip_prefix("*.") {
            None => Host::parse(text).map(Self::Exactly),
            Some(rest) => match Host::parse(rest)? {
                Host::Name(name) => Ok(Self::Below(name)),
                Host::Address(_) => Err(BadHost::Number),
            },
        }
    }

    fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Exactly(own), host) => own == host,
            (Self::Below(parent), Host::Name(name)) => name
                .strip_suffix(parent.as_ref())
                .is_some_and(|labels| labels.len() > 1 && labels.ends_with('.')),
            (Self::Below(_), Host::Address(_)) => false,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(host) => host.fmt(f),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

/// What a program wants to reach, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub host: Host,
    pub port: u16,
    pub by: Passing,
}

/// How something is to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passing {
    /// Bytes both ways, of which only the beginning is looked at.
    Tunnel,
    /// One request of plain HTTP with this method.
    Request { method: String },
}

impl Passing {
    /// As it is told: a method, or `CONNECT`.
    pub fn method(&self) -> &str {
        match self {
            Self::Tunnel => "CONNECT",
            Self::Request { method } => method,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// For whom a program may reach something: the rule that let it start says what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub role: RoleName,
    pub tool: ToolName,
    pub rule: RuleId,
}

/// Leave to reach one destination. [`Policy::admit`] alone makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    destination: Destination,
    rule: RuleId,
    why: String,
    tunnels: Tunnels,
    most_sent: Option<u64>,
    most_received: Option<u64>,
}

impl Passage {
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    pub fn rule(&self) -> &RuleId {
        &self.rule
    }

    pub fn why(&self) -> &str {
        &self.why
    }

    pub fn tunnels(&self) -> Tunnels {
        self.tunnels
    }

    /// Most bytes that the call may send in all under this rule.
    pub fn most_sent(&self) -> u64 {
        self.most_sent.unwrap_or(u64::MAX)
    }

    /// Most bytes that the call may get in all under this rule.
    pub fn most_received(&self) -> u64 {
        self.most_received.unwrap_or(u64::MAX)
    }
}

impl Passage {
    /// What both let through.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let least = |one: Option<u64>, two: Option<u64>| one.into_iter().chain(two).min();
        let tunnels = match (self.tunnels, other.tunnels) {
            (Tunnels::Anything, Tunnels::Anything) => Tunnels::Anything,
            (Tunnels::Tls, _) | (_, Tunnels::Tls) => Tunnels::Tls,
        };
        Self {
            tunnels,
            most_sent: least(self.most_sent, other.most_sent),
            most_received: least(self.most_received, other.most_received),
            ..other
        }
    }
}

impl NetworkRule {
    /// Hosts, ports and methods, for people.
    pub fn speaks_of_what(&self) -> String {
        let list = |parts: Vec<String>| parts.join(", ");
        let hosts = list(self.hosts.iter().map(ToString::to_string).collect());
        let ports = match &self.ports {
            Some(ports) => {
                format!(" at port {}", list(ports.iter().map(ToString::to_string).collect()))
            }
            None => String::new(),
        };
        let methods = match &self.methods {
            Some(methods) => {
                format!(" by {} of plain http", list(methods.iter().cloned().collect()))
            }
            None => String::new(),
        };
        format!("{hosts}{ports}{methods}")
    }

    fn speaks_of(&self, role: &RoleName, wanted: &Destination) -> bool {
        self.roles.as_ref().is_none_or(|roles| roles.contains(role))
            && self.ports.as_ref().is_none_or(|ports| ports.contains(&wanted.port))
            && self.hosts.iter().any(|host| host.matches(&wanted.host))
            && self.takes(wanted)
    }

    fn takes(&self, wanted: &Destination) -> bool {
        match (&self.methods, &wanted.by) {
            (None, Passing::Tunnel) => true,
            // What is meant for TLS is not to be spoken to in the clear; who denies denies that too.
            (None, Passing::Request { .. }) => {
                wanted.port == PLAIN_PORT || self.decision == Verdict::Deny
            }
            // Whatever is denied by method could be done within a tunnel.
            (Some(_), Passing::Tunnel) => self.decision == Verdict::Deny,
            (Some(methods), Passing::Request { method }) => methods.contains(method),
        }
    }
}

/// What the rules say about a destination, whoever asks: all matching rules count, deny beats allow.
pub fn judge<'a>(
    rules: &'a [NetworkRule],
    role: &RoleName,
    wanted: &Destination,
) -> Result<Vec<&'a NetworkRule>, &'a NetworkRule> {
    let matching: Vec<_> = rules.iter().filter(|rule| rule.speaks_of(role, wanted)).collect();
    match matching.iter().find(|rule| rule.decision == Verdict::Deny) {
        Some(denying) => Err(denying),
        None => Ok(matching),
    }
}

impl Policy {
    /// Decides whether a program that was started under `grant` may reach `wanted`.
    pub fn admit(&self, grant: &Grant, wanted: Destination) -> Result<Passage, Ruling> {
        if self.network.gate == Gate::Shut {
            let why =
                "programs reach nothing here: ALLOW_NET is off, which is the operator's to change";
            return Err(deny(RuleId::new("builtin/allow-net"), why.into()));
        }
        self.check_role(&grant.role, &grant.tool)?;
        let matching = judge(&self.network.rules, &grant.role, &wanted)
            .map_err(|denying| deny(denying.id.clone(), denying.why.clone()))?;
        let granted = self.granted(&grant.rule);
        match matching.iter().find(|rule| granted.contains(&rule.id)) {
            Some(rule) => Ok(Passage {
                destination: wanted,
                rule: rule.id.clone(),
                why: rule.why.clone(),
                tunnels: rule.tunnels,
                most_sent: rule.most_sent,
                most_received: rule.most_received,
            }),
            None => Err(self.unreached(grant, granted, &wanted)),
        }
    }

    /// What a program that was started under `grant` may reach, one line for each rule.
    pub(super) fn reaches(&self, grant: &Grant) -> Vec<String> {
        if self.network.gate == Gate::Shut {
            return vec!["nothing, since ALLOW_NET is off".into()];
        }
        let granted = self.granted(&grant.rule);
        let rules = self.network.rules.iter().filter(|rule| granted.contains(&rule.id));
        rules.map(|rule| format!("{}: {}", rule.id, rule.speaks_of_what())).collect()
    }

    /// Rules about the network that a rule about a program names.
    fn granted(&self, rule: &RuleId) -> &[RuleId] {
        let command = self.commands.iter().find(|command| command.id == *rule);
        let declared = || {
            self.declared
                .iter()
                .find(|(tool, _)| declared_rule(tool) == *rule)
                .map(|(_, rule)| rule)
        };
        command
            .map(|command| command.network.as_slice())
            .or_else(|| declared().map(|tool| tool.network.as_slice()))
            .unwrap_or_default()
    }

    fn unreached(&self, grant: &Grant, granted: &[RuleId], wanted: &Destination) -> Ruling {
        let open = self.network.rules.iter().filter(|rule| {
            granted.contains(&rule.id)
                && rule.decision == Verdict::Allow
                && rule.roles.as_ref().is_none_or(|roles| roles.contains(&grant.role))
        });
        let open: Vec<String> = open.map(NetworkRule::speaks_of_what).collect();
        let open = if open.is_empty() { "nothing".into() } else { open.join("; ") };
        let open = match open.char_indices().nth(TOLD) {
            Some((end, _)) => format!("{}…", &open[..end]),
            None => open,
        };
        let why = format!(
            "no rule lets what {} starts reach {wanted} by {}; it may reach {open}",
            grant.rule,
            wanted.by.method()
        );
        deny(RuleId::new("builtin/no-rule"), why)
    }
}

/// The id under which a declared tool is allowed.
pub(super) fn declared_rule(tool: &ToolName) -> RuleId {
    RuleId::new(format!("tools.declared/{tool}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    fn matches(pattern_text: &str, host: &str) -> bool {
        pattern(pattern_text).matches(&Host::parse(host).unwrap())
    }

    #[test]
    fn a_pattern_means_whole_labels_and_never_the_name_itself() {
        assert!(matches("*.example.com", "api.example.com"));
        assert!(matches("*.example.com", "a.b.EXAMPLE.com."));
        for other in ["example.com", "evilexample.com", "example.com.evil.test", "com"] {
            assert!(!matches("*.example.com", other), "{other}");
        }
        assert!(matches("example.com", "Example.Com"));
        assert!(!matches("example.com", "api.example.com"));
        for text in ["*", "*.", "a.*.com", "**.com", "*.1.2.3.4", "*com"] {
            assert!(HostPattern::parse(text).is_err(), "{text}");
        }
    }

    fn rule(id: &str, decision: Verdict) -> NetworkRule {
        NetworkRule {
            id: RuleId::new(id),
            place: Place { file: "network.yaml".into(), line: 1, column: 1 },
            hosts: vec![pattern("*.example.com")],
            ports: Some([443].into()),
            methods: None,
            roles: None,
            tunnels: Tunnels::Tls,
            most_sent: None,
            most_received: None,
            decision,
            why: "said so".into(),
        }
    }

    fn to(host: &str, port: u16, by: Passing) -> Destination {
        Destination { host: Host::parse(host).unwrap(), port, by }
    }

    #[test]
    fn deny_beats_allow_whatever_their_order() {
        let role = RoleName::new("executor");
        let wanted = to("api.example.com", 443, Passing::Tunnel);
        let (allow, deny) = (rule("a", Verdict::Allow), rule("d", Verdict::Deny));
        assert_eq!(judge(std::slice::from_ref(&allow), &role, &wanted).unwrap()[0].id, allow.id);
        for rules in [[allow.clone(), deny.clone()], [deny.clone(), allow]] {
            assert_eq!(judge(&rules, &role, &wanted).unwrap_err().id, deny.id);
        }
    }

    #[test]
    fn a_rule_about_methods_lets_no_tunnel_through_and_a_denied_method_closes_tunnels_too() {
        let role = RoleName::new("executor");
        let get = || Passing::Request { method: "GET".into() };
        let methods = Some(["GET".to_owned()].into());
        let allow = [NetworkRule { methods: methods.clone(), ..rule("a", Verdict::Allow) }];
        assert_eq!(judge(&allow, &role, &to("a.example.com", 443, get())).unwrap().len(), 1);
        assert!(
            judge(&allow, &role, &to("a.example.com", 443, Passing::Tunnel)).unwrap().is_empty()
        );
        let deny = [NetworkRule { methods, ..rule("d", Verdict::Deny) }];
        assert!(judge(&deny, &role, &to("a.example.com", 443, Passing::Tunnel)).is_err());
    }

    #[test]
    fn other_ports_and_roles_and_empty_lists_match_nothing() {
        let role = RoleName::new("executor");
        let wanted = to("api.example.com", 443, Passing::Tunnel);
        let at = |change: fn(&mut NetworkRule)| {
            let mut rule = rule("a", Verdict::Allow);
            change(&mut rule);
            judge(&[rule], &role, &wanted).unwrap().len()
        };
        assert_eq!(at(|_| {}), 1);
        assert_eq!(at(|rule| rule.ports = Some([22].into())), 0);
        assert_eq!(at(|rule| rule.ports = Some(BTreeSet::new())), 0);
        assert_eq!(at(|rule| rule.hosts.clear()), 0);
        assert_eq!(at(|rule| rule.roles = Some(BTreeSet::new())), 0);
        assert_eq!(at(|rule| rule.roles = Some([RoleName::new("reviewer")].into())), 0);
    }
}
