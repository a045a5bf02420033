//! The mark of a run: its changes to the row of its job, and its entry in the ring of runs.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::job::{Borrowed, JobRow, Look, system_time};
use crate::database::{Connection, DatabaseError};

/// The outcome recorded for a run beside the schedule.
pub(super) const ONCE: &str = "once";

/// What became of a run.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// The newest tick that is done with from now on; unchanged if the tick is to be tried again.
    pub(super) last_tick: Timestamp,
    pub(super) last_done: Timestamp,
    pub(super) attempt: u32,
    pub(super) retry_in: Option<Duration>,
    pub(super) tick: Timestamp,
    pub(super) took: Duration,
    pub(super) outcome: &'static str,
    /// Which attempt of the tick it was, from 1.
    pub(super) number: u32,
    pub(super) rows: Option<u64>,
    pub(super) sqlstate: Option<String>,
    pub(super) message: Option<String>,
}

// === impl Mark ===

impl Mark {
    /// What a look at the job would show, now that this is committed.
    pub(super) fn look_after(&self, before: &JobRow, now: Timestamp) -> Look {
        let row = JobRow {
            last_tick: self.last_tick,
            last_done: self.last_done,
            attempt: self.attempt,
            attempt_tick: (self.attempt > 0).then_some(self.tick),
            retry_at: self.retry_in.and_then(|wait| now.checked_add(wait).ok()),
            running_since: None,
            declared: before.declared.clone(),
            declared_by: before.declared_by.clone(),
        };
        Look {
            row: Some(row),
            now,
            asked: Instant::now(),
        }
    }
}

/// The changes to the row of a job when a run on its schedule is over. A run beside the schedule makes none of them.
const CHANGES: &str = "last_tick = $2, last_done = $3, attempt = $4, \
    attempt_tick = CASE WHEN $4 OPERATOR(pg_catalog.>) 0 THEN $7 END, running_since = NULL, \
    retry_at = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) (RETRY_IN)::pg_catalog.interval, ";

/// Marks a tick, and writes the run into its ring. If this is no longer the transaction that claimed the tick, a cast
/// from text to a number fails and ends the transaction: the text depends on rows, or the planner would evaluate it.
const MARK: &str = "\
    WITH job AS (UPDATE bgworker.job AS j SET CHANGES\
    runs = j.runs OPERATOR(pg_catalog.+) 1 WHERE j.name OPERATOR(pg_catalog.=) $1 \
    AND pg_catalog.pg_current_xact_id()::pg_catalog.text OPERATOR(pg_catalog.=) $5 RETURNING j.runs), \
    run AS (INSERT INTO bgworker.job_run AS r (name, slot, run, tick, started_at, finished_at, outcome, attempt, rows, \
    sqlstate, message) SELECT $1, (job.runs OPERATOR(pg_catalog.%) $6)::pg_catalog.int4, job.runs, $7, \
    pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) TOOK, pg_catalog.clock_timestamp(), $8, $9, $10, $11, $12 FROM job \
    WHERE $6 OPERATOR(pg_catalog.>) 0 ON CONFLICT (name, slot) DO UPDATE SET run = excluded.run, tick = excluded.tick, \
    started_at = excluded.started_at, finished_at = excluded.finished_at, outcome = excluded.outcome, \
    attempt = excluded.attempt, rows = excluded.rows, sqlstate = excluded.sqlstate, message = excluded.message) \
    SELECT CASE WHEN EXISTS (SELECT FROM job) THEN 1 ELSE pg_catalog.format(\
    'bgworker: %s rows are this transaction''s', (SELECT pg_catalog.count(*) FROM job))::pg_catalog.int4 END";

/// Marks what became of a run. Fails if this is no longer the transaction that claimed the tick; [`is_unclaimed`] tells
/// that error from others.
pub(super) async fn mark(
    connection: &Connection,
    name: &str,
    transaction: &str,
    history: u32,
    mark: &Mark,
) -> Result<(), DatabaseError> {
    let retry_in = mark.retry_in.map_or_else(|| "NULL".to_owned(), interval);
    let changes = if mark.outcome == ONCE { "" } else { CHANGES };
    let sql = MARK
        .replace("CHANGES", changes)
        .replace("RETRY_IN", &retry_in)
        .replace("TOOK", &interval(mark.took));
    let (last_tick, last_done) = (system_time(mark.last_tick), system_time(mark.last_done));
    let tick = system_time(mark.tick);
    let rows = mark.rows.and_then(|rows| i64::try_from(rows).ok());
    let count = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let (attempt, number) = (count(mark.attempt), count(mark.number));
    let history = i64::from(history);
    let parameters: [Borrowed<'_>; 12] = [
        (&name, Type::TEXT),
        (&last_tick, Type::TIMESTAMPTZ),
        (&last_done, Type::TIMESTAMPTZ),
        (&attempt, Type::INT4),
        (&transaction, Type::TEXT),
        (&history, Type::INT8),
        (&tick, Type::TIMESTAMPTZ),
        (&mark.outcome, Type::TEXT),
        (&number, Type::INT4),
        (&rows, Type::INT8),
        (&mark.sqlstate, Type::TEXT),
        (&mark.message, Type::TEXT),
    ];
    let marking = connection.query("mark the tick", &sql, &parameters);
    marking.await.map(drop)
}

/// `true` for the error of [`mark`] in a transaction that did not claim the tick.
pub(super) fn is_unclaimed(error: &DatabaseError) -> bool {
    error.undone().is_some()
}

/// A duration as SQL.
fn interval(time: Duration) -> String {
    format!("'{} seconds'::pg_catalog.interval", time.as_secs_f64())
}
