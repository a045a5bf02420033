//! The keys that all functions share which fold: what they are unless set, and which values are refused. Pure.

use std::time::Duration;

use crate::functions::function::Mistake;

/// The longest time that a fold may be meant to take: a statement may take five seconds, unless set.
const FOLD_TIME_MAX: Duration = Duration::from_secs(3);

/// The nap between two cycles, unless set.
pub(in crate::functions) const fn naptime() -> Duration {
    Duration::from_secs(1)
}

/// About how many deltas one transaction folds at most, unless set: it takes some tens of milliseconds, and fits into a
/// `work_mem` of 4 MB without a file.
pub(in crate::functions) const fn batch() -> usize {
    50_000
}

/// How long a fold should take, unless set.
pub(in crate::functions) const fn fold_time() -> Duration {
    Duration::from_millis(50)
}

/// The number of folded deltas after which a table is vacuumed, unless set: about as many as a probe reads past in a
/// millisecond once they are dead.
pub(in crate::functions) const VACUUM_AFTER: u64 = 50_000;

/// The same, as the field holds it.
#[expect(clippy::unnecessary_wraps, reason = "it is what the field holds")]
pub(in crate::functions) const fn vacuum_after() -> Option<u64> {
    Some(VACUUM_AFTER)
}

/// What is wrong with the time that a fold should take.
pub(in crate::functions) fn check_fold_time(fold_time: Duration) -> Option<Mistake> {
    let is_sensible = (Duration::from_millis(1)..=FOLD_TIME_MAX).contains(&fold_time);
    (!is_sensible).then(|| {
        let message = format!(
            "it must be from 1ms to {}: other clients that update a row wait as long",
            humantime::format_duration(FOLD_TIME_MAX)
        );
        Mistake::new("fold_time", message)
    })
}
