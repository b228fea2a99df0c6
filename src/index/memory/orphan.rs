//! Unplaced blocks: orphans, and blocks known by name only.
//!
//! Invariants: `waiting` lists exactly the unplaced blocks that have a link, under the link's
//! parent; a worker's count says in how many unplaced blocks it has copies; retired slots have none.
//! At most `unplaced_per_worker` a worker, so clearing one is bounded and done at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::budget::RESERVE;
use super::map::Map;
use super::names::VocId;
use super::run::{HEAD, OFFSET, ROOT, RunId, UP};
use super::store::Lane;
use super::sync::Ordering;
use super::table::Place;
use super::write::Pen;
use crate::block::{BlockSize, Digest, Name, Shape, SpaceId};
use crate::index::Applied;

/// A set has nodes of eleven names, which are some two thirds full where there are several.
const NODE: usize = 104;
const SET_ENTRY: usize = 16;

#[derive(Debug)]
pub(super) struct Orphans {
    pub(super) blocks: Map<Name, Orphan>,
    /// Ordered, so that one of many goes in few steps.
    waiting: Map<(Shape, Name), BTreeSet<Name>>,
    /// Bytes of unplaced blocks, all vocabularies.
    bytes: Arc<AtomicUsize>,
}

/// Orphans whose parent is placed, with it and its run's birth number: it may go before they come.
type Waiting = BTreeMap<Name, (Place, u32)>;

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

/// Bytes of a set of so many names; B-trees do not say.
fn set_bytes(names: usize) -> usize {
    if names <= 11 { NODE } else { names * SET_ENTRY }
}

impl Orphans {
    /// Which add the bytes that they take to `bytes`.
    pub(super) fn new(bytes: &Arc<AtomicUsize>) -> Orphans {
        Orphans { blocks: Map::default(), waiting: Map::default(), bytes: bytes.clone() }
    }

    fn maps(&self) -> usize {
        self.blocks.bytes() + self.waiting.bytes()
    }

    fn count(&self, before: usize, after: usize) {
        self.bytes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Bytes that the maps take more, all at once, if another block comes.
    fn soon(&self) -> usize {
        self.blocks.soon(1) + self.waiting.soon(1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn holders(&self, name: Name) -> impl Iterator<Item = u32> + '_ {
        self.blocks.get(&name).into_iter().flat_map(|o| o.holders.iter().map(|h| h.0))
    }

    fn hold(&mut self, name: Name, link: Option<Link>, slot: u32, copies: u32) {
        let maps = self.maps();
        let block = self.blocks.or_insert_with(name, Orphan::default);
        let (mut before, mut after) = (block.bytes(), 0);
        if let (None, Some(link)) = (block.link, link) {
            block.link = Some(link);
            let key = (link.shape, link.parent);
            let waiting = self.waiting.or_insert_with(key, BTreeSet::new);
            before += if waiting.is_empty() { 0 } else { set_bytes(waiting.len()) };
            waiting.insert(name);
            after += set_bytes(waiting.len());
        }
        match block.holders.iter_mut().find(|h| h.0 == slot) {
            Some(holder) => holder.1 = holder.1.saturating_add(copies),
            None => block.holders.push((slot, copies)),
        }
        after += block.bytes();
        self.count(maps + before, self.maps() + after);
    }

    fn forget(&mut self, name: Name) -> Option<Orphan> {
        let maps = self.maps();
        let block = self.blocks.remove(&name)?;
        let (mut before, mut after) = (block.bytes(), 0);
        if let Some(link) = block.link {
            let key = (link.shape, link.parent);
            if let Some(names) = self.waiting.get_mut(&key) {
                before += set_bytes(names.len());
                names.remove(&name);
                if names.is_empty() {
                    self.waiting.remove(&key);
                } else {
                    after += set_bytes(names.len());
                }
            }
        }
        self.count(maps + before, self.maps() + after);
        Some(block)
    }

    /// Blocks that wait for the one with a name.
    fn below(&self, shape: Shape, name: Name) -> impl Iterator<Item = Name> + '_ {
        self.waiting.get(&(shape, name)).into_iter().flatten().copied()
    }
}

impl Drop for Orphans {
    fn drop(&mut self) {
        self.count(self.maps(), 0);
    }
}

impl Orphan {
    fn bytes(&self) -> usize {
        self.holders.capacity() * size_of::<(u32, u32)>()
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
            let id = RunId(place.run);
            let stays = self.keep(id);
            let room = self.make_room();
            if room {
                self.add_copies(id, place.at, lane.slot, 1);
            }
            self.let_go(stays);
            applied.stored += u64::from(room);
            applied.refused += u64::from(!room);
            return room.then_some(place);
        }
        let share = self.w.options.unplaced_per_worker;
        let full = self.w.unplaced_of(lane.worker) >= share || !self.has_room_unplaced(lane.voc);
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

    /// Whether there is room for an unplaced block.
    fn has_room_unplaced(&self, voc: VocId) -> bool {
        let soon = self.shared.names.read().vocabularies.get(&voc).map_or(0, |v| v.orphans.soon());
        self.in_use() + soon + RESERVE <= self.w.options.budget
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
        self.merge(lane, name, place);
        let mut waiting = Waiting::default();
        self.wait_below(lane.voc, name, place, &mut waiting);
        self.place_waiting(lane, waiting);
    }

    /// Adds the orphans that wait for the block that a name means now.
    fn wait_below(&self, voc: VocId, name: Name, place: Place, waiting: &mut Waiting) {
        let shape = self.shape(RunId(place.run));
        let born = self.run(RunId(place.run)).born();
        let names = self.shared.names.read();
        let Some(voc) = names.vocabularies.get(&voc) else { return };
        for orphan in voc.orphans.below(shape, name) {
            waiting.entry(orphan).or_insert((place, born));
        }
    }

    /// Places orphans, and orphans below those, in the order of their names: a block that gets many
    /// names from them may not have room for all.
    fn place_waiting(&mut self, lane: &Lane, mut waiting: Waiting) {
        while let Some((orphan, (parent, born))) = waiting.pop_first() {
            if !self.is_there(parent, born) {
                continue;
            }
            let above = (RunId(parent.run), parent.at + 1);
            let names = self.shared.names.read();
            let Some(voc) = names.vocabularies.get(&lane.voc) else { return };
            let Some(block) = voc.orphans.blocks.get(&orphan) else { continue };
            let (Some(link), holders) = (block.link, block.holders.clone()) else { continue };
            drop(names);
            let there = self.block_below(above, link.digest);
            if there
                .is_some_and(|p| self.is_full(p, lane.voc) && !self.is_named(p, lane.voc, orphan))
            {
                self.give_up(lane.voc, orphan);
                continue;
            }
            // The holders come with the block, so that it never stands unheld.
            let Some(child) = self.adopt(lane, above, link.digest, orphan, &holders) else {
                continue;
            };
            self.forget_moved(lane.voc, orphan);
            self.wait_below(lane.voc, orphan, child, &mut waiting);
        }
    }

    /// Gives up an unplaced block; whoever held it is no longer known as a whole.
    fn give_up(&mut self, id: VocId, name: Name) {
        let names = self.shared.names.read();
        let Some(voc) = names.vocabularies.get(&id) else { return };
        let holders: Vec<u32> = voc.orphans.holders(name).collect();
        drop(names);
        for &slot in &holders {
            self.shared.losers.add(self.w.slots.worker(slot));
        }
        self.w.evicted += holders.len() as u64;
        self.forget_moved(id, name);
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

    /// The unplaced blocks of a vocabulary move to another, of which some names mean other blocks
    /// since, and those of both are placed if they can be.
    pub(super) fn move_orphans(&mut self, old: VocId, new: &Lane, bound: &[(Name, Place)]) {
        let mut waiting = Waiting::default();
        for &(name, place) in bound {
            self.wait_below(new.voc, name, place, &mut waiting);
        }
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
            if let Some(parent) = self.settle(new, name) {
                let born = self.run(RunId(parent.run)).born();
                waiting.entry(name).or_insert((parent, born));
            }
        }
        self.place_waiting(new, waiting);
    }

    /// Places an unplaced block if its name already means a block; otherwise its parent, if that is
    /// placed.
    fn settle(&mut self, lane: &Lane, name: Name) -> Option<Place> {
        let names = self.shared.names.read();
        let link = names.vocabularies.get(&lane.voc)?.orphans.blocks.get(&name)?.link;
        drop(names);
        let mut places = Vec::new();
        self.places(lane.voc, &lane.table, name, &mut places);
        if let Some(&place) = places.iter().find(|&&p| self.fits(p, link)) {
            self.merge(lane, name, place);
            return None;
        }
        let link = link?;
        self.places(lane.voc, &lane.table, link.parent, &mut places);
        places.into_iter().find(|p| self.shape(RunId(p.run)) == link.shape)
    }
}
