//! What one caller can take: size of a request, open streams, time; and what goes on when it has gone.

use std::time::Duration;

use agentd::{
    client::{Address, Client},
    proto::v1::{self, RunState},
    scripted::{Reply, Seen, Turn},
};
use futures_util::future::join_all;
use tonic::{Code, Request, metadata::MetadataValue};
use tonic_types::StatusExt as _;

use crate::support::{Backend, TestDaemon, refusal, wait_until};

async fn talkative() -> Backend {
    Backend::start(|_: &Seen| Reply::Answer(Turn::say("done"))).await
}

async fn silent() -> Backend {
    Backend::start(|_: &Seen| Reply::Hang).await
}

fn with_deadline<T>(message: T, header: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("grpc-timeout", MetadataValue::from_static(header));
    request
}

#[tokio::test]
async fn a_request_of_a_hundred_mebibytes_is_refused_by_every_service_and_the_daemon_lives_on() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let huge = || "x".repeat(100 << 20);

    let task = v1::CreateRunRequest { task: huge(), ..daemon.request("") };
    let status = daemon.client().await.runs().create_run(task).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "REQUEST_TOO_LARGE".into()));
    assert!(status.message().contains("the limit is: 2097152 bytes"), "{}", status.message());
    let name = v1::GetToolRequest { name: huge() };
    let status = daemon.client().await.tools().get_tool(name).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "REQUEST_TOO_LARGE".into()));
    let page_token = v1::ListAgentsRequest { page_token: huge(), page_size: 0 };
    let status = daemon.client().await.admin().list_agents(page_token).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "REQUEST_TOO_LARGE".into()));

    assert_eq!(daemon.carry_out("still there").await.state(), RunState::Succeeded);
    assert_eq!(daemon.runs().await.len(), 1);
}

#[tokio::test]
async fn one_event_stream_more_than_the_daemon_has_places_for_is_refused_until_one_has_ended() {
    let backend = silent().await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("wait").await;
    let follow =
        || v1::StreamRunEventsRequest { id: run.id.clone(), after_sequence: 0, follow: true };
    // A connection has 256 places: half of them are taken, so that no call waits for one.
    let mut streams = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..1024 / 128 {
        let client = daemon.client().await;
        let opened =
            join_all((0..128).map(async |_| {
                client.runs().stream_run_events(follow()).await.unwrap().into_inner()
            }));
        streams.extend(opened.await);
        clients.push(client);
    }
    assert_eq!(streams.len(), 1024);

    let last = daemon.tcp_client(Some(daemon.token_file())).await;
    let status = last.runs().stream_run_events(follow()).await.unwrap_err();

    assert_eq!(refusal(&status), (Code::ResourceExhausted, "TOO_MANY_STREAMS".into()));
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    drop(streams.pop());
    let patience = tokio::time::timeout(crate::support::PATIENCE, async {
        while last.runs().stream_run_events(follow()).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    patience.await.expect("the place becomes free");
}

#[tokio::test]
async fn a_deadline_of_the_caller_ends_what_waits_with_deadline_exceeded() {
    let backend = silent().await;
    let daemon = TestDaemon::start(&backend.url());
    let run = daemon.submit("wait").await;
    let client = daemon.client().await;

    let wait = v1::WaitRunRequest { id: run.id.clone(), timeout: None };
    let status = client.runs().wait_run(with_deadline(wait, "500m")).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::DeadlineExceeded, "TIMEOUT".into()));

    let follow = v1::StreamRunEventsRequest { id: run.id.clone(), after_sequence: 0, follow: true };
    let answer = client.runs().stream_run_events(with_deadline(follow, "500m")).await.unwrap();
    let mut stream = answer.into_inner();
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "it ends with a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal(&status), (Code::DeadlineExceeded, "TIMEOUT".into()));

    // The control: a timeout of its own is no error.
    let timeout = Some(Duration::from_millis(1).try_into().unwrap());
    let wait = v1::WaitRunRequest { id: run.id, timeout };
    let answer = client.runs().wait_run(with_deadline(wait, "60S")).await.unwrap();
    assert!(answer.into_inner().timed_out);
}

#[tokio::test]
async fn a_submission_whose_caller_vanished_is_a_run_that_goes_on_or_none() {
    let backend = talkative().await;
    let daemon = TestDaemon::start(&backend.url());
    let mut existed = 0;

    for round in 0..40_u64 {
        let request = v1::CreateRunRequest {
            request_id: format!("vanished-{round}"),
            ..daemon.request("go on without me")
        };
        // A connection of its own, dropped with its call: at once, or some time into it.
        let address = Address { uri: daemon.socket(), token_file: None };
        let client = Client::connect(&address).await.unwrap();
        let moment = Duration::from_micros(round * round * 40);
        let call = async move { client.runs().create_run(request).await };
        drop(tokio::time::timeout(moment, call).await);

        let request = v1::CreateRunRequest {
            request_id: format!("vanished-{round}"),
            ..daemon.request("go on without me")
        };
        let again = daemon.create(request).await.unwrap();
        existed += u32::from(again.existed);
    }

    let runs = daemon.runs().await;
    assert_eq!(runs.len(), 40, "one run a request id");
    for run in runs {
        assert_eq!(daemon.wait(&run.id).await.state(), RunState::Succeeded);
    }
    wait_until("every run asked the model once", || backend.tasks().len() == 40).await;
    assert!(daemon.audit().await.intact);
    // Otherwise no call ever came as far as the daemon, and nothing was shown.
    assert!(existed > 0, "no submission was ever under way");
}
