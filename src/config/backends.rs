//! The model servers of the configuration: the default one, with names of its own in the environment, the others by name,
//! and with which of them the agents of each role think.

use std::time::Duration;

use serde_json::Value;

use crate::{
    backend::{self, Readiness, Streaming},
    config::{
        credential,
        entry::{self, Entry},
        names,
        reader::{Count, Reader, SettingValue, either},
    },
    domain::backend::{BackendName, ProfileName},
    engine::{Fallback, Mind},
    ports::ModelSettings,
    secrets::{self, Secret},
};

/// LM Studio's.
const DEFAULT_BASE_URL: &str = "http://127.0.0.1:1234/v1";
const OTHERS: &str = "backends";
const KEYS: [&str; 7] =
    ["base_url", "model", "api_key", "stream", "idle_timeout_seconds", "profile", "readiness"];
/// What is said of how an agent thinks.
pub(super) const MIND_KEYS: [&str; 6] =
    ["backend", "model", "context_tokens", "max_output_tokens", "temperature", "reasoning_effort"];
const IDLE_SECONDS: Count = Count(300);

/// A model server besides the default one.
#[derive(Debug)]
pub struct NamedBackend {
    pub name: BackendName,
    pub settings: backend::Settings,
    /// For agents that name none; none: the first that it lists.
    pub model: Option<String>,
}

/// How often backends are looked at, and what is made of them.
#[derive(Debug, Clone, Copy)]
pub struct Watching {
    pub interval: Duration,
    pub fallback: Fallback,
}

/// The default one.
pub(super) fn default(
    reader: &mut Reader<'_>,
    flag: Option<String>,
    known: &mut Vec<Secret>,
) -> Option<backend::Settings> {
    let base_url = reader.take(names::BASE_URL, flag, || Some(DEFAULT_BASE_URL.to_owned()));
    if let Some(fault) = base_url.as_deref().and_then(base_url_fault) {
        reader.fault(format!("OPENAI_BASE_URL (backend.base_url): {fault}"));
    }
    let stream = reader.take(names::STREAM, None, || Some(true));
    let idle = reader.take(names::IDLE_TIMEOUT, None, || Some(IDLE_SECONDS));
    let profile = reader.take(names::PROFILE, None, || None);
    let readiness = reader.take(names::READINESS, None, || Some(Readiness::default()));
    let api_key = credential::api_key(reader);
    known.extend(api_key.iter().cloned());
    Some(backend::Settings {
        hosted_tools: Vec::new(),
        base_url: base_url?,
        api_key,
        streaming: if stream? { Streaming::On } else { Streaming::Off },
        idle_timeout: Duration::from_secs(idle?.0),
        profile,
        readiness: readiness?,
    })
}

/// How often they are looked at.
pub(super) fn watching(reader: &mut Reader<'_>) -> Option<Watching> {
    let interval = reader.take(names::HEALTH_INTERVAL, None, || Some(Count(15)));
    let forced = reader.take(names::FORCE_CHAT, None, || Some(false));
    Some(Watching {
        interval: Duration::from_secs(interval?.0),
        fallback: if forced? { Fallback::Forced } else { Fallback::WhereNeeded },
    })
}

/// Those besides the default one.
pub(super) fn others(reader: &mut Reader<'_>, known: &mut Vec<Secret>) -> Vec<NamedBackend> {
    let entries = entry::entries(reader, OTHERS, &KEYS);
    entries.iter().filter_map(|entry| named(reader, entry, known)).collect()
}

fn named(reader: &mut Reader<'_>, entry: &Entry, known: &mut Vec<Secret>) -> Option<NamedBackend> {
    let name = BackendName::new(entry.name.as_str());
    if name.is_default() {
        let message = "is the name of the one that stands under `backend`; give this one another";
        entry.fault(reader, "base_url", message);
    }
    let base_url: Option<String> = entry.take(reader, "base_url");
    match base_url.as_deref() {
        None => entry.fault(reader, "base_url", "is missing"),
        Some(url) => {
            if let Some(fault) = base_url_fault(url) {
                entry.fault(reader, "base_url", &fault);
            }
        }
    }
    let api_key = entry.node("api_key").map(|node| node.to_value()).and_then(|value| {
        let Some(source) = credential::named(&value) else {
            entry.fault(reader, "api_key", credential::NOT_NAMED);
            return None;
        };
        secrets::read(&source, |name| reader.variable(name))
            .map_err(|message| entry.fault(reader, "api_key", &message))
            .ok()
    });
    known.extend(api_key.iter().cloned());
    let streams = entry.take(reader, "stream").unwrap_or(true);
    let idle = entry.take(reader, "idle_timeout_seconds").unwrap_or(IDLE_SECONDS);
    Some(NamedBackend {
        name,
        model: entry.take(reader, "model"),
        settings: backend::Settings {
            base_url: base_url?,
            api_key,
            hosted_tools: Vec::new(),
            streaming: if streams { Streaming::On } else { Streaming::Off },
            idle_timeout: Duration::from_secs(idle.0),
            profile: entry.take(reader, "profile"),
            readiness: entry.take(reader, "readiness").unwrap_or_default(),
        },
    })
}

/// With what an agent thinks.
pub(super) fn mind(reader: &mut Reader<'_>, entry: &Entry, others: &[NamedBackend]) -> Mind {
    let backend: Option<String> = entry.take(reader, "backend");
    let backend = backend.map(|name| BackendName::new(name.as_str()));
    if let Some(name) = &backend
        && !name.is_default()
        && !others.iter().any(|other| other.name == *name)
    {
        let names: Vec<&str> = others.iter().map(|other| other.name.as_str()).collect();
        let message = format!(
            "there is no backend {name}; there are {}",
            [&[BackendName::DEFAULT], names.as_slice()].concat().join(", ")
        );
        entry.fault(reader, "backend", &message);
    }
    let most: Option<Count> = entry.take(reader, "max_output_tokens");
    let window: Option<Count> = entry.take(reader, "context_tokens");
    let temperature: Option<Temperature> = entry.take(reader, "temperature");
    Mind {
        backend,
        model: entry.take(reader, "model"),
        context_tokens: window.map(|window| window.0),
        settings: ModelSettings {
            max_output_tokens: most.map(|most| u32::try_from(most.0).unwrap_or(u32::MAX)),
            temperature: temperature.map(|temperature| temperature.0),
            reasoning_effort: entry.take(reader, "reasoning_effort"),
        },
    }
}

fn base_url_fault(url: &str) -> Option<String> {
    match url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) {
        // It may be a key, pasted into the wrong place.
        None => Some("does not begin with http:// or https://".into()),
        // Addresses are shown; what proves who we are must not stand in one.
        Some(rest) if rest.split('/').next().is_some_and(|host| host.contains('@')) => {
            Some("holds credentials; give them as OPENAI_API_KEY".into())
        }
        Some(_) => None,
    }
}

/// How much chance there is in what a model says, from 0 to 2.
struct Temperature(f64);

impl Temperature {
    fn new(number: Option<f64>) -> Result<Self, String> {
        number
            .filter(|number| (0.0..=2.0).contains(number))
            .map(Self)
            .ok_or_else(|| "a number from 0 to 2 is wanted".to_owned())
    }
}

impl SettingValue for Temperature {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::new(text.parse().ok())
    }

    fn from_scalar(value: &Value) -> Result<Self, String> {
        Self::new(value.as_f64())
    }

    fn shown(&self) -> String {
        self.0.to_string()
    }
}

impl SettingValue for ProfileName {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("{text:?} is not a profile; there are {known}")
        })
    }

    fn from_scalar(value: &Value) -> Result<Self, String> {
        Self::from_text(value.as_str().unwrap_or_default())
    }

    fn shown(&self) -> String {
        self.to_string()
    }
}

either!(Readiness, "models" => Models, "request" => Request);
