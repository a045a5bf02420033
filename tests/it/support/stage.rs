//! The stage of most tests: a database per test, a Postmaster on it, and a worker `w` on the table `s.t`.

use bgworker::worker_spi::{ConnectionKind, Settings, Table};
use bgworker::{PostmasterHandle, WorkerStatus};
use tokio_postgres::types::FromSql;

use super::database::{TestDatabase, TestWorker, brisk, cycles, napping, table, wake};
use super::eventually;

/// A worker that is ready, and what a test needs to watch and to disturb it.
pub(crate) struct Stage {
    pub(crate) db: TestDatabase,
    pub(crate) table: Table,
    pub(crate) postmaster: PostmasterHandle,
    pub(crate) worker: TestWorker,
}

impl Stage {
    /// A stage whose worker hardly naps.
    pub(crate) async fn new() -> Self {
        Self::with(brisk).await
    }

    /// A stage whose worker has these settings.
    pub(crate) async fn with(settings: impl FnOnce(&Table) -> Settings) -> Self {
        Self::on(TestDatabase::new().await, settings).await
    }

    /// A stage on a database that exists, whose worker has these settings.
    pub(crate) async fn on(db: TestDatabase, settings: impl FnOnce(&Table) -> Settings) -> Self {
        let table = table("s", "t");
        let postmaster = db.postmaster();
        let worker = db.worker(&postmaster, "w", settings(&table)).await;
        Self {
            db,
            table,
            postmaster,
            worker,
        }
    }

    /// A stage whose worker naps for a day, until it is [woken](Self::wake).
    pub(crate) async fn napping(connection: ConnectionKind) -> Self {
        let (db, table) = (TestDatabase::new().await, table("s", "t"));
        let postmaster = db.postmaster();
        let worker = napping(&db, &postmaster, &table, connection).await;
        Self {
            db,
            table,
            postmaster,
            worker,
        }
    }

    /// Runs statements, on a connection that is not the worker's.
    pub(crate) async fn execute(&self, sql: &str) {
        self.db.execute(sql).await;
    }

    /// The only value of the only row of a query.
    pub(crate) async fn value<T: for<'a> FromSql<'a>>(&self, sql: &str) -> T {
        self.db.value(sql).await
    }

    /// The rows of the table as `type|value`, sorted.
    pub(crate) async fn rows(&self) -> Vec<String> {
        self.db.rows(&self.table).await
    }

    /// Waits until the table has exactly these rows.
    pub(crate) async fn becomes(&self, rows: &[&str]) {
        self.db.wait_for_rows(&self.table, rows).await;
    }

    /// The status of the worker.
    pub(crate) async fn status(&self) -> WorkerStatus {
        let status = self.postmaster.worker(self.worker.id).await.unwrap();
        status.expect("the worker has ended")
    }

    /// Waits until the worker has done this many more cycles.
    pub(crate) async fn cycles(&self, more: u64) {
        cycles(&self.postmaster, self.worker.id, more).await;
    }

    /// Wakes the worker, and lets it nap for only 10 ms from now on.
    pub(crate) fn wake(&self) {
        wake(&self.postmaster, &self.worker);
    }
}

/// Makes each fold of `s.t` wait in a trigger, and leaves a delta to fold.
pub(crate) async fn fold_slowly(db: &TestDatabase, seconds: f64) {
    db.execute(&format!(
        "CREATE FUNCTION s.slow() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END'; \
         CREATE TRIGGER slow BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION s.slow(); \
         INSERT INTO s.t VALUES ('total', 0), ('delta', 1)"
    ))
    .await;
}

/// `true` if a statement of the worker waits on the server, with this `wait_event_type`.
pub(crate) async fn waits(db: &TestDatabase, worker: &str, wait_event_type: &str) -> bool {
    db.value(&format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
         AND query LIKE '%bgworker: {worker} %' AND wait_event_type = '{wait_event_type}')"
    ))
    .await
}

/// Waits until a fold that is slow on purpose is under way.
pub(crate) async fn is_folding(db: &TestDatabase, worker: &str) {
    eventually("the fold is under way", || waits(db, worker, "Timeout")).await;
}
