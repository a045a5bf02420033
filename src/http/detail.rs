//! One worker at one moment, with all that is known of it: what the page shows when a worker is chosen.

use serde::Serialize;
use tokio::time::Instant;

use super::history::{History, Series};
use super::snapshot::WorkerSnapshot;
use crate::postmaster::{PostmasterHandle, RequestError};

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
    /// Asks for the registered worker of this name; `None` if there is none.
    pub(super) async fn take(
        postmaster: &PostmasterHandle,
        name: &str,
        history: &History,
        configuration: Option<String>,
    ) -> Result<Option<Self>, RequestError> {
        let workers = postmaster.workers().await?;
        let Some(status) = workers
            .registered
            .iter()
            .find(|one| *one.worker.name == *name)
        else {
            return Ok(None);
        };
        let (postmaster, now) = (postmaster.status().await?, Instant::now());
        let runs = status.progress.runs();
        let runs = runs.into_iter().rev().map(|run| Run {
            seconds_ago: now.saturating_duration_since(run.end).as_secs_f64(),
            took_seconds: run.took.as_secs_f64(),
            what: run.what.to_string(),
            failed: run.failed,
        });
        Ok(Some(Self {
            worker: WorkerSnapshot::registered(status, &postmaster, now),
            start_time: status.worker.start_time.to_string(),
            history: history.of(status.id, &status.report),
            runs: runs.collect(),
            configuration,
        }))
    }
}
