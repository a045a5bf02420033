//! The Postmaster and its workers at one moment, in words and numbers that others can read.
//!
//! Times are ages: the clocks of two machines need not agree.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::background_worker::{ExitStatus, StartTime};
use crate::context::Report;
use crate::postmaster::{EndedWorker, PostmasterHandle, RequestError, WorkerStatus};
use crate::supervision::{Shutdown, WorkerState};

/// The Postmaster and its workers at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The version of this crate.
    pub version: String,
    /// Whether every worker is.
    pub healthy: bool,
    /// How far the server has come: `postmaster start`, `consistent state` or `recovery finished`.
    pub reached: String,
    /// The shutdown under way: `smart`, `fast` or `immediate`.
    pub shutdown: Option<String>,
    /// The registered workers in registration order, then the last ones that ended, oldest first.
    pub workers: Vec<WorkerSnapshot>,
}

/// One worker at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerSnapshot {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: usize,
    /// Which registration in that slot it is.
    pub generation: u64,
    /// `registered`, `starting`, `ready`, `napping`, `running`, `parked`, `backing off` or `stopping`;
    /// of one that has ended, `finished`, `failed`, `crashed` or `stopped`.
    pub state: String,
    /// For how long it has been there, but for naps and cycles, which come and go. Seconds.
    pub state_seconds: f64,
    /// Whether it is where its start time allows it to be, and its last success is not too old, be it that it
    /// stalls or that the server is away; of one that has ended, whether it did so without a failure.
    pub healthy: bool,
    /// How often it was started again.
    pub restarts: u64,
    /// How many cycles have succeeded.
    pub cycles: u64,
    /// How many failures there have been since the last success.
    pub consecutive_failures: u32,
    /// The last failure, with its whole cause.
    pub last_error: Option<String>,
    /// How long ago a cycle last succeeded. Seconds.
    pub last_success_seconds: Option<f64>,
    /// How many rows the built-in worker has folded.
    pub rows_folded: u64,
    /// The total after its last fold.
    pub total: Option<i64>,
    /// In how long it starts again. Seconds.
    pub next_start_seconds: Option<f64>,
}

// === impl Snapshot ===

impl Snapshot {
    /// Asks a Postmaster.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub async fn take(postmaster: &PostmasterHandle) -> Result<Self, RequestError> {
        let status = postmaster.status().await?;
        let (workers, ended) = postmaster.workers().await?;
        let now = Instant::now();
        // One that has ended is of no interest any more once another one has its name.
        let ended = ended.iter().filter(|ended| {
            !workers
                .iter()
                .any(|worker| worker.worker.name == ended.name)
        });
        let ended: Vec<_> = ended
            .map(|ended| WorkerSnapshot::ended(ended, now))
            .collect();
        let workers = workers
            .iter()
            .map(|worker| WorkerSnapshot::registered(worker, status.reached, now));
        let workers: Vec<_> = workers.chain(ended).collect();
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            healthy: workers.iter().all(|worker| worker.healthy),
            reached: match status.reached {
                StartTime::PostmasterStart => "postmaster start",
                StartTime::ConsistentState => "consistent state",
                StartTime::RecoveryFinished => "recovery finished",
            }
            .to_owned(),
            shutdown: status.shutdown.map(|shutdown| {
                match shutdown {
                    Shutdown::Smart => "smart",
                    Shutdown::Fast => "fast",
                    Shutdown::Immediate => "immediate",
                }
                .to_owned()
            }),
            workers,
        })
    }
}

// === impl WorkerSnapshot ===

impl WorkerSnapshot {
    /// Its last failure, and how many there have been since its last success; `None` once it has succeeded.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let error = self.last_error.as_ref()?;
        match self.consecutive_failures {
            0 => None,
            1 => Some(error.clone()),
            failures => Some(format!("{failures} × {error}")),
        }
    }

    fn registered(worker: &WorkerStatus, reached: StartTime, now: Instant) -> Self {
        let report = &worker.report;
        let age = now.saturating_duration_since(worker.since);
        let (state, next_start) = match worker.state {
            WorkerState::Registered => ("registered", None),
            WorkerState::Parked => ("parked", None),
            WorkerState::Starting => ("starting", None),
            WorkerState::Running if report.napping => ("napping", None),
            WorkerState::Running if report.cycles == 0 => ("ready", None),
            WorkerState::Running => ("running", None),
            WorkerState::Stopping => ("stopping", None),
            WorkerState::BackingOff { until } => ("backing off", Some(until)),
        };
        let is_where_it_may_be = match worker.state {
            WorkerState::Running => !is_too_old(report, age, now),
            // On a standby it has nothing to do; without a server it does not do what it promised.
            WorkerState::Registered | WorkerState::Parked => {
                let is_away = reached == StartTime::PostmasterStart;
                worker.worker.start_time > reached && !(is_away && is_too_old(report, age, now))
            }
            WorkerState::Starting | WorkerState::Stopping | WorkerState::BackingOff { .. } => false,
        };
        Self {
            name: worker.worker.name.to_string(),
            slot: worker.id.slot(),
            generation: worker.id.generation(),
            state: state.to_owned(),
            state_seconds: age.as_secs_f64(),
            healthy: is_where_it_may_be,
            restarts: worker.starts.saturating_sub(1),
            next_start_seconds: next_start.map(|at| {
                let wait = at.saturating_duration_since(now.into_std());
                wait.as_secs_f64()
            }),
            ..Self::reported(report, now)
        }
    }

    fn ended(worker: &EndedWorker, now: Instant) -> Self {
        let (state, healthy) = match worker.exit {
            ExitStatus::Finished => ("finished", true),
            ExitStatus::Stopped => ("stopped", true),
            ExitStatus::Failed | ExitStatus::DatabaseAway => ("failed", false),
            ExitStatus::Crashed => ("crashed", false),
        };
        Self {
            name: worker.name.to_string(),
            slot: worker.id.slot(),
            generation: worker.id.generation(),
            state: state.to_owned(),
            state_seconds: now.saturating_duration_since(worker.since).as_secs_f64(),
            healthy,
            restarts: worker.starts.saturating_sub(1),
            ..Self::reported(&worker.report, now)
        }
    }

    /// What a worker says of itself; the rest is not known yet.
    fn reported(report: &Report, now: Instant) -> Self {
        let age = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        Self {
            name: String::new(),
            slot: 0,
            generation: 0,
            state: String::new(),
            state_seconds: 0.0,
            healthy: false,
            restarts: 0,
            cycles: report.cycles,
            consecutive_failures: report.consecutive_failures,
            last_error: report.last_error.as_deref().map(str::to_owned),
            last_success_seconds: report.last_success.map(age),
            rows_folded: report.rows,
            total: report.total,
            next_start_seconds: None,
        }
    }
}

/// Whether a worker should have had a success in the time that it has been where it is.
fn is_too_old(report: &Report, since: Duration, now: Instant) -> bool {
    let Some(within) = report.success_within else {
        return false;
    };
    let success = report
        .last_success
        .map(|at| now.saturating_duration_since(at));
    // What was before it came there does not count.
    let age = success.map_or(since, |success| success.min(since));
    age > within
}
