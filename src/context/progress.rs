//! What a worker says of itself while it runs, and who asks may read.
//!
//! Shared and not sent: no message per cycle.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What a worker is doing and how it has fared, over all of its incarnations.
///
/// Written by its main, read by whoever asks for status: no message per cycle.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Report>);

/// What [`Progress`] says at one moment.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// It naps. Otherwise it runs, if it is started at all.
    pub napping: bool,
    /// How many cycles have succeeded.
    pub cycles: u64,
    /// When the last of them did.
    pub last_success: Option<Instant>,
    /// How old that may become before somebody should know, as the worker itself says.
    pub success_within: Option<Duration>,
    /// How many failures there have been since then.
    pub consecutive_failures: u32,
    /// The last failure, with its whole cause.
    pub last_error: Option<Arc<str>>,
    /// How many rows were folded, by the built-in worker.
    pub rows: u64,
    /// The total after the last fold, by the built-in worker.
    pub total: Option<i64>,
}

// === impl Progress ===

impl Progress {
    /// What it says now.
    #[must_use]
    pub fn report(&self) -> Report {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Promises a success at least so often. One that is late makes the worker unhealthy; without a promise
    /// none is late.
    pub fn promise_success_within(&self, within: Duration) {
        self.write(|report| report.success_within = Some(within));
    }

    /// A cycle succeeded.
    pub fn succeeded(&self) {
        self.write(|report| {
            report.cycles += 1;
            report.last_success = Some(Instant::now());
            report.consecutive_failures = 0;
        });
    }

    /// A cycle folded this many rows, and the total is now this.
    pub fn folded(&self, rows: u64, total: i64) {
        self.write(|report| {
            report.rows += rows;
            report.total = Some(total);
        });
    }

    /// A cycle, or the worker, failed.
    pub fn failed(&self, error: impl Into<Arc<str>>) {
        let error = error.into();
        self.write(|report| {
            report.consecutive_failures = report.consecutive_failures.saturating_add(1);
            report.last_error = Some(error);
        });
    }

    pub(super) fn write(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
