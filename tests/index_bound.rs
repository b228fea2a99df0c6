//! Bounds of the index: what it says that it takes is what it takes, nobody makes it take more than
//! the budget, nor more names, groups, holders and unplaced blocks than one may have, and little is
//! swept at a time of what the gone leave behind.

mod index_support;

use index_support::{
    Chain, Ready, SHAPE, budget, home, lookup, mix, remove, store, store_of, swept, swept_after,
};
use kvscout::block::{Digest, Group, Name, SpaceId, Tier, VocabularyId, WorkerId};
use kvscout::index::{
    Applied, Block, BlockSource, Change, MOST_GROUPS, MOST_NAMES, Matches, MemoryIndex,
    MemoryOptions, Parent, Query, Stats, Store,
};

const GOOD: WorkerId = WorkerId(0);
const BAD: WorkerId = WorkerId(1);
/// As many as take a few seconds.
const NAMES: u64 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };

fn within(index: &MemoryIndex, budget: usize) -> Stats {
    let stats = index.stats();
    assert!(stats.bytes <= budget as u64, "{stats:?} of {budget}");
    stats
}

/// Chains of a worker that does no harm.
fn settle(index: &MemoryIndex) -> Vec<Chain> {
    [GOOD, BAD].iter().for_each(|&w| index.assign(w, home(0)).unwrap());
    let chains: Vec<Chain> = (0..20).map(|seed| Chain::new(seed, 100)).collect();
    chains.iter().for_each(|chain| {
        store(index, GOOD, chain, 0..100);
    });
    chains
}

fn is_whole(index: &MemoryIndex, chains: &[Chain]) -> bool {
    let mut matches = Matches::default();
    let whole = |chain| lookup(index, chain, &mut matches).contains(&(GOOD, 100));
    !index.evicted(GOOD) && chains.iter().all(whole)
}

#[test]
fn one_block_under_ever_new_names_takes_the_memory_of_a_few() {
    const BUDGET: usize = 8 << 20;
    let index = budget(BUDGET);
    let chains = settle(&index);
    let mut chain = Chain::new(100, 3);
    store(&index, BAD, &chain, 0..3);
    let before = index.stats();
    let mut refused = 0;
    for n in 0..NAMES {
        chain.names[0] = Name(mix(n));
        let applied = store(&index, BAD, &chain, 0..3);
        assert_eq!(applied.stored + applied.refused, 3);
        refused += applied.refused;
        if n < 16 {
            assert_eq!(applied.refused, 0);
        }
    }
    let few = MOST_NAMES as u64 - 1;
    assert_eq!(refused, 3 * (NAMES - few), "from the first one that would be too many on");
    let after = within(&index, BUDGET);
    assert!(after.bytes < before.bytes + (64 << 10), "{before:?} {after:?}");
    assert_eq!((after.evicted, after.entries), (0, before.entries));
    assert!(is_whole(&index, &chains));
    // The names that it got mean it.
    chain.names[0] = Name(mix(5));
    assert_eq!(remove(&index, BAD, &chain, 0..1).removed, 1);
}

#[test]
fn orphans_of_one_content_under_ever_new_names_take_the_memory_of_a_few() {
    const BUDGET: usize = 32 << 20;
    let index = budget(BUDGET);
    let chains = settle(&index);
    let chain = Chain::new(100, 2);
    let blocks: Vec<Block> =
        (0..20_000).map(|n| Block { name: Name(mix(n)), digest: Some(chain.digests[1]) }).collect();
    for block in &blocks {
        let orphan = store_of(&chain, 1, std::slice::from_ref(block));
        index.apply(BAD, &[Change::Store(orphan)]).unwrap();
    }
    assert_eq!(index.stats().unplaced, 20_000);
    store(&index, BAD, &chain, 0..1);
    let stats = within(&index, BUDGET);
    assert_eq!((stats.unplaced, stats.blocks), (0, 20 * 100 + 2));
    assert!(index.evicted(BAD), "copies of it were given up");
    assert!(is_whole(&index, &chains));
}

#[test]
fn r10_names_of_blocks_that_are_there_stay_within_the_budget() {
    const BUDGET: usize = 2 << 20;
    let index = budget(BUDGET);
    settle(&index);
    let mut chain = Chain::new(100, 4_000);
    let mut refused = 0;
    for round in 0..MOST_NAMES as u64 - 1 {
        chain.names.iter_mut().zip(0..).for_each(|(name, at)| *name = Name(mix(round << 32 ^ at)));
        refused += store(&index, BAD, &chain, 0..4_000).refused;
        within(&index, BUDGET);
    }
    assert!(refused > 0, "250,000 names do not fit");
    // And in vocabularies of workers that have nothing else.
    for worker in 2..200 {
        index.assign(WorkerId(worker), home(worker)).unwrap();
        store(&index, WorkerId(worker), &chain.clone().of(worker), 0..4_000);
        within(&index, BUDGET);
    }
    assert!(is_alive(&index));
}

/// Whoever comes next is served.
fn is_alive(index: &MemoryIndex) -> bool {
    let chain = Chain::new(77_777, 50);
    let stored = store(index, GOOD, &chain, 0..50);
    stored.stored == 50 && lookup(index, &chain, &mut Matches::default()).contains(&(GOOD, 50))
}

#[test]
fn r10_second_copies_and_holes_stay_within_the_budget() {
    const BUDGET: usize = 2 << 20;
    let index = budget(BUDGET);
    settle(&index);
    for seed in 100..120 {
        let chain = Chain::new(seed, 2_000);
        for _ in 0..3 {
            store(&index, BAD, &chain, 0..2_000);
            within(&index, BUDGET);
        }
    }
    let chain = Chain::new(200, 3_000);
    for worker in 2..12 {
        index.assign(WorkerId(worker), home(0)).unwrap();
        store(&index, WorkerId(worker), &chain, 0..3_000);
        for at in (0..700).map(|n| 4 * n) {
            remove(&index, WorkerId(worker), &chain, at..at + 1);
        }
        within(&index, BUDGET);
    }
    assert!(is_alive(&index));
}

#[test]
fn unplaced_blocks_stay_within_the_budget() {
    const BUDGET: usize = 2 << 20;
    let index = budget(BUDGET);
    settle(&index);
    let mut refused = 0;
    for seed in 100..200 {
        let chain = Chain::new(seed, 300);
        refused += store(&index, BAD, &chain, 1..300).refused;
        within(&index, BUDGET);
    }
    assert!(refused > 0 && index.stats().unplaced > 2_000, "{:?}", index.stats());
}

#[test]
fn ten_thousand_vocabularies_that_come_and_go_leave_nothing() {
    let index = MemoryIndex::default();
    index.assign(GOOD, home(0)).unwrap();
    let trunk = Chain::new(1, 40);
    store(&index, GOOD, &trunk, 0..40);
    let mut first = None;
    for n in 1..=10_000u32 {
        let worker = WorkerId(1 + n % 3);
        let mine = trunk.clone().of(n);
        index.assign(worker, home(n)).unwrap();
        assert_eq!(store(&index, worker, &mine, 0..40).stored, 40);
        match n % 2 {
            0 => index.remove(worker),
            _ => {
                index.apply(worker, &[Change::Clear { tier: None }]).unwrap();
            }
        }
        if n == 100 {
            first = Some(index.stats());
        }
    }
    let (first, last) = (first.unwrap(), index.stats());
    assert!(last.bytes < first.bytes * 21 / 20, "{first:?} {last:?}");
    assert!(last.reserved < first.reserved * 21 / 20, "{first:?} {last:?}");
    // A vocabulary that was there before knows none of its names.
    index.assign(BAD, home(4)).unwrap();
    let mine = trunk.of(4);
    let below = Store {
        parent: Parent::Block(mine.names[9]),
        ..store_of(&mine, 10, &mine.blocks(10..11).leak()[..])
    };
    let applied = index.apply(BAD, &[Change::Store(below)]).unwrap();
    assert_eq!((applied.stored, applied.unplaced), (1, 1), "its parent means nothing");
}

#[test]
fn vocabularies_that_come_and_go_leave_nothing_while_nobody_asks_for_sizes() {
    const BUDGET: usize = 4 << 20;
    let index = budget(BUDGET);
    index.assign(GOOD, home(0)).unwrap();
    let trunk = Chain::new(1, 300);
    store(&index, GOOD, &trunk, 0..300);
    index.assign(BAD, home(1)).unwrap();
    let again = |n| {
        index.apply(BAD, &[Change::Clear { tier: None }]).unwrap();
        index.assign(BAD, home(n)).unwrap();
        store(&index, BAD, &trunk.clone().of(n), 0..300).refused
    };
    assert_eq!((1..1_500).map(again).sum::<u64>(), 0);
    let stats = within(&index, BUDGET);
    assert_eq!((stats.blocks, stats.evicted), (300, 0));
}

/// What an allocator says that an index takes after this, and the index with what it says itself.
fn measured(load: impl FnOnce(&MemoryIndex)) -> (i64, MemoryIndex, Stats) {
    let mut made = None;
    let counted = allocation_counter::measure(|| {
        let index = MemoryIndex::new(MemoryOptions::default());
        load(&index);
        // It sweeps a little.
        let stats = index.stats();
        made = Some((index, stats));
    });
    let (index, stats) = made.unwrap();
    (counted.bytes_current, index, stats)
}

fn assert_counted(about: &str, load: impl FnOnce(&MemoryIndex)) {
    let (taken, _index, stats) = measured(load);
    let off = taken - stats.reserved as i64;
    // What is beside the arena is what is in doubt.
    let beside = taken - (taken >> 21 << 21);
    assert!(
        off.abs() <= (beside / 50).max(4 << 10),
        "{about}: {taken} bytes, {stats:?}, off by {off}"
    );
}

#[test]
fn r10_what_is_counted_is_what_the_allocator_gave() {
    let trunk = Chain::new(1, 1_000);
    assert_counted("nothing", |_| ());
    assert_counted("many chains", |index| {
        index.assign(GOOD, home(0)).unwrap();
        (0..1_000).for_each(|seed| {
            store(index, GOOD, &Chain::new(seed, 100), 0..100);
        });
    });
    assert_counted("many workers", |index| {
        for w in 0..1_000 {
            index.assign(WorkerId(w), home(w % 7)).unwrap();
            store(index, WorkerId(w), &trunk.clone().of(w % 7), 0..10);
        }
    });
    assert_counted("many vocabularies", |index| {
        for w in 0..100 {
            index.assign(WorkerId(w), home(w)).unwrap();
            store(index, WorkerId(w), &trunk.clone().of(w), 0..1_000);
        }
    });
    assert_counted("second copies", |index| {
        index.assign(GOOD, home(0)).unwrap();
        for seed in 0..20 {
            let chain = Chain::new(seed, 1_000);
            (0..3).for_each(|_| {
                store(index, GOOD, &chain, 0..1_000);
            });
            if seed % 3 > 0 {
                (0..2).for_each(|_| {
                    remove(index, GOOD, &chain, 0..1_000);
                });
            }
        }
    });
    assert_counted("second names", |index| {
        index.assign(GOOD, home(0)).unwrap();
        for n in 0..20 {
            store(index, GOOD, &trunk.clone().of(n), 0..1_000);
        }
    });
    assert_counted("names of several blocks", |index| {
        index.assign(GOOD, home(0)).unwrap();
        for seed in 0..10 {
            let chain =
                Chain { digests: Chain::new(seed, 1_000).digests, names: trunk.names.clone() };
            store(index, GOOD, &chain, 0..1_000);
        }
    });
    assert_counted("unplaced blocks", |index| {
        index.assign(GOOD, home(0)).unwrap();
        (0..30).for_each(|seed| {
            store(index, GOOD, &Chain::new(seed, 1_000), 1..1_000);
        });
    });
    assert_counted("orphans of one parent", |index| {
        index.assign(GOOD, home(0)).unwrap();
        for seed in 0..20_000 {
            store(index, GOOD, &trunk.branch(1, seed, 2), 1..2);
        }
    });
    assert_counted("groups, some of which are given up", |index| {
        for w in 0..200 {
            index.assign(WorkerId(w), home(0)).unwrap();
            for group in 0..100 {
                store_in(index, w, group, TIERS[group as usize % 5], &trunk.blocks(0..2));
                remove_in(index, w, group.saturating_sub(1), &trunk.names[..2]);
            }
        }
    });
    assert_counted("unplaced blocks of many groups that went", |index| {
        for w in 0..8 {
            index.assign(WorkerId(w), home(w / 2)).unwrap();
            for group in 0..30 {
                let unknown = Block { name: Name(7 + u64::from(group)), digest: None };
                let blocks = [&trunk.blocks(1..60)[..], &[unknown]].concat();
                let store = Store { group: Group(group), ..store_of(&trunk, 1, &blocks) };
                index.apply(WorkerId(w), &[Change::Store(store)]).unwrap();
            }
        }
        (0..5).for_each(|w| index.remove(WorkerId(w)));
    });
    assert_counted("holes", |index| {
        for w in 0..40 {
            index.assign(WorkerId(w), home(0)).unwrap();
            store(index, WorkerId(w), &trunk, 0..1_000);
            (0..200).for_each(|n| {
                remove(index, WorkerId(w), &trunk, 2 * n..2 * n + 1);
            });
        }
    });
    assert_counted("many that went", |index| {
        for w in 0..40 {
            index.assign(WorkerId(w), home(w)).unwrap();
            for n in 0..5 {
                store(index, WorkerId(w), &trunk.clone().of(w % 5 + n), 0..1_000);
            }
            if w > 3 {
                index.remove(WorkerId(w - 3));
            }
        }
        index.stats();
    });
}

#[test]
fn a_run_with_a_thousand_branches_ends_where_the_last_of_them_is() {
    let index = MemoryIndex::default();
    [GOOD, BAD].iter().for_each(|&w| index.assign(w, home(0)).unwrap());
    let trunk = Chain::new(1, 1_000);
    store(&index, GOOD, &trunk, 0..1_000);
    let branches: Vec<(usize, Chain)> = (0..3_000)
        .map(|n| 1 + mix(n) as usize % 999)
        .zip(0..)
        .map(|(at, n)| (at, trunk.branch(at, n, at + 1)))
        .collect();
    for (at, chain) in &branches {
        store(&index, BAD, chain, *at..at + 1);
    }
    index.apply(GOOD, &[Change::Clear { tier: None }]).unwrap();
    let mut left: Vec<usize> = branches.iter().map(|b| b.0).collect();
    left.sort_unstable();
    let mut order: Vec<&(usize, Chain)> = branches.iter().collect();
    order.sort_by_key(|(at, chain)| (at / 100, mix(chain.names[*at].0)));
    while let Some((at, chain)) = order.pop() {
        assert_eq!(remove(&index, BAD, chain, *at..at + 1).removed, 1);
        left.remove(left.binary_search(at).unwrap());
        let longest = left.last().copied().unwrap_or(0);
        assert_eq!(swept(&index).blocks as usize, left.len() + longest);
    }
}

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

#[test]
fn names_that_nobody_speaks_are_told_until_they_are_forgotten() {
    let index = indexes(1);
    let chain = Chain::new(1, 4_000);
    store(&index, GOOD, &chain, 0..4_000);
    let before = index.stats();
    let vocabularies = 1..11;
    vocabularies.clone().for_each(|n| {
        index.assign(WorkerId(n), home(n)).unwrap();
        store(&index, WorkerId(n), &chain.clone().of(n), 0..4_000);
    });
    let full = index.stats();
    assert_eq!(full.unswept, 0);
    vocabularies.for_each(|n| index.remove(WorkerId(n)));
    let stats = index.stats();
    assert!(stats.entries == 4_000 && stats.unswept > 30_000, "{stats:?}");
    let (after, asked) = swept_after(&index);
    assert!(asked > 10 && asked < 1_000, "{asked}");
    let left = after.bytes - before.bytes;
    assert!(left < (full.bytes - before.bytes) / 20, "{before:?} {full:?} {after:?}");
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
