//! What the state machine answers: the states of workers, and why one was not registered.

use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use crate::background_worker::InvalidWorker;

/// The state of a registered worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    /// It waits for the server to come far enough, or for its turn, and has not run yet.
    Registered,
    /// It ran, and waits for the server to come far enough again, or for its turn.
    Parked,
    /// It was started and has not yet reported that it is ready.
    Starting,
    /// It runs, and has reported that it is ready.
    Running,
    /// It was asked to stop.
    Stopping,
    /// It waits out its restart time.
    BackingOff {
        /// When it may start again.
        until: Instant,
    },
}

/// The number of workers in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All registered workers.
    pub registered: usize,
    /// Workers with a live incarnation.
    pub running: usize,
    /// Running workers that reported they are ready.
    pub ready: usize,
    /// Workers that wait out their restart time.
    pub backing_off: usize,
    /// Workers that ran, and wait for the server to come far enough again.
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
        /// The name that is taken.
        name: Arc<str>,
    },
    /// As many workers are registered as the settings allow.
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
