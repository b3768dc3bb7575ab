//! Agents of the configuration: what they are told, which tools they have, and in which shape they answer.

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Script, Seen, Turn},
};
use serde_json::{Value, json};

use crate::support::{Backend, Settings, Story, TestDaemon, manner};

const WRITER: &str = r#"
agents:
  notes:
    description: writes release notes
    instructions: "You write notes for {label.team} in {workspace}, as {agent}. Braces: {{}}."
    tools: [read_file, list_dir]
    model: notes-model
    temperature: 0
  grader:
    instructions: Grade the risk.
    role: planner
    output: {type: object, properties: {risk: {enum: [low, high]}}, required: [risk], additionalProperties: false}
"#;

fn daemon(backend: &Backend, configuration: &str) -> TestDaemon {
    TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: configuration.into(),
        ..Settings::default()
    })
}

async fn run_of(daemon: &TestDaemon, agent: &str) -> Story {
    let request = v1::CreateRunRequest {
        agent: agent.into(),
        labels: [("team".to_owned(), "infra".to_owned())].into(),
        ..daemon.request("do it")
    };
    let run = daemon.create(request).await.unwrap().run.unwrap();
    daemon.story(&run.id).await
}

#[tokio::test]
async fn an_agent_of_the_configuration_is_told_what_stands_there_and_has_the_tools_that_it_is_given()
 {
    let brain = Script {
        turns: vec![
            Turn::call("read_file", json!({"path": "a.txt"}))
                .and_call("write_file", json!({"path": "b.txt", "content": "x"})),
            Turn::say("Noted."),
        ],
    };
    let backend = Backend::start(brain).await;
    let daemon = daemon(&backend, WRITER);
    daemon.put("a.txt", "a");
    let story = run_of(&daemon, "notes").await;
    assert_eq!((story.state(), story.run.agent.as_str()), (RunState::Succeeded, "notes"));
    let request = &backend.server.requests()[0];
    let workspace = daemon.workspace().canonicalize().unwrap();
    let told =
        format!("You write notes for infra in {}, as notes. Braces: {{}}.", workspace.display());
    assert_eq!(request["instructions"], told);
    assert_eq!((&request["model"], &request["temperature"]), (&json!("notes-model"), &json!(0.0)));
    let tools: Vec<&str> = request["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| tool["name"].as_str().unwrap())
        .collect();
    assert_eq!(tools, ["read_file", "list_dir"]);
    // What it was not given is refused, whatever its role may do.
    assert_eq!(daemon.read("b.txt"), None);
    assert_eq!(story.outputs().iter().filter(|(outcome, _)| outcome == "done").count(), 1);
    story.assert_calls_are_tied();
}

/// Grades, in whatever words come next.
async fn graded(words: &'static [&'static str]) -> (Backend, Story) {
    let turns = words.iter().map(|words| Turn::say(words)).collect();
    let backend = Backend::start_as(Script { turns }, manner()).await;
    let daemon = daemon(&backend, WRITER);
    let story = run_of(&daemon, "grader").await;
    (backend, story)
}

#[tokio::test]
async fn an_answer_that_is_to_have_a_shape_is_checked_and_the_shape_is_what_the_run_answers() {
    let (_, story) = graded(&["It is this:\n```json\n{\"risk\": \"low\"}\n```"]).await;
    assert_eq!(
        (story.state(), story.run.answer.as_str()),
        (RunState::Succeeded, r#"{"risk": "low"}"#)
    );
}

#[tokio::test]
async fn an_answer_without_its_shape_is_asked_for_once_more_without_tools_and_with_the_schema() {
    let (backend, story) = graded(&["Hard to say.", r#"{"risk": "high"}"#]).await;
    assert_eq!(
        (story.state(), story.run.answer.as_str()),
        (RunState::Succeeded, r#"{"risk": "high"}"#)
    );
    assert_eq!(story.payloads("output_refused").len(), 1);
    let again = &backend.server.requests()[1];
    assert!(again.get("tools").is_none(), "{again}");
    assert_eq!(again["text"]["format"]["schema"]["required"], json!(["risk"]));
}

#[tokio::test]
async fn an_answer_without_its_shape_twice_fails_the_run_and_its_words_are_kept() {
    let (_, story) = graded(&["Hard to say.", r#"{"risk": "some"}"#]).await;
    assert_eq!(story.run.error.as_ref().unwrap().reason, "OUTPUT_INVALID");
    let said: Vec<Value> =
        story.payloads("model_response").iter().map(|answer| answer["text"].clone()).collect();
    assert_eq!(said[1], r#"{"risk": "some"}"#);
}

#[tokio::test]
async fn agents_of_the_configuration_are_listed_with_what_they_are() {
    let backend = Backend::start(Script { turns: Vec::new() }).await;
    let daemon = daemon(&backend, WRITER);
    let told = daemon.agentctl(&["agents", "list", "-o", "json"]).await;
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let names: Vec<&str> = told["agents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|agent| agent["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["default", "executor", "notes", "grader"]);
    let (notes, grader) = (&told["agents"][2], &told["agents"][3]);
    assert_eq!(
        (&notes["tools"], &notes["model"]),
        (&json!(["read_file", "list_dir"]), &json!("notes-model"))
    );
    assert_eq!((&notes["built_in"], &notes["backend"]), (&json!(false), &json!("default")));
    assert_eq!(grader["role"], "planner");
    assert!(grader["output_schema"].as_str().unwrap().contains("risk"));
}

#[tokio::test]
async fn an_agent_that_the_configuration_has_no_more_fails_its_runs_in_words() {
    let backend = Backend::start(|_: &Seen| Reply::Hang).await;
    let mut daemon = daemon(&backend, WRITER);
    let request = v1::CreateRunRequest { agent: "notes".into(), ..daemon.request("do it") };
    let run = daemon.create(request).await.unwrap().run.unwrap();
    backend.wait_for_requests(1).await;
    daemon.kill();
    std::fs::write(daemon.home().join("agentd.yaml"), "").unwrap();
    daemon.restart();
    let story = daemon.story(&run.id).await;
    let error = story.run.error.as_ref().unwrap();
    assert_eq!(error.reason, "AGENT_UNKNOWN", "{error:?}");
    assert!(error.message.contains("put it back"));
}

#[test]
fn what_is_wrong_with_agents_is_told_at_its_place() {
    let mut daemon = TestDaemon::start("http://127.0.0.1:9");
    daemon.stop();
    let wrong = "agents:\n  executor: {instructions: x}\n  Bad Name: {instructions: y}\n  none: {role: executor}\n\
                 \x20 odd: {instructions: 'in {nowhere}', output: 3, backend: lost, temperature: 9}\n  default: {instructions: z}\n";
    std::fs::write(daemon.home().join("agentd.yaml"), wrong).unwrap();
    let output = daemon.command().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &std::fs::read_to_string(daemon.home().join("log")).unwrap();
    assert_ne!(output.status.code(), Some(0));
    for fault in [
        "executor.instructions: cannot be given to a built-in agent",
        "\"Bad Name\" is not a name",
        "none.instructions: is missing",
        "there is no variable {nowhere}",
        "odd.output: is not a JSON Schema",
        "there is no backend lost; there are default",
        "odd.temperature: a number from 0 to 2",
        "`default` is the built-in team",
    ] {
        assert!(said.contains(fault), "{fault}\nis not in\n{said}");
    }
}

#[test]
fn an_agent_wants_a_role_that_the_policy_has_and_tools_that_there_are() {
    let mut daemon = TestDaemon::start("http://127.0.0.1:9");
    daemon.stop();
    let wrong = "agents: {odd: {instructions: x, role: pirate, tools: [read_file, teleport]}}\n";
    std::fs::write(daemon.home().join("agentd.yaml"), wrong).unwrap();
    assert_ne!(daemon.command().output().unwrap().status.code(), Some(0));
    let (status, checked) = daemon.check();
    assert_eq!(status, Some(78));
    let log = daemon.log();
    for fault in ["the policy has no role pirate", "there is no tool teleport"] {
        assert!(log.contains(fault) && checked.contains(fault), "{log}\n{checked}");
    }
}
