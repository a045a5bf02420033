//! A job with ticks: looks at its row, sleeps until the next tick, and has what is due run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::due::{Due, SLEEP_MAX, due, next_tick};
use super::job::{self, Look};
use super::run::{Ran, Run};
use super::settings::{Job, Settings};
use super::tables;
use super::{CROWDED, GIVEN_UP, NEXT_TICK, count};
use crate::context::WorkerContext;
use crate::database::DatabaseError;
use crate::functions::runner::{CycleError, Outcome, Routine, Turn};
use crate::functions::session::{Place, Session};
use crate::schedule::Timestamp;

/// How soon a job is looked at again whose tick another session has.
const ELSEWHERE: Duration = Duration::from_secs(1);

/// How long after its timeout a run has let go of its row, though its instance be frozen.
const LET_GO_WITHIN: Duration = Duration::from_secs(15);

/// The base of waits after errors.
const NAPTIME: Duration = Duration::from_secs(10);

/// What an incarnation of a job does.
pub(super) struct Scheduled {
    /// The settings, and what they come to.
    job: Option<(Settings, Arc<Job>)>,
    /// The job was declared by this registration: a restart does not declare it again.
    is_declared: Arc<AtomicBool>,
    has_tables: bool,
    was_ready: bool,
    seen: Seen,
    /// Since when another session has the row, and what its last tick was then.
    elsewhere: Option<(Timestamp, Instant)>,
}

/// What a job was last seen to be, and which look is new enough for the next cycle.
enum Seen {
    /// One that begins now: a tick may be due.
    Nothing,
    /// Nothing was due: a look that any worker of the database began after this one is new enough.
    Idle(Instant),
    /// None is needed: this is how its own run left it.
    AfterRun(Look),
}

// === impl Scheduled ===

impl Scheduled {
    pub(super) fn new(is_declared: Arc<AtomicBool>) -> Self {
        Self {
            job: None,
            is_declared,
            has_tables: false,
            was_ready: false,
            seen: Seen::Nothing,
            elsewhere: None,
        }
    }

    /// What the settings come to; worked out when they change.
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

    /// Looks at the job, which is declared first where that is still to be done.
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
        if look.row.is_none() || !self.is_declared.load(Ordering::Relaxed) {
            job.declare(session, name, look.now).await?;
            self.is_declared.store(true, Ordering::Relaxed);
            look = job::look(session, name, Instant::now()).await?;
        }
        // Another worker may have asked some time ago.
        let age = look.asked.elapsed();
        look.now = look.now.checked_add(age).unwrap_or(look.now);
        Ok(look)
    }

    /// Whether another session has the row of the job for longer than any run takes.
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

    /// What follows from a run, and what the next cycle need not look at.
    fn ran(&mut self, context: &WorkerContext, ran: Ran) -> Outcome {
        let (worker, progress) = (context.name(), context.progress());
        match ran {
            Ran::Done { rows, took, after } => {
                self.seen = Seen::AfterRun(after);
                count(worker, progress, rows, took);
                Outcome::Idle(Duration::ZERO)
            }
            Ran::Failed {
                why,
                is_given_up,
                after,
            } => {
                self.seen = Seen::AfterRun(after);
                if is_given_up {
                    progress.count(GIVEN_UP, 1);
                    warn!(worker, "{worker}: failed, and the tick is given up: {why}");
                } else {
                    warn!(worker, "{worker}: failed: {why}");
                }
                Outcome::Failed(why)
            }
            Ran::Unmarked(why) => Outcome::Waits(why.to_owned()),
            Ran::Crowded => Outcome::Busy(CROWDED),
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
        // It looks at its row at least so often, but while it runs.
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
        if !self.has_tables {
            tables::make(session).await?;
            self.has_tables = true;
        }
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
                "the job is declared otherwise by {}: this instance stands by",
                row.declared_by
            )));
        }
        match due(row, look.now, &job.schedule, settings.missed) {
            Due::In(wait) => {
                if wait == SLEEP_MAX {
                    self.seen = Seen::Idle(look.asked);
                }
                Ok(Outcome::Idle(wait))
            }
            Due::Ahead => Ok(Outcome::Waits(format!(
                "its last tick, {}, is in the future: if the server's clock was wrong, \
                 UPDATE bgworker.job SET last_tick = now() WHERE name = '{}'",
                row.last_tick,
                context.name().replace('\'', "''")
            ))),
            Due::Now(tick) => {
                let Some(run) = Run::of(context, settings, &job, beside) else {
                    return Ok(Outcome::Busy("there is no database"));
                };
                if !settings.transaction && !run.database.settings().prepare {
                    let why = "\"transaction = false\" takes a lock of a session, which cannot be had behind a pooler \
                               that hands out another one for each transaction (\"prepare = false\")";
                    return Ok(Outcome::Waits(why.to_owned()));
                }
                // Not to be paid for by every look.
                let ran = Box::pin(run.run(tick)).await?;
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
        self.has_tables = false;
        self.seen = Seen::Nothing;
    }
}
