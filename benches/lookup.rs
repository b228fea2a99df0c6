//! What a lookup costs, beside comparing the same digests with a plain array.
//!
//! `cargo bench --bench lookup --features conformance`. Seeded, and checked against the literal
//! reference before anything is timed. Figures are to be read as ratios within one run.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kvscout::block::{Digest, SpaceId, Tier, VocabularyId, WorkerId};
use kvscout::conformance::Reference;
use kvscout::index::{Change, Home, Matches, MemoryIndex, MemoryOptions, Store};

#[path = "../tests/index_support/mod.rs"]
mod index_support;
use index_support::{Chain, QUERY, Ready, home, store, store_of};

/// Workers that hold a trunk and leave it at one of eight places, and one that holds all of it.
fn held(workers: u32, blocks: usize) -> (MemoryIndex, Reference, Chain) {
    let (index, mut reference) = (MemoryIndex::default(), Reference::new(MemoryOptions::default()));
    let chain = Chain::new(1, blocks);
    for w in 0..workers {
        let worker = WorkerId(w);
        let end = (blocks - blocks / 16 * (w as usize % 8)).max(1);
        index.assign(worker, home(0)).expect("a new worker");
        reference.assign(worker, home(0));
        store(&index, worker, &chain, 0..end);
        // The reference takes quadratic time: what a short chain proves is enough.
        if blocks <= 64 && workers <= 64 {
            let blocks = chain.blocks(0..end);
            let store = store_of(&chain, 0, &blocks);
            reference.apply(worker, &[Change::Store(store)]).expect("it has a home");
        }
    }
    (index, reference, chain)
}

fn check() {
    let (index, reference, chain) = held(64, 64);
    let mut matches = Matches::default();
    index.lookup(&QUERY, &mut Ready(&chain.digests), &mut matches);
    let expected = reference.lookup(&QUERY, &mut Ready(&chain.digests));
    assert_eq!(matches.sorted(), expected.sorted());
}

fn lookup(c: &mut Criterion) {
    check();
    let mut group = c.benchmark_group("lookup");
    for (workers, blocks) in
        [(8, 64), (8, 1_024), (64, 64), (64, 1_024), (256, 1_024), (2_000, 256)]
    {
        let (index, _, chain) = held(workers, blocks);
        let mut matches = Matches::default();
        let name = format!("{workers} workers");
        group.bench_function(BenchmarkId::new(name, blocks), |b| {
            b.iter(|| {
                index.lookup(&QUERY, &mut Ready(&chain.digests), &mut matches);
                black_box(matches.members.len())
            });
        });
    }
    let (index, _, _) = held(64, 1_024);
    let miss = Chain::new(2, 2_048);
    let mut matches = Matches::default();
    group.bench_function("miss of 2048", |b| {
        b.iter(|| {
            index.lookup(&QUERY, &mut Ready(&miss.digests), &mut matches);
            black_box(matches.members.len())
        });
    });
    let (ours, theirs) = (Chain::new(1, 1_024), Chain::new(1, 1_024));
    group.bench_function("1024 digests compared one by one, nothing else", |b| {
        b.iter(|| {
            let pairs = black_box(&ours.digests).iter().zip(black_box(&theirs.digests));
            pairs.take_while(|(a, b): &(&Digest, &Digest)| a == b).count()
        });
    });
    group.finish();
}

const OTHER: WorkerId = WorkerId(1_000);

/// Who else is in the index must not matter to a query that does not meet them.
fn company(c: &mut Criterion) {
    let mut group = c.benchmark_group("company");
    type Join = fn(&MemoryIndex, &Chain);
    let cases: [(&str, Join); 4] = [
        ("none", |_, _| ()),
        ("two tiers and unplaced blocks in another space", |index, _| {
            let home = Home { space: SpaceId(1), vocabulary: VocabularyId(9) };
            index.assign(OTHER, home).expect("a new worker");
            in_two_tiers(index, OTHER, &Chain::new(5, 64));
            let elsewhere = Chain::new(6, 64);
            store(index, OTHER, &elsewhere, 32..64);
            assert_eq!(index.stats().unplaced, 32);
        }),
        ("two tiers of another prompt", |index, _| {
            index.assign(OTHER, home(0)).expect("a new worker");
            in_two_tiers(index, OTHER, &Chain::new(5, 64));
        }),
        ("two tiers of this prompt", |index, chain| {
            index.assign(OTHER, home(0)).expect("a new worker");
            in_two_tiers(index, OTHER, chain);
        }),
    ];
    for (name, join) in cases {
        let (index, _, chain) = held(64, 1_024);
        join(&index, &chain);
        let mut matches = Matches::default();
        group.bench_function(name, |b| {
            b.iter(|| {
                index.lookup(&QUERY, &mut Ready(&chain.digests), &mut matches);
                black_box(matches.members.len())
            });
        });
    }
    group.finish();
}

/// A chain on the GPU as far as its half, and on the CPU as a whole.
fn in_two_tiers(index: &MemoryIndex, worker: WorkerId, chain: &Chain) {
    let blocks = chain.blocks(0..chain.digests.len());
    let gpu = store_of(chain, 0, &blocks[..blocks.len() / 2]);
    let cpu = Store { tier: Tier::Cpu, ..store_of(chain, 0, &blocks) };
    index.apply(worker, &[Change::Store(gpu), Change::Store(cpu)]).expect("it has a home");
}

criterion_group!(benches, lookup, company);
criterion_main!(benches);
