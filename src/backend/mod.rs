//! Talks to model servers. Implements `ports::Model`. One request an answer: retries are the engine's.
//!
//! In reading order: `http` reaches a server, `profiles` knows what is odd about it, `responses` and `chat` are the two
//! APIs that it is asked by, `capabilities` finds out which of them it has.

mod capabilities;
mod chat;
mod failure;
mod http;
mod profiles;
mod responses;
mod sse;
mod wire;

pub use http::{Readiness, Settings, Streaming};
pub use profiles::{Hosted, Lesson, Profile, Shapes, Takes, profile};

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    domain::{
        backend::{Api, ProfileName},
        redact::Redactor,
    },
    ports::{Answer, Compacted, Look, Model, ModelError, ModelFault, Probe, Question, Said},
    secrets::{ExposeSecret as _, Secret},
};
use http::Http;

/// A model server.
#[derive(Debug)]
pub struct HttpBackend {
    http: Http,
    streaming: Streaming,
    idle: Duration,
    readiness: Readiness,
    hosted_tools: Vec<Secret>,
    /// As the configuration says.
    chosen: Option<ProfileName>,
    learned: Mutex<Learned>,
}

/// What was learned of the server by using it.
#[derive(Debug, Clone, Default)]
struct Learned {
    /// That it lists.
    first_model: Option<Arc<str>>,
    profile: ProfileName,
    /// Whether an answer that was to come as a stream did so.
    streams: Option<bool>,
    refuses_shapes: bool,
    compacts: bool,
    /// Tokens that each model takes, where it is told.
    windows: Arc<BTreeMap<String, u64>>,
}

impl HttpBackend {
    /// What it says of its failures is repeated as `redactor` leaves it.
    ///
    /// Errors: the key cannot stand in a header, or the system's certificates cannot be read.
    pub fn new(settings: &Settings, redactor: Arc<Redactor>) -> Result<Self, String> {
        Ok(Self {
            http: Http::new(settings, redactor)?,
            streaming: settings.streaming,
            idle: settings.idle_timeout,
            readiness: settings.readiness,
            hosted_tools: settings.hosted_tools.clone(),
            chosen: settings.profile,
            learned: Mutex::default(),
        })
    }

    fn learned(&self) -> Learned {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn(&self, what: impl FnOnce(&mut Learned)) {
        what(&mut self.learned.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes the server for what it looks like, and its first model for the one that is meant.
    fn recognise(&self, found: &Probe, windows: &BTreeMap<String, u64>) {
        self.learn(|learned| {
            learned.profile = found.profile;
            let first = found.models.first().map(|model| model.as_str().into());
            learned.first_model = first.or(learned.first_model.take());
            learned.compacts = found.capabilities.compaction.unwrap_or(learned.compacts);
            if *learned.windows != *windows {
                learned.windows = Arc::new(windows.clone());
            }
        });
    }

    fn profile(&self) -> &'static Profile {
        profile(self.chosen.unwrap_or_else(|| self.learned().profile))
    }

    /// Whether answers come as streams, where that was seen.
    fn streamed(&self) -> Option<bool> {
        self.learned().streams
    }

    /// The model that is wanted, or else the first that it lists: as the last look found it, or asked now.
    async fn model(&self, wanted: Option<&str>) -> Result<Arc<str>, ModelError> {
        if let Some(model) = wanted {
            return Ok(model.into());
        }
        if let Some(model) = self.learned().first_model {
            return Ok(model);
        }
        let model: Arc<str> = self.list_first().await?.into();
        self.learn(|learned| learned.first_model = Some(model.clone()));
        Ok(model)
    }

    async fn list_first(&self) -> Result<String, ModelError> {
        let answer = self.http.send(self.http.get("/models")).await?;
        let body = self.http.whole(answer).await?;
        let models: wire::Models = serde_json::from_slice(&body)
            .map_err(|error| self.http.protocol("list of models", &error.to_string()))?;
        models.data.into_iter().next().map(|model| model.id).ok_or_else(|| {
            let url = self.http.url();
            let message =
                format!("the backend {url} lists no model; load one, or set AGENTD_MODEL");
            failure::plain(ModelFault::Unavailable, message)
        })
    }

    /// Asks just so.
    async fn ask(&self, question: &Question<'_>, said: &Said<'_>) -> Result<Answer, ModelError> {
        let model = self.model(question.model).await?;
        let profile = self.profile();
        let (path, body) = match question.api {
            Api::Responses => {
                let body = responses::encode(
                    &model,
                    question,
                    profile,
                    self.streaming,
                    &self.hosted_tools,
                )?;
                ("/responses", body)
            }
            Api::Chat => ("/chat/completions", chat::encode(&model, question, self.streaming)?),
        };
        let answer = self.http.send(self.http.post(path, body)).await?;
        if self.streaming == Streaming::On {
            let streams = responses::is_stream(&answer);
            self.learn(|learned| learned.streams = Some(streams));
        }
        match question.api {
            Api::Responses => {
                let most_tokens = question.settings.max_output_tokens;
                let (http, idle) = (&self.http, self.idle);
                responses::Reading { http, profile, idle, most_tokens }.read(answer, said).await
            }
            Api::Chat => chat::read(&self.http, answer, self.idle, said).await,
        }
    }

    async fn make_shorter(&self, question: &Question<'_>) -> Result<Compacted, ModelError> {
        let model = self.model(question.model).await?;
        let body = responses::encode_compaction(&model, question, self.profile())?;
        let answer = self.http.send(self.http.post("/responses/compact", body)).await?;
        let body = self.http.whole(answer).await?;
        let read: wire::CompactedBody = serde_json::from_slice(&body)
            .map_err(|error| self.http.protocol("compaction", &error.to_string()))?;
        let items = read.output.filter(|items| !items.is_empty());
        let items = items.ok_or_else(|| self.http.protocol("compaction", "it has no output"))?;
        Ok(Compacted { items, tokens: read.usage.unwrap_or_default().tokens() })
    }

    /// The question as this server can take it.
    fn fitted<'a>(&self, question: Question<'a>) -> Question<'a> {
        let has_tools = !question.tools.is_empty() || !question.hosted_tools.is_empty();
        let takes_shape = match self.profile().shapes {
            Shapes::Always => true,
            Shapes::WithoutTools => !has_tools,
        };
        let shape = question.shape.filter(|_| takes_shape && !self.learned().refuses_shapes);
        Question { shape, ..question }
    }
}

#[async_trait]
impl Model for HttpBackend {
    async fn respond(&self, question: Question<'_>, said: &Said<'_>) -> Result<Answer, ModelError> {
        let question = self.fitted(question);
        match self.ask(&question, said).await {
            // It was refused before anything was generated, and what it was for is checked anyway.
            Err(error) if question.shape.is_some() && names_shape(&error) => {
                tracing::info!(
                    backend = self.http.url(),
                    "it refused a schema, and is sent none any more"
                );
                self.learn(|learned| learned.refuses_shapes = true);
                self.ask(&Question { shape: None, ..question }, said).await
            }
            answered => answered,
        }
    }

    async fn compact(&self, question: Question<'_>) -> Option<Result<Compacted, ModelError>> {
        if !self.learned().compacts || question.api == Api::Chat {
            return None;
        }
        Some(self.make_shorter(&question).await)
    }

    fn cuts_silently(&self) -> bool {
        self.profile().cuts_silently
    }

    fn context_tokens(&self, model: Option<&str>) -> Option<u64> {
        let learned = self.learned();
        let model = model.or(learned.first_model.as_deref())?;
        learned.windows.get(model).copied()
    }

    async fn probe(&self, look: Look<'_>) -> Probe {
        let mut found = capabilities::probe(self, look).await;
        found.profile = self.profile().name;
        found
    }

    fn leaves_out(&self, hosted_tool: usize) -> Option<String> {
        let Some(tool) = self.hosted_tools.get(hosted_tool) else {
            return Some("hosted tools are declared to the default backend alone".into());
        };
        let profile = self.profile();
        let is_taken = serde_json::from_str(tool.expose_secret())
            .is_ok_and(|tool| wire::takes_hosted(profile.hosted_tools, tool));
        (!is_taken).then(|| format!("servers of the kind {} do not take it", profile.name))
    }

    fn url(&self) -> &str {
        self.http.url()
    }
}

/// Whether a request was refused for the schema in it.
fn names_shape(error: &ModelError) -> bool {
    const WORDS: [&str; 5] = ["schema", "format", "grammar", "'text'", "`text`"];
    let said = error.message.to_ascii_lowercase();
    error.fault == ModelFault::Rejected && WORDS.iter().any(|word| said.contains(word))
}
