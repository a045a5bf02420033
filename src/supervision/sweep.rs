//! A cursor over the running workers, so that what concerns all of them costs little at a time.
//!
//! A sweep visits each of them once, in registration order. It holds a place in the order, not a
//! list. Nobody starts while one is under way, so it visits those who ran when it was asked for.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::background_worker::WorkerId;

/// One pass over the running workers, under way.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The last one visited.
    after: Option<WorkerId>,
}

// === impl Sweep ===

impl Sweep {
    /// The next running worker in the order, or `None` when the pass is through.
    pub(super) fn next(&mut self, running: &BTreeSet<WorkerId>) -> Option<WorkerId> {
        let from = self.after.map_or(Bound::Unbounded, Bound::Excluded);
        let next = running.range((from, Bound::Unbounded)).next().copied()?;
        self.after = Some(next);
        Some(next)
    }
}
