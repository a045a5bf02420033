//! Test jobs, written as in a configuration file, and instances of bgworker that have them.

use bgworker::config::{Functions, Settings};
use bgworker::database::Database;
use bgworker::reload::InForce;
use bgworker::supervision::{Limits, Shutdown};
use bgworker::{Postmaster, PostmasterHandle};

use super::database::{TestDatabase, database};
use super::{configuration, eventually};

/// An instance of bgworker that runs jobs, usually one named `j`.
pub(crate) struct Instance {
    pub(crate) postmaster: PostmasterHandle,
    in_force: InForce,
}

pub(crate) fn settings_of(db: &TestDatabase, jobs: &[(String, &str)]) -> Settings {
    let jobs = jobs
        .iter()
        .map(|(name, keys)| format!("[[worker]]\nname = \"{name}\"\nfunction = \"sql\"\n{keys}\n"));
    let jobs = jobs.collect::<String>();
    configuration::read(db, &Functions::built_in(), &jobs)
        .unwrap_or_else(|problems| panic!("{problems}"))
}

impl Instance {
    pub(crate) async fn new(db: &TestDatabase, keys: &str) -> Self {
        Self::on(db.database.clone(), db, keys).await
    }

    /// An instance that reaches the database through this handle.
    pub(crate) async fn on(database: Database, db: &TestDatabase, keys: &str) -> Self {
        let postmaster = Postmaster::launch(Limits::default(), Some(database)).unwrap();
        Self::registered(&postmaster, db, keys).await
    }

    /// An instance on a Postmaster that may run other workers as well.
    pub(crate) async fn registered(
        postmaster: &PostmasterHandle,
        db: &TestDatabase,
        keys: &str,
    ) -> Self {
        Self::register(postmaster, settings_of(db, &[("j".to_owned(), keys)])).await
    }

    /// An instance with this many identical jobs `j0`, `j1`, … and its own database handle.
    pub(crate) async fn with_many(db: &TestDatabase, jobs: usize, keys: &str) -> Self {
        let database = database(db.conninfo());
        let limits = Limits::default().starts_per_tick(100);
        let postmaster = Postmaster::launch(limits, Some(database)).unwrap();
        let jobs: Vec<_> = (0..jobs).map(|n| (format!("j{n}"), keys)).collect();
        Self::register(&postmaster, settings_of(db, &jobs)).await
    }

    pub(crate) async fn register(postmaster: &PostmasterHandle, settings: Settings) -> Self {
        let in_force = InForce::register(settings, postmaster.clone());
        Self {
            in_force: in_force.await.unwrap(),
            postmaster: postmaster.clone(),
        }
    }

    pub(crate) async fn reload(&mut self, settings: Settings) {
        self.in_force.reload(settings).await.unwrap();
    }

    pub(crate) async fn stop(self, mode: Shutdown) {
        self.postmaster.shut_down(mode);
        assert!(self.postmaster.exited().await.unwrap().aborted.is_empty());
    }
}

/// The table in which jobs record their effects.
pub(crate) const EFFECTS: &str =
    "CREATE TABLE effect (id serial, tick timestamptz, previous timestamptz, by text)";

/// A database with that table.
pub(crate) async fn stage() -> TestDatabase {
    let db = TestDatabase::new().await;
    db.execute(EFFECTS).await;
    db
}

/// Sets a job back by this many ticks of one second, none of which is done. Returns the server's time in seconds.
pub(crate) async fn set_back(db: &TestDatabase, ticks: i64) -> i64 {
    eventually("a tick is done", || async { runs(db, "true").await > 0 }).await;
    db.execute(&format!(
        "UPDATE bgworker.job SET last_tick = date_trunc('second', now()) - '{ticks} s'::interval; \
         TRUNCATE effect, bgworker.job_run"
    ))
    .await;
    db.value("SELECT extract(epoch FROM now())::bigint").await
}

/// `true` if the job has dealt with each tick up to this one.
pub(crate) async fn has_caught_up(db: &TestDatabase, tick: i64) -> bool {
    let last = "SELECT extract(epoch FROM last_tick)::bigint FROM bgworker.job";
    db.value::<i64>(last).await >= tick
}

/// Number of runs in the history that match a condition.
pub(crate) async fn runs(db: &TestDatabase, condition: &str) -> i64 {
    let has_tables = "SELECT to_regclass('bgworker.job_run') IS NOT NULL";
    if !db.value::<bool>(has_tables).await {
        return 0;
    }
    db.value(&format!(
        "SELECT count(*) FROM bgworker.job_run WHERE {condition}"
    ))
    .await
}

pub(crate) const EFFECT: &str = "INSERT INTO effect (tick, previous, by) SELECT current_setting('bgworker.tick')::timestamptz, \
                      current_setting('bgworker.previous_tick')::timestamptz, session_user";

pub(crate) fn every(interval: &str, sql: &str) -> String {
    format!("every = \"{interval}\"\nsql = \"\"\"{sql}\"\"\"")
}
