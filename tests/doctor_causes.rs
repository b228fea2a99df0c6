//! Each known cause of a score that is always 0 has its line in `kvscout doctor`: over real sockets, through the built
//! binary. `docs/doctor.md` lists them, and `tests/failures_catalogue.rs` checks that list.
#![cfg(feature = "daemon")]

#[path = "zmq_support/mod.rs"]
mod zmq_support;

mod daemon_support;
mod doctor_support;
mod failures_support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use doctor_support::{findings, of_buffer};
use failures_support::{
    SIZE, batch, names, of_adapter, removed, stored, stored_as, stored_by_name, with,
};
use kvscout::block::{BlockSize, Prompt, Shape};
use kvscout::hash::vllm::{Algorithm, Contract, Root};
use serde_json::{Value, json};
use zmq_support::{Publishing, bound_publisher, publish, publish_while};

const TOKENS: [u32; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];

/// The line of this check and level that has such a text; it says what to do.
#[track_caller]
fn says<'a>(findings: &'a [Value], check: &str, level: &str, text: &str) -> &'a Value {
    let is_it = |finding: &&Value| {
        finding["check"] == check
            && finding["level"] == level
            && finding["text"].as_str().unwrap().contains(text)
    };
    let found = findings.iter().find(is_it);
    let found = found.unwrap_or_else(|| panic!("no {level} {check} {text:?} in {findings:#?}"));
    assert!(level == "ok" || found["advice"] != "", "{found}");
    found
}

/// What is said of an idle engine whose replay socket has these batches, from this number on; with its exit status.
fn of_batches(first: u64, batches: Vec<Vec<u8>>, flags: &[&str]) -> (Vec<Value>, i32) {
    of_buffer((first..).zip(batches).collect(), flags)
}

fn of_events(events: &[Value], flags: &[&str]) -> (Vec<Value>, i32) {
    of_batches(0, vec![batch(events)], flags)
}

/// Publishes the same batch again and again under growing numbers.
fn numbered(socket: zmq::Socket, payload: Vec<u8>) -> Publishing {
    publish_while(move |n| publish(&socket, b"kv@pod@m", n, &payload))
}

/// Three plain blocks as vLLM 0.33 announces them under a seed.
fn plain(seed: &str) -> Value {
    let tokens = &TOKENS[..12];
    let prompt = Prompt::new(tokens);
    stored(&names("0.33.0", Algorithm::Sha256Cbor, seed, SIZE, &prompt), None, tokens)
}

/// An HTTP API whose metrics are these, one after the other, the last one for ever.
fn http(metrics: &[&str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let metrics: Vec<String> = metrics.iter().map(|text| (*text).to_owned()).collect();
    let asked = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = String::new();
            while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
            let answer = match head.split(' ').nth(1).unwrap_or_default() {
                "/version" => json!({ "version": "0.33.0" }).to_string(),
                "/v1/models" => json!({ "data": [{ "id": "served" }] }).to_string(),
                _ => {
                    let n = asked.fetch_add(1, Ordering::Relaxed);
                    metrics[n.min(metrics.len() - 1)].clone()
                }
            };
            let length = answer.len();
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all((head + &answer).as_bytes());
        }
    });
    base
}

#[test]
fn nothing_is_wrong_with_plain_blocks_of_a_known_contract() {
    let (found, status) = of_events(&[plain("0")], &[]);
    assert_eq!(status, 0, "{found:#?}");
    for check in ["reachable", "decoding", "sequence", "contract", "block_size", "replay", "scores"]
    {
        says(&found, check, "ok", "");
    }
    let quiet = ["trust", "tokens", "tiers", "ranks", "groups", "lookahead", "topics"];
    for check in quiet.into_iter().chain(["extra_keys", "adapters", "sleep", "losses"]) {
        assert!(!found.iter().any(|finding| finding["check"] == check), "{check}: {found:#?}");
    }
}

#[test]
fn nobody_at_the_port_is_said_with_how_to_turn_events_on_and_what_dials_instead() {
    let (found, status) = findings(&["--events", "tcp://127.0.0.1:1", "--seconds", "1"]);
    assert_eq!(status, 1);
    says(&found, "reachable", "problem", "nobody answers at tcp://127.0.0.1:1");
    says(&found, "reachable", "note", "without '*' makes the engine dial");
}

#[test]
fn an_engine_that_dials_is_heard_with_bind() {
    let context = zmq::Context::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = format!("tcp://127.0.0.1:{port}");
    let socket = zmq_support::dialling_publisher(&context, &at);
    let _publishing = numbered(socket, batch(&[plain("0")]));
    let (found, status) = findings(&["--events", &at, "--bind", "--seconds", "5"]);
    says(&found, "reachable", "ok", "");
    says(&found, "decoding", "ok", "stored");
    assert_eq!(status, 0, "{found:#?}");
}

/// NIXL's side channel is a ROUTER, at 5557 by default as well.
#[test]
fn the_side_channel_of_nixl_at_the_port_is_no_publisher() {
    let context = zmq::Context::new();
    let router = context.socket(zmq::ROUTER).unwrap();
    router.bind("tcp://127.0.0.1:*").unwrap();
    let at = router.get_last_endpoint().unwrap().unwrap();
    let (found, status) = findings(&["--events", &at, "--seconds", "2"]);
    assert_eq!(status, 1);
    let problem = says(&found, "reachable", "problem", "no ZMQ publisher");
    let advice = problem["advice"].as_str().unwrap();
    assert!(advice.contains("NIXL"), "{advice}");
}

#[test]
fn events_that_are_off_show_in_the_engines_own_metrics() {
    let context = zmq::Context::new();
    let (_silent, events) = bound_publisher(&context, "tcp://127.0.0.1:*");
    let tokens = |n: u32| format!("vllm:prompt_tokens_total{{engine=\"0\"}} {n}\n");
    let base = http(&[&tokens(100), &tokens(900)]);
    let flags = ["--events", &events, "--engine", &base, "--seconds", "1"];
    let (found, status) = findings(&flags);
    assert_eq!(status, 1);
    let problem = says(&found, "events", "problem", "while the engine served 800 prompt tokens");
    let advice = problem["advice"].as_str().unwrap();
    assert!(advice.contains("enable_kv_cache_events"), "{advice}");
}

#[test]
fn prefix_caching_that_is_off_is_a_problem() {
    let base =
        http(&["vllm:cache_config_info{block_size=\"16\",enable_prefix_caching=\"False\"} 1\n"]);
    let (found, status) = of_events(&[plain("0")], &["--engine", &base]);
    assert_eq!(status, 1);
    says(&found, "prefix_caching", "problem", "without prefix caching");
}

#[test]
fn an_engine_that_sleeps_has_nothing() {
    let base = http(&["vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 0\n"]);
    let (found, _) = of_events(&[plain("0")], &["--engine", &base]);
    says(&found, "sleep", "note", "the engine sleeps");
}

#[test]
fn another_model_is_found_in_what_the_engine_serves_and_in_its_topic() {
    let (found, status) = of_events(&[plain("0")], &["--engine", &http(&[""]), "--model", "asked"]);
    assert_eq!(status, 1);
    says(&found, "model", "problem", "it serves served, not asked");

    let context = zmq::Context::new();
    let (socket, events) = bound_publisher(&context, "tcp://127.0.0.1:*");
    let _publishing = numbered(socket, batch(&[plain("0")]));
    let (found, _) = findings(&["--events", &events, "--model", "asked", "--seconds", "5"]);
    says(&found, "topics", "note", "names the model m, not asked");
}

#[test]
fn h1_any_algorithm_is_detected_and_named() {
    for algorithm in [Algorithm::Sha256Cbor, Algorithm::Sha256, Algorithm::XxhashCbor] {
        let tokens = &TOKENS[..12];
        let names = names("0.33.0", algorithm, "0", SIZE, &Prompt::new(tokens));
        let (found, status) = of_events(&[stored(&names, None, tokens)], &[]);
        assert_eq!(status, 0, "{found:#?}");
        says(&found, "contract", "ok", &format!(" {}, PYTHONHASHSEED=0", algorithm.as_str()));
        says(&found, "scores", "ok", "scores 3 of 3");
    }
}

#[test]
fn h1_a_version_that_is_not_the_engines_is_said() {
    let tokens = &TOKENS[..12];
    let names = names("0.33.0", Algorithm::XxhashCbor, "0", SIZE, &Prompt::new(tokens));
    let (found, status) = of_events(&[stored(&names, None, tokens)], &["--vllm", "0.10.2"]);
    assert_eq!(status, 0, "what was found counts: {found:#?}");
    says(&found, "contract", "note", "PYTHONHASHSEED=0, not of the version that was given");
    says(&found, "scores", "ok", "scores 3 of 3");
}

#[test]
fn h2_a_seed_that_is_not_set_is_said_and_a_seed_that_is_given_is_found() {
    let (found, status) = of_events(&[plain("of nobody else")], &[]);
    // One that fits nothing may be salted; eight are not.
    assert_eq!(status, 0);
    says(&found, "contract", "unknown", "");
    let random = |n: u64| {
        let first = TOKENS.map(|token| token + 20 * n as u32);
        stored(&[1000 + n], None, &first[..4])
    };
    let events: Vec<Value> = (0..8).map(random).collect();
    let (found, status) = of_events(&events, &[]);
    assert_eq!(status, 0, "prompts match by their tokens: {found:#?}");
    let note = says(&found, "contract", "note", "no known algorithm and seed");
    let advice = note["advice"].as_str().unwrap();
    assert!(advice.contains("PYTHONHASHSEED"), "{advice}");
    says(&found, "scores", "ok", "scores 1 of 1");
    let (found, _) = of_events(&[plain("of nobody else")], &["--seed", "of nobody else"]);
    let text =
        says(&found, "contract", "ok", "sha256_cbor, PYTHONHASHSEED as --seed number 1 says");
    assert!(!text.to_string().contains("nobody else"), "it is for who gave it: {text}");
    let tokens = &TOKENS[..4];
    let unset = Contract::new("0.33.0".parse().unwrap(), Algorithm::Sha256, Root::Unset).unwrap();
    let shape = Shape::plain(BlockSize::new(SIZE).unwrap());
    let mut chain = unset.chain(shape, &Prompt::new(tokens)).unwrap();
    let names: Vec<u64> = chain.extend(tokens).map(|hash| hash.name().0).collect();
    let (found, _) = of_events(&[stored(&names, None, tokens)], &[]);
    says(&found, "contract", "ok", "sha256, PYTHONHASHSEED not set");
}

#[test]
fn h2_two_engines_at_one_address_are_a_problem() {
    let of = |seed: &str, n: u32| {
        let tokens = [n, n, n, n];
        let names = names("0.33.0", Algorithm::Sha256Cbor, seed, SIZE, &Prompt::new(&tokens));
        stored(&names, None, &tokens)
    };
    let events: Vec<Value> =
        (0..16).map(|n| of("0", n)).chain((16..32).map(|n| of("x", n))).collect();
    let (found, status) = of_events(&events, &[]);
    assert_eq!(status, 1, "{found:#?}");
    says(&found, "contract", "problem", "other hashes than its contract gives");
}

#[test]
fn h4_a_block_size_that_is_not_expected_and_prompts_that_are_shorter_than_a_block_are_said() {
    let (found, status) = of_events(&[plain("0")], &["--block-size", "16"]);
    assert_eq!(status, 1);
    says(&found, "block_size", "problem", "blocks have 4 tokens, not 16");
    let tokens: Vec<u32> = (0..528).collect();
    let large = with(stored(&[7], None, &tokens), &[("block_size", json!(528))]);
    let (found, _) = of_events(&[large], &[]);
    says(&found, "block_size", "note", "fewer than 528 tokens never scores");
}

#[test]
fn h8_adapters_are_named_with_what_a_request_needs() {
    let (found, _) = of_events(&[of_adapter(stored(&[1], None, &TOKENS[..4]), "x")], &[]);
    says(&found, "adapters", "note", "adapters seen: x");
    says(&found, "extra_keys", "note", "lora on 1, no plain one among them");
}

#[test]
fn h9_salts_are_counted_and_never_shown() {
    let salted = with(stored(&[1], None, &TOKENS[..4]), &[("extra_keys", json!([["hush-hush"]]))]);
    let (found, _) = of_events(&[plain("0"), salted], &[]);
    says(&found, "extra_keys", "note", "cache_salt on 1");
    assert!(!json!(found).to_string().contains("hush"), "{found:#?}");
    // Before 0.17 nothing says so.
    let hidden = stored_as("0.13.0", &[json!(1)], Value::Null, &TOKENS[..4], SIZE);
    let (found, _) = of_events(&[hidden], &[]);
    says(&found, "extra_keys", "note", "leave salts, adapters and images out");
}

#[test]
fn h11_images_are_counted() {
    let image = json!([[["the-image", 0]]]);
    let (found, _) =
        of_events(&[with(stored(&[1], None, &TOKENS[..4]), &[("extra_keys", image)])], &[]);
    says(&found, "extra_keys", "note", "mm on 1");
}

#[test]
fn h12_extra_keys_of_no_known_kind_are_a_problem() {
    let keys = json!([[["future", "x", 0, 1]]]);
    let (found, status) =
        of_events(&[with(stored(&[1], None, &TOKENS[..4]), &[("extra_keys", keys)])], &[]);
    assert_eq!(status, 1);
    says(&found, "extra_keys", "problem", "cannot be read");
}

#[test]
fn h13_hashes_that_look_ahead_are_said() {
    let event =
        with(stored(&[1, 2], None, &TOKENS[..8]), &[("lookahead_token_ids", json!([[5], [9]]))]);
    let (found, _) = of_events(&[event], &[]);
    says(&found, "lookahead", "note", "the 1 tokens after it");
}

#[test]
fn h15_ranks_are_looked_for_each_at_its_own_port() {
    let context = zmq::Context::new();
    // Two ports that follow each other, and a third where nobody is.
    let pair = (0..200).find_map(|_| {
        let (first, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
        let port: u16 = at.rsplit(':').next().unwrap().parse().unwrap();
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        let second = context.socket(zmq::PUB).unwrap();
        second.set_linger(0).unwrap();
        let next = port.checked_add(2).is_some_and(free);
        (next && second.bind(&format!("tcp://127.0.0.1:{}", port + 1)).is_ok())
            .then_some((first, second, at))
    });
    let (_first, _second, at) = pair.unwrap();
    let (found, _) = findings(&["--events", &at, "--ranks", "2", "--seconds", "3"]);
    says(&found, "ranks", "ok", "ranks 0 to 1 answer");
    let (found, status) = findings(&["--events", &at, "--ranks", "3", "--seconds", "3"]);
    assert_eq!(status, 1);
    says(&found, "ranks", "problem", "rank 2: nobody answers");

    let base = http(&[
        "vllm:prompt_tokens_total{engine=\"0\"} 1\nvllm:prompt_tokens_total{engine=\"1\"} 1\n",
    ]);
    let (found, _) = findings(&["--events", &at, "--engine", &base, "--seconds", "1"]);
    says(&found, "ranks", "note", "the engine has 2 data-parallel ranks");
    let third = batch(&[plain("0")]);
    let third = [&third[..third.len() - 9], &rmp_serde::to_vec(&3).unwrap()].concat();
    let (found, _) = of_batches(0, vec![third], &[]);
    says(&found, "ranks", "note", "this is data-parallel rank 3");
}

#[test]
fn s3_a_late_start_without_a_replay_endpoint_is_no_whole_stream() {
    let context = zmq::Context::new();
    let (socket, events) = bound_publisher(&context, "tcp://127.0.0.1:*");
    let late = batch(&[stored(&[9], Some(8), &TOKENS[..4])]);
    let _publishing = publish_while(move |n| publish(&socket, b"kv@pod@m", 40 + n, &late));
    let (found, _) = findings(&["--events", &events, "--seconds", "4"]);
    says(&found, "sequence", "note", "the first batch that came was number");
    says(&found, "trust", "note", "missed_start");
    says(&found, "scores", "unknown", "no whole plain prompt");
    says(&found, "replay", "note", "no replay endpoint was given");
    says(&found, "audit", "note", "unavailable");
}

#[test]
fn s2_a_buffer_that_has_moved_on_and_holes_in_it_are_said() {
    let later = batch(&[stored(&[9], Some(8), &TOKENS[..4])]);
    let (found, _) = of_batches(40, vec![later.clone()], &[]);
    says(&found, "replay", "note", "no longer reaches the first batch");
    says(&found, "trust", "note", "missed_start");
}

#[test]
fn s1_a_gap_is_a_problem() {
    let context = zmq::Context::new();
    let (socket, events) = bound_publisher(&context, "tcp://127.0.0.1:*");
    let payload = batch(&[plain("0")]);
    let _publishing = publish_while(move |n| publish(&socket, b"", 2 * n, &payload));
    let (found, status) = findings(&["--events", &events, "--seconds", "5"]);
    assert_eq!(status, 1);
    says(&found, "sequence", "problem", "did not arrive");
}

#[test]
fn s8_a_replay_endpoint_where_nobody_is_is_a_problem() {
    let context = zmq::Context::new();
    let (_idle, events) = bound_publisher(&context, "tcp://127.0.0.1:*");
    let flags = ["--events", &events, "--replay", "tcp://127.0.0.1:1", "--seconds", "1"];
    let (found, status) = findings(&flags);
    assert_eq!(status, 1);
    says(&found, "replay", "problem", "does not answer");
    says(&found, "audit", "note", "unavailable");
}

#[test]
fn s7_removals_of_what_was_never_announced_are_losses() {
    let (found, status) = of_events(&[plain("0"), removed(&[77, 78], "GPU")], &[]);
    assert_eq!(status, 1);
    says(&found, "losses", "problem", "2 events about blocks that were never announced");
}

#[test]
fn c7_blocks_without_tokens_are_said_and_are_a_problem_where_there_are_no_others() {
    let (found, _) = of_events(&[plain("0"), stored_by_name(&[5], "CPU")], &[]);
    says(&found, "tokens", "note", "1 of 2 stored events have no tokens");
    let (found, status) = of_events(&[stored_by_name(&[5], "CPU")], &[]);
    assert_eq!(status, 1);
    says(&found, "tokens", "problem", "known by their hashes only");
}

#[test]
fn c8_chunks_of_an_offload_tier_are_another_unit() {
    let tokens: Vec<u32> = (0..64).collect();
    let fields = [("medium", json!("CPU")), ("block_size", json!(64))];
    let (found, _) = of_events(&[plain("0"), with(stored(&[99], None, &tokens), &fields)], &[]);
    says(&found, "block_size", "note", "1 stored events are in another unit");
}

#[test]
fn c9_groups_without_a_rule_are_named() {
    let mamba = [("kv_cache_spec_kind", json!("mamba")), ("group_idx", json!(1))];
    let event = with(stored(&[9], None, &TOKENS[..4]), &mamba);
    let (found, _) = of_events(&[plain("0"), event], &[]);
    says(&found, "groups", "note", "without a known rule: mamba");
}

#[test]
fn c10_masked_events_are_said() {
    let masked = stored(&[4, 5], None, &TOKENS[..12]);
    let (found, _) = of_events(&[plain("0"), masked], &[]);
    says(&found, "tokens", "note", "tokens of more blocks than they name");
}

#[test]
fn c12_a_medium_that_is_not_known_is_a_problem() {
    let event = with(stored(&[9], None, &TOKENS[..4]), &[("medium", json!("MOON"))]);
    let (found, status) = of_events(&[plain("0"), event], &[]);
    assert_eq!(status, 1);
    says(&found, "tiers", "problem", "1 stored events name a medium");
}

#[test]
fn m1_what_cannot_be_read_is_a_problem_and_batches_without_events_are_explained() {
    let (found, status) = of_batches(0, vec![b"{}".to_vec()], &[]);
    assert_eq!(status, 1);
    says(&found, "decoding", "problem", "1 of 1 batches cannot be read");
    let (found, status) =
        of_events(&[json!({ "type": "BlockStored", "block_hashes": "none" })], &[]);
    assert_eq!(status, 1);
    says(&found, "decoding", "problem", "1 events cannot be read");
    let (found, _) = of_events(&[], &[]);
    says(&found, "decoding", "unknown", "not one event");

    let context = zmq::Context::new();
    let (socket, events) = bound_publisher(&context, "tcp://127.0.0.1:*");
    let _publishing = publish_while(move |_| socket.send("alone", 0).unwrap());
    let (found, status) = findings(&["--events", &events, "--seconds", "3"]);
    assert_eq!(status, 1);
    says(&found, "frames", "problem", "are not [topic, sequence number, payload]");
}
