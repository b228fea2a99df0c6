//! The memory bound of the index: what it says that it takes is what it takes, and nobody makes it
//! take more than the budget.

mod index_support;

use index_support::{Chain, budget, home, lookup, mix, remove, store, store_of};
use kvscout::block::{Name, WorkerId};
use kvscout::index::{
    Block, Change, MOST_NAMES, Matches, MemoryIndex, MemoryOptions, Parent, Stats, Store,
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
    let mut index = None;
    let counted = allocation_counter::measure(|| {
        let made = MemoryIndex::new(MemoryOptions::default());
        load(&made);
        index = Some(made);
    });
    let index = index.unwrap();
    let stats = index.stats();
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
        assert_eq!(index.stats().blocks as usize, left.len() + longest);
    }
}
