//! The end of a run: what its work did is kept or undone, its session is reset, and the run is marked and committed.
//!
//! All of it is sent at once. The mark comes last before the commit, and fails in a transaction that did not claim the tick.

use std::time::Duration;

use jiff::Timestamp;

use super::claim::Claimed;
use super::failure::Failure;
use super::mark::{self, LEAVE, Mark, RunOutcome};
use super::run::{Ran, Run, bounds};
use super::settle::{Times, Worked};
use super::working::over;
use crate::database::{BrokeOff, Connection, DatabaseError, in_full, is_of_savepoint};

/// Checks the constraints that the work has deferred, so that it fails before its mark.
pub(super) const CHECK_CONSTRAINTS: &str = "SET CONSTRAINTS ALL IMMEDIATE";

/// Undoes what a statement may have left in a session that a pooler hands to other clients after the commit, but for locks and
/// what it has prepared.
const RESET: [&str; 7] = [
    "RESET ROLE",
    "RESET SESSION AUTHORIZATION",
    "RESET ALL",
    "CLOSE ALL",
    "UNLISTEN *",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
];

/// The names of what statements have prepared, which may stand beside what a pooler has prepared for its clients.
const PREPARED: &str = "SELECT pg_catalog.quote_ident(p.name) AS name FROM pg_catalog.pg_prepared_statements AS p \
    WHERE p.from_sql";

/// Why a run could not be marked.
const UNMARKED: &str = "the tick could not be marked where it was claimed: a statement ended that transaction, and what it \
    committed may be done again, or the tables of jobs were replaced";

/// The same outside of a transaction.
const UNMARKED_OUTSIDE: &str = "the run could not be marked: another instance has recorded it as interrupted, since a statement \
    gave its lock away, or an instance of an earlier version has declared the job differently meanwhile";

// === impl Run ===

impl Run<'_> {
    /// Keeps what the work did, and marks the run as done. A constraint that the work has deferred fails it as a statement of it
    /// does: then the transaction is still under way.
    pub(super) async fn end(
        &self,
        connection: &Connection,
        (claimed, tick): (&Claimed, Timestamp),
        rows: u64,
    ) -> Result<Result<Ran, DatabaseError>, Failure> {
        let (timeout, worked) = (self.job.timeout, Ok(rows));
        let keep = [CHECK_CONSTRAINTS, "RELEASE SAVEPOINT run"];
        let ending = self.leave_and_mark(connection, (&keep, timeout), claimed, tick, &worked);
        match ending.await {
            Ok(ran) => Ok(Ok(ran)),
            // Outside of a transaction, this only warns.
            Err(BrokeOff { done: 0, error }) => Err(self.of_constraint(claimed, error)),
            Err(broke_off) => Ok(unmarked(claimed, keep.len(), broke_off)),
        }
    }

    /// The failure of a constraint that the work has deferred.
    pub(super) fn of_constraint(&self, claimed: &Claimed, error: DatabaseError) -> Failure {
        let over = over(self.job.timeout, &error, claimed.at.elapsed());
        Failure::saying(format!("{error}{over}"), error)
    }

    /// Undoes what the work did, and marks that it failed.
    pub(super) async fn end_failed(
        &self,
        connection: &Connection,
        (claimed, tick): (&Claimed, Timestamp),
        worked: &Result<u64, Failure>,
    ) -> Result<Ran, DatabaseError> {
        let undo = ["ROLLBACK TO SAVEPOINT run", "RELEASE SAVEPOINT run"];
        let ending =
            self.leave_and_mark(connection, (&undo, Duration::ZERO), claimed, tick, worked);
        let ran = ending.await;
        ran.or_else(|broke_off| unmarked(claimed, undo.len(), broke_off))
    }

    /// Marks what became of a run in the transaction under way, and commits. The session stays as it is.
    pub(super) async fn mark(
        &self,
        connection: &Connection,
        claimed: &Claimed,
        tick: Timestamp,
        worked: &Result<u64, Failure>,
    ) -> Result<Ran, DatabaseError> {
        let (mark, ended) = self.settled(claimed, tick, worked);
        let (statement, arguments) = mark::mark(self.name, claimed, self.job.history, &mark);
        let marking = [&*in_full(&statement, &arguments), "COMMIT"];
        let marking = connection.batch("mark the tick", &marking, Duration::ZERO);
        match marking.await {
            Ok(_) => Ok(ran(&mark, ended, worked)),
            Err(broke_off) => unmarked(claimed, 0, broke_off),
        }
    }

    /// Keeps or undoes what the work did, by these statements, which may take this time longer than others; then resets the
    /// session, marks the run, and commits. Takes note if something is left in the session.
    async fn leave_and_mark(
        &self,
        connection: &Connection,
        (settle, time): (&[&str], Duration),
        claimed: &Claimed,
        tick: Timestamp,
        worked: &Result<u64, Failure>,
    ) -> Result<Ran, BrokeOff> {
        let (mark, ended) = self.settled(claimed, tick, worked);
        let (statement, arguments) = mark::mark(self.name, claimed, self.job.history, &mark);
        let marking = self.call(connection, &statement, &arguments);
        self.leave(connection, (settle, time), &marking).await?;
        Ok(ran(&mark, ended, worked))
    }

    /// Resets the session of a run that is not marked, and commits.
    pub(super) async fn leave_and_commit(
        &self,
        connection: &Connection,
    ) -> Result<(), DatabaseError> {
        let look = format!("SELECT {LEAVE}");
        let leaving = self.leave(connection, (&[], Duration::ZERO), &look);
        leaving.await.map_err(|broke_off| broke_off.error)
    }

    /// Settles what the work did, resets the session, runs a last statement, which says what is prepared, and commits. Takes note if
    /// something is left in the session. The transaction stays bounded.
    async fn leave(
        &self,
        connection: &Connection,
        (settle, time): (&[&str], Duration),
        last: &str,
    ) -> Result<(), BrokeOff> {
        let doing = "end the run";
        let leave = [settle, &RESET, &[bounds(connection)]].concat();
        let rows = if self.has_session() {
            let all = [&*leave, &[last, "COMMIT"]].concat();
            connection.batch(doing, &all, time).await?
        } else {
            let all = [&*leave, &[PREPARED]].concat();
            let rows = connection.batch(doing, &all, time).await?;
            let names = rows.iter().filter_map(|row| row.try_get("name").ok()?);
            let deallocate: String = names.map(|name| format!("DEALLOCATE {name};")).collect();
            let ending = [&*(deallocate + last), "COMMIT"];
            let ended = connection.batch(doing, &ending, Duration::ZERO).await;
            ended.map_err(|BrokeOff { done, error }| BrokeOff {
                done: leave.len() + done,
                error,
            })?
        };
        let prepared = rows.iter().find_map(|row| row.try_get("prepared").ok()?);
        let is_clean = prepared.is_some_and(|names| connection.has_prepared_only(names));
        self.is_clean.set(is_clean || !self.has_session());
        Ok(())
    }

    /// The mark of a run that ends now, and when that is.
    fn settled(
        &self,
        claimed: &Claimed,
        tick: Timestamp,
        worked: &Result<u64, Failure>,
    ) -> (Mark, Timestamp) {
        let took = claimed.at.elapsed();
        let ended = claimed.now.checked_add(took).unwrap_or(claimed.now);
        let times = Times { tick, took, ended };
        (self.settle(&claimed.row, times, Worked::of(worked)), ended)
    }
}

/// `true` for an error that says that the savepoint of the run is gone, and so the transaction in which it was claimed.
fn is_gone(error: &DatabaseError) -> bool {
    error.sqlstate().is_some_and(is_of_savepoint)
}

/// What a run is that could not be marked; the first statements, as many as this, settle what it did.
fn unmarked(claimed: &Claimed, settle: usize, why: BrokeOff) -> Result<Ran, DatabaseError> {
    let BrokeOff { done, error } = why;
    if mark::is_unclaimed(&error) || done < settle && is_gone(&error) {
        return Ok(Ran::Unmarked(match &claimed.running {
            Some(_) => UNMARKED_OUTSIDE,
            None => UNMARKED,
        }));
    }
    Err(error)
}

/// What became of a run that was marked.
fn ran(mark: &Mark, ended: Timestamp, worked: &Result<u64, Failure>) -> Ran {
    let after = mark.look_after(ended);
    match worked {
        Ok(rows) => Ran::Done {
            rows: *rows,
            took: mark.took,
            after,
        },
        Err(Failure { why, .. }) => Ran::Failed {
            why: why.clone(),
            is_given_up: mark.outcome == RunOutcome::GivenUp,
            is_told: false,
            after,
        },
    }
}
