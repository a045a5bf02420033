//! One run of one tick outside of a transaction, for statements that cannot run in one: VACUUM, CREATE INDEX
//! CONCURRENTLY, procedures that commit.
//!
//! The session that runs it holds an advisory lock on the name of the job, so that no two run at a time on one server.
//! The row says since when it runs. A session that has the lock and finds the job running knows that a run was
//! interrupted, which counts as an attempt: with one attempt a tick is run at most once, with more at least once.

use std::ops::ControlFlow;

use jiff::Timestamp;

use super::due::{Due, due};
use super::job::{self, Claimed};
use super::run::{Failure, Ran, Run};
use crate::database::{Connection, DatabaseError};

// === impl Run ===

impl Run<'_> {
    pub(super) async fn run_outside(&self, connection: &Connection) -> Result<Ran, DatabaseError> {
        let name = self.name;
        if !job::lock(connection, name).await? {
            return Ok(Ran::Elsewhere);
        }
        let looked = job::look_at_one(connection, name).await?;
        let Some((row, now)) = looked.filter(|(row, _)| row.declared == self.job.declared) else {
            return Ok(Ran::Elsewhere);
        };
        let due = due(&row, now, &self.job.schedule, self.settings.missed);
        let Due::Now(tick) = due else {
            return Ok(Ran::Elsewhere);
        };
        let claimed = Claimed::outside(row, now);
        if claimed.row.running_since.is_some() {
            let why = "interrupted: the instance or its server went away while it ran".to_owned();
            let failure = Failure { why, error: None };
            return self
                .mark_outside(connection, claimed, tick, Err(failure))
                .await;
        }
        job::begin_outside(connection, name).await?;
        self.work_outside(connection, claimed, tick).await
    }

    /// Runs the statements, and marks what became of them.
    pub(super) async fn work_outside(
        &self,
        connection: &Connection,
        claimed: Claimed,
        tick: Timestamp,
    ) -> Result<Ran, DatabaseError> {
        let settings = format!(
            "SET statement_timeout = {}; SELECT pg_catalog.set_config('bgworker.tick', '{tick}', false), \
             pg_catalog.set_config('bgworker.previous_tick', '{}', false)",
            self.settings.timeout.as_millis(),
            claimed.row.last_done
        );
        connection.batch_execute("begin the run", &settings).await?;
        let worked = self.work(connection, None).await;
        // One that is cut short was interrupted, and the row says so.
        let worked = match self.unless_cut_short(worked) {
            ControlFlow::Continue(worked) => worked,
            ControlFlow::Break(end) => return end,
        };
        self.mark_outside(connection, claimed, tick, worked).await
    }

    /// Marks what became of a run, in a transaction of its own.
    async fn mark_outside(
        &self,
        connection: &Connection,
        mut claimed: Claimed,
        tick: Timestamp,
        worked: Result<u64, Failure>,
    ) -> Result<Ran, DatabaseError> {
        let name = self.name;
        let reset = "RESET ROLE; RESET SESSION AUTHORIZATION; RESET ALL; BEGIN";
        connection.batch_execute("mark the tick", reset).await?;
        let worked = if job::is_locked(connection, name).await? {
            worked
        } else {
            let why =
                "a statement gave the lock away that keeps other instances from running the job";
            Err(Failure {
                why: why.to_owned(),
                error: None,
            })
        };
        let worked = match worked {
            Err(mut failure) => {
                if let Some(indexes) = job::invalid_indexes(connection).await? {
                    failure.why += &format!("; indexes that are not valid: {indexes}");
                }
                Err(failure)
            }
            worked => worked,
        };
        claimed.transaction = job::transaction(connection).await?;
        self.settle(connection, &claimed, tick, worked).await
    }
}
