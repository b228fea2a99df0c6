//! Who holds which blocks of a run.
//!
//! Engines evict chains from the tail, and everyone who leaves a popular prefix leaves it at the
//! same block. So holders that begin at a run's first block are kept as **cuts**: a block count and
//! the set of slots that hold exactly so many leading blocks, 64 slots (a page) at a time. What lies
//! behind a hole is a **part**: one slot, from, to.
//!
//! Invariants: a slot is in at most one cut; its parts neither touch each other nor its cut; no cut
//! is empty; a cut that ends at the run's end says [`ALL`], and only such a cut does; no two cuts
//! have the same page and end.

use super::arena::{Book, Cell, Kind};
use super::run::{CUT_COUNT, CUTS, CUTS_CLASS, INLINE, PART_COUNT, Run};
use super::sync::{Ordering, guard};

/// The end of a cut that covers the whole run, however long it grows.
pub(super) const ALL: u32 = u32::MAX;

/// Slots of one page that hold the first `end` blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) end: u32,
    pub(super) page: u32,
    pub(super) bits: u64,
}

impl Cut {
    #[inline]
    pub(super) fn of(first: u64, bits: u64) -> Cut {
        Cut { end: (first >> 32) as u32, page: first as u32, bits }
    }

    #[inline]
    fn first(self) -> u64 {
        u64::from(self.end) << 32 | u64::from(self.page)
    }

    /// If a slot alone of its page holds the first `end` blocks, and the run is longer or has other
    /// holders: where that cut is, and to which end it may be shortened without meeting another.
    #[inline]
    pub(super) fn alone_at(run: Run<'_>, slot: u32, end: u32) -> Option<(usize, u32)> {
        let (cuts, parts) = (run.get(CUT_COUNT) as usize, run.get(PART_COUNT) as usize);
        if cuts + parts < 2 {
            return None;
        }
        let words = run.arena.words(Cell(run.get(CUTS)));
        let (page, mut mine, mut floor) = (slot / 64, None, 1);
        for i in 0..cuts {
            let cut = Cut::of(words.load(2 * i), words.load(2 * i + 1));
            if cut.page != page {
                continue;
            }
            if cut.end < end {
                floor = floor.max(cut.end + 1);
            } else if cut.end == end && cut.bits == 1 << (slot % 64) {
                mine = Some(i);
            }
        }
        mine.map(|i| (i, floor))
    }

    /// Where a cut that was found alone ends from now on.
    pub(super) fn set_end(run: Run<'_>, cut: usize, end: u32) {
        let words = run.arena.words(Cell(run.get(CUTS)));
        let cut = (words.load(2 * cut) as u32, 2 * cut);
        guard::open(run.guard());
        words.store(cut.1, u64::from(end) << 32 | u64::from(cut.0));
        guard::close(run.guard());
    }

    /// If a slot alone holds a run to its end and nobody has a hole: how long the run has to stay so
    /// that all others still end before its end.
    #[inline]
    pub(super) fn alone_at_end(run: Run<'_>, slot: u32) -> Option<u32> {
        let mine = Cut { end: ALL, page: slot / 64, bits: 1 << (slot % 64) };
        let (cuts, parts) = (run.get(CUT_COUNT) as usize, run.get(PART_COUNT));
        if parts > 0 {
            return None;
        }
        if cuts == 1 {
            let only = Cut::of(run.raw(INLINE), run.raw(INLINE + 1));
            return (only == mine).then_some(0);
        }
        let words = run.arena.words(Cell(run.get(CUTS)));
        let (mut is_held, mut floor) = (false, 0);
        for i in 0..cuts {
            let cut = Cut::of(words.load(2 * i), words.load(2 * i + 1));
            if cut == mine {
                is_held = true;
            } else if cut.end == ALL {
                return None;
            } else {
                floor = floor.max(cut.end + 1);
            }
        }
        is_held.then_some(floor)
    }

    #[inline]
    fn has(self, slot: u32) -> bool {
        self.page == slot / 64 && self.bits >> (slot % 64) & 1 == 1
    }
}

/// Blocks `lo..hi` of one slot, `lo > 0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) slot: u32,
    pub(super) lo: u32,
    pub(super) hi: u32,
}

impl Part {
    #[inline]
    pub(super) fn of(first: u64, second: u64) -> Part {
        Part { slot: first as u32, lo: (first >> 32) as u32, hi: second as u32 }
    }
}

/// All holders of one run, taken out to be read or changed.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    pub(super) cuts: Vec<Cut>,
    pub(super) parts: Vec<Part>,
}

impl Cuts {
    /// Reads them from a run. Beside the writer the result holds only if the run's guard did.
    #[inline]
    pub(super) fn load(&mut self, run: Run<'_>) {
        self.cuts.clear();
        self.parts.clear();
        let (cuts, parts) = (run.get(CUT_COUNT) as usize, run.get(PART_COUNT) as usize);
        if cuts == 1 && parts == 0 {
            self.cuts.push(Cut::of(run.raw(INLINE), run.raw(INLINE + 1)));
        } else if cuts + parts > 0 {
            let words = run.arena.words(Cell(run.get(CUTS)));
            let entry = |i: usize| (words.load(2 * i), words.load(2 * i + 1));
            self.cuts.extend((0..cuts).map(entry).map(|(a, b)| Cut::of(a, b)));
            self.parts.extend((cuts..cuts + parts).map(entry).map(|(a, b)| Part::of(a, b)));
        }
    }

    /// Writes them back. The run's guard is open.
    pub(super) fn save(&self, run: Run<'_>, book: &mut Book) {
        let (cuts, parts) = (self.cuts.len(), self.parts.len());
        let list = Cell(run.get(CUTS));
        let class = run.get(CUTS_CLASS) as u8;
        let needed = if cuts <= 1 && parts == 0 { 0 } else { cuts + parts };
        let fits = list != Cell::NONE && needed <= 1 << class && needed * 4 >= 1 << class;
        if list != Cell::NONE && !fits {
            book.give(run.arena, Kind::List(class), list);
            run.set(CUTS, 0u32);
        }
        if needed == 0 {
            let cut = self.cuts.first().copied().unwrap_or(Cut { end: 0, page: 0, bits: 0 });
            run.word(INLINE).store(cut.first(), Ordering::Relaxed);
            run.word(INLINE + 1).store(cut.bits, Ordering::Relaxed);
        } else {
            if !fits {
                let kind = Kind::list(needed);
                run.set(CUTS, book.take(run.arena, kind).0);
                if let Kind::List(class) = kind {
                    run.set(CUTS_CLASS, class);
                }
            }
            let words = run.arena.words(Cell(run.get(CUTS)));
            for (i, cut) in self.cuts.iter().enumerate() {
                words.store(2 * i, cut.first());
                words.store(2 * i + 1, cut.bits);
            }
            for (i, part) in (cuts..).zip(&self.parts) {
                words.store(2 * i, u64::from(part.lo) << 32 | u64::from(part.slot));
                words.store(2 * i + 1, u64::from(part.hi));
            }
        }
        run.set(CUT_COUNT, cuts as u64);
        run.set(PART_COUNT, parts as u64);
    }

    /// Bytes that they take where they were taken out to.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.cuts.capacity() * size_of::<Cut>() + self.parts.capacity() * size_of::<Part>()
    }

    fn position(&self, slot: u32) -> Option<usize> {
        self.cuts.iter().position(|cut| cut.has(slot))
    }

    /// Whether a slot holds a block.
    pub(super) fn holds(&self, slot: u32, at: u32) -> bool {
        self.cuts.iter().any(|cut| cut.has(slot) && at < cut.end)
            || self.parts.iter().any(|p| p.slot == slot && p.lo <= at && at < p.hi)
    }

    /// The stretches of `lo..hi` that a slot holds already.
    pub(super) fn held(
        &self,
        slot: u32,
        lo: u32,
        hi: u32,
    ) -> impl Iterator<Item = (u32, u32)> + '_ {
        let cut = self.cuts.iter().filter(move |c| c.has(slot)).map(|c| (0, c.end));
        let parts = self.parts.iter().filter(move |p| p.slot == slot).map(|p| (p.lo, p.hi));
        cut.chain(parts).map(move |(l, h)| (l.max(lo), h.min(hi))).filter(|(l, h)| l < h)
    }

    fn leave(&mut self, at: usize, slot: u32) {
        self.cuts[at].bits &= !(1 << (slot % 64));
        if self.cuts[at].bits == 0 {
            self.cuts.swap_remove(at);
        }
    }

    fn join(&mut self, slot: u32, end: u32) {
        self.merge(Cut { end, page: slot / 64, bits: 1 << (slot % 64) });
    }

    fn merge(&mut self, new: Cut) {
        match self.cuts.iter_mut().find(|c| c.end == new.end && c.page == new.page) {
            Some(cut) => cut.bits |= new.bits,
            None => self.cuts.push(new),
        }
    }

    /// A slot holds `lo..hi` of a run of `len` blocks, whatever it held before.
    pub(super) fn hold(&mut self, slot: u32, mut lo: u32, mut hi: u32, len: u32) {
        if let Some(at) = self.position(slot) {
            let end = self.cuts[at].end;
            if hi <= end {
                return;
            }
            if lo <= end {
                lo = 0;
                self.leave(at, slot);
            }
        }
        self.parts.retain(|p| {
            let touches = p.slot == slot && p.lo <= hi && lo <= p.hi;
            if touches {
                lo = lo.min(p.lo);
                hi = hi.max(p.hi);
            }
            !touches
        });
        if lo == 0 {
            self.join(slot, if hi == len { ALL } else { hi });
        } else {
            self.parts.push(Part { slot, lo, hi });
        }
    }

    /// A slot no longer holds block `at`, which it held, of a run of `len` blocks.
    pub(super) fn release(&mut self, slot: u32, at: u32, len: u32) {
        if let Some(cut) = self.position(slot)
            && at < self.cuts[cut].end
        {
            let end = self.cuts[cut].end.min(len);
            self.leave(cut, slot);
            if at > 0 {
                self.join(slot, at);
            }
            if at + 1 < end {
                self.parts.push(Part { slot, lo: at + 1, hi: end });
            }
            return;
        }
        let held = |p: &Part| p.slot == slot && p.lo <= at && at < p.hi;
        if let Some(i) = self.parts.iter().position(held) {
            let part = self.parts.swap_remove(i);
            for (lo, hi) in [(part.lo, at), (at + 1, part.hi)] {
                if lo < hi {
                    self.parts.push(Part { slot, lo, hi });
                }
            }
        }
    }

    /// Every slot that holds something; one behind holes more than once.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        let cuts = self
            .cuts
            .iter()
            .flat_map(|cut| (0..64).filter(|i| cut.bits >> i & 1 == 1).map(|i| cut.page * 64 + i));
        let parts = self.parts.iter().map(|p| p.slot);
        let cut = |slot: &u32| self.position(*slot).is_none();
        let parts = parts.filter(cut);
        cuts.chain(parts)
    }

    /// A slot holds no block from `end` on.
    pub(super) fn keep_first(&mut self, slot: u32, end: u32) {
        if let Some(at) = self.position(slot)
            && self.cuts[at].end > end
        {
            self.leave(at, slot);
            if end > 0 {
                self.join(slot, end);
            }
        }
        self.parts.retain_mut(|p| {
            p.hi = if p.slot == slot { p.hi.min(end) } else { p.hi };
            p.lo < p.hi
        });
    }

    /// One past the last block that somebody holds, of a run of `len` blocks.
    pub(super) fn extent(&self, len: u32) -> u32 {
        let cuts = self.cuts.iter().map(|c| c.end.min(len));
        cuts.chain(self.parts.iter().map(|p| p.hi)).max().unwrap_or(0)
    }

    /// The run, all of which its whole holders held, now has other blocks at its end: they hold the
    /// first `len` of it. `keep` holds the new ones, too.
    pub(super) fn grow(&mut self, len: u32, keep: u32) {
        for cut in &mut self.cuts {
            if cut.end == ALL {
                cut.end = len;
            }
        }
        if let Some(at) = self.position(keep) {
            self.leave(at, keep);
            self.join(keep, ALL);
        }
    }

    /// Nobody holds a block from `len` on, and the run ends there now.
    pub(super) fn shrink(&mut self, len: u32) {
        for part in &mut self.parts {
            part.hi = part.hi.min(len);
        }
        self.parts.retain(|p| p.lo < p.hi);
        let ended: Vec<Cut> =
            self.cuts.extract_if(.., |c| c.end >= len && (c.end != ALL || len == 0)).collect();
        if len > 0 {
            for cut in ended {
                self.merge(Cut { end: ALL, ..cut });
            }
        }
    }

    /// Takes slots out, of which `dead` gives the bits of a page; `gone` gets what they held of a
    /// run of `len` blocks. Whether anything changed.
    pub(super) fn strip(
        &mut self,
        len: u32,
        dead: impl Fn(u32) -> u64,
        mut gone: impl FnMut(u32, u32, u32),
    ) -> bool {
        let mut changed = false;
        self.cuts.retain_mut(|cut| {
            let mut bits = cut.bits & dead(cut.page);
            changed |= bits != 0;
            cut.bits &= !bits;
            while bits != 0 {
                gone(cut.page * 64 + bits.trailing_zeros(), 0, cut.end.min(len));
                bits &= bits - 1;
            }
            cut.bits != 0
        });
        self.parts.retain(|p| {
            let is_dead = dead(p.slot / 64) >> (p.slot % 64) & 1 == 1;
            if is_dead {
                changed = true;
                gone(p.slot, p.lo, p.hi);
            }
            !is_dead
        });
        changed
    }
}
