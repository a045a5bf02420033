//! Runs whose session ended before they were marked: what is known to be a run's own doing counts as an attempt, and
//! everything else is recorded and tried again, less and less often.
//!
//! A session that was terminated, or that crashed its server process, counts: otherwise a statement that ends its
//! session would be run without limit. A server that was restarted or failed over, a crash of another process, and a
//! connection that was cut do not count. Which of them it was is asked of the server once it answers again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::failure::Lost;
use super::mark::{self, RunOutcome};
use super::row::JobRow;
use super::run::{Ran, Run};
use super::settle::{Times, Worked};
use crate::backoff::doubled;
use crate::database::{Continuity, DatabaseError, ServerLife, SessionEnd};
use crate::functions::session::Session;

/// First wait after a run that was lost and does not count.
const WAIT_INITIAL: Duration = Duration::from_secs(1);

/// Longest of these waits.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What an instance remembers of lost runs of a job.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// The run that is still to be recorded.
    unrecorded: Mutex<Option<Arc<Lost>>>,
    /// The number of lost runs that did not count, since one was done.
    uncounted: AtomicU32,
}

/// Whether the end of a session was the doing of the run, or of an administrator who ended the run.
fn counts(end: SessionEnd, server: Continuity) -> bool {
    match (end, server) {
        (_, Continuity::Another) => false,
        (SessionEnd::Terminated, _) | (SessionEnd::Silent, Continuity::Crashed) => true,
        (SessionEnd::Unrelated, _) | (SessionEnd::Silent, Continuity::Undisturbed) => false,
    }
}

// === impl Lost ===

impl Lost {
    /// `true` if the row of the job is as it was when the run claimed it.
    pub(super) fn is_unchanged(&self, row: &JobRow) -> bool {
        let claimed = &self.claimed.row;
        let of = |row: &JobRow| (row.last_tick, row.attempt, row.declared.clone());
        of(claimed) == of(row)
    }

    /// Whether the run counts as an attempt, now that the server answers again.
    fn counts(&self, now: Option<&ServerLife>) -> bool {
        let server = match (&self.life, now) {
            (Some(then), Some(now)) => now.since(then),
            _ => Continuity::Another,
        };
        // Its statements had failed before the session ended.
        !self.failure.is_away() || counts(self.failure.session_end(), server)
    }
}

// === impl Losses ===

impl Losses {
    pub(super) fn unrecorded(&self) -> Option<Arc<Lost>> {
        self.lock().clone()
    }

    pub(super) fn add(&self, lost: Lost) {
        *self.lock() = Some(Arc::new(lost));
    }

    /// There is nothing to record of the last one any longer.
    pub(super) fn forget(&self) {
        *self.lock() = None;
    }

    /// A run was done.
    pub(super) fn are_over(&self) {
        self.uncounted.store(0, Ordering::Relaxed);
    }

    /// The wait after one more lost run that does not count.
    fn wait(&self) -> Duration {
        doubled(
            WAIT_INITIAL,
            self.uncounted.load(Ordering::Relaxed),
            WAIT_MAX,
        )
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Lost>>> {
        let unrecorded = self.unrecorded.lock();
        unrecorded.unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Run ===

impl Run<'_> {
    /// Records a lost run. `None` if the row has changed since the run claimed it, or another session has it.
    pub(super) async fn record(
        &self,
        session: &Session,
        lost: &Lost,
        losses: &Losses,
    ) -> Result<Option<Ran>, DatabaseError> {
        let asking = session.query("ask for the server's start", ServerLife::QUERY, Vec::new());
        let life = asking.await?.first().map(ServerLife::read);
        let counts = lost.counts(life.as_ref());
        let Lost {
            claimed,
            tick,
            took,
            failure,
            ..
        } = lost;
        let now = claimed.now.checked_add(claimed.at.elapsed());
        let now = now.unwrap_or(claimed.now);
        let times = Times {
            tick: *tick,
            took: *took,
            ended: now,
        };
        let worked = if counts {
            Worked::Failed(failure)
        } else {
            Worked::Lost(failure, losses.wait())
        };
        let mark = self.settle(&claimed.row, times, worked);
        let history = self.job.history;
        let claimed_as = (&claimed.row, self.tables);
        let recording = mark::record(session, self.name, claimed_as, history, &mark);
        if !recording.await? {
            return Ok(None);
        }
        losses.forget();
        if !counts {
            losses.uncounted.fetch_add(1, Ordering::Relaxed);
        }
        let why = match &mark.message {
            Some(why) if counts => why.clone(),
            why => format!(
                "{}: this does not count as an attempt",
                why.as_deref().unwrap_or_default()
            ),
        };
        Ok(Some(Ran::Failed {
            why,
            is_given_up: mark.outcome == RunOutcome::GivenUp,
            is_told: lost.is_told,
            after: mark.look_after(now),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_the_runs_own_doing_counts() {
        use Continuity::{Another, Crashed, Undisturbed};
        use SessionEnd::{Silent, Terminated, Unrelated};
        for (end, server, expected) in [
            (Terminated, Undisturbed, true),
            (Terminated, Crashed, true),
            (Silent, Crashed, true),
            (Silent, Undisturbed, false),
            (Unrelated, Undisturbed, false),
            (Unrelated, Crashed, false),
            (Terminated, Another, false),
            (Silent, Another, false),
            (Unrelated, Another, false),
        ] {
            assert_eq!(counts(end, server), expected, "{end:?} {server:?}");
        }
    }
}
