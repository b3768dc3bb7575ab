//! Lists: tool calls of a run, agents, and the tokens that lead from page to page.

use agentd::{
    proto::v1::{self, ToolCallState, Verdict},
    scripted::{Reply, Script, Seen, Turn},
};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{Backend, TestDaemon, refusal};

async fn calls(daemon: &TestDaemon, run: &str, page_size: i32) -> Vec<v1::ToolCall> {
    let (mut calls, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListToolCallsRequest { run_id: run.into(), page_size, page_token };
        let page = daemon.client().await.runs().list_tool_calls(request).await.unwrap();
        let page = page.into_inner();
        assert!(page_size == 0 || page.tool_calls.len() <= usize::try_from(page_size).unwrap());
        calls.extend(page.tool_calls);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return calls;
        }
    }
}

/// A run with calls that are done, failed, refused and of a long output.
async fn busy() -> (Backend, TestDaemon, String) {
    let turns = vec![
        Turn::call("write_file", json!({"path": "a", "content": "é".repeat(5000)})),
        Turn::call("read_file", json!({"path": "a"})),
        Turn::call("read_file", json!({"path": "none"})),
        Turn::call("shell_exec", json!({"command": "rm -rf /"})),
        Turn::say("done"),
    ];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    let story = daemon.carry_out("be busy").await;
    let id = story.run.id;
    (backend, daemon, id)
}

#[tokio::test]
async fn every_call_of_a_run_is_listed_once_with_what_came_of_it() {
    let (_backend, daemon, run) = busy().await;

    let listed = calls(&daemon, &run, 0).await;

    let states: Vec<_> = listed.iter().map(|call| (call.turn, call.index, call.state())).collect();
    use ToolCallState::{Done, Failed, Refused};
    assert_eq!(states, [(1, 0, Done), (2, 0, Done), (3, 0, Failed), (4, 0, Refused)]);
    for (call, entry) in listed
        .iter()
        .zip(daemon.journal(&run).await.into_iter().filter(|entry| entry.kind == "tool_call"))
    {
        let payload: Value = serde_json::from_str(&entry.payload).unwrap();
        assert_eq!((&call.run_id, call.sequence), (&run, entry.sequence));
        assert_eq!(call.arguments, payload["arguments"].as_str().unwrap());
        assert_eq!(call.call_id, payload["call_id"].as_str().unwrap());
        assert_eq!(call.tool, payload["tool"].as_str().unwrap());
        assert_eq!(call.effect_class, payload["effect_class"].as_str().unwrap());
        assert_eq!(call.create_time, entry.time);
        assert!(call.end_time.is_some() && call.duration.is_some());
        let decision = call.decision.as_ref().unwrap();
        assert!(!decision.rule.is_empty() && !decision.why.is_empty(), "{decision:?}");
        // What is not there is no rule's to allow.
        let is_denied = decision.verdict() == Verdict::Deny;
        assert_eq!(is_denied, [Failed, Refused].contains(&call.state()));
        assert_eq!(call.attempt_count, u32::from(!is_denied));
        assert_eq!(
            call.outcome,
            call.state().as_str_name()["TOOL_CALL_STATE_".len()..].to_lowercase()
        );
    }
    assert!(listed[1].output_truncated);
    assert_eq!(listed[1].output.chars().count(), 2000);
    assert!(!listed[0].output_truncated);
    assert_eq!(calls(&daemon, &run, 1).await, listed, "page by page the same");
    assert_eq!(calls(&daemon, &run, 3).await, listed, "page by page the same");
}

#[tokio::test]
async fn a_call_under_way_is_running_and_its_end_is_open() {
    let turns = vec![Turn::call("shell_exec", json!({"command": "sh script.sh"})), Turn::say("x")];
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    let path = daemon.workspace().join("gate");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
    daemon.put("script.sh", "echo here >begun; read _ <gate");
    let run = daemon.submit("wait").await;
    daemon.wait_for_file("begun").await;

    let listed = calls(&daemon, &run.id, 0).await;

    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].state(), ToolCallState::Running);
    assert_eq!((listed[0].outcome.as_str(), listed[0].end_time), ("", None));
    daemon.cancel(&run.id).await;
    daemon.wait(&run.id).await;
    assert_eq!(calls(&daemon, &run.id, 0).await[0].state(), ToolCallState::Cancelled);
}

#[tokio::test]
async fn a_page_of_long_arguments_stays_within_what_clients_accept() {
    let write = |n: usize| {
        Turn::call("write_file", json!({"path": n.to_string(), "content": "x".repeat(900 << 10)}))
    };
    let turns = (0..6).map(write).chain([Turn::say("done")]).collect();
    let backend = Backend::start(Script { turns }).await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.carry_out("write a lot").await.run.id;

    let request = v1::ListToolCallsRequest { run_id: run.clone(), ..Default::default() };
    let page = daemon.client().await.runs().list_tool_calls(request).await.unwrap().into_inner();

    assert!(page.tool_calls.len() < 6 && page.encoded_len() < 4 << 20, "{}", page.encoded_len());
    assert!(page.tool_calls.iter().all(|call| call.state() == ToolCallState::Done));
    let all = calls(&daemon, &run, 0).await;
    assert_eq!(all.iter().map(|call| call.turn).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert!(all.iter().all(|call| call.arguments.len() > 900 << 10), "whole");
}

fn blamed(status: &Status) -> String {
    assert_eq!(refusal(status), (Code::InvalidArgument, "INVALID_ARGUMENT".into()));
    status.get_details_bad_request().unwrap().field_violations[0].field.clone()
}

#[tokio::test]
async fn a_token_of_another_list_or_a_tampered_one_is_refused() {
    let (_backend, daemon, run) = busy().await;
    let other = daemon.carry_out("another").await.run.id;
    let client = daemon.client().await;
    let runs = |page_token: &str| v1::ListRunsRequest {
        page_size: 1,
        page_token: page_token.into(),
        ..Default::default()
    };
    let of = |run: &str, page_token: &str| v1::ListToolCallsRequest {
        run_id: run.into(),
        page_size: 1,
        page_token: page_token.into(),
    };
    let runs_token = client.runs().list_runs(runs("")).await.unwrap().into_inner().next_page_token;
    let page = client.runs().list_tool_calls(of(&run, "")).await.unwrap().into_inner();
    let calls_token = page.next_page_token;
    client.runs().list_runs(runs(&runs_token)).await.expect("the control: its own token");
    client.runs().list_tool_calls(of(&run, &calls_token)).await.expect("the control");

    let tampered = runs_token.replace("p13", "p14");
    assert_ne!(tampered, runs_token);
    for token in [calls_token.as_str(), &tampered, "1", "next please"] {
        let status = client.runs().list_runs(runs(token)).await.unwrap_err();
        assert_eq!(blamed(&status), "page_token", "{token}");
    }
    for (run, token) in [(&run, &runs_token), (&other, &calls_token)] {
        let status = client.runs().list_tool_calls(of(run, token)).await.unwrap_err();
        assert_eq!(blamed(&status), "page_token", "{token}");
    }
    let filtered = v1::ListRunsRequest { states: vec![10], ..runs(&runs_token) };
    assert_eq!(blamed(&client.runs().list_runs(filtered).await.unwrap_err()), "page_token");
    let request = v1::ListToolsRequest { page_size: 1, page_token: runs_token.clone() };
    assert_eq!(blamed(&client.tools().list_tools(request).await.unwrap_err()), "page_token");
    let request = v1::ListAgentsRequest { page_size: 1, page_token: runs_token };
    assert_eq!(blamed(&client.admin().list_agents(request).await.unwrap_err()), "page_token");
}

#[tokio::test]
async fn agentctl_shows_calls_and_agents_as_a_table_and_as_json() {
    let (_backend, daemon, run) = busy().await;
    let said = async |arguments: &[&str]| {
        let output = daemon.agentctl(arguments).await;
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };

    let table = said(&["run", "tools", &run]).await;
    assert_eq!(table.lines().count(), 5, "{table}");
    assert!(table.contains("REFUSED") && table.contains("write_file"), "{table}");
    let json: Value =
        serde_json::from_str(&said(&["run", "tools", &run, "-o", "json"]).await).unwrap();
    assert_eq!(json["tool_calls"][3]["decision"]["verdict"], "DENY");
    assert_eq!(json["tool_calls"][1]["output_truncated"], true);

    let table = said(&["agents", "list"]).await;
    assert!(table.lines().any(|line| line.starts_with("executor")), "{table}");
    let json: Value = serde_json::from_str(&said(&["agents", "list", "-o", "json"]).await).unwrap();
    let [team, alone] = json["agents"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((&team["name"], &alone["name"]), (&json!("default"), &json!("executor")));
    assert_eq!(alone["built_in"], true);
    let tools = alone["tools"].as_array().unwrap();
    assert!(tools.contains(&json!("read_file")), "{json}");
    for agent in [team, alone] {
        assert!(agent["instructions"].as_str().unwrap().len() > 100, "{agent}");
    }
}

#[tokio::test]
async fn an_agent_that_is_listed_can_be_named_in_a_submission() {
    let backend = Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await;
    let daemon = TestDaemon::start(&backend.url());
    let request = v1::ListAgentsRequest::default();
    let agents = daemon.client().await.admin().list_agents(request).await.unwrap().into_inner();

    for agent in agents.agents {
        let request = v1::CreateRunRequest { agent: agent.name.clone(), ..daemon.request("x") };
        assert_eq!(daemon.create(request).await.unwrap().run.unwrap().agent, agent.name);
    }
    let unlisted = v1::CreateRunRequest { agent: "reviewer".into(), ..daemon.request("x") };
    let refused = daemon.create(unlisted).await.unwrap_err();
    assert!(refused.message().contains("it can name: default, executor"), "{refused:?}");
}
