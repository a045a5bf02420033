//! Another session that has a job: for how long it has been found to, and what is said of it. Pure: the time is given.

use std::time::Duration;

use tokio::time::Instant;

use super::row::JobRow;

/// How soon a job is looked at again if another session has its tick.
pub(super) const ELSEWHERE: Duration = Duration::from_secs(1);

/// How long another session must have had a job for the worker to say which session it is.
pub(super) const SAID_AFTER: Duration = Duration::from_secs(5);

/// The job's row when another session was found to have it, and since when that was found at each look.
#[derive(Default)]
pub(super) struct Elsewhere(Option<(JobRow, Instant)>);

// === impl Elsewhere ===

impl Elsewhere {
    /// Another session was found to have this row. Returns how long that was found at each look. A row that has changed
    /// since the last look is another run's.
    pub(super) fn found(&mut self, row: &JobRow, now: Instant) -> Duration {
        let since = match self.0.take() {
            Some((known, since)) if known == *row => since,
            _ => now,
        };
        self.0 = Some((row.clone(), since));
        now.saturating_duration_since(since)
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
}
