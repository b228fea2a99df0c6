//! Peers that mean harm, one test at a time: memory is the process's.
#![cfg(all(feature = "zmq", target_os = "linux"))]

mod zmq_support;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kvscout::ingest::zmq::{Mode, Options, Receiver, SourceId};
use zmq_support::*;

/// What the process may gain while it is attacked.
const MEMORY: u64 = 256 << 20;
const ATTACK: Duration = Duration::from_secs(5);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Dials or accepts, shakes hands, and pushes `chunk` for ever, again and again, while a
/// well-behaved source must go on delivering.
fn endure(attack: &str, mode: Mode, chunk: &[u8]) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let context = zmq::Context::new();
    let inbox = Inbox::default();
    let receiver = Receiver::start(Options::default(), inbox.clone()).unwrap();
    let (good, good_endpoint) = bound_publisher(&context, "tcp://127.0.0.1:*");
    connect(&receiver, 1, &good_endpoint);
    publish_until_received(&good, &inbox, 1, 0);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap();
    let target = match mode {
        Mode::Connect => {
            connect(&receiver, 2, &format!("tcp://{own}"));
            String::new()
        }
        _ => bind(&receiver, 2, mode).replace("tcp://", ""),
    };
    let (over, pushed) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = resident();
    let mut peak = before;
    let mut next = 1;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let stream = match mode {
                    Mode::Connect => listener.accept().map(|(stream, _)| stream),
                    _ => TcpStream::connect(&target),
                };
                let Ok(mut stream) = stream else { continue };
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                // A connection that was cut may swallow bytes without an error.
                stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
                if zmtp_handshake(&mut stream).is_err() {
                    continue;
                }
                while !over.load(Ordering::Relaxed) && stream.write_all(chunk).is_ok() {
                    pushed.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                }
            }
        });
        let started = Instant::now();
        while started.elapsed() < ATTACK {
            publish(&good, b"", next, b"payload");
            next += 1;
            peak = peak.max(resident());
            thread::sleep(Duration::from_millis(2));
        }
        let others = receiver.status_of(SourceId(1)).unwrap();
        let status = receiver.status_of(SourceId(2)).unwrap();
        over.store(true, Ordering::Relaxed);
        // Ends an `accept` that nobody answers.
        let _ = TcpStream::connect(own);
        drop(receiver);
        eprintln!(
            "{attack} ({mode:?}): pushed {} MiB, gained {} MiB, {} overruns, {} violations",
            pushed.load(Ordering::Relaxed) >> 20,
            (peak - before) >> 20,
            status.overruns,
            status.violations,
        );
        assert!(status.overruns + status.violations > 0, "the attacker was never cut");
        assert_eq!(others.disconnects, 0);
    });
    assert!(peak - before < MEMORY, "memory grew by {} MiB", (peak - before) >> 20);
    let received = inbox.sequences_of(1);
    let expected = next - 1;
    assert!(
        received.iter().filter(|&&sequence| sequence > 0).count() as u64 >= expected * 9 / 10,
        "the other source delivered {} of {expected}",
        received.len()
    );
}

fn large_frames() -> Vec<u8> {
    frame(true, &[7; 64 << 10]).repeat(16)
}

fn empty_frames() -> Vec<u8> {
    [1_u8, 0].repeat(512 << 10)
}

#[test]
fn an_endless_message_of_large_frames_is_cut_when_we_dialled() {
    endure("endless large frames", Mode::Connect, &large_frames());
}

#[test]
fn an_endless_message_of_large_frames_is_cut_when_we_listened() {
    endure("endless large frames", Mode::Bind, &large_frames());
}

#[test]
fn an_endless_message_of_empty_frames_is_cut_when_we_dialled() {
    endure("endless empty frames", Mode::Connect, &empty_frames());
}

#[test]
fn an_endless_message_of_empty_frames_is_cut_when_we_listened() {
    endure("endless empty frames", Mode::Bind, &empty_frames());
}
