//! What a job leaves out, or makes good all at once, though an operator may not expect it: windows of one that is declared, ticks
//! of one that is slow. The decisions are pure; [`Scheduled`](super::scheduled::Scheduled) says them once.

use std::time::Duration;

use jiff::Timestamp;

use super::job::Missed;
use super::row::JobRow;
use crate::functions::quote::literal;
use crate::schedule::Schedule;

/// A job of which no tick was run for this long was probably away on purpose.
const LONG: Duration = Duration::from_secs(7 * 24 * 3_600);

/// What to say of a new job that may be another one, which was last done at this time, under a new name. `None` if their
/// namespaces differ.
pub(super) fn renamed(
    (worker, name): (&str, &str),
    (other, last_done): (&str, Timestamp),
) -> Option<String> {
    let namespace = name.strip_suffix(worker)?;
    let others = other.strip_prefix(namespace)?;
    if others.contains('/') {
        return None;
    }
    Some(format!(
        "the job is new, and its first window begins now. The job \"{other}\" is declared to do the same, and was last done at \
         {last_done}: if this is that job under a new name, a statement lets its windows go on from there until it has run for the \
         first time (afterwards, what lies between is in no window): UPDATE bgworker.job AS j SET last_tick = o.last_tick, \
         last_done = o.last_done FROM bgworker.job AS o WHERE j.name = {} AND j.runs = 0 AND o.name = {}",
        literal(name),
        literal(other)
    ))
}

/// What to say of a job that comes back after several of its ticks, and a long time.
pub(super) fn away(
    name: &str,
    row: &JobRow,
    now: Timestamp,
    schedule: &Schedule,
    missed: Missed,
) -> Option<String> {
    let second = schedule
        .next(row.last_tick)
        .and_then(|tick| schedule.next(tick))?;
    if second > now || now.duration_since(row.last_tick).unsigned_abs() < LONG {
        return None;
    }
    let what = match missed {
        Missed::Once => "\"missed = once\" makes one run of the ticks since then",
        Missed::Skip => "\"missed = skip\" drops the ticks since then",
        Missed::Each => {
            "\"missed = each\" runs the ticks since then one after the other, the last 1,000 at most"
        }
    };
    Some(format!(
        "no instance has run the job since its tick {}: {what}. The next window begins at {}. To have it begin with its \
         next tick instead, run this before an instance with the job starts: UPDATE bgworker.job SET last_tick = now(), \
         last_done = now() WHERE name = {}",
        row.last_tick,
        row.last_done,
        literal(name)
    ))
}

/// What to say of a run that took longer than until its next tick: from then on the job cannot keep up.
pub(super) fn slow(
    tick: Timestamp,
    took: Duration,
    schedule: &Schedule,
    missed: Missed,
) -> Option<String> {
    let next = schedule.next(tick)?;
    if took <= next.duration_since(tick).unsigned_abs() {
        return None;
    }
    let what = match missed {
        Missed::Once => "the ticks that came due meanwhile are one run",
        Missed::Skip => "the ticks that came due meanwhile are dropped",
        Missed::Each => {
            "the ticks that came due meanwhile wait, and when there are more than 1,000, the oldest are dropped"
        }
    };
    let took = humantime::format_duration(Duration::from_millis(
        u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    ));
    Some(format!(
        "the run of the tick {tick} took {took}, longer than until the next tick: {what}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_of_the_same_namespace_that_does_the_same_may_have_had_another_name() {
        let said = |name: &str, other: &str| {
            renamed(("new", name), (other, Timestamp::UNIX_EPOCH)).is_some()
        };
        for (name, other, expected) in [
            ("new", "old", true),
            ("a/new", "a/old", true),
            ("a/new", "b/new", false),
            ("a/new", "old", false),
            ("new", "a/new", false),
        ] {
            assert_eq!(said(name, other), expected, "{name} {other}");
        }
    }

    #[test]
    fn a_run_is_slow_if_the_next_tick_has_come_due_before_it_ends() {
        let schedule = Schedule::every(Duration::from_secs(2)).unwrap();
        let tick = Timestamp::UNIX_EPOCH;
        for (seconds, missed, expected) in [
            (1, Missed::Once, None),
            (2, Missed::Each, None),
            (3, Missed::Once, Some("are one run")),
            (3, Missed::Skip, Some("are dropped")),
            (3, Missed::Each, Some("more than 1,000")),
        ] {
            let said = slow(tick, Duration::from_secs(seconds), &schedule, missed);
            match (said, expected) {
                (None, None) => {}
                (Some(said), Some(part)) => assert!(said.contains(part), "{said}"),
                other => panic!("{seconds} {missed:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_job_was_away_if_a_week_and_two_of_its_ticks_have_passed() {
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        for (every, since, expected) in [
            (hours(24), hours(180 * 24), true),
            (hours(24), hours(2 * 24), false),
            (hours(1), hours(7 * 24), true),
            (hours(30 * 24), hours(31 * 24), false),
            (hours(30 * 24), hours(61 * 24), true),
        ] {
            let schedule = Schedule::every(every).unwrap();
            let row = JobRow::new(Timestamp::UNIX_EPOCH);
            let now = Timestamp::UNIX_EPOCH.checked_add(since).unwrap();
            let said = away("j", &row, now, &schedule, Missed::Once);
            assert_eq!(said.is_some(), expected, "{every:?} {since:?}");
        }
    }
}
