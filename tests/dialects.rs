//! The HTTP dialects: every form of a request and of an answer, and their description.
#![cfg(feature = "daemon")]

mod daemon_support;
mod dialects_support;
mod failures_support;
mod openapi_support;
mod tokenize_support;
mod zmq_support;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use daemon_support::Daemon;
use dialects_support::{MSGPACK, Site, TOKENS, little_endian, with_binary_tokens};
use failures_support::{removed, stored, with};
use serde_json::{Value, json};

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
