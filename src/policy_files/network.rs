//! `network.yaml`: its shape, and how it becomes rules. Decides nothing: see `domain::policy::network`.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::{
    domain::{
        host::Host,
        ids::{RoleName, RuleId},
        journal::Verdict,
        policy::{
            Destination, HostPattern, Network, NetworkRule, Passing, Place, PolicyTest,
            TestOutcome, Tunnels, judge_network,
        },
    },
    policy_files::{
        Sources,
        compiler::{Compiler, at, place},
        shapes::ToolsFile,
    },
    yaml::Placed,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetworkFile {
    #[serde(rename = "schema")]
    _schema: NetworkSchema,
    rules: Vec<RuleShape>,
    #[serde(default)]
    tests: Vec<Placed<TestShape>>,
}

#[derive(Debug, Deserialize)]
enum NetworkSchema {
    #[serde(rename = "agentd/network/v1")]
    V1,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleShape {
    id: Placed<RuleId>,
    hosts: Vec<String>,
    ports: Option<BTreeSet<u16>>,
    methods: Option<BTreeSet<String>>,
    roles: Option<BTreeSet<RoleName>>,
    #[serde(default)]
    tunnels: Tunnels,
    most_sent_kib: Option<u64>,
    most_received_kib: Option<u64>,
    decision: Verdict,
    why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TestShape {
    host: String,
    port: u16,
    /// None: a tunnel.
    method: Option<String>,
    role: RoleName,
    expect: Verdict,
    /// None where nothing matches.
    rule: Option<RuleId>,
}

impl Compiler {
    pub(super) fn network(
        &mut self,
        sources: &Sources,
        file: Option<&NetworkFile>,
        tools: &ToolsFile,
    ) -> Network {
        let rules = match (&sources.network, file) {
            (Some(source), Some(shape)) => self.network_rules(&source.name, shape, tools),
            _ => Vec::new(),
        };
        self.named_rules(sources, tools, &rules);
        Network { gate: sources.allow_net, rules }
    }

    fn network_rules(
        &mut self,
        file: &str,
        shape: &NetworkFile,
        tools: &ToolsFile,
    ) -> Vec<NetworkRule> {
        self.unique(file, "rules", shape.rules.iter().map(|rule| &rule.id));
        let rules: Vec<_> =
            shape.rules.iter().map(|rule| self.network_rule(file, rule, tools)).collect();
        for (n, placed) in shape.tests.iter().enumerate() {
            let place = place(file, placed);
            self.tested(&format!("tests[{n}]"), network_test(&rules, &placed.value, place));
        }
        rules
    }

    fn network_rule(&mut self, file: &str, shape: &RuleShape, tools: &ToolsFile) -> NetworkRule {
        let (at, key) = (at(file, &shape.id), format!("rule {}", shape.id.value));
        let mut hosts = Vec::new();
        for text in &shape.hosts {
            match HostPattern::parse(text) {
                Ok(pattern) => hosts.push(pattern),
                Err(error) => self.fault(&at, &key, &format!("hosts: {text:?}: {error}")),
            }
        }
        if shape.decision == Verdict::Allow && shape.ports.is_none() {
            self.fault(&at, &key, "ports: a rule that allows names them, for example [443]");
        }
        for method in shape.methods.iter().flatten() {
            if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
                let message = format!("methods: {method:?} is not a method such as GET");
                self.fault(&at, &key, &message);
            }
        }
        if shape.decision == Verdict::RequireApproval {
            let message = "decision: a connection cannot wait for a person; say allow or deny";
            self.fault(&at, &key, message);
        }
        for role in shape.roles.iter().flatten().filter(|role| !tools.roles.contains_key(role)) {
            self.fault(&at, &key, &format!("roles: tools.yaml has no role {role}"));
        }
        let bytes = |kib: Option<u64>| kib.map(|kib| kib.saturating_mul(1024));
        NetworkRule {
            id: shape.id.value.clone(),
            place: place(file, &shape.id),
            hosts,
            ports: shape.ports.clone(),
            methods: shape.methods.clone(),
            roles: shape.roles.clone(),
            tunnels: shape.tunnels,
            most_sent: bytes(shape.most_sent_kib),
            most_received: bytes(shape.most_received_kib),
            decision: shape.decision,
            why: shape.why.clone(),
        }
    }

    /// Whatever a command or a declared tool may reach is a rule that allows something.
    fn named_rules(&mut self, sources: &Sources, tools: &ToolsFile, rules: &[NetworkRule]) {
        let allowing = |id: &RuleId| {
            rules.iter().any(|rule| rule.id == *id && rule.decision == Verdict::Allow)
        };
        let commands = tools.commands.iter().map(|command| {
            let key = format!("command {}", command.id.value);
            (at(&sources.tools.name, &command.id), key, &command.network)
        });
        let declared = sources
            .declared
            .iter()
            .map(|tool| (tool.source.clone(), tool.spec.name.to_string(), &tool.network));
        for (file, key, network) in commands.chain(declared) {
            for id in network.iter().filter(|id| !allowing(id)) {
                let message =
                    format!("network: network.yaml has no rule {id} that allows anything");
                self.fault(&file, &key, &message);
            }
        }
    }
}

/// What the rules say of a destination. What is no host is refused before any rule is asked.
fn network_test(rules: &[NetworkRule], asked: &TestShape, place: Place) -> PolicyTest {
    let TestShape { host, port, method, role, expect, rule } = asked;
    let by = match method {
        None => Passing::Tunnel,
        Some(method) => Passing::Request { method: method.clone() },
    };
    let name = format!("{} {host}:{port} as {role}", by.method());
    let found = |verdict, rule: Option<&NetworkRule>| TestOutcome::Decision {
        verdict,
        rule: rule.map(|rule| rule.id.clone()),
    };
    let (found, why) = match Host::parse(host) {
        Err(_) => (found(Verdict::Deny, None), format!("{host:?} is not a host")),
        Ok(host) => match judge_network(rules, role, &Destination { host, port: *port, by }) {
            Err(denying) => (found(Verdict::Deny, Some(denying)), denying.why.clone()),
            Ok(allowing) => match allowing.first() {
                Some(rule) => (found(Verdict::Allow, Some(rule)), String::new()),
                None => (found(Verdict::Deny, None), String::new()),
            },
        },
    };
    let expected = TestOutcome::Decision { verdict: *expect, rule: rule.clone() };
    PolicyTest { name, place, expected, found, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{
            ids::ToolName,
            policy::{Gate, Grant, Policy},
        },
        policy_files::{PolicyErrors, Source, compile},
    };

    const NETWORK: &str = "\
schema: agentd/network/v1
rules:
  - {id: api, hosts: ['*.example.com'], ports: [443], decision: allow, why: the service}
  - {id: docs, hosts: [docs.example.org], ports: [80], methods: [GET], decision: allow, why: to be read}
  - {id: not.admin, hosts: [admin.example.com], decision: deny, why: nobody's business}
tests:
  - {host: api.example.com, port: 443, role: executor, expect: allow, rule: api}
  - {host: admin.example.com, port: 443, role: executor, expect: deny, rule: not.admin}
  - {host: example.com.evil.test, port: 443, role: executor, expect: deny}
  - {host: 'a b', port: 443, role: executor, expect: deny}
  - {host: docs.example.org, port: 80, method: GET, role: executor, expect: allow, rule: docs}
  - {host: docs.example.org, port: 80, method: POST, role: executor, expect: deny}
  - {host: docs.example.org, port: 80, role: executor, expect: deny}
";

    fn compiled(network: &str, command: &str, gate: Gate) -> Result<Policy, Vec<String>> {
        let mut sources = Sources { allow_net: gate, ..Sources::built_in() };
        sources.network = Some(Source { name: "network.yaml".into(), text: network.into() });
        sources.tools.text.push_str(&format!(
            "  - {{id: fetch, argv: [fetch], positionals: any, network: {command}, why: fetches}}\n"
        ));
        let tools =
            ["read_file", "write_file", "edit_file", "list_dir", "search_files", "shell_exec"];
        let tools =
            tools.into_iter().chain(["repo_summarize"]).map(ToolName::new).collect::<Vec<_>>();
        compile(&sources, &tools).map_err(|PolicyErrors(faults)| faults)
    }

    fn admitted(policy: &Policy, rule: &str, host: &str, port: u16) -> Result<String, String> {
        let grant = Grant {
            role: RoleName::new("executor"),
            tool: ToolName::new("shell_exec"),
            rule: RuleId::new(rule),
        };
        let host = Host::parse(host).unwrap();
        let passage = policy.admit(&grant, Destination { host, port, by: Passing::Tunnel });
        passage.map(|one| one.rule().to_string()).map_err(|ruling| ruling.rule.to_string())
    }

    #[test]
    fn a_command_reaches_what_the_rules_it_names_allow_and_nothing_else() {
        let policy = compiled(NETWORK, "[api]", Gate::Open).unwrap();
        assert_eq!(admitted(&policy, "fetch", "api.example.com", 443), Ok("api".into()));
        for (rule, host, port, by) in [
            ("fetch", "api.example.com", 22, "builtin/no-rule"),
            ("fetch", "docs.example.org", 80, "builtin/no-rule"),
            ("fetch", "admin.example.com", 443, "not.admin"),
            ("git.status", "api.example.com", 443, "builtin/no-rule"),
            ("gone", "api.example.com", 443, "builtin/no-rule"),
        ] {
            assert_eq!(admitted(&policy, rule, host, port), Err(by.into()), "{rule} {host}");
        }
        let shut = compiled(NETWORK, "[api]", Gate::Shut).unwrap();
        let refused = admitted(&shut, "fetch", "api.example.com", 443);
        assert_eq!(refused, Err("builtin/allow-net".into()));
        assert_ne!(shut.revision, policy.revision);
    }

    #[test]
    fn every_fault_of_the_network_is_told_with_its_place() {
        let faulty = NETWORK
            .replace("ports: [443], decision: allow", "roles: [nobody], decision: allow")
            .replace(
                "[docs.example.org], ports: [80], methods: [GET]",
                "['*'], ports: [80], methods: [get]",
            )
            .replace("expect: deny, rule: not.admin", "expect: allow, rule: api");
        let faults = compiled(&faulty, "[api, not.admin]", Gate::Open).unwrap_err();
        let begins = |at: &str, word: &str| {
            assert!(
                faults.iter().any(|fault| fault.starts_with(at) && fault.contains(word)),
                "{at} {word}: {faults:#?}"
            );
        };
        begins("network.yaml:3:10: rule api", "ports");
        begins("network.yaml:3:10: rule api", "nobody");
        begins("network.yaml:4:10: rule docs", "\"*\"");
        begins("network.yaml:4:10: rule docs", "\"get\"");
        let failed = "CONNECT admin.example.com:443 as executor: expects allow by api, the rules say \
                      deny by not.admin (nobody's business)";
        begins("network.yaml:8:5: tests[1]", failed);
        begins("built-in tools.yaml:", "has no rule not.admin");
    }
}
