//! What is known of a run that did not complete: why its statements failed, or that its session ended.

use std::time::Duration;

use jiff::Timestamp;

use super::job::Claimed;
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

/// Why the statements did not complete.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) why: String,
    /// The error behind it, if there is one.
    pub(super) error: Option<DatabaseError>,
    /// `true` if a statement of the job did not end within the time of the run, though the server was to cancel it.
    pub(super) ran_over: bool,
}

// === impl Failure ===

impl Failure {
    pub(super) fn of(error: DatabaseError) -> Self {
        Self {
            why: error.to_string(),
            error: Some(error),
            ran_over: false,
        }
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
