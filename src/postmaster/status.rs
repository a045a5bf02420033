//! The Postmaster's answers: itself, its workers, and how workers ended, at one moment.
//!
//! Plain values: nothing here asks or decides.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use crate::background_worker::{BackgroundWorker, ExitStatus, StartTime, WorkerId};
#[cfg(feature = "http")]
use crate::context::Progress;
use crate::context::{Histogram, Report};
use crate::database::ServerStatus;
use crate::supervision::{Counts, Shutdown, WorkerState};

/// How a Postmaster that was asked to shut down ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostmasterExit {
    /// The names of the workers that did not end in time.
    pub aborted: Vec<Arc<str>>,
}

/// The Postmaster at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// How far the server has come.
    pub reached: StartTime,
    /// The server's state, since when, and why it is away; `None` for a Postmaster without a server.
    pub server: Option<ServerStatus>,
    /// The shutdown under way.
    pub shutdown: Option<Shutdown>,
    /// The number of workers in each state.
    pub counts: Counts,
}

/// All workers at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Workers {
    /// Every registered worker, in registration order.
    pub registered: Vec<WorkerStatus>,
    /// The last 100 that ended, oldest first.
    pub ended: Vec<EndedWorker>,
    /// How long things took, by name, for all workers that there were.
    pub histograms: BTreeMap<&'static str, Histogram>,
}

/// A registered worker at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Its handle.
    pub id: WorkerId,
    /// The worker as it is registered.
    pub worker: BackgroundWorker,
    /// Its state.
    pub state: WorkerState,
    /// When it was registered, started, became ready or exited, whichever came last.
    pub since: Instant,
    /// How often it was started.
    pub starts: u64,
    /// How many of these starts followed an end that was not asked for: a failure, a crash, or the loss of the database while
    /// the worker was ready.
    pub restarts: u64,
    /// `true` once one of its incarnations was ready.
    pub has_been_ready: bool,
    /// Why its last incarnation ended, if it did not finish.
    pub reason: Option<Arc<str>>,
    /// What it reports about itself.
    pub report: Report,
    /// What that is read from.
    #[cfg(feature = "http")]
    pub(crate) progress: Arc<Progress>,
}

/// A worker that was unregistered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndedWorker {
    /// The handle it had.
    pub id: WorkerId,
    /// The name it had; it is free again.
    pub name: Arc<str>,
    /// How it ended.
    pub exit: ExitStatus,
    /// When its last incarnation ended; if it never started, when it was registered.
    pub since: Instant,
    /// `true` if it was stopped for good because it failed more often than its limit allows.
    pub gave_up: bool,
    /// Why its last incarnation ended, if it did not finish.
    pub reason: Option<Arc<str>>,
    /// How often it was started.
    pub starts: u64,
    /// How many of these starts followed an end that was not asked for.
    pub restarts: u64,
    /// What it last reported about itself.
    pub report: Report,
}

/// Where the end of a worker will be found. Boxed, since most workers have not ended.
pub(super) type End = Arc<OnceLock<Box<EndedWorker>>>;
