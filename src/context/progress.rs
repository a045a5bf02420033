//! What a worker reports about itself while it runs, for status requests to read.
//!
//! Shared rather than sent: no message per cycle.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::histogram::Histograms;
use super::job_state::{JobReport, JobState};
use super::seldom::Seldom;

/// What a worker is doing and how it has fared, over all of its incarnations.
///
/// Its main writes it, and the Postmaster when an incarnation ends with an error; status requests read it:
/// no message per cycle.
#[derive(Debug, Default)]
pub struct Progress {
    report: Mutex<Report>,
    runs: Mutex<VecDeque<Run>>,
    lines: Mutex<Seldom>,
    histograms: Arc<Histograms>,
}

/// What [`Progress`] says at one moment.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// `true` while it naps. Otherwise it runs, if it is started at all.
    pub napping: bool,
    /// How many cycles have succeeded.
    pub cycles: u64,
    /// When a cycle last succeeded, or found that the worker can do its work.
    pub last_cycle: Option<Instant>,
    /// When the worker's work was last done: its last cycle that succeeded, or the last run of its job, by any instance.
    pub last_success: Option<Instant>,
    /// How old the last cycle may become before the worker is unhealthy, as the worker itself promises.
    pub success_within: Option<Duration>,
    /// The run of a job that is under way.
    pub under_way: Option<UnderWay>,
    /// The state of its job, if it runs one.
    pub job: Option<JobReport>,
    /// When the next tick of its job, or the next attempt of one, is due.
    pub due: Option<Instant>,
    /// How many failures there have been since the last success.
    pub consecutive_failures: u32,
    /// The last failure, with its whole cause.
    pub last_error: Option<Arc<str>>,
    /// What its function counts and measures, by name.
    pub figures: BTreeMap<&'static str, Figure>,
}

/// A run that is under way.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct UnderWay {
    /// When it began.
    pub since: Instant,
    /// How long it may take before the worker is unhealthy.
    pub within: Duration,
}

/// Something that a worker did, for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Run {
    /// When it ended.
    pub end: Instant,
    /// How long it took.
    pub took: Duration,
    /// What was done, or why it failed.
    pub what: Arc<str>,
    /// `true` if it failed.
    pub failed: bool,
}

/// How many runs are kept of each worker.
const RUNS_MAX: usize = 10;

/// A number that a worker's function reports under a name. Status, page and metrics show every name that a function
/// uses. A level whose name ends in `_timestamp_seconds` is seconds since the epoch, and is shown to people as a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Figure {
    /// A number that only grows, over all incarnations of the worker.
    Count(u64),
    /// A number that can change either way.
    Level(i64),
    /// A time to come, in seconds since the epoch. It is no longer shown once it has passed for some seconds.
    Coming {
        /// The time.
        seconds: i64,
        /// That time by this process's clock.
        at: Instant,
    },
}

// === impl Report ===

impl Report {
    /// A figure that only grows; 0 before it was first reported.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        match self.figures.get(name) {
            Some(Figure::Count(count)) => *count,
            Some(Figure::Level(_) | Figure::Coming { .. }) | None => 0,
        }
    }

    /// A figure that can change either way; `None` before it was first reported.
    #[must_use]
    pub fn level(&self, name: &str) -> Option<i64> {
        match self.figures.get(name)? {
            Figure::Level(level) | Figure::Coming { seconds: level, .. } => Some(*level),
            Figure::Count(_) => None,
        }
    }
}

// === impl Progress ===

impl Progress {
    /// The progress of a worker whose Postmaster has these histograms.
    pub(crate) fn new(histograms: Arc<Histograms>) -> Self {
        Self {
            report: Mutex::default(),
            runs: Mutex::default(),
            lines: Mutex::default(),
            histograms,
        }
    }

    /// The report at this moment.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Promises a cycle that succeeds at least this often, except during a run. A late one makes the worker unhealthy;
    /// without a promise none is late.
    pub fn promise_success_within(&self, within: Duration) {
        self.write(|report| report.success_within = Some(within));
    }

    /// Reports that a cycle succeeded.
    pub fn succeeded(&self) {
        self.write(|report| {
            let now = Some(Instant::now());
            report.cycles += 1;
            (report.last_cycle, report.last_success) = (now, now);
            report.consecutive_failures = 0;
        });
    }

    /// Reports a cycle that succeeded because nothing was to be done, which is no success of the work itself.
    pub fn looked(&self) {
        self.write(|report| {
            report.cycles += 1;
            report.last_cycle = Some(Instant::now());
            report.consecutive_failures = 0;
        });
    }

    /// Reports that the worker is able to do its work, though what has failed before has not been made good.
    pub fn is_able(&self) {
        self.write(|report| report.last_cycle = Some(Instant::now()));
    }

    /// Reports when the worker's work was last done, perhaps by another instance.
    pub fn was_done(&self, at: Instant) {
        self.write(|report| report.last_success = Some(at));
    }

    /// Reports that a run of the worker's job begins, which may take this long. It ends when what is returned is dropped.
    pub fn begin_run(&self, within: Duration) -> RunUnderWay<'_> {
        let since = Instant::now();
        self.write(|report| report.under_way = Some(UnderWay { since, within }));
        RunUnderWay(self)
    }

    /// Reports the state of the worker's job. A state that the job has already keeps the time at which it began.
    pub fn job(&self, state: JobState, since: Instant, why: Option<Arc<str>>) {
        self.write(|report| {
            let known = report.job.take().filter(|known| known.state == state);
            report.job = Some(JobReport {
                state,
                since: known.map_or(since, |known| known.since),
                why,
                told: Instant::now(),
                due: report.due,
            });
        });
    }

    /// Reports when the next tick of the worker's job, or the next attempt of one, is due, as far as that is known.
    pub fn job_is_due(&self, due: Option<Instant>) {
        self.write(|report| {
            report.due = due;
            if let Some(job) = &mut report.job {
                job.due = due;
            }
        });
    }

    /// Asks whether what the worker has just done is worth a line for people: the first is, and then one a minute. Returns
    /// the number of those since the last line.
    #[must_use]
    pub fn is_worth_a_line(&self) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.next(Instant::now())
    }

    /// Adds to a figure that only grows. Its name consists of lower-case letters and underscores, as a metric's does.
    pub fn count(&self, name: &'static str, more: u64) {
        self.write(|report| {
            let count = report.count(name);
            let figure = Figure::Count(count.saturating_add(more));
            report.figures.insert(name, figure);
        });
    }

    /// Sets a figure that can change either way. Its name consists of lower-case letters and underscores, as a metric's
    /// does.
    pub fn level(&self, name: &'static str, level: i64) {
        self.write(|report| {
            report.figures.insert(name, Figure::Level(level));
        });
    }

    /// Sets a time to come, in seconds since the epoch and by this process's clock, if there is one that is known. It is
    /// no longer shown once it has passed for some seconds. The name ends in `_timestamp_seconds`.
    pub fn coming(&self, name: &'static str, time: Option<(i64, Instant)>) {
        self.write(|report| match time {
            Some((seconds, at)) => {
                let coming = Figure::Coming { seconds, at };
                report.figures.insert(name, coming);
            }
            None => {
                report.figures.remove(name);
            }
        });
    }

    /// Adds a duration to the histogram of this name, which all workers of the Postmaster share. Its name consists of
    /// lower-case letters and underscores, as a metric's does; the metric is `bgworker_NAME_seconds`.
    pub fn observe(&self, name: &'static str, time: Duration) {
        self.histograms.observe(name, time);
    }

    /// Reports what the worker has just done, such as `"12 rows"`, and how long it took. The page shows the last ten of a
    /// worker.
    pub fn did(&self, what: impl Into<Arc<str>>, took: Duration) {
        self.ran(what.into(), took, false);
    }

    /// Reports what the worker has tried and failed to do, as [`did`](Self::did) does.
    pub fn did_not(&self, why: impl Into<Arc<str>>, took: Duration) {
        self.ran(why.into(), took, true);
    }

    fn ran(&self, what: Arc<str>, took: Duration, failed: bool) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.len() == RUNS_MAX {
            runs.pop_front();
        }
        let end = Instant::now();
        runs.push_back(Run {
            end,
            took,
            what,
            failed,
        });
    }

    /// What the worker did last, oldest first: up to ten runs.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.iter().cloned().collect()
    }

    /// Reports that a cycle, or the worker, failed.
    pub fn failed(&self, error: impl Into<Arc<str>>) {
        let error = error.into();
        self.write(|report| {
            report.consecutive_failures = report.consecutive_failures.saturating_add(1);
            report.last_error = Some(error);
        });
    }

    pub(super) fn write(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A run that is under way, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct RunUnderWay<'p>(&'p Progress);

impl Drop for RunUnderWay<'_> {
    fn drop(&mut self) {
        self.0.write(|report| {
            // The time in which it ran is not one in which it was unable to.
            if let Some(run) = report.under_way.take() {
                let now = Instant::now();
                let took = now.saturating_duration_since(run.since);
                if let Some(job) = &mut report.job {
                    job.told = now;
                }
                report.last_cycle = Some(report.last_cycle.map_or(now, |last| last + took));
            }
        });
    }
}
