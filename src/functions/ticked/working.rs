//! The work of a run: begun, kept within its time, and done again if it conflicted with another transaction.

use std::convert::Infallible;
use std::time::Duration;

use jiff::Timestamp;

use super::claim::{Claimed, set_ticks};
use super::due::attempts;
use super::failure::Failure;
use super::row::JobRow;
use super::run::{CONFLICTS_MAX, Run};
use super::work::Tick;
use crate::database::{CANCELLED, Connection, DatabaseError, is_conflict};

/// How often the session of work that sends no statement is kept awake: the server ends it after ten seconds.
const AWAKE: Duration = Duration::from_secs(3);

/// How much earlier the server may end a statement, whose time has whole milliseconds.
const PRECISION: Duration = Duration::from_millis(10);

/// What there is to say of a statement that was cancelled because the time of its run was over.
pub(in crate::functions) fn over(
    timeout: Duration,
    error: &DatabaseError,
    took: Duration,
) -> String {
    let is_over = took + PRECISION >= timeout && error.sqlstate() == Some(CANCELLED);
    if is_over {
        format!(": {}", time_is_over(timeout))
    } else {
        String::new()
    }
}

/// What there is to say of a run whose time was over.
fn time_is_over(timeout: Duration) -> String {
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
    /// Does the work, and then what ends it; again if it conflicted with another transaction, unless it would find the same
    /// snapshot.
    pub(super) async fn work_through_conflicts<T>(
        &self,
        connection: &Connection,
        claimed: &Claimed,
        tick: Timestamp,
        end: impl AsyncFn(u64) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        // The tick is set before the savepoint, so that going back to the savepoint keeps it.
        let ticks = [tick, claimed.row.last_done];
        let mut before = match claimed.ticks {
            None => set_ticks(ticks) + "; SAVEPOINT run",
            Some(set) if set == ticks => String::new(),
            // The row has moved on since it was looked at.
            Some(_) => format!("RELEASE SAVEPOINT run; {}; SAVEPOINT run", set_ticks(ticks)),
        };
        let mut conflicts = 0;
        loop {
            let begin = async {
                match &*before {
                    "" => Ok(()),
                    before => connection.batch_execute("begin the run", before).await,
                }
            };
            // Sent together with the first statement.
            let (begun, worked) = tokio::join!(begin, self.work(connection, &claimed.row, tick));
            begun.map_err(Failure::of)?;
            let ended = match worked {
                Ok(rows) => end(rows).await,
                Err(failure) => Err(failure),
            };
            let failed = ended.as_ref().err().and_then(Failure::sqlstate);
            let is_last = conflicts == CONFLICTS_MAX || self.job.has_one_snapshot();
            if is_last || !failed.is_some_and(is_conflict) {
                return ended;
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
        tokio::select! {
            biased;
            worked = self.job.work.run(at) => worked,
            () = tokio::time::sleep(timeout) => {
                if connection.is_at_work() {
                    connection.cancel_token().cancel().await;
                }
                Err(Failure::without_error(time_is_over(timeout)))
            }
            never = keep_awake(connection) => match never {},
        }
    }
}
