//! What a new daemon makes of the runs that the last one left. What each gap in a journal means is
//! said by `domain::run`; here it is only written down that there is one.

use crate::{
    domain::journal::RunRecovered,
    engine::{World, run_log::RunLog},
    ports::JournalError,
};

/// Takes over a run that was under way when the daemon died, so that `decide` may go on.
///
/// Leftover programs must be dead by now: see `sandbox::LocalSandbox::open`.
pub(super) async fn take_over(world: &World, log: &mut RunLog) -> Result<(), JournalError> {
    if !log.state().is_under_way() {
        return Ok(());
    }
    tracing::info!(run = %log.state().id, after = %log.state().head, "the run is taken over");
    log.append([RunRecovered { epoch: world.epoch }.into()]).await
}
