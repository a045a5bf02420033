//! One run of one tick outside of a transaction, for statements that cannot run in one: VACUUM, CREATE INDEX
//! CONCURRENTLY, procedures that commit.
//!
//! The session that runs it holds an advisory lock on the name of the job, so that no two run at a time on one server.
//! The row holds the time at which the run began. A session that gets the lock and finds the job running knows that a
//! run was interrupted, and counts it as an attempt: with one attempt, a tick is run at most once; with more, at least
//! once.

use std::ops::ControlFlow;

use jiff::Timestamp;
use tokio_postgres::SimpleQueryRow;
use tokio_postgres::types::Type;

use super::claim::{self, Claimed};
use super::due::{Due, due, interrupted};
use super::failure::Failure;
use super::row::{Borrowed, JobRow, NUMBER, Running, timestamptz};
use super::run::{HAS_TRANSACTION_TIMEOUT, Ran, Run, bounds};
use super::tables::{self, LOCK as LOCK_TABLES, SEAL, Tables};
use crate::database::{Connection, DatabaseError, OneLine};
use crate::functions::advisory_lock::LockClass;
use crate::functions::quote::literal;

/// Locks a job for this session, unless another session has it. The server ends the session, and so frees the lock, if
/// the instance freezes; and, whatever its own setting, not because a statement takes long.
pub(super) async fn lock(connection: &Connection, name: &str) -> Result<bool, DatabaseError> {
    let bound = if connection.server_version() >= Some(HAS_TRANSACTION_TIMEOUT) {
        "SET idle_session_timeout = '10s'; SET transaction_timeout = 0"
    } else {
        "SET idle_session_timeout = '10s'"
    };
    let sql = format!(
        "SELECT pg_catalog.pg_try_advisory_lock({})",
        LockClass::Job.keys(NUMBER)
    );
    let parameters: [Borrowed<'_>; 1] = [(&name, Type::TEXT)];
    // Both are sent at once.
    let (bound, locked) = tokio::join!(
        connection.batch_execute("bound the session", bound),
        connection.query("lock the job", &sql, &parameters)
    );
    bound?;
    Ok(locked?.first().is_some_and(|row| row.get(0)))
}

/// `true` if this session still has the job's lock.
async fn is_locked(connection: &Connection, name: &str) -> Result<bool, DatabaseError> {
    let sql = format!(
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks WHERE granted \
         AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND {}",
        LockClass::Job.is_of(NUMBER)
    );
    let rows = connection
        .query("look for the job's lock", &sql, &[(&name, Type::TEXT)])
        .await?;
    Ok(rows.first().is_some_and(|row| row.get::<_, i64>(0) > 0))
}

/// Records that a tick is run outside of a transaction. Returns `false` if the row is no longer as it was looked at.
async fn begin_outside(
    connection: &Connection,
    tables: &Tables,
    name: &str,
    (row, running): (&JobRow, &Running),
) -> Result<bool, DatabaseError> {
    let sql = format!(
        "UPDATE bgworker.job AS j SET {} WHERE j.name OPERATOR(pg_catalog.=) {} AND j.declared OPERATOR(pg_catalog.=) {} \
         AND j.last_tick OPERATOR(pg_catalog.=) {} AND j.running_since IS NULL RETURNING true AS has_begun",
        running.changes(),
        literal(name),
        literal(&row.declared),
        timestamptz(row.last_tick)
    );
    let sql = tables::write(&tables.seal, &sql);
    let rows = connection.simple_query("begin the run", &sql).await?;
    let has_begun = |row: &SimpleQueryRow| row.try_get("has_begun").ok().flatten() == Some("t");
    Ok(rows.iter().any(has_begun))
}

/// The names of all invalid indexes of the database, such as one whose `CREATE INDEX CONCURRENTLY` failed.
async fn invalid_indexes(connection: &Connection) -> Result<Option<String>, DatabaseError> {
    let sql = "SELECT pg_catalog.string_agg(i.indexrelid::pg_catalog.regclass::pg_catalog.text, ', ') \
               FROM pg_catalog.pg_index AS i WHERE NOT i.indisvalid";
    let rows = connection.query("look for invalid indexes", sql, &[]);
    Ok(rows.await?.first().and_then(|row| row.get(0)))
}

/// The ID of the transaction under way, and the seal of the tables in it.
async fn transaction(connection: &Connection) -> Result<(String, Option<String>), DatabaseError> {
    let sql = format!(
        "SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text, {}",
        *SEAL
    );
    let rows = connection.query("mark the tick", &sql, &[]).await?;
    let row = rows.first();
    Ok(row.map_or_else(Default::default, |row| (row.get(0), row.get(1))))
}

// === impl Run ===

impl Run<'_> {
    pub(super) async fn run_outside(&self, connection: &Connection) -> Result<Ran, DatabaseError> {
        let name = self.name;
        if !lock(connection, name).await? {
            return Ok(Ran::Elsewhere);
        }
        let has_declarations = self.tables.has_declarations;
        let looked = claim::look_at_one(connection, name, has_declarations).await?;
        let declared = &self.job.declared;
        let Some(mut claimed) = looked.filter(|looked| looked.row.declared == *declared) else {
            return Ok(Ran::Elsewhere);
        };
        let (schedule, missed) = (&self.job.schedule, self.job.missed);
        let Due::Now(tick) = due(&claimed.row, claimed.now, schedule, missed) else {
            return Ok(Ran::Elsewhere);
        };
        if !self.are_as_looked_at(&claimed) {
            return Ok(Ran::Changed);
        }
        if let Some(running) = claimed.running.clone() {
            let interrupted = self.mark_interrupted(connection, claimed, (tick, &running));
            return interrupted.await;
        }
        let running = Running::begins(claimed.now, tick, has_declarations);
        match begin_outside(connection, self.tables, name, (&claimed.row, &running)).await {
            Err(error) if tables::are_changed(&error) => return Ok(Ran::Changed),
            Ok(false) => return Ok(Ran::Elsewhere),
            begun => begun?,
        };
        claimed.running = Some(running);
        self.work_outside(connection, claimed, tick).await
    }

    /// Marks that this run, of an earlier tick or of the one that is due, was interrupted.
    async fn mark_interrupted(
        &self,
        connection: &Connection,
        mut claimed: Claimed,
        (due, running): (Timestamp, &Running),
    ) -> Result<Ran, DatabaseError> {
        let (schedule, missed) = (&self.job.schedule, self.job.missed);
        let began = running.began().unwrap_or(due);
        let tick = running.tick();
        let tick = tick.unwrap_or_else(|| interrupted(&claimed.row, due, began, schedule, missed));
        let why = match self.interrupted_by {
            Some(why) => format!("interrupted: {why}"),
            None => "interrupted: its instance, its session or its server went away while it ran"
                .to_owned(),
        };
        // The run is as old as it is; what has come due since it began is still due.
        let took = claimed.now.duration_since(began).unsigned_abs();
        claimed.at = claimed.at.checked_sub(took).unwrap_or(claimed.at);
        claimed.now = began;
        claimed.row.running_since = Some(began);
        let failure = Err(Failure::without_error(why));
        self.mark_outside(connection, claimed, tick, failure).await
    }

    /// Runs the statements, and marks what became of them.
    pub(super) async fn work_outside(
        &self,
        connection: &Connection,
        claimed: Claimed,
        tick: Timestamp,
    ) -> Result<Ran, DatabaseError> {
        let _under_way = self.begin_run();
        let settings = format!(
            "SET statement_timeout = {}; SELECT pg_catalog.set_config('bgworker.tick', '{tick}', false), \
             pg_catalog.set_config('bgworker.previous_tick', '{}', false)",
            self.job.timeout.as_millis(),
            claimed.row.last_done
        );
        connection.batch_execute("begin the run", &settings).await?;
        let worked = self.work(connection, &claimed.row, tick).await;
        // A run that is cut short was interrupted, and its row shows that.
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
        let bounds = bounds(connection);
        let reset = format!(
            "RESET ROLE; RESET SESSION AUTHORIZATION; RESET ALL; BEGIN; {bounds}; {LOCK_TABLES}"
        );
        connection.batch_execute("mark the tick", &reset).await?;
        let worked = if is_locked(connection, name).await? {
            worked
        } else {
            let why =
                "a statement gave the lock away that keeps other instances from running the job";
            Err(Failure::without_error(why))
        };
        let worked = match worked {
            Err(mut failure) => {
                if let Some(indexes) = invalid_indexes(connection).await? {
                    let indexes = OneLine(&indexes);
                    failure.why += &format!("; indexes that are not valid: {indexes}");
                }
                Err(failure)
            }
            worked => worked,
        };
        (claimed.transaction, claimed.seal) = transaction(connection).await?;
        if !self.are_as_looked_at(&claimed) {
            return Ok(Ran::Changed);
        }
        self.mark(connection, &claimed, tick, &worked).await
    }
}
