//! Limits of cost and of time: what they count, when a run stands still because of them, and that nothing is lost then.

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Seen, Turn},
};
use serde_json::json;
use tonic::Code;

use crate::support::{Backend, Settings, TestDaemon, refusal};

fn reply(seen: &Seen) -> Reply {
    Reply::Answer(match seen.turn {
        1 => Turn::call("shell_exec", json!({"command": ["sh", "script.sh"]})),
        _ => Turn::say("done"),
    })
}

/// A daemon that knows a price: every token costs a dollar.
async fn priced() -> (Backend, TestDaemon) {
    let backend = Backend::start(reply).await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: "prices:\n  dear: {input: 1e6, cached_input: 1e6, output: 1e6}\n".into(),
        ..Settings::default()
    });
    (backend, daemon)
}

async fn submit(daemon: &TestDaemon, model: &str, budget: v1::Budget) -> String {
    let request = v1::CreateRunRequest {
        model: model.into(),
        budget: Some(budget),
        ..daemon.request("work")
    };
    daemon.create(request).await.unwrap().run.unwrap().id
}

async fn resume(daemon: &TestDaemon, id: &str, budget: v1::Budget) {
    let request =
        v1::ResumeRunRequest { id: id.into(), budget: Some(budget), ..Default::default() };
    daemon.client().await.runs().resume_run(request).await.unwrap();
}

#[tokio::test]
async fn a_run_stands_still_once_its_answers_have_cost_its_limit_and_goes_on_with_a_higher_one() {
    let (_backend, daemon) = priced().await;
    daemon.put("script.sh", "echo ran >>ran\n");
    let dollars =
        |dollars: u64| v1::Budget { max_cost_micros: dollars * 1_000_000, ..Default::default() };
    let id = submit(&daemon, "dear", dollars(1)).await;
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::OutOfBudget);
    let error = story.run.error.as_ref().unwrap();
    assert_eq!(error.reason, "BUDGET_EXHAUSTED");
    assert!(error.message.contains("millionths of a dollar"), "{}", error.message);
    // What each answer cost stands in its entry, and the run's usage is their sum.
    let usage = story.run.usage.unwrap();
    let costs: Vec<u64> = story
        .payloads("model_response")
        .iter()
        .map(|answer| answer["cost_micros"].as_u64().unwrap())
        .collect();
    assert_eq!(costs, [(usage.input_tokens + usage.output_tokens) * 1_000_000]);
    assert_eq!(usage.cost_micros, costs[0]);
    assert_eq!(daemon.read("ran").unwrap(), "ran\n", "what was asked for is done, then it rests");

    resume(&daemon, &id, dollars(1_000_000)).await;
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    assert_eq!(daemon.read("ran").unwrap(), "ran\n", "and nothing is done twice");
}

#[tokio::test]
async fn a_limit_of_cost_for_a_model_without_a_price_is_refused() {
    let (_backend, daemon) = priced().await;
    for model in ["cheap", ""] {
        let budget = Some(v1::Budget { max_cost_micros: 1, ..Default::default() });
        let request =
            v1::CreateRunRequest { model: model.into(), budget, ..daemon.request("work") };
        let status = daemon.create(request).await.unwrap_err();
        assert_eq!(refusal(&status).0, Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains("there is no price"), "{}", status.message());
    }
    let story = daemon.carry_out("work").await;
    assert_eq!(story.run.usage.unwrap().cost_micros, 0, "without a limit, no price is needed");
}

#[tokio::test]
async fn time_at_work_counts_and_time_that_a_run_stands_still_or_nobody_is_there_does_not() {
    let (_backend, mut daemon) = priced().await;
    daemon.put("script.sh", "sleep 1.1\n");
    let seconds = |seconds| v1::Budget { max_wall_seconds: seconds, ..Default::default() };
    let id = submit(&daemon, "", seconds(1)).await;
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::OutOfBudget);
    assert!(story.run.error.as_ref().unwrap().message.contains("seconds of work"));
    let worked = story.run.usage.unwrap().wall_ms;
    assert!(worked >= 1100, "{worked}");

    // Long enough to be told from the few milliseconds that are left to do.
    daemon.kill();
    std::thread::sleep(std::time::Duration::from_secs(3));
    daemon.restart();
    resume(&daemon, &id, seconds(3600)).await;
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    let entries: Vec<i64> =
        story.entries.iter().filter_map(|entry| entry.time.map(|time| time.seconds)).collect();
    let span = entries[entries.len() - 1] - entries[0];
    assert!(span >= 3, "{entries:?}");
    let total = story.run.usage.unwrap().wall_ms;
    assert!(total < worked + 2500, "{total} after {worked}");
}

#[tokio::test]
async fn a_price_table_that_cannot_be_read_is_refused_with_its_places() {
    let backend = Backend::start(reply).await;
    let said = TestDaemon::refused(Settings {
        base_url: backend.url(),
        configuration: "prices:\n  a: {input: -1, cached_input: 1, output: much}\n  b: 7\n  \
                        c: {input: 1, output: 1, reasoning: 3}\n"
            .into(),
        ..Settings::default()
    });
    for fault in [
        "a.input: a price in dollars",
        "a.output: a price in dollars",
        "b is not a map",
        "c.cached_input: a price",
        "c.reasoning: there is no such key",
    ] {
        assert!(said.contains(fault), "{fault}: {said}");
    }
}

fn turns(max_turns: u32) -> v1::Budget {
    v1::Budget { max_turns, ..Default::default() }
}

/// Every task wants two turns.
#[tokio::test]
async fn a_run_stands_still_once_a_role_has_used_up_its_part_and_goes_on_with_a_larger_one() {
    let (_backend, mut daemon) = priced().await;
    daemon.put("script.sh", "echo ran >>ran\n");
    let request = v1::CreateRunRequest {
        role_budgets: [("executor".to_owned(), turns(1))].into(),
        budget: Some(turns(50)),
        ..daemon.request("work")
    };
    let id = daemon.create(request).await.unwrap().run.unwrap().id;
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::OutOfBudget);
    let said = &story.run.error.as_ref().unwrap().message;
    assert!(said.contains("the budget of the role executor in the run, of 1 turns"), "{said}");
    assert!(said.contains("--role-budget executor="), "{said}");
    assert_eq!(daemon.read("ran").unwrap(), "ran\n", "what was asked for is done, then it rests");

    // More for the run is not more for the role; and the role's own limit outlives the daemon.
    daemon.kill();
    daemon.restart();
    let resume = |budget, role_budgets: &[(&str, v1::Budget)]| v1::ResumeRunRequest {
        id: id.clone(),
        budget: Some(budget),
        role_budgets: role_budgets.iter().map(|(role, of)| ((*role).to_owned(), *of)).collect(),
        ..Default::default()
    };
    let client = daemon.client().await;
    let refused = client.runs().resume_run(resume(turns(70), &[])).await.unwrap_err();
    assert_eq!(refusal(&refused).0, Code::FailedPrecondition);
    assert!(refused.message().contains("1 turns of executor"), "{refused:?}");
    let refused = client.runs().resume_run(resume(turns(0), &[("cook", turns(9))])).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);

    let done =
        daemon.agentctl(&["run", "resume", &id, "--role-budget", "executor=turns:2,calls:9"]).await;
    assert!(done.status.success(), "{done:?}");
    let story = daemon.story(&id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    let resumed = &story.payloads("run_resumed")[0];
    assert_eq!(resumed["role_budgets"]["executor"]["max_turns"], 2, "{resumed}");
    assert_eq!(resumed["budget"], json!(null), "the run's own stays as it was");
    assert_eq!(daemon.read("ran").unwrap(), "ran\n", "and nothing is done twice");
}

#[tokio::test]
async fn the_configuration_s_budget_of_a_role_holds_where_a_submission_says_nothing_of_it() {
    let backend = Backend::start(reply).await;
    let configuration = "role_budgets:\n  executor: {turns: 1, cost_dollars: 3}\n\
                         prices:\n  dear: {input: 1, cached_input: 1, output: 1}\n";
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: configuration.into(),
        ..Settings::default()
    });
    daemon.put("script.sh", "true\n");
    let request = |role_budgets: &[(&str, v1::Budget)]| v1::CreateRunRequest {
        role_budgets: role_budgets.iter().map(|(role, of)| ((*role).to_owned(), *of)).collect(),
        model: "dear".into(),
        ..daemon.request("work")
    };
    let states = [
        (request(&[]), RunState::OutOfBudget),
        (request(&[("executor", turns(4))]), RunState::Succeeded),
    ];
    for (request, expected) in states {
        let id = daemon.create(request).await.unwrap().run.unwrap().id;
        let story = daemon.story(&id).await;
        assert_eq!(story.state(), expected, "{:?}", story.run.error);
        let held = &story.payloads("run_created")[0]["role_budgets"]["executor"];
        assert_eq!(held["max_cost_micros"], 3_000_000, "{held}");
    }
    let unknown = daemon.create(request(&[("cook", turns(1))])).await.unwrap_err();
    assert!(
        unknown.message().contains("there is no role \"cook\"; there are: executor"),
        "{unknown:?}"
    );
    let priceless = v1::CreateRunRequest { model: "cheap".into(), ..request(&[]) };
    let priceless = daemon.create(priceless).await.unwrap_err();
    assert!(priceless.message().starts_with("role_budgets: limits the cost"), "{priceless:?}");

    let said = TestDaemon::refused(Settings {
        base_url: backend.url(),
        configuration: "role_budgets:\n  cook: {turns: 1}\n  executor: {turns: 0, calls: 3}\n"
            .into(),
        ..Settings::default()
    });
    for fault in [
        "cook: there is no such role; there are executor",
        "executor.turns: a whole number from 1",
        "executor.calls: there is no such key",
    ] {
        assert!(said.contains(fault), "{fault}: {said}");
    }
}

/// All runs of one submitter count together, also those of a daemon that died, and a run that stands still for that has
/// lost nothing.
#[tokio::test]
async fn a_submitter_s_runs_stand_still_once_they_have_used_up_the_day_also_after_a_death() {
    let backend = Backend::start(reply).await;
    let configuration = "daily: {turns: 5, tool_calls: 100}\n".to_owned();
    let settings = Settings { base_url: backend.url(), configuration, ..Settings::default() };
    let mut daemon = TestDaemon::start_with(settings);
    daemon.put("script.sh", "echo ran >>ran\n");
    for task in ["first", "second"] {
        assert_eq!(daemon.carry_out(task).await.state(), RunState::Succeeded);
    }

    let third = daemon.carry_out("third").await;
    assert_eq!(third.state(), RunState::OutOfBudget);
    let warned = third.payloads("budget_warning");
    assert_eq!(
        (warned.len(), &warned[0]["limit"], &warned[0]["used"]),
        (1, &json!("turns a day"), &json!(4))
    );
    let said = third.run.error.as_ref().unwrap().message.clone();
    assert!(said.contains("has used up its 5 turns a day"), "{said}");
    resume(&daemon, &third.run.id, v1::Budget::default()).await;
    assert_eq!(daemon.story(&third.run.id).await.state(), RunState::OutOfBudget, "the same day");

    // Two more than were used: what a daemon counts that begins in the middle of the day is neither less nor more.
    daemon.kill();
    let file = daemon.home().join("agentd.yaml");
    let higher = std::fs::read_to_string(&file).unwrap().replace("turns: 5,", "turns: 7,");
    std::fs::write(&file, higher).unwrap();
    daemon.restart();
    resume(&daemon, &third.run.id, v1::Budget::default()).await;
    let story = daemon.story(&third.run.id).await;
    assert_eq!(story.state(), RunState::Succeeded);
    let fourth = daemon.carry_out("fourth").await;
    assert_eq!(
        (fourth.state(), fourth.payloads("model_response").len()),
        (RunState::OutOfBudget, 1)
    );
    assert_eq!(daemon.read("ran").unwrap(), "ran\n".repeat(4), "each once");
    assert!(daemon.audit().await.intact);
}
