//! What a worker does about a statement that failed: once more, ever less often, or not at all.

use std::time::Duration;

use super::session::Session;
use super::statement::UNDONE;
use crate::backoff::doubled;
use crate::database::DatabaseError;

/// The first wait after somebody was in the way.
const RETRY_INITIAL: Duration = Duration::from_millis(10);

/// The longest of these waits, unless the naptime is shorter.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// The longest wait while something has to be mended, unless the naptime is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What to do about a statement that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Somebody was in the way, or what is prepared is out of date: once more, soon.
    Again,
    /// Something has to be mended first: once more, but ever less often.
    BackOff,
    /// The server is away, or is not what it was: once more, elsewhere or later.
    Away,
    /// The worker ends.
    Exit,
}

/// How long to wait before the next attempt.
#[derive(Debug, Default)]
pub(super) struct Patience {
    retries: u32,
    backoffs: u32,
}

// === impl Remedy ===

impl Remedy {
    /// The remedy for an error of this session, of a worker that has been ready or not.
    pub(super) async fn find(error: &DatabaseError, session: &Session, was_ready: bool) -> Self {
        if error.is_away() {
            return Self::Away;
        }
        // A connection that many share was lost and is refused now: not the fault of one of them.
        if was_ready && matches!(error, DatabaseError::Home(_)) {
            return Self::BackOff;
        }
        match error.sqlstate() {
            Some("40001" | "40P01" | "55P03" | "26000" | "0A000") => Self::Again,
            // A fold that takes too long takes as long the next time, and writes for nothing.
            Some("57014" | "22003" | "53100" | "53200" | UNDONE) => Self::BackOff,
            // Written to a standby: one that was a primary, if it is in recovery.
            Some("25006") => match session.is_in_recovery().await {
                Ok(true) | Err(_) => Self::Away,
                Ok(false) => Self::BackOff,
            },
            Some(_) | None => Self::Exit,
        }
    }
}

// === impl Patience ===

impl Patience {
    /// The wait before trying again soon.
    pub(super) fn retry(&mut self, naptime: Duration) -> Duration {
        self.backoffs = 0;
        let wait = doubled(RETRY_INITIAL, self.retries, RETRY_MAX.min(naptime));
        self.retries = self.retries.saturating_add(1);
        wait
    }

    /// The wait before trying again, ever less often.
    pub(super) fn back_off(&mut self, naptime: Duration) -> Duration {
        self.retries = 0;
        let wait = doubled(naptime, self.backoffs, BACKOFF_MAX.max(naptime));
        self.backoffs = self.backoffs.saturating_add(1);
        wait
    }

    /// How often in a row it was tried again soon.
    pub(super) fn retries(&self) -> u32 {
        self.retries
    }
}
