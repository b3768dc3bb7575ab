//! A daemon that is drained carries on what goes, begins nothing that waits, and takes no submissions.

use agentd::{
    proto::v1::{self, RunState},
    scripted::{Reply, Seen, Turn},
};
use serde_json::json;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::support::{Backend, Settings, TestDaemon};

fn reply(seen: &Seen) -> Reply {
    Reply::Answer(match (seen.task.as_str(), seen.turn) {
        ("slow", 1) => Turn::call("shell_exec", json!({"command": ["sh", "script.sh"]})),
        _ => Turn::say("done"),
    })
}

async fn drain(daemon: &TestDaemon, undo: bool) -> v1::DrainResponse {
    let mut admin = daemon.client().await.admin();
    admin.drain(v1::DrainRequest { undo, only_tell: false }).await.unwrap().into_inner()
}

/// Whether orchestrators are told that runs are taken.
async fn is_ready(daemon: &TestDaemon) -> bool {
    let channel = tonic::transport::Endpoint::from_shared(daemon.tcp.clone()).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let request = HealthCheckRequest { service: "readiness".into() };
    health.check(request).await.unwrap().into_inner().status() == ServingStatus::Serving
}

async fn wait_for_readiness(daemon: &TestDaemon, wanted: bool) {
    let told = async {
        while is_ready(daemon).await != wanted {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), told).await.expect("readiness");
}

#[tokio::test]
async fn a_drained_daemon_ends_what_goes_begins_nothing_and_can_be_opened_again() {
    let backend = Backend::start(reply).await;
    let daemon = TestDaemon::start_with(Settings {
        base_url: backend.url(),
        configuration: "limits: {running_runs: 1}\n".into(),
        ..Settings::default()
    });
    daemon.put("script.sh", "echo up >up\nuntil [ -e go ]; do sleep 0.02; done\n");
    let slow = daemon.submit("slow").await.id;
    daemon.wait_for_file("up").await;
    let queued = daemon.submit("quick").await.id;

    let drained = drain(&daemon, false).await;
    assert_eq!((drained.draining, drained.running, drained.queued), (true, 1, 1));
    wait_for_readiness(&daemon, false).await;
    let refused = daemon.create(daemon.request("more")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    let waiting = daemon.agentctl(&["drain", "--wait"]);
    let going = async {
        daemon.put("go", "");
        assert_eq!(daemon.wait(&slow).await.state(), RunState::Succeeded);
    };
    let (waited, ()) = tokio::join!(waiting, going);
    assert_eq!(waited.status.code(), Some(0));
    let said = String::from_utf8(waited.stdout).unwrap();
    assert_eq!(said, "the daemon takes no new runs: 0 run, 1 wait\n");
    assert_eq!(daemon.get(&queued).await.state(), RunState::Queued);

    let opened = drain(&daemon, true).await;
    assert!(!opened.draining);
    assert_eq!(daemon.wait(&queued).await.state(), RunState::Succeeded);
    wait_for_readiness(&daemon, true).await;
    let story = daemon.carry_out("again").await;
    assert_eq!(story.state(), RunState::Succeeded);
}

#[tokio::test]
async fn a_daemon_that_was_drained_takes_runs_again_once_it_is_started_anew() {
    let backend = Backend::start(reply).await;
    let mut daemon = TestDaemon::start(&backend.url());
    drain(&daemon, false).await;
    assert_eq!(daemon.stop(), Some(0));
    daemon.restart();
    assert_eq!(daemon.carry_out("quick").await.state(), RunState::Succeeded);
}
