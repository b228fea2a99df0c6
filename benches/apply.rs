//! What changes cost, beside putting the same names into a standard hash map.
//!
//! `cargo bench --bench apply --features conformance`. Seeded, and checked against the literal
//! reference before anything is timed. Figures are to be read as ratios within one run.

use std::collections::HashMap;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kvscout::block::{Group, Tier, WorkerId};
use kvscout::conformance::Reference;
use kvscout::index::{Change, Matches, MemoryIndex, MemoryOptions};

#[path = "../tests/index_support/mod.rs"]
mod index_support;
use index_support::{Chain, QUERY, Ready, home, store_of};

const CHAINS: u64 = 400;
const BLOCKS: usize = 256;
const WORKER: WorkerId = WorkerId(0);

fn chains(first: u64) -> Vec<Chain> {
    let trunk = Chain::new(0, 64);
    (first..first + CHAINS).map(|seed| trunk.branch(64, seed, BLOCKS)).collect()
}

/// A batch that stores the chains from the root in stretches of 32, as a prefill does.
fn fill(index: &MemoryIndex, chains: &[Chain]) {
    for chain in chains {
        let blocks = chain.blocks(0..BLOCKS);
        let store = |at| Change::Store(store_of(chain, at, &blocks[at..at + 32]));
        let changes: Vec<Change<'_>> = (0..BLOCKS).step_by(32).map(store).collect();
        index.apply(WORKER, &changes).expect("it has a home");
    }
}

/// Removes the chains from their ends, one name an event.
fn evict(index: &MemoryIndex, chains: &[Chain]) {
    for chain in chains {
        let one = |names| Change::Remove { group: Group(0), tier: Tier::Gpu, names };
        let changes: Vec<Change<'_>> = chain.names[64..].chunks(1).rev().map(one).collect();
        index.apply(WORKER, &changes).expect("it has a home");
    }
}

fn empty() -> MemoryIndex {
    let index = MemoryIndex::default();
    index.assign(WORKER, home(0)).expect("a new worker");
    index
}

fn check() {
    let chain = Chain::new(9, 40);
    let (index, mut reference) = (empty(), Reference::new(MemoryOptions::default()));
    reference.assign(WORKER, home(0));
    let blocks = chain.blocks(0..40);
    let names = &chain.names[25..];
    let changes = [
        Change::Store(store_of(&chain, 0, &blocks)),
        Change::Remove { group: Group(0), tier: Tier::Gpu, names },
    ];
    assert_eq!(index.apply(WORKER, &changes).ok(), reference.apply(WORKER, &changes));
    let mut matches = Matches::default();
    index.lookup(&QUERY, &mut Ready(&chain.digests), &mut matches);
    let expected = reference.lookup(&QUERY, &mut Ready(&chain.digests));
    assert_eq!(matches.sorted(), expected.sorted());
}

fn apply(c: &mut Criterion) {
    check();
    let mut group = c.benchmark_group("apply");
    group.throughput(Throughput::Elements(CHAINS * BLOCKS as u64));
    let first = chains(1);
    group.bench_function("fill", |b| {
        b.iter_batched_ref(empty, |index| fill(index, &first), BatchSize::PerIteration);
    });
    group.throughput(Throughput::Elements(CHAINS * (BLOCKS as u64 - 64)));
    let full = || {
        let index = empty();
        fill(&index, &first);
        index
    };
    group.bench_function("evict one by one", |b| {
        b.iter_batched_ref(full, |index| evict(index, &first), BatchSize::PerIteration);
    });
    let names: Vec<_> = first.iter().flat_map(|c| &c.names[64..]).collect();
    group.bench_function("a standard hash map of the same names", |b| {
        b.iter(|| {
            let map: HashMap<_, _> = names.iter().zip(0u64..).collect();
            black_box(map.len())
        });
    });
    group.finish();
}

criterion_group!(benches, apply);
criterion_main!(benches);
