//! The doors: gRPC on a socket and on TCP, health over HTTP. What is behind them: `grpc`, `http`.

use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tonic_health::server::HealthReporter;

use crate::{
    config::Config,
    daemon::{DaemonError, Parts, SOCKET},
    grpc::{self, Door},
    http,
    tasks::Tasks,
    telemetry,
};

/// Calls that one connection may have under way at the same time.
const CALLS_A_CONNECTION: u32 = 256;

/// What serves callers.
pub(super) struct Servers {
    pub(super) tasks: Tasks,
    pub(super) health: HealthReporter,
    /// Of gRPC over TCP.
    pub(super) address: SocketAddr,
    pub(super) http: SocketAddr,
}

pub(super) async fn serve(config: &Config, parts: &Parts) -> Result<Servers, DaemonError> {
    let owner = rustix::process::geteuid().as_raw();
    let socket_path = config.state_directory.join(SOCKET);
    let listen = |address: String| move |source| DaemonError::Listen { address, source };
    let listen_http = |address: String| move |source| DaemonError::ListenHttp { address, source };
    let socket = bind_socket(&socket_path).map_err(listen(socket_path.display().to_string()))?;
    let tcp = TcpListener::bind(config.listen).await.map_err(listen(config.listen.to_string()))?;
    let address = tcp.local_addr().map_err(listen(config.listen.to_string()))?;
    let wanted = config.http_listen.to_string();
    let listener = TcpListener::bind(config.http_listen).await.map_err(listen_http(wanted))?;
    let http = listener.local_addr().map_err(listen(config.http_listen.to_string()))?;

    let tasks = Tasks::default();
    let doors = [Door::Socket { owner }, Door::Token { known: parts.known.clone() }];
    let ([for_socket, for_tcp], health) =
        grpc::services(&parts.engine, parts.info.clone(), doors).await;
    let incoming = UnixListenerStream::new(socket);
    tasks.spawn("grpc-socket", serve_on(for_socket, incoming, tasks.token()));
    let incoming = tonic::transport::server::TcpIncoming::from(tcp).with_nodelay(Some(true));
    tasks.spawn("grpc-tcp", serve_on(for_tcp, incoming, tasks.token()));
    tasks.spawn("http", http::serve(parts.engine.clone(), listener, tasks.token()));
    Ok(Servers { tasks, health, address, http })
}

async fn serve_on<I, IO>(routes: Routes, incoming: I, stopping: CancellationToken)
where
    I: futures_util::Stream<Item = io::Result<IO>>,
    IO: tokio::io::AsyncRead
        + tokio::io::AsyncWrite
        + tonic::transport::server::Connected
        + Unpin
        + Send
        + 'static,
{
    let served = Server::builder()
        .max_concurrent_streams(CALLS_A_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stopping.cancelled())
        .await;
    if let Err(error) = served {
        tracing::error!(error = %telemetry::chain(&error), "a gRPC server ended");
    }
}

fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    // The state directory's lock is ours: a socket that lies here belongs to a dead daemon.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let socket = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(socket)
}
