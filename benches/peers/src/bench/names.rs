//! Exact names: vLLM's own block hashes of a prompt, against SHA-256's bare compressions of the very
//! bytes that vLLM hashes.

use std::hint::black_box;
use std::time::Instant;

use serde_json::json;
use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

use super::{Options, progress};
use crate::clock::{Samples, median, pin, ticks};
use crate::limits::SHA256_START;
use crate::ours::Exact;
use crate::rng::mix;
use crate::row::Row;
use crate::workload::{BLOCK, tokens};

/// The rows of this part.
pub const ROWS: [&str; 2] = ["names-cold", "names-next-turn"];

/// Blocks of the prompt.
const BLOCKS: u64 = 1000;

/// Blocks of the turn before.
const BEFORE: usize = 900;

/// Where the parent's 32 bytes lie in a pickle.
const PARENT: std::ops::Range<usize> = 13..45;

/// Measures the rows that are wanted.
pub fn rows(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    if options.wants(ROWS[0]) {
        rows.push(cold(options));
    }
    if options.wants(ROWS[1]) {
        rows.push(next_turn(options));
    }
    rows
}

fn cold(options: &Options) -> Row {
    progress("exact names");
    pin(1);
    let tokens: Vec<u32> = (0..BLOCKS).flat_map(|n| tokens(mix(n))).collect();
    let mut pickles: Vec<Vec<u8>> = tokens.chunks_exact(BLOCK).map(pickle).collect();
    let mut padded: Vec<Vec<[u8; 64]>> = pickles.iter().map(|pickle| padded(pickle)).collect();
    let exact = Exact::new();
    let root = exact.root();

    let mut all = [const { Vec::new() }; 3];
    let [ours, floor, one_shot] = &mut all;
    exact.names(&tokens, |name| ours.push(name));
    compressions(&mut padded, root, |hash| floor.push(last_word(hash)));
    digests(&mut pickles, root, |hash| one_shot.push(last_word(hash)));
    if ours.len() as u64 != BLOCKS || ours != floor || ours != one_shot {
        return Row::failed(ROWS[0], "the bare chain does not hash the bytes that vLLM hashes");
    }

    let mut times = [const { Vec::new() }; 3];
    for _ in 0..options.reps {
        times[0].push(time(options.budget(), || {
            exact.names(black_box(&tokens), |name| {
                black_box(name);
            });
        }));
        times[1].push(time(options.budget(), || {
            compressions(&mut padded, root, |hash| {
                black_box(hash);
            });
        }));
        times[2].push(time(options.budget(), || {
            digests(&mut pickles, root, |hash| {
                black_box(hash);
            });
        }));
    }
    let [ours, floor, one_shot] = times;
    let detail = json!({
        "blocks": BLOCKS, "ours": ours, "compressions": floor, "sha2_one_shot": one_shot,
    });
    Row::new(ROWS[0], median(&ours), median(&floor), "SHA-256", detail)
}

/// A prompt of which the first blocks were hashed for the turn before, against one hashed anew.
fn next_turn(options: &Options) -> Row {
    progress("exact names of a next turn");
    pin(1);
    let tokens: Vec<u32> = (0..BLOCKS).flat_map(|n| tokens(mix(n))).collect();
    let exact = Exact::new();
    let (mut cold, mut remembered) = (Vec::new(), Vec::new());
    exact.names(&tokens, |name| cold.push(name));
    exact.turn_after(&tokens[..BEFORE * BLOCK]).names(&tokens, |name| remembered.push(name));
    if cold != remembered {
        return Row::failed(ROWS[1], "a remembered chain has other names");
    }
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..options.reps {
        // What a next turn adds is remembered too, so each measured one needs a memory of its own.
        let mut turns: Vec<_> =
            (0..256).map(|_| exact.turn_after(&tokens[..BEFORE * BLOCK])).collect();
        times[0].push(time_each(&mut turns, |turn| {
            turn.names(black_box(&tokens), |name| {
                black_box(name);
            });
        }));
        times[1].push(time(options.budget(), || {
            exact.names(black_box(&tokens), |name| {
                black_box(name);
            });
        }));
    }
    let [ours, floor] = times;
    let detail = json!({ "blocks": BLOCKS, "before": BEFORE, "ours": ours, "cold": floor });
    Row::new(ROWS[1], median(&ours), median(&floor), "cold", detail)
}

/// The floor: SHA-256's compressions of each pickle, padded beforehand, after the hash before was
/// put into it.
fn compressions(padded: &mut [Vec<[u8; 64]>], root: [u8; 32], mut sink: impl FnMut(&[u8; 32])) {
    let mut hash = root;
    for blocks in padded {
        blocks[0][PARENT].copy_from_slice(&hash);
        let mut state = SHA256_START;
        compress256(&mut state, blocks);
        for (bytes, word) in hash.chunks_exact_mut(4).zip(state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        sink(&hash);
    }
}

/// The same through the hash function as its crate offers it.
fn digests(pickles: &mut [Vec<u8>], root: [u8; 32], mut sink: impl FnMut(&[u8; 32])) {
    let mut hash = root;
    for pickle in pickles {
        pickle[PARENT].copy_from_slice(&hash);
        hash = Sha256::digest(pickle).into();
        sink(&hash);
    }
}

/// A message with its padding (FIPS 180-4, section 5.1.1).
fn padded(message: &[u8]) -> Vec<[u8; 64]> {
    let mut bytes = message.to_vec();
    bytes.push(0x80);
    bytes.resize((bytes.len() + 8).next_multiple_of(64) - 8, 0);
    bytes.extend((message.len() as u64 * 8).to_be_bytes());
    bytes.as_chunks().0.to_vec()
}

fn last_word(hash: &[u8; 32]) -> u64 {
    hash[24..].iter().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// What CPython's pickler writes, under protocol 5, for `(parent, tokens, None)`.
fn pickle(tokens: &[u32]) -> Vec<u8> {
    let mut body = vec![b'C', 32];
    body.extend([0; 32]);
    body.extend([0x94, b'(']);
    for &token in tokens {
        match token {
            0..=0xff => body.extend([b'K', token as u8]),
            0x100..=0xffff => {
                body.push(b'M');
                body.extend((token as u16).to_le_bytes());
            }
            _ => {
                body.push(b'J');
                body.extend(token.to_le_bytes());
            }
        }
    }
    body.extend([b't', 0x94, b'N', 0x87, 0x94, b'.']);
    let mut bytes = vec![0x80, 5, 0x95];
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// One repetition: p50 in nanoseconds.
fn time(budget: u128, mut operation: impl FnMut()) -> f64 {
    let mut samples = Samples::with_capacity(1 << 14);
    let start = Instant::now();
    while samples.len() < 64 || start.elapsed().as_millis() < budget {
        let before = ticks();
        operation();
        samples.push(before, ticks());
    }
    samples.quantile(0.5)
}

/// The same, once on each of these.
fn time_each<T>(on: &mut [T], mut operation: impl FnMut(&mut T)) -> f64 {
    let mut samples = Samples::with_capacity(on.len());
    for one in on {
        let before = ticks();
        operation(one);
        samples.push(before, ticks());
    }
    samples.quantile(0.5)
}
