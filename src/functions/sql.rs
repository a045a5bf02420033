//! The function `sql`: statements on a timer or a schedule, each tick once, whichever instance gets there first.
//!
//! A worker looks at the row of its job, sleeps until the next tick, and runs what is due. What is due is decided from
//! the row and the server's clock, never from memory, so that instances need not know each other.

mod due;
mod elsewhere;
mod failure;
mod gap;
mod job;
mod locker;
mod lost;
mod mark;
mod napping;
mod once;
mod outside;
mod past;
mod ring;
mod run;
mod scheduled;
mod settings;
mod statements;
mod surroundings;
mod tables;
mod work;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, info};

use self::napping::Napping;
pub use self::once::{Once, OnceError, OnceReport, TableChange, once};
use self::scheduled::{Lasting, Scheduled};
pub use self::settings::{Isolation, Missed, Settings};
pub use self::statements::InvalidStatements;
use super::function::{Function, Mistake, Objects};
use super::runner;
use crate::background_worker::{Access, BackgroundWorker};
use crate::context::{Main, Progress, WorkerContext};

/// The figure that counts the runs that ended, whatever became of them.
pub const RUNS: &str = "runs";

/// The figure that counts those of them that failed.
pub const FAILED_RUNS: &str = "failed_runs";

/// The figure that counts the rows that runs have written.
pub const ROWS: &str = "rows";

/// The figure that shows how long the last run took, in milliseconds.
pub const LAST_RUN_MILLISECONDS: &str = "last_run_milliseconds";

/// The figure that shows the next tick, in seconds since the epoch.
pub const NEXT_TICK: &str = "next_tick_timestamp_seconds";

/// The figure that counts the ticks that were given up.
pub const GIVEN_UP: &str = "given_up";

/// The histogram of the runs that were done.
const RUN: &str = "job_run";

/// The histogram of the time from a tick to its run, by the server's clock.
const LATENESS: &str = "job_lateness";

/// Why a run waits for its turn.
const CROWDED: &str = "other jobs use all connections for jobs: set \"jobs\" in [database] higher, \
    or connection = \"own\" for those that take long";

/// The function `sql` of a configuration file.
pub(super) struct Sql;

/// Counts a run that was done.
fn count(worker: &str, progress: &Progress, rows: u64, took: Duration) {
    progress.count(RUNS, 1);
    progress.count(ROWS, rows);
    progress.observe(RUN, took);
    progress.did(format!("{rows} rows"), took);
    let milliseconds = i64::try_from(took.as_millis()).unwrap_or(i64::MAX);
    progress.level(LAST_RUN_MILLISECONDS, milliseconds);
    match progress.is_worth_a_line() {
        Some(0) => info!(
            worker,
            rows, milliseconds, "{worker}: done, {rows} rows in {milliseconds} ms"
        ),
        Some(more) => info!(
            worker,
            rows,
            milliseconds,
            "{worker}: done, {rows} rows in {milliseconds} ms; {more} more runs since the last such line"
        ),
        None => debug!(
            worker,
            rows, milliseconds, "{worker}: done, {rows} rows in {milliseconds} ms"
        ),
    }
}

// === impl Sql ===

impl Function for Sql {
    const NAME: &'static str = "sql";
    // It uses nothing in this process that another worker's crash could have damaged.
    const ACCESS: Access = Access::None;
    const IN_PLACE: &'static [&'static str] = &[
        "missed",
        "attempts",
        "isolation",
        "timeout",
        "history",
        "connection",
    ];

    type Settings = Settings;

    fn schema() -> serde_json::Value {
        crate::keys::schema::of::<Settings>()
    }

    fn look_beside(&self, settings: &mut Settings, directory: &Path) {
        settings.look_beside(directory);
    }

    fn check(&self, settings: &mut Settings, worker: &BackgroundWorker) -> Vec<Mistake> {
        settings.check(worker)
    }

    fn objects(&self, settings: &Settings, role: &str) -> Objects {
        Objects {
            database: settings.database.clone(),
            statements: match settings.naptime {
                Some(_) => Vec::new(),
                None => tables::objects(role),
            },
        }
    }

    fn needs_session(&self, settings: &Settings) -> Option<&'static str> {
        // A run outside of a transaction takes a lock of its session.
        (!settings.transaction).then_some("transaction")
    }

    fn main(&self, settings: watch::Receiver<Settings>) -> impl Main {
        let lasting = Arc::<Lasting>::default();
        move |context: WorkerContext| {
            let (settings, lasting) = (settings.clone(), Arc::clone(&lasting));
            async move {
                // Changing from one to the other makes it another worker.
                let naps = settings.borrow().naptime.is_some();
                if naps {
                    runner::run(context, settings, Napping::default()).await
                } else {
                    runner::run(context, settings, Scheduled::new(lasting)).await
                }
            }
        }
    }
}
