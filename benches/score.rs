//! What a ranking costs, beside sorting as many rows of two fields.
//!
//! `cargo bench --bench score`. Seeded, and checked against what was stored before anything is timed.
//! Figures are to be read as ratios within one run.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kvscout::block::{Prompt, TokenId};
use kvscout::scout::{Options, Ranking, Registration, Request, Scout, Scratch};

#[path = "../tests/scout_support/mod.rs"]
mod scout_support;
use scout_support::{Group, SIZE, payload, tokens};

const MODEL: &str = "m";
const BLOCKS: usize = 512;

/// Blocks of the prompt that worker `n` holds: one of eight lengths.
fn depth(n: usize) -> usize {
    BLOCKS - BLOCKS / 16 * (n % 8)
}

/// Workers that hold a common prompt, and leave it at one of eight places.
fn scout(workers: usize, prompt: &[TokenId], groups: &[Group]) -> Scout {
    let scout = Scout::new(Options::default()).expect("the system gives a random key");
    for n in 0..workers {
        let worker = scout.register(Registration::new(format!("engine-{n}"), MODEL));
        let worker = worker.expect("no worker comes twice");
        let held = &prompt[..depth(n) * SIZE];
        let ingested = scout.apply(worker, 0, &payload(n as u64, held, groups));
        let stored = ingested.expect("it is registered").applied.stored;
        assert_eq!(stored as usize, depth(n) * groups.len());
    }
    scout
}

fn ask<'s>(scout: &Scout, prompt: &[TokenId], scratch: &'s mut Scratch) -> Ranking<'s> {
    let request = Request::new(MODEL, Prompt::new(prompt));
    scout.score(&request, scratch).expect("workers serve the model")
}

fn check(scout: &Scout, workers: usize, prompt: &[TokenId], miss: &[TokenId]) {
    let mut scratch = Scratch::default();
    let ranking = ask(scout, prompt, &mut scratch);
    assert_eq!((ranking.len(), ranking.holders().len()), (workers, workers));
    let mut expected: Vec<_> = (0..workers as u32).map(|n| (depth(n as usize), n)).collect();
    expected.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    for (row, (depth, worker)) in ranking.iter().zip(expected) {
        assert_eq!((row.score.matched_blocks as usize, row.worker.0), (depth, worker));
        assert_eq!(row.score.expected_cached_tokens, Ok((depth * SIZE) as u32));
    }
    assert_eq!(ask(scout, miss, &mut scratch).holders().len(), 0);
}

fn score(c: &mut Criterion) {
    // Longer by a token, so that the last block may count as cached.
    let (prompt, miss) = (tokens(1, BLOCKS * SIZE + 1), tokens(2, 2048 * SIZE));
    let mut group = c.benchmark_group("score");
    let mut scratch = Scratch::default();
    let hybrid = [Group::full(0), Group::window(1, 1024), Group::window(2, 128)];
    let fleets = [("one group", &hybrid[..1]), ("three groups with windows", &hybrid[..])];
    for (name, groups) in fleets {
        for workers in [8, 64, 512] {
            let scout = scout(workers, &prompt, groups);
            check(&scout, workers, &prompt, &miss);
            group.bench_function(BenchmarkId::new(format!("{name}, hit"), workers), |b| {
                b.iter(|| {
                    let holders = ask(&scout, black_box(&prompt), &mut scratch).holders();
                    holders.fold(0.0, |sum, row| sum + row.score.weighted)
                });
            });
            group.bench_function(BenchmarkId::new(format!("{name}, miss"), workers), |b| {
                b.iter(|| {
                    let ranking = ask(&scout, black_box(&miss), &mut scratch);
                    (ranking.len(), ranking.best().map(|row| row.worker))
                });
            });
        }
    }
    let rows: Vec<(f64, u32)> = (0..64).map(|n| (depth(n as usize) as f64, n)).collect();
    group.bench_function("64 rows of two fields sorted, nothing else", |b| {
        b.iter(|| {
            let mut rows = black_box(&rows).clone();
            rows.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            rows
        });
    });
    group.finish();
}

criterion_group!(benches, score);
criterion_main!(benches);
