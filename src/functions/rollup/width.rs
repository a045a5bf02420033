//! How many deltas a range of keys has, and when there are no ranges. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::settings::Settings;

/// About how many deltas a second folds, before that is known.
const PER_SECOND: f64 = 200_000.0;

/// How long a backlog is folded by pieces after a range could not be folded.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// How wide ranges are.
#[derive(Debug, Default)]
pub(super) struct Width {
    /// About how many deltas took as long as a fold should; `None` before the first.
    deltas: Option<f64>,
    /// Until when there are no ranges, because one has failed.
    off_until: Option<Instant>,
}

// === impl Width ===

impl Width {
    /// About how many deltas the next range should have: a batch at most.
    pub(super) fn deltas(&self, settings: &Settings) -> f64 {
        let first = || PER_SECOND * settings.fold_time.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "it is an estimate")]
        let batch = settings.batch as f64;
        self.deltas.unwrap_or_else(first).min(batch)
    }

    /// Records that about as many deltas took this long on the server, and how long they should have taken.
    pub(super) fn took(&mut self, deltas: f64, took: Duration, goal: Duration) {
        let factor = goal.as_secs_f64() / took.as_secs_f64().max(1e-6);
        self.deltas = Some(deltas * factor.clamp(0.5, 2.0));
    }

    /// `true` if ranges have failed of late.
    pub(super) fn is_off(&self, now: Instant) -> bool {
        self.off_until.is_some_and(|until| now < until)
    }

    /// The backlog is not folded by ranges for a while, since one could not be.
    pub(super) fn rests(&mut self, now: Instant) {
        self.off_until = Some(now + AFTER_FAILURE);
    }

    /// A range has failed: it may have taken longer than a statement may.
    pub(super) fn failed(&mut self, settings: &Settings) {
        self.deltas = Some(self.deltas(settings) / 2.0);
    }
}
