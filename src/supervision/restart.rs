//! When a worker that ended may start again: arithmetic on its past, nothing else.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::action::Afterwards;
use crate::background_worker::{BackgroundWorker, Backoff, RestartLimit, RestartTime};
use crate::backoff::{doubled, jittered};

/// The longest wait between two attempts of a worker whose database is away.
const AWAY_MAX: Duration = Duration::from_secs(1);

/// The first wait after the immediate first attempt.
const AWAY_INITIAL: Duration = Duration::from_millis(100);

/// What a worker's past says about its next start. Kept across its incarnations.
#[derive(Debug, Default)]
pub(super) struct History {
    /// How often in a row the worker lost its database without having been ready.
    away: u32,
    /// How often in a row it failed without having been healthy for long enough.
    failures: u32,
    /// When its last incarnation started.
    started: Option<Instant>,
    /// When the worker was restarted after failures, as far back as its limit looks.
    restarts: VecDeque<Instant>,
}

// === impl History ===

impl History {
    pub(super) fn started(&mut self, now: Instant) {
        self.started = Some(now);
    }

    pub(super) fn ready(&mut self) {
        self.away = 0;
    }

    /// Decides when a worker that failed starts again.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        worker: &BackgroundWorker,
        jitter: f64,
    ) -> Afterwards {
        self.away = 0;
        let wait = match worker.restart_time {
            RestartTime::Never => return Afterwards::Unregister,
            RestartTime::After(interval) => interval,
            RestartTime::Backoff(backoff) => self.back_off(now, backoff, jitter),
        };
        match worker.restart_limit {
            Some(limit) if !self.may_restart(now, limit) => Afterwards::GiveUp(limit),
            Some(_) | None => Afterwards::Restart(wait),
        }
    }

    /// Decides how long a worker that lost its database waits.
    ///
    /// The first restart is immediate, since most losses are one closed connection; then the worker waits
    /// 100 ms, doubling up to 1 s. It is not the worker's fault, so no failure is counted.
    pub(super) fn lost_database(&mut self, jitter: f64) -> Duration {
        let wait = match self.away {
            0 => Duration::ZERO,
            times => jittered(doubled(AWAY_INITIAL, times - 1, AWAY_MAX), jitter),
        };
        self.away = self.away.saturating_add(1);
        wait
    }

    fn back_off(&mut self, now: Instant, backoff: Backoff, jitter: f64) -> Duration {
        let ran = self.started.map(|started| now.duration_since(started));
        if ran.is_some_and(|ran| ran >= backoff.healthy_after) {
            self.failures = 0;
        }
        let wait = doubled(backoff.initial, self.failures, backoff.max);
        self.failures = self.failures.saturating_add(1);
        jittered(wait, jitter)
    }

    /// `true` if the limit allows one more restart, which is then counted.
    fn may_restart(&mut self, now: Instant, limit: RestartLimit) -> bool {
        let is_past = |at: &Instant| now.duration_since(*at) >= limit.within;
        while self.restarts.front().is_some_and(is_past) {
            self.restarts.pop_front();
        }
        let may_restart = self.restarts.len() < limit.restarts as usize;
        if may_restart {
            self.restarts.push_back(now);
        }
        may_restart
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any starting time works")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn backing_off() -> BackgroundWorker {
        BackgroundWorker::new("w").restart_time(RestartTime::Backoff(Backoff {
            initial: SECOND,
            max: 10 * SECOND,
            healthy_after: 60 * SECOND,
        }))
    }

    #[test]
    fn a_lost_database_is_tried_at_once_then_after_a_wait_that_doubles_to_a_second() {
        let mut history = History::default();
        let waits: Vec<u128> = (0..7)
            .map(|_| history.lost_database(0.0).as_millis())
            .collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1000, 1000]);
        history.ready();
        assert_eq!(history.lost_database(0.0), Duration::ZERO);
    }

    #[test]
    fn a_backoff_doubles_to_its_max_and_begins_again_after_a_healthy_time() {
        let (mut history, mut now) = (History::default(), Instant::now());
        let worker = backing_off();
        let mut fail_after = |ran: Duration| {
            history.started(now);
            now += ran;
            history.failed(now, &worker, 0.0)
        };
        let waits: Vec<_> = (0..6).map(|_| fail_after(SECOND)).collect();
        assert_eq!(
            waits,
            [1, 2, 4, 8, 10, 10].map(|n| Afterwards::Restart(n * SECOND))
        );
        let almost = 60 * SECOND - Duration::from_nanos(1);
        assert_eq!(fail_after(almost), Afterwards::Restart(10 * SECOND));
        assert_eq!(fail_after(60 * SECOND), Afterwards::Restart(SECOND));
        assert_eq!(fail_after(SECOND), Afterwards::Restart(2 * SECOND));
    }

    #[test]
    fn a_fixed_interval_has_no_jitter() {
        let worker = BackgroundWorker::new("w").restart_time(RestartTime::After(SECOND));
        let verdict = History::default().failed(Instant::now(), &worker, 1.0);
        assert_eq!(verdict, Afterwards::Restart(SECOND));
    }

    #[test]
    fn a_limit_bounds_the_restarts_within_its_window() {
        let (mut history, begin) = (History::default(), Instant::now());
        let limit = RestartLimit {
            restarts: 2,
            within: 10 * SECOND,
        };
        let worker = BackgroundWorker::new("w")
            .restart_time(RestartTime::After(SECOND))
            .restart_limit(limit);
        let mut fail_at = |seconds| history.failed(begin + seconds * SECOND, &worker, 0.0);
        assert_eq!(fail_at(0), Afterwards::Restart(SECOND));
        assert_eq!(fail_at(5), Afterwards::Restart(SECOND));
        assert_eq!(
            fail_at(10),
            Afterwards::Restart(SECOND),
            "the first is past"
        );
        assert_eq!(fail_at(14), Afterwards::GiveUp(limit));
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let mut history = History {
            failures: u32::MAX,
            away: u32::MAX,
            ..History::default()
        };
        let verdict = history.failed(Instant::now(), &backing_off(), 0.0);
        assert_eq!(verdict, Afterwards::Restart(10 * SECOND));
        history.away = u32::MAX;
        assert_eq!(history.lost_database(0.0), AWAY_MAX);
    }
}
