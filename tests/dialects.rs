//! The HTTP dialects: every form of a request and of an answer, and their description.
#![cfg(feature = "daemon")]

mod daemon_support;
mod failures_support;
mod openapi_support;
mod tokenize_support;
mod zmq_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use daemon_support::{Batch, Daemon};
use failures_support::{batch, removed, stored, with};
use serde_json::{Value, json};
use zmq_support::{bound_publisher, eventually};

const MSGPACK: &str = "application/msgpack";

/// Two blocks and one token more.
const TOKENS: [u32; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

/// A daemon with these lines in its configuration, and pods that dial nobody else.
struct Site {
    daemon: Daemon,
    pods: Vec<(String, zmq::Socket, u64)>,
}

impl Site {
    /// Pods by name, each with further keys of its `[[source]]`.
    fn new(pods: &[(&str, &str)], config: &str) -> Site {
        let mut file = config.to_owned();
        let mut publishers = Vec::new();
        for (name, keys) in pods {
            let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
            file += &format!(
                "\n[[source]]\nname = \"{name}\"\nendpoint = \"{endpoint}\"\nmodel = \"m\"\n{keys}\n"
            );
            publishers.push(((*name).to_owned(), socket, 0));
        }
        let daemon = Daemon::start(&[], &file, &[]);
        eventually("the sources are added", || daemon.get("/ready").status == 200);
        Site { daemon, pods: publishers }
    }

    fn feed(&mut self, pod: &str, events: &[Value]) {
        let (name, socket, seq) = self.pods.iter_mut().find(|(name, ..)| name == pod).unwrap();
        self.daemon.feed(socket, "", &Batch { seq: *seq, payload: batch(events) }, name);
        *seq += 1;
    }

    /// A question's answer; `kind` is that of its body, `accept` what is asked for.
    fn send(&self, path: &str, kind: &str, accept: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.daemon.address()).unwrap();
        let accept =
            if accept.is_empty() { String::new() } else { format!("accept: {accept}\r\n") };
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n\
             {accept}content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let kind = head.lines().find_map(|line| line.strip_prefix("content-type: "));
        (status, kind.unwrap_or_default().to_owned(), answer[end + 4..].to_vec())
    }

    fn msgpack(&self, path: &str, body: &Value) -> Value {
        let packed = rmp_serde::to_vec_named(body).unwrap();
        let (status, kind, answer) = self.send(path, MSGPACK, "", &packed);
        assert_eq!((status / 100, kind.as_str()), (2, MSGPACK), "{path}");
        rmp_serde::from_slice(&answer).unwrap()
    }
}

fn little_endian(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

/// A msgpack map of texts and numbers, with the tokens in binary.
fn with_binary_tokens(fields: &[(&str, &str)], tokens: &[u32]) -> Vec<u8> {
    let mut body = vec![0x80 + fields.len() as u8 + 1];
    let text = |body: &mut Vec<u8>, text: &str| {
        body.push(0xa0 + text.len() as u8);
        body.extend(text.as_bytes());
    };
    for (name, value) in fields {
        text(&mut body, name);
        text(&mut body, value);
    }
    text(&mut body, "token_ids");
    let bytes = little_endian(tokens);
    body.extend([0xc6]);
    body.extend((bytes.len() as u32).to_be_bytes());
    body.extend(bytes);
    body
}

#[test]
fn a_question_in_msgpack_has_the_answer_that_it_has_in_json() {
    let mut site = Site::new(&[("7", "")], "");
    site.feed("7", &[stored(&[11, 12], None, &TOKENS[..8])]);
    for (path, body) in [
        ("/query", json!({ "model": "m", "block_size": 4, "token_ids": TOKENS })),
        ("/query", json!({ "model_name": "m", "token_ids": TOKENS, "tenant_id": "anything" })),
        ("/query_by_hash", json!({ "model": "m", "block_size": 4, "seq_hashes": [11, 12] })),
        ("/v1/score", json!({ "model": "m", "token_ids": TOKENS, "candidates": ["7", "8"] })),
        ("/v1/explain", json!({ "model": "m", "token_ids": TOKENS })),
    ] {
        let answer = site.daemon.post(path, &body).json(200);
        assert!(answer.to_string().contains('8') || answer.to_string().contains('2'), "{answer}");
        assert_eq!(site.msgpack(path, &body), answer, "{path} {body}");
    }
    for (path, model) in [("/query", "model"), ("/query", "model_name"), ("/v1/score", "model")] {
        let body = json!({ model: "m", "token_ids": TOKENS });
        let expected = site.daemon.post(path, &body).json(200);
        let packed = with_binary_tokens(&[(model, "m")], &TOKENS);
        let (status, _, answer) = site.send(path, MSGPACK, "application/json", &packed);
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!((status, answer), (200, expected), "{path}");
    }
    let (status, kind, answer) = site.send("/query", MSGPACK, "", b"\x81\xa5model\xa1m");
    let error: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(
        (status, kind.as_str(), &error["field"]),
        (400, "application/json", &json!("token_ids"))
    );
    let cut = [&with_binary_tokens(&[("model", "m")], &[])[..19], &[0xc4, 3, 1, 2, 3]].concat();
    let (status, _, answer) = site.send("/query", MSGPACK, "", &cut);
    let error: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, &error["field"]), (400, &json!("token_ids")), "{error}");
    let looked = site.daemon.send("GET", "/services", "accept: application/json\r\n", "").json(200);
    assert_eq!(looked["count"], 1);
}

#[test]
fn tokens_alone_are_a_question_too() {
    let mut site = Site::new(&[("7", "labels = [\"role=prefill\"]"), ("8", "")], "");
    site.feed("7", &[stored(&[11, 12], None, &TOKENS[..8])]);
    let body = json!({
        "model": "m", "token_ids": TOKENS, "candidates": ["7", "nobody"], "labels": { "role": "prefill" },
    });
    let expected = site.daemon.post("/v1/score", &body).json(200);
    assert_eq!(expected["workers"][0]["matched_blocks"], 2);
    let kind = "application/octet-stream";
    let path = "/v1/score?model=m&candidates=7&candidates=nobody&labels=role%3Dprefill";
    let (status, _, answer) = site.send(path, kind, "", &little_endian(&TOKENS));
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, answer), (200, expected));
    for (path, length, field) in [
        ("/v1/score?model=m", 5, "token_ids"),
        ("/v1/score?modell=m", 4, "modell"),
        ("/v1/score?token_ids=1", 4, "token_ids"),
        ("/v1/score?model=m&model=n", 4, "model"),
        ("/v1/score?labels=role", 4, "labels"),
        ("/v1/picked?worker=7&rank=x", 4, "rank"),
    ] {
        let (status, _, answer) = site.send(path, kind, "", &vec![0; length]);
        let error: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!((status, &error["field"]), (400, &json!(field)), "{path}: {error}");
    }
    // A million of them are neither too many nor read as JSON.
    let many = [&TOKENS[..8], &vec![7; 999_992]].concat();
    let (status, _, answer) = site.send("/v1/score?model=m", kind, "", &little_endian(&many));
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, &answer["workers"][0]["matched_blocks"]), (200, &json!(2)));
    let path = "/v1/picked?model=m&worker=8&rank=0";
    let (status, _, answer) = site.send(path, kind, "", &little_endian(&TOKENS));
    assert_eq!((status, &answer[..]), (200, &b"{\"predicted_blocks\":0}"[..]));
}

#[test]
fn several_questions_are_answered_in_order_and_one_that_is_wrong_alone() {
    let mut site = Site::new(&[("7", "")], "");
    site.feed("7", &[stored(&[11, 12], None, &TOKENS[..8])]);
    let one = |tokens: &[u32]| json!({ "model": "m", "token_ids": tokens });
    let body = json!({ "requests": [
        one(&TOKENS), { "model": "m" }, one(&TOKENS[..4]), { "model": "x", "token_ids": [] }, "text",
        { "model": "m", "token_ids": [1], "candidates": [{ "worker": "7", "rank": 9 }] },
    ]});
    let answer = site.daemon.post("/v1/score/batch", &body).json(200);
    let answers = answer["answers"].as_array().unwrap();
    assert_eq!(answers[0], site.daemon.post("/v1/score", &one(&TOKENS)).json(200));
    assert_eq!(answers[1]["field"], "requests[1].token_ids");
    assert_eq!(answers[2]["workers"][0]["matched_blocks"], 1);
    assert_eq!(answers[3]["reason"], "unknown_model");
    assert_eq!((&answers[4]["field"], &answers[4]["index"]), (&json!("requests"), &json!(4)));
    assert_eq!(answers[5]["field"], "requests[5].candidates");
    let (mixed, many) = (json!({ "requests": [], "model": "m" }), vec![json!({}); 4097]);
    let none = json!({});
    for (body, field) in
        [(mixed, "model"), (json!({ "requests": many }), "requests"), (none, "requests")]
    {
        assert_eq!(site.daemon.post("/v1/score/batch", &body).json(400)["field"], field);
    }
}

#[test]
fn labels_are_replaced_by_a_later_registration_and_come_back_after_a_restart() {
    let directory =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("labels-{}", std::process::id()));
    let flags = ["--state", directory.to_str().unwrap()];
    let daemon = Daemon::start(&flags, "", &[]);
    let register = |daemon: &Daemon, labels: Option<Value>| {
        let mut body = json!({
            "endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": "m", "instance_id": "a",
            "block_size": 16, "dp_rank": 0,
        });
        labels.into_iter().for_each(|labels| body["labels"] = labels);
        daemon.post("/register", &body)
    };
    for (labels, after) in [
        (
            Some(json!({ "role": "prefill", "zone": "x" })),
            json!({ "role": "prefill", "zone": "x" }),
        ),
        (None, json!({ "role": "prefill", "zone": "x" })),
        (Some(json!({ "role": "decode" })), json!({ "role": "decode" })),
    ] {
        register(&daemon, labels).json(200);
        assert_eq!(daemon.worker("a", 0)["labels"], after);
    }
    for labels in
        [json!({ "role": 5 }), json!(["role"]), json!({ "": "x" }), json!({ "x": "y".repeat(300) })]
    {
        let error = register(&daemon, Some(labels)).json(400);
        assert!(error["field"].as_str().unwrap().starts_with("labels"), "{error}");
    }
    daemon.terminate();
    let daemon = Daemon::start(&flags, "", &[]);
    assert_eq!(daemon.worker("a", 0)["labels"], json!({ "role": "decode" }));
}

#[test]
fn an_explanation_names_the_first_divergence_of_each_worker() {
    let mut site = Site::new(&[("far", ""), ("hole", ""), ("new", "")], "");
    site.feed("far", &[stored(&[1, 2], None, &TOKENS[..8])]);
    site.feed("hole", &[stored(&[1, 2], None, &TOKENS[..8]), removed(&[1], "GPU")]);
    site.feed("new", &[with(stored(&[9], None, &[7; 4]), &[("medium", json!("CPU"))])]);
    let question = json!({ "model": "m", "token_ids": TOKENS });
    let answer = site.daemon.post("/v1/explain", &question).json(200);
    let group = |n: usize| answer["workers"][n]["groups"][0].clone();
    let held = json!([{ "from": 0, "to": 2, "tier": "gpu", "known_by": "content" }]);
    assert_eq!((&group(0)["held"], &group(0)["divergence"]), (&held, &Value::Null));
    let hole = json!({ "block": 0, "why": "hole", "next_block": 1 });
    assert_eq!((&group(1)["held"], &group(1)["divergence"]), (&json!([]), &hole));
    assert_eq!(group(2)["divergence"], json!({ "block": 0, "why": "elsewhere" }));
    let asked = json!({ "model": "m", "token_ids": TOKENS, "candidates": ["new", "x"] });
    let answer = site.daemon.post("/v1/explain", &asked).json(200);
    assert_eq!(answer["workers"].as_array().unwrap().len(), 1);
    assert_eq!(answer["unknown_candidates"], json!(["x"]));
}

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

/// Bodies that are wrong, and the field that each error has to name.
const MOONCAKE: [(&str, &str, &str); 27] = [
    ("/query", r#"{"model": "m"}"#, "token_ids"),
    ("/query", r#"{"token_ids": [1]}"#, "model"),
    ("/query", r#"{"model": 5, "token_ids": [1]}"#, "model"),
    ("/query", r#"{"model": "m", "token_ids": {}}"#, "token_ids"),
    ("/query", r#"{"model": "m", "token_ids": [4294967296]}"#, "token_ids"),
    ("/query", r#"{"model": "m", "token_ids": [-1]}"#, "token_ids"),
    ("/query", r#"{"model": "m", "token_ids": [1.5]}"#, "token_ids"),
    ("/query", r#"{"model": "m", "token_ids": [1], "block_size": 0}"#, "block_size"),
    ("/query", r#"{"model": "m", "token_ids": [1], "block_size": "16"}"#, "block_size"),
    ("/query", r#"{"model": "m", "token_ids": [1], "cache_salt": 5}"#, "cache_salt"),
    ("/query", r#"{"model": "m", "token_ids": [1], "lora_name": ["a"]}"#, "lora_name"),
    ("/query", r#"{"model": "m", "token_ids": [1], "lora_id": 3}"#, "lora_id"),
    ("/query", r#"{"model": "m", "token_ids": [1], "instance_id": 7}"#, "instance_id"),
    ("/query", r#"{"model": "m", "token_ids": [1], "tenant": "x"}"#, "tenant"),
    ("/query_by_hash", r#"{"model": "m", "block_size": 16}"#, "seq_hashes"),
    ("/query_by_hash", r#"{"model": "m", "seq_hashes": [1]}"#, "block_size"),
    ("/query_by_hash", r#"{"model": "m", "block_size": 16, "seq_hashes": ["1"]}"#, "seq_hashes"),
    ("/query_by_hash", r#"{"model": "m", "block_size": 16, "block_hashes": [1]}"#, "block_hashes"),
    (
        "/query_by_hash",
        r#"{"model": "m", "block_size": 16, "seq_hashes": [18446744073709551616]}"#,
        "seq_hashes",
    ),
    ("/register", r#"{"modelname": "m", "type": "vLLM"}"#, "endpoint"),
    ("/register", r#"{"modelname": "m", "endpoint": "tcp://h:1", "type": "vllm"}"#, "type"),
    (
        "/register",
        r#"{"modelname": "m", "endpoint": "tcp://h:1", "type": "vLLM", "instance_id": "a",
            "block_size": 16, "dp_rank": -1}"#,
        "dp_rank",
    ),
    (
        "/register",
        r#"{"modelname": "m", "endpoint": "tcp://h:1", "type": "vLLM", "instance_id": "a",
            "block_size": 4294967296, "dp_rank": 0}"#,
        "block_size",
    ),
    ("/register", r#"{"modelname": "m", "endpoint": "tcp://h:1", "kind": "vLLM"}"#, "kind"),
    (
        "/register",
        r#"{"modelname": "m", "endpoint": "tcp://h:1", "cache_group": 1}"#,
        "cache_group",
    ),
    ("/query", r#"{"model": "m", "token_ids": [1], "cache_group": "0"}"#, "cache_group"),
    ("/unregister", r#"{"dp_rank": 0}"#, "instance_id"),
];

const DYNAMO: [(&str, &str, &str); 17] = [
    ("/query", r#"{"model_name": "m"}"#, "token_ids"),
    ("/query", r#"{"model_name": "m", "token_ids": "1"}"#, "token_ids"),
    ("/query", r#"{"model_name": "m", "token_ids": [1, -2]}"#, "token_ids"),
    ("/query", r#"{"model_name": ["m"], "token_ids": [1]}"#, "model_name"),
    ("/query", r#"{"model_name": "m", "token_ids": [1], "cache_salt": {}}"#, "cache_salt"),
    ("/query", r#"{"model_name": "m", "token_ids": [1], "routing_group": 1}"#, "routing_group"),
    ("/query_by_hash", r#"{"model_name": "m", "block_hashes": 5}"#, "block_hashes"),
    (
        "/query_by_hash",
        r#"{"model_name": "m", "block_hashes": [1], "cache_salt": "s"}"#,
        "cache_salt",
    ),
    ("/query_tiered_by_hash", r#"{"model_name": "m", "block_hashes": [1e3]}"#, "block_hashes"),
    ("/register", r#"{"model_name": "m", "instance_id": "7"}"#, "instance_id"),
    (
        "/register",
        r#"{"model_name": "m", "instance_id": 18446744073709551616, "block_size": 16}"#,
        "instance_id",
    ),
    (
        "/register",
        r#"{"model_name": "m", "instance_id": 7, "block_size": 16, "endpoint": "ipc:///a"}"#,
        "endpoint",
    ),
    ("/query_by_hash", r#"{"model_name": "m", "seq_hashes": [1]}"#, "seq_hashes"),
    ("/query_by_hash", r#"{"model_name": "m", "block_hash": [1]}"#, "block_hash"),
    ("/unregister", r#"{"model_name": "m"}"#, "instance_id"),
    ("/unregister", r#"{"instance_id": 7}"#, "model_name"),
    ("/register_peer", r#"{"url": 5}"#, "url"),
];

const OURS: [(&str, &str, &str); 22] = [
    ("/v1/score", r#"{}"#, "token_ids"),
    ("/v1/score", r#"{"token_ids": [1], "prompt": "a"}"#, "prompt"),
    ("/v1/score", r#"{"token_ids": [null]}"#, "token_ids"),
    ("/v1/score", r#"{"token_ids": [1], "modell": "m"}"#, "modell"),
    ("/v1/score", r#"{"token_ids": [1], "lora": 5}"#, "lora"),
    ("/v1/score", r#"{"token_ids": [1], "lora": {"id": 5}}"#, "lora.name"),
    ("/v1/score", r#"{"token_ids": [1], "lora": {"name": "a", "id": "5"}}"#, "lora.id"),
    ("/v1/score", r#"{"token_ids": [1], "mm": [{"hash": "a", "offset": 1}]}"#, "mm[0].length"),
    ("/v1/score", r#"{"token_ids": [1], "mm": [5]}"#, "mm[0]"),
    ("/v1/score", r#"{"token_ids": [1], "candidates": [5]}"#, "candidates[0]"),
    ("/v1/score", r#"{"token_ids": [1], "candidates": [{"rank": 0}]}"#, "candidates[0].worker"),
    ("/v1/score", r#"{"token_ids": [1], "labels": 5}"#, "labels"),
    ("/v1/score/batch", r#"{"requests": 5}"#, "requests"),
    ("/v1/explain", r#"{"token_ids": [1], "cache_salt": 1}"#, "cache_salt"),
    ("/v1/picked", r#"{"token_ids": [1]}"#, "worker"),
    ("/v1/picked", r#"{"token_ids": [1], "worker": "7", "rank": -1}"#, "rank"),
    ("/v1/receipt", r#"{"worker": "7", "cached_tokens": 1}"#, "expected_cached_tokens"),
    (
        "/v1/receipt",
        r#"{"worker": "7", "cached_tokens": 4294967296, "expected_cached_tokens": 1}"#,
        "cached_tokens",
    ),
    ("/v1/receipt", r#"{"worker": "7", "cached": 1}"#, "cached"),
    ("/v1/admin/clear", r#"{"worker": "7", "rank": "0"}"#, "rank"),
    ("/v1/admin/clear", r#"{"worker": 7}"#, "worker"),
    ("/v1/admin/clear", r#"{"workers": "7"}"#, "workers"),
];

#[test]
fn whatever_is_wrong_in_a_body_is_named_and_nothing_known_is_lost() {
    let config = "mooncake_answer = \"branch\"\n[dialects]\ndynamo_hashes = true\n";
    let mut site = Site::new(&[("7", "")], config);
    site.feed("7", &[stored(&[11, 12], None, &TOKENS[..8])]);
    let question = json!({ "model": "m", "token_ids": TOKENS });
    let before = site.daemon.post("/v1/score", &question).json(200);
    for &(path, body, field) in MOONCAKE.iter().chain(&DYNAMO).chain(&OURS) {
        let (status, kind, answer) = site.send(path, "application/json", "", body.as_bytes());
        let error: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!((status, kind.as_str()), (400, "application/json"), "{path} {body}: {error}");
        assert_eq!(error["field"], field, "{path} {body}: {error}");
        assert!(error["error"].as_str().unwrap().contains(field), "{path} {body}: {error}");
        // The same as msgpack, where msgpack can say it.
        if body.contains("18446744073709551616") {
            continue;
        }
        let value: Value = serde_json::from_str(body).unwrap();
        let packed = rmp_serde::to_vec_named(&value).unwrap();
        let (status, _, answer) = site.send(path, MSGPACK, "", &packed);
        let error: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!((status, &error["field"]), (400, &json!(field)), "{path} {body}: {error}");
        // Cut off anywhere it is no map of fields, or one that lacks something.
        for end in 0..packed.len() {
            let (status, _, answer) = site.send(path, MSGPACK, "", &packed[..end]);
            let error: Value = serde_json::from_slice(&answer).unwrap();
            assert_eq!((status, &error["reason"]), (400, &json!("invalid_msgpack")), "{error}");
        }
    }
    // Sizes that nobody sent, and values within values.
    let claims: [&[u8]; 5] = [
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa9token_ids\xdd\xff\xff\xff\xff",
        b"\x81\xa9token_ids\xc6\xff\xff\xff\xff",
        b"\x81\xdb\xff\xff\xff\xff",
        &[&b"\x81\xa1a"[..], &[0x91; 100_000]].concat(),
    ];
    for claim in claims {
        for path in ["/query", "/query_by_hash", "/query_tiered_by_hash", "/register", "/v1/score"]
        {
            let (status, _, answer) = site.send(path, MSGPACK, "", claim);
            let error: Value = serde_json::from_slice(&answer).unwrap();
            assert_eq!((status, &error["reason"]), (400, &json!("invalid_msgpack")), "{error}");
        }
    }
    let deep = format!("{{\"token_ids\": {}", "[".repeat(100_000));
    let (status, _, _) = site.send("/v1/score", "application/json", "", deep.as_bytes());
    assert_eq!(status, 400);
    assert_eq!(site.daemon.post("/v1/score", &question).json(200), before);
}

#[test]
fn unknown_fields_are_refused_where_mooncakes_implementation_refuses_them() {
    let query = json!({ "model": "m", "block_size": 16, "token_ids": [1], "tenant": "x" });
    let dynamo = json!({ "model_name": "m", "token_ids": [1], "tenant": "x" });
    for (config, status) in [("", 200), ("mooncake_answer = \"branch\"", 400)] {
        let site = Site::new(&[("7", "")], config);
        let answer = site.daemon.post("/query", &query).json(status);
        assert_eq!(answer.get("field"), (status == 400).then(|| json!("tenant")).as_ref());
        site.daemon.post("/query", &dynamo).json(200);
        let register = json!({
            "endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": "m", "instance_id": "a",
            "block_size": 16, "dp_rank": 0, "rank": 0, "additional_salt": "s",
        });
        let answer = site.daemon.post("/register", &register).json(status);
        assert_eq!(answer.get("field"), (status == 400).then(|| json!("rank")).as_ref());
    }
}

#[test]
fn peers_are_a_bounded_list() {
    let daemon = Daemon::start(&[], "", &[]);
    let peer = |n: u32| json!({ "url": format!("http://peer-{n}:13333") });
    for n in [2, 1, 2] {
        assert_eq!(daemon.post("/register_peer", &peer(n)).json(201), json!({ "status": "ok" }));
    }
    let listed = json!(["http://peer-1:13333", "http://peer-2:13333"]);
    assert_eq!(daemon.get("/peers").json(200), listed);
    daemon.post("/deregister_peer", &peer(1)).json(200);
    assert_eq!(daemon.post("/deregister_peer", &peer(1)).json(404)["reason"], "unknown_peer");
    for url in ["peer", "http://name:s3cr3t@peer:1", ""] {
        let error = daemon.post("/register_peer", &json!({ "url": url })).json(400);
        assert!(error["field"] == "url" && !error.to_string().contains("s3cr3t"), "{error}");
    }
    for n in 3..258 {
        daemon.post("/register_peer", &peer(n)).json(201);
    }
    assert_eq!(daemon.post("/register_peer", &peer(258)).json(503)["reason"], "unavailable");
}

#[test]
fn the_description_is_what_the_daemon_takes_and_gives() {
    let tokenizer = tokenize_support::folder("llama3");
    let config = format!(
        "models.m.tokenizer = \"{}\"\ndialects.dynamo_hashes = true\n",
        tokenizer.display()
    );
    let mut site = Site::new(&[("7", "labels = [\"role=prefill\"]")], &config);
    site.feed("7", &[stored(&[11, 12], None, &TOKENS[..8])]);
    let document = site.daemon.get("/openapi.json").json(200);
    let description = openapi_support::Description::new(&document);
    let mut examples = 0;
    for (path, operation) in description.operations("get") {
        let answer = site.daemon.get(path);
        let answered = serde_json::from_str::<Value>(&answer.body).ok();
        description.check_answer(path, operation, answer.status, answered.as_ref());
    }
    let (_, workers) = description.operations("get").find(|(path, _)| *path == "/workers").unwrap();
    let list = site.daemon.get("/workers?routing_group=default").json(200);
    assert_eq!(list.as_array().unwrap().len(), 1);
    description.check_answer("/workers", workers, 200, Some(&list));
    for (path, operation) in description.operations("post") {
        for (name, example) in description.examples(operation) {
            description.check_body(path, operation, example);
            let answer = site.daemon.post(path, example);
            let is_known = answer.status < 400 || answer.status == 404;
            assert!(is_known, "{path}, {name}: {} {}", answer.status, answer.body);
            let answered = serde_json::from_str(&answer.body).unwrap();
            description.check_answer(path, operation, answer.status, Some(&answered));
            examples += 1;
        }
    }
    assert!(examples >= 19, "{examples}");
    for (path, wrong) in [
        ("/v1/score", json!({ "model": "m" })),
        ("/v1/score", json!({ "token_ids": [-1] })),
        ("/v1/score", json!({ "model": "m", "prompt": ["a"] })),
        ("/v1/score", json!({ "model": "m", "messages": [] })),
        ("/v1/score", json!({ "token_ids": [1], "modell": "m" })),
        (
            "/v1/receipt",
            json!({ "worker": "7", "cached_tokens": "5", "expected_cached_tokens": 5 }),
        ),
        ("/register", json!({ "modelname": "m", "endpoint": "tcp://a:1" })),
    ] {
        let (_, operation) = description.operations("post").find(|(p, _)| *p == path).unwrap();
        assert!(description.wrong_body(operation, &wrong).is_some(), "{path} {wrong}");
        site.daemon.post(path, &wrong).json(400);
    }
}

/// A Python that has `msgpack`, which is not ours.
fn python() -> Option<Command> {
    let found = ["python3", "/usr/bin/python3"].into_iter().find(|python| {
        let mut probe = Command::new(python);
        probe.args(["-c", "import msgpack"]).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    });
    let required = std::env::var_os("KVSCOUT_TEST_CLIENTS").is_some();
    assert!(found.is_some() || !required, "there is no Python with msgpack");
    found.map(Command::new)
}

#[test]
fn a_client_written_with_pythons_msgpack_is_answered() {
    let Some(mut python) = python() else {
        eprintln!("skipped: there is no Python with msgpack (Debian: python3-msgpack)");
        return;
    };
    let mut site = Site::new(&[("7", "")], "[dialects]\ndynamo_hashes = true\n");
    site.feed("7", &[stored(&[11, 12], None, &TOKENS[..8])]);
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/dialects_client.py");
    let run = python.arg(script).arg(site.daemon.address()).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&run.stdout).trim(), "11 answers", "{said}");
}
