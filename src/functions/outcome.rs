//! What a cycle of a worker came to, or why it failed. What follows from it is for the runner to decide.

use std::borrow::Cow;
use std::error::Error;
use std::time::Duration;

use crate::database::DatabaseError;

/// How long a worker naps after a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nap {
    /// Its naptime.
    Usual,
    /// Not at all: there is more to do.
    AtOnce,
    /// This long.
    For(Duration),
}

/// The outcome of a cycle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It did all there was to do, which may have been nothing.
    Done(Nap),
    /// It looked and found nothing to do: no failure, and no success of the work.
    Looked(Nap),
    /// There is nothing to do, but what failed earlier has not been made good: no success.
    Pending(Nap),
    /// Its work was left to another session, which has not done it yet: neither a failure nor a success.
    Left,
    /// Its work failed, for this reason, and it has dealt with the failure: the next cycle follows at once.
    Failed(String),
    /// It is to be tried again soon, for this reason: other clients were in the way, or what it needs was gone for a moment.
    Again(Cow<'static, str>),
    /// It can do nothing until a person acts, for this reason.
    Waits(Waiting),
    /// A person has to act before its work goes on, for this reason, but not because of anything that the worker is unable
    /// to do: no failure.
    Held(String),
}

/// Why work waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// What is at fault. It is logged once, until something else is.
    pub(super) why: String,
    /// What is shown with it, and may change from cycle to cycle: how much else waits.
    pub(super) more: String,
}

impl From<String> for Waiting {
    fn from(why: String) -> Self {
        let more = String::new();
        Self { why, more }
    }
}

/// Why a cycle failed.
pub(super) enum CycleError {
    /// The database refused a statement, or could not be asked.
    Database(DatabaseError),
    /// What it should work on is unusable, for this reason.
    Unusable(Box<dyn Error + Send + Sync>),
}

impl CycleError {
    /// `true` if the database cannot be asked.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_away())
    }
}

impl From<DatabaseError> for CycleError {
    fn from(error: DatabaseError) -> Self {
        Self::Database(error)
    }
}
