//! The mark of a run: its changes to the row of its job, and its entry in the ring of runs.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};

use super::job::{JobRow, Look, system_time};
use super::tables::SEAL;
use crate::database::{Connection, DatabaseError, Parameters};
use crate::functions::session::Session;

/// The outcome recorded for a run beside the schedule.
pub(super) const ONCE: &str = "once";

/// The outcome recorded for a run that lost its session, unless the run is known to have ended the session itself.
pub(super) const LOST: &str = "lost";

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
            attempt_tick: self.retry_in.map(|_| self.tick),
            retry_at: self.retry_in.and_then(|wait| now.checked_add(wait).ok()),
            running_since: None,
            runs: before.runs + 1,
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
    attempt_tick = CASE WHEN (RETRY_IN)::pg_catalog.interval IS NOT NULL THEN $7 END, running_since = NULL, \
    retry_at = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) (RETRY_IN)::pg_catalog.interval, ";

/// Marks a tick, and writes the run into its ring.
const MARK: &str = "\
    WITH job AS (UPDATE bgworker.job AS j SET CHANGES\
    runs = j.runs OPERATOR(pg_catalog.+) 1 WHERE j.name OPERATOR(pg_catalog.=) $1 AND CONDITION RETURNING j.runs), \
    run AS (INSERT INTO bgworker.job_run AS r (name, slot, run, tick, started_at, finished_at, outcome, attempt, rows, \
    sqlstate, message) SELECT $1, (job.runs OPERATOR(pg_catalog.%) $6)::pg_catalog.int4, job.runs, $7, \
    pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) TOOK, pg_catalog.clock_timestamp(), $8, $9, $10, $11, $12 FROM job \
    WHERE $6 OPERATOR(pg_catalog.>) 0 ON CONFLICT (name, slot) DO UPDATE SET run = excluded.run, tick = excluded.tick, \
    started_at = excluded.started_at, finished_at = excluded.finished_at, outcome = excluded.outcome, \
    attempt = excluded.attempt, rows = excluded.rows, sqlstate = excluded.sqlstate, message = excluded.message) \
    SELECT RESULT";

/// The condition that this is the transaction that claimed the tick, and what follows if it is not: a cast from text to
/// a number fails and ends the transaction. The text depends on rows, or the planner would evaluate it.
const IS_CLAIMED: (&str, &str) = (
    "pg_catalog.pg_current_xact_id()::pg_catalog.text OPERATOR(pg_catalog.=) $5",
    "CASE WHEN EXISTS (SELECT FROM job) THEN 1 ELSE pg_catalog.format(\
     'bgworker: %s rows are this transaction''s', (SELECT pg_catalog.count(*) FROM job))::pg_catalog.int4 END",
);

/// The condition that the row of a job is as it was claimed, that no session has it, and that the tables are as they were
/// when they were looked at; and whether it held.
const IS_UNCHANGED: (&str, &str) = (
    "j.name OPERATOR(pg_catalog.=) (SELECT k.name FROM bgworker.job AS k WHERE k.name OPERATOR(pg_catalog.=) $1 \
     AND k.declared OPERATOR(pg_catalog.=) $5 AND k.last_tick OPERATOR(pg_catalog.=) $13 \
     AND k.attempt OPERATOR(pg_catalog.=) $14 AND SEAL OPERATOR(pg_catalog.=) $15 FOR UPDATE SKIP LOCKED)",
    "EXISTS (SELECT FROM job)",
);

/// Marks what became of a run. Fails if this is no longer the transaction that claimed the tick; [`is_unclaimed`] tells
/// that error from others.
pub(super) async fn mark(
    connection: &Connection,
    name: &str,
    transaction: &str,
    history: u32,
    mark: &Mark,
) -> Result<(), DatabaseError> {
    let parameters = parameters(name, transaction, history, mark);
    let borrowed: Vec<_> = parameters
        .iter()
        .map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone()))
        .collect();
    let sql = sql(mark, IS_CLAIMED);
    let marking = connection.query("mark the tick", &sql, &borrowed);
    marking.await.map(drop)
}

/// Marks what became of a run whose session has ended, unless the row has changed since it was claimed, or another
/// session has it: then it returns `false`.
pub(super) async fn record(
    session: &Session,
    name: &str,
    (claimed, seal): (&JobRow, &str),
    history: u32,
    mark: &Mark,
) -> Result<bool, DatabaseError> {
    let mut parameters = parameters(name, &claimed.declared, history, mark);
    let last_tick = system_time(claimed.last_tick);
    parameters.push((Box::new(last_tick), Type::TIMESTAMPTZ));
    parameters.push((Box::new(int4(claimed.attempt)), Type::INT4));
    parameters.push((Box::new(seal.to_owned()), Type::TEXT));
    let sql = sql(mark, IS_UNCHANGED).replace("SEAL", &SEAL);
    let recording = session.query("record the run", &sql, parameters);
    Ok(recording.await?.first().is_some_and(|row| row.get(0)))
}

/// The statement that makes a mark under a condition, and returns its result.
fn sql(mark: &Mark, (condition, result): (&str, &str)) -> String {
    let retry_in = mark.retry_in.map_or_else(|| "NULL".to_owned(), interval);
    let changes = if mark.outcome == ONCE { "" } else { CHANGES };
    MARK.replace("CHANGES", changes)
        .replace("RETRY_IN", &retry_in)
        .replace("TOOK", &interval(mark.took))
        .replace("CONDITION", condition)
        .replace("RESULT", result)
}

/// The parameters of that statement; the fifth belongs to its condition.
fn parameters(name: &str, condition: &str, history: u32, mark: &Mark) -> Parameters {
    let rows = mark.rows.and_then(|rows| i64::try_from(rows).ok());
    vec![
        (Box::new(name.to_owned()), Type::TEXT),
        (Box::new(system_time(mark.last_tick)), Type::TIMESTAMPTZ),
        (Box::new(system_time(mark.last_done)), Type::TIMESTAMPTZ),
        (Box::new(int4(mark.attempt)), Type::INT4),
        (Box::new(condition.to_owned()), Type::TEXT),
        (Box::new(i64::from(history)), Type::INT8),
        (Box::new(system_time(mark.tick)), Type::TIMESTAMPTZ),
        (Box::new(mark.outcome), Type::TEXT),
        (Box::new(int4(mark.number)), Type::INT4),
        (Box::new(rows), Type::INT8),
        (Box::new(mark.sqlstate.clone()), Type::TEXT),
        (Box::new(mark.message.clone()), Type::TEXT),
    ]
}

fn int4(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// `true` for the error of [`mark`] in a transaction that did not claim the tick.
pub(super) fn is_unclaimed(error: &DatabaseError) -> bool {
    error.undone().is_some()
}

/// A duration as SQL.
fn interval(time: Duration) -> String {
    format!("'{} seconds'::pg_catalog.interval", time.as_secs_f64())
}
