//! What a block hash costs, beside the bare hash function over the same number of bytes.
//!
//! `cargo bench --bench hash`. Figures are to be read as ratios within one run: `sha256 chain` to
//! `SHA-256 alone` is what the encoding adds.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use kvscout::block::{BlockSize, Digest, Prompt, Shape};
use kvscout::hash::content::DigestKey;
use kvscout::hash::sglang;
use kvscout::hash::vllm::{Algorithm, ChainMemory, Contract, Root, Version};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::hint::black_box;
use xxhash_rust::xxh3::xxh3_128;

const BLOCKS: usize = 1000;
const SIZE: usize = 16;

/// The tokens of the vectors' formula, as many as `BLOCKS` hold.
fn tokens() -> Vec<u32> {
    (0..(BLOCKS * SIZE) as u32).map(|i| (i * 7919 + 13) % 151_936).collect()
}

fn contract(algorithm: Algorithm) -> Contract {
    Contract::new(Version::NEWEST, algorithm, Root::Seed("0")).expect("these have a root hash")
}

/// Stops unless the chain gives the hashes that vLLM gave for the same tokens.
fn check_against_vllm(algorithm: Algorithm, tokens: &[u32]) {
    let document: Value =
        serde_json::from_str(include_str!("../tests/vectors/hash-0.33.0-py3.12.json"))
            .expect("the vectors are JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let run = list(&document["runs"])
        .into_iter()
        .find(|run| run["algo"] == algorithm.as_str() && run["seed"] == "0")
        .expect("every algorithm of this version has vectors");
    let case = list(&run["cases"])
        .into_iter()
        .find(|case| case["name"] == "lcg-bs16")
        .expect("every full run has this case");
    let expected = list(&case["hashes"]);
    let shape = Shape::plain(BlockSize::DEFAULT);
    let mut chain = contract(algorithm).chain(shape, &Prompt::new(tokens)).expect("plain tokens");
    let found: Vec<Value> =
        chain.extend(tokens).take(expected.len()).map(|hash| hash.to_string().into()).collect();
    assert!(!expected.is_empty() && found == expected, "{algorithm} differs from vLLM");
}

/// Bytes of the blocks of a chain as pickle writes them: constants, a parent, and each token.
fn pickled_lengths(tokens: &[u32]) -> Vec<usize> {
    let token = |&id: &u32| match id {
        0..=0xff => 2,
        0x100..=0xffff => 3,
        0x1_0000..=0x7fff_ffff => 5,
        _ => 7,
    };
    tokens.chunks_exact(SIZE).map(|block| 55 + block.iter().map(token).sum::<usize>()).collect()
}

fn bench(c: &mut Criterion) {
    let tokens = tokens();
    let lengths = pickled_lengths(&tokens);
    let buffer = vec![0x5a; lengths.iter().max().copied().unwrap_or(0)];
    let shape = Shape::plain(BlockSize::DEFAULT);

    let mut group = c.benchmark_group("1000 blocks of 16 tokens");
    group.throughput(Throughput::Elements(BLOCKS as u64));
    for algorithm in
        [Algorithm::Sha256, Algorithm::Sha256Cbor, Algorithm::Xxhash, Algorithm::XxhashCbor]
    {
        check_against_vllm(algorithm, &tokens);
        let contract = contract(algorithm);
        group.bench_function(format!("{algorithm} chain"), |b| {
            b.iter_batched_ref(
                || contract.chain(shape, &Prompt::new(&tokens)).expect("plain tokens"),
                |chain| chain.extend(&tokens).last(),
                BatchSize::SmallInput,
            );
        });
    }
    let sha256 = contract(Algorithm::Sha256);
    group.bench_function("sha256 names, 900 of 1000 remembered", |b| {
        b.iter_batched_ref(
            || {
                let memory = ChainMemory::new(DigestKey::from_bytes([7; 16]), 1 << 20);
                let before = Prompt::new(&tokens[..900 * SIZE]);
                memory.names(&sha256, shape, &before).expect("plain tokens").for_each(drop);
                memory
            },
            |memory| {
                let names = memory.names(&sha256, shape, &Prompt::new(&tokens));
                names.expect("plain tokens").last()
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("SHA-256 alone", |b| {
        b.iter(|| {
            lengths.iter().fold(0, |sum, &n| sum ^ Sha256::digest(black_box(&buffer[..n]))[0])
        });
    });
    group.bench_function("XXH3-128 alone", |b| {
        b.iter(|| lengths.iter().fold(0, |sum, &n| sum ^ xxh3_128(black_box(&buffer[..n]))));
    });
    group.bench_function("SGLang pages", |b| {
        b.iter(|| sglang::pages(black_box(&tokens), BlockSize::DEFAULT, None).last());
    });

    let key = DigestKey::from_bytes([7; 16]);
    group.bench_function("content digests, one by one", |b| {
        b.iter(|| {
            let blocks = black_box(&tokens).chunks_exact(SIZE);
            blocks.fold(0, |sum, block| sum ^ key.digest(block, &[], []).0)
        });
    });
    let mut digests = [Digest(0); 32];
    group.bench_function("content digests, 32 at a time", |b| {
        b.iter(|| {
            let stretches = black_box(&tokens).chunks(32 * SIZE);
            stretches.fold(0, |sum, stretch| {
                let digests = &mut digests[..stretch.len() / SIZE];
                key.plain(stretch, SIZE, digests);
                digests.iter().fold(sum, |sum, digest| sum ^ digest.0)
            })
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
