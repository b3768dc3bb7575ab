//! A plan is carried out step by step: each has a result that is on record, and what is left of the plan can be revised.

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Seen, Turn},
};
use serde_json::{Value, json};

use crate::{
    agents::{ACCEPT, Who, lab, request, requests, submit, tools, who},
    support::Story,
};

const PLAN: &str = r#"{"steps": [
    {"intent": "greet", "tools": ["write_file"], "check": "hello.txt says hello"},
    {"intent": "wave", "tools": ["write_file"], "check": "wave.txt says wave"}]}"#;

fn write(path: &str) -> Turn {
    Turn::call("write_file", json!({"path": path, "content": "x\n"}))
}

fn results(story: &Story) -> Vec<(u64, String)> {
    let result = |done: &Value| {
        (done["step"].as_u64().unwrap(), done["result"].as_str().unwrap().to_owned())
    };
    story.payloads("step_finished").iter().map(result).collect()
}

fn two_steps(seen: &Seen) -> Reply {
    Reply::Answer(match (who(&seen.task), seen.turn) {
        (Who::Planner, _) => Turn::say(PLAN),
        (Who::Executor, 1) => write("hello.txt"),
        (Who::Executor, 2) => Turn::say("I greeted."),
        (Who::Executor, 3) => write("wave.txt"),
        (Who::Executor, _) => Turn::say("I greeted and waved."),
        (Who::Reviewer, _) => Turn::say(ACCEPT),
    })
}

#[tokio::test]
async fn each_step_is_given_to_the_executor_by_itself_and_what_came_of_it_is_on_record() {
    let (backend, daemon) = lab(two_steps).await;
    let story = daemon.story(&submit(&daemon).await).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    let expected = [(1, "I greeted.".to_owned()), (2, "I greeted and waved.".to_owned())];
    assert_eq!(results(&story), expected);
    assert_eq!(story.run.answer, "I greeted and waved.");
    let asked = requests(&backend, Who::Executor);
    let first = asked[0]["input"].to_string();
    assert!(first.contains("2. wave") && first.contains("Now do step 1"), "{first}");
    let second = asked[2]["input"].to_string();
    assert!(second.contains("Now do step 2 of 2: wave (check: wave.txt says wave)"), "{second}");
    let evidence = requests(&backend, Who::Reviewer)[0]["input"].to_string();
    assert!(evidence.contains("Of step 1, the engineer says: I greeted."), "{evidence}");
    backend.assert_paired();
    // People see it as it goes.
    let told = daemon.agentctl(&["run", "follow", &story.run.id]).await;
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.contains("step 1 is done: I greeted."), "{told}");
}

#[tokio::test]
async fn a_plan_that_turns_out_to_be_wrong_is_revised_and_what_is_done_stays_done() {
    let revising = |seen: &Seen| {
        Reply::Answer(match (who(&seen.task), seen.turn) {
            (Who::Planner, 1) => Turn::call("revise_plan", json!({"why": "x", "steps": []})),
            (Who::Planner, _) => Turn::say(PLAN),
            (Who::Executor, 1) => Turn::say("I greeted."),
            (Who::Executor, 2) => {
                Turn::call("revise_plan", json!({"why": "no hands", "steps": []}))
                    .and_call(
                        "revise_plan",
                        json!({"why": "no hands", "steps": [
                        {"intent": "nod", "tools": [], "check": "a nod"},
                        {"intent": "smile", "tools": [], "check": "a smile"}]}),
                    )
                    .and_call(
                        "revise_plan",
                        json!({"why": "again", "steps": [
                        {"intent": "frown", "tools": [], "check": "a frown"}]}),
                    )
            }
            (Who::Executor, 3) => Turn::say("I nodded."),
            (Who::Executor, 4) => Turn::say("I smiled."),
            (Who::Executor, _) => Turn::call(
                "revise_plan",
                json!({"why": "more", "steps": [
                {"intent": "bow", "tools": [], "check": "a bow"}]}),
            ),
            (Who::Reviewer, _) => Turn::say(ACCEPT),
        })
    };
    let (backend, daemon) = lab(revising).await;
    let story = daemon.story(&submit(&daemon).await).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    let said: Vec<String> = results(&story).into_iter().map(|(_, result)| result).collect();
    assert_eq!(said, ["I greeted.", "I nodded.", "I smiled."]);
    let revised = story.payloads("plan_revised");
    assert_eq!(
        (revised.len(), &revised[0]["from_step"], &revised[0]["why"]),
        (1, &json!(2), &json!("no hands"))
    );
    assert_eq!(
        story.decisions(),
        [
            "deny builtin/unknown-tool",
            "deny builtin/arguments",
            "allow builtin/colleagues",
            "deny builtin/one-revision"
        ]
    );
    let third = requests(&backend, Who::Executor)[3]["input"].to_string();
    assert!(third.contains("Now do step 3 of 3: smile"), "{third}");
    let evidence = requests(&backend, Who::Reviewer)[0]["input"].to_string();
    assert!(evidence.contains("2. nod"), "{evidence}");
    // The reviewer hears what the planner wanted, and whose doing it is.
    assert!(evidence.contains("The engineer, and not the planner"), "{evidence}");
    assert!(evidence.contains("- wave (check: wave.txt says wave)"), "{evidence}");
    assert!(!tools(&requests(&backend, Who::Planner)[0]).contains(&"revise_plan".to_owned()));
    story.assert_calls_are_tied();
    backend.assert_paired();
}

#[tokio::test]
async fn an_executor_may_ask_other_agents_and_hand_its_steps_over() {
    let brain = |seen: &Seen| {
        Reply::Answer(match (seen.model.as_str(), who(&seen.task), seen.turn) {
            ("clerk", Who::Executor, 4) => write("hello.txt"),
            ("clerk", Who::Executor, _) => Turn::say("I greeted."),
            ("sage", ..) => Turn::say("Politely."),
            (_, Who::Planner, _) => Turn::say(crate::agents::PLAN),
            (_, Who::Executor, 1) => Turn::call("ask_sage", json!({"input": "How?"})),
            (_, Who::Executor, _) => {
                Turn::call("transfer_to_clerk", json!({"message": "politely"}))
            }
            (_, Who::Reviewer, _) if seen.task.contains("round 1") => {
                Turn::say(crate::agents::REVISE)
            }
            (_, Who::Reviewer, _) => Turn::say(ACCEPT),
        })
    };
    let backend = crate::support::Backend::start(brain).await;
    let configuration = "agents:\n  executor: {agents_as_tools: [sage], hand_offs: [clerk]}\n  \
                         sage: {instructions: you know, role: planner, model: sage}\n  \
                         clerk: {instructions: you write, model: clerk}\n";
    let daemon = crate::support::TestDaemon::start_with(crate::support::Settings {
        base_url: backend.url(),
        configuration: configuration.into(),
        ..Default::default()
    });
    crate::agents::prepare(&daemon);
    let request = v1::CreateRunRequest { ..request(&daemon) };
    let id = daemon.create(request).await.unwrap().run.unwrap().id;
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::Succeeded, "{:?}", story.run.error);
    // What is sent back goes to whoever did it.
    let began: Vec<String> = story
        .payloads("agent_began")
        .iter()
        .map(|began| {
            let agent = began["agent"]["name"].as_str().unwrap_or("-");
            format!("{} {agent}", began["seat"].as_str().unwrap())
        })
        .collect();
    let expected = [
        "planner -",
        "executor -",
        "asked sage",
        "executor clerk",
        "reviewer -",
        "executor clerk",
        "reviewer -",
    ];
    assert_eq!(began, expected);
    assert_eq!(story.run.answer, "I greeted.");
    story.assert_calls_are_tied();
    backend.assert_paired();
}
