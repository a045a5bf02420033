//! What is known of the last runs of a job, by whichever instance: it decides the job's state between two ticks.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::mark::RunOutcome;
use super::row::JobRow;
use crate::context::JobState;
use crate::database::{DatabaseError, Parameters};
use crate::functions::quote::literal;
use crate::functions::session::Session;

/// How soon the history is asked again.
pub(super) const ASK_EVERY: Duration = Duration::from_secs(5);

/// The last runs of a job.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// What the job's row held when these runs were known: another row means that another instance has run the job.
    row: Option<JobRow>,
    /// When the history was last asked.
    asked: Option<Instant>,
    /// The last run that ended, of those on the schedule and those beside it that succeeded.
    last: Option<Ended>,
    /// When the last run that was done ended.
    pub(super) done_at: Option<Timestamp>,
}

/// A run that ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) how: How,
    pub(super) at: Timestamp,
    pub(super) why: Arc<str>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Done,
    Failed,
    /// The tick was given up, or one before it was and none has been done since.
    GivenUp,
}

/// The last run that counts, when the last one that was done ended, and when the last tick was given up of those after which
/// none was done, of the last twenty. The runs are found by their places in the ring, since a history may be long. A run beside
/// the schedule counts if it has no message: it was done.
static ASK: LazyLock<String> = LazyLock::new(|| {
    let is = |run: &str, outcome: RunOutcome| {
        format!(
            "{run}.outcome OPERATOR(pg_catalog.=) {}",
            literal(outcome.word())
        )
    };
    format!(
        "WITH r AS (SELECT r.run, r.outcome, r.message, r.finished_at FROM bgworker.job AS j, \
         pg_catalog.generate_series(0::pg_catalog.int8, 19::pg_catalog.int8) AS back, bgworker.job_run AS r \
         WHERE j.name OPERATOR(pg_catalog.=) $1 AND r.name OPERATOR(pg_catalog.=) j.name \
         AND r.slot OPERATOR(pg_catalog.=) ((j.runs OPERATOR(pg_catalog.-) back) OPERATOR(pg_catalog.%) $2)::pg_catalog.int4 \
         AND r.run OPERATOR(pg_catalog.=) (j.runs OPERATOR(pg_catalog.-) back)) \
         SELECT r.outcome, r.message, r.finished_at, \
         (SELECT pg_catalog.max(d.finished_at) FROM r AS d WHERE {d_done}) AS done_at, \
         (SELECT pg_catalog.max(g.finished_at) FROM r AS g WHERE {given_up} AND NOT EXISTS (SELECT FROM r AS d \
         WHERE d.run OPERATOR(pg_catalog.>) g.run AND ({d_done} OR {d_once} AND d.message IS NULL))) AS given_up_at \
         FROM r WHERE NOT ({once}) OR r.message IS NULL ORDER BY r.run DESC LIMIT 1",
        d_done = is("d", RunOutcome::Done),
        d_once = is("d", RunOutcome::Once),
        given_up = is("g", RunOutcome::GivenUp),
        once = is("r", RunOutcome::Once),
    )
});

/// Why the last attempt failed, if its instance keeps no history.
const UNKNOWN: &str = "an attempt of another instance failed, and no history is kept";

// === impl Past ===

impl Past {
    /// `true` if the history may say more than is known: the row has changed, or what failed may have been made good
    /// beside the schedule.
    pub(super) fn is_stale(&self, row: &JobRow) -> bool {
        self.row.as_ref() != Some(row) || self.state(row).0 != JobState::Idle
    }

    /// `true` if the history was asked a moment ago.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        self.asked
            .is_some_and(|asked| now.saturating_duration_since(asked) < ASK_EVERY)
    }

    /// Takes in what a run of this instance left.
    pub(super) fn ran(&mut self, row: Option<&JobRow>, ended: Ended) {
        self.row = row.cloned();
        if ended.how == How::Done {
            self.done_at = Some(ended.at);
        }
        let before = self.last.take();
        let given_up = before.filter(|before| before.how == How::GivenUp);
        self.last = Some(ended.after(given_up.map(|before| before.at)));
    }

    /// Takes in what the history says, and the row that was looked at shortly before.
    pub(super) fn learn(&mut self, row: &JobRow, now: Timestamp, asked: Instant, found: Found) {
        let before = self.row.replace(row.clone());
        self.asked = Some(asked);
        match found {
            Some((last, done_at)) => {
                self.last = Some(last);
                self.done_at = done_at.or(self.done_at);
            }
            // No history is kept. The row says less. One that was made again was last done when it was, without a run.
            None if before.is_some_and(|before| {
                before.last_done < row.last_done && before.runs < row.runs
            }) =>
            {
                self.last = None;
                self.done_at = Some(now);
            }
            None if row.attempt > 0 && self.last.is_none() => {
                let why = UNKNOWN.into();
                let how = How::Failed;
                self.last = Some(Ended { how, at: now, why });
            }
            None => {}
        }
    }

    /// `true` unless the last run that is known failed: what makes that good is a run that is done.
    pub(super) fn is_made_good(&self) -> bool {
        let last = self.last.as_ref();
        last.is_none_or(|last| last.how == How::Done)
    }

    /// The state of a job that is not due, and since when and why it is in that state.
    pub(super) fn state(&self, row: &JobRow) -> (JobState, Option<&Ended>) {
        let state = |how| match how {
            How::GivenUp => JobState::GivenUp,
            How::Failed if row.attempt > 0 || row.retry_at.is_some() => JobState::Failing,
            How::Failed | How::Done => JobState::Idle,
        };
        match &self.last {
            Some(last) => (state(last.how), Some(last)),
            None => (JobState::Idle, None),
        }
    }
}

// === impl Ended ===

impl Ended {
    /// A failed run leaves its job given up if a tick was given up at this time and none was done since.
    fn after(self, given_up: Option<Timestamp>) -> Self {
        match (self.how, given_up) {
            (How::Failed, Some(at)) => Self {
                how: How::GivenUp,
                at,
                ..self
            },
            _ => self,
        }
    }
}

/// The last run, and when the last one that was done ended; `None` without a history.
pub(super) type Found = Option<(Ended, Option<Timestamp>)>;

/// Asks the history of a job that keeps this many runs.
pub(super) async fn ask(
    session: &Session,
    name: &str,
    history: u32,
) -> Result<Found, DatabaseError> {
    if history == 0 {
        return Ok(None);
    }
    let parameters: Parameters = vec![
        (Box::new(name.to_owned()), Type::TEXT),
        (Box::new(i64::from(history)), Type::INT8),
    ];
    let rows = session.query("look at the runs", &ASK, parameters).await?;
    let time = |time: Option<SystemTime>| Timestamp::try_from(time?).ok();
    Ok(rows.first().and_then(|row| {
        let last = Ended {
            how: match RunOutcome::of(row.get("outcome")) {
                Some(RunOutcome::GivenUp) => How::GivenUp,
                Some(RunOutcome::Failed | RunOutcome::Lost) => How::Failed,
                Some(RunOutcome::Done | RunOutcome::Once) | None => How::Done,
            },
            at: time(row.get("finished_at"))?,
            why: row
                .get::<_, Option<&str>>("message")
                .unwrap_or_default()
                .into(),
        };
        let given_up_at = time(row.get("given_up_at"));
        Some((last.after(given_up_at), time(row.get("done_at"))))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn ended(how: How, seconds: i64) -> Ended {
        let (at, why) = (time(seconds), "why".into());
        Ended { how, at, why }
    }

    fn row(last_done: i64, attempt: u32) -> JobRow {
        JobRow {
            attempt,
            ..JobRow::new(time(last_done))
        }
    }

    #[test]
    fn the_last_run_decides_the_state_of_a_job_whichever_instance_ran_it() {
        for (how, attempt, expected) in [
            (How::Done, 0, JobState::Idle),
            (How::Failed, 1, JobState::Failing),
            // Another declaration took its attempts away.
            (How::Failed, 0, JobState::Idle),
            (How::GivenUp, 0, JobState::GivenUp),
        ] {
            let (row, mut past) = (row(1, attempt), Past::default());
            assert!(past.is_stale(&row));
            let found = Some((ended(how, 2), Some(time(1))));
            past.learn(&row, time(3), Instant::now(), found);
            assert_eq!(past.state(&row).0, expected, "{how:?}");
            assert_eq!(past.done_at, Some(time(1)));
            assert_eq!(past.is_stale(&row), expected != JobState::Idle);
            assert!(past.is_stale(&self::row(2, attempt)), "another has run it");
        }
    }

    #[test]
    fn without_a_history_the_row_says_whether_it_was_done_or_failed() {
        let mut past = Past::default();
        past.ran(Some(&row(1, 0)), ended(How::GivenUp, 2));
        past.learn(&row(1, 0), time(3), Instant::now(), None);
        assert_eq!(past.state(&row(1, 0)).0, JobState::GivenUp);
        assert!(!past.is_made_good());
        let run = |runs, attempt| JobRow {
            runs,
            ..row(4, attempt)
        };
        past.learn(&run(1, 0), time(5), Instant::now(), None);
        assert_eq!(past.state(&run(1, 0)).0, JobState::Idle);
        assert_eq!(past.done_at, Some(time(5)));
        assert!(past.is_made_good());
        past.learn(&run(2, 1), time(6), Instant::now(), None);
        assert_eq!(past.state(&run(2, 1)).0, JobState::Failing);
    }

    #[test]
    fn a_job_stays_given_up_while_a_later_tick_is_tried_again() {
        let mut past = Past::default();
        for (how, attempt, expected) in [
            (How::Failed, 1, JobState::Failing),
            (How::GivenUp, 0, JobState::GivenUp),
            (How::Failed, 1, JobState::GivenUp),
            (How::Done, 0, JobState::Idle),
            (How::Failed, 1, JobState::Failing),
        ] {
            let row = row(1, attempt);
            past.ran(Some(&row), ended(how, 2));
            assert_eq!(past.state(&row).0, expected);
        }
    }

    #[test]
    fn a_row_that_is_made_again_is_no_run_that_was_done() {
        let mut past = Past::default();
        let run = JobRow {
            runs: 7,
            ..row(1, 1)
        };
        past.ran(Some(&run), ended(How::Failed, 2));
        past.done_at = Some(time(1));
        past.learn(&row(9, 0), time(9), Instant::now(), None);
        assert_eq!(past.done_at, Some(time(1)));
        assert!(!past.is_made_good());
    }
}
