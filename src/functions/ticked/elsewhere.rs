//! Another session that has a job: for how long it has been found to, and what is said of it. Pure: the time is given.

use std::time::Duration;

use tokio::time::Instant;

use super::row::JobRow;

/// How soon a job is looked at again if another session has its tick.
pub(super) const ELSEWHERE: Duration = Duration::from_secs(1);

/// How long another session must have had a job for the worker to say which session it is.
pub(super) const SAID_AFTER: Duration = Duration::from_secs(5);

/// Another session that was found to have a job at each look.
#[derive(Default)]
pub(super) struct Elsewhere(Option<Found>);

struct Found {
    /// The job's row, which a run changes.
    row: JobRow,
    since: Instant,
    /// The process of the session, once it was looked for; the inner `None` if none was found.
    holder: Option<Option<i32>>,
}

// === impl Elsewhere ===

impl Elsewhere {
    /// Another session was found to have this row. Returns how long that was found at each look. A row that has changed
    /// since the last look is another run's.
    pub(super) fn found(&mut self, row: &JobRow, now: Instant) -> Duration {
        let since = match &self.0 {
            Some(known) if known.row == *row => known.since,
            _ => {
                self.0 = Some(Found {
                    row: row.clone(),
                    since: now,
                    holder: None,
                });
                now
            }
        };
        now.saturating_duration_since(since)
    }

    /// It was looked for which session has the job. Returns how long this one was found to have it: another session than before
    /// has not had it for long.
    pub(super) fn held_by(&mut self, holder: Option<i32>, now: Instant) -> Duration {
        let Some(found) = &mut self.0 else {
            return Duration::ZERO;
        };
        if found.holder.is_some_and(|before| before != holder) {
            found.since = now;
        }
        found.holder = Some(holder);
        now.saturating_duration_since(found.since)
    }
}

/// Says which session has a job.
pub(super) fn has_it(pid: Option<i32>, in_transaction: bool) -> String {
    let what = if in_transaction {
        "row of the job in bgworker.job"
    } else {
        "advisory lock of the job"
    };
    let whose = pid.map_or_else(String::new, |pid| format!(", pid {pid},"));
    format!("another session{whose} has had the {what}")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_row_is_held_only_if_no_other_session_has_marked_a_run_meanwhile() {
        let mut elsewhere = Elsewhere::default();
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut row = JobRow::new(Timestamp::UNIX_EPOCH);
        assert_eq!(elsewhere.found(&row, begin), Duration::ZERO);
        assert_eq!(elsewhere.found(&row, begin + 9 * second), 9 * second);
        // Two instances try in turn.
        row.attempt = 1;
        assert_eq!(elsewhere.found(&row, begin + 10 * second), Duration::ZERO);
        assert_eq!(elsewhere.found(&row, begin + 12 * second), 2 * second);
    }

    #[test]
    fn a_session_that_takes_the_place_of_another_has_not_had_the_row_for_long() {
        let mut elsewhere = Elsewhere::default();
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let row = JobRow::new(Timestamp::UNIX_EPOCH);
        elsewhere.found(&row, begin);
        for (at, holder, expected) in [
            (5, Some(1), 5),
            (60, Some(1), 60),
            (61, Some(2), 0),
            (63, Some(2), 2),
            (64, None, 0),
        ] {
            let now = begin + at * second;
            elsewhere.found(&row, now);
            let held = elsewhere.held_by(holder, now);
            assert_eq!(held, expected * second, "{at} {holder:?}");
        }
    }
}
