//! Test roll-ups, written as in a configuration file.

use bgworker::config::{Functions, Problems, Settings};
use bgworker::reload::InForce;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::{Postmaster, PostmasterHandle, WorkerStatus};

use super::database::{TestDatabase, database};
use super::{configuration, eventually};

/// The keys of a roll-up of sales by shop and day.
pub(crate) const SALES: &str = "queue = 's.sale_delta'\ntotals = 's.sale_total'\n\
    keys = ['shop', 'day']\nsum = ['amount']\ncount = 'n'\nnaptime = '10ms'";

/// The statements that create the tables of [`SALES`].
pub(crate) const SALES_TABLES: &str = "CREATE SCHEMA s; \
    CREATE TABLE s.sale_delta (shop int NOT NULL, day date NOT NULL, amount numeric); \
    CREATE TABLE s.sale_total (shop int NOT NULL, day date NOT NULL, amount numeric, n bigint, PRIMARY KEY (shop, day))";

/// An instance of bgworker with a roll-up `r`.
pub(crate) struct Rollup {
    pub(crate) postmaster: PostmasterHandle,
    _in_force: InForce,
}

/// Reads a configuration with one roll-up that has these keys.
pub(crate) fn read(db: &TestDatabase, keys: &str) -> Result<Settings, Problems> {
    let worker =
        format!("[[worker]]\nname = 'r'\nfunction = 'rollup'\nrestart_time = 'never'\n{keys}\n");
    configuration::read(db, &Functions::built_in(), &worker)
}

impl Rollup {
    /// Starts a roll-up on a Postmaster and a database handle of its own.
    pub(crate) async fn start(db: &TestDatabase, keys: &str) -> Self {
        let database = database(db.conninfo());
        let postmaster = Postmaster::launch(Limits::default(), Some(database)).unwrap();
        Self::registered(&postmaster, db, keys).await
    }

    /// Starts a roll-up on a Postmaster that may run other workers.
    pub(crate) async fn registered(
        postmaster: &PostmasterHandle,
        db: &TestDatabase,
        keys: &str,
    ) -> Self {
        let settings = read(db, keys).unwrap_or_else(|problems| panic!("{problems}"));
        let in_force = InForce::register(settings, postmaster.clone()).await;
        Self {
            postmaster: postmaster.clone(),
            _in_force: in_force.unwrap(),
        }
    }

    /// The status of the worker; `None` if it has ended.
    pub(crate) async fn status(&self) -> Option<WorkerStatus> {
        let workers = self.postmaster.workers().await.unwrap();
        workers.registered.into_iter().next()
    }

    /// The last error of the worker.
    pub(crate) async fn last_error(&self) -> Option<String> {
        let status = self.status().await?;
        status.report.last_error.map(|error| error.to_string())
    }

    /// Waits until the worker has ended, and returns the reason.
    pub(crate) async fn refusal(self) -> String {
        eventually("it ends", || async { self.status().await.is_none() }).await;
        let ended = self.postmaster.workers().await.unwrap().ended;
        ended[0].reason.as_deref().unwrap().to_owned()
    }

    pub(crate) async fn stop(self) {
        self.postmaster.shut_down(Shutdown::Smart);
        assert!(self.postmaster.exited().await.unwrap().aborted.is_empty());
    }
}
