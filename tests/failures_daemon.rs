//! Rows of the catalogue (`docs/failures.md`) that are about sockets, HTTP and the daemon's logs.
#![cfg(feature = "daemon")]

mod daemon_support;
mod failures_support;
mod zmq_support;

use std::fs;
use std::io::Write;
use std::net::TcpListener;

use daemon_support::{Batch, Daemon};
use failures_support::{
    batch, cleared, encode, of_adapter, removed, stored, stored_as, stored_by_name, with,
};
use serde_json::{Value, json};
use zmq_support::{
    bound_publisher, dialling_publisher, eventually, frame, message, publish, zmtp_handshake,
};

const TOKENS: [u32; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

/// A daemon that dials these pods, and nothing else.
fn daemon(sources: &[(&str, &str)], flags: &[&str]) -> Daemon {
    let sources: Vec<String> =
        sources.iter().map(|(pod, endpoint)| format!("{pod}={endpoint}")).collect();
    let mut all = vec!["--model", "m"];
    for source in &sources {
        all.extend(["--source", source]);
    }
    all.extend(flags);
    let daemon = Daemon::start(&all, "", &[]);
    eventually("the sources are added", || daemon.get("/ready").status == 200);
    daemon
}

fn publisher() -> (zmq::Socket, String) {
    bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*")
}

fn feed(daemon: &Daemon, socket: &zmq::Socket, pod: &str, seq: u64, events: &[Value]) {
    daemon.feed(socket, "", &Batch { seq, payload: batch(events) }, pod);
}

/// A pod's line of an answer; null where it has none.
fn line(daemon: &Daemon, pod: &str, rank: u64, question: &Value) -> Value {
    let answer = daemon.post("/v1/score", question).json(200);
    let lines = answer["workers"].as_array().unwrap();
    lines.iter().find(|l| l["worker"] == pod && l["rank"] == rank).cloned().unwrap_or_default()
}

fn matched(daemon: &Daemon, pod: &str) -> Value {
    line(daemon, pod, 0, &json!({ "token_ids": TOKENS }))["matched_blocks"].clone()
}

fn metric(daemon: &Daemon, name: &str) -> u64 {
    let text = daemon.get("/metrics").body;
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    let value = line.and_then(|line| line.rsplit_once(' ')).expect(name).1;
    value.parse().unwrap()
}

#[test]
fn h9_salts_of_any_engine_show_neither_in_logs_nor_in_answers_nor_in_metrics() {
    let (socket, endpoint) = publisher();
    let daemon = daemon(&[("a", &endpoint)], &["--log-level", "trace"]);
    let plain = stored(&[1], None, &TOKENS[..4]);
    let vllm = with(plain.clone(), &[("extra_keys", json!([["s3cr3t-vllm"]]))]);
    let sglang = json!({
        "type": "BlockStored", "block_hashes": [2], "parent_block_hash": null,
        "token_ids": [5, 6, 7, 8], "block_size": 4, "lora_id": null, "medium": "GPU",
        "cache_salt": "s3cr3t-sglang",
    });
    // Broken in the middle, so that there is something to complain about.
    let broken = with(vllm.clone(), &[("token_ids", json!("s3cr3t-tokens"))]);
    feed(&daemon, &socket, "a", 0, &[vllm, sglang, broken, plain]);
    let salted = json!({ "token_ids": TOKENS, "model": "m", "cache_salt": "s3cr3t-vllm" });
    assert_eq!(line(&daemon, "a", 0, &salted)["matched_blocks"], 1);
    let mut answers = daemon.get("/workers").body + &daemon.get("/metrics").body;
    let wrong = json!({ "token_ids": TOKENS, "cache_salt": ["s3cr3t-list"] });
    answers += &daemon.post("/v1/score", &wrong).body;
    assert!(!answers.contains("s3cr3t"), "{answers}");
    daemon.signal("TERM");
    let (_, log) = daemon.end();
    assert!(log.contains("TRACE") && !log.contains("s3cr3t"), "{log}");
}

#[test]
fn h14_a_topic_that_names_another_pod_changes_nothing_but_a_counter() {
    let (first, at_first) = publisher();
    let (second, at_second) = publisher();
    let daemon = daemon(&[("p", &at_first), ("q", &at_second)], &[]);
    feed(&daemon, &first, "p", 0, &[stored(&[1, 2], None, &TOKENS[..8])]);
    assert_eq!(metric(&daemon, "kvscout_topics_total{kind=\"mismatched\"}"), 0);
    let forged = batch(&[stored(&[1], None, &TOKENS[..4])]);
    daemon.feed(&second, "kv@p@m", &Batch { seq: 0, payload: forged }, "q");
    assert_eq!((matched(&daemon, "p"), matched(&daemon, "q")), (json!(2), json!(1)));
    assert!(metric(&daemon, "kvscout_topics_total{kind=\"mismatched\"}") > 0);
    assert_eq!(daemon.get("/workers").json(200)["workers"].as_array().unwrap().len(), 2);
}

#[test]
fn h15_eight_ranks_at_neighbouring_ports_are_eight_workers_and_a_ninth_is_none() {
    let context = zmq::Context::new();
    let (sockets, endpoint) = (0..200)
        .find_map(|_| {
            let (first, endpoint) = bound_publisher(&context, "tcp://127.0.0.1:*");
            let port: u16 = endpoint.rsplit_once(':')?.1.parse().ok()?;
            let mut sockets = vec![first];
            for rank in 1..8 {
                let socket = context.socket(zmq::PUB).ok()?;
                socket.set_linger(0).ok()?;
                socket.bind(&format!("tcp://127.0.0.1:{}", port.checked_add(rank)?)).ok()?;
                sockets.push(socket);
            }
            Some((sockets, endpoint))
        })
        .expect("eight neighbouring ports");
    let daemon = daemon(&[("pod", &format!("{endpoint},ranks=8"))], &[]);
    for (rank, socket) in sockets.iter().enumerate() {
        // What the batch says of its rank is that of its node, as local offsets are.
        let event = stored(&[1, 2], None, &TOKENS[..8]);
        let one = stored(&[1], None, &TOKENS[..4]);
        let event = if rank == 5 { event } else { one };
        let payload = encode(&json!([1.0, [event], rank % 2]));
        eventually("a rank is applied", || {
            publish(socket, b"", 0, &payload);
            daemon.has_applied("pod", rank as u64, 0)
        });
    }
    for rank in 0..8 {
        let line = line(&daemon, "pod", rank, &json!({ "token_ids": TOKENS }));
        assert_eq!(line["matched_blocks"], if rank == 5 { 2 } else { 1 }, "rank {rank}");
    }
    // Asked for the pod, its longest and each rank's own.
    let question = json!({ "model": "m", "block_size": 4, "token_ids": TOKENS });
    let held = &daemon.post("/query", &question).json(200)["default"]["pod"];
    assert_eq!(
        (&held["longest_matched"], &held["DP"]["5"], &held["DP"]["4"]),
        (&json!(8), &json!(8), &json!(4))
    );
    let question = json!({ "token_ids": TOKENS, "candidates": [{ "worker": "pod", "rank": 8 }] });
    assert_eq!(daemon.post("/v1/score", &question).json(400)["field"], "candidates");
}

#[test]
fn h15_a_rank_that_nobody_registered_is_added_only_where_topics_are_trusted() {
    let file = "trust_topics = true\ntopic_bind = \"tcp://127.0.0.1:*\"\n[log]\nformat = \"json\"";
    let daemon = Daemon::start(&[], file, &[]);
    let mut endpoint = String::new();
    eventually("the endpoint is logged", || {
        let log = daemon.stderr();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        endpoint =
            lines.filter_map(|l| l["fields"]["endpoint"].as_str().map(str::to_owned)).collect();
        !endpoint.is_empty()
    });
    let socket = dialling_publisher(&zmq::Context::new(), &endpoint);
    let payload = encode(&json!([1.0, [stored(&[1], None, &TOKENS[..4])], 3]));
    eventually("the rank is there", || {
        publish(&socket, b"kv@pod@m", 0, &payload);
        daemon.has_applied("pod", 3, 0)
    });
    assert_eq!(daemon.worker("pod", 0), Value::Null);
}

#[test]
fn l3_another_pod_at_the_same_address_inherits_nothing_and_survives_the_old_ones_farewell() {
    let (socket, endpoint) = publisher();
    let daemon = daemon(&[], &[]);
    let register = |pod: &str, model: &str, size: u32| {
        let body = json!({
            "endpoint": endpoint, "type": "vLLM", "modelname": model, "instance_id": pod,
            "block_size": size, "dp_rank": 0,
        });
        daemon.post("/register", &body).json(200);
    };
    let farewell = json!({ "instance_id": "uid-1", "dp_rank": 0 });
    register("uid-1", "m", 4);
    feed(&daemon, &socket, "uid-1", 0, &[stored(&[1, 2], None, &TOKENS[..8])]);
    daemon.post("/unregister", &farewell).json(200);
    register("uid-2", "other", 8);
    let wide = with(stored(&[1], None, &TOKENS[..8]), &[("block_size", json!(8))]);
    feed(&daemon, &socket, "uid-2", 0, &[wide]);
    daemon.post("/unregister", &farewell).json(404);
    assert_eq!(matched(&daemon, "uid-2"), 1);
    assert_eq!(daemon.worker("uid-1", 0), Value::Null);
    let old = json!({ "token_ids": TOKENS, "model": "m" });
    assert_eq!(daemon.post("/v1/score", &old).json(404)["reason"], "unknown_model");
}

#[test]
fn l4_an_engine_restarted_at_its_address_begins_with_nothing() {
    let (socket, endpoint) = publisher();
    let daemon = daemon(&[("engine-0", &endpoint)], &[]);
    feed(&daemon, &socket, "engine-0", 0, &[stored(&[1], None, &TOKENS[..4])]);
    feed(&daemon, &socket, "engine-0", 1, &[stored(&[2], Some(1), &TOKENS[4..8])]);
    assert_eq!(matched(&daemon, "engine-0"), 2);
    drop(socket);
    let (socket, _) = bound_publisher(&zmq::Context::new(), &endpoint);
    let payload = encode(&json!([99.0, [stored(&[7], None, &[50; 4])], 0]));
    daemon.feed(&socket, "", &Batch { seq: 0, payload }, "engine-0");
    assert_eq!(matched(&daemon, "engine-0"), 0);
    let worker = daemon.worker("engine-0", 0);
    assert_eq!((&worker["restarts"], &worker["trust"]), (&json!(1), &json!("exact")));
}

#[test]
fn l5_an_unregistered_pod_stays_away_while_its_engine_goes_on_publishing() {
    let (socket, endpoint) = publisher();
    let (other, at_other) = publisher();
    let daemon = daemon(&[("a", &endpoint), ("b", &at_other)], &[]);
    for (pod, socket) in [("a", &socket), ("b", &other)] {
        feed(&daemon, socket, pod, 0, &[stored(&[1], None, &TOKENS[..4])]);
    }
    let gone = json!({ "instance_id": "a", "dp_rank": 0 });
    for seq in 1..500 {
        publish(&socket, b"kv@a@m", seq, &batch(&[stored(&[seq], None, &TOKENS[..4])]));
    }
    daemon.post("/unregister", &gone).json(200);
    assert_eq!(matched(&daemon, "a"), Value::Null, "at once");
    publish(&socket, b"kv@a@m", 500, &batch(&[stored(&[9], None, &TOKENS[..4])]));
    // What comes after it on another connection has passed the receiver, too.
    feed(&daemon, &other, "b", 1, &[stored(&[2], Some(1), &TOKENS[4..8])]);
    assert_eq!((matched(&daemon, "a"), matched(&daemon, "b")), (Value::Null, json!(2)));
    assert_eq!(daemon.worker("a", 0), Value::Null);
}

#[test]
fn l13_a_flapping_pod_has_one_subscription_and_leaks_neither_sockets_nor_threads() {
    let (socket, endpoint) = publisher();
    let daemon = daemon(&[], &[]);
    let registered = json!({
        "endpoint": endpoint, "type": "vLLM", "modelname": "m", "instance_id": "a",
        "block_size": 4, "dp_rank": 0,
    });
    let gone = json!({ "instance_id": "a", "dp_rank": 0 });
    let flap = |times: u32| {
        for _ in 0..times {
            daemon.post("/register", &registered).json(200);
            daemon.post("/register", &registered).json(200);
            daemon.post("/unregister", &gone).json(200);
        }
    };
    let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", daemon.id())).unwrap().count();
    flap(20);
    let mut settled = (0, 0);
    eventually("its sockets are closed", || {
        let before = settled;
        settled = (count("fd"), count("task"));
        before == settled
    });
    flap(100);
    eventually("no more are open than after a few", || {
        count("fd") <= settled.0 + 3 && count("task") <= settled.1 + 3
    });
    daemon.post("/register", &registered).json(200);
    feed(&daemon, &socket, "a", 0, &[stored(&[1], None, &TOKENS[..4])]);
    eventually("one source is up", || metric(&daemon, "kvscout_sources_up") == 1);
    let worker = daemon.worker("a", 0);
    assert_eq!((&worker["batches"], &worker["restarts"]), (&json!(1), &json!(0)));
}

#[test]
fn m1_messages_of_a_wrong_shape_are_counted_and_the_connection_stays() {
    let (socket, endpoint) = publisher();
    let daemon = daemon(&[("a", &endpoint)], &[]);
    feed(&daemon, &socket, "a", 0, &[stored(&[1], None, &TOKENS[..4])]);
    let good = batch(&[stored(&[2], Some(1), &TOKENS[4..8])]);
    let seq = 1_u64.to_be_bytes();
    let shapes: [&[&[u8]]; 6] = [
        &[b"topic"],
        &[&seq, &good],
        &[b"", &seq, &good, b"more"],
        &[b"", &seq[..7], &good],
        &[b"", b"", &good],
        &[b"", &[0; 9], &good],
    ];
    for shape in shapes {
        socket.send_multipart(shape, 0).unwrap();
    }
    publish(&socket, b"", 1, b"\xc1 no msgpack");
    publish(&socket, b"", 2, &good);
    eventually("the good batch is applied", || daemon.has_applied("a", 0, 2));
    assert_eq!(matched(&daemon, "a"), 2);
    let worker = daemon.worker("a", 0);
    let link = &worker["link"];
    assert_eq!((&link["malformed_frames"], &link["malformed_sequence"]), (&json!(3), &json!(3)));
    assert_eq!((&link["disconnects"], &link["reconnects"]), (&json!(0), &json!(0)));
    assert_eq!((&worker["gaps"], &worker["events"]["rejected"]), (&json!(0), &json!(1)));
    assert_eq!(worker["reason"], "undecodable");
}

#[test]
fn m4_a_frame_that_claims_more_than_may_be_is_cut_off_and_takes_no_memory() {
    let (good, endpoint) = publisher();
    let hostile = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("tcp://{}", hostile.local_addr().unwrap());
    let daemon = daemon(&[("good", &endpoint), ("hostile", &at)], &[]);
    feed(&daemon, &good, "good", 0, &[stored(&[1], None, &TOKENS[..4])]);
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    };
    let before = resident();
    for claim in [u64::MAX, u64::MAX - 8, 1 << 62, 1 << 30] {
        let (mut stream, _) = hostile.accept().unwrap();
        zmtp_handshake(&mut stream).unwrap();
        let mut wire = frame(true, b"");
        wire.push(2);
        wire.extend(claim.to_be_bytes());
        // It may be cut before this is written, which is what it is about.
        let _ = stream.write_all(&wire);
        let _ = stream.write_all(&[7; 1 << 16]);
    }
    let (mut stream, _) = hostile.accept().unwrap();
    zmtp_handshake(&mut stream).unwrap();
    stream.write_all(&message(0, &batch(&[stored(&[1], None, &TOKENS[..4])]))).unwrap();
    eventually("it is heard once it behaves", || daemon.has_applied("hostile", 0, 0));
    assert!(resident() < before + 64, "MiB: {before}, then {}", resident());
    feed(&daemon, &good, "good", 1, &[stored(&[2], Some(1), &TOKENS[4..8])]);
    assert_eq!((matched(&daemon, "good"), matched(&daemon, "hostile")), (json!(2), json!(1)));
    assert_eq!(daemon.worker("good", 0)["link"]["disconnects"], 0);
}

#[test]
fn x1_an_attacker_with_the_victims_topic_reaches_only_its_own_blocks() {
    let (victim, at_victim) = publisher();
    let (attacker, at_attacker) = publisher();
    let daemon = daemon(&[("victim", &at_victim), ("attacker", &at_attacker)], &[]);
    feed(&daemon, &victim, "victim", 0, &[stored(&[1, 2], None, &TOKENS[..8])]);
    let forged = [removed(&[1, 2], "GPU"), cleared(), stored(&[1], None, &TOKENS[..4])];
    let payload = batch(&forged);
    daemon.feed(&attacker, "kv@victim@m", &Batch { seq: 0, payload }, "attacker");
    // Its restart is its own, too.
    let payload = encode(&json!([99.0, [cleared()], 0]));
    publish(&attacker, b"kv@victim@m", 0, &payload);
    eventually("the forged restart is seen", || daemon.worker("attacker", 0)["restarts"] == 1);
    assert_eq!((matched(&daemon, "victim"), matched(&daemon, "attacker")), (json!(2), json!(0)));
    let worker = daemon.worker("victim", 0);
    assert_eq!((&worker["trust"], &worker["restarts"]), (&json!("exact"), &json!(0)));
}

#[test]
fn h1_the_detected_algorithm_shows_in_the_list_of_workers() {
    let (socket, endpoint) = publisher();
    let daemon = daemon(&[("a", &endpoint)], &[]);
    let prompt = kvscout::block::Prompt::new(&TOKENS);
    let xxhash = kvscout::hash::vllm::Algorithm::Xxhash;
    let names = failures_support::names("0.20.2", xxhash, "42", 4, &prompt);
    let names: Vec<Value> = names.into_iter().map(Value::from).collect();
    feed(&daemon, &socket, "a", 0, &[stored_as("0.20.2", &names, Value::Null, &TOKENS[..8], 4)]);
    let contract = &daemon.worker("a", 0)["contract"];
    assert_eq!(
        (&contract["status"], &contract["algorithm"]),
        (&json!("verified"), &json!("xxhash"))
    );
    assert_eq!(matched(&daemon, "a"), 2);
}

#[test]
fn l12_an_operator_clears_a_worker_a_model_or_an_adapter_over_http() {
    let (first, at_first) = publisher();
    let (second, at_second) = publisher();
    let daemon = daemon(&[("a", &at_first), ("b", &at_second)], &[]);
    let adapter = of_adapter(stored(&[11, 12], None, &TOKENS[..8]), "x");
    for (pod, socket) in [("a", &first), ("b", &second)] {
        feed(&daemon, socket, pod, 0, &[stored(&[1, 2], None, &TOKENS[..8]), adapter.clone()]);
    }
    let held = || {
        ["a", "b"].map(|pod| {
            let of_adapter = line(&daemon, pod, 0, &json!({ "token_ids": TOKENS, "lora": "x" }));
            (matched(&daemon, pod).as_u64(), of_adapter["matched_blocks"].as_u64())
        })
    };
    let clear = |body: Value| daemon.post("/v1/admin/clear", &body);
    assert_eq!(held(), [(Some(2), Some(2)); 2]);
    assert_eq!(clear(json!({ "adapter": "x" })).json(200), json!({ "cleared": "adapter" }));
    assert_eq!(held(), [(Some(2), Some(0)); 2]);
    let answer = clear(json!({ "worker": "a", "rank": 0 })).json(200);
    assert_eq!(answer, json!({ "cleared": "worker", "workers": 1 }));
    assert_eq!(held(), [(Some(0), Some(0)), (Some(2), Some(0))]);
    let answer = clear(json!({ "model": "m" })).json(200);
    assert_eq!(answer, json!({ "cleared": "model", "workers": 2 }));
    assert_eq!(held(), [(Some(0), Some(0)); 2]);
    feed(&daemon, &first, "a", 1, &[stored(&[1], None, &TOKENS[..4])]);
    assert_eq!(held(), [(Some(1), Some(0)), (Some(0), Some(0))]);

    for (body, status, said) in [
        (json!({}), 400, "exactly one"),
        (json!({ "worker": "a", "model": "m" }), 400, "exactly one"),
        (json!({ "worker": "a", "adapter": "x" }), 400, "exactly one"),
        (json!({ "adapter": "x", "rank": 0 }), 400, "rank"),
        (json!({ "worker": "nobody" }), 404, "nobody"),
        (json!({ "worker": "a", "rank": 7 }), 404, "rank 7"),
        (json!({ "worker": "a", "tenant": "t" }), 404, "tenant"),
        (json!({ "model": "nothing" }), 404, "nothing"),
    ] {
        let answer = clear(body.clone()).json(status);
        assert!(answer["error"].as_str().unwrap().contains(said), "{body} {answer}");
    }
    assert_eq!(held(), [(Some(1), Some(0)), (Some(0), Some(0))]);
}

#[test]
fn h4_what_differs_from_the_registration_shows_in_workers_scores_and_metrics() {
    let (socket, endpoint) = publisher();
    let source = format!("{endpoint},block_size=16,on_clear=gpu,copies=presence");
    let daemon = daemon(&[("a", &source)], &[]);
    feed(&daemon, &socket, "a", 0, &[stored(&[1, 2], None, &TOKENS[..8])]);
    let worker = daemon.worker("a", 0);
    assert_eq!(worker["warnings"], json!(["block_size_differs"]));
    assert_eq!(worker["contract"]["status"], "contradictory");
    assert_eq!(
        (&worker["block_size"], &worker["groups"][0]["block_size"]),
        (&json!(16), &json!(4))
    );
    assert_eq!((&worker["on_clear"], &worker["copies"]), (&json!("gpu"), &json!("presence")));
    assert_eq!(
        (&worker["contract"]["checked"], &worker["contract"]["failed"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(metric(&daemon, "kvscout_warned_workers{warning=\"block_size_differs\"}"), 1);
    assert_eq!(metric(&daemon, "kvscout_warned_workers{warning=\"tiny_blocks\"}"), 0);
    let short = line(&daemon, "a", 0, &json!({ "token_ids": TOKENS[..3] }));
    assert_eq!(
        (&short["matched_blocks"], &short["miss"]),
        (&json!(0), &json!("shorter_than_block"))
    );
    assert_eq!(line(&daemon, "a", 0, &json!({ "token_ids": TOKENS }))["miss"], Value::Null);
    // The same copies again, and a clear of the GPU.
    feed(&daemon, &socket, "a", 1, &[stored(&[1, 2], None, &TOKENS[..8])]);
    feed(&daemon, &socket, "a", 2, &[removed(&[2], "GPU"), stored_by_name(&[1], "CPU")]);
    assert_eq!(matched(&daemon, "a"), 1);
    feed(&daemon, &socket, "a", 3, &[cleared()]);
    let held = line(&daemon, "a", 0, &json!({ "token_ids": TOKENS }));
    assert_eq!(held["tiers"], json!({ "gpu": 0, "cpu": 4, "disk": 4, "remote": 4 }));
}

/// A daemon with two pods whose sources have these labels, and these further lines in its configuration.
fn labelled(labels: [&str; 2], config: &str) -> (Daemon, [zmq::Socket; 2]) {
    let (publishers, mut file) = ([publisher(), publisher()], config.to_owned());
    for (n, ((_, endpoint), label)) in publishers.iter().zip(labels).enumerate() {
        let name = ["a", "b"][n];
        file += &format!(
            "\n[[source]]\nname = \"{name}\"\nendpoint = \"{endpoint}\"\nmodel = \"m\"\n\
             labels = [\"{label}\"]\n"
        );
    }
    let daemon = Daemon::start(&[], &file, &[]);
    eventually("the sources are added", || daemon.get("/ready").status == 200);
    (daemon, publishers.map(|(socket, _)| socket))
}

#[test]
fn c13_a_pick_counts_as_predicted_until_events_confirm_it_or_its_time_is_over() {
    let config = "[predict]\nttl = \"2m\"";
    let (daemon, [socket_a, _]) = labelled(["role=x", "role=x"], config);
    let question = json!({ "token_ids": TOKENS });
    let pick = |pod: &str| json!({ "token_ids": TOKENS, "worker": pod });
    let of = |pod: &str| line(&daemon, pod, 0, &question);
    assert_eq!(daemon.post("/v1/picked", &pick("b")).json(200), json!({ "predicted_blocks": 0 }));

    // Four tokens in a block, as the engines say.
    feed(&daemon, &socket_a, "a", 0, &[stored(&[9], None, &[7; 4])]);
    assert_eq!(daemon.post("/v1/picked", &pick("a")).json(200), json!({ "predicted_blocks": 2 }));
    let predicted = of("a");
    assert_eq!(predicted["predicted_blocks"], 2);
    assert_eq!((&predicted["matched_blocks"], &predicted["score"]), (&json!(0), &json!(1.0)));
    assert_eq!(predicted["tiers"], json!({ "gpu": 0, "cpu": 0, "disk": 0, "remote": 0 }));
    assert_eq!(predicted["expected_cached_tokens"], 0);
    let first = daemon.post("/v1/score", &question).json(200)["workers"][0].clone();
    assert_eq!(first["worker"], "a", "equal prompts stay together");
    let salted = json!({ "token_ids": TOKENS, "cache_salt": "s" });
    assert_eq!(line(&daemon, "a", 0, &salted).get("predicted_blocks"), None);
    assert_eq!(metric(&daemon, "kvscout_predicted_blocks"), 2);

    feed(&daemon, &socket_a, "a", 1, &[stored(&[1], None, &TOKENS[..4])]);
    let half = of("a");
    assert_eq!((&half["matched_blocks"], &half["predicted_blocks"]), (&json!(1), &json!(1)));
    feed(&daemon, &socket_a, "a", 2, &[stored(&[2], Some(1), &TOKENS[4..8])]);
    let whole = of("a");
    assert_eq!((&whole["matched_blocks"], whole.get("predicted_blocks")), (&json!(2), None));
    feed(&daemon, &socket_a, "a", 3, &[removed(&[2, 1], "GPU")]);
    let gone = of("a");
    assert_eq!((&gone["matched_blocks"], gone.get("predicted_blocks")), (&json!(0), None));

    let (daemon, _sockets) = labelled(["role=x", "role=x"], "[predict]\nttl = \"1ms\"");
    let long = json!({ "token_ids": vec![5; 64], "worker": "a" });
    assert_eq!(daemon.post("/v1/picked", &long).json(200), json!({ "predicted_blocks": 4 }));
    eventually("its time is over", || metric(&daemon, "kvscout_predicted_blocks") == 0);
    let question = json!({ "token_ids": vec![5; 64] });
    assert_eq!(line(&daemon, "a", 0, &question).get("predicted_blocks"), None);
    let unknown = json!({ "token_ids": TOKENS, "worker": "c" });
    assert_eq!(daemon.post("/v1/picked", &unknown).json(404)["reason"], "unknown_worker");
}

#[test]
fn c14_pods_that_hold_the_same_are_told_apart_by_their_labels() {
    let (daemon, [socket_a, socket_b]) = labelled(["role=prefill", "role=decode"], "");
    for (pod, socket) in [("a", &socket_a), ("b", &socket_b)] {
        feed(&daemon, socket, pod, 0, &[stored(&[1, 2], None, &TOKENS[..8])]);
    }
    let asked = |more: Value| {
        let mut question = json!({ "token_ids": TOKENS });
        let fields = more.as_object().unwrap().clone();
        question.as_object_mut().unwrap().extend(fields);
        let answer = daemon.post("/v1/score", &question).json(200);
        let workers = answer["workers"].as_array().unwrap().clone();
        workers.iter().map(|line| line["worker"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(asked(json!({})), ["a", "b"]);
    assert_eq!(asked(json!({ "labels": { "role": "prefill" } })), ["a"]);
    assert_eq!(asked(json!({ "labels": { "role": ["decode", "both"] } })), ["b"]);
    assert_eq!(asked(json!({ "labels": ["role=decode", "role=prefill"] })), ["a", "b"]);
    assert_eq!(asked(json!({ "labels": { "role": "prefill" }, "candidates": ["b"] })), [""; 0]);
    assert_eq!(asked(json!({ "labels": { "zone": "x" } })), [""; 0]);
    assert_eq!(daemon.worker("a", 0)["labels"], json!({ "role": "prefill" }));
}

#[test]
fn x2_who_claims_what_it_does_not_hold_is_found_by_its_receipts() {
    for (quarantine, first) in [(false, "a"), (true, "b")] {
        let config = format!("[receipts]\nquarantine = {quarantine}");
        let (daemon, [socket_a, socket_b]) = labelled(["role=x", "role=x"], &config);
        feed(&daemon, &socket_a, "a", 0, &[stored(&[1, 2], None, &TOKENS[..8])]);
        feed(&daemon, &socket_b, "b", 0, &[stored(&[1], None, &TOKENS[..4])]);
        let receipt = |pod: &str, delivered: u32| {
            let body = json!({
                "worker": pod, "expected_cached_tokens": 800, "cached_tokens": delivered,
            });
            daemon.post("/v1/receipt", &body).json(200)["verdict"].clone()
        };
        for _ in 0..16 {
            assert_eq!((receipt("a", 0), receipt("b", 790)), (json!("over"), json!("kept")));
        }
        let answer = daemon.post("/v1/score", &json!({ "token_ids": TOKENS })).json(200);
        assert_eq!(answer["workers"][0]["worker"], first, "{answer}");
        let liar = line(&daemon, "a", 0, &json!({ "token_ids": TOKENS }));
        assert_eq!(liar.get("quarantined"), quarantine.then_some(&json!(true)));
        assert_eq!(liar["matched_blocks"], if quarantine { 0 } else { 2 });
        let known = daemon.worker("a", 0)["receipts"].clone();
        assert_eq!((&known["over"], &known["is_off"]), (&json!(16), &json!(true)));
        assert_eq!(known["expected_tokens"], 12_800);
        assert_eq!(daemon.worker("a", 0)["warnings"], json!(["receipts_fall_short"]));
        assert_eq!(daemon.worker("b", 0)["receipts"]["is_off"], false);
        assert_eq!(metric(&daemon, "kvscout_workers_off"), 1);
        let over = "kvscout_receipts_total{verdict=\"over\"} 16";
        assert!(daemon.get("/metrics").body.contains(over));
        assert!(daemon.stderr().contains("holds less than it announces"));
    }
}

#[test]
fn h2_a_registration_whose_hash_profile_no_event_follows_is_contradicted() {
    let (socket, endpoint) = publisher();
    let daemon = Daemon::start(&[], "", &[]);
    let profile = json!({
        "strategy": "vllm_v1", "algorithm": "sha256_cbor", "python_hash_seed": "0",
        "index_projection": "low64_be",
    });
    let body = json!({
        "endpoint": endpoint, "type": "vLLM", "modelname": "m", "instance_id": "a", "block_size": 4,
        "dp_rank": 0, "hash_profile": profile,
    });
    daemon.post("/register", &body).json(200);
    let status = || daemon.worker("a", 0)["contract"]["status"].clone();
    assert_eq!(status(), "told");
    for n in 0..8_u32 {
        let first = [n, n, n, n];
        feed(&daemon, &socket, "a", n.into(), &[stored(&[u64::from(n) + 1000], None, &first)]);
    }
    assert_eq!(status(), "contradictory");
    assert_eq!(daemon.worker("a", 0)["warnings"], json!(["contract_unknown"]));
}
