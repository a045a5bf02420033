//! When a worker that ended may start again: arithmetic on durations, nothing else.

use std::time::Duration;

use crate::background_worker::RestartTime;

/// The longest wait between two attempts of a worker whose database is away.
const AWAY_MAX: Duration = Duration::from_secs(1);

/// The shortest wait after the immediate first attempt.
const AWAY_INITIAL: Duration = Duration::from_millis(100);

/// How long after a failure the worker starts again; `None` if it never does.
pub(super) fn after_failure(restart_time: RestartTime) -> Option<Duration> {
    match restart_time {
        RestartTime::After(interval) => Some(interval),
        RestartTime::Never => None,
    }
}

/// How long a worker waits that lost its database for the `times`-th time in a row, counted from
/// 1, without having been ready in between.
///
/// At once the first time: most losses are one closed connection. Then 100 ms, doubling to 1 s.
/// `jitter`, from 0 to 1, takes away up to a quarter of it, so that a fleet does not knock in step.
pub(super) fn while_away(times: u32, jitter: f64) -> Duration {
    let Some(doublings) = times.checked_sub(2) else {
        return Duration::ZERO;
    };
    let wait = AWAY_INITIAL
        .saturating_mul(1 << doublings.min(10))
        .min(AWAY_MAX);
    wait.mul_f64(1.0 - 0.25 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_database_is_tried_at_once_then_after_a_wait_that_doubles_to_a_second() {
        let waits: Vec<u128> = (1..=7)
            .map(|times| while_away(times, 0.0).as_millis())
            .collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(while_away(u32::MAX, 0.0), AWAY_MAX);
    }

    #[test]
    fn jitter_shortens_a_wait_by_at_most_a_quarter() {
        assert_eq!(while_away(3, 1.0), Duration::from_millis(150));
        assert_eq!(while_away(3, 7.0), Duration::from_millis(150));
    }
}
