//! Unplaced blocks: orphans, and blocks known by name only.
//!
//! Invariants: `waiting` lists exactly the unplaced blocks that have a link, under the link's
//! parent; a worker's count says in how many unplaced blocks it has copies; retired slots have none.
//! At most `unplaced_per_worker` a worker, so clearing one is bounded and done at once.

use std::collections::{BTreeSet, HashMap};

use super::names::VocId;
use super::run::{HEAD, OFFSET, ROOT, RunId, UP};
use super::store::Lane;
use super::sync::Ordering;
use super::table::Place;
use super::write::Pen;
use crate::block::{BlockSize, Digest, Name, Shape, SpaceId};
use crate::index::Applied;

/// What a name in a set takes, about: nodes of a B-tree are between half and quite full.
const SET_ENTRY: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Orphans {
    pub(super) blocks: HashMap<Name, Orphan>,
    /// Ordered, so that one of many goes in few steps.
    waiting: HashMap<(Shape, Name), BTreeSet<Name>>,
}

/// A block that is held but not placed.
#[derive(Debug, Default)]
pub(super) struct Orphan {
    /// (slot, copies), each slot once.
    pub(super) holders: Vec<(u32, u32)>,
    /// Where the block goes once its parent is placed; `None` for a block known by name only.
    pub(super) link: Option<Link>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) shape: Shape,
    pub(super) parent: Name,
    pub(super) digest: Digest,
}

impl Orphans {
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn holders(&self, name: Name) -> impl Iterator<Item = u32> + '_ {
        self.blocks.get(&name).into_iter().flat_map(|o| o.holders.iter().map(|h| h.0))
    }

    pub(super) fn bytes(&self) -> usize {
        let holders: usize = self.blocks.values().map(|o| o.holders.capacity() * 8).sum();
        let waiting: usize = self.waiting.values().map(|w| 64 + w.len() * SET_ENTRY).sum();
        holders + waiting + self.blocks.capacity() * 80
    }

    fn hold(&mut self, name: Name, link: Option<Link>, slot: u32, copies: u32) {
        let block = self.blocks.entry(name).or_default();
        if let (None, Some(link)) = (block.link, link) {
            block.link = Some(link);
            self.waiting.entry((link.shape, link.parent)).or_default().insert(name);
        }
        match block.holders.iter_mut().find(|h| h.0 == slot) {
            Some(holder) => holder.1 = holder.1.saturating_add(copies),
            None => block.holders.push((slot, copies)),
        }
    }

    fn forget(&mut self, name: Name) -> Option<Orphan> {
        let block = self.blocks.remove(&name)?;
        if let Some(link) = block.link {
            let key = (link.shape, link.parent);
            if let Some(names) = self.waiting.get_mut(&key) {
                names.remove(&name);
                if names.is_empty() {
                    self.waiting.remove(&key);
                }
            }
        }
        Some(block)
    }
}

impl Pen<'_> {
    /// Counts a copy of a block of which only the name can be used; its place if it is placed.
    pub(super) fn store_by_name(
        &mut self,
        lane: &Lane,
        name: Name,
        link: Option<Link>,
        applied: &mut Applied,
    ) -> Option<Place> {
        if let Some(place) = self.meaning(lane, name, |pen, p| pen.fits(p, link)) {
            self.add_copies(RunId(place.run), place.at, lane.slot, 1);
            applied.stored += 1;
            return Some(place);
        }
        let share = self.w.options.unplaced_per_worker;
        let full = self.w.unplaced_of(lane.worker) >= share || !self.has_room();
        let crowded = self.is_crowded(lane.voc, &lane.table, name) && !self.is_unplaced(lane, name);
        if crowded || full && !self.holds_orphan(lane, name) {
            applied.refused += 1;
            return None;
        }
        self.hold_orphan(lane.voc, name, link, lane.slot, 1);
        applied.stored += 1;
        applied.unplaced += 1;
        None
    }

    fn is_unplaced(&self, lane: &Lane, name: Name) -> bool {
        let names = self.shared.names.read();
        let Some(voc) = names.vocabularies.get(&lane.voc) else { return false };
        voc.orphans.blocks.contains_key(&name)
    }

    pub(super) fn holds_orphan(&self, lane: &Lane, name: Name) -> bool {
        let names = self.shared.names.read();
        let Some(voc) = names.vocabularies.get(&lane.voc) else { return false };
        voc.orphans.holders(name).any(|slot| self.w.slots.worker(slot) == lane.worker)
    }

    pub(super) fn hold_orphan(
        &mut self,
        id: VocId,
        name: Name,
        link: Option<Link>,
        slot: u32,
        copies: u32,
    ) {
        let worker = self.w.slots.worker(slot);
        let mut names = self.shared.names.write();
        let Some(voc) = names.vocabularies.get_mut(&id) else { return };
        let before: Vec<u32> = voc.orphans.holders(name).collect();
        let had = voc.orphans.len();
        voc.orphans.hold(name, link, slot, copies);
        if voc.orphans.len() > had {
            self.w.unplaced += 1;
            self.shared.unplaced(voc.key.0).fetch_add(1, Ordering::Release);
        }
        drop(names);
        if !before.contains(&slot) {
            self.w.entries += 1;
        }
        if !before.iter().any(|&s| self.w.slots.worker(s) == worker) {
            self.w.count_unplaced(worker, 1);
        }
    }

    /// Takes one copy of an unplaced block away; whether there was one.
    pub(super) fn drop_orphan(&mut self, lane: &Lane, name: Name) -> bool {
        let mut names = self.shared.names.write();
        let Some(voc) = names.vocabularies.get_mut(&lane.voc) else { return false };
        let Some(block) = voc.orphans.blocks.get_mut(&name) else { return false };
        let Some(at) = block.holders.iter().position(|h| h.0 == lane.slot) else { return false };
        block.holders[at].1 -= 1;
        if block.holders[at].1 > 0 {
            return true;
        }
        block.holders.swap_remove(at);
        let slots = &self.w.slots;
        let still = block.holders.iter().any(|h| slots.worker(h.0) == lane.worker);
        let empty = block.holders.is_empty();
        if empty {
            voc.orphans.forget(name);
        }
        let space = voc.key.0;
        drop(names);
        self.w.entries -= 1;
        if !still {
            self.w.count_unplaced(lane.worker, -1);
        }
        if empty {
            self.forgot_orphans(space, 1);
        }
        true
    }

    fn forgot_orphans(&mut self, space: SpaceId, n: u64) {
        self.w.unplaced -= n;
        self.shared.unplaced(space).fetch_sub(n as u32, Ordering::Release);
    }

    /// Takes all unplaced blocks of some slots of one worker away.
    pub(super) fn clear_orphans(&mut self, id: VocId, slots: &[u32]) {
        let Some(&first) = slots.first() else { return };
        let worker = self.w.slots.worker(first);
        if self.w.unplaced_of(worker) == 0 {
            return;
        }
        let mut names = self.shared.names.write();
        let Some(voc) = names.vocabularies.get_mut(&id) else { return };
        let mut gone = Vec::new();
        let (mut entries, mut left) = (0, 0);
        for (&name, block) in &mut voc.orphans.blocks {
            let before = block.holders.len();
            block.holders.retain(|h| !slots.contains(&h.0));
            let after = block.holders.len();
            entries += before - after;
            let still = block.holders.iter().any(|h| self.w.slots.worker(h.0) == worker);
            left += i64::from(before != after && !still);
            if after == 0 {
                gone.push(name);
            }
        }
        for &name in &gone {
            voc.orphans.forget(name);
        }
        let space = voc.key.0;
        drop(names);
        self.w.entries -= entries as u64;
        self.w.count_unplaced(worker, -left);
        self.forgot_orphans(space, gone.len() as u64);
    }

    /// After a name was bound: moves the copies that were counted by it only, and places orphans
    /// below the block, and orphans below those.
    pub(super) fn settle_below(&mut self, lane: &Lane, name: Name, place: Place) {
        let mut bound = vec![(name, place)];
        while let Some((name, place)) = bound.pop() {
            self.merge(lane, name, place);
            let shape = self.shape(RunId(place.run));
            let names = self.shared.names.read();
            let Some(voc) = names.vocabularies.get(&lane.voc) else { continue };
            let waiting = voc.orphans.waiting.get(&(shape, name)).cloned().unwrap_or_default();
            drop(names);
            for orphan in waiting {
                let names = self.shared.names.read();
                let Some(voc) = names.vocabularies.get(&lane.voc) else { continue };
                let Some(block) = voc.orphans.blocks.get(&orphan) else { continue };
                let (Some(link), holders) = (block.link, block.holders.clone()) else { continue };
                drop(names);
                // The holders come with the block, so that it never stands unheld.
                let above = (RunId(place.run), place.at + 1);
                let Some(child) = self.adopt(lane, above, link.digest, orphan, &holders) else {
                    continue;
                };
                self.forget_moved(lane.voc, orphan);
                bound.push((orphan, child));
            }
        }
    }

    /// Moves the copies that were counted by a name only to the block that it now means.
    pub(super) fn merge(&mut self, lane: &Lane, name: Name, place: Place) {
        let names = self.shared.names.read();
        let Some(voc) = names.vocabularies.get(&lane.voc) else { return };
        let Some(block) = voc.orphans.blocks.get(&name) else { return };
        let (link, holders) = (block.link, block.holders.clone());
        drop(names);
        if self.fits(place, link) {
            for &(slot, copies) in &holders {
                self.add_copies(RunId(place.run), place.at, slot, copies);
            }
            self.forget_moved(lane.voc, name);
        }
    }

    /// Forgets an unplaced block whose copies are counted where it was placed.
    fn forget_moved(&mut self, id: VocId, name: Name) {
        let mut names = self.shared.names.write();
        let Some(voc) = names.vocabularies.get_mut(&id) else { return };
        let Some(block) = voc.orphans.forget(name) else { return };
        let space = voc.key.0;
        drop(names);
        self.w.entries -= block.holders.len() as u64;
        let mut workers: Vec<_> = block.holders.iter().map(|h| self.w.slots.worker(h.0)).collect();
        workers.sort_unstable();
        workers.dedup();
        workers.into_iter().for_each(|worker| self.w.count_unplaced(worker, -1));
        self.forgot_orphans(space, 1);
    }

    /// Whether a block can be the one that a link describes.
    pub(super) fn fits(&self, place: Place, link: Option<Link>) -> bool {
        let run = self.run(RunId(place.run));
        link.is_none_or(|l| {
            run.content(place.at, run.len()) == l.digest.0 && self.shape(run.id) == l.shape
        })
    }

    /// How the prompts of a run's tree are cut.
    pub(super) fn shape(&self, id: RunId) -> Shape {
        let root = self.run(RunId(self.run(id).get(ROOT)));
        debug_assert_eq!(root.get(UP), 0);
        let size = BlockSize::new(root.field(HEAD) as u32).unwrap_or(BlockSize::DEFAULT);
        Shape { size, lookahead: root.get(OFFSET) }
    }

    /// The unplaced blocks of a vocabulary move to another and are placed there if they can be.
    pub(super) fn move_orphans(&mut self, old: VocId, new: &Lane) {
        let mut names = self.shared.names.write();
        let Some(voc) = names.vocabularies.get_mut(&old) else { return };
        let mut all: Vec<Name> = voc.orphans.blocks.keys().copied().collect();
        all.sort_unstable();
        let mut taken = Vec::new();
        for name in all {
            taken.extend(voc.orphans.forget(name).map(|block| (name, block)));
        }
        let space = voc.key.0;
        drop(names);
        for (name, block) in taken {
            self.forgot_orphans(space, 1);
            self.w.entries -= block.holders.len() as u64;
            // Each holder is this worker: it was alone in the old vocabulary.
            self.w.count_unplaced(new.worker, -1);
            for (slot, copies) in block.holders {
                self.hold_orphan(new.voc, name, block.link, slot, copies);
            }
            self.settle(new, name);
        }
    }

    /// Places an unplaced block if its name or its parent's name already means a block.
    fn settle(&mut self, lane: &Lane, name: Name) {
        let names = self.shared.names.read();
        let Some(voc) = names.vocabularies.get(&lane.voc) else { return };
        let Some(block) = voc.orphans.blocks.get(&name) else { return };
        let (link, holders) = (block.link, block.holders.clone());
        drop(names);
        let mut places = Vec::new();
        self.places(lane.voc, &lane.table, name, &mut places);
        if let Some(&place) = places.iter().find(|&&p| self.fits(p, link)) {
            return self.merge(lane, name, place);
        }
        let Some(link) = link else { return };
        self.places(lane.voc, &lane.table, link.parent, &mut places);
        let above = places.iter().find(|p| self.shape(RunId(p.run)) == link.shape).copied();
        if let Some(above) = above
            && let Some(child) =
                self.adopt(lane, (RunId(above.run), above.at + 1), link.digest, name, &holders)
        {
            self.forget_moved(lane.voc, name);
            self.settle_below(lane, name, child);
        }
    }
}
