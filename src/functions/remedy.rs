//! What a worker does about an error: once more, ever less often, or not at all.
//!
//! Pure: an error's class in, a remedy or a wait out.

use std::time::Duration;

use crate::backoff::doubled;
use crate::database::{DatabaseError, ErrorClass};

/// The first wait after another client was in the way.
const RETRY_INITIAL: Duration = Duration::from_millis(10);

/// The longest of these waits, unless the naptime is shorter.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// The longest wait while something has to be mended, unless the naptime is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// How often in a row a fold may undo itself before that is no coincidence.
const UNDONE_MAX: u32 = 2;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Another client was in the way, or there is no room: once more, soon.
    Again,
    /// What is prepared is out of date: prepare it anew, and once more, soon.
    PrepareAgain,
    /// Something has to be mended first: once more, but ever less often, in a session that begins anew.
    BackOff,
    /// Ask whether the server is a standby: then as if it were away, else back off.
    AskForRecovery,
    /// The server is away: once more, elsewhere or later.
    Away,
    /// The worker ends.
    Exit,
}

/// How long to wait before the next attempt.
#[derive(Debug, Default)]
pub(super) struct Patience {
    retries: u32,
    backoffs: u32,
    undone: u32,
}

// === impl Remedy ===

impl Remedy {
    /// The remedy for an error. A worker that was ready once keeps trying: what was good can be good again. One that
    /// was not ends, and says what it lacks.
    pub(super) fn of(error: &DatabaseError, was_ready: bool, patience: &mut Patience) -> Self {
        if error.undone().is_some() {
            // A delta that was updated while the fold ran, say: the next one sees it.
            return patience.undone();
        }
        match error.class() {
            ErrorClass::Away => Self::Away,
            ErrorClass::Full | ErrorClass::InTheWay => Self::Again,
            ErrorClass::OutOfDate => Self::PrepareAgain,
            ErrorClass::ReadOnly => Self::AskForRecovery,
            // A fold that takes too long takes as long the next time, and writes for nothing.
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

    /// What to do about a fold that undid itself: the third time in a row something alters what it does.
    fn undone(&mut self) -> Remedy {
        if self.undone < UNDONE_MAX {
            self.undone += 1;
            Remedy::Again
        } else {
            Remedy::BackOff
        }
    }
}
