//! Sets of workers, kept apart by what the rules ask about: their start time and their access.
//!
//! "The first one above this level" or "any that shares" is therefore a look at nine sets, however
//! many workers they hold. What a set of classes stands for is not known here.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::background_worker::{Access, BackgroundWorker, StartTime, WorkerId};

/// The properties of a worker that rules ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) start_time: StartTime,
    pub(super) access: Access,
}

/// Workers by class, each class in registration order.
#[derive(Debug, Default)]
pub(super) struct Classes([[BTreeSet<WorkerId>; 3]; 3]);

const START_TIMES: [StartTime; 3] = [
    StartTime::PostmasterStart,
    StartTime::ConsistentState,
    StartTime::RecoveryFinished,
];

const ACCESSES: [Access; 3] = [Access::None, Access::Shared, Access::Database];

// === impl Class ===

impl Class {
    pub(super) fn of(worker: &BackgroundWorker) -> Self {
        Self {
            start_time: worker.start_time,
            access: worker.access,
        }
    }

    /// `true` if a crash of a worker of this class may have left something broken that others share.
    pub(super) fn shares(self) -> bool {
        self.access >= Access::Shared
    }
}

// === impl Classes ===

impl Classes {
    pub(super) fn insert(&mut self, class: Class, id: WorkerId) {
        self.0[class.start_time as usize][class.access as usize].insert(id);
    }

    pub(super) fn remove(&mut self, class: Class, id: WorkerId) {
        self.0[class.start_time as usize][class.access as usize].remove(&id);
    }

    /// The first worker, in registration order, of the wanted classes.
    pub(super) fn first(&self, wanted: impl Fn(Class) -> bool) -> Option<WorkerId> {
        self.of(wanted).filter_map(|set| set.first().copied()).min()
    }

    /// The next worker in registration order after this one, of any class.
    pub(super) fn after(&self, id: Option<WorkerId>) -> Option<WorkerId> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.of(|_| true)
            .filter_map(|set| set.range((from, Bound::Unbounded)).next().copied())
            .min()
    }

    /// The number of workers of the wanted classes.
    pub(super) fn count(&self, wanted: impl Fn(Class) -> bool) -> usize {
        self.of(wanted).map(BTreeSet::len).sum()
    }

    fn of(&self, wanted: impl Fn(Class) -> bool) -> impl Iterator<Item = &BTreeSet<WorkerId>> {
        let classes = START_TIMES
            .into_iter()
            .flat_map(|start_time| ACCESSES.map(|access| Class { start_time, access }));
        classes
            .filter(move |class| wanted(*class))
            .map(|class| &self.0[class.start_time as usize][class.access as usize])
    }
}
