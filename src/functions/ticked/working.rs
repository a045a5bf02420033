//! The work of a run: begun, kept within its time, and done again if it conflicted with another transaction.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use jiff::Timestamp;

use super::due::attempts;
use super::failure::Failure;
use super::row::{Claimed, JobRow};
use super::run::{CONFLICTS_MAX, Run};
use super::work::Tick;
use crate::database::{Connection, is_conflict};

/// How much later than the work's time is over the run gives up on what it waits for.
const SLACK: Duration = Duration::from_secs(1);

/// How often the session of work that sends no statement is kept awake: the server ends it after ten seconds.
const AWAKE: Duration = Duration::from_secs(3);

/// Checks the constraints that the work has deferred, so that it fails before its mark.
const CHECK_CONSTRAINTS: &str = "SET CONSTRAINTS ALL IMMEDIATE";

/// What there is to say of a run whose time was over.
pub(in crate::functions) fn time_is_over(timeout: Duration) -> String {
    let timeout = humantime::format_duration(timeout);
    format!("the job's \"timeout\" of {timeout} was over")
}

/// Sends something now and then to a session that the server would end because its client seems frozen.
async fn keep_awake(connection: &Connection) -> Infallible {
    loop {
        tokio::time::sleep(AWAKE).await;
        if !connection.is_at_work() {
            // The work's next statement fails as this one does.
            let _ = connection.batch_execute("keep the session awake", "").await;
        }
    }
}

// === impl Run ===

impl Run<'_> {
    /// Does the work, and then checks the constraints that it deferred; again if it conflicted with another transaction,
    /// unless it would find the same snapshot.
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
                self.work(connection, &claimed.row, tick, Some(CHECK_CONSTRAINTS))
            );
            begun.map_err(Failure::of)?;
            let failed = worked.as_ref().err().and_then(Failure::sqlstate);
            let is_last = conflicts == CONFLICTS_MAX || self.job.has_one_snapshot();
            if is_last || !failed.is_some_and(is_conflict) {
                return worked;
            }
            conflicts += 1;
            "ROLLBACK TO SAVEPOINT run".clone_into(&mut before);
        }
    }

    /// Does the work, and returns the number of rows written. What the server says meanwhile is logged under the worker's
    /// name.
    pub(super) async fn work(
        &self,
        connection: &Connection,
        row: &JobRow,
        tick: Timestamp,
        then: Option<&'static str>,
    ) -> Result<u64, Failure> {
        let at = Tick {
            name: self.name,
            tick,
            previous: row.last_done,
            attempt: attempts(row, tick, self.job.missed) + 1,
            in_transaction: self.job.transaction.is_some(),
            timeout: self.job.timeout,
            connection,
            latch: self.latch,
            then: Cell::new(then),
        };
        connection.log_notices_of(Some(self.name));
        let worked = if self.job.ends_in_time {
            self.job.work.run(&at).await
        } else {
            self.work_in_time(&at).await
        };
        connection.log_notices_of(None);
        worked
    }

    /// Does work that may take longer than it is allowed to.
    async fn work_in_time(&self, at: &Tick<'_>) -> Result<u64, Failure> {
        let Tick {
            connection,
            timeout,
            ..
        } = *at;
        let worked = tokio::select! {
            biased;
            worked = self.job.work.run(at) => worked,
            () = tokio::time::sleep(timeout) => {
                if connection.is_at_work() {
                    connection.cancel_token().cancel().await;
                }
                Err(Failure::without_error(time_is_over(timeout)))
            }
            never = keep_awake(connection) => match never {},
        };
        let rows = worked?;
        if let Some(then) = at.then.take() {
            let ending = connection.execute_within("end the run", then, timeout + SLACK);
            ending.await.map_err(Failure::of)?;
        }
        Ok(rows)
    }
}
