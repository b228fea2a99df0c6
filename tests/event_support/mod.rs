//! Events as vLLM 0.33 writes them, as JSON that msgpack is made of.
#![allow(dead_code, reason = "each test binary uses its own part")]

use serde_json::{Value, json};

/// Tokens in a block of these events.
pub(crate) const SIZE: u32 = 4;

pub(crate) fn batch(timestamp: f64, events: &[Value]) -> Vec<u8> {
    rmp_serde::to_vec(&json!([timestamp, events, 0])).unwrap()
}

/// `BlockStored` of plain blocks.
pub(crate) fn stored(hashes: &[u64], parent: Option<u64>, tokens: &[u32]) -> Value {
    json!({
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent,
        "token_ids": tokens, "block_size": SIZE, "lora_id": null, "medium": "GPU",
        "lora_name": null, "extra_keys": vec![Value::Null; hashes.len()], "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    })
}

pub(crate) fn removed(hashes: &[u64], medium: &str) -> Value {
    json!({ "type": "BlockRemoved", "block_hashes": hashes, "medium": medium, "group_idx": 0 })
}

/// An event with other fields.
pub(crate) fn with(mut event: Value, fields: &[(&str, Value)]) -> Value {
    for (name, value) in fields {
        event[*name] = value.clone();
    }
    event
}
