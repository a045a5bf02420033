//! Where each registered worker is, and the orders in which workers are looked for.
//!
//! A worker is in one place at a time, and [`Roster::put`] is the only way from one to another, so
//! that no index can disagree with a worker's place. What the places mean is not known here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::registry::Registry;
use super::restart::History;
use super::status::{Counts, WorkerState};
use crate::background_worker::{BackgroundWorker, Incarnation, StartTime, WorkerId};

/// The registered workers. Every operation costs O(log n).
#[derive(Debug)]
pub(super) struct Roster {
    registry: Registry<Entry>,
    names: HashMap<Arc<str>, WorkerId>,
    /// By start time, in registration order.
    pending: [BTreeSet<WorkerId>; 3],
    /// By the end of their waits.
    waiting: BTreeSet<(Instant, WorkerId)>,
    /// In registration order.
    running: BTreeSet<WorkerId>,
    /// By the end of patience with them.
    stopping: BTreeSet<(Instant, WorkerId)>,
    ready: usize,
}

#[derive(Debug)]
struct Entry {
    worker: BackgroundWorker,
    place: Place,
    history: History,
}

/// Where a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It waits for its level and its turn.
    Pending,
    /// It waits out its restart time.
    Waiting { until: Instant },
    /// It has a live incarnation, of this number.
    Running { number: u64, phase: Phase },
}

/// How far a live incarnation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Ready,
    /// Asked to stop on its own, not by a shutdown.
    Stopping {
        until: Instant,
    },
    /// Aborted, since it did not stop in time.
    Aborted,
}

// === impl Roster ===

impl Roster {
    pub(super) fn new() -> Self {
        Self {
            registry: Registry::new(),
            names: HashMap::new(),
            pending: Default::default(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            stopping: BTreeSet::new(),
            ready: 0,
        }
    }

    /// Adds a worker, which is pending. Its name must not be taken.
    pub(super) fn insert(&mut self, worker: BackgroundWorker) -> WorkerId {
        let (name, start_time) = (Arc::clone(&worker.name), worker.start_time);
        let place = Place::Pending;
        let id = self.registry.insert(Entry {
            worker,
            place,
            history: History::default(),
        });
        self.names.insert(name, id);
        self.index(id, place, start_time);
        id
    }

    /// Moves a worker to a place.
    pub(super) fn put(&mut self, id: WorkerId, place: Place) {
        let Some(entry) = self.registry.get_mut(id) else {
            return;
        };
        let start_time = entry.worker.start_time;
        let before = std::mem::replace(&mut entry.place, place);
        self.unindex(id, before, start_time);
        self.index(id, place, start_time);
    }

    /// Removes a worker, and says whether it was there.
    pub(super) fn remove(&mut self, id: WorkerId) -> bool {
        let Some(Entry { worker, place, .. }) = self.registry.remove(id) else {
            return false;
        };
        self.unindex(id, place, worker.start_time);
        self.names.remove(&worker.name);
        true
    }

    /// A worker and its past, to be judged and added to.
    pub(super) fn history_mut(
        &mut self,
        id: WorkerId,
    ) -> Option<(&BackgroundWorker, &mut History)> {
        let Entry {
            worker, history, ..
        } = self.registry.get_mut(id)?;
        Some((worker, history))
    }

    pub(super) fn worker(&self, id: WorkerId) -> Option<&BackgroundWorker> {
        self.registry.get(id).map(|entry| &entry.worker)
    }

    pub(super) fn place(&self, id: WorkerId) -> Option<Place> {
        self.registry.get(id).map(|entry| entry.place)
    }

    /// The phase of an incarnation; `None` if it does not run (any more).
    pub(super) fn phase(&self, incarnation: Incarnation) -> Option<Phase> {
        match self.place(incarnation.worker)? {
            Place::Running { number, phase } if number == incarnation.number => Some(phase),
            Place::Running { .. } | Place::Pending | Place::Waiting { .. } => None,
        }
    }

    /// The live incarnation of a worker.
    pub(super) fn incarnation(&self, id: WorkerId) -> Option<Incarnation> {
        match self.place(id)? {
            Place::Running { number, .. } => Some(Incarnation { worker: id, number }),
            Place::Pending | Place::Waiting { .. } => None,
        }
    }

    /// Where a worker is, as others are told.
    pub(super) fn state(&self, id: WorkerId) -> Option<WorkerState> {
        Some(match self.place(id)? {
            Place::Pending => WorkerState::Registered,
            Place::Waiting { until } => WorkerState::BackingOff { until },
            Place::Running { phase, .. } => match phase {
                Phase::Starting => WorkerState::Starting,
                Phase::Ready => WorkerState::Running,
                Phase::Stopping { .. } | Phase::Aborted => WorkerState::Stopping,
            },
        })
    }

    pub(super) fn find(&self, name: &str) -> Option<WorkerId> {
        self.names.get(name).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.registry.len()
    }

    /// The pending worker of these levels that was registered first.
    pub(super) fn first_pending(&self, reached: StartTime) -> Option<WorkerId> {
        self.pending[..=reached as usize]
            .iter()
            .filter_map(|level| level.first().copied())
            .min()
    }

    /// The waiting worker whose wait ends first.
    pub(super) fn first_waiting(&self) -> Option<(Instant, WorkerId)> {
        self.waiting.first().copied()
    }

    /// The stopping worker with whom patience ends first.
    pub(super) fn first_stopping(&self) -> Option<(Instant, WorkerId)> {
        self.stopping.first().copied()
    }

    /// Those with a live incarnation.
    pub(super) fn running(&self) -> &BTreeSet<WorkerId> {
        &self.running
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            registered: self.registry.len(),
            running: self.running.len(),
            ready: self.ready,
            backing_off: self.waiting.len(),
        }
    }

    fn index(&mut self, id: WorkerId, place: Place, start_time: StartTime) {
        match place {
            Place::Pending => {
                self.pending[start_time as usize].insert(id);
            }
            Place::Waiting { until } => {
                self.waiting.insert((until, id));
            }
            Place::Running { phase, .. } => {
                self.running.insert(id);
                match phase {
                    Phase::Starting | Phase::Aborted => {}
                    Phase::Ready => self.ready += 1,
                    Phase::Stopping { until } => {
                        self.stopping.insert((until, id));
                    }
                }
            }
        }
    }

    fn unindex(&mut self, id: WorkerId, place: Place, start_time: StartTime) {
        match place {
            Place::Pending => {
                self.pending[start_time as usize].remove(&id);
            }
            Place::Waiting { until } => {
                self.waiting.remove(&(until, id));
            }
            Place::Running { phase, .. } => {
                self.running.remove(&id);
                match phase {
                    Phase::Starting | Phase::Aborted => {}
                    Phase::Ready => self.ready -= 1,
                    Phase::Stopping { until } => {
                        self.stopping.remove(&(until, id));
                    }
                }
            }
        }
    }
}
