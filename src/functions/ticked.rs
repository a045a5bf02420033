//! Jobs: work that is done at ticks, each tick once, whichever instance gets there first.
//!
//! A worker looks at the row of its job, sleeps until the next tick, and runs what is due. What is due is decided from
//! the row and the server's clock, never from memory, so that instances need not know each other. Nothing here knows
//! which kinds of [`Work`] there are.

mod claim;
mod declaration;
mod declare;
mod due;
mod elsewhere;
mod ending;
mod failure;
mod gap;
mod instances;
mod job;
mod locker;
mod lost;
mod mark;
mod napping;
mod once;
mod outside;
mod past;
mod redeclare;
mod ring;
mod row;
mod run;
mod scheduled;
mod settle;
mod surroundings;
mod tables;
mod when;
mod work;
mod working;

use std::time::Duration;

use tracing::{debug, info};

pub use self::failure::Failure;
pub use self::job::{Isolation, Job, Missed};
pub(super) use self::napping::Napping;
pub use self::napping::Naps;
pub use self::once::{Once, OnceError, OnceReport, TableChange, once};
pub use self::redeclare::{RedeclareError, Redeclared, redeclare};
pub use self::scheduled::main;
pub(super) use self::scheduled::{Lasting, Scheduled};
pub(super) use self::tables::objects;
pub use self::when::When;
pub use self::work::{Tick, Work, WorkFuture};
pub(super) use self::working::over;
use crate::context::Progress;

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
