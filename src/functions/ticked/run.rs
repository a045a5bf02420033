//! One run of one tick, on a connection that it does not share: claim, work, mark, commit.
//!
//! The claim locks the row of the job, and the transaction that holds the lock makes the mark. So a run leaves its
//! effects and its mark, or neither. A failure is undone to a savepoint and marked in the same transaction, so that no
//! other instance can take the tick between the failure and its mark. Only a statement that ends the transaction could
//! break this: such statements are refused before they run, and the mark detects any that got through by comparing
//! transaction IDs.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::CROWDED;
use super::claim::{self, Claimed};
use super::due::{Due, OVERDUE_AFTER, due};
use super::failure::{Failure, Lost};
use super::job::Job;
use super::locker::{OwnClaim, was_undone};
use super::mark::{self, Mark};
use super::row::{JobRow, Look};
use super::settle::{Times, Worked, settle, settle_once};
use super::tables::{self, Tables};
use crate::context::{JobState, Progress, RunUnderWay, WorkerContext};
use crate::database::{
    BrokeOff, Connection, Database, DatabaseError, ErrorClass, JobConnection, in_full, is_conflict,
    is_of_prepared, is_stale,
};
use crate::functions::beside::Beside;
use crate::functions::quote::literal;
use crate::functions::session::ConnectionKind;
use crate::latch::Latch;

/// How often work that conflicted with another transaction is done again at once.
pub(super) const CONFLICTS_MAX: u32 = 3;

/// The version of the server from which on it can end transactions that take too long, however busy they are.
pub(super) const HAS_TRANSACTION_TIMEOUT: u32 = 17;

/// One run.
pub(super) struct Run<'r> {
    pub(super) name: &'r str,
    /// The latch that requests the end of the run.
    pub(super) latch: &'r Latch,
    pub(super) database: &'r Database,
    pub(super) job: &'r Job,
    pub(super) beside: &'r Beside,
    /// What the tables were when they were looked at.
    pub(super) tables: &'r Tables,
    /// `true` for a run beside the schedule, which does not change which ticks are done.
    pub(super) is_once: bool,
    /// What the worker reports, and whether a tick has been begun.
    pub(super) progress: &'r Progress,
    pub(super) begun: Cell<bool>,
    /// A statement of the job deallocates what is prepared, so that nothing is.
    pub(super) deallocates: Cell<bool>,
    /// Nothing is left in the session but what a run prepares.
    pub(super) is_clean: Cell<bool>,
    /// The last claim of this instance, if it claims ticks on a schedule.
    pub(super) own: Option<&'r OwnClaim>,
    /// Why this instance lost the run before, outside of a transaction, if it knows that.
    pub(super) interrupted_by: Option<&'r str>,
    /// A claim of another session was undone, and no record of it is to be expected any longer.
    pub(super) is_over: bool,
}

/// What became of a run.
#[derive(Debug)]
pub(super) enum Ran {
    /// The tick is done.
    Done {
        rows: u64,
        took: Duration,
        after: Look,
    },
    /// Its statements failed, and the failure is marked. There may be another attempt.
    Failed {
        why: String,
        is_given_up: bool,
        /// The log has a line of it already.
        is_told: bool,
        after: Look,
    },
    /// Its effects could not be marked, for this reason, and may be committed: it must not be run again at once.
    Unmarked(&'static str),
    /// The session ended before the run was marked: what became of it is to be recorded.
    Lost(Box<Lost>),
    /// It conflicted with another transaction, and needs a new snapshot to be run again.
    Conflicted(Box<Lost>),
    /// Another session has or had the tick, or it is no longer due. Nothing was done.
    Elsewhere,
    /// A claim of another session was undone, and its instance may still record that. Nothing was done.
    Unrecorded,
    /// The tables of jobs are no longer as they were when they were looked at. Nothing was marked.
    Changed,
    /// The worker must stop, and the tick is still due. If the session ended by itself meanwhile, this says why.
    Interrupted(Option<String>),
}

/// SQL that bounds a transaction: the server ends it if the instance freezes, and, whatever its own setting, not because
/// it takes long.
pub(super) fn bounds(connection: &Connection) -> &'static str {
    if connection.server_version() >= Some(HAS_TRANSACTION_TIMEOUT) {
        "SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL transaction_timeout = 0"
    } else {
        "SET LOCAL idle_in_transaction_session_timeout = '10s'"
    }
}

// === impl Run ===

impl<'r> Run<'r> {
    /// A run of a worker's job, which has this name in the database. `None` if the worker has no database.
    pub(super) fn of(
        context: &'r WorkerContext,
        (name, job): (&'r str, &'r Job),
        beside: &'r Beside,
        tables: &'r Tables,
    ) -> Option<Self> {
        Some(Self {
            name,
            latch: context.latch(),
            database: context.database()?,
            job,
            beside,
            tables,
            is_once: false,
            progress: context.progress(),
            begun: Cell::new(false),
            deallocates: Cell::new(false),
            is_clean: Cell::new(true),
            own: None,
            interrupted_by: None,
            is_over: false,
        })
    }

    /// `true` if a tick has been begun: what was due could be claimed.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Reports that a run begins, until what is returned is dropped.
    pub(super) fn begin_run(&self) -> RunUnderWay<'r> {
        self.begun.set(true);
        self.progress.begin_run(self.job.longest_run())
    }

    /// Runs the tick that is due, if this instance gets it; the tick before it was the last one that was done.
    pub(super) async fn run(&self, ticks: [Timestamp; 2]) -> Result<Ran, DatabaseError> {
        let job_connection = self.job_connection().await?;
        let connection = job_connection.connection();
        let at_work = self.beside.begin(connection.cancel_token());
        let in_transaction = self.job.transaction.is_some();
        let mut ran = if in_transaction {
            self.claim_and_run(connection, ticks).await
        } else {
            self.run_outside(connection).await
        };
        drop(at_work);
        if let Ok(Ran::Lost(lost)) = &mut ran {
            lost.life = job_connection.server_life().cloned();
        }
        match ran {
            // No transaction is in progress, and the session was reset.
            Ok(Ran::Done { .. } | Ran::Elsewhere) if in_transaction && self.is_clean.get() => {
                job_connection.keep().await;
            }
            _ => job_connection.close().await,
        }
        ran
    }

    /// Waits for the job's turn, and returns a connection to run on.
    pub(super) async fn job_connection(&self) -> Result<JobConnection<'_>, DatabaseError> {
        let dbname = self.job.database.as_deref();
        let counts = self.job.connection == ConnectionKind::Home;
        let begin = Instant::now();
        let waits = |place| self.reports_wait(begin, place);
        self.database
            .job_connection(self.name, dbname, counts, waits)
            .await
    }

    /// Reports that the run waits for a connection, which is nothing that this instance is unable to do.
    fn reports_wait(&self, begin: Instant, place: usize) {
        let is_overdue = begin.elapsed() > self.job.timeout.max(OVERDUE_AFTER);
        let state = if is_overdue {
            JobState::Overdue
        } else {
            JobState::Waiting
        };
        let why = format!("waits for a connection, place {place} in the queue: {CROWDED}");
        self.progress.job(state, begin, Some(why.into()));
        self.progress.is_able();
    }

    /// SQL that begins the transaction of a run. Whether it may write is the database's to say: one that was made
    /// read-only is not written to.
    pub(super) fn begin(&self, connection: &Connection) -> String {
        let isolation = self.job.transaction.unwrap_or_default();
        format!(
            "BEGIN ISOLATION LEVEL {}; SET LOCAL application_name = {}; {}; \
             SET LOCAL statement_timeout = {}",
            isolation.sql(),
            literal(self.name),
            bounds(connection),
            self.job.timeout.as_millis()
        )
    }

    /// The same for a run that is marked in its transaction.
    pub(super) fn begin_writing(&self, connection: &Connection) -> String {
        format!("{}; {}", self.begin(connection), tables::LOCK)
    }

    /// `true` if the session is the run's alone, and not one that a pooler hands out for each transaction.
    pub(super) fn has_session(&self) -> bool {
        self.database.sessions_are_ours()
    }

    /// SQL that runs a statement which each run calls: by its name if it is prepared, and no statement of the job deallocates it.
    pub(super) fn call(
        &self,
        connection: &Connection,
        statement: &str,
        arguments: &[String],
    ) -> String {
        if self.deallocates.get() {
            in_full(statement, arguments)
        } else {
            connection.call(statement, arguments)
        }
    }

    /// Prepares what this run calls, unless an earlier one on its connection has.
    async fn prepare(&self, connection: &Connection) -> Result<(), DatabaseError> {
        if self.deallocates.get() {
            return Ok(());
        }
        let mark = mark::in_transaction(self.tables.has_declarations);
        let calls = [claim::CLAIM.as_str(), mark];
        connection.prepare_once("prepare the run", &calls).await
    }

    /// Claims the tick and runs it; again if it conflicts with another transaction and needs a new snapshot. The last of
    /// these conflicts is a failure, to be recorded like a lost run, since its transaction can no longer be committed.
    async fn claim_and_run(
        &self,
        connection: &Connection,
        ticks: [Timestamp; 2],
    ) -> Result<Ran, DatabaseError> {
        let mut conflicts = 0;
        loop {
            let lost = match self.claim_and_run_once(connection, ticks).await {
                Ok(Ran::Conflicted(lost)) => Some(lost),
                // A statement has deallocated what the run calls, or prepared something else under its name.
                Err(error)
                    if error.sqlstate().is_some_and(is_of_prepared)
                        && !self.deallocates.replace(true) =>
                {
                    None
                }
                ran => return ran,
            };
            connection.batch_execute("undo the run", "ROLLBACK").await?;
            // That gives back no lock of the session, and deallocates nothing.
            self.is_clean.set(false);
            if self.latch.is_stop_requested() {
                return Ok(Ran::Interrupted(None));
            }
            if let Some(lost) = lost {
                if conflicts == CONFLICTS_MAX {
                    return Ok(Ran::Lost(lost));
                }
                conflicts += 1;
            }
        }
    }

    async fn claim_and_run_once(
        &self,
        connection: &Connection,
        ticks: [Timestamp; 2],
    ) -> Result<Ran, DatabaseError> {
        self.prepare(connection).await?;
        let begin = self.begin_writing(connection);
        let claiming = claim::claiming(self.name, &self.job.declared, ticks);
        let claim = self.call(connection, &claim::CLAIM, &claiming);
        let claiming = [&*begin, &*claim, "SAVEPOINT run"];
        let claiming = connection.batch("claim the tick", &claiming, Duration::ZERO);
        let claimed = match claiming.await {
            Ok(rows) => rows.iter().find_map(|row| claim::claimed(row, self.tables)),
            // Another session had it after the snapshot of this transaction.
            Err(BrokeOff { error, .. }) if error.sqlstate().is_some_and(is_stale) => None,
            Err(BrokeOff { error, .. }) => return Err(error),
        };
        let mut left = Ran::Elsewhere;
        if let Some(mut claimed) = claimed {
            claimed.ticks = Some(ticks);
            // The row may have moved on since it was looked at.
            let (schedule, missed) = (&self.job.schedule, self.job.missed);
            if !self.are_as_looked_at(&claimed) {
                left = Ran::Changed;
            } else if self.is_to_be_recorded(connection, &claimed).await? {
                // Undone as well, so that each other instance that claims the tick also finds that.
                connection
                    .batch_execute("leave the tick", "ROLLBACK")
                    .await?;
                return Ok(Ran::Unrecorded);
            } else if let Due::Now(tick) = due(&claimed.row, claimed.now, schedule, missed) {
                return self.run_claimed(connection, &claimed, tick).await;
            }
        }
        // A claim that is undone would be taken for a run that is still to be recorded.
        connection.batch_execute("leave the tick", "COMMIT").await?;
        Ok(left)
    }

    /// `true` if the row was claimed before by another session, which was undone and whose instance may still record that.
    async fn is_to_be_recorded(
        &self,
        connection: &Connection,
        claimed: &Claimed,
    ) -> Result<bool, DatabaseError> {
        let own = self.own.and_then(|own| own.replace(&claimed.transaction));
        match &claimed.locker {
            Some(locker) if !self.is_over && own.as_ref() != Some(locker) => {
                was_undone(connection, locker, &claimed.transaction).await
            }
            _ => Ok(false),
        }
    }

    /// `true` if the tables of jobs are as they were when they were looked at: a mark runs no code but bgworker's.
    pub(super) fn are_as_looked_at(&self, claimed: &Claimed) -> bool {
        claimed.seal.as_deref() == Some(&*self.tables.seal)
    }

    pub(super) async fn run_claimed(
        &self,
        connection: &Connection,
        claimed: &Claimed,
        tick: Timestamp,
    ) -> Result<Ran, DatabaseError> {
        let _under_way = self.begin_run();
        let whose = (claimed, tick);
        let end = async |rows| self.end(connection, whose, rows).await;
        let ended = self.work_through_conflicts(connection, claimed, tick, end);
        let ended = ended.await;
        if let Some(interrupted) = self.interrupted(&ended) {
            let leave = "ROLLBACK TO SAVEPOINT run; COMMIT";
            // If this fails, another instance waits for a record of the run for a while.
            let _ = connection.batch_execute("leave the tick", leave).await;
            return Ok(interrupted);
        }
        let lost = |failure| {
            Box::new(Lost {
                claimed: claimed.clone(),
                tick,
                took: claimed.at.elapsed(),
                failure,
                life: None,
                is_told: false,
            })
        };
        let (ran, failure) = match ended {
            Ok(ran) => (ran, None),
            Err(failure) if failure.is_away() => return Ok(Ran::Lost(lost(failure))),
            Err(failure) if self.needs_a_new_snapshot(failure.sqlstate()) => {
                return Ok(Ran::Conflicted(lost(failure)));
            }
            Err(failure) => {
                let worked = Err(failure);
                let ran = self.end_failed(connection, whose, &worked).await;
                (ran, worked.err())
            }
        };
        match ran {
            Err(error) if error.class() == ErrorClass::Away => {
                let failure = failure.unwrap_or_else(|| Failure::of(error));
                Ok(Ran::Lost(lost(failure)))
            }
            Err(error) if self.needs_a_new_snapshot(error.sqlstate()) => {
                Ok(Ran::Conflicted(lost(Failure::of(error))))
            }
            ran => ran,
        }
    }

    /// `true` for a conflict in a transaction that keeps its snapshot: to run the statements again in it is useless.
    fn needs_a_new_snapshot(&self, sqlstate: Option<&str>) -> bool {
        self.job.has_one_snapshot() && sqlstate.is_some_and(is_conflict)
    }

    /// What a run is if a stop was requested, and its statements were cancelled or their session ended.
    fn interrupted<T>(&self, worked: &Result<T, Failure>) -> Option<Ran> {
        let failure = worked.as_ref().err().filter(|why| why.is_cut_short())?;
        let ended = failure.is_away().then(|| failure.why.clone());
        (self.latch.is_stop_requested()).then_some(Ran::Interrupted(ended))
    }

    /// Passes on the result of the statements, unless a stop was requested and cancelled them, or the connection is
    /// gone: then there is nothing to mark.
    pub(super) fn unless_cut_short(
        &self,
        worked: Result<u64, Failure>,
    ) -> ControlFlow<Result<Ran, DatabaseError>, Result<u64, Failure>> {
        if let Some(interrupted) = self.interrupted(&worked) {
            return ControlFlow::Break(Ok(interrupted));
        }
        match worked {
            Err(failure) if failure.is_away() => match failure.error {
                Some(error) => ControlFlow::Break(Err(error)),
                None => ControlFlow::Continue(Err(failure)),
            },
            worked => ControlFlow::Continue(worked),
        }
    }

    /// What the run leaves of the row that it claimed.
    pub(super) fn settle(&self, row: &JobRow, times: Times, worked: Worked<'_>) -> Mark {
        if self.is_once {
            settle_once(row, times, worked)
        } else {
            settle(self.job, row, times, worked)
        }
    }
}
