//! The transport against real publishers and against peers that speak ZMTP by hand.
#![cfg(feature = "zmq")]

mod zmq_support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kvscout::ErrorKind;
use kvscout::ingest::zmq::{Mode, Options, Receiver, Sink, Source, SourceId};
use zmq_support::*;

fn start() -> (Receiver, Inbox) {
    start_with(Options::default())
}

fn start_with(options: Options) -> (Receiver, Inbox) {
    let inbox = Inbox::default();
    (Receiver::start(options, inbox.clone()).unwrap(), inbox)
}

#[test]
fn a_message_arrives_as_it_was_sent() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let (publisher, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    connect(&receiver, 7, &at);
    publish_until_received(&publisher, &inbox, 7, 0);

    let large = vec![0xa5; 1 << 20];
    publish(&publisher, b"\xff\xfe not UTF-8 \0", 1, &large);
    publish(&publisher, b"", u64::MAX, b"");
    publish(&publisher, b"kv@pod", 2, b"\x93\x00");
    eventually("the last message", || inbox.has(7, 2));
    let batches = inbox.all();
    let tail: Vec<_> = batches.iter().skip_while(|batch| batch.sequence == 0).collect();
    assert_eq!(tail.iter().map(|b| b.sequence).collect::<Vec<_>>(), [1, u64::MAX, 2]);
    assert_eq!(tail[0].topic, b"\xff\xfe not UTF-8 \0");
    assert_eq!(tail[0].payload, large);
    assert_eq!((&tail[1].topic[..], &tail[1].payload[..]), (&b""[..], &b""[..]));
    assert_eq!(tail[2].payload, b"\x93\x00");

    eventually("the counters follow", || {
        receiver.status_of(SourceId(7)).unwrap().messages == inbox.count() as u64
    });
    let status = receiver.status_of(SourceId(7)).unwrap();
    let bytes: usize = batches.iter().map(|b| b.payload.len()).sum();
    assert_eq!(status.bytes, bytes as u64);
    assert!(status.up && status.since.is_some() && status.connections == 1);
    assert_eq!(inbox.links_of(7), [true]);
}

#[test]
fn publishers_that_dial_reach_a_bound_source() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let (a, b) = (bind(&receiver, 1, Mode::Bind), bind(&receiver, 2, Mode::Bind));
    assert_ne!(a, b);
    assert_eq!(receiver.status_of(SourceId(1)).unwrap().endpoint.to_string(), a);
    let (pod_a, pod_b) = (dialling_publisher(&context, &a), dialling_publisher(&context, &b));
    publish_until_received(&pod_a, &inbox, 1, 10);
    publish_until_received(&pod_b, &inbox, 2, 20);
    assert!(!inbox.has(1, 20) && !inbox.has(2, 10));
    drop(pod_a);
    eventually("the link goes down", || inbox.links_of(1) == [true, false]);
    assert!(inbox.links_of(2) == [true]);
}

#[test]
fn a_shared_port_hands_the_topics_over() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let at = bind(&receiver, 9, Mode::BindShared);
    let pods: Vec<_> = (0..5).map(|_| dialling_publisher(&context, &at)).collect();
    for (sequence, pod) in (0..).zip(&pods) {
        let topic = format!("kv@pod-{sequence}");
        eventually("each pod is heard", || {
            publish(pod, topic.as_bytes(), sequence, b"");
            inbox.has(9, sequence)
        });
    }
    assert!(inbox.all().iter().all(|b| b.topic == format!("kv@pod-{}", b.sequence).as_bytes()));
    eventually("all are counted", || receiver.status_of(SourceId(9)).unwrap().connections == 5);
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    let (receiver, _inbox) = start_with(Options { max_connections: 2, ..Options::default() });
    let at = bind(&receiver, 1, Mode::BindShared).replace("tcp://", "");
    let _held: Vec<_> = (0..2).map(|_| TcpStream::connect(&at).unwrap()).collect();
    eventually("two are held", || receiver.status_of(SourceId(1)).unwrap().connections == 2);
    let mut third = TcpStream::connect(&at).unwrap();
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    // libzmq's greeting, at most, and then the end; a reset is an end as well.
    let _ = third.read_to_end(&mut Vec::new());
    eventually("the third is counted", || receiver.status_of(SourceId(1)).unwrap().refused == 1);
    eventually("two remain", || receiver.status_of(SourceId(1)).unwrap().connections == 2);
}

#[test]
fn ipv6_and_unix_sockets_work() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let (v6, at) = bound_publisher(&context, "tcp://[::1]:*");
    connect(&receiver, 6, &at);
    publish_until_received(&v6, &inbox, 6, 1);

    let path = std::env::temp_dir().join(format!("kvscout-{}.sock", std::process::id()));
    let (ipc, at) = bound_publisher(&context, &format!("ipc://{}", path.display()));
    connect(&receiver, 8, &at);
    publish_until_received(&ipc, &inbox, 8, 2);
    let _ = std::fs::remove_file(path);

    let bound =
        receiver.add(SourceId(7), Source::new(endpoint("tcp://[::1]:*"), Mode::Bind)).unwrap();
    let dialling = context.socket(zmq::PUB).unwrap();
    dialling.set_ipv6(true).unwrap();
    dialling.connect(&bound.to_string()).unwrap();
    publish_until_received(&dialling, &inbox, 7, 3);
}

#[test]
fn only_subscribed_topics_arrive() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start_with(Options { topic: b"kv@".to_vec(), ..Options::default() });
    let (publisher, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    connect(&receiver, 1, &at);
    eventually("a subscribed topic arrives", || {
        publish(&publisher, b"metrics", 1, b"");
        publish(&publisher, b"kv", 2, b"");
        publish(&publisher, b"kv@pod", 3, b"");
        inbox.has(1, 3)
    });
    assert!(inbox.all().iter().all(|batch| batch.topic == b"kv@pod"));
}

#[test]
fn a_publisher_that_comes_back_is_received_again() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let (first, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    connect(&receiver, 1, &at);
    publish_until_received(&first, &inbox, 1, 1);
    drop(first);
    eventually("the link goes down", || !receiver.status_of(SourceId(1)).unwrap().up);
    let (second, _) = bound_publisher(&context, &at);
    publish_until_received(&second, &inbox, 1, 2);
    assert_eq!(inbox.links_of(1), [true, false, true]);
    let status = receiver.status_of(SourceId(1)).unwrap();
    assert_eq!((status.redials, status.violations), (0, 0), "libzmq dials again by itself");
}

#[test]
fn a_publisher_may_start_after_its_source() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = format!("tcp://127.0.0.1:{port}");
    connect(&receiver, 1, &at);
    let (publisher, _) = bound_publisher(&context, &at);
    publish_until_received(&publisher, &inbox, 1, 1);
}

#[test]
fn l6_heartbeats_keep_an_idle_link_and_end_a_dead_one() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start_with(Options {
        heartbeat_interval: Some(Duration::from_millis(50)),
        heartbeat_timeout: Duration::from_secs(4),
        ..Options::default()
    });
    let publisher = context.socket(zmq::PUB).unwrap();
    publisher.set_heartbeat_ivl(20).unwrap();
    // By default it gives a peer as long as one interval to answer, which a busy machine may need.
    publisher.set_heartbeat_timeout(30_000).unwrap();
    publisher.bind("tcp://127.0.0.1:*").unwrap();
    connect(&receiver, 1, &publisher.get_last_endpoint().unwrap().unwrap());
    publish_until_received(&publisher, &inbox, 1, 1);

    // A peer that completes the handshake and never answers again, as after a power cut.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    connect(&receiver, 2, &format!("tcp://{}", listener.local_addr().unwrap()));
    let (mut dead, _) = listener.accept().unwrap();
    zmtp_handshake(&mut dead).unwrap();
    eventually("the dead link is noticed", || inbox.links_of(2).starts_with(&[true, false]));
    assert_eq!(inbox.links_of(1), [true]);
    assert_eq!(receiver.status_of(SourceId(1)).unwrap().disconnects, 0);
    publish_until_received(&publisher, &inbox, 1, 2);
}

#[test]
fn malformed_messages_are_counted_and_the_stream_goes_on() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let (publisher, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    connect(&receiver, 1, &at);
    publish_until_received(&publisher, &inbox, 1, 0);
    let eight = 5_u64.to_be_bytes();
    let wrong: [&[&[u8]]; 7] = [
        &[b"alone"],
        &[b"", &eight],
        &[b"", &eight, b"payload", b"one more"],
        &[&b"x"[..]; 64],
        &[b"", &eight[..7], b"payload"],
        &[b"", b"", b"payload"],
        &[b"", b"123456789", b"payload"],
    ];
    for frames in wrong {
        publisher.send_multipart(frames, 0).unwrap();
    }
    publish(&publisher, b"", 6, b"");
    eventually("the stream goes on", || inbox.has(1, 6));
    eventually("they are counted", || {
        let status = receiver.status_of(SourceId(1)).unwrap();
        (status.malformed_frames, status.malformed_sequence) == (4, 3)
    });
    assert!(!inbox.has(1, 5));
    let status = receiver.status_of(SourceId(1)).unwrap();
    assert_eq!((status.disconnects, status.redials, status.overruns), (0, 0, 0));
}

#[test]
fn a_message_of_absurdly_many_frames_costs_its_sender_the_connection() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let (dialled, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    connect(&receiver, 1, &at);
    publish_until_received(&dialled, &inbox, 1, 0);
    let bound = bind(&receiver, 2, Mode::BindShared);
    let (hostile, innocent) =
        (dialling_publisher(&context, &bound), dialling_publisher(&context, &bound));
    publish_until_received(&hostile, &inbox, 2, 1);
    publish_until_received(&innocent, &inbox, 2, 2);
    for publisher in [&dialled, &hostile] {
        publisher.send_multipart([&b"x"[..]; 5000], 0).unwrap();
    }
    for source in [1, 2] {
        eventually("the sender is cut", || {
            let status = receiver.status_of(SourceId(source)).unwrap();
            status.overruns == 1 && status.disconnects <= 1
        });
    }
    publish_until_received(&innocent, &inbox, 2, 3);
    publish_until_received(&hostile, &inbox, 2, 4);
    publish_until_received(&dialled, &inbox, 1, 5);
    assert_eq!(receiver.status_of(SourceId(2)).unwrap().redials, 0);
}

#[test]
fn a_publisher_whose_frame_was_too_large_is_dialled_again() {
    let (receiver, inbox) =
        start_with(Options { max_message_bytes: 64 << 10, ..Options::default() });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    connect(&receiver, 1, &format!("tcp://{}", listener.local_addr().unwrap()));
    let huge_header = [2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let offences = [frame(false, &vec![0; 65 << 10]), huge_header.to_vec()];
    for (sequence, offence) in (1..).zip(&offences) {
        let (mut stream, _) = listener.accept().unwrap();
        zmtp_handshake(&mut stream).unwrap();
        stream.write_all(&message(sequence, b"before")).unwrap();
        eventually("what came before the offence", || inbox.has(1, sequence));
        let _ = stream.write_all(offence);
    }
    let (mut stream, _) = listener.accept().unwrap();
    zmtp_handshake(&mut stream).unwrap();
    stream.write_all(&message(9, b"repentant")).unwrap();
    eventually("events arrive again", || inbox.has(1, 9));
    eventually("every offence is counted", || {
        let status = receiver.status_of(SourceId(1)).unwrap();
        (status.violations, status.redials, status.disconnects) == (2, 2, 2)
    });
}

#[test]
fn peers_that_speak_no_zmtp_are_counted_and_dialled_again() {
    let (receiver, inbox) = start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    connect(&receiver, 1, &format!("tcp://{}", listener.local_addr().unwrap()));
    for words in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"", &[0xff; 64]] {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(words).unwrap();
    }
    let (mut stream, _) = listener.accept().unwrap();
    zmtp_handshake(&mut stream).unwrap();
    stream.write_all(&message(1, b"")).unwrap();
    eventually("a publisher is received in the end", || inbox.has(1, 1));
    assert_eq!(inbox.links_of(1), [true], "none of the others was a link");
}

#[test]
fn hundreds_of_sources_are_received_and_a_busy_one_starves_none() {
    const SOURCES: u32 = 400;
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    // Two contexts on our side.
    let publishers: Vec<_> =
        (0..SOURCES).map(|_| bound_publisher(&context, "tcp://127.0.0.1:*")).collect();
    for (id, (_, at)) in (0..).zip(&publishers) {
        connect(&receiver, id, at);
    }
    eventually("every source is received", || {
        for (id, (publisher, _)) in (0..).zip(&publishers) {
            if !inbox.has(id, u64::from(id)) {
                publish(publisher, b"", u64::from(id), b"payload");
            }
        }
        (0..SOURCES).all(|id| inbox.has(id, u64::from(id)))
    });
    let batches = inbox.all();
    assert!(batches.iter().all(|batch| batch.sequence == u64::from(batch.source)));
    assert_eq!(receiver.status().len(), SOURCES as usize);
}

#[test]
fn two_thousand_sources_without_publishers_can_be_added() {
    let mut limit = open_file_limit();
    let (receiver, _inbox) = start();
    let mut added = 0;
    while added < 2000 && limit > 1000 {
        connect(&receiver, added, "tcp://127.0.0.1:9");
        added += 1;
        limit = limit.saturating_sub(8);
    }
    assert_eq!(receiver.status().len(), added as usize);
    for id in 0..added {
        assert!(receiver.remove(SourceId(id)));
    }
    assert!(receiver.status().is_empty());
}

/// The soft limit on open files.
fn open_file_limit() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok()).unwrap_or(1024)
}

#[test]
fn a_source_that_comes_and_goes_leaves_nothing_behind() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let (publisher, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    let source = || Source::new(endpoint(&at), Mode::Connect);
    // More than one context could hold if a socket of each round stayed behind.
    for _ in 0..1500 {
        receiver.add(SourceId(1), source()).unwrap();
        let twice = receiver.add(SourceId(1), source()).unwrap_err();
        assert_eq!(twice.kind(), ErrorKind::InvalidInput);
        assert!(receiver.remove(SourceId(1)));
        assert!(!receiver.remove(SourceId(1)));
        assert_eq!(receiver.status_of(SourceId(1)), None);
    }
    receiver.add(SourceId(1), source()).unwrap();
    publish_until_received(&publisher, &inbox, 1, 1);
    let before = inbox.count();
    publish(&publisher, b"", 2, b"");
    eventually("one subscription is left", || inbox.has(1, 2));
    let copies = inbox.sequences_of(1).iter().filter(|&&sequence| sequence == 2).count();
    assert_eq!(copies, 1, "{before}");
}

#[test]
fn a_port_is_free_again_after_its_source_was_removed() {
    let (receiver, _inbox) = start();
    let at = bind(&receiver, 1, Mode::Bind);
    let source = || Source::new(endpoint(&at), Mode::Bind);
    let taken = receiver.add(SourceId(2), source()).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Unavailable);
    assert!(taken.to_string().contains(&at), "{taken}");
    assert_eq!(receiver.status().len(), 1);
    receiver.remove(SourceId(1));
    eventually("the port is free", || receiver.add(SourceId(2), source()).is_ok());
}

#[test]
fn nothing_arrives_after_remove_has_returned() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let (publisher, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    for _ in 0..20 {
        connect(&receiver, 1, &at);
        publish_until_received(&publisher, &inbox, 1, 0);
        for sequence in 1..2000 {
            publish(&publisher, b"", sequence, b"payload");
        }
        receiver.remove(SourceId(1));
        let count = inbox.count();
        inbox.links.lock().unwrap().clear();
        for sequence in 2000..2100 {
            publish(&publisher, b"", sequence, b"payload");
        }
        // The next source's arrival proves that the thread has gone on meanwhile.
        connect(&receiver, 2, &at);
        publish_until_received(&publisher, &inbox, 2, 0);
        receiver.remove(SourceId(2));
        let batches = inbox.all();
        assert!(batches[count..].iter().all(|batch| batch.source == 2));
        assert!(inbox.links_of(1).is_empty());
        inbox.batches.lock().unwrap().clear();
    }
}

#[test]
fn dropping_the_receiver_ends_it_even_under_load() {
    let context = zmq::Context::new();
    let (receiver, inbox) = start();
    let (publisher, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    connect(&receiver, 1, &at);
    connect(&receiver, 2, "tcp://127.0.0.1:9");
    publish_until_received(&publisher, &inbox, 1, 0);
    for sequence in 1..10_000 {
        publish(&publisher, b"", sequence, b"payload");
    }
    let started = Instant::now();
    drop(receiver);
    assert!(started.elapsed() < PATIENCE);
    let count = inbox.count();
    publish(&publisher, b"", 1, b"");
    assert_eq!(inbox.count(), count);
}

#[test]
fn a_sink_that_panics_ends_the_receiver_with_an_error() {
    struct Panics;
    impl Sink for Panics {
        fn batch(&mut self, _: SourceId, _: &[u8], _: u64, _: &[u8]) {
            panic!("as the test wants it");
        }
    }
    let context = zmq::Context::new();
    let receiver = Receiver::start(Options::default(), Panics).unwrap();
    let (publisher, at) = bound_publisher(&context, "tcp://127.0.0.1:*");
    connect(&receiver, 1, &at);
    eventually("the receiver has ended", || {
        publish(&publisher, b"", 1, b"");
        let again = receiver.add(SourceId(2), Source::new(endpoint(&at), Mode::Connect));
        receiver.remove(SourceId(2));
        again.is_err_and(|error| error.kind() == ErrorKind::Unavailable)
    });
}

#[test]
fn what_cannot_be_dialled_is_refused() {
    let (receiver, _inbox) = start();
    for text in ["tcp://*:5557", "tcp://pod:*"] {
        let error =
            receiver.add(SourceId(1), Source::new(endpoint(text), Mode::Connect)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(text), "{error}");
    }
    let error =
        Receiver::start(Options { max_message_bytes: 100, ..Options::default() }, Inbox::default());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput);
}
