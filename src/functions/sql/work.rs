//! The work of a job in SQL: its statements, one by one within the time of the run.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};

use super::statements::{InvalidStatements, Statement, check, split};
use crate::database::{Connection, DatabaseError, is_for_no_transaction};
use crate::functions::ticked::{Failure, Tick, Work, WorkFuture, over};

/// How much later than the server bgworker gives up on a statement.
const SLACK: Duration = Duration::from_secs(1);

/// Sets the time that is left to a run in a transaction, and again what ends the transaction if the instance freezes.
const BOUND: &str = "SELECT pg_catalog.set_config('statement_timeout', $1, true), \
    pg_catalog.set_config('idle_in_transaction_session_timeout', '10s', true)";

/// The same for a run outside of a transaction, which holds its session's lock.
const BOUND_OUTSIDE: &str = "SELECT pg_catalog.set_config('statement_timeout', $1, false), \
    pg_catalog.set_config('idle_session_timeout', '10s', false)";

/// What statements that count a window read.
const WINDOW: &str = "bgworker.previous_tick";

/// The statements of a job.
#[derive(Debug)]
pub(super) struct Statements(Box<[Statement]>);

/// Where statements run, and for how long at most.
#[derive(Clone, Copy)]
struct Bounds<'r> {
    connection: &'r Connection,
    in_transaction: bool,
    timeout: Duration,
}

// === impl Statements ===

impl Statements {
    /// The statements of a text, for a job that is one transaction or none.
    pub(super) fn of(sql: &str, in_transaction: bool) -> Result<Self, InvalidStatements> {
        let statements = split(sql)?;
        check(&statements, in_transaction)?;
        Ok(Self(statements.into()))
    }

    /// `true` if they read where the window of their tick begins.
    pub(super) fn have_windows(&self) -> bool {
        let mut statements = self.0.iter();
        statements.any(|statement| statement.sql.contains(WINDOW))
    }

    /// Runs them one by one, and returns the number of rows written.
    async fn run_within(&self, bounds: Bounds<'_>) -> Result<u64, Failure> {
        let Bounds {
            connection,
            timeout,
            ..
        } = bounds;
        let begin = Instant::now();
        let mut written = 0_u64;
        for (index, statement) in self.0.iter().enumerate() {
            // The first statement has the whole timeout, which is already set.
            let left = timeout.saturating_sub(begin.elapsed());
            let shorten = async {
                match index {
                    0 => Ok(()),
                    _ => bounds.shorten(left).await,
                }
            };
            let running = connection.execute_within("run the job", &statement.sql, left + SLACK);
            let (shortened, ran) = tokio::join!(shorten, running);
            shortened.map_err(Failure::of)?;
            let rows = ran.map_err(|error| self.failure(bounds, index, error, begin.elapsed()))?;
            if statement.writes_rows() {
                written = written.saturating_add(rows);
            }
        }
        Ok(written)
    }

    /// Says which statement failed after this time of the run, and why.
    fn failure(
        &self,
        bounds: Bounds<'_>,
        index: usize,
        error: DatabaseError,
        took: Duration,
    ) -> Failure {
        let (number, statement) = (index + 1, &self.0[index]);
        let place = match error.position() {
            Some(character) => {
                let (line, character) = statement.place(character);
                format!("line {line}, character {character}")
            }
            None => format!("line {}", statement.line),
        };
        let hint = match error.sqlstate() {
            Some(code) if bounds.in_transaction && is_for_no_transaction(code) => {
                if statement.sets() {
                    ": set the key \"isolation\" instead"
                } else {
                    ": set \"transaction = false\""
                }
            }
            _ => "",
        };
        let over = over(bounds.timeout, &error, took);
        let why = format!("statement {number} ({place}): {error}{hint}{over}");
        Failure::of_statement(why, error)
    }
}

impl Work for Statements {
    fn run<'r>(&'r self, tick: &'r Tick<'_>) -> WorkFuture<'r> {
        let bounds = Bounds {
            connection: tick.connection(),
            in_transaction: tick.is_in_transaction(),
            timeout: tick.timeout(),
        };
        Box::pin(self.run_within(bounds))
    }
}

// === impl Bounds ===

impl Bounds<'_> {
    /// Has the server cancel the next statement after this time.
    async fn shorten(self, left: Duration) -> Result<(), DatabaseError> {
        let bound = if self.in_transaction {
            BOUND
        } else {
            BOUND_OUTSIDE
        };
        let left = left.as_millis().max(1).to_string();
        let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&left, Type::TEXT)];
        let bounding = self.connection.query("bound the run", bound, &parameters);
        bounding.await.map(drop)
    }
}
