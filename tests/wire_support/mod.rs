//! The recorded payloads, and events as JSON to compare them with.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::path::PathBuf;

use kvscout::block::ExtraKey;
use kvscout::event::{
    Batch, BlockExtras, Event, ExtraKeys, Form, Hash, Limits, Removed, SpecKind, Stored,
};
use serde_json::{Value, json};

/// A recorded payload, and what msgspec made of it if that was recorded, too.
pub(crate) struct Recorded {
    pub(crate) name: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) decoded: Option<Value>,
}

/// The fields of a `BlockStored` in the order of the array form, after its type.
pub(crate) const STORED: [&str; 11] = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
];

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// The files under `tests/vectors/` whose names start and end so.
pub(crate) fn files(start: &str, end: &str) -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut files: Vec<(String, String)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, _)| name.starts_with(start) && name.ends_with(end))
        .map(|(name, path)| (name, fs::read_to_string(path).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no {start}*{end}");
    files
}

/// What the publishers of vLLM 0.9.0 to 0.33.0 sent, live and in replays.
pub(crate) fn wire() -> Vec<Recorded> {
    let mut out = Vec::new();
    for (file, text) in files("wire-", ".json") {
        let doc: Value = serde_json::from_str(&text).unwrap();
        for run in doc["runs"].as_array().unwrap() {
            let live = run["live"].as_array().unwrap();
            for sent in live.iter().filter(|sent| !sent["frames"].is_null()) {
                out.push(Recorded {
                    name: format!("{file} {}", sent["name"]),
                    payload: hex(sent["frames"][2].as_str().unwrap()),
                    decoded: Some(sent["decoded"].clone()),
                });
            }
            // A replayed frame is the live one with the same number.
            let replies = &run["replay_dealer"]["replies_first2_and_last"];
            let first = &run["replay_req"]["first"];
            for reply in replies.as_array().unwrap().iter().chain([first]) {
                let mut frames =
                    reply.as_array().unwrap().iter().rev().map(|f| f.as_str().unwrap());
                let (payload, seq) = (frames.next().unwrap(), frames.next().unwrap());
                // The end marker.
                if payload.is_empty() || payload == "ffffffffffffffff" {
                    continue;
                }
                let sent = live.iter().find(|s| s["frames"][1] == seq).expect("replayed, not sent");
                out.push(Recorded {
                    name: format!("{file} replay {seq}"),
                    payload: hex(payload),
                    decoded: Some(sent["decoded"].clone()),
                });
            }
        }
    }
    out
}

/// What SGLang 0.5.9 and 0.5.23 sent.
pub(crate) fn sglang() -> Vec<Recorded> {
    let (_, text) = files("sglang", ".json").remove(0);
    let doc: Value = serde_json::from_str(&text).unwrap();
    let record = |sent: &Value| Recorded {
        name: format!("sglang {} rank {}", sent["which"], sent["attn_dp_rank"]),
        payload: hex(sent["payload"].as_str().unwrap()),
        decoded: Some(sent["decoded"].clone()),
    };
    doc["wire"].as_array().unwrap().iter().map(record).collect()
}

/// What vLLM's block manager sent while it was driven through thousands of requests.
pub(crate) fn drive() -> Vec<Recorded> {
    let mut out = Vec::new();
    for (file, text) in files("drive-", ".jsonl") {
        for line in text.lines() {
            let step: Value = serde_json::from_str(line).unwrap();
            if step["op"] == "events" {
                out.push(Recorded {
                    name: format!("{file} {}", step["seq"]),
                    payload: hex(step["payload"].as_str().unwrap()),
                    decoded: None,
                });
            }
        }
    }
    out
}

/// What whole engines sent while they served requests.
pub(crate) fn engine() -> Vec<Recorded> {
    let mut out = Vec::new();
    for (file, text) in files("engine-", ".json") {
        let doc: Value = serde_json::from_str(&text).unwrap();
        for step in doc["steps"].as_array().unwrap() {
            for sent in step["events"].as_array().unwrap() {
                out.push(Recorded {
                    name: format!("{file} {}", sent["seq"]),
                    payload: hex(sent["frames"][2].as_str().unwrap()),
                    decoded: Some(sent["decoded"].clone()),
                });
            }
        }
    }
    out
}

pub(crate) fn all() -> Vec<Recorded> {
    [wire(), sglang(), drive(), engine()].into_iter().flatten().collect()
}

pub(crate) fn parse(payload: &[u8]) -> Batch<'_> {
    Batch::parse(payload, &Limits::default()).unwrap()
}

/// Walks over everything in an event and returns how many values there were.
pub(crate) fn walk(event: &Event<'_>, tokens: &mut Vec<u32>) -> usize {
    let mut seen = 0;
    match event {
        Event::Stored(stored) => {
            seen += stored.names.iter().len() + stored.names.names().count();
            seen += stored.tokens.iter().count();
            tokens.clear();
            seen += usize::from(stored.tokens.read_into(tokens).is_ok());
            if let Some(lookahead) = stored.lookahead {
                seen += lookahead.iter().flatten().count();
                seen += lookahead.depth().unwrap_or(0) as usize;
            }
            if let ExtraKeys::Listed(listed) = stored.extra_keys {
                assert_eq!(listed.iter().count(), stored.names.len());
                for block in listed {
                    if let BlockExtras::Keys(keys) = block {
                        assert_eq!(keys.count(), keys.len());
                        seen += keys.len();
                    }
                }
            }
        }
        Event::Removed(removed) => seen += removed.names.iter().count(),
        Event::Cleared(_) => {}
    }
    seen
}

/// A batch as JSON: every value that decoding gives, none that it does not.
pub(crate) fn render(payload: &[u8]) -> Value {
    let batch = parse(payload);
    let events: Vec<Value> = batch.events().map(|event| render_event(&event.unwrap())).collect();
    assert_eq!(events.len(), batch.len());
    json!([batch.timestamp(), events, batch.rank()])
}

pub(crate) fn render_event(event: &Event<'_>) -> Value {
    match event {
        Event::Stored(stored) => render_stored(stored),
        Event::Removed(Removed { names, tier, group, .. }) => json!({
            "event": "removed",
            "hashes": names.iter().map(hash).collect::<Vec<_>>(),
            "tier": tier.as_str(),
            "group": group.0,
        }),
        Event::Cleared(cleared) => {
            json!({"event": "cleared", "tier": cleared.tier.map(|t| t.as_str())})
        }
    }
}

fn render_stored(stored: &Stored<'_>) -> Value {
    assert_eq!(stored.names.iter().len(), stored.names.len());
    assert_eq!(stored.tokens.iter().len(), stored.tokens.len());
    json!({
        "event": "stored",
        "hashes": stored.names.iter().map(hash).collect::<Vec<_>>(),
        "parent": stored.parent.map(hash),
        "tokens": stored.tokens.iter().collect::<Vec<_>>(),
        "block_size": stored.block_size,
        "lora_id": stored.lora_id,
        "lora_name": stored.lora_name,
        "tier": stored.tier.as_str(),
        "group": stored.group.0,
        "kind": stored.kind.map(kind),
        "window": stored.window,
        "cache_salt": stored.cache_salt,
        "lookahead": stored.lookahead.map(|lists| {
            lists.iter().map(|list| list.iter().collect::<Vec<_>>()).collect::<Vec<_>>()
        }),
        "extra_keys": extra_keys(&stored.extra_keys),
        "fields": match stored.form {
            Form::Array(fields) => json!(fields),
            Form::Map => json!("map"),
        },
    })
}

/// An integer, or `{"b": hex}`.
pub(crate) fn hash(hash: Hash<'_>) -> Value {
    match hash {
        Hash::Int(n) => json!(n),
        Hash::Bytes(bytes) => json!({"b": lower_hex(bytes)}),
    }
}

fn lower_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn extra_keys(keys: &ExtraKeys<'_>) -> Value {
    let ExtraKeys::Listed(listed) = keys else { return Value::Null };
    let block = |block| match block {
        BlockExtras::Plain => json!("plain"),
        BlockExtras::Opaque => json!("opaque"),
        BlockExtras::Keys(keys) => keys.map(key).collect(),
    };
    listed.iter().map(block).collect()
}

fn key(key: ExtraKey<'_>) -> Value {
    match key {
        ExtraKey::Lora(name) => json!({"lora": name}),
        ExtraKey::Item { identifier, offset } => json!({"item": [identifier, offset]}),
        ExtraKey::Salt(salt) => json!({"salt": salt}),
        ExtraKey::Embeds(digest) => json!({"embeds": lower_hex(&digest)}),
    }
}

fn kind(kind: SpecKind) -> &'static str {
    match kind {
        SpecKind::FullAttention => "full_attention",
        SpecKind::SlidingWindow => "sliding_window",
        other => panic!("{other:?} was never recorded"),
    }
}
