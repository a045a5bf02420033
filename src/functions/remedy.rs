//! What a worker does about an error: it tries again soon, backs off, or gives up.
//!
//! Pure: an error's class in, a remedy or a wait out.

use std::time::Duration;

use crate::backoff::doubled;
use crate::database::{DatabaseError, ErrorClass};

/// The first wait after another client was in the way.
const RETRY_INITIAL: Duration = Duration::from_millis(10);

/// The longest of these waits, unless the naptime is shorter.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// After this many retries in a row, the worker warns that its backlog waits, unless it has done so lately.
pub(super) const RETRIES_UNTIL_WARNING: u32 = 8;

/// The longest wait while something must be fixed, unless the naptime is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// How often in a row a fold may undo itself before that no longer counts as a coincidence.
const UNDONE_MAX: u32 = 2;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Another client was in the way, or there is no room: try again soon.
    Again,
    /// What was prepared is out of date: prepare it again, and try again soon.
    PrepareAgain,
    /// Something must be fixed first: try again, less and less often, in a new session.
    BackOff,
    /// Ask whether the server is a standby. If it is, treat it as away; otherwise back off.
    AskForRecovery,
    /// The server is away: try again, elsewhere or later.
    Away,
    /// The worker ends.
    Exit,
}

/// Attempts so far, and with them the wait before the next one.
#[derive(Debug, Default)]
pub(super) struct Patience {
    retries: u32,
    backoffs: u32,
    undone: u32,
}

/// `true` if the connection was lost. Otherwise it still leads to a server that the worker cannot use.
pub(super) fn is_lost(error: &DatabaseError) -> bool {
    !matches!(error, DatabaseError::Statement { .. })
}

// === impl Remedy ===

impl Remedy {
    /// The remedy for an error. If something must be fixed, a worker that was ready once keeps trying: what worked
    /// before can work again. A worker that was never ready ends, and reports what it lacks.
    pub(super) fn of(error: &DatabaseError, was_ready: bool, patience: &mut Patience) -> Self {
        if error.undone().is_some() {
            // For example, a delta was updated while the fold ran: the next fold sees it.
            return patience.undone();
        }
        match error.class() {
            ErrorClass::Away => Self::Away,
            ErrorClass::Full | ErrorClass::InTheWay => Self::Again,
            ErrorClass::OutOfDate => Self::PrepareAgain,
            ErrorClass::ReadOnly => Self::AskForRecovery,
            // A fold that took too long will take as long the next time, and write for nothing.
            ErrorClass::Cancelled | ErrorClass::Exhausted => Self::BackOff,
            ErrorClass::Ours | ErrorClass::Refused | ErrorClass::ToBeMended if was_ready => {
                Self::BackOff
            }
            ErrorClass::Ours | ErrorClass::Refused | ErrorClass::ToBeMended => Self::Exit,
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

    /// The wait before trying again, less and less often.
    pub(super) fn back_off(&mut self, naptime: Duration) -> Duration {
        self.retries = 0;
        let wait = doubled(naptime, self.backoffs, BACKOFF_MAX.max(naptime));
        self.backoffs = self.backoffs.saturating_add(1);
        wait
    }

    /// Number of retries in a row.
    pub(super) fn retries(&self) -> u32 {
        self.retries
    }

    /// The remedy for a fold that undid itself. From the third time in a row, something else must be altering what it
    /// does.
    fn undone(&mut self) -> Remedy {
        if self.undone < UNDONE_MAX {
            self.undone += 1;
            Remedy::Again
        } else {
            Remedy::BackOff
        }
    }
}
