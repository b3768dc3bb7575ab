//! A run's tool calls, out of the redacted views of its journal: what a caller sees, never what the
//! engine replays.

use std::sync::Arc;

use crate::{
    domain::{
        ids::{CallKey, RunId, Sequence, Timestamp},
        journal::{CallResolved, Decided, Record, Resolution, ToolCalled, ToolOutput},
    },
    engine::EngineError,
    ports::{EntryView, Journal, JournalError, PageLimit},
};

/// Entries that are read at once: each view has up to 2 MiB.
const ENTRIES: usize = 16;
/// What a page may hold before it ends, in bytes: clients accept answers of 4 MiB.
const PAGE_BYTES: usize = 1700 << 10;
/// What a call adds to a page besides its arguments: 2,000 characters of output, and its small fields.
const CALL_BYTES: usize = 8500;

/// One call, as far as it has come.
#[derive(Debug, Clone)]
pub struct ToolCallView {
    pub sequence: Sequence,
    pub asked: Timestamp,
    pub called: ToolCalled,
    /// The last one.
    pub decided: Option<Decided>,
    /// 1, or more where a crash swallowed the outcome of an earlier one.
    pub attempt: u32,
    /// Somebody said that it be run once more, and it was not yet.
    pub is_to_retry: bool,
    /// A person has to allow it, and nobody has said anything.
    pub is_asked_about: bool,
    pub ended: Option<(Timestamp, ToolOutput)>,
}

/// A page of calls, oldest first.
#[derive(Debug, Clone, Default)]
pub struct ToolCallPage {
    pub calls: Vec<ToolCallView>,
    /// After which sequence the next page begins; none: this is the last.
    pub next: Option<Sequence>,
}

/// The calls whose intent stands after a sequence, at most `limit`.
pub(super) async fn tool_calls(
    journal: &Arc<dyn Journal>,
    run: RunId,
    after: Sequence,
    limit: usize,
) -> Result<ToolCallPage, EngineError> {
    let mut page = Draft { limit, ..Draft::default() };
    let mut read = after;
    loop {
        let views = journal.views(run, read, PageLimit::entries(ENTRIES)).await?;
        let is_last = views.len() < ENTRIES;
        for view in views {
            read = view.sequence;
            page.take(view)?;
        }
        if is_last || page.is_whole() {
            return Ok(page.page);
        }
    }
}

#[derive(Default)]
struct Draft {
    page: ToolCallPage,
    limit: usize,
    bytes: usize,
}

impl Draft {
    fn take(&mut self, view: EntryView) -> Result<(), EngineError> {
        let kinds = [
            "tool_call",
            "approval_requested",
            "approval_decided",
            "call_resolved",
            "tool_resumed",
            "decision",
            "tool_output",
        ];
        if !kinds.contains(&view.kind.as_str()) {
            return Ok(());
        }
        let unreadable = |error: crate::domain::journal::DecodeError| JournalError::Unreadable {
            what: error.to_string(),
        };
        match Record::decode(&view.kind, view.version, &view.payload).map_err(unreadable)? {
            Record::ToolCalled(called) => self.begin(view.sequence, view.time, called),
            Record::ApprovalRequested(asked) => {
                self.with(asked.call, |call| call.is_asked_about = true);
            }
            Record::ApprovalDecided(said) => {
                self.with(said.call, |call| call.is_asked_about = false);
            }
            Record::CallResolved(CallResolved { call, resolution, .. }) => {
                self.with(call, |call| call.is_to_retry = resolution == Resolution::Retry);
            }
            Record::ToolResumed(resumed) => self.with(resumed.call, |call| {
                call.attempt = resumed.attempt;
                call.is_to_retry = false;
            }),
            Record::Decided(decided) => {
                self.with(decided.call, |call| call.decided = Some(decided));
            }
            Record::ToolOutput(output) => {
                self.with(output.call, |call| call.ended = Some((view.time, output)));
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, sequence: Sequence, asked: Timestamp, called: ToolCalled) {
        if self.is_full() {
            let last = self.page.calls.last().map(|call| call.sequence);
            self.page.next = self.page.next.or(last);
            return;
        }
        self.bytes += CALL_BYTES + called.arguments.len();
        let call = ToolCallView {
            sequence,
            asked,
            called,
            decided: None,
            attempt: 1,
            is_to_retry: false,
            is_asked_about: false,
            ended: None,
        };
        self.page.calls.push(call);
    }

    fn is_full(&self) -> bool {
        self.page.calls.len() == self.limit || self.bytes >= PAGE_BYTES
    }

    /// Calls of the pages before and after are not here.
    fn with(&mut self, key: CallKey, note: impl FnOnce(&mut ToolCallView)) {
        if let Some(call) = self.page.calls.iter_mut().find(|call| call.called.call == key) {
            note(call);
        }
    }

    /// Nothing that stands further on could add to the page.
    fn is_whole(&self) -> bool {
        self.page.next.is_some() && self.page.calls.iter().all(|call| call.ended.is_some())
    }
}
