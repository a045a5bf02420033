//! Reports the state of a job that this instance does not run now, and what follows for the cycle.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Scheduled;
use crate::context::{JobState, WorkerContext};
use crate::database::{DatabaseError, OneLine};
use crate::functions::runner::{Nap, Outcome};
use crate::functions::session::Session;
use crate::functions::ticked::due::{OVERDUE_AFTER, due_for};
use crate::functions::ticked::elsewhere::{ELSEWHERE, Elsewhere, SAID_AFTER, has_it};
use crate::functions::ticked::job::{Job, Missed};
use crate::functions::ticked::past::{self, ASK_EVERY};
use crate::functions::ticked::row::{self, JobRow};
use crate::functions::ticked::run::Run;
use crate::schedule::Timestamp;

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
        Ok(match self.report(context, row, now) {
            JobState::Idle if self.lasting.past().is_made_good() => Outcome::Looked(Nap::For(wait)),
            _ => Outcome::Pending(Nap::For(wait)),
        })
    }

    /// The outcome of a look that found the job declared by another instance, differently.
    pub(super) async fn stands_by(
        &self,
        session: &Session,
        context: &WorkerContext,
        kept: (&str, u32),
        (row, now): (&JobRow, Timestamp),
        job: &Job,
    ) -> Result<Outcome, DatabaseError> {
        self.learn(session, context, kept, (row, now)).await?;
        let by = OneLine(&row.declared_by);
        let mut why = format!(
            "the job is declared differently by {by}: this instance stands by. Give both the same configuration, or \
             restart this one to declare it again: the last declaration wins"
        );
        // Whichever of its missed ticks the other one runs.
        let due_for = due_for(row, now, &job.schedule, Missed::Once);
        let state = if due_for >= OVERDUE_AFTER {
            let last = row.last_tick;
            why +=
                &format!(". No instance has run it since its tick {last}: is the other one gone?");
            JobState::Overdue
        } else {
            JobState::DeclaredDifferently
        };
        let progress = context.progress();
        progress.job(state, Instant::now(), Some(why.as_str().into()));
        Ok(Outcome::Held(why))
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
        let holder = row::holder(session, run.name, in_transaction).await?;
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
