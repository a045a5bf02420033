//! The built-in worker: PostgreSQL's `worker_spi`, which folds `delta` rows into the `total` row.
//!
//! Connects, makes its table if it is missing, and then, until it is asked to stop: one cycle, one
//! nap. A cycle is one transaction of one statement. It never deletes a delta that it has not added
//! to the total, and writes nothing when there is no delta.

mod initialize;
mod statement;

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::{Row, Statement};
use tracing::{debug, error, info, warn};

pub use self::initialize::UnusableTable;
pub use self::statement::{InvalidTable, Nulls, Table};
use crate::context::{Main, WorkerContext, WorkerError};
use crate::database::{Connection, DatabaseError};
use crate::latch::Wake;

/// What one built-in worker does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Its table.
    pub table: Table,
    /// How long it naps between the end of one cycle and the next. A `Sighup` may change it.
    pub naptime: Duration,
    /// The database it connects to, if not the one of the connection settings.
    pub database: Option<String>,
    /// The total that it inserts if there is none. Unless set, deltas wait for somebody else's.
    pub initial_total: Option<i64>,
}

/// The first wait after a cycle that others kept from its total.
const RETRY_INITIAL: Duration = Duration::from_millis(10);

/// The longest of these waits, unless the naptime is shorter.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// The longest wait while something has to be mended, unless the naptime is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// After so many retries in a row, somebody should know.
const RETRIES_UNTIL_WARNING: u32 = 8;

/// How long a cancelled cycle may take to say so.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// One worker at work.
struct Folder {
    context: WorkerContext,
    settings: watch::Receiver<Settings>,
    connection: Connection,
    sql: String,
    statement: Statement,
    nulls: Nulls,
    /// What was reported last: the same again is not.
    reported: Condition,
    /// Rows with NULL were reported, and are still there.
    nulls_reported: bool,
    retries: u32,
    backoffs: u32,
}

/// What a cycle found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Folded { rows: u64, total: i64 },
    Idle,
    Skipped,
    NoTotal,
}

/// What somebody would have to be told, once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Well,
    NoTotal,
    Crowded,
    Failing { sqlstate: String },
}

/// What to do about a cycle that failed.
enum Remedy {
    /// Somebody was in the way, or a plan is out of date: once more, soon.
    Again,
    /// Something has to be mended first: once more, but ever less often.
    BackOff,
    /// The server is read-only: the worker ends, and comes back when it is not.
    Away,
    /// The worker ends.
    Exit,
}

/// The main of a built-in worker with these settings.
///
/// The sender of `settings` may change the naptime: write it, then send `Sighup`. Register it with
/// [`Access::Database`](crate::Access::Database) and
/// [`StartTime::RecoveryFinished`](crate::StartTime::RecoveryFinished): it writes.
pub fn main(settings: watch::Receiver<Settings>) -> impl Main {
    move |context| run(context, settings.clone())
}

async fn run(
    context: WorkerContext,
    settings: watch::Receiver<Settings>,
) -> Result<(), WorkerError> {
    let latch = context.latch().clone();
    let starting = pin!(Folder::start(context, settings));
    let mut folder = tokio::select! {
        biased;
        () = latch.stop_requested() => return Ok(()),
        started = starting => started?,
    };
    let end = folder.work().await;
    folder.connection.close().await;
    end
}

// === impl Settings ===

impl Settings {
    /// PostgreSQL's sample: a cycle a second on this table, in the database of the connection
    /// settings.
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self {
            table,
            naptime: Self::NAPTIME,
            database: None,
            initial_total: None,
        }
    }

    /// How long a worker naps unless it is told otherwise.
    pub const NAPTIME: Duration = Duration::from_secs(1);
}

// === impl Folder ===

impl Folder {
    async fn start(
        mut context: WorkerContext,
        settings: watch::Receiver<Settings>,
    ) -> Result<Self, WorkerError> {
        let Settings {
            table,
            database,
            initial_total,
            ..
        } = settings.borrow().clone();
        let connection = context.connect(database.as_deref()).await?;
        let nulls = initialize::initialize(&connection, &table, initial_total).await?;
        let sql = table.fold(context.name(), nulls);
        let statement = connection.prepare("prepare the fold", &sql).await?;
        let (worker, schema, name) = (context.name(), table.schema(), table.name());
        info!(
            worker,
            schema,
            table = name,
            "{worker} initialized with {schema}.{name}"
        );
        context.ready();
        Ok(Self {
            context,
            settings,
            connection,
            sql,
            statement,
            nulls,
            reported: Condition::Well,
            nulls_reported: false,
            retries: 0,
            backoffs: 0,
        })
    }

    /// Cycles and naps until it is asked to stop.
    async fn work(&mut self) -> Result<(), WorkerError> {
        // Thousands that started together are not to march in step.
        let mut part_of_nap = fastrand::f64();
        loop {
            let Some(cycle) = self.cycle().await else {
                return Ok(());
            };
            let nap = match cycle {
                Ok(rows) => {
                    let outcome = self.read(rows.first());
                    self.found(&outcome).mul_f64(part_of_nap)
                }
                Err(error) => self.failed(error).await?,
            };
            part_of_nap = 1.0;
            match self.context.nap(nap).await {
                Wake::Timeout => {}
                Wake::Sighup => debug!(worker = self.context.name(), "got sighup!"),
                Wake::Sigterm | Wake::Sigint | Wake::PostmasterDeath => return Ok(()),
            }
        }
    }

    /// One transaction. `None` if it was cancelled, because the worker is to end.
    async fn cycle(&self) -> Option<Result<Vec<Row>, DatabaseError>> {
        let mut answer = pin!(self.connection.query_prepared("fold", &self.statement));
        tokio::select! {
            biased;
            rows = &mut answer => Some(rows),
            () = self.context.latch().cancel_requested() => {
                self.connection.cancel().await;
                // It may have committed before the cancellation arrived; both is well.
                let _ = tokio::time::timeout(CANCEL_TIMEOUT, answer).await;
                None
            }
        }
    }

    fn read(&mut self, row: Option<&Row>) -> Outcome {
        let Some(row) = row else {
            return Outcome::Skipped;
        };
        let nulls = self.nulls == Nulls::Possible && row.get(3);
        if nulls && !self.nulls_reported {
            let worker = self.context.name();
            let table = &self.settings.borrow().table;
            warn!(
                worker,
                "{worker}: {table} has rows whose value is NULL: they are left alone"
            );
        }
        self.nulls_reported = nulls;
        match row.get(2) {
            statement::FOLDED => Outcome::Folded {
                rows: row.get::<_, i64>(1).unsigned_abs(),
                total: row.get(0),
            },
            statement::IDLE => Outcome::Idle,
            statement::NO_TOTAL => Outcome::NoTotal,
            _ => Outcome::Skipped,
        }
    }

    /// What follows from what a cycle found: how long to nap.
    fn found(&mut self, outcome: &Outcome) -> Duration {
        let naptime = self.settings.borrow().naptime;
        self.backoffs = 0;
        match *outcome {
            Outcome::Skipped => return self.retry(),
            Outcome::NoTotal => {
                if self.is_news(Condition::NoTotal) {
                    let worker = self.context.name();
                    let table = &self.settings.borrow().table;
                    warn!(
                        worker,
                        "{worker}: {table} has deltas but no total: they wait until one is inserted"
                    );
                }
            }
            Outcome::Idle => self.succeeded(),
            Outcome::Folded { rows, total } => {
                self.succeeded();
                self.context.progress().folded(rows, total);
                let worker = self.context.name();
                let table = &self.settings.borrow().table;
                info!(
                    worker,
                    rows, total, "{worker}: count in {table} is now {total}"
                );
            }
        }
        self.retries = 0;
        naptime
    }

    /// What follows from a cycle that failed: how long to nap, or the worker's end.
    async fn failed(&mut self, error: DatabaseError) -> Result<Duration, WorkerError> {
        self.context.progress().failed(error.to_string());
        match self.remedy(&error).await {
            Remedy::Again => {
                debug!(worker = self.context.name(), %error, "the fold is tried again");
                self.prepare_again(&error).await?;
                Ok(self.retry())
            }
            Remedy::BackOff => {
                let sqlstate = error.sqlstate().unwrap_or_default().to_owned();
                if self.is_news(Condition::Failing { sqlstate }) {
                    let worker = self.context.name();
                    let sqlstate = error.sqlstate();
                    error!(worker, sqlstate, "{worker}: {error}: the deltas are kept");
                }
                Ok(self.back_off())
            }
            Remedy::Away => Err(WorkerError::DatabaseAway(Box::new(error))),
            Remedy::Exit => Err(error.into()),
        }
    }

    async fn remedy(&self, error: &DatabaseError) -> Remedy {
        if error.is_away() {
            return Remedy::Exit;
        }
        match error.sqlstate() {
            Some("40001" | "40P01" | "55P03" | "57014" | "26000" | "0A000") => Remedy::Again,
            Some("22003" | "53100" | "53200") => Remedy::BackOff,
            Some("25006") => match self.connection.is_in_recovery().await {
                Ok(true) | Err(_) => Remedy::Away,
                Ok(false) => Remedy::BackOff,
            },
            Some(_) | None => Remedy::Exit,
        }
    }

    /// Prepares the statement again, if what is prepared is out of date.
    async fn prepare_again(&mut self, error: &DatabaseError) -> Result<(), WorkerError> {
        if matches!(error.sqlstate(), Some("26000" | "0A000")) {
            self.statement = self
                .connection
                .prepare("prepare the fold again", &self.sql)
                .await?;
        }
        Ok(())
    }

    fn retry(&mut self) -> Duration {
        self.retries = self.retries.saturating_add(1);
        if self.retries == RETRIES_UNTIL_WARNING && self.is_news(Condition::Crowded) {
            let worker = self.context.name();
            let table = &self.settings.borrow().table;
            warn!(
                worker,
                "{worker}: others keep {table} locked: its deltas wait"
            );
        }
        let max = RETRY_MAX.min(self.settings.borrow().naptime);
        doubled(RETRY_INITIAL, self.retries, max)
    }

    fn back_off(&mut self) -> Duration {
        self.backoffs = self.backoffs.saturating_add(1);
        let naptime = self.settings.borrow().naptime;
        doubled(naptime, self.backoffs, BACKOFF_MAX.max(naptime))
    }

    fn succeeded(&mut self) {
        self.context.progress().succeeded();
        self.reported = Condition::Well;
    }

    /// Remembers a condition, and says whether it was another one before.
    fn is_news(&mut self, condition: Condition) -> bool {
        let is_news = self.reported != condition;
        self.reported = condition;
        is_news
    }
}

/// `initial`, doubled with every time after the first, at most `max`.
fn doubled(initial: Duration, times: u32, max: Duration) -> Duration {
    let doublings = times.saturating_sub(1).min(20);
    initial.saturating_mul(1 << doublings).min(max)
}
