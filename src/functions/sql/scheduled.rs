//! A job with ticks: looks at its row, sleeps until the next tick, and runs what is due.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::due::{Due, SLEEP_MAX, due, next_tick};
use super::job::{self, JobRow, Look};
use super::mark;
use super::run::{Ran, Run};
use super::settings::{Job, Settings};
use super::tables;
use super::{CROWDED, GIVEN_UP, LATENESS, NEXT_TICK, count};
use crate::context::WorkerContext;
use crate::database::{Database, DatabaseError};
use crate::functions::runner::{CycleError, Outcome, Routine, Turn};
use crate::functions::session::{Place, Session};
use crate::schedule::Timestamp;

/// How soon a job is looked at again if another session has its tick.
const ELSEWHERE: Duration = Duration::from_secs(1);

/// The time after its timeout within which a run releases its row, even if its instance is frozen.
const LET_GO_WITHIN: Duration = Duration::from_secs(15);

/// The base of the waits after errors.
const NAPTIME: Duration = Duration::from_secs(10);

/// The routine of a job with ticks.
pub(super) struct Scheduled {
    /// The settings, and the job that they describe.
    job: Option<(Settings, Arc<Job>)>,
    lasting: Arc<Lasting>,
    /// What the tables were when they were looked at; `None` if that is still to be done.
    seal: Option<String>,
    was_ready: bool,
    seen: Seen,
    /// The job's last tick when another session was found to have the row, and since when that session has it.
    elsewhere: Option<(Timestamp, Instant)>,
}

/// What outlives an incarnation.
#[derive(Debug, Default)]
pub(super) struct Lasting {
    /// `true` once this registration has declared the job: a restart does not declare it again.
    is_declared: AtomicBool,
    /// The last run of this instance if it failed, unless the job has been done since.
    failure: Mutex<Option<FailedRun>>,
}

/// A run that failed.
#[derive(Clone, Copy, Debug)]
struct FailedRun {
    /// When it ended, by the server's clock.
    at: Timestamp,
    /// The newest tick whose work was done at that time.
    last_done: Timestamp,
}

/// What the last cycle saw of the job, and so which look is new enough for the next one.
enum Seen {
    /// A tick may be due: the look must begin now or later.
    Nothing,
    /// Nothing was due: a look that any worker of the database began after this one is enough.
    Idle(Instant),
    /// No look is needed: this is how the job's own run left the row.
    AfterRun(Look),
}

// === impl Lasting ===

impl Lasting {
    fn failure(&self) -> Option<FailedRun> {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_failure(&self, failure: Option<FailedRun>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

// === impl Scheduled ===

impl Scheduled {
    pub(super) fn new(lasting: Arc<Lasting>) -> Self {
        Self {
            job: None,
            lasting,
            seal: None,
            was_ready: false,
            seen: Seen::Nothing,
            elsewhere: None,
        }
    }

    /// The job that the settings describe; computed when they change.
    fn job(&mut self, settings: &Settings) -> Result<Arc<Job>, CycleError> {
        match &self.job {
            Some((known, job)) if known == settings => Ok(Arc::clone(job)),
            _ => {
                let job = Arc::new(settings.job().map_err(CycleError::Unusable)?);
                self.job = Some((settings.clone(), Arc::clone(&job)));
                Ok(job)
            }
        }
    }

    /// Looks at the job, and declares it first if that is still to be done.
    async fn look(
        &mut self,
        session: &Session,
        context: &WorkerContext,
        job: &Job,
    ) -> Result<Look, DatabaseError> {
        let name = context.name();
        let not_before = match std::mem::replace(&mut self.seen, Seen::Nothing) {
            Seen::AfterRun(look) => return Ok(look),
            Seen::Idle(asked) => asked + Duration::from_nanos(1),
            Seen::Nothing => Instant::now(),
        };
        let mut look = job::look(session, name, not_before).await?;
        if look.row.is_none() || !self.lasting.is_declared.load(Ordering::Relaxed) {
            job.declare(session, name, look.now).await?;
            self.lasting.is_declared.store(true, Ordering::Relaxed);
            look = job::look(session, name, Instant::now()).await?;
        }
        // The look may be one that another worker made some time ago.
        let age = look.asked.elapsed();
        look.now = look.now.checked_add(age).unwrap_or(look.now);
        Ok(look)
    }

    /// The outcome of a look that found nothing to do for this long. It is no success while a failure of this instance has
    /// not been made good, by a run of any instance or by hand.
    async fn idle(
        &self,
        session: &Session,
        name: &str,
        row: &JobRow,
        wait: Duration,
    ) -> Result<Outcome, DatabaseError> {
        if let Some(FailedRun { at, last_done }) = self.lasting.failure() {
            if row.last_done == last_done && !mark::has_succeeded_beside(session, name, at).await? {
                return Ok(Outcome::Pending(wait));
            }
            self.lasting.set_failure(None);
        }
        Ok(Outcome::Idle(wait))
    }

    /// Reports that another session has had the row of the job for longer than a run may take.
    fn waits_for_another(
        &mut self,
        ran: &Ran,
        last_tick: Timestamp,
        settings: &Settings,
    ) -> Option<Outcome> {
        let Ran::Elsewhere = ran else {
            self.elsewhere = None;
            return None;
        };
        let since = match self.elsewhere {
            Some((known, since)) if known == last_tick => since,
            _ => Instant::now(),
        };
        self.elsewhere = Some((last_tick, since));
        (since.elapsed() > settings.timeout + LET_GO_WITHIN).then(|| {
            let why = "another session has the row of the job in bgworker.job, for longer than a run may take: \
                       look for it in pg_stat_activity";
            Outcome::Waits(why.to_owned())
        })
    }

    /// Turns a run into the outcome of the cycle, and keeps what spares the next cycle its look.
    fn ran(&mut self, context: &WorkerContext, ran: Ran) -> Outcome {
        let (worker, progress) = (context.name(), context.progress());
        match ran {
            Ran::Done { rows, took, after } => {
                self.seen = Seen::AfterRun(after);
                self.lasting.set_failure(None);
                count(worker, progress, rows, took);
                Outcome::Idle(Duration::ZERO)
            }
            Ran::Failed {
                why,
                is_given_up,
                after,
            } => {
                self.lasting
                    .set_failure(after.row.as_ref().map(|row| FailedRun {
                        at: after.now,
                        last_done: row.last_done,
                    }));
                self.seen = Seen::AfterRun(after);
                if is_given_up {
                    progress.gave_up();
                    progress.count(GIVEN_UP, 1);
                    warn!(worker, "{worker}: failed, and the tick is given up: {why}");
                } else {
                    warn!(worker, "{worker}: failed: {why}");
                }
                Outcome::Failed(why)
            }
            Ran::Unmarked(why) => Outcome::Waits(why.to_owned()),
            Ran::Crowded => Outcome::Busy(CROWDED),
            Ran::Changed => {
                self.seal = None;
                Outcome::Busy("the tables of jobs were changed, and are looked at again")
            }
            Ran::Elsewhere | Ran::Interrupted if self.lasting.failure().is_some() => {
                Outcome::Pending(ELSEWHERE)
            }
            Ran::Elsewhere | Ran::Interrupted => Outcome::Idle(ELSEWHERE),
        }
    }
}

impl Routine for Scheduled {
    type Settings = Settings;

    fn naptime(_: &Settings) -> Duration {
        NAPTIME
    }

    fn success_within(settings: &Settings, _: Duration) -> Duration {
        // It looks at its row at least this often, except while it runs.
        settings.timeout.saturating_add(2 * SLEEP_MAX)
    }

    fn place(settings: &Settings) -> Place<'_> {
        settings.place()
    }

    fn backlog(_: &Settings) -> String {
        "its ticks".to_owned()
    }

    fn advice(_: &DatabaseError) -> &'static str {
        "what is due stays due"
    }

    async fn cycle(&mut self, turn: Turn<'_, Settings>) -> Result<Outcome, CycleError> {
        let Turn {
            session,
            settings,
            context,
            beside,
        } = turn;
        let job = self.job(settings)?;
        let seal = match &self.seal {
            Some(seal) => seal.clone(),
            None => {
                let settings = context.database().map(Database::settings);
                let trusted = settings.map_or(&[][..], |settings| &settings.trusted_owners);
                let seal = tables::make(session, trusted).await?;
                self.seal.insert(seal).clone()
            }
        };
        let look = self.look(session, context, &job).await?;
        if !std::mem::replace(&mut self.was_ready, true) {
            context.ready();
        }
        if let Some(next) = next_tick(&look, &job.schedule) {
            context.progress().level(NEXT_TICK, next);
        }
        let Some(row) = &look.row else {
            return Ok(Outcome::Busy("its row was deleted"));
        };
        if row.declared != job.declared {
            self.seen = Seen::Idle(look.asked);
            return Ok(Outcome::Waits(format!(
                "the job is declared differently by {}: this instance stands by",
                row.declared_by
            )));
        }
        match due(row, look.now, &job.schedule, settings.missed) {
            Due::In(wait) => {
                if wait == SLEEP_MAX {
                    self.seen = Seen::Idle(look.asked);
                }
                Ok(self.idle(session, context.name(), row, wait).await?)
            }
            Due::Ahead => Ok(Outcome::Waits(format!(
                "its last tick, {}, is in the future: if the server's clock was wrong, \
                 UPDATE bgworker.job SET last_tick = now() WHERE name = '{}'",
                row.last_tick,
                context.name().replace('\'', "''")
            ))),
            Due::Now(tick) => {
                let Some(run) = Run::of(context, settings, &job, beside, &seal) else {
                    return Ok(Outcome::Busy("there is no database"));
                };
                if !settings.transaction && !run.database.settings().prepare {
                    let why = "\"transaction = false\" takes a lock of a session, which cannot be had behind a pooler \
                               that hands out another one for each transaction (\"prepare = false\")";
                    return Ok(Outcome::Waits(why.to_owned()));
                }
                let begin = Instant::now();
                // Boxed so that cycles that only look do not pay for its size.
                let ran = Box::pin(run.run(tick)).await?;
                if matches!(ran, Ran::Done { .. } | Ran::Failed { .. }) {
                    let late = look.now.duration_since(tick).unsigned_abs();
                    context.progress().observe(LATENESS, late);
                }
                if let Ran::Failed { why, .. } = &ran {
                    context.progress().did_not(&**why, begin.elapsed());
                }
                if let Some(waits) = self.waits_for_another(&ran, row.last_tick, settings) {
                    return Ok(waits);
                }
                Ok(self.ran(context, ran))
            }
        }
    }

    fn was_ready(&self) -> bool {
        self.was_ready
    }

    fn forget_prepared(&mut self) {}

    fn forget(&mut self) {
        self.seal = None;
        self.seen = Seen::Nothing;
    }
}
