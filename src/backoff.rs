//! Waits that grow, and conditions that come and go: arithmetic, nothing else.

use std::time::{Duration, Instant};

/// The largest part of a wait that jitter takes away, so that a fleet does not retry in step.
const JITTER: f64 = 0.25;

/// How long a condition must have been absent to be reported again.
const CALM: Duration = Duration::from_secs(300);

/// A condition that comes and goes, such as that there is no room: reported once, and again only after it has been absent
/// for a while.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spell {
    last_seen: Option<Instant>,
}

// === impl Spell ===

impl Spell {
    /// Records that the condition holds now. `true` if that is to be reported.
    pub(crate) fn is_news(&mut self, now: Instant) -> bool {
        let last_seen = self.last_seen.replace(now);
        last_seen.is_none_or(|last_seen| now.duration_since(last_seen) > CALM)
    }
}

/// `initial`, doubled `times` times, at most `max`.
pub(crate) fn doubled(initial: Duration, times: u32, max: Duration) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    initial.saturating_mul(factor).min(max)
}

/// `wait`, less up to a quarter of it. `jitter`, from 0 to 1, says how much of that quarter.
pub(crate) fn jittered(wait: Duration, jitter: f64) -> Duration {
    let less = wait.mul_f64(JITTER * jitter.clamp(0.0, 1.0));
    // Whole milliseconds, since the wait is shown.
    wait - Duration::from_millis(u64::try_from(less.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_is_reported_again_only_after_it_was_absent_for_a_while() {
        let begin = tokio::time::Instant::now().into_std();
        let mut spell = Spell::default();
        let mut seen_at = |seconds| spell.is_news(begin + Duration::from_secs(seconds));
        let seen = [0, 1, 200, 450, 751, 752, 1_052].map(&mut seen_at);
        assert_eq!(seen, [true, false, false, false, true, false, false]);
    }

    #[test]
    fn jitter_takes_at_most_a_quarter_of_a_wait() {
        let wait = Duration::from_secs(1);
        assert_eq!(jittered(wait, 0.0), wait);
        assert_eq!(jittered(wait, 1.0), wait * 3 / 4);
        assert_eq!(jittered(wait, 7.0), wait * 3 / 4);
    }

    #[test]
    fn a_wait_doubles_to_its_max_and_never_overflows() {
        let doubled = |times| doubled(Duration::from_secs(1), times, Duration::from_secs(10));
        assert_eq!(
            [0, 1, 2, 3, 4, 31, u32::MAX].map(|n| doubled(n).as_secs()),
            [1, 2, 4, 8, 10, 10, 10]
        );
    }
}
