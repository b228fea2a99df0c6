//! The bar: for every question in the recordings of real vLLM code and of a real engine, the
//! expected cached tokens equal what the engine itself answered.

mod recording_support;

use kvscout::block::{Lora, Prompt};
use kvscout::ingest::Trust;
use kvscout::scout::{Options, Registration, Request, Scout, Scratch};
use recording_support::{Recording, drives, engines};
use serde_json::Value;

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// The ids of the questions whose answer is not the engine's own, or not exact.
fn wrong((lines, expected): &Recording) -> Vec<Value> {
    let scout = Scout::new(Options::default()).unwrap();
    let anywhere = Registration { model: None, ..Registration::new("pod", "") };
    let worker = scout.register(anywhere).unwrap();
    let mut scratch = Scratch::default();
    let mut expected = expected.iter();
    let mut wrong = Vec::new();
    for line in lines {
        if line["op"] == "events" {
            let payload = hex(line["payload"].as_str().unwrap());
            scout.apply(worker, line["seq"].as_u64().unwrap(), &payload).unwrap();
            continue;
        }
        let lora = line["lora"].as_object().map(|lora| Lora {
            name: lora["name"].as_str().unwrap(),
            id: lora["id"].as_i64(),
            path: lora["path"].as_str(),
        });
        let token_ids = tokens(&line["token_ids"]);
        let prompt =
            Prompt { lora, cache_salt: line["cache_salt"].as_str(), ..Prompt::new(&token_ids) };
        let ranking = scout.score(&Request::new("any", prompt), &mut scratch).unwrap();
        let best = ranking.best().unwrap();
        let (id, cached) = expected.next().unwrap();
        assert_eq!(*id, line["id"]);
        let ours = best.score.expected_cached_tokens.ok().map(u64::from);
        if ours != Some(cached.as_u64().unwrap()) || best.trust != Trust::Exact {
            wrong.push(id.clone());
        }
    }
    assert_eq!(expected.next(), None);
    wrong
}

#[test]
fn every_answer_equals_the_one_of_the_driven_kv_cache_manager() {
    for (file, recording) in drives() {
        assert_eq!(wrong(&recording), [] as [Value; 0], "{file}");
    }
}

#[test]
fn every_answer_equals_the_one_of_the_running_engine() {
    for (file, recording) in engines() {
        // The engine announces a reset with its next step only: until then nobody can know.
        assert_eq!(wrong(&recording), ["request after reset"], "{file}");
    }
}
