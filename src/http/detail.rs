//! One worker at one moment, with all that is known of it: what the page shows when a worker is chosen.

use serde::Serialize;

use super::history::{History, Series};
use super::moment::Moment;
use super::published::published;
use super::snapshot::WorkerSnapshot;

/// A worker with its last hour.
#[derive(Debug, Serialize)]
pub(super) struct Detail {
    #[serde(flatten)]
    worker: WorkerSnapshot,
    /// How far the server must have come before it starts.
    start_time: String,
    history: Vec<Series>,
    /// What it did last, newest first.
    runs: Vec<Run>,
    /// Its configuration, as TOML, if it comes from a configuration.
    configuration: Option<String>,
}

/// Something that a worker did.
#[derive(Debug, Serialize)]
struct Run {
    /// How long ago it ended.
    seconds_ago: f64,
    took_seconds: f64,
    what: String,
    failed: bool,
}

impl Detail {
    /// The registered worker of this name; `None` if there is none.
    pub(super) fn of(
        moment: &Moment,
        name: &str,
        history: &History,
        configuration: Option<String>,
    ) -> Option<Self> {
        let registered = &moment.workers.registered;
        let status = registered.iter().find(|one| *one.worker.name == *name)?;
        let now = moment.now;
        let runs = status.progress.runs();
        let runs = runs.into_iter().rev().map(|run| Run {
            seconds_ago: now.saturating_duration_since(run.end).as_secs_f64(),
            took_seconds: run.took.as_secs_f64(),
            what: published(&run.what),
            failed: run.failed,
        });
        Some(Self {
            worker: WorkerSnapshot::registered(status, &moment.status, now),
            start_time: status.worker.start_time.to_string(),
            history: history.of(status.id, &status.report),
            runs: runs.collect(),
            configuration,
        })
    }
}
