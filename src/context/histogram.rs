//! How long things took, counted by length, for all workers of a Postmaster together.
//!
//! Knows no metric format.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long something took, counted by length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; Self::BOUNDS_MS.len() + 1],
    sum: Duration,
}

/// Histograms by name, shared by the workers of a Postmaster, so that their number does not grow with the workers.
#[derive(Debug, Default)]
pub(crate) struct Histograms(Mutex<BTreeMap<&'static str, Histogram>>);

// === impl Histogram ===

impl Histogram {
    /// The upper bounds of the buckets, in milliseconds; each bucket includes its bound.
    pub const BOUNDS_MS: [f64; 15] = [
        0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1_000.0, 5_000.0, 60_000.0,
        600_000.0,
    ];

    /// The numbers of durations between one bound and the next. The last one has no bound.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// All durations added up.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }

    fn observe(&mut self, time: Duration) {
        let milliseconds = time.as_secs_f64() * 1_000.0;
        let bucket = Self::BOUNDS_MS.partition_point(|bound| *bound < milliseconds);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum = self.sum.saturating_add(time);
    }
}

// === impl Histograms ===

impl Histograms {
    pub(super) fn observe(&self, name: &'static str, time: Duration) {
        let mut histograms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        histograms.entry(name).or_default().observe(time);
    }

    /// All of them at this moment.
    pub(crate) fn all(&self) -> BTreeMap<&'static str, Histogram> {
        let histograms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        histograms.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_the_bucket_whose_bound_it_does_not_exceed() {
        let mut histogram = Histogram::default();
        for time in [0, 100, 101, 600_000_000, 600_000_001] {
            histogram.observe(Duration::from_micros(time));
        }
        let counts = histogram.counts();
        assert_eq!((counts[0], counts[1]), (2, 1));
        assert_eq!(counts[counts.len() - 2..], [1, 1]);
        assert_eq!(histogram.sum(), Duration::from_micros(1_200_000_202));
    }
}
