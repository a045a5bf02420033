//! What a worker reports of its job. A worker that can do its work is healthy, whatever the state of its job is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// A tick that is due, and of whose job nothing was heard for this long, is overdue.
const OVERDUE_AFTER: Duration = Duration::from_secs(120);

/// Why a tick is waiting or overdue of whose job nothing was heard since it came due.
const UNHEARD: &str =
    "a tick is due, and this instance has not been able to look at its job since it came due";

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobState {
    /// Nothing is due.
    Idle,
    /// It runs on this instance.
    Running,
    /// A tick is due and waits for its turn, or another session has the job.
    Waiting,
    /// Its last run failed, and the tick is tried again; none was given up since one was done.
    Failing,
    /// A tick was given up, and none has been done since.
    GivenUp,
    /// A tick has been due for too long and no run has begun, or a run does not end.
    Overdue,
    /// Another instance has declared it differently: this instance stands by.
    DeclaredDifferently,
}

/// What is known of a job at one moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct JobReport {
    /// Its state.
    pub state: JobState,
    /// When that state began.
    pub since: Instant,
    /// Why, and what to do.
    pub why: Option<Arc<str>>,
    /// When this was last reported.
    pub told: Instant,
    /// When its next tick, or the next attempt of one, is due; `None` if that is not known.
    pub due: Option<Instant>,
}

// === impl JobReport ===

impl JobReport {
    /// What follows from the report at this moment. A worker that cannot look at its job reports nothing of it, but its
    /// tick comes due nevertheless.
    #[must_use]
    pub fn at(&self, now: Instant) -> Self {
        let Some(due) = self.due.filter(|due| *due <= now) else {
            return self.clone();
        };
        let unheard = now.saturating_duration_since(due.max(self.told));
        let state = match self.state {
            JobState::Overdue | JobState::Running => return self.clone(),
            _ if unheard >= OVERDUE_AFTER => JobState::Overdue,
            JobState::Idle => JobState::Waiting,
            _ => return self.clone(),
        };
        Self {
            state,
            since: due,
            why: (state == JobState::Overdue).then(|| UNHEARD.into()),
            ..self.clone()
        }
    }
}

// === impl JobState ===

impl JobState {
    /// `true` if a person has to act.
    #[must_use]
    pub fn needs_attention(self) -> bool {
        match self {
            Self::GivenUp | Self::Overdue | Self::DeclaredDifferently => true,
            Self::Idle | Self::Running | Self::Waiting | Self::Failing => false,
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Failing => "failing",
            Self::GivenUp => "given up",
            Self::Overdue => "overdue",
            Self::DeclaredDifferently => "declared differently",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_of_which_nothing_is_heard_waits_from_its_tick_on_and_is_overdue_two_minutes_later() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let state = |state, told, now| {
            let report = JobReport {
                state,
                since: begin,
                why: None,
                told: at(told),
                due: Some(at(100)),
            };
            let found = report.at(at(now));
            (found.state, (found.since - begin).as_secs())
        };
        use JobState::{DeclaredDifferently, Failing, GivenUp, Idle, Overdue, Waiting};
        assert_eq!(state(Idle, 0, 99), (Idle, 0));
        assert_eq!(state(Idle, 0, 100), (Waiting, 100));
        assert_eq!(state(Idle, 0, 219), (Waiting, 100));
        for kept in [Failing, GivenUp, Waiting, DeclaredDifferently] {
            assert_eq!(state(kept, 0, 219), (kept, 0));
            assert_eq!(state(kept, 0, 220), (Overdue, 100));
            assert_eq!(state(kept, 150, 269), (kept, 0), "it was heard of");
            assert_eq!(state(kept, 150, 270), (Overdue, 100));
        }
        assert_eq!(state(Overdue, 0, 1_000), (Overdue, 0));
    }
}
