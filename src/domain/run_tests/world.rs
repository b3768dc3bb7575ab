//! The simulated world: obeys `decide` the way `engine::driver` does, and lets everything go wrong that can: bad
//! answers, failing backends, deaths of the daemon between any two entries, cancellation while something is under way.

use super::*;

/// All that will go right and wrong in one life.
#[derive(Debug, Clone)]
pub(super) struct Fate {
    budget: Budget,
    /// None: one agent alone.
    team: Option<Team>,
    /// What comes back from the backend, over and over from the start; at least one.
    replies: Vec<Reply>,
    /// The daemon dies instead of writing these entries, counted from 0.
    deaths: BTreeSet<usize>,
    /// What somebody says of each call that the run stands still for, one after the other; nobody says more.
    resolutions: Vec<Resolution>,
    /// What somebody says of each call that a person has to allow, one after the other; nobody says more.
    decisions: Vec<ApprovalDecision>,
    /// Requests, counted from 0, for which the backend may run tools that do something.
    unsafe_requests: BTreeSet<usize>,
    /// What people say of the run at the so many-th time that the daemon listens.
    said: BTreeMap<usize, Said>,
    /// How often somebody lets the run go on that stands still, with so much more of everything.
    resumptions: usize,
    /// Somebody cancels when the daemon listens for the so many-th time, or once the run stands still.
    cancel_at: Option<usize>,
}

/// What comes back from the backend.
#[derive(Debug, Clone)]
pub(super) enum Reply {
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

/// What people say of a run that goes on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Said {
    Pause,
    GoOn,
    Words,
}

/// A call to be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    class: EffectClass,
    on_unknown: OnUnknown,
    asks: Asks,
    /// What it wants of others: a place in [`errands`].
    errand: Option<usize>,
    /// Of calls that run side by side, those with lower ranks are done first.
    rank: u8,
}

/// Whether a person has to allow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    Nobody,
    APerson,
}

/// One daemon after the other, and the run they carry on.
pub(super) struct World {
    fate: Fate,
    pub(super) state: RunState,
    entries: Vec<Entry>,
    planned: HashMap<CallKey, Planned>,
    replies: usize,
    writes: usize,
    listened: usize,
    resolved: usize,
    requests: usize,
    resumed: usize,
    said_of_calls: usize,
}

/// The daemon is dead.
pub(super) struct Died;

#[derive(PartialEq)]
pub(super) enum Heard {
    Nothing,
    Cancel,
}

impl World {
    pub(super) fn new(fate: Fate) -> Self {
        let entries = chain_of(RunCreated { team: fate.team, ..spec(fate.budget) }, []);
        let state = folded(&entries);
        let planned = HashMap::new();
        let (replies, writes, listened) = (0, 0, 0);
        let (resolved, requests, resumed, said_of_calls) = (0, 0, 0, 0);
        Self {
            fate,
            state,
            entries,
            planned,
            replies,
            writes,
            listened,
            resolved,
            requests,
            resumed,
            said_of_calls,
        }
    }

    /// Decide, perform, append, fold, until there is nothing more to do.
    pub(super) fn live(mut self) -> Self {
        for _ in 0..self.most_steps() {
            match decide(&self.state) {
                Command::Rest if self.is_resolved() => {}
                Command::Rest if self.is_decided_about() => {}
                Command::Rest if self.is_let_go_on() => {}
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
        // An agent that has come to its end makes two more, and a step, or an answer to another one, as many.
        turns * (retry::MAX_ATTEMPTS as usize + 8)
            + 2
            // The workspace is given back.
            + 2
            + 2 * self.fate.deaths.len()
            // One warning for each limit, and again whenever there is more.
            + 5 * (1 + self.fate.resumptions)
            + 3 * self.fate.resolutions.len()
            + 3 * self.fate.decisions.len()
            // What is said may make one turn more; and each time that the run is let go on it has more turns.
            + 4 * self.fate.said.len()
            + self.fate.resumptions * (4 * (retry::MAX_ATTEMPTS as usize + 8) + 2)
            + 8
    }

    /// Whether somebody has said something of a call that the run stands still for. It is written at once, with what
    /// the model hears.
    fn is_resolved(&mut self) -> bool {
        let open = self.planned.keys().copied().find(|call| self.state.unresolved(*call).is_some());
        let said = self.fate.resolutions.get(self.resolved).copied();
        let Some((call, said)) = open.zip(said) else { return false };
        self.resolved += 1;
        self.append(resolved(call, said));
        if said != Resolution::Retry {
            self.append(output(call));
        }
        true
    }

    /// Whether somebody has said something of a call that a person has to allow.
    fn is_decided_about(&mut self) -> bool {
        let waits = |call: &CallKey| {
            self.state.open_call(*call).is_some_and(|open| open.waits_for().is_some())
        };
        let open = self.planned.keys().copied().filter(waits).min();
        let said = self.fate.decisions.get(self.said_of_calls).copied();
        let Some((call, said)) = open.zip(said) else { return false };
        self.said_of_calls += 1;
        self.append(approval_decided(call, said));
        true
    }

    /// Whether somebody has let the run go on that stands still, with more of everything.
    fn is_let_go_on(&mut self) -> bool {
        let Phase::Suspended { why, .. } = &self.state.phase else { return false };
        let needs_more =
            matches!(why, Suspension::OutcomeUnknown { .. } | Suspension::AwaitingApproval { .. });
        if self.resumed == self.fate.resumptions || needs_more {
            return false;
        }
        self.resumed += 1;
        let Budget { max_turns, max_tool_calls, max_tokens, max_wall_seconds, max_cost_micros } =
            self.state.budget;
        let more = Budget {
            max_turns: max_turns + 4,
            max_tool_calls: max_tool_calls + 8,
            max_tokens: max_tokens + 200,
            max_wall_seconds,
            // Zero is no limit, and stays none.
            max_cost_micros: max_cost_micros + if max_cost_micros == 0 { 0 } else { 200 },
        };
        let lost_request = LostRequest::Repeat;
        self.append(run_resumed(RunResumed { budget: Some(more), lost_request, ..by_somebody() }));
        true
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
        let before = self.state.head;
        if self.hear()? == Heard::Cancel || self.state.head != before {
            return Ok(());
        }
        match command {
            Command::AskModel { turn, attempt, .. } => self.ask(turn, attempt),
            Command::Invoke(invocations) => self.invoke(&invocations),
            Command::Nudge { turn } => self.write(nudged(turn)),
            Command::Begin(seat) => {
                let began = self.beginning(seat);
                self.write(began.into())
            }
            Command::TellRepository => self.write(told(self.state.stage.seat())),
            Command::CheckWork => self.write(checked(self.writes)),
            Command::Restore => self.write(restored()),
            Command::Return { call, .. } => self.write(output(call)),
            Command::Conclude { turn, conclusion } => {
                self.write(concluded(turn, self.state.stage.rounds + 1, conclusion))
            }
            Command::Warn(warning) => self.write(warning.into()),
            Command::Suspend(why) => self.write(suspended(why)),
            Command::Finish(ending) => self.write(finished(ending)),
            Command::Rest => Ok(()),
        }
    }

    /// As `engine::colleagues` and `engine::team` do.
    fn beginning(&self, seat: Seat) -> AgentBegan {
        let stage = &self.state.stage;
        match (self.state.to_be_asked(), stage.handing()) {
            (Some(asked), _) => helper_began(seat, Some(asked.call.key)),
            (None, Some(_)) => helper_began(seat, stage.call()),
            (None, None) => {
                let agent = stage.agent_in(seat).map(|agent| (**agent).clone());
                AgentBegan { agent, ..began(seat, stage.rounds) }
            }
        }
    }

    fn ask(&mut self, turn: u32, attempt: u32) -> Result<(), Died> {
        let is_unsafe = self.fate.unsafe_requests.contains(&self.requests);
        self.requests += 1;
        self.write(match is_unsafe {
            true => unsafe_request(turn, attempt),
            false => request(turn, attempt),
        })?;
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
                let text = text.map(|text| self.in_shape(turn, text));
                let keys = (0..).map(|index| key(turn, index));
                self.planned.extend(keys.zip(calls.iter().copied()));
                ModelResponse { text, tokens, ..response(turn, attempt, calls.len()) }.into()
            }
            Reply::CutOff { calls } => {
                let incomplete = Some("max_output_tokens".to_owned());
                ModelResponse { incomplete, tokens, ..response(turn, attempt, calls) }.into()
            }
            Reply::PassingError => {
                let retry_at = (attempt < retry::MAX_ATTEMPTS).then(|| {
                    self.state.updated.plus_millis(retry::delay_ms(
                        attempt,
                        retry::Because::Other,
                        None,
                        0.0,
                    ))
                });
                failed(turn, attempt, retry_at)
            }
            Reply::LastingError => failed(turn, attempt, None),
        }
    }

    /// Of several agents, two are to answer in a shape; mostly they do.
    fn in_shape(&self, turn: u32, text: Arc<str>) -> Arc<str> {
        let json = match self.state.stage.seat() {
            Seat::Planner => serde_json::to_string(&plan()),
            Seat::Reviewer => serde_json::to_string(&verdicts()[turn as usize % 3]),
            Seat::Executor | Seat::Asked => return text,
        };
        if turn % 5 == 4 { text } else { json.unwrap().into() }
    }

    /// All intents first; then the calls come to their ends in any order.
    fn invoke(&mut self, invocations: &[Invocation]) -> Result<(), Died> {
        if self.state.snapshots.before.is_none() {
            self.write(snapshot(Moment::Before))?;
            self.write(snapshot(Moment::Copy))?;
        }
        for Invocation { call, mode, .. } in invocations {
            match mode {
                InvocationMode::First => self.intend(call.key)?,
                InvocationMode::Again { attempt } | InvocationMode::Retry { attempt } => {
                    self.write(resumed(call.key, *attempt))?;
                    self.ask_about(call.key)?;
                }
                InvocationMode::Approved { .. } => self.write(decided(call.key))?,
                InvocationMode::CloseUnstarted => {
                    self.write(called(call.key, EffectClass::Pure))?;
                }
                InvocationMode::CloseStarted
                | InvocationMode::CloseDelegated
                | InvocationMode::CloseUnknown
                | InvocationMode::CloseAsked
                | InvocationMode::CloseDenied => {}
            }
        }
        let is_asked = |call: &CallKey| {
            self.state.open_call(*call).is_some_and(|open| {
                open.waits_for().is_some() || matches!(open.progress, Progress::Delegated { .. })
            })
        };
        let is_closed = |mode| {
            use InvocationMode::{CloseAsked, CloseDelegated, CloseStarted};
            matches!(mode, CloseAsked | CloseDelegated | CloseStarted)
        };
        let mut ends: Vec<CallKey> = invocations
            .iter()
            .filter(|begun| is_closed(begun.mode) || !is_asked(&begun.call.key))
            .map(|begun| begun.call.key)
            .collect();
        ends.sort_by_key(|call| self.planned[call].rank);
        for call in ends {
            // Calls under way are stopped by a cancellation, and then have an output all the same.
            self.hear()?;
            self.write(output(call))?;
        }
        Ok(())
    }

    fn intend(&mut self, call: CallKey) -> Result<(), Died> {
        let Planned { class, on_unknown, errand, .. } = self.planned[&call];
        // A conversation is handed over once, and a plan can be revised while there is something to be done.
        let is_other = |handing: &HandOff| handing.call != call;
        let errand = errand.map(|place| errands()[place].clone()).filter(|errand| match errand {
            Errand::Ask(_) => true,
            Errand::HandOff(_) => !self.state.stage.handing().is_some_and(is_other),
            Errand::RevisePlan => self.state.stage.step().is_some(),
        });
        let class = if errand.is_some() { EffectClass::Pure } else { class };
        let revises = errand == Some(Errand::RevisePlan);
        let errand = errand.map(Box::new);
        self.write(ToolCalled { on_unknown, errand, ..intent(call, class) }.into())?;
        self.write(decided(call))?;
        if let Some(step) = self.state.stage.step().filter(|_| revises) {
            self.write(revised(call, step))?;
        }
        self.ask_about(call)
    }

    fn ask_about(&mut self, call: CallKey) -> Result<(), Died> {
        let Planned { asks, class, errand, .. } = self.planned[&call];
        match asks {
            _ if errand.is_some() => Ok(()),
            Asks::Nobody => Ok(()),
            Asks::APerson => self.write(approval_requested(call, class)),
        }
    }

    fn hear(&mut self) -> Result<Heard, Died> {
        self.listened += 1;
        match self.fate.said.get(&self.listened) {
            Some(Said::Pause) => self.write(paused())?,
            Some(Said::GoOn) => self.write(run_resumed(by_somebody()))?,
            Some(Said::Words) => self.write(input("and this", None))?,
            None => {}
        }
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

pub(super) fn budget() -> impl Strategy<Value = Budget> {
    let cost = prop_oneof![2 => Just(0), 1 => 1..150u64];
    (0..6u32, 0..12u32, 0..200u64, cost).prop_map(
        |(max_turns, max_tool_calls, max_tokens, max_cost_micros)| Budget {
            max_turns,
            max_tool_calls,
            max_tokens,
            max_wall_seconds: 0,
            max_cost_micros,
        },
    )
}

pub(super) fn reply() -> impl Strategy<Value = Reply> {
    let unknown = prop_oneof![3 => Just(OnUnknown::Ask), 1 => Just(OnUnknown::TellModel)];
    let asks = prop_oneof![4 => Just(Asks::Nobody), 1 => Just(Asks::APerson)];
    let errand = prop_oneof![3 => Just(None), 1 => (0..3usize).prop_map(Some)];
    let planned = (select(CLASSES.as_slice()), unknown, asks, errand, any::<u8>()).prop_map(
        |(class, on_unknown, asks, errand, rank)| Planned { class, on_unknown, asks, errand, rank },
    );
    let text = option::of(Just(Arc::from("all done")));
    prop_oneof![
        10 => (vec(planned, 0..=4), text).prop_map(|(calls, text)| Reply::Answer { calls, text }),
        1 => (0..3usize).prop_map(|calls| Reply::CutOff { calls }),
        3 => Just(Reply::PassingError),
        1 => Just(Reply::LastingError),
    ]
}

fn said() -> impl Strategy<Value = BTreeMap<usize, Said>> {
    btree_map(0..30usize, select([Said::Pause, Said::GoOn, Said::Words].as_slice()), 0..4)
}

pub(super) fn fate() -> impl Strategy<Value = Fate> {
    let (deaths, unsafe_requests) = (btree_set(0..40usize, 0..4), btree_set(0..8usize, 0..3));
    let said_of_calls = (vec(any_resolution(), 0..4), vec(any_decision(), 0..4));
    let people = (said_of_calls, said(), 0..3usize, option::of(0..20usize));
    let team = option::of((0..3u32, any::<bool>()).prop_map(|(max_review_rounds, restores)| {
        let on_veto = if restores { OnVeto::Restore } else { OnVeto::Keep };
        Team { max_review_rounds, on_veto }
    }));
    ((budget(), team), vec(reply(), 1..5), deaths, unsafe_requests, people).prop_map(
        |((budget, team), replies, deaths, unsafe_requests, people)| {
            let ((resolutions, decisions), said, resumptions, cancel_at) = people;
            Fate {
                budget,
                team,
                replies,
                deaths,
                resolutions,
                decisions,
                unsafe_requests,
                said,
                resumptions,
                cancel_at,
            }
        },
    )
}

/// A run that has come to rest.
pub(super) fn life() -> impl Strategy<Value = Vec<Entry>> {
    fate().prop_map(|fate| World::new(fate).live().entries)
}
