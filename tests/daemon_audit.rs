//! The daemon compares what it holds with what engines have kept: a real process, real sockets.
#![cfg(feature = "daemon")]

mod daemon_support;
mod event_support;
mod zmq_support;

use std::fs;

use serde_json::{Value, json};

use daemon_support::{Daemon, batches};
use event_support::{batch, removed};
use zmq_support::engine::{Engine, Fault, Shape};
use zmq_support::{eventually, publish};

const OFTEN: &str = "[audit]\nevery = \"200ms\"\n";

fn engine(faults: Vec<Fault>) -> Engine {
    Engine::start(&zmq::Context::new(), Shape::WithTopic, faults)
}

fn start(engine: &Engine, file: &str) -> Daemon {
    let source = format!("pod={},replay={}", engine.at, engine.replay_at);
    let daemon = Daemon::start(&["--source", &source, "--model", "m"], file, &[]);
    is_followed(&daemon);
    daemon
}

#[track_caller]
fn is_followed(daemon: &Daemon) {
    eventually("the source is followed", || {
        let worker = daemon.worker("pod", 0);
        let stage = &worker["replay"]["state"];
        worker["link"]["state"] == "up" && (stage == "in_step" || stage == "auditing")
    });
}

/// A batch that stores one block.
fn stored(clock: u64, first_token: u32) -> Vec<u8> {
    let tokens: Vec<u32> = (first_token..first_token + event_support::SIZE).collect();
    batch(clock as f64, &[event_support::stored(&[u64::from(first_token)], None, &tokens)])
}

fn holds(daemon: &Daemon, first_token: u32) -> bool {
    let tokens: Vec<u32> = (first_token..first_token + event_support::SIZE).collect();
    let answer = daemon.post("/v1/score", &json!({ "model": "m", "token_ids": tokens })).json(200);
    answer["workers"][0]["matched_blocks"] == 1
}

fn is_complete(worker: &Value, engine: &Engine) -> bool {
    worker["trust"] == "exact" && worker["as_of"] == json!(engine.next.checked_sub(1))
}

/// Waits for an audit that began after now and found everything as it should be.
#[track_caller]
fn is_found_right(daemon: &Daemon) -> Value {
    let ended = |worker: &Value| worker["audits"]["ok"].as_u64().unwrap();
    let before = ended(&daemon.worker("pod", 0));
    // The next one may have been under way.
    eventually("an audit ends well", || ended(&daemon.worker("pod", 0)) >= before + 2);
    daemon.worker("pod", 0)
}

#[test]
fn s7_a_batch_that_came_otherwise_than_it_was_kept_is_found_and_mended() {
    let mut engine = engine(vec![]);
    let daemon = start(&engine, OFTEN);
    engine.publish_batch(stored(0, 0));
    // Its event is lost on the way, but not its number.
    let (seq, _) = engine.lose_batch(stored(1, 100));
    publish(&engine.publisher, b"", seq, &batch(1.0, &[]));
    engine.publish_batch(stored(2, 200));
    eventually("it is mended", || holds(&daemon, 100));
    eventually("and exact", || is_complete(&daemon.worker("pod", 0), &engine));
    let worker = is_found_right(&daemon);
    assert_eq!((&worker["audit"], &worker["trust"]), (&json!("ok"), &json!("exact")));
    let audits = &worker["audits"];
    assert_eq!(
        (&audits["differed"], &audits["missing"], &audits["surplus"]),
        (&json!(1), &json!(1), &json!(0))
    );
    assert_eq!((&worker["replay"]["rebuilt"], &worker["restarts"]), (&json!(1), &json!(0)));
    assert!(holds(&daemon, 0) && holds(&daemon, 200));
    let metrics = daemon.get("/metrics").body;
    assert!(metrics.contains("kvscout_audits_total{outcome=\"differed\"} 1"), "{metrics}");
    assert!(metrics.contains("kvscout_audited_workers{audit=\"ok\"} 1"), "{metrics}");
    assert_eq!(daemon.metric("kvscout_audit_missing_copies_total"), Some(1.0));
    assert!(daemon.stderr().contains("amount to something else"), "{}", daemon.stderr());
}

#[test]
fn s7_audits_beside_live_batches_of_a_real_engine_change_nothing() {
    let mut engine = engine(vec![]);
    let daemon = start(&engine, "[audit]\nevery = \"20ms\"\n");
    for batch in batches() {
        engine.publish_batch(batch.payload.clone());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    eventually("all of it is there", || is_complete(&daemon.worker("pod", 0), &engine));
    let worker = is_found_right(&daemon);
    assert_eq!((&worker["trust"], &worker["audits"]["differed"]), (&json!("exact"), &json!(0)));
    assert_eq!((&worker["replay"]["rebuilt"], &worker["restarts"]), (&json!(0), &json!(0)));
    assert_eq!(worker["unexplained"]["unknown"], 0);
}

#[test]
fn s7_where_the_buffer_begins_later_audits_begin_with_what_was_held() {
    let mut engine = engine(vec![]);
    let daemon = start(&engine, OFTEN);
    engine.publish_batch(stored(0, 0));
    eventually("it is there", || is_complete(&daemon.worker("pod", 0), &engine));
    is_found_right(&daemon);
    // The buffer moves on past what the last audit covered, all at once.
    for n in 1..=20 {
        engine.publish_batch(stored(n, n as u32 * 100));
    }
    engine.buffer.lock().unwrap().drain(..15);
    eventually("it is audited from an anchor", || {
        daemon.worker("pod", 0)["audits"]["anchored"].as_u64().unwrap() >= 2
    });
    let worker = is_found_right(&daemon);
    assert_eq!((&worker["audit"], &worker["trust"]), (&json!("ok"), &json!("exact")));
    assert!(daemon.metric("kvscout_audits_anchored_total").unwrap() >= 2.0);
    // Its event is lost on the way, but not its number.
    let (seq, _) = engine.lose_batch(stored(21, 2100));
    publish(&engine.publisher, b"", seq, &batch(21.0, &[]));
    engine.publish_batch(stored(22, 2200));
    eventually("it is mended", || holds(&daemon, 2100));
    let worker = is_found_right(&daemon);
    let audits = &worker["audits"];
    assert_eq!(
        (&audits["differed"], &audits["mended"], &audits["missing"]),
        (&json!(1), &json!(1), &json!(1))
    );
    assert_eq!((&worker["trust"], &worker["replay"]["rebuilt"]), (&json!("exact"), &json!(0)));
    assert!(holds(&daemon, 0) && holds(&daemon, 2200));
    assert!(daemon.stderr().contains("its worker holds that now"), "{}", daemon.stderr());
}

#[test]
fn s7_a_daemon_that_comes_back_is_audited_from_its_snapshot() {
    let mut engine = engine(vec![]);
    let directory = format!("{}/anchor-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let _ = fs::remove_dir_all(&directory);
    let source = format!("pod={},replay={}", engine.at, engine.replay_at);
    let flags = ["--source", &source, "--model", "m", "--state", &directory];
    let run = |audit: &str| {
        let daemon = Daemon::start(&flags, &format!("[state]\ninterval = \"20ms\"\n{audit}"), &[]);
        is_followed(&daemon);
        daemon
    };
    let daemon = run("[audit]\nevery = \"0s\"\n");
    engine.publish_batch(stored(0, 0));
    engine.publish_batch(stored(1, 100));
    eventually("all of it is there", || is_complete(&daemon.worker("pod", 0), &engine));
    let written = || daemon.metric("kvscout_snapshots_total").unwrap();
    let before = written();
    eventually("a snapshot is written", || written() >= before + 2.0);
    drop(daemon);
    engine.publish_batch(stored(2, 200));
    engine.buffer.lock().unwrap().remove(0);
    let daemon = run(OFTEN);
    eventually("it goes on", || is_complete(&daemon.worker("pod", 0), &engine));
    let worker = is_found_right(&daemon);
    let audits = &worker["audits"];
    assert_eq!((&audits["since"], &audits["differed"]), (&json!(1), &json!(0)));
    assert_eq!((&worker["trust"], &worker["restarts"]), (&json!("exact"), &json!(0)));
    assert!(holds(&daemon, 0) && holds(&daemon, 200));
    drop(daemon);
    let _ = fs::remove_dir_all(directory);
}

#[test]
fn s7_without_memory_for_anchors_audits_are_unavailable_and_losses_leave_traces() {
    let mut engine = engine(vec![]);
    let daemon = start(&engine, &format!("{OFTEN}memory = 0\n"));
    assert_eq!(daemon.worker("pod", 0)["audit"], "pending");
    engine.publish_batch(stored(0, 0));
    engine.publish_batch(stored(1, 100));
    engine.buffer.lock().unwrap().remove(0);
    eventually("nothing can be compared", || daemon.worker("pod", 0)["audit"] == "unavailable");
    // The batch that stored block 500, and one below it, was dropped before it had a number.
    let below = event_support::stored(&[504], Some(500), &[504, 505, 506, 507]);
    engine.publish_batch(batch(2.0, &[below]));
    engine.publish_batch(batch(3.0, &[removed(&[500], "GPU")]));
    eventually("all of it is there", || is_complete(&daemon.worker("pod", 0), &engine));
    let worker = daemon.worker("pod", 0);
    let events = &worker["events"];
    assert_eq!((&events["unknown_parents"], &events["unknown_removals"]), (&json!(1), &json!(1)));
    assert_eq!(worker["warnings"], json!(["events_unexplained"]));
    assert_eq!(daemon.metric("kvscout_unknown_parents_total"), Some(1.0));
    let metrics = daemon.get("/metrics").body;
    assert!(metrics.contains("kvscout_warned_workers{warning=\"events_unexplained\"} 1"));
    assert!(metrics.contains("kvscout_audited_workers{audit=\"unavailable\"} 1"));
    assert!(holds(&daemon, 0) && holds(&daemon, 100));
    // A removal that was dropped likewise leaves a prediction that the engine does not keep, which its receipt shows.
    let off = "kvscout_prediction_error_tokens_sum";
    assert_eq!(daemon.metric(off), Some(0.0));
    let receipt = json!({ "worker": "pod", "expected_cached_tokens": 4, "cached_tokens": 0 });
    daemon.post("/v1/receipt", &receipt).json(200);
    assert_eq!(daemon.metric(off), Some(4.0));
}

#[test]
fn s7_a_daemon_that_dies_amid_an_audit_begins_the_next_one_anew() {
    // The round that proves the link, then an audit that is never answered.
    let mut engine = engine(vec![Fault::Garbage, Fault::Silence]);
    let directory = format!("{}/audit-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let _ = fs::remove_dir_all(&directory);
    let source = format!("pod={},replay={}", engine.at, engine.replay_at);
    let run = |audit: &str| {
        let flags = ["--source", &source, "--model", "m", "--state", &directory];
        let file = format!("[state]\ninterval = \"20ms\"\n{audit}");
        let daemon = Daemon::start(&flags, &file, &[]);
        is_followed(&daemon);
        daemon
    };
    let daemon = run("[audit]\nevery = \"2s\"\n");
    engine.publish_batch(stored(0, 0));
    engine.publish_batch(stored(1, 100));
    eventually("an audit is under way", || {
        daemon.worker("pod", 0)["replay"]["state"] == "auditing"
    });
    let row = daemon.worker("pod", 0);
    assert_eq!((&row["trust"], &row["as_of"]), (&json!("exact"), &json!(1)));
    let written = || daemon.metric("kvscout_snapshots_total").unwrap();
    let before = written();
    eventually("a snapshot is written", || written() >= before + 2.0);
    drop(daemon);
    let daemon = run(OFTEN);
    eventually("it goes on", || is_complete(&daemon.worker("pod", 0), &engine));
    let worker = is_found_right(&daemon);
    assert_eq!((&worker["audits"]["differed"], &worker["restarts"]), (&json!(0), &json!(0)));
    assert!(holds(&daemon, 0) && holds(&daemon, 100));
    drop(daemon);
    let _ = fs::remove_dir_all(directory);
}

#[test]
fn s7_without_a_replay_endpoint_audits_are_unavailable() {
    let mut engine = engine(vec![]);
    let source = format!("pod={}", engine.at);
    let daemon = Daemon::start(&["--source", &source, "--model", "m"], "", &[]);
    eventually("the link is up", || daemon.worker("pod", 0)["link"]["state"] == "up");
    engine.publish_batch(stored(0, 0));
    assert_eq!(daemon.worker("pod", 0)["audit"], "unavailable");
}
