//! A cursor over the running workers, so that what concerns all of them costs little at a time.
//!
//! A sweep visits, in registration order, the incarnations that ran when it was asked for: each
//! once, never one that started later. It holds a place in the order, not a list.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::background_worker::WorkerId;

/// One pass over the running workers, under way.
#[derive(Debug)]
pub(super) struct Sweep {
    /// The last one visited.
    after: Option<WorkerId>,
    /// Only incarnations below this number ran when the pass was asked for.
    pub(super) started_before: u64,
}

// === impl Sweep ===

impl Sweep {
    /// A pass over those that run now, where `next_incarnation` is the number of the next start.
    pub(super) fn new(next_incarnation: u64) -> Self {
        Self {
            after: None,
            started_before: next_incarnation,
        }
    }

    /// The next running worker in the order, or `None` when the pass is through.
    pub(super) fn next(&mut self, running: &BTreeSet<WorkerId>) -> Option<WorkerId> {
        let from = self.after.map_or(Bound::Unbounded, Bound::Excluded);
        let next = running.range((from, Bound::Unbounded)).next().copied()?;
        self.after = Some(next);
        Some(next)
    }
}
