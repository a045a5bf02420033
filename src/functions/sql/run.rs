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

use super::due::{Due, attempts, done_with, due};
use super::job::{self, Claimed, Look};
use super::mark::{self, Mark};
use super::settings::{Job, Settings};
use crate::context::{Progress, RunUnderWay, WorkerContext};
use crate::database::{
    Connection, Database, DatabaseError, ErrorClass, JobConnection, is_conflict,
    is_for_no_transaction,
};
use crate::functions::beside::Beside;
use crate::functions::quote::literal;
use crate::functions::session::ConnectionKind;
use crate::latch::Latch;

/// How often statements that conflicted with another transaction are run again at once.
const CONFLICTS_MAX: u32 = 3;

/// How much later than the server bgworker gives up on a statement.
const SLACK: Duration = Duration::from_secs(1);

/// Undoes what a statement may have left in a session that a pooler hands to other clients after the commit.
pub(super) const RESET: &str = "RESET ROLE; RESET SESSION AUTHORIZATION; RESET ALL; CLOSE ALL; UNLISTEN *; \
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";

/// One run.
pub(super) struct Run<'r> {
    pub(super) name: &'r str,
    /// The latch that requests the end of the run.
    pub(super) latch: &'r Latch,
    pub(super) database: &'r Database,
    pub(super) settings: &'r Settings,
    pub(super) job: &'r Job,
    pub(super) beside: &'r Beside,
    /// What the tables were when they were looked at.
    pub(super) seal: &'r str,
    /// `true` for a run beside the schedule, which does not change which ticks are done.
    pub(super) is_once: bool,
    /// What the worker reports, and whether a tick has been begun.
    pub(super) progress: &'r Progress,
    pub(super) begun: Cell<bool>,
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
        after: Look,
    },
    /// Its effects could not be marked, for this reason, and may be committed: it must not be run again at once.
    Unmarked(&'static str),
    /// Another session has or had the tick, or it is no longer due. Nothing was done.
    Elsewhere,
    /// The tables of jobs are no longer as they were when they were looked at. Nothing was marked.
    Changed,
    /// All connections for jobs are in use. Nothing was done.
    Crowded,
    /// The worker must stop, and the tick is still due.
    Interrupted,
}

/// Why the statements did not complete.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) why: String,
    /// The error behind it, if there is one.
    pub(super) error: Option<DatabaseError>,
}

/// SQL that keeps or undoes what the statements did, and resets the session.
pub(super) fn end(worked: &Result<u64, Failure>) -> String {
    let settled = match worked {
        Ok(_) => "RELEASE SAVEPOINT run",
        Err(_) => "ROLLBACK TO SAVEPOINT run; RELEASE SAVEPOINT run",
    };
    format!("{settled}; {RESET}")
}

// === impl Run ===

impl<'r> Run<'r> {
    /// A run of a worker's job. `None` if the worker has no database.
    pub(super) fn of(
        context: &'r WorkerContext,
        settings: &'r Settings,
        job: &'r Job,
        beside: &'r Beside,
        seal: &'r str,
    ) -> Option<Self> {
        Some(Self {
            name: context.name(),
            latch: context.latch(),
            database: context.database()?,
            settings,
            job,
            beside,
            seal,
            is_once: false,
            progress: context.progress(),
            begun: Cell::new(false),
        })
    }

    /// `true` if a tick has been begun: what was due could be claimed.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Reports that a run begins, until what is returned is dropped.
    pub(super) fn begin_run(&self) -> RunUnderWay<'r> {
        self.begun.set(true);
        self.progress.begin_run(self.settings.longest_run())
    }

    /// Runs the tick that is due, if this instance gets it.
    pub(super) async fn run(&self, tick: Timestamp) -> Result<Ran, DatabaseError> {
        let Some(job_connection) = self.job_connection().await? else {
            return Ok(Ran::Crowded);
        };
        let connection = job_connection.connection();
        let at_work = self.beside.begin(connection.cancel_token());
        let ran = if self.settings.transaction {
            self.claim_and_run(connection, tick).await
        } else {
            self.run_outside(connection).await
        };
        drop(at_work);
        match ran {
            // No transaction is in progress, and the session was reset.
            Ok(Ran::Done { .. } | Ran::Elsewhere) if self.settings.transaction => {
                job_connection.keep().await;
            }
            _ => job_connection.close().await,
        }
        ran
    }

    /// Waits for the job's turn, and returns a connection to run on. `None` if the turn does not come.
    pub(super) async fn job_connection(&self) -> Result<Option<JobConnection<'_>>, DatabaseError> {
        let dbname = self.settings.database.as_deref();
        let counts = self.settings.connection == ConnectionKind::Home;
        self.database
            .job_connection(self.name, dbname, counts)
            .await
    }

    /// SQL that begins the transaction of a run. The server ends the transaction if the instance freezes.
    pub(super) fn begin(&self, access: &str) -> String {
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED {access}; SET LOCAL application_name = {}; \
             SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL statement_timeout = {}",
            literal(self.name),
            self.settings.timeout.as_millis()
        )
    }

    async fn claim_and_run(
        &self,
        connection: &Connection,
        tick: Timestamp,
    ) -> Result<Ran, DatabaseError> {
        let declared = self.job.declared.as_str();
        let begin = self.begin("READ WRITE");
        // Both are sent at once.
        let (begun, claimed) = tokio::join!(
            connection.batch_execute("begin", &begin),
            job::claim(connection, self.name, declared, tick)
        );
        begun?;
        if let Some(claimed) = claimed? {
            if !self.are_as_looked_at(&claimed) {
                return Ok(Ran::Changed);
            }
            // The row may have moved on since it was looked at.
            let (schedule, missed) = (&self.job.schedule, self.settings.missed);
            if let Due::Now(tick) = due(&claimed.row, claimed.now, schedule, missed) {
                return self.run_claimed(connection, &claimed, tick).await;
            }
        }
        connection
            .batch_execute("leave the tick", "ROLLBACK")
            .await?;
        Ok(Ran::Elsewhere)
    }

    /// `true` if the tables of jobs are as they were when they were looked at: a mark runs no code but bgworker's.
    pub(super) fn are_as_looked_at(&self, claimed: &Claimed) -> bool {
        claimed.seal.as_deref() == Some(self.seal)
    }

    pub(super) async fn run_claimed(
        &self,
        connection: &Connection,
        claimed: &Claimed,
        tick: Timestamp,
    ) -> Result<Ran, DatabaseError> {
        let _under_way = self.begin_run();
        let worked = self.work_through_conflicts(connection, claimed, tick).await;
        let worked = match self.unless_cut_short(worked) {
            ControlFlow::Continue(worked) => worked,
            ControlFlow::Break(end) => return end,
        };
        let end = end(&worked);
        // Sent together with the mark and COMMIT.
        let (ended, ran) = tokio::join!(
            connection.batch_execute("end the run", &end),
            self.settle(connection, claimed, tick, worked)
        );
        match ran {
            Ok(Ran::Unmarked(_)) => ran,
            _ => ended.and(ran),
        }
    }

    /// Passes on the result of the statements, unless a stop was requested and cancelled them, or the connection is
    /// gone: then there is nothing to mark.
    pub(super) fn unless_cut_short(
        &self,
        worked: Result<u64, Failure>,
    ) -> ControlFlow<Result<Ran, DatabaseError>, Result<u64, Failure>> {
        match worked {
            Err(Failure {
                error: Some(error),
                why,
            }) => match error.class() {
                ErrorClass::Away => ControlFlow::Break(Err(error)),
                ErrorClass::Cancelled if self.latch.is_stop_requested() => {
                    ControlFlow::Break(Ok(Ran::Interrupted))
                }
                _ => ControlFlow::Continue(Err(Failure {
                    why,
                    error: Some(error),
                })),
            },
            worked => ControlFlow::Continue(worked),
        }
    }

    /// Marks what became of a run, and commits: both are sent at once. If the mark fails, COMMIT rolls back.
    pub(super) async fn settle(
        &self,
        connection: &Connection,
        claimed: &Claimed,
        tick: Timestamp,
        worked: Result<u64, Failure>,
    ) -> Result<Ran, DatabaseError> {
        let took = claimed.at.elapsed();
        let ended = claimed.now.checked_add(took).unwrap_or(claimed.now);
        let mark = self.mark(claimed, tick, (took, ended), worked.as_ref());
        let history = self.settings.history;
        let (marked, committed) = tokio::join!(
            mark::mark(connection, self.name, &claimed.transaction, history, &mark),
            connection.batch_execute("commit the run", "COMMIT")
        );
        if marked.as_ref().is_err_and(mark::is_unclaimed) {
            let why = "a statement ended the transaction that claims the tick: what it committed may be done again";
            return Ok(Ran::Unmarked(why));
        }
        marked.and(committed)?;
        let after = mark.look_after(&claimed.row, ended);
        Ok(match worked {
            Ok(rows) => Ran::Done { rows, took, after },
            Err(Failure { why, .. }) => Ran::Failed {
                why,
                is_given_up: mark.attempt == 0,
                after,
            },
        })
    }

    /// The mark of a run.
    fn mark(
        &self,
        claimed: &Claimed,
        tick: Timestamp,
        (took, ended): (Duration, Timestamp),
        worked: Result<&u64, &Failure>,
    ) -> Mark {
        let row = &claimed.row;
        let number = attempts(row, tick, self.settings.missed) + 1;
        let retry_in = worked.err().and_then(|_| self.settings.retry_in(number));
        let is_over = retry_in.is_none();
        let done = done_with(tick, ended, &self.job.schedule, self.settings.missed);
        Mark {
            last_tick: if is_over { done } else { row.last_tick },
            last_done: if worked.is_ok() { tick } else { row.last_done },
            attempt: if is_over { 0 } else { number },
            retry_in,
            tick,
            took,
            outcome: match (worked.is_ok(), is_over) {
                _ if self.is_once => mark::ONCE,
                (true, _) => "done",
                (false, true) => "given up",
                (false, false) => "failed",
            },
            number,
            rows: worked.ok().copied(),
            sqlstate: worked
                .err()
                .and_then(|failure| failure.error.as_ref()?.sqlstate().map(str::to_owned)),
            message: worked.err().map(|failure| failure.why.clone()),
        }
    }

    /// Runs the statements, and then the constraints that they deferred; again if they conflicted with another
    /// transaction.
    pub(super) async fn work_through_conflicts(
        &self,
        connection: &Connection,
        claimed: &Claimed,
        tick: Timestamp,
    ) -> Result<u64, Failure> {
        // The tick is set before the savepoint, so that going back to the savepoint keeps it.
        let mut before = format!(
            "SELECT pg_catalog.set_config('bgworker.tick', '{tick}', true), \
             pg_catalog.set_config('bgworker.previous_tick', '{}', true); SAVEPOINT run",
            claimed.row.last_done
        );
        let mut conflicts = 0;
        loop {
            // Sent together with the first statement.
            let (begun, worked) = tokio::join!(
                connection.batch_execute("begin the run", &before),
                self.work(connection, Some("SET CONSTRAINTS ALL IMMEDIATE"))
            );
            begun.map_err(Failure::of)?;
            let failed = worked.as_ref().err().and_then(Failure::sqlstate);
            if conflicts == CONFLICTS_MAX || !failed.is_some_and(is_conflict) {
                return worked;
            }
            conflicts += 1;
            "ROLLBACK TO SAVEPOINT run".clone_into(&mut before);
        }
    }

    /// Runs the statements one by one, and returns the number of rows written. `then` is sent together with the last
    /// one.
    pub(super) async fn work(
        &self,
        connection: &Connection,
        then: Option<&str>,
    ) -> Result<u64, Failure> {
        let begin = Instant::now();
        let mut written = 0_u64;
        let last = self.job.statements.len().saturating_sub(1);
        for (index, statement) in self.job.statements.iter().enumerate() {
            // The first statement has the whole timeout, which is already set.
            let left = self.settings.timeout.saturating_sub(begin.elapsed());
            let shorten = async {
                match index {
                    0 => Ok(()),
                    _ => {
                        let local = if self.settings.transaction {
                            "LOCAL"
                        } else {
                            ""
                        };
                        let left = left.as_millis().max(1);
                        let set = format!("SET {local} statement_timeout = {left}");
                        connection.batch_execute("bound the run", &set).await
                    }
                }
            };
            let deadline = left + SLACK;
            let running = connection.execute_within("run the job", &statement.sql, deadline);
            let following = async {
                match then.filter(|_| index == last) {
                    // It may have to wait for the statement as well.
                    Some(then) => {
                        let deadline = 2 * deadline;
                        let following = connection.execute_within("end the run", then, deadline);
                        following.await.map(drop)
                    }
                    None => Ok(()),
                }
            };
            let (shortened, ran, followed) = tokio::join!(shorten, running, following);
            shortened.map_err(Failure::of)?;
            let rows = ran.map_err(|error| self.failure(index, error))?;
            followed.map_err(Failure::of)?;
            if statement.writes_rows() {
                written = written.saturating_add(rows);
            }
        }
        Ok(written)
    }

    /// Says which statement failed, and why.
    fn failure(&self, index: usize, error: DatabaseError) -> Failure {
        let (number, statement) = (index + 1, &self.job.statements[index]);
        let place = match error.position() {
            Some(character) => {
                let (line, character) = statement.place(character);
                format!("line {line}, character {character}")
            }
            None => format!("line {}", statement.line),
        };
        let hint = match error.sqlstate() {
            Some(code) if self.settings.transaction && is_for_no_transaction(code) => {
                ": set \"transaction = false\""
            }
            _ => "",
        };
        Failure {
            why: format!("statement {number} ({place}): {error}{hint}"),
            error: Some(error),
        }
    }
}

// === impl Failure ===

impl Failure {
    fn of(error: DatabaseError) -> Self {
        Self {
            why: error.to_string(),
            error: Some(error),
        }
    }

    pub(super) fn sqlstate(&self) -> Option<&str> {
        self.error.as_ref()?.sqlstate()
    }
}
