//! Work without ticks, for workers that may run on standbys: each instance does it for itself, and records nothing.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::count;
use super::due::SLEEP_MAX;
use super::failure::Failure;
use super::job::Job;
use super::row::JobRow;
use super::run::Run;
use super::tables::Tables;
use super::{FAILED_RUNS, RUNS};
use crate::context::JobState;
use crate::database::DatabaseError;
use crate::functions::runner::{CycleError, Nap, Outcome, Routine, Turn};
use crate::functions::session::Place;

/// Work that is done after each nap, in one transaction.
#[derive(Clone, Debug)]
pub struct Naps {
    naptime: Duration,
    /// What is done and by which rules, but for its schedule.
    job: Job,
}

/// What became of a run.
pub(super) enum Untracked {
    Done {
        rows: u64,
        took: Duration,
    },
    /// Its work failed, for this reason, and was undone.
    Failed(String),
    /// The worker must stop.
    Interrupted,
}

/// The routine of work without ticks.
#[derive(Default)]
pub(in crate::functions) struct Napping {
    was_ready: bool,
}

// === impl Naps ===

impl Naps {
    /// The work of a job, after each nap instead of at its ticks.
    pub(in crate::functions) fn between(naptime: Duration, job: Job) -> Self {
        Self { naptime, job }
    }

    /// What is done.
    pub(super) fn job(&self) -> &Job {
        &self.job
    }
}

// === impl Run ===

impl Run<'_> {
    /// Does the work in one transaction, and records nothing.
    pub(super) async fn run_untracked(&self) -> Result<Untracked, DatabaseError> {
        let job_connection = self.job_connection().await?;
        let connection = job_connection.connection();
        let at_work = self.beside.begin(connection.cancel_token());
        let begun = Instant::now();
        let begin = self.begin(connection);
        connection.batch_execute("begin", &begin).await?;
        let _under_way = self.begin_run();
        // There is no tick, and no row.
        let (row, tick) = (JobRow::new(Timestamp::UNIX_EPOCH), Timestamp::UNIX_EPOCH);
        let worked = self.work(connection, &row, tick).await;
        let worked = match self.unless_cut_short(worked) {
            ControlFlow::Continue(worked) => worked,
            ControlFlow::Break(end) => return end.map(|_| Untracked::Interrupted),
        };
        let ran = match worked {
            Ok(rows) => {
                self.leave_and_commit(connection).await?;
                if self.is_clean.get() {
                    job_connection.keep().await;
                } else {
                    job_connection.close().await;
                }
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
    type Settings = Result<Naps, Arc<str>>;

    fn naptime(naps: &Self::Settings) -> Duration {
        naps.as_ref().map_or(SLEEP_MAX, |naps| naps.naptime)
    }

    fn success_within(naps: &Self::Settings, _: Duration) -> Duration {
        let timeout = naps
            .as_ref()
            .map_or(Duration::ZERO, |naps| naps.job.timeout);
        timeout.saturating_add(2 * Self::naptime(naps))
    }

    fn place(naps: &Self::Settings) -> Place<'_> {
        naps.as_ref().map_or(Place::HOME, |naps| naps.job.place())
    }

    fn backlog(_: &Self::Settings) -> String {
        "its statements".to_owned()
    }

    fn advice(_: &DatabaseError) -> &'static str {
        "it is run again after its naptime"
    }

    async fn cycle(&mut self, turn: Turn<'_, Self::Settings>) -> Result<Outcome, CycleError> {
        let Turn {
            settings,
            context,
            beside,
            ..
        } = turn;
        let Naps { job, .. } = settings
            .as_ref()
            .map_err(|why| CycleError::Unusable((&**why).into()))?;
        let begin = Instant::now();
        let tables = Tables::default();
        let Some(run) = Run::of(context, (context.name(), job), beside, &tables) else {
            return Ok(Outcome::Again("there is no database".into()));
        };
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
