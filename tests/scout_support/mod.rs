//! Batches as vLLM 0.33 writes them, of made-up prompts.
#![allow(dead_code, unreachable_pub)]

use kvscout::block::TokenId;
use serde_json::{Value, json};

/// Tokens in a block.
pub const SIZE: usize = 16;

/// A cache group, as its events describe it.
#[derive(Clone, Copy)]
pub struct Group {
    number: u32,
    window: Option<u32>,
}

impl Group {
    pub fn full(number: u32) -> Group {
        Group { number, window: None }
    }

    /// Sliding-window attention over so many tokens.
    pub fn window(number: u32, tokens: u32) -> Group {
        Group { number, window: Some(tokens) }
    }
}

/// SplitMix64's output function.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A prompt.
pub fn tokens(seed: u64, len: usize) -> Vec<TokenId> {
    (0..len as u64).map(|at| (mix(mix(seed) ^ at) >> 40) as TokenId).collect()
}

/// What an engine calls a block: `life` tells those of different chains apart.
fn names(life: u64, blocks: usize) -> Vec<u64> {
    (0..blocks as u64).map(|at| mix(mix(!life) ^ at)).collect()
}

fn batch(events: &[Value]) -> Vec<u8> {
    rmp_serde::to_vec(&json!([1.0, events, 0])).expect("plain values can be written")
}

/// A batch that stores a prompt from its beginning, in each of the groups.
pub fn payload(life: u64, tokens: &[TokenId], groups: &[Group]) -> Vec<u8> {
    let names = names(life, tokens.len() / SIZE);
    let event = |group: &Group| {
        json!({
            "type": "BlockStored", "block_hashes": names, "parent_block_hash": null,
            "token_ids": tokens, "block_size": SIZE, "lora_id": null, "medium": "GPU",
            "lora_name": null, "extra_keys": vec![Value::Null; names.len()],
            "group_idx": group.number,
            "kv_cache_spec_kind": group.window.map_or("full_attention", |_| "sliding_window"),
            "kv_cache_spec_sliding_window": group.window,
        })
    };
    batch(&groups.iter().map(event).collect::<Vec<_>>())
}

/// A batch that evicts the blocks of group 0 that [`payload`] stored, the last one first.
pub fn eviction(life: u64, blocks: usize) -> Vec<u8> {
    let event = |name| json!({ "type": "BlockRemoved", "block_hashes": [name], "medium": "GPU", "group_idx": 0 });
    batch(&names(life, blocks).into_iter().rev().map(event).collect::<Vec<_>>())
}
