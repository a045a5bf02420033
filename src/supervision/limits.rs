//! The bounds within which the state machine decides.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The bounds that the Postmaster's settings impose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct Limits {
    /// How many workers can be registered at once (`max_worker_processes`).
    pub max_workers: usize,
    /// How many workers one tick may start (`MAX_BGWORKERS_TO_LAUNCH`).
    #[serde(
        deserialize_with = "crate::keys::number::at_most::<{ Limits::STARTS_PER_TICK_MAX }, _>"
    )]
    #[schemars(range(min = 1, max = Self::STARTS_PER_TICK_MAX))]
    pub starts_per_tick: usize,
    /// How long a worker that was asked to stop may take for what it has begun.
    #[serde(with = "crate::keys::duration")]
    #[schemars(with = "crate::keys::schema::Time")]
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

    /// Sets how many workers can be registered at once; 1024 unless set. Workers that are registered already
    /// stay.
    #[must_use]
    pub fn max_workers(mut self, max_workers: usize) -> Self {
        self.max_workers = max_workers;
        self
    }

    /// Sets how many workers one tick may start; 1 unless set, which is also the least, and at most
    /// [`STARTS_PER_TICK_MAX`](Self::STARTS_PER_TICK_MAX).
    #[must_use]
    pub fn starts_per_tick(mut self, starts_per_tick: usize) -> Self {
        self.starts_per_tick = starts_per_tick;
        self
    }

    /// Sets how long a worker that was asked to stop may take for what it has begun; 20 s unless set. It is
    /// also when a smart shutdown becomes fast.
    #[must_use]
    pub fn shutdown_timeout(mut self, shutdown_timeout: Duration) -> Self {
        self.shutdown_timeout = shutdown_timeout;
        self
    }
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
