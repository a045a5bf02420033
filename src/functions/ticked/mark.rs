//! The mark of a run: its changes to the row of its job, and its entry in the ring of runs.

use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::row::{Claimed, JobRow, Look, timestamptz};
use super::tables::{self, Tables};
use crate::database::{Connection, DatabaseError};
use crate::functions::quote::literal;
use crate::functions::session::Session;

/// How a run ended, as its entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunOutcome {
    Done,
    /// Its tick is to be tried again.
    Failed,
    /// It was the last attempt at its tick.
    GivenUp,
    /// Its session ended, and it is not known to have ended the session itself.
    Lost,
    /// It ran beside the schedule, however it ended.
    Once,
}

/// What a run leaves.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// The row of its job from then on.
    pub(super) after: JobRow,
    pub(super) tick: Timestamp,
    pub(super) took: Duration,
    pub(super) outcome: RunOutcome,
    /// Which attempt of the tick it was, from 1.
    pub(super) number: u32,
    pub(super) rows: Option<u64>,
    pub(super) sqlstate: Option<String>,
    pub(super) message: Option<String>,
}

// === impl RunOutcome ===

impl RunOutcome {
    const ALL: [Self; 5] = [
        Self::Done,
        Self::Failed,
        Self::GivenUp,
        Self::Lost,
        Self::Once,
    ];

    /// The word for it in `bgworker.job_run`.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::GivenUp => "given up",
            Self::Lost => "lost",
            Self::Once => "once",
        }
    }

    /// The outcome that a word stands for; `None` for one of a later version.
    pub(super) fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.word() == word)
    }
}

// === impl Mark ===

impl Mark {
    /// What a look at the job would show at this time, now that the mark is committed.
    pub(super) fn look_after(&self, now: Timestamp) -> Look {
        Look {
            row: Some(self.after.clone()),
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
    let mut is_same = format!(
        "pg_catalog.pg_current_xact_id()::pg_catalog.text OPERATOR(pg_catalog.=) {} \
         AND j.tableoid OPERATOR(pg_catalog.=) {}::pg_catalog.oid",
        literal(&claimed.transaction),
        claimed.table
    );
    if let Some(running) = &claimed.running {
        is_same += &format!(
            " AND j.declared OPERATOR(pg_catalog.=) {} AND {}",
            literal(&claimed.row.declared),
            running.is_in_row()
        );
    }
    let update = update(name, (mark, claimed.has_declarations), &is_same);
    let sql = with_entry(name, history, &update, (mark, &IS_CLAIMED));
    connection.batch_execute("mark the tick", &sql).await
}

/// Marks what became of a run whose session has ended. Returns `false` if the row has changed since it was claimed,
/// another session has it, or the tables are no longer as they were when they were looked at.
pub(super) async fn record(
    session: &Session,
    name: &str,
    (claimed, tables): (&JobRow, &Tables),
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
    let update = update(name, (mark, tables.has_declarations), &is_unchanged);
    let sql = with_entry(name, history, &update, (mark, WAS_RECORDED));
    let sql = tables::write(&tables.seal, &sql);
    match session.simple_query("record the run", &sql).await {
        Err(error) if tables::are_changed(&error) => Ok(false),
        rows => Ok(rows?.iter().any(|row| {
            let was_recorded = row.try_get("was_recorded");
            was_recorded.ok().flatten() == Some("t")
        })),
    }
}

/// The change of a mark to the row of its job, under a condition.
fn update(name: &str, (mark, has_declarations): (&Mark, bool), condition: &str) -> String {
    format!(
        "UPDATE bgworker.job AS j SET {}runs = j.runs OPERATOR(pg_catalog.+) 1 \
         WHERE j.name OPERATOR(pg_catalog.=) {} AND {condition}",
        changes(mark, has_declarations),
        literal(name)
    )
}

/// A statement that changes the row of a job, which counts one run more, and makes the entry of that run if it has changed the
/// row; with a result.
pub(super) fn with_entry(
    name: &str,
    history: u32,
    update: &str,
    (mark, result): (&Mark, &str),
) -> String {
    let (name, tick, took) = (literal(name), timestamptz(mark.tick), interval(mark.took));
    let number =
        |number: Option<u64>| number.map_or_else(|| "NULL".to_owned(), |it| it.to_string());
    let text = |text: Option<&str>| text.map_or_else(|| "NULL".to_owned(), literal);
    let (outcome, attempt, rows) = (literal(mark.outcome.word()), mark.number, number(mark.rows));
    let (sqlstate, message) = (
        text(mark.sqlstate.as_deref()),
        text(mark.message.as_deref()),
    );
    format!(
        "WITH job AS ({update} RETURNING j.runs), \
         run AS (INSERT INTO bgworker.job_run AS r (name, slot, run, tick, started_at, finished_at, outcome, attempt, \
         rows, sqlstate, message) SELECT {name}, \
         (job.runs OPERATOR(pg_catalog.%) {history}::pg_catalog.int8)::pg_catalog.int4, job.runs, {tick}, \
         pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) {took}, pg_catalog.clock_timestamp(), {outcome}, {attempt}, \
         {rows}, {sqlstate}, {message} FROM job WHERE {history}::pg_catalog.int8 OPERATOR(pg_catalog.>) 0 \
         ON CONFLICT (name, slot) DO UPDATE SET run = excluded.run, tick = excluded.tick, \
         started_at = excluded.started_at, finished_at = excluded.finished_at, outcome = excluded.outcome, \
         attempt = excluded.attempt, rows = excluded.rows, sqlstate = excluded.sqlstate, message = excluded.message) \
         SELECT {result}"
    )
}

/// The changes to the row of a job when a run on its schedule is over. A run beside the schedule makes none of them. The last
/// tick moves only forward, whatever others have done to a row that was not locked.
fn changes(mark: &Mark, has_declarations: bool) -> String {
    if mark.outcome == RunOutcome::Once {
        return String::new();
    }
    let JobRow {
        last_tick,
        last_done,
        attempt,
        attempt_tick,
        retry_at,
        running_since,
        ..
    } = &mark.after;
    let time = |time: &Option<Timestamp>| time.map_or_else(|| "NULL".to_owned(), timestamptz);
    let running_tick = if has_declarations {
        "running_tick = NULL, "
    } else {
        ""
    };
    format!(
        "last_tick = greatest(j.last_tick, {}), last_done = {}, attempt = {attempt}, attempt_tick = {}, retry_at = {}, \
         running_since = {}, {running_tick}",
        timestamptz(*last_tick),
        timestamptz(*last_done),
        time(attempt_tick),
        time(retry_at),
        time(running_since)
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
