//! What the memory index costs: its budget, churn without growth, lookups without allocations,
//! workers that go.

mod index_support;

use index_support::{Chain, Ready, SHAPE, alone, budget, home, lookup, mix, remove, rss, store};
use kvscout::block::{SpaceId, Tier, WorkerId};
use kvscout::index::{Change, Matches, MemoryIndex, MemoryOptions, Query};

#[test]
fn r10_ten_times_the_budget_stays_within_it_and_scores_stay_whole() {
    let _alone = alone();
    const BUDGET: usize = 8 << 20;
    let index = budget(BUDGET);
    let workers: Vec<WorkerId> = (0..8).map(WorkerId).collect();
    workers.iter().for_each(|&w| index.assign(w, home(0)).unwrap());
    let before = rss();
    let chains: Vec<Chain> = (0..16_000).map(|seed| Chain::new(seed, 160)).collect();
    let (mut matches, mut refused) = (Matches::default(), 0);
    for (i, chain) in chains.iter().enumerate() {
        refused += store(&index, workers[i % 8], chain, 0..160).refused;
        if i % 500 == 499 {
            let stats = index.stats();
            assert!(stats.bytes <= BUDGET as u64, "{stats:?}");
            // The newest is there as a whole.
            assert_eq!(lookup(&index, chain, &mut matches), [(workers[i % 8], 160)]);
        }
    }
    let stats = index.stats();
    assert_eq!(refused, 0);
    assert!(stats.evicted > 2_000_000 && stats.entries > 150_000, "{stats:?}");
    assert_eq!(stats.evicted + stats.entries, 16_000 * 160);
    // Tables and lists that evicted blocks left are used again, so that little is kept for later.
    assert!(stats.reserved <= BUDGET as u64 * 5 / 4 + (2 << 20), "{stats:?}");
    let chains_bytes = 16_000 * 160 * 24;
    assert!(rss() - before < (BUDGET * 3 / 2 + chains_bytes + (32 << 20)) as i64);
    // A chain is cut from its end: what is left of it is one prefix, which longer prompts find, too.
    let left: Vec<u32> = chains
        .iter()
        .map(|chain| lookup(&index, chain, &mut matches).first().map_or(0, |m| m.1))
        .collect();
    assert_eq!(left.iter().map(|&n| u64::from(n)).sum::<u64>(), stats.entries);
    // The oldest went.
    let (old, new) = left.split_at(left.len() / 2);
    assert!(old.iter().map(|&n| u64::from(n)).sum::<u64>() < stats.entries / 50);
    assert!(new.iter().rev().take(400).all(|&n| n == 160));
}

#[test]
fn r10_the_worker_that_floods_pays() {
    let _alone = alone();
    let index = budget(8 << 20);
    for w in 0..4 {
        index.assign(WorkerId(w), home(0)).unwrap();
    }
    let quiet: Vec<Chain> = (0..90).map(|seed| Chain::new(seed, 100)).collect();
    for (i, chain) in quiet.iter().enumerate() {
        store(&index, WorkerId(i as u32 % 3), chain, 0..100);
    }
    for seed in 1_000..14_000 {
        store(&index, WorkerId(3), &Chain::new(seed, 100), 0..100);
    }
    assert!(index.stats().evicted > 800_000);
    let mut matches = Matches::default();
    for (i, chain) in quiet.iter().enumerate() {
        assert_eq!(lookup(&index, chain, &mut matches), [(WorkerId(i as u32 % 3), 100)]);
    }
}

#[test]
fn r10_whoever_is_not_said_to_have_lost_copies_has_them_all() {
    let _alone = alone();
    let index = budget(4 << 20);
    let workers: Vec<WorkerId> = (0..6).map(WorkerId).collect();
    workers.iter().for_each(|&w| index.assign(w, home(w.0 % 2)).unwrap());
    let clear = |worker, tier| index.apply(worker, &[Change::Clear { tier }]).unwrap();
    let trunk = Chain::new(9, 100);
    let mut held: Vec<Vec<Chain>> = vec![Vec::new(); 6];
    let mut matches = Matches::default();
    let (mut kept, mut lost) = (0, 0);
    for turn in 0..6_000_u64 {
        // Worker 5 stores half of all, worker 0 little.
        let n = (mix(turn) % 36).isqrt() as usize;
        let worker = workers[n];
        let chain = trunk.branch(1 + mix(turn ^ 1) as usize % 99, turn, 200).of(worker.0 % 2);
        store(&index, worker, &chain, 0..200);
        held[n].push(chain);
        if mix(turn ^ 2).is_multiple_of(500) {
            clear(worker, None);
            assert!(!index.evicted(worker));
            held[n].clear();
        }
        if turn % 300 == 299 {
            let again = MemoryIndex::import(MemoryOptions::default(), &index.export()).unwrap();
            for (n, &worker) in workers.iter().enumerate() {
                let evicted = index.evicted(worker);
                assert_eq!(again.evicted(worker), evicted);
                *(if evicted { &mut lost } else { &mut kept }) += 1;
                let is_whole = |chain: &Chain| {
                    let found = lookup(&index, chain, &mut Matches::default());
                    found.contains(&(worker, 200))
                };
                assert!(evicted || held[n].iter().all(is_whole), "{worker:?} at {turn}");
            }
        }
    }
    assert!(kept > 10 && lost > 10, "{kept} {lost}");
    let loser = workers.into_iter().find(|&w| index.evicted(w)).unwrap();
    clear(loser, Some(Tier::Gpu));
    assert!(index.evicted(loser), "in other tiers it may miss some");
    clear(loser, None);
    assert!(!index.evicted(loser) && lookup(&index, &trunk, &mut matches).len() <= 5);
    index.remove(WorkerId(5));
    assert!(!index.evicted(WorkerId(5)) && !index.evicted(WorkerId(77)));
}

#[test]
fn r10_a_chain_longer_than_the_memory_is_refused_beyond() {
    let _alone = alone();
    let index = budget(1 << 20);
    index.assign(WorkerId(0), home(0)).unwrap();
    let chain = Chain::new(1, 100_000);
    let mut refused = 0;
    for at in (0..100_000).step_by(50) {
        refused += store(&index, WorkerId(0), &chain, at..at + 50).refused;
    }
    let stats = index.stats();
    assert!(refused > 50_000 && stats.bytes <= 1 << 20, "{refused} {stats:?}");
    // Of one kind of load nothing is kept for later, but for the last chunk.
    assert!(stats.reserved <= (1 << 20) + (2 << 20), "{stats:?}");
    let mut matches = Matches::default();
    assert!(lookup(&index, &chain, &mut matches)[0].1 > 10_000);
}

#[test]
fn r11_churn_with_constant_live_data_takes_no_more_memory() {
    let _alone = alone();
    let index = MemoryIndex::default();
    for w in 0..4 {
        index.assign(WorkerId(w), home(w % 2)).unwrap();
    }
    // A prefix that stays, held by all, and turns that come and go below it.
    let trunk = Chain::new(7, 200);
    for w in 0..4 {
        store(&index, WorkerId(w), &trunk.clone().of(w % 2), 0..200);
    }
    const LIVE: usize = 300;
    let mut live = std::collections::VecDeque::new();
    let mut first = None;
    let turns = LIVE * 16;
    for turn in 0..turns {
        let worker = WorkerId(turn as u32 % 4);
        let len = 210 + turn * 37 % 190;
        let chain = trunk.branch(200, turn as u64, len).of(worker.0 % 2);
        store(&index, worker, &chain, 200..len);
        live.push_back((worker, chain, len));
        if live.len() > LIVE {
            let (worker, chain, len) = live.pop_front().unwrap();
            for at in (200..len).rev() {
                assert_eq!(remove(&index, worker, &chain, at..at + 1).removed, 1);
            }
        }
        if turn == 2 * LIVE {
            first = Some((index.stats(), rss()));
        }
    }
    let (first, resident) = first.unwrap();
    let last = index.stats();
    assert!(last.entries < first.entries * 5 / 4);
    assert!(last.bytes < first.bytes * 5 / 4, "{first:?} {last:?}");
    assert!(last.reserved <= first.reserved * 5 / 4, "{first:?} {last:?}");
    assert!(rss() < resident + (8 << 20));
}

#[test]
fn r13_a_prompt_of_240_000_tokens_held_by_100_workers_is_answered_without_allocation() {
    let _alone = alone();
    let index = MemoryIndex::default();
    let chain = Chain::new(3, 15_000);
    for w in 0..100 {
        index.assign(WorkerId(w), home(0)).unwrap();
        store(&index, WorkerId(w), &chain, 0..15_000 - w as usize * 100);
    }
    let mut matches = Matches::default();
    let found = lookup(&index, &chain, &mut matches);
    assert_eq!(found.len(), 100);
    assert!(found.iter().all(|&(w, n)| n == 15_000 - w.0 * 100));
    for spans in [false, true] {
        let query = Query { space: SpaceId(0), shape: SHAPE, candidates: None, spans };
        index.lookup(&query, &mut Ready(&chain.digests), &mut matches);
        let counted = allocation_counter::measure(|| {
            index.lookup(&query, &mut Ready(&chain.digests), &mut matches);
        });
        assert_eq!(counted.count_total, 0, "spans: {spans}");
        assert_eq!(matches.members.len(), 100);
    }
}

#[test]
fn a_prompt_that_nobody_holds_is_digested_no_further_than_its_first_block() {
    let _alone = alone();
    let index = MemoryIndex::default();
    index.assign(WorkerId(0), home(0)).unwrap();
    let held = Chain::new(1, 100);
    store(&index, WorkerId(0), &held, 0..100);
    let mut matches = Matches::default();
    let query = Query { space: SpaceId(0), shape: SHAPE, candidates: None, spans: false };
    let mut asked = |chain: &Chain| {
        let mut source = index_support::Counting::new(&chain.digests);
        index.lookup(&query, &mut source, &mut matches);
        source.asked
    };
    assert_eq!(asked(&Chain::new(2, 2_048)), 1);
    assert_eq!(asked(&held.branch(33, 5, 2_048)), 48, "whole steps of 16");
    assert_eq!(asked(&held), 100);
}

#[test]
fn a_worker_with_a_million_blocks_is_gone_with_one_call() {
    let _alone = alone();
    let index = MemoryIndex::default();
    index.assign(WorkerId(0), home(0)).unwrap();
    index.assign(WorkerId(1), home(0)).unwrap();
    let chains: Vec<Chain> = (0..1_000).map(|seed| Chain::new(seed, 1_000)).collect();
    for chain in &chains {
        store(&index, WorkerId(0), chain, 0..1_000);
    }
    store(&index, WorkerId(1), &chains[0], 0..10);
    let mut matches = Matches::default();
    index.apply(WorkerId(0), &[Change::Clear { tier: None }]).unwrap();
    assert_eq!(lookup(&index, &chains[0], &mut matches), [(WorkerId(1), 10)]);
    assert!(chains[1..].iter().all(|c| lookup(&index, c, &mut matches).is_empty()));
    // What it stores again is all it holds, whether swept by now or not.
    store(&index, WorkerId(0), &chains[999], 0..5);
    assert_eq!(lookup(&index, &chains[999], &mut matches), [(WorkerId(0), 5)]);
    index.remove(WorkerId(0));
    assert!(lookup(&index, &chains[999], &mut matches).is_empty());
    let stats = index.stats();
    assert_eq!((stats.blocks, stats.entries), (10, 10));
}

#[test]
fn two_thousand_workers_are_told_apart() {
    let _alone = alone();
    let index = MemoryIndex::default();
    let trunk = Chain::new(1, 64);
    for w in 0..2_000 {
        index.assign(WorkerId(w), home(w % 3)).unwrap();
        let chain = trunk.branch(40, u64::from(w % 50), 64).of(w % 3);
        store(&index, WorkerId(w), &chain, 0..1 + w as usize % 64);
    }
    let mut matches = Matches::default();
    for branch in 0..50 {
        let chain = trunk.branch(40, branch, 64);
        let found = lookup(&index, &chain, &mut matches);
        assert_eq!(found.len(), 2_000);
        for (w, n) in found {
            let held = 1 + w.0 % 64;
            let same = u64::from(w.0 % 50) == branch;
            assert_eq!(n, if same { held } else { held.min(40) });
        }
    }
    for w in 0..2_000 {
        index.remove(WorkerId(w));
    }
    assert_eq!(index.stats().blocks, 0);
}
