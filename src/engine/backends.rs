//! The backends of this daemon: how each is by all that is known, from looks and from real requests, and who waits for
//! one that does not work. One loop for each looks at it, again and again; requests tell what they saw.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        backend::{Api, BackendName, Capabilities, Colour, ProfileName},
        ids::Timestamp,
        journal::{CapabilityProbe, NewEntry},
        redact::Redactor,
    },
    engine::{Engine, EngineError},
    ports::{
        Answer, Clock, Depth, Journal, Look, Model, ModelError, ModelFault, Probe, Question, Said,
    },
};

/// Requests that fail in a row, whosever they are, before nobody asks any more until a look finds the backend well.
const OPENS: u32 = 5;
/// Time between a look that failed and the next one, and least time between any two.
const SOON: Duration = Duration::from_secs(1);
/// Bounds of the wait for one answer of a look.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// Longest reason that is kept, in characters.
const WHY_CHARS: usize = 500;

/// Whether a backend is asked by what it has, or by the chat API whatever it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    #[default]
    WhereNeeded,
    Forced,
}

/// All of them, by name; one is the default.
#[derive(Debug, Clone)]
pub struct Backends {
    all: Arc<BTreeMap<BackendName, Arc<Backend>>>,
    default: Arc<Backend>,
}

/// A model server, and how it is.
pub struct Backend {
    pub name: BackendName,
    pub model: Arc<dyn Model>,
    /// For agents that name none; none: the first that it lists.
    pub default_model: Option<String>,
    fallback: Fallback,
    /// Backends' own words may repeat what was sent to them.
    redactor: Arc<Redactor>,
    standing: watch::Sender<Standing>,
    /// Somebody has reason to think that it is not as it was.
    doubt: Notify,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a backend is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Standing {
    /// None: nobody has looked yet.
    found: Option<Found>,
    /// Why the last look found it not to work.
    unwell: Option<Unwell>,
    /// What the last request that it answered with a failure of its own was told.
    fails: Option<String>,
    /// Requests that failed since one did not.
    failures: u32,
    last_ok: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    profile: ProfileName,
    capabilities: Capabilities,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Unwell {
    why: String,
    /// Whether it may get well by itself: one that refuses our credentials does not.
    passes: bool,
}

/// A backend as everybody may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendHealth {
    pub name: BackendName,
    /// Without credentials.
    pub url: String,
    pub colour: Colour,
    /// Why it is not green.
    pub why: Option<String>,
    pub profile: ProfileName,
    pub capabilities: Capabilities,
    pub last_ok: Option<Timestamp>,
    /// Whether it answers at all.
    pub is_reachable: bool,
    /// Whether runs wait until it works.
    pub is_awaited: bool,
}

impl Backends {
    /// `default` is the name of the one that is meant where none is named.
    pub fn new(default: Arc<Backend>, others: impl IntoIterator<Item = Arc<Backend>>) -> Self {
        let all = others.into_iter().chain([default.clone()]);
        let all = all.map(|backend| (backend.name.clone(), backend)).collect();
        Self { all: Arc::new(all), default }
    }

    /// The one of that name; none: the default.
    pub fn named(&self, name: Option<&BackendName>) -> &Arc<Backend> {
        name.and_then(|name| self.all.get(name)).unwrap_or(&self.default)
    }

    pub fn default(&self) -> &Arc<Backend> {
        &self.default
    }

    /// Each, in the order of their names.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.all.values()
    }
}

impl Backend {
    pub fn new(
        name: BackendName,
        model: Arc<dyn Model>,
        default_model: Option<String>,
        fallback: Fallback,
        redactor: Arc<Redactor>,
    ) -> Self {
        let standing = watch::channel(Standing::default()).0;
        let doubt = Notify::new();
        Self { name, model, default_model, fallback, redactor, standing, doubt }
    }

    /// Asks, and remembers how it went.
    pub(super) async fn ask(
        &self,
        clock: &dyn Clock,
        question: Question<'_>,
        said: &Said<'_>,
    ) -> Result<Answer, ModelError> {
        let answer = self.model.respond(question, said).await;
        let now = clock.now();
        self.standing.send_if_modified(|standing| match &answer {
            Ok(_) => standing.answered(now),
            Err(error) => standing.failed(error),
        });
        if answer.as_ref().is_err_and(ModelError::is_passing) {
            self.doubt.notify_one();
        }
        answer
    }

    /// The API by which a run that has not asked it before is to ask it, and why where that is the lesser one.
    ///
    /// Waits for the first look.
    pub(super) async fn api(&self) -> (Api, Option<&'static str>) {
        if self.fallback == Fallback::Forced {
            return (Api::Chat, Some("FORCE_CHAT_FALLBACK is set"));
        }
        let mut standing = self.standing.subscribe();
        let looked =
            standing.wait_for(|standing| standing.found.is_some() || standing.unwell.is_some());
        let found = looked.await.ok().and_then(|standing| standing.found.clone());
        match found.map(|found| found.capabilities.api()) {
            Some(Api::Chat) => (Api::Chat, Some("it has no Responses API, only the chat API")),
            Some(Api::Responses) | None => (Api::Responses, None),
        }
    }

    /// Why nobody is to ask it now, if so.
    pub(super) fn shut(&self) -> Option<String> {
        self.standing.borrow().shut()
    }

    /// Comes back once it may be asked.
    pub(super) async fn opened(&self) {
        let mut standing = self.standing.subscribe();
        // Its sender is ours.
        let _ = standing.wait_for(|standing| standing.shut().is_none()).await;
    }

    /// How it is.
    pub fn health(&self) -> BackendHealth {
        let standing = self.standing.borrow().clone();
        let (colour, why) = standing.colour(self.fallback);
        let is_awaited = standing.shut().is_some();
        let found = standing.found.as_ref();
        BackendHealth {
            name: self.name.clone(),
            url: self.model.url().to_owned(),
            colour,
            why,
            profile: found.map_or_else(ProfileName::default, |found| found.profile),
            capabilities: found.map_or_else(Capabilities::default, |found| found.capabilities),
            last_ok: standing.last_ok,
            is_reachable: found.is_some() && standing.unwell.is_none(),
            is_awaited,
        }
    }

    /// Looks at it again and again, until `stopping`. What is new goes into the daemon's chain.
    pub async fn watch(
        self: Arc<Self>,
        clock: Arc<dyn Clock>,
        journal: Arc<dyn Journal>,
        interval: Duration,
        stopping: CancellationToken,
    ) {
        let mut told = None;
        let mut failed_looks = 0;
        let mut least = Depth::Glance;
        loop {
            let looking = self.look(&*clock, interval, least);
            if stopping.run_until_cancelled(looking).await.is_none() {
                return;
            }
            let health = self.health();
            let probe = probe_entry(&health);
            let is_new = told.as_ref().is_none_or(|told| !is_same(told, &probe));
            failed_looks = if health.colour == Colour::Red { failed_looks + 1 } else { 0 };
            if is_new {
                tell(&probe);
                let entry = NewEntry {
                    time: clock.now(),
                    record: probe.clone().into(),
                    policy_revision: None,
                };
                // A store that fails stops the daemon by itself.
                let _ = journal.append_daemon(entry).await;
                told = Some(probe);
            }
            let wait = clock.sleep(pause(interval, failed_looks));
            let doubted = async {
                clock.sleep(SOON.min(interval)).await;
                self.doubt.notified().await;
            };
            least = tokio::select! {
                () = wait => Depth::Glance,
                // A request that failed says nothing new of what it can do.
                () = doubted => Depth::Presence,
                () = stopping.cancelled() => return,
            };
        }
    }

    /// Looks once; where that finds it unwell, once more, since one look may be unlucky.
    async fn look(&self, clock: &dyn Clock, interval: Duration, least: Depth) {
        let depth = self.standing.borrow().depth(least);
        let patience = (interval / 3).clamp(PATIENCE.0, PATIENCE.1);
        let look = Look { depth, patience, model: self.default_model.as_deref() };
        let mut probe = self.model.probe(look).await;
        let was_well = self.standing.borrow().is_well();
        if was_well && probe.ready.as_ref().is_err_and(ModelError::is_passing) {
            clock.sleep(SOON.min(interval / 4)).await;
            probe = self.model.probe(look).await;
        }
        let now = clock.now();
        self.standing.send_modify(|standing| standing.looked(probe, depth, now, &self.redactor));
    }
}

/// What was found when somebody wanted to know everything.
#[derive(Debug, Clone)]
pub struct Probed {
    pub health: BackendHealth,
    pub models: Vec<String>,
    /// What could not be told, and why.
    pub remarks: Vec<String>,
}

impl Engine {
    /// Looks at a backend for all that can be known, which costs some tokens. An empty name stands for the default one.
    pub async fn probe_backend(&self, name: &str) -> Result<Probed, EngineError> {
        let world = self.world();
        let backends = &world.backends;
        let is_meant = |one: &&Arc<Backend>| one.name.as_str() == name;
        let backend = match name {
            "" => backends.default(),
            _ => backends.all().find(is_meant).ok_or_else(|| {
                let names: Vec<&str> = backends.all().map(|one| one.name.as_str()).collect();
                let message = format!("there is no backend {name}; there are {}", names.join(", "));
                EngineError::InvalidField { field: "name", message }
            })?,
        };
        let model = backend.default_model.as_deref();
        let look = Look { depth: Depth::Everything, patience: PATIENCE.1, model };
        let mut probe = backend.model.probe(look).await;
        if probe.ready.as_ref().is_err_and(ModelError::is_passing) {
            world.clock.sleep(SOON).await;
            probe = backend.model.probe(look).await;
        }
        let models = probe.models.clone();
        let remarks = probe.remarks.iter().map(|remark| cut(&backend.redactor.redact(remark)));
        let remarks = remarks.collect();
        let now = world.clock.now();
        backend.standing.send_modify(|standing| {
            standing.looked(probe, Depth::Everything, now, &backend.redactor);
        });
        Ok(Probed { health: backend.health(), models, remarks })
    }
}

/// How long after a look the next one follows: soon where it failed, and later each time.
fn pause(interval: Duration, failed_looks: u32) -> Duration {
    match failed_looks {
        0 => interval,
        _ => (SOON * 2_u32.saturating_pow(failed_looks - 1)).min(interval),
    }
}

fn probe_entry(health: &BackendHealth) -> CapabilityProbe {
    CapabilityProbe {
        backend: health.name.clone(),
        url: health.url.clone(),
        profile: health.profile,
        colour: health.colour,
        why: health.why.clone(),
        capabilities: health.capabilities,
    }
}

/// Whether nothing is new but the words of what is wrong.
fn is_same(one: &CapabilityProbe, other: &CapabilityProbe) -> bool {
    let essence = |probe: &CapabilityProbe| (probe.colour, probe.profile, probe.capabilities);
    essence(one) == essence(other)
}

fn tell(probe: &CapabilityProbe) {
    let CapabilityProbe { backend, url, profile, colour, why, capabilities: can } = probe;
    let why = why.as_deref().unwrap_or_default();
    let colour = colour.as_str();
    let known =
        |found: Option<bool>| found.map_or("unknown", |found| if found { "true" } else { "false" });
    let (agents, responses, chat) = (known(can.agents), known(can.responses), known(can.chat));
    match colour {
        "green" => {
            tracing::info!(%backend, url, %profile, colour, %agents, %responses, %chat, "capability_probe")
        }
        _ => {
            tracing::warn!(%backend, url, %profile, colour, why, %agents, %responses, %chat, "capability_probe")
        }
    }
}

impl Standing {
    /// A request was answered. Tells whether that is news.
    fn answered(&mut self, now: Timestamp) -> bool {
        let was = self.shut().is_some() || self.fails.is_some();
        self.failures = 0;
        self.fails = None;
        // Whatever its list of models does meanwhile: servers with one thread do not tell it while they answer.
        self.unwell = self.unwell.take().filter(|unwell| !unwell.passes);
        self.last_ok = Some(now);
        was
    }

    /// A request failed. Tells whether that is news.
    fn failed(&mut self, error: &ModelError) -> bool {
        match error.fault {
            ModelFault::Unavailable | ModelFault::Timeout => {
                self.failures = self.failures.saturating_add(1);
                // Its words may be about somebody's run, and everybody sees this.
                if let Some(status) = error.http_status.filter(|status| *status >= 500) {
                    self.fails = Some(format!("it answered a request with HTTP {status}"));
                }
                true
            }
            // Whoever says no is there.
            ModelFault::Rejected
            | ModelFault::ContextOverflow
            | ModelFault::RateLimited
            | ModelFault::Protocol => {
                self.failures = 0;
                true
            }
            ModelFault::Unauthenticated
            | ModelFault::QuotaExhausted
            | ModelFault::BrokenConversation => false,
        }
    }

    fn looked(&mut self, probe: Probe, depth: Depth, now: Timestamp, redactor: &Redactor) {
        let known = self.found.as_ref().map(|found| found.capabilities).unwrap_or_default();
        match probe.ready {
            Ok(()) => {
                self.unwell = None;
                self.last_ok = Some(now);
                if depth >= Depth::Request {
                    self.fails = None;
                    self.failures = 0;
                }
            }
            Err(error) => {
                let why = cut(&redactor.redact(&error.message));
                self.unwell = Some(Unwell { why, passes: error.is_passing() });
            }
        }
        let is_known = self.unwell.is_none() || probe.capabilities != Capabilities::default();
        if is_known {
            let capabilities = probe.capabilities.or(known);
            self.found = Some(Found { profile: probe.profile, capabilities });
        }
    }

    /// How closely it is to be looked at: where requests failed, only a real one tells whether it works again, and one
    /// that comes back may be another server.
    fn depth(&self, least: Depth) -> Depth {
        match self.fails.is_some() || self.failures >= OPENS {
            true => Depth::Request,
            false if !self.is_well() => Depth::Glance,
            false => least,
        }
    }

    fn is_well(&self) -> bool {
        self.found.is_some() && self.unwell.is_none()
    }

    /// Why nobody is to ask it now, if so.
    fn shut(&self) -> Option<String> {
        match &self.unwell {
            Some(Unwell { why, passes: true }) => Some(why.clone()),
            Some(_) | None if self.failures >= OPENS => Some(match &self.fails {
                Some(fails) => fails.clone(),
                None => format!("the last {} requests to it failed", self.failures),
            }),
            Some(_) | None => None,
        }
    }

    fn colour(&self, fallback: Fallback) -> (Colour, Option<String>) {
        let unwell = self.unwell.as_ref().map(|unwell| unwell.why.clone());
        if let Some(why) = unwell.or_else(|| self.fails.clone()).or_else(|| self.shut()) {
            return (Colour::Red, Some(why));
        }
        let degraded = |why: &str| (Colour::Degraded, Some(why.to_owned()));
        match &self.found {
            None => degraded("nobody has looked at it yet"),
            Some(_) if fallback == Fallback::Forced => {
                degraded("FORCE_CHAT_FALLBACK is set: runs have no tools")
            }
            Some(found) if found.capabilities.api() == Api::Chat => {
                degraded("it has no Responses API: runs have no tools")
            }
            Some(found) if found.capabilities.responses == Some(false) => {
                (Colour::Red, Some("it has neither the Responses API nor the chat API".into()))
            }
            Some(_) => (Colour::Green, None),
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(WHY_CHARS).collect()
}
