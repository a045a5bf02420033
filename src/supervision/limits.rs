//! The bounds within which the state machine decides.

use std::time::Duration;

/// What the Postmaster's settings bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many workers can be registered at once (`max_worker_processes`); 1024 by default.
    pub max_workers: usize,
    /// How many workers one tick may start (`MAX_BGWORKERS_TO_LAUNCH`); 1 by default, at least 1, at
    /// most [`STARTS_PER_TICK_MAX`](Self::STARTS_PER_TICK_MAX).
    pub starts_per_tick: usize,
    /// How long a worker that was asked to stop may take for what it has begun; 20 s by default.
    pub shutdown_timeout: Duration,
}

// === impl Limits ===

impl Limits {
    /// The most workers that one tick may start, as in PostgreSQL.
    pub const STARTS_PER_TICK_MAX: usize = 100;

    /// How long a fast shutdown waits before it becomes immediate. Mirrors
    /// `SIGKILL_CHILDREN_AFTER_SECS`.
    pub const FAST_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

    /// How long a worker may take to stop for a reset, before it is aborted.
    pub const RESET_TIMEOUT: Duration = Duration::from_secs(5);
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_workers: 1024,
            starts_per_tick: 1,
            shutdown_timeout: Duration::from_secs(20),
        }
    }
}
