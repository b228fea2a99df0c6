//! `kvscout serve` with a store behind its memory or in its place: real processes, real sockets, a real server.
#![cfg(feature = "daemon")]

mod daemon_store_support;
mod daemon_support;
mod metrics_support;
mod redis_support;
mod zmq_support;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use daemon_store_support::*;
use daemon_support::{Daemon, Step, batches, recording};
use metrics_support::{documented_of, exposed_of};
use redis_support::{Proxy, Server};
use zmq_support::engine::{Engine, Shape};
use zmq_support::{eventually, publish};

fn in_store(server: &Server, pattern: &str) -> Vec<String> {
    let keys = server.ask(&["KEYS", pattern]);
    keys.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn r8_a_reader_answers_what_the_writer_answers_and_leaves_the_keys_of_others_alone() {
    let server = Server::start();
    server.ask(&["SET", "someone:else", "1"]);
    server.ask(&["HSET", "kvscout:other", "a", "1"]);
    let (_socket, writer, reader) = both(&server.address(), &batches());
    let expected = answers(&writer);
    assert!(cached(&expected) > 0);
    assert_eq!(answers(&reader), expected);

    // The other ways of asking, too.
    let tokens = recording().into_iter().find_map(|step| match step {
        Step::Question { line, computed } if computed > 0 => Some(line["tokens"].clone()),
        _ => None,
    });
    let tokens = tokens.unwrap();
    for (path, body) in [
        ("/v1/score/batch", json!({ "requests": [{ "model": "m", "token_ids": tokens }] })),
        ("/query", json!({ "model": "m", "token_ids": tokens })),
        ("/query", json!({ "model_name": "m", "token_ids": tokens })),
        ("/v1/score", json!({ "model": "m", "token_ids": tokens, "candidates": ["7", "nobody"] })),
    ] {
        let [ours, theirs] = [&reader, &writer].map(|daemon| daemon.post(path, &body).json(200));
        assert_eq!(ours, theirs, "{path}");
    }
    let unknown = reader.post("/v1/score", &json!({ "model": "x", "token_ids": [1] }));
    assert_eq!(unknown.json(404)["reason"], "unknown_model");

    // What only whoever follows engines can do.
    let register = json!({
        "instance_id": 8, "endpoint": "tcp://127.0.0.1:1", "model_name": "m", "block_size": 16,
    });
    for refused in [
        reader.post("/v1/explain", &json!({ "model": "m", "token_ids": tokens })),
        reader.post("/register", &register),
        reader.post("/v1/admin/clear", &json!({ "worker": "7" })),
        reader.get("/dump"),
    ] {
        let answer = refused.json(501);
        assert_eq!(answer["reason"], "not_implemented", "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("answers from a store"), "{answer}");
    }

    assert_eq!(server.ask(&["GET", "someone:else"]), "1");
    assert_eq!(server.ask(&["HGETALL", "kvscout:other"]), "a 1");
    let ours = in_store(&server, "kvscout:1:default:*").len();
    assert_eq!(in_store(&server, "*").len(), ours + 2);
    assert!(writer.metric("kvscout_store_rebuilt_total").unwrap() > 0.0);
    assert_eq!(writer.metric("kvscout_store_diverged_total"), Some(0.0));
    assert_eq!(reader.metric("kvscout_store_servers_ready"), Some(1.0));
}

#[test]
fn the_document_has_every_metric_of_a_store_and_no_other() {
    let server = Server::start();
    let (_socket, endpoint) = publisher();
    let writer = writer(&server.address(), &endpoint, STORE);
    eventually("there is a snapshot", || {
        writer.metric("kvscout_store_snapshots_total").is_some_and(|left| left > 0.0)
    });
    let reader = reader(&server.address());
    let mut exposed = exposed_of(&writer, "kvscout_store_");
    exposed.extend(exposed_of(&reader, "kvscout_store_"));
    assert_eq!(exposed, documented_of("kvscout_store_"));
}

#[test]
fn l14_a_new_replica_begins_with_the_snapshot_in_the_store_and_catches_up_by_replay() {
    let server = Server::start();
    let context = zmq::Context::new();
    let mut engine = Engine::start(&context, Shape::WithTopic, Vec::new());
    let source = format!("{},replay={}", engine.at, engine.replay_at);
    let all = batches();
    let first = writer(&server.address(), &source, STORE);
    let (before, after) = all.split_at(all.len() / 2);
    before.iter().for_each(|batch| engine.publish_batch(batch.payload.clone()));
    eventually("half is applied", || first.has_applied("7", 0, before.last().unwrap().seq));
    let written = || first.metric("kvscout_store_snapshots_total").unwrap_or(0.0);
    let some = written();
    eventually("a snapshot is in the store", || written() >= some + 2.0);
    first.kill();
    // Published while nobody listens.
    for batch in after {
        engine.lose_batch(batch.payload.clone());
    }

    // With a directory of its own, in which nothing is yet.
    let state = format!("l14-{}", std::process::id());
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(state);
    let _ = std::fs::remove_dir_all(&state);
    let with_state = format!("dir = {:?}\ninterval = \"50ms\"\n", state.display().to_string());
    let with_state = STORE.replacen("interval = \"50ms\"\n", &with_state, 1);
    let second = writer(&server.address(), &source, &with_state);
    assert!(second.metric("kvscout_restored_entries").is_some_and(|entries| entries > 0.0));
    let last = all.last().unwrap().seq;
    eventually("it has caught up", || {
        let worker = second.worker("7", 0);
        worker["as_of"] == last && worker["trust"] == "exact"
    });
    assert!(
        second.stderr().contains("beginning with a snapshot from the store"),
        "{}",
        second.stderr()
    );
    let asked = engine.requests();
    let from = before.last().unwrap().seq;
    assert!(asked.contains(&from), "from the last known batch on: {asked:?}");
    let cold = Daemon::start(&["--source", &format!("7={source}"), "--model", "m"], "", &[]);
    eventually("one that began cold has everything, too", || {
        let worker = cold.worker("7", 0);
        worker["as_of"] == last && worker["trust"] == "exact"
    });
    assert_eq!(answers(&second), answers(&cold));
    let reader = reader(&server.address());
    read_up_to(&reader, last);
    assert_eq!(answers(&reader), answers(&cold));
}

#[test]
fn r7_two_daemons_keep_one_store_and_one_that_is_killed_and_comes_back_costs_and_doubles_nothing() {
    let server = Server::start();
    let (socket, endpoint) = publisher();
    let all = batches();
    let third = all.len() / 3;
    let start = || writer(&server.address(), &endpoint, STORE);
    let (a, b) = (start(), start());
    // Both hear the first batch before anything else is sent.
    eventually("both hear the engine", || {
        publish(&socket, b"", all[0].seq, &all[0].payload);
        a.has_applied("7", 0, all[0].seq) && b.has_applied("7", 0, all[0].seq)
    });
    let reader = reader(&server.address());
    let asking = Asking::begin(&reader, |_| {});
    publish_all(&socket, &all[1..third]);
    read_up_to(&reader, all[third - 1].seq);
    eventually("both have it", || {
        [&a, &b].iter().all(|daemon| daemon.has_applied("7", 0, all[third - 1].seq))
    });
    assert_eq!(answers(&reader), answers(&a));
    let writes = |daemon: &Daemon| daemon.metric("kvscout_store_workers{state=\"following\"}");
    eventually("one of them writes", || {
        writes(&a).unwrap_or(0.0) + writes(&b).unwrap_or(0.0) == 1.0
    });
    let (writing, other) = match writes(&a) {
        Some(1.0) => (a, b),
        _ => (b, a),
    };
    writing.kill();
    publish_all(&socket, &all[third..2 * third]);
    let at = all[2 * third - 1].seq;
    eventually("the other one has it", || other.has_applied("7", 0, at));
    read_up_to(&reader, at);
    assert_eq!(answers(&reader), answers(&other));
    let rebuilt = other.metric("kvscout_store_rebuilt_total");

    let back = start();
    eventually("it is back", || back.metric("kvscout_sources_up") == Some(1.0));
    publish_all(&socket, &all[2 * third..]);
    let last = all.last().unwrap().seq;
    eventually("the survivor has all", || other.has_applied("7", 0, last));
    read_up_to(&reader, last);
    assert_eq!(answers(&reader), answers(&other));
    assert_eq!(other.metric("kvscout_store_rebuilt_total"), rebuilt);
    assert_eq!(other.metric("kvscout_store_diverged_total"), Some(0.0));
    assert_eq!(writes(&other), Some(1.0));
    asking.end();
}

#[test]
fn r2_memory_answers_while_the_store_is_killed_and_the_store_is_whole_again_afterwards() {
    let mut server = Server::start();
    let all = batches();
    let (before, after) = all.split_at(all.len() / 2);
    let (socket, writer, reader) = both(&server.address(), before);
    let asking = Asking::begin(&writer, is_sure);
    server.kill();
    publish_all(&socket, after);
    let last = all.last().unwrap().seq;
    eventually("memory has all", || writer.has_applied("7", 0, last));
    eventually("it is said that the store is away", || {
        writer.metric("kvscout_store_servers_ready") == Some(0.0)
    });
    // Without persistence it comes back empty.
    server.restart();
    read_up_to(&reader, last);
    asking.end();
    // The writer looks at its part after each connection, and may begin it anew once more: then it is not believed.
    eventually("the store has what memory has", || {
        let said = answers(&reader);
        let is_sure = said.iter().all(|answer| answer["workers"][0]["trust"] == "exact");
        if is_sure {
            assert_eq!(said, answers(&writer));
        }
        is_sure
    });
}

#[test]
fn r2_a_reader_whose_store_is_gone_or_silent_says_so_within_its_deadline() {
    let mut server = Server::start();
    let proxy = Proxy::to(server.port());
    let (socket, endpoint) = publisher();
    let writer = writer(&server.address(), &endpoint, STORE);
    feed(&writer, &socket, &batches()[..40]);
    let seq = batches()[39].seq;
    let flags = ["--store", &proxy.address(), "--mode", "redis"];
    let file =
        "[store]\nread_deadline = \"300ms\"\nanswer_deadline = \"400ms\"\nrefresh = \"50ms\"\n";
    let reader = Daemon::start(&flags, file, &[]);
    read_up_to(&reader, seq);
    let body = json!({ "model": "m", "token_ids": (0..64).collect::<Vec<u32>>() });
    let is_degraded = || {
        let started = Instant::now();
        let answer = reader.post("/v1/score", &body).json(200);
        // Far above the deadline, for a machine that is busy with other things.
        assert!(started.elapsed() < Duration::from_secs(10));
        let row = &answer["workers"][0];
        assert_eq!((&row["worker"], &row["matched_blocks"]), (&json!("7"), &json!(0)));
        (row["trust"].clone(), row["reason"].clone()) == (json!("degraded"), json!("store"))
    };
    eventually("the store answers", || !is_degraded());
    proxy.swallow();
    eventually("a silent store is said", is_degraded);
    proxy.recover();
    eventually("it is well again", || !is_degraded());
    server.kill();
    eventually("a store that is gone is said", is_degraded);
    eventually("and it is not ready for long", || reader.get("/ready").status == 503);
}

#[test]
fn l14_both_kinds_boot_without_the_store_and_join_it_when_it_comes() {
    let mut server = Server::prepare(&[]);
    let (socket, endpoint) = publisher();
    let file = STORE.replace("[store]\n", "[store]\nwait = \"100ms\"\n");
    let reader = Daemon::start(&["--store", &server.address(), "--mode", "redis"], STORE, &[]);
    let body = json!({ "model": "m", "token_ids": [1, 2, 3] });
    let refused = reader.post("/v1/score", &body).json(503);
    assert!(refused["error"].as_str().unwrap().contains("not reached"), "{refused}");
    assert_eq!(reader.get("/ready").status, 503);
    let writer = writer(&server.address(), &endpoint, &file);
    let all = batches();
    feed(&writer, &socket, &all);
    assert!(cached(&answers(&writer)) > 0, "memory answers without a store");
    server.restart();
    read_up_to(&reader, all.last().unwrap().seq);
    assert_eq!(answers(&reader), answers(&writer));
}

#[test]
fn a_worker_whose_writer_is_gone_is_not_believed() {
    let server = Server::start();
    let (_socket, writer, reader) = both(&server.address(), &batches()[..40]);
    writer.kill();
    eventually("nobody keeps the worker any more", || {
        let worker = reader.worker("7", 0);
        (&worker["trust"], &worker["reason"]) == (&json!("degraded"), &json!("store"))
    });
}

#[test]
fn a_password_is_in_no_log_and_no_answer_and_one_in_the_address_is_refused() {
    let server = Server::with(&["--requirepass", "geheim-4711"]).login(&["geheim-4711"]);
    let (socket, endpoint) = publisher();
    let file = STORE.replace("[store]\n", "[store]\npassword_env = \"STORE_PASSWORD\"\n");
    let source = format!("7={endpoint}");
    let address = server.address();
    let flags = ["--store", &address, "--source", &source, "--model", "m", "--log-level", "trace"];
    let writer = Daemon::start(&flags, &file, &[("STORE_PASSWORD", "geheim-4711")]);
    feed(&writer, &socket, &batches()[..10]);
    eventually("the store has it", || {
        writer.metric("kvscout_store_workers{state=\"following\"}") == Some(1.0)
    });
    let log = writer.terminate();
    assert!(!log.contains("geheim"), "{log}");

    let with = format!("redis://:geheim-4711@127.0.0.1:{}", server.port());
    for flags in [&["serve", "--store", &with][..], &["serve", "--print-config", "--store", &with]]
    {
        let ended = daemon_support::kvscout().args(flags).output().unwrap();
        assert_eq!(ended.status.code(), Some(2));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("password_file") && !said.contains("geheim"), "{said}");
    }
}

#[test]
fn a_secret_file_that_has_no_secret_is_wrong_usage_that_names_the_file_and_not_what_is_in_it() {
    let wrong = daemon_support::config_file("c0ffee4711, which is no secret\n");
    let none = Path::new("/nowhere/secret");
    for mode in ["memory", "redis"] {
        for (path, expected) in [(wrong.as_path(), "64 hex digits"), (none, "No such file")] {
            let file = format!("[store]\nmode = {mode:?}\nsecret_file = {path:?}\n");
            let config = daemon_support::config_file(&file);
            let mut serve = daemon_support::kvscout();
            serve.args(["serve", "--store", "redis://127.0.0.1:9", "--config"]).arg(config);
            let ended = serve.args(["--log-level", "off"]).output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(2), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            let named = format!("store.secret_file {}: ", path.display());
            assert!(said.contains(&named) && said.contains(expected), "{said}");
            assert!(!said.contains("c0ffee"), "{said}");
        }
    }
}
