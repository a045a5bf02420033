//! Reports the state of a job that this instance does not run now, and what follows for the cycle.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::Scheduled;
use crate::context::{JobState, WorkerContext};
use crate::database::{DatabaseError, OneLine, TELL_CHANGES_EVERY};
use crate::functions::runner::{Nap, Outcome};
use crate::functions::session::Session;
use crate::functions::ticked::declare::{self, Declaring};
use crate::functions::ticked::due::{OVERDUE_AFTER, due_for};
use crate::functions::ticked::elsewhere::{ELSEWHERE, Elsewhere, SAID_AFTER, has_it};
use crate::functions::ticked::job::{Job, Missed};
use crate::functions::ticked::past::{self, ASK_EVERY};
use crate::functions::ticked::row::{self, JobRow};
use crate::functions::ticked::run::Run;
use crate::functions::ticked::tables::Tables;
use crate::functions::ticked::{declaration, surroundings};
use crate::schedule::Timestamp;

/// For how long a job must have been found deserted before it is taken over.
const DESERTED_FOR: Duration = Duration::from_secs(8);

// === impl Scheduled ===

impl Scheduled {
    /// Asks the history if it may say more than is known, but not too often. `true` if it is to be asked a little later.
    pub(super) async fn learn(
        &self,
        session: &Session,
        context: &WorkerContext,
        (name, history): (&str, u32),
        (row, now): (&JobRow, Timestamp),
    ) -> Result<bool, DatabaseError> {
        {
            let past = self.lasting.past();
            if !past.is_stale(row) {
                return Ok(false);
            }
            if past.is_fresh(Instant::now()) {
                return Ok(true);
            }
        }
        let asked = Instant::now();
        let found = past::ask(session, name, history).await?;
        let mut past = self.lasting.past();
        past.learn(row, now, asked, found);
        if let Some(at) = past.done_at {
            context.progress().was_done(ago(at, now));
        }
        Ok(false)
    }

    /// Reports the state of a job that is not due.
    pub(super) fn report(&self, context: &WorkerContext, row: &JobRow, now: Timestamp) -> JobState {
        let past = self.lasting.past();
        let (state, last) = past.state(row);
        let since = last.map_or_else(Instant::now, |last| ago(last.at, now));
        let why = match state {
            JobState::Idle => self.shared.clone(),
            _ => last.map(|last| Arc::clone(&last.why)),
        };
        context.progress().job(state, since, why);
        state
    }

    /// How soon other instances are to be told that the jobs of this process have changed, if they have.
    fn until_told(&self, context: &WorkerContext) -> Option<Duration> {
        let (tables, _) = self.tables.as_ref()?;
        let (listed, database) = (self.lasting.listed.get()?, context.database()?);
        let is_changed = database.instance().is_changed(listed.dbname.as_deref());
        (is_changed && tables.instances.is_some()).then_some(TELL_CHANGES_EVERY)
    }

    /// The outcome of a look that found nothing to do for this long. While the last run is one that failed, nothing has been
    /// made good.
    pub(super) async fn idle(
        &mut self,
        session: &Session,
        context: &WorkerContext,
        kept: (&str, u32),
        (row, now): (&JobRow, Timestamp),
        wait: Duration,
    ) -> Result<Outcome, DatabaseError> {
        self.elsewhere = Elsewhere::default();
        let is_to_ask = self.learn(session, context, kept, (row, now)).await?;
        let wait = if is_to_ask { wait.min(ASK_EVERY) } else { wait };
        let wait = self
            .until_told(context)
            .map_or(wait, |until| wait.min(until));
        Ok(match self.report(context, row, now) {
            JobState::Idle if self.lasting.past().is_made_good() => Outcome::Looked(Nap::For(wait)),
            _ => Outcome::Pending(Nap::For(wait)),
        })
    }

    /// The outcome of a look that found the job declared differently.
    pub(super) async fn is_anothers(
        &mut self,
        session: &Session,
        context: &WorkerContext,
        (row, now): (&JobRow, Timestamp),
        mine: ((&str, &Job), &Tables),
    ) -> Result<Outcome, DatabaseError> {
        if self.lasting.declared_as.get().is_none() {
            let waiting = self.waits_to_declare(session, context, mine.0, row);
            return waiting.await;
        }
        self.stands_by(session, context, (row, now), mine).await
    }

    /// The outcome of a look whose declaration waits for the end of a run.
    async fn waits_to_declare(
        &mut self,
        session: &Session,
        context: &WorkerContext,
        (name, job): (&str, &Job),
        row: &JobRow,
    ) -> Result<Outcome, DatabaseError> {
        let now = Instant::now();
        let found = self.elsewhere.found(row, now);
        let mut why = "the job runs as another instance has declared it: this one declares it once that run is over".to_owned();
        let mut held = found;
        if found >= SAID_AFTER {
            let holder = row::holder(session, name).await?;
            held = self.elsewhere.held_by(holder, now);
            if let Some(pid) = holder {
                why += &format!(" (PID {pid})");
            }
        }
        let since = now.checked_sub(held).unwrap_or(now);
        let progress = context.progress();
        let is_overdue = held > job.longest_run();
        let state = if is_overdue {
            JobState::Overdue
        } else {
            JobState::Waiting
        };
        progress.job(state, since, Some(why.as_str().into()));
        progress.is_able();
        Ok(if is_overdue {
            Outcome::Held(why)
        } else {
            Outcome::Pending(Nap::For(ELSEWHERE))
        })
    }

    /// The outcome of a look that found the job declared by another instance, differently: this one stands by, or takes the job
    /// over if no instance runs it.
    async fn stands_by(
        &mut self,
        session: &Session,
        context: &WorkerContext,
        (row, now): (&JobRow, Timestamp),
        ((name, job), tables): ((&str, &Job), &Tables),
    ) -> Result<Outcome, DatabaseError> {
        self.learn(session, context, (name, job.history), (row, now))
            .await?;
        let theirs = declare::ask(session, tables, name).await?.declaration;
        let theirs = theirs.and_then(|text| declaration::schedule(&text, &row.declared));
        let schedule = theirs.as_ref().unwrap_or(&job.schedule);
        // Whichever of its missed ticks the other one runs.
        let due_for = due_for(row, now, schedule, Missed::Once);
        let is_deserted = due_for >= OVERDUE_AFTER && row::holder(session, name).await?.is_none();
        if !is_deserted {
            self.deserted = Elsewhere::default();
        } else if self.deserted.found(row, Instant::now()) >= DESERTED_FOR {
            // One that has just started with that declaration may not have been seen before.
            let due = schedule.newest(now);
            let mine = ((name, job), tables);
            if self
                .takes_over(session, context, (row, now), due, mine)
                .await?
            {
                return Ok(Outcome::Pending(Nap::AtOnce));
            }
        }
        let (worker, by) = (context.name(), OneLine(&row.declared_by));
        let mut why = format!(
            "the job is declared differently by {by}: this instance stands by, until no instance with that declaration is seen \
             and a tick is overdue. Give both the same configuration; to have the job done as this one has it: bgworker declare \
             {worker:?}"
        );
        let mut state = JobState::DeclaredDifferently;
        if is_deserted {
            let last = row.last_tick;
            why +=
                &format!(". No instance has run it since its tick {last}: is the other one gone?");
            state = JobState::Overdue;
        }
        let progress = context.progress();
        progress.job(state, Instant::now(), Some(why.as_str().into()));
        Ok(Outcome::Held(why))
    }

    /// Takes the job over, unless an instance with the declaration in force was seen of late, or is faster. `due` is the tick that
    /// was due by the schedule in force.
    async fn takes_over(
        &self,
        session: &Session,
        context: &WorkerContext,
        (row, now): (&JobRow, Timestamp),
        due: Option<Timestamp>,
        ((name, job), tables): ((&str, &Job), &Tables),
    ) -> Result<bool, DatabaseError> {
        if !tables.has_declarations || tables.instances.is_none() {
            return Ok(false);
        }
        let own = self.lasting.declared_as.get();
        let taking = Declaring {
            name,
            job,
            by: &surroundings::instance(own.map_or("", |own| own)),
            tables,
        };
        let due = due.filter(|_| job.is_of_another_schedule(&row.declared));
        let is_taken = taking.take_over(session, (row, now), due).await?;
        if is_taken {
            let (worker, by, last) = (context.name(), OneLine(&row.declared_by), row.last_tick);
            warn!(
                worker,
                "{worker}: takes over the job that {by} had declared differently, and that no instance has run since its \
                 tick {last}"
            );
        }
        Ok(is_taken)
    }

    /// The outcome of a look that found the last tick in the future.
    pub(super) fn is_ahead(&self, context: &WorkerContext, name: &str, row: &JobRow) -> Outcome {
        let why = format!(
            "its last tick, {}, is in the future: if the server's clock was wrong, UPDATE bgworker.job \
             SET last_tick = now(), last_done = least(last_done, now()) WHERE name = '{}'",
            row.last_tick,
            name.replace('\'', "''")
        );
        let (since, told) = (Instant::now(), Some(why.as_str().into()));
        context.progress().job(JobState::Overdue, since, told);
        Outcome::Held(why)
    }

    /// The outcome of a look that found another session to keep the job from being run.
    pub(super) async fn elsewhere(
        &mut self,
        session: &Session,
        run: &Run<'_>,
        context: &WorkerContext,
        (row, clock): (&JobRow, Timestamp),
    ) -> Result<Outcome, DatabaseError> {
        let (now, progress) = (Instant::now(), context.progress());
        // What it runs is in the history, though this instance never finds the job idle.
        self.learn(session, context, (run.name, run.job.history), (row, clock))
            .await?;
        let found = self.elsewhere.found(row, now);
        let since = now.checked_sub(found).unwrap_or(now);
        if found < SAID_AFTER {
            // Another instance runs it, most likely. Until it is done, what failed has not been made good.
            if self.report(context, row, clock) == JobState::Idle {
                progress.job(JobState::Waiting, since, None);
            }
            return Ok(Outcome::Pending(Nap::For(ELSEWHERE)));
        }
        let in_transaction = run.job.transaction.is_some();
        let holder = row::holder_of(session, run.name, in_transaction).await?;
        let why = has_it(holder, in_transaction);
        let held = self.elsewhere.held_by(holder, now);
        let since = now.checked_sub(held).unwrap_or(now);
        if held <= run.job.longest_run() {
            let why = format!("{why}: another instance runs the job, or a client holds it");
            progress.job(JobState::Waiting, since, Some(why.into()));
            return Ok(Outcome::Pending(Nap::For(ELSEWHERE)));
        }
        let why = format!("{why} for longer than a run may take: look for it in pg_stat_activity");
        progress.job(JobState::Overdue, since, Some(why.as_str().into()));
        Ok(Outcome::Held(why))
    }
}

/// This process's clock at a past time of the server's, which says now.
fn ago(time: Timestamp, now: Timestamp) -> Instant {
    let here = Instant::now();
    let age = now.duration_since(time);
    let age = Duration::try_from(age).unwrap_or_default();
    here.checked_sub(age).unwrap_or(here)
}

/// This process's clock at a time of the server's, past or to come.
pub(super) fn clock_at(time: Timestamp, now: Timestamp) -> Instant {
    let wait = Duration::try_from(time.duration_since(now)).unwrap_or_default();
    if wait.is_zero() {
        return ago(time, now);
    }
    let here = Instant::now();
    here.checked_add(wait).unwrap_or(here)
}
