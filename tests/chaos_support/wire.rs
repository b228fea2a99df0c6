//! KV events as vLLM 0.33 writes them.

use std::sync::Arc;

use serde::Serialize;

use super::prompts::{Block, SIZE};

/// One event.
pub(crate) enum Event {
    /// Consecutive blocks of one request became full.
    Stored(Vec<Arc<Block>>),
    /// A cached block is used for something else; one event for each block.
    Removed(u64),
    /// The whole cache was forgotten.
    Cleared,
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum Written {
    BlockStored {
        block_hashes: Vec<u64>,
        parent_block_hash: Option<u64>,
        token_ids: Vec<u32>,
        block_size: usize,
        lora_id: (),
        medium: &'static str,
        lora_name: (),
        extra_keys: Vec<()>,
        group_idx: u32,
        kv_cache_spec_kind: &'static str,
    },
    BlockRemoved {
        block_hashes: [u64; 1],
        medium: &'static str,
        group_idx: u32,
    },
    AllBlocksCleared {},
}

/// The payload of one message.
pub(crate) fn batch(timestamp: f64, events: &[Event]) -> Vec<u8> {
    let events: Vec<Written> = events.iter().map(written).collect();
    rmp_serde::to_vec_named(&(timestamp, events, 0)).unwrap()
}

fn written(event: &Event) -> Written {
    match event {
        Event::Stored(blocks) => Written::BlockStored {
            block_hashes: blocks.iter().map(|block| block.name).collect(),
            parent_block_hash: blocks[0].parent,
            token_ids: blocks.iter().flat_map(|block| block.tokens).collect(),
            block_size: SIZE,
            lora_id: (),
            medium: "GPU",
            lora_name: (),
            extra_keys: vec![(); blocks.len()],
            group_idx: 0,
            kv_cache_spec_kind: "full_attention",
        },
        Event::Removed(name) => {
            Written::BlockRemoved { block_hashes: [*name], medium: "GPU", group_idx: 0 }
        }
        Event::Cleared => Written::AllBlocksCleared {},
    }
}
