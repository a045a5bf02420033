//! A job without ticks, for workers that may run on standbys: each instance runs it for itself, and records nothing.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::Instant;

use super::count;
use super::due::SLEEP_MAX;
use super::failure::Failure;
use super::run::Run;
use super::settings::Settings;
use super::{FAILED_RUNS, RUNS};
use crate::context::JobState;
use crate::database::DatabaseError;
use crate::functions::runner::{CycleError, Nap, Outcome, Routine, Turn};
use crate::functions::session::Place;

/// The routine of a job without ticks.
#[derive(Default)]
pub(super) struct Napping {
    was_ready: bool,
}

/// The result of a run that is not recorded.
pub(super) enum Untracked {
    Done {
        rows: u64,
        took: Duration,
    },
    /// Its statements failed, for this reason, and were undone.
    Failed(String),
    /// The worker must stop.
    Interrupted,
}

// === impl Run ===

impl Run<'_> {
    /// Runs the statements in one transaction, and records nothing.
    pub(super) async fn run_untracked(&self) -> Result<Untracked, DatabaseError> {
        let job_connection = self.job_connection().await?;
        let connection = job_connection.connection();
        let at_work = self.beside.begin(connection.cancel_token());
        let begun = Instant::now();
        let begin = self.begin(connection);
        connection.batch_execute("begin", &begin).await?;
        let _under_way = self.begin_run();
        let worked = self.work(connection, None).await;
        let worked = match self.unless_cut_short(worked) {
            ControlFlow::Continue(worked) => worked,
            ControlFlow::Break(end) => return end.map(|_| Untracked::Interrupted),
        };
        let ran = match worked {
            Ok(rows) => {
                self.leave(connection, "").await?;
                connection.batch_execute("commit the run", "COMMIT").await?;
                job_connection.keep().await;
                Untracked::Done {
                    rows,
                    took: begun.elapsed(),
                }
            }
            Err(Failure { why, .. }) => {
                job_connection.close().await;
                Untracked::Failed(why)
            }
        };
        drop(at_work);
        Ok(ran)
    }
}

// === impl Napping ===

impl Routine for Napping {
    type Settings = Settings;

    fn naptime(settings: &Settings) -> Duration {
        settings.naptime.unwrap_or(SLEEP_MAX)
    }

    fn success_within(settings: &Settings, _: Duration) -> Duration {
        settings.timeout.saturating_add(2 * Self::naptime(settings))
    }

    fn place(settings: &Settings) -> Place<'_> {
        settings.place()
    }

    fn backlog(_: &Settings) -> String {
        "its statements".to_owned()
    }

    fn advice(_: &DatabaseError) -> &'static str {
        "it is run again after its naptime"
    }

    async fn cycle(&mut self, turn: Turn<'_, Settings>) -> Result<Outcome, CycleError> {
        let Turn {
            settings,
            context,
            beside,
            ..
        } = turn;
        let job = settings.job(context.name(), context.database());
        let job = job.map_err(CycleError::Unusable)?;
        let Some(run) = Run::of(context, settings, &job, beside, "") else {
            return Ok(Outcome::Again("there is no database".into()));
        };
        let begin = Instant::now();
        let ran = Box::pin(run.run_untracked()).await?;
        if !std::mem::replace(&mut self.was_ready, true) {
            context.ready();
        }
        let progress = context.progress();
        Ok(match ran {
            Untracked::Done { rows, took } => {
                count(context.name(), progress, rows, took);
                progress.job(JobState::Idle, Instant::now(), None);
                Outcome::Done(Nap::Usual)
            }
            Untracked::Failed(why) => {
                progress.count(RUNS, 1);
                progress.count(FAILED_RUNS, 1);
                progress.did_not(&*why, begin.elapsed());
                let failing = JobState::Failing;
                progress.job(failing, Instant::now(), Some(why.as_str().into()));
                progress.is_able();
                Outcome::Waits(why.into())
            }
            Untracked::Interrupted => Outcome::Done(Nap::Usual),
        })
    }

    fn was_ready(&self) -> bool {
        self.was_ready
    }

    fn forget_prepared(&mut self) {}

    fn forget(&mut self) {}
}
