//! KV events as vLLM 0.33.0 writes them (msgspec's msgpack), byte for byte.

use rmp::Marker;
use rmp::encode::{self, ValueWriteError};

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// Blocks of one request became full.
    Stored(Stored),
    /// A cached block is used for something else; one event for each block.
    Removed {
        /// What the block was called.
        hash: u64,
    },
    /// The whole cache was forgotten.
    #[cfg_attr(not(test), expect(dead_code, reason = "no request of the demo resets an engine"))]
    Cleared,
}

/// A `BlockStored` event of the GPU pool.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) hashes: Vec<u64>,
    pub(super) parent: Option<u64>,
    pub(super) token_ids: Vec<u32>,
    pub(super) block_size: u32,
    /// Id and name of the adapter.
    pub(super) lora: Option<(u32, String)>,
    /// Of each block.
    pub(super) extra_keys: Vec<Vec<String>>,
    /// What kind of attention the group has; engines say so, bare event structs need not.
    pub(super) kind: Option<&'static str>,
}

/// The payload of one message: `[timestamp, events, rank]`.
pub(super) fn batch(timestamp: f64, events: &[Event], rank: u32) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to memory does not fail.
    write(&mut out, timestamp, events, rank).expect("writing to memory");
    out
}

type Result<T = ()> = std::result::Result<T, ValueWriteError>;

fn write(out: &mut Vec<u8>, timestamp: f64, events: &[Event], rank: u32) -> Result {
    encode::write_array_len(out, 3)?;
    encode::write_f64(out, timestamp)?;
    encode::write_array_len(out, events.len() as u32)?;
    for event in events {
        write_event(out, event)?;
    }
    uint(out, rank)
}

fn write_event(out: &mut Vec<u8>, event: &Event) -> Result {
    match event {
        Event::Stored(stored) => write_stored(out, stored),
        Event::Removed { hash } => {
            encode::write_map_len(out, 4)?;
            field(out, "type", "BlockRemoved")?;
            key(out, "block_hashes")?;
            uints(out, &[*hash])?;
            field(out, "medium", "GPU")?;
            key(out, "group_idx")?;
            uint(out, 0_u32)
        }
        Event::Cleared => {
            encode::write_map_len(out, 1)?;
            field(out, "type", "AllBlocksCleared")
        }
    }
}

fn write_stored(out: &mut Vec<u8>, stored: &Stored) -> Result {
    // The struct has more than 15 fields, so msgspec reserves the long header before it knows how
    // many are left out.
    out.push(Marker::Map16.to_u8());
    out.extend(if stored.kind.is_some() { [0, 11] } else { [0, 10] });
    field(out, "type", "BlockStored")?;
    key(out, "block_hashes")?;
    uints(out, &stored.hashes)?;
    key(out, "parent_block_hash")?;
    or_nil(out, stored.parent, uint)?;
    key(out, "token_ids")?;
    uints(out, &stored.token_ids)?;
    key(out, "block_size")?;
    uint(out, stored.block_size)?;
    key(out, "lora_id")?;
    or_nil(out, stored.lora.as_ref(), |out, (id, _)| uint(out, *id))?;
    field(out, "medium", "GPU")?;
    key(out, "lora_name")?;
    or_nil(out, stored.lora.as_ref(), |out, (_, name)| encode::write_str(out, name))?;
    key(out, "extra_keys")?;
    encode::write_array_len(out, stored.extra_keys.len() as u32)?;
    for keys in &stored.extra_keys {
        or_nil(out, Some(keys).filter(|keys| !keys.is_empty()), |out, keys| {
            encode::write_array_len(out, keys.len() as u32)?;
            keys.iter().try_for_each(|text| encode::write_str(out, text))
        })?;
    }
    key(out, "group_idx")?;
    uint(out, 0_u32)?;
    match stored.kind {
        Some(kind) => field(out, "kv_cache_spec_kind", kind),
        None => Ok(()),
    }
}

fn key(out: &mut Vec<u8>, name: &str) -> Result {
    encode::write_str(out, name)
}

fn field(out: &mut Vec<u8>, name: &str, text: &str) -> Result {
    key(out, name)?;
    encode::write_str(out, text)
}

fn uint(out: &mut Vec<u8>, n: impl Into<u64>) -> Result {
    encode::write_uint(out, n.into())?;
    Ok(())
}

fn uints<T: Copy + Into<u64>>(out: &mut Vec<u8>, items: &[T]) -> Result {
    encode::write_array_len(out, items.len() as u32)?;
    items.iter().try_for_each(|&n| uint(out, n))
}

fn or_nil<T>(
    out: &mut Vec<u8>,
    value: Option<T>,
    write: impl FnOnce(&mut Vec<u8>, T) -> Result,
) -> Result {
    match value {
        Some(value) => write(out, value),
        None => {
            out.push(Marker::Null.to_u8());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const RECORDING: &str = include_str!("../../../../tests/vectors/wire-0.33.0.json");

    /// A payload as vLLM 0.33.0 sent it, in hex.
    fn recorded(name: &str) -> String {
        let recording: Value = serde_json::from_str(RECORDING).unwrap();
        let live = recording["runs"][0]["live"].as_array().unwrap();
        let found = live.iter().find(|message| message["name"] == name).unwrap();
        found["frames"][2].as_str().unwrap().to_owned()
    }

    fn ours(events: &[Event]) -> String {
        let payload = batch(1_700_000_000.25, events, 0);
        payload.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn stored(hashes: &[u64], parent: Option<u64>, token_ids: &[u32]) -> Event {
        Event::Stored(Stored {
            hashes: hashes.to_vec(),
            parent,
            token_ids: token_ids.to_vec(),
            block_size: 4,
            lora: None,
            extra_keys: vec![Vec::new(); hashes.len()],
            kind: None,
        })
    }

    const A: u64 = 0x1819_1a1b_1c1d_1e1f;
    const B: u64 = 0xe7e6_e5e4_e3e2_e1e0;

    #[test]
    fn every_kind_of_event_has_the_bytes_of_vllm() {
        let first = stored(&[A], None, &[1, 2, 3, 4]);
        assert_eq!(ours(&[first]), recorded("stored-int-first-block"));
        assert_eq!(ours(&[Event::Removed { hash: A }]), recorded("removed-int"));
        assert_eq!(ours(&[Event::Cleared]), recorded("cleared"));
        let mixed = [
            Event::Removed { hash: B },
            stored(&[B], Some(A), &[5, 6, 7, 8]),
            Event::Removed { hash: 1 },
            Event::Cleared,
        ];
        assert_eq!(ours(&mixed), recorded("mixed-batch"));
    }

    #[test]
    fn integers_of_every_width_have_the_bytes_of_vllm() {
        let parent = Some(0x8080_8080_8080_8080);
        let event = stored(&[A, B], parent, &[0, 127, 128, 255, 256, 65535, 65536, 0]);
        // The recorded event ends with token 2^32, which no vocabulary has.
        let token = ("cf0000000100000000aa", "00aa");
        let recorded = recorded("stored-int-two-blocks-with-parent");
        assert_eq!(ours(&[event]), recorded.replacen(token.0, token.1, 1));
    }

    #[test]
    fn an_adapter_has_the_bytes_of_vllm() {
        let Event::Stored(plain) = stored(&[A], None, &[1, 2, 3, 4]) else { unreachable!() };
        let lora = Some((7, "sql-lora".to_owned()));
        let event = Stored { lora, extra_keys: vec![vec!["sql-lora".to_owned()]], ..plain };
        assert_eq!(ours(&[Event::Stored(event)]), recorded("lora"));
    }
}
