//! What a worker reports of its job. A worker that can do its work is healthy, whatever the state of its job is.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

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
    /// Its last run failed, and the tick is tried again.
    Failing,
    /// Its last tick was given up.
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
