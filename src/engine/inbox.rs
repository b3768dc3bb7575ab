//! What somebody wants of a run, as its driver hears it: what of it is written down, and how whoever wanted it is told.
//! What comes of it then: see `domain::run`.

use tokio::sync::oneshot;

use crate::{
    domain::{
        ids::{Caller, Timestamp},
        journal::CancelRequested,
        run::RunState,
    },
    engine::{
        EngineError,
        approvals::{self, ApprovalChoice},
        resolution::{self, CallResolution},
        run_log::{Noted, RunLog},
        steering::{self, Input, Resume},
    },
    ports::JournalError,
};

/// Longest reason that somebody may give, in bytes.
pub(super) const WHY_BYTES: usize = 1000;

/// Errors: the text has more bytes than that.
pub(super) fn check_length(
    field: &'static str,
    text: &str,
    most: usize,
) -> Result<(), EngineError> {
    if text.len() > most {
        let message = format!("is {} bytes long, {most} are accepted", text.len());
        return Err(EngineError::InvalidField { field, message });
    }
    Ok(())
}

/// Something that somebody wants of a run, and who waits for what comes of it.
pub(super) struct Message {
    pub(super) wanted: Wanted,
    pub(super) done: oneshot::Sender<Result<Heard, JournalError>>,
}

/// What somebody wants of a run.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    Cancel { by: Caller, why: String },
    Pause { by: Caller, why: String },
    Resume(Resume),
    Input(Input),
    Resolve(CallResolution),
    Decide(ApprovalChoice),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is on disk, or there was nothing to write.
    Done,
    /// The run is in no state for it; nothing was written.
    NotNow(NotNow),
}

/// Why a run is in no state for what somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotNow {
    /// It does not stand still for that call.
    NotUnresolved,
    /// Nobody is asked about that call.
    NotWaiting,
    /// It was asked for too long.
    Expired,
    /// People are asked about another form of that call.
    AskedOtherwise,
    /// For people: what it is in, and what to do.
    State { message: String },
    /// The id came with other words before.
    RequestIdReused,
}

impl Message {
    /// Whether what is under way is to end early. All else is written down beside it.
    pub(super) fn interrupts(&self) -> bool {
        matches!(self.wanted, Wanted::Cancel { .. })
    }

    /// Writes down what there is to be written, and tells whoever waits. Errors: the journal's own.
    pub(super) async fn hear(self, log: &mut RunLog) -> Result<(), JournalError> {
        let written = match records(log.state(), self.wanted, log.now()) {
            Ok(records) => log.append(records).await.map(|()| Heard::Done),
            Err(why) => Ok(Heard::NotNow(why)),
        };
        let heard = written.as_ref().map(|_| ()).map_err(Clone::clone);
        // Who asked may be gone.
        drop(self.done.send(written));
        heard
    }
}

fn records(state: &RunState, wanted: Wanted, now: Timestamp) -> Result<Vec<Noted>, NotNow> {
    match wanted {
        Wanted::Cancel { by, why } => Ok(match state.name().is_ended() {
            true => Vec::new(),
            false => vec![CancelRequested { by, why }.into()],
        }),
        Wanted::Pause { by, why } => steering::pause(state, by, why),
        Wanted::Resume(resume) => steering::resume(state, resume),
        Wanted::Input(input) => steering::input(state, input),
        Wanted::Resolve(with) => resolution::records(state, with).ok_or(NotNow::NotUnresolved),
        Wanted::Decide(choice) => approvals::records(state, choice, now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cancellation_interrupts_what_is_under_way() {
        let by = || Caller::new("uid:0");
        let why = String::new;
        let message = |wanted| Message { wanted, done: oneshot::channel().0 };
        assert!(message(Wanted::Cancel { by: by(), why: why() }).interrupts());
        assert!(!message(Wanted::Pause { by: by(), why: why() }).interrupts());
    }
}
