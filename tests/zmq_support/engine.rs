//! An engine that publishes and answers as vLLM does.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvscout::ingest::zmq::Endpoint;

use super::{endpoint, publish};

/// How a replay socket answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// vLLM up to 0.25.
    Plain,
    /// vLLM since 0.26.
    WithTopic,
}

/// What an engine's replay socket does wrong, for its first answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// So many batches, no end marker.
    CutAfter(usize),
    /// Two batches of each ten are missing, the end marker comes.
    Holes,
    /// Messages of every wrong form among the right ones.
    Garbage,
    /// Nothing at all.
    Silence,
    /// After the right ones the last one again and again, for some seconds, and no end marker.
    Drip,
}

pub(crate) type Buffer = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

/// An engine: publishes on the test's thread, serves replays on one of its own.
pub(crate) struct Engine {
    pub(crate) publisher: zmq::Socket,
    pub(crate) at: String,
    pub(crate) replay_at: Endpoint,
    pub(crate) buffer: Buffer,
    requests: Arc<Mutex<Vec<Request>>>,
    pub(crate) next: u64,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What asked, as its socket is known to ours, and from where on.
type Request = (Vec<u8>, u64);

/// The payload of a batch: its clock, then padding.
pub(crate) fn payload(clock: u64, bytes: usize) -> Vec<u8> {
    let mut payload = clock.to_be_bytes().to_vec();
    payload.resize(bytes.max(8), 0xab);
    payload
}

impl Engine {
    pub(crate) fn start(context: &zmq::Context, shape: Shape, faults: Vec<Fault>) -> Engine {
        Engine::start_at(context, shape, faults, ["tcp://127.0.0.1:*"; 2]).expect("any port")
    }

    /// An engine at these two endpoints, unless one of them is taken.
    pub(crate) fn start_at(
        context: &zmq::Context,
        shape: Shape,
        mut faults: Vec<Fault>,
        endpoints: [&str; 2],
    ) -> Option<Engine> {
        let publisher = context.socket(zmq::PUB).unwrap();
        publisher.set_linger(0).unwrap();
        publisher.bind(endpoints[0]).ok()?;
        let at = publisher.get_last_endpoint().unwrap().unwrap();
        // Only `bind`, as vLLM up to 0.32: a send queue of 1000 messages for each peer.
        let router = context.socket(zmq::ROUTER).unwrap();
        router.set_linger(0).unwrap();
        router.bind(endpoints[1]).ok()?;
        let replay_at = endpoint(&router.get_last_endpoint().unwrap().unwrap());
        let (buffer, requests) = (Buffer::default(), Arc::new(Mutex::new(Vec::new())));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (buffer, requests, stop) = (buffer.clone(), requests.clone(), stop.clone());
            faults.reverse();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if router.poll(zmq::POLLIN, 20).unwrap() == 0 {
                        continue;
                    }
                    let request = router.recv_multipart(0).unwrap();
                    let [client, empty, from] = &request[..] else {
                        panic!("vLLM answers nothing to {} frames", request.len())
                    };
                    assert!(empty.is_empty());
                    let from = u64::from_be_bytes(from[..].try_into().unwrap());
                    requests.lock().unwrap().push((client.clone(), from));
                    let buffer = buffer.lock().unwrap().clone();
                    answer(&router, client, shape, from, &buffer, faults.pop());
                }
            }
        });
        let thread = Some(thread);
        Some(Engine { publisher, at, replay_at, buffer, requests, next: 0, stop, thread })
    }

    /// Makes a batch that nobody is sent.
    pub(crate) fn lose(&mut self, bytes: usize) -> (u64, Vec<u8>) {
        self.lose_batch(payload(self.next, bytes))
    }

    /// Makes this batch, which nobody is sent.
    pub(crate) fn lose_batch(&mut self, payload: Vec<u8>) -> (u64, Vec<u8>) {
        let batch = (self.next, payload);
        self.buffer.lock().unwrap().push(batch.clone());
        self.next += 1;
        batch
    }

    /// Publishes this batch.
    pub(crate) fn publish_batch(&mut self, payload: Vec<u8>) {
        let (seq, payload) = self.lose_batch(payload);
        publish(&self.publisher, b"", seq, &payload);
    }

    pub(crate) fn publish(&mut self) {
        let (seq, payload) = self.lose(8);
        publish(&self.publisher, b"", seq, &payload);
    }

    /// From where on it was asked.
    pub(crate) fn requests(&self) -> Vec<u64> {
        self.requests.lock().unwrap().iter().map(|(_, from)| *from).collect()
    }

    /// How many sockets asked.
    pub(crate) fn askers(&self) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|(client, _)| client).collect::<HashSet<_>>().len()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

fn answer(
    router: &zmq::Socket,
    client: &[u8],
    shape: Shape,
    from: u64,
    buffer: &[(u64, Vec<u8>)],
    fault: Option<Fault>,
) {
    // A ROUTER drops what does not fit and says nothing; so does this.
    let send = |topic: &[u8], seq: u64, payload: &[u8]| {
        let seq = seq.to_be_bytes();
        match shape {
            Shape::Plain => router.send_multipart([client, b"", &seq[..], payload], 0),
            Shape::WithTopic => router.send_multipart([client, b"", topic, &seq[..], payload], 0),
        }
        .unwrap();
    };
    if fault == Some(Fault::Silence) {
        return;
    }
    for (sent, (seq, payload)) in buffer.iter().filter(|(seq, _)| *seq >= from).enumerate() {
        match fault {
            Some(Fault::CutAfter(batches)) if sent == batches => return,
            Some(Fault::Holes) if sent % 10 > 7 => continue,
            Some(Fault::Garbage) => {
                router.send_multipart([client, b"", b"short", b"x"], 0).unwrap();
                router.send_multipart([client, b"x"], 0).unwrap();
                router.send_multipart([client, b"", b"", b"", b"", b"", b""], 0).unwrap();
            }
            _ => {}
        }
        send(b"kv@pod", *seq, payload);
    }
    if let (Some(Fault::Drip), Some((seq, payload))) = (fault, buffer.last()) {
        for _ in 0..150 {
            thread::sleep(Duration::from_millis(20));
            send(b"kv@pod", *seq, payload);
        }
        return;
    }
    send(b"", u64::MAX, b"");
}
