//! The rows of jobs in the database: what they hold, and how they are looked at and claimed.
//!
//! Each tick is run once because the transaction that does the work locks the row of the job and marks the tick. So the
//! work and the mark are committed together or not at all, whichever instance did them, and whatever became of it. No
//! clock but the server's decides anything.

use std::sync::LazyLock;
use std::time::SystemTime;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, SimpleQueryRow};

use crate::database::{Connection, DatabaseError};
use crate::functions::advisory_lock::LockClass;
use crate::functions::session::Session;

/// The contents of a job's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JobRow {
    /// The newest tick that is done with.
    pub(super) last_tick: Timestamp,
    /// The newest tick whose work was done.
    pub(super) last_done: Timestamp,
    /// Failures so far of the tick that is still due, counting those of older ticks whose place it took.
    pub(super) attempt: u32,
    /// The newest tick with such a failure.
    pub(super) attempt_tick: Option<Timestamp>,
    /// The earliest time of the next attempt.
    pub(super) retry_at: Option<Timestamp>,
    /// When a run outside of a transaction began that still runs or was interrupted.
    pub(super) running_since: Option<Timestamp>,
    /// The number of its runs since the row was made.
    pub(super) runs: i64,
    /// A digest of what it was declared to do.
    pub(super) declared: String,
    /// The instance that declared it.
    pub(super) declared_by: String,
}

/// A look at a job.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// `None` for a job that is not declared yet.
    pub(super) row: Option<JobRow>,
    /// The server's clock.
    pub(super) now: Timestamp,
    /// When the server was asked, by this process's clock, which measures the time since then.
    pub(super) asked: Instant,
}

/// A run outside of a transaction, as the row of its job shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Running {
    /// When it began. The first versions forget it when the job is declared differently.
    since: Option<Timestamp>,
    /// Its tick, which those versions do not know; the outer `None` if the row has no place for it.
    tick: Option<Option<Timestamp>>,
}

// === impl JobRow ===

impl JobRow {
    /// The row of a job that has done this tick.
    pub(super) fn new(last_tick: Timestamp) -> Self {
        Self {
            last_tick,
            last_done: last_tick,
            attempt: 0,
            attempt_tick: None,
            retry_at: None,
            running_since: None,
            runs: 0,
            declared: String::new(),
            declared_by: String::new(),
        }
    }
}

// === impl Running ===

impl Running {
    /// A run of a tick that begins now.
    pub(super) fn begins(now: Timestamp, tick: Timestamp, has_declarations: bool) -> Self {
        Self {
            since: Some(now),
            tick: has_declarations.then_some(Some(tick)),
        }
    }

    /// The run that a row shows, if it shows one.
    pub(super) fn of(row: &Row, has_declarations: bool) -> Option<Self> {
        let since = row.time("running_since");
        let tick = has_declarations.then(|| row.time("running_tick"));
        (since.is_some() || tick.flatten().is_some()).then_some(Self { since, tick })
    }

    /// When it began, as far as that is known: not before its tick.
    pub(super) fn began(&self) -> Option<Timestamp> {
        self.since.or_else(|| self.tick.flatten())
    }

    /// Its tick, if the row shows it.
    pub(super) fn tick(&self) -> Option<Timestamp> {
        self.tick.flatten()
    }

    /// SQL that makes a row show it.
    pub(super) fn changes(&self) -> String {
        let changes = self.columns().map(|(column, value)| match value {
            Some(value) => format!("{column} = {}", timestamptz(value)),
            None => format!("{column} = NULL"),
        });
        changes.collect::<Vec<_>>().join(", ")
    }

    /// A condition: the row `j` shows this run.
    pub(super) fn is_in_row(&self) -> String {
        let conditions = self.columns().map(|(column, value)| match value {
            Some(value) => format!("j.{column} OPERATOR(pg_catalog.=) {}", timestamptz(value)),
            None => format!("j.{column} IS NULL"),
        });
        conditions.collect::<Vec<_>>().join(" AND ")
    }

    fn columns(&self) -> impl Iterator<Item = (&'static str, Option<Timestamp>)> {
        let tick = self.tick.map(|tick| ("running_tick", tick));
        [("running_since", self.since)].into_iter().chain(tick)
    }
}

/// What a statement has found, in whichever form it was sent.
pub(super) trait Found {
    fn text(&self, column: &str) -> Option<&str>;
    fn number(&self, column: &str) -> Option<i64>;
    fn time(&self, column: &str) -> Option<Timestamp>;
}

/// The columns of a row `j`, as [`job_row`] reads them.
pub(super) const COLUMNS: &str = "j.last_tick, j.last_done, j.attempt::pg_catalog.int8 AS attempt, j.attempt_tick, j.retry_at, \
    j.running_since, j.runs, j.declared, j.declared_by";

/// Looks at all jobs of the database; without any, the result is one row of NULL and the server's clock.
static LOOK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, j.name, clock.now FROM (SELECT pg_catalog.clock_timestamp() AS now) AS clock \
         LEFT JOIN bgworker.job AS j ON true ORDER BY j.name COLLATE pg_catalog.\"C\""
    )
});

/// Looks at a job, together with all jobs of its database. The look is made at `not_before` or later.
pub(super) async fn look(
    session: &Session,
    name: &str,
    not_before: Instant,
) -> Result<Look, DatabaseError> {
    let looking = session.query_together("look at the jobs", &LOOK, not_before);
    let answer = looking.await?;
    let is_before = |row: &Row| {
        row.get::<_, Option<&str>>("name")
            .is_some_and(|one| one < name)
    };
    let row = answer.rows.get(answer.rows.partition_point(is_before));
    let row = row.filter(|row| row.get::<_, Option<&str>>("name") == Some(name));
    let clock = answer.rows.first();
    Ok(Look {
        now: clock.map_or(Timestamp::UNIX_EPOCH, |row| timestamp(row, "now")),
        row: row.and_then(job_row),
        asked: answer.asked,
    })
}

/// The process of the server whose transaction has locked the row of a job.
const ROW_HOLDER: &str = "\
    SELECT l.pid FROM bgworker.job AS j JOIN pg_catalog.pg_locks AS l ON l.transactionid OPERATOR(pg_catalog.=) j.xmax \
    WHERE j.name OPERATOR(pg_catalog.=) $1 AND l.locktype OPERATOR(pg_catalog.=) 'transactionid' AND l.granted";

/// The number of a job's advisory lock: the hash of its name.
pub(super) const NUMBER: &str = "pg_catalog.hashtext($1)";

/// The process of the server whose session has a job's advisory lock.
static LOCK_HOLDER: LazyLock<String> = LazyLock::new(|| {
    let is_it = LockClass::Job.is_of(NUMBER);
    format!("SELECT pid FROM pg_catalog.pg_locks WHERE granted AND {is_it}")
});

/// Finds the process of the session that runs a job, in a transaction or outside of one.
pub(super) async fn holder(session: &Session, name: &str) -> Result<Option<i32>, DatabaseError> {
    match holder_of(session, name, true).await? {
        None => holder_of(session, name, false).await,
        holder => Ok(holder),
    }
}

/// Finds the process of the session that keeps a job from being run, as far as one can be found: a prepared transaction
/// has none.
pub(super) async fn holder_of(
    session: &Session,
    name: &str,
    in_transaction: bool,
) -> Result<Option<i32>, DatabaseError> {
    let sql = if in_transaction {
        ROW_HOLDER
    } else {
        &LOCK_HOLDER
    };
    let looking = session.query(
        "look for the session that has the job",
        sql,
        vec![text(name)],
    );
    Ok(looking.await?.first().and_then(|row| row.get(0)))
}

/// The server's clock.
pub(super) async fn clock(connection: &Connection) -> Result<Timestamp, DatabaseError> {
    let sql = "SELECT pg_catalog.clock_timestamp() AS now";
    let rows = connection.query("ask for the time", sql, &[]).await?;
    let row = rows.first();
    Ok(row.map_or(Timestamp::UNIX_EPOCH, |row| timestamp(row, "now")))
}

type Parameter = (Box<dyn ToSql + Sync + Send>, Type);
pub(super) type Borrowed<'p> = (&'p (dyn ToSql + Sync), Type);

pub(super) fn text(value: &str) -> Parameter {
    (Box::new(value.to_owned()), Type::TEXT)
}

/// Reads the columns of a job's row.
pub(super) fn job_row(row: &impl Found) -> Option<JobRow> {
    Some(JobRow {
        last_tick: row.time("last_tick")?,
        last_done: row.time("last_done")?,
        attempt: u32::try_from(row.number("attempt")?).unwrap_or(0),
        attempt_tick: row.time("attempt_tick"),
        retry_at: row.time("retry_at"),
        running_since: row.time("running_since"),
        runs: row.number("runs")?,
        declared: row.text("declared")?.to_owned(),
        declared_by: row.text("declared_by")?.to_owned(),
    })
}

impl Found for Row {
    fn text(&self, column: &str) -> Option<&str> {
        self.get(column)
    }

    fn number(&self, column: &str) -> Option<i64> {
        self.get(column)
    }

    fn time(&self, column: &str) -> Option<Timestamp> {
        self.get::<_, Option<SystemTime>>(column)
            .and_then(to_timestamp)
    }
}

impl Found for SimpleQueryRow {
    fn text(&self, column: &str) -> Option<&str> {
        self.try_get(column).ok()?
    }

    fn number(&self, column: &str) -> Option<i64> {
        self.text(column)?.parse().ok()
    }

    fn time(&self, column: &str) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.number(column)?).ok()
    }
}

pub(super) fn timestamp(row: &Row, column: &str) -> Timestamp {
    to_timestamp(row.get(column)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A time as SQL.
pub(super) fn timestamptz(time: Timestamp) -> String {
    format!("'{time}'::pg_catalog.timestamptz")
}

fn to_timestamp(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}
