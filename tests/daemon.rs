//! The daemon from outside: a real process, real engines' batches over real sockets, HTTP.
#![cfg(feature = "daemon")]

mod daemon_support;
mod zmq_support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use kvscout::event::{Batch as Events, Event, Limits};
use serde_json::{Value, json};

use daemon_support::{Daemon, Step, batches, config_file, kvscout, recording};
use zmq_support::{bound_publisher, dialling_publisher, eventually, publish};

/// A daemon with one source, pod 7, and that pod's publisher.
fn with_pod_7(flags: &[&str]) -> (Daemon, zmq::Socket) {
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let source = format!("7={endpoint}");
    let daemon = Daemon::start(&[&["--source", &source, "--model", "m"], flags].concat(), "", &[]);
    eventually("the source is added", || daemon.get("/ready").status == 200);
    (daemon, socket)
}

#[test]
fn every_answer_of_every_dialect_equals_the_engine_s_own() {
    let (daemon, socket) = with_pod_7(&[]);
    let mut last = None;
    let mut questions = 0;
    for step in recording() {
        let (line, computed) = match step {
            Step::Batch(batch) => {
                match last {
                    None => daemon.feed(&socket, "kv@7@m", &batch, "7"),
                    Some(_) => publish(&socket, b"kv@7@m", batch.seq, &batch.payload),
                }
                last = Some(batch.seq);
                continue;
            }
            Step::Question { line, computed } => (line, computed),
        };
        if let Some(seq) = last {
            eventually("all batches are applied", || daemon.has_applied("7", 0, seq));
        }
        questions += 1;
        let (tokens, salt) = (&line["tokens"], &line["salt"]);
        let own = json!({
            "model": "m", "token_ids": tokens, "cache_salt": salt, "lora": line["lora"],
        });
        let answer = daemon.post("/v1/score", &own).json(200);
        let worker = &answer["workers"][0];
        assert_eq!(worker["expected_cached_tokens"], computed, "{} {answer}", line["id"]);
        assert_eq!((&worker["worker"], &worker["trust"]), (&json!("7"), &json!("exact")));
        assert_eq!(worker["as_of"], json!(last));

        // The dialects count what is held; the engine computes at least the last token.
        let most = tokens.as_array().unwrap().len().saturating_sub(1) / 16 * 16;
        let lora = &line["lora"]["name"];
        let mooncake = json!({
            "model": "m", "block_size": 16, "token_ids": tokens, "cache_salt": salt,
            "lora_name": lora,
        });
        let answer = daemon.post("/query", &mooncake).json(200);
        let held = &answer["default"]["7"];
        assert_eq!(held["GPU"].as_u64().unwrap().min(most as u64), computed, "{answer}");
        assert_eq!(held["longest_matched"], held["DISK"]);
        let dynamo = json!({
            "model_name": "m", "token_ids": tokens, "cache_salt": salt, "lora_name": lora,
        });
        let answer = daemon.post("/query", &dynamo).json(200);
        assert_eq!(answer["scores"]["7"]["0"], held["GPU"]);
    }
    assert!(questions > 70);
    let worker = daemon.worker("7", 0);
    assert_eq!(worker["contract"]["algorithm"], "sha256_cbor");
    assert_eq!(worker["groups"][0]["block_size"], 16);
    assert_eq!(worker["link"]["state"], "up");
    assert!(worker["events"]["stored"].as_u64().unwrap() > 0);
}

#[test]
fn the_dialects_answer_in_their_documented_shapes() {
    let (daemon, socket) = with_pod_7(&[]);
    let batches = batches();
    daemon.feed(&socket, "", &batches[0], "7");
    let parsed = Events::parse(&batches[0].payload, &Limits::default()).unwrap();
    let Some(Ok(Event::Stored(stored))) = parsed.events().next() else { panic!("a store") };
    let tokens: Vec<u64> = stored.tokens.iter().collect();
    let names: Vec<u64> = stored.names.names().map(|name| name.0).collect();

    let body = json!({ "model": "m", "block_size": 16, "token_ids": tokens });
    let held = json!({
        "longest_matched": 16, "GPU": 16, "CPU": 16, "DISK": 16, "DP": { "0": 16 },
    });
    let expected = json!({ "default": { "7": held } });
    assert_eq!(daemon.post("/query", &body).json(200), expected);
    for name in ["seq_hashes", "block_hash"] {
        let body = json!({ "model": "m", "block_size": 16, name: names });
        assert_eq!(daemon.post("/query_by_hash", &body).json(200), expected);
    }
    let body = json!({ "model": "m", "block_size": 16, "token_ids": tokens, "instance_id": "8" });
    assert_eq!(daemon.post("/query", &body).json(200), json!({}));
    let body = json!({ "model": "other", "block_size": 16, "token_ids": tokens });
    assert_eq!(daemon.post("/query", &body).json(200), json!({}));

    let body = json!({ "model_name": "m", "token_ids": tokens });
    let expected = json!({
        "scores": { "7": { "0": 16 } },
        "frequencies": [],
        "instances": {
            "7": { "longest_matched": 16, "gpu": 16, "dp": { "0": 16 }, "cpu": 16, "disk": 16 },
        },
    });
    assert_eq!(daemon.post("/query", &body).json(200), expected);
    let body = json!({ "model_name": "other", "token_ids": tokens });
    assert_eq!(daemon.post("/query", &body).json(404)["reason"], "unknown_model");
    let body = json!({ "model_name": "m", "block_hashes": [1, -2] });
    let error = daemon.post("/query_by_hash", &body).json(501);
    assert!(error["error"].as_str().unwrap().contains("keyed digests"), "{error}");

    let body = json!({ "model": "m", "token_ids": tokens, "candidates": ["7", "9"] });
    let answer = daemon.post("/v1/score", &body).json(200);
    let expected = json!({
        "workers": [{
            "worker": "7", "rank": 0, "matched_blocks": 1, "expected_cached_tokens": 0,
            "tiers": { "gpu": 16, "cpu": 16, "disk": 16, "remote": 16 },
            "score": 1.0, "ratio": 1.0, "as_of": 0, "trust": "exact",
        }],
        "unknown_candidates": ["9"],
    });
    assert_eq!(answer, expected);
}

#[test]
fn a_worker_that_was_never_heard_of_is_silent() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = free.local_addr().unwrap();
    drop(free);
    let (socket, endpoint) = bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*");
    let sources = [format!("gone=tcp://{nobody}"), format!("here={endpoint}")];
    let daemon = Daemon::start(&["--source", &sources[0], "--source", &sources[1]], "", &[]);
    eventually("the sources are added", || daemon.get("/ready").status == 200);
    let trust = |pod: &str| {
        let question = json!({ "token_ids": [1], "candidates": [pod] });
        let scored = daemon.post("/v1/score", &question).json(200);
        let shown = daemon.worker(pod, 0);
        assert_eq!((&scored["workers"][0]["as_of"], &shown["as_of"]), (&Value::Null, &Value::Null));
        (scored["workers"][0]["trust"].clone(), shown["trust"].clone())
    };
    let both = |trust: &str| (json!(trust), json!(trust));
    eventually("the link is up", || daemon.worker("here", 0)["link"]["state"] == "up");
    assert_eq!(trust("here"), both("exact"), "it has published nothing: that is known");
    assert_eq!(trust("gone"), both("silent"));
    let metrics = daemon.get("/metrics").body;
    for line in ["kvscout_workers{trust=\"exact\"} 1", "kvscout_workers{trust=\"silent\"} 1"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    daemon.feed(&socket, "", &batches()[0], "here");
    drop(socket);
    eventually("the link is down", || daemon.worker("here", 0)["link"]["state"] == "down");
    assert_eq!(daemon.worker("here", 0)["trust"], "exact", "as of the batch that it names");
}

#[test]
fn a_million_tokens_are_answered() {
    let daemon = Daemon::start(&["--source", "a=tcp://127.0.0.1:9"], "", &[]);
    eventually("the source is added", || daemon.get("/ready").status == 200);
    let tokens: Vec<u32> = (0..1_000_000).collect();
    let answer = daemon.post("/v1/score", &json!({ "token_ids": tokens })).json(200);
    assert_eq!(answer["workers"][0]["matched_blocks"], 0);
}

#[test]
fn every_route_is_documented() {
    let daemon = Daemon::start(&[], "", &[]);
    let document = include_str!("../docs/http.md");
    let unknown = daemon.get("/nowhere").json(404);
    let routes = unknown["error"].as_str().unwrap().split([' ', ',']);
    for route in routes.filter(|word| word.starts_with('/')) {
        assert!(document.contains(&format!(" {route}`")), "{route}");
    }
}

#[test]
fn mooncake_s_other_answer_is_a_matter_of_configuration() {
    let daemon = Daemon::start(&[], "mooncake_answer = \"branch\"", &[]);
    let body = json!({ "model": "m", "block_size": 16, "token_ids": [1] });
    assert_eq!(daemon.post("/query", &body).json(200), json!({ "instances": {} }));
}

#[test]
fn mooncake_registers_and_unregisters() {
    let daemon = Daemon::start(&[], "", &[]);
    let body = json!({
        "endpoint": "tcp://127.0.0.1:9", "replay_endpoint": "tcp://127.0.0.1:10", "type": "vLLM",
        "modelname": "m", "instance_id": "a", "block_size": 16, "dp_rank": 1, "lora_name": "sql",
        "additionalsalt": "w8a8",
        "hash_profile": {
            "strategy": "vllm_v1", "algorithm": "sha256_cbor", "python_hash_seed": "0",
            "index_projection": "low64_be",
        },
    });
    let registered = json!({ "status": "registered successfully", "instance_id": "a" });
    for _ in 0..2 {
        assert_eq!(daemon.post("/register", &body).json(200), registered);
    }
    let worker = daemon.worker("a", 1);
    assert_eq!(worker["replay_endpoint"], "tcp://127.0.0.1:10");
    assert_eq!(worker["link"]["state"], "down");
    let adapter = json!({ "model": "sql", "token_ids": [1] });
    assert_eq!(daemon.post("/v1/score", &adapter).json(200)["workers"][0]["worker"], "a");
    let mut other = body.clone();
    other["endpoint"] = json!("tcp://127.0.0.1:11");
    assert_eq!(daemon.post("/register", &other).json(409)["reason"], "conflict");
    other["type"] = json!("ollama");
    assert_eq!(daemon.post("/register", &other).json(400)["field"], "type");
    let gone = json!({ "instance_id": "a", "dp_rank": 1 });
    let expected =
        json!({ "status": "unregistered successfully", "removed_instances": ["a|default|1"] });
    assert_eq!(daemon.post("/unregister", &gone).json(200), expected);
    assert_eq!(daemon.post("/unregister", &gone).json(404)["reason"], "unknown_worker");
    assert_eq!(daemon.worker("a", 1), Value::Null);
}

#[test]
fn whoever_may_register_can_add_so_many_workers_and_adapters_and_no_more() {
    let config = "[limits]\nregistered_workers = 2\nadapters = 2\n\
                  [[source]]\nname = \"configured\"\nendpoint = \"tcp://127.0.0.1:9\"\nmodel = \"m\"\n\
                  [[adapter]]\nname = \"own\"\nmodel = \"gone\"\n";
    let daemon = Daemon::start(&[], config, &[]);
    let of = |instance: &str, model: &str, lora: Option<&str>| {
        json!({
            "endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": model, "dp_rank": 0,
            "instance_id": instance, "block_size": 16, "lora_name": lora,
        })
    };
    let register = |instance, model, lora| daemon.post("/register", &of(instance, model, lora));
    #[track_caller]
    fn refused(answer: daemon_support::Response, limit: &str) {
        let refused = answer.json(403);
        assert_eq!(refused["reason"], "not_allowed");
        let error = refused["error"].as_str().unwrap();
        assert!(error.contains("2 (") && error.contains(limit), "{error}");
    }
    let knows = |adapter: &str| {
        let asked = daemon.post("/v1/score", &json!({ "model": adapter, "token_ids": [1] }));
        asked.status == 200
    };
    // A name that is too long to be kept says which, and by how much.
    let long = "a".repeat(1025);
    for (field, body) in [
        ("instance_id", of(&long, "m", None)),
        ("modelname", of("a", &long, None)),
        ("lora_name", of("a", "m", Some(&long))),
    ] {
        let refused = daemon.post("/register", &body).json(400);
        assert_eq!(
            (&refused["reason"], &refused["field"]),
            (&json!("invalid_field"), &json!(field))
        );
        assert_eq!(refused["error"], format!("field '{field}': 1025 bytes; expected 1024 at most"));
    }
    register("a", "m", Some("sql")).json(200);
    register("b", "gone", Some("chat")).json(200);
    assert!(knows("sql") && knows("chat") && knows("own"));
    refused(register("c", "m", None), "limits.registered_workers");
    let dynamo = json!({
        "instance_id": 7, "model_name": "m", "endpoint": "tcp://127.0.0.1:9", "block_size": 16,
    });
    refused(daemon.post("/register", &dynamo), "limits.registered_workers");
    refused(register("a", "m", Some("third")), "limits.adapters");
    assert!(!knows("third"));
    // What is known may be said again, and the configuration's own is left aside.
    register("a", "m", Some("sql")).json(200);
    assert_eq!(daemon.worker("configured", 0)["worker"], "configured");
    // The last worker of a model takes the adapters along that were registered for it, and makes room.
    daemon.post("/unregister", &json!({ "instance_id": "b" })).json(200);
    assert!(knows("sql") && !knows("chat"));
    register("a", "m", Some("third")).json(200);
    register("c", "gone", None).json(200);
    assert!(knows("third") && knows("own"));
    daemon.post("/unregister", &json!({ "instance_id": "a" })).json(200);
    assert!(knows("sql"), "the configured worker serves its model");
}

#[test]
fn dynamo_registers_and_unregisters() {
    let daemon = Daemon::start(&[], "", &[]);
    let body = json!({
        "endpoint": "tcp://127.0.0.1:9", "model_name": "m", "instance_id": u64::MAX,
        "block_size": 16, "routing_group": "blue", "tenant_id": "ignored",
    });
    assert_eq!(daemon.post("/register", &body).json(201), json!({ "status": "ok" }));
    let worker = daemon.worker("18446744073709551615", 0);
    assert_eq!((&worker["tenant"], &worker["rank"]), (&json!("blue"), &json!(0)));
    let mut other = body.clone();
    other["block_size"] = json!(32);
    assert_eq!(daemon.post("/register", &other).json(409)["reason"], "conflict");
    other["instance_id"] = json!("text");
    assert_eq!(daemon.post("/register", &other).json(400)["field"], "instance_id");
    let question = json!({ "model_name": "m", "token_ids": [1] });
    daemon.post("/query", &question).json(404);
    let gone = json!({ "instance_id": u64::MAX, "model_name": "m", "routing_group": "blue" });
    assert_eq!(daemon.post("/unregister", &gone).json(200), json!({ "status": "ok" }));
    daemon.post("/unregister", &gone).json(404);
}

#[test]
fn bad_requests_name_what_is_wrong() {
    let environment = [("KVSCOUT_LIMITS_MAX_BODY_BYTES", "2000")];
    let daemon = Daemon::start(&["--source", "a=tcp://127.0.0.1:9"], "", &environment);
    eventually("the source is added", || daemon.get("/ready").status == 200);
    for (path, body, field) in [
        ("/v1/score", json!({ "model": "m" }), "token_ids"),
        ("/v1/score", json!({ "token_ids": [1, 4_294_967_296_u64] }), "token_ids"),
        ("/v1/score", json!({ "token_ids": [-1] }), "token_ids"),
        ("/v1/score", json!({ "token_ids": [0.5] }), "token_ids"),
        ("/v1/score", json!({ "token_ids": [1], "token_idz": [] }), "token_idz"),
        ("/v1/score", json!({ "token_ids": [1], "mm": [{ "hash": "x" }] }), "mm[0].offset"),
        (
            "/v1/score",
            json!({ "token_ids": [1], "candidates": [{ "worker": "a", "rank": 3 }] }),
            "candidates",
        ),
        ("/query", json!({ "model": "m", "token_ids": [1], "block_size": 0 }), "block_size"),
        ("/query", json!({ "token_ids": [1] }), "model"),
        ("/query", json!({ "model": "m", "model_name": "m", "token_ids": [1] }), "model_name"),
        ("/query_by_hash", json!({ "model": "m", "seq_hashes": [1] }), "block_size"),
        ("/register", json!({ "modelname": "m", "endpoint": "tcp://*:1" }), "endpoint"),
        ("/register", json!({ "model_name": "m", "instance_id": 1 }), "block_size"),
        ("/register", json!({ "modelname": "m", "endpoint": "ipc:///run/vllm.sock" }), "endpoint"),
        (
            "/register",
            json!({
                "model_name": "m", "instance_id": 1, "block_size": 16,
                "endpoint": "ipc:///run/vllm.sock",
            }),
            "endpoint",
        ),
        (
            "/register",
            json!({
                "model_name": "m", "instance_id": 1, "block_size": 16,
                "endpoint": "tcp://127.0.0.1:9", "replay_endpoint": "ipc://a",
            }),
            "replay_endpoint",
        ),
        ("/v1/score", json!({ "model": 5, "token_ids": [1] }), "model"),
    ] {
        let error = daemon.post(path, &body).json(400);
        assert_eq!(error["field"], field, "{body} {error}");
        assert!(error["error"].as_str().unwrap().contains(field), "{error}");
    }
    let json = "content-type: application/json\r\n";
    assert_eq!(daemon.send("POST", "/query", json, "{").json(400)["reason"], "invalid_json");
    let error = daemon.post("/query", &json!([])).json(400);
    assert!(error["error"].as_str().unwrap().contains("found a list"), "{error}");
    let long = json!({ "token_ids": vec![1; 1000] });
    assert_eq!(daemon.post("/v1/score", &long).json(413)["reason"], "body_too_large");
    let msgpack = "content-type: application/msgpack\r\n";
    let error = daemon.send("POST", "/query", msgpack, "\u{1}").json(400);
    assert_eq!(error["reason"], "invalid_msgpack");
    for (path, kind) in [("/query", "application/octet-stream"), ("/v1/score", "text/plain")] {
        let error = daemon.send("POST", path, &format!("content-type: {kind}\r\n"), "{}").json(415);
        assert!(error["error"].as_str().unwrap().contains(kind), "{error}");
    }
    assert_eq!(daemon.get("/nowhere").json(404)["reason"], "unknown_path");
    assert_eq!(daemon.get("/query").json(405)["reason"], "wrong_method");
    let unknown = json!({ "model": "m", "tenant": "other", "token_ids": [1] });
    assert_eq!(daemon.post("/v1/score", &unknown).json(404)["reason"], "unknown_model");
    let metrics = daemon.get("/metrics").body;
    for line in [
        "kvscout_http_requests_total{route=\"other\",status=\"404\"} 1",
        "kvscout_http_requests_total{route=\"/v1/score\",status=\"413\"} 1",
        "kvscout_workers{trust=\"silent\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[test]
fn a_client_that_sends_too_much_before_it_reads_has_its_answer() {
    let environment = [("KVSCOUT_LIMITS_MAX_BODY_BYTES", "2000000")];
    let daemon = Daemon::start(&[], "", &environment);
    // More than both sockets' buffers hold, so that the client depends on being read.
    let body = "7".repeat(7_500_000);
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for (framing, body) in [
        (format!("content-length: {}", body.len()), &body),
        ("transfer-encoding: chunked".to_owned(), &chunked),
    ] {
        let mut stream = TcpStream::connect(daemon.address()).unwrap();
        let head = format!(
            "POST /query HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n{framing}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{framing}: {answer}");
        assert!(answer.contains("body_too_large"), "{framing}: {answer}");
    }
    // Who waits for leave to send is told at once.
    let mut stream = TcpStream::connect(daemon.address()).unwrap();
    let head = "POST /query HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\
                expect: 100-continue\r\ncontent-length: 7500000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[test]
fn a_gap_shows_on_its_worker_and_in_its_scores() {
    let (daemon, socket) = with_pod_7(&[]);
    let batches = batches();
    daemon.feed(&socket, "", &batches[0], "7");
    publish(&socket, b"", 3, &batches[3].payload);
    eventually("the batch after the gap is applied", || daemon.has_applied("7", 0, 3));
    let worker = daemon.worker("7", 0);
    assert_eq!((&worker["gaps"], &worker["missing"]), (&json!(1), &json!(2)));
    assert_eq!((&worker["trust"], &worker["reason"]), (&json!("degraded"), &json!("gap")));
    let answer = daemon.post("/v1/score", &json!({ "token_ids": [1] })).json(200);
    assert_eq!(answer["workers"][0]["reason"], "gap");
    let metrics = daemon.get("/metrics").body;
    for line in ["kvscout_gaps_total 1", "kvscout_missing_batches_total 2"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let gone = json!({ "instance_id": 7, "model_name": "m" });
    daemon.post("/unregister", &gone).json(200);
    let metrics = daemon.get("/metrics").body;
    assert!(metrics.contains("kvscout_gaps_total 1"), "a counter never falls: {metrics}");
}

#[test]
fn ranks_are_workers_of_their_own_at_the_next_ports() {
    let context = zmq::Context::new();
    let (first, second, endpoint) = (0..100)
        .find_map(|_| {
            let (first, endpoint) = bound_publisher(&context, "tcp://127.0.0.1:*");
            let port: u16 = endpoint.rsplit_once(':')?.1.parse().ok()?;
            let second = context.socket(zmq::PUB).ok()?;
            second.bind(&format!("tcp://127.0.0.1:{}", port.checked_add(1)?)).ok()?;
            Some((first, second, endpoint))
        })
        .expect("two neighbouring ports");
    let daemon = Daemon::start(&["--source", &format!("pod={endpoint},ranks=2")], "", &[]);
    let batches = batches();
    daemon.feed(&first, "", &batches[0], "pod");
    eventually("rank 1 is applied, too", || {
        publish(&second, b"", 0, &batches[1].payload);
        daemon.has_applied("pod", 1, 0)
    });
    let parsed = Events::parse(&batches[0].payload, &Limits::default()).unwrap();
    let Some(Ok(Event::Stored(stored))) = parsed.events().next() else { panic!("a store") };
    let tokens: Vec<u64> = stored.tokens.iter().collect();
    let body = json!({ "model": "m", "block_size": 16, "token_ids": tokens });
    let answer = daemon.post("/query", &body).json(200);
    assert_eq!(answer["default"]["pod"]["DP"], json!({ "0": 16, "1": 0 }));
    let body = json!({ "token_ids": tokens, "candidates": [{ "worker": "pod", "rank": 1 }] });
    let answer = daemon.post("/v1/score", &body).json(200);
    assert_eq!(answer["workers"].as_array().unwrap().len(), 1);
    assert_eq!(answer["workers"][0]["matched_blocks"], 0);
}

#[test]
fn a_bound_source_waits_for_its_engine() {
    let file = "[[source]]\nname = \"a\"\nendpoint = \"tcp://127.0.0.1:*\"\nmode = \"bind\"";
    let daemon = Daemon::start(&[], file, &[]);
    eventually("the source is added", || daemon.get("/ready").status == 200);
    let endpoint = daemon.worker("a", 0)["endpoint"].as_str().unwrap().to_owned();
    let socket = dialling_publisher(&zmq::Context::new(), &endpoint);
    daemon.feed(&socket, "kv@someone-else@m", &batches()[0], "a");
    let metrics = daemon.get("/metrics").body;
    let counted = metrics.lines().find(|line| line.contains("{kind=\"mismatched\"}")).unwrap();
    assert!(!counted.ends_with(" 0"), "the topic names another pod: {counted}");
}

#[test]
fn trusted_topics_register_their_pods() {
    let file = "trust_topics = true\ntopic_bind = \"tcp://127.0.0.1:*\"\n[log]\nformat = \"json\"";
    let daemon = Daemon::start(&[], file, &[]);
    eventually("the endpoint is bound", || daemon.get("/ready").status == 200);
    let mut endpoint = String::new();
    eventually("the endpoint is logged", || {
        let log = daemon.stderr();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let found = lines.filter_map(|line| line["fields"]["endpoint"].as_str().map(str::to_owned));
        endpoint = found.collect();
        !endpoint.is_empty()
    });
    let socket = dialling_publisher(&zmq::Context::new(), &endpoint);
    daemon.feed(&socket, "kv@10.0.0.1:8000@org/model@v2", &batches()[0], "10.0.0.1:8000");
    let worker = daemon.worker("10.0.0.1:8000", 0);
    assert_eq!(worker["model"], "org/model@v2");
    assert_eq!(worker["link"]["state"], "shared");
}

#[test]
fn a_source_that_cannot_be_added_keeps_the_daemon_from_being_ready() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let file =
        format!("[[source]]\nname = \"a\"\nendpoint = \"tcp://127.0.0.1:{port}\"\nmode = \"bind\"");
    let daemon = Daemon::start(&[], &file, &[]);
    assert_eq!(daemon.get("/health").json(200), json!({ "status": "alive" }));
    let answer = daemon.get("/ready").json(503);
    assert!(answer["reason"].as_str().unwrap().contains("source \"a\""), "{answer}");
    drop(taken);
    eventually("the source is added", || daemon.get("/ready").status == 200);
}

#[test]
fn a_signal_ends_the_daemon_in_time_even_with_a_request_under_way() {
    for name in ["TERM", "INT"] {
        let file = "[limits]\ndrain = \"100ms\"\nread_timeout = \"60m\"";
        let daemon = Daemon::start(&[], file, &[]);
        let mut half = TcpStream::connect(daemon.address()).unwrap();
        half.write_all(b"POST /v1/score HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\n{")
            .unwrap();
        daemon.get("/health").json(200);
        daemon.signal(name);
        let (status, log) = daemon.end();
        assert_eq!(status.code(), Some(0), "{log}");
    }
}

#[test]
fn tokens_salts_and_seeds_are_never_logged() {
    let (daemon, socket) = with_pod_7(&["--log-level", "trace", "--seed", "918273645"]);
    for batch in batches().iter().take(20) {
        daemon.feed(&socket, "", batch, "7");
    }
    publish(&socket, b"", 20, b"s3cr3t-payload");
    eventually("the broken batch is seen", || daemon.worker("7", 0)["trust"] == "degraded");
    let salted = json!({
        "model": "m", "token_ids": [1_234_567_891], "cache_salt": "s3cr3t-salt", "mm": [],
    });
    daemon.post("/v1/score", &salted).json(200);
    let wrong = json!({ "model": "m", "token_ids": [12_345_678_912_u64], "cache_salt": [987_654] });
    let mut answers = daemon.post("/v1/score", &wrong).body;
    let wrong = json!({ "model": "m", "token_ids": [1], "block_size": 16, "cache_salt": 987_654 });
    answers += &daemon.post("/query", &wrong).body;
    let body = json!({
        "endpoint": "tcp://127.0.0.1:9", "type": "vLLM", "modelname": "m", "instance_id": "a",
        "block_size": 16, "dp_rank": 0, "additionalsalt": "s3cr3t-salt",
        "hash_profile": {
            "strategy": "vllm_v1", "algorithm": "sha256_cbor", "python_hash_seed": "918273645",
            "index_projection": "low64_be",
        },
    });
    daemon.post("/register", &body).json(200);
    answers += &daemon.get("/workers").body;
    answers += &daemon.get("/metrics").body;
    daemon.signal("TERM");
    let (_, log) = daemon.end();
    assert!(log.contains("TRACE") && log.contains("registered"), "{log}");
    for secret in ["s3cr3t", "tenant-a", "1234567891", "12345678912", "987654", "918273645"] {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
        assert!(!answers.contains(secret), "{secret} is in an answer: {answers}");
    }
}

#[test]
fn the_printed_configuration_is_its_own_source() {
    let file =
        "[[source]]\nname = \"a\"\nendpoint = \"tcp://a:5557\"\nranks = 3\n[log]\nlevel = \"warn\"";
    let print = |path: &std::path::Path| {
        let run = kvscout().args(["serve", "--print-config", "--config"]).arg(path).output();
        let run = run.unwrap();
        assert!(run.status.success() && run.stderr.is_empty(), "{run:?}");
        String::from_utf8(run.stdout).unwrap()
    };
    let printed = print(&config_file(file));
    assert!(printed.contains("ranks = 3") && printed.contains("level = \"warn\""), "{printed}");
    assert_eq!(print(&config_file(&printed)), printed);
}

#[test]
fn wrong_usage_is_status_2_and_one_line() {
    let unknown = config_file("lisen = \"127.0.0.1:1\"");
    for (flags, said) in [
        (vec!["serve", "--nonsense"], "--nonsense"),
        (vec!["serve", "--listen", "somewhere"], "somewhere"),
        (vec!["serve", "--source", "a=http://x"], "http://x"),
        (vec!["serve", "--log-level", "loud"], "loud"),
        (vec!["serve", "--config", "/no/such/file"], "/no/such/file"),
        (vec!["serve", "--config", unknown.to_str().unwrap()], "\"listen\""),
        (vec!["serve", "--trust-topics"], "topic_bind"),
        (vec!["nonsense"], "nonsense"),
        (vec![], "subcommand"),
    ] {
        let run = kvscout().args(&flags).env("KVSCOUT_PORT", "tcp://10.0.0.1:1").output().unwrap();
        let stderr = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(2), "{flags:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(said), "{flags:?}: {stderr}");
    }
    let run = kvscout().args(["serve"]).env("KVSCOUT_ZMQ_RECEIVE_HWM", "0").output().unwrap();
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("receive_hwm 0"), "{stderr}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = kvscout().args(["serve", "--log-level", "off", "--listen", &address]).output();
    let run = run.unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8(run.stderr).unwrap().contains(&address));
}
