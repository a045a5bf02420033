//! Slots with generations: the registered workers, found by a handle that safely outlives its worker.
//!
//! A slot is reused, a generation never is, so an old handle finds nothing instead of another worker.
//! Nothing here knows what a slot holds.

use crate::background_worker::WorkerId;

/// The slots, and the free ones among them.
#[derive(Debug)]
pub(super) struct Registry<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    generation: u64,
}

#[derive(Debug)]
enum Slot<T> {
    Free,
    Taken { generation: u64, entry: T },
}

// === impl Registry ===

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            generation: 0,
        }
    }
}

impl<T> Registry<T> {
    /// How many slots are taken.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a free slot, or a new one.
    pub(super) fn insert(&mut self, entry: T) -> WorkerId {
        self.generation += 1;
        let generation = self.generation;
        let taken = Slot::Taken { generation, entry };
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot] = taken;
            slot
        } else {
            self.slots.push(taken);
            self.slots.len() - 1
        };
        WorkerId::new(slot, generation)
    }

    pub(super) fn get(&self, id: WorkerId) -> Option<&T> {
        match self.slots.get(id.slot())? {
            Slot::Taken { generation, entry } if *generation == id.generation() => Some(entry),
            Slot::Taken { .. } | Slot::Free => None,
        }
    }

    pub(super) fn get_mut(&mut self, id: WorkerId) -> Option<&mut T> {
        match self.slots.get_mut(id.slot())? {
            Slot::Taken { generation, entry } if *generation == id.generation() => Some(entry),
            Slot::Taken { .. } | Slot::Free => None,
        }
    }

    /// Frees the slot. An old handle does nothing.
    pub(super) fn remove(&mut self, id: WorkerId) -> Option<T> {
        self.get(id)?;
        self.free.push(id.slot());
        match std::mem::replace(&mut self.slots[id.slot()], Slot::Free) {
            Slot::Taken { entry, .. } => Some(entry),
            Slot::Free => None,
        }
    }
}
