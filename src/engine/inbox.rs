//! What somebody wants of a run, as its driver hears it, and how whoever wanted it is told. What comes of it: see
//! [`super::driver`].

use tokio::sync::oneshot;

use crate::{domain::ids::Caller, engine::resolution::CallResolution, ports::JournalError};

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
