//! Agents that work together: who hands the conversation over, who asks whom, what each of them hears and may do, and that
//! none of it is lost with a daemon that dies.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
    mpsc,
};

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Brain, Reply, Seen, Turn},
};
use serde_json::{Value, json};

use crate::support::{Backend, Settings, Story, TestDaemon, wait_until};

/// Each is known by its model.
const TEAM: &str = r#"
agents:
  triage:
    description: finds out what is wrong
    instructions: You find out what is wrong.
    role: planner
    model: triage
    hand_offs: [code-fixer, executor]
    agents_as_tools: [researcher]
  code-fixer:
    description: mends code
    instructions: You mend code.
    model: fixer
    agents_as_tools: [researcher]
  researcher:
    description: knows where things are
    instructions: You know where things are.
    role: planner
    model: researcher
    agents_as_tools: [librarian]
    max_turns: 2
  librarian:
    instructions: You have read everything.
    model: librarian
    output: {type: object, properties: {page: {type: integer}}, required: [page], additionalProperties: false}
"#;
const ASKS: &str =
    "  - {id: test.asks, argv: [sh, asks.sh], decision: require_approval, why: it publishes}\n";

async fn lab(brain: impl Brain) -> (Backend, TestDaemon) {
    let backend = Backend::start(brain).await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: TEAM.into(),
        commands: ASKS.into(),
        ..Settings::default()
    });
    daemon.put("a.txt", "a\n");
    daemon.put("asks.sh", "echo ran >>ran\n");
    (backend, daemon)
}

async fn submit(daemon: &TestDaemon, agent: &str) -> String {
    let request = v1::CreateRunRequest { agent: agent.into(), ..daemon.request("Mend it.") };
    daemon.create(request).await.unwrap().run.unwrap().id
}

async fn run_of(daemon: &TestDaemon, agent: &str) -> Story {
    daemon.story(&submit(daemon, agent).await).await
}

/// Requests that were made for one of the agents.
fn requests(backend: &Backend, model: &str) -> Vec<Value> {
    backend.server.requests().into_iter().filter(|request| request["model"] == model).collect()
}

fn tools(request: &Value) -> Vec<&str> {
    let tools = request["tools"].as_array();
    tools.into_iter().flatten().filter_map(|tool| tool["name"].as_str()).collect()
}

fn hand_off(to: &str) -> Turn {
    Turn::call(&format!("transfer_to_{to}"), json!({"message": "look at a.txt"}))
}

fn ask(whom: &str, input: &str) -> Turn {
    Turn::call(&format!("ask_{whom}"), json!({ "input": input }))
}

fn mends(seen: &Seen) -> Reply {
    Reply::Answer(match (seen.model.as_str(), seen.turn) {
        ("triage", 1) => Turn::call("write_file", json!({"path": "a.txt", "content": "x"})),
        ("triage", _) => hand_off("code_fixer"),
        ("fixer", 3) => Turn::call("write_file", json!({"path": "a.txt", "content": "mended\n"})),
        _ => Turn::say("I mended it."),
    })
}

#[tokio::test]
async fn a_conversation_is_handed_over_to_an_agent_with_other_instructions_tools_and_another_role()
{
    let (backend, daemon) = lab(mends).await;
    let story = run_of(&daemon, "triage").await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert_eq!((story.run.agent.as_str(), story.run.answer.as_str()), ("triage", "I mended it."));
    assert_eq!(daemon.read("a.txt").unwrap(), "mended\n");
    let decisions = story.decisions();
    assert_eq!(decisions[..2], ["deny roles.planner", "allow builtin/colleagues"]);
    assert!(decisions[2].starts_with("allow"), "{decisions:?}");

    let (before, after) = (requests(&backend, "triage"), requests(&backend, "fixer"));
    assert_eq!(before[0]["instructions"], "You find out what is wrong.");
    assert_eq!(after[0]["instructions"], "You mend code.");
    assert!(tools(&before[0]).contains(&"transfer_to_code_fixer"));
    assert!(!tools(&before[0]).contains(&"write_file"));
    assert!(tools(&after[0]).contains(&"write_file"));
    assert!(!tools(&after[0]).iter().any(|tool| tool.starts_with("transfer_to")));
    // All that was said is heard, and who handed it over.
    let heard = after[0]["input"].to_string();
    for words in
        ["Mend it.", "roles.planner", "handed_over_to", "The agent triage", "look at a.txt"]
    {
        assert!(heard.contains(words), "{words}: {heard}");
    }
    let began = &story.payloads("agent_began")[0];
    assert_eq!(
        (&began["agent"]["name"], &began["role"]),
        (&json!("code-fixer"), &json!("executor"))
    );
    assert_eq!(story.run.usage.unwrap().turns, 4);
    story.assert_calls_are_tied();
    backend.assert_paired();
}

#[tokio::test]
async fn thoughts_stay_with_the_model_that_had_them() {
    let thinking = |seen: &Seen| {
        Reply::Answer(match (seen.model.as_str(), seen.turn) {
            ("triage", 1) => {
                Turn::call("read_file", json!({"path": "a.txt"})).thinking("deep thought")
            }
            ("triage", _) => hand_off("code_fixer").thinking("deeper thought"),
            ("fixer", 3) => {
                Turn::call("read_file", json!({"path": "a.txt"})).thinking("own thought")
            }
            _ => Turn::say("Done."),
        })
    };
    let (backend, daemon) = lab(thinking).await;
    let story = run_of(&daemon, "triage").await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    let of = |request: &Value, kind: &str| {
        let items = request["input"].as_array().unwrap().iter();
        items.filter(|item| item["type"] == kind).cloned().collect::<Vec<_>>()
    };
    let (before, after) = (requests(&backend, "triage"), requests(&backend, "fixer"));
    let thoughts = of(&before[1], "reasoning").len();
    // Some servers take none back at all.
    assert_eq!(of(&after[0], "reasoning").len(), 0);
    assert_eq!(of(&after[1], "reasoning").len(), thoughts, "its own come back to it");
    assert_eq!(of(&after[1], "function_call").len(), 3);
    for call in &of(&after[1], "function_call")[..2] {
        assert!(
            call.get("id").is_none(),
            "the name belongs to a thought that is not there: {call}"
        );
    }
    backend.assert_paired();
}

#[tokio::test]
async fn only_the_first_of_two_hand_offs_of_one_turn_counts() {
    let torn = |seen: &Seen| {
        Reply::Answer(match seen.model.as_str() {
            "triage" => Turn::call("transfer_to_executor", json!([]))
                .and_call("transfer_to_code_fixer", json!({"message": "look"}))
                .and_call("transfer_to_executor", json!({"message": ""})),
            _ => Turn::say("Done."),
        })
    };
    let (backend, daemon) = lab(torn).await;
    let story = run_of(&daemon, "triage").await;
    assert_eq!(story.state(), RunState::Succeeded);
    // What cannot be read does not count.
    let expected =
        ["deny builtin/arguments", "allow builtin/colleagues", "deny builtin/one-hand-off"];
    assert_eq!(story.decisions(), expected);
    assert_eq!(requests(&backend, "fixer").len(), 1);
    story.assert_calls_are_tied();
}

/// The fixer asks the researcher, who looks and asks the librarian.
fn asks(seen: &Seen) -> Reply {
    Reply::Answer(match (seen.model.as_str(), seen.turn) {
        ("fixer", 1) => ask("researcher", "Where is it?")
            .and_call("read_file", json!({"path": "a.txt"}))
            .and_call("ask_researcher", json!({"input": "Where else?"})),
        ("fixer", 2) => Turn::call("write_file", json!({"path": "a.txt", "content": "mended\n"})),
        ("fixer", _) => Turn::say("I mended it."),
        ("researcher", 1) if seen.task == "Where is it?" => ask("librarian", "Which page?"),
        ("researcher", _) if seen.task == "Where is it?" => Turn::say("In a.txt."),
        ("researcher", _) => Turn::say("Nowhere."),
        ("librarian", 1) => Turn::say("It is on page seven."),
        _ => Turn::say(r#"{"page": 7}"#),
    })
}

#[tokio::test]
async fn an_agent_that_is_asked_hears_the_question_alone_and_its_answer_is_the_output_of_the_call()
{
    let (backend, daemon) = lab(asks).await;
    let story = run_of(&daemon, "code-fixer").await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert_eq!(story.run.answer, "I mended it.");
    let asked = requests(&backend, "researcher");
    assert_eq!(asked[0]["input"].as_array().unwrap().len(), 1);
    assert_eq!(asked[0]["instructions"], "You know where things are.");
    let mut shown = tools(&asked[0]);
    shown.sort();
    assert_eq!(shown, ["ask_librarian", "list_dir", "read_file", "repo_summarize", "search_files"]);
    // The librarian is held to its shape, and asked once more.
    assert_eq!(story.payloads("output_refused").len(), 1);
    let answers: Vec<Value> = story
        .outputs()
        .into_iter()
        .map(|(_, output)| output)
        .filter(|output| output.get("agent").is_some())
        .collect();
    let answer = |agent: &str, answer: &str| json!({"agent": agent, "answer": answer});
    let expected = [
        answer("librarian", r#"{"page": 7}"#),
        answer("researcher", "In a.txt."),
        answer("researcher", "Nowhere."),
    ];
    assert_eq!(answers, expected);
    // The caller hears the outputs in its own order, and nothing else of what was said elsewhere.
    let heard = &requests(&backend, "fixer")[1]["input"];
    let outputs: Vec<&str> = heard
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| item["type"] == "function_call_output")
        .map(|item| item["output"].as_str().unwrap())
        .collect();
    assert!(outputs[0].contains("In a.txt.") && outputs[2].contains("Nowhere."), "{outputs:?}");
    assert!(!heard.to_string().contains("Which page?"), "{heard}");
    story.assert_calls_are_tied();
    backend.assert_paired();
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn an_agent_that_comes_to_no_answer_costs_its_caller_an_output_and_not_the_run() {
    let lost = |seen: &Seen| {
        Reply::Answer(match (seen.model.as_str(), seen.turn) {
            ("fixer", 1) => ask("researcher", "Where is it?"),
            ("fixer", _) => Turn::say(&format!("No help: {}", seen.outputs[0])),
            // For ever.
            _ => Turn::call("read_file", json!({"path": "a.txt"})),
        })
    };
    let (backend, daemon) = lab(lost).await;
    let story = run_of(&daemon, "code-fixer").await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert!(story.run.answer.contains("TURNS_EXHAUSTED"), "{}", story.run.answer);
    assert_eq!(requests(&backend, "researcher").len(), 2);
    story.assert_calls_are_tied();
    backend.assert_paired();
}

#[tokio::test]
async fn a_backend_that_refuses_the_one_who_is_asked_fails_the_call_and_not_the_run() {
    let picky = |seen: &Seen| match (seen.model.as_str(), seen.turn) {
        ("fixer", 1) => Reply::Answer(ask("researcher", "Where is it?")),
        ("fixer", _) => Reply::Answer(Turn::say("Without help, then.")),
        _ => Reply::Http {
            status: 400,
            headers: Vec::new(),
            body: r#"{"error": {"message": "no such model", "code": "model_not_found"}}"#.into(),
        },
    };
    let (backend, daemon) = lab(picky).await;
    let story = run_of(&daemon, "code-fixer").await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    let (outcome, output) = &story.outputs()[0];
    assert_eq!(outcome, "failed");
    assert!(output.to_string().contains("no such model"), "{output}");
    story.assert_calls_are_tied();
    backend.assert_paired();
}

#[tokio::test]
async fn a_daemon_that_dies_while_an_agent_is_asked_goes_on_with_that_agent() {
    let hangs = Arc::new(AtomicBool::new(true));
    let held = hangs.clone();
    let brain = move |seen: &Seen| match (seen.model.as_str(), seen.turn) {
        ("librarian", 1) if held.swap(false, Ordering::Relaxed) => Reply::Hang,
        _ => asks(seen),
    };
    let (backend, mut daemon) = lab(brain).await;
    let id = submit(&daemon, "code-fixer").await;
    wait_until("the librarian is asked", || !requests(&backend, "librarian").is_empty()).await;
    daemon.kill();
    daemon.restart();
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert_eq!(daemon.read("a.txt").unwrap(), "mended\n");
    // Nobody was asked twice, but for the request that was lost.
    assert_eq!(requests(&backend, "researcher").len(), 3);
    assert_eq!(requests(&backend, "fixer").len(), 3);
    assert_eq!(requests(&backend, "librarian").len(), 3);
    story.assert_calls_are_tied();
    backend.assert_paired();
    assert!(daemon.audit().await.intact);
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_an_agent_is_asked_leaves_no_call_without_its_output() {
    let brain = |seen: &Seen| match seen.model.as_str() {
        "librarian" => Reply::Hang,
        _ => asks(seen),
    };
    let (backend, daemon) = lab(brain).await;
    let id = submit(&daemon, "code-fixer").await;
    wait_until("the librarian is asked", || !requests(&backend, "librarian").is_empty()).await;
    daemon.cancel(&id).await;
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::Cancelled);
    let cancelled = story.outputs().iter().filter(|(outcome, _)| outcome == "cancelled").count();
    assert_eq!(cancelled, 3, "of the librarian and twice of the researcher");
    story.assert_calls_are_tied();
}

#[tokio::test]
async fn what_an_agent_that_is_asked_wants_to_do_is_allowed_by_a_person_like_anything_else() {
    let publishes = |seen: &Seen| {
        Reply::Answer(match (seen.model.as_str(), seen.turn) {
            ("triage", 1) => ask("researcher", "Publish it."),
            ("researcher", 1) => ask("librarian", "Publish it."),
            ("librarian", 1) => Turn::call("shell_exec", json!({"command": "sh asks.sh"})),
            ("librarian", _) => Turn::say(r#"{"page": 1}"#),
            _ => Turn::say("Done."),
        })
    };
    let (backend, daemon) = lab(publishes).await;
    let id = submit(&daemon, "triage").await;
    assert_eq!(daemon.wait(&id).await.state(), RunState::AwaitingApproval);
    let mut client = daemon.client().await.runs();
    let waiting = client
        .list_pending_approvals(v1::ListPendingApprovalsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let asked = &waiting.approvals[0];
    let approval = v1::ApproveToolCallRequest {
        run_id: id.clone(),
        turn: asked.turn,
        index: asked.index,
        digest: asked.digest.clone(),
        ..Default::default()
    };
    client.approve_tool_call(approval).await.unwrap();
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert_eq!(daemon.read("ran").unwrap(), "ran\n");
    story.assert_calls_are_tied();
    backend.assert_paired();
}

#[tokio::test]
async fn what_people_say_meanwhile_waits_for_the_agent_that_they_gave_the_task() {
    let (let_go, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let brain = move |seen: &Seen| {
        if seen.model == "researcher" && seen.task == "Where is it?" {
            // Until the sender is dropped.
            let _ = tokio::task::block_in_place(|| held.lock().unwrap().recv());
        }
        asks(seen)
    };
    let (backend, daemon) = lab(brain).await;
    let id = submit(&daemon, "code-fixer").await;
    wait_until("the researcher is asked", || !requests(&backend, "researcher").is_empty()).await;
    let input =
        v1::SendRunInputRequest { id: id.clone(), text: "Be quick.".into(), ..Default::default() };
    daemon.client().await.runs().send_run_input(input).await.unwrap();
    drop(let_go);
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    assert!(requests(&backend, "fixer")[1]["input"].to_string().contains("Be quick."));
    for request in requests(&backend, "researcher") {
        assert!(!request["input"].to_string().contains("Be quick."));
    }
    backend.assert_paired();
}

#[tokio::test]
async fn a_fork_of_a_run_that_was_handed_over_goes_on_with_whom_it_was_handed_to() {
    let (backend, daemon) = lab(mends).await;
    let story = run_of(&daemon, "triage").await;
    let fork = v1::ForkRunRequest {
        id: story.run.id.clone(),
        input: "And now?".into(),
        ..Default::default()
    };
    let fork = daemon.client().await.runs().fork_run(fork).await.unwrap().into_inner().run.unwrap();
    assert_eq!(fork.agent, "code-fixer");
    assert_eq!(daemon.story(&fork.id).await.state(), RunState::Succeeded);
    let last = requests(&backend, "fixer").pop().unwrap();
    assert_eq!(last["instructions"], "You mend code.");
    assert!(last["input"].to_string().contains("And now?"));
    backend.assert_paired();
}

#[tokio::test]
async fn agents_that_work_together_are_listed_with_whom_they_call() {
    let (_backend, daemon) = lab(mends).await;
    let told = daemon.agentctl(&["agents", "list", "-o", "json"]).await;
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let triage = &told["agents"].as_array().unwrap()[2];
    assert_eq!(
        (&triage["hand_offs"], &triage["agents_as_tools"]),
        (&json!(["code-fixer", "executor"]), &json!(["researcher"]))
    );
}

#[tokio::test]
async fn a_run_whose_cost_is_limited_wants_a_price_for_everyone_whom_it_may_come_to() {
    let configuration = format!(
        "{TEAM}prices: {{triage: {{input: 1, cached_input: 1, output: 1}}, fixer: {{input: 1, cached_input: 1, output: 1}}, researcher: {{input: 1, cached_input: 1, output: 1}}}}\n"
    );
    let daemon = TestDaemon::start_with(Settings {
        base_url: "http://127.0.0.1:9".into(),
        configuration,
        ..Settings::default()
    });
    let budget = v1::Budget { max_cost_micros: 1_000_000, ..Default::default() };
    let request = v1::CreateRunRequest {
        agent: "code-fixer".into(),
        budget: Some(budget),
        ..daemon.request("Mend it.")
    };
    let refused = daemon.create(request).await.unwrap_err();
    assert!(refused.message().contains("no price for the model (librarian)"), "{refused:?}");
}

#[tokio::test]
async fn a_tool_cannot_have_the_name_by_which_agents_call_others() {
    let mut settings = Settings {
        base_url: "http://127.0.0.1:9".into(),
        configuration: TEAM.into(),
        ..Settings::default()
    };
    let tool = "schema: agentd/tool/v1\nname: ask_researcher\ndescription: asks\ncommand: [true]\neffect: pure\n\
                parameters: {type: object, properties: {}}\nroles: [executor]\n";
    settings.tools.push(("ask.yaml".into(), tool.into()));
    let said = TestDaemon::refused(settings);
    assert!(said.contains("ask_researcher is the name of a tool with which agents call"), "{said}");
}

#[test]
fn what_is_wrong_with_whom_an_agent_calls_is_told_at_its_place() {
    let said = TestDaemon::refused(Settings {
        base_url: "http://127.0.0.1:9".into(),
        configuration: "agents:\n  c: {instructions: x, agents_as_tools: [d]}\n  d: {instructions: x, hand_offs: [c]}\n  \
                        planner: {hand_offs: [a]}\n  a: {instructions: x, hand_offs: [a, nobody], agents_as_tools: [b]}\n  \
                        b: {instructions: x, agents_as_tools: [a], max_turns: 0}\n"
            .into(),
        ..Settings::default()
    });
    for fault in [
        "planner.hand_offs: cannot be given to a built-in agent",
        "a.hand_offs: an agent does not call itself",
        "a.hand_offs: there is no agent nobody; there are c, d, a, b, executor",
        "c.agents_as_tools: an agent would ask itself in the end",
        "a.agents_as_tools: an agent would ask itself in the end",
        "b.max_turns:",
    ] {
        assert!(said.contains(fault), "{fault}\nis not in\n{said}");
    }
}
