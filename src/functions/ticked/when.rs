//! When the work of a function is done.

use super::job::Job;
use super::napping::Naps;
use crate::schedule::Schedule;

/// When the work of a function is done, if it is work that can be done beside its schedule as well.
#[derive(Clone, Debug)]
pub enum When {
    /// At the ticks of a schedule, by one instance each.
    Ticks(Job),
    /// After each nap, by each instance for itself.
    Naps(Naps),
}

// === impl When ===

impl When {
    /// The schedule of its ticks; `None` if it has none.
    #[must_use]
    pub fn schedule(&self) -> Option<&Schedule> {
        match self {
            Self::Ticks(job) => Some(job.schedule()),
            Self::Naps(_) => None,
        }
    }

    /// What is done.
    pub(super) fn job(&self) -> &Job {
        match self {
            Self::Ticks(job) => job,
            Self::Naps(naps) => naps.job(),
        }
    }
}
