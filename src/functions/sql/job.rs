//! The state of jobs in the database: the tables, the statements on them, and what their rows say.
//!
//! Why a tick is run once: the row of its job is locked by the transaction that does the work, and the tick is marked
//! in that transaction. So the work and the mark are there together or not at all, whichever instance did them, and
//! whatever became of it. No clock but the server's decides anything.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::database::{Connection, DatabaseError, is_made_already};
use crate::functions::quote::identifier;
use crate::functions::session::Session;

/// The outcome of a run beside the schedule.
pub(super) const ONCE: &str = "once";

/// What a job's row says, and when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JobRow {
    /// The newest tick that is done with.
    pub(super) last_tick: Timestamp,
    /// The newest tick whose work was done.
    pub(super) last_done: Timestamp,
    /// How often a tick has failed that is still due, or the newer ones that took its place.
    pub(super) attempt: u32,
    /// The newest tick that has failed so.
    pub(super) attempt_tick: Option<Timestamp>,
    /// Not before this time it is to be tried again.
    pub(super) retry_at: Option<Timestamp>,
    /// Since when it runs outside of a transaction, or has been interrupted.
    pub(super) running_since: Option<Timestamp>,
    /// What it was declared to do, and by which instance.
    pub(super) declared: String,
    pub(super) declared_by: String,
}

/// A look at a job.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// `None` for a job that was not declared yet.
    pub(super) row: Option<JobRow>,
    /// The server's clock.
    pub(super) now: Timestamp,
    /// When that was, by ours, which measures what has passed since.
    pub(super) asked: Instant,
}

/// A tick that was claimed: its row is locked until the transaction ends.
#[derive(Clone, Debug)]
pub(super) struct Claimed {
    pub(super) row: JobRow,
    pub(super) now: Timestamp,
    /// When that was, by our clock.
    pub(super) at: Instant,
    /// The transaction that has it.
    pub(super) transaction: String,
}

/// What became of a run.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// The newest tick that is done with from now on; as before, where the tick is to be tried again.
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

// === impl JobRow ===

impl JobRow {
    /// One that has done this tick.
    pub(super) fn new(last_tick: Timestamp) -> Self {
        Self {
            last_tick,
            last_done: last_tick,
            attempt: 0,
            attempt_tick: None,
            retry_at: None,
            running_since: None,
            declared: String::new(),
            declared_by: String::new(),
        }
    }
}

// === impl Claimed ===

impl Claimed {
    /// A job that runs outside of a transaction, or is only tried.
    pub(super) fn outside(row: JobRow, now: Timestamp) -> Self {
        Self {
            row,
            now,
            at: Instant::now(),
            transaction: String::new(),
        }
    }
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

/// Whether the tables are there.
const HAS_TABLES: &str = "SELECT pg_catalog.to_regclass('bgworker.job_run') IS NOT NULL";

/// Makes the tables. Columns are only ever added, with defaults, so that instances of two versions can work together.
const CREATE: &str = "\
    CREATE SCHEMA IF NOT EXISTS bgworker; \
    CREATE TABLE IF NOT EXISTS bgworker.job (name pg_catalog.text PRIMARY KEY, declared pg_catalog.text NOT NULL, declared_by pg_catalog.text NOT NULL, \
    last_tick pg_catalog.timestamptz NOT NULL, last_done pg_catalog.timestamptz NOT NULL, runs bigint NOT NULL DEFAULT 0, \
    attempt int NOT NULL DEFAULT 0, attempt_tick pg_catalog.timestamptz, retry_at pg_catalog.timestamptz, running_since pg_catalog.timestamptz) WITH (fillfactor = 50); \
    CREATE TABLE IF NOT EXISTS bgworker.job_run (name pg_catalog.text, slot int, run bigint NOT NULL, tick pg_catalog.timestamptz NOT NULL, \
    started_at pg_catalog.timestamptz NOT NULL, finished_at pg_catalog.timestamptz NOT NULL, outcome pg_catalog.text NOT NULL, attempt int NOT NULL, \
    rows bigint, sqlstate pg_catalog.text, message pg_catalog.text, PRIMARY KEY (name, slot)) WITH (fillfactor = 50)";

/// Looks at all jobs of the database; without any, it is one row of NULL and the server's clock.
const LOOK: &str = "\
    SELECT j.last_tick, j.last_done, j.attempt, j.retry_at, j.declared, j.declared_by, clock.now, j.running_since, \
    j.attempt_tick, j.name FROM (SELECT pg_catalog.clock_timestamp() AS now) AS clock LEFT JOIN bgworker.job AS j ON true \
    ORDER BY j.name COLLATE pg_catalog.\"C\"";

/// Looks at one job.
const LOOK_AT_ONE: &str = "\
    SELECT j.last_tick, j.last_done, j.attempt, j.retry_at, j.declared, j.declared_by, pg_catalog.clock_timestamp(), \
    j.running_since, j.attempt_tick FROM bgworker.job AS j WHERE j.name OPERATOR(pg_catalog.=) $1";

/// Declares a job. What was declared otherwise begins with the tick that follows the new schedule's newest one, if that
/// is another schedule: `declared` begins with its digest.
const DECLARE: &str = "\
    INSERT INTO bgworker.job AS j (name, declared, declared_by, last_tick, last_done) VALUES ($1, $2, $3, $4, $4) \
    ON CONFLICT (name) DO UPDATE SET declared = excluded.declared, declared_by = excluded.declared_by, \
    attempt = 0, retry_at = NULL, running_since = NULL, last_tick = CASE \
    WHEN pg_catalog.split_part(j.declared, '-', 1) OPERATOR(pg_catalog.=) pg_catalog.split_part(excluded.declared, '-', 1) \
    OR j.last_tick OPERATOR(pg_catalog.>) excluded.last_tick THEN j.last_tick ELSE excluded.last_tick END \
    WHERE j.declared OPERATOR(pg_catalog.<>) excluded.declared";

/// Locks a row that no other session has, in the transaction under way.
const TAKE: &str = "\
    SELECT j.last_tick, j.last_done, j.attempt, j.retry_at, j.declared, j.declared_by, pg_catalog.clock_timestamp(), \
    j.running_since, j.attempt_tick, pg_catalog.pg_current_xact_id()::pg_catalog.text FROM bgworker.job AS j \
    WHERE j.name OPERATOR(pg_catalog.=) $1 AND CONDITION FOR UPDATE SKIP LOCKED";

/// That a tick is due, and the job is what this instance takes it for.
const IS_DUE: &str =
    "j.declared OPERATOR(pg_catalog.=) $2 AND j.last_tick OPERATOR(pg_catalog.<) $3";

/// What becomes of a job when a run of its schedule is over. A run beside that changes nothing of it.
const CHANGES: &str = "last_tick = $2, last_done = $3, attempt = $4, \
    attempt_tick = CASE WHEN $4 OPERATOR(pg_catalog.>) 0 THEN $7 END, running_since = NULL, \
    retry_at = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) (RETRY_IN)::pg_catalog.interval, ";

/// Marks a tick, and writes the run into its ring. Where this is no longer the transaction that claimed the tick, it is
/// an error and ends the transaction: the text that is taken for a number depends on rows, or the planner would see it.
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

/// Makes the tables, unless they are there. Several that do so at once get in each other's way.
pub(super) async fn make_tables(session: &Session) -> Result<(), DatabaseError> {
    while !has_tables(session).await? {
        let making = session.batch_execute("make the tables of jobs", CREATE);
        match making.await {
            Err(error) if !error.sqlstate().is_some_and(is_made_already) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The statements that make the tables, and let a role run jobs.
pub(super) fn objects(role: &str) -> Vec<String> {
    let role = identifier(role);
    let mut statements: Vec<_> = CREATE.split("; ").map(str::to_owned).collect();
    statements.push(format!("GRANT USAGE ON SCHEMA bgworker TO {role}"));
    statements.push(format!(
        "GRANT SELECT, INSERT, UPDATE ON bgworker.job, bgworker.job_run TO {role}"
    ));
    statements
}

/// Whether the tables are there.
async fn has_tables(session: &Session) -> Result<bool, DatabaseError> {
    let looking = session.query_together("look for the tables of jobs", HAS_TABLES, Instant::now());
    Ok(looking.await?.rows.first().is_some_and(|row| row.get(0)))
}

/// The key of a job's advisory lock: a class of ours, and a digest of the name.
const LOCK: &str = "1651994417, pg_catalog.hashtext($1)";

/// Locks a job for this session, unless another session has it.
pub(super) async fn lock(connection: &Connection, name: &str) -> Result<bool, DatabaseError> {
    let sql = format!("SELECT pg_catalog.pg_try_advisory_lock({LOCK})");
    let rows = connection
        .query("lock the job", &sql, &[(&name, Type::TEXT)])
        .await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// Whether this session has the job's lock still.
pub(super) async fn is_locked(connection: &Connection, name: &str) -> Result<bool, DatabaseError> {
    let sql = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks AS l \
               WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' AND l.granted \
               AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() \
               AND l.classid::pg_catalog.int8 OPERATOR(pg_catalog.=) 1651994417 \
               AND l.objid::pg_catalog.int8 OPERATOR(pg_catalog.=) \
               (pg_catalog.hashtext($1)::pg_catalog.int8 OPERATOR(pg_catalog.&) 4294967295)";
    let rows = connection
        .query("look for the job's lock", sql, &[(&name, Type::TEXT)])
        .await?;
    Ok(rows.first().is_some_and(|row| row.get::<_, i64>(0) > 0))
}

/// Writes down that a job runs outside of a transaction.
pub(super) async fn begin_outside(
    connection: &Connection,
    name: &str,
) -> Result<(), DatabaseError> {
    let sql = "UPDATE bgworker.job AS j SET running_since = pg_catalog.clock_timestamp() \
               WHERE j.name OPERATOR(pg_catalog.=) $1";
    connection
        .query("begin the run", sql, &[(&name, Type::TEXT)])
        .await?;
    Ok(())
}

/// The names of indexes that are not valid, such as one whose `CREATE INDEX CONCURRENTLY` has failed.
pub(super) async fn invalid_indexes(
    connection: &Connection,
) -> Result<Option<String>, DatabaseError> {
    let sql = "SELECT pg_catalog.string_agg(i.indexrelid::pg_catalog.regclass::pg_catalog.text, ', ') \
               FROM pg_catalog.pg_index AS i WHERE NOT i.indisvalid";
    let rows = connection.query("look for invalid indexes", sql, &[]);
    Ok(rows.await?.first().and_then(|row| row.get(0)))
}

/// The number of the transaction under way.
pub(super) async fn transaction(connection: &Connection) -> Result<String, DatabaseError> {
    let sql = "SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text";
    let rows = connection.query("mark the tick", sql, &[]).await?;
    Ok(rows.first().map_or_else(String::new, |row| row.get(0)))
}

/// Looks at a job, on the connection that runs it. `None` if it is not declared.
pub(super) async fn look_at_one(
    connection: &Connection,
    name: &str,
) -> Result<Option<(JobRow, Timestamp)>, DatabaseError> {
    let rows = connection
        .query("look at the job", LOOK_AT_ONE, &[(&name, Type::TEXT)])
        .await?;
    let row = rows.first();
    Ok(row.and_then(|row| Some((job_row(row)?, timestamp(row, 6)))))
}

/// Looks at a job, together with all jobs of its database, at this time or later.
pub(super) async fn look(
    session: &Session,
    name: &str,
    not_before: Instant,
) -> Result<Look, DatabaseError> {
    let looking = session.query_together("look at the jobs", LOOK, not_before);
    let answer = looking.await?;
    let name_of = |row: &Row| row.get::<_, Option<&str>>(9).is_some_and(|one| one < name);
    let row = answer.rows.get(answer.rows.partition_point(name_of));
    let row = row.filter(|row| row.get::<_, Option<&str>>(9) == Some(name));
    let clock = answer.rows.first();
    Ok(Look {
        now: clock.map_or(Timestamp::UNIX_EPOCH, |row| timestamp(row, 6)),
        row: row.and_then(job_row),
        asked: answer.asked,
    })
}

/// Declares what a job does, unless it is declared so.
pub(super) async fn declare(
    session: &Session,
    name: &str,
    declared: &str,
    declared_by: &str,
    newest: Timestamp,
) -> Result<(), DatabaseError> {
    let newest: Parameter = (Box::new(system_time(newest)), Type::TIMESTAMPTZ);
    let parameters = vec![text(name), text(declared), text(declared_by), newest];
    session
        .query("declare the job", DECLARE, parameters)
        .await?;
    Ok(())
}

/// Locks the row of a job whose tick is due, in the transaction under way. `None` if the tick is done, or another
/// session has it.
pub(super) async fn claim(
    connection: &Connection,
    name: &str,
    declared: &str,
    tick: Timestamp,
) -> Result<Option<Claimed>, DatabaseError> {
    let tick = system_time(tick);
    let parameters: [Borrowed<'_>; 3] = [
        (&name, Type::TEXT),
        (&declared, Type::TEXT),
        (&tick, Type::TIMESTAMPTZ),
    ];
    lock_row(connection, IS_DUE, &parameters).await
}

/// Locks the row of a job, whether or not a tick is due, in the transaction under way. `None` if another session has it.
pub(super) async fn take(
    connection: &Connection,
    name: &str,
) -> Result<Option<Claimed>, DatabaseError> {
    lock_row(connection, "true", &[(&name, Type::TEXT)]).await
}

async fn lock_row(
    connection: &Connection,
    condition: &str,
    parameters: &[Borrowed<'_>],
) -> Result<Option<Claimed>, DatabaseError> {
    let sql = TAKE.replace("CONDITION", condition);
    let rows = connection.query("claim the tick", &sql, parameters).await?;
    Ok(rows.first().and_then(|row| {
        Some(Claimed {
            row: job_row(row)?,
            now: timestamp(row, 6),
            at: Instant::now(),
            transaction: row.get(9),
        })
    }))
}

/// The server's clock.
pub(super) async fn clock(connection: &Connection) -> Result<Timestamp, DatabaseError> {
    let sql = "SELECT pg_catalog.clock_timestamp()";
    let rows = connection.query("ask for the time", sql, &[]).await?;
    let row = rows.first();
    Ok(row.map_or(Timestamp::UNIX_EPOCH, |row| timestamp(row, 0)))
}

/// Marks what became of a run. If this is no longer the transaction that claimed the tick, that is an error, and
/// [`is_unclaimed`] tells it from others.
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

/// Whether it is the error of [`mark`] in a transaction that did not claim the tick.
pub(super) fn is_unclaimed(error: &DatabaseError) -> bool {
    error.undone().is_some()
}

type Parameter = (Box<dyn ToSql + Sync + Send>, Type);
type Borrowed<'p> = (&'p (dyn ToSql + Sync), Type);

fn text(value: &str) -> Parameter {
    (Box::new(value.to_owned()), Type::TEXT)
}

/// The row of a job, as [`LOOK`] and [`CLAIM`] return it.
fn job_row(row: &Row) -> Option<JobRow> {
    Some(JobRow {
        last_tick: row.get::<_, Option<SystemTime>>(0).and_then(to_timestamp)?,
        last_done: timestamp(row, 1),
        attempt: u32::try_from(row.get::<_, i32>(2)).unwrap_or(0),
        retry_at: row.get::<_, Option<SystemTime>>(3).and_then(to_timestamp),
        running_since: row.get::<_, Option<SystemTime>>(7).and_then(to_timestamp),
        attempt_tick: row.get::<_, Option<SystemTime>>(8).and_then(to_timestamp),
        declared: row.get(4),
        declared_by: row.get(5),
    })
}

/// A length of time, for a statement.
fn interval(time: Duration) -> String {
    format!("'{} seconds'::pg_catalog.interval", time.as_secs_f64())
}

fn timestamp(row: &Row, column: usize) -> Timestamp {
    to_timestamp(row.get(column)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Within what a system's clock can show, which every tick is.
fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::try_from(time).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn to_timestamp(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}
