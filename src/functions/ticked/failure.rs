//! What is known of a run that did not complete: why its statements failed, or that its session ended.

use std::error::Error;
use std::time::Duration;

use jiff::Timestamp;

use super::claim::Claimed;
use crate::database::{DatabaseError, ErrorClass, ServerLife, SessionEnd};

/// A run whose session ended before it was marked.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) claimed: Claimed,
    pub(super) tick: Timestamp,
    /// How long it ran.
    pub(super) took: Duration,
    pub(super) failure: Failure,
    /// The server's life when the run began, if the server says.
    pub(super) life: Option<ServerLife>,
    /// The log has a line of it already.
    pub(super) is_told: bool,
}

/// Why the work of a job did not complete. Any error becomes one with `?`.
///
/// An error of the database that says that the session ended is not held against the job, unless the job ended it.
#[derive(Debug)]
pub struct Failure {
    pub(super) why: String,
    /// The error behind it, if it is one of the database.
    pub(super) error: Option<DatabaseError>,
    /// A statement of the job did not end within the time of the run, though the server was to cancel it.
    pub(super) ran_over: bool,
}

// === impl Failure ===

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Failure {
    fn from(error: E) -> Self {
        match error.into().downcast::<DatabaseError>() {
            Ok(error) => Self::of(*error),
            Err(error) => Self::without_error(error.to_string()),
        }
    }
}

impl Failure {
    /// The failure of a statement, with what there is to say of it.
    pub(in crate::functions) fn of_statement(why: String, error: DatabaseError) -> Self {
        Self {
            why,
            ran_over: matches!(error, DatabaseError::StatementDeadline { .. }),
            error: Some(error),
        }
    }

    /// The failure of what follows the statements, with what there is to say of it.
    pub(in crate::functions) fn saying(why: String, error: DatabaseError) -> Self {
        Self {
            why,
            error: Some(error),
            ran_over: false,
        }
    }

    pub(in crate::functions) fn of(error: DatabaseError) -> Self {
        Self::saying(error.to_string(), error)
    }

    /// A failure without an error of the database.
    pub(super) fn without_error(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            error: None,
            ran_over: false,
        }
    }

    /// `true` if the statements were cancelled, or the connection or the server was lost.
    pub(super) fn is_cut_short(&self) -> bool {
        let error = self.error.as_ref();
        let is_cancelled = error.is_some_and(|error| error.class() == ErrorClass::Cancelled);
        is_cancelled || self.is_away()
    }

    /// `true` if the connection or the server was lost.
    pub(super) fn is_away(&self) -> bool {
        let error = self.error.as_ref();
        error.is_some_and(|error| error.class() == ErrorClass::Away && !error.leaves_the_session())
    }

    /// `true` if the server itself said that it ends the session.
    pub(super) fn is_goodbye(&self) -> bool {
        let error = self.error.as_ref();
        let end = error.map(DatabaseError::session_end);
        end == Some(SessionEnd::Terminated) && !self.ran_over
    }

    /// What is known of the reason for which the session ended.
    pub(super) fn session_end(&self) -> SessionEnd {
        match &self.error {
            _ if self.ran_over => SessionEnd::Terminated,
            Some(error) => error.session_end(),
            None => SessionEnd::Unrelated,
        }
    }

    pub(super) fn sqlstate(&self) -> Option<&str> {
        self.error.as_ref()?.sqlstate()
    }
}
