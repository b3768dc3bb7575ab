//! HTTP/1.1 as a proxy speaks it: requests with a whole URL are passed on, CONNECT makes a tunnel. What two
//! readers could take for two destinations is refused.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::{Fuse, FutureExt as _};
use http_body_util::{Either, Full};
use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::{Body, Frame, Incoming, SizeHint},
    client, header,
    header::{HeaderMap, HeaderName, HeaderValue},
    http::uri::{Scheme, Uri},
    server::conn::http1,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::{
    domain::{
        host::Host,
        policy::{Destination, Passing},
    },
    sandbox::egress::{
        Current, Egress, PATIENCE,
        exit::{Opened, Refusal},
        tunnel,
    },
};

/// Longest head of a request, in bytes.
const HEAD: usize = 64 << 10;

/// Longest method, in bytes.
const METHOD: usize = 32;

/// Headers that speak of one connection and not of the request. Those that `Connection` names are too.
const HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

type Answer = Response<Either<Full<Bytes>, Driven>>;

/// Serves one connection: any number of requests, or one tunnel.
pub(super) async fn attend(egress: &Egress<'_>, client: TcpStream, now: &Current) {
    let tunnel = Mutex::new(None);
    let serve = service_fn(|request| async {
        Ok::<_, Infallible>(answer(egress, request, now, &tunnel).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD)
        .half_close(true)
        .serve_connection(TokioIo::new(client), serve)
        .with_upgrades();
    // Whatever breaks, the program sees its connection closed.
    if connection.await.is_err() {
        return;
    }
    let begun = tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((upgrade, opened)) = begun
        && let Ok(upgraded) = upgrade.await
    {
        tunnel::carry(egress, TokioIo::new(upgraded), opened).await;
    }
}

/// What is left to do once a tunnel has been answered.
type Begun = Mutex<Option<(OnUpgrade, Opened)>>;

async fn answer(
    egress: &Egress<'_>,
    mut request: Request<Incoming>,
    now: &Current,
    begun: &Begun,
) -> Answer {
    let wanted = match destination(&request) {
        Ok(wanted) => wanted,
        Err(fault) => return said(StatusCode::BAD_REQUEST, fault),
    };
    let opened = match egress.open(wanted, now).await {
        Ok(opened) => opened,
        Err(Refusal::Denied(why)) => return said(StatusCode::FORBIDDEN, &why),
        Err(Refusal::Unreachable(why)) => return said(StatusCode::BAD_GATEWAY, &why),
        Err(Refusal::Unavailable(why)) => return said(StatusCode::SERVICE_UNAVAILABLE, &why),
    };
    if request.method() == Method::CONNECT {
        let upgrade = hyper::upgrade::on(&mut request);
        *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, opened));
        return Response::new(Either::Left(Full::default()));
    }
    match pass_on(request, opened).await {
        Ok(response) => response,
        Err(error) => said(StatusCode::BAD_GATEWAY, &format!("the request broke off: {error}")),
    }
}

/// Where a request is meant to go. Errors: it does not say, or says more than one thing.
fn destination(request: &Request<Incoming>) -> Result<Destination, &'static str> {
    let uri = request.uri();
    let named = uri.authority().ok_or("this is a proxy: ask with a whole URL")?.as_str();
    let hosts: Vec<_> = request.headers().get_all(header::HOST).iter().collect();
    let (by, port) = match request.method() {
        &Method::CONNECT => (Passing::Tunnel, None),
        method if uri.scheme() == Some(&Scheme::HTTP) => {
            (Passing::Request { method: known_form(method.as_str())? }, Some(80))
        }
        _ => return Err("only http is passed on; make a tunnel with CONNECT for everything else"),
    };
    let (host, port) = authority(named, port)?;
    let same = |other: &HeaderValue| {
        let other = other.to_str().ok().and_then(|text| authority(text, Some(port)).ok());
        other == Some((host.clone(), port))
    };
    match hosts.as_slice() {
        _ if !codings_are_known(request.headers()) => {
            return Err("of transfer codings only chunked is passed on");
        }
        [only] if same(only) => {}
        [] if request.version() < Version::HTTP_11 => {}
        _ => return Err("the Host header must name what the URL names, once"),
    }
    Ok(Destination { host, port, by })
}

fn codings_are_known(headers: &HeaderMap) -> bool {
    headers.get_all(header::TRANSFER_ENCODING).iter().all(|coding| coding == "chunked")
}

/// A method as servers are to take it. In another case some would take it for the same, and rules would not.
fn known_form(method: &str) -> Result<String, &'static str> {
    let is_fine = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
    match method.len() <= METHOD && method.bytes().all(is_fine) {
        true => Ok(method.to_owned()),
        false => Err("the method is not one of capital letters"),
    }
}

/// A host, and a port unless the scheme has one.
fn authority(text: &str, port: Option<u16>) -> Result<(Host, u16), &'static str> {
    let (host, said) = match text.rsplit_once(':') {
        Some((host, digits)) if !digits.contains(']') => (host, Some(digits)),
        _ => (text, None),
    };
    let host = Host::parse(host).map_err(|_| "the host is not one that can be named")?;
    let port = match said {
        None | Some("") => port.ok_or("a tunnel needs a port")?,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().map_err(|_| "the port is not one")?
        }
        Some(_) => return Err("the port is not one"),
    };
    Ok((host, port))
}

/// Passes a request on over its own connection.
async fn pass_on(request: Request<Incoming>, opened: Opened) -> Result<Answer, hyper::Error> {
    let wanted = opened.passage.destination().clone();
    let (mut head, body) = request.into_parts();
    // What was asked about is what is named, whatever else was written.
    head.uri = match path(&head.uri) {
        Some(path) => path,
        None => return Ok(said(StatusCode::BAD_REQUEST, "the path cannot be passed on")),
    };
    head.version = Version::HTTP_11;
    let is_chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
    strip(&mut head.headers);
    if is_chunked {
        // Else a method that seldom has a body would lose it.
        let chunked = HeaderValue::from_static("chunked");
        head.headers.insert(header::TRANSFER_ENCODING, chunked);
    }
    let named = match wanted.port {
        80 => wanted.host.to_string(),
        _ => wanted.to_string(),
    };
    head.headers.remove(header::HOST);
    head.headers.insert(
        header::HOST,
        HeaderValue::from_str(&named).unwrap_or(HeaderValue::from_static("")),
    );
    let (mut sender, connection) = client::conn::http1::Builder::new()
        .max_buf_size(HEAD)
        .handshake(TokioIo::new(opened.stream))
        .await?;
    let connection: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async {
        // What broke shows in the answer.
        let _ = connection.await;
    });
    let mut connection = connection.fuse();
    let mut asked = std::pin::pin!(sender.send_request(Request::from_parts(head, body)));
    let response = tokio::select! {
        response = &mut asked => response,
        () = &mut connection => asked.await,
    }?;
    let (mut head, body) = response.into_parts();
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        // Of two lengths it is the one that counts; the other would be taken for ours.
        head.headers.remove(header::CONTENT_LENGTH);
    }
    strip(&mut head.headers);
    Ok(Response::from_parts(head, Either::Right(Driven { connection, body })))
}

/// The path and the query alone.
fn path(uri: &Uri) -> Option<Uri> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    match path.strip_prefix('?') {
        Some(query) => format!("/?{query}").parse().ok(),
        None => path.parse().ok(),
    }
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP) {
        headers.remove(name);
    }
}

fn said(status: StatusCode, words: &str) -> Answer {
    let mut response = Response::new(Either::Left(Full::from(format!("agentd: {words}\n"))));
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

/// The body of an answer, and the connection that it comes over: whoever reads the one drives the other.
struct Driven {
    connection: Fuse<Pin<Box<dyn Future<Output = ()> + Send>>>,
    body: Incoming,
}

impl Body for Driven {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let _ = Pin::new(&mut self.connection).poll(context);
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
