//! The mark of a run: its changes to the row of its job, and its entry in the ring of runs.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::claim::Claimed;
use super::row::{JobRow, Look, timestamptz};
use super::tables::{self, Tables};
use crate::database::{DatabaseError, in_full};
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
/// transaction. The text has a number that only the session knows, or the planner would evaluate it.
static IS_CLAIMED: LazyLock<String> = LazyLock::new(|| {
    format!(
        "coalesce((SELECT 1 FROM job), pg_catalog.format('bgworker[{UNCLAIMED}]: no row is that of the transaction of process %s', \
         pg_catalog.pg_backend_pid())::pg_catalog.int4)"
    )
});

/// Gives back the locks of a session, and names what is prepared in it.
pub(super) const LEAVE: &str = "pg_catalog.pg_advisory_unlock_all(), \
    ARRAY(SELECT p.name FROM pg_catalog.pg_prepared_statements AS p WHERE p.from_sql)::pg_catalog.text AS prepared";

/// What a mark returns.
static MARKED: LazyLock<String> = LazyLock::new(|| format!("{}, {LEAVE}", *IS_CLAIMED));

/// Whether a run was recorded.
const WAS_RECORDED: &str = "EXISTS (SELECT FROM job) AS was_recorded";

/// The arguments that each mark has: its entry, and the row from then on. A statement may have more, from here on.
const ARGUMENTS: usize = 15;

/// The row is that of the transaction which claimed the tick. The schema may have been renamed, and there may be another table of
/// that name now.
const IS_SAME: &str = "pg_catalog.pg_current_xact_id()::pg_catalog.text OPERATOR(pg_catalog.=) $16 \
    AND j.tableoid OPERATOR(pg_catalog.=) $17::pg_catalog.oid";

/// The marks of runs that are one transaction, on tables of the first versions and on complete ones.
static IN_TRANSACTION: LazyLock<[String; 2]> = LazyLock::new(|| {
    [false, true].map(|has_declarations| {
        let update = update(changes(has_declarations), IS_SAME);
        with_entry(&update, &entry(&MARKED))
    })
});

/// What marks a run that is one transaction, to be prepared.
pub(super) fn in_transaction(has_declarations: bool) -> &'static str {
    &IN_TRANSACTION[usize::from(has_declarations)]
}

/// A statement that marks what became of a run, and its arguments. It fails if the transaction is no longer the one that
/// claimed the tick; [`is_unclaimed`] tells that error from others.
pub(super) fn mark(
    name: &str,
    claimed: &Claimed,
    history: u32,
    mark: &Mark,
) -> (Cow<'static, str>, Vec<String>) {
    let has_declarations = claimed.has_declarations;
    let mut arguments = arguments(name, history, mark);
    arguments.extend([literal(&claimed.transaction), claimed.table.to_string()]);
    let is_running = claimed.running.as_ref().map(|running| {
        arguments.push(literal(&claimed.row.declared));
        let is_in_row = running.is_in_row();
        format!("{IS_SAME} AND j.declared OPERATOR(pg_catalog.=) $18 AND {is_in_row}")
    });
    let statement = match is_running {
        None if mark.outcome != RunOutcome::Once => in_transaction(has_declarations).into(),
        is_running => {
            let changes = changes_of(mark, has_declarations);
            let update = update(changes, is_running.as_deref().unwrap_or(IS_SAME));
            // The session of a run outside of a transaction keeps its lock until the mark is committed.
            let result = if claimed.running.is_some() {
                &IS_CLAIMED
            } else {
                &MARKED
            };
            with_entry(&update, &entry(result)).into()
        }
    };
    (statement, arguments)
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
    let is_unchanged = "j.name OPERATOR(pg_catalog.=) (SELECT k.name FROM bgworker.job AS k \
         WHERE k.name OPERATOR(pg_catalog.=) $1 AND k.declared OPERATOR(pg_catalog.=) $16 \
         AND k.last_tick OPERATOR(pg_catalog.=) $17 AND k.attempt OPERATOR(pg_catalog.=) $18 FOR UPDATE SKIP LOCKED)";
    let mut arguments = arguments(name, history, mark);
    arguments.extend([
        literal(&claimed.declared),
        timestamptz(claimed.last_tick),
        claimed.attempt.to_string(),
    ]);
    let update = update(changes_of(mark, tables.has_declarations), is_unchanged);
    let sql = in_full(&with_entry(&update, &entry(WAS_RECORDED)), &arguments);
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
fn update(changes: &str, condition: &str) -> String {
    format!(
        "UPDATE bgworker.job AS j SET {changes}runs = j.runs OPERATOR(pg_catalog.+) 1 \
         WHERE j.name OPERATOR(pg_catalog.=) $1 AND {condition}"
    )
}

/// A statement that changes the row of a job, which counts one run more, and makes the [`entry`] of that run if it has changed
/// the row.
pub(super) fn with_entry(update: &str, entry: &str) -> String {
    format!("WITH job AS ({update} RETURNING j.runs), {entry}")
}

/// The part of a statement that makes the entry of a run from its [`arguments`], and what the statement returns.
pub(super) fn entry(result: &str) -> String {
    format!(
        "run AS (INSERT INTO bgworker.job_run AS r (name, slot, run, tick, started_at, finished_at, outcome, attempt, \
         rows, sqlstate, message) SELECT $1::pg_catalog.text, \
         (job.runs OPERATOR(pg_catalog.%) $2::pg_catalog.int8)::pg_catalog.int4, job.runs, $3::pg_catalog.timestamptz, \
         pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) $4::pg_catalog.interval, pg_catalog.clock_timestamp(), \
         $5::pg_catalog.text, $6::pg_catalog.int4, $7::pg_catalog.int8, $8::pg_catalog.text, $9::pg_catalog.text \
         FROM job WHERE $2::pg_catalog.int8 OPERATOR(pg_catalog.>) 0 \
         ON CONFLICT (name, slot) DO UPDATE SET run = excluded.run, tick = excluded.tick, \
         started_at = excluded.started_at, finished_at = excluded.finished_at, outcome = excluded.outcome, \
         attempt = excluded.attempt, rows = excluded.rows, sqlstate = excluded.sqlstate, message = excluded.message) \
         SELECT {result}"
    )
}

/// The changes to the row of a job when a run on its schedule is over. The last tick moves only forward, whatever others have
/// done to a row that was not locked.
const fn changes(has_declarations: bool) -> &'static str {
    if has_declarations {
        "last_tick = greatest(j.last_tick, $10::pg_catalog.timestamptz), last_done = $11::pg_catalog.timestamptz, \
         attempt = $12::pg_catalog.int4, attempt_tick = $13::pg_catalog.timestamptz, \
         retry_at = $14::pg_catalog.timestamptz, running_since = $15::pg_catalog.timestamptz, running_tick = NULL, "
    } else {
        "last_tick = greatest(j.last_tick, $10::pg_catalog.timestamptz), last_done = $11::pg_catalog.timestamptz, \
         attempt = $12::pg_catalog.int4, attempt_tick = $13::pg_catalog.timestamptz, \
         retry_at = $14::pg_catalog.timestamptz, running_since = $15::pg_catalog.timestamptz, "
    }
}

/// The same for this run. One beside the schedule makes none of them.
fn changes_of(mark: &Mark, has_declarations: bool) -> &'static str {
    match mark.outcome {
        RunOutcome::Once => "",
        _ => changes(has_declarations),
    }
}

/// What a mark says, as the arguments `$1` to `$15` of the statement that makes it.
pub(super) fn arguments(name: &str, history: u32, mark: &Mark) -> Vec<String> {
    let null = || "NULL".to_owned();
    let text = |text: &Option<String>| text.as_deref().map_or_else(null, literal);
    let time = |time: Option<Timestamp>| time.map_or_else(null, timestamptz);
    let after = &mark.after;
    let arguments: [String; ARGUMENTS] = [
        literal(name),
        history.to_string(),
        timestamptz(mark.tick),
        format!("'{} seconds'", mark.took.as_secs_f64()),
        literal(mark.outcome.word()),
        mark.number.to_string(),
        mark.rows.map_or_else(null, |rows| rows.to_string()),
        text(&mark.sqlstate),
        text(&mark.message),
        timestamptz(after.last_tick),
        timestamptz(after.last_done),
        after.attempt.to_string(),
        time(after.attempt_tick),
        time(after.retry_at),
        time(after.running_since),
    ];
    arguments.into()
}

/// `true` for the error of [`mark`] in a transaction that did not claim the tick.
pub(super) fn is_unclaimed(error: &DatabaseError) -> bool {
    error.undone().is_some_and(|(word, _)| word == UNCLAIMED)
}
