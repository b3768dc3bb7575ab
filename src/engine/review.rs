//! What is looked at of the work of several agents, beside their words: the diff, the calls, what must not be in it; and
//! what becomes of the workspace where the work is vetoed.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    agents::reviewer::{self, CallMade, Evidence},
    domain::{
        guardrail::Violation,
        ids::{RoleName, RunId, Sequence},
        journal::{
            GuardrailViolation, GuardrailsChecked, Moment, RepositoryTold, RunCreated, Taken,
            Verdict, WorkspaceRestored, WorkspaceSnapshot,
        },
        plan::Step,
        run::{Revision, RunState, Snapshots, Stage},
    },
    engine::{EngineError, World, diff, driver::Driver, repository, run_log::BUSY, tool_calls},
    fail_point,
    ports::{JournalError, PatchForm},
    tasks,
};

/// Calls that are looked at for a review; there are earlier ones in the journal.
const CALLS: usize = 500;
const PAGE: usize = 100;

impl Driver {
    /// Looks at what the executor did for what it must not do: no model is asked.
    pub(super) async fn check_work(&mut self) -> Result<(), JournalError> {
        let found = self.meanwhile(async |world, work| inspect(world, work).await);
        let Some((violations, unchecked)) = found.await? else { return Ok(()) };
        let state = self.log.state();
        let round = state.stage.rounds + 1;
        tracing::info!(run = %state.id, round, ?violations, ?unchecked, "the work was looked at");
        for violation in violations.iter().cloned() {
            self.log.stage(GuardrailViolation { round, violation });
        }
        self.log.stage(GuardrailsChecked { round, violations, unchecked });
        Ok(())
    }

    /// Others may have the workspace from now on. Where it may have to be given back, it is remembered how it was left: once,
    /// since who goes on and changes nothing has not looked whether it is so still.
    pub(super) async fn leave_workspace(&mut self) {
        let Snapshots { copy, left, .. } = &self.log.state().snapshots;
        if !matches!((copy, left), (Some(Taken::Tree(_)), None)) {
            return;
        }
        let taken = match self.has_workspace {
            true => Box::pin(self.snapshot(Moment::Left)).await,
            false => Taken::Failed("others may have had it meanwhile".into()),
        };
        self.log.stage(WorkspaceSnapshot { moment: Moment::Left, taken });
    }

    /// Where the run has stood still, others may have worked there: then its copy is not to be given back any more.
    pub(super) async fn look_at_copy(&mut self) {
        let Snapshots { copy, left, .. } = self.log.state().snapshots.clone();
        let (Some(copy @ Taken::Tree(_)), Some(left)) = (copy, left) else { return };
        let now = self.snapshot(Moment::Left).await;
        let taken = match (left, now) {
            (Taken::Tree(left), Taken::Tree(now)) if left == now => copy,
            (Taken::Failed(why), _) | (_, Taken::Failed(why)) => Taken::Failed(why),
            (Taken::Tree(_), Taken::Tree(_)) => Taken::Failed(
                "somebody else changed it while the run stood still; undo what the run did by hand (`agentctl run diff`, \
                 `git apply -R`)"
                    .into(),
            ),
        };
        self.log.stage(WorkspaceSnapshot { moment: Moment::Copy, taken });
    }

    /// Makes the files of the workspace what they were before the run; what it did stays known.
    pub(super) async fn restore(&mut self) -> Result<(), JournalError> {
        self.look_at_copy().await;
        let state = self.log.state();
        let (run, snapshots) = (state.id, state.snapshots.clone());
        let workspace = state.spec.workspace.clone();
        if let (Some(Taken::Tree(_)), None) = (&snapshots.before, &snapshots.after) {
            self.take_snapshot(Moment::After).await;
        }
        // On disk first: what was done cannot be told any more afterwards.
        self.log.append([]).await?;
        let (tree, why) = match &snapshots.copy {
            // Whether or not it can be told what was done: it is not to stay.
            Some(Taken::Tree(tree)) => {
                fail_point::reach("effect.before");
                let restored = diff::restore(&self.world, run, &workspace, tree).await;
                fail_point::reach("effect.after");
                (Some(tree.clone()), restored.err().map(|error| crate::telemetry::chain(&error)))
            }
            Some(Taken::Failed(why)) => (None, Some(why.clone())),
            None => (None, Some("there is no copy of it".to_owned())),
        };
        tracing::info!(%run, ?tree, ?why, "the work was vetoed, and the workspace is given back");
        self.log.stage(WorkspaceRestored { tree, why });
        Ok(())
    }

    /// Looks at the run's work, and listens. None: somebody said something, or the daemon stops; what is to be done is to
    /// be decided anew.
    pub(super) async fn meanwhile<T>(
        &mut self,
        look: impl AsyncFn(&World, &Work) -> Result<T, JournalError>,
    ) -> Result<Option<T>, JournalError> {
        // What is looked at is on disk.
        self.log.append([]).await?;
        let (world, work) = (self.world.clone(), Work::of(self.log.state()));
        let patiently = async {
            loop {
                match look(&world, &work).await {
                    Err(JournalError::Busy) => world.clock.sleep(BUSY).await,
                    looked => break looked,
                }
            }
        };
        tokio::select! {
            looked = patiently => looked.map(Some),
            () = self.stopping.cancelled() => Ok(None),
            Some(message) = self.inbox.recv() => {
                message.hear(&mut self.log).await?;
                Ok(None)
            }
        }
    }
}

/// What is looked at, as it was when that began.
pub(super) struct Work {
    run: RunId,
    spec: Arc<RunCreated>,
    /// Of the agent that speaks.
    role: RoleName,
    stage: Stage,
    inputs: Vec<Arc<str>>,
    before: Option<Taken>,
}

impl Work {
    fn of(state: &RunState) -> Self {
        Self {
            run: state.id,
            spec: state.spec.clone(),
            role: state.role.clone(),
            stage: state.stage.clone(),
            inputs: state.inputs.heard.clone(),
            before: state.snapshots.before.clone(),
        }
    }
}

pub(super) async fn read_repository(
    world: &World,
    work: &Work,
) -> Result<RepositoryTold, JournalError> {
    let reader = repository::Reader {
        run: work.run.to_string(),
        workspace: work.spec.workspace.clone(),
        role: work.role.clone(),
        seat: work.stage.seat(),
    };
    Ok(repository::read(world, &work.spec.told, &reader).await)
}

/// What was found in what a run changed that it must not do, or why nothing can be looked at.
async fn inspect(
    world: &World,
    work: &Work,
) -> Result<(Vec<Violation>, Option<String>), JournalError> {
    match &work.before {
        // Nothing was done that may change something.
        None => return Ok((Vec::new(), None)),
        Some(Taken::Failed(why)) => return Ok((Vec::new(), Some(why.clone()))),
        Some(Taken::Tree(_)) => {}
    }
    let guardrails = world.agents.guardrails;
    let patch = match diff::diff(world, work.run, PatchForm::Text).await {
        Ok(patch) => patch,
        Err(EngineError::Journal(error)) => return Err(error),
        Err(error) => return Ok((vec![guardrails.unreadable(&error.to_string())], None)),
    };
    let (policy, redactor) = (world.policies.current(), world.redactor.clone());
    let checked = tasks::blocking(move || {
        guardrails.check(&String::from_utf8_lossy(&patch), &policy.paths, &redactor)
    });
    let checked = checked.await;
    Ok((checked.unwrap_or_else(|error| vec![guardrails.unreadable(&error.to_string())]), None))
}

/// What a reviewer is to know of the work: as everyone may see it, and cut.
pub(super) async fn gather(world: &World, work: &Work) -> Result<Evidence, JournalError> {
    let shown = |text: &str| world.redactor.redact(text).into_owned();
    let diff = match diff::diff(world, work.run, PatchForm::Text).await {
        Ok(diff) => Ok(reviewer::cut_diff(&shown(&String::from_utf8_lossy(&diff)))),
        Err(EngineError::Journal(error)) => return Err(error),
        Err(error) => Err(error.to_string()),
    };
    let Work { run, spec, stage, inputs, .. } = work;
    Ok(Evidence {
        task: shown(&spec.task),
        plan: stage.plan.as_deref().cloned(),
        revisions: stage.revisions.iter().map(|revision| redacted(world, revision)).collect(),
        results: stage.results.iter().map(|result| shown(result)).collect(),
        inputs: inputs.iter().map(|input| shown(input)).collect(),
        diff,
        checked: stage.checked.as_deref().cloned(),
        calls: calls(world, *run, stage).await?,
        answer: shown(stage.result.as_deref().unwrap_or_default()),
        round: stage.rounds + 1,
    })
}

/// How the plan was changed, as everyone may see it.
fn redacted(world: &World, Revision { from_step, why, replaced }: &Revision) -> Revision {
    let shown = |text: &str| world.redactor.redact(text).into_owned();
    let step = |step: &Step| Step {
        intent: shown(&step.intent),
        tools: step.tools.clone(),
        check: shown(&step.check),
    };
    Revision {
        from_step: *from_step,
        why: shown(why),
        replaced: replaced.iter().map(step).collect(),
    }
}

/// The latest calls of a run, oldest first.
async fn calls(world: &World, run: RunId, stage: &Stage) -> Result<Vec<CallMade>, JournalError> {
    let (mut latest, mut after) = (VecDeque::new(), Some(Sequence(0)));
    while let Some(place) = after {
        let page = match tool_calls::tool_calls(&world.journal, run, place, PAGE).await {
            Ok(page) => page,
            Err(EngineError::Journal(error)) => return Err(error),
            Err(error) => return Err(JournalError::Unreadable { what: error.to_string() }),
        };
        for call in page.calls {
            let refused = call.decided.filter(|decided| decided.decision == Verdict::Deny);
            latest.push_back(CallMade {
                by: stage.speaker(call.called.call.turn),
                tool: call.called.tool.to_string(),
                arguments: reviewer::cut_arguments(&call.called.arguments),
                refused: refused.map(|decided| (decided.rule.to_string(), decided.why)),
                output: call.ended.map(|(_, output)| {
                    (output.outcome.as_str().to_owned(), reviewer::cut_output(&output.output))
                }),
            });
            if latest.len() > CALLS {
                latest.pop_front();
            }
        }
        after = page.next;
    }
    Ok(latest.into())
}
