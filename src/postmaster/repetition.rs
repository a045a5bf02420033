//! Which ends of a worker are worth a line in the log, where they are the same again and again.
//!
//! No clock and no log here: who asks says the time, and writes the line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::background_worker::ExitStatus;
use crate::context::Reason;

/// After so long, the same is news again.
const NEWS_AFTER: Duration = Duration::from_secs(3600);

/// The same end of a worker, again and again.
#[derive(Debug, Default)]
pub(super) struct Repetition {
    last: Option<(ExitStatus, Option<Arc<str>>)>,
    times: u64,
    told: Option<Instant>,
}

// === impl Repetition ===

impl Repetition {
    /// Counts an end. `Ok` holds how often in a row it has been this one, if that is to be told: at
    /// each doubling, and once an hour. `Err` holds it otherwise.
    pub(super) fn count(
        &mut self,
        now: Instant,
        exit: ExitStatus,
        reason: Option<&Reason>,
    ) -> Result<u64, u64> {
        // A SQLSTATE says what it is, and its text may hold a number that varies.
        let what = reason.map(|reason| reason.sqlstate.as_ref().unwrap_or(&reason.text));
        let this = (exit, what.cloned());
        if self.last.as_ref() != Some(&this) {
            self.last = Some(this);
            self.times = 0;
        }
        self.times += 1;
        let is_news = |told: Instant| now.duration_since(told) >= NEWS_AFTER;
        if self.times.is_power_of_two() || self.told.is_none_or(is_news) {
            self.told = Some(now);
            Ok(self.times)
        } else {
            Err(self.times)
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "any moment will do to begin with"
)]
mod tests {
    use super::*;

    fn reason(text: &str, sqlstate: Option<&str>) -> Reason {
        Reason {
            text: text.into(),
            sqlstate: sqlstate.map(Into::into),
            panicked: false,
        }
    }

    #[test]
    fn the_same_end_is_told_at_each_doubling_and_once_an_hour() {
        let (mut repetition, now) = (Repetition::default(), Instant::now());
        let again = reason("no", None);
        let mut told = |times: u64, at| {
            let count = || repetition.count(at, ExitStatus::Failed, Some(&again));
            std::iter::repeat_with(count)
                .take(times as usize)
                .filter_map(Result::ok)
                .collect::<Vec<_>>()
        };
        assert_eq!(told(20, now), [1, 2, 4, 8, 16]);
        assert_eq!(told(3, now + NEWS_AFTER), [21]);
    }

    #[test]
    fn another_end_is_told_at_once_and_a_sqlstate_says_what_is_the_same() {
        let (mut repetition, now) = (Repetition::default(), Instant::now());
        let mut count = |reason: &Reason| repetition.count(now, ExitStatus::Failed, Some(reason));
        for times in 1..=2 {
            assert_eq!(count(&reason("process 7 waits", Some("40P01"))), Ok(times));
        }
        assert_eq!(count(&reason("process 8 waits", Some("40P01"))), Err(3));
        assert_eq!(count(&reason("process 8 waits", None)), Ok(1));
    }
}
