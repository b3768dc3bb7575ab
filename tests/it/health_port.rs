//! The health port, where anybody may knock: whoever says nothing, or never finishes, keeps nobody from being answered.

use std::{fs, pin::pin, time::Duration};

use agentd::scripted::Script;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Backend, PATIENCE, TestDaemon};

/// More than are taken at the same time, which is 256.
const MANY: usize = 300;

async fn daemon() -> (Backend, TestDaemon) {
    let backend = Backend::start(Script { turns: Vec::new() }).await;
    let daemon = TestDaemon::start(&backend.url());
    (backend, daemon)
}

/// A connection on which this was said.
async fn saying(daemon: &TestDaemon, said: &str) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.http.trim_start_matches("http://")).await.unwrap();
    stream.write_all(said.as_bytes()).await.unwrap();
    stream
}

/// All that is heard until the daemon closes the connection, which it does of its own accord.
async fn heard(mut stream: TcpStream) -> String {
    let mut heard = Vec::new();
    let whole = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard));
    whole.await.expect("the connection stays open").unwrap();
    String::from_utf8(heard).unwrap()
}

/// The daemon's sockets, and whatever else it has open.
fn open_by(daemon: &TestDaemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid().as_raw_nonzero())).unwrap().count()
}

#[tokio::test]
async fn callers_who_say_nothing_do_not_keep_others_from_an_answer_for_good() {
    let (_backend, daemon) = daemon().await;
    let before = open_by(&daemon);
    let mut silent = Vec::new();
    for _ in 0..MANY {
        silent.push(saying(&daemon, "").await);
    }

    let asked =
        saying(&daemon, "GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    let (mut answered, mut most) = (pin!(heard(asked)), 0);
    let answer = loop {
        most = most.max(open_by(&daemon));
        tokio::select! {
            answer = &mut answered => break answer,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    };

    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"), "{answer}");
    let held = before + 200..before + MANY - 20;
    assert!(held.contains(&most), "{most} are open at once, {before} were before");
    for stream in silent {
        assert_eq!(heard(stream).await, "");
    }
}

#[tokio::test]
async fn a_request_that_is_never_finished_is_cut_off_and_so_is_a_caller_who_asks_no_more() {
    let (_backend, daemon) = daemon().await;
    let half = saying(&daemon, "GET /livez HTTP/1.1\r\nHost: h").await;
    let idle = saying(&daemon, "GET /livez HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let lazy = "POST /livez HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nmore is to co";
    let lazy = saying(&daemon, lazy).await;

    let (half, idle, lazy) = tokio::join!(heard(half), heard(idle), heard(lazy));

    assert!(!half.contains("200 OK"), "{half}");
    assert!(idle.starts_with("HTTP/1.1 200 OK") && idle.ends_with("ok\n"), "{idle}");
    assert!(lazy.starts_with("HTTP/1.1 405"), "its body is not waited for: {lazy}");
}

#[tokio::test]
async fn connections_that_are_open_do_not_keep_the_daemon_from_stopping_in_order() {
    let (_backend, mut daemon) = daemon().await;
    let silent = saying(&daemon, "").await;
    let half = saying(&daemon, "GET /livez HTTP/1.1\r\nHost: h").await;
    let mut idle = saying(&daemon, "GET /livez HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200", "control: it is taken");

    daemon.terminate();

    assert_eq!(daemon.exit_code().await, Some(0));
    assert!(!daemon.log().contains("did not stop by itself"), "{}", daemon.log());
    assert_eq!(heard(silent).await, "");
    assert!(!heard(half).await.contains("200 OK"));
}
