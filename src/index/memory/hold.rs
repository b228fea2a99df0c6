//! Residency of blocks, and the end of blocks that nobody needs.
//!
//! Invariants: copies above one are in `extras`, only for blocks that the slot holds; a run has
//! blocks up to the last one that somebody holds or below which a child hangs, and a run without
//! blocks and children is gone. Entries of dead slots are counted no more, though runs may still
//! mention them.

use super::ahead::Ahead;
use super::cut::{ALL, Cut};
use super::names::VocId;
use super::run::{
    ALSO, BEFORE, CROWDED, CUT_COUNT, EXTRAS, FIRST_KID, HEAD, INLINE, KIDS, KIDS_AT_LAST,
    LAST_KID, MORE, NEXT, OFFSET, PART_COUNT, POSITION, Run, RunId, SEGMENT, USED, VOCABULARY,
};
use super::store::{Lane, STRETCH};
use super::sync::{Ordering, guard};
use super::table::{Place, Table};
use super::write::{Pen, Writer};
use crate::block::Name;

/// A run with so many children may have them counted by offset.
const CROWD: u32 = 256;

/// Stretches behind holes that a run may have; few where a test has to make them.
pub(super) const MOST_PARTS: usize = if cfg!(test) { 64 } else { 1 << 15 };

impl<'a> Pen<'a> {
    #[inline]
    pub(super) fn run(&self, id: RunId) -> Run<'a> {
        Run::at(&self.shared.arena, id)
    }

    /// The only cut of a run that has no part.
    #[inline]
    fn only_cut(run: Run<'_>) -> Option<Cut> {
        (run.get(CUT_COUNT) == 1 && run.get(PART_COUNT) == 0)
            .then(|| Cut::of(run.raw(INLINE), run.raw(INLINE + 1)))
    }

    /// One more copy of each of the blocks `lo..hi`, or of the first of them where many second copies
    /// would have to be counted at a time; up to which.
    pub(super) fn hold(&mut self, id: RunId, slot: u32, lo: u32, mut hi: u32) -> u32 {
        let run = self.run(id);
        let len = run.len();
        let Pen { w, .. } = self;
        w.cuts.load(run);
        let held = |w: &Writer, hi| w.cuts.held(slot, lo, hi).map(|(l, h)| h - l).sum::<u32>();
        let mut twice = held(w, hi);
        if twice > STRETCH as u32 {
            hi = lo + STRETCH as u32;
            twice = held(w, hi);
        }
        if twice > 0 {
            for (l, h) in w.cuts.held(slot, lo, hi) {
                for at in l..h {
                    let more = w.extras.or_insert_with((id, at, slot), || {
                        run.set(EXTRAS, run.get(EXTRAS) + 1);
                        0
                    });
                    *more = more.saturating_add(1);
                }
            }
        }
        let new = hi - lo - twice;
        run.set(USED, self.shared.now());
        if new == 0 {
            return hi;
        }
        w.cuts.hold(slot, lo, hi, len);
        w.entries += u64::from(new);
        w.slots.count(slot, i64::from(new));
        self.bound_parts(run, slot);
        let Pen { w, .. } = self;
        guard::open(run.guard());
        w.cuts.save(run, &mut w.book);
        guard::close(run.guard());
        hi
    }

    /// Gives up what a slot holds behind holes if a run, whose holders are in `cuts`, has more such
    /// stretches than a list can have: nobody evicts like that by chance. The copies are counted as
    /// refused, so that nobody trusts what is said of the worker from then on.
    fn bound_parts(&mut self, run: Run<'_>, slot: u32) {
        if self.w.cuts.parts.len() <= MOST_PARTS {
            return;
        }
        self.shared.losers.add(self.w.slots.worker(slot));
        let Pen { w, .. } = self;
        let mine = w.cuts.parts.extract_if(.., |p| p.slot == slot);
        for part in mine.collect::<Vec<_>>() {
            let entries = u64::from(part.hi - part.lo);
            w.lost += entries;
            for at in part.lo..part.hi {
                if run.get(EXTRAS) > 0
                    && let Some(more) = w.extras.remove(&(run.id, at, slot))
                {
                    w.lost += u64::from(more);
                    run.set(EXTRAS, run.get(EXTRAS) - 1);
                }
            }
            w.entries -= entries;
            w.evicted += entries;
            w.slots.count(slot, -(entries as i64));
        }
    }

    /// More copies of one placed block.
    pub(super) fn add_copies(&mut self, id: RunId, at: u32, slot: u32, copies: u32) {
        self.hold(id, slot, at, at + 1);
        if copies > 1 {
            let run = self.run(id);
            let more = self.w.extras.or_insert_with((id, at, slot), || {
                run.set(EXTRAS, run.get(EXTRAS) + 1);
                0
            });
            *more = more.saturating_add(copies - 1);
        }
    }

    pub(super) fn holds(&mut self, place: Place, slot: u32) -> bool {
        let run = self.run(RunId(place.run));
        self.w.cuts.load(run);
        self.w.cuts.holds(slot, place.at)
    }

    /// The common evictions: blocks from a place upwards that are the end of what a slot holds of a
    /// run, by the names that lie beside them, which mean no other blocks. Either nobody else holds
    /// them and they are the end of the run, or others hold the run beyond. The run changes once for
    /// all of them. How many of the names, which come in the order of eviction, were that.
    pub(super) fn drop_tail(
        &mut self,
        lane: &Lane,
        place: Place,
        names: &[Name],
        ahead: &mut Ahead<'_>,
    ) -> usize {
        let slot = lane.slot;
        let run = self.run(RunId(place.run));
        let (len, top) = (run.len(), place.at + 1);
        if run.get(EXTRAS) > 0 || run.get(VOCABULARY) != lane.voc.0 {
            return 0;
        }
        let is_end = top == len;
        let floor = if is_end {
            let further = run.get(MORE) + run.get(ALSO) > 0;
            Cut::alone_at_end(run, slot).filter(|_| !further).map(|end| (0, end))
        } else {
            Cut::alone_at(run, slot, top)
        };
        let Some((cut, floor)) = floor else { return 0 };
        let floor = if is_end { floor.max(run.get(LAST_KID)) } else { floor };
        let mut words = run.segment(place.at, len);
        let mut end = top;
        for name in names.iter().take(STRETCH) {
            if end == floor {
                break;
            }
            let at = end - 1;
            let i = at as usize % SEGMENT;
            if end < top && i + 1 == SEGMENT {
                words = run.segment(at, len);
            }
            let word = words.word(SEGMENT + i);
            if word.load(Ordering::Relaxed) != name.0 || name.0 == 0 {
                break;
            }
            if end < top {
                ahead.advance(1, self.shared, &lane.table);
            }
            if is_end {
                word.store(0, Ordering::Relaxed);
                let (hash, place) = (self.shared.hash(name.0), Place { at, ..place });
                let there = lane.table.remove(&self.shared.arena, hash, place);
                debug_assert!(there, "every bound name is in its table");
            }
            end = at;
        }
        let taken = top - end;
        if taken == 0 {
            return 0;
        }
        self.w.entries -= u64::from(taken);
        self.w.slots.count(slot, -i64::from(taken));
        if !is_end {
            Cut::set_end(run, cut, end);
        } else if let Some(parent) = self.shorten(run, end) {
            self.trim(parent, Some((lane.voc, &*lane.table)));
        }
        // A stretch was asked for name by name, but for the first one.
        if taken > 1 {
            ahead.advance(1, self.shared, &lane.table);
        }
        taken as usize
    }

    /// One copy of a block less; whether the slot had one.
    pub(super) fn drop_copy(&mut self, lane: &Lane, place: Place) -> bool {
        let (id, at, slot) = (RunId(place.run), place.at, lane.slot);
        let run = self.run(id);
        let len = run.len();
        let hint = Some((lane.voc, &*lane.table));
        if run.get(EXTRAS) == 0
            && let Some((cut, floor)) = Cut::alone_at(run, slot, at + 1)
            && floor <= at
        {
            // The run ends where it did: somebody else or a child is behind this holder's end.
            Cut::set_end(run, cut, at);
            self.w.entries -= 1;
            self.w.slots.count(slot, -1);
            return true;
        }
        self.w.cuts.load(run);
        if !self.w.cuts.holds(slot, at) {
            return false;
        }
        if run.get(EXTRAS) > 0
            && let Some(more) = self.w.extras.get_mut(&(id, at, slot))
        {
            *more -= 1;
            if *more == 0 {
                self.w.extras.remove(&(id, at, slot));
                run.set(EXTRAS, run.get(EXTRAS) - 1);
            }
            return true;
        }
        self.w.cuts.release(slot, at, len);
        self.w.entries -= 1;
        self.w.slots.count(slot, -1);
        self.bound_parts(run, slot);
        let Pen { w, .. } = self;
        guard::open(run.guard());
        w.cuts.save(run, &mut w.book);
        guard::close(run.guard());
        let extent = w.cuts.extent(len);
        if extent < len {
            self.trim(id, hint);
        }
        true
    }

    /// Takes everything away that nobody needs, from a run on upwards.
    pub(super) fn trim(&mut self, id: RunId, hint: Option<(VocId, &Table)>) {
        let mut next = Some(id);
        while let Some(id) = next {
            if self.w.busy.contains(&id) {
                self.w.untrimmed = true;
                return;
            }
            let run = self.run(id);
            let len = run.len();
            if run.is_root() {
                if run.get(KIDS) == 0 && self.w.pinned != id {
                    self.end(run);
                }
                return;
            }
            let held = match Self::only_cut(run) {
                Some(cut) => cut.end.min(len),
                None => {
                    self.w.cuts.load(run);
                    self.w.cuts.extent(len)
                }
            };
            let extent = held.max(run.get(LAST_KID));
            next = if extent < len { self.cut_off(run, extent, hint) } else { None };
        }
    }

    /// Ends a run's blocks from `new` on, which nobody holds, and the run itself if nothing is left:
    /// then its parent may have to be trimmed.
    pub(super) fn cut_off(
        &mut self,
        run: Run<'a>,
        new: u32,
        hint: Option<(VocId, &Table)>,
    ) -> Option<RunId> {
        for at in (new..run.len()).rev() {
            self.unbind(run.id, at, hint);
        }
        self.shorten(run, new)
    }

    /// `cut_off`, of blocks whose names are unbound already.
    fn shorten(&mut self, run: Run<'a>, new: u32) -> Option<RunId> {
        let len = run.len();
        let Pen { w, .. } = self;
        let alone = Self::only_cut(run).is_some_and(|cut| cut.end == ALL) && new > 0;
        if !alone {
            w.cuts.load(run);
            w.cuts.shrink(new);
        }
        guard::open(run.guard());
        run.truncate(&mut w.book, new);
        if !alone {
            w.cuts.save(run, &mut w.book);
        }
        guard::close(run.guard());
        w.blocks -= u64::from(len - new);
        w.trims += 1;
        (new == 0 && run.get(KIDS) == 0).then(|| {
            let parent = run.parent();
            self.end(run);
            parent
        })
    }

    /// The end of an empty run without children.
    pub(super) fn end(&mut self, run: Run<'a>) {
        let (parent, at, head) = (run.parent(), run.get(OFFSET), run.field(HEAD));
        let hash = self.shared.kid_hash(parent, at, head);
        let place = Place { run: run.id.0, at: 0 };
        let there = self.shared.kids.remove(&self.shared.arena, hash, place);
        debug_assert!(there, "every run is in the table of children");
        if parent != RunId::NONE {
            self.disown_kid(parent, run, at);
        }
        let position = run.get(POSITION);
        self.w.runs.swap_remove(position as usize);
        if let Some(&moved) = self.w.runs.get(position as usize) {
            self.run(moved).set(POSITION, position);
        }
        if self.w.runs.len() < self.w.runs.capacity() / 4 {
            self.w.runs.shrink_to(self.w.runs.len() * 2);
        }
        self.w.trims += 1;
        if run.get(CROWDED) > 0 {
            self.forget_crowd(run);
        }
        run.free(&mut self.w.book);
    }

    pub(super) fn adopt_kid(&mut self, parent: RunId, kid: RunId, at: u32) {
        let (parent, kid) = (self.run(parent), self.run(kid));
        let first = parent.get(FIRST_KID);
        kid.set(NEXT, first);
        if first != 0 {
            self.run(RunId(first)).set(BEFORE, kid.id.0);
        }
        parent.set(FIRST_KID, kid.id.0);
        let last = parent.get(LAST_KID);
        if parent.get(KIDS) == 0 || at > last {
            parent.set(LAST_KID, at);
            parent.set(KIDS_AT_LAST, 1u32);
        } else if at == last {
            parent.set(KIDS_AT_LAST, parent.get(KIDS_AT_LAST) + 1);
        }
        parent.set(KIDS, parent.get(KIDS) + 1);
        if parent.get(CROWDED) > 0 {
            self.count_kid(parent, at, 1);
        }
    }

    fn disown_kid(&mut self, parent: RunId, kid: Run<'a>, at: u32) {
        let parent = self.run(parent);
        let (before, next) = (kid.get(BEFORE), kid.get(NEXT));
        match before {
            0 => parent.set(FIRST_KID, next),
            before => self.run(RunId(before)).set(NEXT, next),
        }
        if next != 0 {
            self.run(RunId(next)).set(BEFORE, before);
        }
        let kids = parent.get(KIDS) - 1;
        parent.set(KIDS, kids);
        if parent.get(CROWDED) > 0 {
            match kids < CROWD / 2 {
                true => self.forget_crowd(parent),
                false => self.count_kid(parent, at, -1),
            }
        }
        if kids == 0 {
            parent.set(LAST_KID, 0u32);
            parent.set(KIDS_AT_LAST, 0u32);
        } else if at == parent.get(LAST_KID) {
            let left = parent.get(KIDS_AT_LAST) - 1;
            parent.set(KIDS_AT_LAST, left);
            if left == 0 {
                let (last, at_last) = self.last_kids(parent);
                parent.set(LAST_KID, last);
                parent.set(KIDS_AT_LAST, at_last);
            }
        }
    }

    /// The greatest offset of a child, and how many are there. Asked for when the last one at an
    /// offset went, of a run with children elsewhere: if those are many, they are counted by offset
    /// from then on.
    fn last_kids(&mut self, parent: Run<'a>) -> (u32, u32) {
        if parent.get(KIDS) < CROWD {
            let last = self.kids(parent).map(|k| k.get(OFFSET)).max().unwrap_or(0);
            let at_last = self.kids(parent).filter(|k| k.get(OFFSET) == last).count();
            return (last, at_last as u32);
        }
        if parent.get(CROWDED) == 0 {
            let mut counts = vec![0; parent.len() as usize + 1];
            for kid in self.kids(parent) {
                counts[kid.get(OFFSET) as usize] += 1;
            }
            self.w.crowd_bytes += counts.capacity() * size_of::<u32>();
            self.w.crowds.insert(parent.id, counts);
            parent.set(CROWDED, 1u32);
        }
        let counts = self.w.crowds.get(&parent.id).map_or(&[][..], Vec::as_slice);
        let last = counts.iter().rposition(|&n| n > 0).unwrap_or(0);
        (last as u32, counts.get(last).copied().unwrap_or(0))
    }

    fn count_kid(&mut self, parent: Run<'_>, at: u32, change: i32) {
        let Some(counts) = self.w.crowds.get_mut(&parent.id) else { return };
        let before = counts.capacity();
        if counts.len() <= at as usize {
            counts.resize(at as usize + 1, 0);
        }
        counts[at as usize] = counts[at as usize].wrapping_add_signed(change);
        self.w.crowd_bytes += (counts.capacity() - before) * size_of::<u32>();
    }

    #[cold]
    fn forget_crowd(&mut self, parent: Run<'_>) {
        parent.set(CROWDED, 0u32);
        if let Some(counts) = self.w.crowds.remove(&parent.id) {
            self.w.crowd_bytes -= counts.capacity() * size_of::<u32>();
        }
    }

    /// The children of a run.
    pub(super) fn kids(&self, run: Run<'a>) -> impl Iterator<Item = Run<'a>> + use<'a> {
        let arena = &self.shared.arena;
        let mut next = run.get(FIRST_KID);
        std::iter::from_fn(move || {
            let kid = (next != 0).then(|| Run::at(arena, RunId(next)))?;
            next = kid.get(NEXT);
            Some(kid)
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::block::{
        BlockSize, Digest, Group, Name, Shape, SpaceId, Tier, VocabularyId, WorkerId,
    };
    use crate::index::{Block, Change, Home, MemoryIndex, Parent, Store};

    #[test]
    fn copies_lost_behind_too_many_holes_are_counted_as_refused() {
        let index = MemoryIndex::default();
        let (worker, group, tier) = (WorkerId(1), Group(0), Tier::Gpu);
        let home = Home { space: SpaceId(1), vocabulary: VocabularyId(1) };
        index.assign(worker, home).unwrap();
        let block = |n| Block { name: Name(n), digest: Some(Digest(n)) };
        let blocks: Vec<Block> = (1..=200).map(block).collect();
        let shape = Shape::plain(BlockSize::DEFAULT);
        let store = Store { shape, group, tier, parent: Parent::Root, blocks: &blocks };
        let stored = index.apply(worker, &[Change::Store(store)]).unwrap();
        assert_eq!((stored.stored, stored.refused), (200, 0));
        let (mut removed, mut refused) = (0, 0);
        for name in (1..=100).map(|n| Name(2 * n)) {
            let names = [name];
            let applied = index.apply(worker, &[Change::Remove { group, tier, names: &names }]);
            let applied = applied.unwrap();
            removed += applied.removed;
            refused += applied.refused;
        }
        assert!(refused > 0, "65 holes are more than a run may have in a test");
        assert_eq!(index.stats().entries + removed + refused, 200);
    }
}
