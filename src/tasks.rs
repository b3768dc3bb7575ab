//! The only place where tasks are started. Each has a name, an owner that waits for it, and a token
//! that stops it.

use std::{future::Future, time::Duration};

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// Owns tasks: stops them together and waits for them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    /// None: the runtime of whoever starts the task.
    runtime: Option<Handle>,
}

impl Tasks {
    /// Tasks that run on this runtime, whoever starts them.
    pub fn on(runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..Self::default() }
    }

    /// Token that every task of this owner must heed.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task. It ends by itself or soon after [`Self::token`] is cancelled.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = self.tracker.track_future(task.instrument(tracing::debug_span!("task", name)));
        match &self.runtime {
            Some(runtime) => runtime.spawn(task),
            #[expect(clippy::disallowed_methods, reason = "this is the one place that may spawn")]
            None => tokio::spawn(task),
        }
    }

    /// Stops all tasks and waits for them, at most `grace`. Tells whether all had ended.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

/// Runs blocking work away from the async threads, and gives its result.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that may spawn")]
    tokio::task::spawn_blocking(work).await
}

/// The same, where nobody waits for it. The runtime's end does.
pub fn in_background(work: impl FnOnce() + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that may spawn")]
    drop(tokio::task::spawn_blocking(work));
}
