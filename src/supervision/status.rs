//! What the state machine answers: where workers are, and why one was not registered.

use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use crate::background_worker::InvalidWorker;

/// Where a registered worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// It waits for the server to come far enough, or for its turn, and has not run yet.
    Registered,
    /// It ran, and waits for the server to come far enough again, or for its turn.
    Parked,
    /// It was started and has not said that it is ready.
    Starting,
    /// It runs, and said that it is ready.
    Running,
    /// It was asked to stop.
    Stopping,
    /// It waits out its restart time.
    BackingOff {
        /// When it may start again.
        until: Instant,
    },
}

/// How many workers are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that are registered.
    pub registered: usize,
    /// Those with a live incarnation.
    pub running: usize,
    /// Those of the running ones that said they are ready.
    pub ready: usize,
    /// Those that wait out their restart time.
    pub backing_off: usize,
    /// Those that ran, and wait for the server to come far enough again.
    pub parked: usize,
}

/// Why a worker was not registered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The registration itself is refused.
    #[error(transparent)]
    Invalid(#[from] InvalidWorker),
    /// A worker of that name is registered already.
    #[error("background worker \"{name}\" is already registered")]
    Duplicate {
        /// The name.
        name: Arc<str>,
    },
    /// Every slot is taken.
    #[error(
        "too many background workers: cannot register \"{name}\": up to {limit} can be registered \
         with the current settings: consider increasing \"max_workers\""
    )]
    TooManyWorkers {
        /// The worker that was refused.
        name: Arc<str>,
        /// [`Limits::max_workers`](super::Limits::max_workers).
        limit: usize,
    },
    /// A shutdown was requested.
    #[error("cannot register background worker \"{name}\" during shutdown")]
    ShuttingDown {
        /// The worker that was refused.
        name: Arc<str>,
    },
}
