//! What [`fold`] and [`decide`] promise, shown on made-up lives of runs. A [`World`] obeys `decide` the
//! way `engine::driver` does, and lets everything go wrong that can: bad answers, failing backends,
//! deaths of the daemon between any two entries, cancellation while something is under way.
//!
//! Nothing here knows of a port: whole daemons are tested from `tests/it`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::domain::{
    budget::{Budget, TokenCount},
    effect::Isolation,
    host::Host,
    ids::{CallId, Caller, Epoch, PolicyRevision, RuleId, ToolName, TreeId},
    item::{Paired, RawJson, check_pairing},
    journal::{
        AnsweredItem, AskedCall, CancelRequested, Connection, DaemonStarted, DaemonStopped,
        Decided, HostedDecided, ModelNudged, ModelRequest, NetworkUsed, PolicyReload, Reloaded,
        RunAnchored, RunFinished, RunRecovered, RunSuspended, ToolResumed, Used, Verdict,
        WorkspaceSnapshot,
    },
    retry,
    status::StateName,
    tool::OutcomeKind,
};

const CLASSES: [EffectClass; 4] = [
    EffectClass::Pure,
    EffectClass::Idempotent,
    EffectClass::Reconcilable,
    EffectClass::NonIdempotent,
];

// Plain records: each is the least that `fold` needs of its kind.

fn run_id() -> RunId {
    RunId::new(uuid::Uuid::nil())
}

fn spec(budget: Budget) -> RunCreated {
    RunCreated {
        task: "tidy up".into(),
        workspace: "/srv/work".into(),
        agent: "executor".into(),
        model: None,
        budget,
        labels: BTreeMap::new(),
        submitter: Caller::new("uid:1000"),
        request_id: None,
    }
}

fn request(turn: u32, attempt: u32) -> Record {
    model_request(turn, attempt).into()
}

fn model_request(turn: u32, attempt: u32) -> ModelRequest {
    ModelRequest { turn, attempt, items: 1, hosted_tools: Vec::new() }
}

/// An answer that is whole, says nothing and asks for `calls` calls, each with an id of its own that
/// comes again in the next turn, as with local servers.
fn response(turn: u32, attempt: u32, calls: usize) -> ModelResponse {
    let reasoning = AnsweredItem { raw: raw(&json!({ "type": "reasoning" })), call: None };
    let asked = (0..calls).map(|index| asked_item(turn, index));
    ModelResponse {
        turn,
        attempt,
        response_id: None,
        model: None,
        text: None,
        incomplete: None,
        items: std::iter::once(reasoning).chain(asked).collect(),
        tokens: TokenCount::default(),
        duration_ms: 1,
    }
}

/// The key rides along in the item's `id`, so that a conversation can be checked against it.
fn asked_item(turn: u32, index: usize) -> AnsweredItem {
    let call_id = format!("call_{index}");
    let id = format!("{turn}.{index}");
    AnsweredItem {
        raw: raw(&json!({ "type": "function_call", "call_id": call_id, "id": id })),
        call: Some(AskedCall {
            call_id: CallId::new(call_id),
            tool: ToolName::new("some_tool"),
            arguments: "{}".into(),
        }),
    }
}

fn raw(value: &Value) -> RawJson {
    to_raw_value(value).unwrap().into()
}

fn failed(turn: u32, attempt: u32, retry_at: Option<Timestamp>) -> Record {
    backend_error(turn, attempt, retry_at).into()
}

fn backend_error(turn: u32, attempt: u32, retry_at: Option<Timestamp>) -> BackendError {
    BackendError {
        turn,
        attempt,
        reason: "BACKEND_UNAVAILABLE".into(),
        message: "connection refused".into(),
        http_status: None,
        backend_request_id: None,
        sent: Sent::Maybe,
        retry_at,
    }
}

fn nudged(turn: u32) -> Record {
    ModelNudged { turn, text: "you said nothing".into() }.into()
}

fn key(turn: u32, index: u32) -> CallKey {
    CallKey { turn, index }
}

fn call_id(call: CallKey) -> CallId {
    CallId::new(format!("call_{}", call.index))
}

fn called(call: CallKey, effect_class: EffectClass) -> Record {
    intent(call, effect_class).into()
}

fn intent(call: CallKey, effect_class: EffectClass) -> ToolCalled {
    ToolCalled {
        call,
        call_id: call_id(call),
        tool: ToolName::new("some_tool"),
        arguments: "{}".into(),
        effect_class,
        facts: None,
    }
}

fn resumed(call: CallKey, attempt: u32) -> Record {
    ToolResumed { call, call_id: call_id(call), attempt }.into()
}

fn decided(call: CallKey) -> Record {
    Decided {
        call,
        call_id: call_id(call),
        decision: Verdict::Allow,
        rule: RuleId::new("some.rule"),
        why: "it is allowed".into(),
    }
    .into()
}

fn connection(call: CallKey) -> Record {
    Connection {
        call,
        call_id: call_id(call),
        host: Host::parse("api.example.com").unwrap(),
        port: 443,
        method: "CONNECT".into(),
        decision: Verdict::Allow,
        rule: RuleId::new("some.rule"),
        why: "it is allowed".into(),
        addresses: vec!["93.184.215.14".into()],
    }
    .into()
}

/// The output's text is the call's key.
fn output(call: CallKey) -> Record {
    ToolOutput {
        call,
        call_id: call_id(call),
        outcome: OutcomeKind::Done,
        output: call.to_string().into(),
        duration_ms: 1,
        used: Some(Used {
            cpu_ms: 3,
            peak_memory_kib: 512,
            isolation: Isolation::Full,
            network: Some(NetworkUsed {
                opened: 1,
                refused: 0,
                sent: 5,
                received: 7,
                dialled: vec!["93.184.215.14 for api.example.com:443".into()],
            }),
        }),
    }
    .into()
}

fn cancelled() -> Record {
    CancelRequested { by: Caller::new("uid:1000"), why: "changed my mind".into() }.into()
}

fn recovered() -> Record {
    RunRecovered { epoch: Epoch(2) }.into()
}

fn suspended(why: Suspension) -> Record {
    RunSuspended { why }.into()
}

fn finished(ending: Ending) -> Record {
    RunFinished { ending }.into()
}

fn failure() -> Failure {
    Failure { reason: "SANDBOX_FAILED".into(), message: "it fell over".into() }
}

// Chains and their folds.

/// A run's chain: its creation, then `records`.
fn chain(budget: Budget, records: impl IntoIterator<Item = Record>) -> Vec<Entry> {
    let created = Record::from(spec(budget));
    (1..).zip(std::iter::once(created).chain(records)).map(entry).collect()
}

fn entry((sequence, record): (u64, Record)) -> Entry {
    Entry { sequence: Sequence(sequence), time: Timestamp(sequence as i64 * 1_000), record }
}

fn next_entry(state: &RunState, record: Record) -> Entry {
    entry((state.head.next().0, record))
}

fn folded(entries: &[Entry]) -> RunState {
    RunState::from_entries(run_id(), entries.iter().cloned()).unwrap()
}

/// The state of a run with the default budget after `records`.
fn after(records: impl IntoIterator<Item = Record>) -> RunState {
    folded(&chain(Budget::default(), records))
}

/// The state after each entry, with the entries up to it.
fn each_moment(entries: &[Entry]) -> impl Iterator<Item = (&[Entry], RunState)> {
    let first = folded(&entries[..1]);
    let later = (2..=entries.len()).scan(first.clone(), |state, length| {
        fold_into(state, &entries[length - 1]);
        Some((&entries[..length], state.clone()))
    });
    std::iter::once((&entries[..1], first)).chain(later)
}

// The simulated world.

/// All that will go right and wrong in one life.
#[derive(Debug, Clone)]
struct Fate {
    budget: Budget,
    /// What comes back from the backend, over and over from the start; at least one.
    replies: Vec<Reply>,
    /// The daemon dies instead of writing these entries, counted from 0.
    deaths: BTreeSet<usize>,
    /// Somebody cancels when the daemon listens for the so many-th time, or once the run stands still.
    cancel_at: Option<usize>,
}

/// What comes back from the backend.
#[derive(Debug, Clone)]
enum Reply {
    Answer {
        calls: Vec<Planned>,
        text: Option<Arc<str>>,
    },
    CutOff {
        calls: usize,
    },
    /// Tried again while attempts are left.
    PassingError,
    LastingError,
}

/// A call to be asked for.
#[derive(Debug, Clone, Copy)]
struct Planned {
    class: EffectClass,
    /// Of calls that run side by side, those with lower ranks are done first.
    rank: u8,
}

/// One daemon after the other, and the run they carry on.
struct World {
    fate: Fate,
    state: RunState,
    entries: Vec<Entry>,
    planned: HashMap<CallKey, Planned>,
    replies: usize,
    writes: usize,
    listened: usize,
}

/// The daemon is dead.
struct Died;

#[derive(PartialEq)]
enum Heard {
    Nothing,
    Cancel,
}

impl World {
    fn new(fate: Fate) -> Self {
        let entries = chain(fate.budget, []);
        let state = folded(&entries);
        Self { fate, state, entries, planned: HashMap::new(), replies: 0, writes: 0, listened: 0 }
    }

    /// Decide, perform, append, fold, until there is nothing more to do.
    fn live(mut self) -> Self {
        for _ in 0..self.most_steps() {
            match decide(&self.state) {
                Command::Rest if self.will_be_cancelled() => self.append(cancelled()),
                Command::Rest => return self,
                command => match self.perform(command) {
                    Ok(()) => {}
                    Err(Died) => self.take_over(),
                },
            }
        }
        panic!("the run goes on for more than {} steps", self.most_steps());
    }

    /// Each turn takes its requests, a round of calls or a nudge; each death costs a step and makes one
    /// more; then there is the way to the end.
    fn most_steps(&self) -> usize {
        let turns = self.fate.budget.max_turns as usize;
        turns * (retry::MAX_ATTEMPTS as usize + 2) + 2 * self.fate.deaths.len() + 8
    }

    fn will_be_cancelled(&self) -> bool {
        let stands_still = matches!(self.state.phase, Phase::Suspended { .. });
        stands_still && self.fate.cancel_at.is_some() && self.state.wish == Wish::GoOn
    }

    /// As `engine::recovery` does.
    fn take_over(&mut self) {
        if self.state.is_under_way() {
            self.append(recovered());
        }
    }

    fn perform(&mut self, command: Command) -> Result<(), Died> {
        if self.hear()? == Heard::Cancel {
            return Ok(());
        }
        match command {
            Command::AskModel { turn, attempt, .. } => self.ask(turn, attempt),
            Command::Invoke(invocations) => self.invoke(&invocations),
            Command::Nudge { turn } => self.write(nudged(turn)),
            Command::Suspend(why) => self.write(suspended(why)),
            Command::Finish(ending) => self.write(finished(ending)),
            Command::Rest => Ok(()),
        }
    }

    fn ask(&mut self, turn: u32, attempt: u32) -> Result<(), Died> {
        self.write(request(turn, attempt))?;
        let reply = self.fate.replies[self.replies % self.fate.replies.len()].clone();
        self.replies += 1;
        // Nobody waits for the answer of a run that is being cancelled.
        if self.hear()? == Heard::Cancel {
            return Ok(());
        }
        let record = self.reply(turn, attempt, reply);
        self.write(record)
    }

    fn reply(&mut self, turn: u32, attempt: u32, reply: Reply) -> Record {
        let tokens = TokenCount { input: 20, output: 10, ..TokenCount::default() };
        match reply {
            Reply::Answer { calls, text } => {
                let keys = (0..).map(|index| key(turn, index));
                self.planned.extend(keys.zip(calls.iter().copied()));
                ModelResponse { text, tokens, ..response(turn, attempt, calls.len()) }.into()
            }
            Reply::CutOff { calls } => {
                let incomplete = Some("max_output_tokens".to_owned());
                ModelResponse { incomplete, tokens, ..response(turn, attempt, calls) }.into()
            }
            Reply::PassingError => {
                let retry_at = (attempt < retry::MAX_ATTEMPTS)
                    .then(|| self.state.updated.plus_millis(retry::delay_ms(attempt, None, 0.0)));
                failed(turn, attempt, retry_at)
            }
            Reply::LastingError => failed(turn, attempt, None),
        }
    }

    /// All intents first; then the calls come to their ends in any order.
    fn invoke(&mut self, invocations: &[Invocation]) -> Result<(), Died> {
        for Invocation { call, mode, .. } in invocations {
            match mode {
                InvocationMode::First => {
                    let class = self.planned[&call.key].class;
                    self.write(called(call.key, class))?;
                    self.write(decided(call.key))?;
                }
                InvocationMode::Again { attempt } => self.write(resumed(call.key, *attempt))?,
                InvocationMode::CloseUnstarted => {
                    self.write(called(call.key, EffectClass::Pure))?;
                }
                InvocationMode::CloseStarted => {}
            }
        }
        let mut ends: Vec<CallKey> = invocations.iter().map(|begun| begun.call.key).collect();
        ends.sort_by_key(|call| self.planned[call].rank);
        for call in ends {
            // Calls under way are stopped by a cancellation, and then have an output all the same.
            self.hear()?;
            self.write(output(call))?;
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<Heard, Died> {
        self.listened += 1;
        let due = self.fate.cancel_at.is_some_and(|moment| moment < self.listened);
        if !due || self.state.wish == Wish::Cancel {
            return Ok(Heard::Nothing);
        }
        self.write(cancelled())?;
        Ok(Heard::Cancel)
    }

    fn write(&mut self, record: Record) -> Result<(), Died> {
        let ordinal = self.writes;
        self.writes += 1;
        if self.fate.deaths.contains(&ordinal) {
            return Err(Died);
        }
        self.append(record);
        Ok(())
    }

    fn append(&mut self, record: Record) {
        let entry = next_entry(&self.state, record);
        fold_into(&mut self.state, &entry);
        self.entries.push(entry);
    }
}

fn budget() -> impl Strategy<Value = Budget> {
    (0..6u32, 0..12u32, 0..200u64).prop_map(|(max_turns, max_tool_calls, max_tokens)| Budget {
        max_turns,
        max_tool_calls,
        max_tokens,
    })
}

fn reply() -> impl Strategy<Value = Reply> {
    let planned =
        (select(CLASSES.as_slice()), any::<u8>()).prop_map(|(class, rank)| Planned { class, rank });
    let text = option::of(Just(Arc::from("all done")));
    prop_oneof![
        10 => (vec(planned, 0..=4), text).prop_map(|(calls, text)| Reply::Answer { calls, text }),
        1 => (0..3usize).prop_map(|calls| Reply::CutOff { calls }),
        3 => Just(Reply::PassingError),
        1 => Just(Reply::LastingError),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    (budget(), vec(reply(), 1..5), btree_set(0..40usize, 0..4), option::of(0..20usize)).prop_map(
        |(budget, replies, deaths, cancel_at)| Fate { budget, replies, deaths, cancel_at },
    )
}

/// A run that has come to rest.
fn life() -> impl Strategy<Value = Vec<Entry>> {
    fate().prop_map(|fate| World::new(fate).live().entries)
}

// Records that make no sense.

/// Mostly numbers that other records use too.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 0..4u32, 1 => Just(u32::MAX)]
}

fn any_key() -> impl Strategy<Value = CallKey> {
    (number(), number()).prop_map(|(turn, index)| key(turn, index))
}

fn any_suspension() -> impl Strategy<Value = Suspension> {
    let message = || "look at it".to_owned();
    prop_oneof![
        Just(Suspension::BudgetExhausted { limit: "turns".into(), message: message() }),
        vec(any_key(), 0..3)
            .prop_map(move |calls| Suspension::OutcomeUnknown { calls, message: message() }),
    ]
}

fn any_ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Succeeded { answer: "all done".into() }),
        Just(Ending::Failed(failure())),
        Just(Ending::Cancelled),
    ]
}

fn any_response() -> impl Strategy<Value = Record> {
    let text = option::of(Just(Arc::from("words")));
    let incomplete = option::of(Just("content_filter".to_owned()));
    let tokens = (any::<u64>(), any::<u64>()).prop_map(|(input, output)| TokenCount {
        input,
        output,
        ..TokenCount::default()
    });
    (number(), number(), 0..4usize, text, incomplete, tokens).prop_map(
        |(turn, attempt, calls, text, incomplete, tokens)| {
            ModelResponse { text, incomplete, tokens, ..response(turn, attempt, calls) }.into()
        },
    )
}

/// Any record at all, of a run or of the daemon. Those after which little happens are rare.
fn any_record() -> impl Strategy<Value = Record> {
    let retry_at = option::of(any::<i64>().prop_map(Timestamp));
    let class = select(CLASSES.as_slice());
    prop_oneof![
        1 => budget().prop_map(|budget| spec(budget).into()),
        8 => (number(), number()).prop_map(|(turn, attempt)| request(turn, attempt)),
        8 => any_response(),
        4 => (number(), number(), retry_at)
            .prop_map(|(turn, attempt, retry_at)| failed(turn, attempt, retry_at)),
        4 => number().prop_map(nudged),
        8 => (any_key(), class).prop_map(|(call, class)| called(call, class)),
        8 => (any_key(), number()).prop_map(|(call, attempt)| resumed(call, attempt)),
        2 => any_key().prop_map(decided),
        8 => any_key().prop_map(output),
        2 => Just(cancelled()),
        4 => Just(recovered()),
        2 => any_suspension().prop_map(suspended),
        1 => any_ending().prop_map(finished),
        1 => select(records_of_the_daemon()),
    ]
}

fn records_of_the_daemon() -> Vec<Record> {
    vec![
        DaemonStarted {
            version: "0.1.0".into(),
            epoch: Epoch(3),
            sqlite: "3.50.4".into(),
            policy_revision: PolicyRevision::new("sha256:00"),
        }
        .into(),
        reload(Reloaded::Applied { revision: PolicyRevision::new("sha256:01") }),
        reload(Reloaded::Refused { faults: vec!["tools.yaml:3:1: no".into()] }),
        RunAnchored { run_id: run_id(), sequence: Sequence(7), hash: "00".repeat(32) }.into(),
        DaemonStopped { why: "asked to".into() }.into(),
    ]
}

fn reload(outcome: Reloaded) -> Record {
    let before = PolicyRevision::new("sha256:00");
    PolicyReload { by: Caller::new("signal:SIGHUP"), before, outcome }.into()
}

/// A chain that no daemon would write: a life with records in it that do not belong there, or no life
/// at all.
fn garbage() -> impl Strategy<Value = Vec<Entry>> {
    let strays = vec((any::<Index>(), any_record()), 1..6);
    let spoilt = (life(), strays).prop_map(|(life, strays)| {
        let mut records: Vec<Record> = life.into_iter().skip(1).map(|entry| entry.record).collect();
        for (place, stray) in strays {
            records.insert(place.index(records.len() + 1), stray);
        }
        chain(Budget::default(), records)
    });
    let senseless =
        (budget(), vec(any_record(), 0..30)).prop_map(|(budget, records)| chain(budget, records));
    prop_oneof![spoilt, senseless]
}

fn any_chain() -> impl Strategy<Value = Vec<Entry>> {
    prop_oneof![life(), garbage()]
}

// What the properties look at. It is read off the journal, without `fold`.

/// All that a journal holds of one call.
#[derive(Debug, Default)]
struct Traces {
    /// Attempts whose intent is on disk, oldest first.
    begun: Vec<u32>,
    class: Option<EffectClass>,
    /// Whether the daemon died after the last attempt was begun.
    lost: bool,
    outputs: usize,
}

fn traces(entries: &[Entry], key: CallKey) -> Traces {
    let mut traces = Traces::default();
    for entry in entries {
        match &entry.record {
            Record::ToolCalled(called) if called.call == key => {
                traces.begun.push(1);
                traces.class = Some(called.effect_class);
                traces.lost = false;
            }
            Record::ToolResumed(resumed) if resumed.call == key => {
                traces.begun.push(resumed.attempt);
                traces.lost = false;
            }
            Record::ToolOutput(output) if output.call == key => traces.outputs += 1,
            Record::RunRecovered(_) => traces.lost = !traces.begun.is_empty(),
            _ => {}
        }
    }
    traces
}

fn begun_calls(entries: &[Entry]) -> BTreeSet<CallKey> {
    let begun = entries.iter().filter_map(|entry| match &entry.record {
        Record::ToolCalled(called) => Some(called.call),
        _ => None,
    });
    begun.collect()
}

fn cancel_was_requested(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| matches!(entry.record, Record::CancelRequested(_)))
}

fn was_cut_off(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| match &entry.record {
        Record::ModelResponse(response) => response.incomplete.is_some(),
        _ => false,
    })
}

fn assert_may_be_invoked(entries: &[Entry], invocation: &Invocation) {
    let traces = traces(entries, invocation.call.key);
    let ok = match invocation.mode {
        InvocationMode::First => traces.begun.is_empty(),
        InvocationMode::Again { attempt } => {
            traces.lost
                && traces.class != Some(EffectClass::NonIdempotent)
                && traces.begun.last().is_some_and(|last| *last < attempt)
        }
        InvocationMode::CloseUnstarted => cancel_was_requested(entries) && traces.begun.is_empty(),
        InvocationMode::CloseStarted => cancel_was_requested(entries) && !traces.begun.is_empty(),
    };
    assert!(ok && traces.outputs == 0, "{invocation:?} though the journal holds {traces:?}");
}

/// Checks that a conversation can be sent: each call has its output, in the model's order, before
/// anything else is said.
fn assert_is_whole(items: &[Item]) {
    assert_eq!(check_pairing(items.iter().map(paired)), Ok(()));
    let is_output = |item: &Item| matches!(item, Item::ToolOutput { .. });
    for exchange in items.chunk_by(|item, next| !is_output(item) || is_output(next)) {
        let calls: Vec<(CallId, String)> = exchange.iter().filter_map(asked_for).collect();
        let outputs: Vec<(CallId, String)> = exchange.iter().filter_map(answer_to).collect();
        assert_eq!(outputs, calls, "in {items:?}");
    }
}

fn paired(item: &Item) -> Paired {
    match (asked_for(item), answer_to(item)) {
        (Some((call, _)), _) => Paired::Call(call),
        (None, Some((call, _))) => Paired::Output(call),
        (None, None) => Paired::Other,
    }
}

fn asked_for(item: &Item) -> Option<(CallId, String)> {
    let Item::Model { raw, .. } = item else { return None };
    let raw: Value = serde_json::from_str(raw.get()).unwrap();
    (raw["type"] == "function_call").then(|| {
        (CallId::new(raw["call_id"].as_str().unwrap()), raw["id"].as_str().unwrap().to_owned())
    })
}

fn answer_to(item: &Item) -> Option<(CallId, String)> {
    match item {
        Item::ToolOutput { call_id, output } => Some((call_id.clone(), output.to_string())),
        Item::User { .. } | Item::Model { .. } => None,
    }
}

// Folding.

proptest! {
    #[test]
    fn folding_a_prefix_and_then_the_rest_is_folding_all(entries in any_chain(), cut in any::<Index>()) {
        let (prefix, rest) = entries.split_at(1 + cut.index(entries.len()));
        prop_assert_eq!(rest.iter().fold(folded(prefix), fold), folded(&entries));
    }

    #[test]
    fn what_is_read_back_folds_to_what_was_written(entries in any_chain()) {
        let read_back: Vec<Entry> = entries
            .iter()
            .map(|entry| Entry { record: written_and_read(&entry.record), ..entry.clone() })
            .collect();
        prop_assert_eq!(folded(&read_back), folded(&entries));
    }

    #[test]
    fn whatever_the_entries_every_one_is_folded_and_something_can_be_decided(entries in garbage()) {
        for (so_far, state) in each_moment(&entries) {
            let last = &so_far[so_far.len() - 1];
            prop_assert_eq!((state.head, state.updated), (last.sequence, last.time));
            decide(&state);
        }
    }

    #[test]
    fn nothing_follows_the_end(before in any_chain(), ending in any_ending(), rest in vec(any_record(), 1..8)) {
        let before = folded(&before);
        let end = next_entry(&before, finished(ending));
        let ended = fold(before, &end);
        let mut state = ended.clone();
        for record in rest {
            state = fold(state.clone(), &next_entry(&state, record));
            prop_assert_eq!(decide(&state), Command::Rest);
        }
        prop_assert_eq!((state.phase, state.items, state.usage), (ended.phase, ended.items, ended.usage));
    }

    #[test]
    fn a_new_daemon_changes_nothing_where_nothing_was_under_way(entries in any_chain()) {
        for (_, before) in each_moment(&entries).filter(|(_, state)| !state.is_under_way()) {
            let taken_over = next_entry(&before, recovered());
            let (head, updated) = (taken_over.sequence, taken_over.time);
            let after = fold(before.clone(), &taken_over);
            prop_assert_eq!(after, RunState { head, updated, ..before });
        }
    }
}

// Lives of runs. What is to be done is asked after every single entry, not only where the world asks.

proptest! {
    #[test]
    fn a_call_is_begun_once_and_again_only_when_its_daemon_died(entries in life()) {
        for (so_far, state) in each_moment(&entries) {
            if let Command::Invoke(invocations) = decide(&state) {
                prop_assert!(!invocations.is_empty());
                invocations.iter().for_each(|invocation| assert_may_be_invoked(so_far, invocation));
            }
        }
        for call in begun_calls(&entries) {
            let traces = traces(&entries, call);
            prop_assert!(traces.begun.is_sorted_by(|one, next| one < next), "{:?}", traces);
            prop_assert!(traces.outputs <= 1, "{:?}", traces);
            if traces.class == Some(EffectClass::NonIdempotent) {
                prop_assert_eq!(traces.begun, [1]);
            }
        }
    }

    #[test]
    fn a_request_is_made_once_and_after_a_failure_or_a_death_it_has_a_number_of_its_own(entries in life()) {
        let mut last = (0, 0);
        for entry in &entries {
            if let Record::ModelRequest(ModelRequest { turn, attempt, .. }) = entry.record {
                prop_assert!(last < (turn, attempt), "{:?} after {:?}", (turn, attempt), last);
                last = (turn, attempt);
            }
        }
    }

    #[test]
    fn the_model_is_asked_only_when_every_call_has_its_output_in_the_model_s_order(entries in life()) {
        for (_, state) in each_moment(&entries) {
            if let Command::AskModel { .. } = decide(&state) {
                assert_is_whole(&state.items);
            }
        }
    }

    #[test]
    fn every_run_comes_to_rest(fate in fate()) {
        // That it takes a bounded number of steps is checked by the world.
        let world = World::new(fate).live();
        prop_assert!(world.state.name().is_ended() || world.state.name().is_suspended());
        prop_assert_eq!(decide(&world.state), Command::Rest);
    }

    #[test]
    fn a_cancelled_run_ends_as_cancelled_and_leaves_no_call_open(entries in life()) {
        let state = folded(&entries);
        if cancel_was_requested(&entries) {
            prop_assert_eq!(&state.phase, &Phase::Ended(Ending::Cancelled));
            for call in begun_calls(&entries) {
                prop_assert_eq!(traces(&entries, call).outputs, 1, "of call {}", call);
            }
            // What an answer asked for that was cut off has not been begun, and has no output.
            if !was_cut_off(&entries) {
                assert_is_whole(&state.items);
            }
        }
    }

    #[test]
    fn no_budget_is_overrun(entries in life()) {
        for (so_far, state) in each_moment(&entries) {
            let (used, budget) = (state.usage, state.spec.budget);
            // The last answer may go over the limit of tokens; none is asked for after that.
            if let Command::AskModel { .. } = decide(&state) {
                prop_assert!(used.turns < budget.max_turns);
                prop_assert!(used.input_tokens + used.output_tokens < budget.max_tokens);
            }
            // Calls that a cancellation closes count, too; nothing is done for them.
            if !cancel_was_requested(so_far) {
                prop_assert!(used.tool_calls <= budget.max_tool_calls);
            }
        }
    }
}

#[test]
fn the_world_shows_every_ending_and_every_mode_of_invocation() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..300 {
        let entries = life().new_tree(&mut runner).unwrap().current();
        seen.insert(folded(&entries).name().as_str().to_owned());
        for (_, state) in each_moment(&entries) {
            if let Command::Invoke(invocations) = decide(&state) {
                seen.extend(invocations.iter().map(|invocation| format!("{:?}", invocation.mode)));
            }
        }
    }
    let wanted = [
        "OUT_OF_BUDGET",
        "NEEDS_ATTENTION",
        "SUCCEEDED",
        "FAILED",
        "CANCELLED",
        "First",
        "Again { attempt: 2 }",
        "Again { attempt: 3 }",
        "CloseUnstarted",
        "CloseStarted",
    ];
    let missing: Vec<_> = wanted.into_iter().filter(|name| !seen.contains(*name)).collect();
    assert!(missing.is_empty(), "no life shows {missing:?}");
}

// What a gap means after a crash.

/// A run whose model asked for one call of each of `classes`; all intents are on disk.
fn under_way(classes: &[EffectClass]) -> Vec<Record> {
    let intents = (0..).zip(classes).map(|(index, class)| called(key(1, index), *class));
    [request(1, 1), response(1, 1, classes.len()).into()].into_iter().chain(intents).collect()
}

fn invocation(index: u32, mode: InvocationMode) -> Invocation {
    let call = ToolCall {
        key: key(1, index),
        call_id: call_id(key(1, index)),
        tool: ToolName::new("some_tool"),
        arguments: "{}".into(),
    };
    Invocation { call, mode, earlier: None }
}

fn check(
    records: impl IntoIterator<Item = Record>,
    gap: impl IntoIterator<Item = Record>,
    command: Command,
) {
    assert_eq!(decide(&after(records.into_iter().chain(gap))), command);
}

#[test]
fn a_request_without_an_answer_is_made_again_and_its_cost_stays_unknown() {
    let state = after([request(1, 1), recovered()]);
    assert_eq!(decide(&state), Command::AskModel { turn: 1, attempt: 2, at: None });
    assert_eq!(state.usage, Usage { turns_of_unknown_cost: 1, ..Usage::default() });
}

#[test]
fn the_answer_to_a_request_that_was_given_up_is_not_taken_for_the_next_one() {
    let late = response(1, 1, 1).into();
    check([request(1, 1), recovered(), request(1, 2)], [late], Command::Rest);
}

#[test]
fn a_lost_call_that_may_be_repeated_is_carried_out_again() {
    for class in [EffectClass::Pure, EffectClass::Idempotent, EffectClass::Reconcilable] {
        let again = Command::Invoke(vec![invocation(0, InvocationMode::Again { attempt: 2 })]);
        check(under_way(&[class]), [recovered()], again);
    }
}

#[test]
fn a_call_that_is_lost_twice_is_carried_out_a_third_time() {
    let again = Command::Invoke(vec![invocation(0, InvocationMode::Again { attempt: 3 })]);
    let gaps = [recovered(), resumed(key(1, 0), 2), recovered()];
    check(under_way(&[EffectClass::Idempotent]), gaps, again);
}

#[test]
fn a_lost_call_that_must_not_be_repeated_stops_the_run_for_a_person_to_look() {
    let state = after(under_way(&[EffectClass::NonIdempotent]).into_iter().chain([recovered()]));
    let Command::Suspend(why) = decide(&state) else { panic!("{:?}", decide(&state)) };
    let Suspension::OutcomeUnknown { calls, .. } = &why else { panic!("{why:?}") };
    assert_eq!(*calls, [key(1, 0)]);
    let next = next_entry(&state, suspended(why));
    let stopped = fold(state, &next);
    assert_eq!((stopped.name(), decide(&stopped)), (StateName::NeedsAttention, Command::Rest));
}

#[test]
fn other_lost_calls_are_carried_out_before_the_run_stops() {
    let calls = [EffectClass::NonIdempotent, EffectClass::Pure];
    let again = Command::Invoke(vec![invocation(1, InvocationMode::Again { attempt: 2 })]);
    check(under_way(&calls), [recovered()], again);
    let later = [recovered(), resumed(key(1, 1), 2), output(key(1, 1))];
    let state = after(under_way(&calls).into_iter().chain(later));
    assert!(matches!(decide(&state), Command::Suspend(Suspension::OutcomeUnknown { .. })));
}

#[test]
fn a_call_whose_intent_never_reached_the_disk_is_carried_out_for_the_first_time() {
    let first = Command::Invoke(vec![invocation(0, InvocationMode::First)]);
    check([request(1, 1), response(1, 1, 1).into()], [], first);
}

#[test]
fn a_wait_for_the_backend_goes_on_after_a_crash() {
    let at = Timestamp(5_000_000);
    let records = [request(1, 1), failed(1, 1, Some(at))];
    check(records, [], Command::AskModel { turn: 1, attempt: 2, at: Some(at) });
}

#[test]
fn while_its_daemon_lives_nothing_is_asked_for_twice() {
    check([request(1, 1)], [], Command::Rest);
    check(under_way(&CLASSES), [], Command::Rest);
}

#[test]
fn cancelling_a_run_that_needs_attention_closes_the_lost_call_and_ends_the_run() {
    let calls = vec![key(1, 0)];
    let why = Suspension::OutcomeUnknown { calls, message: "look at it".into() };
    let close = Command::Invoke(vec![invocation(0, InvocationMode::CloseStarted)]);
    let gap = || [recovered(), suspended(why.clone()), cancelled()];
    check(under_way(&[EffectClass::NonIdempotent]), gap(), close);
    let closed = gap().into_iter().chain([output(key(1, 0))]);
    let end = Command::Finish(Ending::Cancelled);
    check(under_way(&[EffectClass::NonIdempotent]), closed, end);
}

// Answers that are none.

#[test]
fn a_model_that_says_nothing_is_told_so_once_and_then_the_run_fails() {
    let silent = [request(1, 1), response(1, 1, 0).into()];
    check(silent.clone(), [], Command::Nudge { turn: 1 });
    let again = [nudged(1), request(2, 1), response(2, 1, 0).into()];
    let state = after(silent.into_iter().chain(again));
    let Command::Finish(Ending::Failed(failure)) = decide(&state) else { panic!("{state:?}") };
    assert_eq!(failure.reason, "EMPTY_ANSWER");
}

#[test]
fn nothing_that_a_cut_off_answer_asks_for_is_done() {
    let incomplete = Some("max_output_tokens".to_owned());
    let cut_off = ModelResponse { incomplete, ..response(1, 1, 2) };
    let state = after([request(1, 1), cut_off.into()]);
    let Command::Finish(Ending::Failed(failure)) = decide(&state) else { panic!("{state:?}") };
    assert_eq!(failure.reason, "INCOMPLETE_RESPONSE");
}

#[test]
fn more_tokens_than_can_be_counted_exhaust_the_budget() {
    let tokens = TokenCount { input: 1, output: u64::MAX, ..TokenCount::default() };
    let answer = ModelResponse { tokens, ..response(1, 1, 1) };
    let records = [request(1, 1), answer.into(), called(key(1, 0), EffectClass::Pure)];
    let state = after(records.into_iter().chain([output(key(1, 0))]));
    assert!(matches!(decide(&state), Command::Suspend(Suspension::BudgetExhausted { .. })));
}

// Records on disk.

fn written_and_read(record: &Record) -> Record {
    let json = record.encode().unwrap();
    Record::decode(record.kind(), record.version(), &json).unwrap()
}

/// Each kind at least once, in the order of [`Record::KINDS`], with everything set that can be.
fn examples() -> Vec<Record> {
    let call = key(1, 0);
    let facts = Some(raw(&json!({ "path": "notes.txt" })));
    let of_a_run = vec![
        spec(Budget::default()).into(),
        RunCreated {
            model: Some("qwen3".into()),
            labels: BTreeMap::from([("team".into(), "infra".into())]),
            request_id: Some("r-1".into()),
            ..spec(Budget::default())
        }
        .into(),
        request(1, 1),
        ModelRequest {
            hosted_tools: vec![HostedDecided {
                index: 0,
                tool: "mcp docs at https://mcp.example.com".into(),
                decision: Verdict::Allow,
                rule: RuleId::new("docs"),
                why: "it is allowed".into(),
            }],
            ..model_request(1, 1)
        }
        .into(),
        ModelResponse {
            response_id: Some("resp_1".into()),
            model: Some("qwen3".into()),
            text: Some("all done".into()),
            incomplete: Some("content_filter".into()),
            tokens: TokenCount { input: 9, cached_input: 4, output: 3, reasoning: 2 },
            ..response(1, 1, 2)
        }
        .into(),
        failed(1, 1, None),
        BackendError {
            http_status: Some(503),
            backend_request_id: Some("req_1".into()),
            sent: Sent::Maybe,
            ..backend_error(1, 1, Some(Timestamp(5)))
        }
        .into(),
        nudged(1),
        called(call, EffectClass::Pure),
        ToolCalled { facts, ..intent(call, EffectClass::NonIdempotent) }.into(),
        resumed(call, 2),
        decided(call),
        connection(call),
        output(call),
        WorkspaceSnapshot {
            moment: Moment::Before,
            taken: Taken::Tree(TreeId::new("4b825dc642cb6eb9a060e54bf8d69288fbee4904")),
        }
        .into(),
        WorkspaceSnapshot { moment: Moment::After, taken: Taken::Failed("disk full".into()) }
            .into(),
        cancelled(),
        recovered(),
        suspended(Suspension::BudgetExhausted { limit: "turns".into(), message: "more".into() }),
        suspended(Suspension::OutcomeUnknown { calls: vec![call], message: "look".into() }),
        finished(Ending::Succeeded { answer: "all done".into() }),
        finished(Ending::Failed(failure())),
        finished(Ending::Cancelled),
    ];
    [of_a_run, records_of_the_daemon()].concat()
}

#[test]
fn every_kind_of_record_has_an_example() {
    let mut kinds: Vec<&str> = examples().iter().map(Record::kind).collect();
    kinds.dedup();
    assert_eq!(kinds, Record::KINDS);
}

#[test]
fn every_record_reads_back_as_it_was_written() {
    for record in examples() {
        // Records that carry the backend's JSON cannot be compared; what they show of themselves can.
        assert_eq!(format!("{:?}", written_and_read(&record)), format!("{record:?}"));
    }
}

#[test]
fn a_request_of_before_hosted_tools_were_decided_about_is_read_as_one_without_any() {
    let old = r#"{"turn":1,"attempt":1,"items":1}"#;
    let record = Record::decode("model_request", 1, old).unwrap();
    assert_eq!(record.encode().unwrap(), old);
    assert_eq!(format!("{record:?}"), format!("{:?}", request(1, 1)));
}
