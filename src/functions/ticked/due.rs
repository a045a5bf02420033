//! Decides which tick is due, from a job's row, the server's clock and the job's policy. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::job::Missed;
use super::row::JobRow;
use crate::schedule::Schedule;

/// A tick that no instance could begin for this long was missed.
const MISSED_AFTER: Duration = Duration::from_secs(60);

/// Largest number of missed ticks that are run one after the other; older ones are dropped.
const EACH_MAX: usize = 1_000;

/// A tick of which no run has begun for this long is overdue.
pub(super) const OVERDUE_AFTER: Duration = Duration::from_secs(120);

/// The longest sleep: clocks and rows may change meanwhile.
pub(super) const SLEEP_MAX: Duration = Duration::from_secs(60);

/// What is due after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// This tick must be run now.
    Now(Timestamp),
    /// Nothing is due for this long.
    In(Duration),
    /// The last tick lies in the future of the server's clock.
    Ahead,
}

/// Decides what is due.
pub(super) fn due(row: &JobRow, now: Timestamp, schedule: &Schedule, missed: Missed) -> Due {
    if is_ahead(row.last_tick, now, schedule) {
        return Due::Ahead;
    }
    let Some(tick) = tick(row.last_tick, now, schedule, missed) else {
        let next = schedule.next(row.last_tick.max(now));
        return Due::In(until(next, now));
    };
    match row.retry_at {
        // It failed or was lost, and must not be tried again before that time.
        Some(retry_at) if is_retried(row, tick, missed) && retry_at > now => {
            Due::In(until(Some(retry_at), now))
        }
        _ => Due::Now(tick),
    }
}

/// When a tick of which no run has begun came due or will, or is to be tried again.
pub(super) fn due_at(
    row: &JobRow,
    now: Timestamp,
    schedule: &Schedule,
    missed: Missed,
) -> Option<Timestamp> {
    let Some(tick) = tick(row.last_tick, now, schedule, missed) else {
        return schedule.next(row.last_tick.max(now));
    };
    let first = match missed {
        Missed::Skip => tick,
        Missed::Once | Missed::Each => schedule.next(row.last_tick)?,
    };
    let retry_at = (row.retry_at).filter(|_| is_retried(row, tick, missed));
    Some(retry_at.map_or(first, |retry_at| retry_at.max(first)))
}

/// How long a tick has been due of which no run has begun, at most since it was to be tried again.
pub(super) fn due_for(
    row: &JobRow,
    now: Timestamp,
    schedule: &Schedule,
    missed: Missed,
) -> Duration {
    let due = due_at(row, now, schedule, missed).filter(|since| *since < now);
    due.map_or(Duration::ZERO, |since| {
        now.duration_since(since).unsigned_abs()
    })
}

/// How often a tick has failed: the failures of older ticks count too, unless those ticks were dropped.
pub(super) fn attempts(row: &JobRow, tick: Timestamp, missed: Missed) -> u32 {
    if is_retried(row, tick, missed) {
        row.attempt
    } else {
        0
    }
}

/// `true` if what the row holds of an earlier run is about this tick, or about one whose place it took.
fn is_retried(row: &JobRow, tick: Timestamp, missed: Missed) -> bool {
    missed != Missed::Skip || row.attempt_tick == Some(tick)
}

/// The tick that is to be run, if one is due.
fn tick(last: Timestamp, now: Timestamp, schedule: &Schedule, missed: Missed) -> Option<Timestamp> {
    let newest = schedule.newest(now).filter(|newest| *newest > last)?;
    match missed {
        Missed::Once => Some(newest),
        Missed::Skip => {
            (now.duration_since(newest).unsigned_abs() < MISSED_AFTER).then_some(newest)
        }
        Missed::Each => schedule.oldest_of_newest(EACH_MAX, last, now),
    }
}

/// The newest tick that is done with, once the run of a tick ended at this time.
pub(super) fn done_with(
    tick: Timestamp,
    ended: Timestamp,
    schedule: &Schedule,
    missed: Missed,
) -> Timestamp {
    match missed {
        // Ticks that came due meanwhile were missed.
        Missed::Skip => schedule
            .newest(ended)
            .map_or(tick, |newest| newest.max(tick)),
        Missed::Once | Missed::Each => tick,
    }
}

/// The tick whose run began at this time and was interrupted, if `due` is the tick that would be run now: ticks that have come
/// due since then are not that run's.
pub(super) fn interrupted(
    row: &JobRow,
    due: Timestamp,
    began: Timestamp,
    schedule: &Schedule,
    missed: Missed,
) -> Timestamp {
    match missed {
        Missed::Once | Missed::Skip => {
            let newest = schedule.newest(began);
            newest.filter(|tick| *tick > row.last_tick).unwrap_or(due)
        }
        Missed::Each => due,
    }
}

/// `true` if the last tick is more than a minute after the next one: the server's clock was ahead when it was run.
fn is_ahead(last: Timestamp, now: Timestamp, schedule: &Schedule) -> bool {
    let next = schedule.next(now);
    let limit = next.and_then(|next| next.checked_add(MISSED_AFTER).ok());
    limit.is_some_and(|limit| last > limit)
}

fn until(then: Option<Timestamp>, now: Timestamp) -> Duration {
    let wait = then.map_or(SLEEP_MAX, |then| then.duration_since(now).unsigned_abs());
    wait.min(SLEEP_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        format!("2026-11-26T{text}Z").parse().unwrap()
    }

    fn row(last_tick: &str) -> JobRow {
        JobRow::new(time(last_tick))
    }

    fn decide(last_tick: &str, now: &str, missed: Missed) -> Due {
        let schedule = Schedule::every(Duration::from_secs(60)).unwrap();
        due(&row(last_tick), time(now), &schedule, missed)
    }

    #[test]
    fn a_tick_is_due_from_its_time_on_and_not_before() {
        for missed in [Missed::Once, Missed::Skip, Missed::Each] {
            let due = decide("20:00:00", "20:00:59.5", missed);
            assert_eq!(due, Due::In(Duration::from_millis(500)));
            assert_eq!(
                decide("20:00:00", "20:01:00", missed),
                Due::Now(time("20:01:00"))
            );
        }
    }

    #[test]
    fn a_tick_is_due_since_its_time_or_since_it_was_to_be_tried_again() {
        let schedule = Schedule::every(Duration::from_secs(60)).unwrap();
        let due_for =
            |row: &JobRow, now| due_for(row, time(now), &schedule, Missed::Once).as_secs();
        let mut row = row("20:00:00");
        assert_eq!(due_for(&row, "20:00:59"), 0);
        assert_eq!(due_for(&row, "20:01:01"), 1);
        assert_eq!(due_for(&row, "20:05:00"), 240);
        row.retry_at = Some(time("20:04:00"));
        assert_eq!(due_for(&row, "20:03:00"), 0);
        assert_eq!(due_for(&row, "20:05:00"), 60);
    }

    #[test]
    fn it_is_known_when_the_next_tick_or_attempt_is_due() {
        let schedule = Schedule::every(Duration::from_secs(600)).unwrap();
        let mut row = row("20:00:00");
        let due_at = |row: &JobRow, now, missed| due_at(row, time(now), &schedule, missed);
        for missed in [Missed::Once, Missed::Skip, Missed::Each] {
            assert_eq!(due_at(&row, "20:01:00", missed), Some(time("20:10:00")));
            assert_eq!(due_at(&row, "20:10:30", missed), Some(time("20:10:00")));
        }
        assert_eq!(
            due_at(&row, "20:25:00", Missed::Once),
            Some(time("20:10:00"))
        );
        assert_eq!(
            due_at(&row, "20:25:00", Missed::Skip),
            Some(time("20:30:00"))
        );
        row.attempt_tick = Some(time("20:10:00"));
        row.retry_at = Some(time("20:12:00"));
        assert_eq!(
            due_at(&row, "20:10:30", Missed::Once),
            Some(time("20:12:00"))
        );
    }

    #[test]
    fn missed_ticks_are_one_none_or_each() {
        assert_eq!(
            decide("20:00:00", "20:05:30", Missed::Once),
            Due::Now(time("20:05:00"))
        );
        assert_eq!(
            decide("20:00:00", "20:05:30", Missed::Each),
            Due::Now(time("20:01:00"))
        );
        assert_eq!(
            decide("20:00:00", "20:05:30", Missed::Skip),
            Due::Now(time("20:05:00"))
        );
        let schedule = Schedule::every(Duration::from_secs(600)).unwrap();
        let skipped = due(&row("20:00:00"), time("20:11:01"), &schedule, Missed::Skip);
        assert_eq!(skipped, Due::In(SLEEP_MAX));
        let dropped = decide("00:00:00", "20:00:30", Missed::Each);
        assert_eq!(dropped, Due::Now(time("03:21:00")), "the last 1,000");
    }

    #[test]
    fn a_run_that_was_interrupted_is_that_of_its_own_tick() {
        let schedule = Schedule::every(Duration::from_secs(60)).unwrap();
        let (due, began) = (time("20:09:00"), time("20:05:03"));
        let of = |last_tick, missed| interrupted(&row(last_tick), due, began, &schedule, missed);
        for missed in [Missed::Once, Missed::Skip] {
            assert_eq!(of("20:00:00", missed), time("20:05:00"));
            assert_eq!(of("20:05:00", missed), due, "another one has recorded it");
        }
        assert_eq!(of("20:00:00", Missed::Each), due);
    }

    #[test]
    fn what_came_due_while_it_ran_is_dropped_by_skip_alone() {
        let schedule = Schedule::every(Duration::from_secs(60)).unwrap();
        let (tick, ended) = (time("20:01:00"), time("20:04:30"));
        assert_eq!(
            done_with(tick, ended, &schedule, Missed::Skip),
            time("20:04:00")
        );
        for missed in [Missed::Once, Missed::Each] {
            assert_eq!(done_with(tick, ended, &schedule, missed), tick);
        }
    }

    #[test]
    fn a_failed_tick_waits_for_its_next_attempt() {
        let schedule = Schedule::every(Duration::from_secs(60)).unwrap();
        let mut failed = row("20:00:00");
        (failed.attempt, failed.retry_at) = (1, Some(time("20:01:30")));
        failed.attempt_tick = Some(time("20:01:00"));
        for missed in [Missed::Once, Missed::Skip, Missed::Each] {
            let decide = |now| due(&failed, time(now), &schedule, missed);
            assert_eq!(decide("20:01:10"), Due::In(Duration::from_secs(20)));
            assert_eq!(decide("20:01:30"), Due::Now(time("20:01:00")));
        }
    }

    #[test]
    fn the_failures_of_a_tick_that_was_dropped_do_not_count_for_the_next_one() {
        let schedule = Schedule::every(Duration::from_secs(60)).unwrap();
        let mut failed = row("20:00:00");
        (failed.attempt, failed.retry_at) = (2, Some(time("20:09:00")));
        failed.attempt_tick = Some(time("20:01:00"));
        let (next, now) = (time("20:02:00"), time("20:02:01"));
        assert_eq!(due(&failed, now, &schedule, Missed::Skip), Due::Now(next));
        assert_eq!(attempts(&failed, next, Missed::Skip), 0);
        assert_eq!(
            attempts(&failed, next, Missed::Once),
            2,
            "it is one run with the older one"
        );
        let wait = Due::In(SLEEP_MAX);
        assert_eq!(due(&failed, now, &schedule, Missed::Once), wait);
    }

    #[test]
    fn a_clock_that_was_ahead_is_told_and_one_that_is_set_back_repeats_nothing() {
        assert_eq!(
            decide("20:00:00", "19:59:30", Missed::Once),
            Due::In(SLEEP_MAX)
        );
        assert_eq!(decide("23:00:00", "20:00:00", Missed::Once), Due::Ahead);
    }

    #[test]
    fn many_missed_ticks_are_found_one_after_the_other_at_little_cost() {
        let schedule = Schedule::cron("0 3 * * *", "Europe/Berlin").unwrap();
        let mut row = row("20:00:00");
        let now = time("20:00:00") + jiff::SignedDuration::from_hours(175 * 24);
        let (begin, mut ticks) = (tokio::time::Instant::now(), 0);
        while let Due::Now(tick) = due(&row, now, &schedule, Missed::Each) {
            (row.last_tick, ticks) = (tick, ticks + 1);
        }
        assert_eq!(ticks, 175);
        // It took 20 seconds when each search went a thousand ticks back.
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
