//! Which runs go and which wait, as data. Starts nothing: see [`super::runs`].

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
};

use tokio::sync::mpsc;

use crate::{
    domain::{ids::RunId, run::RunState},
    engine::inbox::Message,
};

/// Which runs go and which wait. Runs that are suspended or ended are in neither.
#[derive(Default)]
pub(super) struct Schedule {
    /// Submissions that are being written: others may see them on disk before their submitter does.
    pub(super) arriving: HashMap<RunId, Waiting>,
    /// In the order of submission.
    pub(super) queue: VecDeque<Waiting>,
    pub(super) running: HashMap<RunId, Running>,
    /// Who has a workspace.
    pub(super) leases: HashMap<String, RunId>,
}

pub(super) struct Waiting {
    pub(super) run: RunId,
    pub(super) workspace: String,
    pub(super) origin: Origin,
}

/// Where a run's state comes from when its driver starts.
pub(super) enum Origin {
    /// Submitted to this daemon just now.
    Fresh(Box<RunState>),
    /// To be read from the journal.
    Stored,
}

pub(super) struct Running {
    pub(super) workspace: String,
    pub(super) inbox: mpsc::Sender<Message>,
}

impl Schedule {
    /// Whether no run has this workspace, one that holds it, or one within it.
    pub(super) fn is_free(&self, workspace: &str) -> bool {
        let wanted = Path::new(workspace);
        let meets = |leased: &String| {
            let leased = Path::new(leased);
            leased.starts_with(wanted) || wanted.starts_with(leased)
        };
        !self.leases.keys().any(meets)
    }

    /// Whether no run has, waits for or is about to ask for this workspace, one that holds it, or one
    /// within it.
    pub(super) fn is_untouched(&self, workspace: &str) -> bool {
        let wanted = Path::new(workspace);
        let mut waiting = self.arriving.values().chain(&self.queue);
        let meets = |waiting: &Waiting| {
            let other = Path::new(&waiting.workspace);
            other.starts_with(wanted) || wanted.starts_with(other)
        };
        self.is_free(workspace) && !waiting.any(meets)
    }

    /// Queues a run that was taken out of the queue, or stood still, before all that were submitted after it.
    pub(super) fn wait_again(&mut self, waiting: Waiting) {
        let place = self.queue.partition_point(|other| other.run < waiting.run);
        self.queue.insert(place, waiting);
    }

    /// Takes a run out that does not go yet.
    pub(super) fn take(&mut self, run: RunId) -> Option<Waiting> {
        self.arriving.remove(&run).or_else(|| {
            let place = self.queue.iter().position(|waiting| waiting.run == run)?;
            self.queue.remove(place)
        })
    }
}
