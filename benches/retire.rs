//! What it costs to retire a worker, by how much it holds, beside taking its blocks away one by one.
//!
//! `cargo bench --bench retire --features conformance`. Retiring clears a word for each of the
//! worker's slots, so a worker of a million blocks goes as fast as one of a thousand; before anything is
//! timed, a query right after is checked to see nothing of it. Figures are to be read as ratios
//! within one run.

use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use kvscout::block::{Group, Tier, WorkerId};
use kvscout::index::{Change, Matches, MemoryIndex};

#[path = "../tests/index_support/mod.rs"]
mod index_support;
use index_support::{Chain, QUERY, Ready, home, store_of};

const WORKER: WorkerId = WorkerId(0);
/// Another one holds the same, so that the runs stay and have to be swept.
const OTHER: WorkerId = WorkerId(1);
const CHAIN: usize = 1024;

fn chains(blocks: usize) -> Vec<Chain> {
    (1..=blocks.div_ceil(CHAIN) as u64).map(|seed| Chain::new(seed, CHAIN.min(blocks))).collect()
}

fn filled(chains: &[Chain]) -> MemoryIndex {
    let index = MemoryIndex::default();
    for worker in [WORKER, OTHER] {
        index.assign(worker, home(0)).expect("a new worker");
        for chain in chains {
            let blocks = chain.blocks(0..chain.names.len());
            let store = Change::Store(store_of(chain, 0, &blocks));
            index.apply(worker, &[store]).expect("it has a home");
        }
    }
    index
}

fn holders(index: &MemoryIndex, chain: &Chain) -> usize {
    let mut matches = Matches::default();
    index.lookup(&QUERY, &mut Ready(&chain.digests), &mut matches);
    matches.members.len()
}

fn check(chains: &[Chain]) {
    let index = filled(chains);
    assert_eq!(holders(&index, &chains[0]), 2);
    index.remove(WORKER);
    assert!(chains.iter().all(|chain| holders(&index, chain) == 1), "only the other one is left");
    assert_eq!(index.stats().entries as usize, chains.len() * chains[0].names.len());
}

fn retire(c: &mut Criterion) {
    let mut group = c.benchmark_group("retire");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for blocks in [1 << 10, 1 << 15, 1 << 20] {
        let chains = chains(blocks);
        check(&chains);
        group.bench_with_input(BenchmarkId::new("remove", blocks), &chains, |b, chains| {
            let retire = |index: &mut MemoryIndex| index.remove(WORKER);
            b.iter_batched_ref(|| filled(chains), retire, BatchSize::PerIteration);
        });
        group.bench_with_input(BenchmarkId::new("one by one", blocks), &chains, |b, chains| {
            let evict = |index: &mut MemoryIndex| {
                for chain in chains {
                    let (group, tier) = (Group(0), Tier::Gpu);
                    let gone = Change::Remove { group, tier, names: &chain.names };
                    index.apply(WORKER, &[gone]).expect("it has a home");
                }
            };
            b.iter_batched_ref(|| filled(chains), evict, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, retire);
criterion_main!(benches);
