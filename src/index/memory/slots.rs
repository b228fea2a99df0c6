//! The writer's book of slots.
//!
//! Invariants: a slot is free, in use, or dead; a dead one is in `dead` until a sweep that began
//! after its death has visited every run.

use super::slot::{Owner, Slots};
use super::table::Place;
use crate::block::WorkerId;

#[derive(Debug, Default)]
pub(super) struct SlotBook {
    workers: Vec<WorkerId>,
    /// Entries of each slot in runs.
    entries: Vec<u64>,
    /// Where each slot's next removal is likely to be; whoever uses it checks it.
    pub(super) likely: Vec<Place>,
    free: Vec<u32>,
    /// Bits of dead slots, by page.
    dead: Vec<u64>,
    /// Dead before the sweep began that is under way, and since.
    sweeping: Vec<u32>,
    next: Vec<u32>,
    /// Changes with each death.
    pub(super) deaths: u32,
}

impl SlotBook {
    pub(super) fn take(&mut self, slots: &Slots, owner: Owner) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.workers.push(owner.worker);
            self.entries.push(0);
            self.likely.push(Place::default());
            self.dead.resize(self.workers.len().div_ceil(64), 0);
            (self.workers.len() - 1) as u32
        });
        self.workers[slot as usize] = owner.worker;
        slots.set(slot, owner);
        slot
    }

    pub(super) fn worker(&self, slot: u32) -> WorkerId {
        self.workers[slot as usize]
    }

    pub(super) fn entries(&self, slot: u32) -> u64 {
        self.entries[slot as usize]
    }

    #[inline]
    pub(super) fn count(&mut self, slot: u32, change: i64) {
        let entries = &mut self.entries[slot as usize];
        *entries = entries.wrapping_add_signed(change);
    }

    /// Ends a slot; how many entries in runs it had.
    pub(super) fn retire(&mut self, slots: &Slots, slot: u32) -> u64 {
        slots.retire(slot);
        let entries = std::mem::take(&mut self.entries[slot as usize]);
        if entries == 0 {
            slots.turn();
            self.free.push(slot);
        } else {
            self.dead[slot as usize / 64] |= 1 << (slot % 64);
            self.next.push(slot);
            self.deaths = self.deaths.wrapping_add(1);
        }
        entries
    }

    #[inline]
    pub(super) fn has_dead(&self) -> bool {
        !self.sweeping.is_empty() || !self.next.is_empty()
    }

    pub(super) fn dead_bits(&self, page: u32) -> u64 {
        self.dead.get(page as usize).copied().unwrap_or(0)
    }

    pub(super) fn is_sweeping(&self) -> bool {
        !self.sweeping.is_empty()
    }

    /// A sweep begins.
    pub(super) fn begin(&mut self) {
        self.sweeping.append(&mut self.next);
    }

    /// A sweep has visited every run.
    pub(super) fn end(&mut self, slots: &Slots) {
        slots.turn();
        for slot in self.sweeping.drain(..) {
            self.dead[slot as usize / 64] &= !(1 << (slot % 64));
            self.free.push(slot);
        }
    }

    /// Bytes that it and the pages of its slots take.
    pub(super) fn bytes(&self) -> usize {
        let each = self.workers.capacity() * size_of::<WorkerId>()
            + self.entries.capacity() * size_of::<u64>()
            + self.likely.capacity() * size_of::<Place>();
        let dying = self.free.capacity() + self.sweeping.capacity() + self.next.capacity();
        each + dying * size_of::<u32>()
            + self.dead.capacity() * size_of::<u64>()
            + Slots::bytes(self.workers.len())
    }
}
