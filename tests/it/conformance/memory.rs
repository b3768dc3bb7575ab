//! The journal in memory: the model that other stores are compared with. It keeps what was written as one list, in
//! order, and looks every answer up in all of it. Slow, and meant to be seen to be right.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use agentd::{
    domain::{
        chain::{ChainHash, Linked},
        head::{JournalDigest, KeptHead},
        ids::{CallKey, Epoch, Position, RunId, Sequence, Timestamp},
        journal::{Entry, NewEntry, Record, RunAnchored, RunCreated},
        redact::Redactor,
        run::Failure,
    },
    ports::{
        Admission, Append, Approvals, AuditFault, AuditFilter, AuditPage, AuditReport, Checkpoint,
        Created, EntryView, Journal, JournalError, NewCheckpoint, PageLimit, PendingApproval,
        Progress, RunFilter, RunPlace, RunStatus, RunSummary,
    },
};
use async_trait::async_trait;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::{Store, records::redactor};

pub(super) struct MemoryStore {
    epoch: Epoch,
    kept: Mutex<Kept>,
    watchers: Mutex<HashMap<RunId, watch::Sender<Progress>>>,
    head: watch::Sender<Position>,
    commits: AtomicU64,
}

impl Store for MemoryStore {
    async fn new() -> Self {
        let kept = Kept { redactor: redactor(), runs: Vec::new(), lines: Vec::new() };
        let (watchers, head) = (Mutex::default(), watch::Sender::default());
        Self { epoch: Epoch(1), kept: Mutex::new(kept), watchers, head, commits: AtomicU64::new(0) }
    }

    fn journal(&self) -> &dyn Journal {
        self
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    async fn reopened(self) -> Self {
        let (epoch, watchers) = (Epoch(self.epoch.0 + 1), Mutex::default());
        Self { epoch, kept: self.kept, watchers, head: self.head, commits: AtomicU64::new(0) }
    }
}

struct Kept {
    redactor: Redactor,
    /// In the order of submission.
    runs: Vec<Run>,
    /// In the order of position.
    lines: Vec<Line>,
}

struct Run {
    id: RunId,
    admission: Admission,
    /// As its last append says.
    status: RunStatus,
    /// Of the last append that had one.
    checkpoint: Option<Checkpoint>,
}

/// One entry, whole and as everyone may see it.
struct Line {
    record: Record,
    view: EntryView,
}

impl Kept {
    /// The chain of a run, or of the daemon.
    fn chain(&self, run: Option<RunId>) -> impl DoubleEndedIterator<Item = &Line> {
        self.lines.iter().filter(move |line| line.view.run == run)
    }

    /// What of a run's chain follows a sequence.
    fn later(&self, run: RunId, after: Sequence) -> impl Iterator<Item = &Line> {
        self.chain(Some(run)).filter(move |line| line.view.sequence > after)
    }

    /// Where a chain ends.
    fn end(&self, run: Option<RunId>) -> (Sequence, ChainHash) {
        let last = self.chain(run).next_back();
        last.map_or((Sequence(0), ChainHash::START), |line| (line.view.sequence, line.view.hash))
    }

    fn submitted(&self, wanted: &Admission) -> Result<Option<RunId>, JournalError> {
        let Some(request_id) = wanted.request_id.clone() else { return Ok(None) };
        let is_same = |run: &&Run| {
            run.admission.caller == wanted.caller && run.admission.request_id == wanted.request_id
        };
        match self.runs.iter().find(is_same) {
            None => Ok(None),
            Some(run) if run.admission.digest == wanted.digest => Ok(Some(run.id)),
            Some(run) => Err(JournalError::RequestIdReused { request_id, run: run.id }),
        }
    }

    /// Writes one entry at the end of a chain.
    fn write(&mut self, run: Option<RunId>, entry: NewEntry) -> Sequence {
        let NewEntry { time, record, policy_revision } = entry;
        let stored = record.stored(&self.redactor).unwrap();
        let body_digest = stored.body.map(|body| Sha256::digest(body).into());
        let (last, previous) = self.end(run);
        let mut view = EntryView {
            run,
            sequence: last.next(),
            position: Position(self.lines.len() as u64 + 1),
            time,
            kind: record.kind().to_owned(),
            version: record.version(),
            payload: stored.view,
            policy_revision: policy_revision.map(|revision| revision.as_str().to_owned()),
            body_digest,
            previous,
            hash: ChainHash::START,
        };
        view.hash = hash(&view);
        self.lines.push(Line { record, view });
        last.next()
    }

    /// Writes what follows in a run, and how the run stands then.
    fn extend(&mut self, append: Append) -> Progress {
        let Append { run, entries, status, checkpoint, .. } = append;
        let time = entries.last().map_or(Timestamp(0), |entry| entry.time);
        let state = status.state;
        for entry in entries {
            self.write(Some(run), entry);
        }
        let (head, hash) = self.end(Some(run));
        let known = self.runs.iter_mut().find(|known| known.id == run).unwrap();
        known.status = status;
        if let Some(NewCheckpoint { state, piece }) = checkpoint {
            let mut pieces = known.checkpoint.take().map_or(Vec::new(), |kept| kept.pieces);
            pieces.retain(|kept| kept.first < piece.first);
            pieces.push(piece);
            known.checkpoint = Some(Checkpoint { sequence: head, state, pieces });
        }
        if state.is_ended() {
            let record = RunAnchored { run_id: run, sequence: head, hash: hash.to_string() }.into();
            self.write(None, NewEntry { time, record, policy_revision: None });
        }
        Progress { head, state: Some(state) }
    }

    fn summary(&self, run: &Run) -> RunSummary {
        let lines: Vec<&Line> = self.chain(Some(run.id)).collect();
        let (first, last) = (lines[0], lines[lines.len() - 1]);
        let spec: RunCreated = serde_json::from_str(&first.view.payload).unwrap();
        let redacted = |text: &String| self.redactor.redact(text).into_owned();
        let error = run.status.error.as_ref().map(|error| Failure {
            reason: redacted(&error.reason),
            message: redacted(&error.message),
        });
        RunSummary {
            id: run.id,
            task: spec.task.to_string(),
            workspace: spec.workspace,
            agent: spec.agent,
            model: spec.model,
            submitter: spec.submitter,
            labels: spec.labels,
            forked: spec.forked.map(|forked| (forked.run, forked.sequence)),
            status: RunStatus {
                state: run.status.state,
                usage: run.status.usage,
                answer: run.status.answer.as_ref().map(redacted),
                error,
                is_degraded: run.status.is_degraded,
            },
            head: last.view.sequence,
            created: first.view.time,
            updated: last.view.time,
            pruned: None,
        }
    }

    /// What nobody has answered, in the order of asking.
    fn pending(&self) -> Vec<PendingApproval> {
        let mut pending: Vec<PendingApproval> = Vec::new();
        for line in &self.lines {
            let Some(run) = line.view.run else { continue };
            let is_about =
                |call: CallKey, it: &PendingApproval| (it.run, it.asked.call) == (run, call);
            match &line.record {
                Record::ApprovalRequested(asked) => {
                    pending.retain(|it| !is_about(asked.call, it));
                    pending.push(self.question(run, line));
                }
                Record::Decided(decided) => pending.retain(|it| !is_about(decided.call, it)),
                Record::ApprovalDecided(said) => pending.retain(|it| !is_about(said.call, it)),
                Record::ToolOutput(output) => pending.retain(|it| !is_about(output.call, it)),
                Record::RunFinished(_) => pending.retain(|it| it.run != run),
                _ => {}
            }
        }
        pending
    }

    fn question(&self, run: RunId, line: &Line) -> PendingApproval {
        let known = self.runs.iter().find(|known| known.id == run).unwrap();
        let RunSummary { submitter, task, workspace, .. } = self.summary(known);
        let EntryView { position, time, .. } = line.view;
        let asked = serde_json::from_str(&line.view.payload).unwrap();
        let is_redacted = line.view.body_digest.is_some();
        PendingApproval { run, position, time, submitter, task, workspace, is_redacted, asked }
    }
}

fn is_wanted(view: &EntryView, wanted: &AuditFilter) -> bool {
    let payload: serde_json::Value = serde_json::from_str(&view.payload).unwrap();
    let says = |name: &str, wanted: &Option<String>| {
        wanted.as_ref().is_none_or(|wanted| payload[name] == wanted.as_str())
    };
    wanted.run.is_none_or(|run| view.run == Some(run))
        && (wanted.kinds.is_empty() || wanted.kinds.contains(&view.kind))
        && says("tool", &wanted.tool)
        && says("decision", &wanted.decision)
        && says("rule", &wanted.rule)
        && (says("by", &wanted.caller) || says("submitter", &wanted.caller))
        && wanted.since.is_none_or(|since| view.time >= since)
        && wanted.until.is_none_or(|until| view.time < until)
}

/// What the view's hash must be.
fn hash(view: &EntryView) -> ChainHash {
    let linked = Linked {
        run: view.run,
        sequence: view.sequence,
        position: view.position,
        time: view.time,
        kind: &view.kind,
        version: view.version,
        view: &view.payload,
        body_digest: view.body_digest.as_ref().map(|digest| digest.as_slice()),
        policy_revision: view.policy_revision.as_deref(),
    };
    linked.hash(view.previous)
}

impl MemoryStore {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    fn announce(&self, run: RunId, progress: Progress) {
        if let Some(watcher) = self.watchers.lock().unwrap().get(&run) {
            watcher.send_replace(progress);
        }
    }
}

fn conflict(append: &Append, found: Sequence) -> JournalError {
    JournalError::Conflict { run: append.run, expected: append.after, found }
}

impl MemoryStore {
    fn committed(&self, kept: &Kept) {
        self.head.send_replace(Position(kept.lines.len() as u64));
        self.commits.fetch_add(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Journal for MemoryStore {
    async fn create(&self, admission: Admission, append: Append) -> Result<Created, JournalError> {
        let mut kept = self.kept();
        if let Some(run) = kept.submitted(&admission)? {
            return Ok(Created::Existed(run));
        }
        let (run, status) = (append.run, append.status.clone());
        let head = kept.end(Some(run)).0;
        let is_creation = matches!(append.records().next(), Some(Record::RunCreated(_)));
        let follows = append.epoch == self.epoch && append.after == Sequence(0);
        if !is_creation || !follows || head != Sequence(0) {
            return Err(conflict(&append, head));
        }
        kept.runs.push(Run { id: run, admission, status, checkpoint: None });
        let progress = kept.extend(append);
        self.announce(run, progress);
        self.committed(&kept);
        Ok(Created::New)
    }

    async fn submitted(&self, admission: Admission) -> Result<Option<RunId>, JournalError> {
        self.kept().submitted(&admission)
    }

    async fn append(&self, append: Append) -> Result<(), JournalError> {
        let mut kept = self.kept();
        let (run, head) = (append.run, kept.end(Some(append.run)).0);
        let is_ended = kept.runs.iter().any(|it| it.id == run && it.status.state.is_ended());
        let follows = append.after == head && append.epoch == self.epoch;
        if head == Sequence(0) || !follows || is_ended {
            return Err(conflict(&append, head));
        }
        if append.entries.is_empty() {
            return Ok(());
        }
        let progress = kept.extend(append);
        self.announce(run, progress);
        self.committed(&kept);
        Ok(())
    }

    async fn append_daemon(&self, entry: NewEntry) -> Result<Sequence, JournalError> {
        let mut kept = self.kept();
        let sequence = kept.write(None, entry);
        self.committed(&kept);
        Ok(sequence)
    }

    async fn entries(
        &self,
        run: RunId,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Entry>, JournalError> {
        let entry = |line: &Line| {
            let EntryView { sequence, time, .. } = line.view;
            Entry { sequence, time, record: line.record.clone() }
        };
        Ok(self.kept().later(run, after).take(limit).map(entry).collect())
    }

    async fn views(
        &self,
        run: RunId,
        after: Sequence,
        limit: PageLimit,
    ) -> Result<Vec<EntryView>, JournalError> {
        let (kept, mut page) = (self.kept(), Vec::new());
        let mut later = kept.later(run, after);
        while !limit.is_reached_by(&page)
            && let Some(line) = later.next()
        {
            page.push(line.view.clone());
        }
        Ok(page)
    }

    async fn daemon_views(
        &self,
        kinds: &'static [&'static str],
        before: Option<Sequence>,
        limit: usize,
    ) -> Result<Vec<EntryView>, JournalError> {
        let kept = self.kept();
        let views = kept.chain(None).rev().map(|line| line.view.clone());
        let views = views.filter(|view| kinds.contains(&view.kind.as_str()));
        let earlier = views.filter(|view| before.is_none_or(|before| view.sequence < before));
        Ok(earlier.take(limit).collect())
    }

    async fn run(&self, run: RunId) -> Result<Option<RunSummary>, JournalError> {
        let kept = self.kept();
        let found = kept.runs.iter().find(|known| known.id == run);
        Ok(found.map(|found| kept.summary(found)))
    }

    async fn runs(
        &self,
        wanted: RunFilter,
        before: Option<RunPlace>,
        limit: usize,
    ) -> Result<Vec<(RunPlace, RunSummary)>, JournalError> {
        let kept = self.kept();
        let RunFilter { states, submitter, labels } = wanted;
        let placed = (1..).map(RunPlace).zip(&kept.runs);
        let placed: Vec<_> = placed.map(|(place, run)| (place, run, kept.summary(run))).collect();
        let found = placed
            .into_iter()
            .rev()
            .filter(|(place, ..)| before.is_none_or(|before| *place < before))
            .filter(|(_, run, _)| states.is_empty() || states.contains(&run.status.state))
            .filter(|(_, run, _)| submitter.as_ref().is_none_or(|by| run.admission.caller == *by))
            .filter(|(.., summary)| {
                labels.iter().all(|(key, value)| summary.labels.get(key) == Some(value))
            });
        Ok(found.map(|(place, _, summary)| (place, summary)).take(limit).collect())
    }

    async fn pending_approvals(
        &self,
        wanted: Approvals,
        after: Position,
        limit: usize,
    ) -> Result<Vec<PendingApproval>, JournalError> {
        let Approvals { run, submitter, expired_by } = wanted;
        let found = self
            .kept()
            .pending()
            .into_iter()
            .filter(|it| it.position > after)
            .filter(|it| run.is_none_or(|run| it.run == run))
            .filter(|it| submitter.as_ref().is_none_or(|by| it.submitter == *by))
            .filter(|it| expired_by.is_none_or(|time| it.asked.expires <= time));
        Ok(found.take(limit).collect())
    }

    async fn audit(
        &self,
        wanted: AuditFilter,
        after: Position,
        limit: PageLimit,
    ) -> Result<AuditPage, JournalError> {
        let kept = self.kept();
        let mut page = AuditPage { looked: after, ..AuditPage::default() };
        for Line { view, .. } in kept.lines.iter().filter(|line| line.view.position > after) {
            if limit.is_reached_by(&page.entries) {
                page.next = Some(page.looked);
                break;
            }
            page.looked = view.position;
            if is_wanted(view, &wanted) {
                page.entries.push(view.clone());
            }
        }
        Ok(page)
    }

    fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    fn watch_head(&self) -> watch::Receiver<Position> {
        self.head.subscribe()
    }

    async fn checkpoint(&self, run: RunId) -> Result<Option<Checkpoint>, JournalError> {
        let kept = self.kept();
        Ok(kept.runs.iter().find(|known| known.id == run).and_then(|run| run.checkpoint.clone()))
    }

    async fn unended(&self) -> Result<Vec<RunId>, JournalError> {
        let kept = self.kept();
        let going = kept.runs.iter().filter(|run| !run.status.state.is_ended());
        Ok(going.map(|run| run.id).collect())
    }

    async fn verify(&self, wanted: Vec<KeptHead>) -> Result<AuditReport, JournalError> {
        let kept = self.kept();
        let mut ends: HashMap<Option<RunId>, ChainHash> = HashMap::new();
        let mut faults = Vec::new();
        for Line { view, .. } in &kept.lines {
            let end = ends.insert(view.run, view.hash).unwrap_or(ChainHash::START);
            if view.previous != end || view.hash != hash(view) {
                let EntryView { position, run, sequence, .. } = *view;
                faults.push(AuditFault { position, run, sequence, what: "was altered".into() });
            }
        }
        let (entries, runs) = (kept.lines.len() as u64, kept.runs.len() as u64);
        for head in wanted {
            let before = kept.lines.iter().filter(|line| line.view.position <= head.entries);
            let sum = before.fold(JournalDigest::START, |sum, line| sum.and(line.view.hash));
            if sum != head.digest || head.entries.0 > entries {
                let what = format!("a head of {} entries was kept", head.entries);
                let (run, sequence) = (None, Sequence(0));
                faults.push(AuditFault { position: head.entries, run, sequence, what });
            }
        }
        let head = kept.end(None).1;
        Ok(AuditReport { entries, runs, head, faults, ..AuditReport::default() })
    }

    fn watch(&self, run: RunId) -> watch::Receiver<Progress> {
        self.watchers.lock().unwrap().entry(run).or_default().subscribe()
    }
}
