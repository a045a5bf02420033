//! One run of a job now, beside its schedule: to try it, or to redo what went wrong. Does not change which ticks are
//! done.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use thiserror::Error;
use tokio::time::Instant;

use super::claim::{self, Claimed};
use super::declare::Declaring;
use super::ending::CHECK_CONSTRAINTS;
use super::failure::Failure;
use super::job::Job;
use super::napping::Untracked;
use super::outside::lock;
use super::row::{self, JobRow};
use super::run::{Ran, Run};
use super::surroundings;
use super::tables::{self, Tables, TablesError};
use super::when::When;
use crate::context::Progress;
use crate::database::{Connection, Database, DatabaseError};
use crate::functions::beside::Beside;
use crate::functions::session::Session;
use crate::latch::{Latch, Wake};

/// How long a cancelled run may take to end.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// How to run a job beside its schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Once {
    /// The tick that its statements see; the server's time unless set.
    pub tick: Option<Timestamp>,
    /// Whether to undo the run, and report what it would have written. Sequences and effects outside the database are
    /// not undone.
    pub dry_run: bool,
}

/// What a run has done, or a dry run would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnceReport {
    /// How many rows its statements have written.
    pub rows: u64,
    /// How long it took.
    pub took: Duration,
    /// What it would have written, by table; empty unless it was a dry run.
    pub changes: Vec<TableChange>,
}

/// What a dry run would have written to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableChange {
    /// The table.
    pub table: String,
    /// How many rows it would have inserted.
    pub inserted: u64,
    /// How many rows it would have updated.
    pub updated: u64,
    /// How many rows it would have deleted.
    pub deleted: u64,
}

/// Why a job was not run, or did not complete.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OnceError {
    /// The tables of jobs cannot be used.
    #[error(transparent)]
    Tables(Box<dyn std::error::Error + Send + Sync>),
    /// The tables of jobs were changed meanwhile.
    #[error(
        "the tables of jobs were changed while they were used: nothing is recorded of this run"
    )]
    Changed,
    /// Another session runs it.
    #[error("the job runs now: another session has its row")]
    Running,
    /// A dry run was asked for, but the job does not run in a transaction that could be undone.
    #[error("a job with \"transaction = false\" cannot be tried: what it does is not undone")]
    NotUndone,
    /// A statement failed, for this reason.
    #[error("{0}")]
    Failed(String),
    /// It was interrupted, and undone if it is one transaction.
    #[error("interrupted")]
    Interrupted,
    /// The database could not be reached, or reported an error.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl From<TablesError> for OnceError {
    fn from(error: TablesError) -> Self {
        match error {
            TablesError::Database(error) => Self::Database(error),
            error => Self::Tables(Box::new(error)),
        }
    }
}

/// Does work once, beside its schedule. A run of a job with ticks is recorded as `once`, and creates the tables of jobs and
/// the job's row if they are missing. A dry run, and a run of work that naps, record and create nothing.
///
/// When `interrupted` completes, the run is cancelled.
///
/// # Errors
///
/// If the work was not done, or not all of it.
pub async fn once(
    database: &Database,
    worker: &str,
    when: &When,
    once: Once,
    interrupted: impl Future<Output = ()>,
) -> Result<OnceReport, OnceError> {
    let job = when.job();
    if once.dry_run && job.transaction.is_none() {
        return Err(OnceError::NotUndone);
    }
    let connection = Rc::new(database.connect(worker, job.database.as_deref()).await?);
    let (latch, beside) = (Latch::default(), Beside::default());
    let at_work = beside.begin(connection.cancel_token());
    let progress = Progress::default();
    let run = Run {
        name: &Job::name(worker, database.settings().namespace.as_deref()),
        latch: &latch,
        database,
        job,
        beside: &beside,
        tables: &Tables::default(),
        is_once: true,
        progress: &progress,
        begun: Cell::new(false),
        deallocates: Cell::new(true),
        is_clean: Cell::new(true),
        own: None,
        interrupted_by: None,
        is_over: true,
    };
    let mut running = Box::pin(run_once(run, &connection, when, once));
    let ran = tokio::select! {
        biased;
        ran = &mut running => ran,
        () = interrupted => {
            latch.raise(Wake::Sigint);
            beside.cancel().await;
            match tokio::time::timeout(CANCEL_TIMEOUT, running).await {
                // It had committed before it was cancelled.
                Ok(Ok(report)) => Ok(report),
                _ => Err(OnceError::Interrupted),
            }
        }
    };
    drop(at_work);
    ran
}

async fn run_once(
    run: Run<'_>,
    connection: &Rc<Connection>,
    when: &When,
    once: Once,
) -> Result<OnceReport, OnceError> {
    match when {
        _ if once.dry_run => dry_run(&run, connection, once.tick).await,
        When::Naps(_) => untracked(run.run_untracked().await?),
        When::Ticks(job) => {
            let tables = &see_to_row(connection, &run).await?;
            let run = Run { tables, ..run };
            let ran = if job.transaction.is_some() {
                in_transaction(&run, connection, once.tick).await?
            } else {
                outside(&run, connection, once.tick).await?
            };
            report(ran)
        }
    }
}

// === impl OnceReport ===

impl OnceReport {
    fn of(rows: u64, took: Duration) -> Self {
        Self {
            rows,
            took,
            changes: Vec::new(),
        }
    }
}

fn untracked(ran: Untracked) -> Result<OnceReport, OnceError> {
    match ran {
        Untracked::Done { rows, took } => Ok(OnceReport::of(rows, took)),
        Untracked::Failed(why) => Err(OnceError::Failed(why)),
        Untracked::Interrupted => Err(OnceError::Interrupted),
    }
}

fn report(ran: Ran) -> Result<OnceReport, OnceError> {
    match ran {
        Ran::Done { rows, took, .. } => Ok(OnceReport::of(rows, took)),
        Ran::Failed { why, .. } => Err(OnceError::Failed(why)),
        Ran::Lost(lost) | Ran::Conflicted(lost) => Err(OnceError::Failed(lost.failure.why)),
        Ran::Unmarked(why) => Err(OnceError::Failed(why.to_owned())),
        Ran::Elsewhere | Ran::Unrecorded => Err(OnceError::Running),
        Ran::Changed => Err(OnceError::Changed),
        Ran::Interrupted(_) => Err(OnceError::Interrupted),
    }
}

/// Creates the tables if they are missing, and declares the job if it has no row: it begins with its next tick.
async fn see_to_row(connection: &Rc<Connection>, run: &Run<'_>) -> Result<Tables, OnceError> {
    let session = Session::Own(Rc::clone(connection));
    let trusted = &run.database.settings().trusted_owners;
    let tables = tables::make(&session, trusted, true).await?;
    let look = row::look(&session, run.name, Instant::now()).await?;
    if look.row.is_none() {
        let own = surroundings::ask(&session, Some(run.database)).await?;
        let declaring = Declaring {
            name: run.name,
            job: run.job,
            by: &surroundings::instance(&own),
            tables: &tables,
        };
        match declaring.declare(&session, look.now, false).await {
            Err(error) if tables::are_changed(&error) => return Err(OnceError::Changed),
            declared => declared?,
        }
    }
    Ok(tables)
}

async fn in_transaction(
    run: &Run<'_>,
    connection: &Connection,
    tick: Option<Timestamp>,
) -> Result<Ran, DatabaseError> {
    connection
        .batch_execute("begin", &run.begin_writing(connection))
        .await?;
    let Some(taken) = claim::take(connection, run.tables, run.name).await? else {
        return Ok(Ran::Elsewhere);
    };
    if !run.are_as_looked_at(&taken) {
        return Ok(Ran::Changed);
    }
    run.run_claimed(connection, &taken, tick.unwrap_or(taken.now))
        .await
}

async fn outside(
    run: &Run<'_>,
    connection: &Connection,
    tick: Option<Timestamp>,
) -> Result<Ran, DatabaseError> {
    if !lock(connection, run.name).await? {
        return Ok(Ran::Elsewhere);
    }
    let Some(claimed) =
        claim::look_at_one(connection, run.name, run.tables.has_declarations).await?
    else {
        return Ok(Ran::Elsewhere);
    };
    if !run.are_as_looked_at(&claimed) {
        return Ok(Ran::Changed);
    }
    let now = claimed.now;
    run.work_outside(connection, claimed, tick.unwrap_or(now))
        .await
}

/// Runs the statements in a transaction that is undone. Neither reads nor creates bgworker's tables.
async fn dry_run(
    run: &Run<'_>,
    connection: &Connection,
    tick: Option<Timestamp>,
) -> Result<OnceReport, OnceError> {
    connection
        .batch_execute("begin", &run.begin(connection))
        .await?;
    let now = row::clock(connection).await?;
    let tick = tick.unwrap_or(now);
    let before = tick.checked_sub(Duration::from_nanos(1)).unwrap_or(tick);
    let claimed = Claimed::outside(
        JobRow::new(run.job.schedule.newest(before).unwrap_or(before)),
        now,
    );
    let end = async |rows| {
        let checking = connection.execute_within("end the run", CHECK_CONSTRAINTS, run.job.timeout);
        let checked = checking.await.map(|_| rows);
        checked.map_err(|error| run.of_constraint(&claimed, error))
    };
    let working = run.work_through_conflicts(connection, &claimed, tick, end);
    let rows = working
        .await
        .map_err(|Failure { why, .. }| OnceError::Failed(why))?;
    let took = claimed.at.elapsed();
    let changes = changes(connection).await?;
    connection.batch_execute("undo it", "ROLLBACK").await?;
    Ok(OnceReport {
        rows,
        took,
        changes,
    })
}

/// Counts what the transaction under way has written, by table.
async fn changes(connection: &Connection) -> Result<Vec<TableChange>, DatabaseError> {
    let sql = "SELECT pg_catalog.format('%I.%I', schemaname, relname), n_tup_ins, n_tup_upd, n_tup_del \
               FROM pg_catalog.pg_stat_xact_user_tables \
               WHERE n_tup_ins OPERATOR(pg_catalog.+) n_tup_upd OPERATOR(pg_catalog.+) n_tup_del \
               OPERATOR(pg_catalog.>) 0 ORDER BY 1";
    let rows = connection
        .query("look at what it has written", sql, &[])
        .await?;
    let changes = rows.iter().map(|row| {
        let count = |column: usize| u64::try_from(row.get::<_, i64>(column)).unwrap_or(0);
        TableChange {
            table: row.get(0),
            inserted: count(1),
            updated: count(2),
            deleted: count(3),
        }
    });
    Ok(changes.collect())
}
