//! The daemon against engines that lose batches, keep them, restart and fall silent: a real process, real
//! sockets.
#![cfg(feature = "daemon")]

mod daemon_support;
mod zmq_support;

use std::fs;
use std::io::{Read, Write};
use std::iter;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvscout::event::{Batch as Events, Event, Limits};
use serde_json::{Value, json};

use daemon_support::{Daemon, Step, batches, recording};
use zmq_support::engine::{Engine, Shape};
use zmq_support::{bound_publisher, eventually};

fn start(engine: &Engine, file: &str) -> Daemon {
    let source = format!("pod={},replay={}", engine.at, engine.replay_at);
    Daemon::start(&["--source", &source, "--model", "m"], file, &[])
}

fn engine() -> Engine {
    Engine::start(&zmq::Context::new(), Shape::WithTopic, vec![])
}

/// Whether a rank has everything that its engine made.
fn is_complete(daemon: &Daemon, rank: u64, engine: &Engine) -> bool {
    let worker = daemon.worker("pod", rank);
    worker["trust"] == "exact" && worker["as_of"] == json!(engine.next.checked_sub(1))
}

#[track_caller]
fn is_followed(daemon: &Daemon) {
    eventually("the source is followed", || {
        let worker = daemon.worker("pod", 0);
        worker["link"]["state"] == "up" && worker["replay"]["state"] == "in_step"
    });
}

fn score(daemon: &Daemon, question: &Value) -> Value {
    let body = json!({
        "model": "m", "token_ids": question["tokens"], "cache_salt": question["salt"],
        "lora": question["lora"],
    });
    daemon.post("/v1/score", &body).json(200)["workers"][0].clone()
}

/// The prompt of the first block that a batch stores.
fn prompt(payload: &[u8]) -> Value {
    let parsed = Events::parse(payload, &Limits::default()).unwrap();
    let Some(Ok(Event::Stored(stored))) = parsed.events().next() else { panic!("a store") };
    json!({ "model": "m", "token_ids": stored.tokens.iter().collect::<Vec<u64>>() })
}

/// A batch that stores one block.
fn stored(clock: u64, first_token: u64) -> Vec<u8> {
    let tokens: Vec<u64> = (first_token..first_token + 4).collect();
    let event = json!({
        "type": "BlockStored", "block_hashes": [first_token], "parent_block_hash": null,
        "token_ids": tokens, "block_size": 4, "lora_id": null, "medium": "GPU",
        "lora_name": null, "extra_keys": [Value::Null], "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    });
    rmp_serde::to_vec(&json!([clock as f64, [event], 0])).unwrap()
}

fn holds(daemon: &Daemon, first_token: u64) -> bool {
    let tokens: Vec<u64> = (first_token..first_token + 4).collect();
    let answer = daemon.post("/v1/score", &json!({ "model": "m", "token_ids": tokens })).json(200);
    answer["workers"][0]["matched_blocks"] == 1
}

#[test]
fn s1_every_answer_equals_the_engine_s_own_although_batches_are_lost() {
    let mut engine = engine();
    let daemon = start(&engine, "");
    is_followed(&daemon);
    let steps = recording();
    let followers = steps.iter().skip(1).map(Some).chain(iter::once(None));
    let (mut lost, mut questions) = (0, 0);
    for (step, after) in steps.iter().zip(followers) {
        match step {
            Step::Batch(batch) => {
                assert_eq!(batch.seq, engine.next);
                // What is lost last is noticed only with the next one.
                if batch.seq % 3 == 1 && matches!(after, Some(Step::Batch(_))) {
                    engine.lose_batch(batch.payload.clone());
                    lost += 1;
                } else {
                    engine.publish_batch(batch.payload.clone());
                }
            }
            Step::Question { line, computed } => {
                eventually("the worker is complete", || {
                    engine.next == 0 || is_complete(&daemon, 0, &engine)
                });
                let answer = score(&daemon, line);
                assert_eq!(answer["expected_cached_tokens"], *computed, "{} {answer}", line["id"]);
                questions += 1;
            }
        }
    }
    assert!(lost > 3 && questions > 70, "{lost}, {questions}");
    let worker = daemon.worker("pod", 0);
    assert_eq!((&worker["missing"], &worker["replay"]["given_up"]), (&json!(0), &json!(0)));
    assert!(worker["replay"]["replayed"].as_u64().unwrap() >= lost);
    let metrics = daemon.get("/metrics").body;
    let value = |name: &str| -> u64 {
        let found = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        found.unwrap_or_else(|| panic!("{name}: {metrics}")).parse().unwrap()
    };
    assert!(value("kvscout_replayed_batches_total") >= lost);
    assert!(value("kvscout_repaired_total") >= 1);
    assert_eq!((value("kvscout_held_back_bytes"), value("kvscout_replays_running")), (0, 0));
    let log = daemon.stderr();
    assert!(!log.contains("not used yet") && !log.contains("missing"), "{log}");
}

#[test]
fn s4_a_late_start_is_repaired_even_if_the_engine_is_idle() {
    let mut engine = engine();
    let batches = batches();
    batches[..40].iter().for_each(|batch| drop(engine.lose_batch(batch.payload.clone())));
    // As a router registers it.
    let daemon = Daemon::start(&[], "", &[]);
    let body = json!({
        "endpoint": engine.at, "replay_endpoint": engine.replay_at.to_string(), "type": "vLLM",
        "modelname": "m", "instance_id": "pod", "block_size": 16, "dp_rank": 0,
    });
    daemon.post("/register", &body).json(200);
    eventually("the past is there", || is_complete(&daemon, 0, &engine));
    assert_eq!(engine.requests()[0], 0);
    engine.publish_batch(batches[40].payload.clone());
    eventually("the next batch is applied", || is_complete(&daemon, 0, &engine));
    let worker = daemon.worker("pod", 0);
    assert_eq!((&worker["missing"], &worker["gaps"]), (&json!(0), &json!(0)));
}

#[test]
fn s2_what_the_engine_no_longer_has_degrades_its_worker() {
    for (on_gap, matched) in [("flag", 1), ("exclude", 0)] {
        let mut engine = engine();
        let file = format!("on_gap = \"{on_gap}\"\n[replay]\nrebuild = \"200ms\"");
        let daemon = start(&engine, &file);
        is_followed(&daemon);
        let batches = batches();
        engine.publish_batch(batches[0].payload.clone());
        eventually("the first batch is applied", || is_complete(&daemon, 0, &engine));
        engine.lose_batch(batches[1].payload.clone());
        engine.lose_batch(batches[2].payload.clone());
        // Its buffer has two steps.
        engine.buffer.lock().unwrap().clear();
        engine.publish_batch(batches[3].payload.clone());
        eventually("it is given up", || daemon.worker("pod", 0)["reason"] == "gap");
        let worker = daemon.worker("pod", 0);
        assert_eq!((&worker["as_of"], &worker["missing"]), (&json!(3), &json!(2)));
        let answer = daemon.post("/v1/score", &prompt(&batches[0].payload)).json(200);
        let row = &answer["workers"][0];
        assert_eq!((&row["trust"], &row["reason"]), (&json!("degraded"), &json!("gap")));
        assert_eq!(row["matched_blocks"], matched, "{on_gap}");
        // An engine that answers again from its beginning is built anew, without being asked to.
        let whole = batches[..4].iter().map(|batch| (batch.seq, batch.payload.clone()));
        *engine.buffer.lock().unwrap() = whole.collect();
        eventually("it is rebuilt", || is_complete(&daemon, 0, &engine));
        assert_eq!(daemon.worker("pod", 0)["replay"]["rebuilt"], 1);
    }
}

#[test]
fn l2_a_restart_while_the_link_was_down_leaves_nothing_of_the_life_before() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::Plain, vec![]);
    let daemon = start(&engine, "");
    is_followed(&daemon);
    (0..3).for_each(|n| engine.publish_batch(stored(n, 100 * n)));
    eventually("the first life is known", || is_complete(&daemon, 0, &engine));
    assert!(holds(&daemon, 0) && holds(&daemon, 200));
    drop(std::mem::replace(&mut engine.publisher, context.socket(zmq::PUB).unwrap()));
    eventually("the link is down", || daemon.worker("pod", 0)["replay"]["state"] == "down");
    // The next life of the engine, behind the same addresses, has come further.
    engine.next = 0;
    engine.buffer.lock().unwrap().clear();
    (0..9).for_each(|n| drop(engine.lose_batch(stored(1000 + n, 5000 + 100 * n))));
    engine.publisher = bound_publisher(&context, &engine.at).0;
    eventually("the second life is known", || is_complete(&daemon, 0, &engine));
    assert!(!holds(&daemon, 0) && !holds(&daemon, 200) && holds(&daemon, 5800));
    assert_eq!(daemon.worker("pod", 0)["restarts"], 1);
    engine.publish_batch(stored(2000, 9000));
    eventually("and followed", || is_complete(&daemon, 0, &engine));
}

#[test]
fn ranks_publish_and_replay_at_the_next_ports() {
    let context = zmq::Context::new();
    let next = |endpoint: &str| {
        let (host, port) = endpoint.rsplit_once(':').unwrap();
        port.parse::<u16>().unwrap().checked_add(1).map(|port| format!("{host}:{port}"))
    };
    let (mut first, mut second) = (0..200)
        .find_map(|_| {
            let first = Engine::start(&context, Shape::WithTopic, vec![]);
            let at = [next(&first.at)?, next(&first.replay_at.to_string())?];
            let second = [&*at[0], &*at[1]];
            Some((Engine::start_at(&context, Shape::WithTopic, vec![], second)?, first))
        })
        .map(|(second, first)| (first, second))
        .expect("two pairs of neighbouring ports");
    (0..3).for_each(|n| drop(first.lose_batch(stored(n, 100 * n))));
    (0..5).for_each(|n| drop(second.lose_batch(stored(n, 100 * n))));
    let source = format!("pod={},replay={},ranks=2", first.at, first.replay_at);
    let daemon = Daemon::start(&["--source", &source, "--model", "m"], "", &[]);
    eventually("both ranks have their past", || {
        is_complete(&daemon, 0, &first) && is_complete(&daemon, 1, &second)
    });
    second.lose_batch(stored(5, 500));
    second.publish_batch(stored(6, 600));
    first.publish_batch(stored(3, 300));
    eventually("each is repaired by its own engine", || {
        is_complete(&daemon, 0, &first) && is_complete(&daemon, 1, &second)
    });
    assert_eq!(daemon.worker("pod", 1)["replay_endpoint"], second.replay_at.to_string());
}

#[test]
fn l6_an_engine_whose_link_stays_down_is_silent_until_it_is_back() {
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::WithTopic, vec![]);
    let file = format!(
        "silent_after_down = \"300ms\"\non_gap = \"exclude\"\n\
         [[source]]\nname = \"plain\"\nmodel = \"other\"\nendpoint = \"{}\"",
        engine.at
    );
    let daemon = start(&engine, &file);
    is_followed(&daemon);
    eventually("the other link is up", || daemon.worker("plain", 0)["link"]["state"] == "up");
    engine.publish_batch(stored(0, 0));
    eventually("the batch is applied", || is_complete(&daemon, 0, &engine));
    assert!(holds(&daemon, 0));
    drop(std::mem::replace(&mut engine.publisher, context.socket(zmq::PUB).unwrap()));
    eventually("both are silent", || {
        let metrics = daemon.get("/metrics").body;
        metrics.contains("kvscout_workers{trust=\"silent\"} 2")
    });
    assert!(!holds(&daemon, 0), "nobody is sent there");
    engine.publisher = bound_publisher(&context, &engine.at).0;
    eventually("it is back", || is_complete(&daemon, 0, &engine));
    eventually("the other one, too", || daemon.worker("plain", 0)["trust"] != "silent");
    assert!(holds(&daemon, 0), "the same life: what it held, it still holds");
    assert_eq!(daemon.worker("pod", 0)["restarts"], 0);
}

#[test]
fn l11_an_engine_of_which_nothing_comes_for_too_long_is_silent_until_something_comes() {
    let mut engine = engine();
    let daemon = start(&engine, "silent_after_quiet = \"1s\"");
    is_followed(&daemon);
    engine.publish_batch(stored(0, 0));
    eventually("the batch is applied", || daemon.worker("pod", 0)["as_of"] == 0);
    let trust = || daemon.worker("pod", 0)["trust"].clone();
    eventually("it is quiet for too long", || trust() == "silent");
    assert_eq!(daemon.worker("pod", 0)["link"]["state"], "up");
    eventually("it is heard again", || {
        engine.publish_batch(stored(1, 4));
        trust() == "exact"
    });
    assert!(holds(&daemon, 0) && holds(&daemon, 4));
    let log = daemon.stderr();
    assert!(log.contains("silent: nothing came"), "{log}");
}

#[test]
fn l8_batches_are_seen_to_be_late_before_some_are_dropped_and_those_are_asked_for() {
    // As much as queues and sockets hold on both sides, and half as much again.
    const MANY: u64 = 3000;
    let mut engine = engine();
    let daemon = start(&engine, "");
    is_followed(&daemon);
    // A batch of now, with 20 kB that nobody reads.
    let stamped = |token: u64| {
        let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let parsed: Value = rmp_serde::from_slice(&stored(0, token)).unwrap();
        let padding = "x".repeat(20_000);
        rmp_serde::to_vec(&json!([made.as_secs_f64(), parsed[1], 0, padding])).unwrap()
    };
    eventually("a batch is applied", || {
        engine.publish_batch(stamped(0));
        is_complete(&daemon, 0, &engine)
    });
    let value = |name: &str| daemon.metric(name).unwrap_or_else(|| panic!("no {name}"));
    let late = || {
        let [all, soon] = ["count", "bucket{le=\"1.024\"}"];
        let name = |which: &str| format!("kvscout_batch_lag_seconds_{which}");
        value(&name(all)) - value(&name(soon))
    };
    assert_eq!(
        (late(), value("kvscout_pod_gaps_total{tenant=\"default\",pod=\"pod\"}")),
        (0.0, 0.0)
    );
    daemon.signal("STOP");
    let stopped = Instant::now();
    (1..=MANY).for_each(|token| engine.publish_batch(stamped(4 * token)));
    thread::sleep(Duration::from_millis(1500).saturating_sub(stopped.elapsed()));
    daemon.signal("CONT");
    // Replayed ones are not counted: these waited in the queue that overflowed.
    eventually("those that were kept are late", || late() > 0.0);
    let lag = daemon.worker("pod", 0)["lag_seconds"].as_f64().unwrap();
    assert!(lag > 1.024, "{lag}");
    eventually("all are there", || {
        engine.publish_batch(stamped(0));
        is_complete(&daemon, 0, &engine)
    });
    assert!(late() < MANY as f64, "some were dropped");
    let worker = daemon.worker("pod", 0);
    assert!(worker["replay"]["replayed"].as_u64().unwrap() >= MANY - late() as u64, "{worker}");
    assert_eq!((&worker["missing"], &worker["replay"]["given_up"]), (&json!(0), &json!(0)));
    [1, MANY / 2, MANY].iter().for_each(|n| assert!(holds(&daemon, 4 * n), "{n}"));
}

#[test]
fn l13_a_source_that_comes_and_goes_leaves_no_replay_behind() {
    let mut engine = engine();
    (0..20).for_each(|n| drop(engine.lose_batch(stored(n, 100 * n))));
    let daemon = Daemon::start(&[], "", &[]);
    let body = json!({
        "endpoint": engine.at, "replay_endpoint": engine.replay_at.to_string(), "type": "vLLM",
        "modelname": "m", "instance_id": "pod", "block_size": 4, "dp_rank": 0,
    });
    let gone = json!({ "instance_id": "pod", "dp_rank": 0 });
    for _ in 0..10 {
        daemon.post("/register", &body).json(200);
        daemon.post("/unregister", &gone).json(200);
    }
    daemon.post("/register", &body).json(200);
    eventually("the last one is complete", || is_complete(&daemon, 0, &engine));
    eventually("nothing runs any more", || {
        let metrics = daemon.get("/metrics").body;
        metrics.contains("kvscout_replays_running 0") && metrics.contains("kvscout_sources_up 1")
    });
    assert_eq!(daemon.worker("pod", 0)["events"]["stored"], 20);
}

/// Serves a text over HTTP to whoever asks, for the life of the test.
fn metrics_of(text: Arc<Mutex<String>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let text = text.lock().unwrap().clone();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n", text.len());
            let _ = write!(stream, "{head}connection: close\r\n\r\n{text}");
        }
    });
    url
}

#[test]
fn l11_an_engine_that_sleeps_or_works_in_silence_shows_in_its_metrics() {
    let says = |awake: u8, tokens: u32| {
        format!(
            "vllm:engine_sleep_state{{engine=\"0\",sleep_state=\"awake\"}} {awake}.0\n\
             vllm:prompt_tokens_total{{engine=\"0\"}} {tokens}.0\n"
        )
    };
    let text = Arc::new(Mutex::new(says(1, 50)));
    let mut engine = engine();
    let source = format!("pod={},metrics={}", engine.at, metrics_of(text.clone()));
    let file = "metrics_interval = \"50ms\"\nsilent_after = \"100ms\"";
    let daemon = Daemon::start(&["--source", &source, "--model", "m"], file, &[]);
    eventually("the link is up", || daemon.worker("pod", 0)["link"]["state"] == "up");
    let mut n = 0;
    eventually("a block is held", || {
        n += 1;
        engine.publish_batch(stored(n, 100));
        holds(&daemon, 100)
    });
    *text.lock().unwrap() = says(0, 50);
    eventually("it sleeps, and holds nothing", || !holds(&daemon, 100));
    *text.lock().unwrap() = says(1, 5000);
    eventually("it works in silence", || daemon.worker("pod", 0)["trust"] == "silent");
    engine.publish_batch(stored(n + 1, 200));
    eventually("it is heard again", || {
        holds(&daemon, 200) && daemon.worker("pod", 0)["trust"] != "silent"
    });
}

/// A directory of one test alone, and a daemon that keeps its state there.
fn keeping(name: &str, engine: &Engine) -> (String, impl Fn() -> Daemon + use<>) {
    let directory = format!("{}/replay-{name}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let _ = fs::remove_dir_all(&directory);
    let source = format!("pod={},replay={}", engine.at, engine.replay_at);
    let state = directory.clone();
    let start = move || {
        let flags = ["--source", &source, "--model", "m", "--state", &state];
        Daemon::start(&flags, "[state]\ninterval = \"20ms\"\n", &[])
    };
    (directory, start)
}

/// Waits until a snapshot was begun and written after now, and kills the daemon.
fn kill_after_snapshot(daemon: Daemon) {
    let written = || daemon.metric("kvscout_snapshots_total").unwrap();
    let before = written();
    // The next one may have been under way.
    eventually("a snapshot is written", || written() >= before + 2.0);
    // By SIGKILL.
    drop(daemon);
}

#[test]
fn a_killed_daemon_asks_for_what_was_published_after_its_last_snapshot() {
    let mut engine = engine();
    let (directory, start) = keeping("killed", &engine);
    let steps = recording();
    let batches = batches();
    let daemon = start();
    is_followed(&daemon);
    batches[..30].iter().for_each(|batch| engine.publish_batch(batch.payload.clone()));
    eventually("the first batches are applied", || is_complete(&daemon, 0, &engine));
    kill_after_snapshot(daemon);
    // Up to a question that follows much later.
    let asks = |step: &&Step| matches!(step, Step::Question { .. });
    let after = steps.iter().position(|step| matches!(step, Step::Batch(batch) if batch.seq == 60));
    let after = after.expect("so many batches");
    let until = after + steps[after..].iter().position(|step| asks(&step)).expect("a question");
    let made = steps[..until].iter().filter(|step| matches!(step, Step::Batch(_))).count();
    batches[30..made].iter().for_each(|batch| engine.publish_batch(batch.payload.clone()));
    let asked = engine.requests().len();
    let daemon = start();
    eventually("it has caught up", || is_complete(&daemon, 0, &engine));
    assert_eq!(engine.requests()[asked], 29, "from the last batch of the snapshot");
    let worker = daemon.worker("pod", 0);
    assert_eq!((&worker["missing"], &worker["restarts"]), (&json!(0), &json!(0)));
    assert_eq!(worker["replay"]["replayed"], made - 30, "and nothing twice");
    let questions = steps[until..].iter().take_while(|step| asks(step));
    let mut count = 0;
    for question in questions {
        let Step::Question { line, computed } = question else { unreachable!() };
        let answer = score(&daemon, line);
        assert_eq!(answer["expected_cached_tokens"], *computed, "{} {answer}", line["id"]);
        assert_eq!(answer["trust"], "exact");
        count += 1;
    }
    assert!(count > 0);
    drop(daemon);
    let _ = fs::remove_dir_all(directory);
}

#[test]
fn a_killed_daemon_keeps_nothing_of_an_engine_that_restarted_meanwhile() {
    for published in [2, 9] {
        let mut engine = engine();
        let (directory, start) = keeping(&format!("restarted-{published}"), &engine);
        let daemon = start();
        is_followed(&daemon);
        (0..5).for_each(|n| engine.publish_batch(stored(n, 100 * n)));
        eventually("the first life is known", || is_complete(&daemon, 0, &engine));
        kill_after_snapshot(daemon);
        engine.next = 0;
        engine.buffer.lock().unwrap().clear();
        (0..published).for_each(|n| drop(engine.lose_batch(stored(1000 + n, 5000 + 100 * n))));
        let daemon = start();
        eventually("the second life is known", || is_complete(&daemon, 0, &engine));
        assert!(!holds(&daemon, 0) && !holds(&daemon, 400) && holds(&daemon, 5100));
        assert_eq!(daemon.worker("pod", 0)["restarts"], 1);
        drop(daemon);
        let _ = fs::remove_dir_all(directory);
    }
}

#[test]
fn l6_a_restored_worker_whose_engine_is_gone_is_silent() {
    let mut engine = engine();
    let (directory, start) = keeping("gone", &engine);
    let daemon = start();
    is_followed(&daemon);
    engine.publish_batch(stored(0, 0));
    eventually("it is known", || is_complete(&daemon, 0, &engine));
    kill_after_snapshot(daemon);
    drop(engine);
    let daemon = start();
    assert_eq!(daemon.worker("pod", 0)["trust"], "syncing");
    eventually("it is silent", || daemon.worker("pod", 0)["trust"] == "silent");
    drop(daemon);
    let _ = fs::remove_dir_all(directory);
}

#[test]
fn l14_an_engine_that_starts_after_the_daemon_is_followed_from_its_first_batch() {
    let context = zmq::Context::new();
    let gone = Engine::start(&context, Shape::WithTopic, vec![]);
    let (at, replay_at) = (gone.at.clone(), gone.replay_at.to_string());
    let daemon = start(&gone, "");
    drop(gone);
    eventually("ready, with or without engines", || daemon.get("/ready").status == 200);
    let mut engine = None;
    eventually("its addresses are free", || {
        engine = Engine::start_at(&context, Shape::WithTopic, vec![], [&*at, &*replay_at]);
        engine.is_some()
    });
    let mut engine = engine.expect("it was started");
    // Long before anybody listens.
    (0..20).for_each(|n| engine.publish_batch(stored(n, 100 * n)));
    eventually("all of it is there", || is_complete(&daemon, 0, &engine));
    assert!(holds(&daemon, 0) && holds(&daemon, 1900));
}
