//! Decoding a batch beside rmp-serde filling owned structs from the same bytes.
//!
//! The batch is what a busy step sends: 32 stores of one 16-token block each, 32 removals of one
//! hash each. `blocks/s` counts each block that was named, so 64 for a batch.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvscout::event::{Batch, Event, ExtraKeys, Limits};
use serde::{Deserialize, Serialize};

const STORES: u64 = 32;
const BLOCK_SIZE: u64 = 16;

/// What a caller needs of an event; the tokens of all stores follow each other in one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Summary {
    stored: bool,
    name: u64,
    parent: Option<u64>,
    tokens: usize,
    block_size: u32,
    gpu: bool,
    group: u32,
}

#[derive(Default, Debug, PartialEq, Eq)]
struct Out {
    events: Vec<Summary>,
    tokens: Vec<u32>,
}

impl Out {
    fn clear(&mut self) {
        self.events.clear();
        self.tokens.clear();
    }
}

/// All fields of all maps: one struct, since a tagged enum would be buffered first.
#[derive(Deserialize)]
struct Owned {
    #[serde(rename = "type")]
    tag: String,
    block_hashes: Vec<u64>,
    #[serde(default)]
    parent_block_hash: Option<u64>,
    #[serde(default)]
    token_ids: Vec<u32>,
    #[serde(default)]
    block_size: u32,
    #[serde(default)]
    lora_name: Option<String>,
    #[serde(default)]
    medium: Option<String>,
    #[serde(default)]
    extra_keys: Option<Vec<Option<Vec<String>>>>,
    #[serde(default)]
    group_idx: u32,
}

/// A number that looks like a hash, the same in every run.
fn hash(n: u64) -> u64 {
    n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 63
}

/// The fields of vLLM 0.22 to 0.25 in their order.
#[derive(Serialize)]
struct Stored {
    r#type: &'static str,
    block_hashes: [u64; 1],
    parent_block_hash: Option<u64>,
    token_ids: Vec<u64>,
    block_size: u64,
    lora_id: Option<u64>,
    medium: &'static str,
    lora_name: Option<&'static str>,
    extra_keys: [Option<[&'static str; 1]>; 1],
    group_idx: u32,
    kv_cache_spec_kind: &'static str,
}

#[derive(Serialize)]
struct Removed {
    r#type: &'static str,
    block_hashes: [u64; 1],
    medium: &'static str,
    group_idx: u32,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Sent {
    Stored(Stored),
    Removed(Removed),
}

fn batch() -> (f64, Vec<Sent>, u32) {
    let stored = |n| {
        Sent::Stored(Stored {
            r#type: "BlockStored",
            block_hashes: [hash(n)],
            parent_block_hash: Some(hash(n + 1000)),
            token_ids: (0..BLOCK_SIZE).map(|t| hash(n * BLOCK_SIZE + t) % 128_000).collect(),
            block_size: BLOCK_SIZE,
            lora_id: None,
            medium: "GPU",
            lora_name: None,
            extra_keys: [None],
            group_idx: 0,
            kv_cache_spec_kind: "full_attention",
        })
    };
    let removed = |n| {
        Sent::Removed(Removed {
            r#type: "BlockRemoved",
            block_hashes: [hash(n + 500)],
            medium: "GPU",
            group_idx: 0,
        })
    };
    (1_700_000_000.25, (0..STORES).flat_map(|n| [stored(n), removed(n)]).collect(), 0)
}

fn borrowed(payload: &[u8], out: &mut Out) {
    out.clear();
    let batch = Batch::parse(payload, &Limits::default()).unwrap();
    for event in batch.events() {
        match event.unwrap() {
            Event::Stored(stored) => {
                stored.tokens.read_into(&mut out.tokens).unwrap();
                if let ExtraKeys::Listed(listed) = stored.extra_keys {
                    black_box(listed.iter().count());
                }
                let parent = stored.parent.map(|p| p.name().0);
                out.events.extend(stored.names.names().map(|name| Summary {
                    stored: true,
                    name: name.0,
                    parent,
                    tokens: stored.tokens.len(),
                    block_size: stored.block_size,
                    gpu: stored.tier.as_str() == "gpu",
                    group: stored.group.0,
                }));
            }
            Event::Removed(removed) => {
                out.events.extend(removed.names.names().map(|name| Summary {
                    stored: false,
                    name: name.0,
                    parent: None,
                    tokens: 0,
                    block_size: 0,
                    gpu: removed.tier.as_str() == "gpu",
                    group: removed.group.0,
                }));
            }
            Event::Cleared(_) => unreachable!("the batch clears nothing"),
        }
    }
}

fn owned(payload: &[u8], out: &mut Out) {
    out.clear();
    let batch: (f64, Vec<Owned>, Option<u32>) = rmp_serde::from_slice(payload).unwrap();
    for event in &batch.1 {
        out.tokens.extend(&event.token_ids);
        black_box((&event.extra_keys, &event.lora_name));
        out.events.extend(event.block_hashes.iter().map(|name| Summary {
            stored: event.tag == "BlockStored",
            name: *name,
            parent: event.parent_block_hash,
            tokens: event.token_ids.len(),
            block_size: event.block_size,
            gpu: event.medium.as_deref() == Some("GPU"),
            group: event.group_idx,
        }));
    }
}

fn decode(c: &mut Criterion) {
    // vLLM 0.24 and later send maps, earlier versions arrays.
    let maps = rmp_serde::to_vec_named(&batch()).unwrap();
    let arrays = rmp_serde::to_vec(&batch()).unwrap();
    let (mut ours, mut theirs) = (Out::default(), Out::default());
    owned(&maps, &mut theirs);
    assert_eq!(theirs.events.len() as u64, 2 * STORES);
    for payload in [&maps, &arrays] {
        borrowed(payload, &mut ours);
        assert_eq!(ours, theirs);
    }

    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(2 * STORES));
    group.bench_function("maps/kvscout", |b| b.iter(|| borrowed(black_box(&maps), &mut ours)));
    group.bench_function("maps/rmp-serde", |b| b.iter(|| owned(black_box(&maps), &mut theirs)));
    group.bench_function("arrays/kvscout", |b| b.iter(|| borrowed(black_box(&arrays), &mut ours)));
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
