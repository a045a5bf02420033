//! A job with ticks: looks at its row, sleeps until the next tick, and runs what is due.

mod look;
mod state;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::state::clock_at;
use super::due::{Due, OVERDUE_AFTER, SLEEP_MAX, due, due_at, due_for};
use super::elsewhere::{ELSEWHERE, Elsewhere};
use super::gap;
use super::job::Job;
use super::locker::{OwnClaim, UndoneClaim};
use super::lost::Losses;
use super::past::{Ended, How, Past};
use super::row::{JobRow, Look};
use super::run::{Ran, Run};
use super::tables::{self, Tables};
use super::{FAILED_RUNS, GIVEN_UP, LATENESS, NEXT_TICK, RUNS, count};
use crate::backoff::Spell;
use crate::context::{JobState, Main, WorkerContext};
use crate::database::{Database, DatabaseError, ErrorClass, is_denied, is_missing};
use crate::functions::relation::Relation;
use crate::functions::runner::{self, CycleError, Nap, Outcome, Routine, Turn};
use crate::functions::session::{Place, Session};
use crate::schedule::Timestamp;

/// The base of the waits after errors.
const NAPTIME: Duration = Duration::from_secs(10);

/// Why a cycle is over whose worker found other tables than before.
const CHANGED: &str = "the tables of jobs were changed, and are looked at again";

/// Why a job without a transaction cannot be run.
const NO_SESSION: &str = "\"transaction = false\" takes a lock of a session, which cannot be had behind a pooler that hands out another \
    one for each transaction (\"prepare = false\")";

/// Why a tick is left for a while.
const UNRECORDED: &str =
    "a transaction that had its row was undone: the instance that ran it may still record that";

/// The routine of a job with ticks.
pub(in crate::functions) struct Scheduled {
    lasting: Arc<Lasting>,
    /// What the tables were when they were looked at, and when that was; `None` if it is still to be done.
    tables: Option<(Arc<Tables>, Instant)>,
    was_ready: bool,
    seen: Seen,
    elsewhere: Elsewhere,
    undone: UndoneClaim,
    /// Why the last run outside of a transaction was lost, and how many runs were recorded before it.
    interrupted: Option<(i64, String)>,
    /// Since when this instance stands by and finds that no instance runs the job.
    deserted: Elsewhere,
    /// What is wrong if an instance with other surroundings runs the job as well.
    shared: Option<Arc<str>>,
    /// Runs take longer than until the next tick.
    slow: Spell,
}

/// What outlives an incarnation.
#[derive(Debug, Default)]
pub(in crate::functions) struct Lasting {
    /// What this registration runs the job with, once it has declared the job: a restart does not declare it again.
    declared_as: OnceLock<String>,
    /// Has this process listed as one that has the job.
    listed: OnceLock<Listed>,
    /// The `history` that the kept runs were made to fit.
    history: Mutex<Option<u32>>,
    /// What is known of the job's last runs.
    past: Mutex<Past>,
    losses: Losses,
    /// The last claim of this registration.
    own_claim: OwnClaim,
    /// A statement of the job deallocates what its runs prepare.
    deallocates: AtomicBool,
}

/// What the last cycle saw of the job, and so which look is new enough for the next one.
enum Seen {
    /// A tick may be due: the look must begin now or later.
    Nothing,
    /// Nothing was due: a look that any worker of the database began after this one is enough.
    Idle(Instant),
    /// No look is needed: this is how the job's own run left the row.
    AfterRun(Box<Look>),
}

/// A job that this process is listed to have, until this is dropped.
#[derive(Debug)]
struct Listed {
    database: Database,
    dbname: Option<String>,
    name: String,
}

// === impl Listed ===

impl Listed {
    fn new(database: &Database, name: &str, job: &Job) -> Self {
        let dbname = job.database.clone();
        database
            .instance()
            .has(dbname.as_deref(), name, &job.declared);
        Self {
            database: database.clone(),
            dbname,
            name: name.to_owned(),
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let instance = self.database.instance();
        instance.has_no_longer(self.dbname.as_deref(), &self.name);
    }
}

// === impl Lasting ===

impl Lasting {
    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, Option<u32>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Scheduled ===

impl Scheduled {
    pub(in crate::functions) fn new(lasting: Arc<Lasting>) -> Self {
        Self {
            lasting,
            tables: None,
            was_ready: false,
            seen: Seen::Nothing,
            elsewhere: Elsewhere::default(),
            undone: UndoneClaim::default(),
            interrupted: None,
            deserted: Elsewhere::default(),
            shared: None,
            slow: Spell::default(),
        }
    }

    /// Records a run whose session had ended, before the job is run again. `None` if there is none to record.
    async fn record_lost(
        &mut self,
        session: &Session,
        run: &Run<'_>,
        context: &WorkerContext,
        (row, now): (&JobRow, Timestamp),
    ) -> Result<Option<Outcome>, DatabaseError> {
        let losses = &self.lasting.losses;
        let Some(lost) = losses.unrecorded() else {
            return Ok(None);
        };
        if !lost.is_unchanged(row) {
            losses.forget();
            return Ok(None);
        }
        if let Some(ran) = run.record(session, &lost, losses).await? {
            return Ok(Some(self.ran(context, ran, lost.took)));
        }
        // Another session runs it now, or what is left of the one that ended; or the tables were changed.
        self.tables = None;
        Ok(Some(
            self.elsewhere(session, run, context, (row, now)).await?,
        ))
    }

    /// What the tables are. They are looked at first if that is still to be done, and again each minute while they lack
    /// something, which one worker of the process adds if the role may.
    async fn tables(
        &mut self,
        session: &Session,
        context: &WorkerContext,
        dbname: Option<&str>,
    ) -> Result<Arc<Tables>, CycleError> {
        if let Some((tables, looked_at)) = &self.tables
            && (tables.lacks.is_none() || looked_at.elapsed() < SLEEP_MAX)
        {
            return Ok(Arc::clone(tables));
        }
        let Some(database) = context.database() else {
            return Ok(Arc::default());
        };
        let is_due = |what, every| database.instance().is_due(dbname, what, every);
        let trusted = &database.settings().trusted_owners;
        let completes = is_due("add to the tables", SLEEP_MAX / 2);
        let tables = tables::make(session, trusted, completes).await?;
        if let Some(lacks) = tables
            .lacks
            .as_ref()
            .filter(|_| is_due("say what they lack", Duration::MAX))
        {
            warn!("{}", lacks.said());
        }
        let (tables, _) = self.tables.insert((Arc::new(tables), Instant::now()));
        Ok(Arc::clone(tables))
    }

    /// Decides what follows from a look that failed.
    fn looked_in_vain(&mut self, error: DatabaseError) -> Result<Outcome, DatabaseError> {
        if tables::are_changed(&error) {
            self.tables = None;
            return Ok(Outcome::Again(CHANGED.into()));
        }
        if error.sqlstate().is_some_and(is_missing) {
            self.forget();
            let gone = "the tables of jobs are gone, and are made again";
            return Ok(Outcome::Again(gone.into()));
        }
        self.looks_again_after(&error);
        Err(error)
    }

    /// Runs the tick that is due, and reports if it could not be begun for too long.
    async fn run_due(
        &mut self,
        session: &Session,
        mut run: Run<'_>,
        context: &WorkerContext,
        (row, now): (&JobRow, Timestamp),
        tick: Timestamp,
    ) -> Result<Outcome, DatabaseError> {
        let in_transaction = run.job.transaction.is_some();
        if !in_transaction && !run.database.sessions_are_ours() {
            return Ok(Outcome::Waits(NO_SESSION.to_owned().into()));
        }
        let begin = Instant::now();
        let interrupted = self.interrupted.clone();
        let interrupted = interrupted.filter(|(runs, _)| *runs == row.runs);
        run.interrupted_by = interrupted.as_ref().map(|(_, why)| &**why);
        let lasting = Arc::clone(&self.lasting);
        run.own = Some(&lasting.own_claim);
        run.deallocates = Cell::new(lasting.deallocates.load(Ordering::Relaxed));
        run.is_over = self.undone.is_over(row.runs, begin);
        let mut ran = if in_transaction && self.undone.may_be_recorded(row.runs, begin) {
            Ok(Ran::Unrecorded)
        } else {
            // Boxed so that cycles that only look do not pay for its size.
            Box::pin(run.run([tick, row.last_done])).await
        };
        lasting
            .deallocates
            .store(run.deallocates.get(), Ordering::Relaxed);
        if matches!(ran, Ok(Ran::Elsewhere)) {
            return self.elsewhere(session, &run, context, (row, now)).await;
        }
        self.elsewhere = Elsewhere::default();
        self.tell_ran(&run, context, (row, now), (tick, begin), &mut ran);
        Ok(self.ran(context, ran?, begin.elapsed()))
    }

    /// Reports what became of a run that began at this moment, as far as that does not follow from what it left.
    fn tell_ran(
        &mut self,
        run: &Run<'_>,
        context: &WorkerContext,
        (row, now): (&JobRow, Timestamp),
        (tick, begin): (Timestamp, Instant),
        ran: &mut Result<Ran, DatabaseError>,
    ) {
        if let Ok(Ran::Done { took, .. }) = &ran
            && let Some(slow) = gap::slow(tick, *took, &run.job.schedule, run.job.missed)
            && self.slow.is_news(Instant::now().into_std())
        {
            let worker = context.name();
            warn!(worker, "{worker}: {slow}");
        }
        match ran {
            Ok(Ran::Done { .. } | Ran::Failed { .. }) => {
                let late = now.duration_since(tick).unsigned_abs();
                context.progress().observe(LATENESS, late);
            }
            Ok(Ran::Unrecorded) => {
                self.undone.found(row.runs, begin);
                // What failed before is not made good by that.
                if self.report(context, row, now) == JobState::Idle {
                    let why = Some(UNRECORDED.into());
                    context.progress().job(JobState::Waiting, begin, why);
                }
            }
            // If the server has said that it ends the session, it answers, and the run is recorded at once.
            Ok(Ran::Lost(lost)) if lost.failure.is_away() && !lost.failure.is_goodbye() => {
                was_lost(context.name(), tick, &lost.failure.why);
                lost.is_told = true;
            }
            Ok(Ran::Interrupted(Some(why))) => was_lost(context.name(), tick, why),
            Ok(
                Ran::Elsewhere
                | Ran::Lost(_)
                | Ran::Conflicted(_)
                | Ran::Unmarked(_)
                | Ran::Changed
                | Ran::Interrupted(None),
            ) => {}
            Err(error) => self.could_not_run(run, context, (row, now), tick, (begin, error)),
        }
    }

    /// Reports an error that kept a run from beginning, or broke it off.
    fn could_not_run(
        &mut self,
        run: &Run<'_>,
        context: &WorkerContext,
        (row, now): (&JobRow, Timestamp),
        tick: Timestamp,
        (begin, error): (Instant, &DatabaseError),
    ) {
        self.looks_again_after(error);
        let why = error.to_string();
        if run.has_begun() && run.job.transaction.is_none() {
            self.interrupted = Some((row.runs, why.clone()));
        }
        if run.has_begun() && error.is_away() {
            was_lost(context.name(), tick, &why);
            context.progress().did_not(&*why, begin.elapsed());
        }
        let due_for = due_for(row, now, &run.job.schedule, run.job.missed) + begin.elapsed();
        if due_for >= OVERDUE_AFTER {
            let since = Instant::now().checked_sub(due_for).unwrap_or(begin);
            let why = Some(why.into());
            context.progress().job(JobState::Overdue, since, why);
        }
    }

    /// Has the next cycle look at the tables again if the role lacks a privilege: that look says which, and how to grant it.
    fn looks_again_after(&mut self, error: &DatabaseError) {
        if error.sqlstate().is_some_and(is_denied) {
            self.tables = None;
        }
    }

    /// Turns a run into the outcome of the cycle, and keeps what spares the next cycle its look.
    fn ran(&mut self, context: &WorkerContext, ran: Ran, took: Duration) -> Outcome {
        let (worker, progress) = (context.name(), context.progress());
        match ran {
            Ran::Done { rows, took, after } => {
                self.lasting.losses.are_over();
                count(worker, progress, rows, took);
                self.keep(context, after, How::Done, String::new());
                Outcome::Done(Nap::AtOnce)
            }
            Ran::Failed {
                why,
                is_given_up,
                is_told,
                after,
            } => {
                progress.count(RUNS, 1);
                progress.count(FAILED_RUNS, 1);
                progress.did_not(&*why, took);
                let how = if is_given_up {
                    progress.count(GIVEN_UP, 1);
                    error!(worker, "{worker}: failed, and the tick is given up: {why}");
                    How::GivenUp
                } else {
                    if is_told {
                        info!(worker, "{worker}: recorded the run that it lost: {why}");
                    } else {
                        warn!(worker, "{worker}: failed: {why}");
                    }
                    How::Failed
                };
                self.keep(context, after, how, why.clone());
                Outcome::Failed(why)
            }
            Ran::Unmarked(why) => {
                // The statement is at fault, not this instance.
                progress.job(JobState::Failing, Instant::now(), Some(why.into()));
                progress.is_able();
                Outcome::Waits(why.to_owned().into())
            }
            Ran::Changed => {
                self.tables = None;
                Outcome::Again(CHANGED.into())
            }
            Ran::Lost(lost) | Ran::Conflicted(lost) => {
                // It is recorded as soon as the server answers.
                self.lasting.losses.add(*lost);
                Outcome::Pending(Nap::AtOnce)
            }
            Ran::Elsewhere | Ran::Unrecorded | Ran::Interrupted(_) => {
                Outcome::Pending(Nap::For(ELSEWHERE))
            }
        }
    }

    /// Keeps what a run left, and reports the state of the job.
    fn keep(&mut self, context: &WorkerContext, after: Look, how: How, why: String) {
        let (at, why) = (after.now, why.into());
        let row = after.row.as_ref();
        // The next cycle, which follows at once, reckons it from the row.
        context.progress().job_is_due(None);
        self.lasting.past().ran(row, Ended { how, at, why });
        if let Some(row) = row {
            self.report(context, row, at);
        }
        self.seen = Seen::AfterRun(Box::new(after));
    }
}

/// The main of a worker that does a job at its ticks.
///
/// The worker starts at [`StartTime::RecoveryFinished`](crate::StartTime::RecoveryFinished): ticks are recorded in the
/// database, which a standby does not allow.
pub fn main(job: Job) -> impl Main {
    let (_, settings) = watch::channel(Arc::new(job));
    let lasting = Arc::<Lasting>::default();
    move |context: WorkerContext| {
        let scheduled = Scheduled::new(Arc::clone(&lasting));
        let read = |job: &Arc<Job>| Ok(Arc::clone(job));
        runner::run(context, settings.clone(), read, scheduled)
    }
}

/// Reports a run that was lost with its connection.
fn was_lost(worker: &str, tick: Timestamp, why: &str) {
    warn!(
        worker,
        "{worker}: lost its run of the tick {tick}: what was not committed is undone, and the tick is \
         still due unless it was: {why}"
    );
}

impl Routine for Scheduled {
    type Settings = Result<Arc<Job>, Arc<str>>;

    fn naptime(_: &Self::Settings) -> Duration {
        NAPTIME
    }

    fn success_within(_: &Self::Settings, _: Duration) -> Duration {
        // It looks at its row twice in this time, except while it runs.
        2 * SLEEP_MAX
    }

    fn place(job: &Self::Settings) -> Place<'_> {
        job.as_ref().map_or(Place::HOME, |job| job.place())
    }

    fn tables(_: &Self::Settings) -> Vec<Relation> {
        tables::relations()
    }

    fn backlog(_: &Self::Settings) -> String {
        "its ticks".to_owned()
    }

    fn advice(error: &DatabaseError) -> &'static str {
        match error.class() {
            ErrorClass::ReadOnly => {
                "the database was made read-only for this role (default_transaction_read_only): what is due stays due"
            }
            _ => "what is due stays due",
        }
    }

    async fn cycle(&mut self, turn: Turn<'_, Self::Settings>) -> Result<Outcome, CycleError> {
        let Turn {
            session,
            settings,
            context,
            beside,
        } = turn;
        let job = settings
            .as_ref()
            .map_err(|why| CycleError::Unusable((&**why).into()))?;
        let namespace = context
            .database()
            .and_then(|database| database.settings().namespace.as_deref());
        let name = &*Job::name(context.name(), namespace);
        let dbname = job.database.as_deref();
        let tables = &self.tables(session, context, dbname).await?;
        let look = self.look(session, context, ((name, job), tables)).await;
        let look = match look {
            Ok(look) => look,
            Err(error) => return Ok(self.looked_in_vain(error)?),
        };
        if !std::mem::replace(&mut self.was_ready, true) {
            context.ready();
        }
        let Some(row) = &look.row else {
            return Ok(Outcome::Again("its row was deleted".into()));
        };
        let (seen, kept) = ((row, look.now), (name, job.history));
        let due_at = due_at(row, look.now, &job.schedule, job.missed);
        let progress = context.progress();
        progress.job_is_due(due_at.map(|due| clock_at(due, look.now)));
        if row.declared != job.declared {
            self.seen = Seen::Idle(look.asked);
            // The ticks are those of the other declaration.
            progress.coming(NEXT_TICK, None);
            let mine = ((name, &**job), &**tables);
            return Ok(self.is_anothers(session, context, seen, mine).await?);
        }
        let next = job.schedule.next(look.now);
        let next = next.map(|next| (next.as_second(), clock_at(next, look.now)));
        progress.coming(NEXT_TICK, next);
        self.notice(context, row);
        let Some(run) = Run::of(context, (name, job), beside, tables) else {
            return Ok(Outcome::Again("there is no database".into()));
        };
        if let Some(recorded) = self.record_lost(session, &run, context, seen).await? {
            return Ok(recorded);
        }
        match due(row, look.now, &job.schedule, job.missed) {
            Due::In(wait) => {
                if wait == SLEEP_MAX {
                    self.seen = Seen::Idle(look.asked);
                }
                Ok(self.idle(session, context, kept, seen, wait).await?)
            }
            Due::Ahead => Ok(self.is_ahead(context, name, row)),
            Due::Now(tick) => Ok(self.run_due(session, run, context, seen, tick).await?),
        }
    }

    fn was_ready(&self) -> bool {
        self.was_ready
    }

    fn forget_prepared(&mut self) {}

    fn forget(&mut self) {
        self.tables = None;
        self.seen = Seen::Nothing;
    }
}
