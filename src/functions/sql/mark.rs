//! The mark of a run: its changes to the row of its job, and its entry in the ring of runs.

use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::job::{Claimed, JobRow, Look, timestamptz};
use super::tables;
use crate::database::{Connection, DatabaseError};
use crate::functions::quote::literal;
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

/// The word with which a mark undoes itself in a transaction that did not claim the tick.
const UNCLAIMED: &str = "unclaimed";

/// What follows if the transaction is not the one that claimed the tick: a cast from text to a number fails and ends the
/// transaction. The text depends on rows, or the planner would evaluate it.
static IS_CLAIMED: LazyLock<String> = LazyLock::new(|| {
    format!(
        "CASE WHEN EXISTS (SELECT FROM job) THEN 1 ELSE pg_catalog.format('bgworker[{UNCLAIMED}]: %s rows are this transaction''s', \
         (SELECT pg_catalog.count(*) FROM job))::pg_catalog.int4 END"
    )
});

/// Whether a run was recorded.
const WAS_RECORDED: &str = "EXISTS (SELECT FROM job) AS was_recorded";

/// Marks what became of a run. Fails if this is no longer the transaction that claimed the tick; [`is_unclaimed`] tells
/// that error from others.
pub(super) async fn mark(
    connection: &Connection,
    name: &str,
    claimed: &Claimed,
    history: u32,
    mark: &Mark,
) -> Result<(), DatabaseError> {
    // The schema may have been renamed, and there may be another table of that name now.
    let is_same = format!(
        "pg_catalog.pg_current_xact_id()::pg_catalog.text OPERATOR(pg_catalog.=) {} \
         AND j.tableoid OPERATOR(pg_catalog.=) {}::pg_catalog.oid",
        literal(&claimed.transaction),
        claimed.table
    );
    let sql = sql(name, history, mark, (&is_same, &IS_CLAIMED));
    connection.batch_execute("mark the tick", &sql).await
}

/// Marks what became of a run whose session has ended. Returns `false` if the row has changed since it was claimed,
/// another session has it, or the tables are no longer as they were when they were looked at.
pub(super) async fn record(
    session: &Session,
    name: &str,
    (claimed, seal): (&JobRow, &str),
    history: u32,
    mark: &Mark,
) -> Result<bool, DatabaseError> {
    let is_unchanged = format!(
        "j.name OPERATOR(pg_catalog.=) (SELECT k.name FROM bgworker.job AS k WHERE k.name OPERATOR(pg_catalog.=) {} \
         AND k.declared OPERATOR(pg_catalog.=) {} AND k.last_tick OPERATOR(pg_catalog.=) {} \
         AND k.attempt OPERATOR(pg_catalog.=) {} FOR UPDATE SKIP LOCKED)",
        literal(name),
        literal(&claimed.declared),
        timestamptz(claimed.last_tick),
        claimed.attempt
    );
    let sql = sql(name, history, mark, (&is_unchanged, WAS_RECORDED));
    let sql = tables::write(seal, &sql);
    match session.simple_query("record the run", &sql).await {
        Err(error) if tables::are_changed(&error) => Ok(false),
        rows => Ok(rows?.iter().any(|row| {
            let was_recorded = row.try_get("was_recorded");
            was_recorded.ok().flatten() == Some("t")
        })),
    }
}

/// The statement that makes a mark under a condition, and returns its result.
fn sql(name: &str, history: u32, mark: &Mark, (condition, result): (&str, &str)) -> String {
    let (name, tick, took) = (literal(name), timestamptz(mark.tick), interval(mark.took));
    let number =
        |number: Option<u64>| number.map_or_else(|| "NULL".to_owned(), |it| it.to_string());
    let text = |text: Option<&str>| text.map_or_else(|| "NULL".to_owned(), literal);
    let (outcome, attempt, rows) = (literal(mark.outcome), mark.number, number(mark.rows));
    let (sqlstate, message) = (
        text(mark.sqlstate.as_deref()),
        text(mark.message.as_deref()),
    );
    format!(
        "WITH job AS (UPDATE bgworker.job AS j SET {}runs = j.runs OPERATOR(pg_catalog.+) 1 \
         WHERE j.name OPERATOR(pg_catalog.=) {name} AND {condition} RETURNING j.runs), \
         run AS (INSERT INTO bgworker.job_run AS r (name, slot, run, tick, started_at, finished_at, outcome, attempt, \
         rows, sqlstate, message) SELECT {name}, \
         (job.runs OPERATOR(pg_catalog.%) {history}::pg_catalog.int8)::pg_catalog.int4, job.runs, {tick}, \
         pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) {took}, pg_catalog.clock_timestamp(), {outcome}, {attempt}, \
         {rows}, {sqlstate}, {message} FROM job WHERE {history}::pg_catalog.int8 OPERATOR(pg_catalog.>) 0 \
         ON CONFLICT (name, slot) DO UPDATE SET run = excluded.run, tick = excluded.tick, \
         started_at = excluded.started_at, finished_at = excluded.finished_at, outcome = excluded.outcome, \
         attempt = excluded.attempt, rows = excluded.rows, sqlstate = excluded.sqlstate, message = excluded.message) \
         SELECT {result}",
        changes(mark)
    )
}

/// The changes to the row of a job when a run on its schedule is over. A run beside the schedule makes none of them.
fn changes(mark: &Mark) -> String {
    if mark.outcome == ONCE {
        return String::new();
    }
    let (attempt_tick, retry_at) = match mark.retry_in {
        Some(wait) => (
            timestamptz(mark.tick),
            format!(
                "pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) {}",
                interval(wait)
            ),
        ),
        None => ("NULL".to_owned(), "NULL".to_owned()),
    };
    format!(
        "last_tick = {}, last_done = {}, attempt = {}, attempt_tick = {attempt_tick}, running_since = NULL, \
         retry_at = {retry_at}, ",
        timestamptz(mark.last_tick),
        timestamptz(mark.last_done),
        mark.attempt
    )
}

/// `true` for the error of [`mark`] in a transaction that did not claim the tick.
pub(super) fn is_unclaimed(error: &DatabaseError) -> bool {
    error.undone().is_some_and(|(word, _)| word == UNCLAIMED)
}

/// A duration as SQL.
fn interval(time: Duration) -> String {
    format!("'{} seconds'::pg_catalog.interval", time.as_secs_f64())
}
