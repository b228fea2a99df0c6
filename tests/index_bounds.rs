//! What one worker may make of groups, holders and unplaced blocks, and how little is swept at a
//! time of what it leaves behind.

mod index_support;

use index_support::{Chain, Ready, SHAPE, home, lookup, store, swept, swept_after};
use kvscout::block::{Digest, Group, Name, SpaceId, Tier, VocabularyId, WorkerId};
use kvscout::index::{
    Applied, Block, BlockSource, Change, MOST_GROUPS, Matches, MemoryIndex, MemoryOptions, Parent,
    Query, Store,
};

const TIERS: [Tier; 5] = [Tier::Gpu, Tier::Cpu, Tier::Disk, Tier::Remote, Tier::Unknown];

/// Blocks of a prompt of its own, stored in a group.
fn store_in(index: &MemoryIndex, worker: u32, group: u32, tier: Tier, blocks: &[Block]) -> Applied {
    let (parent, group) = (Parent::Root, Group(group));
    let store = Store { shape: SHAPE, group, tier, parent, blocks };
    index.apply(WorkerId(worker), &[Change::Store(store)]).unwrap()
}

fn remove_in(index: &MemoryIndex, worker: u32, group: u32, names: &[Name]) -> Applied {
    let remove = Change::Remove { group: Group(group), tier: Tier::Gpu, names };
    index.apply(WorkerId(worker), &[remove]).unwrap()
}

fn indexes(workers: u32) -> MemoryIndex {
    let index = MemoryIndex::default();
    (0..workers).for_each(|w| index.assign(WorkerId(w), home(0)).unwrap());
    index
}

#[test]
fn a_store_in_one_group_too_many_is_refused_whole_until_another_group_is_empty() {
    let index = indexes(2);
    let chain = Chain::new(1, 8);
    let blocks = chain.blocks(0..8);
    const MOST: u32 = MOST_GROUPS as u32;
    for group in 0..MOST {
        let applied = store_in(&index, 0, group, Tier::Gpu, &blocks);
        assert_eq!((applied.stored, applied.refused), (8, 0), "group {group}");
    }
    for group in MOST..100_000 {
        let applied = store_in(&index, 0, group, Tier::Gpu, &blocks);
        assert_eq!((applied.stored, applied.refused), (0, 8), "group {group}");
    }
    assert_eq!(index.stats().entries, 8 * u64::from(MOST));
    // In the groups that it has it goes on, in every tier; and others do not feel it.
    assert_eq!(store_in(&index, 0, 5, Tier::Cpu, &blocks).stored, 8);
    assert_eq!(store_in(&index, 1, 70_000, Tier::Gpu, &blocks).stored, 8);
    // A group that holds nothing makes room, also if it only waited for a parent.
    assert_eq!(remove_in(&index, 0, 9, &chain.names).removed, 8);
    let orphan = [Block { name: Name(1), digest: None }];
    assert_eq!(store_in(&index, 0, MOST, Tier::Gpu, &orphan).unplaced, 1);
    assert_eq!(store_in(&index, 0, MOST + 1, Tier::Gpu, &blocks).refused, 8);
    assert_eq!(store_in(&index, 0, 9, Tier::Gpu, &blocks).refused, 8);
    assert_eq!(remove_in(&index, 0, MOST, &[Name(1)]).removed, 1);
    assert_eq!(store_in(&index, 0, MOST + 1, Tier::Gpu, &blocks).stored, 8);
    // Who starts anew has all of them.
    index.apply(WorkerId(0), &[Change::Clear { tier: None }]).unwrap();
    for group in 1000..1000 + MOST {
        assert_eq!(store_in(&index, 0, group, Tier::Gpu, &blocks).stored, 8);
    }
    let query = Query { space: SpaceId(0), shape: SHAPE, candidates: None, spans: false };
    let mut matches = Matches::default();
    index.lookup(&query, &mut Ready(&chain.digests), &mut matches);
    assert_eq!(matches.members.len(), MOST_GROUPS + 1);
    let again = MemoryIndex::import(MemoryOptions::default(), &index.export()).unwrap();
    assert_eq!(store_in(&again, 0, 5, Tier::Gpu, &blocks).refused, 8);
}

#[test]
fn more_holders_than_there_can_be_are_refused_and_those_that_are_there_stay() {
    const ALL: u64 = 1 << 20;
    let workers = (ALL as usize / MOST_GROUPS / TIERS.len()) as u32 + 2;
    let index = indexes(workers);
    let mut stored = 0;
    for worker in 0..workers {
        let block =
            [Block { name: Name(u64::from(worker) + 1), digest: Some(Digest(u64::from(worker))) }];
        for group in 0..MOST_GROUPS as u32 {
            for tier in TIERS {
                let applied = store_in(&index, worker, group, tier, &block);
                assert_eq!(applied.stored + applied.refused, 1);
                assert!(applied.refused == 0 || stored == ALL);
                stored += applied.stored;
            }
        }
    }
    assert_eq!((stored, index.stats().entries), (ALL, ALL));
    // What somebody leaves is there for the next one.
    let last = workers - 1;
    let block = [Block { name: Name(1), digest: Some(Digest(0)) }];
    assert_eq!(store_in(&index, last, 0, Tier::Gpu, &block).refused, 1);
    index.remove(WorkerId(0));
    swept(&index);
    assert_eq!(store_in(&index, last, 0, Tier::Gpu, &block).stored, 1);
    let query = Query { space: SpaceId(0), shape: SHAPE, candidates: None, spans: false };
    let mut matches = Matches::default();
    index.lookup(&query, &mut Ready(&[Digest(0)]), &mut matches);
    assert_eq!(matches.members, [WorkerId(last)]);
}

#[test]
#[ignore = "minutes in the dev profile: each holder is one more to look through for the next"]
fn so_many_lengths_of_one_run_that_a_list_is_full_are_refused_and_answers_go_on() {
    const WORKERS: u32 = 70_000;
    let index = indexes(WORKERS);
    let chain = Chain::new(1, 4096);
    let mut refused = 0;
    for worker in 0..WORKERS {
        let applied = store(&index, WorkerId(worker), &chain, 0..4096 - worker as usize % 4095);
        refused += applied.refused;
    }
    let stats = index.stats();
    assert!(refused > 0 && refused < 70_000 * 4096 / 10, "{refused}");
    let mut matches = Matches::default();
    let found = lookup(&index, &chain, &mut matches);
    assert_eq!(found.iter().map(|m| u64::from(m.1)).sum::<u64>(), stats.entries);
    assert!(found.len() >= 65_536 && found.len() < 70_000, "{}", found.len());
    assert!(found.iter().all(|&(w, n)| n == 4096 - w.0 % 4095));
}

#[test]
fn sizes_are_told_without_sweeping_all_that_the_gone_held() {
    let index = indexes(2);
    let chains: Vec<Chain> = (0..20_000).map(|seed| Chain::new(seed, 8)).collect();
    for chain in &chains {
        store(&index, WorkerId(0), chain, 0..8);
    }
    store(&index, WorkerId(1), &chains[7], 0..3);
    index.remove(WorkerId(0));
    let stats = index.stats();
    assert_eq!(stats.entries, 3);
    assert!(stats.unswept > 100_000 && stats.blocks > 100_000, "{stats:?}");
    let (stats, asked) = swept_after(&index);
    assert_eq!((stats.blocks, stats.entries), (3, 3));
    assert!(asked < 1_000, "{asked}");
}

/// A prompt of which only names are known.
struct Named<'a>(&'a [Name]);

impl BlockSource for Named<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn digests(&mut self, _: usize, _: usize) -> &[Digest] {
        &[]
    }

    fn name(&mut self, _: VocabularyId, block: usize) -> Option<Name> {
        Some(self.0[block])
    }
}

#[test]
fn unplaced_blocks_of_the_gone_are_invisible_at_once_and_swept_little_by_little() {
    let options = MemoryOptions { unplaced_per_worker: 20_000, ..MemoryOptions::default() };
    let index = MemoryIndex::new(options);
    (0..2).for_each(|w| index.assign(WorkerId(w), home(0)).unwrap());
    let names: Vec<Name> = (1..=20_001).map(Name).collect();
    let blocks: Vec<Block> = names.iter().map(|&name| Block { name, digest: None }).collect();
    let held = |worker| {
        let query = Query { space: SpaceId(0), shape: SHAPE, candidates: None, spans: false };
        let mut matches = Matches::default();
        index.lookup(&query, &mut Named(&names), &mut matches);
        matches.iter().find(|m| m.worker == WorkerId(worker)).map_or(0, |m| m.leading[3])
    };
    let clear = |tier| index.apply(WorkerId(0), &[Change::Clear { tier }]).unwrap();
    assert_eq!(store_in(&index, 0, 0, Tier::Gpu, &blocks).refused, 1);
    assert_eq!(store_in(&index, 1, 0, Tier::Gpu, &blocks[..50]).stored, 50);
    clear(Some(Tier::Cpu));
    assert_eq!((held(0), held(1)), (20_000, 50));
    clear(Some(Tier::Gpu));
    assert_eq!((held(0), held(1)), (0, 50));
    let stats = index.stats();
    assert_eq!(stats.entries, 50);
    assert!(stats.unswept > 10_000 && stats.unplaced > 10_000, "{stats:?}");
    // Its share is free at once, and what it stores now is not what it held before.
    assert_eq!(remove_in(&index, 0, 0, &names[..10]).unknown_removals, 10);
    assert_eq!(store_in(&index, 0, 0, Tier::Gpu, &blocks).stored, 20_000);
    assert_eq!(remove_in(&index, 0, 0, &names[..10]).removed, 10);
    assert_eq!(remove_in(&index, 0, 0, &names[..10]).unknown_removals, 10);
    index.remove(WorkerId(0));
    assert_eq!((held(0), held(1)), (0, 50));
    let stats = swept(&index);
    assert_eq!((stats.unplaced, stats.entries), (50, 50));
}
