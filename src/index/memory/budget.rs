//! The budget: what goes when the memory is full.
//!
//! Invariants: before blocks are pushed, what is in use leaves room for them or everything that may
//! go is gone; only the end of a run without children goes, so chains stay closed; a worker that
//! holds far more than its share (`is_flooder`) goes first, and alone: blocks that it shares stay with
//! the others. Whose copies go is listed first (`Losers`).

use super::arena::CHUNK_BYTES;
use super::run::{KIDS, Run, RunId, USED};
use super::sync::{Ordering, guard};
use super::write::Pen;
use crate::block::WorkerId;

/// Room that a store of one stretch may need at once.
const RESERVE: usize = 64 << 10;
/// What an unplaced block takes in its maps and lists, about; `bytes` adds them up.
const UNPLACED: usize = 320;
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
/// Changes between two looks at the bytes outside of the arena, as a power of two.
const WEIGH: u32 = 14;

impl Pen<'_> {
    /// Bytes in use, of everything that grows with blocks, names and holders.
    pub(super) fn bytes(&self) -> usize {
        self.w.book.live() + self.side_bytes() + self.shared.names.read().orphan_bytes()
    }

    /// Bytes asked of the system.
    pub(super) fn reserved(&self) -> usize {
        self.w.book.made() + self.side_bytes() + self.shared.names.read().orphan_bytes()
    }

    /// What is neither in the arena nor unplaced.
    fn side_bytes(&self) -> usize {
        // A map keeps a control byte for each of its places.
        let extras = self.w.extras.capacity() * 17;
        self.w.runs.capacity() * 4
            + extras
            + self.w.slots.bytes()
            + self.shared.names.read().bytes()
    }

    pub(super) fn tick(&mut self) {
        self.w.changes = self.w.changes.wrapping_add(1);
        if self.w.changes.is_multiple_of(1 << TICK) {
            let clock = &self.shared.clock;
            clock.store(clock.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
            if self.w.changes.is_multiple_of(1 << WEIGH) {
                self.weigh();
            }
        }
    }

    /// Makes room for a stretch of blocks; `false` if nothing is left that may go.
    #[inline]
    pub(super) fn make_room(&mut self) -> bool {
        // Most of it is in the arena, whose book is at hand; the rest is added up now and then.
        self.has_room() || {
            self.evict();
            self.has_room()
        }
    }

    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.in_use() + RESERVE <= self.w.options.budget
    }

    #[inline]
    pub(super) fn in_use(&self) -> usize {
        self.w.book.live() + self.w.side + self.w.unplaced as usize * UNPLACED
    }

    /// Brings what is known of the bytes outside of the arena up to date.
    pub(super) fn weigh(&mut self) {
        self.w.side = self.side_bytes();
    }

    #[cold]
    fn evict(&mut self) {
        self.weigh();
        // A little more than needed, so that not every store comes here.
        let goal = self
            .w
            .options
            .budget
            .saturating_sub(RESERVE + CHUNK_BYTES.min(self.w.options.budget / 64));
        let mut idle = 0;
        let mut flooder = self.flooder();
        while self.in_use() > goal && idle < 64 {
            // All workers are looked at once for many bites: as long as it is one, it stays the one.
            if flooder.is_some_and(|worker| !self.is_flooder(self.w.size(worker))) {
                flooder = self.flooder();
            }
            let before = (self.w.book.live(), self.w.entries);
            if self.w.slots.has_dead() {
                // The dead first.
                self.sweep(SAMPLE);
            } else if self.w.runs.is_empty() {
                return;
            } else {
                self.evict_one(flooder);
            }
            idle = if before == (self.w.book.live(), self.w.entries) { idle + 1 } else { 0 };
        }
    }

    fn evict_one(&mut self, flooder: Option<WorkerId>) {
        let search = if flooder.is_some() { SEARCH } else { SAMPLE };
        let mut oldest: Option<(bool, u32, RunId)> = None;
        let now = self.shared.now();
        let mut found = 0;
        for seen in 0..search.min(self.w.runs.len().max(SAMPLE)) {
            // At random places: neighbours in the list were often made one after the other.
            self.w.looks = self.w.looks.wrapping_add(1);
            let place = u128::from(self.shared.hash(self.w.looks)) * self.w.runs.len() as u128;
            let id = self.w.runs[(place >> 64) as usize];
            let run = self.run(id);
            if run.is_root() || run.get(KIDS) > 0 || self.w.pinned == id || self.w.busy == id {
                continue;
            }
            let floods = flooder.is_some_and(|worker| self.is_held_by(run, worker));
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

    fn is_held_by(&mut self, run: Run<'_>, worker: WorkerId) -> bool {
        self.w.cuts.load(run);
        let slots = self.w.slots_of(worker);
        slots.iter().any(|&slot| self.w.cuts.held(slot, 0, u32::MAX).next().is_some())
    }

    /// Takes the last blocks of a run without children from their holders, or from one of them.
    fn cut_holders(&mut self, id: RunId, worker: Option<WorkerId>) {
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
