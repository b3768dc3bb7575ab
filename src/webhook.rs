//! Posts notices over HTTP, signed as Standard Webhooks says (<https://www.standardwebhooks.com>). Posts each once: when
//! and how often is `engine::notices`' to say. Reads no body of an answer.

use std::{fmt, net::IpAddr, time::Duration};

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{
    Client, Url,
    header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER},
};
use ring::hmac;

use crate::{
    ports::{NotAnswered, Notice, Receipt, Webhook},
    secrets::{ExposeSecret as _, Secret},
    telemetry,
};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a post may take in all.
const WHOLE: Duration = Duration::from_secs(15);
/// Shortest key, in bytes. Source: Standard Webhooks.
const KEY_BYTES: usize = 24;
/// Shortest part of a path that is kept out of sight as a secret is, in bytes: a shorter one keeps nobody out.
const SHORTEST_HIDDEN: usize = 16;
/// What a secret begins with that is a key in base64.
const PREFIX: &str = "whsec_";
const MAKE_ONE: &str = "echo whsec_$(head -c 32 /dev/urandom | base64)";

/// Whom to tell, and how it knows us.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    pub address: Address,
    pub key: SigningKey,
}

/// A URL to post to: https, or anything on this machine. Shown without its path, in which a credential may stand.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(Url);

impl Address {
    /// Errors: what is wrong with it, without repeating it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| {
            format!("is not a URL such as https://hooks.example.com/x: {error}")
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("holds credentials; the secret that signs is enough".into());
        }
        let address = Self(url);
        match address.0.scheme() {
            "https" => Ok(address),
            "http" if address.is_on_this_machine() => Ok(address),
            "http" => Err("is not https, which every host but this machine itself wants".into()),
            _ => Err("does not begin with https://".into()),
        }
    }

    /// What of it must not be seen: many a receiver knows who may post by a part of the path, or a value of the query.
    pub fn hidden(&self) -> impl Iterator<Item = Secret> {
        let parts = self.0.path().split('/').map(str::to_owned);
        let values = self.0.query_pairs().map(|(_, value)| value.into_owned());
        parts.chain(values).filter(|part| part.len() >= SHORTEST_HIDDEN).map(Secret::from)
    }

    fn is_on_this_machine(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let loopback = host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        loopback || host == "localhost"
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.origin().ascii_serialization())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

/// What signs.
#[derive(Debug, Clone)]
pub struct SigningKey(hmac::Key);

impl SigningKey {
    /// The key that a secret stands for: base64 after `whsec_`. Without the prefix some receivers would take the text
    /// for base64, and others for the key itself. Errors never repeat it.
    pub fn parse(secret: &Secret) -> Result<Self, String> {
        let text = secret.expose_secret();
        let encoded = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| format!("does not begin with {PREFIX}; make one: {MAKE_ONE}"))?;
        let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| {
            format!("begins with {PREFIX}, and no base64 follows; make one: {MAKE_ONE}")
        })?;
        match bytes.len() {
            KEY_BYTES.. => Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))),
            short => Err(format!(
                "is a key of {short} bytes, {KEY_BYTES} at least are wanted; make one: {MAKE_ONE}"
            )),
        }
    }

    /// What else of the secret must not be seen: without the prefix it is as good.
    pub fn other_forms(secret: &Secret) -> impl Iterator<Item = Secret> {
        secret.expose_secret().strip_prefix(PREFIX).map(Secret::from).into_iter()
    }

    /// The `webhook-signature` of a notice.
    fn sign(&self, notice: &Notice, seconds: i64) -> String {
        let mut signing = hmac::Context::with_key(&self.0);
        signing.update(format!("{}.{seconds}.", notice.id).as_bytes());
        signing.update(notice.body.as_bytes());
        format!("v1,{}", BASE64_STANDARD.encode(signing.sign()))
    }
}

/// A receiver that is told over HTTP.
#[derive(Debug)]
pub struct HttpWebhook {
    client: Client,
    settings: WebhookSettings,
}

impl HttpWebhook {
    /// Errors: the system's certificates cannot be read.
    pub fn new(settings: &WebhookSettings) -> Result<Self, String> {
        let client = Client::builder()
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("agentd/", env!("CARGO_PKG_VERSION")));
        let address = &settings.address;
        let client = match address.is_on_this_machine() {
            // No proxy leads there.
            true => client.no_proxy(),
            false => client,
        };
        let client = match address.0.scheme() {
            // Nothing speaks TLS: the system's certificates need not be read.
            "http" => client.tls_certs_only([]),
            _ => client,
        };
        let client = client
            .build()
            .map_err(|error| format!("no HTTP client: {}", telemetry::chain(&error)))?;
        Ok(Self { client, settings: settings.clone() })
    }
}

#[async_trait]
impl Webhook for HttpWebhook {
    async fn post(&self, notice: &Notice) -> Result<Receipt, NotAnswered> {
        let WebhookSettings { address, key } = &self.settings;
        let seconds = notice.time.0.div_euclid(1_000_000);
        let request = self
            .client
            .post(address.0.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &notice.id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", key.sign(notice, seconds))
            .body(notice.body.clone());
        match request.send().await {
            // Its body is not read: with it the connection goes.
            Ok(answer) => Ok(Receipt {
                http_status: answer.status().as_u16(),
                retry_after_ms: retry_after_ms(answer.headers(), seconds),
            }),
            Err(error) => {
                let why = telemetry::chain(&error.without_url());
                Err(NotAnswered { message: format!("the receiver at {address}: {why}") })
            }
        }
    }
}

/// How long the receiver asks to be left alone: `retry-after`, in seconds or as a date. `now` in seconds since 1970.
fn retry_after_ms(headers: &HeaderMap, now: i64) -> Option<u64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = match text.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(text).ok()?;
            u64::try_from(date.timestamp().as_second().saturating_sub(now)).unwrap_or(0)
        }
    };
    Some(seconds.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::Timestamp;

    fn key(secret: &str) -> Result<SigningKey, String> {
        SigningKey::parse(&Secret::from(secret.to_owned()))
    }

    #[test]
    fn a_notice_is_signed_as_the_convention_s_own_example_is() {
        // Source: the example of the Standard Webhooks specification and its reference libraries.
        let notice = Notice {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek".into(),
            time: Timestamp(1_614_265_330_000_000),
            body: r#"{"test": 2432232314}"#.into(),
        };
        let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = key.sign(&notice, 1_614_265_330);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_without_the_prefix_and_a_weak_one_are_refused() {
        let bare = key("a secret of thirty-two characters").unwrap_err();
        assert!(bare.contains("does not begin with whsec_; make one: "), "{bare}");
        let short = key("whsec_c2hvcnQ=").unwrap_err();
        assert!(short.contains("a key of 5 bytes, 24 at least are wanted"), "{short}");
        let broken = key("whsec_hunter2-hunter2-hunter2-hunter2").unwrap_err();
        assert!(broken.contains("begins with whsec_, and no base64 follows"), "{broken}");
    }

    #[test]
    fn only_https_leaves_this_machine_and_an_address_is_shown_without_its_path() {
        for (text, shown) in [
            (
                "https://hooks.example.com/services/T0/hunter2-hunter2-x?x=1",
                "https://hooks.example.com",
            ),
            ("https://hooks.example.com:8443", "https://hooks.example.com:8443"),
            ("http://127.0.0.1:9/x", "http://127.0.0.1:9"),
            ("http://[::1]:9/x", "http://[::1]:9"),
            ("http://localhost/x", "http://localhost"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.to_string(), shown);
            assert!(!format!("{address:?}").contains("hunter2"));
            assert_eq!(address.hidden().count(), usize::from(text.contains("hunter2")), "{text}");
        }
        for (text, fault) in [
            ("http://hooks.example.com/x", "is not https"),
            ("http://127.0.0.1.example.com/x", "is not https"),
            ("http://10.0.0.1/x", "is not https"),
            ("ftp://127.0.0.1/x", "does not begin with https://"),
            ("https://me:hunter2@h/x", "holds credentials"),
            ("hooks/hunter2", "is not a URL"),
        ] {
            let said = Address::parse(text).unwrap_err();
            assert!(said.contains(fault) && !said.contains("hunter2"), "{text}: {said}");
        }
    }

    #[test]
    fn the_wish_to_be_left_alone_is_read_in_both_forms() {
        let asked = |value: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            retry_after_ms(&headers, 1_445_412_470)
        };
        assert_eq!(asked("7"), Some(7_000));
        assert_eq!(asked("Wed, 21 Oct 2015 07:28:00 GMT"), Some(10_000));
        assert_eq!(asked("Wed, 21 Oct 2015 07:00:00 GMT"), Some(0), "it is over");
        assert_eq!(asked("soon"), None);
    }
}
