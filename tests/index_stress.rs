//! Readers beside writers: what they see while it happens, and what is there afterwards.
//!
//! Under an address sanitizer (the index has one module with `unsafe`):
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --features conformance \
//!     --target x86_64-unknown-linux-gnu --test index_stress --test index_long -- --include-ignored
//! ```
#![cfg(feature = "conformance")]

mod index_support;
mod scope_support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use index_support::{Chain, Ready, SHAPE, home, lookup, mix, remove, store, swept};
use kvscout::block::{Group, SpaceId, Tier, WorkerId};
use kvscout::conformance::Reference;
use kvscout::index::{Change, Matches, MemoryIndex, MemoryOptions, Query, Store};
use scope_support::Raises;

/// What each worker did, to be done again by the reference.
enum Did {
    Store(usize, usize, usize),
    Remove(usize, usize),
    Clear,
}

const WORKERS: u32 = 6;

/// Chains with common beginnings of different lengths.
fn chains() -> Vec<Chain> {
    let trunks: Vec<Chain> = (0..3).map(|seed| Chain::new(seed, 90)).collect();
    let branch = |i: usize| trunks[i % 3].branch([10, 16, 40, 64][i % 4], i as u64, 90);
    (0..12).map(branch).chain(trunks.iter().cloned()).collect()
}

fn run(time: Duration) {
    let index = MemoryIndex::default();
    let chains = chains();
    // Held by nobody else and never changed: must be seen whole at every moment, through all the
    // sweeps and reused records. Its first blocks are those of a chain that everyone changes.
    let steady = WorkerId(99);
    let mut still: Vec<Chain> = (100..104).map(|seed| Chain::new(seed, 70)).collect();
    still.push(chains[12].branch(33, 7, 70));
    index.assign(steady, home(0)).unwrap();
    for chain in &still {
        store(&index, steady, chain, 0..70);
    }
    let (done, lookups) = (AtomicBool::new(false), AtomicU64::new(0));
    let logs: Vec<Vec<Did>> = thread::scope(|scope| {
        let _done = Raises(&done);
        for seed in 0..2u64 {
            let (index, chains, still, done, lookups) = (&index, &chains, &still, &done, &lookups);
            scope.spawn(move || {
                let mut matches = Matches::default();
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    n += 1;
                    let pick = mix(seed << 32 ^ n) as usize;
                    let chain = &still[pick % still.len()];
                    let found = lookup(index, chain, &mut matches);
                    assert!(found.contains(&(steady, 70)), "{found:?}");
                    let query =
                        Query { space: SpaceId(0), shape: SHAPE, candidates: None, spans: true };
                    index.lookup(&query, &mut Ready(&chain.digests), &mut matches);
                    assert!(
                        matches.spans.iter().any(|s| (s.worker, s.start, s.end) == (steady, 0, 70))
                    );
                    for m in lookup(index, &chains[pick % chains.len()], &mut matches) {
                        assert!(m.1 <= 90 && (m.0.0 < WORKERS || m.0 == steady), "{m:?}");
                    }
                }
                lookups.fetch_add(n, Ordering::Relaxed);
            });
        }
        let writers: Vec<_> = (0..WORKERS)
            .map(|w| {
                let (index, chains) = (&index, &chains);
                scope.spawn(move || write(index, chains, WorkerId(w), time))
            })
            .collect();
        writers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    assert!(lookups.load(Ordering::Relaxed) > 0);
    // Workers do not depend on each other when none stores below what only another one stored.
    let mut matches = Matches::default();
    for (w, log) in logs.iter().enumerate() {
        let mut reference = Reference::new(MemoryOptions::default());
        let worker = WorkerId(w as u32);
        reference.assign(worker, home(w as u32 % 2));
        // What came before the last clear does not count.
        let last = log.iter().rposition(|did| matches!(did, Did::Clear)).unwrap_or(0);
        for did in &log[last..] {
            replay(&mut reference, worker, &chains, did);
        }
        for chain in &chains {
            let query =
                Query { space: SpaceId(0), shape: SHAPE, candidates: Some(&[worker]), spans: true };
            index.lookup(&query, &mut Ready(&chain.digests), &mut matches);
            let expected = reference.lookup(&query, &mut Ready(&chain.digests));
            assert_eq!(matches.sorted(), expected.sorted());
        }
    }
    (0..WORKERS).map(WorkerId).chain([steady]).for_each(|w| index.remove(w));
    let stats = swept(&index);
    assert_eq!((stats.blocks, stats.unplaced, stats.entries), (0, 0, 0));
}

fn write(index: &MemoryIndex, chains: &[Chain], worker: WorkerId, time: Duration) -> Vec<Did> {
    let vocabulary = worker.0 % 2;
    let chains: Vec<Chain> = chains.iter().map(|c| c.clone().of(vocabulary)).collect();
    index.assign(worker, home(vocabulary)).unwrap();
    let start = Instant::now();
    let mut log = Vec::new();
    let mut n = 0;
    while start.elapsed() < time {
        n += 1;
        let random = mix(u64::from(worker.0) << 40 ^ n);
        let (which, dice) = (random as usize % chains.len(), random >> 32);
        let chain = &chains[which];
        match dice % 64 {
            0 => {
                index.apply(worker, &[Change::Clear { tier: None }]).unwrap();
                log.clear();
                log.push(Did::Clear);
            }
            1 => {
                index.remove(worker);
                index.assign(worker, home(vocabulary)).unwrap();
                log.clear();
                log.push(Did::Clear);
            }
            2..=25 => {
                // From the root, so that it never hangs on what others hold just now.
                let to = 1 + (dice >> 8) as usize % 90;
                store(index, worker, chain, 0..to);
                log.push(Did::Store(which, 0, to));
            }
            _ => {
                // From the end of a chain, as engines evict.
                let (from, to) = ((dice >> 8) as usize % 90, 90);
                for at in (from..to).rev() {
                    remove(index, worker, chain, at..at + 1);
                }
                log.push(Did::Remove(which, from));
            }
        }
        // A reference that replays it is slow.
        if log.len() > 24 {
            index.apply(worker, &[Change::Clear { tier: None }]).unwrap();
            log.clear();
            log.push(Did::Clear);
        }
    }
    log
}

fn replay(reference: &mut Reference, worker: WorkerId, chains: &[Chain], did: &Did) {
    let (group, tier) = (Group(0), Tier::Gpu);
    let of = |which: usize| chains[which].clone().of(worker.0 % 2);
    match *did {
        Did::Clear => {}
        Did::Store(which, from, to) => {
            let (chain, shape) = (of(which), SHAPE);
            let (parent, blocks) = (chain.parent(from), chain.blocks(from..to));
            let store = Store { shape, group, tier, parent, blocks: &blocks };
            reference.apply(worker, &[Change::Store(store)]).unwrap();
        }
        Did::Remove(which, from) => {
            let mut names = of(which).names[from..].to_vec();
            names.reverse();
            reference.apply(worker, &[Change::Remove { group, tier, names: &names }]).unwrap();
        }
    }
}

#[test]
fn many_threads_leave_what_one_would_have_left() {
    run(Duration::from_millis(1_500));
}

#[test]
#[ignore = "a minute"]
fn many_threads_leave_what_one_would_have_left_for_longer() {
    run(Duration::from_secs(60));
}
