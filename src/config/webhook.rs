//! The webhook of the configuration: whom to tell of questions to people, and the secret that signs.

use serde_json::Value;

use crate::{
    config::{
        credential,
        reader::{Origin, Reader, Setting, SettingValue, wanted},
    },
    secrets::{self, Secret},
    webhook::{Address, SigningKey, WebhookSettings},
    yaml::{Content, Node},
};

const URL: Setting = Setting { key: "approvals.webhook.url", variable: None, flag: None };
const SECRET: &str = "approvals.webhook.secret";

/// The webhook, if one is named; what is wrong with it is told through the reader.
pub(super) fn webhook(reader: &mut Reader<'_>, known: &mut Vec<Secret>) -> Option<WebhookSettings> {
    let url = reader.node(URL.key).filter(|(_, node)| says_something(node));
    let secret = reader.node(SECRET).filter(|(_, node)| says_something(node));
    let address = reader.take(URL, None, || None);
    match (url, secret) {
        (None, None) => None,
        (Some((_, url)), None) => {
            let message =
                "is missing; a webhook has a secret, by which its receiver knows what agentd sent";
            reader.fault_at(url.at, SECRET, message);
            None
        }
        (None, Some((_, secret))) => {
            reader.fault_at(secret.at, URL.key, "is missing; a webhook has a URL to post to");
            None
        }
        (Some(_), Some((path, node))) => {
            let origin = Origin::File { path, at: node.at };
            let key = key(reader, &node, &origin, known);
            known.extend(address.iter().flat_map(Address::hidden));
            Some(WebhookSettings { address: address?, key: key? })
        }
    }
}

fn says_something(node: &Node) -> bool {
    !matches!(node.content, Content::Scalar(Value::Null))
}

fn key(
    reader: &mut Reader<'_>,
    node: &Node,
    origin: &Origin,
    known: &mut Vec<Secret>,
) -> Option<SigningKey> {
    let Some(source) = credential::named(&node.to_value()) else {
        reader.fault_at(node.at, SECRET, credential::NOT_NAMED);
        return None;
    };
    let secret = match secrets::read(&source, |name| reader.variable(name)) {
        Ok(secret) => secret,
        Err(message) => {
            reader.fault_at(node.at, SECRET, &message);
            return None;
        }
    };
    let key = SigningKey::parse(&secret);
    known.extend(SigningKey::other_forms(&secret));
    known.push(secret);
    match key {
        Ok(key) => {
            reader.show(SECRET, "[secret]".into(), origin);
            Some(key)
        }
        Err(message) => {
            reader.fault_at(node.at, SECRET, &message);
            None
        }
    }
}

impl SettingValue for Address {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }

    fn from_scalar(value: &Value) -> Result<Self, String> {
        match value.as_str() {
            Some(text) => Self::parse(text),
            None => Err(wanted("a URL such as https://hooks.example.com/x", value)),
        }
    }

    fn shown(&self) -> String {
        self.to_string()
    }
}
