//! Connections of the health port: how many, and how long each may keep its place, since nobody proves who he is here.
//! What is answered: `super`.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

/// Connections at the same time. More wait in the kernel, and beyond its bound are refused by it.
const CONNECTIONS: usize = 256;
/// How long the head of a request may take from when the last answer was sent, or from when the connection began.
/// Whoever says nothing for so long is cut off.
const HEAD: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes. There is nothing to say to a health port but where.
const HEAD_BYTES: usize = 16 << 10;
/// How long a connection lives, so that one that reads no answers does not keep its place either.
const LIFE: Duration = Duration::from_secs(60);
/// What is left to a connection that is told to end, for the answer that it may be in.
const GRACE: Duration = Duration::from_secs(1);
/// How long nothing is taken after taking failed, for want of descriptors say.
const BREATH: Duration = Duration::from_millis(500);

/// Takes connections until `stopping`, and comes back once they have ended.
pub(super) async fn take(app: Router, listener: TcpListener, stopping: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let open = Tasks::default();
    let taking = async {
        // Nobody closes it.
        while let Ok(place) = room.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (app, stopping) = (app.clone(), open.token());
                    open.spawn("http-connection", async move {
                        attend(app, stream, stopping).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be taken");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = taking => {}
    }
    drop(listener);
    // Each ends by itself in the meantime.
    open.stop(GRACE * 2).await;
}

/// Serves one connection, any number of requests. Their bodies are not read.
async fn attend(app: Router, stream: TcpStream, stopping: CancellationToken) {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
    );
    tokio::select! {
        // However it ended, there is nobody to tell.
        _ = connection.as_mut() => return,
        () = stopping.cancelled() => {}
        () = tokio::time::sleep(LIFE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(GRACE, connection).await;
}
