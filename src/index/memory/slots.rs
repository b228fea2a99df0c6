//! The writer's book of slots.
//!
//! Invariants: a slot is free, in use, or dead; a dead one is in `dead` until nothing mentions it any
//! more: a sweep that began after its death has visited everything, or all entries of the dead were
//! found.

use super::slot::{self, Owner, Slots};
use super::table::Place;
use crate::block::WorkerId;

#[derive(Debug, Default)]
pub(super) struct SlotBook {
    workers: Vec<WorkerId>,
    /// Entries of each slot in runs.
    entries: Vec<u64>,
    /// Unplaced blocks of each slot.
    unplaced: Vec<u64>,
    /// Where each slot's next removal is likely to be; whoever uses it checks it.
    pub(super) likely: Vec<Place>,
    free: Vec<u32>,
    /// Bits of dead slots, by page.
    dead: Vec<u64>,
    /// Dead before the sweep began that is under way, and since.
    sweeping: Vec<u32>,
    next: Vec<u32>,
    /// Entries of the dead that are still to be swept, in runs and of unplaced blocks.
    pub(super) left_in_runs: u64,
    pub(super) left_unplaced: u64,
    /// Changes with each death.
    pub(super) deaths: u32,
}

impl SlotBook {
    /// A slot for an owner, if there is one left.
    pub(super) fn take(&mut self, slots: &Slots, owner: Owner) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.workers.len() >= slot::MOST => return None,
            None => {
                self.workers.push(owner.worker);
                self.entries.push(0);
                self.unplaced.push(0);
                self.likely.push(Place::default());
                self.dead.resize(self.workers.len().div_ceil(64), 0);
                (self.workers.len() - 1) as u32
            }
        };
        self.workers[slot as usize] = owner.worker;
        slots.set(slot, owner);
        Some(slot)
    }

    /// Whether every slot there can be has an owner, or had one that is not swept yet.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.workers.len() >= slot::MOST
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

    pub(super) fn unplaced(&self, slot: u32) -> u64 {
        self.unplaced[slot as usize]
    }

    pub(super) fn count_unplaced(&mut self, slot: u32, change: i64) {
        let unplaced = &mut self.unplaced[slot as usize];
        *unplaced = unplaced.wrapping_add_signed(change);
    }

    /// Whether a slot in use holds nothing.
    pub(super) fn is_idle(&self, slot: u32) -> bool {
        self.entries(slot) == 0 && self.unplaced(slot) == 0
    }

    /// Ends a slot; how many entries it had.
    pub(super) fn retire(&mut self, slots: &Slots, slot: u32) -> u64 {
        slots.retire(slot);
        let in_runs = std::mem::take(&mut self.entries[slot as usize]);
        let unplaced = std::mem::take(&mut self.unplaced[slot as usize]);
        let entries = in_runs + unplaced;
        self.left_in_runs += in_runs;
        self.left_unplaced += unplaced;
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

    pub(super) fn is_dead(&self, slot: u32) -> bool {
        self.dead_bits(slot / 64) >> (slot % 64) & 1 == 1
    }

    /// Entries of the dead that are still to be swept.
    pub(super) fn left(&self) -> u64 {
        self.left_in_runs + self.left_unplaced
    }

    pub(super) fn is_sweeping(&self) -> bool {
        !self.sweeping.is_empty()
    }

    /// A sweep begins.
    pub(super) fn begin(&mut self) {
        self.sweeping.append(&mut self.next);
    }

    /// A sweep has visited everything.
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
            + (self.entries.capacity() + self.unplaced.capacity()) * size_of::<u64>()
            + self.likely.capacity() * size_of::<Place>();
        let dying = self.free.capacity() + self.sweeping.capacity() + self.next.capacity();
        each + dying * size_of::<u32>()
            + self.dead.capacity() * size_of::<u64>()
            + Slots::bytes(self.workers.len())
    }
}
