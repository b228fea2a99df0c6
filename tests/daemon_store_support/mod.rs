//! A daemon that keeps a store, one that reads it, and what both answer to the questions of a recording.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::daemon_support::{Batch, Daemon, Step, post_to, recording};
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
    publish_all(socket, &batches[1..]);
    let last = batches.last().unwrap().seq;
    eventually("all batches are applied", || daemon.has_applied("7", 0, last));
}

pub(crate) fn publish_all(socket: &zmq::Socket, batches: &[Batch]) {
    for batch in batches {
        publish(socket, b"", batch.seq, &batch.payload);
    }
}

/// Who published these batches, who keeps them in the store and who reads them there; both are as of the last one.
pub(crate) fn both(store: &str, batches: &[Batch]) -> (zmq::Socket, Daemon, Daemon) {
    let (socket, endpoint) = publisher();
    let writer = writer(store, &endpoint, STORE);
    feed(&writer, &socket, batches);
    let reader = reader(store);
    read_up_to(&reader, batches.last().unwrap().seq);
    (socket, writer, reader)
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

/// Questions that are asked without a pause until told to stop.
pub(crate) struct Asking {
    stop: Arc<AtomicBool>,
    asks: JoinHandle<usize>,
}

impl Asking {
    /// Asks a daemon the longest question of the recording; each answer is shown to `check`.
    pub(crate) fn begin(daemon: &Daemon, check: impl Fn(&Value) + Send + 'static) -> Asking {
        let stop = Arc::new(AtomicBool::new(false));
        let (stops, address, body) = (Arc::clone(&stop), daemon.address().to_owned(), longest());
        let asks = thread::spawn(move || {
            let mut answered = 0;
            while !stops.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let answer = post_to(&address, "/v1/score", &body).json(200);
                assert!(asked.elapsed() < Duration::from_secs(30), "20 s by [`STORE`], and slack");
                check(&answer["workers"][0]);
                answered += 1;
                thread::sleep(Duration::from_millis(2));
            }
            answered
        });
        Asking { stop, asks }
    }

    /// Every question was answered, within its deadline.
    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.asks.join().unwrap() > 0);
    }
}

/// The question with the most cached tokens.
fn longest() -> Value {
    let steps = recording().into_iter().filter_map(|step| match step {
        Step::Question { line, computed } => Some((computed, question(&line))),
        Step::Batch(_) => None,
    });
    steps.max_by_key(|(computed, _)| *computed).unwrap().1
}

/// A daemon that answers from memory is not less sure of anything, whatever becomes of the store.
pub(crate) fn is_sure(row: &Value) {
    assert_eq!(row["trust"], "exact", "{row}");
}
