//! What somebody wants of a run, as its driver hears it, and how whoever wanted it is told. What comes of it: see
//! [`super::driver`].

use tokio::sync::oneshot;

use crate::{
    domain::ids::Caller,
    engine::{EngineError, resolution::CallResolution},
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

/// What somebody wants of a run.
pub(super) enum Message {
    Cancel {
        by: Caller,
        why: String,
        done: oneshot::Sender<Result<(), JournalError>>,
    },
    /// Told whether the run stood still for that call.
    Resolve {
        with: CallResolution,
        done: oneshot::Sender<Result<bool, JournalError>>,
    },
}

impl Message {
    /// The wish, if it is one that ends what is under way. Whoever says something of a call that a run stands still
    /// for is told at once that this run does not: it must not disturb it.
    pub(super) fn that_interrupts(self) -> Option<Self> {
        match self {
            Self::Cancel { .. } => Some(self),
            Self::Resolve { done, .. } => {
                // Who asked may be gone.
                drop(done.send(Ok(false)));
                None
            }
        }
    }
}

/// Tells whoever wanted something what came of it. Errors: the journal's own.
pub(super) fn tell<T>(
    done: oneshot::Sender<Result<T, JournalError>>,
    written: Result<T, JournalError>,
) -> Result<(), JournalError> {
    let heard = written.as_ref().map(|_| ()).map_err(Clone::clone);
    // Who asked may be gone.
    drop(done.send(written));
    heard
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ids::CallKey, journal::Resolution};

    #[test]
    fn only_a_cancellation_interrupts_what_is_under_way() {
        let by = || Caller::new("uid:0");
        let (done, _) = oneshot::channel();
        let cancel = Message::Cancel { by: by(), why: String::new(), done };
        assert!(cancel.that_interrupts().is_some());

        let (done, mut told) = oneshot::channel();
        let call = CallKey { turn: 1, index: 0 };
        let (resolution, result, why) = (Resolution::Retry, String::new(), String::new());
        let with = CallResolution { call, by: by(), resolution, result, why };
        assert!(Message::Resolve { with, done }.that_interrupts().is_none());
        assert!(!told.try_recv().unwrap().unwrap(), "it is told that nothing came of it");
    }
}
