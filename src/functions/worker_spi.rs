//! The built-in worker: PostgreSQL's `worker_spi`, which folds `delta` rows into the `total` row.
//!
//! It connects, makes its table if that is missing, and then alternates between a cycle and a nap until it is asked
//! to stop. A cycle is one look and, if there are deltas, folds of some blocks each. A fold is one transaction of one
//! statement. It never deletes a delta that it has not added to the total; a look writes nothing.
//!
//! ```no_run
//! use bgworker::worker_spi::{self, Settings, Table};
//! use bgworker::{Access, BackgroundWorker, PostmasterHandle};
//! use tokio::sync::watch;
//!
//! /// Registers a worker on the table `shop.sales`. A change by the sender holds from the next cycle or `Sighup` on.
//! async fn register(
//!     postmaster: &PostmasterHandle,
//! ) -> Result<watch::Sender<Settings>, Box<dyn std::error::Error>> {
//!     let settings = Settings::new(Table::new("shop", "sales")?).initial_total(0);
//!     let (sender, receiver) = watch::channel(settings);
//!     let worker = BackgroundWorker::new("sales").access(Access::Database);
//!     let worker = postmaster.register(worker, worker_spi::main(receiver)).await?;
//!     worker.ready().await?; // its table exists
//!     Ok(sender)
//! }
//! ```

mod check;
mod fold;
mod initialize;
mod objects;
mod shape;
mod statement;
mod table;
mod truncation;

use std::time::Duration;

use self::fold::OneTotal;
pub use self::table::{InvalidTable, Table};
use super::folding::{Folding, Known, keys};
use super::function::{Claim, Function, Mistake, Objects};
use super::runner;
pub use super::session::ConnectionKind;
use super::session::Place;
use crate::background_worker::{BackgroundWorker, StartTime};
use crate::context::{Main, WorkerContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The settings of one built-in worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Settings {
    #[serde(deserialize_with = "table::schema_name")]
    #[schemars(length(min = 1, max = 63))]
    schema: String,
    #[serde(deserialize_with = "table::table_name")]
    #[schemars(length(min = 1, max = 50))]
    table: String,
    /// How long the worker naps between the end of one cycle and the next. A `Sighup` may change it.
    #[serde(with = "crate::keys::duration", default = "keys::naptime")]
    #[schemars(with = "crate::keys::schema::Time")]
    pub naptime: Duration,
    /// About how many deltas it folds in one transaction, at most; more are folded in several, one after the other. A
    /// `Sighup` may change it.
    #[serde(
        deserialize_with = "crate::keys::number::positive",
        default = "keys::batch"
    )]
    #[schemars(range(min = 1))]
    pub batch: usize,
    /// How long one transaction of a backlog should take on the server: pieces grow and shrink towards it, up to `batch`.
    #[serde(with = "crate::keys::duration", default = "keys::fold_time")]
    #[schemars(with = "crate::keys::schema::Time")]
    pub fold_time: Duration,
    /// How it removes folded deltas.
    #[serde(default)]
    pub fold: Fold,
    /// After folding this many deltas, it has its table vacuumed, on a connection that no worker waits for; never if
    /// this is `None`. A `Sighup` may change it.
    #[serde(
        with = "crate::keys::number::zero_is_never",
        default = "keys::vacuum_after"
    )]
    #[schemars(with = "u64")]
    pub vacuum_after: Option<u64>,
    /// The database it connects to, if not the one of the connection settings.
    #[serde(deserialize_with = "crate::database::dbname::deserialize", default)]
    pub database: Option<String>,
    /// Where its statements run. Unless set: on its home connection, or with [`Fold::Truncate`] on its own
    /// connection.
    #[serde(default)]
    pub connection: Option<ConnectionKind>,
    /// The total that it inserts if there is none: when it first looks at its table, and when it has found deltas
    /// without a total twice in a row. Unless set, deltas wait until a total is inserted.
    #[serde(default)]
    pub initial_total: Option<i64>,
}

/// The name of the figure that counts the rows that a built-in worker has folded.
pub const ROWS_FOLDED: &str = super::folding::ROWS_FOLDED;

/// The name of the figure that is the total after a built-in worker's last fold.
pub const TOTAL: &str = "total";

/// How a built-in worker removes the deltas that it folds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fold {
    /// Deletes them, a batch in each transaction. Other clients see nothing of it but the new total.
    #[default]
    Delete,
    /// Truncates the table if the backlog is larger than a batch, all of it in one transaction: about ten times as
    /// fast, with next to no write-ahead log. This takes a connection of the worker's own, whatever
    /// [`Settings::connection`] says.
    ///
    /// The table is locked while it is summed up, about 0.1 s for a million deltas, and readers and writers wait. The
    /// worker waits for the lock for 100 ms at most, and other clients wait behind it for as long. If it does not get
    /// the lock, or the table may hold anything else, or anything depends on the table, it deletes the deltas.
    ///
    /// Do not use it for a table
    ///
    /// - that is read in transactions of REPEATABLE READ or SERIALIZABLE: one that began before, and has not yet read
    ///   the table, finds it empty, without a total;
    /// - that is read on a hot standby: the lock is taken there too, and cancels queries that read for longer than
    ///   `max_standby_streaming_delay`;
    /// - whose deletions another system follows, as logical replication does if its `publish` lacks `truncate`.
    Truncate,
}

/// The main of a built-in worker with these settings.
///
/// The sender of `settings` may change `naptime`, `batch`, `fold_time` and `vacuum_after`: send the new settings, then a `Sighup`.
/// Register the worker with [`Access::Database`](crate::Access::Database) and
/// [`StartTime::RecoveryFinished`](crate::StartTime::RecoveryFinished), since it writes.
pub fn main(settings: watch::Receiver<Settings>) -> impl Main {
    let known = Known::default();
    move |context: WorkerContext| {
        let folding = Folding::new(OneTotal::default(), known.clone());
        runner::run(context, settings.clone(), Clone::clone, folding)
    }
}

/// The function, as a configuration file names it.
pub(super) struct WorkerSpi;

// === impl WorkerSpi ===

impl Function for WorkerSpi {
    const NAME: &'static str = "worker_spi";
    const IN_PLACE: &'static [&'static str] = &["naptime", "batch", "fold_time", "vacuum_after"];

    type Settings = Settings;

    fn schema() -> serde_json::Value {
        crate::keys::schema::of::<Settings>()
    }

    fn check(&self, settings: &mut Settings, worker: &BackgroundWorker) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        // A start before there is a database has been refused already.
        if worker.start_time == StartTime::ConsistentState {
            let message = "worker_spi writes: it can only start at \"recovery_finished\"";
            mistakes.push(Mistake::new("start_time", message));
        }
        if settings.fold == Fold::Truncate && settings.connection == Some(ConnectionKind::Home) {
            let message = "truncation needs a connection of the worker's own";
            let hint = "leave \"connection\" out, or set it to \"own\"";
            mistakes.push(Mistake::new("fold", message).hint(hint));
        }
        mistakes.extend(keys::check_fold_time(settings.fold_time));
        settings.connection = Some(settings.place().connection);
        mistakes
    }

    fn claims(&self, settings: &Settings) -> Vec<Claim> {
        let table = settings.table();
        // Several workers may share it: each fold is exact.
        let database = settings.database.as_deref();
        vec![Claim::table("table", database, table.relation())]
    }

    fn objects(&self, settings: &Settings, role: &str) -> Objects {
        Objects {
            database: settings.database.clone(),
            statements: settings.table().objects(role),
        }
    }

    fn main(&self, settings: watch::Receiver<Settings>) -> impl Main {
        main(settings)
    }
}

// === impl Settings ===

impl Settings {
    /// The settings of PostgreSQL's sample: a cycle a second on this table, in the database of the connection
    /// settings.
    #[must_use]
    pub fn new(table: Table) -> Self {
        let (schema, table) = table.into_names();
        Self {
            schema,
            table,
            naptime: keys::naptime(),
            batch: keys::batch(),
            fold_time: keys::fold_time(),
            fold: Fold::default(),
            vacuum_after: keys::vacuum_after(),
            database: None,
            connection: None,
            initial_total: None,
        }
    }

    /// Its table.
    #[must_use]
    pub fn table(&self) -> Table {
        Table::of_names(&self.schema, &self.table)
    }

    /// Where its statements run. Truncation takes a connection of the worker's own, and its sums may run in parallel.
    fn place(&self) -> Place<'_> {
        let connection = match self.fold {
            Fold::Delete => self.connection.unwrap_or_default(),
            Fold::Truncate => ConnectionKind::Own,
        };
        Place {
            dbname: self.database.as_deref(),
            connection,
            in_order: self.fold == Fold::Delete,
        }
    }

    /// Default naptime.
    pub const NAPTIME: Duration = keys::naptime();

    /// Default batch: it takes some tens of milliseconds to fold, and fits into a `work_mem` of 4 MB without a file.
    pub const BATCH: usize = keys::batch();

    /// Default number of folded deltas after which the table is vacuumed: about as many as a probe reads past in a
    /// millisecond once they are dead.
    pub const VACUUM_AFTER: u64 = keys::VACUUM_AFTER;

    /// Sets how long the worker naps between two cycles; [`NAPTIME`](Self::NAPTIME) unless set.
    #[must_use]
    pub fn naptime(mut self, naptime: Duration) -> Self {
        self.naptime = naptime;
        self
    }

    /// Sets about how many deltas one transaction folds at most; [`BATCH`](Self::BATCH) unless set. 0 counts as 1.
    #[must_use]
    pub fn batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// Sets how long one transaction of a backlog should take on the server; 50 ms unless set. Larger pieces fold a backlog
    /// faster, and other clients that update a row of it wait longer. `batch` still limits them.
    #[must_use]
    pub fn fold_time(mut self, fold_time: Duration) -> Self {
        self.fold_time = fold_time;
        self
    }

    /// Sets how it removes folded deltas; [`Fold::Delete`] unless set.
    #[must_use]
    pub fn fold(mut self, fold: Fold) -> Self {
        self.fold = fold;
        self
    }

    /// Sets after how many folded deltas it has its table vacuumed, `None` for never;
    /// [`VACUUM_AFTER`](Self::VACUUM_AFTER) unless set.
    #[must_use]
    pub fn vacuum_after(mut self, vacuum_after: Option<u64>) -> Self {
        self.vacuum_after = vacuum_after;
        self
    }

    /// Sets the database it connects to; that of the connection settings unless set.
    #[must_use]
    pub fn database(mut self, database: impl Into<String>) -> Self {
        self.database = Some(database.into());
        self
    }

    /// Sets where its statements run; [`ConnectionKind::Home`] unless set, and always [`ConnectionKind::Own`] with
    /// [`Fold::Truncate`].
    #[must_use]
    pub fn connection(mut self, connection: ConnectionKind) -> Self {
        self.connection = Some(connection);
        self
    }

    /// Sets the total that it inserts if there is none; unless set, deltas wait until another client inserts one.
    #[must_use]
    pub fn initial_total(mut self, initial_total: i64) -> Self {
        self.initial_total = Some(initial_total);
        self
    }
}
