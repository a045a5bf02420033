//! Claims of ticks: the lock on the row of a job, and what is known of the row from then on.
//!
//! A claim also sets what the statements of the job read. It does not compare the seal of the tables: the run does.

use std::sync::LazyLock;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_postgres::SimpleQueryRow;
use tokio_postgres::types::Type;

use super::locker::LOCKER;
use super::row::{self, Borrowed, COLUMNS, Found, JobRow, Running, job_row, timestamptz};
use super::tables::{SEAL, Tables};
use crate::database::{Connection, DatabaseError, in_full};
use crate::functions::quote::literal;

/// A tick that was claimed: its row is locked until the transaction ends.
#[derive(Clone, Debug)]
pub(super) struct Claimed {
    pub(super) row: JobRow,
    pub(super) now: Timestamp,
    /// The time of the claim by this process's clock.
    pub(super) at: Instant,
    /// The transaction that holds the claim.
    pub(super) transaction: String,
    /// The [`SEAL`] of the tables in that transaction.
    pub(super) seal: Option<String>,
    /// The OID of the table that has the row.
    pub(super) table: u32,
    /// The `xid` of the transaction that locked the row before, unless it is the one that wrote the row.
    pub(super) locker: Option<String>,
    /// The rows of jobs have the columns that those of the first versions lack.
    pub(super) has_declarations: bool,
    /// The run outside of a transaction that the row shows, if it shows one.
    pub(super) running: Option<Running>,
    /// The tick and the one before that statements read, if the claim has set them, and made the savepoint of the run.
    pub(super) ticks: Option<[Timestamp; 2]>,
}

// === impl Claimed ===

impl Claimed {
    /// A claim for a job that runs outside of a transaction, or for a dry run.
    pub(super) fn outside(row: JobRow, now: Timestamp) -> Self {
        Self {
            row,
            now,
            at: Instant::now(),
            transaction: String::new(),
            seal: None,
            table: 0,
            locker: None,
            has_declarations: false,
            running: None,
            ticks: None,
        }
    }
}

/// The columns of a job's row, and the time, for an answer in text. The text of a time depends on the settings of the session, so
/// times are microseconds since the epoch.
static TEXT_COLUMNS: LazyLock<String> = LazyLock::new(|| {
    let times = [
        "last_tick",
        "last_done",
        "attempt_tick",
        "retry_at",
        "running_since",
    ];
    let times =
        times.map(|column| format!("{} AS {column}, ", microseconds(&format!("j.{column}"))));
    let now = microseconds("pg_catalog.clock_timestamp()");
    format!(
        "{}j.attempt, j.runs, j.declared, j.declared_by, {now} AS now",
        times.concat()
    )
});

/// SQL for a time in microseconds; NULL for one that is infinite.
fn microseconds(time: &str) -> String {
    format!(
        "CASE WHEN pg_catalog.isfinite({time}) \
         THEN (extract(epoch FROM {time}) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8 END"
    )
}

/// Locks the row of a job if a tick of it is due, and it is declared as this instance knows it. Sets what its statements read.
pub(super) static CLAIM: LazyLock<String> = LazyLock::new(|| {
    let condition =
        "j.declared OPERATOR(pg_catalog.=) $2 AND j.last_tick OPERATOR(pg_catalog.<) $3";
    let tick = setting(TICK, "$4::pg_catalog.text");
    let previous = setting(PREVIOUS_TICK, "$5::pg_catalog.text");
    take_if(condition, &format!(", {tick}, {previous}"))
});

/// Locks the row of a job.
static TAKE: LazyLock<String> = LazyLock::new(|| take_if("true", ""));

/// Locks a row in the transaction under way under a condition, unless another session has it.
fn take_if(condition: &str, more: &str) -> String {
    format!(
        "SELECT {}, pg_catalog.pg_current_xact_id()::pg_catalog.text AS transaction, \
         {} AS seal, j.tableoid, {LOCKER} AS locker{more} FROM bgworker.job AS j \
         WHERE j.name OPERATOR(pg_catalog.=) $1 AND {condition} FOR UPDATE SKIP LOCKED",
        *TEXT_COLUMNS, *SEAL
    )
}

/// The settings that the statements of a job read.
const TICK: &str = "bgworker.tick";
const PREVIOUS_TICK: &str = "bgworker.previous_tick";

/// Sets one of them until the transaction ends. Not by SET, since each would be one more entry of `pg_stat_statements`.
fn setting(name: &str, value: &str) -> String {
    format!("pg_catalog.set_config('{name}', {value}, true)")
}

/// A statement that sets both.
pub(super) fn set_ticks([tick, previous]: [Timestamp; 2]) -> String {
    let (tick, previous) = (format!("'{tick}'"), format!("'{previous}'"));
    format!(
        "SELECT {}, {}",
        setting(TICK, &tick),
        setting(PREVIOUS_TICK, &previous)
    )
}

/// Looks at one job, with the columns that the first versions have not made.
static LOOK_AT_ONE: LazyLock<String> = LazyLock::new(|| look_at_one_with(", j.running_tick"));

/// Looks at one job, without them.
static LOOK_AT_ONE_OF_OLD: LazyLock<String> = LazyLock::new(|| look_at_one_with(""));

fn look_at_one_with(more: &str) -> String {
    format!(
        "SELECT {COLUMNS}{more}, pg_catalog.clock_timestamp() AS now, {} AS seal, j.tableoid FROM bgworker.job AS j \
         WHERE j.name OPERATOR(pg_catalog.=) $1",
        *SEAL
    )
}

/// Looks at one job, on the connection that runs it. `None` if it is not declared.
pub(super) async fn look_at_one(
    connection: &Connection,
    name: &str,
    has_declarations: bool,
) -> Result<Option<Claimed>, DatabaseError> {
    let sql = if has_declarations {
        &LOOK_AT_ONE
    } else {
        &LOOK_AT_ONE_OF_OLD
    };
    let parameters: [Borrowed<'_>; 1] = [(&name, Type::TEXT)];
    let rows = connection
        .query("look at the job", sql, &parameters)
        .await?;
    Ok(rows.first().and_then(|row| {
        Some(Claimed {
            seal: row.get("seal"),
            table: row.get("tableoid"),
            has_declarations,
            running: Running::of(row, has_declarations),
            ..Claimed::outside(job_row(row)?, row::timestamp(row, "now"))
        })
    }))
}

/// The arguments of a [`CLAIM`]; the ticks are the one that is due and the one before.
pub(super) fn claiming(name: &str, declared: &str, ticks: [Timestamp; 2]) -> [String; 5] {
    let [tick, previous] = ticks;
    [
        literal(name),
        literal(declared),
        timestamptz(tick),
        format!("'{tick}'"),
        format!("'{previous}'"),
    ]
}

/// Locks the row of a job, whether or not a tick is due, in the transaction under way. `None` if another session has
/// it.
pub(super) async fn take(
    connection: &Connection,
    tables: &Tables,
    name: &str,
) -> Result<Option<Claimed>, DatabaseError> {
    let take = in_full(&TAKE, &[literal(name)]);
    let rows = connection.simple_query("claim the tick", &take).await?;
    Ok(rows.iter().find_map(|row| claimed(row, tables)))
}

/// What was claimed, if this is a row that the claim has found.
pub(super) fn claimed(row: &SimpleQueryRow, tables: &Tables) -> Option<Claimed> {
    let text = |column| row.text(column).map(str::to_owned);
    Some(Claimed {
        row: job_row(row)?,
        now: row.time("now")?,
        at: Instant::now(),
        transaction: text("transaction")?,
        seal: text("seal"),
        table: text("tableoid")?.parse().ok()?,
        locker: text("locker"),
        has_declarations: tables.has_declarations,
        running: None,
        ticks: None,
    })
}
