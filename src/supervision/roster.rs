//! Where each registered worker is, and the orders in which workers are looked for.
//!
//! A worker is in one place at a time, and [`Roster::put`] is the only way from one to another, so
//! no index can disagree with a worker's place. What the places mean is not known here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::classes::{Class, Classes};
use super::registry::Registry;
use super::restart::History;
use super::status::Counts;
use crate::background_worker::{
    BackgroundWorker, Incarnation, InvalidWorker, RestartLimit, RestartTime, WorkerId,
};

/// The registered workers. Every operation costs O(log n).
#[derive(Debug, Default)]
pub(super) struct Roster {
    registry: Registry<Entry>,
    names: HashMap<Arc<str>, WorkerId>,
    /// Workers that wait for their level and their turn.
    pub(super) pending: Classes,
    /// Those of the pending workers that ran before.
    pub(super) pending_again: Classes,
    /// Workers that run and were not asked to stop individually.
    pub(super) active: Classes,
    /// Workers that run and were asked to stop individually.
    pub(super) ending: Classes,
    /// Workers that wait out their restart time, ordered by its end.
    waiting: BTreeSet<(Instant, WorkerId)>,
    /// Workers that are to be aborted, ordered by their deadline.
    abort_at: BTreeSet<(Instant, WorkerId)>,
    ready: usize,
}

#[derive(Debug)]
struct Entry {
    worker: BackgroundWorker,
    place: Place,
    history: History,
}

/// The place of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It waits for its level and its turn.
    Pending {
        /// `true` if it ran before.
        again: bool,
    },
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
    /// Asked to stop individually, not by a shutdown.
    Ending {
        /// When it is to be aborted; `None` once it has been, or if it never is.
        abort_at: Option<Instant>,
        /// It starts again when it may: nothing is held against it.
        comes_back: bool,
    },
}

// === impl Roster ===

impl Roster {
    /// Adds a worker, which is pending. Its name must not be taken.
    pub(super) fn insert(&mut self, worker: BackgroundWorker) -> WorkerId {
        let (name, class) = (Arc::clone(&worker.name), Class::of(&worker));
        let place = Place::Pending { again: false };
        let id = self.registry.insert(Entry {
            worker,
            place,
            history: History::default(),
        });
        self.names.insert(name, id);
        self.index(id, place, class);
        id
    }

    /// Moves a worker to another place.
    pub(super) fn put(&mut self, id: WorkerId, place: Place) {
        let Some(entry) = self.registry.get_mut(id) else {
            return;
        };
        let class = Class::of(&entry.worker);
        let before = std::mem::replace(&mut entry.place, place);
        self.unindex(id, before, class);
        self.index(id, place, class);
    }

    /// Removes a worker; returns whether it was there.
    pub(super) fn remove(&mut self, id: WorkerId) -> bool {
        let Some(Entry { worker, place, .. }) = self.registry.remove(id) else {
            return false;
        };
        self.unindex(id, place, Class::of(&worker));
        self.names.remove(&worker.name);
        true
    }

    /// Sets new rules for a worker's restarts. No place depends on them.
    pub(super) fn set_restart(
        &mut self,
        id: WorkerId,
        restart_time: RestartTime,
        restart_limit: Option<RestartLimit>,
    ) -> Result<(), InvalidWorker> {
        let Some(entry) = self.registry.get_mut(id) else {
            return Ok(());
        };
        let mut worker = entry.worker.clone().restart_time(restart_time);
        worker.restart_limit = restart_limit;
        worker.check()?;
        entry.worker = worker;
        Ok(())
    }

    /// A worker and its past, to be judged and extended.
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

    /// The phase of an incarnation; `None` if it does not run, or no longer.
    pub(super) fn phase(&self, incarnation: Incarnation) -> Option<Phase> {
        match self.place(incarnation.worker)? {
            Place::Running { number, phase } if number == incarnation.number => Some(phase),
            Place::Running { .. } | Place::Pending { .. } | Place::Waiting { .. } => None,
        }
    }

    /// The live incarnation of a worker.
    pub(super) fn incarnation(&self, id: WorkerId) -> Option<Incarnation> {
        match self.place(id)? {
            Place::Running { number, .. } => Some(Incarnation { worker: id, number }),
            Place::Pending { .. } | Place::Waiting { .. } => None,
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<WorkerId> {
        self.names.get(name).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.registry.len()
    }

    /// A worker without a live incarnation.
    pub(super) fn first_unstarted(&self) -> Option<WorkerId> {
        let waiting = || self.waiting.first().map(|(_, id)| *id);
        self.pending.first(|_| true).or_else(waiting)
    }

    /// The waiting worker whose wait ends first.
    pub(super) fn first_waiting(&self) -> Option<(Instant, WorkerId)> {
        self.waiting.first().copied()
    }

    /// The worker that is to be aborted first.
    pub(super) fn first_to_abort(&self) -> Option<(Instant, WorkerId)> {
        self.abort_at.first().copied()
    }

    /// The next running worker in registration order after this one.
    pub(super) fn running_after(&self, id: Option<WorkerId>) -> Option<WorkerId> {
        let next = [self.active.after(id), self.ending.after(id)];
        next.into_iter().flatten().min()
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            registered: self.registry.len(),
            running: self.active.count(|_| true) + self.ending.count(|_| true),
            ready: self.ready,
            backing_off: self.waiting.len(),
            parked: 0,
        }
    }

    fn index(&mut self, id: WorkerId, place: Place, class: Class) {
        match place {
            Place::Pending { again } => {
                self.pending.insert(class, id);
                if again {
                    self.pending_again.insert(class, id);
                }
            }
            Place::Waiting { until } => {
                self.waiting.insert((until, id));
            }
            Place::Running { phase, .. } => match phase {
                Phase::Starting => self.active.insert(class, id),
                Phase::Ready => {
                    self.active.insert(class, id);
                    self.ready += 1;
                }
                Phase::Ending { abort_at, .. } => {
                    self.ending.insert(class, id);
                    self.abort_at.extend(abort_at.map(|at| (at, id)));
                }
            },
        }
    }

    fn unindex(&mut self, id: WorkerId, place: Place, class: Class) {
        match place {
            Place::Pending { .. } => {
                self.pending.remove(class, id);
                self.pending_again.remove(class, id);
            }
            Place::Waiting { until } => {
                self.waiting.remove(&(until, id));
            }
            Place::Running { phase, .. } => match phase {
                Phase::Starting => self.active.remove(class, id),
                Phase::Ready => {
                    self.active.remove(class, id);
                    self.ready -= 1;
                }
                Phase::Ending { abort_at, .. } => {
                    self.ending.remove(class, id);
                    if let Some(at) = abort_at {
                        self.abort_at.remove(&(at, id));
                    }
                }
            },
        }
    }
}
