//! The two flows as a router has them, beside each other: from the bytes of a batch to the changed
//! index, and from token ids to ranked workers.
//!
//! `cargo bench --bench end_to_end`. Seeded, and checked against what was stored before anything is
//! timed. Figures are to be read as ratios within one run.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvscout::block::{Prompt, TokenId, WorkerId};
use kvscout::scout::{Options, Registration, Request, Scout, Scratch};

#[path = "../tests/scout_support/mod.rs"]
mod scout_support;
use scout_support::{Group, SIZE, eviction, payload, tokens};

const MODEL: &str = "m";
const WORKERS: usize = 64;
/// Blocks of each prompt; a batch stores one prompt, the next evicts it.
const BLOCKS: usize = 64;
/// Prompts that every worker holds from the start.
const PROMPTS: u64 = 32;
/// Many engines with small batches: a block stored, then evicted.
const MANY_WORKERS: usize = 2000;

struct Fleet {
    scout: Scout,
    workers: Vec<(WorkerId, u64)>,
}

impl Fleet {
    fn new(count: usize, prompts: &[Vec<TokenId>]) -> Fleet {
        let scout = Scout::new(Options::default()).expect("the system gives a random key");
        let register = |n| scout.register(Registration::new(format!("engine-{n}"), MODEL));
        let workers =
            (0..count).map(|n| (register(n).expect("no worker comes twice"), 0)).collect();
        let mut fleet = Fleet { scout, workers };
        for n in 0..count {
            for (life, prompt) in (0..).zip(prompts) {
                fleet.apply(n, &payload(life, &prompt[..BLOCKS * SIZE], &[Group::full(0)]));
            }
        }
        fleet
    }

    /// The next batch of a worker; how many copies came and went.
    fn apply(&mut self, n: usize, payload: &[u8]) -> u64 {
        let (worker, seq) = &mut self.workers[n];
        let ingested = self.scout.apply(*worker, *seq, payload).expect("it is registered");
        *seq += 1;
        ingested.applied.stored + ingested.applied.removed
    }

    /// How many workers hold something of a prompt, and how much the best one has.
    fn ask(&self, prompt: &[TokenId], scratch: &mut Scratch) -> (usize, u32) {
        let request = Request::new(MODEL, Prompt::new(prompt));
        let ranking = self.scout.score(&request, scratch).expect("workers serve the model");
        let best = ranking.best().expect("it has workers").score.matched_blocks;
        (ranking.holders().filter(|row| black_box(row.score.weighted) > 0.0).count(), best)
    }
}

fn end_to_end(c: &mut Criterion) {
    let prompts: Vec<_> = (0..PROMPTS).map(|seed| tokens(seed, BLOCKS * SIZE + 1)).collect();
    let (new, nobodys) = (tokens(PROMPTS, BLOCKS * SIZE), tokens(PROMPTS + 1, BLOCKS * SIZE));
    let mut fleet = Fleet::new(WORKERS, &prompts);
    let batches = [payload(PROMPTS, &new, &[Group::full(0)]), eviction(PROMPTS, BLOCKS)];
    let mut scratch = Scratch::default();
    for batch in &batches {
        assert_eq!(fleet.apply(0, batch), BLOCKS as u64, "every block that is named");
        let held = fleet.ask(&new, &mut scratch);
        assert_eq!(held, if batch == &batches[0] { (1, BLOCKS as u32) } else { (0, 0) });
    }
    for prompt in &prompts {
        assert_eq!(fleet.ask(prompt, &mut scratch), (WORKERS, BLOCKS as u32));
    }

    let mut group = c.benchmark_group("end_to_end");
    group.throughput(Throughput::Elements(2 * BLOCKS as u64));
    let mut turn = 0;
    group.bench_function("wire to applied: a store and its eviction", |b| {
        b.iter(|| {
            turn += 1;
            batches.iter().map(|batch| fleet.apply(turn % WORKERS, batch)).sum::<u64>()
        });
    });
    group.throughput(Throughput::Elements(BLOCKS as u64));
    group.bench_function("tokens to ranked workers: all hold the prompt", |b| {
        b.iter(|| {
            turn += 1;
            fleet.ask(black_box(&prompts[turn % prompts.len()]), &mut scratch)
        });
    });
    group.bench_function("tokens to ranked workers: nobody holds the prompt", |b| {
        b.iter(|| fleet.ask(black_box(&nobodys), &mut scratch));
    });
    let small = [payload(0, &prompts[0][..SIZE], &[Group::full(0)]), eviction(0, 1)];
    let mut many = Fleet::new(MANY_WORKERS, &[]);
    let mut each = || {
        (0..MANY_WORKERS)
            .flat_map(|n| small.iter().map(move |batch| (n, batch)))
            .map(|(n, batch)| many.apply(n, batch))
            .sum::<u64>()
    };
    assert_eq!(each(), 2 * MANY_WORKERS as u64, "no batch is lost");
    group.throughput(Throughput::Elements(2 * MANY_WORKERS as u64));
    group.bench_function("wire to applied: small batches of 2,000 workers in turn", |b| {
        b.iter(&mut each)
    });
    group.finish();
}

criterion_group!(benches, end_to_end);
criterion_main!(benches);
