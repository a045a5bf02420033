//! A cursor over the running workers, so that what concerns all of them is done a little at a time.
//!
//! A sweep visits each of them once, in registration order. It holds a place in the order, not a
//! list. No worker starts while a sweep is under way, so it visits only workers that ran when it began.

use super::roster::Roster;
use crate::background_worker::{Incarnation, WorkerId};

/// One pass over the running workers, under way.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The worker visited last.
    after: Option<WorkerId>,
}

// === impl Sweep ===

impl Sweep {
    /// The next running incarnation in the order, or `None` when the pass is through.
    pub(super) fn next(&mut self, roster: &Roster) -> Option<Incarnation> {
        self.after = Some(roster.running_after(self.after)?);
        roster.incarnation(self.after?)
    }
}
