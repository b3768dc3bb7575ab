//! `hosted_tools` of `tools.yaml`: its shape, and how it becomes rules. Decides nothing: see `domain::policy::hosted`.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::{
    domain::{
        ids::{RoleName, RuleId},
        journal::Verdict,
        origin::Origin,
        policy::{Hosted, HostedPattern, HostedRule, McpPlace},
    },
    policy_files::{
        Sources,
        compiler::{Compiler, at, place},
        shapes::ToolsFile,
    },
    yaml::Placed,
};

/// Most rules.
const MOST: usize = 256;
/// Most places of one rule.
const PLACES: usize = 64;
/// Longest reason, in characters: it stands in the journal with every request to the model.
const WHY_CHARS: usize = 400;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostedShape {
    id: Placed<RuleId>,
    #[serde(rename = "type")]
    kind: Kind,
    servers: Option<Vec<Placed<String>>>,
    connectors: Option<Vec<Placed<String>>>,
    tunnels: Option<Vec<Placed<String>>>,
    roles: Option<BTreeSet<RoleName>>,
    decision: Verdict,
    why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    CodeInterpreter,
    FileSearch,
    Mcp,
}

/// One list of places, by its key.
type Places<'a> = (&'static str, &'a [Placed<String>]);

impl HostedShape {
    /// The lists that are written.
    fn places(&self) -> Vec<Places<'_>> {
        let lists = [
            ("servers", self.servers.as_deref()),
            ("connectors", self.connectors.as_deref()),
            ("tunnels", self.tunnels.as_deref()),
        ];
        lists.into_iter().filter_map(|(key, list)| Some((key, list?))).collect()
    }
}

impl Compiler {
    pub(super) fn hosted(&mut self, sources: &Sources, tools: &ToolsFile) -> Hosted {
        let (file, shapes) = (&sources.tools.name, &tools.hosted_tools);
        self.unique(file, "hosted_tools", shapes.iter().map(|rule| &rule.id));
        if let Some(surplus) = shapes.get(MOST) {
            let message = format!("has {} rules, {MOST} are accepted", shapes.len());
            self.fault(&at(file, &surplus.id), "hosted_tools", &message);
        }
        let rules = shapes.iter().enumerate().map(|(n, shape)| {
            let key = format!("hosted_tools[{n}]");
            self.hosted_rule(file, &key, shape, tools)
        });
        Hosted { rules: rules.collect(), tools: sources.hosted.clone() }
    }

    fn hosted_rule(
        &mut self,
        file: &str,
        key: &str,
        shape: &HostedShape,
        tools: &ToolsFile,
    ) -> HostedRule {
        let here = at(file, &shape.id);
        for role in shape.roles.iter().flatten().filter(|role| !tools.roles.contains_key(role)) {
            let message = format!("there is no role {role}; name one of `roles`");
            self.fault(&here, &format!("{key}.roles"), &message);
        }
        if shape.roles.as_ref().is_some_and(BTreeSet::is_empty) {
            self.fault(&here, &format!("{key}.roles"), "names nobody; leave it out for all roles");
        }
        if shape.why.chars().count() > WHY_CHARS {
            let message = format!("is longer than {WHY_CHARS} characters; say it in fewer");
            self.fault(&here, &format!("{key}.why"), &message);
        }
        HostedRule {
            id: shape.id.value.clone(),
            place: place(file, &shape.id),
            about: self.about(file, key, shape),
            roles: shape.roles.clone(),
            decision: shape.decision,
            why: shape.why.clone(),
        }
    }

    fn about(&mut self, file: &str, key: &str, shape: &HostedShape) -> HostedPattern {
        let (here, written) = (at(file, &shape.id), shape.places());
        let plain = match shape.kind {
            Kind::Mcp => None,
            Kind::CodeInterpreter => Some(HostedPattern::CodeInterpreter),
            Kind::FileSearch => Some(HostedPattern::FileSearch),
        };
        if let Some(pattern) = plain {
            for (list, _) in written {
                let message = "is for rules of type mcp; leave it out";
                self.fault(&here, &format!("{key}.{list}"), message);
            }
            return pattern;
        }
        if written.is_empty() && shape.decision == Verdict::Allow {
            let message = "a rule that allows names what it allows, for example servers: \
                           [https://mcp.example.com]";
            self.fault(&here, key, message);
        }
        let mut places = BTreeSet::new();
        for (list, texts) in &written {
            let key = format!("{key}.{list}");
            if texts.is_empty() || texts.len() > PLACES {
                let message = format!("has {} places; 1 to {PLACES} are accepted", texts.len());
                self.fault(&here, &key, &message);
            }
            for (n, text) in texts.iter().enumerate() {
                match mcp_place(list, &text.value) {
                    Ok(found) => drop(places.insert(found)),
                    Err(message) => self.fault(&at(file, text), &format!("{key}[{n}]"), &message),
                }
            }
        }
        HostedPattern::Mcp((!written.is_empty()).then_some(places))
    }
}

/// Errors: in words, without the text.
fn mcp_place(list: &str, text: &str) -> Result<McpPlace, String> {
    match list {
        "connectors" => {
            McpPlace::connector(text).map_err(|error| format!("a connector's id {error}"))
        }
        "tunnels" => McpPlace::tunnel(text).map_err(|error| format!("a tunnel's id {error}")),
        _ => Origin::parse(text)
            .map(McpPlace::Server)
            .map_err(|error| format!("is not a server such as https://mcp.example.com: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{
            ids::ToolName,
            policy::{HostedKind, HostedTool, Policy},
        },
        policy_files::{PolicyErrors, compile},
    };

    const RULES: &str = "\
hosted_tools:
  - {id: docs, type: mcp, servers: ['https://mcp.example.com'], decision: allow, why: public}
  - {id: search, type: file_search, roles: [executor], decision: allow, why: our own store}
  - {id: mail, type: mcp, connectors: [connector_mail], decision: require_approval, why: private}
  - {id: no.tunnel, type: mcp, tunnels: [t-1, t-2], decision: deny, why: leads inside}
";

    fn compiled(rules: &str, declared: Vec<HostedTool>) -> Result<Policy, Vec<String>> {
        let mut sources = Sources { hosted: declared, ..Sources::built_in() };
        sources.tools.text = sources.tools.text.replace("hosted_tools: []\n", rules);
        let tools =
            ["read_file", "write_file", "edit_file", "list_dir", "search_files", "shell_exec"];
        let tools =
            tools.into_iter().chain(["repo_summarize"]).map(ToolName::new).collect::<Vec<_>>();
        compile(&sources, &tools).map_err(|PolicyErrors(faults)| faults)
    }

    fn declared(kinds: Vec<HostedKind>) -> Vec<HostedTool> {
        let tool = |(index, kind)| HostedTool { index, kind, digest: format!("{index}") };
        kinds.into_iter().enumerate().map(tool).collect()
    }

    fn mcp(place: McpPlace) -> HostedKind {
        HostedKind::mcp("it", place).unwrap()
    }

    /// What becomes of each tool for a role.
    fn fates(policy: &Policy, role: &str) -> Vec<String> {
        let fates = policy.hosted_for(&RoleName::new(role)).into_iter();
        let said = fates.map(|fate| fate.decided());
        said.map(|said| format!("{} {}", said.decision.as_str(), said.rule)).collect()
    }

    #[test]
    fn what_rules_say_of_hosted_tools_is_decided_for_each_role() {
        let tools = declared(vec![
            mcp(McpPlace::server("https://mcp.example.com/mcp?key=k").unwrap()),
            HostedKind::FileSearch,
            mcp(McpPlace::connector("connector_mail").unwrap()),
            mcp(McpPlace::tunnel("t-2").unwrap()),
            HostedKind::CodeInterpreter,
        ]);
        let policy = compiled(RULES, tools).unwrap();
        let expected = [
            "allow docs",
            "allow search",
            "require_approval mail",
            "deny no.tunnel",
            "deny builtin/no-rule",
        ];
        assert_eq!(fates(&policy, "executor"), expected);
        assert_eq!(fates(&policy, "stranger"), ["deny builtin/unknown-role"; 5]);
        let fates = policy.hosted_for(&RoleName::new("executor")).into_iter();
        let leaves = fates.filter_map(|fate| fate.ruled.ok());
        let allowed: Vec<usize> = leaves.map(|leave| leave.index()).collect();
        assert_eq!(allowed, [0, 1]);
    }

    #[test]
    fn the_revision_covers_the_rules_and_what_is_declared() {
        let one = || declared(vec![HostedKind::FileSearch]);
        let mut other = one();
        other[0].digest = "another".into();
        let policies =
            [compiled(RULES, Vec::new()), compiled(RULES, one()), compiled(RULES, other)];
        let mut revisions: BTreeSet<_> =
            policies.into_iter().map(|policy| policy.unwrap().revision).collect();
        revisions.insert(compiled("hosted_tools: []\n", one()).unwrap().revision);
        assert_eq!(revisions.len(), 4);
        assert!(revisions.contains(&compiled(RULES, one()).unwrap().revision));
    }

    #[test]
    fn every_fault_of_a_rule_is_told_with_its_place_and_key() {
        let line =
            |text: &str| text.lines().position(|line| line == "hosted_tools: []").unwrap() + 2;
        let first = line(crate::policy_files::DEFAULT_TOOLS);
        for (rule, place, says) in [
            (
                "{id: a, type: mcp, decision: allow, why: w}",
                "10: hosted_tools[0]: ",
                "a rule that allows names",
            ),
            (
                "{id: a, type: mcp, servers: [], decision: deny, why: w}",
                "10: hosted_tools[0].servers: ",
                "has 0 places",
            ),
            (
                "{id: a, type: mcp, servers: ['https://h', 'https://h/mcp'], decision: allow, why: w}",
                "47: hosted_tools[0].servers[1]: ",
                "without what comes after it",
            ),
            (
                "{id: a, type: mcp, servers: ['*.example.com'], decision: allow, why: w}",
                "34: hosted_tools[0].servers[0]: ",
                "begins with https://",
            ),
            (
                "{id: a, type: mcp, servers: ['https://*.example.com'], decision: allow, why: w}",
                "34: hosted_tools[0].servers[0]: ",
                "labels of",
            ),
            (
                "{id: a, type: mcp, connectors: ['a b'], decision: allow, why: w}",
                "37: hosted_tools[0].connectors[0]: ",
                "a connector's id has 1 to 128",
            ),
            (
                "{id: a, type: file_search, servers: ['https://h'], decision: allow, why: w}",
                "10: hosted_tools[0].servers: ",
                "for rules of type mcp",
            ),
            (
                "{id: a, type: file_search, roles: [nobody], decision: allow, why: w}",
                "10: hosted_tools[0].roles: ",
                "no role nobody",
            ),
            (
                "{id: a, type: file_search, roles: [], decision: deny, why: w}",
                "10: hosted_tools[0].roles: ",
                "leave it out",
            ),
            (
                "{id: builtin/a, type: file_search, decision: deny, why: w}",
                "10: hosted_tools: ",
                "agentd's own",
            ),
            ("{id: a, type: web_search, decision: allow, why: w}", "", "web_search"),
            ("{id: a, type: mcp, server: 'https://h', decision: allow, why: w}", "", "server"),
        ] {
            let faults = compiled(&format!("hosted_tools:\n  - {rule}\n"), Vec::new()).unwrap_err();
            let at = format!("built-in tools.yaml:{first}:{place}");
            assert!(faults.len() == 1 && faults[0].starts_with(&at), "{rule}: {faults:#?}");
            assert!(faults[0].contains(says), "{rule}: {faults:#?}");
        }
    }

    #[test]
    fn rules_and_their_parts_are_bounded() {
        let rule =
            |n: usize| format!("  - {{id: r{n}, type: file_search, decision: deny, why: w}}\n");
        let many = |n: usize| format!("hosted_tools:\n{}", (0..n).map(rule).collect::<String>());
        assert!(compiled(&many(MOST), Vec::new()).is_ok());
        let faults = compiled(&many(MOST + 1), Vec::new()).unwrap_err();
        assert!(faults[0].ends_with("hosted_tools: has 257 rules, 256 are accepted"), "{faults:?}");
        let servers: Vec<String> = (0..=PLACES).map(|n| format!("'https://h{n}'")).collect();
        let (servers, why) = (servers.join(", "), "w".repeat(WHY_CHARS + 1));
        let rule = format!(
            "  - {{id: a, type: mcp, servers: [{servers}], decision: allow, why: {why}}}\n"
        );
        let faults = compiled(&format!("hosted_tools:\n{rule}"), Vec::new()).unwrap_err();
        assert!(faults.len() == 2, "{faults:?}");
        assert!(faults[0].contains("hosted_tools[0].why: is longer than 400"), "{faults:?}");
        assert!(faults[1].contains("hosted_tools[0].servers: has 65 places"), "{faults:?}");
        let twice =
            [rule.clone(), rule].concat().replace(&why, "w").replace(&servers, "'https://h'");
        let faults = compiled(&format!("hosted_tools:\n{twice}"), Vec::new()).unwrap_err();
        assert!(faults.len() == 1 && faults[0].contains("the id a is used twice"), "{faults:?}");
    }
}
