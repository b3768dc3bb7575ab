//! Tools that the backend runs itself: it is told only of those that the policy allows to the role, decided anew for
//! each request, and the record says by which rule. That what is allowed is passed on as it stands:
//! `configuration`.

use std::fs;

use agentd::scripted::{Kind, Manner, Script, Seen, Turn};
use serde_json::{Value, json};

use crate::{
    policy::{in_force, reload},
    support::{Backend, Settings, Story, TestDaemon, manner, wait_until, with_hosted},
};

const SECRET: &str = "planted-7a1e0b-secret";

/// Declares an MCP server, with a credential in its path too.
fn mcp(label: &str, server: &str) -> String {
    format!(
        "  - {{type: mcp, server_label: {label}, server_url: '{server}/{SECRET}', authorization: {{command: \
         [/bin/echo, {SECRET}]}}}}\n"
    )
}

fn settings(backend: &Backend, tools: &[String], rules: &str) -> Settings {
    Settings {
        base_url: backend.url(),
        configuration: format!("hosted_tools:\n{}", tools.concat()),
        hosted: rules.into(),
        ..Settings::default()
    }
}

/// A server that may be told of every hosted tool.
fn taking_all() -> Manner {
    Manner { kind: Kind::OpenAi, ..manner() }
}

/// A backend that has nothing to do.
async fn quiet() -> Backend {
    Backend::start_as(Script { turns: vec![Turn::say("done")] }, taking_all()).await
}

/// Labels or types of the hosted tools that a request declares.
fn declared(request: &Value) -> Vec<&str> {
    let tools = request["tools"].as_array().unwrap().iter();
    let hosted = tools.filter(|tool| tool["type"] != "function");
    hosted.map(|tool| tool["server_label"].as_str().or(tool["type"].as_str()).unwrap()).collect()
}

/// What each request's entry says, and under which revision.
fn noted(story: &Story) -> Vec<(Vec<String>, String)> {
    let requests = story.entries.iter().filter(|entry| entry.kind == "model_request");
    let said = |entry: &agentd::proto::v1::JournalEntry| {
        let payload: Value = serde_json::from_str(&entry.payload).unwrap();
        let tools = payload["hosted_tools"].as_array().cloned().unwrap_or_default();
        let text = |tool: &Value, key: &str| tool[key].as_str().unwrap().to_owned();
        let said = |tool: &Value| {
            format!("{}: {} {}", text(tool, "tool"), text(tool, "decision"), text(tool, "rule"))
        };
        (tools.iter().map(said).collect(), entry.policy_revision.clone())
    };
    requests.map(said).collect()
}

/// Puts other rules about hosted tools into force.
async fn decree(daemon: &TestDaemon, base: &str, rules: &str) {
    fs::write(daemon.home().join("policies/tools.yaml"), with_hosted(base, rules)).unwrap();
    reload(daemon, "").await.unwrap();
}

#[tokio::test]
async fn what_no_rule_allows_is_not_declared_and_everyone_who_looks_is_told() {
    let backend = quiet().await;
    let tools = [mcp("docs", "https://mcp.example.com"), "  - {type: code_interpreter}\n".into()];
    let daemon = TestDaemon::start_with(settings(&backend, &tools, ""));
    let story = daemon.carry_out("go").await;

    assert_eq!(declared(&backend.server.requests()[0]), Vec::<&str>::new());
    let refused = [
        "mcp docs at https://mcp.example.com: deny builtin/no-rule",
        "code_interpreter: deny builtin/no-rule",
    ];
    let revision = in_force(&daemon).await.revision;
    assert_eq!(noted(&story), [(refused.map(str::to_owned).to_vec(), revision)]);

    let shown = in_force(&daemon).await.hosted_tools;
    let shown: Vec<_> = shown
        .iter()
        .filter(|one| one.role == "executor")
        .map(|one| (one.tool.as_str(), one.role.as_str(), one.decision.as_str(), one.rule.as_str()))
        .collect();
    let expected = [
        ("mcp docs at https://mcp.example.com", "executor", "deny", "builtin/no-rule"),
        ("code_interpreter", "executor", "deny", "builtin/no-rule"),
    ];
    assert_eq!(shown, expected);
    let show = daemon.agentctl(&["policy", "show"]).await;
    let show = String::from_utf8(show.stdout).unwrap();
    assert!(show.contains("HOSTED TOOL") && show.contains("mcp docs at"), "{show}");
    let (status, checked) = daemon.check();
    assert_eq!(status, Some(0), "a warning: {checked}");
    let warning = "warn  hosted tool mcp docs at https://mcp.example.com: deny by builtin/no-rule for \
                   executor, deny by builtin/no-rule for planner, deny by builtin/no-rule for reviewer\n      -> the backend is not told of it: allow it under hosted_tools";
    assert!(checked.contains(warning), "{checked}");
    let log = daemon.log();
    assert!(log.contains("a hosted tool is not declared to the backend"), "{log}");
    let everything = format!("{story:?}{show}{checked}{log}");
    assert!(!everything.contains(SECRET), "a credential was said");
}

#[tokio::test]
async fn a_rule_declares_its_servers_to_its_roles_and_whatever_denies_beats_it() {
    let backend = quiet().await;
    let tools = [
        mcp("docs", "https://mcp.example.com"),
        mcp("suffix", "https://mcp.example.com.evil.test"),
        mcp("port", "https://mcp.example.com:8443"),
        mcp("plain", "http://mcp.example.com"),
        "  - {type: mcp, server_label: mail, connector_id: connector_mail}\n".into(),
        "  - {type: file_search, vector_store_ids: [vs_1]}\n".into(),
    ];
    let daemon = TestDaemon::start_with(settings(&backend, &tools, ""));
    let path = daemon.home().join("policies/tools.yaml");
    let base = fs::read_to_string(path).unwrap();
    let rule = |id: &str, about: &str, decision: &str| {
        format!("  - {{id: {id}, {about}, decision: {decision}, why: w}}\n")
    };
    let allow = rule("docs", "type: mcp, servers: ['https://mcp.example.com']", "allow");
    let role = |role: &str| allow.replace("type: mcp", &format!("roles: [{role}], type: mcp"));
    let never = rule("never", "type: mcp", "deny");
    let ask = rule("ask", "type: mcp, servers: ['https://mcp.example.com']", "require_approval");
    let rest = rule("rest", "type: mcp, connectors: [connector_mail]", "allow")
        + &rule("search", "type: file_search", "allow");
    let docs = |said: &str| format!("mcp docs at https://mcp.example.com: {said}");
    for (rules, expected, said) in [
        (allow.clone(), vec!["docs"], "allow docs"),
        (role("executor"), vec!["docs"], "allow docs"),
        (role("reviewer"), vec![], "deny builtin/no-rule"),
        ([allow.clone(), never.clone()].concat(), vec![], "deny never"),
        ([never.clone(), allow.clone()].concat(), vec![], "deny never"),
        ([allow.clone(), ask.clone()].concat(), vec![], "require_approval ask"),
        ([ask, never, allow.clone()].concat(), vec![], "deny never"),
        ([allow, rest].concat(), vec!["docs", "mail", "file_search"], "allow docs"),
    ] {
        decree(&daemon, &base, &rules).await;
        let story = daemon.carry_out("go").await;
        let requests = backend.server.requests();
        assert_eq!(declared(requests.last().unwrap()), expected, "{rules}");
        let noted = &noted(&story)[0].0;
        assert_eq!((noted.len(), &noted[0]), (6, &docs(said)), "{rules}");
    }
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_reload_holds_for_the_next_request_of_a_run_that_is_going() {
    let brain = |seen: &Seen| {
        agentd::scripted::Reply::Answer(match seen.turn {
            1 => Turn::call("shell_exec", json!({"command": ["sh", "pure.sh"]})),
            _ => Turn::say("done"),
        })
    };
    let backend = Backend::start_as(brain, taking_all()).await;
    let allow = "  - {id: code, type: code_interpreter, decision: allow, why: it may}\n";
    let tools = ["  - {type: code_interpreter}\n".into()];
    let daemon = TestDaemon::start_with(settings(&backend, &tools, allow));
    let tools = fs::read_to_string(daemon.home().join("policies/tools.yaml")).unwrap();
    let base = tools.replace(&format!("hosted_tools:\n{allow}"), "hosted_tools: []\n");
    let before = in_force(&daemon).await.revision;
    daemon.put("pure.sh", "echo here > here; until [ -e go ]; do sleep 0.02; done");
    let run = daemon.submit("go").await;
    wait_until("the call runs", || daemon.read("here").is_some()).await;

    decree(&daemon, &base, "  - {id: never, type: code_interpreter, decision: deny, why: no}\n")
        .await;
    let after = in_force(&daemon).await.revision;
    daemon.put("go", "");
    let story = daemon.story(&run.id).await;

    let requests = backend.server.requests();
    let sent: Vec<_> = requests.iter().map(declared).collect();
    assert_eq!(sent, [vec!["code_interpreter"], vec![]]);
    let said = |said: &str| vec![format!("code_interpreter: {said}")];
    assert_eq!(noted(&story), [(said("allow code"), before), (said("deny never"), after)]);
    assert!(daemon.audit().await.intact);
}
