//! What one worker holds, asked name by name.
//!
//! Invariant: an answer is of one moment for the names that were asked together; who asks in several goes
//! keeps the worker from changing in between.

use super::MemoryIndex;
use super::run::{EXTRAS, RunId};
use super::write::Pen;
use crate::block::{Group, Name, Tier, WorkerId};

/// What a worker holds under one name, in one tier and group. Ordered by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Held {
    pub(crate) name: Name,
    pub(crate) group: Group,
    pub(crate) tier: Tier,
    /// Blocks that the name means and the worker holds: one, but for names that collide.
    pub(crate) entries: u64,
    /// Their copies.
    pub(crate) copies: u64,
}

impl MemoryIndex {
    /// Every name of a worker's vocabulary that means something, ascending.
    pub(crate) fn names(&self, worker: WorkerId) -> Vec<Name> {
        self.write(|pen| pen.names(worker))
    }

    /// What a worker holds under these names, ascending; each name is to be asked once.
    pub(crate) fn held(&self, worker: WorkerId, names: &[Name]) -> Vec<Held> {
        self.write(|pen| pen.held(worker, names))
    }

    /// How many entries (block, group, tier) a worker has, whatever they are called.
    pub(crate) fn entries(&self, worker: WorkerId) -> u64 {
        self.write(|pen| pen.entries_of(worker))
    }

    /// The same by tier: those of `Tier::KNOWN`, then those of unknown media.
    pub(crate) fn entries_by_tier(&self, worker: WorkerId) -> [u64; 5] {
        self.write(|pen| pen.entries_by_tier(worker))
    }
}

impl Pen<'_> {
    fn names(&mut self, worker: WorkerId) -> Vec<Name> {
        let Some((voc, table)) = self.w.workers.get(&worker).map(|w| (w.voc, w.table.clone()))
        else {
            return Vec::new();
        };
        let mut all: Vec<Name> = self.bindings(voc, &table).into_iter().map(|(n, _)| n).collect();
        let names = self.shared.names.read();
        if let Some(voc) = names.vocabularies.get(&voc) {
            all.extend(voc.orphans.blocks.keys());
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn held(&mut self, worker: WorkerId, names: &[Name]) -> Vec<Held> {
        let Some((voc, table, lanes)) =
            (self.w.workers.get(&worker)).map(|w| (w.voc, w.table.clone(), w.lanes.clone()))
        else {
            return Vec::new();
        };
        let (mut all, mut places) = (Vec::new(), Vec::new());
        for &name in names {
            self.places(voc, &table, name, &mut places);
            for &(group, tier, slot) in &lanes {
                let (mut entries, mut copies) = (0, 0);
                for &place in &places {
                    if self.holds(place, slot) {
                        let id = RunId(place.run);
                        let more = match self.run(id).get(EXTRAS) {
                            0 => None,
                            _ => self.w.extras.get(&(id, place.at, slot)),
                        };
                        entries += 1;
                        copies += 1 + u64::from(more.copied().unwrap_or(0));
                    }
                }
                let names = self.shared.names.read();
                let block = names.vocabularies.get(&voc).and_then(|v| v.orphans.blocks.get(&name));
                let unplaced = block.and_then(|b| b.holders.iter().find(|holder| holder.0 == slot));
                if let Some(&(_, unplaced)) = unplaced {
                    entries += 1;
                    copies += u64::from(unplaced);
                }
                if entries > 0 {
                    all.push(Held { name, group, tier, entries, copies });
                }
            }
        }
        all.sort_unstable();
        all
    }

    fn entries_of(&self, worker: WorkerId) -> u64 {
        self.w.size(worker) + self.w.unplaced_of(worker)
    }

    fn entries_by_tier(&self, worker: WorkerId) -> [u64; 5] {
        let mut held = [0; 5];
        let lanes = self.w.workers.get(&worker).into_iter().flat_map(|w| &w.lanes);
        for &(_, tier, slot) in lanes {
            let entries = self.w.slots.entries(slot) + self.w.slots.unplaced(slot);
            held[tier.rank().unwrap_or(4)] += entries;
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockSize, Digest, Shape, SpaceId, VocabularyId};
    use crate::index::{Block, Change, Home, Parent, Store};

    const HOME: Home = Home { space: SpaceId(1), vocabulary: VocabularyId(1) };
    const ME: WorkerId = WorkerId(7);

    fn store(
        index: &MemoryIndex,
        worker: WorkerId,
        tier: Tier,
        parent: Parent,
        blocks: &[(u64, u64)],
    ) {
        index.assign(worker, HOME).unwrap();
        let block = |&(name, content): &(u64, u64)| Block {
            name: Name(name),
            digest: (content > 0).then_some(Digest(content)),
        };
        let blocks: Vec<Block> = blocks.iter().map(block).collect();
        let shape = Shape::plain(BlockSize::DEFAULT);
        let store = Store { shape, group: Group(0), tier, parent, blocks: &blocks };
        index.apply(worker, &[Change::Store(store)]).unwrap();
    }

    #[test]
    fn what_a_worker_holds_is_told_name_by_name() {
        let (index, other) = (MemoryIndex::default(), WorkerId(8));
        assert_eq!(
            (index.names(ME), index.held(ME, &[Name(1)]), index.entries(ME)),
            (vec![], vec![], 0)
        );
        store(&index, ME, Tier::Gpu, Parent::Root, &[(1, 10), (2, 20)]);
        store(&index, ME, Tier::Gpu, Parent::Root, &[(1, 10)]);
        store(&index, ME, Tier::Cpu, Parent::Root, &[(1, 10)]);
        // A name that means two blocks, a block with two names, an orphan twice, a block known by name.
        store(&index, ME, Tier::Gpu, Parent::Root, &[(3, 30)]);
        store(&index, ME, Tier::Gpu, Parent::Root, &[(3, 31)]);
        store(&index, ME, Tier::Gpu, Parent::Root, &[(4, 40)]);
        store(&index, ME, Tier::Gpu, Parent::Root, &[(5, 40)]);
        store(&index, ME, Tier::Gpu, Parent::Block(Name(99)), &[(6, 60)]);
        store(&index, ME, Tier::Gpu, Parent::Block(Name(99)), &[(6, 60)]);
        store(&index, ME, Tier::Disk, Parent::Unknown, &[(7, 0)]);
        // What others hold is theirs, also below these names.
        store(&index, other, Tier::Gpu, Parent::Root, &[(1, 10), (2, 20), (8, 80)]);
        store(&index, other, Tier::Gpu, Parent::Unknown, &[(7, 0)]);
        let names = index.names(ME);
        assert_eq!(names, (1..=8).map(Name).collect::<Vec<_>>());
        let held: Vec<_> = index
            .held(ME, &names)
            .iter()
            .map(|held| (held.name.0, held.tier, held.entries, held.copies))
            .collect();
        let gpu = Tier::Gpu;
        assert_eq!(
            held,
            [
                (1, gpu, 1, 2),
                (1, Tier::Cpu, 1, 1),
                (2, gpu, 1, 1),
                (3, gpu, 2, 2),
                (4, gpu, 1, 2),
                (5, gpu, 1, 2),
                (6, gpu, 1, 2),
                (7, Tier::Disk, 1, 1),
            ]
        );
        assert_eq!((index.entries(ME), index.entries(other)), (8, 4));
        assert_eq!(index.entries_by_tier(ME), [6, 1, 1, 0, 0]);
        index.apply(ME, &[Change::Clear { tier: Some(gpu) }]).unwrap();
        let left: Vec<_> = index.held(ME, &names).iter().map(|held| held.name.0).collect();
        assert_eq!((left, index.entries(ME)), (vec![1, 7], 2));
    }
}
