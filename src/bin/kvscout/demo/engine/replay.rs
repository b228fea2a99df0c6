//! The simulated engine against a recording of vLLM 0.33.0's own `KVCacheManager`, `BlockPool` and
//! event encoder.

use kvscout::block::{BlockSize, TokenId};
use kvscout::hash::vllm::{Algorithm, Contract, Root, Version};
use serde_json::Value;

use super::{Adapter, Engine, Prompt};
use crate::demo::wire;

const RECORDING: &str = include_str!("../../../../../tests/vectors/drive-0.33.0.jsonl");

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// Requests are called `r1`, `r2`, ...
fn id(line: &Value) -> u64 {
    line["id"].as_str().unwrap()[1..].parse().unwrap()
}

fn tokens(line: &Value) -> Vec<TokenId> {
    line["tokens"].as_array().unwrap().iter().map(|t| number(t) as TokenId).collect()
}

fn prompt(line: &Value) -> Prompt {
    Prompt {
        token_ids: tokens(line),
        cache_salt: line["salt"].as_str().map(str::to_owned),
        adapter: line["lora"].as_object().map(|lora| Adapter {
            name: lora["name"].as_str().unwrap().to_owned(),
            id: number(&lora["id"]) as u32,
            path: lora["path"].as_str().unwrap().to_owned(),
        }),
    }
}

fn engine(meta: &Value) -> Engine {
    assert_eq!((&meta["vllm"], &meta["algo"]), (&"0.33.0".into(), &"sha256_cbor".into()));
    let root = Root::Seed(meta["seed"].as_str().unwrap());
    let contract = Contract::new(Version::new(0, 33, 0), Algorithm::Sha256Cbor, root).unwrap();
    let block_size = BlockSize::new(number(&meta["block_size"]) as u32).unwrap();
    Engine::new(contract, block_size, number(&meta["num_blocks"]) as u32)
}

#[test]
fn the_same_operations_give_the_answers_and_the_bytes_of_vllm() {
    let mut lines = RECORDING.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut engine = engine(&lines.next().unwrap());
    let (mut questions, mut batches) = (0, 0);
    let mut pending = Vec::new();
    for line in lines {
        let op = line["op"].as_str().unwrap();
        if op == "events" {
            let ours = wire::batch(1_700_000_000.0 + batches as f64, &pending, 0);
            let hex: String = ours.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, line["payload"].as_str().unwrap(), "batch {batches}: {pending:?}");
            assert_eq!(number(&line["seq"]), batches);
            batches += 1;
            pending.clear();
            continue;
        }
        assert!(pending.is_empty(), "vllm said nothing before {line}, we: {pending:?}");
        match op {
            "request" => {
                let cached = engine.admit(id(&line), prompt(&line)).unwrap();
                assert_eq!(u64::from(cached), number(&line["computed_tokens"]), "{line}");
                questions += 1;
            }
            "probe" => {
                let cached = engine.cached_tokens(&prompt(&line));
                assert_eq!(u64::from(cached), number(&line["computed_tokens"]), "{line}");
                questions += 1;
            }
            "decode" => {
                tokens(&line).into_iter().for_each(|t| engine.decode(id(&line), t).unwrap());
            }
            "free" => engine.free(id(&line)),
            "reset" => {
                let running: Vec<_> = engine.running.keys().copied().collect();
                running.into_iter().for_each(|id| engine.free(id));
                assert!(engine.reset());
            }
            other => panic!("no operation of this recording: {other}"),
        }
        pending = engine.take_events();
    }
    assert_eq!((questions, batches), (125, 99), "the whole recording");
    let evictions = RECORDING.matches("ac426c6f636b52656d6f766564").count();
    assert!(evictions > 20, "{evictions} batches with removals");
}
