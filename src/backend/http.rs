//! The connection to one model server: requests, bodies within bounds, failures in words. Knows no API.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use reqwest::{Client, RequestBuilder, Response, StatusCode, header};
use serde_json::Value;

use crate::{
    backend::failure,
    domain::{backend::ProfileName, redact::Redactor},
    ports::{ModelError, ModelFault},
    secrets::{ExposeSecret as _, Secret},
};

/// Largest body of an answer, in bytes.
pub(super) const BODY_BYTES: usize = 16 << 20;
/// Largest body of an error, in bytes; the rest is not read.
const ERROR_BYTES: usize = 64 << 10;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Where a model is, and how it is to be asked.
pub struct Settings {
    /// With or without `/v1`.
    pub base_url: String,
    pub api_key: Option<Secret>,
    /// Tools that the backend runs itself, each a JSON object that may hold a credential. Those that a question
    /// has leave for are passed through; nothing here ever runs one.
    pub hosted_tools: Vec<Secret>,
    pub streaming: Streaming,
    /// How long to wait for the next bytes of an answer, and for the next event of a stream.
    pub idle_timeout: Duration,
    /// None: by what the server looks like.
    pub profile: Option<ProfileName>,
    pub readiness: Readiness,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("base_url", &self.base_url).finish_non_exhaustive()
    }
}

/// How answers are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streaming {
    On,
    Off,
}

/// By what a look tells whether a backend works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Readiness {
    /// By its list of models, which costs nothing.
    #[default]
    Models,
    /// By the smallest real request, which costs a few tokens each time.
    Request,
}

/// A server, and what proves to it who we are.
#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    /// With `/v1`.
    url: String,
    /// What it says of its failures is repeated without secrets.
    redactor: Arc<Redactor>,
}

impl Http {
    /// Errors: the key cannot stand in a header, or the system's certificates cannot be read.
    pub(super) fn new(settings: &Settings, redactor: Arc<Redactor>) -> Result<Self, String> {
        let mut headers = header::HeaderMap::new();
        if let Some(key) = &settings.api_key {
            let mut value =
                header::HeaderValue::try_from(format!("Bearer {}", key.expose_secret()))
                    .map_err(|_| "the API key holds characters that no header can".to_owned())?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let url = with_version(&settings.base_url);
        let client = Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT)
            .read_timeout(settings.idle_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("agentd/", env!("CARGO_PKG_VERSION")));
        let client = match is_on_this_machine(&url) {
            // No proxy leads there, and nothing on the way speaks TLS: reading the system's certificates
            // would be a third of the daemon's start.
            true => client.no_proxy().tls_certs_only([]),
            false => client,
        };
        let client = client
            .build()
            .map_err(|error| format!("no HTTP client: {}", crate::telemetry::chain(&error)))?;
        Ok(Self { client, url, redactor })
    }

    /// The base URL, with `/v1`.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// `path` below `/v1`, with its slash.
    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    /// `path` beside `/v1`, with its slash.
    pub(super) fn get_beside(&self, path: &str) -> RequestBuilder {
        let root = self.url.strip_suffix("/v1").unwrap_or(&self.url);
        self.client.get(format!("{root}{path}"))
    }

    /// Posts JSON to `path` below `/v1`.
    ///
    /// The body is let go of once it is sent: each run that waits on the model would hold a copy else, for a redirect that
    /// is never followed.
    pub(super) fn post(&self, path: &str, body: Vec<u8>) -> RequestBuilder {
        let body = reqwest::Body::wrap(Full::new(Bytes::from(body)));
        self.client
            .post(format!("{}{path}", self.url))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
    }

    /// The answer, if it is a good one by its status.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ModelError> {
        let answer = request.send().await.map_err(|error| self.transport(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = bounded(answer, ERROR_BYTES).await.unwrap_or_default();
        Err(self.refusal(status, &headers, &body))
    }

    /// Any answer at all, with its body, of which a long one is cut.
    pub(super) async fn look(&self, request: RequestBuilder) -> Result<Seen, ModelError> {
        let answer = request.send().await.map_err(|error| self.transport(&error))?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = bounded(answer, ERROR_BYTES).await.map_err(|error| self.transport(&error))?;
        Ok(Seen { status, headers, body })
    }

    /// The whole body of an answer.
    pub(super) async fn whole(&self, answer: Response) -> Result<Bytes, ModelError> {
        let body = bounded(answer, BODY_BYTES).await.map_err(|error| self.transport(&error))?;
        match body.len() > BODY_BYTES {
            true => Err(failure::plain(
                ModelFault::Protocol,
                format!("the backend {} sent more than 16 MiB", self.url),
            )),
            false => Ok(body),
        }
    }

    /// It answered with this HTTP error.
    pub(super) fn refusal(
        &self,
        status: StatusCode,
        headers: &header::HeaderMap,
        body: &[u8],
    ) -> ModelError {
        failure::status((&self.url, &self.redactor), status, headers, body)
    }

    /// The answer says of itself that it failed.
    pub(super) fn failed(&self, error: Option<&Value>) -> ModelError {
        failure::in_body((&self.url, &self.redactor), error)
    }

    pub(super) fn transport(&self, error: &reqwest::Error) -> ModelError {
        failure::transport(&self.url, error)
    }

    /// The answer is not what `api` says that it is.
    pub(super) fn protocol(&self, api: &str, what: &str) -> ModelError {
        let message = format!("the backend {} does not answer as the {api} does: {what}", self.url);
        failure::plain(ModelFault::Protocol, message)
    }
}

/// An answer that is only looked at.
pub(super) struct Seen {
    pub(super) status: u16,
    pub(super) headers: header::HeaderMap,
    pub(super) body: Bytes,
}

/// The body; one byte more than `most` at the most, the rest is not read.
async fn bounded(mut answer: Response, most: usize) -> Result<Bytes, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        let room = most + 1 - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() > most {
            break;
        }
    }
    Ok(body.into())
}

fn with_version(base_url: &str) -> String {
    let base = base_url.trim_end_matches('/');
    match base.ends_with("/v1") {
        true => base.to_owned(),
        false => format!("{base}/v1"),
    }
}

/// Whether the server is reached by plain HTTP on a loopback address.
fn is_on_this_machine(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    url.scheme() == "http" && (loopback || host == "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_to_a_loopback_address_stays_on_this_machine() {
        for url in ["http://127.0.0.1:1/v1", "http://LOCALHOST/v1", "http://[::1]:8080/v1"] {
            assert!(is_on_this_machine(url), "{url}");
        }
        for url in [
            "https://127.0.0.1/v1",
            "http://127.0.0.1.example.com/v1",
            "http://localhost.example.com/v1",
            "http://10.0.0.1/v1",
            "http://127.0.0.1@example.com/v1",
            "nonsense",
        ] {
            assert!(!is_on_this_machine(url), "{url}");
        }
    }

    #[test]
    fn the_base_url_may_come_with_or_without_its_version() {
        for base in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(with_version(base), "http://h:1/v1");
        }
    }
}
