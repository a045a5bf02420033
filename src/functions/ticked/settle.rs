//! Decides what a run leaves behind: in the row of its job, and in the history. Pure.

use std::time::Duration;

use jiff::{Timestamp, Unit};

use super::due::{attempts, done_with};
use super::failure::Failure;
use super::job::Job;
use super::mark::{Mark, RunOutcome};
use super::row::JobRow;

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Worked<'f> {
    /// Its work was done, and wrote this number of rows.
    Done(u64),
    /// Its work failed.
    Failed(&'f Failure),
    /// Its session ended, and that is not held against the tick, which is tried again after this time.
    Lost(&'f Failure, Duration),
}

/// When a run took place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) tick: Timestamp,
    pub(super) took: Duration,
    /// The time at which it ended, by the server's clock.
    pub(super) ended: Timestamp,
}

// === impl Worked ===

impl<'f> Worked<'f> {
    /// The result of the work.
    pub(super) fn of(worked: &'f Result<u64, Failure>) -> Self {
        match worked {
            Ok(rows) => Self::Done(*rows),
            Err(failure) => Self::Failed(failure),
        }
    }

    fn failure(self) -> Option<&'f Failure> {
        match self {
            Self::Done(_) => None,
            Self::Failed(failure) | Self::Lost(failure, _) => Some(failure),
        }
    }
}

/// Decides what a run on the schedule leaves of the row that it claimed.
pub(super) fn settle(job: &Job, row: &JobRow, times: Times, worked: Worked<'_>) -> Mark {
    let Times { tick, ended, .. } = times;
    let failed = attempts(row, tick, job.missed);
    let number = failed + 1;
    let retry_in = match worked {
        Worked::Done(_) => None,
        Worked::Failed(_) => job.retry_in(number),
        Worked::Lost(_, wait) => Some(wait),
    };
    let is_over = retry_in.is_none();
    // What came due since an interrupted run began is not known to have been missed because of it.
    let until = row.running_since.unwrap_or(ended);
    let after = JobRow {
        last_tick: if is_over {
            done_with(tick, until, &job.schedule, job.missed)
        } else {
            row.last_tick
        },
        last_done: match worked {
            Worked::Done(_) => tick,
            Worked::Failed(_) | Worked::Lost(..) => row.last_done,
        },
        attempt: match worked {
            Worked::Lost(..) => failed,
            Worked::Failed(_) if !is_over => number,
            Worked::Failed(_) | Worked::Done(_) => 0,
        },
        attempt_tick: retry_in.map(|_| tick),
        // As the database keeps it.
        retry_at: retry_in.and_then(|wait| {
            let at = ended.checked_add(wait).ok()?;
            at.round(Unit::Microsecond).ok()
        }),
        running_since: None,
        runs: row.runs + 1,
        ..row.clone()
    };
    let outcome = match worked {
        Worked::Done(_) => RunOutcome::Done,
        Worked::Failed(_) if is_over => RunOutcome::GivenUp,
        Worked::Failed(_) => RunOutcome::Failed,
        Worked::Lost(..) => RunOutcome::Lost,
    };
    Mark {
        outcome,
        number,
        ..mark(after, times, worked)
    }
}

/// What a run beside the schedule leaves: an entry in the history.
pub(super) fn settle_once(row: &JobRow, times: Times, worked: Worked<'_>) -> Mark {
    let runs = row.runs + 1;
    mark(
        JobRow {
            runs,
            ..row.clone()
        },
        times,
        worked,
    )
}

/// What a tick leaves that was due by the schedule of a declaration that another one replaces: an entry in the history.
pub(super) fn settle_left_out(row: &JobRow, tick: Timestamp) -> Mark {
    let why = format!(
        "no instance ran it: it was due by the schedule that {} had declared, and another instance has taken the job over",
        row.declared_by
    );
    let times = Times {
        tick,
        took: Duration::ZERO,
        ended: tick,
    };
    let failure = Failure::without_error(why);
    Mark {
        outcome: RunOutcome::GivenUp,
        number: row.attempt,
        ..mark(row.clone(), times, Worked::Failed(&failure))
    }
}

fn mark(after: JobRow, Times { tick, took, .. }: Times, worked: Worked<'_>) -> Mark {
    let failure = worked.failure();
    Mark {
        after,
        tick,
        took,
        outcome: RunOutcome::Once,
        number: 1,
        rows: match worked {
            Worked::Done(rows) => Some(rows),
            Worked::Failed(_) | Worked::Lost(..) => None,
        },
        sqlstate: failure.and_then(|failure| failure.sqlstate().map(str::to_owned)),
        message: failure.map(|failure| failure.why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::{Isolation, Missed};
    use super::super::work::Tick;
    use super::*;
    use crate::background_worker::RestartTime;
    use crate::schedule::Schedule;

    fn time(text: &str) -> Timestamp {
        format!("2026-11-26T{text}Z").parse().unwrap()
    }

    fn job(missed: Missed) -> Job {
        let every = Schedule::every(Duration::from_secs(60)).unwrap();
        let work = async |_: &Tick<'_>| Ok(0);
        let job = Job::in_transaction(every, Isolation::default(), "", work);
        let wait = RestartTime::After(Duration::from_secs(10));
        job.attempts(2, wait).missed(missed)
    }

    fn times() -> Times {
        Times {
            tick: time("20:01:00"),
            took: Duration::from_secs(5),
            ended: time("20:03:30"),
        }
    }

    /// A row that failed this often at 20:01, and whose run ended at 20:03:30.
    fn settled(missed: Missed, failures: u32, worked: Worked<'_>) -> Mark {
        let row = JobRow {
            attempt: failures,
            attempt_tick: (failures > 0).then(|| time("20:01:00")),
            runs: 7,
            ..JobRow::new(time("20:00:00"))
        };
        settle(&job(missed), &row, times(), worked)
    }

    #[test]
    fn each_end_of_a_run_leaves_its_row_and_its_entry() {
        use Missed::{Each, Once, Skip};
        use RunOutcome::{Done, Failed, GivenUp, Lost};
        let failure = Failure::without_error("why");
        let (done, failed) = (Worked::Done(3), Worked::Failed(&failure));
        let lost = Worked::Lost(&failure, Duration::from_secs(1));
        let retried = Some("20:03:40");
        for (missed, failures, worked, outcome, last_tick, last_done, attempt, retry_at) in [
            (Once, 0, done, Done, "20:01:00", "20:01:00", 0, None),
            (Each, 1, done, Done, "20:01:00", "20:01:00", 0, None),
            // What came due while it ran was missed.
            (Skip, 0, done, Done, "20:03:00", "20:01:00", 0, None),
            (Once, 0, failed, Failed, "20:00:00", "20:00:00", 1, retried),
            (Skip, 0, failed, Failed, "20:00:00", "20:00:00", 1, retried),
            (Once, 1, failed, GivenUp, "20:01:00", "20:00:00", 0, None),
            (Skip, 1, failed, GivenUp, "20:03:00", "20:00:00", 0, None),
            // It does not count as an attempt, whichever it was.
            (
                Once,
                0,
                lost,
                Lost,
                "20:00:00",
                "20:00:00",
                0,
                Some("20:03:31"),
            ),
            (
                Once,
                1,
                lost,
                Lost,
                "20:00:00",
                "20:00:00",
                1,
                Some("20:03:31"),
            ),
        ] {
            let mark = settled(missed, failures, worked);
            let expected = JobRow {
                last_tick: time(last_tick),
                last_done: time(last_done),
                attempt,
                attempt_tick: retry_at.map(|_| time("20:01:00")),
                retry_at: retry_at.map(time),
                running_since: None,
                runs: 8,
                ..JobRow::new(time("20:00:00"))
            };
            assert_eq!(mark.after, expected, "{missed:?} {failures} {outcome:?}");
            assert_eq!((mark.outcome, mark.number), (outcome, failures + 1));
            assert_eq!(mark.rows, (outcome == Done).then_some(3));
            assert_eq!(mark.message.is_some(), outcome != Done);
        }
    }

    #[test]
    fn a_run_beside_the_schedule_changes_no_tick() {
        let row = JobRow::new(time("20:00:00"));
        let mark = settle_once(&row, times(), Worked::Done(3));
        let runs = 1;
        assert_eq!(mark.after, JobRow { runs, ..row });
        assert_eq!((mark.outcome, mark.rows), (RunOutcome::Once, Some(3)));
    }

    #[test]
    fn what_came_due_since_an_interrupted_run_began_is_still_due() {
        let row = JobRow {
            running_since: Some(time("20:01:02")),
            ..JobRow::new(time("20:00:00"))
        };
        let mark = settle(&job(Missed::Skip), &row, times(), Worked::Done(0));
        assert_eq!(mark.after.last_tick, time("20:01:00"));
    }
}
