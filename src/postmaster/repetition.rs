//! Which exits of a worker are worth a line in the log when they are the same again and again.
//!
//! No clock and no log here: the caller passes the time, and writes the line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::background_worker::ExitStatus;
use crate::context::Reason;

/// How long after its last line a repeated exit is news again.
const NEWS_AFTER: Duration = Duration::from_secs(3600);

/// The exits of one worker, as far as they repeat.
#[derive(Debug, Default)]
pub(super) struct Repetition {
    last: Option<(ExitStatus, Option<Arc<str>>)>,
    times: u64,
    told: Option<Instant>,
}

// === impl Repetition ===

impl Repetition {
    /// Counts an exit. `Ok` holds how many times in a row it was the same, if it is to be logged: at
    /// each doubling, and once an hour. `Err` holds that number otherwise.
    pub(super) fn count(
        &mut self,
        now: Instant,
        exit: ExitStatus,
        reason: Option<&Reason>,
    ) -> Result<u64, u64> {
        // A SQLSTATE identifies the error; its text may hold a number that varies.
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
#[expect(clippy::disallowed_methods, reason = "any starting time works")]
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
    fn a_repeated_exit_is_logged_at_each_doubling_and_once_an_hour() {
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
    fn a_new_exit_is_logged_at_once_and_a_sqlstate_identifies_it() {
        let (mut repetition, now) = (Repetition::default(), Instant::now());
        let mut count = |reason: &Reason| repetition.count(now, ExitStatus::Failed, Some(reason));
        for times in 1..=2 {
            assert_eq!(count(&reason("process 7 waits", Some("40P01"))), Ok(times));
        }
        assert_eq!(count(&reason("process 8 waits", Some("40P01"))), Err(3));
        assert_eq!(count(&reason("process 8 waits", None)), Ok(1));
    }
}
