//! What real engines sent decodes to what they meant.

mod wire_support;

use std::io::Cursor;

use kvscout::event::{Batch, Limits};
use rmp_serde::Deserializer;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use wire_support::{Recorded, STORED, all, drive, engine, parse, render, sglang, walk, wire};

/// What decoding should give for an event as msgspec decoded it: an array or a map.
fn expected(event: &Value) -> Value {
    const REMOVED: [&str; 3] = ["block_hashes", "medium", "group_idx"];

    let tag = event.get("type").unwrap_or(&event[0]).as_str().unwrap();
    let field = |name: &str| match event {
        Value::Array(values) => {
            let names = if tag == "BlockStored" { &STORED[..] } else { &REMOVED };
            let position = names.iter().position(|n| *n == name);
            // The first value is the type.
            position.and_then(|p| values.get(p + 1)).cloned().unwrap_or(Value::Null)
        }
        map => map.get(name).cloned().unwrap_or(Value::Null),
    };
    let tier = || match (field("medium").as_str(), field("locality").as_str()) {
        (_, Some("REMOTE")) => "remote",
        (None | Some("GPU"), _) => "gpu",
        (Some("CPU" | "CPU_PINNED"), _) => "cpu",
        other => panic!("unexpected {other:?}"),
    };
    let group = || field("group_idx").as_u64().unwrap_or(0);
    match tag {
        "BlockStored" => json!({
            "event": "stored",
            "hashes": hashes(&field("block_hashes")),
            "parent": hash(&field("parent_block_hash")),
            "tokens": field("token_ids"),
            "block_size": field("block_size"),
            "lora_id": field("lora_id"),
            "lora_name": field("lora_name"),
            "tier": tier(),
            "group": group(),
            "kind": field("kv_cache_spec_kind"),
            "window": field("kv_cache_spec_sliding_window"),
            "cache_salt": field("cache_salt"),
            "lookahead": field("lookahead_token_ids"),
            "extra_keys": extra_keys(event, &field),
            "fields": event.as_array().map_or(json!("map"), |values| json!(values.len())),
        }),
        "BlockRemoved" => json!({
            "event": "removed",
            "hashes": hashes(&field("block_hashes")),
            "tier": tier(),
            "group": group(),
        }),
        "AllBlocksCleared" => json!({"event": "cleared", "tier": null}),
        other => panic!("unexpected {other}"),
    }
}

fn hashes(list: &Value) -> Value {
    list.as_array().unwrap().iter().map(hash).collect()
}

/// Signed hashes keep their bits.
fn hash(value: &Value) -> Value {
    value.as_i64().map_or(value.clone(), |n| json!(n as u64))
}

/// The normal form of the few shapes that were recorded; everything else is expected to be opaque.
fn extra_keys(event: &Value, field: &dyn Fn(&str) -> Value) -> Value {
    let lora = field("lora_name");
    let salt = field("cache_salt");
    let first = field("parent_block_hash").is_null();
    let Value::Array(entries) = field("extra_keys") else {
        if salt.is_null() {
            return Value::Null;
        }
        let blocks = field("block_hashes").as_array().unwrap().len();
        let block = |n| match (first && n == 0, lora.as_str()) {
            (true, Some(lora)) => json!([{"lora": lora}, {"salt": salt}]),
            (true, None) => json!([{"salt": salt}]),
            (false, Some(lora)) => json!([{"lora": lora}]),
            (false, None) => json!("plain"),
        };
        return (0..blocks).map(block).collect();
    };
    let nine_fields = event.as_array().is_some_and(|values| values.len() == 9);
    let entry = |(n, entry): (usize, &Value)| {
        let keys = entry.as_array().map_or(&[][..], |keys| keys);
        match (lora.as_str(), keys) {
            (None, []) => json!("plain"),
            (None, [embeds]) if embeds.get("b").is_some() => json!([{"embeds": embeds["b"]}]),
            (None, [Value::String(salt)]) if first && n == 0 && !nine_fields => {
                json!([{"salt": salt}])
            }
            (Some(lora), [name]) if name == lora => json!([{"lora": lora}]),
            (Some(lora), [name, salt]) if name == lora && first && n == 0 && !nine_fields => {
                json!([{"lora": lora}, {"salt": salt}])
            }
            _ => json!("opaque"),
        }
    };
    entries.iter().enumerate().map(entry).collect()
}

fn check(recorded: &[Recorded]) {
    for Recorded { name, payload, decoded } in recorded {
        let decoded = decoded.as_ref().unwrap();
        let events: Value = decoded[1].as_array().unwrap().iter().map(expected).collect();
        assert_eq!(render(payload), json!([decoded[0], events, decoded[2]]), "{name}");
    }
}

#[test]
fn every_frame_of_every_vllm_publisher_decodes_to_what_was_published() {
    let recorded = wire();
    assert!(recorded.len() > 250, "{}", recorded.len());
    check(&recorded);
}

#[test]
fn both_wire_forms_of_sglang_decode_to_what_was_published() {
    let recorded = sglang();
    assert_eq!(recorded.len(), 6);
    check(&recorded);
}

#[test]
fn everything_that_whole_engines_sent_decodes_to_what_msgspec_decoded() {
    let recorded = engine();
    assert!(recorded.len() > 50, "{}", recorded.len());
    check(&recorded);
}

#[test]
fn everything_that_driven_block_managers_sent_decodes() {
    let mut tokens = Vec::new();
    let mut events = 0;
    for Recorded { name, payload, .. } in drive() {
        for event in parse(&payload).events() {
            let event = event.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(walk(&event, &mut tokens) > 0 || format!("{event:?}").starts_with("Cleared"));
            events += 1;
        }
    }
    assert!(events > 1400, "{events}");
}

#[test]
fn no_block_of_a_driven_manager_with_extra_keys_is_opaque() {
    for Recorded { name, payload, .. } in drive() {
        let rendered = render(&payload).to_string();
        assert!(!rendered.contains("opaque"), "{name}");
    }
}

#[test]
fn a_cut_at_any_byte_delivers_every_event_before_it_and_one_error() {
    // The long engine recordings have the same shapes.
    let cut_everywhere = |r: &Recorded| r.payload.len() < 3000;
    for Recorded { name, payload, .. } in all().iter().filter(|r| cut_everywhere(r)) {
        let whole: Vec<String> =
            parse(payload).events().map(|e| format!("{:?}", e.unwrap())).collect();
        let ends = event_ends(payload, whole.len());
        let limits = Limits::default();
        for cut in 0..payload.len() {
            let Ok(batch) = Batch::parse(&payload[..cut], &limits) else {
                assert!(cut <= 14, "{name}: no batch at {cut}");
                continue;
            };
            let complete = ends.iter().filter(|end| **end <= cut).count();
            let events: Vec<_> = batch.events().collect();
            assert_eq!(events.len(), complete + 1, "{name} cut at {cut}");
            for (event, whole) in events.iter().zip(&whole[..complete]) {
                assert_eq!(&format!("{:?}", event.as_ref().unwrap()), whole, "{name} at {cut}");
            }
            assert!(events[complete].is_err(), "{name} cut at {cut}");
        }
    }
}

/// Offsets at which the events end, by another decoder.
fn event_ends(payload: &[u8], events: usize) -> Vec<usize> {
    // A batch is a header of one byte, a float of nine, and the header of the list.
    let list = match payload[10] {
        0xdc => 13,
        0x90..=0x9f => 11,
        other => panic!("unexpected {other:02x}"),
    };
    let mut cursor = Cursor::new(payload);
    cursor.set_position(list);
    let mut decoder = Deserializer::new(cursor);
    (0..events)
        .map(|_| {
            IgnoredAny::deserialize(&mut decoder).unwrap();
            decoder.position() as usize
        })
        .collect()
}
