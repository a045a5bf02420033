//! Another session that has a job: for how long it has been found to, and what is said of it. Pure: the time is given.

use std::time::Duration;

use tokio::time::Instant;

use super::job::JobRow;

/// How soon a job is looked at again if another session has its tick.
pub(super) const ELSEWHERE: Duration = Duration::from_secs(1);

/// The job's row when another session was found to have it, and since when that was found at each look.
#[derive(Default)]
pub(super) struct Elsewhere(Option<(JobRow, Instant)>);

/// How long a run that was undone is left to its instance, which records it as soon as it is told: a longer time that
/// it cannot reach the database counts as its end.
const RECORDED_WITHIN: Duration = Duration::from_secs(5);

/// A claim of another session that was undone, and since when there is no record of it.
#[derive(Default)]
pub(super) struct Undone {
    found: Option<(String, Instant)>,
    /// The last claim of this instance, of which it knows what became.
    own: Option<String>,
}

// === impl Undone ===

impl Undone {
    /// `true` if the tick may be claimed after this transaction's claim was undone: no record of it is to be expected.
    pub(super) fn is_over(&mut self, undone: Option<&str>, now: Instant) -> bool {
        let Some(transaction) = undone.filter(|undone| self.own.as_deref() != Some(undone)) else {
            self.found = None;
            return true;
        };
        let since = match self.found.take() {
            Some((known, since)) if known == transaction => since,
            _ => now,
        };
        self.found = Some((transaction.to_owned(), since));
        now.saturating_duration_since(since) >= RECORDED_WITHIN
    }

    /// This instance has claimed a tick in this transaction.
    pub(super) fn claimed(&mut self, own: String) {
        self.own = Some(own);
    }
}

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

/// Says that another session keeps a job from being run.
pub(super) fn is_held(pid: Option<i32>, in_transaction: bool) -> String {
    let what = if in_transaction {
        "row of the job in bgworker.job"
    } else {
        "advisory lock of the job"
    };
    let whose = pid.map_or_else(String::new, |pid| format!(", pid {pid},"));
    format!(
        "another session{whose} has had the {what} for longer than a run may take: look for it in pg_stat_activity"
    )
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_claim_that_was_undone_is_left_to_its_instance_for_a_while() {
        let mut undone = Undone::default();
        let begin = Instant::now();
        assert!(undone.is_over(None, begin));
        assert!(!undone.is_over(Some("7"), begin));
        assert!(!undone.is_over(Some("7"), begin + RECORDED_WITHIN / 2));
        assert!(undone.is_over(Some("7"), begin + RECORDED_WITHIN));
        undone.claimed("8".to_owned());
        assert!(undone.is_over(Some("8"), begin));
        assert!(!undone.is_over(Some("7"), begin));
        // Another session claimed the tick after it.
        assert!(!undone.is_over(Some("9"), begin + RECORDED_WITHIN));
    }

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
