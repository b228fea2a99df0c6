//! A daemon that keeps a store, one that reads it, and what both answer to the questions of a recording.
#![allow(dead_code, reason = "each test binary uses its own part")]

use serde_json::{Value, json};

use crate::daemon_support::{Batch, Daemon, Step, recording};
use crate::zmq_support::{bound_publisher, eventually, publish};

/// Variables of the environment.
pub(crate) type Variables<'a> = &'a [(&'a str, &'a str)];

/// Deadlines that a machine under load keeps, and leases that end soon.
pub(crate) const STORE: &str = "[state]\ninterval = \"50ms\"\n[store]\nread_deadline = \"10s\"\n\
                     answer_deadline = \"20s\"\nwrite_deadline = \"10s\"\nlease = \"5s\"\n\
                     owner_ttl = \"15s\"\nrefresh = \"50ms\"\n";

pub(crate) fn publisher() -> (zmq::Socket, String) {
    bound_publisher(&zmq::Context::new(), "tcp://127.0.0.1:*")
}

/// A daemon that receives from pod 7 and keeps the store.
pub(crate) fn writer(store: &str, source: &str, file: &str) -> Daemon {
    writer_in(store, source, file, &[])
}

pub(crate) fn writer_in(
    store: &str,
    source: &str,
    file: &str,
    environment: Variables<'_>,
) -> Daemon {
    let source = format!("7={source}");
    let flags = ["--store", store, "--source", &source, "--model", "m", "--log-level", "trace"];
    let daemon = Daemon::start(&flags, file, environment);
    eventually("the source is added", || daemon.get("/ready").status == 200);
    daemon
}

pub(crate) fn reader(store: &str) -> Daemon {
    reader_in(store, STORE, &[])
}

pub(crate) fn reader_in(store: &str, file: &str, environment: Variables<'_>) -> Daemon {
    let flags = ["--store", store, "--mode", "redis", "--log-level", "trace"];
    let daemon = Daemon::start(&flags, file, environment);
    eventually("the reader is ready", || daemon.get("/ready").status == 200);
    daemon
}

pub(crate) fn feed(daemon: &Daemon, socket: &zmq::Socket, batches: &[Batch]) {
    daemon.feed(socket, "", &batches[0], "7");
    for batch in &batches[1..] {
        publish(socket, b"", batch.seq, &batch.payload);
    }
    let last = batches.last().unwrap().seq;
    eventually("all batches are applied", || daemon.has_applied("7", 0, last));
}

pub(crate) fn question(line: &Value) -> Value {
    json!({
        "model": "m", "token_ids": line["tokens"], "cache_salt": line["salt"], "lora": line["lora"],
    })
}

/// What a daemon answers to every question of the recording.
pub(crate) fn answers(daemon: &Daemon) -> Vec<Value> {
    let ask = |step| match step {
        Step::Question { line, .. } => Some(daemon.post("/v1/score", &question(&line)).json(200)),
        Step::Batch(_) => None,
    };
    recording().into_iter().filter_map(ask).collect()
}

pub(crate) fn cached(answers: &[Value]) -> u64 {
    let tokens = |answer: &Value| answer["workers"][0]["expected_cached_tokens"].as_u64().unwrap();
    answers.iter().map(tokens).sum()
}

/// Waits until a reader shows the worker as of a batch, and whole.
pub(crate) fn read_up_to(reader: &Daemon, seq: u64) {
    eventually("the store is as of the batch", || {
        let worker = reader.worker("7", 0);
        worker["as_of"] == seq && worker["trust"] == "exact"
    });
}
