//! What the transport's tests share: a sink that remembers, publishers, a peer that speaks ZMTP by
//! hand.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod engine;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvscout::ingest::zmq::{Endpoint, Mode, Receiver, Sink, Source, SourceId};

/// How long anything may take on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) source: u32,
    pub(crate) topic: Vec<u8>,
    pub(crate) sequence: u64,
    pub(crate) payload: Vec<u8>,
}

/// Everything a sink was called with.
#[derive(Clone, Default)]
pub(crate) struct Inbox {
    pub(crate) batches: Arc<Mutex<Vec<Batch>>>,
    pub(crate) links: Arc<Mutex<Vec<(u32, bool)>>>,
}

impl Sink for Inbox {
    fn batch(&mut self, source: SourceId, topic: &[u8], sequence: u64, payload: &[u8]) {
        self.batches.lock().unwrap().push(Batch {
            source: source.0,
            topic: topic.to_vec(),
            sequence,
            payload: payload.to_vec(),
        });
    }

    fn link(&mut self, source: SourceId, up: bool) {
        self.links.lock().unwrap().push((source.0, up));
    }
}

impl Inbox {
    pub(crate) fn count(&self) -> usize {
        self.batches.lock().unwrap().len()
    }

    pub(crate) fn all(&self) -> Vec<Batch> {
        self.batches.lock().unwrap().clone()
    }

    pub(crate) fn sequences_of(&self, source: u32) -> Vec<u64> {
        let batches = self.batches.lock().unwrap();
        batches.iter().filter(|b| b.source == source).map(|b| b.sequence).collect()
    }

    pub(crate) fn has(&self, source: u32, sequence: u64) -> bool {
        let batches = self.batches.lock().unwrap();
        batches.iter().any(|b| b.source == source && b.sequence == sequence)
    }

    pub(crate) fn links_of(&self, source: u32) -> Vec<bool> {
        let links = self.links.lock().unwrap();
        links.iter().filter(|(id, _)| *id == source).map(|(_, up)| *up).collect()
    }
}

#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

pub(crate) fn connect(receiver: &Receiver, id: u32, at: &str) {
    receiver.add(SourceId(id), Source::new(endpoint(at), Mode::Connect)).unwrap();
}

pub(crate) fn bind(receiver: &Receiver, id: u32, mode: Mode) -> String {
    receiver
        .add(SourceId(id), Source::new(endpoint("tcp://127.0.0.1:*"), mode))
        .unwrap()
        .to_string()
}

/// A PUB socket as vLLM makes it, bound to `at`, and the endpoint it got.
pub(crate) fn bound_publisher(context: &zmq::Context, at: &str) -> (zmq::Socket, String) {
    let socket = context.socket(zmq::PUB).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_ipv6(true).unwrap();
    // The address of a publisher that was just closed is free a moment later.
    eventually("the publisher's address is free", || socket.bind(at).is_ok());
    let endpoint = socket.get_last_endpoint().unwrap().unwrap();
    (socket, endpoint)
}

pub(crate) fn dialling_publisher(context: &zmq::Context, to: &str) -> zmq::Socket {
    let socket = context.socket(zmq::PUB).unwrap();
    socket.set_linger(0).unwrap();
    socket.connect(to).unwrap();
    socket
}

pub(crate) fn publish(socket: &zmq::Socket, topic: &[u8], sequence: u64, payload: &[u8]) {
    socket.send_multipart([topic, &sequence.to_be_bytes()[..], payload], 0).unwrap();
}

/// Publishes until `source` receives it: a subscription takes effect some time after `add`.
#[track_caller]
pub(crate) fn publish_until_received(
    socket: &zmq::Socket,
    inbox: &Inbox,
    source: u32,
    sequence: u64,
) {
    eventually("a published message is received", || {
        publish(socket, b"", sequence, b"payload");
        inbox.has(source, sequence)
    });
}

/// Publishes on a thread of its own, until it is dropped.
pub(crate) struct Publishing(Arc<AtomicBool>, Option<JoinHandle<()>>);

/// Calls `publish` with 0, 1, 2, ... every few milliseconds.
pub(crate) fn publish_while(publish: impl Fn(u64) + Send + 'static) -> Publishing {
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    let thread = thread::spawn(move || {
        for n in (0..).take_while(|_| !end.load(Ordering::Relaxed)) {
            publish(n);
            thread::sleep(Duration::from_millis(20));
        }
    });
    Publishing(ended, Some(thread))
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = self.1.take().map(JoinHandle::join);
    }
}

/// Reads and answers the other side's greeting and READY as a PUB socket (ZMTP 3.0, NULL), and
/// reads its first subscription.
pub(crate) fn zmtp_handshake(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut greeting = [0_u8; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting)?;
    stream.write_all(b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB")?;
    stream.read_exact(&mut greeting)?;
    for _ in ["READY", "subscription"] {
        let mut head = [0_u8; 2];
        stream.read_exact(&mut head)?;
        let mut body = vec![0_u8; usize::from(head[1])];
        stream.read_exact(&mut body)?;
    }
    Ok(())
}

/// One frame as it goes over the wire.
pub(crate) fn frame(more: bool, body: &[u8]) -> Vec<u8> {
    let mut wire = vec![2 | u8::from(more)];
    wire.extend((body.len() as u64).to_be_bytes());
    wire.extend(body);
    wire
}

/// One well-formed message as it goes over the wire.
pub(crate) fn message(sequence: u64, payload: &[u8]) -> Vec<u8> {
    [frame(true, b""), frame(true, &sequence.to_be_bytes()), frame(false, payload)].concat()
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
