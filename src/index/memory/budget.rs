//! The budget: what goes when the memory is full.
//!
//! Invariants: before blocks are pushed, held or named, what is in use leaves room for that or
//! everything that may go is gone; what takes more than was thought is made up for behind the change;
//! only the end of a run without children goes, so chains stay closed; a worker that
//! holds far more than its share (`is_flooder`) goes first, and alone: blocks that it shares stay with
//! the others. Whose copies go is listed first (`Losers`).

use std::sync::OnceLock;

use super::arena::{CHUNK_BYTES, CHUNKS, Chunk};
use super::run::{KIDS, Run, RunId, USED};
use super::store::STRETCH;
use super::sync::{Ordering, guard};
use super::write::Pen;
use crate::block::WorkerId;

/// Room that a store of one stretch may need at once, the growth of maps left out.
pub(super) const RESERVE: usize = 64 << 10;
/// What an empty index takes: who has which chunk of the arena.
const FIXED: usize = CHUNKS * size_of::<OnceLock<Chunk>>();
/// Runs looked at to find the one that was not used for longest.
const SAMPLE: usize = 48;
/// How many runs are looked at to find some that a flooding worker holds, and how many of those are
/// enough to find one that was not used for long.
const SEARCH: usize = 1024;
const FOUND: usize = 16;
/// Blocks given up at a time: a few segments.
const BITE: u32 = 64;
/// Changes between two ticks of the clock of recency, as a power of two.
const TICK: u32 = 6;

impl Pen<'_> {
    /// Bytes in use. Each part says what it takes whenever it changes, so that this is a sum of a few
    /// words.
    #[inline]
    pub(super) fn in_use(&self) -> usize {
        self.w.book.live() + self.beside_arena()
    }

    /// Bytes asked of the system.
    pub(super) fn reserved(&self) -> usize {
        self.w.book.made() + self.beside_arena()
    }

    /// What is not in the arena: maps, lists and fixed tables, by their capacities.
    #[inline]
    fn beside_arena(&self) -> usize {
        let w = &*self.w;
        let lists = w.runs.capacity() * size_of::<RunId>() + w.crowd_bytes + w.lane_bytes;
        let maps = w.extras.bytes() + w.crowds.bytes() + w.workers.bytes() + w.homes + w.naming;
        let unplaced = w.unplaced_bytes.load(Ordering::Relaxed);
        FIXED
            + w.book.outside()
            + lists
            + maps
            + unplaced
            + w.slots.bytes()
            + w.cuts.bytes()
            + self.shared.losers.bytes()
    }

    pub(super) fn tick(&mut self) {
        self.w.changes = self.w.changes.wrapping_add(1);
        if self.w.changes.is_multiple_of(1 << TICK) {
            let clock = &self.shared.clock;
            clock.store(clock.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// Makes room for a stretch of blocks; `false` if nothing is left that may go.
    #[inline]
    pub(super) fn make_room(&mut self) -> bool {
        self.has_room() || {
            self.evict();
            self.has_room()
        }
    }

    #[inline]
    fn has_room(&self) -> bool {
        self.in_use() + self.soon() + RESERVE <= self.w.options.budget
    }

    /// What maps take more, all at once, if a stretch of blocks comes.
    #[inline]
    fn soon(&self) -> usize {
        self.w.naming_soon + self.w.extras.soon(STRETCH)
    }

    /// Behind a change: removals, too, may take memory, by the holes that they make.
    #[inline]
    pub(super) fn keep_within(&mut self) {
        if self.in_use() > self.w.options.budget {
            self.evict();
        }
    }

    #[cold]
    fn evict(&mut self) {
        // A little more than needed, so that not every store comes here.
        let goal =
            self.w.options.budget.saturating_sub(
                self.soon() + RESERVE + CHUNK_BYTES.min(self.w.options.budget / 64),
            );
        let mut idle = 0;
        let mut flooder = self.flooder();
        while self.in_use() > goal && idle < 64 {
            // All workers are looked at once for many bites: as long as it is one, it stays the one.
            if flooder.is_some_and(|worker| !self.is_flooder(self.w.size(worker))) {
                flooder = self.flooder();
            }
            if self.is_dirty() {
                // The dead first, and names that nobody speaks: they come to an end.
                self.sweep(SAMPLE);
                continue;
            }
            let before = (self.in_use(), self.w.entries);
            if self.w.runs.is_empty() {
                return;
            } else {
                self.evict_one(flooder);
            }
            let now = (self.in_use(), self.w.entries);
            idle = if before == now { idle + 1 } else { 0 };
        }
    }

    fn evict_one(&mut self, flooder: Option<WorkerId>) {
        let search = if flooder.is_some() { SEARCH } else { SAMPLE };
        let floods = flooder.map(|worker| self.w.slots_of(worker)).unwrap_or_default();
        let mut oldest: Option<(bool, u32, RunId)> = None;
        let now = self.shared.now();
        let mut found = 0;
        for seen in 0..search.min(self.w.runs.len().max(SAMPLE)) {
            // At random places: neighbours in the list were often made one after the other.
            self.w.looks = self.w.looks.wrapping_add(1);
            let place = u128::from(self.shared.hash(self.w.looks)) * self.w.runs.len() as u128;
            let id = self.w.runs[(place >> 64) as usize];
            let run = self.run(id);
            if run.is_root()
                || run.get(KIDS) > 0
                || self.w.pinned == id
                || self.w.busy.contains(&id)
            {
                continue;
            }
            let floods = self.is_held_by(run, &floods);
            let age = now.wrapping_sub(run.get(USED));
            if oldest.is_none_or(|(f, a, _)| (floods, age) > (f, a)) {
                oldest = Some((floods, age, id));
            }
            found += usize::from(floods);
            if seen >= SAMPLE && found >= FOUND {
                break;
            }
        }
        let Some((floods, _, id)) = oldest else { return };
        let worker = flooder.filter(|_| floods);
        self.cut_holders(id, worker);
    }

    /// The worker with the most entries, if it has too many.
    fn flooder(&self) -> Option<WorkerId> {
        let (worker, entries) = self.w.largest()?;
        self.is_flooder(entries).then_some(worker)
    }

    /// Whether so many entries are too many for one of several workers while somebody needs room: more
    /// than half of all where there are two, towards twice the share where there are many.
    ///
    /// The memory is full, so what others do not use of their shares may be used until then. Among
    /// many, whoever is a little above the mean at the moment is no flooder, and the oldest goes.
    fn is_flooder(&self, entries: u64) -> bool {
        let workers = self.w.worker_count() as u64;
        workers > 1 && entries * (workers + 2) > 2 * self.w.entries
    }

    /// Whether one of these slots holds a block of the run.
    pub(super) fn is_held_by(&mut self, run: Run<'_>, slots: &[u32]) -> bool {
        if slots.is_empty() {
            return false;
        }
        self.w.cuts.load(run);
        slots.iter().any(|&slot| self.w.cuts.held(slot, 0, u32::MAX).next().is_some())
    }

    /// Takes the last blocks of a run without children from their holders, or from one of them.
    pub(super) fn cut_holders(&mut self, id: RunId, worker: Option<WorkerId>) {
        let run = self.run(id);
        let len = run.len();
        self.w.cuts.load(run);
        let holders: Vec<u32> = self.w.cuts.slots().collect();
        let mine = |slot: &u32| worker.is_none_or(|w| self.w.slots.worker(*slot) == w);
        let holders: Vec<u32> = holders.into_iter().filter(mine).collect();
        // The end of what these hold, which for one of several may be before the run's end.
        let ends = holders.iter().flat_map(|&s| self.w.cuts.held(s, 0, len).map(|h| h.1));
        let from = ends.max().unwrap_or(0).saturating_sub(BITE);
        for &slot in &holders {
            if self.w.cuts.held(slot, from, len).next().is_some() {
                self.shared.losers.add(self.w.slots.worker(slot));
            }
            self.give_up(run, slot, from);
            if !self.w.cuts.fit() {
                // A shorter cut may be one more.
                self.give_up(run, slot, 0);
            }
        }
        guard::open(run.guard());
        self.w.cuts.save(run, &mut self.w.book);
        guard::close(run.guard());
        self.trim(id, None);
    }
}
