//! What routers of Dynamo ask, and what its own index begins with.
#![cfg(feature = "daemon")]

mod daemon_support;
mod dialects_support;
mod failures_support;
mod zmq_support;

use daemon_support::Daemon;
use dialects_support::{Site, TOKENS, little_endian};
use failures_support::{removed, stored, with};
use serde_json::{Value, json};

#[test]
fn dynamos_hashes_are_answered_only_where_they_are_kept() {
    // Of tokens 0..4 and 4..8, as Python's `xxhash` computes them; the second as a signed number.
    let hashes = json!([9_143_094_415_614_847_814_u64, 12_124_091_508_212_882_195_u64 as i64]);
    let body = json!({ "model_name": "m", "block_hashes": hashes });
    let without = Site::new(&[("7", "")], "");
    let error = without.daemon.post("/query_by_hash", &body).json(501);
    assert!(error["error"].as_str().unwrap().contains("dialects.dynamo_hashes"), "{error}");

    let mut site = Site::new(&[("7", "")], "[dialects]\ndynamo_hashes = true\n");
    let mut held = json!({ "scores": { "7": { "0": 0 } }, "frequencies": [], "instances": {
        "7": { "longest_matched": 0, "gpu": 0, "dp": { "0": 0 }, "cpu": 0, "disk": 0 },
    }});
    assert_eq!(site.daemon.post("/query_by_hash", &body).json(200), held);
    site.feed("7", &[stored(&[11, 12], None, &TOKENS[..8])]);
    let asked = json!({ "model_name": "m", "token_ids": TOKENS });
    held = site.daemon.post("/query", &asked).json(200);
    assert_eq!(held["scores"]["7"]["0"], 8);
    assert_eq!(site.daemon.post("/query_by_hash", &body).json(200), held);
    let unknown = json!({ "model_name": "x", "block_hashes": hashes });
    assert_eq!(site.daemon.post("/query_by_hash", &unknown).json(404)["reason"], "unknown_model");
}

#[test]
fn a_router_whose_index_is_elsewhere_is_answered_in_blocks_beyond_the_faster_tiers() {
    let hashes: Vec<i64> = TOKENS[..8]
        .chunks(4)
        .map(|block| xxhash_rust::xxh3::xxh3_64_with_seed(&little_endian(block), 1337) as i64)
        .collect();
    let body = json!({ "model_name": "m", "block_hashes": hashes, "routing_group": "default" });
    let path = "/query_tiered_by_hash";
    let without = Site::new(&[("7", "")], "");
    assert_eq!(without.daemon.post(path, &body).json(501)["reason"], "not_implemented");

    let mut site = Site::new(
        &[("7", ""), ("8", ""), ("text", ""), ("9", "")],
        "[dialects]\ndynamo_hashes = true\n",
    );
    let nothing = json!({ "device": { "scores": [], "frequencies": [] }, "lower_tier": [] });
    assert_eq!(site.daemon.post(path, &body).json(200)["tiered"], nothing);
    let in_tier = |event, medium: &str| with(event, &[("medium", json!(medium))]);
    site.feed("7", &[stored(&[11, 12], None, &TOKENS[..8])]);
    let second = stored(&[12], Some(11), &TOKENS[4..8]);
    site.feed("8", &[stored(&[11], None, &TOKENS[..4]), in_tier(second, "DISK")]);
    let whole = stored(&[11, 12], None, &TOKENS[..8]);
    site.feed("text", &[in_tier(whole, "CPU")]);
    site.feed("9", &[in_tier(stored(&[11], None, &TOKENS[..4]), "OBJ")]);
    let worker = |id: u64| json!({ "worker_id": id, "dp_rank": 0 });
    let answer = site.daemon.post(path, &body).json(200);
    let mut scores = answer["tiered"]["device"]["scores"].as_array().unwrap().clone();
    scores.sort_by_key(|pair| pair[0]["worker_id"].as_u64());
    assert_eq!(json!(scores), json!([[worker(7), 2], [worker(8), 1]]));
    // A pod whose name is no number has no place in the answer.
    let below = json!([
        ["disk", { "hits": [[worker(8), 1]] }], ["external", { "hits": [[worker(9), 1]] }],
    ]);
    assert_eq!((&answer["tiered"]["lower_tier"], &answer["block_size"]), (&below, &json!(4)));
    let unknown = json!({ "model_name": "x", "block_hashes": hashes });
    assert_eq!(site.daemon.post(path, &unknown).json(404)["reason"], "unknown_model");
    for (body, field) in [
        (json!({ "block_hashes": hashes }), "model_name"),
        (json!({ "model_name": "m" }), "block_hashes"),
        (json!({ "model_name": "m", "seq_hashes": [1] }), "seq_hashes"),
        (json!({ "model_name": "m", "block_hashes": [1, "2"] }), "block_hashes"),
    ] {
        assert_eq!(site.daemon.post(path, &body).json(400)["field"], field);
    }
}

#[test]
fn an_instance_leaves_the_group_that_is_named_or_whichever_it_is_in() {
    let daemon = Daemon::start(&[], "", &[]);
    let register = |group: &str, rank: u32| {
        let body = json!({
            "endpoint": "tcp://127.0.0.1:9", "model_name": "m", "instance_id": 9, "block_size": 16,
            "routing_group": group, "dp_rank": rank,
        });
        daemon.post("/register", &body).json(201);
    };
    let listed = |group: &str| {
        let list = daemon.get(&format!("/workers?routing_group={group}")).json(200);
        list.as_array().unwrap().iter().map(|one| one["endpoints"].clone()).collect::<Vec<_>>()
    };
    let (both, first) = (
        json!({ "0": "tcp://127.0.0.1:9", "1": "tcp://127.0.0.1:9" }),
        json!({ "0": "tcp://127.0.0.1:9" }),
    );
    for group in ["blue", "green"] {
        register(group, 0);
        register(group, 1);
    }
    let gone = |fields: Value| {
        let mut body = json!({ "instance_id": 9, "model_name": "m" });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        daemon.post("/unregister", &body)
    };
    assert_eq!(gone(json!({ "model_name": "x" })).json(404)["reason"], "unknown_worker");
    assert_eq!(gone(json!({ "routing_group": "default" })).status, 404);
    gone(json!({ "routing_group": "blue", "dp_rank": 1 })).json(200);
    assert_eq!((listed("blue"), listed("green")), (vec![first], vec![both]));
    gone(json!({ "routing_group": "blue" })).json(200);
    assert_eq!((listed("blue").len(), listed("green").len()), (0, 1));
    gone(json!({})).json(200);
    assert_eq!(listed("green").len(), 0);
    assert_eq!(gone(json!({})).status, 404);
}

#[test]
fn a_salt_of_dynamos_is_found_as_its_workers_hand_it_to_the_engine() {
    let mut site = Site::new(&[("7", ""), ("8", "")], "");
    let salted = |names: &[u64], salt: &str| {
        with(stored(names, None, &TOKENS[..8]), &[("extra_keys", json!([[salt], null]))])
    };
    site.feed("7", &[salted(&[11, 12], "dynamo-cache-salt:t")]);
    site.feed("8", &[salted(&[21, 22], "plain")]);
    let scores = |salt: &str| {
        let body = json!({ "model_name": "m", "token_ids": TOKENS, "cache_salt": salt });
        site.daemon.post("/query", &body).json(200)["scores"].clone()
    };
    assert_eq!(scores("t"), json!({ "7": { "0": 8 }, "8": { "0": 0 } }));
    assert_eq!(scores("plain"), json!({ "7": { "0": 0 }, "8": { "0": 8 } }));
    assert_eq!(scores("dynamo-cache-salt:t"), scores("t"));
    assert_eq!(scores("another"), json!({ "7": { "0": 0 }, "8": { "0": 0 } }));
    // Elsewhere a salt is what it is.
    let body = json!({ "model": "m", "token_ids": TOKENS, "cache_salt": "t" });
    let answer = site.daemon.post("/query", &body).json(200);
    assert_eq!(answer["default"]["7"]["longest_matched"], 0);
}

/// Blocks by their names, and by Dynamo's hashes of them where those are kept.
fn told(worker: Value, tier: &str, at: u32, parent: Option<u64>, blocks: Value) -> Value {
    json!({
        "worker_id": worker, "storage_tier": tier,
        "event": { "dp_rank": 0, "data": { "stored": {
            "parent_hash": parent, "start_position": at, "blocks": blocks,
        } } },
    })
}

#[test]
fn a_dump_has_dynamos_hashes_where_they_are_kept_and_then_only_what_dynamos_index_can_take() {
    // Of tokens 0..4 and 4..8, as Python's `xxhash` computes them.
    let [one, two] = [9_143_094_415_614_847_814_u64, 12_124_091_508_212_882_195];
    let hashed = |name: u64, hash: u64| json!({ "block_hash": name, "tokens_hash": hash });
    let named = |name: u64| json!({ "block_hash": name });
    for kept in [true, false] {
        let config = format!("[dialects]\ndynamo_hashes = {kept}\n");
        let mut site = Site::new(&[("7", ""), ("text", ""), ("8", "")], &config);
        site.feed("7", &[stored(&[11, 12], None, &TOKENS[..8])]);
        let disk = [("medium", json!("DISK"))];
        let second = with(stored(&[12], Some(11), &TOKENS[4..8]), &disk);
        site.feed("8", &[stored(&[11], None, &TOKENS[..4]), second]);
        let fourth = stored(&[14], Some(13), &[9; 4]);
        let third = stored(&[13], Some(12), &[8; 4]);
        // Behind a hole, and of a medium that nobody knows.
        site.feed("7", &[third, fourth, removed(&[13], "GPU")]);
        site.feed("7", &[with(stored(&[21], None, &[7; 4]), &[("medium", json!("NVX"))])]);
        site.feed("text", &[stored(&[31], None, &[6; 4])]);
        let answer = site.daemon.get("/dump").json(200);
        assert_eq!(answer["m:default"]["block_size"], 4);
        let mut events = answer["m:default"]["events"].as_array().unwrap().clone();
        let mut numbers = Vec::new();
        for event in &mut events {
            numbers.push(event["event"].as_object_mut().unwrap().remove("event_id"));
        }
        assert_eq!(json!(numbers), json!((0..events.len()).collect::<Vec<_>>()));
        let mut expected = match kept {
            true => vec![
                told(json!(7), "device", 0, None, json!([hashed(11, one), hashed(12, two)])),
                told(json!(8), "device", 0, None, json!([hashed(11, one)])),
                told(json!(8), "disk", 1, Some(11), json!([hashed(12, two)])),
            ],
            false => vec![
                told(json!(7), "device", 0, None, json!([named(11), named(12)])),
                told(json!(7), "device", 3, Some(13), json!([named(14)])),
                told(json!(8), "device", 0, None, json!([named(11)])),
                told(json!(8), "disk", 1, Some(11), json!([named(12)])),
                told(json!("text"), "device", 0, None, json!([named(31)])),
            ],
        };
        for list in [&mut events, &mut expected] {
            list.sort_by_key(ToString::to_string);
        }
        assert_eq!(events, expected, "kept: {kept}");
    }
}
