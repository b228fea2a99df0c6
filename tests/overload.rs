//! More than is served: who comes beyond a limit is told at once, and whether the daemon works is always told.
#![cfg(feature = "daemon")]

mod daemon_support;
mod scope_support;
mod zmq_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use daemon_support::{Daemon, Response};
use scope_support::Raises;
use serde_json::json;
use zmq_support::{PATIENCE, eventually};

/// A daemon with these limits that dials nobody, and has a worker to score.
fn daemon(limits: &str) -> Daemon {
    let source = "[[source]]\nname = \"7\"\nendpoint = \"tcp://127.0.0.1:9\"\nmodel = \"m\"\n";
    let daemon = Daemon::start(&[], &format!("{source}[limits]\n{limits}\n"), &[]);
    eventually("the source is added", || daemon.get("/ready").status == 200);
    daemon
}

#[track_caller]
fn is_overloaded(answer: &Response) {
    assert_eq!(answer.json(503)["reason"], "overloaded");
    assert_eq!(answer.header("retry-after"), Some("1"));
}

/// What an operator and a probe look at is there whatever else is not.
#[track_caller]
fn tells_that_it_works(daemon: &Daemon) {
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(daemon.get(path).status, 200, "{path}");
    }
}

#[test]
fn beyond_the_queue_a_question_is_refused_at_once_and_afterwards_answered_again() {
    let daemon = daemon("concurrency = 1\nqueue = 0");
    let tokens: Vec<u32> = (0..400).collect();
    let questions = vec![json!({ "model": "m", "token_ids": tokens }); 2000];
    let long = json!({ "requests": questions });
    let question = json!({ "model": "m", "token_ids": [1, 2, 3] });
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Raises(&over);
        // One question after the other that takes its time; it may be refused itself while a short one is answered.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let answer = daemon.post("/v1/score/batch", &long);
                assert!([200, 503].contains(&answer.status), "{}", answer.body);
            }
        });
        eventually("a question is refused", || {
            let answer = daemon.post("/v1/score", &question);
            if answer.status == 200 {
                return false;
            }
            is_overloaded(&answer);
            tells_that_it_works(&daemon);
            true
        });
    });
    assert_eq!(daemon.post("/v1/score", &question).status, 200);
    let refused = "kvscout_http_requests_total{route=\"/v1/score\",status=\"503\"}";
    assert!(daemon.metric(refused).unwrap_or_default() >= 1.0, "{}", daemon.get("/metrics").body);
}

#[test]
fn a_connection_that_was_refused_is_not_listened_to_for_a_moment() {
    let daemon = daemon("concurrency = 1\nqueue = 0");
    let tokens: Vec<u32> = (0..400).collect();
    let long = json!({ "requests": vec![json!({ "model": "m", "token_ids": tokens }); 2000] });
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Raises(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                daemon.post("/v1/score/batch", &long);
            }
        });
        eventually("two in a row are refused", || {
            // One that was refused before would wait for the first answer, not for the second.
            let mut stream = BufReader::new(TcpStream::connect(daemon.address()).unwrap());
            stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
            let asked = Instant::now();
            let refused = ask_again(&mut stream) == 503;
            let again = ask_again(&mut stream);
            if refused {
                assert!(asked.elapsed() >= Duration::from_millis(10), "{:?}", asked.elapsed());
            }
            refused && again == 503
        });
    });
}

/// One more question over the same connection; the answer's status.
fn ask_again(stream: &mut BufReader<TcpStream>) -> u16 {
    let body = r#"{"model": "m", "token_ids": [1, 2, 3]}"#;
    let length = body.len();
    let question = format!(
        "POST /v1/score HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.get_mut().write_all(question.as_bytes()).unwrap();
    let head: Vec<String> =
        stream.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    stream.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
    head[0].split(' ').nth(1).unwrap().parse().unwrap()
}

/// A connection that has a place, since a question over it is answered. One that is just over may still have had it.
fn with_a_place(daemon: &Daemon) -> BufReader<TcpStream> {
    let mut held = None;
    eventually("there is a place", || {
        let mut stream = BufReader::new(TcpStream::connect(daemon.address()).unwrap());
        held = (ask_again(&mut stream) == 200).then_some(stream);
        held.is_some()
    });
    held.unwrap()
}

#[test]
fn beyond_the_connections_one_is_told_why_and_may_still_ask_whether_the_daemon_works() {
    let daemon = daemon("connections = 2");
    let question = json!({ "model": "m", "token_ids": [1, 2, 3] });
    let held = [with_a_place(&daemon), with_a_place(&daemon)];
    let answer = daemon.post("/v1/score", &question);
    is_overloaded(&answer);
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(daemon.get("/health").status, 200);
    assert_eq!(daemon.get("/ready").status, 200);
    drop(held);
    eventually("a place is free", || daemon.post("/v1/score", &question).status == 200);
}

#[test]
fn bodies_that_are_under_way_share_their_memory() {
    let daemon = daemon("body_memory_bytes = 1048576\nread_timeout = \"120s\"");
    let body = format!("{{\"model\": \"m\", \"token_ids\": [{}1]}}", "1234567,".repeat(110_000));
    let head = format!(
        "POST /v1/score HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let (most, rest) = body.split_at(body.len() - 1);
    let begin = || {
        let mut slow = TcpStream::connect(daemon.address()).unwrap();
        slow.set_read_timeout(Some(PATIENCE)).unwrap();
        slow.write_all(format!("{head}{most}").as_bytes()).unwrap();
        slow
    };
    let is_answered = |slow: &TcpStream| {
        slow.set_nonblocking(true).unwrap();
        let answered = slow.peek(&mut [0]).is_ok();
        slow.set_nonblocking(false).unwrap();
        answered
    };
    let mut slow = begin();
    let kind = "content-type: application/json\r\n";
    eventually("there is no room for another", || {
        let answer = daemon.send("POST", "/v1/score", kind, &body);
        if answer.status == 503 {
            is_overloaded(&answer);
        }
        // Where the other was quicker, the slow one is the one without room.
        let waits = !is_answered(&slow);
        if !waits {
            slow = begin();
        }
        waits && answer.status == 503
    });
    // Small ones need none.
    let question = json!({ "model": "m", "token_ids": [1, 2, 3] });
    assert_eq!(daemon.post("/v1/score", &question).status, 200);
    tells_that_it_works(&daemon);
    slow.write_all(rest.as_bytes()).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(daemon.send("POST", "/v1/score", kind, &body).status, 200);
}

#[test]
fn a_body_that_does_not_come_in_time_is_given_up() {
    let daemon = daemon("read_timeout = \"300ms\"");
    let mut slow = TcpStream::connect(daemon.address()).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "POST /v1/score HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: 40\r\n\r\n";
    slow.write_all(format!("{head}{{\"model\": \"m\"").as_bytes()).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("\"reason\":\"timeout\""), "{answer}");
    tells_that_it_works(&daemon);
}

#[test]
fn a_connection_that_says_nothing_or_never_ends_its_head_is_closed() {
    let daemon = daemon("idle = \"300ms\"");
    for head in ["", "GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-never-ends: "] {
        let mut stream = TcpStream::connect(daemon.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(!said.starts_with("HTTP/1.1 200"), "{said}");
        // Fails where it is closed already, as it is.
        let _ = stream.shutdown(Shutdown::Both);
    }
    assert_eq!(daemon.get("/health").status, 200);
}
