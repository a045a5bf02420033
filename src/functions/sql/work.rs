//! The statements of a run, one by one within its time.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::failure::Failure;
use super::job::{Borrowed, Claimed};
use super::run::{CONFLICTS_MAX, Run};
use crate::database::{CANCELLED, Connection, DatabaseError, is_conflict, is_for_no_transaction};

/// How much later than the server bgworker gives up on a statement.
const SLACK: Duration = Duration::from_secs(1);

/// How much earlier the server may end a statement, whose time has whole milliseconds.
const PRECISION: Duration = Duration::from_millis(10);

/// Sets the time that is left to a run in a transaction, and again what ends the transaction if the instance freezes.
const BOUND: &str = "SELECT pg_catalog.set_config('statement_timeout', $1, true), \
    pg_catalog.set_config('idle_in_transaction_session_timeout', '10s', true)";

/// The same for a run outside of a transaction, which holds its session's lock.
const BOUND_OUTSIDE: &str = "SELECT pg_catalog.set_config('statement_timeout', $1, false), \
    pg_catalog.set_config('idle_session_timeout', '10s', false)";

// === impl Run ===

impl Run<'_> {
    /// Runs the statements, and then the constraints that they deferred; again if they conflicted with another
    /// transaction, unless they would find the same snapshot.
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
            let is_last = conflicts == CONFLICTS_MAX || self.settings.isolation.has_one_snapshot();
            if is_last || !failed.is_some_and(is_conflict) {
                return worked;
            }
            conflicts += 1;
            "ROLLBACK TO SAVEPOINT run".clone_into(&mut before);
        }
    }

    /// Runs the statements one by one, and returns the number of rows written. `then` is sent together with the last
    /// one. What the server says meanwhile is logged under the worker's name.
    pub(super) async fn work(
        &self,
        connection: &Connection,
        then: Option<&str>,
    ) -> Result<u64, Failure> {
        connection.log_notices_of(Some(self.name));
        let worked = self.work_one_by_one(connection, then).await;
        connection.log_notices_of(None);
        worked
    }

    async fn work_one_by_one(
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
                        let bound = if self.settings.transaction {
                            BOUND
                        } else {
                            BOUND_OUTSIDE
                        };
                        let left = left.as_millis().max(1).to_string();
                        let parameters: [Borrowed<'_>; 1] = [(&left, Type::TEXT)];
                        let bounding = connection.query("bound the run", bound, &parameters);
                        bounding.await.map(drop)
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
            let rows = ran.map_err(|error| self.failure(index, error, begin.elapsed()))?;
            followed.map_err(|error| {
                let hint = self.time_is_over(&error, begin.elapsed());
                let mut failure = Failure::of(error);
                failure.why += &hint;
                failure
            })?;
            if statement.writes_rows() {
                written = written.saturating_add(rows);
            }
        }
        Ok(written)
    }

    /// What there is to say of a statement that was cancelled because the time of its run was over.
    fn time_is_over(&self, error: &DatabaseError, took: Duration) -> String {
        let timeout = self.settings.timeout;
        let is_over = took + PRECISION >= timeout && error.sqlstate() == Some(CANCELLED);
        if !is_over {
            return String::new();
        }
        let timeout = humantime::format_duration(timeout);
        format!(": the job's \"timeout\" of {timeout} was over")
    }

    /// Says which statement failed after this time of the run, and why.
    fn failure(&self, index: usize, error: DatabaseError, took: Duration) -> Failure {
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
                if statement.sets() {
                    ": set the key \"isolation\" instead"
                } else {
                    ": set \"transaction = false\""
                }
            }
            _ => "",
        };
        let over = self.time_is_over(&error, took);
        Failure {
            why: format!("statement {number} ({place}): {error}{hint}{over}"),
            ran_over: matches!(error, DatabaseError::StatementDeadline { .. }),
            error: Some(error),
        }
    }
}
