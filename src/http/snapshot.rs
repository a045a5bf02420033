//! The Postmaster and its workers at one moment, in words and numbers that other programs can read.
//!
//! Times are ages: the clocks of two machines need not agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::published::published;
use super::state::State;
use crate::background_worker::{ExitStatus, StartTime};
use crate::context::{Figure, Histogram, JobState, Report};
use crate::postmaster::{
    EndedWorker, PostmasterHandle, RequestError, Status, WorkerStatus, Workers,
};
use crate::supervision::{Shutdown, WorkerState};

/// How long a worker that was ready before, and promises nothing, may take to be ready again.
const GRACE: Duration = Duration::from_secs(60);

/// How long there may be no primary, after there was one, while a worker needs one.
const WITHOUT_PRIMARY_MAX: Duration = Duration::from_secs(60);

/// How long a time that has come is still shown: usually the next one takes its place.
const PASSING: Duration = Duration::from_secs(5);

/// The Postmaster and its workers at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The version of this crate.
    pub version: String,
    /// `true` if there are workers, every one of them is healthy, and none has waited for a primary for more than a minute
    /// after this process had seen one.
    pub healthy: bool,
    /// How far the server has come: `postmaster start`, `consistent state` or `recovery finished`.
    pub reached: String,
    /// The server's state; `None` for a Postmaster without a server.
    pub server: Option<ServerSnapshot>,
    /// The shutdown under way: `smart`, `fast` or `immediate`.
    pub shutdown: Option<String>,
    /// The registered workers in registration order, then the last ones that ended, oldest first.
    pub workers: Vec<WorkerSnapshot>,
    /// How long things took, by name.
    #[serde(skip)]
    pub(super) histograms: BTreeMap<&'static str, Histogram>,
}

/// The server at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServerSnapshot {
    /// `away`, `standby`, `primary`, or `unknown` while it cannot be asked.
    pub state: String,
    /// How long it has been in that state, in seconds.
    pub state_seconds: f64,
    /// Why it is away, cannot be asked, or is not a primary.
    pub reason: Option<String>,
    /// How long there has been such a reason, whatever its words, in seconds.
    #[serde(default)]
    pub reason_seconds: Option<f64>,
    /// Seconds without a primary, if there was one before.
    #[serde(default)]
    pub without_primary_seconds: Option<f64>,
}

/// One worker at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerSnapshot {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: usize,
    /// Its generation, which counts the registrations of one Postmaster.
    pub generation: u64,
    /// Its state, or how it ended.
    pub state: State,
    /// Seconds since it was registered, started, became ready or exited, whichever came last: naps and cycles, which
    /// come and go, do not count. While it runs its job, seconds since that run began.
    pub state_seconds: f64,
    /// Registered workers: `true` if the worker is in a state that its start time allows, and the last cycle in which it
    /// was able to do its work is recent enough. A worker that was ready before has the time that it promised, or a minute,
    /// to be ready again. What became of a job's ticks does not count.
    /// Ended workers: `true` unless the worker failed.
    pub healthy: bool,
    /// `true` if it was ever ready; of an ended worker, if one of its cycles ever succeeded.
    pub has_been_ready: bool,
    /// How often it was restarted after it had ended by itself. One that comes back after it was parked is not restarted, nor is
    /// one that tries again to reach its database.
    pub restarts: u64,
    /// How many cycles have succeeded.
    pub cycles: u64,
    /// How many failures there have been since the last success.
    pub consecutive_failures: u32,
    /// The last failure, with its cause, but without the server's DETAIL, which quotes rows.
    pub last_error: Option<String>,
    /// Seconds since a cycle last succeeded; of a job, since its last run that was done, by any instance, ended.
    pub last_success_seconds: Option<f64>,
    /// Seconds since a cycle last succeeded, or found that the worker is able to do its work.
    #[serde(skip)]
    pub(super) last_cycle_seconds: Option<f64>,
    /// Its job, if it runs one.
    pub job: Option<JobSnapshot>,
    /// What its function counts and measures, by name: `rows_folded` and `total` of the built-in worker.
    pub figures: BTreeMap<String, i64>,
    /// The names of the figures that only grow.
    #[serde(skip)]
    pub(super) counts: BTreeSet<&'static str>,
    /// Seconds until it starts again.
    pub next_start_seconds: Option<f64>,
}

/// A job at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobSnapshot {
    /// `idle`, `running`, `waiting`, `failing`, `given up`, `overdue` or `declared differently`.
    pub state: String,
    /// How long it has been in that state, in seconds.
    pub state_seconds: f64,
    /// Why, and what to do.
    pub why: Option<String>,
    /// `true` if a person has to act. The worker is healthy nevertheless: what it cannot do is another matter.
    pub needs_attention: bool,
}

// === impl Snapshot ===

impl Snapshot {
    /// Asks a Postmaster for everything.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub async fn take(postmaster: &PostmasterHandle) -> Result<Self, RequestError> {
        let status = postmaster.status().await?;
        let workers = postmaster.workers().await?;
        Ok(Self::of(&status, &workers, Instant::now()))
    }

    /// What a Postmaster has answered at this moment.
    pub(super) fn of(status: &Status, workers: &Workers, now: Instant) -> Self {
        let Workers {
            registered: workers,
            ended,
            histograms,
            ..
        } = workers;
        // An ended worker is no longer of interest once another one has its name.
        let ended = ended.iter().filter(|ended| {
            !workers
                .iter()
                .any(|worker| worker.worker.name == ended.name)
        });
        let ended: Vec<_> = ended
            .map(|ended| WorkerSnapshot::ended(ended, now))
            .collect();
        let server = status.server.as_ref();
        let without_primary = server
            .and_then(|server| server.without_primary)
            .map(|since| now.saturating_duration_since(since));
        let needs_primary =
            (workers.iter()).any(|worker| worker.worker.start_time == StartTime::RecoveryFinished);
        let workers = workers
            .iter()
            .map(|worker| WorkerSnapshot::registered(worker, status, now));
        let workers: Vec<_> = workers.chain(ended).collect();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            healthy: status.counts.registered > 0
                && workers.iter().all(|worker| worker.healthy)
                && !(needs_primary
                    && without_primary.is_some_and(|without| without > WITHOUT_PRIMARY_MAX)),
            server: server.map(|server| ServerSnapshot {
                state: server.state.to_string(),
                state_seconds: now.saturating_duration_since(server.since).as_secs_f64(),
                reason: server.reason.as_deref().map(published),
                reason_seconds: (server.reason_since)
                    .map(|since| now.saturating_duration_since(since).as_secs_f64()),
                without_primary_seconds: without_primary.map(|without| without.as_secs_f64()),
            }),
            reached: status.reached.to_string(),
            shutdown: status.shutdown.map(|shutdown| {
                match shutdown {
                    Shutdown::Smart => "smart",
                    Shutdown::Fast => "fast",
                    Shutdown::Immediate => "immediate",
                }
                .to_owned()
            }),
            workers,
            histograms: histograms.clone(),
        }
    }
}

// === impl ServerSnapshot ===

impl ServerSnapshot {
    /// What is wrong with it, and for how many seconds: it is away, cannot be asked, or is no longer a primary.
    #[must_use]
    pub fn trouble(&self) -> Option<(f64, &str)> {
        let without_primary = self.without_primary_seconds;
        match self.reason.as_deref() {
            Some(reason) => Some((self.reason_seconds.unwrap_or(self.state_seconds), reason)),
            None => without_primary.map(|seconds| (seconds, "there is no primary")),
        }
    }
}

// === impl WorkerSnapshot ===

impl WorkerSnapshot {
    /// Its last failure, and how many there have been since its last success; then what there is to say of its job. `None`
    /// if there is neither.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let (error, failed) = (self.last_error.as_ref(), self.failure());
        let why = self.job.as_ref().and_then(|job| job.why.as_ref());
        let why = why.filter(|why| failed.is_none() || error != Some(why));
        let texts: Vec<_> = failed.into_iter().chain(why.cloned()).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    /// Its last failure, and how many there have been since its last success; `None` if there was none since.
    pub(super) fn failure(&self) -> Option<String> {
        let error = self.last_error.as_ref()?;
        match self.consecutive_failures {
            0 => None,
            1 => Some(error.clone()),
            failures => Some(format!("{failures} × {error}")),
        }
    }

    /// `true` if a person has to act: the worker is unable to do its work, or its job needs attention.
    #[must_use]
    pub fn needs_attention(&self) -> bool {
        !self.healthy || self.job.as_ref().is_some_and(|job| job.needs_attention)
    }

    /// A registered worker at this moment.
    pub(super) fn registered(worker: &WorkerStatus, status: &Status, now: Instant) -> Self {
        let report = &worker.report;
        let run = report.under_way.map(|run| run.since);
        let age = now.saturating_duration_since(run.unwrap_or(worker.since));
        let (state, next_start) = match worker.state {
            WorkerState::Registered => (State::Registered, None),
            WorkerState::Parked => (State::Parked, None),
            WorkerState::Starting => (State::Starting, None),
            WorkerState::Running if report.napping => (State::Napping, None),
            WorkerState::Running if report.cycles == 0 => (State::Ready, None),
            WorkerState::Running => (State::Running, None),
            WorkerState::Stopping => (State::Stopping, None),
            WorkerState::BackingOff { until } => (State::BackingOff, Some(until)),
        };
        Self {
            name: worker.worker.name.to_string(),
            slot: worker.id.slot(),
            generation: worker.id.generation(),
            state,
            state_seconds: age.as_secs_f64(),
            healthy: is_healthy(worker, status, now),
            has_been_ready: worker.has_been_ready,
            restarts: worker.restarts,
            next_start_seconds: next_start.map(|at| {
                let wait = at.saturating_duration_since(now.into_std());
                wait.as_secs_f64()
            }),
            ..Self::reported(report, now, now)
        }
    }

    fn ended(worker: &EndedWorker, now: Instant) -> Self {
        let (state, healthy) = match worker.exit {
            ExitStatus::Finished => (State::Finished, true),
            ExitStatus::Stopped => (State::Stopped, true),
            ExitStatus::Failed | ExitStatus::DatabaseAway => (State::Failed, false),
            ExitStatus::Crashed => (State::Crashed, false),
        };
        Self {
            name: worker.name.to_string(),
            slot: worker.id.slot(),
            generation: worker.id.generation(),
            state,
            state_seconds: now.saturating_duration_since(worker.since).as_secs_f64(),
            healthy,
            has_been_ready: worker.report.cycles > 0,
            restarts: worker.restarts,
            ..Self::reported(&worker.report, now, worker.since)
        }
    }

    /// What a worker reports about itself, which it did until then; the caller fills in the rest.
    fn reported(report: &Report, now: Instant, until: Instant) -> Self {
        let age = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        Self {
            name: String::new(),
            slot: 0,
            generation: 0,
            state: State::Registered,
            state_seconds: 0.0,
            healthy: false,
            has_been_ready: false,
            restarts: 0,
            cycles: report.cycles,
            consecutive_failures: report.consecutive_failures,
            last_error: report.last_error.as_deref().map(published),
            last_success_seconds: report.last_success.map(age),
            last_cycle_seconds: report.last_cycle.map(age),
            job: report.job.as_ref().map(|job| {
                let job = job.at(until);
                let (state, since, why) = match report.under_way {
                    Some(run) => (JobState::Running, run.since, None),
                    None => (job.state, job.since, job.why.as_deref()),
                };
                JobSnapshot {
                    state: state.to_string(),
                    state_seconds: age(since),
                    why: why.map(published),
                    needs_attention: state.needs_attention(),
                }
            }),
            figures: (report.figures.iter())
                .filter_map(|(name, figure)| {
                    let value = match figure {
                        Figure::Count(count) => i64::try_from(*count).unwrap_or(i64::MAX),
                        Figure::Level(level) => *level,
                        Figure::Coming { seconds, at } => {
                            (*at + PASSING > now).then_some(*seconds)?
                        }
                    };
                    Some(((*name).to_owned(), value))
                })
                .collect(),
            counts: (report.figures.iter())
                .filter(|(_, figure)| matches!(figure, Figure::Count(_)))
                .map(|(name, _)| *name)
                .collect(),
            next_start_seconds: None,
        }
    }
}

/// `true` if a registered worker is in a state that its start time allows, and has not been unable to do its work for too
/// long. A run of its job may take the time that it has.
fn is_healthy(worker: &WorkerStatus, status: &Status, now: Instant) -> bool {
    let Report {
        last_cycle,
        success_within,
        under_way,
        ..
    } = worker.report;
    let since = |at: Instant| now.saturating_duration_since(at);
    let silence = last_cycle.map(since);
    let is_away = status.reached == StartTime::PostmasterStart;
    let misses_its_level = worker.worker.start_time > status.reached;
    let waits_on_a_standby = misses_its_level && !is_away;
    let runs = under_way.is_some_and(|run| since(run.since) <= run.within);
    match worker.state {
        WorkerState::Running | WorkerState::Stopping if runs => true,
        // The time before it began to run does not count.
        WorkerState::Running => success_within.is_none_or(|within| {
            let age = since(worker.since);
            silence.map_or(age, |silence| silence.min(age)) <= within
        }),
        WorkerState::BackingOff { .. } => false,
        // On a standby a worker that writes has nothing to do.
        WorkerState::Registered | WorkerState::Parked if waits_on_a_standby => true,
        _ if !worker.has_been_ready => false,
        // The time before the server went away does not count, nor that in which it was away.
        WorkerState::Registered
        | WorkerState::Parked
        | WorkerState::Starting
        | WorkerState::Stopping => {
            let silence = silence.unwrap_or_else(|| since(worker.since));
            let server = status.server.as_ref().map(|server| since(server.since));
            let silence = server.map_or(silence, |server| silence.min(server));
            silence <= success_within.unwrap_or(GRACE)
        }
    }
}
